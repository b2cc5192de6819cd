//! Branches and loops.

use egret_ir::{DType, Diagnostic, Dim, Literal, Shape, Tensor, TensorType, Tracer, Var};

use super::Sources;
use crate::cx::{Cx, Source};
use crate::proto::GraphProto;

/// A loop that cannot stay one, because a value that it carries changes its type, is written out up to this many times.
const WRITTEN_OUT: i64 = 1024;

/// The one truth value in operand `i`, if it is known.
fn truth(cx: &Cx, i: usize) -> Result<Option<bool>, Diagnostic> {
    match cx.tensor(i) {
        None => Ok(None),
        Some(tensor) if tensor.elements() == 1 => Ok(Some(tensor.get(0).truthy())),
        Some(tensor) => Err(cx.error(format!("operand {i} must be one truth value, not {tensor:?}"))),
    }
}

/// The branch of a known condition, in place; else both branches, of which a run takes one.
pub(super) fn conditional<'t>(cx: &mut Cx<'_, 't>) -> Sources<'t> {
    let known = truth(cx, 0)?;
    let (then, otherwise) = (cx.graph("then_branch")?, cx.graph("else_branch")?);
    match known {
        Some(true) => return cx.body(cx.t, then, &[]),
        Some(false) => return cx.body(cx.t, otherwise, &[]),
        None => {}
    }
    let condition = cx.var(0)?.reshape(Shape::scalar());
    let failed = std::cell::RefCell::new(None);
    let run = |t: &Tracer<'t>, graph: &GraphProto| {
        cx.body(t, graph, &[]).and_then(|results| vars(cx, t, results)).unwrap_or_else(|error| {
            failed.borrow_mut().get_or_insert(error);
            Vec::new()
        })
    };
    let results = cx.t.cond(condition, |t| run(t, then), |t| run(t, otherwise));
    match failed.into_inner() {
        None => Ok(results.into_iter().map(Source::Var).collect()),
        Some(error) if error.code == "E0304" => Err(error),
        // with the condition known, one branch may do
        Some(error) => {
            cx.data_dependent(0);
            Err(Diagnostic { code: "E0304", ..error })
        }
    }
}

/// Whether a value of a body is always true: a constant, or the condition that the body is given and that is true.
fn always_true(graph: &GraphProto, name: &str, condition: &str) -> bool {
    let mut name = name;
    for _ in 0..=graph.node.len() {
        if name == condition {
            return true;
        }
        if let Some(constant) = graph.initializer.iter().find(|i| i.name == name) {
            return constant.raw_data.first().copied().map(i32::from).or(constant.int32_data.first().copied())
                == Some(1);
        }
        let Some(node) = graph.node.iter().find(|n| n.output.iter().any(|o| o == name)) else { return false };
        match (node.op_type.as_str(), node.input.first()) {
            ("Identity", Some(source)) => name = source,
            ("Constant", _) => {
                let value = node.attribute.iter().find(|a| a.name == "value").and_then(|a| a.t.as_ref());
                let bits = |t: &crate::proto::TensorProto| t.raw_data.first().copied().map(i32::from);
                return value.and_then(|t| bits(t).or(t.int32_data.first().copied())) == Some(1);
            }
            _ => return false,
        }
    }
    false
}

/// Results of a body, as nodes of its graph.
fn vars<'t>(cx: &Cx<'_, 't>, t: &Tracer<'t>, sources: Vec<Source<'t>>) -> Result<Vec<Var<'t>>, Diagnostic> {
    sources.into_iter().map(|source| cx.node_in(t, source)).collect()
}

/// A loop whose number of trips is known in terms of symbols is a scan; one that carries values of changing types is
/// written out when the number is known.
pub(super) fn counted<'t>(cx: &mut Cx<'_, 't>) -> Sources<'t> {
    let graph = cx.graph("body")?;
    let carried = cx.node.input.len().saturating_sub(2);
    let (trip, condition) = match graph.input.as_slice() {
        [trip, condition, rest @ ..] if rest.len() == carried => (&trip.name, &condition.name),
        inputs => {
            return Err(cx.error(format!("the body takes {} values for {carried} that are carried", inputs.len())));
        }
    };
    if graph.output.len() < carried + 1 || trip == condition {
        return Err(cx.error(format!("the body gives {} values for {carried} that are carried", graph.output.len())));
    }
    let trips = match (cx.has(0), cx.known(0)) {
        (false, _) => None,
        (true, Some(known)) => known.dims.into_iter().next(),
        (true, None) => None,
    };
    let starts = if cx.has(1) { truth(cx, 1)? } else { Some(true) };
    let trips = match (starts, trips) {
        (Some(false), _) => Dim::ZERO,
        (Some(true), Some(trips)) if always_true(graph, &graph.output[0].name, condition) => trips,
        (starts, trips) => return looped(cx, graph, carried, starts, trips),
    };
    let trips = if trips.range().0 < 0 { trips.maximum(&Dim::ZERO) } else { trips };
    let mut carries: Vec<Source<'t>> = Vec::with_capacity(carried);
    for i in 0..carried {
        carries.push(cx.source(i + 2)?.clone());
    }
    let yes = || Source::Const(Tensor::splat(Literal::int(1, DType::Bool), &[]));
    let init = vars(cx, cx.t, carries.clone())?;
    let index = cx.t.iota(TensorType { dtype: DType::I64, shape: Shape::from([trips.clone()]) }, 0);
    let mut failed = None;
    let (last, ys) = cx.t.scan_of(trips.clone(), false, &init, &[index], |t, carries, slices| {
        let operands = [Source::Var(slices[0]), yes()].into_iter().chain(carries.iter().copied().map(Source::Var));
        let operands: Vec<Source> = operands.collect();
        let step = cx.body(t, graph, &operands).and_then(|results| vars(cx, t, results));
        match step {
            Ok(results) if fits(&results[1..=carried], carries) => {
                (results[1..=carried].to_vec(), results[carried + 1..].to_vec())
            }
            Ok(_) => {
                failed = Some(cx.unsupported("a carried value changes its type from trip to trip"));
                (carries.to_vec(), Vec::new())
            }
            Err(error) => {
                failed = Some(error);
                (carries.to_vec(), Vec::new())
            }
        }
    });
    let Some(error) = failed else { return Ok(last.into_iter().chain(ys).map(Source::Var).collect()) };
    match trips.as_const() {
        Some(n) if (1..=WRITTEN_OUT).contains(&n) && matches!(error.code, "E0304" | "E0310") => {}
        _ => return Err(error),
    }
    let mut stacks: Vec<Vec<Var<'t>>> = vec![Vec::new(); graph.output.len() - carried - 1];
    for i in 0..trips.as_const().unwrap_or(0) {
        let index = Source::Const(Tensor::scalar(Literal::int(i, DType::I64)));
        let operands: Vec<Source> = [index, yes()].into_iter().chain(carries).collect();
        let mut results = cx.body(cx.t, graph, &operands)?.into_iter().skip(1);
        carries = results.by_ref().take(carried).collect();
        for (stack, y) in stacks.iter_mut().zip(results) {
            stack.push(cx.node_of(y)?.unsqueeze(&[0]));
        }
    }
    let ys = stacks.iter().map(|stack| Source::Var(cx.t.concat(stack, 0)));
    Ok(carries.into_iter().chain(ys).collect())
}

/// A loop that data end: its number of trips, or its condition, is known in the run alone.
fn looped<'t>(
    cx: &mut Cx<'_, 't>,
    graph: &GraphProto,
    carried: usize,
    starts: Option<bool>,
    bound: Option<Dim>,
) -> Sources<'t> {
    if bound.is_none() && graph.output.len() > carried + 1 {
        // memory for what it stacks is set aside by the number of trips
        (0..2).filter(|i| cx.has(*i)).for_each(|i| cx.wish(i));
    }
    let scalar = |dtype: DType, value: i64| cx.t.scalar(Literal::int(value, dtype));
    let mut init = vec![scalar(DType::I64, 0)];
    init.push(match starts {
        Some(starts) => scalar(DType::Bool, i64::from(starts)),
        None => cx.var(1)?.reshape(Shape::scalar()),
    });
    let most = if cx.has(0) { Some(cx.var(0)?.cast(DType::I64).reshape(Shape::scalar())) } else { None };
    for i in 0..carried {
        init.push(cx.var(i + 2)?);
    }
    let mut failed = None;
    let (last, _, ys) = cx.t.while_loop(
        bound,
        &init,
        |_, carries| match most {
            Some(most) => carries[0].less(most).logical_and(carries[1]),
            // the value itself, made in this graph
            None => carries[1].logical_and(carries[1]),
        },
        |t, carries| {
            let operands = carries.iter().copied().map(Source::Var).collect::<Vec<Source>>();
            let kept = || (carries.to_vec(), Vec::new());
            match cx.body(t, graph, &operands).and_then(|results| vars(cx, t, results)) {
                Ok(results) => {
                    let condition = results[0].reshape(Shape::scalar());
                    let next: Vec<Var> = [carries[0] + 1i64, condition]
                        .into_iter()
                        .chain(results[1..=carried].iter().copied())
                        .collect();
                    if fits(&next, carries) {
                        return (next, results[carried + 1..].to_vec());
                    }
                    failed = Some(cx.unsupported("a carried value changes its type from trip to trip"));
                    kept()
                }
                Err(error) => {
                    failed = Some(error);
                    kept()
                }
            }
        },
    );
    let Some(error) = failed else { return Ok(last.into_iter().skip(2).chain(ys).map(Source::Var).collect()) };
    // with the operands known the loop may be written out
    for i in 0..2 {
        if cx.has(i) && cx.tensor(i).is_none() {
            cx.data_dependent(i);
        }
    }
    Err(if error.code == "E0310" { Diagnostic { code: "E0304", ..error } } else { error })
}

/// Whether values have the types of those that they replace, as far as symbols tell.
fn fits(next: &[Var], carries: &[Var]) -> bool {
    let same = |(a, b): (&Var, &Var)| {
        let (a, b) = (a.ty(), b.ty());
        let equal = |(a, b): (&Dim, &Dim)| a.equals(b) != egret_ir::Truth::No;
        a.dtype == b.dtype && a.shape.rank() == b.shape.rank() && a.shape.iter().zip(b.shape.iter()).all(equal)
    };
    next.len() == carries.len() && next.iter().zip(carries).all(same)
}

/// A list of 0 and 1, or of axes: `n` entries, `default` where absent.
fn list(cx: &Cx, name: &str, n: usize) -> Result<Vec<i64>, Diagnostic> {
    let list = cx.int_list(name).filter(|list| !list.is_empty()).unwrap_or(vec![0; n]);
    if list.len() == n { Ok(list) } else { Err(cx.error(format!("{name} has {} entries, not {n}", list.len()))) }
}

/// An axis moved to another place; the rest keep their order.
fn moved<'t>(x: Var<'t>, from: usize, to: usize) -> Var<'t> {
    if from == to {
        return x;
    }
    let mut order: Vec<usize> = (0..x.rank()).filter(|axis| *axis != from).collect();
    order.insert(to.min(order.len()), from);
    x.transpose(&order)
}

/// Slices of operands along an axis, in either direction; before opset 9 for each element of a batch.
pub(super) fn scan<'t>(cx: &mut Cx<'_, 't>) -> Sources<'t> {
    let batched = cx.opset < 9;
    if batched && cx.has(0) {
        return Err(cx.unsupported("the lengths of sequences"));
    }
    let first = usize::from(batched);
    let total = cx.node.input.len().saturating_sub(first);
    let graph = cx.graph("body")?;
    let scanned = usize::try_from(cx.int("num_scan_inputs", 0)).ok().filter(|n| *n > 0 && *n <= total);
    let scanned = scanned.ok_or_else(|| cx.error(format!("the number of scanned operands is not in 1..={total}")))?;
    let carried = total - scanned;
    let Some(stacked) = graph.output.len().checked_sub(carried) else {
        return Err(cx.error(format!("the body gives {} values for {carried} that are carried", graph.output.len())));
    };
    let mut operands = Vec::with_capacity(total);
    for i in 0..total {
        operands.push(cx.var(i + first)?);
    }
    let directions = list(cx, if batched { "directions" } else { "scan_input_directions" }, scanned)?;
    let step = |cx: &Cx<'_, 't>, t: &Tracer<'t>, values: Vec<Source<'t>>| vars(cx, t, cx.body(t, graph, &values)?);
    let mut failed = None;
    if batched {
        let batch = operands.first().and_then(|x| x.shape().first().cloned()).unwrap_or(Dim::ZERO);
        let (_, ys) = cx.t.scan_of(batch, false, &[], &operands, |t, _, values| {
            let (init, xs) = values.split_at(carried);
            let xs: Vec<Var> = xs.iter().zip(&directions).map(|(x, d)| turned(*x, *d)).collect();
            let (last, ys) = over(cx, t, init, &xs, &step, &mut failed);
            (Vec::new(), last.into_iter().chain(ys).collect())
        });
        return failed.map_or(Ok(ys.into_iter().map(Source::Var).collect()), Err);
    }
    let axes = list(cx, "scan_input_axes", scanned)?;
    let mut xs = Vec::with_capacity(scanned);
    for (i, x) in operands[carried..].iter().enumerate() {
        let axis = cx.axis(axes[i], x.rank())?;
        xs.push(turned(moved(*x, axis, 0), directions[i]));
    }
    let (last, ys) = over(cx, cx.t, &operands[..carried], &xs, &step, &mut failed);
    if let Some(error) = failed {
        return Err(error);
    }
    let (axes, directions) = (list(cx, "scan_output_axes", stacked)?, list(cx, "scan_output_directions", stacked)?);
    let mut results: Vec<Source> = last.into_iter().map(Source::Var).collect();
    for (i, y) in ys.into_iter().enumerate() {
        let axis = cx.axis(axes[i], y.rank())?;
        results.push(Source::Var(moved(turned(y, directions[i]), 0, axis)));
    }
    Ok(results)
}

fn turned<'t>(x: Var<'t>, direction: i64) -> Var<'t> {
    if direction == 0 { x } else { x.reverse(&[0]) }
}

/// Runs a body, on sources, in a graph.
type Step<'s, 't> = &'s dyn Fn(&Cx<'_, 't>, &Tracer<'t>, Vec<Source<'t>>) -> Result<Vec<Var<'t>>, Diagnostic>;

/// One scan over the leading axes of `xs`.
fn over<'t>(
    cx: &Cx<'_, 't>,
    t: &Tracer<'t>,
    init: &[Var<'t>],
    xs: &[Var<'t>],
    step: Step<'_, 't>,
    failed: &mut Option<Diagnostic>,
) -> (Vec<Var<'t>>, Vec<Var<'t>>) {
    let length = xs.first().and_then(|x| x.shape().first().cloned()).unwrap_or(Dim::ZERO);
    t.scan_of(length, false, init, xs, |t, carries, slices| {
        let values = carries.iter().chain(slices).copied().map(Source::Var).collect();
        match step(cx, t, values) {
            Ok(results) if fits(&results[..carries.len()], carries) => {
                (results[..carries.len()].to_vec(), results[carries.len()..].to_vec())
            }
            Ok(_) => {
                *failed = Some(cx.error("a carried value changes its type"));
                (carries.to_vec(), Vec::new())
            }
            Err(error) => {
                *failed = Some(error);
                (carries.to_vec(), Vec::new())
            }
        }
    })
}
