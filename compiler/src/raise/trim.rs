//! What nothing reads leaves `scan`: stacked results, and slices and captured values of the body. A value that is stacked
//! twice is stacked once.

use std::sync::Arc;

use egret_ir::ops::{Proj, Scan};
use egret_ir::{Diagnostic, Graph, NodeId, Op};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::rewrite::direct::{self, Builder, Direct};

/// The graph with its loops trimmed, or `None` when there is nothing to trim.
///
/// # Errors
/// When what is put in does not fit: a defect.
pub fn trim_loops(graph: &Graph) -> Result<Option<Direct>, Diagnostic> {
    let Reads { live, loops } = Reads::of(graph);
    if loops.values().all(Used::is_all) {
        return Ok(None);
    }
    let mut builder = Builder::new(graph);
    let mut new: Vec<Option<NodeId>> = vec![None; graph.nodes().len()];
    for (id, node) in graph.iter().filter(|(id, _)| live[id.index()]) {
        builder.set_origins(graph.origins(id));
        let operand = |o: &NodeId| new[o.index()];
        new[id.index()] = Some(match (&node.op, loops.get(&id)) {
            (Op::Scan(scan), Some(used)) => {
                let kept = node.operands.iter().zip(&used.inputs).filter(|(_, used)| **used);
                let operands: SmallVec<[NodeId; 4]> = kept.filter_map(|(o, _)| operand(o)).collect();
                builder.add(&used.trimmed(scan)?.into(), &operands)?
            }
            (Op::Proj(Proj { index }), _) if loops.contains_key(&node.operands[0]) => {
                let index = loops[&node.operands[0]].place(*index);
                let operands: SmallVec<[NodeId; 4]> = node.operands.iter().filter_map(operand).collect();
                builder.add(&Proj { index }.into(), &operands)?
            }
            (op, _) => {
                let operands: SmallVec<[NodeId; 4]> = node.operands.iter().filter_map(operand).collect();
                builder.add(op, &operands)?
            }
        });
    }
    direct::moved(graph, builder, &new).map(Some)
}

/// What is read, found from the results backwards.
struct Reads {
    live: Vec<bool>,
    loops: FxHashMap<NodeId, Used>,
}

impl Reads {
    fn of(graph: &Graph) -> Reads {
        let mut live = vec![false; graph.nodes().len()];
        graph.roots().chain(graph.inputs().iter().copied()).for_each(|id| live[id.index()] = true);
        let mut parts: FxHashMap<NodeId, Vec<usize>> = FxHashMap::default();
        let mut loops = FxHashMap::default();
        for (id, node) in graph.iter().rev() {
            if !live[id.index()] {
                continue;
            }
            match &node.op {
                Op::Scan(scan) => {
                    let used = Used::of(scan, parts.get(&id).map_or(&[], Vec::as_slice));
                    let read = node.operands.iter().zip(&used.inputs).filter(|(_, used)| **used);
                    read.for_each(|(operand, _)| live[operand.index()] = true);
                    loops.insert(id, used);
                }
                op => {
                    if let Op::Proj(Proj { index }) = op {
                        parts.entry(node.operands[0]).or_default().push(*index);
                    }
                    node.operands.iter().for_each(|operand| live[operand.index()] = true);
                }
            }
        }
        Reads { live, loops }
    }
}

/// What of a loop is read. Carried values all stay.
struct Used {
    /// By operand.
    inputs: Vec<bool>,
    /// By result, the result that has its value: itself, or an equal one before it; `None` of what is not read.
    results: Vec<Option<usize>>,
    /// By node of the body.
    body: Vec<bool>,
}

impl Used {
    fn of(scan: &Scan, read: &[usize]) -> Used {
        let outputs = scan.body.outputs();
        let mut results: Vec<Option<usize>> = (0..outputs.len()).map(|i| (i < scan.carried).then_some(i)).collect();
        for i in (scan.carried..outputs.len()).filter(|i| read.contains(i)) {
            let equal = (scan.carried..i).find(|j| results[*j] == Some(*j) && outputs[*j].1 == outputs[i].1);
            results[i] = Some(equal.unwrap_or(i));
        }
        let mut body = vec![false; scan.body.nodes().len()];
        let kept = outputs.iter().zip(&results).filter(|(_, result)| result.is_some());
        kept.for_each(|((_, id), _)| body[id.index()] = true);
        scan.body.inputs()[..scan.carried].iter().for_each(|id| body[id.index()] = true);
        for (id, node) in scan.body.iter().rev() {
            if body[id.index()] {
                node.operands.iter().for_each(|operand| body[operand.index()] = true);
            }
        }
        let inputs = scan.body.inputs().iter().map(|id| body[id.index()]).collect();
        Used { inputs, results, body }
    }

    fn is_all(&self) -> bool {
        self.inputs.iter().all(|used| *used) && self.results.iter().enumerate().all(|(i, at)| *at == Some(i))
    }

    fn stays(&self, result: usize) -> bool {
        self.results[result] == Some(result)
    }

    /// Where a result is in the trimmed loop.
    fn place(&self, result: usize) -> usize {
        let at = self.results[result].unwrap_or(result);
        (0..at).filter(|i| self.stays(*i)).count()
    }

    fn trimmed(&self, scan: &Scan) -> Result<Scan, Diagnostic> {
        let old = &*scan.body;
        let mut body = Graph::new();
        body.weights = old.weights.clone();
        let mut new: Vec<NodeId> = vec![NodeId::new(0); old.nodes().len()];
        for (id, node) in old.iter().filter(|(id, _)| self.body[id.index()]) {
            let operands: SmallVec<[NodeId; 4]> = node.operands.iter().map(|o| new[o.index()]).collect();
            new[id.index()] = body.add_from(node.op.clone(), &operands, old.origins(id).clone())?;
        }
        for (_, (name, id)) in old.outputs().iter().enumerate().filter(|(i, _)| self.stays(*i)) {
            body.add_output(name.clone(), new[id.index()]);
        }
        for assumption in old.assumptions() {
            body.assume(egret_ir::Assumption { node: NodeId::new(0), equality: assumption.equality.clone() });
        }
        let slices = &self.inputs[scan.carried..scan.carried + scan.scanned];
        let scanned = slices.iter().filter(|used| **used).count();
        Ok(Scan { body: Arc::new(body), scanned, ..scan.clone() })
    }
}
