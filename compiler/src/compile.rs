//! The compiler from end to end: a graph in, a program out.

use std::time::{Duration, Instant};

use egret_ir::{Diagnostic, Graph};
use egret_program::{DeviceDescription, Program};

use crate::rewrite::direct::Applied;
use crate::rewrite::{Level, Options, Rewritten};
use crate::{plan, raise, rewrite};

/// What the compiler may do.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// How much is rewritten.
    pub level: Level,
    /// Every bit as the interpreter has it, where the element type allows: no FMA contraction, no rule of class *real*
    /// outside raise.
    pub exact: bool,
}

impl Default for CompileOptions {
    fn default() -> CompileOptions {
        CompileOptions { level: Level::Full, exact: false }
    }
}

/// A compiled graph, with every stage on the way.
pub struct Compiled {
    /// The program.
    pub program: Program,
    /// The graph after canonicalisation, raise and differentiation, composites without a kernel spelled out: what
    /// rewriting began with.
    pub raised: Graph,
    /// Where raise applied rules.
    pub raise_log: Vec<Applied>,
    /// The rewritten graph, and what explains it.
    pub rewritten: Rewritten,
    /// Time of each phase, in order.
    pub phases: Vec<(&'static str, Duration)>,
}

impl Compiled {
    /// Time of all phases.
    pub fn total(&self) -> Duration {
        self.phases.iter().map(|(_, time)| *time).sum()
    }
}

/// A graph before it is planned; the fields are those of [`Compiled`].
#[allow(missing_docs)]
pub struct Optimised {
    pub raised: Graph,
    pub raise_log: Vec<Applied>,
    pub rewritten: Rewritten,
}

/// The phases before the plan.
///
/// # Errors
/// As [`compile`].
pub fn optimise(graph: &Graph, device: &DeviceDescription, options: &CompileOptions) -> Result<Optimised, Diagnostic> {
    optimise_timed(graph, device, options, &mut |_, _| {})
}

/// Compiles a graph for a device.
///
/// # Errors
/// What a phase finds wrong, with the nodes at fault.
pub fn compile(graph: &Graph, device: &DeviceDescription, options: &CompileOptions) -> Result<Compiled, Diagnostic> {
    let mut phases = Vec::new();
    let mut timed = |name, since: Instant| phases.push((name, since.elapsed()));
    let Optimised { raised, raise_log, rewritten } = optimise_timed(graph, device, options, &mut timed)?;

    let start = Instant::now();
    let program = plan::plan(&rewritten.graph, device, &plan::Options { exact: options.exact })?;
    timed("plan and emit", start);

    Ok(Compiled { program, raised, raise_log, rewritten, phases })
}

/// `timed` is told the start of each phase when it ends.
fn optimise_timed(
    graph: &Graph,
    device: &DeviceDescription,
    options: &CompileOptions,
    timed: &mut dyn FnMut(&'static str, Instant),
) -> Result<Optimised, Diagnostic> {
    let start = Instant::now();
    let canonical = raise::canonicalise(graph)?;
    timed("canonicalise", start);

    let start = Instant::now();
    let (raised, raise_log) = raise::raise(&canonical)?;
    timed("raise", start);

    let start = Instant::now();
    let raised = egret_ir::autodiff::expand(&raised)?;
    let raised = raise::canonicalise(&raised)?;
    let raised = raise::spell_out(&raised, device)?;
    timed("autodiff", start);

    let start = Instant::now();
    let rewritten = rewrite::rewrite(&raised, device, &Options { level: options.level, exact: options.exact })?;
    timed("rewrite", start);
    Ok(Optimised { raised, raise_log, rewritten })
}
