//! Convolutions that map what they read: blocks of rows go through the prologue into scratch, with zeros for the padding,
//! and the direct nest reads that. A depthwise one reads one block of channels at a time.

use super::ConvArgs;
use super::direct::{Direct, Nest};
use super::geometry::{Edges, Grid, Shape, Surface, TapList, points};
use super::hooked::Lattice;
use crate::cpu::drivers::channels::Takes;
use crate::cpu::drivers::epilogue::{MAX_VIEWS, clamp_of};
use crate::cpu::drivers::{DriverError, ScratchNeed, ScratchPool, Spread, chunk_count, part};
use crate::cpu::team::Team;
use egret_program::driver::hook::{EpilogueFn, View2};
use egret_program::driver::{ConvForm, ConvProblem, ConvSchedule, Prologue};
use egret_simd::affine::{AffineFn, AffineRows, affine_rows};
use egret_simd::channels::Source;
use egret_simd::pack::input_segments;
use egret_simd::{Isa, MAX_ROWS};
use std::ops::Range;

/// The most lanes of a vector.
const MAX_LANES: usize = 16;

#[derive(Debug)]
enum Map {
    Affine { kernel: AffineFn, scale: bool, shift: bool, clamp: Option<(f32, f32)> },
    Hook { by_channel: Vec<bool>, element_bytes: Vec<u8> },
    Taken(Takes),
}

#[derive(Debug)]
pub(super) struct MappedConv {
    pub(super) direct: Direct,
    map: Map,
    lanes: usize,
    is_depthwise: bool,
    /// x, without its halo.
    read: Surface,
    channels: usize,
    height: usize,
    width: usize,
    pad: [usize; 2],
    /// Input rows from one output row to the next.
    stride: usize,
    /// Rows under a window.
    reach: usize,
    /// Blocks of channels in the scratch.
    held: usize,
    /// Rows and pixels in a row of the scratch.
    copy: [usize; 2],
    /// Output rows in a block, at most; a multiple of those in a tile.
    block: usize,
    out_rows: usize,
    batch: usize,
}

/// What a block of output rows reads.
struct Window {
    /// The first row of the image.
    first: usize,
    /// Rows of the scratch; those of the image are `above..inside`.
    rows: usize,
    above: usize,
    inside: usize,
    /// Pixels before those of the image, and how many these are.
    before: usize,
    pixels: usize,
}

impl MappedConv {
    pub(super) fn new(
        p: &ConvProblem,
        prologue: &Prologue,
        schedule: &ConvSchedule,
        isa: Isa,
    ) -> Result<MappedConv, DriverError> {
        let depthwise = p.is_depthwise();
        if p.form != ConvForm::Forward || p.groups != 1 && !depthwise || p.in_spatial.len() > 2 {
            return Err(DriverError::Unsupported("prologues of gradients, of groups or of three spatial dims"));
        }
        let map = match prologue {
            Prologue::Affine { scale, shift, activation } => {
                let kernel = affine_rows(isa).ok_or(DriverError::Unsupported("an instruction set of another host"))?;
                Map::Affine { kernel, scale: *scale, shift: *shift, clamp: clamp_of(*activation) }
            }
            Prologue::Hook { by_channel, element_bytes } => {
                if by_channel.len() > MAX_VIEWS || by_channel.len() != element_bytes.len() {
                    return Err(DriverError::Problem("a prologue's operands are too many, or have no element size"));
                }
                Map::Hook { by_channel: by_channel.clone(), element_bytes: element_bytes.clone() }
            }
            Prologue::Taken { of, channels } => {
                if channels.len() != p.in_channels {
                    return Err(DriverError::Problem("a prologue takes other than the channels of the convolution"));
                }
                Map::Taken(Takes::new(channels.iter().map(|channel| (0, *channel)), &[*of as usize], isa)?)
            }
        };
        let shape = Shape::new(p)?;
        let lanes = isa.lanes_f32();
        let reach = |d: usize| (shape.kernel[d] - 1) * shape.dilation[d] + 1;
        let extent = |d: usize, positions: usize| (positions.max(1) - 1) * shape.stride[d] + reach(d);
        let out_rows = shape.y[1];
        let rows = schedule.block.clamp(1, out_rows.max(1));
        let grid_of = |max_rows: usize, copy: [usize; 2]| {
            let row = copy[1] * lanes;
            let mut list = TapList::default();
            // a depthwise one: of the block that is held
            for segment in input_segments(0, if depthwise { 1 } else { p.in_channels }, lanes) {
                let block = segment.start / lanes * copy[0] * row;
                let at =
                    |tap: [usize; 3]| block + tap[1] * shape.dilation[1] * row + tap[2] * shape.dilation[2] * lanes;
                list.taps.extend(points(shape.kernel).map(at));
                list.runs.resize(list.taps.len(), segment.len());
            }
            Grid {
                count: shape.y,
                groups: vec![list],
                in_step: [0, shape.stride[1] * row, shape.stride[2] * lanes],
                lattice: Lattice::ALL,
                weights: 0,
                rows_per_tile: 1,
                in_rows: [0; MAX_ROWS],
                edges: Edges::default(),
            }
            .finish(max_rows)
        };
        let (mut copy, mut block) = ([0; 2], rows);
        // whole tiles, where a block has any
        let direct = Direct::on_copy(p, schedule, isa, &shape, 1, |max_rows| {
            let together = grid_of(max_rows, [1, 1]).rows_per_tile;
            block = if rows > together { rows / together * together } else { rows };
            copy = [extent(1, block), extent(2, shape.y[2])];
            grid_of(max_rows, copy)
        })?;
        Ok(MappedConv {
            direct,
            map,
            lanes,
            is_depthwise: depthwise,
            read: Surface::new(shape.x, shape.x_halo, lanes, p.in_batch_stride),
            channels: p.in_channels,
            height: shape.x[1],
            width: shape.x[2],
            pad: [shape.pad[1], shape.pad[2]],
            stride: shape.stride[1],
            reach: reach(1),
            held: if depthwise { 1 } else { p.in_channels.div_ceil(lanes) },
            copy,
            block,
            out_rows,
            batch: p.batch,
        })
    }

    fn copy_len(&self) -> usize {
        // the last tile asks for lines beyond its last pixel
        self.held * self.copy[0] * self.copy[1] * self.lanes + 64
    }

    pub(super) fn scratch(&self) -> ScratchNeed {
        let strip = self.direct.scratch();
        ScratchNeed { per_worker: strip.per_worker + self.copy_len() * 4, shared: 0 }
    }

    pub(super) unsafe fn run(&self, args: &ConvArgs<'_>, team: &Team, scratch: &ScratchPool) {
        let nest = &Nest::new(args);
        let grid = &self.direct.grids[0];
        if grid.rows(self.batch) == 0 {
            return;
        }
        let tiles = self.out_rows.div_ceil(grid.rows_per_tile);
        let (by_row, by_panel) = self.cut(team.size());
        let parts = self.parts();
        team.parallel(self.batch * by_row * by_panel, &|chunk, worker| {
            let (item, chunk) = (chunk / (by_row * by_panel), chunk % (by_row * by_panel));
            let (t0, t1) = part(tiles, chunk / by_panel, by_row);
            let (p0, p1) = part(parts, chunk % by_panel, by_panel);
            let end = (t1 * grid.rows_per_tile).min(self.out_rows);
            let rows = (t0 * grid.rows_per_tile, end);
            for rows in self.blocks(rows) {
                // SAFETY: the scratch is this worker's; chunks write different rows, or different channels of them.
                unsafe { self.part(nest, item, rows, &mut (p0..p1), scratch.worker(worker)) };
            }
        });
    }

    /// A block of rows of an item, of so many scratches full of channels.
    ///
    /// # Safety
    /// As for the plan; nobody else writes these rows of these channels, or this scratch.
    unsafe fn part(
        &self,
        nest: &Nest<'_>,
        item: usize,
        (r0, r1): (usize, usize),
        parts: &mut dyn Iterator<Item = usize>,
        copy: *mut f32,
    ) {
        let grid = &self.direct.grids[0];
        let strip = copy.wrapping_add(self.copy_len());
        let window = self.window(r0, r1);
        // SAFETY: the caller's.
        unsafe { self.surround(copy, &window) };
        for part in parts {
            let blocks = part * self.held..(part + 1) * self.held;
            let mut panels = if self.is_depthwise { part..part + 1 } else { 0..self.direct.panels() };
            let end = panels.end;
            // SAFETY: the caller's.
            unsafe {
                self.fill(nest, item, copy, &window, blocks);
                let input = copy.cast_const().wrapping_sub(r0 * grid.in_step[1]);
                let rows = (item * self.out_rows + r0, item * self.out_rows + r1);
                self.direct.rows(0, (&mut panels, end), rows, input, nest, strip);
            }
        }
    }

    /// Rows in blocks that the scratch has room for.
    fn blocks(&self, (first, end): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
        let block = self.block;
        (first..end).step_by(block).map(move |r0| (r0, end.min(r0 + block)))
    }

    /// Rows of an item, however many, of so many scratches full of channels, each taken once.
    ///
    /// # Safety
    /// As for the plan; nobody else writes these rows of these channels, or this scratch.
    pub(super) unsafe fn rows(
        &self,
        nest: &Nest<'_>,
        item: usize,
        rows: (usize, usize),
        parts: &mut dyn Iterator<Item = usize>,
        copy: *mut f32,
    ) {
        // SAFETY: the caller's.
        unsafe {
            if rows.1 - rows.0 <= self.block {
                return self.part(nest, item, rows, parts, copy);
            }
            for part in parts {
                self.blocks(rows).for_each(|rows| self.part(nest, item, rows, &mut std::iter::once(part), copy));
            }
        }
    }

    /// Scratches full of channels.
    pub(super) fn parts(&self) -> usize {
        self.channels.div_ceil(self.lanes).div_ceil(self.held)
    }

    /// Blocks of rows and of channels of an item, for a team: all channels of few rows, or of a block of channels all rows.
    pub(super) fn cut(&self, threads: usize) -> (usize, usize) {
        if let Some(cut) = self.direct.known_cut(threads) {
            return cut;
        }
        let threads = threads.div_ceil(self.batch.max(1));
        let grid = &self.direct.grids[0];
        let tiles = self.out_rows.div_ceil(grid.rows_per_tile);
        match (self.is_depthwise, threads) {
            (true, 1) => (1, 1),
            (true, _) => self.direct.nest(grid, 1).cut(threads),
            (false, _) => (chunk_count(tiles, self.out_rows.div_ceil(self.block), threads), 1),
        }
    }

    /// Says who writes the input. Channels that are taken from here and there are nobody's.
    pub(super) fn reads(&mut self, spread: Spread) {
        let is_mixed = spread == Spread::Channels && matches!(self.map, Map::Taken(_));
        self.direct.read = if is_mixed { Spread::Mixed } else { spread };
    }

    /// Who writes the output.
    pub(super) fn spread(&self, threads: usize) -> Spread {
        match self.batch {
            1 => Spread::of(self.cut(threads), threads),
            _ => Spread::Rows,
        }
    }

    /// What output rows `r0..r1` read.
    fn window(&self, r0: usize, r1: usize) -> Window {
        let rows = (r1 - r0 - 1) * self.stride + self.reach;
        let first = r0 * self.stride;
        let above = self.pad[0].saturating_sub(first).min(rows);
        let before = self.pad[1].min(self.copy[1]);
        Window {
            first: first + above - self.pad[0],
            rows,
            above,
            inside: (self.height + self.pad[0]).saturating_sub(first).min(rows).max(above),
            before,
            pixels: self.width.min(self.copy[1] - before),
        }
    }

    /// Zeros for what lies outside the image; nothing else is written there.
    ///
    /// # Safety
    /// The copy has room for a block.
    unsafe fn surround(&self, copy: *mut f32, window: &Window) {
        let Window { rows, above, inside, before, pixels, .. } = *window;
        let (lanes, row) = (self.lanes, self.copy[1] * self.lanes);
        let after = self.copy[1] - before - pixels;
        for held in 0..self.held {
            let to = copy.wrapping_add(held * self.copy[0] * row);
            // SAFETY: rows and pixels are within the copy.
            unsafe {
                std::ptr::write_bytes(to, 0, above * row);
                std::ptr::write_bytes(to.wrapping_add(inside * row), 0, (rows - inside) * row);
                if before + after > 0 {
                    for i in above..inside {
                        std::ptr::write_bytes(to.wrapping_add(i * row), 0, before * lanes);
                        std::ptr::write_bytes(to.wrapping_add(i * row + (before + pixels) * lanes), 0, after * lanes);
                    }
                }
            }
        }
    }

    /// Maps blocks of channels of what a window reads of the image.
    ///
    /// # Safety
    /// The operands are those of the problem; the copy has room for a block.
    unsafe fn fill(&self, nest: &Nest<'_>, item: usize, copy: *mut f32, window: &Window, blocks: Range<usize>) {
        let Window { first, above, inside, before, pixels, .. } = *window;
        if inside == above {
            return;
        }
        let row = self.copy[1] * self.lanes;
        let image = nest.args.input.wrapping_add(item * self.read.batch + self.read.origin);
        let (mut line, end) = (first, first + inside - above);
        while line < end {
            let (last, behind) = nest.piece(item, (line, end));
            let from = image.wrapping_add(line * self.read.step[1]).wrapping_byte_add(behind);
            for (held, block) in blocks.clone().enumerate() {
                let to = copy.wrapping_add((held * self.copy[0] + above + line - first) * row + before * self.lanes);
                // SAFETY: these rows of the image exist.
                unsafe { self.map(nest, block, (from, self.read.step[1]), (to, row), (last - line, pixels)) };
            }
            line = last;
        }
    }

    /// Maps rows of one block of channels; pointers come with the distance of two rows, that of the image is to the first
    /// block.
    ///
    /// # Safety
    /// As [`fill`](MappedConv::fill).
    unsafe fn map(
        &self,
        nest: &Nest<'_>,
        block: usize,
        (from, from_row): (*const f32, usize),
        (to, to_row): (*mut f32, usize),
        (rows, pixels): (usize, usize),
    ) {
        let lanes = self.lanes;
        let channel = block * lanes;
        let cols = lanes.min(self.channels - channel);
        let source = |block: usize| Source { at: from.wrapping_add(block * self.read.block), row: from_row };
        let from = source(block).at;
        match &self.map {
            // SAFETY: the caller's; the plan checked the channels.
            Map::Taken(takes) => unsafe { takes.rows(block, |_, block| source(block), (to, to_row), (rows, pixels)) },
            Map::Affine { kernel, scale, shift, clamp } => {
                let mut tails = [[0f32; MAX_LANES]; 2];
                let mut operand = |i: usize, used: bool| {
                    if !used {
                        return std::ptr::null();
                    }
                    let at = nest.args.prologue_extras[i].cast_const().cast::<f32>().wrapping_add(channel);
                    if cols == lanes {
                        return at;
                    }
                    // SAFETY: the operand has as many elements as there are channels, and no whole vector more.
                    unsafe { std::ptr::copy_nonoverlapping(at, tails[i].as_mut_ptr(), cols) };
                    tails[i].as_ptr()
                };
                let (scale, shift) = (operand(0, *scale), operand(usize::from(*scale), *shift));
                let all = AffineRows {
                    src: from,
                    src_row: from_row,
                    dst: to,
                    dst_row: to_row,
                    rows,
                    pixels,
                    scale,
                    shift,
                    clamp: *clamp,
                };
                // SAFETY: the caller's; lanes of channels that do not exist are zero in x, and nothing reads them here.
                unsafe { kernel(&all) };
            }
            Map::Hook { by_channel, element_bytes } => {
                let Some(hook) = nest.args.prologue else { return };
                let mut extras = [View2::NULL; MAX_VIEWS];
                for (i, view) in extras.iter_mut().enumerate().take(by_channel.len()) {
                    let base = nest.args.prologue_extras[i];
                    let at = if by_channel[i] { channel * usize::from(element_bytes[i]) } else { 0 };
                    *view = View2 { ptr: base.wrapping_add(at), row: 0, col: i64::from(by_channel[i]) };
                }
                let view = |ptr: *mut f32| View2 { ptr: ptr.cast(), row: lanes as i64, col: 1 };
                for i in 0..rows {
                    let acc = view(from.wrapping_add(i * from_row).cast_mut());
                    let out = view(to.wrapping_add(i * to_row));
                    call(hook, &acc, (pixels, cols), &extras, &out);
                }
            }
        }
    }
}

/// Calls a hook over a row of pixels.
fn call(hook: EpilogueFn, acc: &View2, (pixels, cols): (usize, usize), extras: &[View2; MAX_VIEWS], out: &View2) {
    // SAFETY: the views lie within the operands and the scratch; the hook's signature is the ABI's.
    unsafe { hook(acc, pixels as i64, cols as i64, extras.as_ptr(), out) };
}
