//! What the bf16 forms of drivers share: the processor's unit, and tiles of sums on their way through an epilogue.

use super::DriverError;
use egret_simd::bf16::{Bf16Kernels, Bf16Unit, COLUMNS, ROWS};
use egret_simd::{Isa, MAX_ROWS, Tile};

/// Floats of a tile of sums.
pub(crate) const FLOATS: usize = ROWS * COLUMNS;

/// The best unit of the host.
///
/// # Errors
/// When it has none.
pub(crate) fn unit() -> Result<Bf16Kernels, DriverError> {
    let kernels = Bf16Unit::detect().and_then(Bf16Unit::kernels);
    kernels.ok_or(DriverError::Unsupported("products of bf16 on a processor without AVX-512 BF16"))
}

/// Where the rows of a tile of sums lie.
pub(crate) struct Sums {
    isa: Isa,
    rows: [usize; MAX_ROWS],
}

impl Sums {
    pub(crate) fn new(isa: Isa) -> Sums {
        Sums { isa, rows: std::array::from_fn(|m| m * COLUMNS) }
    }

    /// A tile without products, which takes its partial sums through the epilogue.
    pub(crate) fn tile(&self) -> Tile {
        let mut tile = Tile::new(self.isa);
        (tile.rows, tile.partial_rows) = (self.rows.as_ptr(), self.rows.as_ptr());
        tile
    }
}
