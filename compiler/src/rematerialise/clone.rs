//! The graph in which some forward nodes stand a second time, for the backward pass.

use egret_ir::ops::Recompute;
use egret_ir::{Assumption, Diagnostic, Graph, NodeId, Op};
use smallvec::SmallVec;

use super::choice::Values;
use crate::rewrite::direct::Builder;

/// A graph with clones.
pub(super) struct Cloned {
    pub(super) graph: Graph,
    /// By node, whether it belongs to the forward pass; clones do not.
    pub(super) forward: Vec<bool>,
    /// The clones, in order.
    pub(super) clones: Vec<NodeId>,
}

/// A node of the graph under construction: of the given one, or the clone of such a node.
type Key = (NodeId, bool);

/// Adds a clone of each node that `again` names, and of the views of it that the backward pass reads. Clones, and what is
/// elementwise of the backward pass, are as late as what reads them allows.
///
/// # Errors
/// Never.
pub(super) fn cloned(values: &Values, again: &[bool]) -> Result<Cloned, Diagnostic> {
    let graph = values.graph;
    if !again.contains(&true) {
        return Ok(Cloned { graph: graph.clone(), forward: values.forward.to_vec(), clones: Vec::new() });
    }
    let mut work = Work::new(values, again);
    for (id, _) in graph.iter() {
        if values.live[id.index()] && !work.waits(id) {
            work.emit((id, false))?;
        }
    }
    for root in graph.roots() {
        work.emit((root, false))?;
    }
    work.finish()
}

struct Work<'v> {
    values: &'v Values<'v>,
    again: &'v [bool],
    builder: Builder,
    new: Vec<Option<NodeId>>,
    clones: Vec<Option<NodeId>>,
    /// By node, what clones read it through.
    marks: Vec<Option<NodeId>>,
    count: usize,
}

impl Work<'_> {
    fn new<'v>(values: &'v Values<'v>, again: &'v [bool]) -> Work<'v> {
        let n = values.graph.nodes().len();
        let (new, clones, marks) = (vec![None; n], vec![None; n], vec![None; n]);
        Work { values, again, builder: Builder::new(values.graph), new, clones, marks, count: 0 }
    }

    /// Whether a node of the backward pass waits for its first reader.
    fn waits(&self, id: NodeId) -> bool {
        let op = &self.values.graph.node(id).op;
        let light = matches!(op, Op::Pointwise(_) | Op::Cast(_)) || crate::partition::is_movement(op);
        light && !self.values.forward[id.index()] && !self.values.free[id.index()]
    }

    /// Whether a value is computed again, or a view of one that is.
    fn is_again(&self, id: NodeId) -> bool {
        self.values.forward[id.index()] && self.again[self.values.source[id.index()].index()]
    }

    fn at(&mut self, (id, clone): Key) -> &mut Option<NodeId> {
        let of = if clone { &mut self.clones } else { &mut self.new };
        &mut of[id.index()]
    }

    /// What a node reads.
    fn operands(&self, (id, clone): Key) -> SmallVec<[Key; 4]> {
        let operands = self.values.graph.node(id).operands.iter();
        let backward = clone || !self.values.forward[id.index()];
        operands.map(|operand| (*operand, backward && self.is_again(*operand))).collect()
    }

    /// Adds a node, and before it what it reads.
    fn emit(&mut self, key: Key) -> Result<(), Diagnostic> {
        let mut open = vec![key];
        while let Some(key) = open.last().copied() {
            if self.at(key).is_some() {
                open.pop();
                continue;
            }
            let operands = self.operands(key);
            let before = open.len();
            for operand in operands.iter().rev() {
                if self.at(*operand).is_none() {
                    open.push(*operand);
                }
            }
            if open.len() == before {
                let made = self.add(key, &operands)?;
                *self.at(key) = Some(made);
                open.pop();
            }
        }
        Ok(())
    }

    /// Adds a node whose operands are there. A clone reads another clone, or marks what it reads first.
    fn add(&mut self, (id, clone): Key, operands: &[Key]) -> Result<NodeId, Diagnostic> {
        let graph = self.values.graph;
        let mut ids: SmallVec<[NodeId; 4]> = operands.iter().filter_map(|key| *self.at(*key)).collect();
        self.builder.set_origins(graph.origins(id));
        if clone && operands.iter().all(|(_, clone)| !clone) {
            let first = operands.iter().position(|(operand, _)| self.values.run[operand.index()]).unwrap_or(0);
            ids[first] = self.marked(operands[first].0, ids[first])?;
        }
        self.builder.add(&graph.node(id).op, &ids)
    }

    fn marked(&mut self, id: NodeId, value: NodeId) -> Result<NodeId, Diagnostic> {
        if let Some(mark) = self.marks[id.index()] {
            return Ok(mark);
        }
        let mark = self.builder.add(&Recompute { number: self.count }.into(), &[value])?;
        self.count += 1;
        self.marks[id.index()] = Some(mark);
        Ok(mark)
    }

    fn finish(self) -> Result<Cloned, Diagnostic> {
        let graph = self.values.graph;
        let mut out = self.builder.finish();
        out.take_roots_of(graph, |id| self.new[id.index()]);
        for assumption in graph.assumptions() {
            let node = self.new[assumption.node.index()].unwrap_or(NodeId::new(0));
            out.assume(Assumption { node, equality: assumption.equality.clone() });
        }
        let live = out.live();
        let (kept, map) = out.restricted(&live);
        let mut forward = vec![false; kept.nodes().len()];
        for (old, new) in self.new.iter().enumerate() {
            if let Some(id) = new.and_then(|id| map[id.index()]) {
                forward[id.index()] |= self.values.forward[old];
            }
        }
        let mut clones: Vec<NodeId> = self.clones.iter().filter_map(|id| map[(*id)?.index()]).collect();
        clones.sort();
        Ok(Cloned { graph: kept, forward, clones })
    }
}
