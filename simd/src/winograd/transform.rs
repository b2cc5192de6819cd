//! The transforms of inputs and outputs, a vector of channels at a time.

use crate::Isa;
use crate::vector::{Vector, by_isa};

/// Lanes of the widest vector.
const MOST_LANES: usize = 16;

/// Patches of one row of tiles, of one vector of channels. All distances are in floats.
///
/// `points[(i (m + 2) + j) point + t L ..][0..L] = (Bᵀ d_t B)_ij`, where the patch `d_t` begins at pixel `m t` and is zero where
/// it reaches beyond the pixels that there are. Of pairs of bf16 (L = 16), a vector takes the first eight of sixteen words.
#[derive(Clone, Copy, Debug)]
pub struct InputTiles {
    /// The first pixel of the first patch.
    pub pixels: *const f32,
    /// From a row of pixels to the next; pixels lie `L` apart.
    pub row: usize,
    /// Rows of pixels that there are from here on.
    pub rows: usize,
    /// Pixels of each row that there are from here on.
    pub columns: usize,
    /// Number of tiles.
    pub tiles: usize,
    /// The transformed patches.
    pub points: *mut f32,
    /// From one element of the patch to the next.
    pub point: usize,
}

/// Outputs of one row of tiles, of one vector of channels. All distances are in floats.
///
/// `out[y row + x L ..][0..L] = min(hi, max(lo, (Aᵀ M_t A)_yx + bias + residual))` for the tile `t` that holds pixel `x`, where
/// `M_t` lies as [`InputTiles::points`] do, tiles `tile` apart. NaN passes through the bounds.
#[derive(Clone, Copy, Debug)]
pub struct OutputTiles {
    /// Sums of products.
    pub products: *const f32,
    /// From one element of a tile to the next.
    pub point: usize,
    /// Number of tiles.
    pub tiles: usize,
    /// From a tile to the next.
    pub tile: usize,
    /// The first output pixel.
    pub out: *mut f32,
    /// From a row of output pixels to the next; pixels lie `L` apart.
    pub row: usize,
    /// Rows of output pixels that there are from here on: others are not written.
    pub rows: usize,
    /// Output pixels of each row that there are from here on: others are not written.
    pub columns: usize,
    /// Lanes that exist; the others are written as zero.
    pub lanes: usize,
    /// A vector, or null.
    pub bias: *const f32,
    /// The residual of the first output pixel, or null.
    pub residual: *const f32,
    /// From a row of residual pixels to the next.
    pub residual_row: usize,
    /// Lower bound; −∞: none.
    pub lo: f32,
    /// Upper bound; ∞: none.
    pub hi: f32,
}

/// Transforms patches.
///
/// # Safety
/// The pixels that there are are readable, the points of all tiles writable.
pub type InputFn = unsafe fn(&InputTiles);

/// Transforms sums of products.
///
/// # Safety
/// The products of all tiles, the bias and the residual of the outputs that there are are readable, these outputs writable.
pub type OutputFn = unsafe fn(&OutputTiles);

/// The transform of inputs of F(m×m, 3×3), m being `outputs`; `None` if there is none or the host lacks the instruction set.
pub fn input_transform(isa: Isa, outputs: usize) -> Option<InputFn> {
    match outputs {
        2 => input_2(isa),
        4 => input_4(isa),
        _ => None,
    }
}

/// The transform of outputs of F(m×m, 3×3), m being `outputs`; `None` if there is none or the host lacks the instruction
/// set.
pub fn output_transform(isa: Isa, outputs: usize) -> Option<OutputFn> {
    match outputs {
        2 => output_2(isa),
        4 => output_4(isa),
        _ => None,
    }
}

/// The transform of inputs of F(2×2, 3×3) to pairs of bf16, rounded to the nearest, if the host has AVX-512 BF16.
pub fn input_transform_pairs() -> Option<InputFn> {
    #[cfg(target_arch = "x86_64")]
    if crate::words::WordUnit::Bf16Vectors.kernels().is_some() {
        return Some(input_2_pairs);
    }
    None
}

/// # Safety
/// That of [`InputFn`]; the host has AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma")]
unsafe fn input_2_pairs(t: &InputTiles) {
    unsafe { input::<std::arch::x86_64::__m512, Pairs, 2, 4>(t) }
}

by_isa! { input_2 = input_body_2(InputTiles) }
by_isa! { input_4 = input_body_4(InputTiles) }
by_isa! { output_2 = output_body_2(OutputTiles) }
by_isa! { output_4 = output_body_4(OutputTiles) }

#[inline(always)]
unsafe fn input_body_2<V: Vector>(t: &InputTiles) {
    unsafe { input::<V, Floats, 2, 4>(t) }
}

#[inline(always)]
unsafe fn input_body_4<V: Vector>(t: &InputTiles) {
    unsafe { input::<V, Floats, 4, 6>(t) }
}

#[inline(always)]
unsafe fn output_body_2<V: Vector>(t: &OutputTiles) {
    unsafe { output::<V, 2, 4>(t) }
}

#[inline(always)]
unsafe fn output_body_4<V: Vector>(t: &OutputTiles) {
    unsafe { output::<V, 4, 6>(t) }
}

/// How transformed patches are kept.
trait Keep<V: Vector> {
    /// From a tile to the next, in units of 32 bits.
    const TILE: usize;

    unsafe fn keep(x: V, to: *mut f32);
}

struct Floats;

impl<V: Vector> Keep<V> for Floats {
    const TILE: usize = V::LANES;

    #[inline(always)]
    unsafe fn keep(x: V, to: *mut f32) {
        unsafe { x.store(to) }
    }
}

/// Neighbouring channels as words of two bf16.
#[cfg(target_arch = "x86_64")]
struct Pairs;

#[cfg(target_arch = "x86_64")]
impl Keep<std::arch::x86_64::__m512> for Pairs {
    const TILE: usize = crate::words::WORDS;

    #[inline(always)]
    unsafe fn keep(x: std::arch::x86_64::__m512, to: *mut f32) {
        unsafe { crate::words::store_pairs(x, to.cast()) }
    }
}

#[inline(always)]
unsafe fn input<V: Vector, K: Keep<V>, const M: usize, const P: usize>(t: &InputTiles) {
    unsafe {
        for i in 0..t.tiles {
            let from = t.pixels.wrapping_add(i * M * V::LANES);
            let to = t.points.add(i * K::TILE);
            let columns = t.columns.saturating_sub(i * M);
            if t.rows >= P && columns >= P {
                patch::<V, K, P>(from, t.row, to, t.point);
            } else {
                let mut cut = [0f32; 36 * MOST_LANES];
                for r in 0..P.min(t.rows) {
                    for s in 0..P.min(columns) {
                        V::load(from.add(r * t.row + s * V::LANES)).store(cut.as_mut_ptr().add((r * P + s) * V::LANES));
                    }
                }
                patch::<V, K, P>(cut.as_ptr(), P * V::LANES, to, t.point);
            }
        }
    }
}

/// `Bᵀ d B` of one patch: columns, then rows.
#[inline(always)]
unsafe fn patch<V: Vector, K: Keep<V>, const P: usize>(from: *const f32, row: usize, to: *mut f32, point: usize) {
    unsafe {
        let mut half = [[V::zero(); P]; P];
        for s in 0..P {
            let mut column = [V::zero(); P];
            for (r, x) in column.iter_mut().enumerate() {
                *x = V::load(from.add(r * row + s * V::LANES));
            }
            for (line, x) in half.iter_mut().zip(input_line(column)) {
                line[s] = x;
            }
        }
        for (r, line) in half.into_iter().enumerate() {
            for (s, x) in input_line(line).into_iter().enumerate() {
                K::keep(x, to.add((r * P + s) * point));
            }
        }
    }
}

#[inline(always)]
unsafe fn output<V: Vector, const M: usize, const P: usize>(t: &OutputTiles) {
    unsafe {
        let bias = if t.bias.is_null() { V::zero() } else { V::load(t.bias) };
        let (lo, hi) = (V::splat(t.lo), V::splat(t.hi));
        let exist = V::first(t.lanes);
        for i in 0..t.tiles {
            let from = t.products.add(i * t.tile);
            let mut half = [[V::zero(); P]; M];
            for s in 0..P {
                let mut column = [V::zero(); P];
                for (r, x) in column.iter_mut().enumerate() {
                    *x = V::load(from.add((r * P + s) * t.point));
                }
                for (line, x) in half.iter_mut().zip(output_line::<V, P, M>(column)) {
                    line[s] = x;
                }
            }
            let columns = t.columns.saturating_sub(i * M).min(M);
            for (r, line) in half.into_iter().enumerate().take(t.rows) {
                let first = i * M * V::LANES;
                for (s, x) in output_line::<V, P, M>(line).into_iter().enumerate().take(columns) {
                    let mut x = x.add(bias);
                    if !t.residual.is_null() {
                        x = x.add(V::load(t.residual.add(r * t.residual_row + first + s * V::LANES)));
                    }
                    x = hi.min(lo.max(x));
                    if t.lanes < V::LANES {
                        x = V::select(exist, x, V::zero());
                    }
                    x.store(t.out.add(r * t.row + first + s * V::LANES));
                }
            }
        }
    }
}

/// `Bᵀ d` of one line.
#[inline(always)]
unsafe fn input_line<V: Vector, const P: usize>(d: [V; P]) -> [V; P] {
    unsafe {
        let mut r = d;
        if P == 4 {
            r[0] = d[0].sub(d[2]);
            r[1] = d[1].add(d[2]);
            r[2] = d[2].sub(d[1]);
            r[3] = d[1].sub(d[3]);
        } else {
            let (two, four, five) = (V::splat(2.0), V::splat(4.0), V::splat(-5.0));
            r[0] = five.fma(d[2], four.fma(d[0], d[4]));
            r[5] = five.fma(d[3], four.fma(d[1], d[5]));
            let minus_four = V::splat(-4.0);
            let (even, odd) = (minus_four.fma(d[2], d[4]), minus_four.fma(d[1], d[3]));
            (r[1], r[2]) = (even.add(odd), even.sub(odd));
            let (even, odd) = (d[4].sub(d[2]), two.mul(d[3].sub(d[1])));
            (r[3], r[4]) = (even.add(odd), even.sub(odd));
        }
        r
    }
}

/// `Aᵀ m` of one line.
#[inline(always)]
unsafe fn output_line<V: Vector, const P: usize, const M: usize>(m: [V; P]) -> [V; M] {
    unsafe {
        let mut r = [V::zero(); M];
        let (sum, difference) = (m[1].add(m[2]), m[1].sub(m[2]));
        if P == 4 {
            r[0] = m[0].add(sum);
            r[1] = difference.sub(m[3]);
        } else {
            let (sum_2, difference_2) = (m[3].add(m[4]), m[3].sub(m[4]));
            r[0] = m[0].add(sum).add(sum_2);
            r[1] = V::splat(2.0).fma(difference_2, difference);
            r[2] = V::splat(4.0).fma(sum_2, sum);
            r[3] = V::splat(8.0).fma(difference_2, difference).add(m[5]);
        }
        r
    }
}
