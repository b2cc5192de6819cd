//! Reference evaluation: the whole score matrix, in f64.

use super::{Attention, AttentionGrad};
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError, Num, contract};
use crate::ops::pointwise::expanded;
use crate::scalar::{ScalarExpr, ScalarProgram, ScalarValue};
use crate::tensor::Tensor;

/// The scores of one attention.
struct Scores {
    shape: Vec<usize>,
    /// Extent of the key axis.
    keys: usize,
    raw: Vec<f64>,
    /// How far after a query the last key that it sees is.
    causal: Option<i64>,
    extras: Vec<Tensor>,
    dtypes: Vec<DType>,
}

impl Scores {
    fn new(op: &Attention, operands: &[Tensor], extras: &[Tensor], cx: &EvalCx) -> Result<Scores, EvalError> {
        let (q, k) = (&operands[0], &operands[1]);
        let shape: Vec<usize> = op
            .scores
            .0
            .iter()
            .map(|l| op.q.axis(*l).map(|i| q.shape()[i]).or_else(|| op.k.axis(*l).map(|i| k.shape()[i])).unwrap_or(1))
            .collect();
        if shape.iter().try_fold(8usize, |n, d| n.checked_mul(*d)).is_none_or(|bytes| bytes > 1 << 36) {
            return Err(EvalError::TooLarge { shape });
        }
        let raw = contract((&f64::load(q), &op.q.0, q.shape()), (&f64::load(k), &op.k.0, k.shape()), &op.scores.0);
        let dtypes = std::iter::once(q.dtype()).chain(extras.iter().map(Tensor::dtype)).collect();
        let extras = extras.iter().map(|t| expanded(t, &shape)).collect();
        let causal = op.causal.as_ref().map(|causal| causal.eval(cx.bindings)).transpose()?;
        Ok(Scores { keys: shape.last().copied().unwrap_or(1), shape, raw, causal, extras, dtypes })
    }

    /// A program of raw scores and extras.
    fn map(&self, program: &ScalarExpr) -> Vec<f64> {
        let mut program = ScalarProgram::unrounded(program, &self.dtypes);
        let mut args = vec![ScalarValue::Bool(false); self.extras.len() + 1];
        let mut value = |i: usize| {
            args[0] = ScalarValue::Float(self.raw[i]);
            for (arg, extra) in args[1..].iter_mut().zip(&self.extras) {
                *arg = extra.get(i);
            }
            program.run(&args).0.as_f64()
        };
        (0..self.raw.len()).map(&mut value).collect()
    }

    /// The softmax of the logits by row, and the log-sum-exp of each row.
    fn softmax(&self, op: &Attention) -> (Vec<f64>, Vec<f64>) {
        let mut p = self.map(&op.score);
        let mut lse = Vec::new();
        let queries = self.shape.iter().rev().nth(1).copied().unwrap_or(1);
        for (i, row) in p.chunks_exact_mut(self.keys.max(1)).enumerate() {
            if let Some(causal) = self.causal {
                let seen = (i % queries.max(1)) as i64 + causal + 1;
                row.iter_mut().skip(seen.max(0) as usize).for_each(|x| *x = f64::NEG_INFINITY);
            }
            let max = row.iter().fold(f64::NEG_INFINITY, |m, x| m.greater(*x));
            if max == f64::NEG_INFINITY {
                row.fill(if op.empty_is_zero { 0.0 } else { f64::NAN });
                lse.push(max);
                continue;
            }
            let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
            row.iter_mut().for_each(|x| *x = (*x - max).exp() / sum);
            lse.push(max + sum.ln());
        }
        (p, lse)
    }
}

pub(super) fn forward(op: &Attention, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
    let results = cx.results(op, operands)?;
    let scores = Scores::new(op, operands, &operands[3..], cx)?;
    let (p, lse) = scores.softmax(op);
    let v = &operands[2];
    let o = contract((&p, &op.scores.0, &scores.shape), (&f64::load(v), &op.v.0, v.shape()), &op.o.0);
    Ok(vec![f64::store(results[0].0, &results[0].1, &o), f64::store(results[1].0, &results[1].1, &lse)])
}

/// With `p` the probabilities: `dv = pᵀ·do`, `dp = do·vᵀ`, `dlogit = p·(dp − Σ p·dp)`, then through the score program.
pub(super) fn backward(grad: &AttentionGrad, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
    let results = cx.results(grad, operands)?;
    let op = &grad.of;
    let scores = Scores::new(op, operands, &operands[6..], cx)?;
    let (p, _) = scores.softmax(op);
    let (q, k, v, go) = (&operands[0], &operands[1], &operands[2], &operands[5]);
    let load = f64::load;
    let dv = contract((&p, &op.scores.0, &scores.shape), (&load(go), &op.o.0, go.shape()), &op.v.0);
    let mut ds = contract((&load(go), &op.o.0, go.shape()), (&load(v), &op.v.0, v.shape()), &op.scores.0);
    for (ds, p) in ds.chunks_exact_mut(scores.keys.max(1)).zip(p.chunks_exact(scores.keys.max(1))) {
        let sum: f64 = ds.iter().zip(p).map(|(d, p)| d * p).sum();
        ds.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - sum));
    }
    match op.score.derivative(0, &scores.dtypes) {
        Some(slope) => ds.iter_mut().zip(scores.map(&slope)).for_each(|(d, s)| *d *= s),
        None => ds.fill(0.0),
    }
    let dq = contract((&ds, &op.scores.0, &scores.shape), (&load(k), &op.k.0, k.shape()), &op.q.0);
    let dk = contract((&ds, &op.scores.0, &scores.shape), (&load(q), &op.q.0, q.shape()), &op.k.0);
    let parts = [dq, dk, dv];
    Ok(results.iter().zip(&parts).map(|((dtype, shape), part)| f64::store(*dtype, shape, part)).collect())
}
