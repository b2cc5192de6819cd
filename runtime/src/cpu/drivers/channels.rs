//! Channels taken from images in blocked channels.

use super::kernels::check_isa;
use super::{DriverError, Shared, lines_by_blocks, part};
use crate::cpu::team::Team;
use egret_program::driver::ChannelsProblem;
use egret_simd::Isa;
use egret_simd::channels::{ChannelRows, MAX_LANES, Source, Taken, channel_rows};

/// A block of a source that a block of the result takes channels from.
#[derive(Debug)]
struct Read {
    source: usize,
    block: usize,
}

/// Channels to be taken, with known extents.
#[derive(Debug)]
pub struct ChannelsPlan {
    kernel: unsafe fn(&ChannelRows),
    lanes: usize,
    batch: usize,
    sources: Vec<Lies>,
    spatial: [usize; 3],
    result: Lies,
    /// By block of the result, where its reads end.
    ends: Vec<usize>,
    reads: Vec<Read>,
    taken: Vec<Taken>,
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
        let (mut ends, mut reads, mut taken): (Vec<usize>, Vec<Read>, Vec<Taken>) = Default::default();
        for block in problem.taken.chunks(lanes) {
            let first = reads.len();
            for (lane, (source, channel)) in block.iter().enumerate() {
                let (source, channel) = (*source as usize, *channel as usize);
                if problem.sources.get(source).is_none_or(|source| channel >= source.channels) {
                    return Err(DriverError::Problem("a channel is taken that no source has"));
                }
                let from = channel / lanes;
                let known = reads[first..].iter().position(|read| read.source == source && read.block == from);
                let at = first + known.unwrap_or(reads.len() - first);
                if known.is_none() {
                    reads.push(Read { source, block: from });
                    taken.push([-1; MAX_LANES]);
                }
                taken[at][lane] = (channel % lanes) as i32;
            }
            ends.push(reads.len());
        }
        Ok(ChannelsPlan {
            kernel: channel_rows(isa).ok_or(DriverError::Unsupported("this instruction set"))?,
            lanes,
            batch: problem.batch,
            sources: problem.sources.iter().map(|source| lies(&source.halo, source.batch_stride)).collect(),
            spatial: pad(&problem.spatial, 1),
            result: lies(&problem.halo, problem.batch_stride),
            ends,
            reads,
            taken,
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
        let (by_line, by_block) = lines_by_blocks(lines, self.ends.len(), team.size());
        team.parallel(by_line * by_block, &|chunk, _| {
            let (result, sources) = (&result, &sources);
            let (first, end) = part(lines, chunk / by_block, by_line);
            let (from, to) = part(self.ends.len(), chunk % by_block, by_block);
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
        let reads = block.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[block];
        let mut from = [Source { at: std::ptr::null(), row: 0 }; MAX_LANES];
        for (from, read) in from.iter_mut().zip(&self.reads[reads.clone()]) {
            let lies = &self.sources[read.source];
            // SAFETY: the plan checked the number of sources.
            let at = unsafe { *sources.add(read.source) }.cast::<f32>();
            from.at = at.wrapping_add(self.offset(lies, item, read.block, plane, row));
            from.row = self.row(lies);
        }
        let all = ChannelRows {
            dst: result.wrapping_add(self.offset(&self.result, item, block, plane, row)),
            dst_row: self.row(&self.result),
            rows,
            pixels: self.spatial[2],
            sources: from.as_ptr(),
            taken: self.taken[reads.clone()].as_ptr(),
            count: reads.len(),
        };
        // SAFETY: the caller's.
        unsafe { (self.kernel)(&all) };
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
