//! `non_max_suppression`: a block a batch entry and class takes, turn by turn, the best box that is left, and drops what
//! overlaps it; then as every operator of data-dependent size.

use egret_ir::ops::NonMaxSuppression;
use egret_ir::{DType, Diagnostic, Dim, Graph, NodeId};

use super::found::Counts;
use super::{finished, map};
use crate::kernel::{Expr, LoopKind, ReduceOp, UnaryOp};
use crate::schedule::map::grid_over;
use crate::schedule::scope::{Scope, Stored};
use crate::schedule::{Passes, Temporary};

const THREADS: i64 = map::THREADS;
/// Temporaries, by number: whether a box is left, the boxes that were taken, and how many of a class.
const LEFT: usize = 0;
const TAKEN: usize = 1;
const COUNTS: usize = 2;

/// Least and greatest y and x of a box.
type Corners = [Expr; 4];

struct Suppression<'s> {
    graph: &'s Graph,
    id: NodeId,
    op: &'s NonMaxSuppression,
    classes: Dim,
    boxes: Dim,
}

/// Builds the kernels.
///
/// # Errors
/// As [`super::generate`].
pub fn generate(graph: &Graph, stored: &dyn Stored, id: NodeId, op: &NonMaxSuppression) -> Result<Passes, Diagnostic> {
    let scores = &graph.tensor_type(graph.node(id).operands[1]).shape;
    let (batch, classes, boxes) = (scores[0].clone(), scores[1].clone(), scores[2].clone());
    let lists = batch.clone() * classes.clone();
    let elements = lists.clone() * boxes.clone();
    let mut passes = Passes::default();
    passes.temporaries.push(Temporary { dtype: DType::Bool, elements: elements.clone() });
    passes.temporaries.push(Temporary { dtype: DType::I64, elements });
    passes.temporaries.push(Temporary { dtype: DType::I64, elements: lists.clone() });
    // overlaps decide: they are rounded as the operator states
    let exact = true;
    let suppression = Suppression { graph, id, op, classes: classes.clone(), boxes: boxes.clone() };
    let mut scope = Scope::on_gpu(graph, stored, exact, THREADS as u32);
    suppression.choose(&mut scope, &[batch, classes.clone()]);
    passes.kernels.push(finished(scope, id)?);

    let size = graph.tensor_type(id).shape[0].clone();
    let counts = Counts { graph, stored, exact, id, list: lists, size, first_temporary: COUNTS + 1 };
    counts.scan(&mut passes, &mut |scope, at, inside| {
        let counts = scope.temporary_of(id, COUNTS, DType::I64);
        counts.load_if(inside.clone(), at)
    })?;
    counts.look_up(
        &mut passes,
        &mut |scope| vec![scope.write((id, 0)), scope.temporary(id, TAKEN, DType::I64, false)],
        &mut |scope, memories, number, list, before| {
            let (classes, boxes) = (scope.dim(&classes), scope.dim(&boxes));
            let taken = memories[1].load(&list * boxes + number - before);
            for (column, value) in [&list / &classes, &list % &classes, taken].into_iter().enumerate() {
                let address = scope.address((id, 0), &[number.clone(), Expr::int(column as i64)]);
                scope.k.store(memories[0], address, value);
            }
        },
    )?;
    Ok(passes)
}

/// The lesser, or the one that is a number.
fn lesser(a: &Expr, b: &Expr) -> Expr {
    a.less(b).or(b.clone().unary(UnaryOp::IsNan)).select(a.clone(), b.clone())
}

/// The greater, or the one that is a number.
fn greater(a: &Expr, b: &Expr) -> Expr {
    a.greater(b).or(b.clone().unary(UnaryOp::IsNan)).select(a.clone(), b.clone())
}

/// Intersection over union.
fn overlap(scope: &mut Scope, a: &Corners, b: &Corners) -> Expr {
    let zero = Expr::constant(DType::F64, 0.0);
    let area = |c: &Corners| (c[2].clone() - c[0].clone()) * (c[3].clone() - c[1].clone());
    let side = |i: usize| lesser(&a[i + 2], &b[i + 2]) - greater(&a[i], &b[i]);
    let (height, width) = (scope.k.bind(side(0)), scope.k.bind(side(1)));
    let common = scope.k.bind(greater(&height, &zero) * greater(&width, &zero));
    let union = scope.k.bind(area(a) + area(b) - common.clone());
    let counts = common.greater(zero.clone()).and(union.greater(zero.clone()));
    scope.k.bind(counts.select(common / union, zero))
}

impl Suppression<'_> {
    fn number(&self, scope: &mut Scope, operand: usize, index: &[Expr], dtype: DType) -> Expr {
        let id = self.graph.node(self.id).operands[operand];
        let value = scope.element(id, index);
        let value = if self.graph.tensor_type(id).dtype == dtype { value } else { value.cast(dtype) };
        scope.k.bind(value)
    }

    fn corners(&self, scope: &mut Scope, batch: &Expr, place: &Expr) -> Corners {
        let [a, b, c, d] =
            [0, 1, 2, 3].map(|i| self.number(scope, 0, &[batch.clone(), place.clone(), Expr::int(i)], DType::F64));
        if self.op.center {
            let half = |x: Expr| x / Expr::constant(DType::F64, 2.0);
            let (height, width) = (half(d), half(c));
            let corners = [b.clone() - height.clone(), a.clone() - width.clone(), b + height, a + width];
            return corners.map(|corner| scope.k.bind(corner));
        }
        [lesser(&a, &c), lesser(&b, &d), greater(&a, &c), greater(&b, &d)].map(|corner| scope.k.bind(corner))
    }

    /// The kernel that takes boxes. A thread has every 256th box, of which no other reads or writes whether it is left.
    fn choose(&self, scope: &mut Scope, lists: &[Dim]) {
        let left = scope.working(self.id, LEFT, DType::Bool);
        let taken = scope.temporary(self.id, TAKEN, DType::I64, true);
        let counts = scope.temporary(self.id, COUNTS, DType::I64, true);
        let list = grid_over(scope, lists);
        let (batch, class) = (list[0].clone(), list[1].clone());
        let (classes, boxes) = (scope.dim(&self.classes), scope.dim(&self.boxes));
        let number = scope.k.bind(&batch * classes + &class);
        let base = scope.k.bind(&number * &boxes);
        let most = self.number(scope, 2, &[], DType::I64);
        let (limit, threshold) = (self.number(scope, 3, &[], DType::F64), self.number(scope, 4, &[], DType::F64));
        let turns = scope.k.bind(most.min(&boxes).max(0));
        let score = |scope: &mut Scope, at: &Expr| {
            self.number(scope, 1, &[batch.clone(), class.clone(), at.clone()], DType::F64)
        };
        scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
            let own = |scope: &mut Scope, body: &mut dyn FnMut(&mut Scope, Expr)| {
                scope.for_step(thread.clone(), boxes.clone(), THREADS, LoopKind::Serial, |scope, at| body(scope, at));
            };
            own(scope, &mut |scope, at| {
                let is_left = score(scope, &at).greater(&threshold);
                scope.k.store(left, &base + at, is_left);
            });
            let count = scope.k.variable(Expr::int(0));
            scope.for_(Expr::int(0), turns, LoopKind::Serial, |scope, _| {
                let winner = self.best(scope, &boxes, &|scope, body| {
                    own(scope, &mut |scope, at| {
                        let is_left = scope.k.bind(left.load(&base + &at));
                        let score = score(scope, &at);
                        body(scope, at, is_left, score);
                    });
                });
                let found = scope.k.bind(winner.less(&boxes));
                scope.if_(found.clone(), |scope| {
                    let best = self.corners(scope, &batch, &winner);
                    scope.if_(thread.equal(0), |scope| {
                        scope.k.store(taken, &base + Expr::Var(count), winner.clone());
                    });
                    own(scope, &mut |scope, at| {
                        let corners = self.corners(scope, &batch, &at);
                        let overlap = overlap(scope, &best, &corners);
                        let stays = overlap.less_equal(&limit).and(at.not_equal(&winner));
                        let stays = stays.and(left.load(&base + &at));
                        scope.k.store(left, &base + &at, stays);
                    });
                });
                scope.k.accumulate(count, ReduceOp::Sum, found.select(Expr::int(1), Expr::int(0)));
            });
            scope.if_(thread.equal(0), |scope| scope.k.store(counts, &number, count));
        });
    }

    /// The best box that is left, of equal ones the lowest; the number of boxes where there is none.
    fn best(
        &self,
        scope: &mut Scope,
        boxes: &Expr,
        each: &dyn Fn(&mut Scope, &mut dyn FnMut(&mut Scope, Expr, Expr, Expr)),
    ) -> Expr {
        let best = scope.k.variable(Expr::constant(DType::F64, f64::NEG_INFINITY));
        let place = scope.k.variable(boxes.clone());
        each(scope, &mut |scope, at, is_left, score| {
            let first = Expr::Var(place).equal(boxes);
            let better = scope.k.bind(is_left.and(first.or(score.greater(Expr::Var(best)))));
            scope.k.assign(best, better.clone().select(score, Expr::Var(best)));
            scope.k.assign(place, better.select(at, Expr::Var(place)));
        });
        let top = scope.k.variable(Expr::Var(best));
        scope.k.block_reduce(top, ReduceOp::Max);
        let is_best = Expr::Var(best).equal(Expr::Var(top));
        let winner = scope.k.variable(is_best.select(Expr::Var(place), boxes.clone()));
        scope.k.block_reduce(winner, ReduceOp::Min);
        scope.k.bind(Expr::Var(winner))
    }
}
