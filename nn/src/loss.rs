//! Losses: scalars to be minimised. Each is the mean over all that is counted, as PyTorch's default is.

mod ctc;

use egret_ir::Var;

pub use ctc::ctc;

/// Mean negative log-likelihood of integer classes under logits (last axis).
#[track_caller]
pub fn cross_entropy<'t>(logits: Var<'t>, labels: Var<'t>) -> Var<'t> {
    logits.cross_entropy(labels).mean()
}

/// Cross-entropy of a distribution over classes (last axis) under logits.
#[track_caller]
pub fn soft_cross_entropy<'t>(logits: Var<'t>, target: Var<'t>) -> Var<'t> {
    -(target * logits.log_softmax(-1)).reduce_sum(&[-1], false).mean()
}

/// [`cross_entropy`] with labels that give `smoothing` of their weight to all classes evenly (Szegedy et al., 2016).
#[track_caller]
pub fn smoothed_cross_entropy<'t>(logits: Var<'t>, labels: Var<'t>, smoothing: f64) -> Var<'t> {
    let even = -logits.log_softmax(-1).mean();
    cross_entropy(logits, labels) * (1.0 - smoothing) + even * smoothing
}

/// Cross-entropy of integer classes under probabilities (last axis), as Keras takes them: `−log p`. Where the probabilities
/// are a softmax, [`cross_entropy`] of its logits is the same and loses no digits.
#[track_caller]
pub fn cross_entropy_of_probabilities<'t>(probabilities: Var<'t>, labels: Var<'t>) -> Var<'t> {
    // a probability of 0 counts as the least that Keras lets through
    let log = probabilities.maximum(1e-7).log();
    let classes = probabilities.shape().last().cloned().unwrap_or(egret_ir::Dim::ONE);
    -(log * labels.one_hot(classes, probabilities.dtype())).reduce_sum(&[-1], false).mean()
}

/// Mean squared difference.
#[track_caller]
pub fn mse<'t>(prediction: Var<'t>, target: Var<'t>) -> Var<'t> {
    let difference = prediction - target;
    (difference * difference).mean()
}

/// Mean absolute difference.
#[track_caller]
pub fn l1<'t>(prediction: Var<'t>, target: Var<'t>) -> Var<'t> {
    (prediction - target).abs().mean()
}

/// Huber's loss: `d²/2` where `|d| ≤ delta`, else `delta·(|d| − delta/2)`.
#[track_caller]
pub fn huber<'t>(prediction: Var<'t>, target: Var<'t>, delta: f64) -> Var<'t> {
    let d = (prediction - target).abs();
    let within = d.minimum(delta);
    // the two branches in one: within²/2 + delta·(d − within)
    (within * within * 0.5 + (d - within) * delta).mean()
}

/// Mean binary cross-entropy of targets in 0..1 under logits, stable for logits of any size.
#[track_caller]
pub fn binary_cross_entropy<'t>(logits: Var<'t>, target: Var<'t>) -> Var<'t> {
    (logits.softplus() - logits * target).mean()
}

/// Kullback and Leibler's divergence of `target` from the distribution whose logarithms are given (last axis), a mean over
/// rows (PyTorch's `batchmean`). A class of probability 0 adds nothing.
#[track_caller]
pub fn kl_divergence<'t>(log_probabilities: Var<'t>, target: Var<'t>) -> Var<'t> {
    let own = target * target.maximum(1e-38).log();
    (own - target * log_probabilities).reduce_sum(&[-1], false).mean()
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_ir::{Dim, Tensor, Tensors, Tracer, f32, i64, interpret, trace};

    /// A loss of x `[2, 3]`, a target of the same shape, and labels.
    fn value(loss: impl for<'t> Fn(Var<'t>, Var<'t>, Var<'t>) -> Var<'t>) -> f64 {
        let graph = trace(|t: &Tracer<'_>| {
            let ty = || f32([Dim::from(2), 3.into()]);
            loss(t.input("x", ty()), t.input("target", ty()), t.input("labels", i64([2])))
        })
        .unwrap();
        let tensors = Tensors::from([
            ("x".into(), Tensor::new(&[2, 3], &X).unwrap()),
            ("target".into(), Tensor::new(&[2, 3], &TARGET).unwrap()),
            ("labels".into(), Tensor::new(&[2], &[2i64, 0]).unwrap()),
        ]);
        interpret(&graph, &tensors, &Tensors::new()).unwrap().outputs[0].1.get(0).as_f64()
    }

    const X: [f32; 6] = [0.5, -1.0, 2.0, 0.25, 0.5, -3.0];
    const TARGET: [f32; 6] = [0.25, 0.5, 0.25, 1.0, 0.0, 0.0];

    fn close(have: f64, want: f64) {
        assert!((have - want).abs() < 1e-6 * want.abs().max(1.0), "{have} for {want}");
    }

    fn log_softmax(row: &[f32]) -> Vec<f64> {
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        row.iter().map(|x| f64::from(*x) - sum.ln()).collect()
    }

    #[test]
    fn losses_of_classes_are_their_formulas() {
        let (a, b) = (log_softmax(&X[..3]), log_softmax(&X[3..]));
        let hard = -(a[2] + b[0]) / 2.0;
        close(value(|x, _, labels| cross_entropy(x, labels)), hard);
        let even = -(a.iter().sum::<f64>() + b.iter().sum::<f64>()) / 6.0;
        close(value(|x, _, labels| smoothed_cross_entropy(x, labels, 0.1)), 0.9 * hard + 0.1 * even);
        let soft = -(0.25 * a[0] + 0.5 * a[1] + 0.25 * a[2] + b[0]) / 2.0;
        close(value(|x, target, _| soft_cross_entropy(x, target)), soft);
        close(value(|x, _, labels| cross_entropy_of_probabilities(x.softmax(-1), labels)), hard);
        let entropy = 0.5 * 0.25f64.ln() + 0.5 * 0.5f64.ln();
        close(value(|x, target, _| kl_divergence(x.log_softmax(-1), target)), (entropy + 2.0 * soft) / 2.0);
    }

    #[test]
    fn losses_of_differences_are_their_formulas() {
        let differences: Vec<f64> = X.iter().zip(&TARGET).map(|(x, t)| f64::from(x - t)).collect();
        let mean = |f: &dyn Fn(f64) -> f64| differences.iter().map(|d| f(*d)).sum::<f64>() / 6.0;
        close(value(|x, target, _| mse(x, target)), mean(&|d| d * d));
        close(value(|x, target, _| l1(x, target)), mean(&f64::abs));
        let by_hand = |d: f64| if d.abs() <= 1.0 { d * d / 2.0 } else { d.abs() - 0.5 };
        close(value(|x, target, _| huber(x, target, 1.0)), mean(&by_hand));
        let binary = X.iter().zip(&TARGET).map(|(x, t)| {
            let p = 1.0 / (1.0 + (-f64::from(*x)).exp());
            -(f64::from(*t) * p.ln() + (1.0 - f64::from(*t)) * (1.0 - p).ln())
        });
        close(value(|x, target, _| binary_cross_entropy(x, target)), binary.sum::<f64>() / 6.0);
    }
}
