//! AVX2 and AVX-512: doubles, for sums of products.

use super::{Block, Lanes};
use std::arch::x86_64::*;

impl Lanes for __m512d {
    type Element = f64;
    const LANES: usize = 8;
    const BROADCASTS: bool = true;
    type Mask = __mmask8;

    #[inline(always)]
    unsafe fn splat(x: f64) -> Self {
        unsafe { _mm512_set1_pd(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f64) -> Self {
        unsafe { _mm512_loadu_pd(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f64) {
        unsafe { _mm512_storeu_pd(p, self) }
    }
    #[inline(always)]
    unsafe fn range(from: usize, to: usize) -> __mmask8 {
        ((1u32 << to) - (1u32 << from)) as u8
    }
    #[inline(always)]
    unsafe fn load_masked(p: *const f64, mask: __mmask8) -> Self {
        unsafe { _mm512_maskz_loadu_pd(mask, p) }
    }
    #[inline(always)]
    unsafe fn store_masked(self, p: *mut f64, mask: __mmask8) {
        unsafe { _mm512_mask_storeu_pd(p, mask, self) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { _mm512_add_pd(self, o) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { _mm512_fmadd_pd(self, b, c) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        unsafe { _mm512_max_pd(self, o) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        unsafe { _mm512_min_pd(self, o) }
    }
    #[inline(always)]
    unsafe fn select(mask: __mmask8, yes: Self, no: Self) -> Self {
        unsafe { _mm512_mask_blend_pd(mask, no, yes) }
    }
}

impl Block for __m512d {
    #[inline(always)]
    unsafe fn transpose(r: &mut [Self]) {
        unsafe {
            let mut t = [_mm512_setzero_pd(); 8];
            for i in 0..4 {
                t[2 * i] = _mm512_unpacklo_pd(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_pd(r[2 * i], r[2 * i + 1]);
            }
            for j in 0..2 {
                let a = _mm512_shuffle_f64x2::<0x88>(t[j], t[2 + j]);
                let b = _mm512_shuffle_f64x2::<0xdd>(t[j], t[2 + j]);
                let c = _mm512_shuffle_f64x2::<0x88>(t[4 + j], t[6 + j]);
                let d = _mm512_shuffle_f64x2::<0xdd>(t[4 + j], t[6 + j]);
                r[j] = _mm512_shuffle_f64x2::<0x88>(a, c);
                r[4 + j] = _mm512_shuffle_f64x2::<0xdd>(a, c);
                r[2 + j] = _mm512_shuffle_f64x2::<0x88>(b, d);
                r[6 + j] = _mm512_shuffle_f64x2::<0xdd>(b, d);
            }
        }
    }
}

impl Lanes for __m256d {
    type Element = f64;
    const LANES: usize = 4;
    type Mask = __m256i;

    #[inline(always)]
    unsafe fn splat(x: f64) -> Self {
        unsafe { _mm256_set1_pd(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f64) -> Self {
        unsafe { _mm256_loadu_pd(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f64) {
        unsafe { _mm256_storeu_pd(p, self) }
    }
    #[inline(always)]
    unsafe fn range(from: usize, to: usize) -> __m256i {
        unsafe {
            let lane = _mm256_setr_epi64x(0, 1, 2, 3);
            let before = |n: usize| _mm256_cmpgt_epi64(_mm256_set1_epi64x(n as i64), lane);
            _mm256_andnot_si256(before(from), before(to))
        }
    }
    #[inline(always)]
    unsafe fn load_masked(p: *const f64, mask: __m256i) -> Self {
        unsafe { _mm256_maskload_pd(p, mask) }
    }
    #[inline(always)]
    unsafe fn store_masked(self, p: *mut f64, mask: __m256i) {
        unsafe { _mm256_maskstore_pd(p, mask, self) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { _mm256_add_pd(self, o) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { _mm256_fmadd_pd(self, b, c) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        unsafe { _mm256_max_pd(self, o) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        unsafe { _mm256_min_pd(self, o) }
    }
    #[inline(always)]
    unsafe fn select(mask: __m256i, yes: Self, no: Self) -> Self {
        unsafe { _mm256_blendv_pd(no, yes, _mm256_castsi256_pd(mask)) }
    }
}

impl Block for __m256d {
    #[inline(always)]
    unsafe fn transpose(r: &mut [Self]) {
        unsafe {
            let (a, b) = (_mm256_unpacklo_pd(r[0], r[1]), _mm256_unpackhi_pd(r[0], r[1]));
            let (c, d) = (_mm256_unpacklo_pd(r[2], r[3]), _mm256_unpackhi_pd(r[2], r[3]));
            r[0] = _mm256_permute2f128_pd::<0x20>(a, c);
            r[1] = _mm256_permute2f128_pd::<0x20>(b, d);
            r[2] = _mm256_permute2f128_pd::<0x31>(a, c);
            r[3] = _mm256_permute2f128_pd::<0x31>(b, d);
        }
    }
}
