//! Products of operands narrowed to words of 32 bits: pairs of bf16, summed in f32 (AVX-512 BF16, AMX), and quads of bytes,
//! summed in i32 (AVX-512 VNNI).
//!
//! A *word* holds neighbours along the summed dim, the earliest in its lowest bits. Sums run over *taps* of [`WORDS`] words. The
//! units of bf16 flush subnormals to zero, and round sums in their own order: bits are those of the unit, not of f32. Bytes of `a`
//! are unsigned and those of `b` signed; their sums are exact, and wrap.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vectors;

#[cfg(target_arch = "x86_64")]
pub(crate) use vectors::store_pairs;

/// Words of a tap.
pub const WORDS: usize = 16;
/// The most rows of a tile.
pub const ROWS: usize = 32;
/// Columns of a tile, and of a panel.
pub const COLUMNS: usize = 32;

/// What multiplies words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordUnit {
    /// `vdpbf16ps` of AVX-512 BF16.
    Bf16Vectors,
    /// `tdpbf16ps` of AMX.
    Bf16Matrices,
    /// `vpdpbusd` of AVX-512 VNNI.
    ByteVectors,
}

/// One tile: `acc[m][n] = start[n] + Σ a[m][k] b[k][n]`. Distances are in words.
#[derive(Clone, Copy, Debug)]
pub struct WordTile {
    /// Row `m` of tap `t` is the [`WORDS`] words at `a + taps[t] + m a_row`; readable for rows up to the next multiple of 16.
    pub a: *const u32,
    /// From a row to the next.
    pub a_row: usize,
    /// Rows, at most [`ROWS`].
    pub rows: usize,
    /// Offset of each tap in `a`.
    pub taps: *const usize,
    /// Taps.
    pub tap_count: usize,
    /// `[tap][WORDS][COLUMNS]`.
    pub b: *const u32,
    /// `[COLUMNS]` sums to begin with; null: zeros ([`WordUnit::Bf16Matrices`]: always).
    pub start: *const u32,
    /// `[ROWS][COLUMNS]` sums; of bytes, the bits of `i32`.
    pub acc: *mut f32,
    /// What to bring into L1 meanwhile, usually the next panel; need not be valid memory.
    pub prefetch: *const u32,
    /// Cache lines to ask for at each tap.
    pub prefetch_lines: usize,
}

/// Vectors of 16 to be narrowed to taps: `dst[i] = parts[..][i step ..][0..16]`, as many parts as a word has elements.
#[derive(Clone, Copy, Debug)]
pub struct Narrow {
    /// The 16 elements of each part, `f32` or the bits of `i32`; null: zeros.
    pub parts: [*const f32; 4],
    /// Elements from one vector to the next.
    pub step: usize,
    /// Taken from each integer, which leaves an unsigned byte.
    pub low: i32,
    /// [`WORDS`] words for each.
    pub dst: *mut u32,
    /// How many.
    pub count: usize,
}

/// Code of one unit.
#[derive(Clone, Copy, Debug)]
pub struct WordKernels {
    unit: WordUnit,
    tile: unsafe fn(&WordTile),
    narrow: unsafe fn(&Narrow),
}

impl WordUnit {
    /// All units, those of bf16 with the slowest first.
    pub const ALL: [WordUnit; 3] = [WordUnit::Bf16Vectors, WordUnit::Bf16Matrices, WordUnit::ByteVectors];

    /// Name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            WordUnit::Bf16Vectors => "avx512.bf16.14x32",
            WordUnit::Bf16Matrices => "amx.bf16.32x32",
            WordUnit::ByteVectors => "avx512.bytes.14x32",
        }
    }

    /// Elements of a word.
    pub const fn per_word(self) -> usize {
        match self {
            WordUnit::Bf16Vectors | WordUnit::Bf16Matrices => 2,
            WordUnit::ByteVectors => 4,
        }
    }

    /// Elements of the summed dim in a tap.
    pub const fn depth(self) -> usize {
        WORDS * self.per_word()
    }

    /// Its rate to that of multiply-adds of `f32` vectors, as a guess: from Zen 4 and, with AMX, Sapphire Rapids, whose
    /// vectors of bf16 do a quarter of this.
    pub fn rate(self) -> f64 {
        match self {
            WordUnit::Bf16Vectors => 2.0,
            WordUnit::Bf16Matrices => 7.0,
            WordUnit::ByteVectors => 4.0,
        }
    }

    /// The best unit of bf16 that the host has.
    pub fn bf16() -> Option<WordUnit> {
        [WordUnit::Bf16Matrices, WordUnit::Bf16Vectors].into_iter().find(|unit| unit.kernels().is_some())
    }

    /// The unit of bytes, if the host has it.
    pub fn bytes() -> Option<WordUnit> {
        WordUnit::ByteVectors.kernels().map(|kernels| kernels.unit)
    }

    /// Its code, if the host has it (AMX: and the system lets the process use it, for which this asks).
    pub fn kernels(self) -> Option<WordKernels> {
        #[cfg(target_arch = "x86_64")]
        {
            let bf16 = vectors::has_bf16();
            let (tile, narrow): (unsafe fn(&WordTile), unsafe fn(&Narrow)) = match self {
                WordUnit::Bf16Vectors if bf16 => (vectors::bf16::tile, vectors::narrow_bf16),
                #[cfg(target_os = "linux")]
                WordUnit::Bf16Matrices if bf16 && amx::is_supported() => (amx::tile, vectors::narrow_bf16),
                WordUnit::ByteVectors if vectors::has_bytes() => (vectors::bytes::tile, vectors::narrow_bytes),
                _ => return None,
            };
            Some(WordKernels { unit: self, tile, narrow })
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }
}

impl WordKernels {
    /// Whose code it is.
    pub fn unit(&self) -> WordUnit {
        self.unit
    }

    /// Computes while this thread's unit is set up for [`tile`](Entered::tile)s.
    pub fn enter<R>(&self, f: impl FnOnce(&Entered<'_>) -> R) -> R {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.unit == WordUnit::Bf16Matrices {
            // SAFETY: that the host has it was checked when this was made.
            let _configured = unsafe { amx::Configured::new() };
            return f(&Entered(self));
        }
        f(&Entered(self))
    }

    /// Narrows vectors: floats to the nearest bf16, ties to even; integers less `low` to their lowest byte.
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
pub struct Entered<'k>(&'k WordKernels);

impl Entered<'_> {
    /// Computes a tile.
    ///
    /// # Safety
    /// What the fields name is readable and writable.
    #[inline(always)]
    pub unsafe fn tile(&self, tile: &WordTile) {
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

/// Two neighbours as a word.
pub fn pair([earlier, later]: [f32; 2]) -> u32 {
    u32::from(bf16_bits(earlier)) | u32::from(bf16_bits(later)) << 16
}

/// Four neighbours as a word, each its lowest byte.
pub fn quad(neighbours: [i32; 4]) -> u32 {
    u32::from_le_bytes(neighbours.map(|x| x as u8))
}
