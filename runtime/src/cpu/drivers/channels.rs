//! Channels taken from images in blocked channels.

use super::kernels::check_isa;
use super::{DriverError, Shared, lines_by_blocks, part};
use crate::cpu::team::Team;
use egret_program::driver::ChannelsProblem;
use egret_simd::Isa;
use egret_simd::channels::{ChannelRows, MAX_LANES, Source, Taken, channel_rows};

/// Which lanes of which blocks of images become each block of channels.
#[derive(Debug)]
pub(crate) struct Takes {
    kernel: unsafe fn(&ChannelRows),
    /// By block of the result, where its reads end.
    ends: Vec<usize>,
    /// The image and its block of each read.
    reads: Vec<(usize, usize)>,
    lanes: Vec<Taken>,
}

impl Takes {
    /// `taken` tells the image and the channel of each channel, `sources` how many channels images have.
    ///
    /// # Errors
    /// If a channel is taken that no image has.
    pub(super) fn new(
        taken: impl Iterator<Item = (u32, u32)>,
        sources: &[usize],
        isa: Isa,
    ) -> Result<Takes, DriverError> {
        let kernel = channel_rows(isa).ok_or(DriverError::Unsupported("this instruction set"))?;
        let lanes = isa.lanes_f32();
        let mut takes = Takes { kernel, ends: Vec::new(), reads: Vec::new(), lanes: Vec::new() };
        for (i, (source, channel)) in taken.enumerate() {
            let (source, channel) = (source as usize, channel as usize);
            if sources.get(source).is_none_or(|channels| channel >= *channels) {
                return Err(DriverError::Problem("a channel is taken that no source has"));
            }
            if i.is_multiple_of(lanes) {
                takes.ends.push(takes.reads.len());
            }
            let (first, read) = (takes.first(i / lanes), (source, channel / lanes));
            let known = takes.reads[first..].iter().position(|known| *known == read);
            let at = first + known.unwrap_or(takes.reads.len() - first);
            if known.is_none() {
                takes.reads.push(read);
                takes.lanes.push([-1; MAX_LANES]);
            }
            takes.lanes[at][i % lanes] = (channel % lanes) as i32;
            takes.ends[i / lanes] = takes.reads.len();
        }
        Ok(takes)
    }

    /// Blocks of the result.
    pub(super) fn blocks(&self) -> usize {
        self.ends.len()
    }

    fn first(&self, block: usize) -> usize {
        block.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// Rows of a block of the result. `source` tells where those of an image's block lie.
    ///
    /// # Safety
    /// So many pixels in so many rows can be read there, and written at `dst`.
    pub(super) unsafe fn rows(
        &self,
        block: usize,
        source: impl Fn(usize, usize) -> Source,
        (dst, dst_row): (*mut f32, usize),
        (rows, pixels): (usize, usize),
    ) {
        let reads = self.first(block)..self.ends[block];
        let mut from = [Source { at: std::ptr::null(), row: 0 }; MAX_LANES];
        for (from, (image, block)) in from.iter_mut().zip(&self.reads[reads.clone()]) {
            *from = source(*image, *block);
        }
        let all = ChannelRows {
            dst,
            dst_row,
            rows,
            pixels,
            sources: from.as_ptr(),
            taken: self.lanes[reads.clone()].as_ptr(),
            count: reads.len(),
        };
        // SAFETY: the caller's; the host has the instruction set.
        unsafe { (self.kernel)(&all) };
    }
}

/// Channels to be taken, with known extents.
#[derive(Debug)]
pub struct ChannelsPlan {
    takes: Takes,
    lanes: usize,
    batch: usize,
    sources: Vec<Lies>,
    spatial: [usize; 3],
    result: Lies,
}

/// How an image lies.
#[derive(Debug)]
struct Lies {
    halo: [usize; 3],
    batch_stride: usize,
}

impl ChannelsPlan {
    /// Binds.
    ///
    /// # Errors
    /// If the layout is not that of `isa`, lists differ in length, or a channel is taken that no source has.
    pub fn new(problem: &ChannelsProblem, isa: Isa) -> Result<ChannelsPlan, DriverError> {
        check_isa(isa, problem.lanes)?;
        let (lanes, rank) = (problem.lanes, problem.spatial.len());
        if rank > 3 || problem.halo.len() != rank || problem.sources.iter().any(|source| source.halo.len() != rank) {
            return Err(DriverError::Problem("images have up to 3 spatial dims, each with a halo"));
        }
        let pad = |list: &[usize], missing| {
            let mut out = [missing; 3];
            out[3 - rank..].copy_from_slice(list);
            out
        };
        let lies = |halo: &[usize], batch_stride| Lies { halo: pad(halo, 0), batch_stride };
        let channels: Vec<usize> = problem.sources.iter().map(|source| source.channels).collect();
        Ok(ChannelsPlan {
            takes: Takes::new(problem.taken.iter().copied(), &channels, isa)?,
            lanes,
            batch: problem.batch,
            sources: problem.sources.iter().map(|source| lies(&source.halo, source.batch_stride)).collect(),
            spatial: pad(&problem.spatial, 1),
            result: lies(&problem.halo, problem.batch_stride),
        })
    }

    /// Takes channels of all of `args` but the last, which is the result.
    ///
    /// # Safety
    /// The tensors have the extents of the problem, and the result overlaps no source.
    pub unsafe fn run(&self, args: &[*mut u8], team: &Team) {
        let [depth, height, _] = self.spatial;
        let (lines, Some((result, sources))) = (self.batch * depth * height, args.split_last()) else { return };
        let (result, sources) = (Shared(result.cast::<f32>()), Shared(sources.as_ptr().cast_mut()));
        let (by_line, by_block) = lines_by_blocks(lines, self.takes.blocks(), team.size());
        team.parallel(by_line * by_block, &|chunk, _| {
            let (result, sources) = (&result, &sources);
            let (first, end) = part(lines, chunk / by_block, by_line);
            let (from, to) = part(self.takes.blocks(), chunk % by_block, by_block);
            for block in from..to {
                let mut line = first;
                while line < end {
                    let (plane, row) = (line / height, line % height);
                    let rows = (end - line).min(height - row);
                    // SAFETY: rows of the tensors; chunks write different rows or blocks.
                    unsafe { self.rows(result.0, sources.0, block, (plane / depth, plane % depth, row), rows) };
                    line += rows;
                }
            }
        });
    }

    /// Rows of a block of the result, from a row of a plane of an item on.
    unsafe fn rows(
        &self,
        result: *mut f32,
        sources: *const *mut u8,
        block: usize,
        (item, plane, row): (usize, usize, usize),
        rows: usize,
    ) {
        let source = |image: usize, block: usize| {
            let lies = &self.sources[image];
            // SAFETY: the plan checked the number of sources.
            let at = unsafe { *sources.add(image) }.cast::<f32>();
            Source { at: at.wrapping_add(self.offset(lies, item, block, plane, row)), row: self.row(lies) }
        };
        let dst = result.wrapping_add(self.offset(&self.result, item, block, plane, row));
        // SAFETY: the caller's.
        unsafe { self.takes.rows(block, source, (dst, self.row(&self.result)), (rows, self.spatial[2])) };
    }

    /// Floats from a row to the next.
    fn row(&self, lies: &Lies) -> usize {
        (self.spatial[2] + 2 * lies.halo[2]) * self.lanes
    }

    /// Floats before the first pixel of a row.
    fn offset(&self, lies: &Lies, item: usize, block: usize, plane: usize, row: usize) -> usize {
        let extent = |axis: usize| self.spatial[axis] + 2 * lies.halo[axis];
        let plane = block * extent(0) + lies.halo[0] + plane;
        let row = plane * extent(1) + lies.halo[1] + row;
        item * lies.batch_stride + row * self.row(lies) + lies.halo[2] * self.lanes
    }
}
