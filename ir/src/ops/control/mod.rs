//! Control that depends on values: `if` and `while`.

mod branch;
mod looped;

use std::collections::BTreeSet;

use super::{InferCx, InferError, Op, operand};
use crate::diagnostic::Diagnostic;
use crate::graph::Graph;
use crate::text::Attributes;
use crate::types::{TensorType, Type};

pub use branch::If;
pub use looped::While;

/// Checks that operands from `first` on fit the inputs of a region, in order.
pub(super) fn check_inputs(
    region: &Graph,
    operands: &[Type],
    first: usize,
    cx: &mut InferCx,
) -> Result<(), InferError> {
    let inputs = region.inputs();
    if operands.len().checked_sub(first).is_none_or(|n| n < inputs.len()) {
        return Err(format!("a region takes {} values", inputs.len()));
    }
    for (i, input) in inputs.iter().enumerate() {
        let given = operand(operands, first + i)?;
        let Some(want) = region.ty(*input).tensor() else { return Err("a region's input is a tuple".into()) };
        if given.dtype != want.dtype || given.shape.rank() != want.shape.rank() {
            return Err(format!("operand {}, {given}, does not fit a region's {want}", first + i));
        }
        for (a, b) in given.shape.iter().zip(want.shape.iter()) {
            cx.require_equal(a, b, "extents of an operand and of a region's input")?;
        }
    }
    Ok(())
}

/// The types of a region's outputs.
pub(super) fn output_types(region: &Graph) -> Result<Vec<&TensorType>, InferError> {
    let outputs = region.outputs().iter();
    outputs.map(|(_, id)| region.ty(*id).tensor().ok_or_else(|| "a region's output is a tuple".to_string())).collect()
}

/// Refuses a stacked result whose slices have an extent that only one run of the region tells.
pub(super) fn check_slice(region: &Graph, y: &TensorType) -> Result<(), InferError> {
    let mut own = BTreeSet::new();
    for node in region.nodes() {
        if matches!(node.op, Op::NonZero(_) | Op::Unique(_) | Op::NonMaxSuppression(_) | Op::If(_) | Op::While(_)) {
            node.ty.fresh_sizes(&mut |id, _| {
                own.insert(id);
            });
            let given = node.operands.iter().map(|operand| region.ty(*operand));
            given.for_each(|ty| {
                ty.fresh_sizes(&mut |id, _| {
                    own.remove(&id);
                })
            });
        }
    }
    let mut found = false;
    y.shape.iter().for_each(|dim| dim.fresh_sizes(&mut |id, _| found |= own.contains(&id)));
    if found { Err(format!("slices {y} of a stacked result differ in extent from trip to trip")) } else { Ok(()) }
}

/// Checks that a region gives one truth value.
fn check_condition(ty: &TensorType) -> Result<(), InferError> {
    match ty.dtype == crate::DType::Bool && ty.shape.rank() == 0 {
        true => Ok(()),
        false => Err(format!("the condition must be bool[], not {ty}")),
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "if" => branch::read(a)?.into(),
        "while" => looped::read(a)?.into(),
        _ => return Ok(None),
    }))
}
