//! One part in the e-graph: load, saturate by phases within budgets, choose, and replay.

use std::sync::Arc;

use egg::{EGraph, Id};
use egret_ir::ops::{Const, Input};
use egret_ir::{Literal, Op, Tensor, Type};
use egret_program::DeviceDescription;
use smallvec::SmallVec;

use super::distribute;
use super::epilogue::{self, Dependencies};
use super::extract::{self, Extracted, Search};
use super::journal::{How, Journal, Step};
use super::merge;
use super::part::{Part, Ref};
use super::pattern::{Bindings, Rule, View};
use super::prologue;
use super::rules::Topic;
use super::term::{BindingTime, Graph, Kind, LeafFacts, Term, TypeId, Universe, add};
use super::{Budgets, Options, PhaseReport};

/// The e-graph as rules see it.
pub struct EView<'a>(pub &'a Graph);

impl View for EView<'_> {
    fn nodes(&self, class: Id, kind: Kind, f: &mut dyn FnMut(&Op, &[Id]) -> bool) -> bool {
        let mut nodes = self.0[class].nodes.iter().filter(|n| n.kind == kind);
        nodes.any(|node| f(self.0.analysis.op(node.op), &node.operands))
    }

    fn ty(&self, class: Id) -> &Type {
        self.0.analysis.ty(self.0[class].data.ty)
    }

    fn splat(&self, class: Id) -> Option<Literal> {
        self.0[class].data.splat
    }

    fn time(&self, class: Id) -> BindingTime {
        self.0[class].data.time
    }

    fn find(&self, class: Id) -> Id {
        self.0.find(class)
    }
}

/// A loaded part.
pub struct Loaded {
    /// The e-graph.
    pub egraph: Graph,
    /// Classes by leaf.
    pub leaves: Vec<Id>,
    /// Classes by node.
    pub nodes: Vec<Id>,
    /// Steps so far.
    pub journal: Journal,
}

/// The operator that stands for leaf `i`.
pub fn leaf_op(i: usize, ty: &Type) -> Op {
    // a tuple leaf is only ever projected
    let first = ty.parts().first().cloned().unwrap_or_else(|| egret_ir::TensorType::scalar(egret_ir::DType::F32));
    Input { name: format!("leaf{i}"), ty: first }.into()
}

/// The number of the leaf that an operator stands for.
pub fn leaf_number(op: &Op) -> Option<usize> {
    match op {
        Op::Input(input) => input.name.strip_prefix("leaf")?.parse().ok(),
        _ => None,
    }
}

/// Loads a part into a new e-graph. The same part gets the same ids every time.
pub fn load(part: &Part) -> Loaded {
    let mut egraph: Graph = EGraph::new(Universe::default());
    let mut journal = Journal::default();
    let mut leaves = Vec::new();
    for (i, leaf) in part.leaves.iter().enumerate() {
        let op = leaf_op(i, &leaf.ty);
        let id = egraph.analysis.op_id(&op);
        let ty = egraph.analysis.type_id(&leaf.ty);
        egraph.analysis.assert_type(id, &[], ty);
        egraph.analysis.set_leaf(id, leaf.facts);
        leaves.push(egraph.add(Term { kind: Kind::of(&op), op: id, operands: SmallVec::new() }));
    }
    let mut nodes: Vec<Id> = Vec::new();
    for (i, node) in part.nodes.iter().enumerate() {
        let class = |r: &Ref| match r {
            Ref::Leaf(l) => leaves[*l as usize],
            Ref::Node(n) => nodes[*n as usize],
        };
        let operands: SmallVec<[Id; 4]> = node.operands.iter().map(class).collect();
        let op = egraph.analysis.op_id(&node.op);
        let types: SmallVec<[TypeId; 4]> = operands.iter().map(|id| egraph[*id].data.ty).collect();
        let ty = egraph.analysis.type_id(&node.ty);
        egraph.analysis.assert_type(op, &types, ty);
        let term = Term { kind: Kind::of(&node.op), op, operands };
        nodes.push(egraph.add(term.clone()));
        journal.original(term, i as u32);
    }
    egraph.rebuild();
    Loaded { egraph, leaves, nodes, journal }
}

/// Saturates a part through all phases.
pub fn saturate(part: &Part, options: &Options, report: &mut Vec<PhaseReport>) -> Loaded {
    let mut loaded = load(part);
    let dependencies = Dependencies::new(part, &loaded.nodes);
    let (set, exact) = (&options.rules, options.exact);
    let algebra = set.of(&[Topic::Movement, Topic::Algebra, Topic::User], exact);
    let fuse = set.of(&[Topic::Movement, Topic::Region, Topic::User], exact);
    let mut absorb = Absorb {
        dependencies: &dependencies,
        epilogues: epilogue::Used::of(set, exact),
        prologues: set.has(prologue::RULE),
        tried: epilogue::Tried::default(),
        distributed: set.has(distribute::RULE).then(distribute::Tried::default),
    };
    let budgets = options.budgets;
    phase(&mut loaded, "algebra", &algebra, None, budgets, report);
    phase(&mut loaded, "fuse", &fuse, Some(&mut absorb), budgets, report);
    if options.level == super::Level::Full {
        let merged = merge::merge(&mut loaded.egraph, &mut loaded.journal, merge::Used::of(set));
        rebuild(&mut loaded);
        if merged > 0 {
            phase(&mut loaded, "fuse after merge", &fuse, Some(&mut absorb), budgets, report);
        }
    }
    loaded
}

/// What anchors may take in.
struct Absorb<'d> {
    dependencies: &'d Dependencies,
    epilogues: epilogue::Used,
    prologues: bool,
    tried: epilogue::Tried,
    /// What went through concatenations, if anything may.
    distributed: Option<distribute::Tried>,
}

fn rebuild(loaded: &mut Loaded) {
    loaded.egraph.rebuild();
    loaded.journal.recanonicalise(&loaded.egraph);
}

fn phase(
    loaded: &mut Loaded,
    name: &'static str,
    rules: &[Arc<Rule>],
    mut absorb: Option<&mut Absorb>,
    budgets: Budgets,
    report: &mut Vec<PhaseReport>,
) {
    let mut iterations = 0;
    let mut stopped = None;
    loop {
        iterations += 1;
        let before = loaded.egraph.total_number_of_nodes();
        let mut unions = sweep(loaded, rules);
        rebuild(loaded);
        if let Some(Absorb { dependencies, epilogues, prologues, tried, distributed }) = absorb.as_deref_mut() {
            if let Some(tried) = distributed {
                let made = distribute::distribute(&mut loaded.egraph, &mut loaded.journal, tried);
                unions += made;
                if made > 0 {
                    rebuild(loaded);
                }
            }
            if *prologues {
                let made = prologue::absorb(&mut loaded.egraph, dependencies, &mut loaded.journal);
                unions += made;
                if made > 0 {
                    rebuild(loaded);
                }
            }
            unions += epilogue::absorb(&mut loaded.egraph, dependencies, &mut loaded.journal, *epilogues, tried);
            rebuild(loaded);
        }
        let after = loaded.egraph.total_number_of_nodes();
        if unions == 0 && after == before {
            break;
        }
        if iterations >= budgets.iterations {
            stopped = Some("iterations");
            break;
        }
        if after > budgets.nodes {
            stopped = Some("e-nodes");
            break;
        }
    }
    let (nodes, classes) = (loaded.egraph.total_number_of_nodes(), loaded.egraph.number_of_classes());
    report.push(PhaseReport { name, iterations, nodes, classes, stopped });
}

fn sweep(loaded: &mut Loaded, rules: &[Arc<Rule>]) -> usize {
    let mut found: Vec<(&Arc<Rule>, Id, Bindings)> = Vec::new();
    let view = EView(&loaded.egraph);
    for rule in rules {
        let Some(root) = rule.root() else { continue };
        let mut classes: Vec<Id> = loaded.egraph.classes_for_op(&root).map(Iterator::collect).unwrap_or_default();
        classes.sort();
        for class in classes {
            found.extend(rule.search(&view, class).into_iter().map(|b| (rule, class, b)));
        }
    }
    found.into_iter().filter(|(rule, class, bindings)| apply_rule(loaded, rule, *class, bindings)).count()
}

/// Whether a rule, applied to a part until nothing changes, comes to an end within the budgets.
pub fn ends(part: &Part, rule: &Rule) -> bool {
    let mut loaded = load(part);
    let Some(root) = rule.root() else { return false };
    let budgets = Budgets::default();
    for _ in 0..budgets.iterations {
        let mut found: Vec<(Id, Bindings)> = Vec::new();
        let mut classes: Vec<Id> = loaded.egraph.classes_for_op(&root).map(Iterator::collect).unwrap_or_default();
        classes.sort();
        for class in classes {
            found.extend(rule.search(&EView(&loaded.egraph), class).into_iter().map(|b| (class, b)));
        }
        let egraph = &mut loaded.egraph;
        let before = egraph.total_number_of_nodes();
        let mut changed = false;
        for (class, bindings) in found {
            if let Some((new, _)) = instantiate(egraph, rule, class, &bindings)
                && egraph[new].data.ty == egraph[class].data.ty
            {
                changed |= egraph.union(class, new);
            }
        }
        egraph.rebuild();
        if !changed && egraph.total_number_of_nodes() == before {
            return true;
        }
        if egraph.total_number_of_nodes() > budgets.nodes {
            return false;
        }
    }
    false
}

/// Adds a rule's right side and unites it with the class. Types are inferred before anything is added.
fn apply_rule(loaded: &mut Loaded, rule: &Arc<Rule>, class: Id, bindings: &Bindings) -> bool {
    let egraph = &mut loaded.egraph;
    let before = egraph.total_number_of_nodes();
    let Some((new, added)) = instantiate(egraph, rule, class, bindings) else { return false };
    if egraph[new].data.ty != egraph[class].data.ty || egraph.find(new) == egraph.find(class) {
        return false;
    }
    let matched: Vec<Term> = bindings.matched.iter().map(|m| term_of(egraph, &m.op, &m.operands)).collect();
    let step = Step {
        rule: rule.name,
        how: How::Rule(rule.clone(), Box::new(bindings.clone())),
        unions: SmallVec::from_slice(&[(class, new)]),
        joined: egraph.total_number_of_nodes() == before,
        added,
        needs: SmallVec::new(),
        origins: SmallVec::new(),
    };
    loaded.journal.record(egraph, step, &matched);
    egraph.union(class, new)
}

fn term_of(egraph: &mut Graph, op: &Op, operands: &[Id]) -> Term {
    Term { kind: Kind::of(op), op: egraph.analysis.op_id(op), operands: operands.into() }
}

type Instance = (Id, Vec<(Term, Id)>);

fn instantiate(egraph: &mut Graph, rule: &Rule, class: Id, bindings: &Bindings) -> Option<Instance> {
    let dtype = super::direct::float_dtype(egraph.analysis.ty(egraph[class].data.ty));
    let cell = std::cell::RefCell::new((egraph, Vec::new()));
    let put = |op: &Op, operands: &[Id]| -> Option<Id> {
        let (egraph, added) = &mut *cell.borrow_mut();
        let id = add(egraph, op, operands)?;
        let term = term_of(egraph, op, operands);
        added.push((term, id));
        Some(id)
    };
    let new = rule.build(bindings, &mut |op, ids| put(op, ids), &mut |value| {
        let literal = Literal::float(value, dtype);
        let op: Op = Const { value: Tensor::scalar(literal) }.into();
        {
            let (egraph, _) = &mut *cell.borrow_mut();
            let id = egraph.analysis.op_id(&op);
            egraph.analysis.set_leaf(id, LeafFacts { splat: Some(literal), time: BindingTime::Compile });
        }
        put(&op, &[])
    })?;
    Some((new, cell.into_inner().1))
}

/// The chosen nodes of a part: what replaces it in the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// Nodes in order, as the part's own are.
    pub nodes: Vec<TemplateNode>,
    /// By output of the part, the value that takes its place.
    pub outputs: Vec<Ref>,
    /// What extraction found.
    pub cost: f64,
    /// Cost of the greedy choice.
    pub greedy_cost: f64,
    /// The choice is proved.
    pub proved: bool,
}

/// A chosen node.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateNode {
    /// The operator.
    pub op: Op,
    /// Operands.
    pub operands: SmallVec<[Ref; 4]>,
    /// Type of the value.
    pub ty: Type,
    /// Nodes of the part that it comes from.
    pub origins: SmallVec<[u32; 4]>,
    /// Its e-node, from which the journal tells the steps that it rests on.
    pub term: Term,
    /// Modelled time of it as a kernel, µs.
    pub cost: f64,
}

/// Chooses what to compute.
pub fn choose(
    part: &Part,
    loaded: &Loaded,
    device: &DeviceDescription,
    search: Search,
    steps: usize,
) -> Option<Template> {
    let egraph = &loaded.egraph;
    let roots: Vec<Id> = part.outputs.iter().map(|n| egraph.find(loaded.nodes[*n as usize])).collect();
    let (flat, extracted) = extract::extract(egraph, &roots, device, search, steps);
    let Extracted { choice, cost, greedy_cost, proved } = extracted;
    let order = flat.order(&choice)?;
    let mut refs: Vec<Option<Ref>> = vec![None; flat.ids.len()];
    let mut number: Vec<u32> = vec![u32::MAX; usize::from(flat.ids.iter().max().copied().unwrap_or(Id::from(0))) + 1];
    for (i, id) in flat.ids.iter().enumerate() {
        number[usize::from(*id)] = i as u32;
    }
    let mut nodes = Vec::new();
    for class in order {
        let node = flat.chosen(&choice, class)?;
        let term = &egraph[flat.ids[class as usize]].nodes[node.index as usize];
        let op = egraph.analysis.op(term.op);
        refs[class as usize] = Some(match leaf_number(op) {
            Some(leaf) => Ref::Leaf(leaf as u32),
            None => {
                let operand = |id: &Id| refs[number[usize::from(egraph.find(*id))] as usize];
                let operands: Option<SmallVec<[Ref; 4]>> = term.operands.iter().map(operand).collect();
                let term = term.clone_canonical(egraph);
                let origins = loaded.journal.source(&term).map(|s| s.origins.clone());
                nodes.push(TemplateNode {
                    op: op.clone(),
                    operands: operands?,
                    ty: egraph.analysis.ty(egraph[flat.ids[class as usize]].data.ty).clone(),
                    origins: origins.unwrap_or_default(),
                    term,
                    cost: node.cost,
                });
                Ref::Node(nodes.len() as u32 - 1)
            }
        });
    }
    let outputs: Option<Vec<Ref>> = roots.iter().map(|id| refs[number[usize::from(*id)] as usize]).collect();
    Some(Template { nodes, outputs: outputs?, cost, greedy_cost, proved })
}

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Steps of the journals.
    pub steps: usize,
    /// Of these, those that were needed, each checked.
    pub repeated: usize,
    /// Rebuilds of an e-graph; each costs what the e-graph holds.
    pub rebuilds: usize,
}

impl Replayed {
    /// Adds what was done elsewhere.
    pub(super) fn add(&mut self, other: Replayed) {
        self.steps += other.steps;
        self.repeated += other.repeated;
        self.rebuilds += other.rebuilds;
    }
}

/// Repeats the steps that a template rests on, each checked to be an instance of its rule, and looks the template up in
/// what results: `Err` names the first step or node that does not hold. The e-graph is rebuilt where it was at first, not
/// after each step, so that the whole is linear in the number of steps.
pub fn replay(part: &Part, first: &Loaded, template: &Template, exact: bool) -> Result<Replayed, String> {
    let journal = &first.journal;
    let mut fresh = load(part);
    let mut ids: rustc_hash::FxHashMap<Id, Id> = rustc_hash::FxHashMap::default();
    let mut done = Replayed { steps: journal.steps.len(), ..Replayed::default() };
    let mut rebuilds = journal.rebuilds.iter().copied().peekable();
    for index in journal.closure(template.nodes.iter().map(|node| node.term.clone()), true) {
        let mut due = false;
        while rebuilds.next_if(|at| *at <= index).is_some() {
            due = true;
        }
        if due {
            fresh.egraph.rebuild();
            done.rebuilds += 1;
        }
        let step = &journal.steps[index];
        done.repeated += 1;
        repeat(&mut fresh, first, step, &mut ids, exact)
            .ok_or_else(|| format!("step {index} ({}) does not hold", step.rule))?;
    }
    fresh.egraph.rebuild();
    done.rebuilds += 1;
    let mut found: Vec<Id> = Vec::new();
    for (i, node) in template.nodes.iter().enumerate() {
        let class = |r: &Ref| match r {
            Ref::Leaf(l) => fresh.leaves[*l as usize],
            Ref::Node(n) => found[*n as usize],
        };
        let operands: SmallVec<[Id; 4]> = node.operands.iter().map(|r| fresh.egraph.find(class(r))).collect();
        let term = term_of(&mut fresh.egraph, &node.op, &operands);
        let id =
            fresh.egraph.lookup(term).ok_or_else(|| format!("node {i} ({}) is not reached", node.op.home().name()))?;
        found.push(id);
    }
    for (output, value) in part.outputs.iter().zip(&template.outputs) {
        let value = match value {
            Ref::Leaf(l) => fresh.leaves[*l as usize],
            Ref::Node(n) => found[*n as usize],
        };
        if fresh.egraph.find(value) != fresh.egraph.find(fresh.nodes[*output as usize]) {
            return Err(format!("output node {output} is not equal to what was chosen"));
        }
    }
    Ok(done)
}

/// A node of the first run as a node of this one: operators are interned anew.
fn translate(egraph: &mut Graph, first: &Loaded, term: &Term, ids: &rustc_hash::FxHashMap<Id, Id>) -> Term {
    let operands = term.operands.iter().map(|id| egraph.find(ids.get(id).copied().unwrap_or(*id))).collect();
    Term { kind: term.kind, op: egraph.analysis.op_id(first.egraph.analysis.op(term.op)), operands }
}

/// Repeats one step. `ids` maps ids of the first run to those of this one.
fn repeat(
    fresh: &mut Loaded,
    first: &Loaded,
    step: &Step,
    ids: &mut rustc_hash::FxHashMap<Id, Id>,
    exact: bool,
) -> Option<()> {
    let map = |ids: &rustc_hash::FxHashMap<Id, Id>, id: Id| ids.get(&id).copied().unwrap_or(id);
    let egraph = &mut fresh.egraph;
    let added: Vec<(Term, Id)> = match &step.how {
        How::Rule(rule, bindings) => {
            let class = egraph.find(map(ids, step.unions[0].0));
            let mut wanted = (**bindings).clone();
            for var in wanted.vars.iter_mut().flatten() {
                *var = egraph.find(map(ids, *var));
            }
            let found = rule
                .search(&EView(egraph), class)
                .into_iter()
                .find(|b| b.vars == wanted.vars && b.attrs == wanted.attrs)?;
            instantiate(egraph, rule, class, &found)?.1
        }
        How::Epilogue { node, at, anchor } => {
            let (node, anchor) = (translate(egraph, first, node, ids), translate(egraph, first, anchor, ids));
            let class = egraph.lookup(node.clone())?;
            let (op, operands) = epilogue::rejoin(egraph, class, &node, *at, &anchor, exact)?;
            let id = add(egraph, &op, &operands)?;
            vec![(term_of(egraph, &op, &operands), id)]
        }
        How::Prologue { conv, path } => {
            let conv = translate(egraph, first, conv, ids);
            let path: Vec<Term> = path.iter().map(|node| translate(egraph, first, node, ids)).collect();
            let (op, operands) = prologue::rejoin(egraph, &conv, &path)?;
            let id = add(egraph, &op, &operands)?;
            vec![(term_of(egraph, &op, &operands), id)]
        }
        How::Distribute { node, split } => {
            let node = translate(egraph, first, node, ids);
            let split = split.iter().map(|concat| Some(translate(egraph, first, concat.as_ref()?, ids))).collect();
            distribute::build(egraph, &node, &split)?
        }
        How::Merge { members } => {
            let members: Vec<(Id, Term)> = members
                .iter()
                .map(|(class, term)| (egraph.find(map(ids, *class)), translate(egraph, first, term, ids)))
                .collect();
            merge::build(egraph, &members)?.0
        }
    };
    if added.len() != step.added.len() {
        return None;
    }
    for ((made, new), (wanted, old)) in added.iter().zip(&step.added) {
        if egraph.analysis.op(made.op) != first.egraph.analysis.op(wanted.op) {
            return None;
        }
        ids.insert(*old, *new);
    }
    for (old, new) in &step.unions {
        let (a, b) = (map(ids, *old), map(ids, *new));
        if egraph[a].data.ty != egraph[b].data.ty {
            return None;
        }
        egraph.union(a, b);
    }
    Some(())
}
