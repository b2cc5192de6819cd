//! The gradient of pooling in blocked channels: each window gives its share to the elements that it read.

use super::super::conv::{Surface, dims};
use super::super::kernels::check_isa;
use super::super::{DriverError, ScratchNeed, ScratchPool, chunk_count, part};
use super::windows::{Columns, Windows};
use crate::cpu::team::Team;
use egret_program::driver::{PoolGradProblem, PoolKind};
use egret_simd::Isa;
use egret_simd::pool_gradient::{PoolGradFn, PoolGradRow, pool_gradient_row};

/// Operands of the gradient of a pooling.
#[derive(Clone, Copy, Debug)]
pub struct PoolGradArgs {
    /// x; read for maxima alone.
    pub x: *const f32,
    /// The gradient by y.
    pub dy: *const f32,
    /// The gradient by x.
    pub dx: *mut f32,
}

// SAFETY: x and dy are read, and planes of dx written by one thread each.
unsafe impl Sync for PoolGradArgs {}

/// The gradient of a pooling whose extents are known.
#[derive(Debug)]
pub struct PoolGradPlan {
    kind: PoolKind,
    row: PoolGradFn,
    lanes: usize,
    batch: usize,
    blocks: usize,
    x: Surface,
    dy: Surface,
    dx: Surface,
    /// Whether each element is read by one window at most.
    alone: bool,
    windows: Windows,
}

impl PoolGradPlan {
    /// Binds.
    ///
    /// # Errors
    /// If the layout is not that of `isa`, or lists differ in length.
    pub fn new(p: &PoolGradProblem, isa: Isa) -> Result<PoolGradPlan, DriverError> {
        let pool = &p.pool;
        check_isa(isa, pool.lanes)?;
        let windows = Windows::new(pool)?;
        if p.dx_halo.len() != pool.in_halo.len() {
            return Err(DriverError::Problem("spatial lists of a pooling differ in length"));
        }
        Ok(PoolGradPlan {
            kind: pool.kind,
            row: pool_gradient_row(isa).ok_or(DriverError::Unsupported("this instruction set"))?,
            lanes: pool.lanes,
            batch: pool.batch,
            blocks: pool.channels.div_ceil(pool.lanes),
            x: Surface::new(windows.x, dims(&pool.in_halo, 0), pool.lanes, pool.in_batch_stride),
            dy: Surface::new(windows.y, dims(&pool.out_halo, 0), pool.lanes, pool.out_batch_stride),
            dx: Surface::new(windows.x, dims(&p.dx_halo, 0), pool.lanes, p.dx_batch_stride),
            alone: windows.kernel == windows.stride && windows.dilation == [1; 3],
            windows,
        })
    }

    /// Offsets of a window's taps, in x and in dx.
    pub fn scratch(&self) -> ScratchNeed {
        ScratchNeed { per_worker: 2 * self.windows.elements() * size_of::<usize>(), shared: 0 }
    }

    /// Computes.
    ///
    /// # Safety
    /// The operands have the extents of the problem, dx overlaps none of them, and `scratch` was made for this team and
    /// at least [`scratch`](PoolGradPlan::scratch).
    pub unsafe fn run(&self, args: &PoolGradArgs, team: &Team, scratch: &ScratchPool) {
        let planes = self.batch * self.blocks;
        if planes == 0 || self.windows.x.contains(&0) {
            return;
        }
        let args = &args;
        let chunks = chunk_count(planes, 1, team.size());
        team.parallel(chunks, &|chunk, worker| {
            let (first, end) = part(planes, chunk, chunks);
            for plane in first..end {
                // SAFETY: chunks write different planes.
                unsafe { self.plane(args, plane, scratch.worker(worker).cast()) };
            }
        });
    }

    /// One block of channels of one item: windows in order, so that sums do not depend on threads.
    unsafe fn plane(&self, args: &PoolGradArgs, plane: usize, taps: *mut usize) {
        let (item, block) = (plane / self.blocks, plane % self.blocks);
        let start = |s: &Surface| s.origin + item * s.batch + block * s.block;
        let windows = &self.windows;
        let dx = args.dx.wrapping_add(start(&self.dx));
        // what the windows write is not zeroed first
        let written = if self.alone { windows.covered() } else { [0; 3] };
        for depth in 0..windows.x[0] {
            for height in 0..windows.x[1] {
                let from = if depth < written[0] && height < written[1] { written[2] } else { 0 };
                let row = dx.wrapping_add(depth * self.dx.step[0] + height * self.dx.step[1] + from * self.lanes);
                // SAFETY: the rest of a row of dx.
                unsafe { std::ptr::write_bytes(row, 0, (windows.x[2] - from) * self.lanes) };
            }
        }
        let (x_taps, dx_taps) = (taps, taps.wrapping_add(windows.elements()));
        for depth in 0..windows.y[0] {
            for height in 0..windows.y[1] {
                let (planes, lines) = (windows.inside(0, depth), windows.inside(1, height));
                let dy = args.dy.wrapping_add(start(&self.dy) + depth * self.dy.step[0] + height * self.dy.step[1]);
                let corner = |s: &Surface, at: usize| {
                    windows.corner(s, 0, depth) + windows.corner(s, 1, height) + windows.corner(s, 2, at)
                };
                for &Columns { at, pixels, taps: columns } in &windows.columns {
                    let ranges = [planes, lines, columns];
                    // SAFETY: there is room for the taps of a window, twice.
                    let tap_count = unsafe {
                        windows.taps(&self.x, ranges, x_taps);
                        windows.taps(&self.dx, ranges, dx_taps)
                    };
                    let row = PoolGradRow {
                        x: args.x.wrapping_add(start(&self.x)).wrapping_offset(corner(&self.x, at)),
                        x_step: windows.stride[2] * self.x.step[2],
                        x_taps,
                        dx: dx.wrapping_offset(corner(&self.dx, at)),
                        dx_step: windows.stride[2] * self.dx.step[2],
                        dx_taps,
                        tap_count,
                        dy: dy.wrapping_add(at * self.dy.step[2]),
                        dy_step: self.dy.step[2],
                        pixels,
                        max: self.kind == PoolKind::Max,
                        divisor: match self.kind {
                            PoolKind::MeanAll => windows.elements() as f32,
                            PoolKind::MeanValid => tap_count as f32,
                            _ => 1.0,
                        },
                        alone: self.alone,
                    };
                    // SAFETY: the taps lie inside x and dx.
                    unsafe { (self.row)(&row) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::drivers::testing::{assert_close, isas, values};
    use crate::cpu::memory::Buffer;
    use egret_program::driver::{ConvProblem, Epilogue, PoolProblem};

    /// A problem with halos 1, 2 and 0 around x, dy and dx.
    fn problem(
        kind: PoolKind,
        spatial: &[usize],
        kernel: &[usize],
        numbers: [usize; 4],
        lanes: usize,
    ) -> PoolGradProblem {
        let [channels, stride, dilation, pad] = numbers;
        let rank = spatial.len();
        let out: Vec<usize> =
            (0..rank).map(|d| (spatial[d] + 2 * pad - (kernel[d] - 1) * dilation - 1) / stride + 1).collect();
        let pool = PoolProblem {
            kind,
            lanes,
            batch: 2,
            channels,
            in_batch_stride: ConvProblem::blocked_len(channels, spatial, &vec![1; rank], lanes),
            out_batch_stride: ConvProblem::blocked_len(channels, &out, &vec![2; rank], lanes),
            in_spatial: spatial.to_vec(),
            out_spatial: out,
            kernel: kernel.to_vec(),
            stride: vec![stride; rank],
            dilation: vec![dilation; rank],
            pad_begin: vec![pad; rank],
            in_halo: vec![1; rank],
            out_halo: vec![2; rank],
            row_major: false,
            epilogue: Epilogue::none(),
        };
        let dx_batch_stride = ConvProblem::blocked_len(channels, spatial, &vec![0; rank], lanes);
        PoolGradProblem { pool, dx_halo: vec![0; rank], dx_batch_stride }
    }

    fn positions(extent: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
        (0..extent[0]).flat_map(move |a| (0..extent[1]).flat_map(move |b| (0..extent[2]).map(move |c| [a, b, c])))
    }

    fn check(p: PoolGradProblem, isa: Isa) {
        let plan = PoolGradPlan::new(&p, isa).unwrap();
        let (lanes, windows) = (p.pool.lanes, &plan.windows);
        let at = |s: &Surface, item: usize, channel: usize, place: [usize; 3]| {
            let pixel: usize = (0..3).map(|d| place[d] * s.step[d]).sum();
            s.origin + item * s.batch + channel / lanes * s.block + pixel + channel % lanes
        };
        // few distinct values, so that maxima are tied
        let mut x = values(p.pool.batch * p.pool.in_batch_stride, 1);
        x.iter_mut().for_each(|v| *v = (*v * 3.0).round());
        let dy = values(p.pool.batch * p.pool.out_batch_stride, 2);
        let length = p.pool.batch * p.dx_batch_stride;
        let (mut want, mut sizes) = (vec![0f64; length], vec![0f64; length]);
        for item in 0..p.pool.batch {
            for channel in 0..p.pool.channels {
                for place in positions(windows.y) {
                    let ranges: [_; 3] = std::array::from_fn(|d| windows.inside(d, place[d]));
                    let corner: [isize; 3] = std::array::from_fn(|d| {
                        (place[d] * p3(&p.pool.stride, 1)[d]) as isize - p3(&p.pool.pad_begin, 0)[d] as isize
                    });
                    let taps: Vec<[usize; 3]> = positions(std::array::from_fn(|d| ranges[d].1 - ranges[d].0))
                        .map(|t| {
                            std::array::from_fn(|d| {
                                (corner[d] + ((t[d] + ranges[d].0) * p3(&p.pool.dilation, 1)[d]) as isize) as usize
                            })
                        })
                        .collect();
                    let read = |place: &[usize; 3]| f64::from(x[at(&plan.x, item, channel, *place)]);
                    let dy = f64::from(dy[at(&plan.dy, item, channel, place)]);
                    let best = taps.iter().map(read).fold(f64::NEG_INFINITY, f64::max);
                    let ties = taps.iter().filter(|tap| read(tap) == best).count() as f64;
                    for tap in &taps {
                        let share = match p.pool.kind {
                            PoolKind::Max if read(tap) == best => dy / ties,
                            PoolKind::Max => 0.0,
                            PoolKind::Sum => dy,
                            PoolKind::MeanAll => dy / windows.elements() as f64,
                            PoolKind::MeanValid => dy / taps.len() as f64,
                        };
                        want[at(&plan.dx, item, channel, *tap)] += share;
                        sizes[at(&plan.dx, item, channel, *tap)] += share.abs();
                    }
                }
            }
        }
        let mut first: Option<Vec<f32>> = None;
        for threads in [1, 2] {
            let (team, mut dx) = (Team::new(threads), Buffer::floats(length).unwrap());
            dx.as_f32_mut().fill(f32::NAN);
            let scratch = ScratchPool::new(team.size(), plan.scratch()).unwrap();
            let args = PoolGradArgs { x: x.as_ptr(), dy: dy.as_ptr(), dx: dx.as_ptr() };
            unsafe { plan.run(&args, &team, &scratch) };
            let got = dx.as_f32_mut().to_vec();
            for item in 0..p.pool.batch {
                for channel in 0..p.pool.channels {
                    for place in positions(windows.x) {
                        let i = at(&plan.dx, item, channel, place);
                        assert_close(
                            got[i],
                            want[i],
                            windows.elements(),
                            sizes[i],
                            &format!("{isa} {:?} {place:?}", p.pool.kind),
                        );
                    }
                }
            }
            assert!(first.get_or_insert(got.clone()).iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    fn p3(list: &[usize], fill: usize) -> [usize; 3] {
        dims(list, fill)
    }

    #[test]
    fn gradients_of_windows() {
        for isa in isas() {
            let l = isa.lanes_f32();
            for kind in [PoolKind::Max, PoolKind::Sum, PoolKind::MeanValid, PoolKind::MeanAll] {
                check(problem(kind, &[9, 11], &[3, 3], [l, 2, 1, 1], l), isa);
                check(problem(kind, &[10, 7], &[2, 3], [l + 3, 1, 2, 0], l), isa);
                check(problem(kind, &[8, 8], &[2, 2], [6, 2, 1, 0], l), isa);
                check(problem(kind, &[23], &[4], [l, 3, 1, 2], l), isa);
                check(problem(kind, &[4, 5, 6], &[2, 2, 3], [3, 2, 1, 1], l), isa);
            }
        }
    }
}
