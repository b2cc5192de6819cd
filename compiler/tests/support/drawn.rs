//! Tensors that look drawn, the same on every run.

use egret_ir::{DType, ScalarValue, Tensor};

/// Floats between `-half` and `half`; integers from 0 to before `below`.
pub fn drawn(dtype: DType, shape: &[usize], seed: u64, half: f64, below: i128) -> Tensor {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut tensor = Tensor::zeros(dtype, shape);
    for i in 0..tensor.elements() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = (state >> 40) as f64 / (1u64 << 24) as f64 * 2.0 * half - half;
        let int = ScalarValue::Int((state >> 40) as i128 % below);
        tensor.set(i, if dtype.is_float() { ScalarValue::Float(value) } else { int });
    }
    tensor
}
