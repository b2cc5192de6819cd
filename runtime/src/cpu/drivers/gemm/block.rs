//! One chunk of a product: a block of rows by some column panels of one batch item.

use super::Operands;
use super::element::Factor;
use super::plan::{BSource, Plan, RUN, Target, WorkerLayout};
use crate::cpu::drivers::epilogue::{MAX_BATCH, MAX_VIEWS, Strides, set_activation};
use crate::cpu::drivers::{ScratchPool, part};
use egret_program::driver::Bias;
use egret_program::driver::hook::View2;
use egret_simd::{MAX_ROWS, Tile};

/// Runs of steps that a streamed panel is asked for in advance.
const STREAM_AHEAD: usize = 2;

/// Steps of a transposed A that are packed for one tile after the other.
const PACKED_AT_ONCE: usize = 32;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

pub(super) struct Chunk<'a, E: Factor> {
    pub(super) plan: &'a Plan<E>,
    pub(super) args: &'a Operands<'a, E>,
    pub(super) item: usize,
    index: [usize; MAX_BATCH],
    pub(super) layout: WorkerLayout,
    pub(super) worker: *mut E,
    shared: *mut E,
}

impl<'a, E: Factor> Chunk<'a, E> {
    pub(super) fn new(
        plan: &'a Plan<E>,
        args: &'a Operands<'a, E>,
        item: usize,
        scratch: &ScratchPool,
        worker: usize,
    ) -> Chunk<'a, E> {
        Chunk {
            plan,
            args,
            item,
            index: plan.batch_index(item),
            layout: plan.worker_layout(),
            worker: scratch.worker(worker).cast(),
            shared: scratch.shared().cast(),
        }
    }

    /// Rows `m0..m1` of panels `p0..p1`.
    ///
    /// # Safety
    /// As for the plan; nobody else writes this part of C.
    pub(super) unsafe fn run(&self, (m0, m1): (usize, usize), (p0, p1): (usize, usize)) {
        let plan = self.plan;
        if let Some(words) = &plan.words {
            // SAFETY: the caller's.
            return unsafe { E::run(self, words, (m0, m1), (p0, p1)) };
        }
        let tiles = (m1 - m0).div_ceil(plan.kernels.max_rows());
        // SAFETY: all offsets lie within operands and scratch, whose extents are the plan's.
        unsafe {
            if plan.packed_a {
                self.pack_a(m0, m1, tiles);
            }
            for panel in p0..p1 {
                self.panel(panel, (m0, m1), tiles, panel + 1 < p1);
            }
            if plan.target == Target::OwnRows {
                self.finish(m0, m1);
            }
        }
    }

    pub(super) fn a(&self) -> *const E {
        self.args.a.wrapping_add(self.plan.offset(self.item, |d| d.a))
    }

    /// Tiles of rows one behind the other, each `[k][rows]`.
    unsafe fn pack_a(&self, m0: usize, m1: usize, tiles: usize) {
        let plan = self.plan;
        // of a transposed A all tiles take their part of a few rows, while these are in the first-level cache
        let step = if plan.a_row == 1 { PACKED_AT_ONCE } else { plan.k.max(1) };
        for k0 in (0..plan.k).step_by(step) {
            let steps = step.min(plan.k - k0);
            for i in 0..tiles {
                let (t0, t1) = part(m1 - m0, i, tiles);
                let rows = t1 - t0;
                let from = self.a().wrapping_add((m0 + t0) * plan.a_row + k0 * plan.a_col);
                let to = self.worker.wrapping_add(t0 * plan.k + k0 * rows);
                // SAFETY: see `run`.
                unsafe { plan.packer.panel(to, rows, from, plan.a_col, plan.a_row, steps, rows) };
            }
        }
    }

    /// A panel of B and the distance of its rows.
    unsafe fn b(&self, panel: usize) -> (*const E, usize) {
        let plan = self.plan;
        let width = plan.width();
        let b = self.args.b.wrapping_add(plan.offset(self.item, |d| d.b));
        let whole = (panel + 1) * width <= plan.n;
        match plan.b_source {
            BSource::Packed => (b.wrapping_add(panel * plan.k * width), width),
            BSource::Shared => (self.shared.wrapping_add(panel * plan.k * width), width),
            BSource::Raw if whole => (b.wrapping_add(panel * width), plan.b_row),
            BSource::Raw | BSource::Local => {
                let to = self.worker.wrapping_add(self.layout.b);
                // SAFETY: see `run`.
                unsafe { plan.pack_panel(b, panel, to) };
                (to, width)
            }
        }
    }

    unsafe fn panel(&self, panel: usize, (m0, m1): (usize, usize), tiles: usize, more: bool) {
        let plan = self.plan;
        let (width, lanes) = (plan.width(), plan.lanes);
        let column = panel * width;
        let columns = (plan.n - column).min(width);
        let vectors = columns.div_ceil(lanes);
        // SAFETY: see `run`.
        let (b, b_step) = unsafe { self.b(panel) };
        let sums = self.worker.wrapping_add(self.layout.sums);
        let sum_rows: [usize; MAX_ROWS] = std::array::from_fn(|m| m * width);
        let a_rows: [usize; MAX_ROWS] = std::array::from_fn(|m| m * plan.a_row);
        let (c, c_row) = self.target(column, m0, sums);
        let c_rows: [usize; MAX_ROWS] = std::array::from_fn(|m| m * c_row);
        let mut residual_rows = [0; MAX_ROWS];

        let mut tile = Tile::new(plan.isa);
        tile.rows = a_rows.as_ptr();
        tile.a_step = plan.a_col;
        tile.run = RUN;
        tile.b_step = b_step;
        tile.partial_rows = sum_rows.as_ptr();
        let blocks = plan.k.div_ceil(plan.k_block).max(1);
        let mut bias_tail = [E::ZERO; 32];
        let in_panels = matches!(plan.b_source, BSource::Packed | BSource::Shared);
        let line = LINE_BYTES / size_of::<E>();
        let mut lines_left = 0;
        let mut per_tap = 0;
        if in_panels && tiles == 1 {
            // The panel itself is read once, from memory: a short way ahead is enough, and runs into the next panel.
            tile.prefetch = b.wrapping_add(STREAM_AHEAD * RUN * width);
            per_tap = RUN * width / line;
            lines_left = usize::MAX;
        } else if in_panels && more {
            tile.prefetch = b.wrapping_add(plan.k * width);
            lines_left = (plan.k * width).div_ceil(line);
            per_tap = lines_left.div_ceil((plan.k.div_ceil(RUN) * tiles).max(1));
        }

        for block in 0..blocks {
            let (k0, k1) = (block * plan.k_block, ((block + 1) * plan.k_block).min(plan.k));
            let last = block + 1 == blocks;
            tile.tap_count = (k1 - k0).div_ceil(RUN);
            tile.last_run = (k1 - k0) - tile.tap_count.saturating_sub(1) * RUN;
            tile.b = b.wrapping_add(k0 * b_step);
            tile.last_lanes = if last { columns - (vectors - 1) * lanes } else { lanes };
            if last {
                self.direct_epilogue(&mut tile, column, columns, &mut bias_tail);
                if let Some(r) = self.residual() {
                    residual_rows = std::array::from_fn(|m| m * r.row);
                }
                tile.residual_rows = residual_rows.as_ptr();
            }
            tile.c_rows = if last { c_rows.as_ptr() } else { sum_rows.as_ptr() };
            for i in 0..tiles {
                let (t0, t1) = part(m1 - m0, i, tiles);
                let rows = t1 - t0;
                if plan.packed_a {
                    tile.a = self.worker.wrapping_add(t0 * plan.k + k0 * rows);
                    tile.taps = plan.taps[rows].as_ptr();
                } else {
                    tile.a = self.a().wrapping_add((m0 + t0) * plan.a_row + k0 * plan.a_col);
                    tile.taps = plan.taps[0].as_ptr();
                }
                let partial = sums.wrapping_add(t0 * width);
                tile.partial = if block > 0 { partial } else { std::ptr::null() };
                tile.c = if last { c.wrapping_add(t0 * c_row) } else { partial };
                if last {
                    self.row_operands(&mut tile, m0 + t0, column);
                }
                tile.prefetch_lines = per_tap.min(lines_left);
                // SAFETY: see `run`.
                unsafe { plan.kernels.run(&tile, rows, vectors) };
                let asked = tile.prefetch_lines * tile.tap_count;
                tile.prefetch = tile.prefetch.wrapping_add(asked * line);
                lines_left = lines_left.saturating_sub(asked);
            }
        }
        // SAFETY: see `run`.
        unsafe { self.leave(sums, (m0, m1 - m0), (column, columns)) };
    }

    /// Takes the staged sums of a panel to where they belong, as far as they are staged.
    ///
    /// # Safety
    /// See `run`.
    pub(super) unsafe fn leave(&self, sums: *mut E, (m0, rows): (usize, usize), (column, columns): (usize, usize)) {
        let plan = self.plan;
        // SAFETY: the caller's.
        unsafe {
            match plan.target {
                Target::Hook => self.call_hook(sums, (m0, rows), (column, columns)),
                Target::Scatter => {
                    let c = self.args.c.wrapping_add(plan.offset(self.item, |d| d.c));
                    for i in 0..rows {
                        for j in 0..columns {
                            let at = (m0 + i) * plan.c_row + (column + j) * plan.c_col;
                            *c.add(at) = *sums.add(i * plan.width() + j);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Where row `m0` of a panel goes, and the distance of rows there.
    pub(super) fn target(&self, column: usize, m0: usize, sums: *mut E) -> (*mut E, usize) {
        let plan = self.plan;
        let padded = plan.panels() * plan.width();
        match plan.target {
            Target::Direct => {
                let c = plan.offset(self.item, |d| d.c) + m0 * plan.c_row + column;
                (self.args.c.wrapping_add(c), plan.c_row)
            }
            Target::Scatter | Target::Hook => (sums, plan.width()),
            Target::OwnRows => (self.worker.wrapping_add(self.layout.rows + column), padded),
            Target::SharedRows => (self.shared.wrapping_add(plan.shared_b + m0 * padded + column), padded),
        }
    }

    pub(super) fn residual(&self) -> Option<&Strides> {
        self.plan.direct.as_ref().and_then(|d| d.residual.as_ref())
    }

    /// What the last block of k adds, the same for all tiles of a panel.
    pub(super) fn direct_epilogue(&self, tile: &mut Tile<E>, column: usize, columns: usize, tail: &mut [E; 32]) {
        let Some(direct) = &self.plan.direct else {
            return;
        };
        set_activation(tile, direct.activation);
        if direct.bias == Some(Bias::PerColumn) {
            let bias = self.args.rest.extras[0].cast_const().cast::<E>().wrapping_add(column);
            tile.bias = bias;
            if columns < self.plan.width() {
                // Whole vectors would be read beyond the end of the operand.
                // SAFETY: these columns exist.
                unsafe { std::ptr::copy_nonoverlapping(bias, tail.as_mut_ptr(), columns) };
                tile.bias = tail.as_ptr();
            }
        }
    }

    /// What depends on the tile's first row.
    pub(super) fn row_operands(&self, tile: &mut Tile<E>, row: usize, column: usize) {
        let Some(direct) = &self.plan.direct else {
            return;
        };
        if direct.bias == Some(Bias::PerRow) {
            tile.row_bias = self.args.rest.extras[0].cast_const().cast::<E>().wrapping_add(row);
        }
        if let Some(r) = &direct.residual {
            let base = self.args.rest.extras[usize::from(direct.bias.is_some())];
            tile.residual = r.view(base, &self.index, row, column).ptr.cast();
        }
    }

    unsafe fn call_hook(&self, sums: *mut E, (row, rows): (usize, usize), (column, columns): (usize, usize)) {
        let Some(hook) = self.args.rest.hook else { return };
        let acc = View2 { ptr: sums.cast(), row: self.plan.width() as i64, col: 1 };
        let extras = self.views(&self.plan.hook_extras, self.args.rest.extras, row, column);
        let outs = self.views(&self.plan.hook_outs, self.args.rest.outs, row, column);
        // SAFETY: the views lie within the operands; the hook's signature is the ABI's.
        unsafe { hook(&acc, rows as i64, columns as i64, extras.as_ptr(), outs.as_ptr()) };
    }

    /// Calls the finisher for complete rows.
    ///
    /// # Safety
    /// As for the plan; all tiles of these rows are in scratch.
    pub(super) unsafe fn finish(&self, m0: usize, m1: usize) {
        let Some(finisher) = self.args.rest.finisher else {
            return;
        };
        let plan = self.plan;
        let (rows, row) = match plan.target {
            Target::OwnRows => self.target(0, 0, std::ptr::null_mut()),
            _ => self.target(0, m0, std::ptr::null_mut()),
        };
        let acc = View2 { ptr: rows.cast(), row: row as i64, col: 1 };
        let extras = self.views(&plan.hook_extras, self.args.rest.finisher_extras, m0, 0);
        let outs = self.views(&plan.hook_outs, self.args.rest.outs, m0, 0);
        // SAFETY: the views lie within the operands; the finisher's signature is the ABI's.
        unsafe {
            finisher(&acc, (m1 - m0) as i64, plan.n as i64, extras.as_ptr(), outs.as_ptr());
        }
    }

    fn views(&self, strides: &[Strides], bases: &[*mut u8], row: usize, column: usize) -> [View2; MAX_VIEWS] {
        let mut views = [View2::NULL; MAX_VIEWS];
        for ((to, strides), base) in views.iter_mut().zip(strides).zip(bases) {
            *to = strides.view(*base, &self.index, row, column);
        }
        views
    }
}
