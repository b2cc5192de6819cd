//! Schedules of a driver beside the analytic choice: what else a tuner may measure.
//!
//! They cut the same sums at other places: every output has equal bits under all of them, so that what is measured on one
//! number of threads changes no result on another. Engines and lengths of sums, which change bits, are the model's choice.

use super::{
    ConvEngine, ConvForm, ConvInput, ConvProblem, ConvSchedule, Driver, GemmProblem, GemmSchedule, Products, Split,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A schedule of a driver.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverSchedule {
    /// Of a convolution.
    Conv(ConvSchedule),
    /// Of a product.
    Gemm(GemmSchedule),
}

impl fmt::Display for DriverSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            DriverSchedule::Conv(schedule) => schedule.to_string(),
            DriverSchedule::Gemm(schedule) => schedule.to_string(),
        };
        f.write_str(text.trim_start().trim_start_matches("schedule "))
    }
}

impl Driver<usize> {
    /// The schedules that this problem may have: its own first, then those nearest to it. One alone where there is no
    /// choice, none of a driver without schedule.
    pub fn candidates(&self) -> Vec<DriverSchedule> {
        let mut all = match self {
            Driver::Conv(problem, schedule) => conv(problem, schedule).into_iter().map(DriverSchedule::Conv).collect(),
            Driver::Gemm(problem, schedule) => gemm(problem, schedule).into_iter().map(DriverSchedule::Gemm).collect(),
            _ => Vec::new(),
        };
        let mut seen = Vec::new();
        all.retain(|schedule| {
            !seen.contains(schedule) && {
                seen.push(schedule.clone());
                true
            }
        });
        all
    }
}

impl<D> Driver<D> {
    /// The same problem with another schedule of its kind.
    pub fn with_schedule(self, schedule: &DriverSchedule) -> Driver<D> {
        match (self, schedule) {
            (Driver::Conv(problem, _), DriverSchedule::Conv(schedule)) => Driver::Conv(problem, schedule.clone()),
            (Driver::Gemm(problem, _), DriverSchedule::Gemm(schedule)) => Driver::Gemm(problem, schedule.clone()),
            (other, _) => other,
        }
    }
}

/// Factors of what is cut, as numerators and denominators; the nearest first.
const FACTORS: [(usize, usize); 4] = [(1, 2), (2, 1), (1, 4), (4, 1)];

fn scaled(n: usize, (up, down): (usize, usize)) -> usize {
    (n * up / down).max(1)
}

/// Other heights of a chunk, in whole tiles.
fn gemm(problem: &GemmProblem, schedule: &GemmSchedule) -> Vec<GemmSchedule> {
    let tile = match (schedule.products, schedule.lanes) {
        (Products::Words(_), _) => 32,
        (_, 16) | (Products::F64, 8) => 14,
        _ => 6,
    };
    let tiles = problem.m.div_ceil(tile).max(1);
    let own = (schedule.m_block / tile).clamp(1, tiles);
    let with = |fit: usize| {
        // as even as can be
        let m_block = tiles.div_ceil(tiles.div_ceil(fit.clamp(1, tiles))) * tile;
        GemmSchedule { m_block, ..schedule.clone() }
    };
    let others = FACTORS.into_iter().map(|factor| with(scaled(own, factor))).chain([with(tiles), with(1)]);
    std::iter::once(schedule.clone()).chain(others).collect()
}

/// Other blocks of work, and without a prefetch or with it.
fn conv(problem: &ConvProblem, schedule: &ConvSchedule) -> Vec<ConvSchedule> {
    let mut all = vec![schedule.clone()];
    // its loop nest has none
    if problem.form == ConvForm::WeightGradient {
        return all;
    }
    let mut add = |change: &dyn Fn(&mut ConvSchedule)| {
        let mut other = schedule.clone();
        change(&mut other);
        all.push(other);
    };
    let rows = problem.out_spatial.iter().rev().skip(1).product::<usize>().max(1) * problem.batch.max(1);
    let panels = problem.out_channels.div_ceil(2 * schedule.lanes).max(1);
    let most = if schedule.split == Split::Panels { panels } else { rows };
    match schedule.engine {
        ConvEngine::Winograd { outputs, tile_rows, tile_columns, words } => {
            let tiles = |d: usize| problem.out_spatial.get(d).map_or(1, |extent| extent.div_ceil(outputs).max(1));
            let (rows, columns) = (problem.batch.max(1) * tiles(0), tiles(1));
            for factor in FACTORS {
                let (tile_rows, tile_columns) = match tile_columns < columns {
                    true => (tile_rows, scaled(tile_columns, factor).min(columns)),
                    false => (scaled(tile_rows, factor).min(rows), tile_columns),
                };
                add(&|s| s.engine = ConvEngine::Winograd { outputs, tile_rows, tile_columns, words });
                add(&|s| s.block = scaled(s.block, factor).min(panels));
            }
        }
        ConvEngine::Direct | ConvEngine::Words(_) | ConvEngine::Shorts => {
            let words = matches!(schedule.engine, ConvEngine::Words(_));
            let one_tap = problem.kernel.iter().all(|extent| *extent == 1);
            if one_tap && !words {
                add(&|s| s.prefetch_input = !s.prefetch_input);
            }
            for factor in FACTORS {
                add(&|s| s.block = scaled(s.block, factor).min(most));
            }
            let splits = !words && problem.prologue.is_none();
            if splits && problem.input == ConvInput::Blocked {
                add(&|s| {
                    (s.split, s.block) = match s.split {
                        Split::Panels => (Split::Rows, rows.div_ceil(4)),
                        Split::Rows => (Split::Panels, panels),
                    };
                });
            }
        }
    }
    if problem.input == ConvInput::Blocked {
        add(&|s| s.prefetch_weights = !s.prefetch_weights);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_schedule_is_first_and_each_is_there_once() {
        let problem = GemmProblem::plain(1000, 512, 512);
        let own = GemmSchedule::choose(&problem, Products::F32, 16);
        let all = Driver::Gemm(problem, own.clone()).candidates();
        assert_eq!(all[0], DriverSchedule::Gemm(own));
        assert!(all.len() > 2, "{all:?}");
        for (i, schedule) in all.iter().enumerate() {
            assert!(!all[..i].contains(schedule), "{schedule}");
            let DriverSchedule::Gemm(schedule) = schedule else { panic!("{schedule}") };
            assert!(schedule.m_block % 14 == 0 && schedule.m_block > 0);
            assert_eq!((schedule.k_block, schedule.lanes), (4096, 16));
        }
    }

    #[test]
    fn a_product_of_one_tile_has_no_choice() {
        let problem = GemmProblem::plain(4, 512, 512);
        let own = GemmSchedule::choose(&problem, Products::F32, 16);
        assert_eq!(Driver::Gemm(problem, own).candidates().len(), 1);
    }
}
