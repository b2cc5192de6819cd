//! Optimisers: functions that add the updates of one training step to its graph.
//!
//! The learning rate is a value of the graph, an input as a rule, so that changing it compiles nothing. What an
//! optimiser remembers are states named after the parameter: `conv1.weight.momentum`. Rules are made of rules:
//! `LossScaled::new(Ema::new(Clip::new(ClipBy::Norm(1.0), Adam::w(0.01)), 0.999))`.

mod accumulate;
mod adam;
mod clip;
mod ema;
mod scaled;
mod schedule;
mod sgd;
mod square;

use std::collections::BTreeSet;

use egret_ir::{DType, Diagnostic, Graph, Literal, Op, Tracer, Var, Weight};

use crate::params::{Parameter, Params};

pub use accumulate::Accumulate;
pub use adam::Adam;
pub use clip::{Clip, ClipBy};
pub use ema::Ema;
pub use scaled::LossScaled;
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

/// A new value of a state.
#[derive(Clone, Copy, Debug)]
pub struct Update<'t> {
    /// A parameter, or what a rule remembers.
    pub state: Var<'t>,
    /// Its value after the step.
    pub value: Var<'t>,
}

impl<'t> Update<'t> {
    /// The update where a condition holds; else the state stays.
    pub fn only_if(self, condition: Var<'t>) -> Update<'t> {
        Update { value: condition.select(self.value, self.state), ..self }
    }
}

/// A step, as rules see it.
#[derive(Clone, Copy)]
pub struct Step<'a, 't> {
    /// The graph under construction.
    pub tracer: &'a Tracer<'t>,
    /// The learning rate.
    pub rate: Var<'t>,
    /// Parameters and their gradients.
    pub gradients: &'a [Gradient<'t>],
    /// The path that all parameters are below; what a rule remembers of no parameter in particular is below it too.
    pub scope: &'a str,
}

impl<'t> Step<'_, 't> {
    /// A scalar that the rule remembers: the state `optimiser.NAME` below the scope.
    #[track_caller]
    pub fn state(&self, name: &str, dtype: DType, first: f64) -> Var<'t> {
        let value = Weight::Fill { value: Literal::float(first, dtype), shape: Vec::new() };
        self.tracer.state(&own(self.scope, name), value)
    }

    /// Zeros that the rule remembers of a parameter, of its type: the state `PARAMETER.NAME`.
    #[track_caller]
    pub fn beside(&self, of: &Gradient<'t>, name: &str) -> Var<'t> {
        let (t, like) = (self.tracer, of.parameter);
        let shape: Option<Vec<usize>> =
            like.shape().iter().map(|d| d.as_const().and_then(|n| usize::try_from(n).ok())).collect();
        match shape {
            Some(shape) => {
                let value = Weight::Fill { value: Literal::int(0, like.dtype()), shape };
                t.state(&format!("{}.{name}", of.name), value)
            }
            None => {
                t.fail(Diagnostic::new("E0610", format!("`{}` needs constant extents, not {}", of.name, like.ty())))
            }
        }
    }
}

/// The name of a state of an optimiser.
fn own(scope: &str, name: &str) -> String {
    let dot = if scope.is_empty() { "" } else { "." };
    format!("{scope}{dot}optimiser.{name}")
}

/// An update rule.
pub trait Optimiser {
    /// The new values of the step's parameters, and of what the rule remembers: each state once.
    fn updates<'t>(&self, step: &Step<'_, 't>) -> Vec<Update<'t>>;

    /// The loss whose gradients the rule wants; not another one, as a rule.
    fn loss<'t>(&self, _: &Params<'_, 't>, loss: Var<'t>) -> Var<'t> {
        loss
    }

    /// Whether it keeps averages of the parameters, for evaluation.
    fn averages(&self) -> bool {
        false
    }

    /// Adds the gradients of `loss` by all parameters made so far below the path of `p`, their updates, and a counter of
    /// steps, the state `optimiser.steps`. Returns the gradients: of the loss that the rule [wants](Optimiser::loss).
    ///
    /// Two programs that share states minimise below two paths: `minimise(&p.at("generator"), …)`.
    ///
    /// Records `E0613` where the loss is no float scalar, `E0403` where it does not depend on a parameter.
    fn minimise<'t>(&self, p: &Params<'_, 't>, loss: Var<'t>, rate: Var<'t>) -> Vec<Gradient<'t>> {
        let (t, parameters) = (p.tracer(), p.below());
        if t.error().is_none() && (loss.rank() != 0 || !loss.dtype().is_float()) {
            let message = format!("the loss must be one float, not {}", loss.ty());
            t.fail(Diagnostic::new("E0613", message).help("take its mean or its sum"));
        }
        if let Some(error) = unreached(t, loss, &parameters) {
            t.fail(error);
        }
        let loss = self.loss(p, loss);
        let wrt: Vec<Var> = parameters.iter().map(|p| p.value).collect();
        let gradients: Vec<Gradient> = parameters
            .into_iter()
            .zip(t.grad(loss, &wrt))
            .map(|(p, gradient)| Gradient { name: p.name, parameter: p.value, gradient })
            .collect();
        let step = Step { tracer: t, rate, gradients: &gradients, scope: p.path() };
        self.updates(&step).into_iter().for_each(|Update { state, value }| t.update(state, value));
        let steps = step.state("steps", DType::I64, 0.0);
        t.update(steps, steps + 1i64);
        gradients
    }
}

/// An error that names the parameters on which a loss does not depend.
fn unreached(t: &Tracer<'_>, loss: Var<'_>, parameters: &[Parameter<'_>]) -> Option<Diagnostic> {
    let end = loss.id()?;
    let reached = t.graph(|graph: &Graph| {
        let mut reached = BTreeSet::from([end]);
        for (id, node) in graph.iter().rev() {
            // what carries a gradient back
            let floats = node.ty.parts().iter().any(|part| part.dtype.is_float());
            if floats && !matches!(node.op, Op::StopGradient(_)) && reached.contains(&id) {
                reached.extend(node.operands.iter().copied());
            }
        }
        reached
    });
    let lost = |p: &&Parameter| p.value.id().is_some_and(|id| !reached.contains(&id));
    let lost: Vec<String> = parameters.iter().filter(lost).map(|p| format!("`{}`", p.name)).collect();
    let message = format!("the loss does not depend on {}", lost.join(", "));
    let help = "leave out the layer, freeze it, or minimise below another path";
    (!lost.is_empty()).then(|| Diagnostic::new("E0403", message).help(help))
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_ir::{Tensor, Tensors, f32, interpret, trace};

    /// Runs a rule for three steps on `w = 1` with the gradients 0.5, −1, 2 and rate 0.1; the weight after each.
    fn steps(rule: &dyn Optimiser) -> Vec<f64> {
        run(rule, &[0.5, -1.0, 2.0], "w")
    }

    /// Runs a rule on `w = 1` with these gradients and rate 0.1; a state after each step.
    fn run(rule: &dyn Optimiser, gradients: &[f32], state: &str) -> Vec<f64> {
        let scalar = |x: f32| Tensor::new(&[1], &[x]).unwrap();
        let graph = trace(|t| {
            let parameter = t.state("w", scalar(1.0));
            let gradient = t.input("g", f32([1]));
            let rate = t.input("rate", f32([0i64; 0]));
            let gradients = [Gradient { name: "w".into(), parameter, gradient }];
            let step = Step { tracer: t, rate, gradients: &gradients, scope: "" };
            rule.updates(&step).into_iter().for_each(|u| t.update(u.state, u.value));
        })
        .unwrap();
        let mut states = Tensors::new();
        let run = |g: f32| {
            let rate = Tensor::new(&[], &[0.1f32]).unwrap();
            let inputs = Tensors::from([("g".into(), scalar(g)), ("rate".into(), rate)]);
            states.extend(interpret(&graph, &inputs, &states).unwrap().updates);
            states[state].get(0).as_f64()
        };
        gradients.iter().copied().map(run).collect()
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

    #[test]
    fn accumulated_steps_are_those_of_mean_gradients() {
        // (0.5 − 1) / 2 and (2 + 3) / 2; the last batch waits
        let gradients = [0.5, -1.0, 2.0, 3.0, 7.0];
        let rule = Accumulate::new(Sgd::momentum(0.9), 2);
        // v: −0.25, −0.225 + 2.5 = 2.275
        close(&run(&rule, &gradients, "w"), &[1.0, 1.025, 1.025, 0.7975, 0.7975]);
        close(&run(&rule, &gradients, "w.accumulated"), &[0.25, 0.0, 1.0, 0.0, 3.5]);
        close(&run(&rule, &gradients, "optimiser.batches"), &[1.0, 0.0, 1.0, 0.0, 1.0]);
        // a step that is left out because it overflows leaves nothing behind
        let scaled = LossScaled { initial: 1.0, ..LossScaled::new(Sgd::default()) };
        let both = Accumulate::new(scaled, 2);
        let endless = [1.0, f32::INFINITY, 1.0, 1.0];
        close(&run(&both, &endless, "w.accumulated"), &[0.5, 0.0, 0.5, 0.0]);
        close(&run(&both, &endless, "w"), &[1.0, 1.0, 1.0, 0.8]);
        close(&run(&Accumulate::new(Adam::default(), 1), &gradients, "w"), &run(&Adam::default(), &gradients, "w"));
    }

    #[test]
    fn averages_follow_the_weights() {
        // w: 0.95, 1.05, 0.85
        let rule = Ema::new(Sgd::default(), 0.5);
        close(&run(&rule, &[0.5, -1.0, 2.0], "w.average"), &[0.975, 1.0125, 0.93125]);
        close(&steps(&rule), &steps(&Sgd::default()));
    }

    #[test]
    fn steps_of_scaled_losses_are_left_out_where_they_overflow() {
        let rule = LossScaled { initial: 8.0, interval: 2, ..LossScaled::new(Sgd::default()) };
        let gradients = [4.0, f32::INFINITY, 4.0, 4.0, f32::NAN];
        // scales of each step: 8, 8, 4, 4, 8
        close(&run(&rule, &gradients, "w"), &[0.95, 0.95, 0.85, 0.75, 0.75]);
        close(&run(&rule, &gradients, "optimiser.loss_scale"), &[8.0, 4.0, 4.0, 8.0, 4.0]);
        close(&run(&rule, &gradients, "optimiser.good_steps"), &[1.0, 0.0, 1.0, 0.0, 0.0]);
    }

    /// The code and message of what is wrong with a model of two parameters.
    fn refused(model: impl for<'t> Fn(Var<'t>, Var<'t>) -> Var<'t>) -> Option<(&'static str, String)> {
        let graph = trace(|t| {
            let p = Params::new(t, crate::Mode::Train, 1);
            let (a, b) = (p.at("a").get("w", &[2], crate::Init::ONES), p.at("b").get("w", &[2], crate::Init::ONES));
            Sgd::default().minimise(&p, model(a, b), t.input("rate", f32([0i64; 0])));
        });
        graph.err().map(|e| (e.code, e.message))
    }

    #[test]
    fn losses_that_cannot_be_minimised_are_refused() {
        assert_eq!(refused(|a, b| (a * b).sum()), None);
        let lost = |name: &str| Some(("E0403", format!("the loss does not depend on `{name}`")));
        assert_eq!(refused(|a, _| a.sum()), lost("b.w"));
        assert_eq!(refused(|a, b| (a.stop_gradient() * b).sum()), lost("a.w"));
        assert_eq!(refused(|a, b| a.sum() + b.cast(DType::I64).cast(DType::F32).sum()), lost("b.w"));
        assert_eq!(refused(|a, b| a * b).unwrap().0, "E0613");
        assert_eq!(refused(|a, b| (a * b).sum().cast(DType::I64)).unwrap().0, "E0613");
    }

    #[test]
    fn a_program_minimises_below_its_path() {
        let graph = trace(|t| {
            let p = Params::new(t, crate::Mode::Train, 1);
            let (a, b) = (p.at("a").get("w", &[2], crate::Init::ONES), p.at("ab").get("w", &[2], crate::Init::ONES));
            Adam::default().minimise(&p.at("a"), (a * b).sum(), t.input("rate", f32([0i64; 0])));
        });
        let graph = graph.unwrap();
        let mut names: Vec<&str> = graph.updates().iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let own = ["a.optimiser.correction1", "a.optimiser.correction2", "a.optimiser.steps"];
        assert_eq!(names, [&own[..], &["a.w", "a.w.mean", "a.w.square"]].concat());
    }
}
