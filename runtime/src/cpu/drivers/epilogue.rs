//! Epilogues, bound.

use super::DriverError;
use egret_program::driver::hook::View2;
use egret_program::driver::{Activation, Operand};
use egret_simd::{Element, Tile};

/// The most extra operands, and the most outputs, of a hook.
pub const MAX_VIEWS: usize = 32;

/// Most batch dims that a driver keeps apart.
pub(crate) const MAX_BATCH: usize = 6;

/// The bounds that an activation keeps.
pub(crate) fn clamp_of(activation: Activation) -> Option<(f32, f32)> {
    match activation {
        Activation::None => None,
        Activation::Relu => Some((0.0, f32::INFINITY)),
        Activation::Clamp(lo, hi) => Some((lo, hi)),
    }
}

/// Lower and upper bound of an activation.
pub(crate) fn bounds(activation: Activation) -> (f32, f32) {
    clamp_of(activation).unwrap_or((f32::NEG_INFINITY, f32::INFINITY))
}

pub(crate) fn set_activation<E: Element>(tile: &mut Tile<E>, activation: Activation) {
    tile.clamp = activation != Activation::None;
    let (lo, hi) = bounds(activation);
    (tile.lo, tile.hi) = (lo.into(), hi.into());
}

/// The strides of a hook's operand, in bytes; what each driver adds up to find a tile.
#[derive(Clone, Debug)]
pub(crate) struct Strides {
    pub(crate) bytes: usize,
    pub(crate) batch: [usize; MAX_BATCH],
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl Strides {
    /// Address of element (batch, row, col), and the view's strides.
    pub(crate) fn view(&self, base: *mut u8, batch: &[usize; MAX_BATCH], row: usize, col: usize) -> View2 {
        let items: usize = batch.iter().zip(&self.batch).map(|(i, s)| i * s).sum();
        let offset = items + row * self.row + col * self.col;
        View2 { ptr: base.wrapping_add(offset * self.bytes), row: self.row as i64, col: self.col as i64 }
    }

    /// An operand of a product whose output has these strides.
    pub(crate) fn of_product(
        operand: &Operand,
        bytes: u8,
        c_batch: &[usize; MAX_BATCH],
        c_row: usize,
    ) -> Result<Strides, DriverError> {
        let none = [0; MAX_BATCH];
        let (batch, row, col) = match operand {
            Operand::Scalar => (none, 0, 0),
            Operand::PerColumn => (none, 0, 1),
            Operand::PerRow => (none, 1, 0),
            Operand::Full { .. } => (*c_batch, c_row, 1),
            Operand::Strided { batch, row, col } => {
                if batch.len() > MAX_BATCH {
                    return Err(DriverError::Unsupported("more than 6 batch dims"));
                }
                let mut strides = none;
                strides[..batch.len()].copy_from_slice(batch);
                (strides, *row, *col)
            }
        };
        if col > 1 {
            return Err(DriverError::Unsupported("an extra operand whose column stride is above 1"));
        }
        Ok(Strides { bytes: usize::from(bytes), batch, row, col })
    }
}

/// Sizes of the elements of a hook's operands, checked against their number.
pub(crate) fn check_hook(extras: usize, outs: usize, element_bytes: &[u8]) -> Result<(), DriverError> {
    if extras > MAX_VIEWS {
        return Err(DriverError::Unsupported("more than 32 extra operands"));
    }
    if outs > 4 {
        return Err(DriverError::Unsupported("more than 4 outputs"));
    }
    if element_bytes.len() != extras + outs {
        return Err(DriverError::Problem("a hook needs the element size of each operand"));
    }
    Ok(())
}
