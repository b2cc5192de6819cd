//! `cross_entropy`: the negative log-likelihood of classes under logits.

use super::{InferCx, InferError, Operator, arity, operand};
use crate::types::{TensorType, Type};

/// `(logits […, C], labels i64 […]) → losses […]`: `log Σ exp(logits) − logits[label]`, without overflow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CrossEntropy;

impl Operator for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 2)?;
        let (logits, labels) = (operand(operands, 0)?, operand(operands, 1)?);
        if !logits.dtype.is_float() || !labels.dtype.is_int() {
            return Err(format!("takes float logits and integer labels, not {logits} and {labels}"));
        }
        if logits.shape.rank() != labels.shape.rank() + 1 {
            return Err(format!("logits {logits} must have one axis more than labels {labels}"));
        }
        for (a, b) in logits.shape.iter().zip(labels.shape.iter()) {
            cx.require_equal(a, b, "leading extents of logits and labels")?;
        }
        Ok(TensorType { dtype: logits.dtype, shape: labels.shape.clone() }.into())
    }
}
