//! Attention: a contraction of a softmax over keys of any elementwise program of a contraction.

use egret_ir::ops::{Attention, DotGeneral, Labels, Proj};
use egret_ir::{InferCx, NodeId, Op, ScalarExpr};
use smallvec::SmallVec;

use super::cone::cone;
use crate::rewrite::direct::Builder;

/// Steps of the longest score program.
const LIMIT: u32 = 48;

/// The attention that a contraction ends.
pub fn raise(builder: &mut Builder, id: NodeId) -> Option<(NodeId, &'static str)> {
    let graph = builder.graph();
    let node = graph.node(id);
    let Op::DotGeneral(outer) = &node.op else { return None };
    // the probabilities may be either operand
    let (outer, probabilities, values) = match softmax_of(builder, node.operands[0], &outer.lhs) {
        Some(_) => (outer.clone(), node.operands[0], node.operands[1]),
        None => {
            softmax_of(builder, node.operands[1], &outer.rhs)?;
            let swapped = DotGeneral { lhs: outer.rhs.clone(), rhs: outer.lhs.clone(), out: outer.out.clone() };
            (swapped, node.operands[1], node.operands[0])
        }
    };
    let logits = softmax_of(builder, probabilities, &outer.lhs)?;
    let scores_type = graph.tensor_type(logits).clone();
    let found = cone(builder, logits, LIMIT, &|n| matches!(graph.node(n).op, Op::DotGeneral(_)))?;
    let raw = found.leaves.iter().copied().find(|leaf| {
        let dot = matches!(graph.node(*leaf).op, Op::DotGeneral(_));
        dot && *graph.tensor_type(*leaf) == scores_type
    })?;
    let Op::DotGeneral(inner) = &graph.node(raw).op else { return None };
    let (mut inner, mut q, mut k) = (inner.clone(), graph.node(raw).operands[0], graph.node(raw).operands[1]);
    let key = *inner.out.0.last()?;
    if inner.lhs.has(key) {
        std::mem::swap(&mut inner.lhs, &mut inner.rhs);
        std::mem::swap(&mut q, &mut k);
    }
    let labels = join_labels(&inner, &outer)?;
    let mut extras: SmallVec<[NodeId; 4]> = SmallVec::new();
    for leaf in &found.leaves {
        if *leaf == raw {
            continue;
        }
        let mut cx = InferCx::default();
        let shape = cx.broadcast([&graph.tensor_type(*leaf).shape, &scores_type.shape]).ok()?;
        // an extra computed from the scores would make the kernel read itself
        if shape != scores_type.shape || !cx.assumptions.is_empty() {
            return None;
        }
        extras.push(*leaf);
    }
    let score = found.program.substitute(&mut |arg| {
        let leaf = found.leaves[arg];
        let place = extras.iter().position(|e| *e == leaf);
        ScalarExpr::arg(place.map_or(0, |p| p + 1))
    });
    let attention = Attention { score, ..labels }.canonical();
    let mut operands: SmallVec<[NodeId; 8]> = SmallVec::from_slice(&[q, k, values]);
    operands.extend(extras);
    builder.take_origins(&[&[raw][..], &found.nodes, &[probabilities, id]].concat());
    let tuple = builder.add(&attention.into(), &operands).ok()?;
    let new = builder.add(&Proj { index: 0 }.into(), &[tuple]).ok()?;
    Some((new, "attention"))
}

/// The operand of the softmax over the last axis that `id` is, when that axis is contracted.
fn softmax_of(builder: &Builder, id: NodeId, labels: &Labels) -> Option<NodeId> {
    let node = builder.graph().node(id);
    match &node.op {
        Op::Softmax(softmax) if !softmax.log && softmax.axis + 1 == labels.0.len() => Some(node.operands[0]),
        _ => None,
    }
}

/// One set of labels for both contractions: `outer` contracts the key axis of `inner`'s result with the values.
fn join_labels(inner: &DotGeneral, outer: &DotGeneral) -> Option<Attention> {
    let scores = &inner.out;
    let (key, query) = (*scores.0.last()?, scores.0.len().checked_sub(2).map(|i| scores.0[i])?);
    let fits = inner.rhs.has(key) && !inner.lhs.has(key) && inner.lhs.has(query) && !inner.rhs.has(query);
    let outer_key = *outer.lhs.0.last()?;
    if !fits || outer.lhs.0.len() != scores.0.len() || outer.out.has(outer_key) || !outer.rhs.has(outer_key) {
        return None;
    }
    let mut next = inner.lhs.0.iter().chain(&inner.rhs.0).max()? + 1;
    let mut map: SmallVec<[(u8, u8); 8]> = outer.lhs.0.iter().copied().zip(scores.0.iter().copied()).collect();
    let mut rename = |labels: &Labels| {
        let mapped = labels.0.iter().map(|l| {
            map.iter().find(|(from, _)| from == l).map(|(_, to)| *to).unwrap_or_else(|| {
                map.push((*l, next));
                next += 1;
                next - 1
            })
        });
        Labels(mapped.collect())
    };
    let v = rename(&outer.rhs);
    let o = rename(&outer.out);
    Some(Attention {
        q: inner.lhs.clone(),
        k: inner.rhs.clone(),
        v,
        o,
        scores: scores.clone(),
        score: ScalarExpr::arg(0),
    })
}
