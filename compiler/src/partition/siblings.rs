//! Maps that one kernel computes: a value that several groups read joins the first of them, if that is a map of the same
//! elements that reads it, and becomes one more result of its kernel. So an optimiser's update reads each of its tensors
//! once.

use egret_ir::ops::ConvForm;
use egret_ir::{Graph, NodeId, Op};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::{Family, MAX_INLINE, anchor_family, is_movement, reading_groups};

/// What the partition knows when maps are joined.
pub(super) struct Homes<'a> {
    pub(super) users: &'a [SmallVec<[NodeId; 4]>],
    pub(super) live: &'a [bool],
    /// By node, the root of the group in which it is computed.
    pub(super) home: &'a [Option<NodeId>],
    /// By root, the maps that it computes for its operands.
    pub(super) depth: &'a [usize],
    pub(super) roots: &'a [Option<Family>],
}

/// By map that joins another, the root of the group in which it is written.
pub(super) fn join(graph: &Graph, homes: &Homes<'_>) -> FxHashMap<NodeId, NodeId> {
    let image = may_be_blocked(graph);
    let elementwise = |id: NodeId| matches!(graph.node(id).op, Op::Pointwise(_) | Op::Cast(_));
    let is_map = |id: NodeId| homes.roots[id.index()] == Some(Family::Map) && elementwise(id) && !image[id.index()];
    let mut depth = homes.depth.to_vec();
    let mut joined: FxHashMap<NodeId, NodeId> = FxHashMap::default();
    for (id, _) in graph.iter().rev().filter(|(id, _)| is_map(*id)) {
        let end = |root: NodeId| joined.get(&root).copied().unwrap_or(root);
        let readers = reading_groups(graph, homes.users, homes.home, homes.live, id);
        // the others come later: they find it written
        let Some(first) = readers.into_iter().map(end).min() else { continue };
        let together = depth[id.index()] + depth[first.index()] + 1;
        if !is_map(first) || graph.ty(first) != graph.ty(id) || together > MAX_INLINE {
            continue;
        }
        let member = |node: NodeId| homes.home[node.index()].map(end) == Some(first);
        if reads_elementwise(graph, homes, id, &member, &elementwise) {
            depth[first.index()] = together;
            joined.insert(id, first);
        }
    }
    joined
}

/// Whether the members of a group read a value at their own elements alone.
fn reads_elementwise(
    graph: &Graph,
    homes: &Homes<'_>,
    id: NodeId,
    member: &dyn Fn(NodeId) -> bool,
    elementwise: &dyn Fn(NodeId) -> bool,
) -> bool {
    let mut todo: SmallVec<[NodeId; 8]> = SmallVec::from_slice(&[id]);
    let mut seen: SmallVec<[NodeId; 16]> = SmallVec::new();
    while let Some(at) = todo.pop() {
        for user in homes.users[at.index()].iter().copied().filter(|user| homes.live[user.index()]) {
            let moved = homes.home[user.index()].is_none() && is_movement(&graph.node(user).op);
            if moved && reading_groups(graph, homes.users, homes.home, homes.live, user).into_iter().any(member) {
                return false;
            }
            if moved || !member(user) || seen.contains(&user) {
                continue;
            }
            seen.push(user);
            let same = graph.ty(user).tensor().map(|ty| &ty.shape) == graph.ty(id).tensor().map(|ty| &ty.shape);
            if !elementwise(user) || !same {
                return false;
            }
            todo.push(user);
        }
    }
    true
}

/// By node, whether it may lie in blocked channels: images that convolutions and pools write, and what is computed from
/// them. Kernels of several results are row-major.
fn may_be_blocked(graph: &Graph) -> Vec<bool> {
    let mut image = vec![false; graph.nodes().len()];
    for (id, node) in graph.iter() {
        let anchor = match &node.op {
            Op::Fused(fused) => &fused.anchor,
            op => op,
        };
        image[id.index()] = match anchor_family(&node.op) {
            Some(Family::Conv) => !matches!(anchor, Op::Conv(conv) if conv.form == ConvForm::WeightGrad),
            Some(Family::Window) => true,
            None | Some(Family::Concat) => node.operands.iter().any(|operand| image[operand.index()]),
            Some(_) => false,
        };
    }
    image
}
