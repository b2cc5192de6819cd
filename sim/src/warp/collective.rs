//! Operations in which lanes see each other's registers.

use super::{Warp, lanes};
use crate::block::{Common, Trouble};
use crate::error::FaultKind;
use crate::inst::*;
use crate::launch::Launch;

impl Warp {
    pub(super) fn collective(
        &mut self,
        launch: &Launch<'_>,
        common: &Common,
        op: &Op,
        active: u32,
    ) -> Result<(), Trouble> {
        let mut results = Vec::with_capacity(32);
        match op {
            Op::Shfl { mode, dst, valid, a, b, c, .. } => {
                for lane in lanes(active) {
                    let get = |value: Value| self.get(launch, common, value, lane) as u32;
                    let (b, c) = (get(*b) & 31, get(*c));
                    let (clamp, segment) = (c & 31, c >> 8 & 31);
                    let lowest = lane & segment;
                    let highest = lowest | (clamp & !segment);
                    let (from, inside) = match mode {
                        // For `up` the clamp is the first lane of the segment.
                        Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= highest as i32),
                        Shuffle::Down => (lane + b, lane + b <= highest),
                        Shuffle::Bfly => (lane ^ b, lane ^ b <= highest),
                        Shuffle::Idx => (lowest | (b & !segment), lowest | (b & !segment) <= highest),
                    };
                    let from = if inside { from & 31 } else { lane };
                    if active >> from & 1 == 0 {
                        return Err((FaultKind::ShuffleSource { lane: from }, lane));
                    }
                    let undefined = self.undefined_in(*a, 1 << from).map(|(_, origin)| (1 << lane, origin));
                    results.push((lane, self.get(launch, common, *a, from), inside, undefined));
                }
                for (lane, value, inside, undefined) in results {
                    if let Some(reg) = dst {
                        self.set(*reg, lane, value);
                        self.undefined.write(*reg, 1 << lane, undefined);
                    }
                    if let Some(reg) = valid {
                        self.set(*reg, lane, inside.into());
                        self.undefined.write(*reg, 1 << lane, None);
                    }
                }
            }
            Op::Vote { mode, dst, a, negated, .. } => {
                let holds = |lane: &u32| (self.get(launch, common, *a, *lane) & 1 == 1) != *negated;
                let ballot = lanes(active).filter(holds).fold(0u32, |mask, lane| mask | 1 << lane);
                let value = match mode {
                    Vote::All => u64::from(ballot == active),
                    Vote::Any => u64::from(ballot != 0),
                    Vote::Uni => u64::from(ballot == active || ballot == 0),
                    Vote::Ballot => ballot.into(),
                };
                let undefined = self.undefined_in(*a, active).map(|(_, origin)| (active, origin));
                self.undefined.write(*dst, active, undefined);
                lanes(active).for_each(|lane| self.set(*dst, lane, value));
            }
            Op::ActiveMask { dst } => {
                self.undefined.write(*dst, active, None);
                lanes(active).for_each(|lane| self.set(*dst, lane, active.into()));
            }
            _ => {}
        }
        Ok(())
    }
}
