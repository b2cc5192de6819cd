//! The verifier: what must hold of every graph, as a table of rules.

use std::collections::{HashMap, HashSet};

use crate::diagnostic::Diagnostic;
use crate::graph::{Graph, NodeId};
use crate::ops::{InferCx, Op};
use crate::types::Type;

/// A rule, and how a graph breaks it.
type Rule = (&'static str, fn(&Graph) -> Option<(Option<NodeId>, String)>);

/// Every rule, in order: later ones rely on earlier ones.
const RULES: &[Rule] = &[
    ("operands come before their users", operands_come_first),
    ("types are those that inference gives", types_are_inferred),
    ("a name is one leaf", leaves_are_unique),
    ("the list of inputs is complete", inputs_are_listed),
    ("output names are unique", outputs_are_unique),
    ("outputs are tensors of the graph", roots_are_tensors),
    ("updates name states of equal type", updates_fit),
];

/// Rules of regions alone.
const OF_REGIONS: &[Rule] = &[("regions capture params and states", leaves_are_outside)];

/// Checks a graph and the regions in it.
///
/// # Errors
/// `E0701` with the rule that is broken and the node that breaks it.
pub fn verify(graph: &Graph) -> Result<(), Diagnostic> {
    // regions are inside nodes; a list instead of recursion
    let mut open = vec![(graph, &[][..])];
    while let Some((graph, more)) = open.pop() {
        for (rule, broken) in RULES.iter().chain(more) {
            if let Some((node, why)) = broken(graph) {
                let mut error = Diagnostic::new("E0701", format!("the graph is not legal: {rule}, but {why}"));
                if let Some(node) = node {
                    error.origin = graph.origins(node).iter().map(|o| (**o).clone()).collect();
                }
                return Err(error);
            }
        }
        let regions = graph.nodes().iter().flat_map(|node| node.op.home().regions());
        open.extend(regions.map(|region| (&**region, OF_REGIONS)));
    }
    Ok(())
}

fn operands_come_first(graph: &Graph) -> Option<(Option<NodeId>, String)> {
    graph.iter().find_map(|(id, node)| {
        let late = node.operands.iter().find(|operand| **operand >= id)?;
        Some((Some(id), format!("%{} reads %{}", id.index(), late.index())))
    })
}

fn types_are_inferred(graph: &Graph) -> Option<(Option<NodeId>, String)> {
    graph.iter().find_map(|(id, node)| {
        let operands: Vec<Type> = node.operands.iter().map(|o| graph.ty(*o).clone()).collect();
        let why = match node.op.home().infer(&operands, &mut InferCx::default()) {
            Ok(ty) if ty == node.ty => return None,
            Ok(ty) => format!("%{} is {}, inference gives {ty}", id.index(), node.ty),
            Err(why) => format!("%{} = {}: {why}", id.index(), node.op.home().name()),
        };
        Some((Some(id), why))
    })
}

fn leaves_are_unique(graph: &Graph) -> Option<(Option<NodeId>, String)> {
    let mut seen: HashMap<&str, &Op> = HashMap::new();
    graph.iter().find_map(|(id, node)| {
        let name = match &node.op {
            Op::Input(leaf) => &leaf.name,
            Op::Param(leaf) => &leaf.name,
            Op::State(leaf) => &leaf.name,
            _ => return None,
        };
        // equal params or states may be several nodes until they are merged
        let other = seen.insert(name, &node.op)?;
        let clash = *other != node.op || matches!(node.op, Op::Input(_));
        clash.then(|| (Some(id), format!("`{name}` is two")))
    })
}

fn inputs_are_listed(graph: &Graph) -> Option<(Option<NodeId>, String)> {
    let inputs = graph.iter().filter(|(_, node)| matches!(node.op, Op::Input(_))).map(|(id, _)| id);
    (!inputs.eq(graph.inputs().iter().copied())).then(|| (None, "one is missing or out of order".to_string()))
}

fn outputs_are_unique(graph: &Graph) -> Option<(Option<NodeId>, String)> {
    let mut seen = HashSet::new();
    let twice = graph.outputs().iter().find(|(name, _)| !seen.insert(name))?;
    Some((Some(twice.1), format!("`{}` is given twice", twice.0)))
}

fn roots_are_tensors(graph: &Graph) -> Option<(Option<NodeId>, String)> {
    let wrong = |id: &NodeId| id.index() >= graph.nodes().len() || graph.ty(*id).tensor().is_none();
    let (name, id) = graph.outputs().iter().chain(graph.updates()).find(|(_, id)| wrong(id))?;
    Some((None, format!("`{name}` is %{}", id.index())))
}

fn leaves_are_outside(graph: &Graph) -> Option<(Option<NodeId>, String)> {
    graph.iter().find_map(|(id, node)| match &node.op {
        Op::Param(leaf) => Some((Some(id), format!("`{}` is a param inside one", leaf.name))),
        Op::State(leaf) => Some((Some(id), format!("`{}` is a state inside one", leaf.name))),
        _ => None,
    })
}

fn updates_fit(graph: &Graph) -> Option<(Option<NodeId>, String)> {
    let mut seen = HashSet::new();
    graph.updates().iter().find_map(|(name, id)| {
        if !seen.insert(name) {
            return Some((Some(*id), format!("`{name}` is updated twice")));
        }
        let state = graph.nodes().iter().find(|node| matches!(&node.op, Op::State(leaf) if leaf.name == *name));
        match state {
            Some(state) if state.ty == *graph.ty(*id) => None,
            Some(state) => Some((Some(*id), format!("`{name}` is {}, its update {}", state.ty, graph.ty(*id)))),
            None => Some((Some(*id), format!("there is no state `{name}`"))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Input, State};
    use crate::{f32, trace};

    #[test]
    fn broken_graphs_are_found() {
        let legal = trace(|t| t.input("x", f32(["n"])).relu()).unwrap();
        assert_eq!(verify(&legal), Ok(()));
        let breaks: [fn(&mut Graph); 4] = [
            |g| g.add_output("output", NodeId::new(1)),
            |g| g.add_output("late", NodeId::new(9)),
            |g| g.add_update("nothing", NodeId::new(1)),
            |g| drop(g.add(State { name: "x".into(), ty: f32([2]) }, &[])),
        ];
        for (i, damage) in breaks.into_iter().enumerate() {
            let mut graph = legal.clone();
            damage(&mut graph);
            assert_eq!(verify(&graph).map_err(|e| e.code), Err("E0701"), "{i}");
        }
        let mut twice = legal.clone();
        twice.add(Input { name: "x".into(), ty: f32(["n"]) }, &[]).unwrap();
        assert!(verify(&twice).is_err());
    }

    #[test]
    fn leaves_of_the_whole_are_not_in_regions() {
        let graph = trace(|t| {
            let (x, test) =
                (t.input("x", f32([2])), t.input("test", crate::TensorType::new(crate::DType::Bool, [0i64; 0])));
            t.cond(test, |t| vec![x + t.param("w", crate::Tensor::zeros(crate::DType::F32, &[2]))], |_| vec![x])[0]
        })
        .unwrap();
        assert_eq!(verify(&graph), Ok(()), "traced inside a branch, it is outside");
        let inside = graph.with_regions(&mut |_, _, region| {
            let mut region = region.clone();
            region.add(crate::ops::Param { name: "inner".into(), ty: f32([2]) }, &[])?;
            Ok(region)
        });
        let inside = inside.unwrap().unwrap();
        assert_eq!(verify(&inside).map_err(|e| e.code), Err("E0701"));
        let other = graph.with_regions(&mut |_, _, _| Ok(Graph::new()));
        assert_eq!(other.map_err(|e| e.code).unwrap_err(), "E0108", "a region keeps what it takes and gives");
    }
}
