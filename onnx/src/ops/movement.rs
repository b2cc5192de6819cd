//! Operators that move elements.

use egret_ir::ops::Pad;
use egret_ir::{DType, Diagnostic, Dim, Literal, ScalarValue, Shape, Tensor, Truth, Var};
use smallvec::SmallVec;

use super::Results;
use super::conv::LARGEST;
use crate::cx::Cx;
use crate::graph::single;

pub(super) fn reshape<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let own = x.shape();
    let mut dims = match cx.int_list("shape") {
        Some(list) => list.into_iter().map(Dim::from).collect(),
        None => cx.dims(1)?,
    };
    if cx.int("allowzero", 0) == 0 {
        for (i, dim) in dims.iter_mut().enumerate().filter(|(_, dim)| dim.is(0)) {
            *dim = own.get(i).cloned().ok_or_else(|| cx.error(format!("axis {i} of {own} is not there to copy")))?;
        }
    }
    single(x.reshape(dims.as_slice()))
}

pub(super) fn flatten<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let shape = x.shape();
    let axis = cx.int("axis", 1);
    let axis = if axis == shape.rank() as i64 { shape.rank() } else { cx.axis(axis, shape.rank().max(1))? };
    let product = |dims: &[Dim]| dims.iter().fold(Dim::ONE, |n, d| n * d.clone());
    single(x.reshape(Shape::from([product(&shape[..axis]), product(&shape[axis..])])))
}

pub(super) fn transpose<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let permutation = match cx.int_list("perm") {
        Some(list) => cx.axes(&list, x.rank())?,
        None => (0..x.rank()).rev().collect(),
    };
    single(x.transpose(&permutation))
}

/// Axes from an attribute, or an operand of newer opsets.
fn axes_of(cx: &Cx) -> Result<Option<Vec<i64>>, Diagnostic> {
    match cx.int_list("axes") {
        Some(list) => Ok(Some(list)),
        None => cx.ints(1),
    }
}

pub(super) fn squeeze<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let shape = x.shape();
    let axes = match axes_of(cx)? {
        Some(list) => cx.axes(&list, shape.rank())?,
        None => (0..shape.rank()).filter(|axis| shape[*axis].is(1)).collect(),
    };
    if let Some(axis) = axes.iter().find(|axis| shape[**axis].equals(&Dim::ONE) == Truth::No) {
        return Err(cx.error(format!("axis {axis} of {shape} is not 1")));
    }
    single(x.squeeze(&axes.iter().map(|a| *a as isize).collect::<Vec<isize>>()))
}

pub(super) fn unsqueeze<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let axes = axes_of(cx)?.ok_or_else(|| cx.error("has no axes"))?;
    let places = cx.axes(&axes, x.rank() + axes.len())?;
    single(x.unsqueeze(&places.iter().map(|a| *a as isize).collect::<Vec<isize>>()))
}

pub(super) fn concat<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let mut parts = Vec::new();
    for i in 0..cx.operands() {
        parts.push(cx.var(i)?);
    }
    let rank = parts.first().map_or(0, |part| part.rank());
    let axis = cx.axis(cx.int("axis", 1), rank)?;
    single(cx.t.concat(&parts, axis as isize))
}

pub(super) fn split<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let axis = cx.axis(cx.int("axis", 0), x.rank())?;
    let given = match cx.int_list("split") {
        Some(list) => Some(list.into_iter().map(Dim::from).collect()),
        None if cx.has(1) => Some(cx.dims(1)?),
        None => None,
    };
    let extents = match given {
        Some(extents) => extents,
        None => {
            let count = cx.int("num_outputs", cx.node.output.len() as i64).max(1);
            let extent = &x.shape()[axis];
            let each = extent.ceil_div(&Dim::from(count));
            let last = extent.clone() - each.clone() * Dim::from(count - 1);
            (1..count).map(|_| each.clone()).chain([last]).collect::<Vec<Dim>>()
        }
    };
    Ok(x.split(axis as isize, &extents))
}

pub(super) fn expand<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let (own, wanted) = (x.shape(), cx.dims(1)?);
    let rank = own.rank().max(wanted.len());
    let at = |dims: &[Dim], i: usize| (i + dims.len()).checked_sub(rank).map_or(Dim::ONE, |j| dims[j].clone());
    let both = |i: usize| match (at(&own, i), at(&wanted, i)) {
        (have, want) if want.is(1) => have,
        (_, want) => want,
    };
    single(x.broadcast((0..rank).map(both).collect::<Shape>()))
}

pub(super) fn tile<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let shape = x.shape();
    let repeats = cx.dims(1)?;
    if repeats.len() != shape.rank() {
        return Err(cx.error(format!("{} repeats for {shape}", repeats.len())));
    }
    let pairs = || repeats.iter().zip(shape.iter());
    let apart: Shape = pairs().flat_map(|(_, dim)| [Dim::ONE, dim.clone()]).collect();
    let wide: Shape = pairs().flat_map(|(n, dim)| [n.clone(), dim.clone()]).collect();
    let whole: Shape = pairs().map(|(n, dim)| n.clone() * dim.clone()).collect();
    single(x.reshape(apart).broadcast(wide).reshape(whole))
}

/// One bound of a slice as ONNX clamps it, for a positive step: `0..=extent`.
fn bound(at: &Dim, extent: &Dim) -> Dim {
    match at.as_const() {
        // a bound this large is how exporters write "to the end"
        Some(value) if value >= i64::from(i32::MAX) => return extent.clone(),
        Some(value) if value < 0 => {
            let from_end = extent.clone() + Dim::from(value.max(-(1 << 40)));
            return if from_end.range().0 >= 0 { from_end } else { from_end.maximum(&Dim::ZERO) };
        }
        _ => {}
    }
    if (extent.clone() - at.clone()).range().0 >= 0 { at.clone() } else { at.minimum(extent) }
}

pub(super) fn slice<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let mut x = cx.var(0)?;
    let (starts, ends) = match (cx.int_list("starts"), cx.int_list("ends")) {
        (Some(starts), Some(ends)) => {
            let dims = |list: Vec<i64>| list.into_iter().map(Dim::from).collect();
            (dims(starts), dims(ends))
        }
        _ => (cx.dims(1)?, cx.dims(2)?),
    };
    let axes = match cx.int_list("axes") {
        Some(list) => list,
        None => cx.ints(3)?.unwrap_or((0..starts.len() as i64).collect()),
    };
    let steps = cx.ints(4)?.unwrap_or(vec![1; starts.len()]);
    let axes = cx.axes(&axes, x.rank())?;
    if [starts.len(), ends.len(), steps.len()] != [axes.len(); 3] {
        return Err(cx.error("starts, ends, axes and steps differ in length"));
    }
    for (i, axis) in axes.iter().enumerate() {
        let extent = cx.made(x)?.shape()[*axis].clone();
        let place = *axis as isize;
        if steps[i] == 0 {
            return Err(cx.error("a step is 0"));
        }
        if steps[i] > 0 {
            let (start, end) = (bound(&starts[i], &extent), bound(&ends[i], &extent));
            let end = if (end.clone() - start.clone()).range().0 >= 0 { end } else { end.maximum(&start) };
            if !(start.is(0) && end == extent && steps[i] == 1) {
                x = x.slice(place, start, end, steps[i]);
            }
            continue;
        }
        // backwards: the same elements of the reversed axis; index j there is extent − 1 − j here
        let (Some(start), Some(end)) = (starts[i].as_const(), ends[i].as_const()) else {
            return Err(cx.open_extent("a slice backwards needs bounds that are numbers"));
        };
        let last = extent.clone() - Dim::ONE;
        let turned = |at: i64| match at {
            at if at < 0 => Dim::from(at.checked_neg().unwrap_or(i64::MAX).min(1 << 40) - 1),
            at => last.clone() - Dim::from(at.min(1 << 40)),
        };
        let clamp = |dim: Dim| {
            let dim = if dim.range().0 >= 0 { dim } else { dim.maximum(&Dim::ZERO) };
            if (extent.clone() - dim.clone()).range().0 >= 0 { dim } else { dim.minimum(&extent) }
        };
        let (start, end) = (clamp(turned(start)), clamp(turned(end)));
        let end = if (end.clone() - start.clone()).range().0 >= 0 { end } else { end.maximum(&start) };
        x = x.reverse(&[place]).slice(place, start, end, steps[i].saturating_neg());
    }
    single(x)
}

pub(super) fn pad<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let rank = x.rank();
    let mode = cx.text("mode", "constant");
    let (pads, value) = if cx.opset < 11 {
        let list = cx.int_list("pads").or_else(|| cx.int_list("paddings")).unwrap_or_default();
        (list.into_iter().map(Dim::from).collect(), cx.float("value", 0.0))
    } else {
        let known = cx.has(2) && cx.tensor(2).is_some();
        (cx.dims(1)?, if known { cx.number(2)?.unwrap_or(0.0) } else { 0.0 })
    };
    let varying = if cx.opset >= 11 && cx.has(2) && cx.tensor(2).is_none() { Some(cx.var(2)?) } else { None };
    let axes = match cx.ints(3)? {
        Some(list) => cx.axes(&list, rank)?,
        None => (0..rank).collect(),
    };
    if pads.iter().filter_map(Dim::as_const).any(|p| p.unsigned_abs() > LARGEST as u64) {
        return Err(cx.error("a pad is too large"));
    }
    if pads.len() != 2 * axes.len() {
        return Err(cx.error(format!("{} pads for {} axes", pads.len(), axes.len())));
    }
    let (mut low, mut high) = (vec![Dim::ZERO; rank], vec![Dim::ZERO; rank]);
    for (i, axis) in axes.iter().enumerate() {
        (low[*axis], high[*axis]) = (pads[i].clone(), pads[axes.len() + i].clone());
    }
    if mode != "constant" {
        return by_index(cx, x, &mode, &low, &high);
    }
    // negative padding cuts off
    let mut y = x;
    for axis in 0..rank {
        let cut = |pad: &Dim| pad.as_const().filter(|p| *p < 0).map_or(0, |p| -p);
        let (before, after) = (cut(&low[axis]), cut(&high[axis]));
        if before + after > 0 {
            let extent = cx.made(y)?.shape()[axis].clone();
            y = y.slice(axis as isize, before, extent - Dim::from(after), 1);
        }
    }
    let clamped = |pads: &[Dim]| -> SmallVec<[Dim; 4]> {
        pads.iter().map(|p| if p.as_const().is_some_and(|p| p < 0) { Dim::ZERO } else { p.clone() }).collect()
    };
    let value = Literal::new(ScalarValue::Float(value), x.dtype());
    let (low, high) = (clamped(&low), clamped(&high));
    let pad = Pad { low, high, interior: SmallVec::from_elem(0, rank), value };
    let Some(varying) = varying else { return single(y.then(pad, &[])) };
    // data decide what is around the elements
    let inside = cx.t.scalar(Literal::int(1, DType::Bool)).broadcast(y.shape());
    let inside = inside.then(Pad { value: Literal::int(0, DType::Bool), ..pad.clone() }, &[]);
    single(inside.select(y.then(pad, &[]), varying.reshape(Shape::scalar())))
}

/// Padding that repeats elements, as a look-up along each axis: with indices that are known now where extents are.
fn by_index<'t>(cx: &Cx<'_, 't>, x: Var<'t>, mode: &str, low: &[Dim], high: &[Dim]) -> Results<'t> {
    let mut y = x;
    for axis in 0..low.len() {
        if low[axis].is(0) && high[axis].is(0) {
            continue;
        }
        let extent = cx.made(y)?.shape()[axis].clone();
        let total = low[axis].clone() + extent.clone() + high[axis].clone();
        let (Some(low), Some(total), Some(extent)) = (low[axis].as_const(), total.as_const(), extent.as_const()) else {
            y = super::spatial::padded(cx, y, axis, &low[axis], total, mode)?;
            continue;
        };
        let total = usize::try_from(total).ok().filter(|n| extent > 0 && *n < 1 << 24);
        let Some(total) = total else { return Err(cx.error("the padding does not fit")) };
        let place = |i: usize| {
            let at = i as i64 - low;
            match mode {
                "edge" => at.clamp(0, extent - 1),
                "wrap" => at.rem_euclid(extent),
                _ => {
                    let period = (2 * (extent - 1)).max(1);
                    let at = at.rem_euclid(period);
                    if at < extent { at } else { period - at }
                }
            }
        };
        let index: Vec<i64> = (0..total).map(place).collect();
        let Some(index) = Tensor::new(&[total], &index) else { return Err(cx.error("the padding does not fit")) };
        y = y.gather(cx.t.constant(index), axis as isize);
    }
    single(y)
}

/// The block size and the extents `[n, c, h, w]`.
fn blocks(cx: &Cx, x: Var) -> Result<(Dim, [Dim; 4]), Diagnostic> {
    let size = cx.int("blocksize", 0);
    let dims: Result<[Dim; 4], _> = x.shape().to_vec().try_into();
    match dims {
        Ok(dims) if size > 0 => Ok((Dim::from(size), dims)),
        _ => Err(cx.error(format!("blocks of {size} do not fit {}", x.ty()))),
    }
}

pub(super) fn depth_to_space<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let (b, [n, c, h, w]) = blocks(cx, x)?;
    let inner = c.floor_div(&(b.clone() * b.clone()));
    let size = |dim: &Dim| dim.clone() * b.clone();
    let (apart, order) = match cx.text("mode", "DCR").as_str() {
        "CRD" => ([&n, &inner, &b, &b, &h, &w], [0, 1, 4, 2, 5, 3]),
        _ => ([&n, &b, &b, &inner, &h, &w], [0, 3, 4, 1, 5, 2]),
    };
    let apart: Shape = apart.into_iter().cloned().collect();
    single(x.reshape(apart).transpose(&order).reshape(Shape::from([n.clone(), inner.clone(), size(&h), size(&w)])))
}

pub(super) fn space_to_depth<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let (b, [n, c, h, w]) = blocks(cx, x)?;
    let (rows, columns) = (h.floor_div(&b), w.floor_div(&b));
    let apart: Shape = [&n, &c, &rows, &b, &columns, &b].into_iter().cloned().collect();
    let depth = c * b.clone() * b.clone();
    let order = if cx.text("mode", "DCR") == "CRD" { [0, 1, 3, 5, 2, 4] } else { [0, 3, 5, 1, 2, 4] };
    single(x.reshape(apart).transpose(&order).reshape(Shape::from([n, depth, rows, columns])))
}

/// The middle of each axis, or zeros around it; what is odd goes after it.
pub(super) fn center_crop_pad<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let mut x = cx.var(0)?;
    let axes = match cx.int_list("axes") {
        Some(list) => cx.axes(&list, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    let wanted = cx.dims(1)?;
    if wanted.len() != axes.len() {
        return Err(cx.error(format!("{} extents for {} axes", wanted.len(), axes.len())));
    }
    for (axis, want) in axes.into_iter().zip(wanted) {
        let extents = cx.extents(&[cx.made(x)?.shape()[axis].clone(), want])?;
        let (have, want) = (extents[0], extents[1]);
        if !(0..=LARGEST).contains(&want) {
            return Err(cx.error(format!("an extent of {want}")));
        }
        if want < have {
            x = x.narrow(axis as isize, (have - want) / 2, want);
        } else if want > have {
            let (mut low, mut high) = (vec![0; x.rank()], vec![0; x.rank()]);
            low[axis] = (want - have) / 2;
            high[axis] = want - have - low[axis];
            x = x.pad(&low, &high, 0.0);
        }
    }
    single(x)
}
