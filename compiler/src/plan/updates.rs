//! States that are written where they are.
//!
//! All reads of a run see a state as it was when the run began. A kernel may write it in place when no later one reads it,
//! and when the kernel itself reads of it only the element that it writes next.

use egret_ir::{Graph, NodeId, Op};
use egret_program::BufferId;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::frame::Frame;
use crate::partition::{Family, Partition};

/// The states by name.
fn states(graph: &Graph) -> FxHashMap<&str, NodeId> {
    let mut found = FxHashMap::default();
    for (id, node) in graph.iter() {
        if let Op::State(state) = &node.op {
            found.insert(state.name.as_str(), id);
        }
    }
    found
}

/// The same memory as the operand, even with a group of its own.
fn is_alias(op: &Op) -> bool {
    matches!(op, Op::Bitcast(_) | Op::Reshape(_) | Op::StopGradient(_) | Op::Recompute(_))
}

/// Lets groups that write states and nothing else wait for those that read these states, as far as they do not wait for each
/// other.
pub(super) fn order(graph: &Graph, partition: &mut Partition) {
    let count = partition.groups.len();
    let mut writes: Vec<SmallVec<[NodeId; 2]>> = vec![SmallVec::new(); count];
    let mut updated: FxHashSet<NodeId> = FxHashSet::default();
    let states = states(graph);
    for (name, value) in graph.updates() {
        if let (Some(&state), Some(writer)) = (states.get(name.as_str()), partition.written_by[value.index()]) {
            writes[writer].push(state);
            updated.insert(state);
        }
    }
    if updated.is_empty() {
        return;
    }
    let mut is_read = vec![false; count];
    let mut readers: FxHashMap<NodeId, Vec<usize>> = FxHashMap::default();
    for (i, group) in partition.groups.iter().enumerate() {
        let mut seen: FxHashSet<NodeId> = FxHashSet::default();
        let mut todo: Vec<NodeId> = group.outputs().flat_map(|id| graph.node(id).operands.iter().copied()).collect();
        while let Some(id) = todo.pop() {
            if !seen.insert(id) {
                continue;
            }
            match partition.written_by[id.index()] {
                Some(writer) => is_read[writer] |= writer != i,
                None if updated.contains(&id) => readers.entry(id).or_default().push(i),
                None => todo.extend(graph.node(id).operands.iter().copied()),
            }
            // a group's own maps are computed from what it reads
            if partition.written_by[id.index()] == Some(i) {
                todo.extend(graph.node(id).operands.iter().copied());
            }
        }
    }
    let others = |writer: usize| writes[writer].iter().flat_map(|state| readers.get(state).into_iter().flatten());
    let waits_for = |writer: usize, moved: &[bool]| {
        others(writer).any(|reader| *reader != writer && (*reader > writer || moved[*reader]))
    };
    let mut moved = vec![false; count];
    loop {
        let next = (0..count).find(|w| !moved[*w] && !is_read[*w] && !writes[*w].is_empty() && waits_for(*w, &moved));
        match next {
            Some(writer) => moved[writer] = true,
            None => break,
        }
    }
    let mut places: Vec<usize> = (0..count).filter(|i| !moved[*i]).collect();
    let mut rest: Vec<usize> = (0..count).filter(|i| moved[*i]).collect();
    while !rest.is_empty() {
        let free = |writer: &usize| others(*writer).all(|reader| reader == writer || !rest.contains(reader));
        let first = rest.iter().position(free).unwrap_or(0);
        places.push(rest.remove(first));
    }
    let mut groups: Vec<_> = std::mem::take(&mut partition.groups).into_iter().map(Some).collect();
    partition.groups = places.iter().filter_map(|place| groups[*place].take()).collect();
    let mut now = vec![0; count];
    places.iter().enumerate().for_each(|(new, old)| now[*old] = new);
    partition.written_by.iter_mut().flatten().for_each(|group| *group = now[*group]);
}

/// The state that each update may be written into: no later group reads it, and the group itself only where it writes.
pub(super) fn in_place(frame: &Frame, partition: &Partition) -> FxHashMap<NodeId, BufferId> {
    let graph = &frame.graph;
    let (users, states) = (graph.users(), states(graph));
    let mut found = FxHashMap::default();
    for (name, value) in graph.updates() {
        let (Some(&state), Some(writer)) = (states.get(name.as_str()), partition.written_by[value.index()]) else {
            continue;
        };
        // these store an element when all that it is made of has been read
        let by_element = matches!(partition.groups[writer].family, Family::Map | Family::Reduce | Family::Dot);
        let is_root =
            graph.roots().any(|r| r == state) || graph.updates().iter().filter(|(_, v)| v == value).count() > 1;
        if !by_element || is_root || graph.ty(state) != graph.ty(*value) {
            continue;
        }
        if is_read_by_element(graph, &users, partition, state, writer)
            && let Some(buffer) = frame.buffers.get(&(state, 0))
        {
            found.insert(*value, *buffer);
        }
    }
    found
}

/// Whether all groups that read a state come before `writer`, which reads of it the element that it writes.
fn is_read_by_element(
    graph: &Graph,
    users: &[SmallVec<[NodeId; 4]>],
    partition: &Partition,
    state: NodeId,
    writer: usize,
) -> bool {
    let mut todo: Vec<(NodeId, NodeId)> = users[state.index()].iter().map(|user| (state, *user)).collect();
    let mut seen: FxHashSet<(NodeId, NodeId)> = FxHashSet::default();
    while let Some((read, user)) = todo.pop() {
        if !seen.insert((read, user)) {
            continue;
        }
        let node = graph.node(user);
        let same = graph.ty(user) == graph.ty(state);
        let elementwise = same
            && match &node.op {
                Op::Pointwise(_) | Op::Cast(_) => true,
                // an extra, of the type of the result
                Op::Fused(fused) => {
                    fused.rows.is_none()
                        && graph.ty(read) == graph.ty(user)
                        && !node.operands[..fused.bases].contains(&read)
                }
                _ => false,
            };
        let own = partition.written_by[user.index()].filter(|_| !is_alias(&node.op));
        match own {
            Some(group) if group > writer || group == writer && !elementwise => return false,
            Some(_) => {}
            None => {
                if !elementwise && reaches(users, partition, user, writer) {
                    return false;
                }
                todo.extend(users[user.index()].iter().map(|next| (user, *next)));
            }
        }
    }
    true
}

/// Whether a value flows into group `to` through values that are not stored.
fn reaches(users: &[SmallVec<[NodeId; 4]>], partition: &Partition, from: NodeId, to: usize) -> bool {
    let mut todo: Vec<NodeId> = users[from.index()].to_vec();
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        match partition.written_by[id.index()] {
            Some(group) if group == to => return true,
            Some(_) => {}
            None => todo.extend(users[id.index()].iter().copied()),
        }
    }
    false
}
