//! Averages of weights.

use egret_ir::Var;

use super::{Optimiser, Step, Update};
use crate::params::{Params, average_of};

/// An optimiser that also keeps an exponential moving average of each parameter: `a = decay·a + (1 − decay)·w`, after the
/// step, beginning with the first value (Polyak and Juditsky, 1992; as `torch.optim.swa_utils.get_ema_multi_avg_fn`). The
/// average of `w` is the state `w.average`; evaluation reads it in place of `w`.
#[derive(Clone, Debug)]
pub struct Ema<O> {
    inner: O,
    decay: f64,
}

impl<O: Optimiser> Ema<O> {
    /// Averages of what `inner` moves.
    pub fn new(inner: O, decay: f64) -> Ema<O> {
        Ema { inner, decay }
    }
}

impl<O: Optimiser> Optimiser for Ema<O> {
    fn updates<'t>(&self, step: &Step<'_, 't>) -> Vec<Update<'t>> {
        let mut updates = self.inner.updates(step);
        for gradient in step.gradients {
            let moved = updates.iter().find(|u| u.state.id() == gradient.parameter.id());
            let (Some(moved), Some(first)) = (moved, step.tracer.weight(&gradient.name)) else { continue };
            let average = step.tracer.state(&average_of(&gradient.name), first);
            let value = average * self.decay + moved.value * (1.0 - self.decay);
            updates.push(Update { state: average, value });
        }
        updates
    }

    fn loss<'t>(&self, p: &Params<'_, 't>, loss: Var<'t>) -> Var<'t> {
        self.inner.loss(p, loss)
    }

    fn averages(&self) -> bool {
        true
    }
}
