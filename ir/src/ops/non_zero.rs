//! `non_zero`: the places of elements that are not zero.

use super::{InferCx, InferError, Op, Operator, arity, operand};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::scalar::ScalarValue;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{Shape, TensorType, Type};

/// `(x) → places`, i64 of shape `[rank, count]`: column `j` is the place of the `j`-th element that is not zero, in
/// row-major order. A NaN is not zero. The count is the data-dependent size `size`, at most the number of elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NonZero {
    /// The number of the data-dependent size.
    pub size: u32,
}

impl Operator for NonZero {
    fn name(&self) -> &'static str {
        "non_zero"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        let shape = Shape::from([Dim::from(x.shape.rank()), Dim::fresh(self.size, x.shape.elements())]);
        Ok(TensorType { dtype: DType::I64, shape }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        cx.check(self, operands)?;
        let x = &operands[0];
        let found: Vec<usize> =
            x.values().enumerate().filter(|(_, value)| value.truthy()).map(|(place, _)| place).collect();
        let mut places = Tensor::zeros(DType::I64, &[x.shape().len(), found.len()]);
        let mut inner = 1;
        for (axis, extent) in x.shape().iter().enumerate().rev() {
            for (j, place) in found.iter().enumerate() {
                places.set(axis * found.len() + j, ScalarValue::Int((place / inner % extent) as i128));
            }
            inner *= extent;
        }
        Ok(vec![places])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("size", Attr::Int(self.size.into()))]
    }

    fn no_gradient(&self) -> Option<&'static str> {
        Some("its result is places, which do not vary smoothly")
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        super::operand_elements(operands, 0)
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(if name == "non_zero" { Some(NonZero { size: a.fresh("size")? }.into()) } else { None })
}
