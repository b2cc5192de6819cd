//! Chunks of a product whose operands are narrowed to words.

use super::block::Chunk;
use super::element::Factor;
use super::plan::Target;
use crate::cpu::drivers::DriverError;
use crate::cpu::drivers::kernels::Kernels;
use crate::cpu::drivers::words::{SUMS, Sums, finishing, opened, unit};
use egret_program::driver::{Products, Words};
use egret_simd::words::{COLUMNS, Narrow, ROWS, WORDS, WordKernels, WordTile};
use egret_simd::{Isa, MAX_ROWS, TileKind};

/// Operands narrowed to words, bound.
#[derive(Debug)]
pub(super) struct Narrowed {
    unit: WordKernels,
    words: Words,
    /// Offsets of taps in a narrowed row, and words of one.
    taps: Vec<usize>,
    row: usize,
}

impl Narrowed {
    /// Sums of `k` products.
    ///
    /// # Errors
    /// On a processor without the unit.
    pub(super) fn new(words: Words, k: usize) -> Result<Narrowed, DriverError> {
        let depth = k.div_ceil(words.depth());
        Ok(Narrowed { unit: unit(words)?, words, taps: (0..depth).map(|i| i * WORDS).collect(), row: depth * WORDS })
    }

    /// Floats of scratch for narrowed rows, and a tile of sums behind them.
    pub(super) fn scratch(&self, rows: usize) -> usize {
        self.rows_len(rows) + SUMS
    }

    /// Words of narrowed rows: tiles read whole halves.
    fn rows_len(&self, rows: usize) -> usize {
        rows.next_multiple_of(ROWS) * self.row
    }

    /// Narrows a row of A, to the end of its last tap.
    ///
    /// # Safety
    /// The row is readable, `to` writable for all its taps.
    unsafe fn row(&self, from: *const f32, step: usize, k: usize, to: *mut u32) {
        let (depth, low) = (self.words.depth(), self.words.low());
        // SAFETY: the caller's.
        unsafe {
            let whole = if step == 1 { k / depth } else { 0 };
            let parts = |from: *const f32| std::array::from_fn(|part| from.wrapping_add(part * 16));
            self.unit.narrow(&Narrow { parts: parts(from), step: depth, low, dst: to, count: whole });
            for tap in whole..self.taps.len() {
                let mut gathered = [0f32; 64];
                for (i, x) in gathered.iter_mut().enumerate().take((k - tap * depth).min(depth)) {
                    *x = *from.add((tap * depth + i) * step);
                }
                let dst = to.add(tap * WORDS);
                self.unit.narrow(&Narrow { parts: parts(gathered.as_ptr()), step: depth, low, dst, count: 1 });
            }
        }
    }
}

impl Factor for f32 {
    type Narrowed = Narrowed;

    fn bind(
        products: Products,
        k: usize,
        isa: Isa,
        kind: TileKind,
    ) -> Result<(Kernels, Option<Narrowed>), DriverError> {
        match products {
            Products::F32 => Ok((Kernels::new(isa, kind)?, None)),
            Products::Shorts => Ok((Kernels::shorts(isa, kind)?, None)),
            Products::Words(words) => Ok((finishing(isa, words)?, Some(Narrowed::new(words, k)?))),
            Products::F64 => Err(DriverError::Problem("products of f64 in a plan of 32 bits")),
        }
    }

    fn scratch(narrowed: &Narrowed, rows: usize) -> usize {
        narrowed.scratch(rows)
    }

    unsafe fn run(chunk: &Chunk<'_, f32>, narrowed: &Narrowed, rows: (usize, usize), panels: (usize, usize)) {
        // SAFETY: the caller's.
        unsafe { chunk.run_words(narrowed, rows, panels) }
    }
}

impl Chunk<'_, f32> {
    /// Rows `m0..m1` of panels `p0..p1`.
    ///
    /// # Safety
    /// As for the plan; nobody else writes this part of C.
    unsafe fn run_words(&self, narrowed: &Narrowed, (m0, m1): (usize, usize), (p0, p1): (usize, usize)) {
        let plan = self.plan;
        let rows = self.worker.cast::<u32>();
        let acc = self.worker.wrapping_add(narrowed.rows_len(plan.m_block));
        // SAFETY: all offsets lie within operands and scratch, whose extents are the plan's.
        unsafe {
            for m in m0..m1 {
                let from = self.a().wrapping_add(m * plan.a_row);
                narrowed.row(from, plan.a_col, plan.k, rows.wrapping_add((m - m0) * narrowed.row));
            }
            narrowed.unit.enter(|unit| {
                for panel in p0..p1 {
                    let (column, width) = (panel * COLUMNS, plan.width());
                    let columns = (plan.n - column).min(width);
                    let vectors = columns.div_ceil(plan.lanes);
                    let packed = self.args.b.wrapping_add(plan.offset(self.item, |d| d.b));
                    let panel_len = narrowed.words.panel(narrowed.taps.len());
                    let (start, b) = opened(packed.cast::<u32>().wrapping_add(panel * panel_len), narrowed.words);
                    let staged = self.worker.wrapping_add(self.layout.sums);
                    let (c, c_row) = self.target(column, m0, staged);
                    let c_rows: [usize; MAX_ROWS] = std::array::from_fn(|m| m * c_row);
                    let sums = Sums::new(plan.isa);
                    let mut tile = sums.tile();
                    tile.c_rows = c_rows.as_ptr();
                    tile.last_lanes = columns - (vectors - 1) * plan.lanes;
                    let mut bias_tail = [0f32; 32];
                    self.direct_epilogue(&mut tile, column, columns, &mut bias_tail);
                    let residual_rows: [usize; MAX_ROWS] =
                        std::array::from_fn(|m| m * self.residual().map_or(0, |r| r.row));
                    tile.residual_rows = residual_rows.as_ptr();
                    let tiles = (m1 - m0).div_ceil(ROWS);
                    let next = if panel + 1 < p1 { panel_len / 16 } else { 0 };
                    let mut words = WordTile {
                        a: rows,
                        a_row: narrowed.row,
                        rows: 0,
                        taps: narrowed.taps.as_ptr(),
                        tap_count: narrowed.taps.len(),
                        b,
                        start,
                        acc,
                        prefetch: b.wrapping_add(panel_len),
                        prefetch_lines: next.div_ceil((tiles * narrowed.taps.len()).max(1)),
                    };
                    for t0 in (0..m1 - m0).step_by(ROWS) {
                        words.a = rows.wrapping_add(t0 * narrowed.row);
                        words.rows = ROWS.min(m1 - m0 - t0);
                        unit.tile(&words);
                        words.prefetch = words.prefetch.wrapping_add(words.prefetch_lines * words.tap_count * 16);
                        let mut at = 0;
                        while at < words.rows {
                            let count = (words.rows - at).min(plan.kernels.max_rows());
                            tile.partial = acc.wrapping_add(at * COLUMNS);
                            tile.c = c.wrapping_add((t0 + at) * c_row);
                            self.row_operands(&mut tile, m0 + t0 + at, column);
                            plan.kernels.run(&tile, count, vectors);
                            at += count;
                        }
                    }
                    self.leave(staged, (m0, m1 - m0), (column, columns));
                }
            });
            if plan.target == Target::OwnRows {
                self.finish(m0, m1);
            }
        }
    }
}
