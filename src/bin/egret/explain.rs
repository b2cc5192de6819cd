//! `egret explain`: for each kernel, the nodes that it computes, how they were raised, and the rules that fused them.

use std::collections::BTreeMap;

use egret::ir::{NodeId, Op};
use egret::rewrite::{Link, Pair, Rewritten};
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
    chain: Vec<(&'static str, String)>,
    refusals: Vec<(String, &'static str)>,
    cost: f64,
    alone: f64,
}

/// Explains a model.
pub fn explain(args: &ExplainArgs, as_json: bool) -> Result<(), Failure> {
    let graph = model::load(&args.compile.model)?;
    let Some(description) = args.compile.target.device().description()? else {
        return Err(Failure::usage("the interpreter compiles nothing, so there is nothing to explain"));
    };
    let compiled = egret_compiler::compile(&graph, &description, &args.compile.target.options())?;
    if args.saved {
        crate::saved::print(&compiled, args.compile.target.remat, as_json);
        return Ok(());
    }
    if let Some(names) = &args.pair {
        return pair(&compiled, names, as_json);
    }
    let all = entries(&compiled, &raise_rules(&compiled));
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

/// A graph that was rewritten: the whole one, or a region of one.
struct Part<'c> {
    rewritten: &'c Rewritten,
    /// Where it is: ` in the body of %3 scan`; nothing of the whole graph.
    within: String,
}

/// The whole graph, and all regions, each behind what it is in.
fn parts(whole: &Rewritten) -> Vec<Part<'_>> {
    let mut parts = vec![Part { rewritten: whole, within: String::new() }];
    let mut next = 0;
    while next < parts.len() {
        let Part { rewritten, within } = &parts[next];
        let region = |(id, place, region)| {
            let op = &rewritten.original().node(id).op;
            let name = match (op, place) {
                (Op::If(_), 0) => "first branch",
                (Op::If(_), _) => "second branch",
                (Op::While(_), 0) => "condition",
                _ => "body",
            };
            let within = format!(" in the {name} of %{} {}{within}", id.index(), op.home().name());
            Part { rewritten: region, within }
        };
        let inside: Vec<Part> = rewritten.regions().map(region).collect();
        parts.extend(inside);
        next += 1;
    }
    parts
}

fn entries(compiled: &Compiled, raised: &BTreeMap<NodeId, Vec<&'static str>>) -> Vec<Entry> {
    let parts = parts(&compiled.rewritten);
    let mut by_origin: BTreeMap<String, Vec<(usize, NodeId)>> = BTreeMap::new();
    for (part, graph) in parts.iter().map(|part| &part.rewritten.graph).enumerate() {
        for (id, node) in graph.iter().filter(|(_, node)| !node.operands.is_empty()) {
            if !matches!(node.op, Op::Proj(_)) {
                by_origin.entry(origins(graph, id)).or_default().push((part, id));
            }
        }
    }
    let line = |(part, id): &(usize, NodeId)| {
        let Part { rewritten, within } = &parts[*part];
        let graph = &rewritten.graph;
        let explanation = rewritten.explain(*id).unwrap_or_default();
        let place = |id: NodeId| placed(rewritten.original(), id);
        let link = |link: &Link| {
            let made: Vec<String> = link.made.iter().map(described).collect();
            (link.rule, made.join(", "))
        };
        // what was raised in regions is not kept
        let raised_at = |covered: &NodeId| raised.get(covered).filter(|_| *part == 0);
        let mut rules: Vec<&'static str> = explanation.covers.iter().filter_map(raised_at).flatten().copied().collect();
        rules.dedup();
        NodeLine {
            name: format!("%{} {}{within}", id.index(), described(&graph.node(*id).op)),
            ty: graph.ty(*id).to_string(),
            covers: explanation.covers.iter().map(|c| place(*c)).collect(),
            raised: rules,
            chain: explanation.chain.iter().map(link).collect(),
            refusals: explanation.refusals.into_iter().map(|(id, guard)| (place(id), guard)).collect(),
            cost: explanation.cost,
            alone: explanation.alone,
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

/// An operator with its origin, or with its number where it has none.
fn placed(graph: &Graph, id: NodeId) -> String {
    let name = graph.node(id).op.home().name();
    let origin = origins(graph, id);
    if origin.is_empty() { format!("%{} {name}", id.index()) } else { format!("{name} of {origin}") }
}

/// The operator, and what it absorbed.
fn described(op: &Op) -> String {
    match op {
        Op::Fused(fused) => {
            let rows = fused.rows.as_ref().map_or(String::new(), |(op, _)| format!(", then {}", op.home().name()));
            let before = fused.prologue.as_ref().map_or(String::new(), |p| format!(" of {}", p.program));
            format!("{}{before} with {}{rows}", fused.anchor.home().name(), fused.epilogue)
        }
        op => op.home().name().to_string(),
    }
}

/// Rules that were applied directly, by the node of the graph before rewriting.
fn raise_rules(compiled: &Compiled) -> BTreeMap<NodeId, Vec<&'static str>> {
    let mut rules: BTreeMap<NodeId, Vec<&'static str>> = BTreeMap::new();
    for applied in &compiled.raise_log {
        let known = rules.entry(applied.node).or_default();
        if known.last() != Some(&applied.rule) {
            known.push(applied.rule);
        }
    }
    rules
}

/// Why two nodes are one kernel or not.
fn pair(compiled: &Compiled, names: &[String], as_json: bool) -> Result<(), Failure> {
    let parts = parts(&compiled.rewritten);
    // numbers are those of the whole graph
    let find = |rewritten: &Rewritten, whole: bool, name: &String| {
        let original = rewritten.original();
        let numbered = |id: NodeId| whole && format!("%{}", id.index()) == *name;
        let mut ids = original.iter().rev().filter(|(_, node)| !node.operands.is_empty()).map(|(id, _)| id);
        // of several, the last one has the value that others read
        ids.find(|id| numbered(*id) || origins(original, *id).contains(name.as_str()))
    };
    let place = |name: &String| -> Result<(usize, NodeId), Failure> {
        let mut found = parts.iter().enumerate().filter_map(|(i, part)| Some((i, find(part.rewritten, i == 0, name)?)));
        found.next().ok_or_else(|| Failure::usage(format!("no node has `{name}` in its name")))
    };
    let (first, second) = (place(&names[0])?, place(&names[1])?);
    // a name may be found in several graphs: one that has both nodes is meant
    let both = |(i, part): (usize, &Part)| {
        let find = |name| find(part.rewritten, i == 0, name);
        Some(((i, find(&names[0])?), (i, find(&names[1])?)))
    };
    let (first, second) = parts.iter().enumerate().find_map(both).unwrap_or((first, second));
    let lines = if first.0 != second.0 {
        vec!["one of them is inside a loop or a branch that the other is not in: they are rewritten apart".to_string()]
    } else {
        let rewritten = parts[first.0].rewritten;
        match rewritten.pair(first.1, second.1) {
            None => vec!["one of them is known before a run, or is no operator: it is not rewritten".to_string()],
            Some(pair) => pair_lines(rewritten, &pair),
        }
    };
    let described =
        |(part, id): (usize, NodeId)| format!("{}{}", placed(parts[part].rewritten.original(), id), parts[part].within);
    let (a, b) = (described(first), described(second));
    if as_json {
        println!("{:#}", json!({ "a": a, "b": b, "lines": lines }));
    } else {
        println!("{a}\n{b}");
        lines.iter().for_each(|line| println!("  {line}"));
    }
    Ok(())
}

fn pair_lines(rewritten: &Rewritten, pair: &Pair) -> Vec<String> {
    let (graph, original) = (&rewritten.graph, rewritten.original());
    let mut lines = Vec::new();
    for id in &pair.together {
        let explanation = rewritten.explain(*id).unwrap_or_default();
        let rules = explanation.rules().join(", ");
        lines.push(format!("both are in %{} {}, by {rules}", id.index(), described(&graph.node(*id).op)));
        let (cost, alone) = (explanation.cost, explanation.alone);
        lines.push(format!("modelled time {cost:.2} µs, of its nodes each by itself {alone:.2} µs"));
    }
    if pair.together.is_empty() {
        lines.push("no node of the rewritten graph computes both".into());
        if pair.apart {
            lines.push("they lie in different neighbourhoods, which are rewritten apart".into());
        } else if pair.found.is_empty() {
            lines.push("no rule joins them".into());
        } else {
            let found = pair.found.join(", ");
            lines.push(format!("{found} joined them, but what was chosen is cheaper in the model"));
        }
    }
    for (id, guard) in &pair.refusals {
        lines.push(format!("refused at {}: {guard}", placed(original, *id)));
    }
    lines
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
            for (rule, made) in &node.chain {
                println!("    by       {rule}: {made}");
            }
            if node.chain.len() + node.raised.len() > 0 && node.alone > 0.0 {
                let gain = node.alone - node.cost;
                println!("    modelled {:.2} µs, {gain:.2} µs less than its nodes each by itself", node.cost);
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
            let rules: Vec<&str> = node.chain.iter().map(|(rule, _)| *rule).collect();
            let chain: Vec<Value> =
                node.chain.iter().map(|(rule, made)| json!({ "rule": rule, "made": made })).collect();
            json!({
                "node": node.name, "type": node.ty, "covers": node.covers, "raised": node.raised, "rules": rules,
                "chain": chain, "refusals": refusals, "cost_us": node.cost, "alone_us": node.alone,
            })
        });
        let nodes: Vec<Value> = nodes.collect();
        json!({ "kernel": self.kernel, "family": self.family, "origin": self.origin, "nodes": nodes })
    }
}

fn report_value(compiled: &Compiled, kernels: usize) -> Value {
    let report = compiled.rewritten.report();
    let phases = report.phases.iter().map(|phase| {
        let stopped: Vec<String> = phase.stopped.iter().map(|(budget, n)| format!("{budget}: {n}")).collect();
        json!({
            "phase": phase.name, "parts": phase.parts, "iterations": phase.iterations, "e_nodes": phase.nodes,
            "classes": phase.classes, "stopped": stopped,
        })
    });
    json!({
        "kernels": kernels, "parts": report.parts, "distinct": report.distinct, "e_nodes": report.nodes,
        "cost_us": report.cost, "greedy_cost_us": report.greedy_cost, "proved": report.proved,
        "phases": phases.collect::<Vec<Value>>(),
        "stopped": report.stopped.iter().map(|(phase, budget)| format!("{phase}: {budget}")).collect::<Vec<_>>(),
    })
}

fn print_report(compiled: &Compiled, kernels: usize, level: Level) {
    let report = compiled.rewritten.report();
    println!("{kernels} kernels");
    if level == Level::None {
        return;
    }
    let (parts, distinct, proved) = (report.parts, report.distinct, report.proved);
    println!("{parts} parts, {distinct} distinct; the choice is proved cheapest in {proved} of these");
    for phase in &report.phases {
        println!(
            "  {:<17} {:>6} e-nodes in {:>6} classes, at most {} iterations",
            phase.name, phase.nodes, phase.classes, phase.iterations
        );
        for (budget, parts) in &phase.stopped {
            println!("  {:<17} stopped in {parts} parts at the budget of {budget}", "");
        }
    }
    println!("modelled time {:.1} µs, of the greedy choice {:.1} µs", report.cost, report.greedy_cost);
    if report.cost == report.greedy_cost {
        println!("the search found nothing cheaper than the greedy choice");
    }
}
