//! Optimisers: functions that add the updates of one training step to its graph.
//!
//! The learning rate is a value of the graph, an input as a rule, so that changing it compiles nothing. What an
//! optimiser remembers are states named after the parameter: `conv1.weight.momentum`.

mod adam;
mod clip;
mod schedule;
mod sgd;
mod square;

use egret_ir::{DType, Literal, Tracer, Var, Weight};

use crate::params::Params;

pub use adam::Adam;
pub use clip::{Clip, ClipBy};
pub use schedule::Schedule;
pub use sgd::Sgd;
pub use square::{Adagrad, RmsProp};

/// A parameter and the gradient of the loss by it.
#[derive(Clone, Debug)]
pub struct Gradient<'t> {
    /// The parameter's name.
    pub name: String,
    /// The parameter: a state.
    pub parameter: Var<'t>,
    /// The gradient.
    pub gradient: Var<'t>,
}

/// An update rule.
pub trait Optimiser {
    /// Adds the updates of all parameters.
    fn update<'t>(&self, t: &Tracer<'t>, rate: Var<'t>, gradients: &[Gradient<'t>]);

    /// Adds the gradients of `loss` by all parameters made so far, their updates, and a counter of steps, the state
    /// `optimiser.steps`. Returns the gradients.
    fn minimise<'t>(&self, p: &Params<'_, 't>, loss: Var<'t>, rate: Var<'t>) -> Vec<Gradient<'t>> {
        let t = p.tracer();
        let parameters = p.all();
        let wrt: Vec<Var> = parameters.iter().map(|p| p.value).collect();
        let gradients: Vec<Gradient> = parameters
            .into_iter()
            .zip(t.grad(loss, &wrt))
            .map(|(p, gradient)| Gradient { name: p.name, parameter: p.value, gradient })
            .collect();
        self.update(t, rate, &gradients);
        let steps = t.state("optimiser.steps", zero(DType::I64, &[]));
        t.update(steps, steps + 1i64);
        gradients
    }
}

fn zero(dtype: DType, shape: &[usize]) -> Weight {
    Weight::Fill { value: Literal::int(0, dtype), shape: shape.to_vec() }
}

/// A state of zeros of the type of a parameter. Parameters have constant extents.
fn state_like<'t>(t: &Tracer<'t>, name: &str, like: Var<'t>) -> Var<'t> {
    let shape: Option<Vec<usize>> =
        like.shape().iter().map(|d| d.as_const().and_then(|n| usize::try_from(n).ok())).collect();
    match shape {
        Some(shape) => t.state(name, zero(like.dtype(), &shape)),
        None => {
            t.fail(egret_ir::Diagnostic::new("E0610", format!("`{name}` needs constant extents, not {}", like.ty())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_ir::{Tensor, Tensors, f32, interpret, trace};

    /// Runs a rule for three steps on `w = 1` with the gradients 0.5, −1, 2 and rate 0.1; the weight after each.
    fn steps(rule: &dyn Optimiser) -> Vec<f64> {
        let scalar = |x: f32| Tensor::new(&[1], &[x]).unwrap();
        let graph = trace(|t| {
            let parameter = t.state("w", scalar(1.0));
            let gradient = t.input("g", f32([1]));
            let rate = t.input("rate", f32([0i64; 0]));
            rule.update(t, rate, &[Gradient { name: "w".into(), parameter, gradient }]);
        })
        .unwrap();
        let mut states = Tensors::new();
        let run = |g: f32| {
            let rate = Tensor::new(&[], &[0.1f32]).unwrap();
            let inputs = Tensors::from([("g".into(), scalar(g)), ("rate".into(), rate)]);
            states.extend(interpret(&graph, &inputs, &states).unwrap().updates);
            states["w"].get(0).as_f64()
        };
        [0.5, -1.0, 2.0].into_iter().map(run).collect()
    }

    fn close(have: &[f64], want: &[f64]) {
        for (have, want) in have.iter().zip(want) {
            assert!((have - want).abs() < 3e-7, "{have} for {want}");
        }
    }

    #[test]
    fn sgd_follows_its_rule() {
        close(&steps(&Sgd::default()), &[0.95, 1.05, 0.85]);
        // v: 0.5, 0.45 − 1 = −0.55, −0.495 + 2 = 1.505
        close(&steps(&Sgd::momentum(0.9)), &[0.95, 1.005, 0.8545]);
        // steps: 0.5 + 0.45, −1 − 0.495, 2 + 1.3545
        let nesterov = Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.0 };
        close(&steps(&nesterov), &[0.905, 1.0545, 0.71905]);
        // g + 0.1 w: 0.6, −0.906, 2.103060
        let decay = Sgd { weight_decay: 0.1, ..Sgd::default() };
        close(&steps(&decay), &[0.94, 1.0306, 0.820294]);
    }

    #[test]
    fn adam_follows_its_rule() {
        let by_hand = |decay: f64, decoupled: bool| {
            let (mut w, mut m, mut v) = (1f64, 0f64, 0f64);
            let mut all = Vec::new();
            for (step, gradient) in [0.5, -1.0, 2.0].into_iter().enumerate() {
                let mut g: f64 = gradient;
                if decoupled {
                    w *= 1.0 - 0.1 * decay;
                } else {
                    g += decay * w;
                }
                (m, v) = (0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g);
                let corrected = |x: f64, beta: f64| x / (1.0 - beta.powi(step as i32 + 1));
                w -= 0.1 * corrected(m, 0.9) / (corrected(v, 0.999).sqrt() + 1e-8);
                all.push(w);
            }
            all
        };
        close(&steps(&Adam::default()), &by_hand(0.0, false));
        close(&steps(&Adam::default())[..1], &[0.9]);
        close(&steps(&Adam::w(0.01)), &by_hand(0.01, true));
        close(&steps(&Adam { weight_decay: 0.01, ..Adam::default() }), &by_hand(0.01, false));
    }

    #[test]
    fn rules_that_divide_by_roots_of_squares_follow_them() {
        let (mut w, mut v) = (1f64, 0f64);
        let by_hand = [0.5, -1.0, 2.0].map(|g: f64| {
            v = 0.99 * v + 0.01 * g * g;
            w -= 0.1 * g / (v.sqrt() + 1e-8);
            w
        });
        close(&steps(&RmsProp::default()), &by_hand);
        let (mut w, mut v, mut b) = (1f64, 0f64, 0f64);
        let by_hand = [0.5, -1.0, 2.0].map(|g: f64| {
            v = 0.9 * v + 0.1 * g * g;
            b = 0.5 * b + g / (v.sqrt() + 1e-8);
            w -= 0.1 * b;
            w
        });
        close(&steps(&RmsProp { decay: 0.9, momentum: 0.5, ..RmsProp::default() }), &by_hand);
        let (mut w, mut v) = (1f64, 0f64);
        let by_hand = [0.5, -1.0, 2.0].map(|g: f64| {
            v += g * g;
            w -= 0.1 * g / (v.sqrt() + 1e-10);
            w
        });
        close(&steps(&Adagrad::default()), &by_hand);
    }

    #[test]
    fn clipped_gradients_are_no_longer_than_asked() {
        // norms 0.5, 1, 2: the last two are scaled to 0.75
        let by_norm = Clip::new(ClipBy::Norm(0.75), Sgd::default());
        close(&steps(&by_norm), &[0.95, 1.025, 0.95]);
        let by_value = Clip::new(ClipBy::Value(0.25), Sgd::default());
        close(&steps(&by_value), &[0.975, 1.0, 0.975]);
    }
}
