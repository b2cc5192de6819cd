//! The functions on one vector. Callers uphold the contract of [`Vector`].

use crate::vector::Vector;

/// The polynomial with these coefficients, greatest power first.
#[inline(always)]
unsafe fn polynomial<V: Vector, const N: usize>(x: V, coefficients: [f32; N]) -> V {
    unsafe {
        let mut sum = V::splat(coefficients[0]);
        for c in &coefficients[1..] {
            sum = sum.fma(x, V::splat(*c));
        }
        sum
    }
}

/// ln 2 in two parts; the first has so few bits that its product with an exponent is exact even without FMA.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V) -> V {
    unsafe {
        // Beyond these bounds the result is infinite or zero; NaN passes, being second.
        let x = V::splat(89.0).min(V::splat(-104.0).max(x));
        let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        let r = n.fma(V::splat(-LN2_LOW), n.fma(V::splat(-LN2_HIGH), x));
        let p = polynomial(r, [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5]);
        // 1 + (r + r^2 p): the small part is summed first.
        let p = p.fma(r.mul(r), r).add(V::splat(1.0));
        p.scale2(n)
    }
}

#[inline(always)]
pub(super) unsafe fn expm1<V: Vector>(x: V) -> V {
    unsafe {
        let far = exp(x).sub(V::splat(1.0));
        // Near zero the sum of powers itself, which loses nothing to the 1.
        let p = polynomial(
            x,
            [1.0 / 362_880.0, 1.0 / 40_320.0, 1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5],
        );
        let near = p.fma(x.mul(x), x);
        V::select(x.abs().lt(V::splat(0.7)), near, far)
    }
}

/// `log(m 2^e) + correction` for m in [sqrt(1/2), sqrt(2)); x is positive and normal or has been scaled by 2^-shift.
#[inline(always)]
unsafe fn log_positive<V: Vector>(x: V, shift: V) -> V {
    unsafe {
        // Subtracting sqrt(1/2)'s bits leaves the exponent of the interval that x is in.
        let offset = x.add_int(V::bits(0u32.wrapping_sub(0x3f35_04f3)));
        let low = offset.and(V::bits(0x007f_ffff));
        let m = low.add_int(V::bits(0x3f35_04f3));
        let biased = offset.xor(V::bits(0x8000_0000)).shr_int::<23>();
        let e = biased.int_to_float().sub(V::splat(256.0)).add(shift);
        let f = m.sub(V::splat(1.0));
        let z = f.mul(f);
        let p = polynomial(
            f,
            [
                7.037_683_6e-2,
                -1.151_461e-1,
                1.167_699_9e-1,
                -1.242_014_1e-1,
                1.424_932_3e-1,
                -1.666_805_7e-1,
                2.000_071_5e-1,
                -2.499_999_4e-1,
                3.333_333e-1,
            ],
        );
        let y = p.mul(f).mul(z);
        let y = e.fma(V::splat(LN2_LOW), y);
        let y = z.fma(V::splat(-0.5), y);
        e.fma(V::splat(LN2_HIGH), f.add(y))
    }
}

#[inline(always)]
pub(super) unsafe fn log<V: Vector>(x: V) -> V {
    unsafe {
        let subnormal = x.lt(V::splat(f32::MIN_POSITIVE));
        let scaled = V::select(subnormal, x.mul(V::splat(33_554_432.0)), x);
        let shift = V::select(subnormal, V::splat(-25.0), V::zero());
        log_limits(x, log_positive(scaled, shift))
    }
}

/// Puts in what a logarithm of `x` is where the general form does not hold.
#[inline(always)]
unsafe fn log_limits<V: Vector>(x: V, general: V) -> V {
    unsafe {
        let infinity = V::splat(f32::INFINITY);
        let y = V::select(x.eq(V::zero()), V::splat(f32::NEG_INFINITY), general);
        let y = V::select(x.lt(V::zero()), V::splat(f32::NAN), y);
        let y = V::select(x.eq(infinity), infinity, y);
        V::select(x.eq(x), y, x)
    }
}

#[inline(always)]
pub(super) unsafe fn log1p<V: Vector>(x: V) -> V {
    unsafe {
        let one = V::splat(1.0);
        let u = one.add(x);
        // log(u) + (x - (u - 1)) / u: the second term gives back what the sum rounded away.
        let lost = V::select(x.lt(one), x.sub(u.sub(one)), one.sub(u.sub(x)));
        let corrected = log_positive(u, V::zero()).add(lost.div(u));
        let y = log_limits(u, corrected);
        // Around zero: the series of the logarithm itself, so that no bit is lost to the 1.
        let near = {
            let z = x.mul(x);
            let p = polynomial(
                x,
                [
                    7.037_683_6e-2,
                    -1.151_461e-1,
                    1.167_699_9e-1,
                    -1.242_014_1e-1,
                    1.424_932_3e-1,
                    -1.666_805_7e-1,
                    2.000_071_5e-1,
                    -2.499_999_4e-1,
                    3.333_333e-1,
                ],
            );
            x.add(z.fma(V::splat(-0.5), p.mul(x).mul(z)))
        };
        V::select(x.abs().lt(V::splat(0.29)), near, y)
    }
}

#[inline(always)]
pub(super) unsafe fn tanh<V: Vector>(x: V) -> V {
    unsafe {
        let one = V::splat(1.0);
        let a = x.abs();
        let z = x.mul(x);
        let p = polynomial(z, [-5.704_988_7e-3, 2.063_909_e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328_e-1]);
        let near = p.mul(z).fma(x, x);
        let far = one.sub(V::splat(2.0).div(exp(a.add(a)).add(one)));
        let far = far.or(x.sign());
        let y = V::select(a.lt(V::splat(0.625)), near, far);
        V::select(x.eq(x), y, x)
    }
}

#[inline(always)]
pub(super) unsafe fn sigmoid<V: Vector>(x: V) -> V {
    unsafe {
        let one = V::splat(1.0);
        // Of the two equal forms, the one whose exponential cannot overflow.
        let e = exp(x.abs().or(V::bits(0x8000_0000)));
        let numerator = V::select(x.lt(V::zero()), e, one);
        numerator.div(one.add(e))
    }
}

#[inline(always)]
pub(super) unsafe fn erf<V: Vector>(x: V) -> V {
    unsafe {
        let t = x.abs();
        let s = x.mul(x);
        // 1 - e^q(t) far from zero, an odd polynomial near it.
        let high = polynomial(t, [-1.728_534_7e-5, 3.831_972e-4]);
        let low = polynomial(t, [-3.883_964_4e-3, 2.425_462_2e-2]);
        let q = high.fma(s, low);
        let q = q.fma(t, V::splat(-1.067_778_8e-1));
        let q = q.fma(t, V::splat(-6.348_467e-1));
        let q = q.fma(t, V::splat(-1.287_175_1e-1));
        let q = q.fma(t, V::zero().sub(t));
        let far = V::splat(1.0).sub(exp(q)).or(x.sign());
        let p = polynomial(
            s,
            [-5.967_617e-4, 4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1],
        );
        let near = p.fma(x, x);
        let y = V::select(V::splat(0.927_734_4).lt(t), far, near);
        V::select(x.eq(x), y, x)
    }
}

/// Arguments up to here are reduced in f32; the few beyond take the scalar way.
const REDUCED: f32 = 512.0;

#[inline(always)]
pub(super) unsafe fn sin<V: Vector>(x: V) -> V {
    unsafe { sine(x, 0, f64::sin) }
}

#[inline(always)]
pub(super) unsafe fn cos<V: Vector>(x: V) -> V {
    unsafe { sine(x, 1, f64::cos) }
}

/// The sine of x plus `quarter` right angles.
#[inline(always)]
unsafe fn sine<V: Vector>(x: V, quarter: u32, scalar: fn(f64) -> f64) -> V {
    unsafe {
        let j = x.mul(V::splat(std::f32::consts::FRAC_2_PI)).round();
        // pi/2 in four parts; the first two have so few bits that their products with j are exact.
        let r = j.fma(V::splat(-1.570_312_5), x);
        let r = j.fma(V::splat(-4.837_513e-4), r);
        let r = j.fma(V::splat(-7.549_79e-8), r);
        let z = r.mul(r);
        let sine = {
            let p = polynomial(z, [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1]);
            p.mul(z).fma(r, r)
        };
        let cosine = {
            let p = polynomial(z, [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2]);
            p.mul(z).fma(z, z.fma(V::splat(-0.5), V::splat(1.0)))
        };
        let turn = j.to_int().add_int(V::bits(quarter));
        let odd = turn.and(V::bits(1)).eq_int(V::bits(1));
        let sign = turn.and(V::bits(2)).shl_int::<30>();
        let y = V::select(odd, cosine, sine).xor(sign);

        let small = x.abs().lt(V::splat(REDUCED));
        let large = V::select(small, V::zero(), V::splat(1.0));
        if V::any(V::zero().lt(large)) {
            return far_sine(x, y, scalar);
        }
        y
    }
}

/// Replaces the lanes whose argument is large (or not finite) by the scalar function in f64.
#[cold]
#[inline(never)]
fn far_lanes(x: &[f32; 16], y: &mut [f32; 16], scalar: fn(f64) -> f64) {
    for (x, y) in x.iter().zip(y) {
        if x.abs() >= REDUCED || x.is_nan() {
            *y = scalar(*x as f64) as f32;
        }
    }
}

#[inline(always)]
unsafe fn far_sine<V: Vector>(x: V, y: V, scalar: fn(f64) -> f64) -> V {
    unsafe {
        let (mut from, mut to) = ([0f32; 16], [0f32; 16]);
        x.store(from.as_mut_ptr());
        y.store(to.as_mut_ptr());
        far_lanes(&from, &mut to, scalar);
        V::load(to.as_ptr())
    }
}
