//! A row operator after a product: the block that wrote whole rows normalises them, a warp a row.

use egret_ir::ops::{Norm, NormKind, Softmax};
use egret_ir::{DType, Op, ScalarExpr};
use smallvec::SmallVec;

use super::fma::{Block, Product, THREADS, TILE};
use crate::kernel::{Expr, LoopKind, ReduceOp, UnaryOp};
use crate::schedule::row::apply;
use crate::schedule::scope::Scope;

/// Threads of a warp.
const WARP: i64 = 32;

/// A row that a warp owns.
struct Row<'r> {
    product: &'r Product<'r>,
    batch: &'r [Expr],
    row: SmallVec<[Expr; 6]>,
    lane: Expr,
    /// Columns; none where the row is beyond the last.
    count: Expr,
    dtype: DType,
}

/// Applies a row operator and a program to the block's rows, which are in the result's place.
pub fn build(scope: &mut Scope, product: &Product, block: &Block, op: &Op, finish: &ScalarExpr) {
    let warps = THREADS / WARP;
    let own = TILE / warps;
    let lane = scope.k.bind(&block.thread % WARP);
    let first = scope.k.bind(&block.row0 + &block.thread / WARP * own);
    let dtype = scope.graph.tensor_type(product.problem.id).dtype;
    scope.for_(Expr::int(0), Expr::int(own), LoopKind::Serial, |scope, i| {
        let at = scope.k.bind(first + i);
        // all threads meet in the reductions, so a row beyond the last is an empty one
        let count = at.less(&product.rows.end).select(&product.columns.end, Expr::int(0));
        let count = scope.k.bind(count);
        let at = scope.k.bind(at.min(&product.rows.end - 1));
        let row = scope.unflatten(at, &product.rows.parts);
        Row { product, batch: &block.batch, row, lane, count, dtype }.normalise(scope, op, finish);
    });
}

impl Row<'_> {
    fn index(&self, column: &Expr) -> SmallVec<[Expr; 6]> {
        self.product.problem.result(self.batch, &self.row, std::slice::from_ref(column))
    }

    fn load(&self, scope: &mut Scope, column: &Expr) -> Expr {
        let address = scope.address((self.product.problem.id, 0), &self.index(column));
        self.product.outs[0].load(address)
    }

    fn each(&self, scope: &mut Scope, body: impl FnOnce(&mut Scope, Expr)) {
        scope.for_step(self.lane.clone(), self.count.clone(), WARP, LoopKind::Serial, body);
    }

    fn fold(&self, scope: &mut Scope, op: ReduceOp, start: f64, value: impl FnOnce(&mut Scope, &Expr) -> Expr) -> Expr {
        let total = scope.k.variable(Expr::constant(self.dtype, start));
        self.each(scope, |scope, column| {
            let value = value(scope, &column);
            scope.k.accumulate(total, op, value);
        });
        scope.k.warp_reduce(total, op);
        Expr::Var(total)
    }

    fn normalise(&self, scope: &mut Scope, op: &Op, finish: &ScalarExpr) {
        // shift and scale of the row's elements
        let (shift, scale) = match op {
            Op::Softmax(Softmax { log, .. }) => {
                let top = self.fold(scope, ReduceOp::Max, f64::NEG_INFINITY, |s, c| self.load(s, c));
                let total = self.fold(scope, ReduceOp::Sum, 0.0, |scope, column| {
                    let e = (self.load(scope, column) - &top).unary(UnaryOp::Exp);
                    if *log {
                        return e;
                    }
                    // the exponentials wait in the row's place
                    let e = scope.k.bind(e);
                    let address = scope.address((self.product.problem.id, 0), &self.index(column));
                    scope.k.store(self.product.outs[0], address, e.clone());
                    e
                });
                if *log {
                    (Some(scope.k.bind(top + total.unary(UnaryOp::Log))), None)
                } else {
                    (None, Some(scope.k.bind(Expr::constant(self.dtype, 1.0) / total)))
                }
            }
            Op::Norm(norm) => {
                let Norm { kind, eps, .. } = &**norm;
                let n = scope.k.bind(self.product.columns.end.clone().cast(self.dtype));
                let mean = (*kind == NormKind::Layer).then(|| {
                    let total = self.fold(scope, ReduceOp::Sum, 0.0, |s, c| self.load(s, c));
                    scope.k.bind(total / &n)
                });
                let squares = self.fold(scope, ReduceOp::Sum, 0.0, |scope, column| {
                    let mut d = self.load(scope, column);
                    if let Some(mean) = &mean {
                        d = d - mean;
                    }
                    let d = scope.k.bind(d);
                    &d * &d
                });
                let variance = squares / n + Expr::constant(self.dtype, eps.get());
                (mean, Some(scope.k.bind(variance.unary(UnaryOp::Rsqrt))))
            }
            _ => (None, None),
        };
        let graph = scope.graph;
        let Op::Fused(fused) = &graph.node(self.product.problem.id).op else { return };
        self.each(scope, |scope, column| {
            let mut value = self.load(scope, &column);
            if let Some(shift) = shift {
                value = value - shift;
            }
            if let Some(scale) = scale {
                value = value * scale;
            }
            let index = self.index(&column);
            let value = apply(scope, self.product.problem.id, &index, finish, (value, fused.dtype));
            let address = scope.address((self.product.problem.id, 0), &index);
            scope.k.store(self.product.outs[0], address, value);
        });
    }
}
