//! Passes over small blocks that stay in L1, as attention needs them between its products.
//!
//! Blocks are `[rows][W]`, `W = 2 L` floats a row, without gaps.

use crate::Isa;
use crate::math::exp;
use crate::vector::{Lanes, Portable8, Vector};

/// The passes of one instruction set; from [`strips`].
///
/// # Safety
/// All of them: pointers are valid for the extents named.
#[derive(Clone, Copy, Debug)]
pub struct Strips {
    /// `online(s, rows, max, sum, factor)`: one step of the online softmax over columns. `s[rows][W]` becomes
    /// `exp(s - m)` with the new maximum `m`; `max[W]`, `sum[W]` are carried; `factor[W]` is what earlier results must be
    /// multiplied by. Begin with `max` = -inf, `sum` = 0. A column of -inf alone keeps `max` = -inf, `sum` = 0.
    pub online: unsafe fn(*mut f32, usize, *mut f32, *mut f32, *mut f32),
    /// `rescale(o, rows, factor)`: `o[r][w] *= factor[w]`.
    pub rescale: unsafe fn(*mut f32, usize, *const f32),
    /// `add(dst, src, n)`: `dst[i] += src[i]`.
    pub add: unsafe fn(*mut f32, *const f32, usize),
    /// `scale(dst, n, k)`: `dst[i] *= k`.
    pub scale: unsafe fn(*mut f32, usize, f32),
    /// `gradient(s, dp, rows, lse, delta, by_row, k)`: `s` becomes `p = exp(s - lse)`, `dp` becomes `p (dp - delta) k`;
    /// `lse` and `delta` have an element a row if `by_row`, else an element a column.
    pub gradient: unsafe fn(*mut f32, *mut f32, usize, *const f32, *const f32, bool, f32),
    /// `dot(a, b, n)`.
    pub dot: unsafe fn(*const f32, *const f32, usize) -> f32,
}

/// The passes for `isa`; `None` if the host lacks it.
pub fn strips(isa: Isa) -> Option<Strips> {
    isa.is_supported().then_some(match isa {
        Isa::Portable => portable::STRIPS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::STRIPS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::STRIPS,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => neon::STRIPS,
        _ => portable::STRIPS,
    })
}

#[inline(always)]
unsafe fn online<V: Vector>(s: *mut f32, rows: usize, max: *mut f32, sum: *mut f32, factor: *mut f32) {
    unsafe {
        let l = V::LANES;
        let width = 2 * l;
        for h in 0..2 {
            let s = s.add(h * l);
            let old = V::load(max.add(h * l));
            // Two chains, so that the latency of a maximum does not bound the loop. Scores come first: a NaN among them
            // is passed over here and appears in the exponentials.
            let (mut m, mut other) = (old, old);
            let mut r = 0;
            while r + 1 < rows {
                m = V::load(s.add(r * width)).max(m);
                other = V::load(s.add((r + 1) * width)).max(other);
                r += 2;
            }
            if r < rows {
                m = V::load(s.add(r * width)).max(m);
            }
            let m = m.max(other);
            m.store(max.add(h * l));
            let nothing = m.eq(V::splat(f32::NEG_INFINITY));
            let m = V::select(nothing, V::zero(), m);
            let f = exp(old.sub(m));
            f.store(factor.add(h * l));
            let mut total = V::load(sum.add(h * l)).mul(f);
            for r in 0..rows {
                let e = exp(V::load(s.add(r * width)).sub(m));
                e.store(s.add(r * width));
                total = total.add(e);
            }
            total.store(sum.add(h * l));
        }
    }
}

#[inline(always)]
unsafe fn rescale<V: Vector>(o: *mut f32, rows: usize, factor: *const f32) {
    unsafe {
        let l = V::LANES;
        let (low, high) = (V::load(factor), V::load(factor.add(l)));
        for r in 0..rows {
            let p = o.add(r * 2 * l);
            V::load(p).mul(low).store(p);
            V::load(p.add(l)).mul(high).store(p.add(l));
        }
    }
}

#[inline(always)]
unsafe fn each<V: Vector>(dst: *mut f32, n: usize, f: impl Fn(V, usize, V::Mask) -> V) {
    unsafe {
        let full = V::first(V::LANES);
        let mut i = 0;
        while i + V::LANES <= n {
            f(V::load(dst.add(i)), i, full).store(dst.add(i));
            i += V::LANES;
        }
        if i < n {
            let mask = V::first(n - i);
            f(V::load_masked(dst.add(i), mask), i, mask).store_masked(dst.add(i), mask);
        }
    }
}

#[inline(always)]
unsafe fn gradient<V: Vector>(
    s: *mut f32,
    dp: *mut f32,
    rows: usize,
    lse: *const f32,
    delta: *const f32,
    by_row: bool,
    k: f32,
) {
    unsafe {
        let l = V::LANES;
        let k = V::splat(k);
        for h in 0..2 {
            let column = |p: *const f32| {
                if by_row { V::zero() } else { V::load(p.add(h * l)) }
            };
            let (mut lse_v, mut delta_v) = (column(lse), column(delta));
            for r in 0..rows {
                if by_row {
                    lse_v = V::splat(*lse.add(r));
                    delta_v = V::splat(*delta.add(r));
                }
                let at = r * 2 * l + h * l;
                let p = exp(V::load(s.add(at)).sub(lse_v));
                p.store(s.add(at));
                p.mul(V::load(dp.add(at)).sub(delta_v)).mul(k).store(dp.add(at));
            }
        }
    }
}

#[inline(always)]
unsafe fn dot<V: Vector>(a: *const f32, b: *const f32, n: usize) -> f32 {
    unsafe {
        let mut sum = V::zero();
        let mut i = 0;
        while i + V::LANES <= n {
            sum = V::load(a.add(i)).fma(V::load(b.add(i)), sum);
            i += V::LANES;
        }
        if i < n {
            let mask = V::first(n - i);
            sum = V::load_masked(a.add(i), mask).fma(V::load_masked(b.add(i), mask), sum);
        }
        let mut lanes = [0f32; 16];
        sum.store(lanes.as_mut_ptr());
        lanes.iter().sum()
    }
}

macro_rules! instance {
    ($module:ident, $vector:ty $(, $feature:literal)?) => {
        mod $module {
            use super::{Lanes, Strips, Vector};
            #[allow(unused_imports)]
            use super::Portable8;

            pub(super) const STRIPS: Strips = Strips { online, rescale, add, scale, gradient, dot };

            $(#[target_feature(enable = $feature)])?
            unsafe fn online(s: *mut f32, n: usize, m: *mut f32, sum: *mut f32, f: *mut f32) {
                unsafe { super::online::<$vector>(s, n, m, sum, f) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn rescale(o: *mut f32, rows: usize, factor: *const f32) {
                unsafe { super::rescale::<$vector>(o, rows, factor) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn add(dst: *mut f32, src: *const f32, n: usize) {
                unsafe {
                    super::each::<$vector>(dst, n, #[inline(always)] |x, i, mask| {
                        x.add(<$vector>::load_masked(src.add(i), mask))
                    })
                }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn scale(dst: *mut f32, n: usize, k: f32) {
                unsafe {
                    let k = <$vector>::splat(k);
                    super::each::<$vector>(dst, n, #[inline(always)] |x, _, _| x.mul(k))
                }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn gradient(
                s: *mut f32,
                dp: *mut f32,
                rows: usize,
                lse: *const f32,
                delta: *const f32,
                by_row: bool,
                k: f32,
            ) {
                unsafe { super::gradient::<$vector>(s, dp, rows, lse, delta, by_row, k) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn dot(a: *const f32, b: *const f32, n: usize) -> f32 {
                unsafe { super::dot::<$vector>(a, b, n) }
            }
        }
    };
}

instance!(portable, Portable8);
#[cfg(target_arch = "aarch64")]
instance!(neon, crate::vector::Neon8, "neon");
#[cfg(target_arch = "x86_64")]
instance!(avx2, std::arch::x86_64::__m256, "avx2,fma");
#[cfg(target_arch = "x86_64")]
instance!(avx512, std::arch::x86_64::__m512, "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma");
