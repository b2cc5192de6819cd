//! Partition: which nodes of the rewritten graph share a kernel.
//!
//! Anchors stand alone: partition never opens or extends them. What rewriting left elementwise is computed where it is
//! read, when one kernel reads it and that kernel is generated; else it is a map of its own. Pure movement (reshape,
//! transpose, broadcast, slice) is index arithmetic of whoever reads it.

mod siblings;

use egret_ir::{Graph, NodeId, Op};
use smallvec::SmallVec;

/// What runs a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// An elementwise kernel.
    Map,
    /// Parts copied one after the other.
    Concat,
    /// A reduction.
    Reduce,
    /// Softmax or norm, or a gradient of one, along rows.
    Row,
    /// Pooling, or its gradient.
    Window,
    /// A contraction.
    Dot,
    /// A convolution.
    Conv,
    /// Attention.
    Attention,
    /// Gradient of attention.
    AttentionGrad,
    /// Sums into indexed places.
    Scatter,
    /// Sums, products or extrema of all elements so far.
    Cumulative,
    /// Random bits.
    Rng,
    /// Sorting, and what only the data tell the size of.
    Select,
    /// The same memory as another element type.
    Bits,
    /// A loop over slices.
    Scan,
    /// One of two regions.
    Branch,
    /// A loop that a condition ends.
    While,
}

impl Family {
    /// Whether its kernel is generated, so that it can compute its operands.
    pub fn is_generated(self) -> bool {
        use Family::*;
        matches!(self, Map | Concat | Reduce | Row | Window | Scatter | Cumulative | Rng)
    }
}

/// A kernel to be.
#[derive(Clone, Debug)]
pub struct Group {
    /// What runs it.
    pub family: Family,
    /// The node whose value it writes (a tuple of several).
    pub root: NodeId,
    /// Further values that it writes: maps over the same elements, which the root reads; ascending.
    pub siblings: SmallVec<[NodeId; 2]>,
    /// Maps over other elements that the same kernel computes: what each writes, operands first. None reads what another
    /// writes.
    pub beside: Vec<SmallVec<[NodeId; 4]>>,
}

impl Group {
    /// A group that writes one value.
    pub fn new(family: Family, root: NodeId) -> Group {
        Group { family, root, siblings: SmallVec::new(), beside: Vec::new() }
    }

    /// All values that it writes, operands first.
    pub fn outputs(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.beside.iter().flatten().chain(&self.siblings).copied().chain([self.root])
    }

    /// What each of its maps writes, operands first.
    pub fn maps(&self) -> Vec<SmallVec<[NodeId; 4]>> {
        let own = self.siblings.iter().copied().chain([self.root]).collect();
        self.beside.iter().cloned().chain([own]).collect()
    }
}

/// Groups in order of execution.
#[derive(Clone, Debug, Default)]
pub struct Partition {
    /// The groups.
    pub groups: Vec<Group>,
    /// By node, the group that writes it to memory.
    pub written_by: Vec<Option<usize>>,
}

impl Partition {
    /// Leaves out groups that write one value each, which their readers compute.
    pub fn leave_out(&mut self, roots: &[NodeId]) {
        let now: Vec<Option<usize>> = (self.groups.iter())
            .scan(0, |next, group| {
                let kept = !roots.contains(&group.root);
                *next += usize::from(kept);
                Some(kept.then(|| *next - 1))
            })
            .collect();
        self.groups.retain(|group| !roots.contains(&group.root));
        self.written_by.iter_mut().for_each(|group| *group = group.and_then(|group| now[group]));
    }
}

/// Index arithmetic: no kernel of its own unless its value leaves the graph or a driver cannot read through it.
pub fn is_movement(op: &Op) -> bool {
    use Op::*;
    matches!(
        op,
        Reshape(_) | Transpose(_) | Broadcast(_) | Slice(_) | Reverse(_) | StopGradient(_) | Recompute(_) | Proj(_)
    )
}

/// A value that every reader computes for itself.
pub fn is_inline(op: &Op) -> bool {
    use Op::*;
    match op {
        Iota(_) => true,
        Const(constant) => constant.value.elements() == 1,
        _ => false,
    }
}

/// The family of an operator that opens a group; `None` of maps and movement.
pub fn anchor_family(op: &Op) -> Option<Family> {
    use Op::*;
    Some(match op {
        Fused(fused) => return anchor_family(&fused.anchor),
        DotGeneral(_) => Family::Dot,
        Conv(_) => Family::Conv,
        Reduce(_) => Family::Reduce,
        ReduceWindow(_) | ReduceWindowGrad(_) => Family::Window,
        Softmax(_) | SoftmaxGrad(_) | Norm(_) | NormGrad(_) | CrossEntropy(_) => Family::Row,
        Attention(_) => Family::Attention,
        AttentionGrad(_) => Family::AttentionGrad,
        Scatter(_) => Family::Scatter,
        Cumulative(_) => Family::Cumulative,
        Rng(_) => Family::Rng,
        Generate(_) => Family::Map,
        Scan(_) => Family::Scan,
        Bitcast(_) => Family::Bits,
        If(_) => Family::Branch,
        While(_) => Family::While,
        TopK(_) | NonZero(_) | Unique(_) | NonMaxSuppression(_) => Family::Select,
        Concat(_) => Family::Concat,
        _ => return None,
    })
}

/// Steps of the longest chain of maps that one kernel computes for its operand.
const MAX_INLINE: usize = 64;

/// What becomes of elementwise operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maps {
    /// They are computed where they are read, where that is legal and no waste.
    Joined,
    /// Each is a kernel.
    Alone,
}

/// Groups the nodes of `live` (those that are computed here). `must_store` are values that leave; `leaf` tells values that
/// are in memory already.
pub fn partition(
    graph: &Graph,
    live: &[bool],
    must_store: &[bool],
    leaf: &dyn Fn(NodeId) -> bool,
    maps: Maps,
) -> Partition {
    let n = graph.nodes().len();
    let users = graph.users();
    // by node, the group in which it is computed; groups are named by their root
    let mut home: Vec<Option<NodeId>> = vec![None; n];
    let mut depth = vec![0usize; n];
    let mut roots: Vec<Option<Family>> = vec![None; n];
    for (id, node) in graph.iter().rev() {
        let i = id.index();
        if !live[i] || leaf(id) || is_inline(&node.op) {
            continue;
        }
        if let Some(family) = anchor_family(&node.op) {
            roots[i] = Some(family);
            home[i] = Some(id);
            continue;
        }
        let readers = reading_groups(graph, &users, &home, live, id);
        if is_movement(&node.op) {
            // an alias of a stored value needs no kernel, but what leaves the graph does
            let alias_of_tuple = matches!(node.op, Op::Proj(_));
            if must_store[i] && !alias_of_tuple {
                roots[i] = Some(Family::Map);
                home[i] = Some(id);
            }
            continue;
        }
        let only = match readers.as_slice() {
            [one] if !must_store[i] && maps == Maps::Joined => Some(*one),
            _ => None,
        };
        let joins = only.filter(|root| {
            let family = roots[root.index()].unwrap_or(Family::Map);
            family.is_generated() && depth[root.index()] < MAX_INLINE && cheap_to_repeat(graph, *root, id, family)
        });
        match joins {
            Some(root) => {
                home[i] = Some(root);
                depth[root.index()] += 1;
            }
            None => {
                roots[i] = Some(Family::Map);
                home[i] = Some(id);
            }
        }
    }
    store_what_drivers_cannot_read(graph, live, leaf, &mut roots);
    let homes = siblings::Homes { users: &users, live, home: &home, depth: &depth, roots: &roots };
    let joined = match maps {
        Maps::Joined => siblings::join(graph, &homes),
        Maps::Alone => Default::default(),
    };
    let mut partition = Partition { groups: Vec::new(), written_by: vec![None; n] };
    for (i, family) in roots.iter().enumerate() {
        if let Some(family) = family.filter(|_| !joined.contains_key(&NodeId::new(i))) {
            partition.written_by[i] = Some(partition.groups.len());
            partition.groups.push(Group::new(family, NodeId::new(i)));
        }
    }
    for id in (0..n).map(NodeId::new) {
        if let Some(group) = joined.get(&id).and_then(|root| partition.written_by[root.index()]) {
            partition.groups[group].siblings.push(id);
            partition.written_by[id.index()] = Some(group);
        }
    }
    partition
}

/// Roots of the groups that read a value, through movement.
fn reading_groups(
    graph: &Graph,
    users: &[SmallVec<[NodeId; 4]>],
    home: &[Option<NodeId>],
    live: &[bool],
    id: NodeId,
) -> SmallVec<[NodeId; 4]> {
    let mut groups: SmallVec<[NodeId; 4]> = SmallVec::new();
    let mut todo: SmallVec<[NodeId; 8]> = users[id.index()].iter().copied().collect();
    while let Some(user) = todo.pop() {
        if !live[user.index()] {
            continue;
        }
        match home[user.index()] {
            Some(root) if !groups.contains(&root) => groups.push(root),
            Some(_) => {}
            None if is_movement(&graph.node(user).op) => todo.extend(users[user.index()].iter().copied()),
            None => {}
        }
    }
    groups.sort();
    groups
}

/// Whether a group may compute `id` at each read: an expensive function read again and again by windows is not worth it.
fn cheap_to_repeat(graph: &Graph, root: NodeId, id: NodeId, family: Family) -> bool {
    let transcendental = matches!(&graph.node(id).op, Op::Pointwise(pointwise) if pointwise.f.is_transcendental());
    let elements = |id: NodeId| graph.tensor_type(id).shape.elements();
    let many_reads = matches!(graph.node(root).op, Op::Generate(_));
    match family {
        // each window reads what it needs twice over, and mostly a driver does
        Family::Window if matches!(graph.node(root).op, Op::ReduceWindowGrad(_)) => false,
        Family::Window | Family::Row | Family::Cumulative => !transcendental,
        Family::Map if many_reads => !transcendental,
        // a broadcast reader would compute the value once for each copy
        Family::Map | Family::Concat => {
            !transcendental || (elements(root) - elements(id)).range().1 <= 0 || elements(root) == elements(id)
        }
        _ => true,
    }
}

/// Operands of drivers that are neither stored nor strided views of what is stored get a map of their own.
fn store_what_drivers_cannot_read(
    graph: &Graph,
    live: &[bool],
    leaf: &dyn Fn(NodeId) -> bool,
    roots: &mut [Option<Family>],
) {
    for (id, node) in graph.iter() {
        if !live[id.index()] || leaf(id) {
            continue;
        }
        let Some(family) = roots[id.index()] else { continue };
        if family.is_generated() {
            continue;
        }
        for operand in &node.operands {
            let at = operand.index();
            let op = &graph.node(*operand).op;
            let in_memory = |id: NodeId, op: &Op| leaf(id) || matches!(op, Op::Proj(_));
            let stored = roots[at].is_some() || in_memory(*operand, op);
            let viewable = super::schedule::view::resolves(graph, *operand, &|source| {
                roots[source.index()].is_some() || in_memory(source, &graph.node(source).op)
            });
            if !stored && !viewable {
                roots[at] = Some(Family::Map);
            }
        }
    }
}
