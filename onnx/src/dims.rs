//! Arithmetic on shapes, done while importing.

use egret_ir::{Dim, Literal, ScalarValue, Tensor, Truth};

use crate::cx::{Cx, Known, Source};

/// The value of a node that only computes with sizes.
pub(crate) fn fold<'t>(cx: &Cx<'_, 't>) -> Option<Source<'t>> {
    let symbolic = (0..cx.node.input.len()).any(|i| matches!(cx.source(i), Ok(Source::Dims(_))));
    let vector = |dims: Vec<Dim>| Known { dims, scalar: false, dtype: egret_ir::DType::I64 };
    let known = match cx.node.op_type.as_str() {
        "Shape" => {
            let shape = cx.shape(0).ok()?;
            let rank = shape.rank() as i64;
            let place = |at: i64| (if at < 0 { at + rank } else { at }).clamp(0, rank) as usize;
            let (start, end) = (place(cx.int("start", 0)), place(cx.int("end", rank)));
            vector(shape.get(start..end.max(start))?.to_vec())
        }
        "Size" => Known { scalar: true, ..vector(vec![cx.shape(0).ok()?.elements()]) },
        _ if !symbolic => return None,
        "Identity" => cx.known(0)?,
        "Cast" => {
            let dtype = crate::dtype(cx.int("to", 0) as i32).ok().filter(|d| d.is_int())?;
            Known { dtype, ..cx.known(0)? }
        }
        "Gather" => {
            let (data, indices) = (cx.known(0)?, cx.known(1)?);
            let n = data.dims.len() as i64;
            let pick = |i: &Dim| {
                let i = i.as_const()?;
                data.dims.get(usize::try_from(if i < 0 { i + n } else { i }).ok()?).cloned()
            };
            let dims: Option<Vec<Dim>> = indices.dims.iter().map(pick).collect();
            Known { dims: dims?, scalar: indices.scalar, dtype: data.dtype }
        }
        "Unsqueeze" => {
            let data = cx.known(0).filter(|k| k.scalar)?;
            let axes = cx.int_list("axes").or_else(|| cx.ints(1).ok().flatten())?;
            (axes.len() == 1).then_some(Known { scalar: false, ..data })?
        }
        "Squeeze" => cx.known(0).filter(|k| k.dims.len() == 1).map(|k| Known { scalar: true, ..k })?,
        "Reshape" => {
            let data = cx.known(0)?;
            match cx.ints(1).ok().flatten()?.as_slice() {
                [] if data.dims.len() == 1 => Known { scalar: true, ..data },
                [n] if *n == -1 || *n == data.dims.len() as i64 => Known { scalar: false, ..data },
                _ => return None,
            }
        }
        "Concat" => {
            let parts: Option<Vec<Known>> = (0..cx.operands()).map(|i| cx.known(i)).collect();
            let parts = parts?;
            let dtype = parts.first()?.dtype;
            Known { dims: parts.into_iter().flat_map(|p| p.dims).collect(), scalar: false, dtype }
        }
        "Slice" => slice(cx)?,
        "Add" => zip(cx, |a, b| Some(a.clone() + b.clone()))?,
        "Sub" => zip(cx, |a, b| Some(a.clone() - b.clone()))?,
        "Mul" => zip(cx, |a, b| Some(a.clone() * b.clone()))?,
        "Div" => zip(cx, |a, b| (a.range().0 >= 0 && b.range().0 > 0).then(|| a.floor_div(b)))?,
        "Mod" => zip(cx, |a, b| (a.range().0 >= 0 && b.range().0 > 0).then(|| a.modulo(b)))?,
        "Max" if cx.operands() == 2 => zip(cx, |a, b| Some(a.maximum(b)))?,
        "Min" if cx.operands() == 2 => zip(cx, |a, b| Some(a.minimum(b)))?,
        "ReduceProd" => total(cx, |a, b| a * b)?,
        "ReduceSum" => total(cx, |a, b| a + b)?,
        "Equal" => return decide(cx, |a, b| a.equals(b)),
        "Less" => return decide(cx, |a, b| below(&(a.clone() - b.clone()), 0)),
        "Greater" => return decide(cx, |a, b| below(&(b.clone() - a.clone()), 0)),
        "LessOrEqual" => return decide(cx, |a, b| below(&(a.clone() - b.clone()), 1)),
        "GreaterOrEqual" => return decide(cx, |a, b| below(&(b.clone() - a.clone()), 1)),
        "Where" => {
            let condition = cx.tensor(0)?;
            let (yes, no) = (cx.known(1)?, cx.known(2)?);
            let n = [condition.elements(), yes.dims.len(), no.dims.len()].into_iter().max()?;
            let at = |k: &Known, i: usize| k.dims.get(if k.dims.len() == 1 { 0 } else { i }).cloned();
            let truth = |i: usize| condition.values().nth(if condition.elements() == 1 { 0 } else { i });
            let dims: Option<Vec<Dim>> =
                (0..n).map(|i| if truth(i)?.truthy() { at(&yes, i) } else { at(&no, i) }).collect();
            Known { dims: dims?, scalar: condition.shape().is_empty() && yes.scalar && no.scalar, dtype: yes.dtype }
        }
        _ => return None,
    };
    Some(match known.constant() {
        Some(tensor) => Source::Const(tensor),
        None => Source::Dims(known),
    })
}

/// Whether a size is below a bound for every binding, or for none.
fn below(dim: &Dim, bound: i64) -> Truth {
    match dim.range() {
        (_, high) if high < bound => Truth::Yes,
        (low, _) if low >= bound => Truth::No,
        _ => Truth::Unknown,
    }
}

fn pairs(cx: &Cx) -> Option<(Vec<(Dim, Dim)>, bool, egret_ir::DType)> {
    let (a, b) = (cx.known(0)?, cx.known(1)?);
    let n = match (a.dims.len(), b.dims.len()) {
        (n, m) if n == m || m == 1 => n,
        (1, m) => m,
        _ => return None,
    };
    let at = |k: &Known, i: usize| k.dims[if k.dims.len() == 1 { 0 } else { i }].clone();
    Some(((0..n).map(|i| (at(&a, i), at(&b, i))).collect(), a.scalar && b.scalar, a.dtype))
}

fn zip(cx: &Cx, f: impl Fn(&Dim, &Dim) -> Option<Dim>) -> Option<Known> {
    let (pairs, scalar, dtype) = pairs(cx)?;
    let dims: Option<Vec<Dim>> = pairs.iter().map(|(a, b)| f(a, b)).collect();
    Some(Known { dims: dims?, scalar, dtype })
}

fn decide<'t>(cx: &Cx<'_, 't>, f: impl Fn(&Dim, &Dim) -> Truth) -> Option<Source<'t>> {
    let (pairs, scalar, _) = pairs(cx)?;
    let shape: &[usize] = if scalar { &[] } else { &[pairs.len()] };
    let mut tensor = Tensor::splat(Literal::int(0, egret_ir::DType::Bool), shape);
    for (i, (a, b)) in pairs.iter().enumerate() {
        match f(a, b) {
            Truth::Yes => tensor.set(i, ScalarValue::Bool(true)),
            Truth::No => {}
            Truth::Unknown => return None,
        }
    }
    Some(Source::Const(tensor))
}

fn total(cx: &Cx, f: impl Fn(Dim, Dim) -> Dim) -> Option<Known> {
    let data = cx.known(0).filter(|k| !k.scalar)?;
    let scalar = cx.int("keepdims", 1) == 0;
    let all = data.dims.into_iter().reduce(f)?;
    Some(Known { dims: vec![all], scalar, dtype: data.dtype })
}

fn slice(cx: &Cx) -> Option<Known> {
    let data = cx.known(0).filter(|k| !k.scalar)?;
    let one = |name: &str, i: usize| {
        let list = cx.int_list(name).or_else(|| cx.ints(i).ok().flatten());
        list.map(|l| (l.len() == 1).then(|| l[0]))
    };
    let (start, end) = (one("starts", 1)??, one("ends", 2)??);
    let step = match one("steps", 4) {
        None => 1,
        Some(step) => step?,
    };
    let n = data.dims.len() as i64;
    let place = |at: i64| (if at < 0 { at.saturating_add(n) } else { at }).clamp(0, n) as usize;
    let step = usize::try_from(step).ok().filter(|s| *s > 0)?;
    let (start, end) = (place(start), place(end));
    let dims = data.dims.get(start..end.max(start))?.iter().step_by(step).cloned().collect();
    Some(Known { dims, ..data })
}
