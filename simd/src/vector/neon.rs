//! NEON: eight floats in two registers.

use super::{Block, Lanes, Vector};
use std::arch::aarch64::*;

#[derive(Clone, Copy)]
pub(crate) struct Neon8(float32x4_t, float32x4_t);

/// All ones or zeros a lane.
type Mask8 = (uint32x4_t, uint32x4_t);

impl Neon8 {
    #[inline(always)]
    unsafe fn words(self) -> Mask8 {
        unsafe { (vreinterpretq_u32_f32(self.0), vreinterpretq_u32_f32(self.1)) }
    }
    #[inline(always)]
    unsafe fn from_words(words: Mask8) -> Self {
        unsafe { Neon8(vreinterpretq_f32_u32(words.0), vreinterpretq_f32_u32(words.1)) }
    }
    #[inline(always)]
    unsafe fn lanes(mask: Mask8) -> [u32; 8] {
        let mut lanes = [0; 8];
        unsafe {
            vst1q_u32(lanes.as_mut_ptr(), mask.0);
            vst1q_u32(lanes.as_mut_ptr().add(4), mask.1);
        }
        lanes
    }
    /// 2^e for integers.
    #[inline(always)]
    unsafe fn power(e: int32x4_t) -> float32x4_t {
        unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(e, vdupq_n_s32(127)))) }
    }
    #[inline(always)]
    unsafe fn scaled(x: float32x4_t, n: float32x4_t) -> float32x4_t {
        unsafe {
            let n = vcvtq_s32_f32(n);
            let half = vshrq_n_s32::<1>(n);
            // Two steps of at most 2^130 each stay within the exponent, but the product is rounded once: the first step
            // never reaches a subnormal.
            vmulq_f32(vmulq_f32(x, Self::power(half)), Self::power(vsubq_s32(n, half)))
        }
    }
    #[inline(always)]
    unsafe fn transposed([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
        unsafe {
            let wide = |x| vreinterpretq_f64_f32(x);
            let (ab, ba) = (wide(vtrn1q_f32(a, b)), wide(vtrn2q_f32(a, b)));
            let (cd, dc) = (wide(vtrn1q_f32(c, d)), wide(vtrn2q_f32(c, d)));
            let narrow = |x| vreinterpretq_f32_f64(x);
            [
                narrow(vtrn1q_f64(ab, cd)),
                narrow(vtrn1q_f64(ba, dc)),
                narrow(vtrn2q_f64(ab, cd)),
                narrow(vtrn2q_f64(ba, dc)),
            ]
        }
    }
}

macro_rules! pairwise {
    ($($name:ident $f:ident;)*) => { $(
        #[inline(always)]
        unsafe fn $name(self, o: Self) -> Self {
            unsafe { Neon8($f(self.0, o.0), $f(self.1, o.1)) }
        }
    )* };
}

macro_rules! bitwise {
    ($($name:ident $f:ident;)*) => { $(
        #[inline(always)]
        unsafe fn $name(self, o: Self) -> Self {
            unsafe {
                let (a, b) = (self.words(), o.words());
                Self::from_words(($f(a.0, b.0), $f(a.1, b.1)))
            }
        }
    )* };
}

impl Lanes for Neon8 {
    type Element = f32;
    const LANES: usize = 8;
    type Mask = Mask8;

    pairwise! { add vaddq_f32; }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Neon8(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Neon8(vld1q_f32(p), vld1q_f32(p.add(4))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe {
            vst1q_f32(p, self.0);
            vst1q_f32(p.add(4), self.1);
        }
    }
    #[inline(always)]
    unsafe fn range(from: usize, to: usize) -> Mask8 {
        const PLACES: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
        unsafe {
            let (from, to) = (vdupq_n_u32(from as u32), vdupq_n_u32(to as u32));
            let within = |p| vandq_u32(vcgeq_u32(p, from), vcltq_u32(p, to));
            (within(vld1q_u32(PLACES.as_ptr())), within(vld1q_u32(PLACES.as_ptr().add(4))))
        }
    }
    #[inline(always)]
    unsafe fn load_masked(p: *const f32, mask: Mask8) -> Self {
        unsafe {
            let mut values = [0f32; 8];
            for (i, (value, loaded)) in values.iter_mut().zip(Self::lanes(mask)).enumerate() {
                if loaded != 0 {
                    *value = *p.add(i);
                }
            }
            Self::load(values.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_masked(self, p: *mut f32, mask: Mask8) {
        unsafe {
            let mut values = [0f32; 8];
            self.store(values.as_mut_ptr());
            for (i, (value, stored)) in values.iter().zip(Self::lanes(mask)).enumerate() {
                if stored != 0 {
                    *p.add(i) = *value;
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { Neon8(vfmaq_f32(c.0, self.0, b.0), vfmaq_f32(c.1, self.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        unsafe { Self::select(o.lt(self), self, o) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        unsafe { Self::select(self.lt(o), self, o) }
    }
    #[inline(always)]
    unsafe fn select(mask: Mask8, yes: Self, no: Self) -> Self {
        unsafe { Neon8(vbslq_f32(mask.0, yes.0, no.0), vbslq_f32(mask.1, yes.1, no.1)) }
    }
}

impl Block for Neon8 {
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self]) {
        unsafe {
            let low = |from: usize| Self::transposed([0, 1, 2, 3].map(|i| rows[from + i].0));
            let high = |from: usize| Self::transposed([0, 1, 2, 3].map(|i| rows[from + i].1));
            let (a, b, c, d) = (low(0), high(0), low(4), high(4));
            for i in 0..4 {
                rows[i] = Neon8(a[i], c[i]);
                rows[4 + i] = Neon8(b[i], d[i]);
            }
        }
    }
}

impl Vector for Neon8 {
    pairwise! { sub vsubq_f32; mul vmulq_f32; div vdivq_f32; }
    bitwise! { and vandq_u32; or vorrq_u32; xor veorq_u32; add_int vaddq_u32; }

    #[inline(always)]
    unsafe fn first(n: usize) -> Mask8 {
        unsafe { Self::range(0, n) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Neon8(vrndnq_f32(self.0), vrndnq_f32(self.1)) }
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        unsafe { Neon8(Self::scaled(self.0, n.0), Self::scaled(self.1, n.1)) }
    }
    #[inline(always)]
    unsafe fn lt(self, o: Self) -> Mask8 {
        unsafe { (vcltq_f32(self.0, o.0), vcltq_f32(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn eq(self, o: Self) -> Mask8 {
        unsafe { (vceqq_f32(self.0, o.0), vceqq_f32(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn any(mask: Mask8) -> bool {
        unsafe { vmaxvq_u32(vorrq_u32(mask.0, mask.1)) != 0 }
    }
    #[inline(always)]
    unsafe fn bits(x: u32) -> Self {
        unsafe { Self::from_words((vdupq_n_u32(x), vdupq_n_u32(x))) }
    }
    #[inline(always)]
    unsafe fn mul_short(self, o: Self) -> Self {
        unsafe {
            let ((a, b), (c, d)) = (self.words(), o.words());
            Self::from_words((vmulq_u32(a, c), vmulq_u32(b, d)))
        }
    }
    #[inline(always)]
    unsafe fn shl_int<const N: u32>(self) -> Self {
        unsafe {
            let (words, by) = (self.words(), vdupq_n_s32(N as i32));
            Self::from_words((vshlq_u32(words.0, by), vshlq_u32(words.1, by)))
        }
    }
    #[inline(always)]
    unsafe fn shr_int<const N: u32>(self) -> Self {
        unsafe {
            // A shift by less than zero goes to the right.
            let (words, by) = (self.words(), vdupq_n_s32(-(N as i32)));
            Self::from_words((vshlq_u32(words.0, by), vshlq_u32(words.1, by)))
        }
    }
    #[inline(always)]
    unsafe fn to_int(self) -> Self {
        unsafe {
            let nearest = |x| vreinterpretq_f32_s32(vcvtnq_s32_f32(x));
            Neon8(nearest(self.0), nearest(self.1))
        }
    }
    #[inline(always)]
    unsafe fn int_to_float(self) -> Self {
        unsafe {
            let float = |x| vcvtq_f32_s32(vreinterpretq_s32_f32(x));
            Neon8(float(self.0), float(self.1))
        }
    }
    #[inline(always)]
    unsafe fn eq_int(self, o: Self) -> Mask8 {
        unsafe {
            let (a, b) = (self.words(), o.words());
            (vceqq_u32(a.0, b.0), vceqq_u32(a.1, b.1))
        }
    }
    #[inline(always)]
    unsafe fn take(self, from: Self, lanes: Self) -> Self {
        unsafe {
            // bytes of a table of 32; those beyond it keep what was there
            let table = uint8x16x2_t(vreinterpretq_u8_f32(from.0), vreinterpretq_u8_f32(from.1));
            let half = |kept: float32x4_t, lanes: float32x4_t| {
                let first = vmulq_u32(vreinterpretq_u32_f32(lanes), vdupq_n_u32(0x0404_0404));
                let bytes = vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(0x0302_0100)));
                let absent = vreinterpretq_u8_s32(vshrq_n_s32::<31>(vreinterpretq_s32_f32(lanes)));
                vreinterpretq_f32_u8(vqtbx2q_u8(vreinterpretq_u8_f32(kept), table, vorrq_u8(bytes, absent)))
            };
            Neon8(half(self.0, lanes.0), half(self.1, lanes.1))
        }
    }
}
