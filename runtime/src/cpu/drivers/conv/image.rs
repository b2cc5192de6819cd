//! First layers: the direct nest on a row-major image, of which each chunk of rows is first copied with its padding.

use super::ConvArgs;
use super::direct::{Direct, Nest};
use super::geometry::{Edges, Grid, Shape, TapList, points};
use super::hooked::Lattice;
use crate::cpu::drivers::{DriverError, ScratchNeed, ScratchPool, even_rows, part};
use crate::cpu::team::Team;
use egret_program::driver::{ConvProblem, ConvSchedule};
use egret_simd::{Isa, MAX_ROWS};

/// More rows than this in a chunk would only make the copy leave the caches.
const MAX_BLOCK: usize = 16;

#[derive(Debug)]
pub(super) struct ImageConv {
    direct: Direct,
    channels: usize,
    height: usize,
    width: usize,
    image_batch: usize,
    pad: [usize; 2],
    /// Input rows from one output row to the next.
    stride: usize,
    /// Rows and columns of the copy.
    copy: [usize; 2],
    /// Output rows in a chunk, at most.
    block: usize,
    out_rows: usize,
    batch: usize,
}

impl ImageConv {
    pub(super) fn new(p: &ConvProblem, schedule: &ConvSchedule, isa: Isa) -> Result<ImageConv, DriverError> {
        if p.groups != 1 || p.in_spatial.len() > 2 {
            return Err(DriverError::Unsupported("images with groups or three spatial dims"));
        }
        let shape = Shape::new(p)?;
        let block = schedule.block.clamp(1, MAX_BLOCK).min(shape.y[1].max(1));
        let reach = |d: usize| (shape.kernel[d] - 1) * shape.dilation[d];
        let extent = |d: usize, positions: usize| (positions.max(1) - 1) * shape.stride[d] + reach(d) + 1;
        let copy = [extent(1, block), extent(2, shape.y[2])];
        let direct = Direct::on_copy(p, schedule, isa, &shape, shape.dilation[2], |max_rows| {
            let mut taps = Vec::new();
            for channel in 0..p.in_channels {
                for tap in points([1, shape.kernel[1], 1]) {
                    taps.push((channel * copy[0] + tap[1] * shape.dilation[1]) * copy[1]);
                }
            }
            let runs = vec![shape.kernel[2]; taps.len()];
            Grid {
                count: shape.y,
                groups: vec![TapList { taps, runs, weights: Vec::new() }],
                in_step: [0, shape.stride[1] * copy[1], shape.stride[2]],
                lattice: Lattice::ALL,
                weights: 0,
                rows_per_tile: 1,
                in_rows: [0; MAX_ROWS],
                edges: Edges::default(),
            }
            .finish(max_rows)
        })?;
        Ok(ImageConv {
            direct,
            channels: p.in_channels,
            height: shape.x[1],
            width: shape.x[2],
            image_batch: p.in_batch_stride,
            pad: [shape.pad[1], shape.pad[2]],
            stride: shape.stride[1],
            copy,
            block,
            out_rows: shape.y[1],
            batch: p.batch,
        })
    }

    fn copy_len(&self) -> usize {
        // Tiles of the last columns are never wider than the image, but whole lines are asked for.
        self.channels * self.copy[0] * self.copy[1] + 64
    }

    pub(super) fn scratch(&self) -> ScratchNeed {
        let strip = self.direct.scratch();
        ScratchNeed { per_worker: strip.per_worker + self.copy_len() * 4, shared: 0 }
    }

    pub(super) unsafe fn run(&self, args: &ConvArgs<'_>, team: &Team, scratch: &ScratchPool) {
        let nest = &Nest::new(args);
        let blocks = even_rows(self.out_rows, self.out_rows.div_ceil(self.block), self.batch, team.size());
        let grid = &self.direct.grids[0];
        if grid.rows(self.batch) == 0 {
            return;
        }
        team.parallel(self.batch * blocks, &|chunk, worker| {
            let (item, block) = (chunk / blocks, chunk % blocks);
            let (r0, r1) = part(self.out_rows, block, blocks);
            let copy = scratch.worker(worker);
            let strip = copy.wrapping_add(self.copy_len());
            // SAFETY: the copy is this worker's; chunks write different rows.
            unsafe {
                let image = nest.args.input.wrapping_add(item * self.image_batch);
                self.copy_rows(image, copy, r0, r1);
                let input = copy.cast_const().wrapping_sub(r0 * grid.in_step[1]);
                let rows = (item * self.out_rows + r0, item * self.out_rows + r1);
                let panels = self.direct.panels();
                self.direct.rows(0, (&mut (0..panels), panels), rows, input, nest, strip);
            }
        });
    }

    /// Copies what output rows `r0..r1` read, with zeros for what lies outside the image.
    unsafe fn copy_rows(&self, image: *const f32, copy: *mut f32, r0: usize, r1: usize) {
        let columns = self.copy[1];
        let before = self.pad[1].min(columns);
        let inside = self.width.min(columns - before);
        let rows = self.copy[0] - (self.block - (r1 - r0)) * self.stride;
        for channel in 0..self.channels {
            for row in 0..rows {
                let to = copy.wrapping_add((channel * self.copy[0] + row) * columns);
                let from_row = (r0 * self.stride + row).checked_sub(self.pad[0]);
                // SAFETY: rows and columns are within the copy, and within the image where they are read.
                unsafe {
                    match from_row.filter(|&r| r < self.height) {
                        None => std::ptr::write_bytes(to, 0, columns),
                        Some(r) => {
                            let from = image.add((channel * self.height + r) * self.width);
                            std::ptr::write_bytes(to, 0, before);
                            std::ptr::copy_nonoverlapping(from, to.add(before), inside);
                            let after = columns - before - inside;
                            std::ptr::write_bytes(to.add(before + inside), 0, after);
                        }
                    }
                }
            }
        }
    }
}
