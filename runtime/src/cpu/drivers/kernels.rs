//! Tile kernels of one kind, looked up once.

use super::DriverError;
use egret_simd::{
    Element, Isa, MAX_ROWS, Tile, TileFn, TileKind, half_kernel, max_rows, short_kernel, strided_half_kernel,
    strided_kernel, tile_kernel,
};

/// The kernels of one instruction set and kind, by height and width.
#[derive(Clone, Debug)]
pub(crate) struct Kernels<E = f32> {
    rows: usize,
    /// They sum integers.
    shorts: bool,
    table: [[Option<TileFn<E>>; MAX_ROWS + 1]; 2],
    /// For one vector of at most so many lanes.
    half: [Option<TileFn<E>>; MAX_ROWS + 1],
    half_lanes: usize,
}

impl<E: Element> Kernels<E> {
    /// Of `f32` or `f64`.
    pub(crate) fn new(isa: Isa, kind: TileKind) -> Result<Kernels<E>, DriverError> {
        Kernels::looked_up(isa, kind, false, tile_kernel)
    }

    fn looked_up(
        isa: Isa,
        kind: TileKind,
        shorts: bool,
        look_up: impl Fn(Isa, TileKind, usize, usize) -> Option<TileFn<E>>,
    ) -> Result<Kernels<E>, DriverError> {
        let mut table = [[None; MAX_ROWS + 1]; 2];
        for (width, kernels) in table.iter_mut().enumerate() {
            for (rows, kernel) in kernels.iter_mut().enumerate() {
                *kernel = look_up(isa, kind, rows, width + 1);
            }
        }
        if table[0][1].is_none() {
            let lanes = isa.lanes::<E>();
            return Err(DriverError::Isa { isa, scheduled: lanes, actual: lanes });
        }
        let rows = if kind == TileKind::Lanes { 1 } else { 2 };
        let half = std::array::from_fn(|rows| half_kernel(isa, kind, rows).filter(|_| !shorts));
        let half_lanes = isa.lanes_f32() / 2;
        Ok(Kernels { rows: max_rows::<E>(isa, kind, rows), shorts, table, half, half_lanes })
    }

    /// Greatest height of a tile of full width.
    pub(crate) fn max_rows(&self) -> usize {
        self.rows
    }

    /// # Safety
    /// As for the kernel: the pointers of the tile are valid for `rows` rows and `vectors` vectors.
    #[inline(always)]
    pub(crate) unsafe fn run(&self, tile: &Tile<E>, rows: usize, vectors: usize) {
        let half = if vectors == 1 && tile.last_lanes <= self.half_lanes { self.half[rows] } else { None };
        match half.or(self.table[vectors - 1][rows]) {
            // SAFETY: the caller's.
            Some(kernel) => unsafe { kernel(tile) },
            None => unreachable!("no tile kernel of {rows} rows and {vectors} vectors"),
        }
    }
}

impl Kernels {
    /// Of `i32` that fit `i16`.
    pub(crate) fn shorts(isa: Isa, kind: TileKind) -> Result<Kernels, DriverError> {
        Kernels::looked_up(isa, kind, true, short_kernel)
    }

    /// The same for tiles of kind `Table` whose rows lie at these offsets, with the faster kernels where there are any.
    pub(crate) fn for_rows(mut self, isa: Isa, offsets: &[usize; MAX_ROWS]) -> Kernels {
        if self.shorts {
            return self;
        }
        for rows in 1..=MAX_ROWS {
            let step = if rows == 1 { 1 } else { offsets[1] };
            let regular = |run: usize| (0..rows).all(|m| offsets[m] == m / run * offsets[run] + m % run * step);
            let run = if (1..rows).all(|m| offsets[m] == m * step) {
                rows
            } else if rows.is_multiple_of(2) && regular(rows / 2) {
                rows / 2
            } else {
                continue;
            };
            let (whole, half) = (&mut self.table[1][rows], &mut self.half[rows]);
            *whole = strided_kernel(isa, step, rows, run).or(*whole);
            *half = strided_half_kernel(isa, step, rows, run).or(*half);
        }
        self
    }
}

/// Checks that the schedule's layout is that of the instruction set for `f32`.
pub(crate) fn check_isa(isa: Isa, scheduled: usize) -> Result<(), DriverError> {
    check_lanes(isa, scheduled, isa.lanes_f32())
}

/// Checks that the schedule's vectors have the lanes that the instruction set has for its elements.
pub(crate) fn check_lanes(isa: Isa, scheduled: usize, actual: usize) -> Result<(), DriverError> {
    if isa.is_supported() && actual == scheduled { Ok(()) } else { Err(DriverError::Isa { isa, scheduled, actual }) }
}
