//! Look-ups by index.

use egret_ir::{DType, Diagnostic, Dim, Literal, ScalarValue, Shape, Tensor, TensorType, Var};

use super::Results;
use crate::cx::Cx;
use crate::graph::single;

/// Operand `i` as indices of an axis, negative ones counted from its end.
fn indices<'t>(cx: &mut Cx<'_, 't>, i: usize, extent: &Dim) -> Result<Var<'t>, Diagnostic> {
    let known = cx.tensor(i);
    if let (Some(tensor), true) =
        (&known, cx.known(i).is_some() || known.as_ref().is_some_and(|t| t.elements() <= 1024))
    {
        if tensor.values().all(|v| v.as_int() >= 0) {
            return cx.var(i);
        }
        if let Some(extent) = extent.as_const() {
            let mut wrapped = Tensor::zeros(tensor.dtype(), tensor.shape());
            for (at, v) in tensor.values().enumerate() {
                let v = v.as_int();
                wrapped.set(at, ScalarValue::Int(if v < 0 { v + i128::from(extent) } else { v }));
            }
            return Ok(cx.t.constant(wrapped));
        }
    }
    let index = cx.var(i)?;
    if index.dtype().is_unsigned() || never_negative(cx, index) {
        return Ok(index);
    }
    Ok(index.less(cx.like(index, 0.0)).select(index + size(cx, extent, index.dtype())?, index))
}

/// Whether a value is made of counters alone, by operators that cannot make it negative.
fn never_negative(cx: &Cx, index: Var) -> bool {
    let Some(root) = index.id() else { return false };
    cx.t.graph(|graph| {
        let mut open = vec![root];
        for _ in 0..64 {
            let Some(id) = open.pop() else { return true };
            let node = graph.node(id);
            match &node.op {
                egret_ir::Op::Iota(_) => {}
                egret_ir::Op::Const(leaf) => {
                    if leaf.value.values().any(|v| v.as_f64() < 0.0) {
                        return false;
                    }
                }
                egret_ir::Op::Broadcast(_)
                | egret_ir::Op::Concat(_)
                | egret_ir::Op::Reshape(_)
                | egret_ir::Op::Transpose(_)
                | egret_ir::Op::Slice(_) => open.extend(node.operands.iter().copied()),
                egret_ir::Op::Pointwise(p) if matches!(p.f, egret_ir::ScalarFn::Add | egret_ir::ScalarFn::Mul) => {
                    open.extend(node.operands.iter().copied());
                }
                _ => return false,
            }
        }
        false
    })
}

/// A size as a scalar.
pub(super) fn size<'t>(cx: &Cx<'_, 't>, dim: &Dim, dtype: DType) -> Result<Var<'t>, Diagnostic> {
    let known = crate::cx::Known { dims: vec![dim.clone()], scalar: true, dtype };
    cx.node_of(crate::cx::Source::Dims(known))
}

pub(super) fn gather<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let axis = cx.axis(cx.int("axis", 0), x.rank())?;
    let index = indices(cx, 1, &x.shape()[axis].clone())?;
    single(x.gather(index, axis as isize))
}

/// Each index picks one element: a look-up in all elements at the index' own place on the other axes.
pub(super) fn gather_elements<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let own = x.shape();
    let axis = cx.axis(cx.int("axis", 0), own.rank())?;
    let index = indices(cx, 1, &own[axis].clone())?.cast(DType::I64);
    let shape = index.shape();
    if shape.rank() != own.rank() {
        return Err(cx.error(format!("indices {} do not fit {}", index.ty(), x.ty())));
    }
    let mut flat: Option<Var> = None;
    for (i, stride) in own.strides().iter().enumerate() {
        let place = match i == axis {
            true => index,
            false => cx.t.iota(TensorType { dtype: DType::I64, shape: shape.clone() }, i),
        };
        let part = if stride.is(1) { place } else { place * size(cx, stride, DType::I64)? };
        flat = Some(flat.map_or(part, |sum| sum + part));
    }
    let flat = flat.ok_or_else(|| cx.error("a scalar has no axis"))?;
    single(x.reshape(Shape::from([own.elements()])).gather(flat, 0))
}

/// Tuples of indices of the axes after `batch_dims`: a look-up in those axes (and the batch axes) as one.
pub(super) fn gather_nd<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, index) = (cx.var(0)?, cx.var(1)?);
    let own = x.shape();
    let shape = index.shape();
    let batch = usize::try_from(cx.int("batch_dims", 0)).unwrap_or(usize::MAX);
    let Some((width, lead)) = shape.split_last() else { return Err(cx.error("the indices are a scalar")) };
    let Some(width) = width.as_const().and_then(|w| usize::try_from(w).ok()) else {
        return Err(cx.open_extent(format!("the last extent of the indices {shape} must be a number")));
    };
    if width == 0 || batch.saturating_add(width) > own.rank() || batch > lead.len() {
        return Err(cx.error(format!("indices {} do not fit {}", index.ty(), x.ty())));
    }
    let joined = batch + width;
    let strides = Shape::from(&own[..joined]).strides();
    let safe = never_negative(cx, index);
    let mut flat: Option<Var> = None;
    for i in 0..joined {
        let place = if i < batch {
            cx.t.iota(TensorType { dtype: DType::I64, shape: lead.into() }, i)
        } else {
            let at = (i - batch) as i64;
            let part = index.narrow(-1, at, 1).reshape(lead).cast(DType::I64);
            match safe {
                true => part,
                false => part.less(cx.like(part, 0.0)).select(part + size(cx, &own[i], DType::I64)?, part),
            }
        };
        let part = if strides[i].is(1) { place } else { place * size(cx, &strides[i], DType::I64)? };
        flat = Some(flat.map_or(part, |sum| sum + part));
    }
    let flat = flat.ok_or_else(|| cx.error("has no indices"))?;
    let elements = own[..joined].iter().fold(Dim::ONE, |n, d| n * d.clone());
    let rows: Shape = std::iter::once(elements).chain(own[joined..].iter().cloned()).collect();
    single(x.reshape(rows).gather(flat, 0))
}

/// Integers as rows with `values[1]` at their place and `values[0]` elsewhere.
pub(super) fn one_hot<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (index, values) = (cx.var(0)?, cx.var(2)?);
    let depth = cx.dims(1)?.into_iter().next().ok_or_else(|| cx.error("has no depth"))?;
    let shape = index.shape();
    let axis = cx.axis(cx.int("axis", -1), shape.rank() + 1)?;
    let index = index.cast(DType::I64);
    let wrapped = index.less(cx.like(index, 0.0)).select(index + size(cx, &depth, DType::I64)?, index);
    let mut full: Vec<Dim> = shape.to_vec();
    full.insert(axis, depth);
    let places = cx.t.iota(TensorType { dtype: DType::I64, shape: full.as_slice().into() }, axis);
    let hit = places.equal(wrapped.unsqueeze(&[axis as isize]));
    let value = |i: i64| values.narrow(0, i, 1).reshape(Shape::scalar());
    single(hit.select(value(1), value(0)))
}

/// The upper or lower triangle.
pub(super) fn trilu<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let rank = x.rank();
    if rank < 2 {
        return Err(cx.error(format!("{} is no matrix", x.ty())));
    }
    let matrix = Shape::from(&x.shape()[rank - 2..]);
    let k = cx.number(1)?.unwrap_or(0.0) as i64;
    let index = |axis| cx.t.iota(TensorType { dtype: DType::I64, shape: matrix.clone() }, axis);
    let diagonal = index(0) + cx.t.scalar(Literal::int(k, DType::I64));
    let keeps = match cx.int("upper", 1) {
        0 => index(1).less_equal(diagonal),
        _ => index(1).greater_equal(diagonal),
    };
    single(keeps.select(x, cx.like(x, 0.0)))
}

/// The first elements of each sequence in reverse order, the others as they are.
pub(super) fn reverse_sequence<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, lengths) = (cx.var(0)?, cx.var(1)?.cast(DType::I64));
    let shape = x.shape();
    let (time, batch) = (cx.int("time_axis", 0), cx.int("batch_axis", 1));
    if shape.rank() < 2 || !matches!((time, batch), (0, 1) | (1, 0)) || lengths.rank() != 1 {
        return Err(cx.error(format!("axes {time} and {batch} with lengths {} do not fit {}", lengths.ty(), x.ty())));
    }
    let lead = Shape::from(&shape[..2]);
    let index = |axis: i64| cx.t.iota(TensorType { dtype: DType::I64, shape: lead.clone() }, axis as usize);
    let (at, row) = (index(time), index(batch));
    let lengths = lengths.unsqueeze(&[time as isize]);
    let at = at.less(lengths).select(lengths - at - 1, at);
    let stride = size(cx, &shape[1], DType::I64)?;
    let flat = if time == 0 { at * stride + row } else { row * stride + at };
    let rows: Shape = std::iter::once(lead.elements()).chain(shape[2..].iter().cloned()).collect();
    single(x.reshape(rows).gather(flat, 0))
}
