//! Rows of pixels in blocked channels, scaled and shifted by channel.

use crate::vector::{Vector, by_isa};

/// Rows of one block of channels. All distances are in floats.
///
/// ```text
/// for i in 0..rows, j in 0..pixels, l in 0..L
///     dst[i dst_row + j L + l] = min(max(src[i src_row + j L + l] * scale[l] + shift[l], lo), hi)
/// ```
///
/// The product and the sum round apart. NaN passes through.
#[derive(Clone, Copy, Debug)]
pub struct AffineRows {
    /// The first pixel.
    pub src: *const f32,
    /// From a row to the next.
    pub src_row: usize,
    /// Where it goes.
    pub dst: *mut f32,
    /// From a row to the next.
    pub dst_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Pixels in a row.
    pub pixels: usize,
    /// `L` factors; null where there are none.
    pub scale: *const f32,
    /// `L` terms; null where there are none.
    pub shift: *const f32,
    /// The bounds, where there are any.
    pub clamp: Option<(f32, f32)>,
}

/// Computes [`AffineRows`].
///
/// # Safety
/// Each pixel is readable at the source and writable at the target, and scale and shift readable, for `L` floats.
pub type AffineFn = unsafe fn(&AffineRows);

by_isa! {
    /// The kernel for `isa`; `None` if the host lacks it.
    affine_rows = affine(AffineRows)
}

#[inline(always)]
unsafe fn affine<V: Vector>(all: &AffineRows) {
    unsafe {
        match (all.scale.is_null(), all.shift.is_null(), all.clamp) {
            (false, false, Some(_)) => rows::<V, true, true, true>(all),
            (false, false, None) => rows::<V, true, true, false>(all),
            (false, true, Some(_)) => rows::<V, true, false, true>(all),
            (false, true, None) => rows::<V, true, false, false>(all),
            (true, false, Some(_)) => rows::<V, false, true, true>(all),
            (true, false, None) => rows::<V, false, true, false>(all),
            (true, true, Some(_)) => rows::<V, false, false, true>(all),
            (true, true, None) => rows::<V, false, false, false>(all),
        }
    }
}

#[inline(always)]
unsafe fn rows<V: Vector, const SCALE: bool, const SHIFT: bool, const CLAMP: bool>(all: &AffineRows) {
    unsafe {
        let scale = if SCALE { V::load(all.scale) } else { V::zero() };
        let shift = if SHIFT { V::load(all.shift) } else { V::zero() };
        let (lo, hi) = all.clamp.unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
        let (lo, hi) = (V::splat(lo), V::splat(hi));
        for row in 0..all.rows {
            let (src, dst) = (all.src.wrapping_add(row * all.src_row), all.dst.wrapping_add(row * all.dst_row));
            for pixel in 0..all.pixels {
                let mut x = V::load(src.wrapping_add(pixel * V::LANES));
                if SCALE {
                    x = x.mul(scale);
                }
                if SHIFT {
                    x = x.add(shift);
                }
                if CLAMP {
                    // the second operand is given where either is NaN
                    x = hi.min(lo.max(x));
                }
                x.store(dst.wrapping_add(pixel * V::LANES));
            }
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
            let (rows, pixels) = (3, 5);
            let (src_row, dst_row) = (7 * l, 6 * l);
            let mut src: Vec<f32> = (0..rows * src_row).map(|i| ((i * 37) % 101) as f32 / 8.0 - 6.0).collect();
            src[src_row + 2 * l + 1] = f32::NAN;
            let scale: Vec<f32> = (0..l).map(|i| i as f32 / 4.0 - 1.0).collect();
            let shift: Vec<f32> = (0..l).map(|i| 3.0 - i as f32).collect();
            for case in 0..8 {
                let clamp = (case & 1 == 1).then_some((0.0, 4.0));
                let (scaled, shifted) = (case & 2 == 2, case & 4 == 4);
                let pick = |used: bool, from: &[f32]| if used { from.as_ptr() } else { std::ptr::null() };
                let mut dst = vec![9.0; rows * dst_row];
                let all = AffineRows {
                    src: src.as_ptr(),
                    src_row,
                    dst: dst.as_mut_ptr(),
                    dst_row,
                    rows,
                    pixels,
                    scale: pick(scaled, &scale),
                    shift: pick(shifted, &shift),
                    clamp,
                };
                unsafe { affine_rows(isa).unwrap()(&all) };
                for (i, got) in dst.iter().enumerate() {
                    let (row, at) = (i / dst_row, i % dst_row);
                    if at >= pixels * l {
                        assert_eq!(*got, 9.0, "{isa}: beyond the row");
                        continue;
                    }
                    let mut want = src[row * src_row + at];
                    want = if scaled { want * scale[at % l] } else { want };
                    want = if shifted { want + shift[at % l] } else { want };
                    want = clamp.map_or(want, |(lo, hi)| if want.is_nan() { want } else { want.clamp(lo, hi) });
                    assert!(*got == want || got.is_nan() && want.is_nan(), "{isa} {case} {i}: {got} {want}");
                }
            }
        }
    }
}
