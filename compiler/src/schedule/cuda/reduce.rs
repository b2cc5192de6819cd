//! Reductions: a block a result where the last axis is reduced, else a block 32 columns.

use egret_ir::{Dim, Shape};
use smallvec::SmallVec;

use super::row;
use crate::kernel::{Expr, LoopKind, Space};
use crate::schedule::map::grid_over;
use crate::schedule::reduce::{Plan, operation, start};
use crate::schedule::scope::Scope;

/// Columns of a block: a warp reads a line of them.
const COLUMNS: i64 = 32;
/// Warps of a block: each sums every eighth row.
const GROUPS: i64 = 8;
/// Threads of a block that reduces columns.
pub const THREADS: i64 = COLUMNS * GROUPS;

/// The kept axis along which memory is contiguous, if the last axis is kept.
pub fn column_axis(shape: &Shape, reduced: &[usize]) -> Option<usize> {
    let last = shape.iter().rposition(|d| !d.is(1)).unwrap_or(0);
    (shape.rank() > 0 && !reduced.contains(&last)).then_some(last)
}

/// Builds a reduction.
pub(in crate::schedule) fn build(scope: &mut Scope, plan: &Plan) {
    match column_axis(&plan.shape, &plan.reduce.axes) {
        Some(axis) => columns(scope, plan, axis),
        None => rows(scope, plan),
    }
}

fn rows(scope: &mut Scope, plan: &Plan) {
    let shape = &plan.shape;
    let out = scope.write((plan.id, 0));
    let dtype = scope.graph.tensor_type(plan.x).dtype;
    let extents: SmallVec<[Dim; 6]> =
        (0..shape.rank()).map(|a| if plan.reduced(a) { Dim::ONE } else { shape[a].clone() }).collect();
    let outer = grid_over(scope, &extents);
    let total = scope.k.variable(start(plan.reduce.kind, dtype));
    let (op, _) = operation(plan.reduce.kind);
    let axes: SmallVec<[usize; 4]> = (0..shape.rank()).filter(|a| plan.reduced(*a)).collect();
    row::each(scope, shape, &axes, &outer, &[], &mut |scope, index| {
        let value = scope.element(plan.x, index);
        scope.k.accumulate(total, op, value);
    });
    scope.k.block_reduce(total, op);
    scope.for_(Expr::int(0), Expr::int(1), LoopKind::Thread(0), |scope, _| {
        let (address, value) = plan.finish(scope, Expr::Var(total), &outer);
        scope.k.store(out, address, value);
    });
}

/// Each warp sums every eighth row of 32 columns; the first then sums the warps' sums, in order.
fn columns(scope: &mut Scope, plan: &Plan, axis: usize) {
    let shape = &plan.shape;
    let out = scope.write((plan.id, 0));
    let dtype = scope.graph.tensor_type(plan.x).dtype;
    let (op, _) = operation(plan.reduce.kind);
    let neutral = start(plan.reduce.kind, dtype);
    let extents: SmallVec<[Dim; 6]> = (0..shape.rank())
        .map(|a| match a {
            a if a == axis => shape[a].ceil_div(&Dim::from(COLUMNS)),
            a if plan.reduced(a) => Dim::ONE,
            a => shape[a].clone(),
        })
        .collect();
    let outer = grid_over(scope, &extents);
    let partial = scope.k.scratch(dtype, THREADS as usize, Space::Shared);
    let axes: SmallVec<[usize; 4]> = (0..shape.rank()).filter(|a| plan.reduced(*a)).collect();
    let reduced: SmallVec<[Dim; 4]> = axes.iter().map(|a| shape[*a].clone()).collect();
    let count = scope.dim(&reduced.iter().fold(Dim::ONE, |n, d| n * d.clone()));
    let extent = scope.dim(&shape[axis]);
    scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
        let (lane, group) = (scope.k.bind(&thread % COLUMNS), scope.k.bind(&thread / COLUMNS));
        let column = scope.k.bind(&outer[axis] * COLUMNS + &lane);
        let inside = scope.k.bind(column.less(extent));
        let mut index: SmallVec<[Expr; 6]> = outer.clone();
        index[axis] = column;
        let total = scope.k.variable(&neutral);
        scope.if_(inside.clone(), |scope| {
            scope.for_step(group.clone(), count, GROUPS, LoopKind::Serial, |scope, at| {
                let mut index = index.clone();
                for (axis, i) in axes.iter().zip(scope.unflatten(at, &reduced)) {
                    index[*axis] = i;
                }
                let value = scope.element(plan.x, &index);
                scope.k.accumulate(total, op, value);
            });
        });
        scope.k.store(partial, &thread, total);
        scope.k.barrier();
        scope.if_(group.equal(0).and(inside), |scope| {
            let total = scope.k.variable(&neutral);
            scope.for_(Expr::int(0), Expr::int(GROUPS), LoopKind::Unroll, |scope, group| {
                scope.k.accumulate(total, op, partial.load(group * COLUMNS + &lane));
            });
            let (address, value) = plan.finish(scope, Expr::Var(total), &index);
            scope.k.store(out, address, value);
        });
    });
}
