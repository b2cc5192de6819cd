//! AVX-512 BF16.

use super::{COLUMNS, Narrow, PAIRS, PairTile};
use crate::vector::prefetch;
use std::arch::x86_64::*;

/// Rows that accumulators hold: 28 of 32 registers.
const MOST: usize = 14;

pub(super) fn is_supported() -> bool {
    crate::Isa::Avx512.is_supported() && is_x86_feature_detected!("avx512bf16")
}

/// # Safety
/// The host has AVX-512 BF16; what the fields name is readable and writable.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn narrow(v: &Narrow) {
    // SAFETY: the caller's.
    unsafe {
        let zero = _mm512_setzero_ps();
        for i in 0..v.count {
            let low = _mm512_loadu_ps(v.low.add(i * v.step));
            let high = if v.high.is_null() { zero } else { _mm512_loadu_ps(v.high.add(i * v.step)) };
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(v.dst.add(i * PAIRS).cast(), both);
        }
    }
}

/// # Safety
/// The host has AVX-512 BF16; what the fields name is readable and writable.
pub(super) unsafe fn tile(t: &PairTile) {
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

static KERNELS: [unsafe fn(&PairTile); MOST] = [
    rows::<1>, rows::<2>, rows::<3>, rows::<4>, rows::<5>, rows::<6>, rows::<7>, rows::<8>, rows::<9>, rows::<10>,
    rows::<11>, rows::<12>, rows::<13>, rows::<14>,
];

/// Repeats a block with a constant index, as in the tile kernels of f32.
macro_rules! unroll {
    ($i:ident < $n:expr, $body:block) => {
        unroll!(@ $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    (@ $i:ident, $n:expr, $body:block, $($k:literal)*) => {
        $(if $k < $n { const $i: usize = $k; $body })*
    };
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows<const M: usize>(t: &PairTile) {
    // SAFETY: the caller's; pairs and vectors of them are 32 bits and 512.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; M];
        let mut b = t.b;
        let mut ahead = t.prefetch;
        for i in 0..t.tap_count {
            let mut p = t.a.add(*t.taps.add(i));
            for _ in 0..t.prefetch_lines {
                prefetch(ahead.cast());
                ahead = ahead.wrapping_add(16);
            }
            for _ in 0..PAIRS {
                let left: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.cast()));
                let right: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(16).cast()));
                unroll!(J < M, {
                    let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(*p.add(J * t.a_row) as i32));
                    acc[J][0] = _mm512_dpbf16_ps(acc[J][0], x, left);
                    acc[J][1] = _mm512_dpbf16_ps(acc[J][1], x, right);
                });
                p = p.wrapping_add(1);
                b = b.wrapping_add(COLUMNS);
            }
        }
        unroll!(J < M, {
            _mm512_storeu_ps(t.acc.add(J * COLUMNS), acc[J][0]);
            _mm512_storeu_ps(t.acc.add(J * COLUMNS + 16), acc[J][1]);
        });
    }
}
