//! Gradient descent.

use super::{Gradient, Optimiser, Step, Update};

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
    fn updates<'t>(&self, step: &Step<'_, 't>) -> Vec<Update<'t>> {
        let mut updates = Vec::new();
        for of @ Gradient { parameter, gradient, .. } in step.gradients {
            let w = *parameter;
            let g = if self.weight_decay == 0.0 { *gradient } else { *gradient + w * self.weight_decay };
            let along = if self.momentum == 0.0 {
                g
            } else {
                let v = step.beside(of, "momentum");
                let next = v * self.momentum + g;
                updates.push(Update { state: v, value: next });
                if self.nesterov { g + next * self.momentum } else { next }
            };
            updates.push(Update { state: w, value: w - step.rate.cast(w.dtype()) * along });
        }
        updates
    }
}
