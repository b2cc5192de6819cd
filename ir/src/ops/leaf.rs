//! Leaves: values that no operator computes.

use super::{InferCx, InferError, Operator, arity};
use crate::eval::{EvalCx, EvalError, actual_type};
use crate::tensor::Tensor;
use crate::types::{TensorType, Type};
use crate::weights::Weight;

macro_rules! leaf {
    ($(#[$doc:meta])* $name:ident $text:literal $find:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            /// The name by which it is bound.
            pub name: String,
            /// Its type.
            pub ty: TensorType,
        }

        impl Operator for $name {
            fn name(&self) -> &'static str {
                $text
            }

            fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
                arity(operands, 0)?;
                Ok(self.ty.clone().into())
            }

            fn eval(&self, _: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
                let find: fn(&EvalCx, &str) -> Option<Tensor> = $find;
                let missing = || EvalError::Missing { kind: $text, name: self.name.clone() };
                let value = find(cx, &self.name).ok_or_else(missing)?;
                let want = cx.extents(&self.ty)?;
                if value.dtype() != self.ty.dtype || value.shape() != want {
                    let have = actual_type(&value);
                    return Err(EvalError::Operands(format!("the {} `{}` is {have}, not {}", $text, self.name, self.ty)));
                }
                Ok(vec![value])
            }
        }
    };
}

leaf! {
    /// A value that each run is given.
    Input "input" |cx, name| cx.inputs.get(name).cloned()
}
leaf! {
    /// A value that is fixed while an executable lives.
    Param "param" |cx, name| cx.weights.get(name).map(Weight::materialise)
}
leaf! {
    /// A value that lives on the device from run to run; reads see it as it was when the run began.
    State "state" |cx, name| cx.states.get(name).cloned().or_else(|| cx.weights.get(name).map(Weight::materialise))
}

/// A constant, known when compiling.
#[derive(Clone, Debug)]
pub struct Const {
    /// The elements.
    pub value: Tensor,
}

impl Const {
    fn key(&self) -> (crate::DType, &[usize], &[u8]) {
        (self.value.dtype(), self.value.shape(), self.value.bytes())
    }
}

impl PartialEq for Const {
    fn eq(&self, other: &Const) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Const {}

impl std::hash::Hash for Const {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialOrd for Const {
    fn partial_cmp(&self, other: &Const) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Const {
    fn cmp(&self, other: &Const) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Operator for Const {
    fn name(&self) -> &'static str {
        "const"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 0)?;
        let shape = self.value.shape().iter().map(|n| (*n).into()).collect();
        Ok(TensorType { dtype: self.value.dtype(), shape }.into())
    }

    fn eval(&self, _: &[Tensor], _: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![self.value.clone()])
    }
}
