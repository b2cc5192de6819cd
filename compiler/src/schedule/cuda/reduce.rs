//! Reductions: a block a result where the last axis is reduced, else a block some columns.
//!
//! Where there are fewer blocks than a GPU runs and each would run for long, the reduced elements are dealt to more blocks:
//! each leaves a partial result, and a second kernel joins these in order.

use egret_ir::ops::Reduce;
use egret_ir::{DType, Diagnostic, Dim, Graph, NodeId, Shape};
use smallvec::SmallVec;

use super::{expected, finished, row};
use crate::kernel::{Expr, LoopKind, Memory, ReduceOp, Space};
use crate::schedule::map::grid_over;
use crate::schedule::reduce::{Plan, operation, start};
use crate::schedule::scope::{Scope, Stored};
use crate::schedule::{Passes, Temporary};

/// Threads of a block that reduces columns.
const THREADS: i64 = 256;
/// Most columns of such a block: a warp reads a line of them.
const COLUMNS: i64 = 32;
/// Fewest: what reads the columns' partial sums is one thread a column.
const LEAST_COLUMNS: i64 = 4;
/// Blocks that fill a GPU.
const ENOUGH: i64 = 256;
/// Elements that a thread reduces before its row or column is worth more blocks, and then at least.
const LONG: i64 = 64;

/// Builds the kernels of a reduction.
///
/// # Errors
/// As [`super::generate`].
pub fn generate(graph: &Graph, stored: &dyn Stored, id: NodeId, exact: bool) -> Result<Passes, Diagnostic> {
    let Some(plan) = Plan::new(graph, id) else { return Err(super::unsupported(graph, id, "of this form")) };
    let deal = deal(graph, plan.x, plan.reduce);
    let mut scope = Scope::on_gpu(graph, stored, exact, deal.threads());
    build(&mut scope, &plan, &deal);
    let mut passes = Passes::from(finished(scope, id)?);
    if deal.is_split() {
        passes.temporaries.push(deal.temporary(&plan, graph.tensor_type(plan.x).dtype));
        let mut scope = Scope::on_gpu(graph, stored, exact, THREADS as u32);
        join(&mut scope, &plan, &deal);
        passes.kernels.push(finished(scope, id)?);
    }
    Ok(passes)
}

/// The kept axis along which memory is contiguous, if the last axis is kept.
fn column_axis(shape: &Shape, reduced: &[usize]) -> Option<usize> {
    let last = shape.iter().rposition(|d| !d.is(1)).unwrap_or(0);
    (shape.rank() > 0 && !reduced.contains(&last)).then_some(last)
}

/// How a reduction is dealt to blocks.
struct Deal {
    /// The axis of columns.
    columns: Option<usize>,
    /// Blocks that share a result.
    parts: i64,
    /// Elements of a part.
    each: Dim,
    /// All of them.
    count: Dim,
}

/// Chooses how a reduction of `x` is dealt.
fn deal(graph: &Graph, x: NodeId, reduce: &Reduce) -> Deal {
    let shape = &graph.tensor_type(x).shape;
    let columns = column_axis(shape, &reduce.axes);
    let count = reduce.axes.iter().fold(Dim::ONE, |n, a| n * shape[*a].clone());
    let kept = (0..shape.rank()).filter(|a| !reduce.axes.contains(a));
    let results = kept.fold(1i64, |n, a| n.saturating_mul(expected(&shape[a]).max(1)));
    let (blocks, threads) = match columns {
        Some(axis) => {
            let lanes = lanes(&shape[axis]);
            ((results as u64).div_ceil(lanes as u64) as i64, THREADS / lanes)
        }
        None => (results, 512),
    };
    let own = expected(&count) / threads;
    let parts = if own >= 2 * LONG { (ENOUGH / blocks.max(1)).min(own / LONG).max(1) } else { 1 };
    // vectors end where parts do
    let each = match count.as_const() {
        Some(n) => Dim::from((n as u64).div_ceil(parts as u64).next_multiple_of(row::WIDTH as u64) as i64),
        None => count.ceil_div(&Dim::from(parts)),
    };
    Deal { columns, parts, each, count }
}

impl Deal {
    /// Whether a second kernel joins partial results.
    fn is_split(&self) -> bool {
        self.parts > 1
    }

    /// Threads of a block.
    fn threads(&self) -> u32 {
        if self.columns.is_some() { THREADS as u32 } else { row::threads(&self.each) }
    }

    /// What the first kernel leaves for the second: a value a part and result.
    fn temporary(&self, plan: &Plan, dtype: DType) -> Temporary {
        let results = kept(plan).iter().fold(Dim::ONE, |n, d| n * d.clone());
        Temporary { dtype: partial(dtype), elements: results * Dim::from(self.parts) }
    }
}

/// Threads side by side over columns.
fn lanes(columns: &Dim) -> i64 {
    let columns = expected(columns).max(1) as u64;
    (columns.next_power_of_two() as i64).clamp(LEAST_COLUMNS, COLUMNS)
}

/// Element type of partial results: sums of halves are not rounded.
fn partial(dtype: DType) -> DType {
    if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype }
}

/// Extents of the result, reduced axes left out.
fn kept(plan: &Plan) -> SmallVec<[Dim; 6]> {
    (0..plan.shape.rank()).filter(|a| !plan.reduced(*a)).map(|a| plan.shape[a].clone()).collect()
}

/// Where totals go.
#[derive(Clone, Copy)]
enum Target {
    Result(Memory),
    /// Partial results, by part, then result.
    Partial(Memory),
}

/// Builds a reduction that is not split, or the first kernel of one that is.
fn build(scope: &mut Scope, plan: &Plan, deal: &Deal) {
    let dtype = scope.graph.tensor_type(plan.x).dtype;
    let target = match deal.is_split() {
        false => Target::Result(scope.write((plan.id, 0))),
        true => Target::Partial(scope.temporary(plan.id, 0, partial(dtype), true)),
    };
    match deal.columns {
        Some(axis) => columns(scope, plan, deal, axis, target),
        None => rows(scope, plan, deal, target),
    }
}

/// Indices of a block over `extents` and parts, and the elements of its part.
fn block(scope: &mut Scope, deal: &Deal, mut extents: SmallVec<[Dim; 6]>) -> (SmallVec<[Expr; 6]>, Expr, [Expr; 2]) {
    let end = scope.dim(&deal.count);
    if !deal.is_split() {
        return (grid_over(scope, &extents), Expr::int(0), [Expr::int(0), end]);
    }
    let each = scope.dim(&deal.each);
    extents.push(Dim::from(deal.parts));
    let mut outer = grid_over(scope, &extents);
    let part = outer.pop().unwrap_or(Expr::int(0));
    let first = scope.k.bind(&part * &each);
    let last = scope.k.bind((&first + each).min(end));
    (outer, part, [first, last])
}

/// Stores a total at the place of a result.
fn finish(scope: &mut Scope, plan: &Plan, target: Target, part: &Expr, total: Expr, index: &[Expr]) {
    match target {
        Target::Result(out) => {
            let (address, value) = plan.finish(scope, total, index);
            scope.k.store(out, address, value);
        }
        Target::Partial(memory) => {
            let dtype = scope.graph.tensor_type(plan.x).dtype;
            let mut at = part.clone();
            for axis in (0..plan.shape.rank()).filter(|a| !plan.reduced(*a) && !plan.shape[*a].is(1)) {
                let extent = scope.dim(&plan.shape[axis]);
                at = at * extent + &index[axis];
            }
            let total = if partial(dtype) == dtype { total } else { total.cast(partial(dtype)) };
            scope.k.store(memory, at, total);
        }
    }
}

fn rows(scope: &mut Scope, plan: &Plan, deal: &Deal, target: Target) {
    let shape = &plan.shape;
    let dtype = scope.graph.tensor_type(plan.x).dtype;
    let extents: SmallVec<[Dim; 6]> =
        (0..shape.rank()).map(|a| if plan.reduced(a) { Dim::ONE } else { shape[a].clone() }).collect();
    let (outer, part, range) = block(scope, deal, extents);
    let total = scope.k.variable(start(plan.reduce.kind, dtype));
    let (op, _) = operation(plan.reduce.kind);
    let axes: SmallVec<[usize; 4]> = (0..shape.rank()).filter(|a| plan.reduced(*a)).collect();
    row::each_of(scope, shape, &axes, &outer, &[], &range, &mut |scope, index| {
        let value = scope.element(plan.x, index);
        scope.k.accumulate(total, op, value);
    });
    scope.k.block_reduce(total, op);
    scope.for_(Expr::int(0), Expr::int(1), LoopKind::Thread(0), |scope, _| {
        finish(scope, plan, target, &part, Expr::Var(total), &outer);
    });
}

fn columns(scope: &mut Scope, plan: &Plan, deal: &Deal, axis: usize, target: Target) {
    let shape = &plan.shape;
    let lanes = lanes(&shape[axis]);
    let extents: SmallVec<[Dim; 6]> = (0..shape.rank())
        .map(|a| match a {
            a if a == axis => shape[a].ceil_div(&Dim::from(lanes)),
            a if plan.reduced(a) => Dim::ONE,
            a => shape[a].clone(),
        })
        .collect();
    let (outer, part, range) = block(scope, deal, extents);
    let axes: SmallVec<[usize; 4]> = (0..shape.rank()).filter(|a| plan.reduced(*a)).collect();
    let reduced: SmallVec<[Dim; 4]> = axes.iter().map(|a| shape[*a].clone()).collect();
    let extent = scope.dim(&shape[axis]);
    let dtype = scope.graph.tensor_type(plan.x).dtype;
    let sums = Columns { lanes, block: outer[axis].clone(), extent, range };
    let index = |column: &Expr| {
        let mut index = outer.clone();
        index[axis] = column.clone();
        index
    };
    sums.build(
        scope,
        (operation(plan.reduce.kind).0, start(plan.reduce.kind, dtype), dtype),
        &mut |scope, column, row| {
            let mut index = index(column);
            for (axis, i) in axes.iter().zip(scope.unflatten(row, &reduced)) {
                index[*axis] = i;
            }
            scope.element(plan.x, &index)
        },
        &mut |scope, column, total| finish(scope, plan, target, &part, total, &index(column)),
    );
}

/// Builds the second kernel of a reduction that is split.
fn join(scope: &mut Scope, plan: &Plan, deal: &Deal) {
    let out = scope.write((plan.id, 0));
    let dtype = scope.graph.tensor_type(plan.x).dtype;
    let wide = partial(dtype);
    let parts = scope.temporary(plan.id, 0, wide, false);
    let extents = kept(plan);
    let results = extents.iter().fold(Dim::ONE, |n, d| n * d.clone());
    let lanes = lanes(&results);
    let end = scope.dim(&results);
    let blocks = scope.dim(&results.ceil_div(&Dim::from(lanes)));
    let block = scope.k.grid(blocks);
    let sums = Columns { lanes, block, extent: end.clone(), range: [Expr::int(0), Expr::int(deal.parts)] };
    sums.build(
        scope,
        (operation(plan.reduce.kind).0, start(plan.reduce.kind, wide), wide),
        &mut |_, column, part| parts.load(part * &end + column),
        &mut |scope, column, total| {
            let mut index: SmallVec<[Expr; 6]> = SmallVec::from_elem(Expr::int(0), plan.shape.rank());
            let axes = (0..plan.shape.rank()).filter(|a| !plan.reduced(*a));
            for (axis, i) in axes.zip(scope.unflatten(column.clone(), &extents)) {
                index[axis] = i;
            }
            let total = if wide == dtype { total } else { total.cast(dtype) };
            let (address, value) = plan.finish(scope, total, &index);
            scope.k.store(out, address, value);
        },
    );
}

/// Sums over columns by a block of [`THREADS`]: each group of `lanes` threads has some rows, and the first group then joins
/// the groups' sums, in order.
struct Columns {
    lanes: i64,
    /// Which columns: `lanes` of them.
    block: Expr,
    /// All columns.
    extent: Expr,
    /// First row, and the one after the last.
    range: [Expr; 2],
}

impl Columns {
    fn build(
        self,
        scope: &mut Scope,
        (op, neutral, dtype): (ReduceOp, Expr, DType),
        value: &mut dyn FnMut(&mut Scope, &Expr, Expr) -> Expr,
        finish: &mut dyn FnMut(&mut Scope, &Expr, Expr),
    ) {
        let Columns { lanes, block, extent, range: [first, last] } = self;
        let groups = THREADS / lanes;
        let shared = scope.k.scratch(dtype, THREADS as usize, Space::Shared);
        scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
            let (lane, group) = (scope.k.bind(&thread % lanes), scope.k.bind(&thread / lanes));
            let column = scope.k.bind(block * lanes + &lane);
            let inside = scope.k.bind(column.less(extent));
            let total = scope.k.variable(&neutral);
            scope.if_(inside.clone(), |scope| {
                scope.for_step(first + &group, last, groups, LoopKind::Serial, |scope, row| {
                    let value = value(scope, &column, row);
                    scope.k.accumulate(total, op, value);
                });
            });
            scope.k.store(shared, &thread, total);
            scope.k.barrier();
            scope.if_(group.equal(0).and(inside), |scope| {
                let total = scope.k.variable(&neutral);
                let kind = if groups <= 8 { LoopKind::Unroll } else { LoopKind::Serial };
                scope.for_(Expr::int(0), Expr::int(groups), kind, |scope, group| {
                    scope.k.accumulate(total, op, shared.load(group * lanes + &lane));
                });
                finish(scope, &column, Expr::Var(total));
            });
        });
    }
}
