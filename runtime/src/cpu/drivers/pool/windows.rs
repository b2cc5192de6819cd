//! Where windows lie, and which of their taps lie inside.

use super::super::DriverError;
use super::super::conv::{Surface, dims};
use egret_program::driver::PoolProblem;

/// The windows of a pooling in three dims.
#[derive(Debug)]
pub(super) struct Windows {
    pub(super) x: [usize; 3],
    pub(super) y: [usize; 3],
    pub(super) kernel: [usize; 3],
    pub(super) stride: [usize; 3],
    pub(super) dilation: [usize; 3],
    pub(super) pad: [usize; 3],
    pub(super) columns: Vec<Columns>,
}

/// Neighbouring output columns whose windows hold the same taps of the last axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    pub(super) at: usize,
    pub(super) pixels: usize,
    pub(super) taps: (usize, usize),
}

/// Taps of one axis that lie inside, for the window at an output index: from the first to before the last.
fn inside(at: usize, stride: usize, pad: usize, dilation: usize, kernel: usize, extent: usize) -> (usize, usize) {
    let origin = (at * stride) as isize - pad as isize;
    let up = |n: isize| (n.max(0) as usize).div_ceil(dilation).min(kernel);
    let (low, high) = (up(-origin), up(extent as isize - origin));
    (low, high.max(low))
}

impl Windows {
    pub(super) fn new(p: &PoolProblem) -> Result<Windows, DriverError> {
        let rank = p.in_spatial.len();
        if rank == 0 || rank > 3 {
            return Err(DriverError::Unsupported("pooling of other than 1 to 3 spatial dims"));
        }
        let lists = [&p.out_spatial, &p.kernel, &p.stride, &p.dilation, &p.pad_begin, &p.in_halo, &p.out_halo];
        if lists.iter().any(|list| list.len() != rank) {
            return Err(DriverError::Problem("spatial lists of a pooling differ in length"));
        }
        if [&p.kernel, &p.stride, &p.dilation].iter().any(|list| list.contains(&0)) {
            return Err(DriverError::Problem("kernel, stride and dilation must be at least 1"));
        }
        let mut windows = Windows {
            x: dims(&p.in_spatial, 1),
            y: dims(&p.out_spatial, 1),
            kernel: dims(&p.kernel, 1),
            stride: dims(&p.stride, 1),
            dilation: dims(&p.dilation, 1),
            pad: dims(&p.pad_begin, 0),
            columns: Vec::new(),
        };
        for at in 0..windows.y[2] {
            let taps = windows.inside(2, at);
            match windows.columns.last_mut() {
                Some(last) if last.taps == taps => last.pixels += 1,
                _ => windows.columns.push(Columns { at, pixels: 1, taps }),
            }
        }
        Ok(windows)
    }

    /// Elements of a window.
    pub(super) fn elements(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Taps of an axis that lie inside, for the window at an output index.
    pub(super) fn inside(&self, d: usize, at: usize) -> (usize, usize) {
        inside(at, self.stride[d], self.pad[d], self.dilation[d], self.kernel[d], self.x[d])
    }

    /// Of windows that lie side by side, how much of each axis of x they hold.
    pub(super) fn covered(&self) -> [usize; 3] {
        std::array::from_fn(|d| (self.y[d] * self.stride[d]).saturating_sub(self.pad[d]).min(self.x[d]))
    }

    /// From position 0 of a tensor over x to the first tap of a window, in floats.
    pub(super) fn corner(&self, surface: &Surface, d: usize, at: usize) -> isize {
        ((at * self.stride[d]) as isize - self.pad[d] as isize) * surface.step[d] as isize
    }

    /// Writes the offsets of the taps in these ranges of each axis from the window's first; gives their number.
    ///
    /// # Safety
    /// There is room for [`elements`](Windows::elements).
    pub(super) unsafe fn taps(&self, surface: &Surface, ranges: [(usize, usize); 3], to: *mut usize) -> usize {
        let mut count = 0;
        for z in ranges[0].0..ranges[0].1 {
            for y in ranges[1].0..ranges[1].1 {
                for x in ranges[2].0..ranges[2].1 {
                    let steps = [z, y, x].into_iter().enumerate();
                    let offset: usize = steps.map(|(d, tap)| tap * self.dilation[d] * surface.step[d]).sum();
                    // SAFETY: the caller's room.
                    unsafe { to.add(count).write(offset) };
                    count += 1;
                }
            }
        }
        count
    }
}
