//! The least bytes to keep: a minimum cut.
//!
//! Each value is an edge of its bytes, from `in` to `out`. What may not be computed again hangs on the source, what the
//! backward pass reads on the sink, and a value on those that it is computed from, by edges that nothing cuts. Of the
//! minimum cuts the one nearest to the sink is taken: it computes the least again. (Chen et al. 2016 keep bytes, not
//! time; the network is that of PyTorch's `min_cut_rematerialization_partition`.)

use egret_ir::Op;
use petgraph::algo::dinics;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use super::choice::Values;
use crate::cost::SYMBOL_HINT;

/// More than all values hold.
const ENDLESS: u64 = 1 << 60;

/// By node, whether its value is kept. `keep` names operators that are not computed again.
pub(super) fn cheapest(values: &Values, keep: &dyn Fn(&Op) -> bool) -> Vec<bool> {
    let graph = values.graph;
    let n = graph.nodes().len();
    let needed = values.needed();
    // what the backward pass reads, and what that follows from
    let mut concerned = needed.clone();
    for (id, _) in graph.iter().rev() {
        if concerned[id.index()] {
            values.operands(id).for_each(|operand| concerned[operand.index()] = true);
        }
    }
    let mut network: DiGraph<(), u64> = DiGraph::new();
    let (source, sink) = (network.add_node(()), network.add_node(()));
    let ends: Vec<Option<(NodeIndex, NodeIndex)>> =
        concerned.iter().map(|concerned| concerned.then(|| (network.add_node(()), network.add_node(())))).collect();
    for (id, node) in graph.iter() {
        let Some((begin, end)) = ends[id.index()] else { continue };
        // a tuple is kept by its parts
        let bytes = match node.ty.tensor() {
            Some(ty) => ty.bytes().hint(SYMBOL_HINT).clamp(1, 1 << 50) as u64,
            None => ENDLESS,
        };
        network.add_edge(begin, end, bytes);
        if keep(&node.op) {
            network.add_edge(source, begin, ENDLESS);
        }
        if needed[id.index()] {
            network.add_edge(end, sink, ENDLESS);
        }
        for (_, operand) in values.operands(id).filter_map(|operand| ends[operand.index()]) {
            network.add_edge(operand, begin, ENDLESS);
        }
    }
    let (_, flows) = dinics(&network, source, sink);
    // what still reaches the sink
    let mut reaches = vec![false; network.node_count()];
    reaches[sink.index()] = true;
    let mut todo = vec![sink];
    while let Some(at) = todo.pop() {
        let forth = network.edges_directed(at, petgraph::Incoming);
        let forth = forth.filter(|edge| flows[edge.id().index()] < *edge.weight()).map(|edge| edge.source());
        let back = network.edges_directed(at, petgraph::Outgoing);
        let back = back.filter(|edge| flows[edge.id().index()] > 0).map(|edge| edge.target());
        for next in forth.chain(back) {
            if !std::mem::replace(&mut reaches[next.index()], true) {
                todo.push(next);
            }
        }
    }
    let cut = |(begin, end): (NodeIndex, NodeIndex)| !reaches[begin.index()] && reaches[end.index()];
    (0..n).map(|i| ends[i].is_some_and(cut)).collect()
}
