//! Medians of measurements, how sure they are, and measurements of several threads at once.

use std::sync::{Mutex, PoisonError};

use egret_runtime::cpu::team::Team;

/// Samples drawn for an interval.
const DRAWS: usize = 1000;

/// The median; 0 of nothing.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => (values[n / 2 - 1] + values[n / 2]) / 2.0,
        n => values[n / 2],
    }
}

/// The sum of what the threads of a team, told their number, measure at the same time; 0 where nothing can be measured.
/// Its workers are pinned: threads of this process's own would start on one core and measure half of it each.
pub fn together(team: &Team, measure: &(dyn Fn(usize) -> Option<f64> + Sync)) -> f64 {
    let sum = Mutex::new(0.0);
    team.parallel(team.size(), &|number, _| {
        let measured = measure(number).unwrap_or(0.0);
        *sum.lock().unwrap_or_else(PoisonError::into_inner) += measured;
    });
    sum.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The 95 % bootstrap interval of a statistic: its 2.5 and 97.5 percentiles over samples drawn with replacement (Efron,
/// 1979). The draws are the same in every run.
pub fn interval<T: Copy>(measured: &[T], statistic: impl Fn(&[T]) -> f64) -> (f64, f64) {
    let mut state = 0u64;
    let mut drawn = measured.to_vec();
    let mut values: Vec<f64> = (0..DRAWS)
        .map(|_| {
            for slot in &mut drawn {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                *slot = measured[(mix(state) % measured.len() as u64) as usize];
            }
            statistic(&drawn)
        })
        .collect();
    values.sort_by(f64::total_cmp);
    (values[DRAWS / 40], values[DRAWS - 1 - DRAWS / 40])
}

/// SplitMix64's output function (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_intervals() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
        let values: Vec<f64> = (0..101).map(f64::from).collect();
        let (low, high) = interval(&values, |drawn| median(drawn.iter().copied()));
        // the median of 101 uniform values has a standard deviation near 5
        assert!((30.0..48.0).contains(&low) && (52.0..70.0).contains(&high), "{low} {high}");
        assert_eq!(interval(&[7.0], |drawn| drawn[0]), (7.0, 7.0));
    }
}
