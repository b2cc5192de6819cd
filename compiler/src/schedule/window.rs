//! Pooling and its gradient.

use egret_ir::ops::{Window, WindowKind};
use egret_ir::{DType, NodeId, Op};
use smallvec::SmallVec;

use super::map::{blocked_loops, row_loops};
use super::row::{anchor, epilogue};
use super::scope::Scope;
use crate::kernel::{Expr, LoopKind, ReduceOp, Var};
use crate::layout::Layout;

/// Builds a pooling kernel.
pub fn build(scope: &mut Scope, id: NodeId) {
    let out = scope.write((id, 0));
    let blocked = matches!(scope.stored.layout((id, 0)), Some(Layout::Blocked { .. }));
    let body = |scope: &mut Scope, index: &[Expr], live: Option<Expr>| {
        let value = match &live {
            None => element(scope, id, index),
            Some(live) => {
                let value = scope.live(live.clone(), |s| element(s, id, index));
                let dtype = scope.graph.tensor_type(id).dtype;
                live.clone().select(value, Expr::constant(dtype, 0.0))
            }
        };
        let address = scope.address((id, 0), index);
        scope.k.store(out, address, value);
    };
    if blocked {
        blocked_loops(scope, id, body);
    } else {
        row_loops(scope, id, |scope, index| body(scope, index, None));
    }
}

fn element(scope: &mut Scope, id: NodeId, index: &[Expr]) -> Expr {
    let graph = scope.graph;
    let node = graph.node(id);
    let row_major = !matches!(scope.stored.layout((id, 0)), Some(Layout::Blocked { .. }));
    let across = row_major && !scope.is_gpu();
    let of = |window| Windows { x: node.operands[0], window, across };
    let value = match anchor(&node.op) {
        Op::ReduceWindow(op) => pooled(scope, of(&op.window), op.kind, index),
        Op::ReduceWindowGrad(op) => gradient(scope, of(&op.window), node.operands[1], op.kind, index),
        _ => Expr::constant(DType::F32, 0.0),
    };
    epilogue(scope, id, index, value)
}

/// Bounds of the taps of one window axis that lie inside the operand, for a window at output index `at`.
fn tap_bounds(scope: &mut Scope, window: &Window, axis: usize, extent: Expr, at: &Expr) -> (Expr, Expr, Expr) {
    let (stride, dilation) = (window.stride[axis], window.dilation[axis]);
    let origin = scope.k.bind(at.clone() * Expr::int(stride) - Expr::int(window.pad_low[axis]));
    let size = Expr::int(window.size[axis]);
    if !padded(window, axis) {
        return (origin, Expr::int(0), size);
    }
    let up = |value: Expr| (value + Expr::int(dilation - 1)) / Expr::int(dilation);
    let before = (Expr::int(0) - origin.clone()).max(Expr::int(0));
    let low = scope.k.bind(up(before).min(size.clone()));
    let room = (extent - origin.clone()).max(Expr::int(0));
    let high = scope.k.bind(up(room).min(size));
    (origin, low, high)
}

fn padded(window: &Window, axis: usize) -> bool {
    window.pad_low[axis] != 0 || window.pad_high[axis] != 0
}

/// Windows over a value.
#[derive(Clone, Copy)]
struct Windows<'w> {
    x: NodeId,
    window: &'w Window,
    /// Whether vectors run along the last windowed axis: its taps are then masked, so that all lanes take the same ones.
    across: bool,
}

/// The reduction over one window.
fn pooled(scope: &mut Scope, windows: Windows, kind: WindowKind, index: &[Expr]) -> Expr {
    let Windows { x, window, .. } = windows;
    let dtype = scope.graph.tensor_type(x).dtype;
    let start = lowest(dtype, if kind == WindowKind::Max { f64::NEG_INFINITY } else { 0.0 });
    let op = if kind == WindowKind::Max { ReduceOp::Max } else { ReduceOp::Sum };
    let total = scope.k.variable(start.clone());
    let taps = over_taps(scope, windows, index, &mut |scope, at, inside| {
        let value = tap(scope, x, at, inside, &start);
        combine(scope, total, op, value);
    });
    match kind {
        WindowKind::Max | WindowKind::Sum => Expr::Var(total),
        WindowKind::MeanAll => {
            let n: i64 = window.size.iter().product();
            Expr::Var(total) / Expr::constant(dtype, n as f64)
        }
        WindowKind::MeanValid => Expr::Var(total) / taps.cast(dtype),
    }
}

/// An element of a window, or `neutral` in the padding.
fn tap(scope: &mut Scope, x: NodeId, at: &[Expr], inside: Option<Expr>, neutral: &Expr) -> Expr {
    match inside {
        None => scope.element(x, at),
        Some(inside) => {
            let value = scope.masked(inside.clone(), |s| s.element(x, at));
            inside.select(value, neutral.clone())
        }
    }
}

fn lowest(dtype: DType, value: f64) -> Expr {
    if dtype.is_float() || value == 0.0 {
        return Expr::constant(dtype, value);
    }
    let least = match dtype {
        DType::I8 => i64::from(i8::MIN),
        DType::I16 => i64::from(i16::MIN),
        DType::I32 => i64::from(i32::MIN),
        DType::I64 => i64::MIN,
        _ => 0,
    };
    Expr::Literal(crate::kernel::Literal::Int(dtype, least))
}

fn combine(scope: &mut Scope, var: Var, op: ReduceOp, value: Expr) {
    let have = Expr::Var(var);
    let next = match op {
        ReduceOp::Max => have.max(value),
        _ => have + value,
    };
    scope.k.assign(var, next);
}

/// What a loop over taps calls: with the place of an element and, where lanes part, whether it exists.
type Tap<'f> = &'f mut dyn FnMut(&mut Scope, &[Expr], Option<Expr>);

/// Calls `body` at every element of a window, and gives the number of elements.
fn over_taps(scope: &mut Scope, windows: Windows, index: &[Expr], body: Tap) -> Expr {
    let Windows { x, window, across } = windows;
    let shape = scope.graph.tensor_type(x).shape.clone();
    let lead = shape.rank() - window.size.len();
    let mut bounds: SmallVec<[(Expr, Expr, Expr); 3]> = SmallVec::new();
    for axis in 0..window.size.len() {
        let extent = scope.dim(&shape[lead + axis]);
        bounds.push(tap_bounds(scope, window, axis, extent, &index[lead + axis]));
    }
    let taps = bounds.iter().fold(Expr::int(1), |n, (_, low, high)| n * (high.clone() - low.clone()));
    let last = window.size.len() - 1;
    let mut masked = None;
    if padded(window, last) && across {
        (bounds[last].1, bounds[last].2) = (Expr::int(0), Expr::int(window.size[last]));
        masked = Some(scope.dim(&shape[lead + last]));
    }
    fn level(
        scope: &mut Scope,
        window: &Window,
        bounds: &[(Expr, Expr, Expr)],
        axis: usize,
        at: SmallVec<[Expr; 6]>,
        masked: &Option<Expr>,
        body: Tap,
    ) {
        let Some((origin, low, high)) = bounds.get(axis) else {
            let inside = match (masked, at.last()) {
                (Some(extent), Some(place)) => {
                    let inside = place.greater_equal(Expr::int(0)).and(place.less(extent.clone()));
                    Some(scope.k.bind(inside))
                }
                _ => None,
            };
            return body(scope, &at, inside);
        };
        scope.for_(low.clone(), high.clone(), LoopKind::Serial, |scope, tap| {
            let mut at = at;
            let place = origin.clone() + tap * Expr::int(window.dilation[axis]);
            at.push(scope.k.bind(place));
            level(scope, window, bounds, axis + 1, at, masked, body);
        });
    }
    level(scope, window, &bounds, 0, index[..lead].into(), &masked, body);
    taps
}

/// Which windows hold an element along one axis.
enum Holders {
    /// Those of a range.
    Range(Expr, Expr),
    /// So many, counted down from one; each is to be checked.
    Checked(i64, Expr),
}

/// The gradient at one element: a share of every window that holds it.
fn gradient(scope: &mut Scope, windows: Windows, dy: NodeId, kind: WindowKind, index: &[Expr]) -> Expr {
    let Windows { x, window, across } = windows;
    let dtype = scope.graph.tensor_type(x).dtype;
    let outputs = scope.graph.tensor_type(dy).shape.clone();
    let lead = outputs.rank() - window.size.len();
    let total = scope.k.variable(Expr::constant(dtype, 0.0));
    let last = window.size.len() - 1;
    // window o holds element i when o·stride + tap·dilation − pad = i
    let mut holders: SmallVec<[Holders; 3]> = SmallVec::new();
    for axis in 0..window.size.len() {
        let (stride, pad) = (window.stride[axis], window.pad_low[axis]);
        let reach = window.dilation[axis] * (window.size[axis] - 1);
        let at = scope.k.bind(index[lead + axis].clone() + Expr::int(pad));
        let extent = scope.dim(&outputs[lead + axis]);
        holders.push(if axis == last && across {
            Holders::Checked(reach / stride + 1, scope.k.bind(at / Expr::int(stride)))
        } else {
            let first = (at.clone() - Expr::int(reach)).max(Expr::int(0)) + Expr::int(stride - 1);
            let low = scope.k.bind(first / Expr::int(stride));
            let high = scope.k.bind((at / Expr::int(stride) + Expr::int(1)).min(extent));
            Holders::Range(low, high)
        });
    }
    let own = if kind == WindowKind::Max { Some(scope.element(x, index)) } else { None };
    let mut body = |scope: &mut Scope, at: &[Expr]| {
        let mut held: Option<Expr> = None;
        let mut also = |condition: Expr| {
            held = Some(held.take().map_or(condition.clone(), |h| h.and(condition)));
        };
        for axis in 0..window.size.len() {
            let window_at = at[lead + axis].clone();
            let place = index[lead + axis].clone() + Expr::int(window.pad_low[axis])
                - window_at.clone() * Expr::int(window.stride[axis]);
            if axis == last && across {
                let extent = scope.dim(&outputs[lead + axis]);
                let reach = window.dilation[axis] * (window.size[axis] - 1);
                also(window_at.greater_equal(Expr::int(0)));
                also(window_at.less(extent));
                also(place.less_equal(Expr::int(reach)));
            }
            if window.dilation[axis] > 1 {
                also((place % Expr::int(window.dilation[axis])).equal(Expr::int(0)));
            }
        }
        let zero = Expr::constant(dtype, 0.0);
        let share = match held {
            Some(held) => {
                let held = scope.k.bind(held);
                let share = scope.masked(held.clone(), |s| share(s, windows, dy, kind, at, own.as_ref()));
                held.select(share, zero)
            }
            None => share(scope, windows, dy, kind, at, own.as_ref()),
        };
        combine(scope, total, ReduceOp::Sum, share);
    };
    fn level(
        scope: &mut Scope,
        holders: &[Holders],
        axis: usize,
        at: SmallVec<[Expr; 6]>,
        body: &mut dyn FnMut(&mut Scope, &[Expr]),
    ) {
        let Some(holder) = holders.get(axis) else { return body(scope, &at) };
        let (low, high) = match holder {
            Holders::Range(low, high) => (low.clone(), high.clone()),
            Holders::Checked(count, _) => (Expr::int(0), Expr::int(*count)),
        };
        scope.for_(low, high, LoopKind::Serial, |scope, i| {
            let mut at = at;
            at.push(match holder {
                Holders::Range(..) => i,
                Holders::Checked(_, from) => scope.k.bind(from.clone() - i),
            });
            level(scope, holders, axis + 1, at, body);
        });
    }
    level(scope, &holders, 0, index[..lead].into(), &mut body);
    Expr::Var(total)
}

/// What one window gives an element that is `own`, of the gradient at `at`.
fn share(scope: &mut Scope, windows: Windows, dy: NodeId, kind: WindowKind, at: &[Expr], own: Option<&Expr>) -> Expr {
    let Windows { x, window, .. } = windows;
    let dtype = scope.graph.tensor_type(x).dtype;
    let dy = scope.element(dy, at);
    match kind {
        WindowKind::Sum => dy,
        WindowKind::MeanAll => {
            let n: i64 = window.size.iter().product();
            dy / Expr::constant(dtype, n as f64)
        }
        WindowKind::MeanValid => {
            let taps = over_taps(scope, windows, at, &mut |_, _, _| {});
            dy / taps.cast(dtype)
        }
        WindowKind::Max => {
            let start = lowest(dtype, f64::NEG_INFINITY);
            let highest = scope.k.variable(start.clone());
            over_taps(scope, windows, at, &mut |scope, at, inside| {
                let value = tap(scope, x, at, inside, &start);
                combine(scope, highest, ReduceOp::Max, value);
            });
            let (one, zero) = (Expr::constant(dtype, 1.0), Expr::constant(dtype, 0.0));
            let ties = scope.k.variable(zero.clone());
            over_taps(scope, windows, at, &mut |scope, at, inside| {
                let equal = match inside {
                    None => scope.element(x, at).equal(Expr::Var(highest)),
                    Some(inside) => {
                        let value = scope.masked(inside.clone(), |s| s.element(x, at));
                        inside.and(value.equal(Expr::Var(highest)))
                    }
                };
                combine(scope, ties, ReduceOp::Sum, equal.select(one.clone(), zero.clone()));
            });
            let own = own.cloned().unwrap_or(zero.clone());
            own.equal(Expr::Var(highest)).select(dy / Expr::Var(ties), zero)
        }
    }
}
