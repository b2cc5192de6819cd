//! Which forward values are computed again.

use egret_ir::{Graph, NodeId, Op};
use smallvec::SmallVec;

use super::{Policy, Saved, cut};
use crate::partition::is_movement;

/// The forward values of a graph. A view is its source: what it shows is what is kept.
pub(super) struct Values<'g> {
    pub(super) graph: &'g Graph,
    /// By node, whether it belongs to the forward pass.
    pub(super) forward: &'g [bool],
    pub(super) live: Vec<bool>,
    /// By node, what it is a view of; itself if it is none.
    pub(super) source: Vec<NodeId>,
    /// By node, whether only a run knows it.
    pub(super) run: Vec<bool>,
    /// By node, whether it is in memory anyhow: leaves, what is known before a run, and results.
    pub(super) free: Vec<bool>,
}

impl<'g> Values<'g> {
    pub(super) fn new(graph: &'g Graph, forward: &'g [bool]) -> Values<'g> {
        let n = graph.nodes().len();
        let mut source: Vec<NodeId> = Vec::with_capacity(n);
        let mut run = vec![false; n];
        for (id, node) in graph.iter() {
            source.push(if is_view(&node.op) { source[node.operands[0].index()] } else { id });
            run[id.index()] =
                matches!(node.op, Op::Input(_) | Op::State(_)) || node.operands.iter().any(|o| run[o.index()]);
        }
        let mut free: Vec<bool> = (0..n).map(|i| !run[i] || graph.nodes()[i].operands.is_empty()).collect();
        graph.roots().for_each(|root| free[source[root.index()].index()] = true);
        Values { graph, forward, live: graph.live(), source, run, free }
    }

    /// Whether a node of the forward pass makes a value that the backward pass might do without.
    pub(super) fn counts(&self, id: NodeId) -> bool {
        let i = id.index();
        self.live[i] && self.forward[i] && !self.free[i] && self.source[i] == id
    }

    /// The values that a node reads and that [count](Values::counts).
    pub(super) fn operands(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let operands = self.graph.node(id).operands.iter();
        operands.map(|operand| self.source[operand.index()]).filter(|id| self.counts(*id))
    }

    /// The nodes of the backward pass that read forward values. Views are not among them.
    fn readers(&self) -> impl Iterator<Item = NodeId> + '_ {
        let backward = |i: &usize| self.live[*i] && !self.forward[*i] && self.source[*i].index() == *i;
        (0..self.graph.nodes().len()).filter(backward).map(NodeId::new)
    }

    /// By node, whether the backward pass reads its value.
    pub(super) fn needed(&self) -> Vec<bool> {
        let mut needed = vec![false; self.graph.nodes().len()];
        self.readers().flat_map(|reader| self.operands(reader)).for_each(|id| needed[id.index()] = true);
        needed
    }

    /// What is kept for the backward pass.
    pub(super) fn saved(&self) -> Vec<Saved> {
        let mut readers: Vec<SmallVec<[NodeId; 2]>> = vec![SmallVec::new(); self.graph.nodes().len()];
        for reader in self.readers() {
            for id in self.operands(reader).filter(|id| self.graph.ty(*id).tensor().is_some()) {
                if readers[id.index()].last() != Some(&reader) {
                    readers[id.index()].push(reader);
                }
            }
        }
        let read = self.graph.iter().zip(readers).filter(|(_, readers)| !readers.is_empty());
        read.map(|((id, _), readers)| Saved { value: id, bytes: self.graph.tensor_type(id).bytes(), readers }).collect()
    }

    /// By node, whether it is computed again: what the backward pass reads and is not kept, and what that follows from.
    pub(super) fn computed_again(&self, policy: Policy) -> Vec<bool> {
        let n = self.graph.nodes().len();
        let kept: Vec<bool> = match policy {
            Policy::SaveEverything => return vec![false; n],
            Policy::SaveNothing => (0..n).map(|i| self.is_kept(NodeId::new(i), &|op| !is_repeatable(op))).collect(),
            Policy::SaveContractions => {
                let keep = |op: &Op| !is_repeatable(op) || is_contraction(op);
                (0..n).map(|i| self.is_kept(NodeId::new(i), &keep)).collect()
            }
            Policy::MinCut => cut::cheapest(self, &|op| !is_repeatable(op) || is_contraction(op) || is_summary(op)),
        };
        let mut again = vec![false; n];
        let needed = self.needed();
        let mut todo: Vec<NodeId> = (0..n).filter(|i| needed[*i] && !kept[*i]).map(NodeId::new).collect();
        while let Some(id) = todo.pop() {
            if !std::mem::replace(&mut again[id.index()], true) {
                todo.extend(self.operands(id).filter(|operand| !kept[operand.index()]));
            }
        }
        again
    }

    /// Whether a value is the result of an operator that `keep` names, or a part of one.
    fn is_kept(&self, id: NodeId, keep: &dyn Fn(&Op) -> bool) -> bool {
        match &self.graph.node(id).op {
            Op::Proj(_) => keep(&self.graph.node(self.graph.node(id).operands[0]).op),
            op => keep(op) && self.graph.ty(id).tensor().is_some(),
        }
    }
}

/// The same memory as the operand, seen otherwise. A part of a tuple is a value of its own.
fn is_view(op: &Op) -> bool {
    is_movement(op) && !matches!(op, Op::Proj(_))
}

/// Whether an operator may stand twice in a graph: one that tells a data-dependent size may not.
fn is_repeatable(op: &Op) -> bool {
    !matches!(op, Op::NonZero(_) | Op::Unique(_) | Op::NonMaxSuppression(_) | Op::If(_) | Op::While(_))
}

/// Work that is more than its traffic.
fn is_contraction(op: &Op) -> bool {
    match op {
        Op::Fused(fused) => is_contraction(&fused.anchor),
        Op::DotGeneral(_) | Op::Conv(_) | Op::Attention(_) | Op::AttentionGrad(_) => true,
        Op::Scan(_) | Op::Scatter(_) | Op::TopK(_) => true,
        _ => false,
    }
}

/// Results that are smaller than what they are made from, or made one after the other.
fn is_summary(op: &Op) -> bool {
    match op {
        Op::Fused(fused) => is_summary(&fused.anchor),
        Op::Reduce(_) | Op::ReduceWindow(_) | Op::ReduceWindowGrad(_) | Op::CrossEntropy(_) | Op::Cumulative(_) => true,
        _ => false,
    }
}
