//! Pooling, and what training leaves out.

use egret_ir::{DType, Literal, Var};

use super::Layer;
use crate::params::{Mode, Params};

macro_rules! pools {
    ($($(#[$doc:meta])* $name:ident $how:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            size: i64,
            stride: i64,
            padding: i64,
        }

        impl $name {
            /// Square windows side by side.
            pub fn new(size: i64) -> $name {
                $name { size, stride: size, padding: 0 }
            }

            /// Distance of windows.
            pub fn stride(mut self, stride: i64) -> $name {
                self.stride = stride;
                self
            }

            /// Padding on every side; it never wins, and no mean counts it.
            pub fn padding(mut self, padding: i64) -> $name {
                self.padding = padding;
                self
            }
        }

        impl Layer for $name {
            fn build<'t>(&self, _: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
                x.$how(&[self.size; 2], &[self.stride; 2], &[self.padding; 2])
            }
        }
    )*};
}

pools! {
    /// The greatest element of each window.
    MaxPool2d max_pool;
    /// The mean of each window.
    AvgPool2d avg_pool;
}

/// The mean over all axes after the channels' (axis 1).
#[derive(Clone, Copy, Debug, Default)]
pub struct GlobalAvgPool;

impl Layer for GlobalAvgPool {
    fn build<'t>(&self, _: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        let axes: Vec<isize> = (2..x.rank() as isize).collect();
        x.reduce_mean(&axes, false)
    }
}

/// In training, each element is 0 with probability `rate` and scaled by `1 / (1 − rate)` otherwise (Srivastava et al.,
/// 2014); else the identity. The choice depends on the layer's stream and a counter that each step advances, the state
/// `random.counter`: it is the same on every device and thread count, and in a resumed run.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    rate: f64,
}

impl Dropout {
    /// That share of elements.
    pub fn new(rate: f64) -> Dropout {
        Dropout { rate: rate.clamp(0.0, 1.0) }
    }
}

impl Layer for Dropout {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        if p.mode() != Mode::Train || self.rate == 0.0 {
            return x;
        }
        let t = p.tracer();
        let zero = t.scalar(Literal::float(0.0, x.dtype()));
        if self.rate == 1.0 {
            return zero.broadcast(x.shape());
        }
        let bits = t.random_bits(p.stream(), p.random_counter(), x.shape());
        // of 2³² words this many are dropped
        let dropped = (self.rate * 2f64.powi(32)) as i64;
        let kept = bits.greater_equal(t.scalar(Literal::int(dropped, DType::U32)));
        kept.select(x * (1.0 / (1.0 - self.rate)), zero)
    }
}
