//! `bitcast`: the same bits as another element type.

use super::{InferCx, InferError, Op, Operator, arity, operand};
use crate::diagnostic::Diagnostic;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::tensor::Tensor;
use crate::text::Attributes;
use crate::types::{TensorType, Type};

/// Elements whose bits are read as another type of the same size; neither is bool, whose bits are not all legal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bitcast {
    /// The element type of the result.
    pub dtype: DType,
}

impl Operator for Bitcast {
    fn name(&self) -> &'static str {
        "bitcast"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        if x.dtype.size() != self.dtype.size() || [x.dtype, self.dtype].contains(&DType::Bool) {
            return Err(format!("the bits of {} are not those of {}", x.dtype, self.dtype));
        }
        Ok(TensorType { dtype: self.dtype, shape: x.shape.clone() }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let too_large = EvalError::TooLarge { shape: shape.clone() };
        Ok(vec![Tensor::from_bytes(dtype, &shape, operands[0].bytes()).ok_or(too_large)?])
    }

    fn no_gradient(&self) -> Option<&'static str> {
        Some("bits do not vary smoothly with the number that they stand for")
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(if name == "bitcast" { Some(Bitcast { dtype: a.tensor_type()?.dtype }.into()) } else { None })
}
