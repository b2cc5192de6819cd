//! `scan`: a loop over the leading axis.

use std::sync::Arc;

use super::{InferCx, InferError, Operator, operand};
use crate::dim::Dim;
use crate::graph::Graph;
use crate::types::{TensorType, Type};

/// `(carries…, xs…, captured…) → (carries…, ys…)`.
///
/// The body's inputs are, in order, the carried values, one slice of each `xs` (its leading axis removed) and the
/// captured values; its outputs are the next carried values and one slice of each `ys`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scan {
    /// One step.
    pub body: Arc<Graph>,
    /// Number of carried values.
    pub carried: usize,
    /// Number of scanned operands.
    pub scanned: usize,
    /// Number of steps.
    pub length: Dim,
    /// From the last slice to the first; `ys` keep the order of `xs`.
    pub reverse: bool,
}

impl Operator for Scan {
    fn name(&self) -> &'static str {
        "scan"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        let inputs = self.body.inputs();
        let outputs = self.body.outputs();
        if operands.len() != inputs.len() || self.carried + self.scanned > inputs.len() || outputs.len() < self.carried
        {
            return Err(format!("the body takes {} values and gives {}", inputs.len(), outputs.len()));
        }
        for (i, input) in inputs.iter().enumerate() {
            let given = operand(operands, i)?;
            let Some(want) = self.body.ty(*input).tensor() else { return Err("a body input is a tuple".into()) };
            let dims = if (self.carried..self.carried + self.scanned).contains(&i) {
                let lead = given.shape.first().ok_or_else(|| format!("scanned operand {given} has no axis"))?;
                cx.require_equal(lead, &self.length, "the length of a scan")?;
                &given.shape[1..]
            } else {
                &given.shape[..]
            };
            if dims.len() != want.shape.rank() || given.dtype != want.dtype {
                return Err(format!("operand {i}, {given}, does not fit the body's {want}"));
            }
            for (a, b) in dims.iter().zip(want.shape.iter()) {
                cx.require_equal(a, b, "extents of a scan's operand and its body")?;
            }
        }
        let mut parts = Vec::new();
        for (i, (_, output)) in outputs.iter().enumerate() {
            let Some(ty) = self.body.ty(*output).tensor() else { return Err("a body output is a tuple".into()) };
            if i < self.carried {
                parts.push(operand(operands, i)?.clone());
            } else {
                let shape = std::iter::once(&self.length).chain(ty.shape.iter()).cloned().collect();
                parts.push(TensorType { dtype: ty.dtype, shape });
            }
        }
        Ok(Type::Tuple(parts.into()))
    }
}
