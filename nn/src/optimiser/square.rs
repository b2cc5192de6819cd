//! Rules that divide by the root of past squares alone.

use super::{Gradient, Optimiser, Step, Update};

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
    fn updates<'t>(&self, step: &Step<'_, 't>) -> Vec<Update<'t>> {
        let mut updates = Vec::new();
        for of @ Gradient { parameter, gradient, .. } in step.gradients {
            let w = *parameter;
            let g = if self.weight_decay == 0.0 { *gradient } else { *gradient + w * self.weight_decay };
            let v = step.beside(of, "square");
            let next = v * self.decay + g * g * (1.0 - self.decay);
            updates.push(Update { state: v, value: next });
            let mut along = g / (next.sqrt() + self.eps);
            if self.momentum != 0.0 {
                let b = step.beside(of, "momentum");
                along = b * self.momentum + along;
                updates.push(Update { state: b, value: along });
            }
            updates.push(Update { state: w, value: w - step.rate.cast(w.dtype()) * along });
        }
        updates
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
    fn updates<'t>(&self, step: &Step<'_, 't>) -> Vec<Update<'t>> {
        let mut updates = Vec::new();
        for of @ Gradient { parameter, gradient, .. } in step.gradients {
            let w = *parameter;
            let g = if self.weight_decay == 0.0 { *gradient } else { *gradient + w * self.weight_decay };
            let v = step.beside(of, "square");
            let next = v + g * g;
            updates.push(Update { state: v, value: next });
            let along = g / (next.sqrt() + self.eps);
            updates.push(Update { state: w, value: w - step.rate.cast(w.dtype()) * along });
        }
        updates
    }
}
