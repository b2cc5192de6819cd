//! The gradient of the weights: for each kernel tap a product over pixels, read where they lie.

use super::ConvArgs;
use super::direct::Nest;
use super::geometry::{Shape, Surface, points};
use crate::cpu::drivers::kernels::Kernels;
use crate::cpu::drivers::{DriverError, ScratchNeed, ScratchPool, part};
use crate::cpu::team::Team;
use egret_program::driver::{Activation, ConvProblem, Epilogue};
use egret_simd::{Isa, MAX_ROWS, Tile, TileKind};

#[derive(Debug)]
pub(super) struct WeightGradient {
    isa: Isa,
    lanes: usize,
    kernels: Kernels,
    depthwise: bool,
    batch: usize,
    groups: usize,
    inputs: usize,
    outputs: usize,
    x: Surface,
    y: Surface,
    /// Output extents.
    count: [usize; 3],
    /// Floats in x from one output position to the next.
    x_step: [usize; 3],
    /// Offset in x of each kernel tap, for output position 0.
    offsets: Vec<usize>,
    /// Offset in x of each output row of a plane.
    rows: Vec<usize>,
    /// Offset in x of each row of the products, taps and then channels, of a block with all its channels, and of the last.
    /// So a tile is full of rows also when there are few channels.
    row_offsets: [Vec<usize>; 2],
    /// Rows are divided among chunks too, where channels alone give too few.
    split_rows: bool,
}

impl WeightGradient {
    pub(super) fn new(p: &ConvProblem, isa: Isa) -> Result<WeightGradient, DriverError> {
        let plain = Epilogue::Direct { bias: None, residual: None, activation: Activation::None };
        if p.epilogue != plain {
            return Err(DriverError::Unsupported("an epilogue on a weight gradient"));
        }
        let shape = Shape::new(p)?;
        let lanes = isa.lanes_f32();
        let x = Surface::new(shape.x, shape.x_halo, lanes, p.in_batch_stride);
        let y = Surface::new(shape.y, shape.y_halo, lanes, p.out_batch_stride);
        let depthwise = p.is_depthwise();
        let offsets: Vec<usize> = points(shape.kernel)
            .map(|tap| {
                let spatial: isize = (0..3)
                    .map(|d| {
                        let shift = (tap[d] * shape.dilation[d]) as isize - shape.pad[d] as isize;
                        shift * x.step[d] as isize
                    })
                    .sum();
                // The halo was checked, so the sum is not negative.
                x.origin.wrapping_add_signed(spatial)
            })
            .collect();
        let x_step: [usize; 3] = std::array::from_fn(|d| shape.stride[d] * x.step[d]);
        let (inputs, outputs) = (p.in_channels / p.groups, p.out_channels / p.groups);
        let blocks = p.groups * outputs.div_ceil(2 * lanes) * inputs.div_ceil(lanes);
        Ok(WeightGradient {
            isa,
            lanes,
            kernels: Kernels::new(isa, if depthwise { TileKind::Lanes } else { TileKind::Table })?,
            depthwise,
            batch: p.batch,
            groups: p.groups,
            inputs,
            outputs,
            rows: (0..shape.y[1]).map(|r| r * x_step[1]).collect(),
            x,
            y,
            count: shape.y,
            x_step,
            row_offsets: [lanes.min(inputs), inputs.saturating_sub(1) % lanes + 1]
                .map(|channels| offsets.iter().flat_map(|tap| (0..channels).map(move |i| tap + i)).collect()),
            split_rows: blocks < 16,
            offsets,
        })
    }

    pub(super) fn scratch(&self) -> ScratchNeed {
        let floats = self.offsets.len() * self.lanes * 2 * self.lanes;
        ScratchNeed { per_worker: floats * 4, shared: 0 }
    }

    pub(super) unsafe fn run(&self, args: &ConvArgs<'_>, team: &Team, scratch: &ScratchPool) {
        let nest = &Nest { args: *args };
        if self.depthwise {
            team.parallel(self.groups.div_ceil(self.lanes), &|block, worker| {
                // SAFETY: blocks write different channels.
                unsafe { self.depthwise_block(nest, block, scratch.worker(worker)) };
            });
            return;
        }
        let (panels, blocks) = (self.outputs.div_ceil(2 * self.lanes), self.inputs.div_ceil(self.lanes));
        let tiles = self.row_offsets[0].len().div_ceil(self.kernels.max_rows());
        let parts = if self.split_rows { tiles } else { 1 };
        team.parallel(self.groups * panels * blocks * parts, &|chunk, worker| {
            let (unit, part) = (chunk / parts, chunk % parts);
            let (group, unit) = (unit / (panels * blocks), unit % (panels * blocks));
            let (panel, block) = (unit / blocks, unit % blocks);
            // SAFETY: chunks write different weights.
            unsafe { self.dense_block(nest, group, panel, block, (part, parts), scratch.worker(worker)) };
        });
    }

    /// A tile that sums over all pixels of a plane.
    fn tile(&self) -> Tile {
        let mut tile = Tile::new(self.isa);
        tile.taps = self.rows.as_ptr();
        tile.tap_count = self.rows.len();
        (tile.run, tile.last_run) = (self.count[2], self.count[2]);
        tile.a_step = self.x_step[2];
        tile.b_step = self.lanes;
        tile.b_vector = self.y.block;
        tile.b_skip = self.y.step[1] - self.count[2] * self.lanes;
        tile
    }

    /// Weights of `2 L` outputs by a part of the rows of a block of `L` inputs: tiles in scratch, then scattered.
    unsafe fn dense_block(
        &self,
        nest: &Nest<'_>,
        group: usize,
        panel: usize,
        block: usize,
        (chunk, chunks): (usize, usize),
        sums: *mut f32,
    ) {
        let l = self.lanes;
        let outputs = (self.outputs - panel * 2 * l).min(2 * l);
        let inputs = (self.inputs - block * l).min(l);
        let vectors = outputs.div_ceil(l);
        let offsets = &self.row_offsets[usize::from((block + 1) * l >= self.inputs)];
        let (r0, r1) = part(offsets.len(), chunk, chunks);
        let c_rows: [usize; MAX_ROWS] = std::array::from_fn(|m| m * 2 * l);
        let mut tile = self.tile();
        tile.c_rows = c_rows.as_ptr();
        tile.partial_rows = c_rows.as_ptr();
        let x = nest.args.input.wrapping_add((group * self.inputs / l + block) * self.x.block);
        let y_block = (group * self.outputs + panel * 2 * l) / l;
        let y = nest.args.weights.wrapping_add(self.y.origin + y_block * self.y.block);
        let tiles = (r1 - r0).div_ceil(self.kernels.max_rows());
        let mut first = true;
        for item in 0..self.batch {
            for plane in 0..self.count[0] {
                let again = !first;
                first = false;
                tile.a = x.wrapping_add(item * self.x.batch + plane * self.x_step[0]);
                tile.b = y.wrapping_add(item * self.y.batch + plane * self.y.step[0]);
                for i in 0..tiles {
                    let (m0, m1) = part(r1 - r0, i, tiles);
                    tile.rows = offsets[r0 + m0..].as_ptr();
                    tile.c = sums.wrapping_add(m0 * 2 * l);
                    tile.partial = if again { tile.c } else { std::ptr::null() };
                    // SAFETY: bounds were checked when the plan was made.
                    unsafe { self.kernels.run(&tile, m1 - m0, vectors) };
                }
            }
        }
        for o in 0..outputs {
            let weights = (group * self.outputs + panel * 2 * l + o) * self.inputs + block * l;
            for row in r0..r1 {
                let (tap, i) = (row / inputs, row % inputs);
                // SAFETY: an element of the weights, and of the scratch. Without pixels nothing was summed.
                unsafe {
                    let sum = if first { 0.0 } else { *sums.add((row - r0) * 2 * l + o) };
                    *nest.args.output.add((weights + i) * self.offsets.len() + tap) = sum;
                }
            }
        }
    }

    /// Weights of `L` channels: the rows of a tile are taps.
    unsafe fn depthwise_block(&self, nest: &Nest<'_>, block: usize, sums: *mut f32) {
        let l = self.lanes;
        let taps = self.offsets.len();
        let c_rows: [usize; MAX_ROWS] = std::array::from_fn(|m| m * l);
        let mut tile = self.tile();
        tile.c_rows = c_rows.as_ptr();
        tile.partial_rows = c_rows.as_ptr();
        let parts = taps.div_ceil(self.kernels.max_rows());
        let mut first = true;
        for item in 0..self.batch {
            for plane in 0..self.count[0] {
                let again = !first;
                first = false;
                let x = item * self.x.batch + plane * self.x_step[0] + block * self.x.block;
                let y = item * self.y.batch + plane * self.y.step[0] + block * self.y.block;
                tile.a = nest.args.input.wrapping_add(x);
                tile.b = nest.args.weights.wrapping_add(y + self.y.origin);
                for i in 0..parts {
                    let (t0, t1) = part(taps, i, parts);
                    tile.rows = self.offsets[t0..].as_ptr();
                    tile.c = sums.wrapping_add(t0 * l);
                    tile.partial = if again { tile.c } else { std::ptr::null() };
                    // SAFETY: bounds were checked when the plan was made.
                    unsafe { self.kernels.run(&tile, t1 - t0, 1) };
                }
            }
        }
        for lane in 0..l.min(self.groups - block * l) {
            for tap in 0..taps {
                // SAFETY: an element of the weights, and of the scratch. Without pixels nothing was summed.
                unsafe {
                    let sum = if first { 0.0 } else { *sums.add(tap * l + lane) };
                    *nest.args.output.add((block * l + lane) * taps + tap) = sum;
                }
            }
        }
    }
}
