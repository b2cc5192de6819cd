//! Copies of the rows of a matrix, each of so few elements that a call of `memcpy` would cost more than its work.

use crate::vector::{Lanes, of_elements};
use crate::{Element, Isa};

/// `dst[i * dst_row + j] = src[i * src_row + j]` for `i < rows`, `j < cols`; strides in elements.
///
/// # Safety
/// The host has the instruction set; `src` is readable and `dst` writable for exactly those elements, and they do not overlap.
pub type RowsFn<E = f32> =
    unsafe fn(dst: *mut E, dst_row: usize, src: *const E, src_row: usize, rows: usize, cols: usize);

/// The copy for `isa`; `None` if the host lacks it.
pub fn copy_rows<E: Element>(isa: Isa) -> Option<RowsFn<E>> {
    isa.is_supported().then(|| E::row_copy(isa))
}

#[inline(always)]
unsafe fn rows_of<V: Lanes>(
    dst: *mut V::Element,
    dst_row: usize,
    src: *const V::Element,
    src_row: usize,
    rows: usize,
    cols: usize,
) {
    unsafe {
        match (cols / V::LANES, cols % V::LANES) {
            (0, 0) => {}
            (0, rest) => some::<V, 0>(dst, dst_row, src, src_row, rows, rest),
            (1, rest) => some::<V, 1>(dst, dst_row, src, src_row, rows, rest),
            (2, rest) => some::<V, 2>(dst, dst_row, src, src_row, rows, rest),
            _ => {
                for i in 0..rows {
                    std::ptr::copy_nonoverlapping(src.add(i * src_row), dst.add(i * dst_row), cols);
                }
            }
        }
    }
}

/// Rows of `N` vectors and `rest` elements.
#[inline(always)]
unsafe fn some<V: Lanes, const N: usize>(
    dst: *mut V::Element,
    dst_row: usize,
    src: *const V::Element,
    src_row: usize,
    rows: usize,
    rest: usize,
) {
    unsafe {
        let mask = V::range(0, rest);
        for i in 0..rows {
            let (from, to) = (src.add(i * src_row), dst.add(i * dst_row));
            for n in 0..N {
                V::load(from.add(n * V::LANES)).store(to.add(n * V::LANES));
            }
            if rest > 0 {
                let at = N * V::LANES;
                V::load_masked(from.wrapping_add(at), mask).store_masked(to.wrapping_add(at), mask);
            }
        }
    }
}

of_elements! { RowsFn = rows_of }

#[cfg(test)]
mod tests {
    use super::*;

    fn odd_widths<E: Element + std::fmt::Debug>() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            for cols in [0, 1, 3, 4, 6, 8, 14, 16, 17, 32, 33, 47, 48, 100] {
                let src: Vec<E> = (0..5 * (cols + 3)).map(|x| E::from(x as f32)).collect();
                let outside = E::from(-1.0);
                let mut dst = vec![outside; 5 * (cols + 2)];
                unsafe { copy_rows(isa).unwrap()(dst.as_mut_ptr(), cols + 2, src.as_ptr(), cols + 3, 5, cols) };
                for (i, got) in dst.iter().enumerate() {
                    let (row, col) = (i / (cols + 2), i % (cols + 2));
                    assert_eq!(*got, if col < cols { src[row * (cols + 3) + col] } else { outside }, "{isa} {cols}");
                }
            }
        }
    }

    #[test]
    fn floats() {
        odd_widths::<f32>();
    }

    #[test]
    fn doubles() {
        odd_widths::<f64>();
    }
}
