//! Neighbourhoods: parts of a graph that are rewritten alone.
//!
//! The graph is cut where at most one tensor is live and an anchor reads it. Values that live long (masks, positions),
//! results of the graph, values known at load, and residuals around a row operator, which from there on only elementwise
//! nodes read, are not counted: they are leaves of the parts that read them, where they are extra operands as good as any.
//! Maps between which nothing is live are parts of their own, however small. Parts that are equal but for their leaves'
//! identity are rewritten once.

use std::hash::{Hash, Hasher};

use egret_ir::{Graph, Node, NodeId, Op, Type};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rustc_hash::FxHasher;
use smallvec::SmallVec;

use super::facts::GraphFacts;
use super::term::{BindingTime, LeafFacts};

/// A value that crosses this many nodes is long-lived.
const LONG: usize = 120;
/// Fewest nodes of a part, so that chains of small parts do not lose fusions at their seams.
const LEAST: usize = 8;

/// A value inside a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ref {
    /// A leaf.
    Leaf(u32),
    /// A node of the part.
    Node(u32),
}

/// What a part knows of a value from outside.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    /// Its type.
    pub ty: Type,
    /// Value and binding time.
    pub facts: LeafFacts,
}

/// A node of a part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PartNode {
    /// The operator.
    pub op: Op,
    /// Operands.
    pub operands: SmallVec<[Ref; 4]>,
    /// Type of the value.
    pub ty: Type,
}

/// A neighbourhood, apart from where it stands.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Values from outside, in order of first use.
    pub leaves: Vec<Leaf>,
    /// Nodes in order.
    pub nodes: Vec<PartNode>,
    /// Nodes whose values leave.
    pub outputs: Vec<u32>,
}

/// Where a part stands in the graph.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The graph's values by leaf.
    pub leaves: Vec<NodeId>,
    /// The graph's nodes by node of the part.
    pub nodes: Vec<NodeId>,
}

/// Whether a part may begin with an operator: one that loops over sums, and never joins the kernel before it. Row operators
/// do join a product.
fn begins_part(op: &Op) -> bool {
    use Op::*;
    matches!(op, DotGeneral(_) | Conv(_) | ReduceWindow(_) | Attention(_) | AttentionGrad(_) | Gather(_) | Scan(_))
}

/// Operators over whole rows, which join the product before them.
fn is_row_operator(op: &Op) -> bool {
    matches!(op, Op::Norm(_) | Op::Softmax(_))
}

/// Nodes that are rewritten: computed in a run, and no leaf.
fn is_inner(graph: &Graph, facts: &GraphFacts, id: NodeId) -> bool {
    let leaf = matches!(graph.node(id).op, Op::Input(_) | Op::State(_) | Op::Param(_) | Op::Const(_) | Op::Iota(_));
    facts.times[id.index()] == BindingTime::Run && !leaf
}

/// Cuts a graph into parts: the distinct ones, and for each place in order which one stands there.
pub fn cut(graph: &Graph, facts: &GraphFacts) -> (Vec<Part>, Vec<(usize, Place)>) {
    let order = Order::of(graph, facts);
    let mut root = vec![false; graph.nodes().len()];
    graph.roots().for_each(|id| root[id.index()] = true);
    let bounds = bounds(graph, &order, &root);
    let mut cutter = Cutter { graph, facts, refs: vec![None; graph.nodes().len()] };
    let mut parts: Vec<Part> = Vec::new();
    let mut known: HashTable<(u64, usize)> = HashTable::new();
    let mut places = Vec::with_capacity(bounds.len());
    for window in bounds.windows(2) {
        let leaves_part = |i: usize| root[order.ids[i].index()] || order.last[i] >= window[1];
        let outputs = (window[0]..window[1]).filter(|i| leaves_part(*i)).map(|i| (i - window[0]) as u32).collect();
        let view = cutter.take(&order.ids[window[0]..window[1]], outputs);
        let is = |(hash, index): &(u64, usize)| *hash == view.hash && view.is(&parts[*index]);
        let index = match known.entry(view.hash, is, |(hash, _)| *hash) {
            Entry::Occupied(entry) => entry.get().1,
            Entry::Vacant(entry) => {
                entry.insert((view.hash, parts.len()));
                parts.push(view.part());
                parts.len() - 1
            }
        };
        places.push((index, view.place));
    }
    (parts, places)
}

/// What is rewritten, in order.
struct Order {
    ids: Vec<NodeId>,
    /// By node of the graph, its place in `ids`.
    place: Vec<Option<usize>>,
    /// By place, that of the last that reads it; its own where none does. Results of the graph are not counted.
    last: Vec<usize>,
    users: Vec<SmallVec<[NodeId; 4]>>,
}

impl Order {
    fn of(graph: &Graph, facts: &GraphFacts) -> Order {
        let ids: Vec<NodeId> = graph.iter().map(|(id, _)| id).filter(|id| is_inner(graph, facts, *id)).collect();
        let mut place: Vec<Option<usize>> = vec![None; graph.nodes().len()];
        let mut last: Vec<usize> = (0..ids.len()).collect();
        for (i, id) in ids.iter().enumerate() {
            place[id.index()] = Some(i);
            graph.node(*id).operands.iter().filter_map(|o| place[o.index()]).for_each(|p| last[p] = i);
        }
        Order { ids, place, last, users: graph.users() }
    }

    /// Places of what reads a value, ascending, and the readers.
    fn readers(&self, place: usize) -> impl Iterator<Item = (usize, NodeId)> + '_ {
        let users = &self.users[self.ids[place].index()];
        users.iter().filter_map(|user| Some((self.place[user.index()]?, *user)))
    }

    /// Up to which place a value is counted as live: where it is read last, or where it is a residual from then on, whose
    /// row operator was there and which elementwise nodes alone still read.
    fn live_until(&self, graph: &Graph, place: usize) -> usize {
        let op = |user: NodeId| &graph.node(user).op;
        let normed = self.readers(place).find(|(_, user)| is_row_operator(op(*user)));
        let Some((normed, _)) = normed else { return self.last[place] };
        let others = self.readers(place).filter(|(_, user)| !matches!(op(*user), Op::Pointwise(_)));
        let elementwise_from = others.map(|(q, _)| q).last().unwrap_or(0);
        self.last[place].min(normed.max(elementwise_from))
    }
}

/// Where parts begin and end.
fn bounds(graph: &Graph, order: &Order, root: &[bool]) -> Vec<usize> {
    let n = order.ids.len();
    // by place, how the number of values that are counted there changes, and the sum of their places: of one, itself
    let mut changes: Vec<(isize, isize)> = vec![(0, 0); n + 1];
    for i in 0..n {
        let id = order.ids[i];
        let result = root[id.index()] && order.users[id.index()].len() < 2;
        let until = order.live_until(graph, i);
        // what lives long is a leaf
        if until > i && order.last[i] - i <= LONG && !result {
            let by =
                |change: &mut (isize, isize), sign: isize| *change = (change.0 + sign, change.1 + sign * i as isize);
            by(&mut changes[i], 1);
            by(&mut changes[until], -1);
        }
    }
    let mut bounds = vec![0];
    let (mut count, mut sum) = (0, 0);
    let (mut start, mut elementwise) = (0, true);
    for (i, (more, places)) in changes[..n].iter().enumerate() {
        (count, sum) = (count + more, sum + places);
        elementwise &= matches!(graph.node(order.ids[i]).op, Op::Pointwise(_) | Op::Cast(_));
        let anchor_reads = || {
            let only = usize::try_from(sum).ok().filter(|_| count == 1);
            let later = only.and_then(|place| order.readers(place).find(|(q, _)| *q > i));
            later.is_none_or(|(_, user)| begins_part(&graph.node(user).op))
        };
        // maps of which nothing is left, as an optimiser's, have no seam
        if count == 0 && elementwise || count <= 1 && i + 1 - start >= LEAST && anchor_reads() {
            (start, elementwise) = (i + 1, true);
            bounds.push(start);
        }
    }
    if start != n {
        bounds.push(n);
    }
    bounds
}

/// Takes parts out of a graph.
struct Cutter<'g> {
    graph: &'g Graph,
    facts: &'g GraphFacts,
    /// By node of the graph, what it is in the part that is being taken.
    refs: Vec<Option<Ref>>,
}

/// A part where it stands in the graph: nothing is copied of one that is known.
struct PartView<'g> {
    graph: &'g Graph,
    facts: &'g GraphFacts,
    place: Place,
    /// Operands of all nodes, one node after the other.
    operands: Vec<Ref>,
    outputs: Vec<u32>,
    hash: u64,
}

impl<'g> Cutter<'g> {
    fn take(&mut self, ids: &[NodeId], outputs: Vec<u32>) -> PartView<'g> {
        let mut place = Place { leaves: Vec::new(), nodes: ids.to_vec() };
        let mut operands = Vec::with_capacity(2 * ids.len());
        let mut hasher = FxHasher::default();
        for (i, id) in ids.iter().enumerate() {
            let node = self.graph.node(*id);
            for operand in &node.operands {
                let r = *self.refs[operand.index()].get_or_insert_with(|| {
                    place.leaves.push(*operand);
                    Ref::Leaf(place.leaves.len() as u32 - 1)
                });
                operands.push(r);
            }
            self.refs[id.index()] = Some(Ref::Node(i as u32));
            (&node.op, &node.ty).hash(&mut hasher);
        }
        (&operands, &outputs).hash(&mut hasher);
        place.leaves.iter().chain(ids).for_each(|id| self.refs[id.index()] = None);
        PartView { graph: self.graph, facts: self.facts, place, operands, outputs, hash: hasher.finish() }
    }
}

impl PartView<'_> {
    fn leaf_facts(&self, id: NodeId) -> LeafFacts {
        LeafFacts { splat: self.facts.splats[id.index()], time: self.facts.times[id.index()] }
    }

    /// The nodes, with their operands.
    fn nodes(&self) -> impl Iterator<Item = (&Node, &[Ref])> {
        let mut next = 0;
        self.place.nodes.iter().map(move |id| {
            let node = self.graph.node(*id);
            let first = next;
            next += node.operands.len();
            (node, &self.operands[first..next])
        })
    }

    /// Whether it is rewritten as that part.
    fn is(&self, part: &Part) -> bool {
        let same_leaf =
            |(id, leaf): (&NodeId, &Leaf)| *self.graph.ty(*id) == leaf.ty && self.leaf_facts(*id) == leaf.facts;
        let same_node = |((node, operands), have): ((&Node, &[Ref]), &PartNode)| {
            node.op == have.op && node.ty == have.ty && *operands == *have.operands
        };
        (self.place.nodes.len(), self.place.leaves.len()) == (part.nodes.len(), part.leaves.len())
            && self.outputs == part.outputs
            && self.nodes().zip(&part.nodes).all(same_node)
            && self.place.leaves.iter().zip(&part.leaves).all(same_leaf)
    }

    fn part(&self) -> Part {
        let leaf = |id: &NodeId| Leaf { ty: self.graph.ty(*id).clone(), facts: self.leaf_facts(*id) };
        let node = |(node, operands): (&Node, &[Ref])| PartNode {
            op: node.op.clone(),
            operands: operands.into(),
            ty: node.ty.clone(),
        };
        Part {
            leaves: self.place.leaves.iter().map(leaf).collect(),
            nodes: self.nodes().map(node).collect(),
            outputs: self.outputs.clone(),
        }
    }
}
