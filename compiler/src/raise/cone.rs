//! The elementwise cone of a value, read as a scalar program.

use egret_ir::{NodeId, Op, ScalarExpr};
use smallvec::SmallVec;

use crate::rewrite::direct::Builder;

/// A scalar program over values of the graph.
pub struct Cone {
    /// The program; argument `i` is `leaves[i]`.
    pub program: ScalarExpr,
    /// Values at which the cone stops.
    pub leaves: SmallVec<[NodeId; 4]>,
    /// What the program stands for, operands first.
    pub nodes: Vec<NodeId>,
}

/// Reads the elementwise nodes above `root` until `stop` says so, a value is a number, or the program has `limit`
/// steps. Arguments are numbered by first visit; those that `first` names come first.
pub fn cone(builder: &Builder, root: NodeId, limit: u32, stop: &dyn Fn(NodeId) -> bool) -> Option<Cone> {
    let graph = builder.graph();
    // operands before users, by an explicit stack
    let mut done: Vec<(NodeId, ScalarExpr)> = Vec::new();
    let mut leaves: SmallVec<[NodeId; 4]> = SmallVec::new();
    let mut stack = vec![(root, false)];
    while let Some((id, ready)) = stack.pop() {
        if done.iter().any(|(have, _)| *have == id) {
            continue;
        }
        if let Some(literal) = builder.splat_of_node(id) {
            done.push((id, ScalarExpr::constant(literal)));
            continue;
        }
        let node = graph.node(id);
        let inner = matches!(node.op, Op::Pointwise(_) | Op::Cast(_)) && (id == root || !stop(id));
        if !inner {
            leaves.push(id);
            done.push((id, ScalarExpr::arg(leaves.len() - 1)));
            continue;
        }
        if !ready {
            stack.push((id, true));
            stack.extend(node.operands.iter().rev().map(|o| (*o, false)));
            continue;
        }
        let mut args: SmallVec<[ScalarExpr; 3]> = SmallVec::new();
        for operand in &node.operands {
            args.push(done.iter().find(|(have, _)| have == operand).map(|(_, e)| e.clone())?);
        }
        let dtype = graph.tensor_type(id).dtype;
        let program = match &node.op {
            Op::Cast(cast) => args.swap_remove(0).cast(cast.dtype),
            Op::Pointwise(pointwise) => ScalarExpr::apply(pointwise.f, args, dtype),
            _ => return None,
        };
        if program.size() > limit {
            return None;
        }
        done.push((id, program));
    }
    let program = done.iter().find(|(id, _)| *id == root).map(|(_, e)| e.clone())?;
    // a number is shared by all that use it: it tells nothing of the cone
    let inner = |id: &NodeId| !leaves.contains(id) && builder.splat_of_node(*id).is_none();
    let nodes = done.into_iter().map(|(id, _)| id).filter(inner).collect();
    Some(Cone { program, leaves, nodes })
}
