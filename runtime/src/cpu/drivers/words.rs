//! What drivers of operands narrowed to words share: the processor's unit, panels of weights, and tiles of sums on their way
//! through an epilogue.

use super::DriverError;
use super::kernels::Kernels;
use egret_program::driver::Words;
use egret_simd::words::{COLUMNS, ROWS, WordKernels, WordUnit};
use egret_simd::{Isa, MAX_ROWS, Tile, TileKind};

/// Sums of a tile.
pub(crate) const SUMS: usize = ROWS * COLUMNS;

/// The best unit of the host.
///
/// # Errors
/// When it has none.
pub(crate) fn unit(words: Words) -> Result<WordKernels, DriverError> {
    let (unit, without) = match words {
        Words::Bf16 => (WordUnit::bf16(), "products of bf16 on a processor without AVX-512 BF16"),
        Words::Bytes { .. } => (WordUnit::bytes(), "products of bytes on a processor without AVX-512 VNNI"),
    };
    unit.and_then(WordUnit::kernels).ok_or(DriverError::Unsupported(without))
}

/// The kernels that take sums through an epilogue.
///
/// # Errors
/// When the host lacks the instruction set.
pub(crate) fn finishing(isa: Isa, words: Words) -> Result<Kernels, DriverError> {
    if words.is_integer() { Kernels::shorts(isa, TileKind::Table) } else { Kernels::new(isa, TileKind::Table) }
}

/// What the sums of a packed panel begin with (null: zeros), and its taps.
pub(crate) fn opened(panel: *const u32, words: Words) -> (*const u32, *const u32) {
    let start = if words.lead() == 0 { std::ptr::null() } else { panel };
    (start, panel.wrapping_add(words.lead() * COLUMNS))
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
