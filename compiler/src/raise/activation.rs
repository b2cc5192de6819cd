//! Activations: a cone over one value that the normal form of scalar programs names.

use egret_ir::ops::Pointwise;
use egret_ir::{ExprKind, NodeId, Op, ScalarFn};
use smallvec::{SmallVec, smallvec};

use super::cone::cone;
use crate::rewrite::direct::Builder;
use crate::rewrite::{is_arithmetic, recognise_activations};

/// Steps of the longest spelling that is looked for: GELU by tanh has 10.
const LIMIT: u32 = 16;

/// The activation that a node spells.
pub fn raise(builder: &mut Builder, id: NodeId) -> Option<(NodeId, &'static str)> {
    let Op::Pointwise(Pointwise { f }) = builder.graph().node(id).op else { return None };
    // all are products or quotients of their argument, but for ReLU
    if !matches!(f, ScalarFn::Mul | ScalarFn::Div | ScalarFn::Max) {
        return None;
    }
    let dtype = builder.graph().tensor_type(id).dtype;
    if !dtype.is_float() {
        return None;
    }
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

/// Values of the node's own type that every way up from it meets, nearest first, beyond a function that is not arithmetic.
fn common_sources(builder: &Builder, id: NodeId) -> SmallVec<[NodeId; 4]> {
    let graph = builder.graph();
    let ty = graph.ty(id);
    let mut found = SmallVec::new();
    // the latest value is taken apart first: nothing that is still in front can depend on it
    let mut front: SmallVec<[NodeId; 8]> = smallvec![id];
    let mut arithmetic = true;
    for _ in 0..LIMIT {
        let Some(latest) = (0..front.len()).max_by_key(|i| front[*i]) else { break };
        let node = graph.node(front.swap_remove(latest));
        match &node.op {
            Op::Pointwise(Pointwise { f }) => arithmetic &= is_arithmetic(*f),
            Op::Cast(_) => {}
            _ => break,
        }
        for operand in &node.operands {
            if builder.splat_of_node(*operand).is_none() && !front.contains(operand) {
                front.push(*operand);
            }
        }
        if let [alone] = front[..]
            && !arithmetic
            && graph.ty(alone) == ty
        {
            found.push(alone);
        }
    }
    found
}
