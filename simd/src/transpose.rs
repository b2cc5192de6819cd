//! Transposition of matrices, by register blocks.

use crate::Isa;
use crate::vector::{Portable8, Vector};

/// `dst[j * dst_row + i] = src[i * src_row + j]` for `i < rows`, `j < cols`; strides in floats.
///
/// # Safety
/// The host has the instruction set; `src` is readable and `dst` writable for exactly those elements.
pub type TransposeFn =
    unsafe fn(dst: *mut f32, dst_row: usize, src: *const f32, src_row: usize, rows: usize, cols: usize);

/// The transposition for `isa`; `None` if the host lacks it.
pub fn transpose(isa: Isa) -> Option<TransposeFn> {
    isa.is_supported().then_some(match isa {
        Isa::Portable => portable,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => neon,
        _ => portable,
    })
}

#[inline(always)]
unsafe fn blocks<V: Vector>(dst: *mut f32, dst_row: usize, src: *const f32, src_row: usize, rows: usize, cols: usize) {
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
                    let mask = V::first(width);
                    for (k, row) in block.iter_mut().enumerate().take(height) {
                        *row = V::load_masked(from.add(k * src_row), mask);
                    }
                    V::transpose(&mut block[..l]);
                    let mask = V::first(height);
                    for (k, row) in block.iter().enumerate().take(width) {
                        row.store_masked(to.add(k * dst_row), mask);
                    }
                }
                j += l;
            }
            i += l;
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon(d: *mut f32, dr: usize, s: *const f32, sr: usize, rows: usize, cols: usize) {
    unsafe { blocks::<crate::vector::Neon8>(d, dr, s, sr, rows, cols) }
}

unsafe fn portable(d: *mut f32, dr: usize, s: *const f32, sr: usize, rows: usize, cols: usize) {
    unsafe { blocks::<Portable8>(d, dr, s, sr, rows, cols) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(d: *mut f32, dr: usize, s: *const f32, sr: usize, rows: usize, cols: usize) {
    unsafe { blocks::<std::arch::x86_64::__m256>(d, dr, s, sr, rows, cols) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512(d: *mut f32, dr: usize, s: *const f32, sr: usize, rows: usize, cols: usize) {
    unsafe { blocks::<std::arch::x86_64::__m512>(d, dr, s, sr, rows, cols) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_shapes() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            for (rows, cols) in [(1, 1), (8, 8), (16, 16), (17, 5), (3, 40), (33, 47)] {
                let src: Vec<f32> = (0..rows * (cols + 3)).map(|x| x as f32).collect();
                let mut dst = vec![-1.0; cols * (rows + 2)];
                let f = transpose(isa).unwrap();
                unsafe { f(dst.as_mut_ptr(), rows + 2, src.as_ptr(), cols + 3, rows, cols) };
                for j in 0..cols {
                    for i in 0..rows + 2 {
                        let want = if i < rows { src[i * (cols + 3) + j] } else { -1.0 };
                        assert_eq!(dst[j * (rows + 2) + i], want, "{isa} {rows}x{cols}");
                    }
                }
            }
        }
    }
}
