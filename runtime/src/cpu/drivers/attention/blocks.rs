//! Products and masks over blocks `[rows][2 L]`.

use crate::cpu::drivers::DriverError;
use crate::cpu::drivers::kernels::{Kernels, check_isa};
use crate::cpu::drivers::part;
use egret_program::driver::{AttentionProblem, Mask, Score};
use egret_simd::pack::PanelPacker;
use egret_simd::{Isa, MAX_ROWS, Strips, Tile, TileKind, TransposeFn, strips, transpose};

/// The code of one instruction set.
#[derive(Debug)]
pub(super) struct Blocks {
    isa: Isa,
    kernels: Kernels,
    packer: PanelPacker,
    pub(super) strips: Strips,
    pub(super) transpose: TransposeFn,
    /// Columns of a block, `2 L`.
    pub(super) width: usize,
}

static NO_OFFSET: [usize; 1] = [0];

impl Blocks {
    pub(super) fn new(isa: Isa, scheduled: usize) -> Result<Blocks, DriverError> {
        check_isa(isa, scheduled)?;
        let missing = DriverError::Unsupported("this instruction set");
        Ok(Blocks {
            isa,
            kernels: Kernels::new(isa, TileKind::Table)?,
            packer: PanelPacker::new(isa).ok_or(missing.clone())?,
            strips: strips(isa).ok_or(missing.clone())?,
            transpose: transpose(isa).ok_or(missing)?,
            width: 2 * isa.lanes_f32(),
        })
    }

    /// `to[channels][W] = scale * rows^T`, zero for the columns from `count` on.
    pub(super) unsafe fn pack(
        &self,
        to: *mut f32,
        from: *const f32,
        row: usize,
        channels: usize,
        count: usize,
        scale: f32,
    ) {
        // SAFETY: the caller's.
        unsafe {
            self.packer.panel(to, self.width, from, 1, row, channels, count);
            if scale != 1.0 {
                (self.strips.scale)(to, channels * self.width, scale);
            }
        }
    }

    /// `to[i][W] = sum over c < channels of a[i * row + c] * b[c][W]` for `i < rows`.
    pub(super) unsafe fn dots(
        &self,
        to: *mut f32,
        a: *const f32,
        row: usize,
        rows: usize,
        b: *const f32,
        channels: usize,
    ) {
        let offsets = std::array::from_fn(|m| m * row);
        let mut tile = self.tile(b, channels, 1);
        // SAFETY: the caller's.
        unsafe { self.product(&mut tile, to, a, row, rows, &offsets, false) }
    }

    /// `to[c][W] (+)= sum over i < rows of a[i * row + c] * b[i][W]` for `c < channels`.
    pub(super) unsafe fn sums(
        &self,
        to: *mut f32,
        a: *const f32,
        row: usize,
        rows: usize,
        b: *const f32,
        channels: usize,
        again: bool,
    ) {
        let offsets = std::array::from_fn(|m| m);
        let mut tile = self.tile(b, rows, row);
        // SAFETY: the caller's.
        unsafe { self.product(&mut tile, to, a, 1, channels, &offsets, again) }
    }

    fn tile(&self, b: *const f32, steps: usize, a_step: usize) -> Tile {
        let mut tile = Tile::new(self.isa);
        tile.taps = NO_OFFSET.as_ptr();
        (tile.tap_count, tile.last_run, tile.a_step) = (1, steps, a_step);
        tile.b = b;
        tile
    }

    unsafe fn product(
        &self,
        tile: &mut Tile,
        to: *mut f32,
        a: *const f32,
        row: usize,
        rows: usize,
        offsets: &[usize; MAX_ROWS],
        again: bool,
    ) {
        let c_rows: [usize; MAX_ROWS] = std::array::from_fn(|m| m * self.width);
        tile.rows = offsets.as_ptr();
        tile.c_rows = c_rows.as_ptr();
        tile.partial_rows = c_rows.as_ptr();
        let parts = rows.div_ceil(self.kernels.max_rows());
        for i in 0..parts {
            let (m0, m1) = part(rows, i, parts);
            tile.a = a.wrapping_add(m0 * row);
            tile.c = to.wrapping_add(m0 * self.width);
            tile.partial = if again { tile.c } else { std::ptr::null() };
            // SAFETY: the caller's.
            unsafe { self.kernels.run(tile, m1 - m0, 2) };
        }
    }

    /// Adds `mask` (at the block's first row and column) to `s[rows][W]`; only `count` columns exist. `tmp` is as large as
    /// the block.
    pub(super) unsafe fn add_mask(
        &self,
        s: *mut f32,
        tmp: *mut f32,
        mask: *const f32,
        (row, col): (usize, usize),
        (rows, count): (usize, usize),
    ) {
        // SAFETY: the caller's; elements of the mask that are read exist.
        unsafe {
            if col == 1 {
                for i in 0..rows {
                    (self.strips.add)(s.add(i * self.width), mask.add(i * row), count);
                }
            } else if row == 1 {
                (self.transpose)(tmp, self.width, mask, col, count, rows);
                for i in 0..rows {
                    let at = i * self.width;
                    (self.strips.add)(s.add(at), tmp.add(at), count);
                }
            } else {
                for i in 0..rows {
                    for j in 0..count {
                        *s.add(i * self.width + j) += *mask.add(i * row + j * col);
                    }
                }
            }
        }
    }
}

/// The numbers of a problem that both passes check.
pub(super) fn check(p: &AttentionProblem) -> Result<(), DriverError> {
    if p.kv_heads == 0 || p.heads % p.kv_heads != 0 {
        return Err(DriverError::Problem("key-value heads must divide the query heads"));
    }
    Ok(())
}

/// Mask and causal offset of a plain score.
pub(super) fn plain(score: &Score) -> (f32, Option<&Mask>, Option<usize>) {
    match score {
        Score::Plain { scale, mask, causal } => (*scale, mask.as_ref(), *causal),
        Score::Hook { .. } => (1.0, None, None),
    }
}

/// Sets -inf in `s[rows][W]` where the column is in `from(row)..to(row)`.
pub(super) unsafe fn exclude(s: *mut f32, width: usize, rows: usize, range: impl Fn(usize) -> (usize, usize)) {
    for i in 0..rows {
        let (from, to) = range(i);
        for j in from.min(width)..to.min(width) {
            // SAFETY: within the block.
            unsafe { *s.add(i * width + j) = f32::NEG_INFINITY };
        }
    }
}
