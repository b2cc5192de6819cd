//! Chunks of a product whose operands are rounded to bf16.

use super::block::Chunk;
use super::plan::Target;
use crate::cpu::drivers::bf16::{FLOATS, Sums};
use egret_simd::MAX_ROWS;
use egret_simd::bf16::{Bf16Kernels, COLUMNS, DEPTH, Narrow, PAIRS, PairTile, ROWS};

/// Products in bf16, bound.
#[derive(Debug)]
pub(super) struct Bf16 {
    pub(super) unit: Bf16Kernels,
    /// Offsets of taps in a rounded row, and pairs of one.
    taps: Vec<usize>,
    row: usize,
}

impl Bf16 {
    pub(super) fn new(unit: Bf16Kernels, k: usize) -> Bf16 {
        let depth = k.div_ceil(DEPTH);
        Bf16 { unit, taps: (0..depth).map(|i| i * PAIRS).collect(), row: depth * PAIRS }
    }

    /// Floats of scratch for rounded rows, and a tile of sums behind them.
    pub(super) fn scratch(&self, rows: usize) -> usize {
        self.rounded_len(rows) + FLOATS
    }

    /// Pairs of rounded rows: tiles read whole halves.
    fn rounded_len(&self, rows: usize) -> usize {
        rows.next_multiple_of(ROWS) * self.row
    }
}

impl Chunk<'_> {
    /// Rows `m0..m1` of panels `p0..p1`.
    ///
    /// # Safety
    /// As for the plan; nobody else writes this part of C.
    pub(super) unsafe fn run_bf16(&self, bf16: &Bf16, (m0, m1): (usize, usize), (p0, p1): (usize, usize)) {
        let plan = self.plan;
        let rounded = self.worker.cast::<u32>();
        let acc = self.worker.wrapping_add(bf16.rounded_len(plan.m_block));
        // SAFETY: all offsets lie within operands and scratch, whose extents are the plan's.
        unsafe {
            for m in m0..m1 {
                let from = self.a().wrapping_add(m * plan.a_row);
                round_row(bf16, from, plan.a_col, plan.k, rounded.wrapping_add((m - m0) * bf16.row));
            }
            bf16.unit.enter(|unit| {
                for panel in p0..p1 {
                    let (column, width) = (panel * COLUMNS, plan.width());
                    let columns = (plan.n - column).min(width);
                    let vectors = columns.div_ceil(plan.lanes);
                    let packed = self.args.b.wrapping_add(plan.offset(self.item, |d| d.b));
                    let panel_len = bf16.row * COLUMNS;
                    let b = packed.cast::<u32>().wrapping_add(panel * panel_len);
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
                    let mut pairs = PairTile {
                        a: rounded,
                        a_row: bf16.row,
                        rows: 0,
                        taps: bf16.taps.as_ptr(),
                        tap_count: bf16.taps.len(),
                        b,
                        acc,
                        prefetch: b.wrapping_add(panel_len),
                        prefetch_lines: next.div_ceil((tiles * bf16.taps.len()).max(1)),
                    };
                    for t0 in (0..m1 - m0).step_by(ROWS) {
                        pairs.a = rounded.wrapping_add(t0 * bf16.row);
                        pairs.rows = ROWS.min(m1 - m0 - t0);
                        unit.tile(&pairs);
                        pairs.prefetch = pairs.prefetch.wrapping_add(pairs.prefetch_lines * pairs.tap_count * 16);
                        let mut at = 0;
                        while at < pairs.rows {
                            let count = (pairs.rows - at).min(plan.kernels.max_rows());
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

/// Rounds a row of A, zeros behind it to the end of its last tap.
///
/// # Safety
/// The row is readable, `to` writable for all its taps.
unsafe fn round_row(bf16: &Bf16, from: *const f32, step: usize, k: usize, to: *mut u32) {
    // SAFETY: the caller's.
    unsafe {
        let whole = if step == 1 { k / DEPTH } else { 0 };
        let vectors = Narrow { low: from, high: from.wrapping_add(DEPTH / 2), step: DEPTH, dst: to, count: whole };
        bf16.unit.narrow(&vectors);
        for tap in whole..bf16.taps.len() {
            let mut gathered = [0f32; DEPTH];
            for (i, x) in gathered.iter_mut().enumerate().take(k - tap * DEPTH) {
                *x = *from.add((tap * DEPTH + i) * step);
            }
            let (low, high) = (gathered.as_ptr(), gathered[DEPTH / 2..].as_ptr());
            bf16.unit.narrow(&Narrow { low, high, step: DEPTH, dst: to.add(tap * PAIRS), count: 1 });
        }
    }
}
