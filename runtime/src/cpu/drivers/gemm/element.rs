//! What products of an element type have besides the loop nest.

use super::block::Chunk;
use crate::cpu::drivers::DriverError;
use crate::cpu::drivers::kernels::Kernels;
use egret_program::driver::Products;
use egret_simd::{Element, Isa, TileKind};
use std::convert::Infallible;

/// An element type of products.
pub(super) trait Factor: Element {
    /// Operands narrowed to words, bound.
    type Narrowed: std::fmt::Debug + Send + Sync;

    /// The kernels of tiles, and how operands are narrowed if they are, for sums of `k` products.
    ///
    /// # Errors
    /// When the host lacks what they need, or they are of another type.
    fn bind(
        products: Products,
        k: usize,
        isa: Isa,
        kind: TileKind,
    ) -> Result<(Kernels<Self>, Option<Self::Narrowed>), DriverError>;

    /// Elements of scratch for so many narrowed rows.
    fn scratch(narrowed: &Self::Narrowed, rows: usize) -> usize;

    /// Rows `m0..m1` of panels `p0..p1`.
    ///
    /// # Safety
    /// As for the plan; nobody else writes this part of C.
    unsafe fn run(chunk: &Chunk<'_, Self>, narrowed: &Self::Narrowed, rows: (usize, usize), panels: (usize, usize));
}

impl Factor for f64 {
    type Narrowed = Infallible;

    fn bind(
        products: Products,
        _: usize,
        isa: Isa,
        kind: TileKind,
    ) -> Result<(Kernels<f64>, Option<Infallible>), DriverError> {
        match products {
            Products::F64 => Ok((Kernels::new(isa, kind)?, None)),
            _ => Err(DriverError::Problem("products of 32 bits in a plan of f64")),
        }
    }

    fn scratch(narrowed: &Infallible, _: usize) -> usize {
        match *narrowed {}
    }

    unsafe fn run(_: &Chunk<'_, f64>, narrowed: &Infallible, _: (usize, usize), _: (usize, usize)) {
        match *narrowed {}
    }
}
