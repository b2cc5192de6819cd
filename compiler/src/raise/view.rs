//! Movement of values, simplified where it is added.

use egret_ir::ops::Reshape;
use egret_ir::{NodeId, Op, Shape};
use smallvec::SmallVec;

use crate::rewrite::direct::Builder;

/// `x` in another shape.
pub fn reshape(builder: &mut Builder, x: NodeId, shape: Shape) -> Option<NodeId> {
    let node = builder.graph().node(x);
    let source = if matches!(node.op, Op::Reshape(_)) { node.operands[0] } else { x };
    if builder.graph().tensor_type(source).shape == shape {
        return Some(source);
    }
    builder.add(&Reshape { shape }.into(), &[source]).ok()
}

/// The operators through which a value moves, outermost first, and where it comes from: at most [`STEPS`] of them.
pub fn path(builder: &Builder, x: NodeId) -> (SmallVec<[Op; 4]>, NodeId) {
    let (mut steps, mut at) = (SmallVec::new(), x);
    while steps.len() < STEPS {
        let node = builder.graph().node(at);
        if !matches!(node.op, Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::StopGradient(_)) {
            break;
        }
        steps.push(node.op.clone());
        at = node.operands[0];
    }
    (steps, at)
}

/// Longest path of movement that is looked through.
const STEPS: usize = 8;

/// `x` moved along a path.
pub fn along(builder: &mut Builder, steps: &[Op], x: NodeId) -> Option<NodeId> {
    let mut at = x;
    for step in steps.iter().rev() {
        let same = |shape: &Shape| builder.graph().tensor_type(at).shape == *shape;
        at = match step {
            Op::StopGradient(_) => at,
            Op::Broadcast(broadcast) if same(&broadcast.shape) => at,
            Op::Reshape(to) => reshape(builder, at, to.shape.clone())?,
            other => builder.add(other, &[at]).ok()?,
        };
    }
    Some(at)
}

/// For each axis of `to`, the axes of `from` that it merges, if a reshape from one to the other merges neighbours and
/// does nothing else.
pub fn merges(from: &Shape, to: &Shape) -> Option<SmallVec<[std::ops::Range<usize>; 6]>> {
    let mut groups: SmallVec<[std::ops::Range<usize>; 6]> = SmallVec::new();
    let mut next = 0;
    for whole in to.iter() {
        let first = next;
        let mut part = from.get(next)?.clone();
        next += 1;
        while part != *whole {
            part = part * from.get(next)?.clone();
            next += 1;
        }
        groups.push(first..next);
    }
    // axes of extent 1 at the end belong to the last group
    if let Some(last) = groups.last_mut()
        && from[next..].iter().all(|dim| dim.is(1))
    {
        last.end = from.rank();
        next = from.rank();
    }
    (next == from.rank()).then_some(groups)
}

/// The permutation, if the operator is a transpose.
pub fn permutation(op: &Op) -> Option<&[usize]> {
    match op {
        Op::Transpose(transpose) => Some(&transpose.permutation),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_axes_are_found() {
        let shape = |dims: &[i64]| dims.iter().map(|d| egret_ir::Dim::from(*d)).collect::<Shape>();
        let groups = |from: &[i64], to: &[i64]| merges(&shape(from), &shape(to)).map(|g| g.to_vec());
        assert_eq!(groups(&[2, 3, 4], &[6, 4]), Some(vec![0..2, 2..3]));
        assert_eq!(groups(&[2, 3, 1], &[2, 3]), Some(vec![0..1, 1..3]));
        assert_eq!(groups(&[6, 4], &[2, 3, 4]), None);
        assert_eq!(groups(&[2, 3, 4], &[4, 6]), None);
    }
}
