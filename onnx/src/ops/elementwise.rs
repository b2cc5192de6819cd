//! Elementwise operators.

use egret_ir::{DType, Dim, Literal, ScalarFn, Shape, Tensor, Var};

use super::{Results, Sources};
use crate::cx::{Cx, Source};
use crate::graph::single;

/// A scalar function of the table.
pub(super) fn scalar<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let Some(f) = ScalarFn::from_onnx(&cx.node.op_type) else { return Err(cx.error("is not a scalar function")) };
    let mut operands = Vec::new();
    for i in 0..f.arity() {
        operands.push(cx.var(i)?);
    }
    if f.arity() == 2 && cx.opset < 7 {
        operands[1] = aligned(cx, operands[0], operands[1])?;
    }
    single(operands[0].map(f, &operands[1..]))
}

/// The second operand as opsets before 7 broadcast it: its axes lie from `axis` on.
fn aligned<'t>(cx: &Cx<'_, 't>, a: Var<'t>, b: Var<'t>) -> Result<Var<'t>, egret_ir::Diagnostic> {
    let rank = a.rank();
    let axis = match cx.int("broadcast", 0) {
        0 => return Ok(b),
        _ if !cx.has_attribute("axis") => return Ok(b),
        _ => cx.axis(cx.int("axis", 0), rank)?,
    };
    let shape = b.shape();
    let after = rank.saturating_sub(axis + shape.rank());
    Ok(b.reshape(shape.iter().cloned().chain(vec![Dim::ONE; after]).collect::<Shape>()))
}

fn fold<'t>(cx: &mut Cx<'_, 't>, f: ScalarFn) -> Result<Var<'t>, egret_ir::Diagnostic> {
    let mut all = cx.var(0)?;
    for i in 1..cx.operands() {
        all = all.map(f, &[cx.var(i)?]);
    }
    Ok(all)
}

pub(super) fn max<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    fold(cx, ScalarFn::Max).and_then(single)
}

pub(super) fn min<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    fold(cx, ScalarFn::Min).and_then(single)
}

pub(super) fn sum<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    fold(cx, ScalarFn::Add).and_then(single)
}

pub(super) fn mean<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let count = cx.operands() as f64;
    single(fold(cx, ScalarFn::Add)? / count)
}

pub(super) fn identity<'t>(cx: &mut Cx<'_, 't>) -> Sources<'t> {
    Ok(vec![cx.source(0)?.clone()])
}

/// In inference the operand; the mask, if read, is true everywhere. In training elements are left out at random.
pub(super) fn dropout<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let training = cx.has(2) && cx.number(2)? != Some(0.0);
    let x = cx.var(0)?;
    if training {
        let ratio = cx.number(1)?.unwrap_or(0.5);
        if ratio != 0.0 {
            let (y, kept) = super::random::dropped(cx, x, ratio)?;
            return Ok(vec![y, kept]);
        }
    }
    let yes = cx.t.scalar(Literal::int(1, DType::Bool));
    let mask = if cx.wants(1) { vec![yes.broadcast(x.shape())] } else { Vec::new() };
    Ok(std::iter::once(x).chain(mask).collect())
}

pub(super) fn cast<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let dtype = cx.dtype("to")?.ok_or_else(|| cx.error("has no element type"))?;
    single(cx.var(0)?.cast(dtype))
}

/// A small constant stays one, whatever value the element type is taken from.
pub(super) fn cast_like<'t>(cx: &mut Cx<'_, 't>) -> Sources<'t> {
    let dtype = cx.element_type(1)?;
    if let Source::Const(tensor) = cx.source(0)? {
        let mut cast = Tensor::zeros(dtype, tensor.shape());
        tensor.values().enumerate().for_each(|(i, value)| cast.set(i, value));
        return Ok(vec![Source::Const(cast)]);
    }
    Ok(vec![Source::Var(cx.var(0)?.cast(dtype))])
}

/// The same bits as another element type of the same size; those of truth values are 0 and 1.
pub(super) fn bit_cast<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let dtype = cx.dtype("to")?.ok_or_else(|| cx.error("has no element type"))?;
    let x = cx.var(0)?;
    if x.dtype().size() != dtype.size() {
        return Err(cx.error(format!("{} and {dtype} differ in size", x.dtype())));
    }
    match (x.dtype(), dtype) {
        (DType::Bool, _) => single(x.cast(DType::U8).bitcast(dtype)),
        (_, DType::Bool) => Err(cx.unsupported("truth values of other bits than 0 and 1")),
        // integers wrap when they are converted, which keeps their bits
        (from, to) if from.is_int() && to.is_int() => single(x.cast(to)),
        _ => single(x.bitcast(dtype)),
    }
}

pub(super) fn pow<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (a, b) = (cx.var(0)?, cx.var(1)?);
    let b = if cx.opset < 7 { aligned(cx, a, b)? } else { b };
    // an integer base to a float power is computed in the power's type
    match a.dtype().is_float() || !b.dtype().is_float() {
        true => single(a.pow(b.cast(a.dtype()))),
        false => single(a.cast(b.dtype()).pow(b).cast(a.dtype())),
    }
}

/// `fmod` 0: the sign of the divisor, integers only; 1: the sign of the dividend.
pub(super) fn modulo<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (a, b) = (cx.var(0)?, cx.var(1)?);
    single(if cx.int("fmod", 0) != 0 || a.dtype().is_unsigned() { a % b } else { a.modulo(b) })
}

pub(super) fn bit_shift<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, by) = (cx.var(0)?, cx.var(1)?);
    let unsigned = match x.dtype() {
        DType::I8 => DType::U8,
        DType::I16 => DType::U16,
        DType::I32 => DType::U32,
        DType::I64 => DType::U64,
        other => other,
    };
    let left = match cx.text("direction", "").as_str() {
        "LEFT" => true,
        "RIGHT" => false,
        other => return Err(cx.error(format!("there is no direction `{other}`"))),
    };
    if unsigned == x.dtype() {
        return single(if left { x.shift_left(by) } else { x.shift_right(by) });
    }
    single(signed_shift(x, by, unsigned, left))
}

pub(super) fn clip<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let mut x = cx.var(0)?;
    if cx.opset < 11 {
        if cx.has_attribute("min") {
            x = x.maximum(cx.float("min", 0.0));
        }
        if cx.has_attribute("max") {
            x = x.minimum(cx.float("max", 0.0));
        }
        return single(x);
    }
    if let Some(low) = cx.optional(1)? {
        x = x.maximum(low);
    }
    if let Some(high) = cx.optional(2)? {
        x = x.minimum(high);
    }
    single(x)
}

/// x·sigmoid(αx).
fn swished<'t>(cx: &Cx<'_, 't>, x: Var<'t>) -> Var<'t> {
    let alpha = cx.float("alpha", 1.0);
    if alpha == 1.0 { x.silu() } else { x * (x * alpha).sigmoid() }
}

pub(super) fn swish<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    single(swished(cx, x))
}

/// The first operand's Swish times the second.
pub(super) fn swiglu<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (gate, value) = (cx.var(0)?, cx.var(1)?);
    single(swished(cx, gate) * value)
}

pub(super) fn gelu<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    single(if cx.text("approximate", "none") == "tanh" { x.gelu_tanh() } else { x.gelu() })
}

pub(super) fn leaky_relu<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, alpha) = (cx.var(0)?, cx.float("alpha", 0.01));
    single(x.less(0.0).select(x * alpha, x))
}

/// The slope broadcasts to the operand; of opset 6 it may be one number a channel.
pub(super) fn prelu<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, mut slope) = (cx.var(0)?, cx.var(1)?);
    if cx.opset < 7 && slope.rank() == 1 && x.rank() > 1 {
        slope = slope.reshape(slope.shape().iter().cloned().chain(vec![Dim::ONE; x.rank() - 2]).collect::<Shape>());
    }
    let zero = cx.like(x, 0.0);
    single(x.less(zero).select(x * slope, x))
}

/// α·(eˣ − 1) below 0; the exponent is clamped so that the branch not taken cannot overflow.
fn exponential<'t>(x: Var<'t>, alpha: f64) -> Var<'t> {
    (x.minimum(0.0).exp() - 1.0) * alpha
}

pub(super) fn elu<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, alpha) = (cx.var(0)?, cx.float("alpha", 1.0));
    single(x.less(0.0).select(exponential(x, alpha), x))
}

pub(super) fn selu<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (alpha, gamma) = (cx.float("alpha", 1.673_263_192_176_818_8), cx.float("gamma", 1.050_701_022_148_132_3));
    let x = cx.var(0)?;
    single(x.greater(0.0).select(x, exponential(x, alpha)) * gamma)
}

pub(super) fn celu<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, alpha) = (cx.var(0)?, cx.float("alpha", 1.0));
    single(x.maximum(0.0) + exponential(x / alpha, alpha))
}

pub(super) fn hard_sigmoid<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, alpha, beta) = (cx.var(0)?, cx.float("alpha", f64::from(0.2f32)), cx.float("beta", 0.5));
    single((x * alpha + beta).maximum(0.0).minimum(1.0))
}

pub(super) fn thresholded_relu<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, alpha) = (cx.var(0)?, cx.float("alpha", 1.0));
    single(x.greater(alpha).select(x, cx.like(x, 0.0)))
}

pub(super) fn shrink<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, bias, lambda) = (cx.var(0)?, cx.float("bias", 0.0), cx.float("lambd", 0.5));
    let low = x.less(-lambda).select(x + bias, cx.like(x, 0.0));
    single(x.greater(lambda).select(x - bias, low))
}

pub(super) fn is_inf<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (positive, negative) = (cx.int("detect_positive", 1) != 0, cx.int("detect_negative", 1) != 0);
    let x = cx.var(0)?;
    single(match (positive, negative) {
        (true, true) => x.abs().equal(f64::INFINITY),
        (true, false) => x.equal(f64::INFINITY),
        (false, true) => x.equal(f64::NEG_INFINITY),
        (false, false) => x.less(x).cast(DType::Bool),
    })
}

/// Bits of a signed integer moved; upwards what passes the sign is lost, downwards copies of the sign follow. A count
/// below 0, or of the width or more, leaves the sign's copies alone.
fn signed_shift<'t>(x: Var<'t>, by: Var<'t>, unsigned: DType, left: bool) -> Var<'t> {
    // a count below 0 is far above the width
    let (bits, count) = (x.cast(unsigned), by.cast(unsigned));
    if left {
        return bits.shift_left(count).cast(x.dtype());
    }
    let negative = x.less(0i64);
    let moved = negative.select(bits.bit_not(), bits).shift_right(count);
    negative.select(moved.bit_not(), moved).cast(x.dtype())
}
