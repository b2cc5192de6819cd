//! Look-ups by index.

use egret_ir::ops::{Outside, Places, ScatterKind};
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

/// Each index picks one element of its own place on the other axes.
pub(super) fn gather_elements<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let axis = cx.axis(cx.int("axis", 0), x.rank())?;
    let index = indices(cx, 1, &x.shape()[axis].clone())?;
    single(x.gather_at(Places::Elements { axis }, index))
}

/// Tuples of indices of the axes after `batch`, negative ones counted from the end of their axis.
fn tuples<'t>(cx: &mut Cx<'_, 't>, x: Var<'t>, batch: usize) -> Result<Var<'t>, Diagnostic> {
    let index = cx.var(1)?;
    let Some(width) = index.shape().last().cloned() else { return Err(cx.error("the indices are a scalar")) };
    let width = cx.extents(&[width])?[0] as usize;
    let own = x.shape();
    if batch.saturating_add(width) > own.rank() || batch >= index.rank() {
        return Err(cx.error(format!("indices {} do not fit {}", index.ty(), x.ty())));
    }
    if index.dtype().is_unsigned() || never_negative(cx, index) || width == 0 {
        return Ok(index);
    }
    let mut extents = Vec::with_capacity(width);
    for extent in &own[batch..batch + width] {
        extents.push(size(cx, extent, index.dtype())?.reshape(Shape::from([1i64])));
    }
    let extents = cx.t.concat(&extents, 0);
    Ok(index.less(cx.like(index, 0.0)).select(index + extents, index))
}

pub(super) fn gather_nd<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let batch = usize::try_from(cx.int("batch_dims", 0)).unwrap_or(usize::MAX);
    let index = tuples(cx, x, batch)?;
    single(x.gather_at(Places::Tuples { batch }, index))
}

/// How updates meet what is there.
fn scatter_kind(cx: &Cx) -> Result<ScatterKind, Diagnostic> {
    Ok(match cx.text("reduction", "none").as_str() {
        "none" => ScatterKind::Set,
        "add" => ScatterKind::Add,
        "mul" => ScatterKind::Mul,
        "min" => ScatterKind::Min,
        "max" => ScatterKind::Max,
        other => return Err(cx.error(format!("there is no reduction `{other}`"))),
    })
}

pub(super) fn scatter_elements<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, updates) = (cx.var(0)?, cx.var(2)?);
    let axis = cx.axis(cx.int("axis", 0), x.rank())?;
    let index = indices(cx, 1, &x.shape()[axis].clone())?;
    single(x.scatter(Places::Elements { axis }, scatter_kind(cx)?, index, updates))
}

pub(super) fn scatter_nd<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, updates) = (cx.var(0)?, cx.var(2)?);
    let index = tuples(cx, x, 0)?;
    single(x.scatter(Places::Tuples { batch: 0 }, scatter_kind(cx)?, index, updates))
}

/// A cache with a part of one axis replaced, for each batch entry from a place of its own on.
pub(super) fn tensor_scatter<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (cache, update) = (cx.var(0)?, cx.var(1)?);
    let axis = cx.axis(cx.int("axis", -2), cache.rank())?;
    let circular = match cx.text("mode", "linear").as_str() {
        "linear" => false,
        "circular" => true,
        other => return Err(cx.error(format!("there is no mode `{other}`"))),
    };
    if axis == 0 || update.rank() != cache.rank() {
        return Err(cx.error(format!("{} does not fit axis {axis} of {}", update.ty(), cache.ty())));
    }
    let starts = cx.optional(2)?.map(|starts| starts.cast(DType::I64));
    let operands: Vec<Var> = [cache, update].into_iter().chain(starts).collect();
    let (own, part) = (cache.shape()[axis].clone(), update.shape()[axis].clone());
    single(cx.t.generate(cache.ty(), &operands, |g, i| {
        let mut at = i[axis].clone();
        if starts.is_some() {
            at = at - g.load(2, &i[..1], Outside::Fault);
        }
        if circular {
            at = at.modulo(g.dim(&own));
        }
        let at = g.bind(at);
        let inside = at.greater_equal(0i64).and(at.less(g.dim(&part)));
        let mut index = i.to_vec();
        index[axis] = at;
        let new = g.load(1, &index, Outside::Clamp);
        inside.select(new, g.load(0, i, Outside::Fault))
    }))
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
