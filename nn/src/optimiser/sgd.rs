//! Gradient descent.

use egret_ir::{Tracer, Var};

use super::{Gradient, Optimiser, state_like};

/// Stochastic gradient descent: `v = momentum·v + g`, `w −= rate·v` (PyTorch's rule, without dampening).
///
/// Weight decay adds `decay·w` to the gradient. Nesterov's form steps by `g + momentum·v`.
#[derive(Clone, Debug, Default)]
pub struct Sgd {
    /// How much of the last step is kept.
    pub momentum: f64,
    /// Whether the step looks ahead.
    pub nesterov: bool,
    /// Weight decay.
    pub weight_decay: f64,
}

impl Sgd {
    /// With momentum.
    pub fn momentum(momentum: f64) -> Sgd {
        Sgd { momentum, ..Sgd::default() }
    }
}

impl Optimiser for Sgd {
    fn update<'t>(&self, t: &Tracer<'t>, rate: Var<'t>, gradients: &[Gradient<'t>]) {
        for Gradient { name, parameter, gradient } in gradients {
            let w = *parameter;
            let g = if self.weight_decay == 0.0 { *gradient } else { *gradient + w * self.weight_decay };
            let step = if self.momentum == 0.0 {
                g
            } else {
                let v = state_like(t, &format!("{name}.momentum"), w);
                let next = v * self.momentum + g;
                t.update(v, next);
                if self.nesterov { g + next * self.momentum } else { next }
            };
            t.update(w, w - rate.cast(w.dtype()) * step);
        }
    }
}
