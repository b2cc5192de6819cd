//! Loop-nest drivers: what the compiler asks of the Rust code in `runtime/cpu/drivers`.
//!
//! A driver is a *problem* (shapes and strides), a *schedule* (plain numbers) and *hooks* (compiled kernel IR of the ABI in
//! [`hook`]). Problems are generic over the extent type `D`: the compiler holds symbolic dims, the session binds them
//! with `map`. `Display` is stable: it is part of a kernel's text.
//!
//! All strides and offsets are in elements and not negative.

mod attention;
mod candidates;
mod channels;
mod conv;
mod engine;
mod epilogue;
mod gemm;
pub mod hook;
mod pool;
mod relayout;
mod select;
#[cfg(test)]
mod tests;
mod words;

pub use attention::{AttentionGradProblem, AttentionOperand, AttentionProblem, AttentionSchedule, Mask, Score};
pub use candidates::DriverSchedule;
pub use channels::{ChannelSource, ChannelsProblem};
pub use conv::{ConvForm, ConvInput, ConvProblem, ConvSchedule, Prologue, Split};
pub use engine::ConvEngine;
pub use epilogue::{Activation, Bias, Epilogue, Finisher, Operand};
pub use gemm::{BatchDim, GemmProblem, GemmSchedule, MatrixForm, Products};
pub use pool::{PoolGradProblem, PoolKind, PoolProblem};
pub use relayout::{Direction, PackForm, PackProblem, RelayoutProblem};
pub use select::{NonZeroProblem, SuppressionProblem, TopKProblem, UniqueProblem};
pub use words::Words;

use serde::{Deserialize, Serialize};
use std::fmt;

/// A driver with its schedule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Driver<D = usize> {
    /// Convolution, its input gradient or its weight gradient.
    Conv(ConvProblem<D>, ConvSchedule),
    /// Pooling.
    Pool(PoolProblem<D>),
    /// Gradient of pooling.
    PoolGrad(PoolGradProblem<D>),
    /// Matrix product.
    Gemm(GemmProblem<D>, GemmSchedule),
    /// Attention.
    Attention(AttentionProblem<D>, AttentionSchedule),
    /// Gradient of attention.
    AttentionGrad(AttentionGradProblem<D>, AttentionSchedule),
    /// Between row-major and blocked channels.
    Relayout(RelayoutProblem<D>),
    /// Channels taken from images in blocked channels.
    Channels(ChannelsProblem<D>),
    /// Packing of weights at load.
    Pack(PackProblem<D>),
    /// The first elements in order.
    TopK(TopKProblem<D>),
    /// Places of true elements.
    NonZero(NonZeroProblem<D>),
    /// Distinct slices.
    Unique(UniqueProblem<D>),
    /// Boxes that do not overlap better ones.
    Suppression(SuppressionProblem<D>),
}

impl<D> Driver<D> {
    /// The same driver with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> Driver<E> {
        match self {
            Driver::Conv(p, s) => Driver::Conv(p.map(f), s.clone()),
            Driver::Pool(p) => Driver::Pool(p.map(f)),
            Driver::PoolGrad(p) => Driver::PoolGrad(p.map(f)),
            Driver::Gemm(p, s) => Driver::Gemm(p.map(f), s.clone()),
            Driver::Attention(p, s) => Driver::Attention(p.map(f), s.clone()),
            Driver::AttentionGrad(p, s) => Driver::AttentionGrad(p.map(f), s.clone()),
            Driver::Relayout(p) => Driver::Relayout(p.map(f)),
            Driver::Channels(p) => Driver::Channels(p.map(f)),
            Driver::Pack(p) => Driver::Pack(p.map(f)),
            Driver::TopK(p) => Driver::TopK(p.map(f)),
            Driver::NonZero(p) => Driver::NonZero(p.map(f)),
            Driver::Unique(p) => Driver::Unique(p.map(f)),
            Driver::Suppression(p) => Driver::Suppression(p.map(f)),
        }
    }
}

impl<D: fmt::Display> fmt::Display for Driver<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Driver::Conv(p, s) => write!(f, "{p}\n{s}"),
            Driver::Pool(p) => write!(f, "{p}"),
            Driver::PoolGrad(p) => write!(f, "{p}"),
            Driver::Gemm(p, s) => write!(f, "{p}\n{s}"),
            Driver::Attention(p, s) => write!(f, "{p}\n{s}"),
            Driver::AttentionGrad(p, s) => write!(f, "{p}\n{s}"),
            Driver::Relayout(p) => write!(f, "{p}"),
            Driver::Channels(p) => write!(f, "{p}"),
            Driver::Pack(p) => write!(f, "{p}"),
            Driver::TopK(p) => write!(f, "{p}"),
            Driver::NonZero(p) => write!(f, "{p}"),
            Driver::Unique(p) => write!(f, "{p}"),
            Driver::Suppression(p) => write!(f, "{p}"),
        }
    }
}

/// A list as `[a, b, c]`.
struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, x) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{x}")?;
        }
        f.write_str("]")
    }
}

fn map_all<D, E>(list: &[D], f: &mut impl FnMut(&D) -> E) -> Vec<E> {
    list.iter().map(f).collect()
}
