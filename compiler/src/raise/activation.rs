//! Activations: a cone over one value that the normal form of scalar programs names.

use egret_ir::ops::Pointwise;
use egret_ir::{ExprKind, NodeId, Op};

use super::cone::cone;
use crate::rewrite::direct::Builder;
use crate::rewrite::recognise_activations;

/// Steps of the longest spelling that is looked for: GELU by tanh has 10.
const LIMIT: u32 = 16;

/// The activation that a node spells.
pub fn raise(builder: &mut Builder, id: NodeId) -> Option<(NodeId, &'static str)> {
    let Op::Pointwise(pointwise) = &builder.graph().node(id).op else { return None };
    if pointwise.f.arity() < 2 {
        return None;
    }
    let dtype = builder.graph().tensor_type(id).dtype;
    if !dtype.is_float() {
        return None;
    }
    // the cone may stop at any value that all paths meet in: try the nearest first
    for stop in common_sources(builder, id) {
        let Some(cone) = cone(builder, id, LIMIT, &|node| node == stop) else { continue };
        if cone.leaves.as_slice() != [stop] {
            continue;
        }
        let named = recognise_activations(&cone.program, &[dtype]);
        if let ExprKind::Apply(f, args) = named.kind()
            && args.len() == 1
            && args[0].is_arg(0)
            && !f.is_primitive() | (cone.program.size() > 1)
        {
            builder.take_origins(&cone.nodes);
            let new = builder.add(&Pointwise { f: *f }.into(), &[stop]).ok()?;
            return Some((new, "activation"));
        }
    }
    None
}

/// Values of the node's own type near above it, nearest first.
fn common_sources(builder: &Builder, id: NodeId) -> Vec<NodeId> {
    const DEPTH: usize = 24;
    let graph = builder.graph();
    let ty = graph.ty(id);
    let mut seen = vec![id];
    let mut next = 0;
    while next < seen.len() && seen.len() < DEPTH {
        let node = graph.node(seen[next]);
        next += 1;
        if matches!(node.op, Op::Pointwise(_) | Op::Cast(_)) {
            for operand in &node.operands {
                if builder.splat_of_node(*operand).is_none() && !seen.contains(operand) {
                    seen.push(*operand);
                }
            }
        }
    }
    let mut sources: Vec<NodeId> = seen[1..].iter().copied().filter(|n| graph.ty(*n) == ty).collect();
    sources.sort();
    sources.reverse();
    sources
}
