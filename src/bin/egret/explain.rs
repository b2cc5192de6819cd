//! `egret explain`: for each kernel, the nodes that it computes, how they were raised, and the rules that fused them.

use std::collections::BTreeMap;

use egret::ir::NodeId;
use egret::{Compiled, Graph, Level};
use serde_json::{Value, json};

use crate::args::ExplainArgs;
use crate::failure::Failure;
use crate::model;

/// One launch of the program.
struct Entry {
    kernel: String,
    family: String,
    origin: String,
    nodes: Vec<NodeLine>,
}

/// A node of the rewritten graph that the kernel computes.
struct NodeLine {
    name: String,
    ty: String,
    covers: Vec<String>,
    raised: Vec<&'static str>,
    rules: Vec<&'static str>,
    refusals: Vec<(String, &'static str)>,
}

/// Explains a model.
pub fn explain(args: &ExplainArgs, as_json: bool) -> Result<(), Failure> {
    let graph = model::load(&args.compile.model)?;
    let Some(description) = args.compile.target.device().description()? else {
        return Err(Failure::usage("the interpreter compiles nothing, so there is nothing to explain"));
    };
    let compiled = egret_compiler::compile(&graph, &description, &args.compile.target.options())?;
    let raised = raise_rules(&graph, &compiled)?;
    let all = entries(&compiled, &raised);
    let total = all.len();
    let chosen: Vec<Entry> = match &args.node {
        Some(name) => all.into_iter().filter(|entry| entry.mentions(name)).collect(),
        None => all,
    };
    if chosen.is_empty()
        && let Some(name) = &args.node
    {
        return Err(Failure::usage(format!("no kernel computes a node with `{name}` in its name")));
    }
    if as_json {
        let kernels: Vec<Value> = chosen.iter().map(Entry::as_value).collect();
        println!("{:#}", json!({ "kernels": kernels, "report": report_value(&compiled, total) }));
    } else {
        chosen.iter().for_each(Entry::print);
        print_report(&compiled, total, args.compile.target.rewrite);
    }
    Ok(())
}

fn origins(graph: &Graph, id: NodeId) -> String {
    graph.origins(id).iter().map(|origin| origin.to_string()).collect::<Vec<_>>().join(", ")
}

fn entries(compiled: &Compiled, raised: &BTreeMap<NodeId, Vec<&'static str>>) -> Vec<Entry> {
    let graph = &compiled.rewritten.graph;
    let original = compiled.rewritten.original();
    let mut by_origin: BTreeMap<String, Vec<NodeId>> = BTreeMap::new();
    for (id, node) in graph.iter().filter(|(_, node)| !node.operands.is_empty()) {
        if !matches!(node.op, egret::ir::Op::Proj(_)) {
            by_origin.entry(origins(graph, id)).or_default().push(id);
        }
    }
    let line = |id: &NodeId| {
        let explanation = compiled.rewritten.explain(*id).unwrap_or_default();
        let place = |id: NodeId| {
            let name = original.node(id).op.home().name();
            let origin = origins(original, id);
            if origin.is_empty() { format!("%{} {name}", id.index()) } else { format!("{name} of {origin}") }
        };
        let mut rules: Vec<&'static str> =
            explanation.covers.iter().filter_map(|c| raised.get(c)).flatten().copied().collect();
        rules.dedup();
        NodeLine {
            name: format!("%{} {}", id.index(), described(graph, *id)),
            ty: graph.ty(*id).to_string(),
            covers: explanation.covers.iter().map(|c| place(*c)).collect(),
            raised: rules,
            rules: explanation.rules,
            refusals: explanation.refusals.into_iter().map(|(id, guard)| (place(id), guard)).collect(),
        }
    };
    let launches = compiled.program.launches();
    launches
        .into_iter()
        .map(|launch| {
            let kernel = compiled.program.kernel(launch.kernel);
            let nodes = by_origin.get(&launch.origin).map(|ids| ids.iter().map(line).collect());
            Entry {
                kernel: kernel.name.clone(),
                family: kernel.family.clone(),
                origin: launch.origin.clone(),
                nodes: nodes.filter(|_| !launch.origin.is_empty()).unwrap_or_default(),
            }
        })
        .collect()
}

/// The operator, and what it absorbed.
fn described(graph: &Graph, id: NodeId) -> String {
    match &graph.node(id).op {
        egret::ir::Op::Fused(fused) => {
            let rows = fused.rows.as_ref().map_or(String::new(), |(op, _)| format!(", then {}", op.home().name()));
            format!("{} with {}{rows}", fused.anchor.home().name(), fused.epilogue)
        }
        op => op.home().name().to_string(),
    }
}

/// Rules that raise applied, by the node of the graph before rewriting.
///
/// Differentiation and the canonicalisation after it number nodes anew, so raise is repeated and its nodes are found by
/// operator, type and origins.
fn raise_rules(graph: &Graph, compiled: &Compiled) -> Result<BTreeMap<NodeId, Vec<&'static str>>, Failure> {
    let (raised, log) = egret_compiler::raise::raise(&egret_compiler::raise::canonicalise(graph)?)?;
    let original = compiled.rewritten.original();
    let key = |graph: &Graph, id: NodeId| (origins(graph, id), graph.ty(id).to_string());
    let mut nodes: BTreeMap<(String, String), Vec<NodeId>> = BTreeMap::new();
    for (id, _) in original.iter() {
        nodes.entry(key(original, id)).or_default().push(id);
    }
    let mut rules: BTreeMap<NodeId, Vec<&'static str>> = BTreeMap::new();
    for applied in log {
        let same = |id: &&NodeId| original.node(**id).op == raised.node(applied.node).op;
        for id in nodes.get(&key(&raised, applied.node)).into_iter().flatten().filter(same) {
            let known = rules.entry(*id).or_default();
            if !known.contains(&applied.rule) {
                known.push(applied.rule);
            }
        }
    }
    Ok(rules)
}

impl Entry {
    fn mentions(&self, name: &str) -> bool {
        self.origin.contains(name) || self.nodes.iter().any(|n| n.covers.iter().any(|c| c.contains(name)))
    }

    fn print(&self) {
        println!("{} ({})", self.kernel, self.family);
        if !self.origin.is_empty() {
            println!("  computes {}", self.origin);
        }
        for node in &self.nodes {
            println!("  {}: {}", node.name, node.ty);
            if !node.covers.is_empty() {
                println!("    covers   {}", node.covers.join("; "));
            }
            if !node.raised.is_empty() {
                println!("    raised   {}", node.raised.join(", "));
            }
            if !node.rules.is_empty() {
                println!("    rules    {}", node.rules.join(", "));
            }
            for (place, guard) in &node.refusals {
                println!("    refused  {place}: {guard}");
            }
        }
        println!();
    }

    fn as_value(&self) -> Value {
        let nodes = self.nodes.iter().map(|node| {
            let refusals: Vec<Value> =
                node.refusals.iter().map(|(place, guard)| json!({ "node": place, "guard": guard })).collect();
            json!({
                "node": node.name, "type": node.ty, "covers": node.covers, "raised": node.raised,
                "rules": node.rules, "refusals": refusals,
            })
        });
        let nodes: Vec<Value> = nodes.collect();
        json!({ "kernel": self.kernel, "family": self.family, "origin": self.origin, "nodes": nodes })
    }
}

fn report_value(compiled: &Compiled, kernels: usize) -> Value {
    let report = compiled.rewritten.report();
    json!({
        "kernels": kernels, "parts": report.parts, "distinct": report.distinct, "e_nodes": report.nodes,
        "cost_us": report.cost, "greedy_cost_us": report.greedy_cost, "proved": report.proved,
        "stopped": report.stopped.iter().map(|(phase, budget)| format!("{phase}: {budget}")).collect::<Vec<_>>(),
    })
}

fn print_report(compiled: &Compiled, kernels: usize, level: Level) {
    let report = compiled.rewritten.report();
    println!("{kernels} kernels");
    if level == Level::None {
        return;
    }
    println!(
        "{} parts, {} distinct, {} e-nodes; {} of the distinct choices are proved cheapest",
        report.parts, report.distinct, report.nodes, report.proved
    );
    println!("modelled time {:.1} µs, of the greedy choice {:.1} µs", report.cost, report.greedy_cost);
    for (phase, budget) in report.stopped {
        println!("{phase} stopped at its budget of {budget}");
    }
}
