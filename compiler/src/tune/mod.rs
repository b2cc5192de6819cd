//! What a tuner measures: the problems of a graph that have a choice of schedule, and for each of its candidates the
//! program that launches it alone.
//!
//! The compiler ranks and builds; it measures nothing. A tuner runs the programs on a device, and compiles with the
//! [`Schedules`] that it found. What is measured is what will run: the programs are cut out of plans of the whole graph that
//! were made with such schedules.

mod agreement;
mod inputs;

use egret_ir::{Bindings, Diagnostic, Dim, Graph, Op};
use egret_program::excerpt::Taken;
use egret_program::{DeviceDescription, KernelBody, KernelId, Launch, Program, excerpt};
use rayon::prelude::*;
use rustc_hash::FxHashSet;

pub use agreement::{Agreement, agreement};
pub use inputs::inputs;

use crate::cost::{self, SYMBOL_HINT, Sketch};
use crate::plan::choice::{Record, Site};
use crate::plan::{self, Recorded};
use crate::schedule::choice::{ProblemKey, Schedule, Schedules};
use crate::schedule::cuda::tiles::Engine;

/// A problem that has a choice of schedule.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Its name.
    pub key: ProblemKey,
    /// Its kernel's family.
    pub family: String,
    /// The graph's nodes that it computes where it comes first.
    pub origin: String,
    /// How often it is launched, loops counted once.
    pub uses: usize,
    /// Floating-point operations of a launch.
    pub flops: f64,
    /// Bytes read and written by a launch.
    pub bytes: f64,
    /// How results under two schedules agree.
    pub agreement: Agreement,
    /// The schedules that are to be measured: the model's choice, then the others, the best by the model first.
    pub schedules: Vec<Schedule>,
}

/// A problem under one schedule.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The schedule.
    pub schedule: Schedule,
    /// The program that launches it alone: inputs are what it reads, outputs what it writes, under the same names whatever
    /// the schedule is. Else why there is none.
    pub program: Result<Program, Diagnostic>,
}

impl Problem {
    /// The least time that a device needs by its description, µs: its operations at the peak, or its bytes.
    pub fn least_us(&self, device: &DeviceDescription) -> f64 {
        let efficiency = match self.schedules.first() {
            Some(Schedule::Stages(tiles)) if tiles.engine != Engine::Fma => {
                device.block_limits().2 / device.core_gflops / tiles.engine.slower(device)
            }
            _ => 1.0,
        };
        cost::kernel(&Sketch { flops: self.flops, bytes: self.bytes, efficiency, ..Sketch::default() }, device)
    }
}

/// A graph that is tuned: rewritten, to be planned for a device, symbols bound.
pub struct Tunable<'g> {
    graph: &'g Graph,
    device: &'g DeviceDescription,
    options: plan::Options,
    sizes: Bindings,
}

impl<'g> Tunable<'g> {
    /// Symbols have the values of `sizes`, others what the model takes them for.
    pub fn new(
        graph: &'g Graph,
        device: &'g DeviceDescription,
        options: &plan::Options,
        sizes: &Bindings,
    ) -> Tunable<'g> {
        let options = plan::Options { schedules: Schedules::default(), ..options.clone() };
        Tunable { graph, device, options, sizes: complete(graph, sizes) }
    }

    /// The values of all symbols.
    pub fn sizes(&self) -> &Bindings {
        &self.sizes
    }

    /// The problems that have a choice, each once, in the order of the plan; of each at most `most` schedules. Problems whose
    /// sizes only the data tell are left out.
    ///
    /// # Errors
    /// Those of [`plan::plan`].
    pub fn problems(&self, most: usize) -> Result<Vec<Problem>, Diagnostic> {
        let made = plan::recorded(self.graph, self.device, &self.options, Record::Agreement)?;
        Ok(made.sites.iter().filter_map(|site| self.problem(&made, site, most)).collect())
    }

    /// The candidates of problems, by problem: a plan for each place in their lists of schedules. A schedule that makes the
    /// same kernels as one before it is left out.
    ///
    /// # Errors
    /// Those of [`plan::plan`].
    pub fn candidates(&self, problems: &[&Problem]) -> Result<Vec<Vec<Candidate>>, Diagnostic> {
        let mut all = vec![Vec::new(); problems.len()];
        let most = problems.iter().map(|problem| problem.schedules.len()).max().unwrap_or(0);
        for number in 0..most {
            let one = |problem: &&Problem| Some((problem.key, problem.schedules.get(number)?.clone()));
            let schedules: Schedules = problems.iter().filter_map(one).collect();
            let options = plan::Options { schedules, ..self.options.clone() };
            let made = plan::recorded(self.graph, self.device, &options, Record::Launches)?;
            let candidates: Vec<Option<Candidate>> = problems
                .par_iter()
                .map(|problem| {
                    let schedule = problem.schedules.get(number)?.clone();
                    let program = self.alone(&made, problem.key, &schedule);
                    Some(Candidate { schedule, program })
                })
                .collect();
            for (list, candidate) in all.iter_mut().zip(candidates) {
                list.extend(candidate.filter(|candidate| list.iter().all(|have: &Candidate| !have.is_same(candidate))));
            }
        }
        Ok(all)
    }

    /// The program that launches a problem alone, cut out of a plan.
    fn alone(&self, made: &Recorded, key: ProblemKey, schedule: &Schedule) -> Result<Program, Diagnostic> {
        let unmade = |why: &str| Diagnostic::new("E0461", format!("{schedule} makes no kernel: {why}"));
        let site = made.sites.iter().find(|site| site.decision.key == key);
        let site = site.ok_or_else(|| unmade("the problem is another under the other schedules"))?;
        if site.decision.candidates.get(site.decision.chosen) != Some(schedule) {
            return Err(unmade("it is beyond the bounds of kernels"));
        }
        let taken = Taken { launches: &site.launches, names: &site.names, sizes: &self.sizes };
        let (mut program, numbers) =
            excerpt(&made.program, &taken).map_err(|error| Diagnostic::new("E0206", error.to_string()))?;
        let is_generated =
            |body: &KernelBody| matches!(body, KernelBody::Code(_) | KernelBody::Hook(_) | KernelBody::Cuda(_));
        let generated = numbers.iter().enumerate().filter(|(at, _)| is_generated(&program.kernels[*at].body));
        let kernel = |(at, id): (usize, &KernelId)| {
            let (_, kernel) = made.generated.iter().find(|(have, _)| have == id)?;
            Some((KernelId(at as u32), kernel.clone()))
        };
        let generated: Vec<_> = generated.filter_map(kernel).collect();
        plan::emit(&mut program, generated, self.device)?;
        Ok(program)
    }

    /// `None` where a size is not known.
    fn problem(&self, made: &Recorded, site: &Site, most: usize) -> Option<Problem> {
        let first = site.launches.first()?;
        let total = |of: &dyn Fn(&Launch) -> &Dim| -> Option<f64> {
            site.launches.iter().map(|launch| of(launch).eval(&self.sizes).ok().map(|n| n as f64)).sum()
        };
        Some(Problem {
            key: site.decision.key,
            family: made.program.kernel(first.kernel).family.clone(),
            origin: first.origin.clone(),
            uses: site.uses,
            flops: total(&|launch| &launch.flops)?,
            bytes: total(&|launch| &launch.bytes)?,
            agreement: site.agreement.unwrap_or(Agreement::Bits),
            schedules: site.decision.candidates.iter().take(most.max(1)).cloned().collect(),
        })
    }
}

impl Candidate {
    fn is_same(&self, other: &Candidate) -> bool {
        let (Ok(own), Ok(other)) = (&self.program, &other.program) else { return false };
        own.kernels.iter().map(|kernel| &kernel.text).eq(other.kernels.iter().map(|kernel| &kernel.text))
    }
}

/// Values of all symbols of a graph's inputs and states.
fn complete(graph: &Graph, given: &Bindings) -> Bindings {
    let mut sizes = Bindings::new();
    let mut seen = FxHashSet::default();
    for (_, node) in graph.iter() {
        let ty = match &node.op {
            Op::Input(input) => &input.ty,
            Op::State(state) => &state.ty,
            Op::Param(param) => &param.ty,
            _ => continue,
        };
        for dim in ty.shape.iter() {
            dim.symbols(&mut |name, min, max| {
                if seen.insert(name.clone()) {
                    let size = given.get(name).copied().unwrap_or(SYMBOL_HINT).clamp(min, max);
                    sizes.insert(name.clone(), size);
                }
            });
        }
    }
    sizes
}
