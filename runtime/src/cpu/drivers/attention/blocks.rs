//! Products and masks over blocks `[rows][2 L]`.

use crate::cpu::drivers::DriverError;
use crate::cpu::drivers::epilogue::MAX_VIEWS;
use crate::cpu::drivers::kernels::{Kernels, check_isa};
use crate::cpu::drivers::part;
use egret_program::driver::{AttentionOperand, AttentionProblem, Mask, Score};
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

    /// `to[i * to_row + c] (+)= sum over j < count of a[i][j] * b[j * b_row + c]` for `i < rows` and `c < channels`, which are
    /// whole vectors; `a` is a block.
    pub(super) unsafe fn spread(
        &self,
        (to, to_row): (*mut f32, usize),
        a: *const f32,
        (rows, count): (usize, usize),
        (b, b_row): (*const f32, usize),
        channels: usize,
        again: bool,
    ) {
        let offsets: [usize; MAX_ROWS] = std::array::from_fn(|m| m * self.width);
        let c_rows: [usize; MAX_ROWS] = std::array::from_fn(|m| m * to_row);
        let lanes = self.width / 2;
        let parts = rows.div_ceil(self.kernels.max_rows());
        for column in (0..channels).step_by(self.width) {
            let vectors = (channels - column).min(self.width) / lanes;
            let mut tile = self.tile(b.wrapping_add(column), count, 1);
            tile.b_step = b_row;
            (tile.rows, tile.c_rows, tile.partial_rows) = (offsets.as_ptr(), c_rows.as_ptr(), c_rows.as_ptr());
            for i in 0..parts {
                let (m0, m1) = part(rows, i, parts);
                tile.a = a.wrapping_add(m0 * self.width);
                tile.c = to.wrapping_add(m0 * to_row + column);
                tile.partial = if again { tile.c } else { std::ptr::null() };
                // SAFETY: the caller's.
                unsafe { self.kernels.run(&tile, m1 - m0, vectors) };
            }
        }
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

    /// Sets -inf in `s[rows][W]` where `truth` (at the block's first row and column) is false; only `count` columns exist.
    pub(super) unsafe fn mask_out(
        &self,
        s: *mut f32,
        truth: *const u8,
        (row, col): (usize, usize),
        (rows, count): (usize, usize),
    ) {
        for i in 0..rows {
            for j in 0..count {
                // SAFETY: within the block; elements of the mask that are read exist.
                unsafe {
                    let at = s.add(i * self.width + j);
                    *at = if *truth.add(i * row + j * col) != 0 { *at } else { f32::NEG_INFINITY };
                }
            }
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

/// Most outer axes of a problem.
pub(super) const MAX_OUTER: usize = 8;

/// An index of the outer axes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit([usize; MAX_OUTER]);

impl Unit {
    /// The `n`th index in row-major order.
    pub(super) fn new(extents: &[usize], mut n: usize) -> Unit {
        let mut index = [0; MAX_OUTER];
        for (at, extent) in index.iter_mut().zip(extents).rev() {
            (*at, n) = (n % extent, n / extent);
        }
        Unit(index)
    }

    /// Elements from the first to this one of an operand with these strides.
    pub(super) fn offset(&self, strides: &[usize]) -> usize {
        self.0.iter().zip(strides).map(|(i, stride)| i * stride).sum()
    }

    /// Elements to a row of an operand.
    pub(super) fn row(&self, operand: &AttentionOperand, row: usize) -> usize {
        self.offset(&operand.outer) + row * operand.row
    }

    /// Elements to a query and key of an operand of the scores.
    pub(super) fn score(&self, mask: &Mask, query: usize, key: usize) -> usize {
        self.offset(&mask.outer) + query * mask.query + key * mask.key
    }
}

/// The numbers of a problem that both passes check.
pub(super) fn check(p: &AttentionProblem) -> Result<(), DriverError> {
    if p.outer.len() > MAX_OUTER {
        return Err(DriverError::Unsupported("attention over more than 8 outer axes"));
    }
    if p.shared > p.outer.len() {
        return Err(DriverError::Problem("more axes are shared than there are"));
    }
    let masks = match &p.score {
        Score::Plain { mask, truth, .. } => mask.iter().chain(truth).collect::<Vec<_>>(),
        Score::Hook { extras, element_bytes } => {
            if extras.len() >= MAX_VIEWS {
                return Err(DriverError::Unsupported("more than 31 extra operands"));
            }
            if extras.len() != element_bytes.len() {
                return Err(DriverError::Problem("a hook needs the element size of each operand"));
            }
            if extras.iter().any(|e| e.key > 1) {
                return Err(DriverError::Unsupported("a score operand whose key stride is above 1"));
            }
            extras.iter().collect()
        }
    };
    let operands = [&p.q, &p.k, &p.v, &p.o].into_iter().chain(&p.lse).map(|o| o.outer.len());
    if operands.chain(masks.iter().map(|m| m.outer.len())).any(|rank| rank != p.outer.len()) {
        return Err(DriverError::Problem("an operand has not one stride for each outer axis"));
    }
    Ok(())
}

/// Scale and masks of a plain score: additive, then boolean.
pub(super) fn plain(score: &Score) -> (f32, Option<&Mask>, Option<&Mask>) {
    match score {
        Score::Plain { scale, mask, truth } => (*scale, mask.as_ref(), truth.as_ref()),
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
