//! Epilogues of drivers: in registers where the program is bias, residual and a clamp, else a hook.

use egret_ir::ops::{Norm, NormKind, Softmax};
use egret_ir::{DType, Op, ScalarExpr, ScalarFn};
use egret_program::driver::Activation;
use smallvec::SmallVec;

use super::scalar;
use crate::kernel::{Expr, Finding, Kernel, KernelBuilder, LoopKind, ReduceOp, Tile, UnaryOp};

/// `activation(p0 + p_bias + p_residual)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Direct {
    /// Argument that is the bias.
    pub bias: Option<usize>,
    /// Argument that is the residual.
    pub residual: Option<usize>,
    /// Activation.
    pub activation: Activation,
}

/// The program as [`Direct`], if it is one. `is_vector(i)` tells arguments that are a bias, `is_full(i)` those that are
/// a residual.
pub fn direct(
    program: &ScalarExpr,
    is_vector: &dyn Fn(usize) -> bool,
    is_full: &dyn Fn(usize) -> bool,
) -> Option<Direct> {
    let (sum, activation) = activation(program);
    let mut found = Direct { bias: None, residual: None, activation };
    let mut accumulator = false;
    let mut todo: SmallVec<[&ScalarExpr; 4]> = smallvec::smallvec![sum];
    while let Some(e) = todo.pop() {
        if let Some([a, b]) = e.operands_of(ScalarFn::Add) {
            todo.push(a);
            todo.push(b);
            continue;
        }
        let egret_ir::ExprKind::Arg(arg) = e.kind() else { return None };
        let arg = usize::from(*arg);
        match arg {
            0 if !accumulator => accumulator = true,
            0 => return None,
            _ if is_vector(arg) && found.bias.is_none() => found.bias = Some(arg),
            _ if is_full(arg) && found.residual.is_none() => found.residual = Some(arg),
            _ => return None,
        }
    }
    accumulator.then_some(found)
}

/// `activation(p0 * p_scale + p_shift)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Argument that is the scale.
    pub scale: Option<usize>,
    /// Argument that is the shift.
    pub shift: Option<usize>,
    /// Activation.
    pub activation: Activation,
}

/// A prologue's program as [`Affine`], if it is one. `is_vector(i)` tells arguments that have an `f32` for each channel.
pub fn affine(program: &ScalarExpr, is_vector: &dyn Fn(usize) -> bool) -> Option<Affine> {
    let (program, activation) = activation(program);
    let vector = |e: &ScalarExpr| match e.kind() {
        egret_ir::ExprKind::Arg(i) if *i > 0 && is_vector(usize::from(*i)) => Some(usize::from(*i)),
        _ => None,
    };
    // the vector among the operands of a function, and the other operand
    let with = |f: ScalarFn, e: &ScalarExpr| -> Option<(usize, ScalarExpr)> {
        let [a, b] = e.operands_of(f)? else { return None };
        vector(b).map(|v| (v, a.clone())).or_else(|| Some((vector(a)?, b.clone())))
    };
    let (shift, rest) = with(ScalarFn::Add, program).map_or((None, program.clone()), |(v, rest)| (Some(v), rest));
    let (scale, rest) = with(ScalarFn::Mul, &rest).map_or((None, rest), |(v, rest)| (Some(v), rest));
    rest.is_arg(0).then_some(Affine { scale, shift, activation })
}

fn activation(program: &ScalarExpr) -> (&ScalarExpr, Activation) {
    if let Some([x]) = program.operands_of(ScalarFn::Relu) {
        return (x, Activation::Relu);
    }
    // min(max(x, lo), hi) in either order of operands; bounds that are no `f32` are left to a hook
    let constant_and = |f: ScalarFn, e: &ScalarExpr| -> Option<(f64, usize)> {
        let [a, b] = e.operands_of(f)? else { return None };
        let (bound, other) = match (a.as_const(), b.as_const()) {
            (Some(c), None) => (c.as_f64(), 1),
            (None, Some(c)) => (c.as_f64(), 0),
            _ => return None,
        };
        (f64::from(bound as f32) == bound).then_some((bound, other))
    };
    if let Some((hi, at)) = constant_and(ScalarFn::Min, program)
        && let Some(inner) = program.operands_of(ScalarFn::Min).map(|args| &args[at])
    {
        if let Some([x]) = inner.operands_of(ScalarFn::Relu) {
            return (x, Activation::Clamp(0.0, hi as f32));
        }
        if let Some((lo, at)) = constant_and(ScalarFn::Max, inner)
            && let Some(args) = inner.operands_of(ScalarFn::Max)
        {
            return (&args[at], Activation::Clamp(lo as f32, hi as f32));
        }
    }
    (program, Activation::None)
}

/// An extra operand of a hook.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extra {
    /// Element type.
    pub dtype: DType,
    /// Whether it changes from column to column; its column stride is then 1, else 0.
    pub by_column: bool,
}

fn load(tile: &Tile, extra: Extra, row: &Expr, col: &Expr) -> Expr {
    let index = if extra.by_column { tile.at(row, col) } else { tile.row(row) };
    tile.memory.load(index)
}

fn dtypes(acc: DType, extras: &[Extra]) -> SmallVec<[DType; 8]> {
    std::iter::once(acc).chain(extras.iter().map(|e| e.dtype)).collect()
}

/// A hook that computes a program over a tile of one element type, into results of another. `taps` are further outputs.
///
/// # Errors
/// Findings of the verifier: a program beyond its bounds.
pub fn hook(
    program: &ScalarExpr,
    taps: &[ScalarExpr],
    extras: &[Extra],
    (acc, out): (DType, DType),
    exact: bool,
) -> Result<Kernel, Vec<Finding>> {
    let extra_types: Vec<DType> = extras.iter().map(|e| e.dtype).collect();
    let (mut k, h) = KernelBuilder::hook(acc, &extra_types, &vec![out; 1 + taps.len()]);
    if exact {
        k.exact();
    }
    let dtypes = dtypes(acc, extras);
    let programs: Vec<ScalarExpr> =
        std::iter::once(program).chain(taps).map(|program| program.expand(&dtypes)).collect();
    let (rows, cols) = (h.rows.clone(), h.cols.clone());
    k.for_(Expr::int(0), rows, LoopKind::Serial, |k, row| {
        k.for_(Expr::int(0), cols, LoopKind::Vector, |k, col| {
            let mut args: SmallVec<[Expr; 8]> = SmallVec::new();
            args.push(h.acc.memory.load(h.acc.at(&row, &col)));
            args.extend(h.extras.iter().zip(extras).map(|(tile, extra)| load(tile, *extra, &row, &col)));
            // an output may be an extra: all is computed before anything is written
            let values: Vec<Expr> = programs
                .iter()
                .map(|program| {
                    let value = scalar::program(k, program, &args, &dtypes);
                    if programs.len() > 1 { k.bind(value) } else { value }
                })
                .collect();
            for (tile, value) in h.outs.iter().zip(values) {
                k.store(tile.memory, tile.at(&row, &col), value);
            }
        });
    });
    Ok(k.finish()?.for_cpu())
}

/// A hook over complete rows: `first` over the tile, the row operator, then `finish`, all with the same extras. `taps` are
/// further outputs, from what the tile begins with.
///
/// # Errors
/// As [`hook`].
pub fn finisher(
    first: &ScalarExpr,
    row_op: &Op,
    finish: &ScalarExpr,
    taps: &[ScalarExpr],
    extras: &[Extra],
    exact: bool,
) -> Result<Kernel, Vec<Finding>> {
    let extra_types: Vec<DType> = extras.iter().map(|e| e.dtype).collect();
    let (mut k, h) = KernelBuilder::hook(DType::F32, &extra_types, &vec![DType::F32; 1 + taps.len()]);
    if exact {
        k.exact();
    }
    let dtypes = dtypes(DType::F32, extras);
    let (first, finish) = (first.expand(&dtypes), finish.expand(&dtypes));
    let taps: Vec<ScalarExpr> = taps.iter().map(|tap| tap.expand(&dtypes)).collect();
    let (rows, cols) = (h.rows.clone(), h.cols.clone());
    k.for_(Expr::int(0), rows, LoopKind::Serial, |k, row| {
        let zero = Expr::int(0);
        let acc = |col: &Expr| h.acc.memory.load(h.acc.at(&row, col));
        let args = |value: Expr, col: &Expr| -> SmallVec<[Expr; 8]> {
            let extras = h.extras.iter().zip(extras).map(|(tile, extra)| load(tile, *extra, &row, col));
            std::iter::once(value).chain(extras).collect()
        };
        for (tap, out) in taps.iter().zip(&h.outs[1..]) {
            k.for_(&zero, &cols, LoopKind::Vector, |k, col| {
                let value = scalar::program(k, tap, &args(acc(&col), &col), &dtypes);
                k.store(out.memory, out.at(&row, &col), value);
            });
        }
        if !first.is_arg(0) {
            k.for_(&zero, &cols, LoopKind::Vector, |k, col| {
                let value = scalar::program(k, &first, &args(acc(&col), &col), &dtypes);
                k.store(h.acc.memory, h.acc.at(&row, &col), value);
            });
        }
        let sum =
            |k: &mut KernelBuilder, op: ReduceOp, start: f32, value: &dyn Fn(&mut KernelBuilder, &Expr) -> Expr| {
                let total = k.variable(start);
                k.for_(&zero, &cols, LoopKind::Vector, |k, col| {
                    let value = value(k, &col);
                    k.accumulate(total, op, value);
                });
                k.bind(total)
            };
        // shifts and scale of the row's elements
        let (shifts, scale): (SmallVec<[Expr; 2]>, _) = match row_op {
            Op::Softmax(Softmax { log, .. }) => {
                let top = sum(k, ReduceOp::Max, f32::NEG_INFINITY, &|_, col| acc(col));
                let total = sum(k, ReduceOp::Sum, 0.0, &|k, col| {
                    let e = k.bind((acc(col) - &top).unary(UnaryOp::Exp));
                    if !log {
                        k.store(h.acc.memory, h.acc.at(&row, col), &e);
                    }
                    e
                });
                if *log {
                    let rest = k.bind(total.unary(UnaryOp::Log));
                    (smallvec::smallvec![top, rest], None)
                } else {
                    (SmallVec::new(), Some(k.bind(Expr::constant(DType::F32, 1.0) / total)))
                }
            }
            Op::Norm(norm) => {
                let Norm { kind, eps, .. } = &**norm;
                let n = k.bind(cols.clone().cast(DType::F32));
                let mean = (*kind == NormKind::Layer).then(|| {
                    let total = sum(k, ReduceOp::Sum, 0.0, &|_, col| acc(col));
                    k.bind(total / &n)
                });
                let squares = sum(k, ReduceOp::Sum, 0.0, &|k, col| {
                    let d = match &mean {
                        Some(mean) => k.bind(acc(col) - mean),
                        None => k.bind(acc(col)),
                    };
                    &d * &d
                });
                let variance = squares / &n + Expr::constant(DType::F32, eps.get());
                (mean.into_iter().collect(), Some(k.bind(variance.unary(UnaryOp::Rsqrt))))
            }
            _ => (SmallVec::new(), None),
        };
        k.for_(&zero, &cols, LoopKind::Vector, |k, col| {
            let mut value = acc(&col);
            for shift in &shifts {
                value = value - shift;
            }
            if let Some(scale) = &scale {
                value = value * scale;
            }
            let value = k.bind(value);
            let value = scalar::program(k, &finish, &args(value, &col), &dtypes);
            k.store(h.outs[0].memory, h.outs[0].at(&row, &col), value);
        });
    });
    Ok(k.finish()?.for_cpu())
}
