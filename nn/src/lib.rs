//! Layers, initialisers, losses, optimisers and data sets for Egret, as functions that add nodes to a traced graph.
//!
//! A [`Layer`] is plain data; [`Layer::forward`] adds its nodes and asks [`Params`] for the values that it needs. The
//! same description makes the graph of training, where parameters are `state`, and that of inference, where they are
//! `param`: see [`Mode`].
//!
//! ```
//! use egret_ir::{Dim, ScalarFn, f32, i64, trace};
//! use egret_nn::{Adam, Layer, Linear, Mode, Optimiser, Params, Sequential, loss};
//!
//! let net = Sequential::new().layer(Linear::new(16)).layer(ScalarFn::Relu).layer(Linear::new(3));
//! let step = trace(|t| {
//!     let p = Params::new(t, Mode::Train, 1);
//!     let logits = net.forward(&p, t.input("x", f32([Dim::from("batch"), 4.into()])));
//!     let loss = loss::cross_entropy(logits, t.input("y", i64(["batch"])));
//!     let rate = t.input("rate", f32([0i64; 0]));
//!     Adam::default().minimise(&p, loss, rate);
//!     [("loss", loss)]
//! });
//! let step = step.unwrap();
//! assert_eq!(step.updates().len(), 4 * 3 + 3, "four parameters with two moments each, two corrections, steps");
//! ```

pub mod augment;
pub mod data;
mod error;
mod imported;
pub mod init;
mod layers;
pub mod loss;
mod optimiser;
mod params;

pub use error::DataError;
pub use imported::Imported;
pub use init::Init;
pub use layers::{
    AvgPool2d, BatchNorm, Conv1d, Conv2d, Conv3d, ConvNd, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d,
    ConvTransposeNd, Dropout, Embedding, Flatten, GlobalAvgPool, GroupNorm, Gru, Layer, LayerNorm, Linear, Lstm,
    MaxPool2d, MultiHeadAttention, Precision, Residual, RmsNorm, Rnn, Sequential, TransformerBlock,
};
pub use optimiser::{
    Accumulate, Adagrad, Adam, Clip, ClipBy, Ema, Gradient, LossScaled, Optimiser, RmsProp, Schedule, Sgd, Step, Update,
};
pub use params::{Mode, Parameter, Params};
