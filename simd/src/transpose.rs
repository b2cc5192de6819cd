//! Transposition of matrices, by register blocks.

use crate::vector::{Block, of_elements};
use crate::{Element, Isa};

/// `dst[j * dst_row + i] = src[i * src_row + j]` for `i < rows`, `j < cols`; strides in elements.
///
/// # Safety
/// The host has the instruction set; `src` is readable and `dst` writable for exactly those elements.
pub type TransposeFn<E = f32> =
    unsafe fn(dst: *mut E, dst_row: usize, src: *const E, src_row: usize, rows: usize, cols: usize);

/// The transposition for `isa`; `None` if the host lacks it.
pub fn transpose<E: Element>(isa: Isa) -> Option<TransposeFn<E>> {
    isa.is_supported().then(|| E::transposition(isa))
}

#[inline(always)]
unsafe fn blocks<V: Block>(
    dst: *mut V::Element,
    dst_row: usize,
    src: *const V::Element,
    src_row: usize,
    rows: usize,
    cols: usize,
) {
    unsafe {
        let l = V::LANES;
        let mut i = 0;
        while i < rows {
            let height = (rows - i).min(l);
            let mut j = 0;
            while j < cols {
                let width = (cols - j).min(l);
                let from = src.add(i * src_row + j);
                let to = dst.add(j * dst_row + i);
                let mut block = [V::zero(); 16];
                if height == l && width == l {
                    for (k, row) in block.iter_mut().enumerate().take(l) {
                        *row = V::load(from.add(k * src_row));
                    }
                    V::transpose(&mut block[..l]);
                    for (k, row) in block.iter().enumerate().take(l) {
                        row.store(to.add(k * dst_row));
                    }
                } else {
                    let mask = V::range(0, width);
                    for (k, row) in block.iter_mut().enumerate().take(height) {
                        let p = from.add(k * src_row);
                        *row = if width == l { V::load(p) } else { V::load_masked(p, mask) };
                    }
                    V::transpose(&mut block[..l]);
                    let mask = V::range(0, height);
                    for (k, row) in block.iter().enumerate().take(width) {
                        // a narrow panel without gaps: what is too much is overwritten by the next rows
                        if dst_row == rows && rows < l && (j + k) * rows + l <= cols * rows {
                            row.store(to.add(k * dst_row));
                        } else {
                            row.store_masked(to.add(k * dst_row), mask);
                        }
                    }
                }
                j += l;
            }
            i += l;
        }
    }
}

of_elements! { TransposeFn = blocks }

#[cfg(test)]
mod tests {
    use super::*;

    fn odd_shapes<E: Element + std::fmt::Debug>() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            for (rows, cols) in [(1, 1), (4, 4), (8, 8), (14, 37), (16, 16), (17, 5), (3, 40), (33, 47)] {
                let src: Vec<E> = (0..rows * (cols + 3)).map(|x| E::from(x as f32)).collect();
                let outside = E::from(-1.0);
                let mut dst = vec![outside; cols * (rows + 2)];
                let f = transpose(isa).unwrap();
                let mut dense = vec![outside; cols * rows + 16];
                unsafe { f(dense.as_mut_ptr(), rows, src.as_ptr(), cols + 3, rows, cols) };
                for (at, got) in dense.iter().enumerate() {
                    let (j, i) = (at / rows, at % rows);
                    assert_eq!(*got, if j < cols { src[i * (cols + 3) + j] } else { outside }, "{isa} {rows}x{cols}");
                }
                unsafe { f(dst.as_mut_ptr(), rows + 2, src.as_ptr(), cols + 3, rows, cols) };
                for j in 0..cols {
                    for i in 0..rows + 2 {
                        let want = if i < rows { src[i * (cols + 3) + j] } else { outside };
                        assert_eq!(dst[j * (rows + 2) + i], want, "{isa} {rows}x{cols}");
                    }
                }
            }
        }
    }

    #[test]
    fn floats() {
        odd_shapes::<f32>();
    }

    #[test]
    fn doubles() {
        odd_shapes::<f64>();
    }
}
