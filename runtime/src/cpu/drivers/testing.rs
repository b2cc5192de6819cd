//! Helpers of the drivers' tests.

use crate::cpu::memory::Buffer;
use egret_simd::{Element, Isa};
use std::fmt::Display;
use std::ops::{Add, Mul, Sub};

/// A type that tests compute with.
pub(crate) trait Number:
    Element + Display + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
{
    /// Twice the relative error of a rounding.
    const EPSILON: f64;
    fn rounded(x: f64) -> Self;
    fn bits(self) -> u64;
}

impl Number for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    fn rounded(x: f64) -> f32 {
        x as f32
    }
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Number for f64 {
    const EPSILON: f64 = f64::EPSILON;
    fn rounded(x: f64) -> f64 {
        x
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

/// Values in -1..1 with all digits of their type, that depend on the seed alone.
pub(crate) fn values_of<E: Number>(n: usize, seed: u32) -> Vec<E> {
    values(n, seed).into_iter().map(|x| E::rounded(f64::from(x) * (1.0 - f64::from(x).abs() / 3.0))).collect()
}

/// Values in -1..1 that depend on the seed alone.
pub(crate) fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 17;
            s ^= s << 5;
            (s >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// The nearest values of bf16.
pub(crate) fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|x| f32::from_bits(u32::from(egret_simd::words::bf16_bits(*x)) << 16)).collect()
}

/// As many integers between two, as bits, that depend on the seed alone.
pub(crate) fn integers(n: usize, seed: u32, (least, greatest): (i32, i32)) -> Vec<f32> {
    let span = f64::from(greatest - least + 1);
    let one = |x: f32| least + (f64::from(x + 1.0) / 2.0 * span).floor().min(span - 1.0) as i32;
    values(n, seed).into_iter().map(|x| f32::from_bits(one(x) as u32)).collect()
}

/// What bits of an integer are.
pub(crate) fn integer(bits: f32) -> i32 {
    bits.to_bits() as i32
}

/// A buffer with these elements.
pub(crate) fn buffer<E: Copy>(values: &[E]) -> Buffer {
    let b = Buffer::new(size_of_val(values)).expect("memory");
    // SAFETY: as long as the values, and aligned to a page.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), b.as_ptr(), values.len()) };
    b
}

/// The instruction sets of the host.
pub(crate) fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported())
}

/// Asserts `got` within a rounding bound: `steps * eps * size` (the bound of a sum of `steps` products whose absolute
/// values sum up to `size`), or the same limit.
#[track_caller]
pub(crate) fn assert_close<E: Number>(got: E, want: f64, steps: usize, size: f64, what: &dyn Display) {
    let bound = (steps + 4) as f64 * E::EPSILON * (size + f64::from(f32::MIN_POSITIVE));
    let have: f64 = got.into();
    let same = have == want || (have.is_nan() && want.is_nan());
    assert!(same || (have - want).abs() <= bound, "{what}: got {got}, want {want} +- {bound:e}");
}
