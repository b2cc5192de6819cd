//! States that are written where they are.
//!
//! All reads of a run see a state as it was when the run began. A kernel may write it in place when no later one reads it,
//! and when the kernel itself reads of it only the element that it writes next.

use egret_ir::{Graph, NodeId, Op};
use egret_program::BufferId;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::{SmallVec, smallvec};

use super::frame::Frame;
use crate::layout::{Layout, Layouts};
use crate::partition::{Family, Group, Partition};
use crate::schedule::map;
use crate::schedule::scope::{Stored, Value};

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

/// Elements above which a map is a kernel of its own: it takes longer than a launch, and what it reads may then be given up
/// early.
const SMALL: i64 = 1 << 16;

/// Maps of one kernel, at most.
const TOGETHER: usize = 16;

/// What groups do with states.
struct Access {
    /// By group, the states that it writes.
    writes: Vec<SmallVec<[NodeId; 2]>>,
    /// By group, whether another reads what it writes.
    is_read: Vec<bool>,
    /// By state that is written, the groups that read it, ascending.
    readers: FxHashMap<NodeId, Vec<usize>>,
}

impl Access {
    /// `None` where no state is written.
    fn new(graph: &Graph, partition: &Partition) -> Option<Access> {
        let count = partition.groups.len();
        let mut writes: Vec<SmallVec<[NodeId; 2]>> = vec![SmallVec::new(); count];
        let mut readers: FxHashMap<NodeId, Vec<usize>> = FxHashMap::default();
        let states = states(graph);
        for (name, value) in graph.updates() {
            if let (Some(&state), Some(writer)) = (states.get(name.as_str()), partition.written_by[value.index()]) {
                writes[writer].push(state);
                readers.insert(state, Vec::new());
            }
        }
        if readers.is_empty() {
            return None;
        }
        let mut is_read = vec![false; count];
        for (i, group) in partition.groups.iter().enumerate() {
            let mut seen: FxHashSet<NodeId> = FxHashSet::default();
            let operands = |id: NodeId| graph.node(id).operands.iter().copied();
            let mut todo: Vec<NodeId> = group.outputs().flat_map(operands).collect();
            while let Some(id) = todo.pop() {
                if !seen.insert(id) {
                    continue;
                }
                match partition.written_by[id.index()] {
                    Some(writer) if writer != i => is_read[writer] = true,
                    _ => match readers.get_mut(&id) {
                        Some(list) => list.push(i),
                        None => todo.extend(operands(id)),
                    },
                }
            }
        }
        Some(Access { writes, is_read, readers })
    }

    /// The groups that read a state that a group writes, itself among them.
    fn others(&self, writer: usize) -> impl Iterator<Item = usize> + '_ {
        self.writes[writer].iter().flat_map(|state| &self.readers[state]).copied()
    }

    /// Whether a group writes states and nothing that another group reads.
    fn is_last(&self, group: usize) -> bool {
        !self.is_read[group] && !self.writes[group].is_empty()
    }
}

/// Puts groups into an order: those of each list become one.
fn arrange(partition: &mut Partition, places: &[SmallVec<[usize; 1]>]) {
    let mut groups: Vec<Option<Group>> = std::mem::take(&mut partition.groups).into_iter().map(Some).collect();
    let mut now = vec![0; groups.len()];
    for (new, place) in places.iter().enumerate() {
        let mut members = place.iter().filter_map(|old| groups[*old].take());
        let Some(mut group) = members.next() else { continue };
        group.beside.extend(members.flat_map(|other| other.maps()));
        partition.groups.push(group);
        place.iter().for_each(|old| now[*old] = new);
    }
    partition.written_by.iter_mut().flatten().for_each(|group| *group = now[*group]);
}

/// Lets groups that write states and nothing else wait for those that read these states, as far as they do not wait for each
/// other.
pub(super) fn order(graph: &Graph, partition: &mut Partition) {
    let Some(access) = Access::new(graph, partition) else { return };
    let count = partition.groups.len();
    let mut moved = vec![false; count];
    let waits = |w: usize, moved: &[bool]| access.others(w).any(|reader| reader != w && (reader > w || moved[reader]));
    while let Some(writer) = (0..count).find(|w| !moved[*w] && access.is_last(*w) && waits(*w, &moved)) {
        moved[writer] = true;
    }
    let mut places: Vec<SmallVec<[usize; 1]>> = (0..count).filter(|i| !moved[*i]).map(|i| smallvec![i]).collect();
    let mut rest: Vec<usize> = (0..count).filter(|i| moved[*i]).collect();
    while !rest.is_empty() {
        let free = |writer: &usize| access.others(*writer).all(|reader| reader == *writer || !rest.contains(&reader));
        let first = rest.iter().position(free).unwrap_or(0);
        places.push(smallvec![rest.remove(first)]);
    }
    arrange(partition, &places);
}

/// Lays out values before they are planned.
struct Planned<'a> {
    frame: &'a Frame,
    partition: &'a Partition,
    layouts: &'a Layouts,
}

impl Stored for Planned<'_> {
    fn layout(&self, value: Value) -> Option<&Layout> {
        match self.partition.written_by[value.0.index()] {
            Some(_) => self.layouts.of.get(value.0.index()),
            None => self.frame.layout(value),
        }
    }

    fn lanes(&self) -> i64 {
        self.layouts.lanes
    }
}

/// Makes one kernel of several small maps that write states and nothing else: those of an optimiser. It comes last.
pub(super) fn join(frame: &Frame, partition: &mut Partition, layouts: &Layouts) {
    let graph = &frame.graph;
    let Some(access) = Access::new(graph, partition) else { return };
    let outputs: FxHashSet<NodeId> = graph.outputs().iter().map(|(_, id)| *id).collect();
    let planned = Planned { frame, partition, layouts };
    let joins = |i: usize| {
        let group = &partition.groups[i];
        let written: SmallVec<[NodeId; 4]> = group.outputs().collect();
        let small = graph.tensor_type(group.root).shape.elements().as_const().is_some_and(|n| n <= SMALL);
        // whoever else writes what it reads would have to come later
        let waits = access.readers.iter().filter(|(_, readers)| readers.contains(&i)).all(|(state, _)| {
            (0..access.writes.len()).all(|other| other == i || !access.writes[other].contains(state))
        });
        group.family == Family::Map
            && access.is_last(i)
            && access.writes[i].len() == written.len()
            && !written.iter().any(|id| outputs.contains(id))
            && small
            && waits
            && map::is_flat(graph, &planned, &written)
    };
    let count = partition.groups.len();
    let together: Vec<usize> = (0..count).filter(|i| joins(*i)).collect();
    if together.len() < 2 {
        return;
    }
    let alone = (0..count).filter(|i| !together.contains(i)).map(|i| smallvec![i]);
    let places: Vec<SmallVec<[usize; 1]>> = alone.chain(together.chunks(TOGETHER).map(SmallVec::from_slice)).collect();
    arrange(partition, &places);
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
                    let (bases, _, own) = fused.split(&node.operands);
                    fused.rows.is_none()
                        && graph.ty(read) == graph.ty(user)
                        && !bases.contains(&read)
                        && !own.contains(&read)
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
