//! Steps over several batches.

use egret_ir::{DType, Literal, Var};

use super::{Gradient, Optimiser, Step, Update};
use crate::params::Params;

/// An optimiser that moves after each `batches` batches only, by the mean of their gradients: steps of a batch too large
/// for memory. Sums that an epoch leaves unfinished are finished in the next.
///
/// What layers update themselves, such as running statistics, moves with each batch.
#[derive(Clone, Debug)]
pub struct Accumulate<O> {
    inner: O,
    batches: u32,
}

impl<O: Optimiser> Accumulate<O> {
    /// A step of `inner` for so many batches, at least one.
    pub fn new(inner: O, batches: u32) -> Accumulate<O> {
        Accumulate { inner, batches: batches.max(1) }
    }
}

impl<O: Optimiser> Optimiser for Accumulate<O> {
    fn updates<'t>(&self, step: &Step<'_, 't>) -> Vec<Update<'t>> {
        let count = step.state("batches", DType::I64, 0.0);
        let next = count + 1i64;
        let due = next.equal(step.tracer.scalar(Literal::int(i64::from(self.batches), DType::I64)));
        let none = step.tracer.scalar(Literal::int(0, DType::I64));
        let mut updates = vec![Update { state: count, value: due.select(none, next) }];
        let mut means = Vec::with_capacity(step.gradients.len());
        for gradient in step.gradients {
            let sum = step.beside(gradient, "accumulated");
            let mean = sum + gradient.gradient * (1.0 / f64::from(self.batches));
            let none = step.tracer.scalar(Literal::float(0.0, mean.dtype()));
            updates.push(Update { state: sum, value: due.select(none, mean) });
            means.push(Gradient { gradient: mean, ..gradient.clone() });
        }
        let moved = self.inner.updates(&Step { gradients: &means, ..*step });
        updates.extend(moved.into_iter().map(|u| u.only_if(due)));
        updates
    }

    fn loss<'t>(&self, p: &Params<'_, 't>, loss: Var<'t>) -> Var<'t> {
        self.inner.loss(p, loss)
    }

    fn averages(&self) -> bool {
        self.inner.averages()
    }
}
