//! Tuples, and the nodes that differentiation reads.

use super::{InferCx, InferError, Op, Operator, arity, operand};
use crate::diagnostic::Diagnostic;
use crate::eval::{EvalCx, EvalError};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
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

    fn eval(&self, operands: &[Tensor], _: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let missing = || EvalError::Operands(format!("a tuple of {} has no part {}", operands.len(), self.index));
        operands.get(self.index).map(|part| vec![part.clone()]).ok_or_else(missing)
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("index", Attr::Int(self.index as i64))]
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

    fn eval(&self, _: &[Tensor], _: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::Unexpanded(self.name()))
    }

    fn no_gradient(&self) -> Option<&'static str> {
        Some("it is expanded first, and what it becomes has one")
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

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        cx.result(self, operands)?;
        Ok(vec![operands[0].clone()])
    }

    fn no_gradient(&self) -> Option<&'static str> {
        Some("it is what stops one")
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "proj" => Proj { index: a.place("index")? }.into(),
        "grad" => Grad.into(),
        "stop_gradient" => StopGradient.into(),
        _ => return Ok(None),
    }))
}
