//! Hooks of images in blocked channels, called with a row of pixels of one vector of channels at a time.

use super::geometry::{Dims, Surface, dims};
use crate::cpu::drivers::DriverError;
use crate::cpu::drivers::epilogue::{MAX_VIEWS, check_hook};
use egret_program::driver::Operand;
use egret_program::driver::hook::{EpilogueFn, View2};

/// How an operand or output of a hook is addressed.
#[derive(Debug)]
enum Address {
    Scalar,
    Channel,
    Blocked(Surface),
}

/// The operands and outputs of a hook, each with the bytes of its elements.
#[derive(Debug)]
pub(crate) struct Hooked {
    extras: Vec<(Address, usize)>,
    outs: Vec<(Address, usize)>,
    lanes: usize,
}

/// One row of results of some channels.
pub(crate) struct Place {
    pub(crate) item: usize,
    /// The row's first position, of those that are computed together.
    pub(crate) position: Dims,
    /// The results: `[vector][pixel][lane]`, beginning with lane 0 of the vector of the first channel.
    pub(crate) acc: *mut f32,
    pub(crate) first_channel: usize,
    pub(crate) channels: usize,
    /// Channels of the whole tensor: behind them lanes are zero.
    pub(crate) last: usize,
}

/// Positions that are computed together: every so many, from the first on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lattice {
    pub(crate) first: Dims,
    pub(crate) step: Dims,
}

impl Lattice {
    /// All positions.
    pub(crate) const ALL: Lattice = Lattice { first: [0; 3], step: [1; 3] };

    /// Floats from one position to the next in a tensor.
    pub(crate) fn steps_in(&self, surface: &Surface) -> Dims {
        std::array::from_fn(|d| self.step[d] * surface.step[d])
    }

    /// Offset of the first position in a tensor.
    pub(crate) fn origin_in(&self, surface: &Surface) -> usize {
        surface.origin + (0..3).map(|d| self.first[d] * surface.step[d]).sum::<usize>()
    }
}

impl Hooked {
    /// The operands of a hook over a tensor of these extents.
    ///
    /// # Errors
    /// If their numbers contradict each other, or an operand is no scalar, vector of channels or full tensor.
    pub(crate) fn new(
        extras: &[Operand],
        outs: &[Operand],
        element_bytes: &[u8],
        written: Dims,
        lanes: usize,
    ) -> Result<Hooked, DriverError> {
        check_hook(extras.len(), outs.len(), element_bytes)?;
        let mut all = Vec::new();
        for (operand, bytes) in extras.iter().chain(outs).zip(element_bytes) {
            let address = match operand {
                Operand::Scalar => Address::Scalar,
                Operand::PerColumn => Address::Channel,
                Operand::Full { halo, batch_stride } => {
                    Address::Blocked(full_surface(written, halo, *batch_stride, lanes)?)
                }
                _ => return Err(DriverError::Unsupported("row or strided operands in the epilogue of an image")),
            };
            all.push((address, usize::from(*bytes)));
        }
        let outs = all.split_off(extras.len());
        if outs.iter().any(|(a, _)| !matches!(a, Address::Blocked(_))) {
            return Err(DriverError::Problem("an output of an image's hook must be full"));
        }
        Ok(Hooked { extras: all, outs, lanes })
    }

    /// Calls the hook for each vector of a row, and clears the lanes of channels that do not exist. Vectors of results
    /// lie `strip` pixels apart.
    ///
    /// # Safety
    /// The operands are those that the hook was made for, the results have `width` pixels.
    pub(crate) unsafe fn call(
        &self,
        hook: EpilogueFn,
        (extras, outs): (&[*mut u8], &[*mut u8]),
        place: &Place,
        lattice: Lattice,
        (width, strip): (usize, usize),
    ) {
        let lanes = self.lanes;
        let end = place.first_channel + place.channels;
        let mut channel = place.first_channel;
        while channel < end {
            let (block, lane) = (channel / lanes, channel % lanes);
            let cols = (lanes - lane).min(end - channel);
            let in_strip = (block - place.first_channel / lanes) * strip * lanes + lane;
            let acc = View2 { ptr: place.acc.wrapping_add(in_strip).cast(), row: lanes as i64, col: 1 };
            let view = |(address, bytes): &(Address, usize), base: *mut u8| match address {
                Address::Scalar => View2 { ptr: base, row: 0, col: 0 },
                Address::Channel => View2 { ptr: base.wrapping_add(channel * bytes), row: 0, col: 1 },
                Address::Blocked(surface) => {
                    let step = lattice.steps_in(surface);
                    let spatial: usize = (0..3).map(|d| place.position[d] * step[d]).sum();
                    let pixel = lattice.origin_in(surface) + place.item * surface.batch + spatial;
                    let offset = pixel + block * surface.block + lane;
                    View2 { ptr: base.wrapping_add(offset * bytes), row: step[2] as i64, col: 1 }
                }
            };
            let mut extra_views = [View2::NULL; MAX_VIEWS];
            for ((to, address), base) in extra_views.iter_mut().zip(&self.extras).zip(extras) {
                *to = view(address, *base);
            }
            let mut out_views = [View2::NULL; 4];
            for ((to, address), base) in out_views.iter_mut().zip(&self.outs).zip(outs) {
                *to = view(address, *base);
            }
            // SAFETY: the views lie within the operands; the hook's signature is the ABI's.
            unsafe {
                hook(&acc, width as i64, cols as i64, extra_views.as_ptr(), out_views.as_ptr());
            }
            channel += cols;
            let absent = (lanes - lane) - cols;
            if absent > 0 && channel == place.last {
                for (out, (_, bytes)) in out_views.iter().zip(&self.outs) {
                    for pixel in 0..width {
                        let at = out.ptr.wrapping_add((pixel * out.row as usize + cols) * bytes);
                        // SAFETY: the rest of the vector at that pixel.
                        unsafe { std::ptr::write_bytes(at, 0, absent * bytes) };
                    }
                }
            }
        }
    }
}

/// Where an operand as large as the written tensor lies.
///
/// # Errors
/// If its halo has too few or too many dims.
pub(super) fn full_surface(
    written: Dims,
    halo: &[usize],
    batch_stride: usize,
    lanes: usize,
) -> Result<Surface, DriverError> {
    if halo.is_empty() || halo.len() > 3 {
        return Err(DriverError::Problem("an operand's halo needs an entry for each dim"));
    }
    Ok(Surface::new(written, dims(halo, 0), lanes, batch_stride))
}
