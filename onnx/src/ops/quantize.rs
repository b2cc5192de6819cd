//! Linear quantisation: `real = (quantised − zero point) · scale`.

use egret_ir::{DType, Diagnostic, Dim, Shape, Var};

use super::Results;
use super::conv::{convolution, spatial_rank};
use crate::cx::Cx;
use crate::graph::single;

/// The least and greatest number of an integer type, as far as they are numbers of f32.
fn bounds(cx: &Cx, dtype: DType) -> Result<(f64, f64), Diagnostic> {
    let bits = (dtype.size() * 8) as i32;
    match dtype {
        _ if dtype.is_unsigned() => Ok((0.0, 2f64.powi(bits) - 1.0)),
        _ if dtype.is_int() => Ok((-2f64.powi(bits - 1), 2f64.powi(bits - 1) - 1.0)),
        _ => Err(cx.error(format!("{dtype} is no quantised type"))),
    }
}

/// A scale or zero point as it broadcasts to `x`: one number, one an index of an axis, or one a block along it.
fn spread<'t>(cx: &Cx<'_, 't>, v: Var<'t>, x: Var<'t>) -> Result<Var<'t>, Diagnostic> {
    let (shape, own) = (x.shape(), v.shape());
    if own.rank() == 0 || own.elements().is(1) {
        return Ok(v.reshape(Shape::scalar()));
    }
    let axis = cx.axis(cx.int("axis", 1), shape.rank()).or_else(|e| if shape.rank() == 1 { Ok(0) } else { Err(e) })?;
    if own.rank() == 1 && shape.rank() >= 1 && cx.int("block_size", 0) == 0 {
        let after = vec![Dim::ONE; shape.rank() - 1 - axis];
        return Ok(v.reshape(own.iter().cloned().chain(after).collect::<Shape>()));
    }
    if own.rank() != shape.rank() {
        return Err(cx.error(format!("a scale or zero point {} does not fit {}", v.ty(), x.ty())));
    }
    let block = cx.int("block_size", 0);
    if block < 1 {
        return Err(cx.error(format!("blocks of {block} elements")));
    }
    let mut wide = own.to_vec();
    wide.insert(axis + 1, Dim::from(block));
    let mut whole = own.to_vec();
    whole[axis] = own[axis].clone() * Dim::from(block);
    let all = v.unsqueeze(&[axis as isize + 1]).broadcast(wide.as_slice()).reshape(whole.as_slice());
    // the last block may be cut
    Ok(if whole[axis] == shape[axis] { all } else { all.narrow(axis as isize, 0, shape[axis].clone()) })
}

/// `round(x) + zero`, saturated, in an integer type; halves to even.
fn saturated<'t>(cx: &Cx<'_, 't>, x: Var<'t>, zero: Option<Var<'t>>, dtype: DType) -> Result<Var<'t>, Diagnostic> {
    let (low, high) = bounds(cx, dtype)?;
    let q = x.round().cast(DType::F32);
    let q = zero.map_or(q, |zero| q + zero.cast(DType::F32));
    Ok(q.maximum(low).minimum(high).cast(dtype))
}

pub(super) fn quantize_linear<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, scale) = (cx.var(0)?, cx.var(1)?);
    let zero = cx.optional(2)?;
    let dtype = match (zero, cx.int("output_dtype", 0)) {
        (Some(zero), _) => zero.dtype(),
        (None, 0) => DType::U8,
        (None, _) => cx.dtype("output_dtype")?.unwrap_or(DType::U8),
    };
    let precision = match cx.int("precision", 0) {
        0 => scale.dtype(),
        _ => cx.dtype("precision")?.unwrap_or(DType::F32),
    };
    let scaled = x.cast(precision) / spread(cx, scale, x)?.cast(precision);
    let zero = zero.map(|zero| spread(cx, zero, x)).transpose()?;
    saturated(cx, scaled, zero, dtype).and_then(single)
}

pub(super) fn dequantize_linear<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, scale) = (cx.var(0)?, cx.var(1)?);
    if !x.dtype().is_int() {
        return Err(cx.error(format!("{} is not quantised", x.ty())));
    }
    let dtype = match cx.int("output_dtype", 0) {
        0 => scale.dtype(),
        _ => cx.dtype("output_dtype")?.unwrap_or(DType::F32),
    };
    let mut q = x.cast(DType::I32);
    if let Some(zero) = cx.optional(2)? {
        q = q - spread(cx, zero, x)?.cast(DType::I32);
    }
    let scale = spread(cx, scale, x)?;
    single((q.cast(scale.dtype()) * scale).cast(dtype))
}

/// To u8, with the scale and zero point of the data's own range, which includes 0.
pub(super) fn dynamic_quantize_linear<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let (low, high) = bounds(cx, DType::U8)?;
    let axes: Vec<isize> = (0..x.rank() as isize).collect();
    let least = x.reduce_min(&axes, false).minimum(0.0);
    let greatest = x.reduce_max(&axes, false).maximum(0.0);
    let scale = (greatest - least) / (high - low);
    let zero = (cx.like(x, low) - least / scale).maximum(low).minimum(high).round().cast(DType::U8);
    let y = saturated(cx, x / scale, Some(zero), DType::U8)?;
    Ok(vec![y, scale, zero])
}

/// Operand `i` as i32 without its zero point in operand `zero`; one zero a row or column lies along `axis`, counted from
/// the last.
fn centred<'t>(cx: &mut Cx<'_, 't>, i: usize, zero: usize, axis: usize) -> Result<Var<'t>, Diagnostic> {
    let x = cx.var(i)?.cast(DType::I32);
    Ok(match cx.optional(zero)? {
        Some(zero) => x - along(zero.cast(DType::I32), axis),
        None => x,
    })
}

/// A vector along an axis counted from the last; more axes are as they should be.
fn along<'t>(v: Var<'t>, axis: usize) -> Var<'t> {
    if v.rank() != 1 {
        return v;
    }
    if v.shape()[0].is(1) {
        return v.reshape(Shape::scalar());
    }
    v.reshape(v.shape().iter().cloned().chain(vec![Dim::ONE; axis]).collect::<Shape>())
}

pub(super) fn matmul_integer<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (a, b) = (centred(cx, 0, 2, 1)?, centred(cx, 1, 3, 0)?);
    single(a.matmul(b))
}

pub(super) fn conv_integer<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let ty = cx.var(0)?.ty();
    let n = spatial_rank(cx, ty)?;
    let (x, w) = (centred(cx, 0, 2, n)?, centred(cx, 1, 3, n + 1)?);
    convolution(cx, x, w).and_then(single)
}

/// An i32 result with the scales of its operands, as the quantised result.
fn requantised<'t>(cx: &mut Cx<'_, 't>, sum: Var<'t>, scale: Var<'t>, zero: usize) -> Result<Var<'t>, Diagnostic> {
    let zero = cx.var(zero)?;
    saturated(cx, sum.cast(DType::F32) * scale, Some(along(zero, 0)), zero.dtype())
}

pub(super) fn qlinear_matmul<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (a, b) = (centred(cx, 0, 2, 1)?, centred(cx, 3, 5, 0)?);
    let scale = |v: Var<'t>, axis| along(v.cast(DType::F32), axis);
    let scale = scale(cx.var(1)?, 1) * scale(cx.var(4)?, 0) / scale(cx.var(6)?, 0);
    requantised(cx, a.matmul(b), scale, 7).and_then(single)
}

pub(super) fn qlinear_conv<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let ty = cx.var(0)?.ty();
    let n = spatial_rank(cx, ty)?;
    let (x, w) = (centred(cx, 0, 2, n)?, centred(cx, 3, 5, n + 1)?);
    let mut sum = convolution(cx, x, w)?;
    if let Some(bias) = cx.optional(8)? {
        sum = sum + along(bias, n);
    }
    let scale = along(cx.var(1)?, 0) * along(cx.var(4)?, n) / along(cx.var(6)?, 0);
    requantised(cx, sum, scale, 7).and_then(single)
}
