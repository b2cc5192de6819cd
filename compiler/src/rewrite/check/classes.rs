//! Every e-node of a saturated graph against its class: rules that are code, and all rules together.

use std::collections::BTreeMap;

use egg::Id;
use egret_ir::{NodeId, text};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::super::direct::Builder;
use super::super::saturate::{self, leaf_number};
use super::super::{GraphFacts, Options, part};
use super::{Case, Compared, Equal, compare};

/// Saturates a graph and computes every e-node of every class, which must all have one value. Also gives the number of
/// steps by rule.
///
/// # Errors
/// The e-nodes that differ, with the graph; or what is wrong with the graph.
pub fn check_classes(
    case: &Case,
    options: &Options,
    equal: Equal,
) -> Result<(Compared, BTreeMap<&'static str, usize>), String> {
    let graph = &case.graph;
    let known = GraphFacts::of(graph);
    let (parts, places) = part::cut(graph, &known);
    let mut builder = Builder::new(graph);
    let mut new: Vec<NodeId> = Vec::new();
    for (_, node) in graph.iter() {
        let operands: SmallVec<[NodeId; 4]> = node.operands.iter().map(|o| new[o.index()]).collect();
        new.push(builder.add(&node.op, &operands).map_err(|e| e.to_string())?);
    }
    let mut outputs: Vec<(String, NodeId)> = Vec::new();
    let mut rules = BTreeMap::new();
    for (place_index, (which, place)) in places.iter().enumerate() {
        let loaded = saturate::saturate(&parts[*which], options, &mut Vec::new());
        loaded.journal.steps.iter().for_each(|step| *rules.entry(step.rule).or_default() += 1);
        let egraph = &loaded.egraph;
        let mut value: FxHashMap<Id, NodeId> = FxHashMap::default();
        for (id, node) in loaded.leaves.iter().zip(&place.leaves).chain(loaded.nodes.iter().zip(&place.nodes)) {
            value.entry(egraph.find(*id)).or_insert(new[node.index()]);
        }
        let mut classes: Vec<Id> = egraph.classes().map(|class| class.id).collect();
        classes.sort();
        let mut todo: Vec<(Id, usize)> = Vec::new();
        for class in &classes {
            todo.extend((0..egraph[*class].nodes.len()).map(|i| (*class, i)));
        }
        // a pass adds what the passes before it have operands for
        loop {
            let before = todo.len();
            let mut failed = None;
            todo.retain(|(class, i)| {
                let term = &egraph[*class].nodes[*i];
                let op = egraph.analysis.op(term.op);
                if leaf_number(op).is_some() {
                    return false;
                }
                let operands: Option<SmallVec<[NodeId; 4]>> =
                    term.operands.iter().map(|o| value.get(&egraph.find(*o)).copied()).collect();
                let Some(operands) = operands else { return true };
                match builder.add(op, &operands) {
                    Ok(id) => {
                        let first = *value.entry(*class).or_insert(id);
                        let tensors = builder.graph().ty(id).tensor().is_some();
                        if first != id && tensors {
                            let name = format!("part {place_index} class {class}");
                            if !outputs.iter().any(|(have, _)| *have == name) {
                                outputs.push((name.clone(), first));
                            }
                            outputs.push((format!("{name}#{}", outputs.len()), id));
                        }
                    }
                    Err(error) => failed = Some(error.to_string()),
                }
                false
            });
            if let Some(error) = failed {
                return Err(format!("{error}, in\n{}", text::print(graph)));
            }
            if todo.len() == before {
                break;
            }
        }
    }
    let mut all = builder.finish();
    outputs.iter().for_each(|(name, id)| all.add_output(name.clone(), *id));
    let all = Case { graph: all, inputs: case.inputs.clone() };
    let compared = compare(&all, equal).map_err(|what| format!("{what}, in\n{}", text::print(&all.graph)))?;
    Ok((compared, rules))
}
