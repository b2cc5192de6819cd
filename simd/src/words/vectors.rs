//! AVX-512 BF16 and AVX-512 VNNI.

use super::{Narrow, WORDS};
use std::arch::x86_64::*;

/// Rows that accumulators hold: 28 of 32 registers.
const MOST: usize = 14;

pub(super) fn has_bf16() -> bool {
    crate::Isa::Avx512.is_supported() && is_x86_feature_detected!("avx512bf16")
}

pub(super) fn has_bytes() -> bool {
    crate::Isa::Avx512.is_supported() && is_x86_feature_detected!("avx512vnni")
}

/// Rounds sixteen neighbours to bf16, eight words.
///
/// # Safety
/// The words are writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn store_pairs(x: __m512, to: *mut u32) {
    // SAFETY: the caller's; 256 bits, of which every pattern is a vector.
    unsafe {
        let words: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(x));
        _mm256_storeu_si256(to.cast(), words);
    }
}

/// # Safety
/// The host has AVX-512 BF16; what the fields name is readable and writable.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn narrow_bf16(v: &Narrow) {
    // SAFETY: the caller's.
    unsafe {
        let zero = _mm512_setzero_ps();
        for i in 0..v.count {
            let [low, high] = [v.parts[0], v.parts[1]]
                .map(|part| if part.is_null() { zero } else { _mm512_loadu_ps(part.add(i * v.step)) });
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(v.dst.add(i * WORDS).cast(), both);
        }
    }
}

/// # Safety
/// The host has AVX-512; what the fields name is readable and writable.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn narrow_bytes(v: &Narrow) {
    // SAFETY: the caller's.
    unsafe {
        let low = _mm512_set1_epi32(v.low);
        for i in 0..v.count {
            let dst = v.dst.add(i * WORDS).cast::<__m128i>();
            for (at, part) in v.parts.into_iter().enumerate() {
                let bytes = match part.is_null() {
                    true => _mm_setzero_si128(),
                    false => {
                        let elements = _mm512_loadu_si512(part.add(i * v.step).cast());
                        _mm512_cvtepi32_epi8(_mm512_sub_epi32(elements, low))
                    }
                };
                _mm_storeu_si128(dst.add(at), bytes);
            }
        }
    }
}

/// Repeats a block with a constant index, as in the tile kernels of f32.
macro_rules! unroll {
    ($i:ident < $n:expr, $body:block) => {
        unroll!(@ $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    (@ $i:ident, $n:expr, $body:block, $($k:literal)*) => {
        $(if $k < $n { const $i: usize = $k; $body })*
    };
}

/// `acc + x b`, of pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add_pairs(acc: __m512i, x: __m512i, b: __m512i) -> __m512i {
    // SAFETY: 512 bits, of which every pattern is a vector.
    let [x, b] = [x, b].map(|words| unsafe { std::mem::transmute::<__m512i, __m512bh>(words) });
    _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(acc), x, b))
}

/// `acc + x b`, of quads.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_quads(acc: __m512i, x: __m512i, b: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(acc, x, b)
}

/// Tiles by what adds products of words to sums.
macro_rules! tiles {
    ($(#[$doc:meta])* $name:ident, $features:literal, $dot:ident) => {
        $(#[$doc])*
        pub(super) mod $name {
            use super::super::{COLUMNS, WORDS, WordTile};
            use super::MOST;
            use crate::vector::prefetch;
            use std::arch::x86_64::*;

            /// # Safety
            /// The host has the instructions; what the fields name is readable and writable.
            pub(in crate::words) unsafe fn tile(t: &WordTile) {
                let parts = t.rows.div_ceil(MOST);
                for part in 0..parts {
                    let (m0, m1) = (t.rows * part / parts, t.rows * (part + 1) / parts);
                    let mut rows = *t;
                    rows.a = t.a.wrapping_add(m0 * t.a_row);
                    rows.acc = t.acc.wrapping_add(m0 * COLUMNS);
                    if part > 0 {
                        rows.prefetch_lines = 0;
                    }
                    // SAFETY: the caller's; there are kernels up to MOST rows.
                    unsafe { KERNELS[m1 - m0 - 1](&rows) };
                }
            }

            static KERNELS: [unsafe fn(&WordTile); MOST] = [
                rows::<1>, rows::<2>, rows::<3>, rows::<4>, rows::<5>, rows::<6>, rows::<7>, rows::<8>, rows::<9>,
                rows::<10>, rows::<11>, rows::<12>, rows::<13>, rows::<14>,
            ];

            #[target_feature(enable = $features)]
            unsafe fn rows<const M: usize>(t: &WordTile) {
                // SAFETY: the caller's; words and vectors of them are 32 bits and 512.
                unsafe {
                    let mut begin = [_mm512_setzero_si512(); 2];
                    if !t.start.is_null() {
                        begin = [_mm512_loadu_si512(t.start.cast()), _mm512_loadu_si512(t.start.add(16).cast())];
                    }
                    let mut acc = [begin; M];
                    let mut b = t.b;
                    let mut ahead = t.prefetch;
                    for i in 0..t.tap_count {
                        let mut p = t.a.add(*t.taps.add(i));
                        for _ in 0..t.prefetch_lines {
                            prefetch(ahead);
                            ahead = ahead.wrapping_add(16);
                        }
                        for _ in 0..WORDS {
                            let left = _mm512_loadu_si512(b.cast());
                            let right = _mm512_loadu_si512(b.add(16).cast());
                            unroll!(J < M, {
                                let x = _mm512_set1_epi32(*p.add(J * t.a_row) as i32);
                                acc[J][0] = super::$dot(acc[J][0], x, left);
                                acc[J][1] = super::$dot(acc[J][1], x, right);
                            });
                            p = p.wrapping_add(1);
                            b = b.wrapping_add(COLUMNS);
                        }
                    }
                    unroll!(J < M, {
                        _mm512_storeu_si512(t.acc.add(J * COLUMNS).cast(), acc[J][0]);
                        _mm512_storeu_si512(t.acc.add(J * COLUMNS + 16).cast(), acc[J][1]);
                    });
                }
            }
        }
    };
}

tiles! {
    /// Pairs of bf16.
    bf16, "avx512f,avx512bf16", add_pairs
}
tiles! {
    /// Quads of bytes.
    bytes, "avx512f,avx512vnni", add_quads
}
