//! Operators that make tensors out of attributes and sizes.

use egret_ir::{DType, Dim, Literal, Shape, Tensor, TensorType, Var, Weight};

use super::indexing::size;
use super::{Results, Sources};
use crate::cx::Cx;
use crate::graph::{SMALL, single, tensor_source};

/// The value of a `Constant` node.
pub(super) fn constant<'t>(cx: &mut Cx<'_, 't>) -> Sources<'t> {
    let name = cx.node.output.first().cloned().unwrap_or_default();
    let vector = |n: usize| [n];
    let tensor = if let Some(tensor) = cx.tensor_attribute("value")? {
        Some(tensor)
    } else if let Some(tensor) = cx.sparse_attribute("sparse_value")? {
        Some(tensor)
    } else if cx.has_attribute("value_string") || cx.has_attribute("value_strings") {
        return Err(cx.unsupported("a value of strings"));
    } else if cx.has_attribute("value_float") {
        Some(Tensor::scalar(Literal::float(cx.float("value_float", 0.0), DType::F32)))
    } else if cx.has_attribute("value_int") {
        Some(Tensor::scalar(Literal::int(cx.int("value_int", 0), DType::I64)))
    } else if let Some(list) = cx.float_list("value_floats") {
        Tensor::new(&vector(list.len()), &list)
    } else if let Some(list) = cx.int_list("value_ints") {
        Tensor::new(&vector(list.len()), &list)
    } else {
        None
    };
    let tensor = tensor.ok_or_else(|| cx.error("has no value of numbers"))?;
    Ok(vec![tensor_source(cx.region.model, &name, tensor)])
}

/// Sizes of an operand as a tensor.
pub(super) fn shape<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let source = crate::dims::fold(cx).ok_or_else(|| cx.error("has no operand"))?;
    cx.node_of(source).and_then(single)
}

/// A small constant, a param that is filled at load, or one number broadcast to a shape with symbols.
pub(super) fn constant_of_shape<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let value = match cx.tensor_attribute("value")? {
        Some(tensor) if tensor.elements() == 1 => Literal::new(tensor.get(0), tensor.dtype()),
        Some(tensor) => return Err(cx.error(format!("the value {tensor:?} is not one number"))),
        None => Literal::float(0.0, DType::F32),
    };
    let dims = cx.dims(0)?;
    let sizes: Option<Vec<usize>> = dims.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
    let Some(sizes) = sizes else {
        if let Some(dim) = dims.iter().find(|d| d.range().1 < 0) {
            return Err(cx.error(format!("the extent {dim} is negative")));
        }
        return single(cx.t.scalar(value).broadcast(dims.as_slice()));
    };
    let bytes = sizes.iter().try_fold(value.dtype.size(), |n, d| n.checked_mul(*d));
    match bytes {
        Some(bytes) if bytes <= SMALL => single(cx.t.constant(Tensor::splat(value, &sizes))),
        Some(_) => {
            let name = cx.node.output.first().cloned().unwrap_or_default();
            let name = cx.region.model.param_name(&name);
            single(cx.region.root.param(&name, Weight::Fill { value, shape: sizes }))
        }
        None => Err(cx.error(format!("the shape {sizes:?} is too large"))),
    }
}

/// A range has at most this many numbers.
const MOST: f64 = (1i64 << 40) as f64;

/// `start + delta·i`; the number of elements must not depend on data.
pub(super) fn range<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (start, delta) = (cx.var(0)?, cx.var(2)?);
    let dtype = start.dtype();
    let number = |cx: &Cx, i: usize| cx.tensor(i).and_then(|t| t.values().next()).map(|v| v.as_f64());
    let count = if let (Some(a), Some(b), Some(d)) = (number(cx, 0), number(cx, 1), number(cx, 2)) {
        if d == 0.0 {
            return Err(cx.error("the step is 0"));
        }
        let count = ((b - a) / d).ceil().max(0.0);
        if count.is_nan() || count > MOST {
            return Err(cx.error(format!("{count} numbers from {a} to {b} by {d}")));
        }
        Dim::from(count as i64)
    } else {
        if let Some(i) = (0..3).find(|i| number(cx, *i).is_none() && cx.known(*i).is_none()) {
            return Err(cx.data_dependent(i));
        }
        let mut sizes = Vec::with_capacity(3);
        for i in 0..3 {
            sizes.push(cx.dims(i)?.into_iter().next().ok_or_else(|| cx.error(format!("operand {i} is empty")))?);
        }
        let [a, b, d] = &sizes[..] else { return Err(cx.error("has no three operands")) };
        if d.range().0 < 1 {
            return Err(cx.error(format!("the step {d} must be positive when sizes vary")));
        }
        let count = (b.clone() - a.clone()).ceil_div(d);
        if count.range().0 < 0 { count.maximum(&Dim::ZERO) } else { count }
    };
    let index = cx.t.iota(TensorType { dtype, shape: Shape::from([count]) }, 0);
    if (number(cx, 0), number(cx, 2)) == (Some(0.0), Some(1.0)) {
        return single(index);
    }
    single(index * delta.reshape(Shape::scalar()) + start.reshape(Shape::scalar()))
}

pub(super) fn eye_like<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let shape = cx.shape(0)?;
    if shape.rank() != 2 {
        return Err(cx.error(format!("the shape {shape} is no matrix")));
    }
    let dtype = match cx.dtype("dtype")? {
        Some(dtype) => dtype,
        None => cx.var(0)?.dtype(),
    };
    let index = |axis| cx.t.iota(TensorType { dtype: DType::I64, shape: shape.clone() }, axis);
    let (row, column): (Var, Var) = (index(0), index(1));
    single((row + cx.int("k", 0) as f64).equal(column).cast(dtype))
}

/// `a0 − a1·cos(2πn/N) + a2·cos(4πn/N)` for `n` in `0..size`, where `N` is the size, or one less when symmetric.
fn window<'t>(cx: &mut Cx<'_, 't>, [a0, a1, a2]: [f64; 3]) -> Results<'t> {
    let extent = cx.dims(0)?.into_iter().next().ok_or_else(|| cx.error("has no size"))?;
    let dtype = cx.dtype("output_datatype")?.unwrap_or(DType::F32);
    if extent.range().0 < 0 {
        return Err(cx.error(format!("a window of {extent} elements")));
    }
    // angles in double precision, as far as the size is known
    let wide = DType::F64;
    let index = cx.t.iota(TensorType { dtype: wide, shape: Shape::from([extent.clone()]) }, 0);
    let period = match cx.int("periodic", 1) {
        0 => size(cx, &extent, DType::I64)?.cast(wide) - 1.0,
        _ => size(cx, &extent, DType::I64)?.cast(wide),
    };
    let angle = index * (2.0 * std::f64::consts::PI) / period;
    let mut y = cx.like(angle, a0) - angle.cos() * a1;
    if a2 != 0.0 {
        y = y + (angle * 2.0).cos() * a2;
    }
    single(y.cast(dtype))
}

pub(super) fn hann_window<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    window(cx, [0.5, 0.5, 0.0])
}

pub(super) fn hamming_window<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    window(cx, [25.0 / 46.0, 21.0 / 46.0, 0.0])
}

pub(super) fn blackman_window<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    window(cx, [0.42, 0.5, 0.08])
}
