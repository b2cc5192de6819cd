//! Which schedule each problem of a plan gets, and the record of those that had a choice.

use egret_ir::NodeId;
use egret_program::{BufferId, Launch};

use super::Planner;
use super::frame::Frame;
use crate::schedule::choice::{ProblemKey, Schedule};
use crate::tune::{Agreement, agreement};

/// A problem of a plan: launches whose schedule has a choice.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Its name.
    pub decision: Decision,
    /// What launches it, in order, where it comes first.
    pub launches: Vec<Launch>,
    /// Buffers that it reads or writes, by what they are to it: the same whatever its schedule is.
    pub names: Vec<(BufferId, String)>,
    /// How results under two schedules agree, if that is asked for.
    pub agreement: Option<Agreement>,
    /// How often it is launched, loops counted once.
    pub uses: usize,
}

/// What is kept of problems that have a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Nothing.
    Nothing,
    /// What launches them.
    Launches,
    /// That, and how results agree, which takes samples of their results.
    Agreement,
}

/// A choice that was made.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    /// The problem.
    pub key: ProblemKey,
    /// What it may have, the model's choice first.
    pub candidates: Vec<Schedule>,
    /// What it got.
    pub chosen: usize,
}

impl Decision {
    /// The schedule, where it is not the model's.
    pub fn other(&self) -> Option<&Schedule> {
        self.candidates.get(self.chosen).filter(|_| self.chosen > 0)
    }
}

impl Planner<'_> {
    /// Chooses among the schedules of a problem that has this text under the model's. Nothing is chosen where there is one
    /// alone, or where nobody asks: without schedules from elsewhere and without a record.
    pub(super) fn decide(
        &self,
        text: impl FnOnce() -> String,
        candidates: impl FnOnce() -> Vec<Schedule>,
    ) -> Option<Decision> {
        if self.schedules.is_empty() && self.recorded == Record::Nothing {
            return None;
        }
        let candidates = candidates();
        if candidates.len() < 2 {
            return None;
        }
        let key = ProblemKey::of(&text());
        let named = self.schedules.get(key);
        let found = named.and_then(|schedule| candidates.iter().position(|have| have == schedule));
        if let (Some(schedule), None) = (named, found) {
            tracing::warn!(problem = %key, %schedule, "a schedule that the problem does not have is left out");
        }
        Some(Decision { key, candidates, chosen: found.unwrap_or(0) })
    }

    /// Keeps a problem for those who measure.
    pub(super) fn record(
        &mut self,
        frame: &Frame,
        id: NodeId,
        decision: Decision,
        launches: &[Launch],
        mut names: Vec<(BufferId, String)>,
    ) {
        // of what has several names the first is taken
        names.sort_by(|(_, a), (_, b)| a.cmp(b));
        if self.recorded == Record::Nothing {
            return;
        }
        if let Some(site) = self.sites.iter_mut().find(|site| site.decision.key == decision.key) {
            site.uses += 1;
            return;
        }
        let agreement = (self.recorded == Record::Agreement).then(|| agreement(&frame.graph, id, self.device));
        self.sites.push(Site { decision, launches: launches.to_vec(), names, agreement, uses: 1 });
    }
}
