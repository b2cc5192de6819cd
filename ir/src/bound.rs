//! Running error bounds: the interpreter's values, each with a bound on how far another correct evaluation may be.
//!
//! The bound is a first-order forward error analysis (Higham, *Accuracy and Stability of Numerical Algorithms*, ch. 3): it
//! holds for any evaluation that rounds each primitive to within a unit in the last place of its element type (of `f32`
//! where that is a half, whose results then round once more) and sums in any order.

use std::borrow::Cow;

use crate::bind;
use crate::diagnostic::Diagnostic;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError, Tensors};
use crate::graph::{Graph, NodeId};
use crate::interpret::{InterpretError, NodeError, learn};
use crate::ops::{Fused, NormKind, Op, Pad, ReduceKind, ScatterKind, WindowKind};
use crate::scalar::{ExprKind, Literal, ScalarExpr, ScalarFn, ScalarValue};
use crate::tensor::Tensor;

/// A value of the interpreter and bounds on the error of its elements.
#[derive(Clone, Debug)]
pub struct Bounded {
    /// The value.
    pub value: Tensor,
    /// By element: how far another evaluation may be; infinite where nothing is known.
    pub error: Vec<f64>,
}

/// Runs a graph without gradients or states, as [`interpret`](crate::interpret) does, with bounds on its results by name.
///
/// # Errors
/// Those of the interpreter.
pub fn interpret_bounded(graph: &Graph, inputs: &Tensors) -> Result<Vec<(String, Bounded)>, InterpretError> {
    let states = Tensors::new();
    let bindings = bind::bind(graph, inputs, &states).map_err(|e: Diagnostic| InterpretError::Bind(Box::new(e)))?;
    let cx = EvalCx { bindings: &bindings, inputs, states: &states, weights: &graph.weights };
    let live = graph.live();
    let mut bindings = Cow::Borrowed(&bindings);
    let mut values: Vec<Vec<Bounded>> = vec![Vec::new(); graph.nodes().len()];
    for (id, node) in graph.iter().filter(|(id, _)| live[id.index()]) {
        let operands: Vec<&Bounded> = node.operands.iter().flat_map(|o| &values[o.index()]).collect();
        let failed = |error| {
            let origin = graph.origins(id).iter().map(|o| (**o).clone()).collect();
            InterpretError::Node(Box::new(NodeError { node: id, op: node.op.home().name(), origin, error }))
        };
        let cx = EvalCx { bindings: &bindings, ..cx };
        let results = evaluate(&node.op, &operands, &cx).map_err(failed)?;
        let parts: Vec<Tensor> = results.iter().map(|part| part.value.clone()).collect();
        learn(&node.ty, &parts, &mut bindings).map_err(failed)?;
        values[id.index()] = results;
    }
    let of = |id: NodeId| values[id.index()].first().cloned();
    Ok(graph.outputs().iter().filter_map(|(name, id)| Some((name.clone(), of(*id)?))).collect())
}

fn evaluate(op: &Op, operands: &[&Bounded], cx: &EvalCx) -> Result<Vec<Bounded>, EvalError> {
    if let Op::Fused(fused) = op
        && fused.taps.is_empty()
    {
        return Ok(vec![absorbed(fused, operands, cx)?]);
    }
    let given: Vec<Tensor> = operands.iter().map(|o| o.value.clone()).collect();
    let results = op.home().eval(&given, cx)?;
    results
        .into_iter()
        .enumerate()
        .map(|(part, value)| {
            let error = if part == 0 { error(op, operands, &value, cx)? } else { None };
            let error = error.unwrap_or_else(|| vec![f64::INFINITY; value.elements()]);
            Ok(Bounded { value, error })
        })
        .collect()
}

/// An anchor, then each step of its programs as the operator that it was.
fn absorbed(fused: &Fused, operands: &[&Bounded], cx: &EvalCx) -> Result<Bounded, EvalError> {
    let (bases, extras, own) = fused.split(operands);
    let first = |results: Vec<Bounded>| {
        results.into_iter().next().ok_or_else(|| EvalError::Operands("the anchor has no result".into()))
    };
    let map = |program: &ScalarExpr, value: &Bounded, extras: &[&Bounded]| -> Result<Bounded, EvalError> {
        let shape = value.value.shape().iter().map(|n| (*n).into()).collect();
        let args: Vec<&Bounded> = std::iter::once(value).chain(extras.iter().copied()).collect();
        let result = program_of(program, &args, cx)?;
        first(evaluate(&crate::ops::Broadcast { shape }.into(), &[&result], cx)?)
    };
    let apply = |program: &ScalarExpr, value: Bounded| map(program, &value, extras);
    let mut value = match (&fused.prologue, bases) {
        (Some(prologue), [operand, rest @ ..]) => {
            let read = map(&prologue.program, operand, own)?;
            let read: Vec<&Bounded> = std::iter::once(&read).chain(rest.iter().copied()).collect();
            first(evaluate(&fused.anchor, &read, cx)?)?
        }
        _ => first(evaluate(&fused.anchor, bases, cx)?)?,
    };
    value = apply(&fused.epilogue, value)?;
    if let Some((rows, finish)) = &fused.rows {
        value = first(evaluate(rows, &[&value], cx)?)?;
        value = apply(finish, value)?;
    }
    Ok(value)
}

/// A scalar program on whole tensors; its depth is bounded by what an anchor may absorb.
fn program_of(program: &ScalarExpr, args: &[&Bounded], cx: &EvalCx) -> Result<Bounded, EvalError> {
    let step = |op: Op, operands: &[&Bounded]| {
        let results = evaluate(&op, operands, cx)?;
        results.into_iter().next().ok_or_else(|| EvalError::Operands("a step has no result".into()))
    };
    match program.kind() {
        ExprKind::Arg(i) => match args.get(usize::from(*i)) {
            Some(arg) => Ok((*arg).clone()),
            None => Err(EvalError::Operands(format!("there is no operand {i}"))),
        },
        ExprKind::Const(literal) => Ok(Bounded { value: Tensor::scalar(*literal), error: vec![0.0] }),
        ExprKind::Cast(dtype, inner) => {
            step(crate::ops::Cast { dtype: *dtype }.into(), &[&program_of(inner, args, cx)?])
        }
        ExprKind::Apply(f, operands) => {
            let values: Vec<Bounded> =
                operands.iter().map(|o| program_of(o, args, cx)).collect::<Result<_, EvalError>>()?;
            step(crate::ops::Pointwise { f: *f }.into(), &values.iter().collect::<Vec<_>>())
        }
    }
}

/// Half the distance from 1 to the next number.
fn unit(dtype: DType) -> f64 {
    2f64.powi(match dtype {
        DType::F16 => -11,
        DType::BF16 => -8,
        DType::F32 => -24,
        DType::F64 => -53,
        _ => return 0.0,
    })
}

/// Half the least positive number.
fn least(dtype: DType) -> f64 {
    2f64.powi(match dtype {
        DType::F16 => -25,
        DType::BF16 => -134,
        DType::F32 => -150,
        DType::F64 => -1074,
        _ => return 0.0,
    })
}

/// The type in which halves are computed.
fn computed(dtype: DType) -> DType {
    if unit(dtype) > unit(DType::F32) { DType::F32 } else { dtype }
}

/// The error of rounding a result.
fn rounding(dtype: DType, value: f64) -> f64 {
    unit(dtype) * value.abs() + least(dtype)
}

/// Elements as magnitudes, errors as a tensor, and ones, all of `f64` and of one shape.
struct Parts {
    size: Tensor,
    error: Tensor,
    ones: Tensor,
}

fn tensor(like: &Tensor, elements: impl Iterator<Item = f64>) -> Tensor {
    let mut tensor = Tensor::zeros(DType::F64, like.shape());
    elements.enumerate().for_each(|(i, v)| tensor.set(i, ScalarValue::Float(v)));
    tensor
}

fn parts(of: &Bounded) -> Parts {
    Parts {
        size: tensor(&of.value, of.value.values().map(|v| v.as_f64().abs())),
        error: tensor(&of.value, of.error.iter().copied()),
        ones: tensor(&of.value, of.error.iter().map(|_| 1.0)),
    }
}

/// Bounds for the first result of an operator; `None` where there is no rule.
fn error(op: &Op, operands: &[&Bounded], result: &Tensor, cx: &EvalCx) -> Result<Option<Vec<f64>>, EvalError> {
    let dtype = result.dtype();
    let eval = |op: &Op, operands: &[Tensor]| -> Result<Vec<f64>, EvalError> {
        let results = op.home().eval(operands, cx)?;
        Ok(results.first().map_or_else(Vec::new, |t| t.values().map(ScalarValue::as_f64).collect()))
    };
    let size = |i: usize| result.get(i).as_f64().abs();
    // a sum of `count` terms of all sizes `total`, whose own errors sum to `carried`
    let summed = |carried: Vec<f64>, count: Vec<f64>, total: Vec<f64>| -> Vec<f64> {
        let u = unit(computed(dtype));
        let each = carried.into_iter().zip(count).zip(total).enumerate();
        each.map(|(i, ((e, n), t))| e + 2.0 * n * u * t + rounding(dtype, size(i))).collect()
    };
    Ok(Some(match op {
        Op::Input(_) | Op::Param(_) | Op::Const(_) | Op::Iota(_) => vec![0.0; result.elements()],
        Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice(_) | Op::Reverse(_) | Op::Concat(_) => {
            let errors: Vec<Tensor> = operands.iter().map(|o| parts(o).error).collect();
            eval(op, &errors)?
        }
        Op::Gather(_) => eval(op, &[parts(operands[0]).error, operands[1].value.clone()])?,
        Op::Pad(pad) => {
            let zeros: Op = Pad { value: Literal::float(0.0, DType::F64), ..(**pad).clone() }.into();
            eval(&zeros, &[parts(operands[0]).error])?
        }
        Op::Cast(cast) => {
            let x = operands[0];
            let each = x.value.values().zip(&x.error);
            each.map(|(v, e)| converted(v, *e, cast.dtype)).collect()
        }
        Op::Pointwise(pointwise) => return elementwise(pointwise.f, operands, result, cx).map(Some),
        Op::Reduce(reduce) => {
            let x = parts(operands[0]);
            match reduce.kind {
                ReduceKind::Max | ReduceKind::Min => {
                    eval(&crate::ops::Reduce { kind: ReduceKind::Max, ..(**reduce).clone() }.into(), &[x.error])?
                }
                ReduceKind::Sum | ReduceKind::Mean => {
                    let count = eval(
                        &crate::ops::Reduce { kind: ReduceKind::Sum, ..(**reduce).clone() }.into(),
                        std::slice::from_ref(&x.ones),
                    )?;
                    summed(eval(op, &[x.error])?, count, eval(op, &[x.size])?)
                }
                ReduceKind::Prod => return Ok(None),
            }
        }
        Op::ReduceWindow(window) => {
            let x = parts(operands[0]);
            match window.kind {
                WindowKind::Max => eval(op, &[x.error])?,
                _ => {
                    let sum = crate::ops::ReduceWindow { kind: WindowKind::Sum, ..(**window).clone() }.into();
                    let count = eval(&sum, std::slice::from_ref(&x.ones))?;
                    summed(eval(op, &[x.error])?, count, eval(op, &[x.size])?)
                }
            }
        }
        Op::ReduceWindowGrad(grad) => {
            let (x, dy) = (operands[0], parts(operands[1]));
            if grad.kind == WindowKind::Max && x.error.iter().any(|e| *e > 0.0) {
                // elsewhere the maximum may be another element
                return Ok(None);
            }
            let x = tensor(&x.value, x.value.values().map(ScalarValue::as_f64));
            let of_all = crate::ops::ReduceWindowGrad { kind: WindowKind::Sum, ..(**grad).clone() }.into();
            let on = |op: &Op, dy: Tensor| eval(op, &[x.clone(), dy]);
            summed(on(op, dy.error)?, on(&of_all, dy.ones)?, on(op, dy.size)?)
        }
        Op::DotGeneral(_) | Op::Conv(_) => {
            let (a, b) = (parts(operands[0]), parts(operands[1]));
            let reach = tensor(&a.size, a.size.values().zip(a.error.values()).map(|(x, e)| x.as_f64() + e.as_f64()));
            let by_a = eval(op, &[a.error, b.size.clone()])?;
            let by_b = eval(op, &[reach, b.error])?;
            let carried = by_a.into_iter().zip(by_b).map(|(a, b)| a + b).collect();
            summed(carried, eval(op, &[a.ones, b.ones])?, eval(op, &[a.size, b.size])?)
        }
        Op::Scatter(scatter) if scatter.kind == ScatterKind::Add => {
            let (x, index, updates) = (parts(operands[0]), &operands[1].value, parts(operands[2]));
            let on = |x: Tensor, updates: Tensor| eval(op, &[x, index.clone(), updates]);
            summed(on(x.error, updates.error)?, on(x.ones, updates.ones)?, on(x.size, updates.size)?)
        }
        Op::Softmax(softmax) => {
            let x = operands[0];
            rows(result, softmax.axis, softmax.axis + 1, |row| {
                let most = row.iter().fold(0.0, |m: f64, i| m.max(x.error[*i]));
                let u = unit(computed(dtype));
                let n = row.len() as f64;
                row.iter()
                    .map(|i| {
                        let sum = 2.0 * most + (2.0 * n + 8.0) * u;
                        let size = result.get(*i).as_f64().abs();
                        let own = if softmax.log {
                            sum + 8.0 * u * (size + x.value.get(*i).as_f64().abs())
                        } else {
                            size * sum.exp_m1() + least(computed(dtype))
                        };
                        own + rounding(dtype, size)
                    })
                    .collect()
            })
        }
        Op::Norm(norm) => {
            let x = operands[0];
            rows(result, norm.axis, result.shape().len(), |row| normalised(x, row, norm.kind, norm.eps.get(), dtype))
        }
        _ => return Ok(None),
    }))
}

/// Bounds by row: `f` gets the places of the elements of a row over the axes `from..to`.
fn rows(like: &Tensor, from: usize, to: usize, f: impl Fn(&[usize]) -> Vec<f64>) -> Vec<f64> {
    let shape = like.shape();
    let inner: usize = shape[to..].iter().product();
    let length: usize = shape[from..to].iter().product();
    let mut errors = vec![0.0; like.elements()];
    let rows = like.elements() / length.max(1);
    for row in 0..rows {
        let first = row / inner * length * inner + row % inner;
        let places: Vec<usize> = (0..length).map(|i| first + i * inner).collect();
        places.iter().zip(f(&places)).for_each(|(place, e)| errors[*place] = e);
    }
    errors
}

/// `(x − mean) / √(var + eps)`: the error of the difference, and the relative one of the scale.
fn normalised(x: &Bounded, row: &[usize], kind: NormKind, eps: f64, dtype: DType) -> Vec<f64> {
    let u = unit(computed(dtype));
    let n = row.len() as f64;
    let value = |i: &usize| x.value.get(*i).as_f64();
    let mean_of = |f: &dyn Fn(&usize) -> f64| row.iter().map(f).sum::<f64>() / n;
    let layer = kind == NormKind::Layer;
    let mean = if layer { mean_of(&value) } else { 0.0 };
    let mean_error =
        if layer { mean_of(&|i| x.error[*i]) + 2.0 * (n + 1.0) * u * mean_of(&|i| value(i).abs()) } else { 0.0 };
    let off = |i: &usize| value(i) - mean;
    let off_error = |i: &usize| x.error[*i] + mean_error + 2.0 * u * (value(i).abs() + mean.abs());
    let variance = mean_of(&|i| off(i) * off(i)) + eps;
    let variance_error =
        mean_of(&|i| 2.0 * off(i).abs() * off_error(i) + off_error(i).powi(2)) + 2.0 * (n + 2.0) * u * variance;
    let scale = 1.0 / variance.sqrt();
    // d(v^-½)/dv = −½ v^-½ / v, at the least variance that there may be
    let scale_error = match variance - variance_error {
        least if least > 0.0 => 0.5 * variance_error / least / least.sqrt() + 4.0 * u * scale,
        _ => f64::INFINITY,
    };
    let bound = |i: &usize| {
        let own = off_error(i) * (scale + scale_error) + off(i).abs() * scale_error;
        own + 2.0 * u * (off(i) * scale).abs() + rounding(dtype, off(i) * scale)
    };
    row.iter().map(bound).collect()
}

/// A conversion's error; a truth value's is 0, or 1 where it is open.
fn converted(value: ScalarValue, error: f64, to: DType) -> f64 {
    let x = value.as_f64();
    if to == DType::Bool {
        return f64::from(u8::from(error > 0.0 && x.abs() <= error));
    }
    if to.is_float() {
        let exact = value.cast(to).as_f64() == x;
        return error + if exact && error == 0.0 { 0.0 } else { rounding(to, x) };
    }
    (x + error).trunc() - (x - error).trunc()
}

fn elementwise(f: ScalarFn, operands: &[&Bounded], result: &Tensor, cx: &EvalCx) -> Result<Vec<f64>, EvalError> {
    // operands as the result's shape has them
    let spread = |t: Tensor| -> Result<Vec<f64>, EvalError> {
        let shape = result.shape().iter().map(|n| (*n).into()).collect();
        let results = Op::from(crate::ops::Broadcast { shape }).home().eval(&[t], cx)?;
        Ok(results.first().map_or_else(Vec::new, |t| t.values().map(ScalarValue::as_f64).collect()))
    };
    let mut values = Vec::new();
    let mut errors = Vec::new();
    for o in operands {
        values.push(spread(tensor(&o.value, o.value.values().map(ScalarValue::as_f64)))?);
        errors.push(spread(parts(o).error)?);
    }
    let dtypes: Vec<DType> = operands.iter().map(|o| o.value.dtype()).collect();
    let program = ScalarExpr::apply(f, (0..operands.len()).map(ScalarExpr::arg), result.dtype()).expand(&dtypes);
    let one = |i: usize| {
        let args: Vec<(f64, f64)> = values.iter().zip(&errors).map(|(v, e)| (v[i], e[i])).collect();
        let (value, error) = scalar(&program, &args, &dtypes);
        let own = result.dtype();
        error + if computed(own) == own || error == 0.0 { 0.0 } else { rounding(own, value) }
    };
    Ok((0..result.elements()).map(one).collect())
}

/// Value and bound of a program of primitives.
fn scalar(program: &ScalarExpr, args: &[(f64, f64)], dtypes: &[DType]) -> (f64, f64) {
    match program.kind() {
        ExprKind::Arg(i) => args[usize::from(*i)],
        ExprKind::Const(literal) => (literal.as_f64(), 0.0),
        ExprKind::Cast(dtype, inner) => {
            let (value, error) = scalar(inner, args, dtypes);
            let value = ScalarValue::Float(value);
            (value.cast(*dtype).as_f64(), converted(value, error, *dtype))
        }
        ExprKind::Apply(f, operands) => {
            let known: Vec<(f64, f64)> = operands.iter().map(|o| scalar(o, args, dtypes)).collect();
            let dtype = operands.last().map_or(DType::F32, |o| o.dtype(dtypes));
            primitive(*f, &known, dtype)
        }
    }
}

fn primitive(f: ScalarFn, known: &[(f64, f64)], dtype: DType) -> (f64, f64) {
    use ScalarFn as F;
    let float = |i: usize| ScalarValue::Float(known[i].0);
    let truth = |i: usize| ScalarValue::Bool(known[i].0 != 0.0);
    let of = |x: f64| f.eval(&[ScalarValue::Float(x)], dtype).as_f64();
    let open = |is: bool| f64::from(u8::from(is));
    let (x, e) = known[0];
    if f == F::Select {
        let ((a, ea), (b, eb)) = (known[1], known[2]);
        let value = if x != 0.0 { a } else { b };
        let error = match (e > 0.0, x != 0.0) {
            (true, _) => (a - b).abs() + ea.max(eb),
            (false, true) => ea,
            (false, false) => eb,
        };
        return (value, error);
    }
    let args: Vec<ScalarValue> = (0..known.len()).map(|i| if f.is_logical() { truth(i) } else { float(i) }).collect();
    let y = f.eval(&args, dtype).as_f64();
    let (b, eb) = known.get(1).copied().unwrap_or_default();
    let rounded = 2.0 * rounding(computed(dtype), y);
    // the greatest change over an interval in which the function rises or falls
    let monotone = |slope: f64| (of(x + e) - y).abs().max((of(x - e) - y).abs()).max(slope * e);
    let error = match f {
        F::Neg | F::Abs => e,
        F::Sign | F::Floor | F::Ceil | F::Round => monotone(0.0),
        F::Exp => monotone(y) + rounded,
        F::Log => monotone(1.0 / x) + rounded,
        F::Sqrt => monotone(0.5 / y) + rounded,
        F::Tanh => monotone(1.0 - y * y) + rounded,
        F::Erf => monotone(std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp()) + rounded,
        F::Sigmoid => monotone(y * (1.0 - y)) + rounded,
        F::Sin | F::Cos => e.min(2.0) + rounded + unit(computed(dtype)),
        F::Add | F::Sub if !dtype.is_float() => e + eb,
        F::Add | F::Sub => e + eb + rounded,
        F::Mul => x.abs() * eb + b.abs() * e + e * eb + rounded,
        F::Div if b.abs() > eb => (e + y.abs() * eb) / (b.abs() - eb) + rounded,
        F::Max | F::Min => e.max(eb),
        F::Eq | F::Lt | F::Le | F::Gt | F::Ge => open(e + eb > 0.0 && (x - b).abs() <= e + eb),
        F::And | F::Or | F::Xor | F::Not => open(e + eb > 0.0),
        F::IsNan => 0.0,
        _ if known.iter().all(|(_, e)| *e == 0.0) => rounded,
        _ => f64::INFINITY,
    };
    // 0 · ∞ and the like
    (y, if error.is_nan() { f64::INFINITY } else { error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    /// The same graph in `f64` is another evaluation: it must lie within the bounds, and these be of use.
    #[test]
    fn bounds_hold_and_are_finite() {
        let (mut elements, mut open, mut near) = (0, 0, 0);
        for seed in 0..120 {
            let dtype = [DType::F32, DType::F16, DType::BF16][seed as usize % 3];
            let sample = random::real(seed, 24, dtype).unwrap();
            let bounded = interpret_bounded(&sample.graph, &sample.inputs).unwrap();
            let text = ["bf16", "f16", "f32"]
                .iter()
                .fold(crate::text::print(&sample.graph), |text, narrow| text.replace(narrow, "f64"));
            let wide = crate::text::parse(&text).unwrap();
            let inputs =
                sample.inputs.iter().map(|(name, v)| (name.clone(), tensor(v, v.values().map(ScalarValue::as_f64))));
            let exact = crate::interpret(&wide, &inputs.collect(), &Tensors::new()).unwrap();
            for ((name, have), (_, want)) in bounded.iter().zip(&exact.outputs) {
                for (i, error) in have.error.iter().enumerate() {
                    let (have, want) = (have.value.get(i).as_f64(), want.get(i).as_f64());
                    let off = (have - want).abs();
                    elements += 1;
                    open += usize::from(!error.is_finite());
                    near += usize::from(*error <= 0.1 * want.abs().max(0.1));
                    assert!(off <= *error || have == want, "seed {seed} {name}[{i}]: {have} {want} {error}\n{text}");
                }
            }
        }
        assert!(elements > 1000 && 20 * open <= elements, "{open} of {elements} without a bound");
        assert!(2 * near > elements, "{near} of {elements} within a tenth");
    }
}
