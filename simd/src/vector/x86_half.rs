//! Half a vector of AVX-512.

use super::Lanes;
use std::arch::x86_64::*;

/// A vector of 16 lanes of which the upper eight are zero and cost nothing: a processor that computes 512 bits in two halves
/// skips one of them.
#[derive(Clone, Copy)]
pub(crate) struct Half(__m256);

impl Lanes for Half {
    type Element = f32;
    const LANES: usize = 16;
    type Mask = __mmask16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Half(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Half(unsafe { _mm256_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, _mm512_zextps256_ps512(self.0)) }
    }
    #[inline(always)]
    unsafe fn range(from: usize, to: usize) -> __mmask16 {
        ((1u32 << to) - (1u32 << from)) as u16
    }
    #[inline(always)]
    unsafe fn load_masked(p: *const f32, mask: __mmask16) -> Self {
        Half(unsafe { _mm256_maskz_loadu_ps(mask as u8, p) })
    }
    #[inline(always)]
    unsafe fn store_masked(self, p: *mut f32, mask: __mmask16) {
        unsafe { _mm512_mask_storeu_ps(p, mask, _mm512_zextps256_ps512(self.0)) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        Half(unsafe { _mm256_add_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Half(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        Half(unsafe { _mm256_max_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        Half(unsafe { _mm256_min_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn select(mask: __mmask16, yes: Self, no: Self) -> Self {
        Half(unsafe { _mm256_mask_blend_ps(mask as u8, no.0, yes.0) })
    }
}
