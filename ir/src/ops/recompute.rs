//! `recompute`: what a value is read through where something is computed again from it.

use super::{InferCx, InferError, Operator, arity, operand};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::eval::{EvalCx, EvalError};
use crate::ops::Op;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::Type;

/// The operand, as the beginning of a computation that was done before.
///
/// What is computed from it equals what was computed from the operand, but is not the same node: nothing that makes equal
/// nodes one undoes a rematerialisation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Recompute {
    /// Which of these it is in its graph.
    pub number: usize,
}

impl Operator for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        Ok(operand(operands, 0)?.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        cx.result(self, operands)?;
        Ok(vec![operands[0].clone()])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        Ok(vec![Some(cx.dy())])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("number", Attr::Int(self.number as i64))]
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(match name {
        "recompute" => Some(Recompute { number: a.place("number")? }.into()),
        _ => None,
    })
}
