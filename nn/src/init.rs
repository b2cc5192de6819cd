//! First values of parameters, named and scaled as PyTorch's.

use egret_ir::{DType, ScalarValue, Tensor};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// How a parameter begins.
///
/// Fans are those of a weight `[out, in, kernel…]`: fan-in is the extent of axis 1 times the kernel, fan-out that of
/// axis 0 times the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// One value everywhere.
    Constant(f64),
    /// Uniform in `low..high`.
    Uniform {
        /// Least value.
        low: f64,
        /// Bound, not reached.
        high: f64,
    },
    /// Normal.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `±√(6 / ((1 + a²) · fan_in))`; `a` is the slope of the leaky ReLU that follows.
    KaimingUniform {
        /// Slope.
        a: f64,
    },
    /// Normal of variance `2 / ((1 + a²) · fan_in)`.
    KaimingNormal {
        /// Slope.
        a: f64,
    },
    /// Uniform in `±gain · √(6 / (fan_in + fan_out))`.
    XavierUniform {
        /// Factor.
        gain: f64,
    },
    /// Normal of variance `gain² · 2 / (fan_in + fan_out)`.
    XavierNormal {
        /// Factor.
        gain: f64,
    },
}

impl Init {
    /// All zeros.
    pub const ZEROS: Init = Init::Constant(0.0);
    /// All ones.
    pub const ONES: Init = Init::Constant(1.0);

    /// Uniform in `±bound`.
    pub const fn symmetric(bound: f64) -> Init {
        Init::Uniform { low: -bound, high: bound }
    }

    /// PyTorch's initialiser of weights of linear layers and convolutions: uniform in `±1/√fan_in`.
    pub fn torch_linear() -> Init {
        Init::KaimingUniform { a: 5f64.sqrt() }
    }

    /// The values; the same seed gives the same.
    ///
    /// ```
    /// use egret_nn::Init;
    /// let bound = 1.0 / 6f64.sqrt();
    /// let w = Init::torch_linear().tensor(egret_ir::DType::F32, &[4, 6], 1);
    /// assert!(w.values().all(|x| x.as_f64().abs() <= bound));
    /// assert_eq!(w, Init::torch_linear().tensor(egret_ir::DType::F32, &[4, 6], 1));
    /// ```
    pub fn tensor(&self, dtype: DType, shape: &[usize], seed: u64) -> Tensor {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let (fan_in, fan_out) = fans(shape);
        let uniform = |bound: f64| Init::symmetric(bound);
        let normal = |variance: f64| Init::Normal { mean: 0.0, std: variance.sqrt() };
        let plain = match *self {
            Init::KaimingUniform { a } => uniform((6.0 / ((1.0 + a * a) * fan_in)).sqrt()),
            Init::KaimingNormal { a } => normal(2.0 / ((1.0 + a * a) * fan_in)),
            Init::XavierUniform { gain } => uniform(gain * (6.0 / (fan_in + fan_out)).sqrt()),
            Init::XavierNormal { gain } => normal(gain * gain * 2.0 / (fan_in + fan_out)),
            other => other,
        };
        let mut draw = || match plain {
            Init::Uniform { low, high } => low + (high - low) * rng.random::<f64>(),
            Init::Normal { mean, std } => mean + std * gaussian(&mut rng),
            Init::Constant(value) => value,
            _ => 0.0,
        };
        let mut tensor = Tensor::zeros(dtype, shape);
        if let Some(elements) = tensor.as_mut_slice::<f32>() {
            elements.iter_mut().for_each(|x| *x = draw() as f32);
        } else {
            (0..tensor.elements()).for_each(|i| tensor.set(i, ScalarValue::Float(draw())));
        }
        tensor
    }
}

/// A draw of the standard normal distribution (Box and Muller, 1958).
pub(crate) fn gaussian(rng: &mut impl RngExt) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

fn fans(shape: &[usize]) -> (f64, f64) {
    let extent = |axis: usize| shape.get(axis).copied().unwrap_or(1).max(1) as f64;
    let kernel: f64 = shape.iter().skip(2).map(|n| *n as f64).product();
    (extent(1) * kernel, extent(0) * kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_those_of_the_fans() {
        let spread = |init: Init| {
            let values: Vec<f64> = init.tensor(DType::F64, &[40, 30, 3, 3], 7).values().map(|v| v.as_f64()).collect();
            let variance = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
            (variance, values.iter().fold(0f64, |most, v| most.max(v.abs())))
        };
        let close = |have: f64, want: f64| assert!((have / want - 1.0).abs() < 0.05, "{have} for {want}");
        let (variance, most) = spread(Init::KaimingUniform { a: 0.0 });
        close(variance, 2.0 / 270.0);
        close(most, (6f64 / 270.0).sqrt());
        close(spread(Init::torch_linear()).1, 1.0 / 270f64.sqrt());
        close(spread(Init::KaimingNormal { a: 0.0 }).0, 2.0 / 270.0);
        close(spread(Init::XavierUniform { gain: 2.0 }).1, 2.0 * (6.0 / (270.0 + 360.0f64)).sqrt());
        close(spread(Init::XavierNormal { gain: 1.0 }).0, 2.0 / (270.0 + 360.0));
        assert_eq!(spread(Init::Constant(0.5)).1, 0.5);
    }
}
