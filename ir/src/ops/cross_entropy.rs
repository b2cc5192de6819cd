//! `cross_entropy`: the negative log-likelihood of classes under logits.

use super::{InferCx, InferError, Operator, arity, operand};
use crate::autodiff::{Gradients, VjpCx};
use crate::dim::Dim;
use crate::eval::{EvalCx, EvalError, Num};
use crate::tensor::Tensor;
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

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let logits = f64::load(&operands[0]);
        let axis = operands[0].shape().len() - 1;
        let extent = operands[0].shape()[axis];
        let mut losses = Vec::new();
        for (row, label) in operands[1].values().enumerate() {
            let row = &logits[row * extent..][..extent];
            let index = label.as_int();
            let at = usize::try_from(index).ok().filter(|i| *i < extent);
            let at = at.ok_or(EvalError::Index { index, extent, axis })?;
            let max = row.iter().fold(f64::NEG_INFINITY, |m, x| m.greater(*x));
            let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
            losses.push(sum.ln() + max - row[at]);
        }
        Ok(vec![f64::store(dtype, &shape, &losses)])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let (logits, labels) = (cx.operands[0], cx.operands[1]);
        let classes = logits.shape().last().cloned().unwrap_or(crate::Dim::ONE);
        let error = logits.softmax(-1) - labels.one_hot(classes, logits.dtype());
        Ok(vec![Some(error * cx.dy().unsqueeze(&[-1])), None])
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        super::operand_elements(operands, 0) * Dim::from(4)
    }
}
