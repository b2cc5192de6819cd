//! Sums of products of integers, by the kernels that serve floats.

use super::{Lanes, Vector};

/// Lanes are `i32`: products are of operands that fit `i16`, and exact; sums wrap. Nothing is clamped.
#[derive(Clone, Copy)]
pub(crate) struct Shorts<V>(V);

impl<V: Vector> Lanes for Shorts<V> {
    type Element = f32;
    const LANES: usize = V::LANES;
    type Mask = V::Mask;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Shorts(V::splat(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Shorts(V::load(p)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { self.0.store(p) }
    }
    #[inline(always)]
    unsafe fn range(from: usize, to: usize) -> V::Mask {
        unsafe { V::range(from, to) }
    }
    #[inline(always)]
    unsafe fn load_masked(p: *const f32, mask: V::Mask) -> Self {
        unsafe { Shorts(V::load_masked(p, mask)) }
    }
    #[inline(always)]
    unsafe fn store_masked(self, p: *mut f32, mask: V::Mask) {
        unsafe { self.0.store_masked(p, mask) }
    }
    #[inline(always)]
    unsafe fn select(mask: V::Mask, yes: Self, no: Self) -> Self {
        unsafe { Shorts(V::select(mask, yes.0, no.0)) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { Shorts(self.0.add_int(o.0)) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { Shorts(self.0.mul_short(b.0).add_int(c.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        o
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        o
    }
}
