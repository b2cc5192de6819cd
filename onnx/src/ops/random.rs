//! Random numbers, of a counter that each run advances.

use egret_ir::{DType, Diagnostic, Dim, Shape, TensorType, Var};

use super::Results;
use crate::cx::Cx;
use crate::graph::single;

/// The type of the result: that of an operand, or of attributes.
fn like<'t>(cx: &mut Cx<'_, 't>) -> Result<TensorType, Diagnostic> {
    let shape = cx.shape(0)?;
    let dtype = match cx.dtype("dtype")? {
        Some(dtype) => dtype,
        None => cx.element_type(0)?,
    };
    legal(cx, TensorType { dtype, shape })
}

fn declared(cx: &Cx) -> Result<TensorType, Diagnostic> {
    let shape = cx.int_list("shape").ok_or_else(|| cx.error("has no shape"))?;
    if shape.iter().any(|d| !(0..=super::conv::LARGEST).contains(d)) {
        return Err(cx.error(format!("a shape of {shape:?}")));
    }
    let dtype = cx.dtype("dtype")?.unwrap_or(DType::F32);
    legal(cx, TensorType { dtype, shape: shape.into_iter().map(Dim::from).collect() })
}

fn legal(cx: &Cx, ty: TensorType) -> Result<TensorType, Diagnostic> {
    if ty.dtype.is_float() { Ok(ty) } else { Err(cx.error(format!("random numbers of {}", ty.dtype))) }
}

/// The stream of a node: its own, or the one that a seed names.
fn stream(cx: &Cx) -> u64 {
    let seed = cx.float("seed", 0.0) as f32;
    let own = cx.region.model.stream();
    if cx.has_attribute("seed") { (1 << 63) | (own << 32) | u64::from(seed.to_bits()) } else { own }
}

/// Uniform numbers in 0..1.
fn unit<'t>(cx: &Cx<'_, 't>, ty: TensorType) -> Var<'t> {
    cx.t.uniform(stream(cx), cx.random_counter(), ty)
}

fn normal<'t>(cx: &Cx<'_, 't>, ty: TensorType) -> Results<'t> {
    let (mean, scale) = (cx.float("mean", 0.0), cx.float("scale", 1.0));
    single(cx.t.normal(stream(cx), cx.random_counter(), ty) * scale + mean)
}

fn uniform<'t>(cx: &Cx<'_, 't>, ty: TensorType) -> Results<'t> {
    let (low, high) = (cx.float("low", 0.0), cx.float("high", 1.0));
    single(unit(cx, ty) * (high - low) + low)
}

pub(super) fn random_normal<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let ty = declared(cx)?;
    normal(cx, ty)
}

pub(super) fn random_normal_like<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let ty = like(cx)?;
    normal(cx, ty)
}

pub(super) fn random_uniform<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let ty = declared(cx)?;
    uniform(cx, ty)
}

pub(super) fn random_uniform_like<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let ty = like(cx)?;
    uniform(cx, ty)
}

/// 1 with the probability that the operand holds.
pub(super) fn bernoulli<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let dtype = cx.dtype("dtype")?.unwrap_or(x.dtype());
    let u = unit(cx, legal(cx, x.ty())?);
    single(u.less(x).cast(dtype))
}

/// Classes drawn by unnormalised log-probabilities, one row a batch entry: the first class whose share of the sum, with
/// those before it, is above a uniform number.
pub(super) fn multinomial<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let count = cx.int("sample_size", 1);
    let shape = x.shape();
    let [batch, classes] = &shape[..] else { return Err(cx.error(format!("{} is no matrix", x.ty()))) };
    if !(1..=super::conv::LARGEST).contains(&count) {
        return Err(cx.error(format!("{count} samples")));
    }
    let dtype = cx.dtype("dtype")?.unwrap_or(DType::I32);
    let shares = x.softmax(-1).cumulative(egret_ir::ops::CumulativeKind::Sum, -1, false, false);
    let ty = TensorType { dtype: x.dtype(), shape: Shape::from([batch.clone(), Dim::from(count)]) };
    let u = unit(cx, legal(cx, ty)?);
    let below = shares.unsqueeze(&[1]).less_equal(u.unsqueeze(&[2])).cast(DType::I64);
    let last = super::indexing::size(cx, classes, DType::I64)? - 1;
    // rounding may leave the last sum below 1
    single(below.reduce_sum(&[2], false).minimum(last).cast(dtype))
}

/// Elements left out at random, the others scaled to keep the mean; and which were kept.
pub(super) fn dropped<'t>(cx: &Cx<'_, 't>, x: Var<'t>, ratio: f64) -> Result<(Var<'t>, Var<'t>), Diagnostic> {
    if !(0.0..1.0).contains(&ratio) {
        return Err(cx.error(format!("a ratio of {ratio}")));
    }
    let keep = unit(cx, legal(cx, x.ty())?).greater_equal(cx.like(x, ratio));
    Ok((keep.select(x * (1.0 / (1.0 - ratio)), cx.like(x, 0.0)), keep))
}
