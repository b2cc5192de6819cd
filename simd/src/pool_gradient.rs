//! Gradients of rows of pooled pixels in blocked channels.

use crate::vector::{Vector, by_isa};

/// Windows whose taps are the same. All distances are in floats.
///
/// ```text
/// for i in 0..pixels
///     of the taps where x[i x_step + x_taps[t] ..] is the window's maximum (or of all):
///         dx[i dx_step + dx_taps[t] ..][0..L] += dy[i dy_step ..][0..L] / (their number, or divisor)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct PoolGradRow {
    /// Where the first window's taps count from in x; itself it need not be valid. Read for maxima alone.
    pub x: *const f32,
    /// From one window to the next in x.
    pub x_step: usize,
    /// Offsets of the taps in x.
    pub x_taps: *const usize,
    /// Where the first window's taps count from in dx.
    pub dx: *mut f32,
    /// From one window to the next in dx.
    pub dx_step: usize,
    /// Offsets of the taps in dx.
    pub dx_taps: *const usize,
    /// Number of taps.
    pub tap_count: usize,
    /// The gradient by the windows.
    pub dy: *const f32,
    /// From one window to the next in dy.
    pub dy_step: usize,
    /// Number of windows.
    pub pixels: usize,
    /// Maxima instead of sums; the gradient of tied ones is split. NaN is the maximum where there is one.
    pub max: bool,
    /// What the gradient of a sum is divided by.
    pub divisor: f32,
    /// No other window reads these elements: dx is written, whatever is there, instead of added to.
    pub alone: bool,
}

/// Computes a [`PoolGradRow`].
///
/// # Safety
/// Each tap of each window is readable in x and writable in dx, each gradient readable, for `L` floats.
pub type PoolGradFn = unsafe fn(&PoolGradRow);

by_isa! {
    /// The kernel for `isa`; `None` if the host lacks it.
    pool_gradient_row = windows(PoolGradRow)
}

#[inline(always)]
unsafe fn windows<V: Vector>(row: &PoolGradRow) {
    unsafe {
        match (row.max, row.tap_count) {
            (false, _) => sums::<V>(row),
            (true, 2) => few_maxima::<V, 2>(row),
            (true, 3) => few_maxima::<V, 3>(row),
            (true, 4) => few_maxima::<V, 4>(row),
            (true, 6) => few_maxima::<V, 6>(row),
            (true, 9) => few_maxima::<V, 9>(row),
            (true, _) => maxima::<V>(row),
        }
    }
}

/// What a tap is given goes into dx.
#[inline(always)]
unsafe fn give<V: Vector>(row: &PoolGradRow, at: *mut f32, given: V) {
    unsafe {
        // added to zero as well: a gradient of −0 leaves 0
        let before = if row.alone { V::zero() } else { V::load(at) };
        before.add(given).store(at);
    }
}

#[inline(always)]
unsafe fn sums<V: Vector>(row: &PoolGradRow) {
    unsafe {
        for i in 0..row.pixels {
            let dy = V::load(row.dy.wrapping_add(i * row.dy_step));
            let dx = row.dx.wrapping_add(i * row.dx_step);
            let share = if row.divisor == 1.0 { dy } else { dy.div(V::splat(row.divisor)) };
            for t in 0..row.tap_count {
                give(row, dx.wrapping_add(*row.dx_taps.add(t)), share);
            }
        }
    }
}

/// The greater; NaN if either is NaN.
#[inline(always)]
unsafe fn greater<V: Vector>(best: V, x: V) -> V {
    // `max` gives its second operand if either is NaN
    unsafe { V::select(best.eq(best), best.max(x), best) }
}

/// 1 where an element is the maximum; of a NaN, where it is NaN too: then there is one in the window.
#[inline(always)]
unsafe fn wins<V: Vector>(x: V, best: V) -> V {
    unsafe {
        let one = V::splat(1.0);
        V::select(x.eq(x), V::select(x.eq(best), one, V::zero()), one)
    }
}

/// Maxima of windows of `N` taps, which stay in registers.
#[inline(always)]
unsafe fn few_maxima<V: Vector, const N: usize>(row: &PoolGradRow) {
    unsafe {
        let x_taps: [usize; N] = std::array::from_fn(|t| *row.x_taps.add(t));
        let dx_taps: [usize; N] = std::array::from_fn(|t| *row.dx_taps.add(t));
        for i in 0..row.pixels {
            let dy = V::load(row.dy.wrapping_add(i * row.dy_step));
            let (x, dx) = (row.x.wrapping_add(i * row.x_step), row.dx.wrapping_add(i * row.dx_step));
            let mut taps = [V::zero(); N];
            for t in 0..N {
                taps[t] = V::load(x.wrapping_add(x_taps[t]));
            }
            let mut best = taps[0];
            for tap in &taps[1..] {
                best = greater(best, *tap);
            }
            let mut ties = V::zero();
            for tap in &mut taps {
                *tap = wins(*tap, best);
                ties = ties.add(*tap);
            }
            let share = dy.div(ties);
            for t in 0..N {
                let given = V::select(taps[t].eq(V::zero()), V::zero(), share);
                give(row, dx.wrapping_add(dx_taps[t]), given);
            }
        }
    }
}

#[inline(always)]
unsafe fn maxima<V: Vector>(row: &PoolGradRow) {
    unsafe {
        for i in 0..row.pixels {
            let dy = V::load(row.dy.wrapping_add(i * row.dy_step));
            let (x, dx) = (row.x.wrapping_add(i * row.x_step), row.dx.wrapping_add(i * row.dx_step));
            let tap = |t: usize| V::load(x.wrapping_add(*row.x_taps.add(t)));
            let mut best = V::splat(f32::NEG_INFINITY);
            for t in 0..row.tap_count {
                best = greater(best, tap(t));
            }
            let mut ties = V::zero();
            for t in 0..row.tap_count {
                ties = ties.add(wins(tap(t), best));
            }
            let share = dy.div(ties);
            for t in 0..row.tap_count {
                let given = V::select(wins(tap(t), best).eq(V::zero()), V::zero(), share);
                give(row, dx.wrapping_add(*row.dx_taps.add(t)), given);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn ties_are_split_and_nan_is_the_maximum() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let l = isa.lanes_f32();
            // two windows of three taps each; lane 0 tied, lane 1 with a NaN
            let mut x = vec![0.0f32; 6 * l];
            for (tap, values) in [[2.0, f32::NAN], [1.0, 5.0], [2.0, f32::NAN]].iter().enumerate() {
                x[tap * l..tap * l + 2].copy_from_slice(values);
            }
            x[3 * l..].iter_mut().enumerate().for_each(|(i, v)| *v = (i / l) as f32);
            let (dy, mut dx) = (vec![6.0f32; 2 * l], vec![1.0f32; 6 * l]);
            let taps = [0, l, 2 * l];
            let row = PoolGradRow {
                x: x.as_ptr(),
                x_step: 3 * l,
                x_taps: taps.as_ptr(),
                dx: dx.as_mut_ptr(),
                dx_step: 3 * l,
                dx_taps: taps.as_ptr(),
                tap_count: 3,
                dy: dy.as_ptr(),
                dy_step: l,
                pixels: 2,
                max: true,
                divisor: 1.0,
                alone: false,
            };
            unsafe { pool_gradient_row(isa).unwrap()(&row) };
            let lane = |lane: usize| -> Vec<f32> { (0..6).map(|tap| dx[tap * l + lane]).collect() };
            assert_eq!(lane(0), [4.0, 1.0, 4.0, 1.0, 1.0, 7.0], "{isa}");
            assert_eq!(lane(1), [4.0, 1.0, 4.0, 1.0, 1.0, 7.0], "{isa}");
            assert_eq!(lane(2), [3.0, 3.0, 3.0, 1.0, 1.0, 7.0], "{isa}");
            unsafe { pool_gradient_row(isa).unwrap()(&PoolGradRow { max: false, divisor: 3.0, ..row }) };
            assert_eq!(dx[0], 6.0);
            unsafe { pool_gradient_row(isa).unwrap()(&PoolGradRow { alone: true, ..row }) };
            let lane = |lane: usize| -> Vec<f32> { (0..6).map(|tap| dx[tap * l + lane]).collect() };
            assert_eq!(lane(0), [3.0, 0.0, 3.0, 0.0, 0.0, 6.0], "{isa}");
            // windows of more taps than registers hold
            let taps: Vec<usize> = (0..5).map(|tap| tap * l).collect();
            let five = PoolGradRow {
                x_taps: taps.as_ptr(),
                dx_taps: taps.as_ptr(),
                tap_count: 5,
                pixels: 1,
                alone: true,
                ..row
            };
            unsafe { pool_gradient_row(isa).unwrap()(&five) };
            assert_eq!((0..5).map(|tap| dx[tap * l + 1]).collect::<Vec<f32>>(), [3.0, 0.0, 3.0, 0.0, 0.0], "{isa}");
            assert_eq!((0..5).map(|tap| dx[tap * l + 2]).collect::<Vec<f32>>(), [0.0, 0.0, 0.0, 0.0, 6.0], "{isa}");
        }
    }
}
