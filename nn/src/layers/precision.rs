//! Computation in less precision than parameters are kept in.

use egret_ir::{DType, Var};

use super::Layer;
use crate::params::Params;

/// A layer that computes in `bf16` or `f16` while its parameters stay as they are, `f32` as a rule (mixed precision,
/// Micikevicius et al., 2018): each parameter is rounded where it is read, so that gradients arrive in its own precision.
/// Norms and their statistics are computed in the precision of the parameters. The result is of that precision too, so
/// that the loss is.
///
/// `f16` has a small range: train it with [`LossScaled`](crate::LossScaled).
///
/// ```
/// use egret_ir::{DType, Dim, f32, trace};
/// use egret_nn::{Layer, Linear, Mode, Params, Precision};
/// let graph = trace(|t| {
///     let p = Params::new(t, Mode::Infer, 1);
///     Precision::new(DType::BF16, Linear::new(3)).forward(&p, t.input("x", f32([Dim::from(2), 4.into()])))
/// })?;
/// assert_eq!(graph.tensor_type(graph.outputs()[0].1).dtype, DType::F32);
/// # Ok::<(), egret_ir::Diagnostic>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Precision<L> {
    dtype: DType,
    layer: L,
}

impl<L: Layer> Precision<L> {
    /// `layer`, computed in `dtype`.
    pub fn new(dtype: DType, layer: L) -> Precision<L> {
        Precision { dtype, layer }
    }
}

impl<L: Layer> Layer for Precision<L> {
    fn build<'t>(&self, p: &Params<'_, 't>, x: Var<'t>) -> Var<'t> {
        if !self.dtype.is_float() {
            return p.fail(format!("layers compute in floats, not in {}", self.dtype));
        }
        let x = if x.dtype().is_float() { x.cast(self.dtype) } else { x };
        let y = p.computing(Some(self.dtype), || self.layer.build(p, x));
        if y.dtype().is_float() { y.cast(p.dtype()) } else { y }
    }
}

/// What `build` makes of `x` in the precision of the parameters, rounded to that of `x`.
pub(super) fn in_full<'t>(p: &Params<'_, 't>, x: Var<'t>, build: impl FnOnce(Var<'t>) -> Var<'t>) -> Var<'t> {
    match p.compute() {
        Some(_) => p.computing(None, || build(x.cast(p.dtype()))).cast(x.dtype()),
        None => build(x),
    }
}
