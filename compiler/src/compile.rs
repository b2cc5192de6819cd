//! The compiler from end to end: a graph in, a program out.

use std::time::{Duration, Instant};

use egret_ir::{Diagnostic, Graph, Node, NodeId, Op};
use egret_program::{DeviceDescription, Program};

use crate::cost::engine::Winograd;
use crate::rematerialise::{self, Policy, Rematerialised};
use crate::rewrite::direct::{Applied, Direct};
use crate::rewrite::rules::{LOOP_MOTION, SCALED_INTEGERS};
use crate::rewrite::{Level, Options, RewriteSet, Rewritten};
use crate::schedule::choice::Schedules;
use crate::schedule::cuda::F32Products;
use crate::{plan, raise, rewrite};

/// What the compiler may do.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// How much is rewritten.
    pub level: Level,
    /// Every bit as the interpreter has it, where the element type allows: no FMA contraction, no rule of class *real*
    /// outside raise.
    pub exact: bool,
    /// The rules of raise and of rewriting.
    pub rules: RewriteSet,
    /// What gradients keep of the values that they are gradients of.
    pub remat: Policy,
    /// How `f32` is multiplied: TF32 on a GPU, bf16 on a CPU that has it; by fused multiply-adds where `exact` is asked for.
    pub products: F32Products,
    /// Which tiles of Winograd's minimal filtering convolutions on a CPU may use; none where `exact` is asked for.
    pub winograd: Winograd,
    /// Schedules that were chosen elsewhere, by a tuner; the model chooses all others.
    pub schedules: Schedules,
}

impl Default for CompileOptions {
    fn default() -> CompileOptions {
        CompileOptions {
            level: Level::Full,
            exact: false,
            rules: RewriteSet::standard(),
            remat: Policy::default(),
            products: F32Products::Fma,
            winograd: Winograd::default(),
            schedules: Schedules::default(),
        }
    }
}

impl CompileOptions {
    /// What these options are to the planner.
    pub fn plan(&self) -> plan::Options {
        plan::Options {
            exact: self.exact,
            products: self.products,
            winograd: self.winograd,
            unfused: self.level == Level::None,
            schedules: self.schedules.clone(),
        }
    }
}

/// A compiled graph, with every stage on the way.
pub struct Compiled {
    /// The program.
    pub program: Program,
    /// The graph after canonicalisation, raise and differentiation, composites without a kernel spelled out: what
    /// rewriting began with.
    pub raised: Graph,
    /// Where rules were applied directly, by canonicalisation and raise, in order; the nodes are those of `raised`.
    pub raise_log: Vec<Applied>,
    /// The rewritten graph, and what explains it.
    pub rewritten: Rewritten,
    /// The graph that was planned: the rewritten one, with what is computed again for the backward pass.
    pub rematerialised: Rematerialised,
    /// Time of each phase, in order.
    pub phases: Vec<(&'static str, Duration)>,
}

impl Compiled {
    /// Time of all phases.
    pub fn total(&self) -> Duration {
        self.phases.iter().map(|(_, time)| *time).sum()
    }
}

/// A graph before it is planned.
pub struct Optimised {
    /// [`Compiled::raised`].
    pub raised: Graph,
    /// [`Compiled::raise_log`].
    pub raise_log: Vec<Applied>,
    /// [`Compiled::rewritten`].
    pub rewritten: Rewritten,
    /// [`Compiled::rematerialised`].
    pub rematerialised: Rematerialised,
}

/// The phases before the plan.
///
/// # Errors
/// As [`compile`].
pub fn optimise(graph: &Graph, device: &DeviceDescription, options: &CompileOptions) -> Result<Optimised, Diagnostic> {
    optimise_timed(graph, device, options, &mut Vec::new())
}

/// A graph ready for rewriting.
pub struct Raised {
    /// The graph after canonicalisation, raise and differentiation, composites without a kernel spelled out.
    pub graph: Graph,
    /// Where rules were applied directly, in order; the nodes are those of `graph`.
    pub log: Vec<Applied>,
    /// By node of `graph`, whether a loss depends on it: the forward pass. Nothing where nothing is differentiated.
    pub forward: Vec<bool>,
}

/// Compiles a graph for a device.
///
/// # Errors
/// What a phase finds wrong, with the nodes at fault.
pub fn compile(graph: &Graph, device: &DeviceDescription, options: &CompileOptions) -> Result<Compiled, Diagnostic> {
    let mut phases = Vec::new();
    let optimised = optimise_timed(graph, device, options, &mut phases)?;
    planned(optimised, device, &options.plan(), phases)
}

/// [`compile`], with schedules that are chosen when the graph to be planned is known: a tuner's way in, who takes its
/// [`problems`](crate::tune::problems) and measures them.
///
/// # Errors
/// As [`compile`], and those of `choose`.
pub fn compile_choosing<E: From<Diagnostic>>(
    graph: &Graph,
    device: &DeviceDescription,
    options: &CompileOptions,
    choose: &mut dyn FnMut(&Graph) -> Result<Schedules, E>,
) -> Result<Compiled, E> {
    let mut phases = Vec::new();
    let optimised = optimise_timed(graph, device, options, &mut phases)?;

    let start = Instant::now();
    let schedules = choose(&optimised.rematerialised.graph)?;
    phases.push(("tune", start.elapsed()));
    Ok(planned(optimised, device, &plan::Options { schedules, ..options.plan() }, phases)?)
}

/// The last phase.
fn planned(
    optimised: Optimised,
    device: &DeviceDescription,
    options: &plan::Options,
    mut phases: Vec<(&'static str, Duration)>,
) -> Result<Compiled, Diagnostic> {
    let Optimised { raised, raise_log, rewritten, rematerialised } = optimised;
    let start = Instant::now();
    let program = plan::plan(&rematerialised.graph, device, options)?;
    phases.push(("plan and emit", start.elapsed()));

    Ok(Compiled { program, raised, raise_log, rewritten, rematerialised, phases })
}

/// [`optimise`]; adds the time of each phase to `phases`.
fn optimise_timed(
    graph: &Graph,
    device: &DeviceDescription,
    options: &CompileOptions,
    phases: &mut Vec<(&'static str, Duration)>,
) -> Result<Optimised, Diagnostic> {
    let Raised { graph: raised, log: raise_log, forward } =
        raise(graph, device, &options.rules, options.exact, phases)?;
    let start = Instant::now();
    let rewriting = Options {
        level: options.level,
        exact: options.exact,
        rules: options.rules.clone(),
        gradients: forward.contains(&true),
        ..Options::default()
    };
    let rewritten = rewrite::rewrite(&raised, device, &rewriting)?;
    phases.push(("rewrite", start.elapsed()));

    let start = Instant::now();
    let forward = rewritten.marked(&forward);
    let rematerialised = rematerialise::rematerialise(&rewritten.graph, &forward, options.remat, device)?;
    phases.push(("rematerialise", start.elapsed()));
    Ok(Optimised { raised, raise_log, rewritten, rematerialised })
}

/// The phases before rewriting; adds the time of each to `phases`.
///
/// # Errors
/// As [`compile`].
pub fn raise(
    graph: &Graph,
    device: &DeviceDescription,
    rules: &RewriteSet,
    exact: bool,
    phases: &mut Vec<(&'static str, Duration)>,
) -> Result<Raised, Diagnostic> {
    let mut timed = |name, since: Instant| phases.push((name, since.elapsed()));
    let mut log = Log::default();
    let mut forward = Vec::new();

    let start = Instant::now();
    let raised = raise::raise_with(graph, rules)?;
    log.extend(raised.applied);
    timed("canonicalise and raise", start);

    let start = Instant::now();
    let mut graph = raised.graph;
    // without gradients raise has left a canonical graph
    if egret_ir::autodiff::has_grad(&graph) {
        let (expanded, map) = egret_ir::autodiff::expand_traced(&graph)?;
        log.follow(&map);
        // what raise left is canonical; gradients are not, nor what loops record for them
        let mut settled = vec![false; expanded.nodes().len()];
        let same = |id: &NodeId, node: &Node| expanded.node(*id).op == node.op && node.op.home().regions().is_empty();
        for (to, (_, node)) in map.iter().zip(graph.iter()) {
            to.iter().filter(|to| same(to, node)).for_each(|to| settled[to.index()] = true);
        }
        forward = vec![false; expanded.nodes().len()];
        for (id, _) in graph.iter().filter(|(_, node)| matches!(node.op, Op::Grad(_))) {
            map[id.index()].into_iter().for_each(|loss| forward[loss.index()] = true);
        }
        let again = raise::canonicalise_gradients(&expanded, rules, exact, settled)?;
        log.follow(&again.map);
        forward = follow(rewrite::with_operands(&expanded, forward), &again);
        log.extend(again.applied);
        graph = again.graph;
    }
    if rules.has(LOOP_MOTION)
        && let Some(moved) = raise::move_contractions(&graph, exact)?
    {
        log.follow(&moved.map);
        forward = follow(forward, &moved);
        log.extend(moved.applied);
        graph = moved.graph;
    }
    if let Some(trimmed) = raise::trim_loops(&graph)? {
        log.follow(&trimmed.map);
        forward = follow(forward, &trimmed);
        graph = trimmed.graph;
    }
    if !exact
        && rules.has(SCALED_INTEGERS)
        && let Some(made) = raise::multiply_integers(&graph, device)?
    {
        log.follow(&made.map);
        forward = follow(forward, &made);
        log.extend(made.applied);
        graph = made.graph;
    }
    if let Some(spelled) = raise::spell_out(&graph, device)? {
        log.follow(&spelled.map);
        forward = follow(forward, &spelled);
        log.extend(spelled.applied);
        graph = spelled.graph;
    }
    timed("autodiff", start);

    Ok(Raised { graph, log: log.0, forward })
}

/// Marks of the nodes that a pass moved, where they are now, and on all that they are computed from now.
fn follow(marks: Vec<bool>, pass: &Direct) -> Vec<bool> {
    let mut moved = vec![false; pass.graph.nodes().len()];
    for id in marks.iter().zip(&pass.map).filter(|(marked, _)| **marked).filter_map(|(_, id)| *id) {
        moved[id.index()] = true;
    }
    rewrite::with_operands(&pass.graph, moved)
}

/// What was applied so far, by the nodes of the latest graph.
#[derive(Default)]
struct Log(Vec<Applied>);

impl Log {
    fn extend(&mut self, applied: Vec<Applied>) {
        self.0.extend(applied);
    }

    /// A pass moved the nodes; what it dropped is no part of the explanation.
    fn follow(&mut self, map: &[Option<NodeId>]) {
        self.0.retain_mut(|applied| match map[applied.node.index()] {
            Some(node) => {
                applied.node = node;
                true
            }
            None => false,
        });
    }
}
