//! What a micro-kernel reaches on panels that lie in the first-level cache.

use crate::Element;
use crate::tile::{MicroKernel, Tile, TileKind, tile_kernel};
use crate::words::{COLUMNS, ROWS, WORDS, WordTile, WordUnit};
use std::time::{Duration, Instant};

/// Bytes of both panels: half of the smallest first-level cache around.
const PANELS: usize = 16 << 10;
/// Steps between two taps.
const RUN: usize = 8;

/// Rate of a kernel at its greatest height in GFLOP/s, over `span`; `None` if the host lacks the instruction set.
pub fn kernel_rate(kernel: &MicroKernel, span: Duration) -> Option<f64> {
    if kernel.bytes == size_of::<f64>() { rate::<f64>(kernel, span) } else { rate::<f32>(kernel, span) }
}

fn rate<E: Element>(kernel: &MicroKernel, span: Duration) -> Option<f64> {
    let (rows, vectors, lanes) = (kernel.rows, kernel.vectors, kernel.lanes);
    let run = tile_kernel::<E>(kernel.isa, kernel.kind, rows, vectors)?;
    let row_len = if kernel.kind == TileKind::Lanes { lanes } else { 1 };
    let steps = PANELS / (kernel.bytes * (rows * row_len + vectors * lanes)) / RUN * RUN;
    let a = vec![E::from(0.5); steps * rows * row_len + lanes];
    let b = vec![E::from(0.25); steps * vectors * lanes];
    let mut c = vec![E::ZERO; rows * vectors * lanes];
    let offsets: Vec<usize> = (0..rows).map(|row| row * row_len).collect();
    let taps: Vec<usize> = (0..steps / RUN).map(|tap| tap * RUN * rows * row_len).collect();
    let c_rows: Vec<usize> = (0..rows).map(|row| row * vectors * lanes).collect();
    let mut tile = Tile::new(kernel.isa);
    (tile.a, tile.b, tile.c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    (tile.rows, tile.taps, tile.c_rows) = (offsets.as_ptr(), taps.as_ptr(), c_rows.as_ptr());
    (tile.tap_count, tile.run, tile.last_run, tile.a_step) = (taps.len(), RUN, RUN, rows * row_len);
    (tile.b_step, tile.b_vector, tile.c_vector) = (vectors * lanes, lanes, lanes);
    // SAFETY: operands are as long as rows, steps and vectors say.
    let tiles = tiles_a_second(span, &mut || unsafe { run(&tile) });
    Some((2 * steps * rows * vectors * lanes) as f64 * tiles / 1e9)
}

/// Rate of a unit's tiles in 10⁹ operations a second, over `span`; `None` if the host lacks it.
pub fn word_rate(unit: WordUnit, span: Duration) -> Option<f64> {
    let kernels = unit.kernels()?;
    // vectors hold 14 rows, matrices 16
    let rows = if unit == WordUnit::Bf16Matrices { ROWS } else { 28 };
    let taps: Vec<usize> = (0..PANELS / (4 * WORDS * (rows + COLUMNS))).map(|tap| tap * rows * WORDS).collect();
    let a = vec![0u32; taps.len() * rows * WORDS];
    let b = vec![0u32; taps.len() * WORDS * COLUMNS];
    let mut acc = vec![0f32; ROWS * COLUMNS];
    let tile = WordTile {
        a: a.as_ptr(),
        a_row: WORDS,
        rows,
        taps: taps.as_ptr(),
        tap_count: taps.len(),
        b: b.as_ptr(),
        start: std::ptr::null(),
        acc: acc.as_mut_ptr(),
        prefetch: b.as_ptr(),
        prefetch_lines: 0,
    };
    // SAFETY: operands are as long as rows and taps say.
    let tiles = kernels.enter(|unit| tiles_a_second(span, &mut || unsafe { unit.tile(&tile) }));
    Some((2 * rows * COLUMNS * unit.depth() * taps.len()) as f64 * tiles / 1e9)
}

fn tiles_a_second(span: Duration, tile: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    let mut tiles = 0usize;
    loop {
        for _ in 0..64 {
            tile();
        }
        tiles += 64;
        let elapsed = start.elapsed();
        if elapsed >= span {
            return tiles as f64 / elapsed.as_secs_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_that_is_here_has_a_rate() {
        for kernel in crate::MICRO_KERNELS {
            let rate = kernel_rate(kernel, Duration::ZERO);
            assert_eq!(rate.is_some(), kernel.isa.is_supported(), "{}", kernel.name);
            assert!(rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()), "{}", kernel.name);
        }
        for unit in WordUnit::ALL {
            let rate = word_rate(unit, Duration::ZERO);
            assert_eq!(rate.is_some(), unit.kernels().is_some(), "{unit:?}");
            assert!(rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()), "{unit:?}");
        }
    }
}
