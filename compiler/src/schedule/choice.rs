//! Schedules as data: what a problem may have, and what was chosen for it elsewhere.
//!
//! The model ranks the schedules of a problem, and a plan takes the first. A [`Schedules`] names other ones, by problem;
//! where it names none, or one that the problem does not have, the model's choice stands. Nothing here measures.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use egret_program::driver::DriverSchedule;
use egret_program::fingerprint;
use serde::{Deserialize, Serialize};

use super::cuda::tiles::Tiles;

/// How a kernel computes: plain data of any family that has a choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Of a loop nest of the CPU's runtime.
    Driver(DriverSchedule),
    /// A product on a GPU in stages.
    Stages(Tiles),
    /// A product on a GPU in tiles of 64 × 64 with one stage.
    OneStage,
    /// Attention on a GPU, or its gradient.
    Stream {
        /// Rows of a tile that streams through shared memory.
        columns: i64,
    },
    /// A softmax or norm on a GPU.
    Rows {
        /// Threads of a row.
        threads: u32,
    },
    /// Attention of one query on a GPU.
    Deal {
        /// Blocks that its keys are dealt to.
        parts: i64,
    },
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Driver(schedule) => write!(f, "{schedule}"),
            Schedule::Stages(tiles) => write!(f, "{tiles}"),
            Schedule::OneStage => f.write_str("64x64x16 stages 1"),
            Schedule::Stream { columns } => write!(f, "columns {columns}"),
            Schedule::Rows { threads } => write!(f, "threads {threads}"),
            Schedule::Deal { parts } => write!(f, "parts {parts}"),
        }
    }
}

/// The name of a problem: the hash of its kernels' text under the model's schedule. Equal kernels are one problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProblemKey(pub u128);

impl ProblemKey {
    /// The name of the problem whose kernels, and what they are launched on, have this text.
    pub fn of(text: &str) -> ProblemKey {
        ProblemKey(fingerprint(&[text.as_bytes()]))
    }
}

impl fmt::Display for ProblemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Schedules that were chosen elsewhere, by problem. None unless asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schedules(Arc<BTreeMap<ProblemKey, Schedule>>);

impl Schedules {
    /// Whether it names none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These, and `others` of problems that these name none for.
    pub fn or(&self, others: &Schedules) -> Schedules {
        others.0.iter().chain(self.0.iter()).map(|(key, schedule)| (*key, schedule.clone())).collect()
    }

    /// The schedule of a problem.
    pub fn get(&self, problem: ProblemKey) -> Option<&Schedule> {
        self.0.get(&problem)
    }
}

impl FromIterator<(ProblemKey, Schedule)> for Schedules {
    fn from_iter<I: IntoIterator<Item = (ProblemKey, Schedule)>>(all: I) -> Schedules {
        Schedules(Arc::new(all.into_iter().collect()))
    }
}
