//! The element types of tiles and panels.

use crate::tile::{TileFn, TileKind};
use crate::{Isa, RowsFn, TransposeFn};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// What tiles multiply: `f32` or `f64`.
pub trait Element: sealed::Sealed + Copy + PartialOrd + From<f32> + Into<f64> + Send + Sync + 'static {
    /// 0.
    const ZERO: Self;
    /// No upper bound.
    const INFINITY: Self;
    /// No lower bound.
    const NEG_INFINITY: Self;

    /// The kernel of that shape on a host that has the instruction set.
    #[doc(hidden)]
    fn kernel(isa: Isa, kind: TileKind, rows: usize, vectors: usize) -> Option<TileFn<Self>>;

    /// The kernel of half a vector on a host that has the instruction set.
    #[doc(hidden)]
    fn half(isa: Isa, kind: TileKind, rows: usize) -> Option<TileFn<Self>>;

    /// The transposition on a host that has the instruction set.
    #[doc(hidden)]
    fn transposition(isa: Isa) -> TransposeFn<Self>;

    /// The copy of rows on a host that has the instruction set.
    #[doc(hidden)]
    fn row_copy(isa: Isa) -> RowsFn<Self>;
}

macro_rules! element {
    ($element:ident, $kernel:ident, $half:expr, $of:ident) => {
        impl Element for $element {
            const ZERO: $element = 0.0;
            const INFINITY: $element = $element::INFINITY;
            const NEG_INFINITY: $element = $element::NEG_INFINITY;

            fn kernel(isa: Isa, kind: TileKind, rows: usize, vectors: usize) -> Option<TileFn<$element>> {
                crate::tile::$kernel(isa, kind, rows, vectors)
            }
            fn half(isa: Isa, kind: TileKind, rows: usize) -> Option<TileFn<$element>> {
                $half(isa, kind, rows)
            }
            fn transposition(isa: Isa) -> TransposeFn<$element> {
                crate::transpose::$of(isa)
            }
            fn row_copy(isa: Isa) -> RowsFn<$element> {
                crate::rows::$of(isa)
            }
        }
    };
}

element!(f32, lookup, crate::tile::lookup_half, of_f32);
element!(f64, lookup_f64, |_, _, _| None, of_f64);
