//! Neighbourhoods: parts of a graph that are rewritten alone.
//!
//! The graph is cut where at most one tensor is live and an anchor reads it. Values that live long (masks, positions),
//! results of the graph, values known at load, and residuals around a row operator, which from there on only elementwise
//! nodes read, are not counted: they are leaves of the parts that read them, where they are extra operands as good as any.
//! Parts that are equal but for their leaves' identity are rewritten once.

use std::hash::BuildHasher;

use egret_ir::{Graph, NodeId, Op, Type};
use rustc_hash::{FxBuildHasher, FxHashMap};
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

impl Part {
    /// Whether two parts are rewritten alike.
    fn same(&self, other: &Part) -> bool {
        self.nodes == other.nodes && self.outputs == other.outputs && self.leaves == other.leaves
    }
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
    let order: Vec<NodeId> = graph.iter().map(|(id, _)| id).filter(|id| is_inner(graph, facts, *id)).collect();
    let mut position: Vec<Option<usize>> = vec![None; graph.nodes().len()];
    for (i, id) in order.iter().enumerate() {
        position[id.index()] = Some(i);
    }
    // last reader of each inner value, by position; results of the graph are not counted
    let mut last: Vec<usize> = (0..order.len()).collect();
    for (i, id) in order.iter().enumerate() {
        for operand in &graph.node(*id).operands {
            if let Some(p) = position[operand.index()] {
                last[p] = last[p].max(i);
            }
        }
    }
    let mut root = vec![false; graph.nodes().len()];
    for id in graph.roots() {
        root[id.index()] = true;
    }
    let users = graph.users();
    let mut live: Vec<usize> = Vec::new();
    let mut bounds = vec![0];
    for i in 0..order.len() {
        live.retain(|p| last[*p] > i);
        let result = root[order[i].index()] && users[order[i].index()].len() < 2;
        // what lives long is never counted, so that as many values as a part is long are looked at
        if last[i] > i && last[i] - i <= LONG && !result {
            live.push(i);
        }
        let residual = |p: &usize| {
            let id = order[*p];
            let mut readers = users[id.index()].iter().filter_map(|user| Some((position[user.index()]?, *user)));
            let normed = readers.clone().any(|(q, user)| q <= i && is_row_operator(&graph.node(user).op));
            normed && readers.all(|(q, user)| q <= i || matches!(graph.node(user).op, Op::Pointwise(_)))
        };
        let counted: SmallVec<[usize; 4]> = live.iter().copied().filter(|p| !residual(p)).collect();
        let start = *bounds.last().unwrap_or(&0);
        let anchor_reads = counted.first().is_none_or(|p| {
            let later = users[order[*p].index()].iter().find(|id| position[id.index()].is_some_and(|q| q > i));
            later.is_none_or(|id| begins_part(&graph.node(*id).op))
        });
        if counted.len() <= 1 && anchor_reads && i + 1 - start >= LEAST {
            bounds.push(i + 1);
        }
    }
    if *bounds.last().unwrap_or(&0) != order.len() {
        bounds.push(order.len());
    }
    let mut users_after = vec![0usize; graph.nodes().len()];
    for (i, id) in order.iter().enumerate() {
        for operand in &graph.node(*id).operands {
            users_after[operand.index()] = users_after[operand.index()].max(i + 1);
        }
    }
    let mut parts: Vec<Part> = Vec::new();
    // by hash of the nodes; equality decides
    let mut by_nodes: FxHashMap<u64, SmallVec<[usize; 1]>> = FxHashMap::default();
    let mut places = Vec::new();
    for window in bounds.windows(2) {
        let (part, place) = take(graph, facts, &order[window[0]..window[1]], &|id| {
            root[id.index()] || users_after[id.index()] > window[1]
        });
        let same = by_nodes.entry(FxBuildHasher.hash_one(&part.nodes)).or_default();
        let known = same.iter().copied().find(|p| parts[*p].same(&part));
        let index = known.unwrap_or_else(|| {
            parts.push(part);
            same.push(parts.len() - 1);
            parts.len() - 1
        });
        places.push((index, place));
    }
    (parts, places)
}

fn take(graph: &Graph, facts: &GraphFacts, ids: &[NodeId], leaves_part: &dyn Fn(NodeId) -> bool) -> (Part, Place) {
    let (mut part, mut place) = (Part::default(), Place::default());
    let mut refs: FxHashMap<NodeId, Ref> = FxHashMap::default();
    for id in ids {
        let node = graph.node(*id);
        let mut operands = SmallVec::new();
        for operand in &node.operands {
            let r = *refs.entry(*operand).or_insert_with(|| {
                let facts = LeafFacts { splat: facts.splats[operand.index()], time: facts.times[operand.index()] };
                part.leaves.push(Leaf { ty: graph.ty(*operand).clone(), facts });
                place.leaves.push(*operand);
                Ref::Leaf(part.leaves.len() as u32 - 1)
            });
            operands.push(r);
        }
        refs.insert(*id, Ref::Node(part.nodes.len() as u32));
        part.nodes.push(PartNode { op: node.op.clone(), operands, ty: node.ty.clone() });
        place.nodes.push(*id);
        if leaves_part(*id) {
            part.outputs.push(part.nodes.len() as u32 - 1);
        }
    }
    (part, place)
}
