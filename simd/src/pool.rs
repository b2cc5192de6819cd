//! Rows of pooled pixels in blocked channels.

use crate::vector::{Vector, by_isa};

/// Pixels whose windows hold the same taps. All distances are in floats.
///
/// ```text
/// for i in 0..pixels
///     dst[i dst_step ..][0..L] = (max or sum over t of src[i src_step + taps[t] ..][0..L]) / divisor
/// ```
#[derive(Clone, Copy, Debug)]
pub struct PoolRow {
    /// Where the first pixel's taps count from; itself it need not be valid.
    pub src: *const f32,
    /// From one pixel's window to the next.
    pub src_step: usize,
    /// Offsets of the taps.
    pub taps: *const usize,
    /// Number of taps; without any a maximum is -inf, a sum 0.
    pub tap_count: usize,
    /// Output.
    pub dst: *mut f32,
    /// From one pixel to the next.
    pub dst_step: usize,
    /// Number of pixels.
    pub pixels: usize,
    /// The maximum (NaN if an element is NaN) instead of the sum.
    pub max: bool,
    /// What a sum is divided by; 1 leaves it alone.
    pub divisor: f32,
}

/// Computes a [`PoolRow`].
///
/// # Safety
/// Each tap of each pixel is readable, each output writable, for `L` floats.
pub type PoolFn = unsafe fn(&PoolRow);

by_isa! {
    /// The kernel for `isa`; `None` if the host lacks it.
    pool_row = pooled(PoolRow)
}

#[inline(always)]
unsafe fn pooled<V: Vector>(row: &PoolRow) {
    unsafe {
        let mut at = 0;
        // Four pixels at once hide the latency of the chains.
        while at + 4 <= row.pixels {
            pixels::<V, 4>(row, at);
            at += 4;
        }
        while at < row.pixels {
            pixels::<V, 1>(row, at);
            at += 1;
        }
    }
}

#[inline(always)]
unsafe fn pixels<V: Vector, const N: usize>(row: &PoolRow, first: usize) {
    unsafe {
        let src = row.src.wrapping_add(first * row.src_step);
        let mut acc = [V::splat(if row.max { f32::NEG_INFINITY } else { 0.0 }); N];
        for t in 0..row.tap_count {
            let tap = src.wrapping_add(*row.taps.add(t));
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = V::load(tap.wrapping_add(i * row.src_step));
                *acc = if row.max {
                    // A NaN stays: `max` gives its second operand if either is NaN.
                    V::select(acc.eq(*acc), acc.max(x), *acc)
                } else {
                    acc.add(x)
                };
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            let value = if row.divisor == 1.0 { *acc } else { acc.div(V::splat(row.divisor)) };
            value.store(row.dst.wrapping_add((first + i) * row.dst_step));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn rows() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let l = isa.lanes_f32();
            let mut src: Vec<f32> = (0..12 * l).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
            src[5 * l + 1] = f32::NAN;
            let taps = [0, 2 * l, l];
            for (max, divisor) in [(true, 1.0), (false, 1.0), (false, 3.0)] {
                let mut dst = vec![0.0; 9 * l];
                let row = PoolRow {
                    src: src.as_ptr(),
                    src_step: l,
                    taps: taps.as_ptr(),
                    tap_count: 3,
                    dst: dst.as_mut_ptr(),
                    dst_step: l,
                    pixels: 9,
                    max,
                    divisor,
                };
                unsafe { pool_row(isa).unwrap()(&row) };
                for (i, got) in dst.iter().enumerate() {
                    let values = taps.map(|t| src[i + t]);
                    let want = match max {
                        _ if values.iter().any(|v| v.is_nan()) => f32::NAN,
                        true => values.into_iter().fold(f32::NEG_INFINITY, f32::max),
                        false => (0.0 + values[0] + values[1] + values[2]) / divisor,
                    };
                    assert!(*got == want || got.is_nan() && want.is_nan(), "{isa} {i}: {got} {want}");
                }
            }
        }
    }
}
