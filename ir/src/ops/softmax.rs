//! `softmax` and `log_softmax` along an axis.

use super::{InferCx, InferError, Operator, arity, check_axes, operand, same_dtype};
use crate::types::Type;

/// `exp(x − max x) / Σ exp(x − max x)`, or its logarithm, along `axis`. A row of −inf gives NaN.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Softmax {
    /// The axis.
    pub axis: usize,
    /// The logarithm of it.
    pub log: bool,
}

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log_softmax" } else { "softmax" }
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        check_axes(&[self.axis], x.shape.rank())?;
        if !x.dtype.is_float() {
            return Err(format!("is not defined on {}", x.dtype));
        }
        Ok(x.clone().into())
    }
}

/// `(y, dy) → dx` of [`Softmax`]: `y·(dy − Σ dy·y)`, or `dy − exp(y)·Σ dy` of the logarithm.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SoftmaxGrad {
    /// The axis.
    pub axis: usize,
    /// Of the logarithm.
    pub log: bool,
}

impl Operator for SoftmaxGrad {
    fn name(&self) -> &'static str {
        if self.log { "log_softmax_grad" } else { "softmax_grad" }
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 2)?;
        let (y, dy) = (operand(operands, 0)?, operand(operands, 1)?);
        same_dtype(&[y, dy])?;
        check_axes(&[self.axis], y.shape.rank())?;
        if y.shape.rank() != dy.shape.rank() {
            return Err(format!("{y} and {dy} differ in rank"));
        }
        for (a, b) in y.shape.iter().zip(dy.shape.iter()) {
            cx.require_equal(a, b, "extents of a softmax's gradient")?;
        }
        Ok(y.clone().into())
    }
}
