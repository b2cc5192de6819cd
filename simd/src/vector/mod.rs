//! One trait over the vectors of all instruction sets, so that each kernel is written once.
//!
//! Every method is `#[inline(always)]` and is called only inside a function that enables the instruction set; that is
//! also the safety contract of every method here: *the host has the instruction set, and pointers are valid for the
//! lanes that are touched.*

use crate::Element;

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_f64;
mod portable;
mod shorts;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_f64;
#[cfg(target_arch = "x86_64")]
mod x86_half;

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon8;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon_f64::Neon4;
pub(crate) use portable::{Portable4, Portable8};
pub(crate) use shorts::Shorts;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_half::Half;

/// Of functions by the names of instruction sets, that of `isa`.
macro_rules! chosen {
    ($isa:ident) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx2 => avx2,
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512 => avx512,
            #[cfg(target_arch = "aarch64")]
            $crate::Isa::Neon => neon,
            _ => portable,
        }
    };
}
pub(crate) use chosen;

/// A kernel over one struct for every instruction set: `fn name(isa) -> Option<unsafe fn(&Row)>`, made of a generic
/// `body::<V>(&Row)`.
macro_rules! by_isa {
    ($(#[$doc:meta])* $name:ident = $body:ident($row:ty)) => {
        $(#[$doc])*
        pub fn $name(isa: $crate::Isa) -> Option<unsafe fn(&$row)> {
            unsafe fn portable(row: &$row) {
                unsafe { $body::<$crate::vector::Portable8>(row) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2(row: &$row) {
                unsafe { $body::<std::arch::x86_64::__m256>(row) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
            unsafe fn avx512(row: &$row) {
                unsafe { $body::<std::arch::x86_64::__m512>(row) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            unsafe fn neon(row: &$row) {
                unsafe { $body::<$crate::vector::Neon8>(row) }
            }
            isa.is_supported().then_some($crate::vector::chosen!(isa))
        }
    };
}
pub(crate) use by_isa;

/// A move of a matrix for every element type and instruction set: `of_f32(isa)` and `of_f64(isa)`, which the host has,
/// made of a generic `body::<V>(dst, dst_row, src, src_row, rows, cols)`.
macro_rules! of_elements {
    ($function:ident = $body:ident) => {
        $crate::vector::of_elements! { @of_f32: f32, $function = $body, Portable8, __m256, __m512, Neon8 }
        $crate::vector::of_elements! { @of_f64: f64, $function = $body, Portable4, __m256d, __m512d, Neon4 }
    };
    (@$name:ident: $element:ty, $function:ident = $body:ident, $portable:ident, $avx2:ident, $avx512:ident, $neon:ident) => {
        pub(crate) fn $name(isa: $crate::Isa) -> $function<$element> {
            type To = *mut $element;
            type From = *const $element;
            unsafe fn portable(d: To, dr: usize, s: From, sr: usize, rows: usize, cols: usize) {
                unsafe { $body::<$crate::vector::$portable>(d, dr, s, sr, rows, cols) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2(d: To, dr: usize, s: From, sr: usize, rows: usize, cols: usize) {
                unsafe { $body::<std::arch::x86_64::$avx2>(d, dr, s, sr, rows, cols) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
            unsafe fn avx512(d: To, dr: usize, s: From, sr: usize, rows: usize, cols: usize) {
                unsafe { $body::<std::arch::x86_64::$avx512>(d, dr, s, sr, rows, cols) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            unsafe fn neon(d: To, dr: usize, s: From, sr: usize, rows: usize, cols: usize) {
                unsafe { $body::<$crate::vector::$neon>(d, dr, s, sr, rows, cols) }
            }
            $crate::vector::chosen!(isa)
        }
    };
}
pub(crate) use of_elements;

/// What sums of products need of a vector: of `f32`, of `f64`, or of integers as [`Shorts`] has them.
pub(crate) trait Lanes: Copy {
    /// What memory holds.
    type Element: Element;
    const LANES: usize;
    /// Whether a multiply-add can broadcast an element of memory to all lanes by itself.
    const BROADCASTS: bool = false;
    type Mask: Copy;

    unsafe fn splat(x: Self::Element) -> Self;
    unsafe fn load(p: *const Self::Element) -> Self;
    unsafe fn store(self, p: *mut Self::Element);
    /// The mask of lanes `from..to`.
    unsafe fn range(from: usize, to: usize) -> Self::Mask;
    /// Masked lanes are loaded, the others are zero and not touched.
    unsafe fn load_masked(p: *const Self::Element, mask: Self::Mask) -> Self;
    unsafe fn store_masked(self, p: *mut Self::Element, mask: Self::Mask);
    /// `yes` in the lanes of the mask, `no` in the others.
    unsafe fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;

    unsafe fn add(self, o: Self) -> Self;
    /// `self * b + c`, in one rounding where the instruction set has it.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// The greater; **`o` if either is NaN** (the rule of x86). Put the value whose NaN shall survive second.
    unsafe fn max(self, o: Self) -> Self;
    /// The lesser; `o` if either is NaN.
    unsafe fn min(self, o: Self) -> Self;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { Self::splat(Self::Element::ZERO) }
    }
}

/// Vectors of which as many as one has lanes are a square block.
pub(crate) trait Block: Lanes {
    /// Transposes a `LANES` x `LANES` block held in rows.
    unsafe fn transpose(rows: &mut [Self]);
}

/// A vector of `LANES` floats (or of the same number of 32-bit integers, in the methods that say so).
pub(crate) trait Vector: Block<Element = f32> {
    /// The mask of the first `n` lanes.
    unsafe fn first(n: usize) -> Self::Mask;

    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    unsafe fn div(self, o: Self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// `self * 2^n` for integral `n` in -260..=260, gradual underflow included.
    unsafe fn scale2(self, n: Self) -> Self;

    unsafe fn lt(self, o: Self) -> Self::Mask;
    unsafe fn eq(self, o: Self) -> Self::Mask;
    unsafe fn any(mask: Self::Mask) -> bool;

    unsafe fn bits(x: u32) -> Self;
    unsafe fn and(self, o: Self) -> Self;
    unsafe fn or(self, o: Self) -> Self;
    unsafe fn xor(self, o: Self) -> Self;
    /// Lanes as integers: sum.
    unsafe fn add_int(self, o: Self) -> Self;
    /// Lanes as integers that fit 16 bits: product.
    unsafe fn mul_short(self, o: Self) -> Self;
    /// Lanes as integers: shift left by `N`.
    unsafe fn shl_int<const N: u32>(self) -> Self;
    /// Lanes as unsigned integers: shift right by `N`.
    unsafe fn shr_int<const N: u32>(self) -> Self;
    /// Floats to integers (nearest).
    unsafe fn to_int(self) -> Self;
    /// Integers to floats.
    unsafe fn int_to_float(self) -> Self;
    /// Lanes as integers: equal.
    unsafe fn eq_int(self, o: Self) -> Self::Mask;
    /// Lane i is lane `lanes[i]` of `from`; where that integer is negative, it stays.
    unsafe fn take(self, from: Self, lanes: Self) -> Self;

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { self.and(Self::bits(0x7fff_ffff)) }
    }
    #[inline(always)]
    unsafe fn sign(self) -> Self {
        unsafe { self.and(Self::bits(0x8000_0000)) }
    }
}

/// The same pointer, of which the compiler does not know that it is the same.
#[inline(always)]
pub(crate) fn another<T>(p: *const T) -> *const T {
    #[cfg(target_arch = "x86_64")]
    {
        let mut q = p;
        // SAFETY: no instruction at all.
        unsafe { std::arch::asm!("/* {0} */", inout(reg) q, options(pure, readonly, nostack, preserves_flags)) };
        q
    }
    #[cfg(not(target_arch = "x86_64"))]
    p
}

/// Asks for the cache line at `p`, which need not be valid.
#[inline(always)]
pub(crate) fn prefetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for the cache line at `p` for writing; `p` need not be valid.
#[inline(always)]
pub(crate) fn prefetch_write<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_ET0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}
