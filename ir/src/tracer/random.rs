//! Random numbers from bits.

use super::{Tracer, Var};
use crate::dtype::DType;
use crate::ops::Rng;
use crate::scalar::Literal;
use crate::types::{Shape, TensorType};

impl<'t> Tracer<'t> {
    /// Random u32 of a shape: what [`Rng`] gives for a stream and a counter, an integer scalar that each run advances.
    #[track_caller]
    pub fn random_bits(&self, stream: u64, counter: Var<'t>, shape: impl Into<Shape>) -> Var<'t> {
        self.add(Rng { ty: TensorType::new(DType::U32, shape), stream }, &[counter])
    }

    /// Uniform floats in `0..1`: as many of the highest bits as the significand holds, over their range, so that 1 is
    /// never reached. f64 takes two words, the others one.
    #[track_caller]
    pub fn uniform(&self, stream: u64, counter: Var<'t>, ty: TensorType) -> Var<'t> {
        let TensorType { dtype, shape } = ty;
        let high = |word: Var<'t>, bits: u32| {
            let shift = self.scalar(Literal::int(i64::from(32 - bits), DType::U32));
            word.shift_right(shift)
        };
        if dtype == DType::F64 {
            // 53 bits of two words (as MT19937's `genrand_res53`)
            let mut pairs = shape.clone();
            pairs.push(2.into());
            let words = self.random_bits(stream, counter, pairs);
            let word = |i: i64, bits| high(words.narrow(-1, i, 1).reshape(shape.clone()), bits).cast(DType::F64);
            return (word(0, 27) * f64::from(1u32 << 26) + word(1, 26)) * 2f64.powi(-53);
        }
        let bits = match dtype {
            DType::F16 => 11,
            DType::BF16 => 8,
            _ => 24,
        };
        let words = high(self.random_bits(stream, counter, shape), bits);
        words.cast(DType::F32).cast(dtype) * 2f64.powi(-(bits as i32))
    }

    /// Normal floats of mean 0 and variance 1, by the transform of Box and Muller (1958): √(−2 ln u)·cos 2πv. Halves are
    /// computed in f32 and rounded.
    #[track_caller]
    pub fn normal(&self, stream: u64, counter: Var<'t>, ty: TensorType) -> Var<'t> {
        let TensorType { dtype, shape } = ty;
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let mut pairs = shape.clone();
        pairs.push(2.into());
        let both = self.uniform(stream, counter, TensorType { dtype: wide, shape: pairs });
        let part = |i: i64| both.narrow(-1, i, 1).reshape(shape.clone());
        // 1 − u is in (0, 1]: its logarithm is finite
        let radius = ((1.0 - part(0)).log() * -2.0).sqrt();
        (radius * (part(1) * std::f64::consts::TAU).cos()).cast(dtype)
    }
}
