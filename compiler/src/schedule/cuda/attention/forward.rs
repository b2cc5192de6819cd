//! The result and log-sum-exp of each query, keys by tiles: the online softmax.

use egret_ir::{DType, Diagnostic, Dim};
use smallvec::SmallVec;

use super::tiles::{Engine, Lanes, Rows, SHARING, Source, THREADS, Target, Tile, owned, padded};
use super::{Attend, Place};
use crate::kernel::{Expr, LoopKind, ReduceOp, UnaryOp, Var};
use crate::schedule::Passes;
use crate::schedule::cuda::finished;
use crate::schedule::scope::{Scope, Stored};

/// Keys of a tile: fewer where channels are many, for registers and shared memory.
pub fn columns(attend: &Attend) -> i64 {
    let wide = padded(attend.head.max(attend.value)) > 128;
    match (attend.dtype, wide) {
        (DType::F32, false) => 32,
        (DType::F32, true) => 16,
        (_, false) => 64,
        (_, true) => 32,
    }
}

/// The greatest logit of a row so far, and the sum of exponentials of what is left when that is taken away.
pub struct Softmax {
    pub top: Var,
    pub total: Var,
}

impl Softmax {
    pub fn new(scope: &mut Scope) -> Softmax {
        let least = Expr::constant(DType::F32, f64::NEG_INFINITY);
        Softmax { top: scope.k.variable(least), total: scope.k.variable(0.0f32) }
    }

    /// What is taken from logits of which `top` is the greatest: nothing while all are −∞.
    pub fn shift(scope: &mut Scope, top: Expr) -> Expr {
        let empty = top.equal(Expr::constant(DType::F32, f64::NEG_INFINITY));
        scope.k.bind(empty.select(0.0f32, top))
    }

    /// What a sum of exponentials is divided by, as a factor, and the log-sum-exp.
    pub fn finish(&self, scope: &mut Scope, empty_is_zero: bool) -> (Expr, Expr) {
        let (top, total) = (Expr::Var(self.top), Expr::Var(self.total));
        let mut scale = Expr::from(1.0f32) / &total;
        if empty_is_zero {
            // sums over no keys are zeros
            scale = top.equal(Expr::constant(DType::F32, f64::NEG_INFINITY)).select(0.0f32, scale);
        }
        (scope.k.bind(scale), scope.k.bind(top + total.unary(UnaryOp::Log)))
    }
}

/// Builds the kernel, with tiles of so many keys.
pub fn generate(attend: &Attend, stored: &dyn Stored, exact: bool, columns: i64) -> Result<Passes, Diagnostic> {
    let mut scope = Scope::on_gpu(attend.graph, stored, exact, THREADS as u32);
    build(attend, &mut scope, columns);
    Ok(finished(scope, attend.id)?.into())
}

fn build(attend: &Attend, scope: &mut Scope, columns: i64) {
    let own_rows = owned(attend.dtype);
    let (head, value) = (padded(attend.head), padded(attend.value));
    let (out, lse) = (scope.write((attend.id, 0)), scope.write((attend.id, 1)));
    let groups = attend.outer.iter().fold(Dim::ONE, |n, d| n * d.clone());
    let groups = scope.dim(&groups);
    let tiles = scope.dim(&attend.queries.ceil_div(&Dim::from(own_rows)));
    let group = scope.k.grid(groups);
    let tile = scope.k.grid(tiles.clone());
    let engine = Engine::new(scope, attend.dtype, columns);
    // the result leaves by way of the queries' tile
    let own = Tile::new(scope, attend.dtype, own_rows, head.max(value));
    let (keys, values) =
        (Tile::new(scope, attend.dtype, columns, head), Tile::new(scope, attend.dtype, columns, value));
    let (scores, sums) = (engine.registers(scope, columns), engine.registers(scope, value));
    let of = attend.of;
    let q = Source::new(scope, attend, attend.q, &of.q, Rows::Queries);
    let k = Source::new(scope, attend, attend.k, &of.k, Rows::Keys);
    let v = Source::new(scope, attend, attend.v, &of.v, Rows::Keys);
    let outer = scope.unflatten(group, &attend.outer);
    // the last queries see the most keys: they begin first
    let tile = if of.causal.is_some() { scope.k.bind(tiles - 1 - tile) } else { tile };
    let first = scope.k.bind(tile * own_rows);
    let end = attend.end_of_keys(scope, &first, own_rows);
    let steps = scope.k.bind(end.ceil_div(columns));
    scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
        let lanes = Lanes::new(scope, thread);
        let thread = lanes.thread.clone();
        q.bring(scope, attend, (&own, &outer), &first, &thread);
        k.bring(scope, attend, (&keys, &outer), &Expr::int(0), &thread);
        scope.k.commit_copies();
        v.bring(scope, attend, (&values, &outer), &Expr::int(0), &thread);
        scope.k.commit_copies();
        engine.clear(scope, sums, value);
        let rows: SmallVec<[(i64, Expr, Softmax); 2]> = (0..engine.groups())
            .map(|group| {
                let row = scope.k.bind(&first + engine.row(&lanes, group));
                (group, row, Softmax::new(scope))
            })
            .collect();
        scope.for_(Expr::int(0), steps, LoopKind::Serial, |scope, step| {
            let start = scope.k.bind(&step * columns);
            let next = scope.k.bind(&start + columns);
            // the keys are there; the values may be on their way
            scope.k.wait_copies(1);
            scope.k.barrier();
            engine.scores(scope, &lanes, scores, &own, &keys);
            scope.k.barrier();
            k.bring(scope, attend, (&keys, &outer), &next, &thread);
            scope.k.commit_copies();
            for (group, row, softmax) in &rows {
                let top = scope.k.variable(Expr::Var(softmax.top));
                scope.for_(Expr::int(0), Expr::int(columns / 4), LoopKind::Unroll, |scope, i| {
                    let key = scope.k.bind(&start + engine.column(&lanes, &i));
                    let at = scope.k.bind(engine.register(&i, *group));
                    let place = Place { outer: &outer, query: row.clone(), key };
                    let logit = attend.logit(scope, scores.load(&at), &place);
                    let logit = scope.k.bind(logit);
                    scope.k.accumulate(top, ReduceOp::Max, &logit);
                    scope.k.store(scores, at, logit);
                });
                scope.k.lanes_reduce(top, ReduceOp::Max, SHARING);
                let shift = Softmax::shift(scope, Expr::Var(top));
                let scale = (Expr::Var(softmax.top) - &shift).unary(UnaryOp::Exp);
                let scale = scope.k.bind(scale);
                scope.k.assign(softmax.total, Expr::Var(softmax.total) * &scale);
                scope.for_(Expr::int(0), Expr::int(columns / 4), LoopKind::Unroll, |scope, i| {
                    let at = scope.k.bind(engine.register(&i, *group));
                    let weight = scope.k.bind((scores.load(&at) - &shift).unary(UnaryOp::Exp));
                    scope.k.accumulate(softmax.total, ReduceOp::Sum, &weight);
                    scope.k.store(scores, at, weight);
                });
                scope.k.assign(softmax.top, Expr::Var(top));
                scope.for_(Expr::int(0), Expr::int(value / 4), LoopKind::Unroll, |scope, i| {
                    let at = scope.k.bind(engine.register(&i, *group));
                    scope.k.store(sums, &at, sums.load(&at) * &scale);
                });
            }
            scope.k.wait_copies(1);
            scope.k.barrier();
            engine.combine(scope, &lanes, (sums, value), scores, (&values, &Expr::int(0)));
            scope.k.barrier();
            v.bring(scope, attend, (&values, &outer), &next, &thread);
            scope.k.commit_copies();
        });
        scope.k.wait_copies(0);
        scope.k.barrier();
        for (group, row, softmax) in &rows {
            scope.k.lanes_reduce(softmax.total, ReduceOp::Sum, SHARING);
            let (scale, log) = softmax.finish(scope, of.empty_is_zero);
            scope.for_(Expr::int(0), Expr::int(value / 4), LoopKind::Unroll, |scope, i| {
                let at = scope.k.bind(engine.register(&i, *group));
                scope.k.store(sums, &at, sums.load(&at) * &scale);
            });
            let queries = scope.dim(&attend.queries);
            scope.if_(lanes.part.equal(0).and(row.less(queries)), |scope| {
                let place = Place { outer: &outer, query: row.clone(), key: Expr::int(0) };
                let index = attend.index(&attend.rows(), &place, &Expr::int(0));
                let address = scope.address((attend.id, 1), &index);
                scope.k.store(lse, address, log);
            });
        }
        let to = Target {
            attend,
            memory: out,
            part: 0,
            labels: &of.o,
            rows: Rows::Queries,
            outer: &outer,
            first_row: first.clone(),
            first_channel: Expr::int(0),
        };
        engine.store(scope, &lanes, (sums, value), &own, &to);
    });
}
