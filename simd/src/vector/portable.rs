//! Eight floats, or four doubles, in plain Rust: LLVM makes 128-bit vectors of them.

use super::{Block, Lanes, Vector};
use std::array::from_fn;

#[derive(Clone, Copy)]
#[repr(align(32))]
pub(crate) struct Portable8([f32; 8]);

#[derive(Clone, Copy)]
#[repr(align(32))]
pub(crate) struct Portable4([f64; 4]);

impl Portable8 {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Portable8(from_fn(|i| f(self.0[i])))
    }
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable8(from_fn(|i| f(self.0[i], o.0[i])))
    }
    #[inline(always)]
    fn zip_bits(self, o: Self, f: impl Fn(u32, u32) -> u32) -> Self {
        self.zip(o, |a, b| f32::from_bits(f(a.to_bits(), b.to_bits())))
    }
}

macro_rules! lanes {
    ($name:ident, $element:ty, $lanes:literal) => {
        impl Lanes for $name {
            type Element = $element;
            const LANES: usize = $lanes;
            type Mask = [bool; $lanes];

            #[inline(always)]
            unsafe fn splat(x: $element) -> Self {
                $name([x; $lanes])
            }
            #[inline(always)]
            unsafe fn load(p: *const $element) -> Self {
                $name(unsafe { p.cast::<[$element; $lanes]>().read_unaligned() })
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $element) {
                unsafe { p.cast::<[$element; $lanes]>().write_unaligned(self.0) }
            }
            #[inline(always)]
            unsafe fn range(from: usize, to: usize) -> Self::Mask {
                from_fn(|i| i >= from && i < to)
            }
            #[inline(always)]
            unsafe fn load_masked(p: *const $element, mask: Self::Mask) -> Self {
                $name(from_fn(|i| if mask[i] { unsafe { *p.add(i) } } else { 0.0 }))
            }
            #[inline(always)]
            unsafe fn store_masked(self, p: *mut $element, mask: Self::Mask) {
                for (i, &stored) in mask.iter().enumerate() {
                    if stored {
                        unsafe { *p.add(i) = self.0[i] };
                    }
                }
            }
            #[inline(always)]
            unsafe fn add(self, o: Self) -> Self {
                $name(from_fn(|i| self.0[i] + o.0[i]))
            }
            #[inline(always)]
            unsafe fn fma(self, b: Self, c: Self) -> Self {
                $name(from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
            }
            #[inline(always)]
            unsafe fn max(self, o: Self) -> Self {
                $name(from_fn(|i| if self.0[i] > o.0[i] { self.0[i] } else { o.0[i] }))
            }
            #[inline(always)]
            unsafe fn min(self, o: Self) -> Self {
                $name(from_fn(|i| if self.0[i] < o.0[i] { self.0[i] } else { o.0[i] }))
            }
            #[inline(always)]
            unsafe fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
                $name(from_fn(|i| if mask[i] { yes.0[i] } else { no.0[i] }))
            }
        }

        impl Block for $name {
            #[inline(always)]
            unsafe fn transpose(rows: &mut [Self]) {
                for i in 0..$lanes {
                    for j in 0..i {
                        let kept = rows[i].0[j];
                        rows[i].0[j] = rows[j].0[i];
                        rows[j].0[i] = kept;
                    }
                }
            }
        }
    };
}

lanes!(Portable8, f32, 8);
lanes!(Portable4, f64, 4);

impl Vector for Portable8 {
    #[inline(always)]
    unsafe fn first(n: usize) -> [bool; 8] {
        from_fn(|i| i < n)
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        self.zip(o, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        self.zip(o, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        self.zip(o, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding and taking away 1.5 * 2^23 rounds to even, and vectorises where `round_ties_even` would be a call.
        const MAGIC: f32 = 12_582_912.0;
        self.map(|a| if a.abs() < 4_194_304.0 { (a + MAGIC) - MAGIC } else { a })
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
        self.zip(n, |a, n| {
            let n = n as i32;
            let half = n >> 1;
            // Two steps of at most 2^130 each stay within the exponent, but the product is rounded once: the first
            // step never reaches a subnormal.
            a * power(half) * power(n - half)
        })
    }
    #[inline(always)]
    unsafe fn lt(self, o: Self) -> [bool; 8] {
        from_fn(|i| self.0[i] < o.0[i])
    }
    #[inline(always)]
    unsafe fn eq(self, o: Self) -> [bool; 8] {
        from_fn(|i| self.0[i] == o.0[i])
    }
    #[inline(always)]
    unsafe fn any(mask: [bool; 8]) -> bool {
        mask.iter().any(|&x| x)
    }
    #[inline(always)]
    unsafe fn bits(x: u32) -> Self {
        Portable8([f32::from_bits(x); 8])
    }
    #[inline(always)]
    unsafe fn and(self, o: Self) -> Self {
        self.zip_bits(o, |a, b| a & b)
    }
    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        self.zip_bits(o, |a, b| a | b)
    }
    #[inline(always)]
    unsafe fn xor(self, o: Self) -> Self {
        self.zip_bits(o, |a, b| a ^ b)
    }
    #[inline(always)]
    unsafe fn add_int(self, o: Self) -> Self {
        self.zip_bits(o, u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn mul_short(self, o: Self) -> Self {
        self.zip_bits(o, |a, b| (a as i16 as i32 * b as i16 as i32) as u32)
    }
    #[inline(always)]
    unsafe fn shl_int<const N: u32>(self) -> Self {
        self.map(|a| f32::from_bits(a.to_bits() << N))
    }
    #[inline(always)]
    unsafe fn shr_int<const N: u32>(self) -> Self {
        self.map(|a| f32::from_bits(a.to_bits() >> N))
    }
    #[inline(always)]
    unsafe fn to_int(self) -> Self {
        unsafe { self.round() }.map(|a| f32::from_bits(a as i32 as u32))
    }
    #[inline(always)]
    unsafe fn int_to_float(self) -> Self {
        self.map(|a| a.to_bits() as i32 as f32)
    }
    #[inline(always)]
    unsafe fn eq_int(self, o: Self) -> [bool; 8] {
        from_fn(|i| self.0[i].to_bits() == o.0[i].to_bits())
    }
    #[inline(always)]
    unsafe fn take(self, from: Self, lanes: Self) -> Self {
        Portable8(from_fn(|i| match lanes.0[i].to_bits() as i32 {
            kept if kept < 0 => self.0[i],
            lane => from.0[lane as usize % 8],
        }))
    }
}
