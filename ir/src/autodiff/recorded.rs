//! Vector-Jacobian products that were added before, to be copied for equal operators: equal layers are differentiated once.

use std::hash::BuildHasher;
use std::ops::Range;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use crate::graph::{Graph, Node, NodeId};
use crate::ops::Op;
use crate::tracer::{Tracer, Var};

/// A node whose vector-Jacobian product is wanted, and all that the product depends on: by the rule of [`Operator::vjp`], of the
/// operands and the upstream gradients nothing but their types, and which of them are one value.
///
/// [`Operator::vjp`]: crate::ops::Operator::vjp
pub(super) struct Call<'a> {
    pub(super) id: NodeId,
    pub(super) node: &'a Node,
    /// By part of the result.
    pub(super) upstream: SmallVec<[Option<NodeId>; 2]>,
    /// By operand.
    pub(super) wanted: &'a [bool],
}

impl Call<'_> {
    /// The values that the product may read, each as often as it is given.
    fn values(&self) -> Values {
        let upstream = self.upstream.iter().flatten();
        self.node.operands.iter().chain([&self.id]).chain(upstream).copied().collect()
    }

    fn hash(&self) -> u64 {
        let given: SmallVec<[bool; 2]> = self.upstream.iter().map(Option::is_some).collect();
        FxBuildHasher.hash_one((&self.node.op, &self.node.ty, self.wanted, given))
    }
}

type Values = SmallVec<[NodeId; 8]>;

/// The nodes of one product.
struct Entry {
    hash: u64,
    /// The values of the call that it was built for.
    values: Values,
    upstream: SmallVec<[bool; 2]>,
    wanted: SmallVec<[bool; 4]>,
    nodes: Range<usize>,
    gradients: Copied,
}

/// Gradients by operand, as nodes.
type Copied = SmallVec<[Option<NodeId>; 4]>;

impl Entry {
    /// Whether the product of `call` has the same nodes, of other values.
    fn fits(&self, graph: &Graph, call: &Call, values: &[NodeId]) -> bool {
        let exemplar = graph.node(self.values[call.node.operands.len()]);
        let alike = |(i, (a, b)): (usize, (&NodeId, &NodeId))| {
            let first = |list: &[NodeId], id: &NodeId| list.iter().position(|other| other == id);
            graph.ty(*a) == graph.ty(*b) && first(&self.values[..=i], a) == first(&values[..=i], b)
        };
        self.values.len() == values.len()
            && exemplar.operands.len() == call.node.operands.len()
            && exemplar.op == call.node.op
            && self.wanted.as_slice() == call.wanted
            && self.upstream.iter().copied().eq(call.upstream.iter().map(Option::is_some))
            && self.values.iter().zip(values).enumerate().all(alike)
    }
}

/// Products by what they depend on.
#[derive(Default)]
pub(super) struct Recorded(HashTable<Entry>);

impl Recorded {
    /// Adds the nodes of an equal product that was recorded, of the values of this call; gives the gradients.
    pub(super) fn copy<'t>(&self, t: &Tracer<'t>, call: &Call) -> Option<Vec<Option<Var<'t>>>> {
        if self.0.is_empty() {
            return None;
        }
        let values = call.values();
        let hash = call.hash();
        let copied = t.append(|graph, origins| {
            let entry = self.0.find(hash, |entry| entry.hash == hash && entry.fits(graph, call, &values))?;
            let mut copies: SmallVec<[NodeId; 16]> = SmallVec::with_capacity(entry.nodes.len());
            for index in entry.nodes.clone() {
                let id = NodeId::new(index);
                let node = graph.node(id);
                // a number is that of all who use it
                if matches!(node.op, Op::Const(_)) {
                    copies.push(id);
                    continue;
                }
                let operands = node.operands.iter().map(|o| moved(*o, entry, &values, &copies)).collect();
                let node = Node { op: node.op.clone(), operands, ty: node.ty.clone() };
                copies.push(graph.add_typed(node, origins.into()));
            }
            let gradients: Copied =
                entry.gradients.iter().map(|id| id.map(|id| moved(id, entry, &values, &copies))).collect();
            Some(gradients)
        });
        let gradients = copied.flatten()?;
        Some(gradients.into_iter().map(|id| id.map(|id| t.var(id))).collect())
    }

    /// Keeps the nodes from `first` on as the product of `call`, unless it is more than nodes.
    pub(super) fn keep(&mut self, t: &Tracer, call: &Call, first: &Extent, gradients: &[Option<Var>]) {
        let last = Extent::of(t);
        let values = call.values();
        let own = |id: NodeId| id.index() >= first.nodes || values.contains(&id);
        let plain = t.graph(|graph| {
            let known = |id: NodeId| own(id) || matches!(graph.node(id).op, Op::Const(_));
            let plain = |node: &Node| {
                let leaf = node.operands.is_empty() && !matches!(node.op, Op::Const(_) | Op::Iota(_));
                !leaf && node.op.home().regions().is_empty() && node.operands.iter().all(|o| known(*o))
            };
            graph.nodes()[first.nodes..].iter().all(plain)
                && gradients.iter().flatten().filter_map(|var| var.id()).all(known)
        });
        if !plain || (last.assumptions, last.sizes) != (first.assumptions, first.sizes) {
            return;
        }
        let entry = Entry {
            hash: call.hash(),
            values,
            upstream: call.upstream.iter().map(Option::is_some).collect(),
            wanted: call.wanted.into(),
            nodes: first.nodes..last.nodes,
            gradients: gradients.iter().map(|var| var.and_then(Var::id)).collect(),
        };
        self.0.insert_unique(entry.hash, entry, |entry| entry.hash);
    }
}

/// What stands for a node of a recorded product in a copy of it.
fn moved(id: NodeId, entry: &Entry, values: &[NodeId], copies: &[NodeId]) -> NodeId {
    match id.index().checked_sub(entry.nodes.start) {
        Some(at) => copies[at],
        None => entry.values.iter().position(|value| *value == id).map_or(id, |at| values[at]),
    }
}

/// How much a graph under construction holds.
pub(super) struct Extent {
    nodes: usize,
    assumptions: usize,
    /// Data-dependent sizes.
    sizes: u32,
}

impl Extent {
    pub(super) fn of(t: &Tracer) -> Extent {
        let (nodes, assumptions) = t.graph(|graph| (graph.nodes().len(), graph.assumptions().len()));
        Extent { nodes, assumptions, sizes: t.sizes() }
    }
}
