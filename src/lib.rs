//! Egret: a kernel compiler and JIT for neural-network graphs.
//!
//! A graph is traced in Rust or read from ONNX, compiled for a device, and run. Inference is one graph, and so is a whole
//! training step.
//!
//! ```
//! use egret::{Device, Tensor, f32, shape};
//!
//! let w = Tensor::new(&[3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
//! let graph = egret::trace(|t| {
//!     let x = t.input("x", f32(shape!["batch", 3]));
//!     (x.matmul(t.param("w", w)) - 20.0).relu()
//! })?;
//! let exe = egret::compile(&graph, &Device::cpu())?;
//! let mut session = exe.session()?;
//! let x = Tensor::new(&[1, 3], &[1.0f32, 2.0, 3.0]).unwrap();
//! let y = session.run(&[("x", &x)])?;
//! assert_eq!(y.get("output").unwrap().as_slice::<f32>().unwrap(), [2.0, 8.0]);
//! # Ok::<(), egret::Error>(())
//! ```
//!
//! - [`trace`], [`Tracer`], [`Var`]: build graphs; [`onnx`]: read them.
//! - [`compile`], [`Device`], [`Executable`], [`Session`], [`State`]: run them.
//! - [`Tuner`]: schedules chosen by measuring.
//! - [`nn`] and [`Trainer`]: layers, losses, optimisers, training. Gradients of one's own: [`Tracer::grad`],
//!   [`Tracer::value_and_grad`], [`Tracer::custom_vjp`], [`Var::stop_gradient`].
//! - [`interpret`]: the reference that everything is checked against; as a device, [`Device::interpreter`].

mod compile;
mod device;
mod error;
mod outputs;
mod session;
mod state;
#[cfg(feature = "train")]
mod trainer;
mod tuner;

pub use compile::{Executable, compile, compile_with};
pub use device::Device;
pub use egret_compiler::{
    CompileOptions, Compiled, Estimate, F32Products, Level, Policy, ProblemKey, RewriteSet, Schedule, Schedules,
    Winograd, estimate, rule,
};
pub use egret_ir::{
    DType, Diagnostic, Dim, Graph, Literal, Origin, ScalarFn, ScalarValue, Shape, Tensor, TensorType, Tensors, Tracer,
    Type, Var, Weight, Weights, f32, i64, interpret, trace,
};
pub use egret_program::{DeviceDescription, Program};
pub use egret_runtime::{Cache, Copied, MemoryReport, Span, StepTime};
pub use error::{Error, Result};
pub use outputs::{Output, Outputs};
pub use session::Session;
pub use state::State;
#[cfg(feature = "train")]
pub use trainer::{
    Classification, EarlyStopping, Epoch, Evaluation, Fit, History, Maker, Objective, Progress, Trainer,
};

pub use tuner::{Effort, Measurement, Outcome, Tuned, Tuner, Tuning};

/// Rules of rewriting: the standard ones, and users' own.
///
/// ```
/// use egret::rewrite::{Class, Topic, when};
/// use egret::{CompileOptions, Device, RewriteSet, f32, rule};
///
/// // the softmax of a row of one element is one
/// let rule = rule!(
///     "softmax-of-one", Class::Real, "(softmax $s ?x)" => "(div (exp ?x) (exp ?x))", "eˣ/eˣ = 1 where a row is one element",
///     |m| {
///         let last = m.ty("x")?.shape.last().cloned()?;
///         when(last.is(1) && matches!(m.op("s")?, egret::ir::Op::Softmax(s) if s.axis + 1 == m.ty("x")?.shape.rank()))
///     },
/// )?;
/// let rules = RewriteSet::standard().with(rule)?.without_topic(Topic::Merge);
/// let graph = egret::trace(|t| t.input("x", f32([5, 1])).softmax(-1))?;
/// let options = CompileOptions { rules, ..CompileOptions::default() };
/// let exe = egret::compile_with(&graph, &Device::cpu(), &options)?;
/// let applied = exe.compiled().map(|compiled| compiled.rewritten.applied()).unwrap_or_default();
/// assert!(applied.contains(&"softmax-of-one"));
/// # Ok::<(), egret::Error>(())
/// ```
pub mod rewrite {
    pub use egret_compiler::rewrite::pattern::{Class, Guard, Match, Rule, when};
    pub use egret_compiler::rewrite::rules::Topic;
    pub use egret_compiler::rewrite::{Explanation, Link, Pair, Report, RewriteSet, Rewritten};
}

/// The graph: operators, types, text form, differentiation, tensor files.
pub use egret_ir as ir;
#[cfg(feature = "train")]
/// Layers, initialisers, losses, optimisers, data sets.
pub use egret_nn as nn;
#[cfg(feature = "onnx")]
/// ONNX models and tensors.
pub use egret_onnx as onnx;

/// A shape of numbers and symbols: `shape!["batch", 784]`.
#[macro_export]
macro_rules! shape {
    ($($dim:expr),* $(,)?) => {
        <$crate::Shape as ::std::iter::FromIterator<$crate::Dim>>::from_iter([$($crate::Dim::from($dim)),*])
    };
}
