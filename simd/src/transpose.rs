//! Transposition of matrices, by register blocks.

use crate::vector::{Block, Portable4, Portable8};
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

/// The transpositions of an element type by instruction set, which the host has.
macro_rules! by_isa {
    ($name:ident, $element:ty, $portable:ty, $avx2:ident, $avx512:ident, $neon:ident) => {
        pub(crate) fn $name(isa: Isa) -> TransposeFn<$element> {
            type To = *mut $element;
            type From = *const $element;
            unsafe fn portable(d: To, dr: usize, s: From, sr: usize, rows: usize, cols: usize) {
                unsafe { blocks::<$portable>(d, dr, s, sr, rows, cols) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2(d: To, dr: usize, s: From, sr: usize, rows: usize, cols: usize) {
                unsafe { blocks::<std::arch::x86_64::$avx2>(d, dr, s, sr, rows, cols) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
            unsafe fn avx512(d: To, dr: usize, s: From, sr: usize, rows: usize, cols: usize) {
                unsafe { blocks::<std::arch::x86_64::$avx512>(d, dr, s, sr, rows, cols) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            unsafe fn neon(d: To, dr: usize, s: From, sr: usize, rows: usize, cols: usize) {
                unsafe { blocks::<crate::vector::$neon>(d, dr, s, sr, rows, cols) }
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512,
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => neon,
                _ => portable,
            }
        }
    };
}

by_isa!(of_f32, f32, Portable8, __m256, __m512, Neon8);
by_isa!(of_f64, f64, Portable4, __m256d, __m512d, Neon4);

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
