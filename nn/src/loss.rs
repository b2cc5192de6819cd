//! Losses: scalars to be minimised.

use egret_ir::Var;

/// Mean negative log-likelihood of integer classes under logits (last axis).
#[track_caller]
pub fn cross_entropy<'t>(logits: Var<'t>, labels: Var<'t>) -> Var<'t> {
    logits.cross_entropy(labels).mean()
}

/// Mean squared difference.
#[track_caller]
pub fn mse<'t>(prediction: Var<'t>, target: Var<'t>) -> Var<'t> {
    let difference = prediction - target;
    (difference * difference).mean()
}

/// Mean binary cross-entropy of targets in 0..1 under logits, stable for logits of any size.
#[track_caller]
pub fn binary_cross_entropy<'t>(logits: Var<'t>, target: Var<'t>) -> Var<'t> {
    (logits.softplus() - logits * target).mean()
}
