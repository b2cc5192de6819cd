//! Pooling in blocked channels: for each row of each block of channels, pixels with equal windows at once.

mod gradient;
mod windows;

pub use gradient::{PoolGradArgs, PoolGradPlan};
use windows::{Columns, Windows};

use super::conv::{Hooked, Lattice, Place, Surface, dims};
use super::kernels::check_isa;
use super::{DriverError, ScratchNeed, ScratchPool, lines_by_blocks, part};
use crate::cpu::team::Team;
use egret_program::driver::hook::EpilogueFn;
use egret_program::driver::{Epilogue, PoolKind, PoolProblem};
use egret_simd::Isa;
use egret_simd::pool::{PoolFn, PoolRow, pool_row};

/// Operands of a pooling.
#[derive(Clone, Copy, Debug)]
pub struct PoolArgs<'a> {
    /// x.
    pub input: *const f32,
    /// y (not written with a hook, whose outputs are `outs`).
    pub output: *mut f32,
    /// Extra operands of the hook.
    pub extras: &'a [*mut u8],
    /// Outputs of the hook.
    pub outs: &'a [*mut u8],
    /// The hook, if the problem has one.
    pub hook: Option<EpilogueFn>,
}

/// A pooling whose extents are known.
#[derive(Debug)]
pub struct PoolPlan {
    kind: PoolKind,
    row: PoolFn,
    lanes: usize,
    batch: usize,
    channels: usize,
    read: Surface,
    write: Surface,
    windows: Windows,
    row_major: bool,
    hooked: Option<Hooked>,
}

/// The operands, shared by the team.
struct Nest<'a>(PoolArgs<'a>);

// SAFETY: operands are read, and rows written by one thread each.
unsafe impl Sync for Nest<'_> {}

impl PoolPlan {
    /// Binds.
    ///
    /// # Errors
    /// If the layout is not that of `isa`, lists differ in length, or the epilogue is a direct one.
    pub fn new(p: &PoolProblem, isa: Isa) -> Result<PoolPlan, DriverError> {
        check_isa(isa, p.lanes)?;
        let windows = Windows::new(p)?;
        let hooked = match &p.epilogue {
            epilogue if *epilogue == Epilogue::none() => None,
            Epilogue::Direct { .. } => return Err(DriverError::Unsupported("a direct epilogue of a pooling")),
            Epilogue::Hook { extras, outs, element_bytes } => {
                Some(Hooked::new(extras, outs, element_bytes, windows.y, p.lanes)?)
            }
        };
        let plan = PoolPlan {
            kind: p.kind,
            row: pool_row(isa).ok_or(DriverError::Unsupported("this instruction set"))?,
            lanes: p.lanes,
            batch: p.batch,
            channels: p.channels,
            read: Surface::new(windows.x, dims(&p.in_halo, 0), p.lanes, p.in_batch_stride),
            write: Surface::new(windows.y, dims(&p.out_halo, 0), p.lanes, p.out_batch_stride),
            windows,
            row_major: p.row_major,
            hooked,
        };
        if plan.row_major && plan.hooked.is_some() {
            return Err(DriverError::Unsupported("an epilogue of a row-major pooling"));
        }
        Ok(plan)
    }

    /// Offsets of a window's taps, and a row of results that go elsewhere than into blocked channels.
    pub fn scratch(&self) -> ScratchNeed {
        let strip = if self.row_major || self.hooked.is_some() { self.strip() * 4 } else { 0 };
        ScratchNeed {
            per_worker: strip + self.windows.kernel.iter().product::<usize>() * size_of::<usize>(),
            shared: 0,
        }
    }

    fn strip(&self) -> usize {
        (self.windows.y[2] * self.lanes).next_multiple_of(16)
    }

    /// Computes.
    ///
    /// # Safety
    /// The operands have the extents of the problem, y overlaps none of them, and `scratch` was made for this team and
    /// at least [`scratch`](PoolPlan::scratch).
    pub unsafe fn run(&self, args: &PoolArgs<'_>, team: &Team, scratch: &ScratchPool) {
        let blocks = self.channels.div_ceil(self.lanes);
        let [depths, heights, _] = self.windows.y;
        let lines = self.batch * depths * heights;
        if lines * blocks == 0 || self.windows.y[2] == 0 {
            return;
        }
        let nest = &Nest(*args);
        let (by_line, by_block) = lines_by_blocks(lines, blocks, team.size());
        team.parallel(by_line * by_block, &|chunk, worker| {
            let (first, end) = part(lines, chunk / by_block, by_line);
            let (from, to) = part(blocks, chunk % by_block, by_block);
            for block in from..to {
                for line in first..end {
                    let place = [line / heights / depths, line / heights % depths, line % heights];
                    // SAFETY: chunks write different rows or blocks.
                    unsafe { self.one_row(nest, place, block, scratch.worker(worker)) };
                }
            }
        });
    }

    /// One row, of an item and a plane, of one block of channels.
    unsafe fn one_row(
        &self,
        Nest(args): &Nest<'_>,
        [item, depth, height]: [usize; 3],
        block: usize,
        scratch: *mut f32,
    ) {
        let [depths, heights, width] = self.windows.y;
        let (planes, lines) = (self.windows.inside(0, depth), self.windows.inside(1, height));
        let strip = (self.row_major || self.hooked.is_some()).then_some(scratch);
        let taps = scratch.wrapping_add(if strip.is_some() { self.strip() } else { 0 }).cast::<usize>();
        let (dst, dst_step) = match strip {
            Some(strip) => (strip, self.lanes),
            None => {
                let at = self.write.origin + item * self.write.batch + block * self.write.block;
                let at = at + depth * self.write.step[0] + height * self.write.step[1];
                (args.output.wrapping_add(at), self.write.step[2])
            }
        };
        // The window's corner may lie before the tensor: only taps inside are read.
        let windows = &self.windows;
        let base = self.read.origin + item * self.read.batch + block * self.read.block;
        let corner = windows.corner(&self.read, 0, depth) + windows.corner(&self.read, 1, height);
        let base = args.input.wrapping_add(base).wrapping_offset(corner);
        for &Columns { at, pixels, taps: columns } in &windows.columns {
            // SAFETY: at most as many taps as the window has.
            let tap_count = unsafe { windows.taps(&self.read, [planes, lines, columns], taps) };
            let divisor = match self.kind {
                PoolKind::MeanAll => self.windows.kernel.iter().product::<usize>() as f32,
                PoolKind::MeanValid => tap_count as f32,
                _ => 1.0,
            };
            let row = PoolRow {
                src: base.wrapping_offset(windows.corner(&self.read, 2, at)),
                src_step: windows.stride[2] * self.read.step[2],
                taps,
                tap_count,
                dst: dst.wrapping_add(at * dst_step),
                dst_step,
                pixels,
                max: self.kind == PoolKind::Max,
                divisor,
            };
            // SAFETY: the taps lie inside x.
            unsafe { (self.row)(&row) };
        }
        let first_channel = block * self.lanes;
        let channels = self.lanes.min(self.channels - first_channel);
        match (&self.hooked, strip.zip(args.hook)) {
            (Some(hooked), Some((acc, hook))) => {
                let place =
                    Place { item, position: [depth, height, 0], acc, first_channel, channels, last: self.channels };
                // SAFETY: the strip holds the row.
                unsafe { hooked.call(hook, (args.extras, args.outs), &place, Lattice::ALL, (width, 0)) };
            }
            _ if self.row_major => {
                let row = ((item * self.channels + first_channel) * depths + depth) * heights + height;
                let plane = depths * heights * width;
                for channel in 0..channels {
                    // SAFETY: the channel's row of y, and the strip that holds all of them.
                    unsafe {
                        let to = args.output.add(row * width + channel * plane);
                        (0..width).for_each(|pixel| *to.add(pixel) = *dst.add(pixel * dst_step + channel));
                    }
                }
            }
            _ if channels < self.lanes => {
                for pixel in 0..width {
                    // SAFETY: the rest of the vector at that pixel.
                    unsafe {
                        std::ptr::write_bytes(dst.add(pixel * dst_step + channels), 0, self.lanes - channels);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::drivers::testing::{assert_close, isas, values};
    use crate::cpu::memory::Buffer;
    use egret_program::driver::hook::View2;
    use egret_program::driver::{ConvProblem, Operand};

    fn problem(kind: PoolKind, spatial: &[usize], kernel: &[usize], numbers: [usize; 4], lanes: usize) -> PoolProblem {
        let [channels, stride, dilation, pad] = numbers;
        let rank = spatial.len();
        let out: Vec<usize> =
            (0..rank).map(|d| (spatial[d] + 2 * pad - (kernel[d] - 1) * dilation - 1) / stride + 1).collect();
        let (in_halo, out_halo) = (vec![1; rank], vec![2; rank]);
        PoolProblem {
            kind,
            lanes,
            batch: 2,
            channels,
            in_batch_stride: ConvProblem::blocked_len(channels, spatial, &in_halo, lanes),
            out_batch_stride: ConvProblem::blocked_len(channels, &out, &out_halo, lanes),
            in_spatial: spatial.to_vec(),
            out_spatial: out,
            kernel: kernel.to_vec(),
            stride: vec![stride; rank],
            dilation: vec![dilation; rank],
            pad_begin: vec![pad; rank],
            in_halo,
            out_halo,
            row_major: false,
            epilogue: Epilogue::none(),
        }
    }

    fn positions(extent: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
        (0..extent[0]).flat_map(move |a| (0..extent[1]).flat_map(move |b| (0..extent[2]).map(move |c| [a, b, c])))
    }

    fn at(s: &Surface, lanes: usize, item: usize, channel: usize, p: [usize; 3]) -> usize {
        let pixel: usize = (0..3).map(|d| p[d] * s.step[d]).sum();
        s.origin + item * s.batch + channel / lanes * s.block + pixel + channel % lanes
    }

    /// out = acc * channel scale + 1
    unsafe extern "C" fn hook(acc: *const View2, rows: i64, cols: i64, extras: *const View2, outs: *const View2) {
        unsafe {
            let at = |v: &View2, i: i64, j: i64| v.ptr.cast::<f32>().offset((i * v.row + j * v.col) as isize);
            for i in 0..rows {
                for j in 0..cols {
                    *at(&*outs, i, j) = *at(&*acc, i, j) * *at(&*extras, i, j) + 1.0;
                }
            }
        }
    }

    fn check(mut p: PoolProblem, isa: Isa, hooked: bool) {
        let lanes = p.lanes;
        let scale = values(p.channels.next_multiple_of(lanes), 3);
        if hooked {
            let full = Operand::Full { halo: p.out_halo.clone(), batch_stride: p.out_batch_stride };
            p.epilogue =
                Epilogue::Hook { extras: vec![Operand::PerColumn], outs: vec![full], element_bytes: vec![4, 4] };
        }
        let plan = PoolPlan::new(&p, isa).unwrap();
        let (read, write) = (&plan.read, &plan.write);
        let mut x = Buffer::floats(p.batch * p.in_batch_stride).unwrap();
        let numbers = values(p.batch * p.in_batch_stride, 1);
        for (item, channel) in (0..p.batch).flat_map(|i| (0..p.channels).map(move |c| (i, c))) {
            for q in positions(plan.windows.x) {
                let i = at(read, lanes, item, channel, q);
                x.as_f32_mut()[i] = numbers[i];
            }
        }
        let mut results = Vec::new();
        for threads in [1, 3] {
            let team = Team::new(threads);
            let scratch = ScratchPool::new(team.size(), plan.scratch()).unwrap();
            let mut y = Buffer::floats(p.batch * p.out_batch_stride).unwrap();
            y.as_f32_mut().fill(7.0);
            let extras = [scale.as_ptr().cast_mut().cast::<u8>()];
            let outs = [y.as_ptr::<u8>()];
            let args = PoolArgs {
                input: x.as_ptr(),
                output: y.as_ptr(),
                extras: if hooked { &extras } else { &[] },
                outs: if hooked { &outs } else { &[] },
                hook: hooked.then_some(hook as EpilogueFn),
            };
            unsafe { plan.run(&args, &team, &scratch) };
            results.push(y.as_f32().to_vec());
        }
        assert_eq!(results[0], results[1]);
        let got = &results[0];
        let mut touched = vec![false; got.len()];
        for (item, channel) in (0..p.batch).flat_map(|i| (0..p.channels.next_multiple_of(lanes)).map(move |c| (i, c))) {
            for q in positions(plan.windows.y) {
                let i = at(write, lanes, item, channel, q);
                touched[i] = true;
                if channel >= p.channels {
                    assert_eq!(got[i], 0.0, "absent lane");
                    continue;
                }
                let window: Vec<f64> = positions(plan.windows.kernel)
                    .filter_map(|tap| {
                        let at_axis = |d: usize| {
                            let v = (q[d] * plan.windows.stride[d] + tap[d] * plan.windows.dilation[d])
                                .checked_sub(plan.windows.pad[d])?;
                            (v < plan.windows.x[d]).then_some(v)
                        };
                        Some([at_axis(0)?, at_axis(1)?, at_axis(2)?])
                    })
                    .map(|r| f64::from(x.as_f32()[at(read, lanes, item, channel, r)]))
                    .collect();
                let sum: f64 = window.iter().sum();
                let mut want = match p.kind {
                    PoolKind::Max => window.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    PoolKind::Sum => sum,
                    PoolKind::MeanValid => sum / window.len() as f64,
                    PoolKind::MeanAll => sum / plan.windows.kernel.iter().product::<usize>() as f64,
                };
                if hooked {
                    want = want * f64::from(scale[channel]) + 1.0;
                }
                let size = window.iter().map(|v| v.abs()).sum::<f64>() + 1.0;
                assert_close(got[i], want, window.len() + 2, size, &format_args!("{isa} {p}"));
            }
        }
        assert!(got.iter().zip(&touched).all(|(v, t)| *t || *v == 7.0), "halo written");
    }

    #[test]
    fn windows() {
        for isa in isas() {
            let l = isa.lanes_f32();
            for kind in [PoolKind::Max, PoolKind::Sum, PoolKind::MeanValid, PoolKind::MeanAll] {
                for hooked in [false, true] {
                    check(problem(kind, &[9, 11], &[3, 3], [l + 3, 2, 1, 1], l), isa, hooked);
                    check(problem(kind, &[10, 7], &[2, 3], [2 * l, 1, 2, 0], l), isa, hooked);
                    check(problem(kind, &[7, 7], &[7, 7], [5, 1, 1, 0], l), isa, hooked);
                    check(problem(kind, &[23], &[4], [l, 3, 1, 2], l), isa, hooked);
                    check(problem(kind, &[4, 5, 6], &[2, 2, 3], [3, 2, 1, 1], l), isa, hooked);
                }
            }
        }
    }

    #[test]
    fn rows_that_leave_blocked_channels() {
        for isa in isas() {
            let l = isa.lanes_f32();
            for (spatial, kernel, channels) in [(vec![9, 11], vec![3, 3], l + 3), (vec![4, 5, 6], vec![2, 2, 3], 3)] {
                let blocked = problem(PoolKind::Max, &spatial, &kernel, [channels, 2, 1, 1], l);
                let row_major = PoolProblem { row_major: true, out_batch_stride: 0, ..blocked.clone() };
                let x = values(blocked.batch * blocked.in_batch_stride, 1);
                let run = |p: &PoolProblem, elements: usize| {
                    let plan = PoolPlan::new(p, isa).unwrap();
                    let (team, mut y) = (Team::new(2), Buffer::floats(elements).unwrap());
                    let scratch = ScratchPool::new(team.size(), plan.scratch()).unwrap();
                    let args = PoolArgs { input: x.as_ptr(), output: y.as_ptr(), extras: &[], outs: &[], hook: None };
                    unsafe { plan.run(&args, &team, &scratch) };
                    (plan, y.as_f32_mut().to_vec())
                };
                let (plan, want) = run(&blocked, blocked.batch * blocked.out_batch_stride);
                let pixels: usize = blocked.out_spatial.iter().product();
                let (_, have) = run(&row_major, blocked.batch * channels * pixels);
                for (i, have) in have.iter().enumerate() {
                    let (item, channel) = (i / pixels / channels, i / pixels % channels);
                    let place = positions(plan.windows.y).nth(i % pixels).unwrap();
                    assert_eq!(*have, want[at(&plan.write, l, item, channel, place)], "{isa} {i}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        let good = problem(PoolKind::Max, &[6, 6], &[2, 2], [8, 2, 1, 0], 8);
        let error = |p: &PoolProblem| PoolPlan::new(p, Isa::Portable).unwrap_err();
        let mut p = good.clone();
        p.stride = vec![0, 1];
        assert!(matches!(error(&p), DriverError::Problem(_)));
        let mut p = good.clone();
        p.kernel = vec![2];
        assert!(matches!(error(&p), DriverError::Problem(_)));
        let mut p = good;
        p.lanes = 16;
        assert!(matches!(error(&p), DriverError::Isa { .. }));
    }
}
