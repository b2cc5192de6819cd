//! Products of operands rounded to bf16, summed in f32: AVX-512 BF16 and AMX.
//!
//! A *pair* is 32 bits: two neighbours along the summed dim, the earlier in the low half. Sums run over *taps* of [`PAIRS`]
//! pairs. The units flush subnormals to zero, and round sums in their own order: bits are those of the unit, not of f32.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

/// Pairs of a tap.
pub const PAIRS: usize = 16;
/// Elements of the summed dim in a tap.
pub const DEPTH: usize = 2 * PAIRS;
/// The most rows of a tile.
pub const ROWS: usize = 32;
/// Columns of a tile, and of a panel.
pub const COLUMNS: usize = 32;

/// What multiplies bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16Unit {
    /// `vdpbf16ps` of AVX-512 BF16.
    Vectors,
    /// `tdpbf16ps` of AMX.
    Matrices,
}

/// One tile: `acc[m][n] = Σ a[m][k] b[k][n]`. Distances are in pairs.
#[derive(Clone, Copy, Debug)]
pub struct PairTile {
    /// Row `m` of tap `t` is the [`PAIRS`] pairs at `a + taps[t] + m a_row`; readable for rows up to the next multiple of 16.
    pub a: *const u32,
    /// From a row to the next.
    pub a_row: usize,
    /// Rows, at most [`ROWS`].
    pub rows: usize,
    /// Offset of each tap in `a`.
    pub taps: *const usize,
    /// Taps.
    pub tap_count: usize,
    /// `[tap][PAIRS][COLUMNS]`.
    pub b: *const u32,
    /// `[ROWS][COLUMNS]` sums.
    pub acc: *mut f32,
    /// What to bring into L1 meanwhile, usually the next panel; need not be valid memory.
    pub prefetch: *const u32,
    /// Cache lines to ask for at each tap.
    pub prefetch_lines: usize,
}

/// Vectors to be rounded: `dst[i] = (low[i step ..][0..16], high[i step ..][0..16])` as 32 bf16.
#[derive(Clone, Copy, Debug)]
pub struct Narrow {
    /// The first half of each.
    pub low: *const f32,
    /// The second half of each; null: zeros.
    pub high: *const f32,
    /// Floats from one to the next.
    pub step: usize,
    /// [`PAIRS`] pairs for each.
    pub dst: *mut u32,
    /// How many.
    pub count: usize,
}

/// Code of one unit.
#[derive(Clone, Copy, Debug)]
pub struct Bf16Kernels {
    unit: Bf16Unit,
    tile: unsafe fn(&PairTile),
    narrow: unsafe fn(&Narrow),
}

impl Bf16Unit {
    /// All units, the slowest first.
    pub const ALL: [Bf16Unit; 2] = [Bf16Unit::Vectors, Bf16Unit::Matrices];

    /// The best that the host has.
    pub fn detect() -> Option<Bf16Unit> {
        Bf16Unit::ALL.into_iter().rev().find(|unit| unit.kernels().is_some())
    }

    /// Its code, if the host has it (AMX: and the system lets the process use it, for which this asks).
    pub fn kernels(self) -> Option<Bf16Kernels> {
        #[cfg(target_arch = "x86_64")]
        if avx512::is_supported() {
            let narrow = avx512::narrow;
            return match self {
                Bf16Unit::Vectors => Some(Bf16Kernels { unit: self, tile: avx512::tile, narrow }),
                #[cfg(target_os = "linux")]
                Bf16Unit::Matrices if amx::is_supported() => Some(Bf16Kernels { unit: self, tile: amx::tile, narrow }),
                Bf16Unit::Matrices => None,
            };
        }
        None
    }
}

impl Bf16Kernels {
    /// Whose code it is.
    pub fn unit(&self) -> Bf16Unit {
        self.unit
    }

    /// Computes while this thread's unit is set up for [`tile`](Entered::tile)s.
    pub fn enter<R>(&self, f: impl FnOnce(&Entered<'_>) -> R) -> R {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.unit == Bf16Unit::Matrices {
            // SAFETY: that the host has it was checked when this was made.
            let _configured = unsafe { amx::Configured::new() };
            return f(&Entered(self));
        }
        f(&Entered(self))
    }

    /// Rounds vectors to nearest, ties to even.
    ///
    /// # Safety
    /// What the fields name is readable and writable.
    #[inline(always)]
    pub unsafe fn narrow(&self, vectors: &Narrow) {
        // SAFETY: the caller's; the host has the instructions.
        unsafe { (self.narrow)(vectors) }
    }
}

/// A unit that is set up on this thread.
#[derive(Debug)]
pub struct Entered<'k>(&'k Bf16Kernels);

impl Entered<'_> {
    /// Computes a tile.
    ///
    /// # Safety
    /// What the fields name is readable and writable.
    #[inline(always)]
    pub unsafe fn tile(&self, tile: &PairTile) {
        // SAFETY: the caller's; the host has the instructions.
        unsafe { (self.0.tile)(tile) }
    }
}

/// The nearest bf16, ties to even, as its bits; NaN stays NaN.
pub fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Two neighbours as a pair.
pub fn pair(earlier: f32, later: f32) -> u32 {
    u32::from(bf16_bits(earlier)) | u32::from(bf16_bits(later)) << 16
}
