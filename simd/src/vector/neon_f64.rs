//! NEON: four doubles in two registers, for sums of products.

use super::{Block, Lanes};
use std::arch::aarch64::*;

#[derive(Clone, Copy)]
pub(crate) struct Neon4(float64x2_t, float64x2_t);

/// All ones or zeros a lane.
type Mask4 = (uint64x2_t, uint64x2_t);

impl Neon4 {
    #[inline(always)]
    unsafe fn lanes(mask: Mask4) -> [u64; 4] {
        let mut lanes = [0; 4];
        unsafe {
            vst1q_u64(lanes.as_mut_ptr(), mask.0);
            vst1q_u64(lanes.as_mut_ptr().add(2), mask.1);
        }
        lanes
    }
    #[inline(always)]
    unsafe fn lt(self, o: Self) -> Mask4 {
        unsafe { (vcltq_f64(self.0, o.0), vcltq_f64(self.1, o.1)) }
    }
}

impl Lanes for Neon4 {
    type Element = f64;
    const LANES: usize = 4;
    type Mask = Mask4;

    #[inline(always)]
    unsafe fn splat(x: f64) -> Self {
        unsafe { Neon4(vdupq_n_f64(x), vdupq_n_f64(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f64) -> Self {
        unsafe { Neon4(vld1q_f64(p), vld1q_f64(p.add(2))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f64) {
        unsafe {
            vst1q_f64(p, self.0);
            vst1q_f64(p.add(2), self.1);
        }
    }
    #[inline(always)]
    unsafe fn range(from: usize, to: usize) -> Mask4 {
        const PLACES: [u64; 4] = [0, 1, 2, 3];
        unsafe {
            let (from, to) = (vdupq_n_u64(from as u64), vdupq_n_u64(to as u64));
            let within = |p| vandq_u64(vcgeq_u64(p, from), vcltq_u64(p, to));
            (within(vld1q_u64(PLACES.as_ptr())), within(vld1q_u64(PLACES.as_ptr().add(2))))
        }
    }
    #[inline(always)]
    unsafe fn load_masked(p: *const f64, mask: Mask4) -> Self {
        unsafe {
            let mut values = [0f64; 4];
            for (i, (value, loaded)) in values.iter_mut().zip(Self::lanes(mask)).enumerate() {
                if loaded != 0 {
                    *value = *p.add(i);
                }
            }
            Self::load(values.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_masked(self, p: *mut f64, mask: Mask4) {
        unsafe {
            let mut values = [0f64; 4];
            self.store(values.as_mut_ptr());
            for (i, (value, stored)) in values.iter().zip(Self::lanes(mask)).enumerate() {
                if stored != 0 {
                    *p.add(i) = *value;
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { Neon4(vaddq_f64(self.0, o.0), vaddq_f64(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { Neon4(vfmaq_f64(c.0, self.0, b.0), vfmaq_f64(c.1, self.1, b.1)) }
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
    unsafe fn select(mask: Mask4, yes: Self, no: Self) -> Self {
        unsafe { Neon4(vbslq_f64(mask.0, yes.0, no.0), vbslq_f64(mask.1, yes.1, no.1)) }
    }
}

impl Block for Neon4 {
    #[inline(always)]
    unsafe fn transpose(r: &mut [Self]) {
        unsafe {
            let [a, b, c, d] = [r[0], r[1], r[2], r[3]];
            r[0] = Neon4(vtrn1q_f64(a.0, b.0), vtrn1q_f64(c.0, d.0));
            r[1] = Neon4(vtrn2q_f64(a.0, b.0), vtrn2q_f64(c.0, d.0));
            r[2] = Neon4(vtrn1q_f64(a.1, b.1), vtrn1q_f64(c.1, d.1));
            r[3] = Neon4(vtrn2q_f64(a.1, b.1), vtrn2q_f64(c.1, d.1));
        }
    }
}
