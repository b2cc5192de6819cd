//! Tuples, and the nodes that differentiation reads.

use super::{InferCx, InferError, Operator, arity, operand};
use crate::types::{TensorType, Type};

/// Part `index` of a tuple.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Proj {
    /// Which part.
    pub index: usize,
}

impl Operator for Proj {
    fn name(&self) -> &'static str {
        "proj"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        match &operands[0] {
            Type::Tuple(parts) if self.index < parts.len() => Ok(parts[self.index].clone().into()),
            other => Err(format!("{other} has no part {}", self.index)),
        }
    }
}

/// `(loss, wrt…) → gradients`, a tuple typed like `wrt`; expanded by autodiff.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Grad;

impl Operator for Grad {
    fn name(&self) -> &'static str {
        "grad"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        let loss = operand(operands, 0)?;
        if loss.shape.rank() != 0 || !loss.dtype.is_float() {
            return Err(format!("the loss must be a float scalar, not {loss}"));
        }
        let parts: Result<Vec<TensorType>, _> = (1..operands.len()).map(|i| operand(operands, i).cloned()).collect();
        Ok(Type::Tuple(parts?.into()))
    }
}

/// The operand; no gradient flows through it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StopGradient;

impl Operator for StopGradient {
    fn name(&self) -> &'static str {
        "stop_gradient"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        Ok(operand(operands, 0)?.clone().into())
    }
}
