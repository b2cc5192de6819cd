//! One query: its keys are dealt to blocks, and in a block to runs of lanes, each of which has a softmax of its own. What
//! they have is joined in order, first in the block, then by a second kernel.

use egret_ir::{DType, Diagnostic, Dim};
use smallvec::SmallVec;

use super::forward::Softmax;
use super::{Attend, Place};
use crate::kernel::{Expr, LoopKind, Memory, ReduceOp, Space, UnaryOp};
use crate::schedule::cuda::{expected, finished};
use crate::schedule::scope::{Scope, Stored};
use crate::schedule::{Passes, Temporary};

/// Threads of a block.
const THREADS: i64 = 128;
/// Channels of a lane: 16 bytes of halves.
const OWN: i64 = 8;
/// Keys that a run of lanes scores before it weighs them.
const KEYS: i64 = 4;
/// Blocks that fill a GPU.
const ENOUGH: i64 = 256;
/// Least keys of a block.
const LEAST: i64 = 256;

struct Decode<'a> {
    attend: &'a Attend<'a>,
    /// Lanes of a run.
    lanes: i64,
    /// Runs of a block.
    runs: i64,
    /// Blocks of a row.
    parts: i64,
    /// Keys of a part.
    each: Dim,
}

/// Blocks that the keys of a row are dealt to: enough to fill a GPU.
pub fn parts(attend: &Attend) -> i64 {
    let rows = expected(&attend.row_shape().elements()).max(1);
    (ENOUGH / rows).min(expected(&attend.keys) / LEAST).max(1)
}

/// Builds the kernels.
pub fn generate(attend: &Attend, stored: &dyn Stored, exact: bool, parts: i64) -> Result<Passes, Diagnostic> {
    let channels = attend.head.max(attend.value) as u64;
    let lanes = (channels.div_ceil(OWN as u64).next_power_of_two() as i64).max(2);
    let each = match attend.keys.as_const() {
        Some(keys) => Dim::from((keys as u64).div_ceil(parts as u64) as i64),
        None => attend.keys.ceil_div(&Dim::from(parts)),
    };
    let decode = Decode { attend, lanes, runs: THREADS / lanes, parts, each };
    let mut scope = Scope::on_gpu(attend.graph, stored, exact, THREADS as u32);
    decode.build(&mut scope);
    let mut passes = Passes::from(finished(scope, attend.id)?);
    if parts > 1 {
        // by row and part: the sums, then the greatest logit and the total
        let elements = attend.row_shape().elements() * Dim::from(parts * (attend.value + 2));
        passes.temporaries.push(Temporary { dtype: DType::F32, elements });
        let mut scope = Scope::on_gpu(attend.graph, stored, exact, THREADS as u32);
        decode.join(&mut scope);
        passes.kernels.push(finished(scope, attend.id)?);
    }
    Ok(passes)
}

impl Decode<'_> {
    /// Outer indices, by role, of a flat row.
    fn outer(&self, scope: &mut Scope, row: Expr) -> SmallVec<[Expr; 6]> {
        let attend = self.attend;
        let index = scope.unflatten(row, &attend.row_shape());
        let labels = attend.rows();
        let of = |label: u8| labels.axis(label).and_then(|axis| index.get(axis)).cloned().unwrap_or(Expr::int(0));
        attend.roles.outer.iter().map(|l| of(*l)).collect()
    }

    fn build(&self, scope: &mut Scope) {
        let attend = self.attend;
        let of = attend.of;
        let split = self.parts > 1;
        let outs = match split {
            false => [scope.write((attend.id, 0)), scope.write((attend.id, 1))],
            true => [scope.temporary(attend.id, 0, DType::F32, true); 2],
        };
        let rows = scope.dim(&attend.row_shape().elements());
        let row = scope.k.grid(rows);
        let part = if split { scope.k.grid(Expr::int(self.parts)) } else { Expr::int(0) };
        let register = |scope: &mut Scope, n: i64| scope.k.scratch(DType::F32, n as usize, Space::Register);
        let [query, sums] = [OWN, OWN].map(|n| register(scope, n));
        let scores = register(scope, KEYS);
        let shared = |scope: &mut Scope, n: i64| scope.k.scratch(DType::F32, n as usize, Space::Shared);
        let (tops, totals) = (shared(scope, self.runs), shared(scope, self.runs));
        let all = shared(scope, self.runs * attend.value);
        let outer = self.outer(scope, row.clone());
        let keys = scope.dim(&attend.keys);
        let each = scope.dim(&self.each);
        let begin = scope.k.bind(&part * &each);
        let end = scope.k.bind((&begin + each).min(keys));
        let (head, value) = (Expr::int(attend.head), Expr::int(attend.value));
        let own = Expr::int(OWN);
        let place = |key: Expr| Place { outer: &outer, query: Expr::int(0), key };
        scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
            let (lane, run) = (scope.k.bind(&thread % self.lanes), scope.k.bind(&thread / self.lanes));
            let first = scope.k.bind(lane * OWN);
            scope.for_(Expr::int(0), own.clone(), LoopKind::Unroll, |scope, i| {
                let channel = scope.k.bind(&first + &i);
                let inside = scope.k.bind(channel.less(&head));
                let index = attend.index(&of.q, &place(Expr::int(0)), &channel);
                let x = scope.masked(inside.clone(), |scope| scope.element(attend.q, &index)).cast(DType::F32);
                scope.k.store(query, &i, inside.select(x, 0.0f32));
                scope.k.store(sums, i, 0.0f32);
            });
            let softmax = Softmax::new(scope);
            let stride = self.runs * KEYS;
            let steps = scope.k.bind((&end - &begin).max(0).ceil_div(stride));
            scope.for_(Expr::int(0), steps, LoopKind::Serial, |scope, step| {
                // neighbouring runs have neighbouring keys
                let start = scope.k.bind(&begin + step * stride + &run);
                let top = scope.k.variable(Expr::Var(softmax.top));
                scope.for_(Expr::int(0), Expr::int(KEYS), LoopKind::Unroll, |scope, i| {
                    let key = scope.k.bind(&start + &i * self.runs);
                    let inside = scope.k.bind(key.less(&end));
                    let score = scope.k.variable(0.0f32);
                    scope.for_(Expr::int(0), own.clone(), LoopKind::Unroll, |scope, c| {
                        let channel = scope.k.bind(&first + &c);
                        let here = scope.k.bind(inside.and(channel.less(&head)));
                        let index = attend.index(&of.k, &place(key.clone()), &channel);
                        let x = scope.masked(here.clone(), |scope| scope.element(attend.k, &index)).cast(DType::F32);
                        scope.k.accumulate(score, ReduceOp::Sum, query.load(c) * here.select(x, 0.0f32));
                    });
                    scope.k.lanes_reduce(score, ReduceOp::Sum, self.lanes as u32);
                    let logit = attend.program(scope, &attend.score, Expr::Var(score), &place(key), &inside);
                    let logit = inside.select(logit, Expr::constant(DType::F32, f64::NEG_INFINITY));
                    let logit = scope.k.bind(logit);
                    scope.k.accumulate(top, ReduceOp::Max, &logit);
                    scope.k.store(scores, i, logit);
                });
                let shift = Softmax::shift(scope, Expr::Var(top));
                let scale = scope.k.bind((Expr::Var(softmax.top) - &shift).unary(UnaryOp::Exp));
                scope.k.assign(softmax.top, Expr::Var(top));
                scope.k.assign(softmax.total, Expr::Var(softmax.total) * &scale);
                scope.for_(Expr::int(0), own.clone(), LoopKind::Unroll, |scope, c| {
                    scope.k.store(sums, &c, sums.load(&c) * &scale);
                });
                scope.for_(Expr::int(0), Expr::int(KEYS), LoopKind::Unroll, |scope, i| {
                    let key = scope.k.bind(&start + &i * self.runs);
                    let inside = scope.k.bind(key.less(&end));
                    let weight = scope.k.bind((scores.load(i) - &shift).unary(UnaryOp::Exp));
                    scope.k.accumulate(softmax.total, ReduceOp::Sum, &weight);
                    scope.for_(Expr::int(0), own.clone(), LoopKind::Unroll, |scope, c| {
                        let channel = scope.k.bind(&first + &c);
                        let here = scope.k.bind(inside.and(channel.less(&value)));
                        let index = attend.index(&of.v, &place(key.clone()), &channel);
                        let x = scope.masked(here.clone(), |scope| scope.element(attend.v, &index)).cast(DType::F32);
                        scope.k.store(sums, &c, &weight * here.select(x, 0.0f32) + sums.load(&c));
                    });
                });
            });
            scope.if_(thread.equal(&run * self.lanes), |scope| {
                scope.k.store(tops, &run, Expr::Var(softmax.top));
                scope.k.store(totals, &run, Expr::Var(softmax.total));
            });
            scope.for_(Expr::int(0), own, LoopKind::Unroll, |scope, c| {
                let channel = scope.k.bind(&first + &c);
                scope.if_(channel.less(&value), |scope| {
                    scope.k.store(all, &run * attend.value + channel, sums.load(c));
                });
            });
            scope.k.barrier();
            let count = Expr::int(self.runs);
            let joined = Joined { count, tops: &|run| tops.load(run), totals: &|run| totals.load(run) };
            let (softmax, shift) = joined.softmax(scope);
            let sum = |scope: &mut Scope, channel: &Expr| {
                joined.sum(scope, &shift, &|run| all.load(run * attend.value + channel))
            };
            if !split {
                return self.finish(scope, &thread, outs, &outer, &softmax, &sum);
            }
            let at = scope.k.bind((row * self.parts + part) * (attend.value + 2));
            scope.for_step(thread.clone(), value, THREADS, LoopKind::Serial, |scope, channel| {
                let sum = sum(scope, &channel);
                scope.k.store(outs[0], &at + channel, sum);
            });
            scope.if_(thread.equal(0), |scope| {
                scope.k.store(outs[0], &at + attend.value, Expr::Var(softmax.top));
                scope.k.store(outs[0], &at + attend.value + 1, Expr::Var(softmax.total));
            });
        });
    }

    /// Joins the parts of each row.
    fn join(&self, scope: &mut Scope) {
        let attend = self.attend;
        let outs = [scope.write((attend.id, 0)), scope.write((attend.id, 1))];
        let parts = scope.temporary(attend.id, 0, DType::F32, false);
        let rows = scope.dim(&attend.row_shape().elements());
        let row = scope.k.grid(rows);
        let outer = self.outer(scope, row.clone());
        let pitch = attend.value + 2;
        let at = scope.k.bind(row * (self.parts * pitch));
        scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
            let joined = Joined {
                count: Expr::int(self.parts),
                tops: &|part| parts.load(&at + part * pitch + attend.value),
                totals: &|part| parts.load(&at + part * pitch + (attend.value + 1)),
            };
            let (softmax, shift) = joined.softmax(scope);
            let sum = |scope: &mut Scope, channel: &Expr| {
                joined.sum(scope, &shift, &|part| parts.load(&at + part * pitch + channel))
            };
            self.finish(scope, &thread, outs, &outer, &softmax, &sum);
        });
    }

    /// Stores the result and log-sum-exp of a row of which all is known.
    fn finish(
        &self,
        scope: &mut Scope,
        thread: &Expr,
        [out, lse]: [Memory; 2],
        outer: &[Expr],
        softmax: &Softmax,
        sum: &dyn Fn(&mut Scope, &Expr) -> Expr,
    ) {
        let attend = self.attend;
        let place = Place { outer, query: Expr::int(0), key: Expr::int(0) };
        let (scale, log) = softmax.finish(scope, attend.of.empty_is_zero);
        scope.for_step(thread.clone(), Expr::int(attend.value), THREADS, LoopKind::Serial, |scope, channel| {
            let value = sum(scope, &channel) * scale;
            let value = if attend.dtype == DType::F32 { value } else { value.cast(attend.dtype) };
            let index = attend.index(&attend.of.o, &place, &channel);
            let address = scope.address((attend.id, 0), &index);
            scope.k.store(out, address, value);
        });
        scope.if_(thread.equal(0), |scope| {
            let index = attend.index(&attend.rows(), &place, &Expr::int(0));
            let address = scope.address((attend.id, 1), &index);
            scope.k.store(lse, address, log);
        });
    }
}

/// Softmaxes of parts of a row, in order.
struct Joined<'j> {
    count: Expr,
    tops: &'j dyn Fn(&Expr) -> Expr,
    totals: &'j dyn Fn(&Expr) -> Expr,
}

impl Joined<'_> {
    /// The softmax of all, and what is taken from its logits.
    fn softmax(&self, scope: &mut Scope) -> (Softmax, Expr) {
        let softmax = Softmax::new(scope);
        scope.for_(Expr::int(0), self.count.clone(), LoopKind::Serial, |scope, part| {
            scope.k.accumulate(softmax.top, ReduceOp::Max, (self.tops)(&part));
        });
        let shift = Softmax::shift(scope, Expr::Var(softmax.top));
        scope.for_(Expr::int(0), self.count.clone(), LoopKind::Serial, |scope, part| {
            let scale = ((self.tops)(&part) - &shift).unary(UnaryOp::Exp);
            scope.k.accumulate(softmax.total, ReduceOp::Sum, (self.totals)(&part) * scale);
        });
        (softmax, shift)
    }

    /// A sum of all parts.
    fn sum(&self, scope: &mut Scope, shift: &Expr, sums: &dyn Fn(&Expr) -> Expr) -> Expr {
        let sum = scope.k.variable(0.0f32);
        scope.for_(Expr::int(0), self.count.clone(), LoopKind::Serial, |scope, part| {
            let scale = ((self.tops)(&part) - shift).unary(UnaryOp::Exp);
            scope.k.accumulate(sum, ReduceOp::Sum, sums(&part) * scale);
        });
        Expr::Var(sum)
    }
}
