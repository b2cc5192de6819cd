//! Softmax and normalisations.

use egret_ir::ops::{ReduceKind, Window, WindowKind};
use egret_ir::{DType, Dim, Literal, Shape, TensorType, Var};

use super::Results;
use crate::cx::Cx;
use crate::graph::single;

/// Along one axis; before opset 13 over all axes from one on.
fn soft<'t>(cx: &mut Cx<'_, 't>, apply: impl Fn(Var<'t>, isize) -> Var<'t>) -> Results<'t> {
    let x = cx.var(0)?;
    let old = cx.opset < 13;
    let axis = cx.axis(cx.int("axis", if old { 1 } else { -1 }), x.rank().max(1))?;
    if !old || axis + 1 >= x.rank() {
        return single(apply(x, axis as isize));
    }
    single(apply(x.flatten(axis), axis as isize).reshape(x.shape()))
}

pub(super) fn softmax<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    soft(cx, |x, axis| x.softmax(axis))
}

pub(super) fn log_softmax<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    soft(cx, |x, axis| x.log_softmax(axis))
}

/// A vector over channels as it broadcasts to `[n, c, …]`.
fn by_channel<'t>(v: Var<'t>, rank: usize) -> Var<'t> {
    let shape = v.shape();
    v.reshape(shape.iter().cloned().chain(vec![Dim::ONE; rank.saturating_sub(2)]).collect::<Shape>())
}

/// In inference `x·a + b`, where `a` and `b` are expressions of params; in training the statistics are those of the
/// batch, and the running ones follow them.
pub(super) fn batch_normalization<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let training = cx.int("training_mode", 0) != 0;
    if !training && (1..5).any(|i| cx.wants(i)) {
        return Err(cx.unsupported("statistics as results before opset 14"));
    }
    if cx.int("spatial", 1) == 0 {
        return Err(cx.unsupported("statistics by element (`spatial` is 0)"));
    }
    let (x, scale, bias) = (cx.var(0)?, cx.var(1)?, cx.var(2)?);
    let (mean, variance) = (cx.var(3)?, cx.var(4)?);
    let (own_mean, own_variance) = match training {
        true => {
            let axes: Vec<isize> = (0..x.rank() as isize).filter(|axis| *axis != 1).collect();
            let centre = x.reduce_mean(&axes, true);
            let centred = x - centre;
            let spread = (centred * centred).reduce_mean(&axes, false);
            (centre.reshape(mean.shape()).cast(mean.dtype()), spread.cast(variance.dtype()))
        }
        false => (mean, variance),
    };
    let a = scale.cast(own_variance.dtype()) / (own_variance + cx.float("epsilon", 1e-5)).sqrt();
    let b = bias.cast(own_mean.dtype()) - own_mean * a;
    let y = x * by_channel(a.cast(x.dtype()), x.rank()) + by_channel(b.cast(x.dtype()), x.rank());
    if !training {
        return single(y);
    }
    let momentum = cx.float("momentum", f64::from(0.9f32));
    let running = |old: Var<'t>, new: Var<'t>| old * momentum + new * (1.0 - momentum);
    Ok(vec![y, running(mean, own_mean), running(variance, own_variance)])
}

pub(super) fn instance_normalization<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, scale, bias) = (cx.var(0)?, cx.var(1)?, cx.var(2)?);
    let y = x.layer_norm(2, cx.float("epsilon", 1e-5));
    single(y * by_channel(scale, x.rank()) + by_channel(bias, x.rank()))
}

/// Scale and bias are by group before opset 21, by channel from it on.
pub(super) fn group_normalization<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, scale, bias) = (cx.var(0)?, cx.var(1)?, cx.var(2)?);
    let shape = x.shape();
    let groups = cx.int("num_groups", 1).max(1);
    let Some(channels) = shape.get(1).cloned().filter(|c| c.modulo(&Dim::from(groups)).is(0)) else {
        return Err(cx.error(format!("{groups} groups do not divide the channels of {shape}")));
    };
    let each = channels.floor_div(&Dim::from(groups));
    let split: Shape =
        [shape[0].clone(), Dim::from(groups), each.clone()].into_iter().chain(shape[2..].iter().cloned()).collect();
    let y = x.reshape(split).layer_norm(2, cx.float("epsilon", 1e-5));
    if cx.opset < 21 {
        let y = y * by_channel(scale, y.rank()) + by_channel(bias, y.rank());
        return single(y.reshape(shape));
    }
    single(y.reshape(shape) * by_channel(scale, x.rank()) + by_channel(bias, x.rank()))
}

pub(super) fn layer_normalization<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, scale) = (cx.var(0)?, cx.var(1)?);
    let axis = cx.axis(cx.int("axis", -1), x.rank())?;
    let eps = cx.float("epsilon", 1e-5);
    let mut y = x.layer_norm(axis as isize, eps) * scale;
    if let Some(bias) = cx.optional(2)? {
        y = y + bias;
    }
    if !cx.wants(1) && !cx.wants(2) {
        return single(y);
    }
    let axes: Vec<isize> = (axis as isize..x.rank() as isize).collect();
    let mean = x.reduce_mean(&axes, true);
    let centred = x - mean;
    let variance = (centred * centred).reduce_mean(&axes, true);
    Ok(vec![y, mean, (variance + eps).rsqrt()])
}

pub(super) fn rms_normalization<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, scale) = (cx.var(0)?, cx.var(1)?);
    let axis = cx.axis(cx.int("axis", -1), x.rank())?;
    single(x.rms_norm(axis as isize, cx.float("epsilon", 1e-5)) * scale)
}

pub(super) fn mean_variance_normalization<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let axes = cx.axes(&cx.int_list("axes").unwrap_or(vec![0, 2, 3]), x.rank())?;
    let axes: Vec<isize> = axes.into_iter().map(|a| a as isize).collect();
    let centred = x - x.reduce_mean(&axes, true);
    let variance = (centred * centred).reduce_mean(&axes, true);
    single(centred / (variance.sqrt() + 1e-9))
}

pub(super) fn lp_normalization<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let axis = [cx.axis(cx.int("axis", -1), x.rank())? as isize];
    let norm = match cx.int("p", 2) {
        1 => x.abs().reduce(ReduceKind::Sum, &axis, true),
        _ => (x * x).reduce(ReduceKind::Sum, &axis, true).sqrt(),
    };
    single(norm.equal(0.0).select(cx.like(x, 0.0), x / norm))
}

/// `x / (bias + alpha/size · Σ x²)^beta`, the sum over neighbouring channels.
pub(super) fn lrn<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let size = cx.int("size", 1);
    let (alpha, beta, bias) = (cx.float("alpha", 1e-4), cx.float("beta", 0.75), cx.float("bias", 1.0));
    if x.rank() < 2 || size < 1 {
        return Err(cx.error(format!("{} has no channels for a window of {size}", x.ty())));
    }
    let n = x.rank() - 1;
    let first = |value: i64, rest: i64| std::iter::once(value).chain(std::iter::repeat_n(rest, n - 1)).collect();
    let window = Window {
        size: first(size, 1),
        stride: first(1, 1),
        pad_low: first((size - 1) / 2, 0),
        pad_high: first(size - 1 - (size - 1) / 2, 0),
        dilation: first(1, 1),
    };
    let sum = (x * x).reduce_window(WindowKind::Sum, window);
    single(x / (sum * (alpha / size as f64) + bias).pow(beta))
}

/// 1 at the first maximum along an axis, 0 elsewhere; before opset 13 over all axes from one on.
pub(super) fn hardmax<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    soft(cx, |x, axis| {
        let ty = TensorType { dtype: DType::I64, shape: x.shape() };
        let index = x.tracer().iota(ty, axis.max(0) as usize);
        let wins = x.equal(x.reduce_max(&[axis], true));
        let none = x.tracer().scalar(Literal::int(i64::MAX, DType::I64));
        index.equal(wins.select(index, none).reduce_min(&[axis], true)).cast(x.dtype())
    })
}
