//! Rules that divide by the root of past squares alone.

use egret_ir::{Tracer, Var};

use super::{Gradient, Optimiser, state_like};

/// RMSprop (Hinton, 2012), PyTorch's rule: `v = decay·v + (1 − decay)·g²`, a step along `g / (√v + eps)`, with momentum
/// along `b = momentum·b + g / (√v + eps)`.
#[derive(Clone, Debug)]
pub struct RmsProp {
    /// Decay of the mean of squares.
    pub decay: f64,
    /// Added to the root.
    pub eps: f64,
    /// How much of the last step is kept.
    pub momentum: f64,
    /// Weight decay, through the gradient.
    pub weight_decay: f64,
}

impl Default for RmsProp {
    fn default() -> RmsProp {
        RmsProp { decay: 0.99, eps: 1e-8, momentum: 0.0, weight_decay: 0.0 }
    }
}

impl Optimiser for RmsProp {
    fn update<'t>(&self, t: &Tracer<'t>, rate: Var<'t>, gradients: &[Gradient<'t>]) {
        for Gradient { name, parameter, gradient } in gradients {
            let w = *parameter;
            let g = if self.weight_decay == 0.0 { *gradient } else { *gradient + w * self.weight_decay };
            let v = state_like(t, &format!("{name}.square"), w);
            let next = v * self.decay + g * g * (1.0 - self.decay);
            t.update(v, next);
            let mut step = g / (next.sqrt() + self.eps);
            if self.momentum != 0.0 {
                let b = state_like(t, &format!("{name}.momentum"), w);
                step = b * self.momentum + step;
                t.update(b, step);
            }
            t.update(w, w - rate.cast(w.dtype()) * step);
        }
    }
}

/// Adagrad (Duchi et al., 2011), PyTorch's rule: `v += g²`, a step along `g / (√v + eps)`.
#[derive(Clone, Debug)]
pub struct Adagrad {
    /// Added to the root.
    pub eps: f64,
    /// Weight decay, through the gradient.
    pub weight_decay: f64,
}

impl Default for Adagrad {
    fn default() -> Adagrad {
        Adagrad { eps: 1e-10, weight_decay: 0.0 }
    }
}

impl Optimiser for Adagrad {
    fn update<'t>(&self, t: &Tracer<'t>, rate: Var<'t>, gradients: &[Gradient<'t>]) {
        for Gradient { name, parameter, gradient } in gradients {
            let w = *parameter;
            let g = if self.weight_decay == 0.0 { *gradient } else { *gradient + w * self.weight_decay };
            let v = state_like(t, &format!("{name}.square"), w);
            let next = v + g * g;
            t.update(v, next);
            t.update(w, w - rate.cast(w.dtype()) * (g / (next.sqrt() + self.eps)));
        }
    }
}
