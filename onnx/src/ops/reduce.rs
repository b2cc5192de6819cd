//! Reductions.

use egret_ir::ops::ReduceKind;
use egret_ir::{Diagnostic, Literal, TensorType, Var};

use super::Results;
use crate::cx::Cx;
use crate::graph::single;

/// The axes, from an attribute or an operand; `None` when the operator then does nothing.
fn axes(cx: &Cx, rank: usize) -> Result<Option<Vec<isize>>, Diagnostic> {
    let given = match cx.int_list("axes") {
        Some(list) => Some(list),
        None => cx.ints(1)?,
    };
    match given {
        Some(list) if !list.is_empty() => {
            let mut places = cx.axes(&list, rank)?;
            places.sort_unstable();
            Ok(Some(places.into_iter().map(|axis| axis as isize).collect()))
        }
        _ if cx.int("noop_with_empty_axes", 0) != 0 => Ok(None),
        _ => Ok(Some((0..rank as isize).collect())),
    }
}

fn reduced<'t>(
    cx: &mut Cx<'_, 't>,
    kind: ReduceKind,
    before: impl Fn(Var<'t>) -> Var<'t>,
    after: impl Fn(Var<'t>) -> Var<'t>,
) -> Results<'t> {
    let x = cx.var(0)?;
    let keep = cx.int("keepdims", 1) != 0;
    single(after(match axes(cx, x.rank())? {
        Some(axes) => before(x).reduce(kind, &axes, keep),
        None => before(x),
    }))
}

fn same<'t>(x: Var<'t>) -> Var<'t> {
    x
}

pub(super) fn sum<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    reduced(cx, ReduceKind::Sum, same, same)
}

pub(super) fn mean<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    reduced(cx, ReduceKind::Mean, same, same)
}

/// The extremum; of bools, which is true if any or all are, through integers.
fn extremum<'t>(cx: &mut Cx<'_, 't>, kind: ReduceKind) -> Results<'t> {
    let bools = cx.var(0)?.dtype() == egret_ir::DType::Bool;
    let to = |dtype| move |x: Var<'t>| if bools { x.cast(dtype) } else { x };
    reduced(cx, kind, to(egret_ir::DType::U8), to(egret_ir::DType::Bool))
}

pub(super) fn max<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    extremum(cx, ReduceKind::Max)
}

pub(super) fn min<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    extremum(cx, ReduceKind::Min)
}

pub(super) fn prod<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    reduced(cx, ReduceKind::Prod, same, same)
}

pub(super) fn l1<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    reduced(cx, ReduceKind::Sum, |x| x.abs(), same)
}

pub(super) fn l2<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    reduced(cx, ReduceKind::Sum, |x| x * x, |s| s.sqrt())
}

pub(super) fn sum_square<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    reduced(cx, ReduceKind::Sum, |x| x * x, same)
}

pub(super) fn log_sum<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    reduced(cx, ReduceKind::Sum, same, |s| s.log())
}

/// `m + log Σ exp(x − m)` with the maximum `m`, or 0 where that is infinite.
pub(super) fn log_sum_exp<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let keep = cx.int("keepdims", 1) != 0;
    let Some(axes) = axes(cx, x.rank())? else { return single(x.exp().log()) };
    let top = x.reduce_max(&axes, true);
    let top = top.abs().equal(f64::INFINITY).select(cx.like(x, 0.0), top);
    let sum = (x - top).exp().reduce_sum(&axes, true).log() + top;
    single(if keep { sum } else { sum.squeeze(&axes) })
}

/// The least index, or the greatest, at which the extremum lies.
fn arg<'t>(cx: &mut Cx<'_, 't>, kind: ReduceKind) -> Results<'t> {
    let x = cx.var(0)?;
    let axis = cx.axis(cx.int("axis", 0), x.rank())?;
    let places = [axis as isize];
    let i64s = egret_ir::DType::I64;
    let index = cx.t.iota(TensorType { dtype: i64s, shape: x.shape() }, axis);
    let wins = x.equal(x.reduce(kind, &places, true));
    let none = |value| cx.t.scalar(Literal::int(value, i64s));
    let keep = cx.int("keepdims", 1) != 0;
    single(match cx.int("select_last_index", 0) {
        0 => wins.select(index, none(i64::MAX)).reduce_min(&places, keep),
        _ => wins.select(index, none(-1)).reduce_max(&places, keep),
    })
}

pub(super) fn arg_max<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    arg(cx, ReduceKind::Max)
}

pub(super) fn arg_min<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    arg(cx, ReduceKind::Min)
}
