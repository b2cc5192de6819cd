//! Gradients that are cut to a length.

use egret_ir::Var;

use super::{Gradient, Optimiser, Step, Update};
use crate::params::Params;

/// What is bounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ClipBy {
    /// The norm of all gradients together (Pascanu et al., 2013): scaled by `bound / norm` where that is below 1.
    Norm(f64),
    /// Each element.
    Value(f64),
}

/// An optimiser that sees gradients of bounded length.
#[derive(Clone, Debug)]
pub struct Clip<O> {
    by: ClipBy,
    inner: O,
}

impl<O: Optimiser> Clip<O> {
    /// Bounds the gradients of an optimiser.
    pub fn new(by: ClipBy, inner: O) -> Clip<O> {
        Clip { by, inner }
    }
}

impl<O: Optimiser> Optimiser for Clip<O> {
    fn updates<'t>(&self, step: &Step<'_, 't>) -> Vec<Update<'t>> {
        let gradients = step.gradients;
        let scale = match self.by {
            ClipBy::Value(_) => None,
            ClipBy::Norm(bound) => {
                let squares = gradients.iter().map(|g| (g.gradient * g.gradient).sum());
                // a norm of zero scales nothing
                squares.reduce(|a, b| a + b.cast(a.dtype())).map(|sum| (bound / (sum.sqrt() + 1e-6)).minimum(1.0))
            }
        };
        let clipped = |g: Var<'t>| match (self.by, scale) {
            (ClipBy::Value(bound), _) => g.maximum(-bound).minimum(bound),
            (ClipBy::Norm(_), Some(scale)) => g * scale.cast(g.dtype()),
            (ClipBy::Norm(_), None) => g,
        };
        let gradients: Vec<Gradient> =
            gradients.iter().map(|g| Gradient { gradient: clipped(g.gradient), ..g.clone() }).collect();
        self.inner.updates(&Step { gradients: &gradients, ..*step })
    }

    fn loss<'t>(&self, p: &Params<'_, 't>, loss: Var<'t>) -> Var<'t> {
        self.inner.loss(p, loss)
    }

    fn averages(&self) -> bool {
        self.inner.averages()
    }
}
