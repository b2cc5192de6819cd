//! `iota`: indices along an axis.

use super::{InferCx, InferError, Op, Operator, arity};
use crate::diagnostic::Diagnostic;
use crate::eval::{EvalCx, EvalError, broadcast_strides, copy_elements};
use crate::scalar::ScalarValue;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{TensorType, Type};

/// A tensor whose elements are their own index along `axis`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Iota {
    /// The type of the result.
    pub ty: TensorType,
    /// The axis counted along.
    pub axis: usize,
}

impl Operator for Iota {
    fn name(&self) -> &'static str {
        "iota"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 0)?;
        super::check_axes(&[self.axis], self.ty.shape.rank())?;
        Ok(self.ty.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let mut line = vec![1; shape.len()];
        line[self.axis] = shape[self.axis];
        let mut indices = Tensor::zeros(dtype, &line);
        (0..shape[self.axis]).for_each(|i| indices.set(i, ScalarValue::Int(i as i128)));
        Ok(vec![copy_elements(&indices, &shape, &broadcast_strides(&line, &shape), 0)])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("axis", Attr::Int(self.axis as i64))]
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "iota" => Iota { ty: a.tensor_type()?, axis: a.place("axis")? }.into(),
        _ => return Ok(None),
    }))
}
