//! The tile micro-kernel: `acc[m][n] += a(m, k) * b(k)[n]` with `k` running over a table of taps.
//!
//! One family serves direct convolution in blocked channels, first layers on row-major images, matrix products,
//! attention, depthwise convolution and all their gradients; only the strides in [`Tile`] differ. A tile is at most
//! [`max_rows`] rows of one or two vectors and lives in registers from the first product to the epilogue.

mod body;
mod kernels;
#[cfg(test)]
mod tests;

pub(crate) use kernels::{lookup, lookup_f64, lookup_half};

use crate::{Element, Isa};

/// The most rows that any tile kernel has; row tables are never longer.
pub const MAX_ROWS: usize = 14;

/// How a tile reads its operand `a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TileKind {
    /// Row-panel of a matrix, `[k][rows]` with as many rows as the tile has: row `m` is at `a + m`, a step is `rows`.
    /// [`Tile::rows`] and [`Tile::a_step`] are not read.
    Packed,
    /// Row `m` is at `a + rows[m]`; one element is broadcast to all columns.
    Table,
    /// As `Table`, for so few rows that each sum would wait for its last product: it is several sums, each of every second or
    /// fourth step, added at the end.
    Few,
    /// Row `m` is at `a + rows[m]`; a whole vector is read and multiplied lane by lane (depthwise convolution and its
    /// weight gradient). One vector only.
    Lanes,
}

/// One line of the table of kernels: plain data, the same on every host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MicroKernel {
    /// Instruction set.
    pub isa: Isa,
    /// Name in texts and reports.
    pub name: &'static str,
    /// How `a` is read.
    pub kind: TileKind,
    /// Kernels exist for 1 up to this many rows.
    pub rows: usize,
    /// Vectors of columns.
    pub vectors: usize,
    /// Elements in a vector.
    pub lanes: usize,
    /// Bytes of an element: 4 for `f32`, 8 for `f64`.
    pub bytes: usize,
}

macro_rules! table {
    ($($isa:ident $element:ident $name:literal $kind:ident $rows:literal x $vectors:literal,)*) => {
        /// Every tile kernel of this crate, for all instruction sets.
        pub const MICRO_KERNELS: &[MicroKernel] = &[$(MicroKernel {
            isa: Isa::$isa,
            name: $name,
            kind: TileKind::$kind,
            rows: $rows,
            vectors: $vectors,
            lanes: Isa::$isa.lanes::<$element>(),
            bytes: size_of::<$element>(),
        },)*];
    };
}

table! {
    Avx512 f32 "avx512.packed.14x32" Packed 14 x 2,
    Avx512 f32 "avx512.packed.14x16" Packed 14 x 1,
    Avx512 f32 "avx512.table.14x32" Table 14 x 2,
    Avx512 f32 "avx512.table.14x16" Table 14 x 1,
    Avx512 f32 "avx512.few.3x32" Few 3 x 2,
    Avx512 f32 "avx512.few.3x16" Few 3 x 1,
    Avx512 f32 "avx512.lanes.14x16" Lanes 14 x 1,
    Avx512 f64 "avx512.f64.packed.14x16" Packed 14 x 2,
    Avx512 f64 "avx512.f64.packed.14x8" Packed 14 x 1,
    Avx512 f64 "avx512.f64.table.14x16" Table 14 x 2,
    Avx512 f64 "avx512.f64.table.14x8" Table 14 x 1,
    Avx512 f64 "avx512.f64.few.3x16" Few 3 x 2,
    Avx512 f64 "avx512.f64.few.3x8" Few 3 x 1,
    Avx2 f32 "avx2.packed.6x16" Packed 6 x 2,
    Avx2 f32 "avx2.packed.6x8" Packed 6 x 1,
    Avx2 f32 "avx2.table.6x16" Table 6 x 2,
    Avx2 f32 "avx2.table.6x8" Table 6 x 1,
    Avx2 f32 "avx2.few.3x16" Few 3 x 2,
    Avx2 f32 "avx2.few.3x8" Few 3 x 1,
    Avx2 f32 "avx2.lanes.6x8" Lanes 6 x 1,
    Avx2 f64 "avx2.f64.packed.6x8" Packed 6 x 2,
    Avx2 f64 "avx2.f64.packed.6x4" Packed 6 x 1,
    Avx2 f64 "avx2.f64.table.6x8" Table 6 x 2,
    Avx2 f64 "avx2.f64.table.6x4" Table 6 x 1,
    Avx2 f64 "avx2.f64.few.3x8" Few 3 x 2,
    Avx2 f64 "avx2.f64.few.3x4" Few 3 x 1,
    Neon f32 "neon.packed.6x16" Packed 6 x 2,
    Neon f32 "neon.packed.6x8" Packed 6 x 1,
    Neon f32 "neon.table.6x16" Table 6 x 2,
    Neon f32 "neon.table.6x8" Table 6 x 1,
    Neon f32 "neon.few.3x16" Few 3 x 2,
    Neon f32 "neon.few.3x8" Few 3 x 1,
    Neon f32 "neon.lanes.6x8" Lanes 6 x 1,
    Neon f64 "neon.f64.packed.6x8" Packed 6 x 2,
    Neon f64 "neon.f64.packed.6x4" Packed 6 x 1,
    Neon f64 "neon.f64.table.6x8" Table 6 x 2,
    Neon f64 "neon.f64.table.6x4" Table 6 x 1,
    Neon f64 "neon.f64.few.3x8" Few 3 x 2,
    Neon f64 "neon.f64.few.3x4" Few 3 x 1,
    Portable f32 "portable.packed.3x16" Packed 3 x 2,
    Portable f32 "portable.packed.3x8" Packed 3 x 1,
    Portable f32 "portable.table.3x16" Table 3 x 2,
    Portable f32 "portable.table.3x8" Table 3 x 1,
    Portable f32 "portable.few.3x16" Few 3 x 2,
    Portable f32 "portable.few.3x8" Few 3 x 1,
    Portable f32 "portable.lanes.3x8" Lanes 3 x 1,
    Portable f64 "portable.f64.packed.3x8" Packed 3 x 2,
    Portable f64 "portable.f64.packed.3x4" Packed 3 x 1,
    Portable f64 "portable.f64.table.3x8" Table 3 x 2,
    Portable f64 "portable.f64.table.3x4" Table 3 x 1,
    Portable f64 "portable.f64.few.3x8" Few 3 x 2,
    Portable f64 "portable.f64.few.3x4" Few 3 x 1,
}

/// The greatest height of a tile of that element type, kind and width (0: there is none). Plain data, for any host.
pub fn max_rows<E: Element>(isa: Isa, kind: TileKind, vectors: usize) -> usize {
    let is_it = |k: &&MicroKernel| k.isa == isa && k.kind == kind && k.vectors == vectors && k.bytes == size_of::<E>();
    MICRO_KERNELS.iter().find(is_it).map_or(0, |k| k.rows)
}

/// A tile kernel.
///
/// # Safety
/// The pointers of the [`Tile`] must be valid for what its fields say.
pub type TileFn<E = f32> = unsafe fn(&Tile<E>);

/// The kernel for exactly `rows` rows and `vectors` vectors; `None` if there is none or the host lacks the instruction
/// set.
pub fn tile_kernel<E: Element>(isa: Isa, kind: TileKind, rows: usize, vectors: usize) -> Option<TileFn<E>> {
    if rows == 0 || rows > max_rows::<E>(isa, kind, vectors) || !isa.is_supported() {
        return None;
    }
    E::kernel(isa, kind, rows, vectors)
}

/// A kernel of one vector that does what [`tile_kernel`]'s does where at most half of its lanes exist
/// ([`Tile::last_lanes`]): up to twice as fast on processors that compute a vector in halves. `None` if there is none or the
/// host lacks the instruction set.
pub fn half_kernel<E: Element>(isa: Isa, kind: TileKind, rows: usize) -> Option<TileFn<E>> {
    if rows == 0 || rows > max_rows::<E>(isa, kind, 1) || !isa.is_supported() {
        return None;
    }
    E::half(isa, kind, rows)
}

/// The kernel that does with integers what [`tile_kernel`]'s does with floats: `a` and `b` are `i32` that fit `i16`, sums are `i32`
/// and wrap, and nothing is clamped. `None` if there is none or the host lacks the instruction set.
pub fn short_kernel(isa: Isa, kind: TileKind, rows: usize, vectors: usize) -> Option<TileFn> {
    if rows == 0 || rows > max_rows::<f32>(isa, kind, vectors) || !isa.is_supported() {
        return None;
    }
    kernels::lookup_short(isa, kind, rows, vectors)
}

/// A kernel of two vectors that does what the one of kind [`TileKind::Table`] does, if its rows lie `rows[m] = m * step`
/// apart, or in two runs of `run = rows / 2` of which the second begins at `rows[run]`. Faster by up to a quarter: the
/// distances are in its instructions. There are kernels for the steps of one and two pixels in blocked channels and in a
/// row-major image; `None` for others, or if the host lacks the instruction set.
pub fn strided_kernel(isa: Isa, step: usize, rows: usize, run: usize) -> Option<TileFn> {
    if isa.is_supported() { kernels::lookup_strided(isa, step, rows, run) } else { None }
}

/// A kernel of one vector that does what [`half_kernel`]'s does, for rows as [`strided_kernel`] has them, of steps of one and
/// two pixels in a row-major image and of one in blocked channels: without a load of an address in two products of three.
pub fn strided_half_kernel(isa: Isa, step: usize, rows: usize, run: usize) -> Option<TileFn> {
    if isa.is_supported() { kernels::lookup_strided_half(isa, step, rows, run) } else { None }
}

/// The argument of a tile kernel. All distances are in elements.
///
/// ```text
/// for t in 0..tap_count
///     p = a + taps[t];  b = b_taps[t] behind the first b, if there is such a table
///     for _ in 0..(runs[t], or last_run for the last tap, else run)
///         acc[m][n] += p[rows[m]] * (b + n b_vector)[0..L]        for all m, n
///         p += a_step;  b += b_step
///     b += b_skip
/// c[c_rows[m] + n c_vector ..] = clamp(acc + bias + row_bias + partial + residual)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Tile<E = f32> {
    /// The operand whose elements are broadcast.
    pub a: *const E,
    /// Offset of each row of the tile in `a`.
    pub rows: *const usize,
    /// Offset in `a` of each tap.
    pub taps: *const usize,
    /// Number of taps.
    pub tap_count: usize,
    /// Steps in each tap but the last.
    pub run: usize,
    /// Steps in the last tap.
    pub last_run: usize,
    /// Steps in each tap, instead of the two numbers above; null: none.
    pub runs: *const usize,
    /// From one step to the next in `a`.
    pub a_step: usize,

    /// The operand that is read by vectors (whole vectors: the last one is not masked).
    pub b: *const E,
    /// From one step to the next in `b`.
    pub b_step: usize,
    /// From one vector to the next in `b`.
    pub b_vector: usize,
    /// Added to `b` after each tap.
    pub b_skip: usize,
    /// Offset in `b` of each tap, instead of where the one before it ends; null: none.
    pub b_taps: *const usize,

    /// Output.
    pub c: *mut E,
    /// Offset of each row of the tile in `c`.
    pub c_rows: *const usize,
    /// From one vector to the next in `c`.
    pub c_vector: usize,
    /// Lanes of the first vector that are somebody else's: they are left alone.
    pub first_lane: usize,
    /// Lanes of the last vector that exist.
    pub last_lanes: usize,
    /// The lanes of the last vector that do not exist: `true` stores zero there, `false` leaves them alone.
    pub fill: bool,

    /// An element for each column, whole vectors readable; null: none.
    pub bias: *const E,
    /// An element for each row; null: none.
    pub row_bias: *const E,
    /// Partial sums to go on from (may be `c`), of whole vectors where `fill` stores these; null: none.
    pub partial: *const E,
    /// Offset of each row of the tile in `partial`.
    pub partial_rows: *const usize,
    /// From one vector to the next in `partial`.
    pub partial_vector: usize,
    /// Added; null: none.
    pub residual: *const E,
    /// Offset of each row of the tile in `residual`.
    pub residual_rows: *const usize,
    /// From one vector to the next in `residual`.
    pub residual_vector: usize,
    /// Applies `lo` and `hi`; NaN passes through.
    pub clamp: bool,
    /// Lower bound.
    pub lo: E,
    /// Upper bound.
    pub hi: E,

    /// What to bring into L1 meanwhile, usually the next panel of `b`; need not be valid memory.
    pub prefetch: *const E,
    /// Cache lines to ask for at each tap.
    pub prefetch_lines: usize,
    /// Distance from each tap's first step at which `a` is asked for, for the next tile (0: not).
    pub prefetch_a: usize,
}

impl<E: Element> Tile<E> {
    /// A tile with null pointers, no epilogue, full vectors and nothing to prefetch.
    pub const fn new(isa: Isa) -> Tile<E> {
        Tile {
            a: std::ptr::null(),
            rows: std::ptr::null(),
            taps: std::ptr::null(),
            tap_count: 0,
            run: 0,
            last_run: 0,
            runs: std::ptr::null(),
            a_step: 1,
            b: std::ptr::null(),
            b_step: 2 * isa.lanes::<E>(),
            b_vector: isa.lanes::<E>(),
            b_skip: 0,
            b_taps: std::ptr::null(),
            c: std::ptr::null_mut(),
            c_rows: std::ptr::null(),
            c_vector: isa.lanes::<E>(),
            first_lane: 0,
            last_lanes: isa.lanes::<E>(),
            fill: false,
            bias: std::ptr::null(),
            row_bias: std::ptr::null(),
            partial: std::ptr::null(),
            partial_rows: std::ptr::null(),
            partial_vector: isa.lanes::<E>(),
            residual: std::ptr::null(),
            residual_rows: std::ptr::null(),
            residual_vector: isa.lanes::<E>(),
            clamp: false,
            lo: E::NEG_INFINITY,
            hi: E::INFINITY,
            prefetch: std::ptr::null(),
            prefetch_lines: 0,
            prefetch_a: 0,
        }
    }
}
