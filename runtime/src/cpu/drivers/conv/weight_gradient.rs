//! The gradient of the weights: for each kernel tap a product over pixels, read where they lie.

use super::ConvArgs;
use super::direct::Nest;
use super::geometry::{Shape, Surface, points};
use crate::cpu::drivers::kernels::Kernels;
use crate::cpu::drivers::{DriverError, ScratchNeed, ScratchPool, part};
use crate::cpu::team::Team;
use egret_program::driver::{Activation, ConvInput, ConvProblem, Epilogue};
use egret_simd::{Isa, MAX_ROWS, Tile, TileKind, strided_kernel};

/// A run of neighbouring elements from which the kernels for rows of known distance are worth shorter tiles.
const LONG_RUN: usize = 8;

/// Rows of the products that one tile holds.
#[derive(Clone, Debug)]
struct RowTile {
    first: usize,
    count: usize,
    /// Offset in x of its first row, and of each row from that.
    at: usize,
    rows: [usize; MAX_ROWS],
    /// Its rows are neighbours in x, or two runs of neighbours.
    runs: bool,
}

/// The rows of the products of a block of channels, in tiles.
#[derive(Debug)]
struct RowTiles {
    tiles: Vec<RowTile>,
    /// For tiles of neighbours.
    run_kernels: Kernels,
}

impl RowTiles {
    /// Of rows at these offsets, which are neighbours in runs of `run`.
    fn new(offsets: &[usize], run: usize, isa: Isa, kernels: &Kernels) -> RowTiles {
        let max_rows = kernels.max_rows();
        let tile = |first: usize, end: usize, runs: bool| RowTile {
            first,
            count: end - first,
            at: offsets[first],
            rows: std::array::from_fn(|m| offsets.get(first + m).map_or(0, |row| row.wrapping_sub(offsets[first]))),
            runs,
        };
        let cut = |from: usize, rows: usize| {
            let tiles = rows.div_ceil(max_rows);
            (0..tiles).map(move |i| part(rows, i, tiles)).map(move |(a, b)| (from + a, from + b))
        };
        let starts = |step: usize| (0..offsets.len()).step_by(step);
        let run = run.max(1);
        let (long, paired) = (run.div_ceil(run.div_ceil(max_rows)) >= LONG_RUN, strided_kernel(isa, 1, 2 * run, run));
        let (ranges, runs): (Vec<_>, bool) = if long {
            (starts(run).flat_map(|from| cut(from, run)).collect(), true)
        } else if paired.is_some() {
            (starts(2 * run).map(|from| (from, (from + 2 * run).min(offsets.len()))).collect(), true)
        } else {
            (cut(0, offsets.len()).collect(), false)
        };
        // where the second run of a pair begins is no part of its kernel
        let second = offsets.iter().copied().max().unwrap_or(0) + MAX_ROWS;
        let of_run = if long { MAX_ROWS } else { run };
        let neighbours = std::array::from_fn(|m| m / of_run * second + m % of_run);
        RowTiles {
            tiles: ranges.into_iter().map(|(first, end)| tile(first, end, runs)).collect(),
            run_kernels: kernels.clone().for_rows(isa, &neighbours),
        }
    }
}

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
    /// The rows of the products: taps and then channels of a block with all its channels, and of the last one; of a row-major
    /// image all channels and then taps. So a tile is full of rows also when there are few channels.
    rows_of_block: Vec<RowTiles>,
    /// x is a row-major image.
    image: bool,
    /// Blocks of channels of a group of x: one of an image.
    blocks: usize,
    /// Tiles are divided among chunks too, where channels alone give too few.
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
        let image = p.input == ConvInput::Image;
        let x = if image {
            Surface::row_major(shape.x, p.in_batch_stride)
        } else {
            Surface::new(shape.x, shape.x_halo, lanes, p.in_batch_stride)
        };
        let y = Surface::new(shape.y, shape.y_halo, lanes, p.out_batch_stride);
        let depthwise = p.is_depthwise();
        if image {
            let reach =
                |d: usize| (shape.y[d].max(1) - 1) * shape.stride[d] + (shape.kernel[d] - 1) * shape.dilation[d];
            if p.groups != 1 || shape.pad != [0; 3] || (0..3).any(|d| reach(d) >= shape.x[d]) {
                return Err(DriverError::Unsupported("weight gradients of images with groups or padding"));
            }
        }
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
        let blocks = if image { 1 } else { inputs.div_ceil(lanes) };
        let kernels = Kernels::new(isa, if depthwise { TileKind::Lanes } else { TileKind::Table })?;
        // one whole vector has no kernels for rows of known distance, and needs none
        let known_distance = outputs > lanes || 2 * outputs <= lanes;
        let rows_of = |channels: usize| {
            if image {
                let by_channel = (0..channels).flat_map(|i| offsets.iter().map(move |tap| i * x.block + tap));
                let run = if shape.dilation[2] == 1 && known_distance { shape.kernel[2] } else { 1 };
                return RowTiles::new(&by_channel.collect::<Vec<usize>>(), run, isa, &kernels);
            }
            let by_tap = offsets.iter().flat_map(|tap| (0..channels).map(move |i| tap + i));
            let run = if known_distance { channels } else { 1 };
            RowTiles::new(&by_tap.collect::<Vec<usize>>(), run, isa, &kernels)
        };
        let last = inputs.saturating_sub(1) % lanes + 1;
        let rows_of_block = match (depthwise, image) {
            (true, _) => Vec::new(),
            (_, true) => vec![rows_of(inputs)],
            _ => vec![rows_of(lanes.min(inputs)), rows_of(last)],
        };
        Ok(WeightGradient {
            isa,
            lanes,
            kernels,
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
            rows_of_block,
            image,
            split_rows: p.groups * outputs.div_ceil(2 * lanes) * blocks < 16,
            blocks,
            offsets,
        })
    }

    pub(super) fn scratch(&self) -> ScratchNeed {
        let channels = if self.image { self.inputs } else { self.lanes };
        let floats = self.offsets.len() * channels * 2 * self.lanes;
        ScratchNeed { per_worker: floats * 4, shared: 0 }
    }

    pub(super) unsafe fn run(&self, args: &ConvArgs<'_>, team: &Team, scratch: &ScratchPool) {
        let nest = &Nest::new(args);
        if self.depthwise {
            team.parallel(self.groups.div_ceil(self.lanes), &|block, worker| {
                // SAFETY: blocks write different channels.
                unsafe { self.depthwise_block(nest, block, scratch.worker(worker)) };
            });
            return;
        }
        let (panels, blocks) = (self.outputs.div_ceil(2 * self.lanes), self.blocks);
        let parts = if self.split_rows { self.rows_of_block[0].tiles.len() } else { 1 };
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
        let inputs = if self.image { self.inputs } else { (self.inputs - block * l).min(l) };
        let vectors = outputs.div_ceil(l);
        let RowTiles { tiles, run_kernels } = match self.rows_of_block.as_slice() {
            [.., last] if block + 1 == self.blocks => last,
            rows => &rows[0],
        };
        let (t0, t1) = part(tiles.len(), chunk, chunks);
        let tiles = &tiles[t0..t1];
        let c_rows: [usize; MAX_ROWS] = std::array::from_fn(|m| m * 2 * l);
        let mut tile = self.tile();
        tile.c_rows = c_rows.as_ptr();
        tile.partial_rows = c_rows.as_ptr();
        if 2 * outputs <= l {
            // sums are whole vectors in scratch, of which half a one is computed
            (tile.last_lanes, tile.fill) = (outputs, true);
        }
        let x = nest.args.input.wrapping_add((group * self.inputs / l + block) * self.x.block);
        let y_block = (group * self.outputs + panel * 2 * l) / l;
        let y = nest.args.weights.wrapping_add(self.y.origin + y_block * self.y.block);
        let mut first = true;
        for item in 0..self.batch {
            for plane in 0..self.count[0] {
                let again = !first;
                first = false;
                let a = x.wrapping_add(item * self.x.batch + plane * self.x_step[0]);
                tile.b = y.wrapping_add(item * self.y.batch + plane * self.y.step[0]);
                for rows in tiles {
                    tile.a = a.wrapping_add(rows.at);
                    tile.rows = rows.rows.as_ptr();
                    tile.c = sums.wrapping_add(rows.first * 2 * l);
                    tile.partial = if again { tile.c } else { std::ptr::null() };
                    let kernels = if rows.runs { run_kernels } else { &self.kernels };
                    // SAFETY: bounds were checked when the plan was made.
                    unsafe { kernels.run(&tile, rows.count, vectors) };
                }
            }
        }
        let rows = tiles.first().map_or(0, |tile| tile.first)..tiles.last().map_or(0, |tile| tile.first + tile.count);
        let taps = self.offsets.len();
        for o in 0..outputs {
            let weights = (group * self.outputs + panel * 2 * l + o) * self.inputs + block * l;
            for row in rows.clone() {
                let (tap, i) = if self.image { (row % taps, row / taps) } else { (row / inputs, row % inputs) };
                // SAFETY: an element of the weights, and of the scratch. Without pixels nothing was summed.
                unsafe {
                    let sum = if first { 0.0 } else { *sums.add(row * 2 * l + o) };
                    *nest.args.output.add((weights + i) * taps + tap) = sum;
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
