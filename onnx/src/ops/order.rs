//! Order, running totals, and results whose size data decide.

use egret_ir::ops::{CumulativeKind, NonMaxSuppression};
use egret_ir::{DType, Diagnostic, Dim, Literal, ScalarValue, Shape, Var};

use super::Results;
use crate::cx::Cx;
use crate::graph::single;

/// The first elements of an axis in order, and their places.
pub(super) fn top_k<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let axis = cx.axis(cx.int("axis", -1), x.rank())?;
    let k = match cx.opset {
        ..10 => Some(Dim::from(cx.int("k", 0))),
        _ => cx.dims(1)?.into_iter().next(),
    };
    let k = k.ok_or_else(|| cx.error("has no k"))?;
    let (values, places) = x.top_k(axis as isize, k, cx.int("largest", 1) != 0);
    Ok(vec![values, places])
}

fn cumulative<'t>(cx: &mut Cx<'_, 't>, kind: CumulativeKind) -> Results<'t> {
    let x = cx.var(0)?;
    let axis = cx.ints(1)?.and_then(|axes| axes.first().copied()).ok_or_else(|| cx.error("has no axis"))?;
    let axis = cx.axis(axis, x.rank())?;
    single(x.cumulative(kind, axis as isize, cx.int("exclusive", 0) != 0, cx.int("reverse", 0) != 0))
}

pub(super) fn cum_sum<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    cumulative(cx, CumulativeKind::Sum)
}

pub(super) fn cum_prod<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    cumulative(cx, CumulativeKind::Prod)
}

pub(super) fn non_zero<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    // a scalar has one place, without indices
    single(x.non_zero())
}

/// The slices at which a vector is true; what lies beyond its end is left out.
pub(super) fn compress<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, keep) = (cx.var(0)?, cx.var(1)?);
    let axis = match cx.has_attribute("axis") {
        true => Some(cx.axis(cx.int("axis", 0), x.rank())? as isize),
        false => None,
    };
    if keep.rank() != 1 {
        return Err(cx.error(format!("the condition {} is no vector", keep.ty())));
    }
    single(x.compress(keep, axis))
}

pub(super) fn unique<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let axis = match cx.has_attribute("axis") {
        true => Some(cx.axis(cx.int("axis", 0), x.rank())? as isize),
        false => None,
    };
    Ok(x.unique(axis, cx.int("sorted", 1) != 0).to_vec())
}

/// A scalar operand, with what it is when absent.
fn scalar<'t>(cx: &mut Cx<'_, 't>, i: usize, dtype: DType, default: ScalarValue) -> Result<Var<'t>, Diagnostic> {
    Ok(match cx.optional(i)? {
        Some(given) => given.reshape(Shape::scalar()).cast(dtype),
        None => cx.t.scalar(Literal::new(default, dtype)),
    })
}

pub(super) fn non_max_suppression<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (boxes, scores) = (cx.var(0)?, cx.var(1)?);
    let most = scalar(cx, 2, DType::I64, ScalarValue::Int(0))?;
    let overlap = scalar(cx, 3, DType::F32, ScalarValue::Float(0.0))?;
    let score = scalar(cx, 4, DType::F32, ScalarValue::Float(f64::NEG_INFINITY))?;
    let center = match cx.int("center_point_box", 0) {
        0 => false,
        1 => true,
        other => return Err(cx.error(format!("there is no box format {other}"))),
    };
    let suppression = NonMaxSuppression { center, size: cx.t.new_size() };
    single(cx.t.add(suppression, &[boxes, scores, most, overlap, score]))
}
