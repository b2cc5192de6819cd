//! Losses.

use egret_ir::{Diagnostic, TensorType, Var};

use super::Results;
use crate::cx::Cx;

/// The class axis, second of `[n, c, …]`, as the last.
fn classes_last<'t>(x: Var<'t>) -> Var<'t> {
    let rank = x.rank();
    if rank < 3 {
        return x;
    }
    let order: Vec<usize> = std::iter::once(0).chain(2..rank).chain([1]).collect();
    x.transpose(&order)
}

/// Losses by row, weighted, without the ignored ones, and reduced.
fn reduced<'t>(cx: &mut Cx<'_, 't>, scores: Var<'t>, loss: impl Fn(Var<'t>) -> Var<'t>) -> Result<Var<'t>, Diagnostic> {
    if scores.rank() < 2 {
        return Err(cx.error(format!("{} has no class axis", scores.ty())));
    }
    let labels = cx.var(1)?;
    let ignored = cx.has_attribute("ignore_index").then(|| cx.int("ignore_index", 0));
    let hit = ignored.map(|index| labels.equal(cx.like(labels, index as f64)));
    let safe = hit.map_or(labels, |hit| hit.select(cx.like(labels, 0.0), labels));
    let mut rows = loss(safe);
    let mut weights: Option<Var> = None;
    if let Some(by_class) = cx.optional(2)? {
        weights = Some(by_class.gather(safe, 0));
    }
    if let Some(hit) = hit {
        let given = weights.unwrap_or(cx.like(rows, 1.0));
        weights = Some(hit.select(cx.like(rows, 0.0), given));
    }
    if let Some(weights) = weights {
        rows = rows * weights;
    }
    Ok(match (cx.text("reduction", "mean").as_str(), weights) {
        ("none", _) => rows,
        ("sum", _) => rows.sum(),
        (_, Some(weights)) => rows.sum() / weights.broadcast(rows.shape()).sum(),
        (_, None) => rows.mean(),
    })
}

pub(super) fn softmax_cross_entropy<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let scores = cx.var(0)?;
    let last = classes_last(scores);
    let loss = reduced(cx, scores, |labels| last.cross_entropy(labels))?;
    Ok(if cx.wants(1) { vec![loss, scores.log_softmax(1)] } else { vec![loss] })
}

/// The operand holds logarithms of probabilities: the loss is minus the one at the label.
pub(super) fn negative_log_likelihood<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let scores = cx.var(0)?;
    let last = classes_last(scores);
    let zero = cx.like(scores, 0.0);
    let loss = reduced(cx, scores, |labels| {
        let index = last.tracer().iota(TensorType { dtype: labels.dtype(), shape: last.shape() }, last.rank() - 1);
        -index.equal(labels.unsqueeze(&[-1])).select(last, zero).reduce_sum(&[-1], false)
    })?;
    Ok(vec![loss])
}
