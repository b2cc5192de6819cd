//! The two kinds of numbers that evaluation computes with: f64 for floats, i128 for integers and bools.

use half::{bf16, f16};

use crate::dtype::DType;
use crate::scalar::ScalarValue;
use crate::tensor::Tensor;

/// A number while an operator computes.
pub(crate) trait Num: Copy + PartialOrd + PartialEq + Send + Sync + 'static {
    const ZERO: Self;
    const ONE: Self;
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// NaN if either is NaN.
    fn greater(self, other: Self) -> Self;
    /// NaN if either is NaN.
    fn lesser(self, other: Self) -> Self;
    fn over_count(self, count: usize) -> Self;
    fn load(tensor: &Tensor) -> Vec<Self>;
    /// Rounds to `dtype`; the number of elements must be that of the shape.
    fn store(dtype: DType, shape: &[usize], values: &[Self]) -> Tensor;
    /// `c[m, n] += a[m, k] · b[k, n]`, each sum in order of `k`.
    fn gemm(m: usize, n: usize, k: usize, a: &[Self], b: &[Self], c: &mut [Self]);
}

/// Runs a generic function for the kind of numbers that a dtype computes with.
macro_rules! by_kind {
    ($dtype:expr, $f:ident ( $($arg:expr),* $(,)? )) => {
        if $dtype.is_float() { $f::<f64>($($arg),*) } else { $f::<i128>($($arg),*) }
    };
}
pub(crate) use by_kind;

impl Num for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;

    fn plus(self, other: f64) -> f64 {
        self + other
    }

    fn times(self, other: f64) -> f64 {
        self * other
    }

    fn greater(self, other: f64) -> f64 {
        if self.is_nan() || other.is_nan() { f64::NAN } else { self.max(other) }
    }

    fn lesser(self, other: f64) -> f64 {
        if self.is_nan() || other.is_nan() { f64::NAN } else { self.min(other) }
    }

    fn over_count(self, count: usize) -> f64 {
        self / count as f64
    }

    fn load(tensor: &Tensor) -> Vec<f64> {
        if let Some(values) = tensor.as_slice::<f32>() {
            return values.iter().map(|v| f64::from(*v)).collect();
        }
        if let Some(values) = tensor.as_slice::<f64>() {
            return values.to_vec();
        }
        tensor.values().map(ScalarValue::as_f64).collect()
    }

    fn store(dtype: DType, shape: &[usize], values: &[f64]) -> Tensor {
        let mut tensor = Tensor::zeros(dtype, shape);
        debug_assert_eq!(tensor.elements(), values.len());
        if let Some(out) = tensor.as_mut_slice::<f32>() {
            out.iter_mut().zip(values).for_each(|(o, v)| *o = *v as f32);
        } else if let Some(out) = tensor.as_mut_slice::<f64>() {
            out.copy_from_slice(values);
        } else if let Some(out) = tensor.as_mut_slice::<f16>() {
            out.iter_mut().zip(values).for_each(|(o, v)| *o = f16::from_f64(*v));
        } else if let Some(out) = tensor.as_mut_slice::<bf16>() {
            out.iter_mut().zip(values).for_each(|(o, v)| *o = bf16::from_f64(*v));
        } else {
            values.iter().enumerate().for_each(|(i, v)| tensor.set(i, ScalarValue::Float(*v)));
        }
        tensor
    }

    fn gemm(m: usize, n: usize, k: usize, a: &[f64], b: &[f64], c: &mut [f64]) {
        super::gemm::gemm(m, n, k, a, b, c);
    }
}

impl Num for i128 {
    const ZERO: i128 = 0;
    const ONE: i128 = 1;

    fn plus(self, other: i128) -> i128 {
        self.wrapping_add(other)
    }

    fn times(self, other: i128) -> i128 {
        self.wrapping_mul(other)
    }

    fn greater(self, other: i128) -> i128 {
        self.max(other)
    }

    fn lesser(self, other: i128) -> i128 {
        self.min(other)
    }

    fn over_count(self, count: usize) -> i128 {
        self / (count as i128).max(1)
    }

    fn load(tensor: &Tensor) -> Vec<i128> {
        if let Some(values) = tensor.as_slice::<i64>() {
            return values.iter().map(|v| i128::from(*v)).collect();
        }
        tensor.values().map(ScalarValue::as_int).collect()
    }

    fn store(dtype: DType, shape: &[usize], values: &[i128]) -> Tensor {
        let mut tensor = Tensor::zeros(dtype, shape);
        debug_assert_eq!(tensor.elements(), values.len());
        if let Some(out) = tensor.as_mut_slice::<i64>() {
            out.iter_mut().zip(values).for_each(|(o, v)| *o = *v as i64);
        } else {
            values.iter().enumerate().for_each(|(i, v)| tensor.set(i, ScalarValue::Int(*v)));
        }
        tensor
    }

    fn gemm(m: usize, n: usize, k: usize, a: &[i128], b: &[i128], c: &mut [i128]) {
        for i in 0..m {
            for p in 0..k {
                let left = a[i * k + p];
                for j in 0..n {
                    c[i * n + j] = c[i * n + j].plus(left.times(b[p * n + j]));
                }
            }
        }
    }
}
