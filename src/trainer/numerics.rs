//! Which operator made the first value that is not finite.

use std::ops::ControlFlow;

use egret_ir::{Graph, NodeId, Op, Origin, Tensor, Tensors, interpret_watched};

use super::Trainer;
use crate::error::Result;

/// The operator that made the first value that is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Maker {
    /// The node: its number, operator and type.
    pub node: String,
    /// What it made: NaN or an infinity.
    pub value: f64,
    /// Where it comes from.
    pub origin: Vec<Origin>,
}

/// The first value of a float tensor that is not finite.
fn first_of(tensor: &Tensor) -> Option<f64> {
    match (tensor.as_slice::<f32>(), tensor.as_slice::<f64>()) {
        (Some(values), _) => values.iter().find(|x| !x.is_finite()).map(|x| f64::from(*x)),
        (_, Some(values)) => values.iter().find(|x| !x.is_finite()).copied(),
        _ if tensor.dtype().is_float() => tensor.values().map(|x| x.as_f64()).find(|x| !x.is_finite()),
        _ => None,
    }
}

/// The first of these that holds a value that is not finite.
pub(super) fn not_finite(tensors: &Tensors) -> Option<(String, f64)> {
    tensors.iter().find_map(|(name, tensor)| Some((name.clone(), first_of(tensor)?)))
}

/// Runs the trainer's step on the interpreter, on that batch and the states before it, until a node makes NaN of no NaN, or
/// an infinity of finite values; `None` where none does.
pub(super) fn maker(trainer: &Trainer, batch: &[(&str, &Tensor)], states: &Tensors) -> Result<Option<Maker>> {
    let exe = trainer.step_program();
    // raised: what is run takes stable composites for what would overflow spelled out
    let expanded;
    let graph = match exe.compiled() {
        Some(compiled) => &compiled.raised,
        None => {
            expanded = egret_ir::autodiff::expand(exe.graph())?;
            &expanded
        }
    };
    let mut inputs: Tensors = batch.iter().map(|(name, tensor)| (name.to_string(), (*tensor).clone())).collect();
    inputs.insert(super::RATE.into(), trainer.rate.clone());
    let mut found = None;
    interpret_watched(graph, &inputs, states, &mut |id, operands, values| {
        found = made(graph, id, operands, values);
        if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(found)
}

fn made(graph: &Graph, id: NodeId, operands: &[Tensor], values: &[Tensor]) -> Option<Maker> {
    let node = graph.node(id);
    // constants are infinite on purpose: masks
    if matches!(node.op, Op::Const(_)) {
        return None;
    }
    let bad = values.iter().find_map(first_of)?;
    let given: Vec<f64> = operands.iter().filter_map(first_of).collect();
    let new_nan = values.iter().any(has_nan) && !operands.iter().any(has_nan);
    if !given.is_empty() && !new_nan {
        return None;
    }
    let name = match &node.op {
        Op::Input(leaf) => format!("the input `{}`", leaf.name),
        Op::Param(leaf) => format!("the param `{}`", leaf.name),
        Op::State(leaf) => format!("the state `{}`", leaf.name),
        op => op.home().name().to_string(),
    };
    Some(Maker {
        node: format!("%{} = {name} : {}", id.index(), node.ty),
        value: if new_nan { f64::NAN } else { bad },
        origin: graph.origins(id).iter().map(|origin| (**origin).clone()).collect(),
    })
}

fn has_nan(tensor: &Tensor) -> bool {
    tensor.dtype().is_float() && tensor.values().any(|x| x.as_f64().is_nan())
}
