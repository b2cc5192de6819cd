//! Layers.

mod attention;
mod compose;
mod conv;
mod linear;
mod norm;
mod pool;
mod precision;
mod recurrent;
#[cfg(test)]
mod tests;

use std::panic::Location;

use egret_ir::{ScalarFn, Var};

use crate::params::Params;

pub use attention::{MultiHeadAttention, TransformerBlock};
pub use compose::{Flatten, Residual, Sequential};
pub use conv::{Conv1d, Conv2d, Conv3d, ConvNd, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, ConvTransposeNd};
pub use linear::{Embedding, Linear};
pub use norm::{BatchNorm, GroupNorm, LayerNorm, RmsNorm};
pub use pool::{AvgPool2d, Dropout, GlobalAvgPool, MaxPool2d};
pub use precision::Precision;
pub use recurrent::{Gru, Lstm, Rnn};

/// A function of one value with parameters. Plain data; it may be applied in many graphs.
pub trait Layer {
    /// Adds the layer's nodes. Called by [`Layer::forward`].
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t>;

    /// The layer's value on `x`; its nodes come from the caller's line.
    #[track_caller]
    fn forward<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        p.located(Location::caller(), || self.build(p, x))
    }
}

/// A scalar function is a layer without parameters: `ScalarFn::Relu`.
impl Layer for ScalarFn {
    fn build<'t>(&self, _: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        x.map(*self, &[])
    }
}
