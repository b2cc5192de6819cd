//! Times in turn: every schedule once, then every schedule again, so that what changes while measuring meets all of them.

use super::Outcome;
use crate::error::Result;

/// The best median counts as at the roofline from this share of the time on: descriptions are not more exact.
const AT_ROOFLINE: f64 = 1.05;
/// A schedule other than the model's must be so much faster, and by so many µs: less is noise.
const GAIN: f64 = 0.97;
const GAIN_US: f64 = 0.2;

/// Times what has not been dropped, by rounds; whether it ended early because the best was at the roofline. What fails on
/// the way is dropped.
pub(super) fn race(
    outcomes: &mut [Outcome],
    rounds: usize,
    least_us: f64,
    time: &mut dyn FnMut(usize) -> Result<f64>,
) -> bool {
    for _ in 0..rounds {
        for (at, outcome) in outcomes.iter_mut().enumerate() {
            let Outcome::Timed { us } = outcome else { continue };
            match time(at) {
                Ok(taken) => us.push(taken),
                Err(error) => *outcome = Outcome::Failed { why: error.to_string() },
            }
        }
        let best = outcomes.iter().filter_map(Outcome::median).min_by(f64::total_cmp);
        if best.is_some_and(|best| best <= AT_ROOFLINE * least_us) {
            return true;
        }
    }
    false
}

/// The fastest by its median; the first, which is the model's choice, unless another is clearly faster.
pub(super) fn winner(outcomes: &[Outcome]) -> usize {
    let Some(own) = outcomes.first().and_then(Outcome::median) else { return 0 };
    let timed = outcomes.iter().enumerate().filter_map(|(at, outcome)| Some((at, outcome.median()?)));
    let best = timed.min_by(|(_, a), (_, b)| a.total_cmp(b));
    best.filter(|(_, median)| *median < GAIN * own && own - median >= GAIN_US).map_or(0, |(at, _)| at)
}

/// The median of times.
pub(super) fn median(us: &[f64]) -> Option<f64> {
    let mut sorted = us.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}
