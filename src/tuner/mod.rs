//! The tuner: schedules that are chosen by measuring, where the model chooses otherwise.
//!
//! Of each problem that has a choice (a product, a convolution, an attention, whatever launches it) a few schedules are
//! compiled, and run alone on the device on drawn inputs. Results that do not agree with those of the model's choice drop a
//! schedule; the others are timed in turn. All measurements are kept in a table on disk, from which later compilations take
//! the same choice: a program that was tuned by a table is a function of the table.

mod bench;
mod race;
mod table;
#[cfg(test)]
mod tests;

use egret_compiler::tune::{Problem, Tunable};
use egret_compiler::{ProblemKey, Schedule, Schedules, plan};
use egret_ir::{Bindings, Graph, Tensor};
use egret_program::DeviceDescription;
use egret_runtime::Cache;
use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::Result;
use bench::{Bench, OnDevice, Runs};
use table::Table;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// The model's choice and the three next best, seven times each.
    Few,
    /// Twelve schedules, fifteen times each.
    Many,
}

impl Effort {
    /// Schedules of a problem.
    pub fn candidates(self) -> usize {
        match self {
            Effort::Few => 4,
            Effort::Many => 12,
        }
    }

    /// Times that each is measured, at most.
    pub fn rounds(self) -> usize {
        match self {
            Effort::Few => 7,
            Effort::Many => 15,
        }
    }
}

impl std::str::FromStr for Effort {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Effort, String> {
        match text {
            "1" => Ok(Effort::Few),
            "2" => Ok(Effort::Many),
            other => Err(format!("`{other}` is no effort of tuning: 1 (few schedules), 2 (more)")),
        }
    }
}

/// Chooses schedules by measuring them; [`Device::with_tuner`] takes one.
///
/// ```
/// use egret::{Cache, Device, Effort, Tuner, f32};
///
/// let graph = egret::trace(|t| t.input("x", f32([96, 64])).matmul(t.input("w", f32([64, 256]))).relu())?;
/// // measured anew each time; without this, in the user's cache
/// let device = Device::cpu().with_tuner(Tuner::new(Effort::Few).with_table(Cache::none()));
/// let exe = egret::compile(&graph, &device)?;
/// let tuning = exe.tuning().unwrap();
/// assert_eq!(tuning.problems.len(), 1);
/// assert!(tuning.problems[0].measurements.len() > 1);
/// # Ok::<(), egret::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tuner {
    effort: Effort,
    table: Cache,
    sizes: Bindings,
}

impl Tuner {
    /// A tuner with the user's table.
    pub fn new(effort: Effort) -> Tuner {
        Tuner { effort, table: Cache::tuning(), sizes: Bindings::new() }
    }

    /// The same with another table.
    pub fn with_table(self, table: Cache) -> Tuner {
        Tuner { table, ..self }
    }

    /// Measures for these sizes of symbols; for those that are not named, what the model takes them for.
    pub fn with_sizes(self, sizes: Bindings) -> Tuner {
        Tuner { sizes, ..self }
    }

    /// The schedules of a rewritten graph on a device.
    pub(crate) fn tune(
        &self,
        graph: &Graph,
        device: &Device,
        description: &DeviceDescription,
        options: &plan::Options,
    ) -> Result<Tuning> {
        let bench = OnDevice::new(device, description)?;
        self.tune_on(graph, description, options, &bench)
    }

    fn tune_on(
        &self,
        graph: &Graph,
        description: &DeviceDescription,
        options: &plan::Options,
        bench: &dyn Bench,
    ) -> Result<Tuning> {
        let tunable = Tunable::new(graph, description, options, &self.sizes);
        let environment = bench.environment();
        let table = Table::new(&self.table, description, &environment, tunable.sizes());
        let problems = tunable.problems(self.effort.candidates())?;
        let known: Vec<Option<Tuned>> = problems.iter().map(|problem| table.get(problem)).collect();
        let open = problems.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(problem, _)| problem);
        let open: Vec<&Problem> = open.collect();
        let mut candidates = tunable.candidates(&open)?.into_iter();
        let mut tuned = Vec::with_capacity(problems.len());
        for (problem, known) in problems.iter().zip(known) {
            if let Some(known) = known {
                tuned.push(known);
                continue;
            }
            let candidates = candidates.next().unwrap_or_default();
            let schedules = candidates.iter().map(|candidate| candidate.schedule.clone()).collect();
            let made = self.measure(problem, schedules, bench.load(candidates), bench);
            if made.is_complete() {
                table.put(&made, &problem.schedules);
            }
            tuned.push(made);
        }
        Ok(Tuning { problems: tuned })
    }

    /// Measures the candidates of a problem in turn.
    fn measure(
        &self,
        problem: &Problem,
        schedules: Vec<Schedule>,
        mut runs: Vec<Result<Box<dyn Runs>>>,
        bench: &dyn Bench,
    ) -> Tuned {
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(runs.len());
        let mut reference: Option<Vec<Tensor>> = None;
        for runs in &mut runs {
            let failed = |error: &crate::Error| Outcome::Failed { why: error.to_string() };
            let results = match runs {
                Ok(runs) => runs.results().map_err(|error| failed(&error)),
                Err(error) => Err(failed(error)),
            };
            match (results, &reference) {
                (Ok(results), None) => {
                    reference = Some(results);
                    outcomes.push(Outcome::Timed { us: Vec::new() });
                }
                (Ok(results), Some(reference)) => {
                    let difference = problem.agreement.difference(reference, &results);
                    outcomes.push(difference.map_or(Outcome::Timed { us: Vec::new() }, |by| Outcome::Wrong { by }));
                }
                (Err(failed), Some(_)) => outcomes.push(failed),
                // without the model's choice there is nothing to compare with
                (Err(failed), None) => {
                    outcomes.push(failed);
                    break;
                }
            }
        }
        let least_us = problem.least_us(&bench.roofline());
        let rounds = if bench.is_steady() { 1 } else { self.effort.rounds() };
        let at_roofline = race::race(&mut outcomes, rounds, least_us, &mut |at| match &mut runs[at] {
            Ok(runs) => runs.time(),
            Err(error) => Err(std::mem::replace(error, not_loaded())),
        });
        let chosen = race::winner(&outcomes);
        let measurements =
            schedules.into_iter().zip(outcomes).map(|(schedule, outcome)| Measurement { schedule, outcome }).collect();
        Tuned {
            key: problem.key,
            family: problem.family.clone(),
            origin: problem.origin.clone(),
            uses: problem.uses,
            least_us,
            at_roofline,
            from_table: false,
            measurements,
            chosen,
        }
    }
}

fn not_loaded() -> crate::Error {
    egret_ir::Diagnostic::new("E0808", "a schedule was not loaded").into()
}

/// What tuning a graph gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tuning {
    /// Each problem that has a choice of schedule, in the order of the plan.
    pub problems: Vec<Tuned>,
}

impl Tuning {
    /// The schedules that were chosen where the model chooses otherwise.
    pub fn schedules(&self) -> Schedules {
        let other = |tuned: &Tuned| Some((tuned.key, tuned.other()?.clone()));
        self.problems.iter().filter_map(other).collect()
    }

    /// Problems that were measured now, and that the table had.
    pub fn sources(&self) -> (usize, usize) {
        let known = self.problems.iter().filter(|tuned| tuned.from_table).count();
        (self.problems.len() - known, known)
    }

    /// Schedules that were dropped, with why.
    pub fn dropped(&self) -> impl Iterator<Item = (&Tuned, &Schedule, String)> {
        self.problems.iter().flat_map(|tuned| {
            let others = tuned.measurements.iter().skip(1);
            others.filter_map(move |m| Some((tuned, &m.schedule, m.outcome.why_not()?)))
        })
    }

    /// Problems that were not tuned, because the model's choice does not run alone, with why.
    pub fn left_out(&self) -> impl Iterator<Item = (&Tuned, String)> {
        self.problems.iter().filter_map(|tuned| match tuned.measurements.first() {
            Some(own) => Some((tuned, own.outcome.why_not()?)),
            None => Some((tuned, "it makes no program of its own".into())),
        })
    }
}

/// A problem, what was measured of it, and what was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuned {
    /// Its name.
    pub key: ProblemKey,
    /// Its kernel's family.
    pub family: String,
    /// The graph's nodes that it computes where it comes first.
    pub origin: String,
    /// How often it is launched, loops counted once.
    pub uses: usize,
    /// The least time that the device's description gives it, µs.
    pub least_us: f64,
    /// Whether measuring ended because the best was as fast as that.
    pub at_roofline: bool,
    /// Whether the table had it.
    pub from_table: bool,
    /// What was measured, the model's choice first.
    pub measurements: Vec<Measurement>,
    /// What was chosen, by its place among these.
    pub chosen: usize,
}

impl Tuned {
    /// The chosen schedule, where it is not the model's.
    pub fn other(&self) -> Option<&Schedule> {
        self.measurements.get(self.chosen).filter(|_| self.chosen > 0).map(|m| &m.schedule)
    }

    /// Median times of the model's choice and of what was chosen, µs.
    pub fn times(&self) -> Option<(f64, f64)> {
        let median = |at: usize| self.measurements.get(at).and_then(|m| m.outcome.median());
        Some((median(0)?, median(self.chosen)?))
    }

    /// Whether the model's choice was measured, so that there is something to keep.
    fn is_complete(&self) -> bool {
        self.measurements.first().is_some_and(|m| m.outcome.median().is_some())
    }
}

/// A schedule, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The schedule.
    pub schedule: Schedule,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was timed.
    Timed {
        /// Each time, µs, in order.
        us: Vec<f64>,
    },
    /// Its results do not agree with those of the model's choice; no time counts.
    Wrong {
        /// The greatest difference beyond what is allowed; 0 where only bits differ that have to be equal.
        by: f64,
    },
    /// It did not compile or run.
    Failed {
        /// Why.
        why: String,
    },
}

impl Outcome {
    /// Why no time counts; `None` where it does.
    fn why_not(&self) -> Option<String> {
        match self {
            Outcome::Timed { .. } => None,
            Outcome::Wrong { by } => Some(format!("its results differ by {by:e}")),
            Outcome::Failed { why } => Some(why.clone()),
        }
    }

    /// The median of its times, µs.
    pub fn median(&self) -> Option<f64> {
        match self {
            Outcome::Timed { us } => race::median(us),
            _ => None,
        }
    }
}
