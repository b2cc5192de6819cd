//! Adam and AdamW.

use super::{Gradient, Optimiser, Step, Update};

/// Adam (Kingma and Ba, 2015), PyTorch's rule: moments corrected for their start from zero, `eps` outside the root of
/// the corrected second moment. With `decoupled`, weight decay is AdamW's: `w *= 1 − rate·decay` before the step.
#[derive(Clone, Debug)]
pub struct Adam {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether weight decay acts on the weight itself (AdamW), not through the gradient.
    pub decoupled: bool,
}

impl Default for Adam {
    fn default() -> Adam {
        Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, decoupled: false }
    }
}

impl Adam {
    /// AdamW with PyTorch's defaults but for the weight decay.
    pub fn w(weight_decay: f64) -> Adam {
        Adam { weight_decay, decoupled: true, ..Adam::default() }
    }
}

impl Optimiser for Adam {
    fn updates<'t>(&self, step: &Step<'_, 't>) -> Vec<Update<'t>> {
        let Some(first) = step.gradients.first() else { return Vec::new() };
        let mut updates = Vec::new();
        let dtype = first.parameter.dtype();
        // 1 − βⁿ = β (1 − βⁿ⁻¹) + (1 − β): kept from step to step, it loses no digits, as the difference would in f32
        let mut correction = |name: &str, beta: f64| {
            let kept = step.state(name, dtype, 0.0);
            let next = kept * beta + (1.0 - beta);
            updates.push(Update { state: kept, value: next });
            next
        };
        let (correct1, correct2) = (correction("correction1", self.beta1), correction("correction2", self.beta2));
        for of @ Gradient { parameter, gradient, .. } in step.gradients {
            let (mut w, mut g) = (*parameter, *gradient);
            let (rate, c1, c2) = (step.rate.cast(w.dtype()), correct1.cast(w.dtype()), correct2.cast(w.dtype()));
            if self.weight_decay != 0.0 {
                if self.decoupled {
                    w = w * (1.0 - rate * self.weight_decay);
                } else {
                    g = g + w * self.weight_decay;
                }
            }
            let (m, v) = (step.beside(of, "mean"), step.beside(of, "square"));
            let next_m = m * self.beta1 + g * (1.0 - self.beta1);
            let next_v = v * self.beta2 + g * g * (1.0 - self.beta2);
            // √(v/c₂) as √v·(1/√c₂): two divisions of one number each instead of one an element
            let moved = w - rate / c1 * next_m / (next_v.sqrt() * c2.rsqrt() + self.eps);
            let of = [(m, next_m), (v, next_v), (*parameter, moved)];
            updates.extend(of.map(|(state, value)| Update { state, value }));
        }
        updates
    }
}
