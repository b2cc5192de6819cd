//! AVX2 and AVX-512.

use super::{Block, Lanes, Vector};
use std::arch::x86_64::*;

impl Lanes for __m512 {
    type Element = f32;
    const LANES: usize = 16;
    const BROADCASTS: bool = true;
    type Mask = __mmask16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self) }
    }
    #[inline(always)]
    unsafe fn range(from: usize, to: usize) -> __mmask16 {
        ((1u32 << to) - (1u32 << from)) as u16
    }
    #[inline(always)]
    unsafe fn load_masked(p: *const f32, mask: __mmask16) -> Self {
        unsafe { _mm512_maskz_loadu_ps(mask, p) }
    }
    #[inline(always)]
    unsafe fn store_masked(self, p: *mut f32, mask: __mmask16) {
        unsafe { _mm512_mask_storeu_ps(p, mask, self) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { _mm512_add_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        unsafe { _mm512_max_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        unsafe { _mm512_min_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn select(mask: __mmask16, yes: Self, no: Self) -> Self {
        unsafe { _mm512_mask_blend_ps(mask, no, yes) }
    }
}

impl Block for __m512 {
    #[inline(always)]
    unsafe fn transpose(r: &mut [Self]) {
        unsafe {
            let mut t = [_mm512_setzero_ps(); 16];
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            let low = |a, b| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
            let high = |a, b| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
            let mut u = t;
            for g in 0..4 {
                let k = 4 * g;
                u[k] = low(t[k], t[k + 2]);
                u[k + 1] = high(t[k], t[k + 2]);
                u[k + 2] = low(t[k + 1], t[k + 3]);
                u[k + 3] = high(t[k + 1], t[k + 3]);
            }
            for j in 0..4 {
                let a = _mm512_shuffle_f32x4::<0x88>(u[j], u[4 + j]);
                let b = _mm512_shuffle_f32x4::<0xdd>(u[j], u[4 + j]);
                let c = _mm512_shuffle_f32x4::<0x88>(u[8 + j], u[12 + j]);
                let d = _mm512_shuffle_f32x4::<0xdd>(u[8 + j], u[12 + j]);
                r[j] = _mm512_shuffle_f32x4::<0x88>(a, c);
                r[8 + j] = _mm512_shuffle_f32x4::<0xdd>(a, c);
                r[4 + j] = _mm512_shuffle_f32x4::<0x88>(b, d);
                r[12 + j] = _mm512_shuffle_f32x4::<0xdd>(b, d);
            }
        }
    }
}

impl Vector for __m512 {
    #[inline(always)]
    unsafe fn first(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as u16
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        unsafe { _mm512_sub_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        unsafe { _mm512_mul_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        unsafe { _mm512_div_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self) }
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        unsafe { _mm512_scalef_ps(self, n) }
    }
    #[inline(always)]
    unsafe fn lt(self, o: Self) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, o) }
    }
    #[inline(always)]
    unsafe fn eq(self, o: Self) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self, o) }
    }
    #[inline(always)]
    unsafe fn any(mask: __mmask16) -> bool {
        mask != 0
    }
    #[inline(always)]
    unsafe fn bits(x: u32) -> Self {
        unsafe { _mm512_set1_ps(f32::from_bits(x)) }
    }
    #[inline(always)]
    unsafe fn and(self, o: Self) -> Self {
        unsafe { _mm512_and_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        unsafe { _mm512_or_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn xor(self, o: Self) -> Self {
        unsafe { _mm512_xor_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn add_int(self, o: Self) -> Self {
        unsafe { _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self), _mm512_castps_si512(o))) }
    }
    #[inline(always)]
    unsafe fn mul_short(self, o: Self) -> Self {
        // the instruction adds the products of both halves: the upper one of `o` is cleared
        unsafe {
            let low = _mm512_and_si512(_mm512_castps_si512(o), _mm512_set1_epi32(0xffff));
            _mm512_castsi512_ps(_mm512_madd_epi16(_mm512_castps_si512(self), low))
        }
    }
    #[inline(always)]
    unsafe fn shl_int<const N: u32>(self) -> Self {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<N>(_mm512_castps_si512(self))) }
    }
    #[inline(always)]
    unsafe fn shr_int<const N: u32>(self) -> Self {
        unsafe { _mm512_castsi512_ps(_mm512_srli_epi32::<N>(_mm512_castps_si512(self))) }
    }
    #[inline(always)]
    unsafe fn to_int(self) -> Self {
        unsafe { _mm512_castsi512_ps(_mm512_cvtps_epi32(self)) }
    }
    #[inline(always)]
    unsafe fn int_to_float(self) -> Self {
        unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(self)) }
    }
    #[inline(always)]
    unsafe fn eq_int(self, o: Self) -> __mmask16 {
        unsafe { _mm512_cmpeq_epi32_mask(_mm512_castps_si512(self), _mm512_castps_si512(o)) }
    }
    #[inline(always)]
    unsafe fn take(self, from: Self, lanes: Self) -> Self {
        unsafe {
            let lanes = _mm512_castps_si512(lanes);
            let taken = _knot_mask16(_mm512_movepi32_mask(lanes));
            _mm512_mask_permutexvar_ps(self, taken, lanes, from)
        }
    }
}

impl Lanes for __m256 {
    type Element = f32;
    const LANES: usize = 8;
    type Mask = __m256;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm256_storeu_ps(p, self) }
    }
    #[inline(always)]
    unsafe fn range(from: usize, to: usize) -> __m256 {
        unsafe { _mm256_andnot_ps(Self::first(from), Self::first(to)) }
    }
    #[inline(always)]
    unsafe fn load_masked(p: *const f32, mask: __m256) -> Self {
        unsafe { _mm256_maskload_ps(p, _mm256_castps_si256(mask)) }
    }
    #[inline(always)]
    unsafe fn store_masked(self, p: *mut f32, mask: __m256) {
        unsafe { _mm256_maskstore_ps(p, _mm256_castps_si256(mask), self) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { _mm256_add_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { _mm256_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        unsafe { _mm256_max_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        unsafe { _mm256_min_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn select(mask: __m256, yes: Self, no: Self) -> Self {
        unsafe { _mm256_blendv_ps(no, yes, mask) }
    }
}

impl Block for __m256 {
    #[inline(always)]
    unsafe fn transpose(r: &mut [Self]) {
        unsafe {
            let mut t = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            let mut u = t;
            for g in 0..2 {
                let k = 4 * g;
                u[k] = _mm256_shuffle_ps::<0x44>(t[k], t[k + 2]);
                u[k + 1] = _mm256_shuffle_ps::<0xee>(t[k], t[k + 2]);
                u[k + 2] = _mm256_shuffle_ps::<0x44>(t[k + 1], t[k + 3]);
                u[k + 3] = _mm256_shuffle_ps::<0xee>(t[k + 1], t[k + 3]);
            }
            for j in 0..4 {
                r[j] = _mm256_permute2f128_ps::<0x20>(u[j], u[4 + j]);
                r[4 + j] = _mm256_permute2f128_ps::<0x31>(u[j], u[4 + j]);
            }
        }
    }
}

impl Vector for __m256 {
    #[inline(always)]
    unsafe fn first(n: usize) -> __m256 {
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lane))
        }
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        unsafe { _mm256_sub_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        unsafe { _mm256_mul_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        unsafe { _mm256_div_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self) }
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        unsafe {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let power = |e| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(e, bias)));
            let first = _mm256_mul_ps(self, power(half));
            _mm256_mul_ps(first, power(_mm256_sub_epi32(n, half)))
        }
    }
    #[inline(always)]
    unsafe fn lt(self, o: Self) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self, o) }
    }
    #[inline(always)]
    unsafe fn eq(self, o: Self) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(self, o) }
    }
    #[inline(always)]
    unsafe fn any(mask: __m256) -> bool {
        unsafe { _mm256_movemask_ps(mask) != 0 }
    }
    #[inline(always)]
    unsafe fn bits(x: u32) -> Self {
        unsafe { _mm256_set1_ps(f32::from_bits(x)) }
    }
    #[inline(always)]
    unsafe fn and(self, o: Self) -> Self {
        unsafe { _mm256_and_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        unsafe { _mm256_or_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn xor(self, o: Self) -> Self {
        unsafe { _mm256_xor_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn add_int(self, o: Self) -> Self {
        unsafe { _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self), _mm256_castps_si256(o))) }
    }
    #[inline(always)]
    unsafe fn mul_short(self, o: Self) -> Self {
        // the instruction adds the products of both halves: the upper one of `o` is cleared
        unsafe {
            let low = _mm256_and_si256(_mm256_castps_si256(o), _mm256_set1_epi32(0xffff));
            _mm256_castsi256_ps(_mm256_madd_epi16(_mm256_castps_si256(self), low))
        }
    }
    #[inline(always)]
    unsafe fn shl_int<const N: u32>(self) -> Self {
        unsafe {
            let count = _mm_cvtsi32_si128(N as i32);
            _mm256_castsi256_ps(_mm256_sll_epi32(_mm256_castps_si256(self), count))
        }
    }
    #[inline(always)]
    unsafe fn shr_int<const N: u32>(self) -> Self {
        unsafe {
            let count = _mm_cvtsi32_si128(N as i32);
            _mm256_castsi256_ps(_mm256_srl_epi32(_mm256_castps_si256(self), count))
        }
    }
    #[inline(always)]
    unsafe fn to_int(self) -> Self {
        unsafe { _mm256_castsi256_ps(_mm256_cvtps_epi32(self)) }
    }
    #[inline(always)]
    unsafe fn int_to_float(self) -> Self {
        unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(self)) }
    }
    #[inline(always)]
    unsafe fn eq_int(self, o: Self) -> __m256 {
        unsafe {
            let same = _mm256_cmpeq_epi32(_mm256_castps_si256(self), _mm256_castps_si256(o));
            _mm256_castsi256_ps(same)
        }
    }
    #[inline(always)]
    unsafe fn take(self, from: Self, lanes: Self) -> Self {
        unsafe {
            let taken = _mm256_permutevar8x32_ps(from, _mm256_castps_si256(lanes));
            // by the sign of each lane
            _mm256_blendv_ps(taken, self, lanes)
        }
    }
}
