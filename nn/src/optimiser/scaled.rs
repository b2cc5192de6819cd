//! Losses that are scaled so that small gradients of half precision are not lost.

use egret_ir::{DType, Literal, ScalarFn, Tracer, Var, Weight};

use super::{Gradient, Optimiser, Step, Update};
use crate::params::Params;

/// Dynamic loss scaling (Micikevicius et al., 2018), by the rule and the defaults of `torch.amp.GradScaler`: gradients of
/// the loss times a scale, divided by it before the step. Where one is not finite the step is left out and the scale
/// multiplied by `backoff`; after `interval` steps in a row that are not, by `growth`. The scale is the state
/// `optimiser.loss_scale`.
///
/// It is the outermost rule: `LossScaled::new(Clip::new(…, Adam::default()))` clips what is scaled back. `bf16` has the
/// range of `f32` and needs none of it.
#[derive(Clone, Debug)]
pub struct LossScaled<O> {
    /// The rule that sees the gradients.
    pub inner: O,
    /// The first scale.
    pub initial: f64,
    /// Factor after good steps.
    pub growth: f64,
    /// Factor after a step that was left out.
    pub backoff: f64,
    /// Good steps in a row before the scale grows.
    pub interval: i64,
}

const SCALE: &str = "loss_scale";

impl<O: Optimiser> LossScaled<O> {
    /// 2¹⁶, doubled after 2000 good steps, halved after a bad one.
    pub fn new(inner: O) -> LossScaled<O> {
        LossScaled { inner, initial: 65536.0, growth: 2.0, backoff: 0.5, interval: 2000 }
    }

    fn scale<'t>(&self, t: &Tracer<'t>, scope: &str) -> Var<'t> {
        let first = Weight::Fill { value: Literal::float(self.initial, DType::F32), shape: Vec::new() };
        t.state(&super::own(scope, SCALE), first)
    }
}

impl<O: Optimiser> Optimiser for LossScaled<O> {
    fn updates<'t>(&self, step: &Step<'_, 't>) -> Vec<Update<'t>> {
        let t = step.tracer;
        let scale = self.scale(t, step.scope);
        let mut finite: Option<Var<'t>> = None;
        let mut unscaled = Vec::with_capacity(step.gradients.len());
        for gradient in step.gradients {
            let g = gradient.gradient;
            let axes: Vec<isize> = (0..g.rank() as isize).collect();
            // NaN is passed on by the maximum, and is not below the bound
            let most = g.abs().reduce_max(&axes, false).cast(DType::F64);
            let good = most.less(t.scalar(Literal::float(f64::INFINITY, DType::F64)));
            finite = Some(finite.map_or(good, |all| all.map(ScalarFn::And, &[good])));
            unscaled.push(Gradient { gradient: g / scale.cast(g.dtype()), ..gradient.clone() });
        }
        let Some(finite) = finite else { return Vec::new() };
        let moved = self.inner.updates(&Step { gradients: &unscaled, ..*step });
        let mut updates: Vec<Update> = moved.into_iter().map(|u| u.only_if(finite)).collect();
        let good = step.state("good_steps", DType::I64, 0.0);
        let next = good + 1i64;
        let grows = next.equal(t.scalar(Literal::int(self.interval.max(1), DType::I64)));
        let grown = grows.select(scale * self.growth, scale);
        updates.push(Update { state: scale, value: finite.select(grown, scale * self.backoff) });
        let none = t.scalar(Literal::int(0, DType::I64));
        updates.push(Update { state: good, value: finite.select(grows.select(none, next), none) });
        updates
    }

    fn loss<'t>(&self, p: &Params<'_, 't>, loss: Var<'t>) -> Var<'t> {
        let loss = self.inner.loss(p, loss);
        loss * self.scale(p.tracer(), p.path()).cast(loss.dtype())
    }

    fn averages(&self) -> bool {
        self.inner.averages()
    }
}
