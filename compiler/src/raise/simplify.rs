//! Simplifications that are code: folding small constants, and broadcasts that functions make by themselves.

use egret_ir::eval::EvalCx;
use egret_ir::ops::Const;
use egret_ir::{Bindings, Node, NodeId, Op, Tensor};

use crate::rewrite::RewriteSet;
use crate::rewrite::direct::Builder;

/// Bytes up to which a value is folded while compiling.
const FOLD_BYTES: usize = 4096;

/// Which rules of this file are used.
#[derive(Clone, Copy)]
pub struct Used {
    fold: bool,
    implicit_broadcast: bool,
}

impl Used {
    /// Those that a set has.
    pub fn of(set: &RewriteSet) -> Used {
        Used { fold: set.has("fold"), implicit_broadcast: set.has("implicit-broadcast") }
    }
}

/// A simpler equal of a node.
pub fn simplify(builder: &mut Builder, id: NodeId, used: Used) -> Option<(NodeId, &'static str)> {
    let fold = |builder: &mut Builder| if used.fold { fold(builder, id) } else { None };
    match &builder.graph().node(id).op {
        Op::Pointwise(_) => {
            let plain = if used.implicit_broadcast { unbroadcast(builder, id) } else { None };
            plain.or_else(|| fold(builder))
        }
        Op::Cast(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Gather(_) => fold(builder),
        _ => None,
    }
}

/// Functions broadcast by themselves: an operand that was broadcast is read as it was.
fn unbroadcast(builder: &mut Builder, id: NodeId) -> Option<(NodeId, &'static str)> {
    let graph = builder.graph();
    let broadcast = |operand: &NodeId| matches!(graph.node(*operand).op, Op::Broadcast(_));
    let at = graph.node(id).operands.iter().position(broadcast)?;
    let Node { op, mut operands, ty } = graph.node(id).clone();
    operands[at] = graph.node(operands[at]).operands[0];
    let new = builder.add(&op, &operands).ok()?;
    (*builder.graph().ty(new) == ty).then_some((new, "implicit-broadcast"))
}

/// The value of a small node of constants, by the reference evaluator.
fn fold(builder: &mut Builder, id: NodeId) -> Option<(NodeId, &'static str)> {
    let graph = builder.graph();
    let node = graph.node(id);
    let constant = |o: &NodeId| match &graph.node(*o).op {
        Op::Const(constant) => Some(&constant.value),
        _ => None,
    };
    if node.operands.is_empty() || !node.operands.iter().all(|o| constant(o).is_some()) {
        return None;
    }
    let ty = graph.tensor_type(id);
    let count = ty.shape.constant()?.iter().try_fold(1i64, |n, extent| n.checked_mul(*extent))?;
    if usize::try_from(count).ok()?.checked_mul(ty.dtype.size())? > FOLD_BYTES {
        return None;
    }
    let operands: Vec<Tensor> = node.operands.iter().filter_map(constant).cloned().collect();
    let mut results = node.op.home().eval(&operands, &EvalCx::new(&Bindings::new())).ok()?;
    let value = results.pop()?;
    let new = builder.add(&Const { value }.into(), &[]).ok()?;
    Some((new, "fold"))
}
