//! Gradients: with `p` the weights of values, `dv = pᵀ·do`, `dp = do·vᵀ`, `ds = p·(dp − Σ o·do)·score'`, `dq = ds·k`,
//! `dk = dsᵀ·q`. The weights are made again from the log-sum-exps.
//!
//! Three kernels: the sums `Σ o·do` of each row; the gradient of queries, by tiles of queries past which keys stream; those
//! of keys and values, by tiles of keys past which queries stream, of every head that shares them. Nothing is added by
//! several blocks to one place.

use egret_ir::{DType, Diagnostic, Dim, NodeId, ScalarExpr};
use smallvec::SmallVec;

use super::tiles::{Engine, Lanes, Rows, Source, THREADS, Target, Tile, owned, padded};
use super::{Attend, Place};
use crate::kernel::{Expr, LoopKind, Memory, ReduceOp, Space, UnaryOp};
use crate::raise::spell::widened;
use crate::schedule::cuda::finished;
use crate::schedule::scope::{Scope, Stored};
use crate::schedule::{Passes, Temporary};

/// Most channels of the gradients of keys and values that a block keeps in registers.
const MOST_KEPT: i64 = 128;
/// Threads of a warp.
const WARP: i64 = 32;

/// Rows of a tile that streams.
pub fn columns(attend: &Attend) -> i64 {
    let wide = padded(attend.head.max(attend.value)) > 128;
    match (attend.dtype, wide) {
        (DType::F32, false) => 16,
        (DType::F32, true) => 8,
        (_, false) => 32,
        (_, true) => 16,
    }
}

struct Gradient<'a> {
    attend: &'a Attend<'a>,
    o: NodeId,
    lse: NodeId,
    d_o: NodeId,
    slope: ScalarExpr,
    /// Rows of a tile that streams.
    columns: i64,
}

/// Builds the kernels, with tiles of so many rows.
pub fn generate(attend: &Attend, stored: &dyn Stored, exact: bool, columns: i64) -> Result<Passes, Diagnostic> {
    let operands = &attend.graph.node(attend.id).operands;
    let mut dtypes: Vec<DType> = vec![attend.dtype];
    dtypes.extend(attend.extras.iter().map(|extra| attend.graph.tensor_type(*extra).dtype));
    let slope = attend.of.score.derivative(0, &dtypes);
    let slope = slope.map_or_else(|| ScalarExpr::float(0.0, DType::F32), |slope| widened(&slope));
    let gradient = Gradient { attend, o: operands[3], lse: operands[4], d_o: operands[5], slope, columns };
    let kernel = |build: &dyn Fn(&mut Scope)| {
        let mut scope = Scope::on_gpu(attend.graph, stored, exact, THREADS as u32);
        build(&mut scope);
        finished(scope, attend.id)
    };
    Ok(Passes {
        kernels: vec![
            kernel(&|scope| gradient.sums(scope))?,
            kernel(&|scope| gradient.of_queries(scope))?,
            kernel(&|scope| gradient.of_keys(scope))?,
        ],
        temporaries: vec![Temporary { dtype: DType::F32, elements: attend.row_shape().elements() }],
        told: None,
    })
}

/// Registers of a tile's scores, and of their gradients.
struct Pair {
    scores: Memory,
    slopes: Memory,
}

/// What is known of a score's row: the log-sum-exp of its logits, and the sum that is taken from its gradient.
struct Row {
    lse: Expr,
    sum: Expr,
}

impl Gradient<'_> {
    /// `Σ o·do` of each row, a warp a row.
    fn sums(&self, scope: &mut Scope) {
        let attend = self.attend;
        let out = scope.temporary(attend.id, 0, DType::F32, true);
        let shape = attend.row_shape();
        let rows = scope.dim(&shape.elements());
        let warps = THREADS / WARP;
        let blocks = scope.dim(&shape.elements().ceil_div(&Dim::from(warps)));
        let block = scope.k.grid(blocks);
        scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
            let row = scope.k.bind(block * warps + &thread / WARP);
            let lane = scope.k.bind(thread % WARP);
            let inside = scope.k.bind(row.less(rows));
            let (outer, query) = self.place_of(scope, &row);
            let sum = scope.k.variable(0.0f32);
            scope.if_(inside.clone(), |scope| {
                scope.for_step(lane.clone(), Expr::int(attend.value), WARP, LoopKind::Serial, |scope, channel| {
                    let place = Place { outer: &outer, query: query.clone(), key: Expr::int(0) };
                    let index = attend.index(&attend.of.o, &place, &channel);
                    let [o, d_o] = [self.o, self.d_o].map(|id| scope.element(id, &index).cast(DType::F32));
                    scope.k.accumulate(sum, ReduceOp::Sum, o * d_o);
                });
            });
            scope.k.warp_reduce(sum, ReduceOp::Sum);
            scope.if_(inside.and(lane.equal(0)), |scope| scope.k.store(out, row, Expr::Var(sum)));
        });
    }

    /// Outer indices and query of a flat row.
    fn place_of(&self, scope: &mut Scope, row: &Expr) -> (SmallVec<[Expr; 6]>, Expr) {
        let attend = self.attend;
        let index = scope.unflatten(row.clone(), &attend.row_shape());
        let labels = attend.rows();
        let of = |label: u8| labels.axis(label).and_then(|axis| index.get(axis)).cloned().unwrap_or(Expr::int(0));
        (attend.roles.outer.iter().map(|l| of(*l)).collect(), attend.roles.query.map_or(Expr::int(0), of))
    }

    /// The saved log-sum-exp of a query and its sum; zeros where there is no such query.
    fn row(&self, scope: &mut Scope, sums: Memory, place: &Place) -> Row {
        let attend = self.attend;
        let queries = scope.dim(&attend.queries);
        let inside = scope.k.bind(place.query.less(queries));
        let index = attend.index(&attend.rows(), place, &Expr::int(0));
        let lse = scope.masked(inside.clone(), |scope| scope.element(self.lse, &index));
        let lse = scope.k.bind(inside.clone().select(lse, 0.0f32));
        let mut at = Expr::int(0);
        for (i, extent) in index.iter().zip(attend.row_shape().iter()) {
            let extent = scope.dim(extent);
            at = at * extent + i;
        }
        let sum = scope.k.bind(sums.load_if(inside, at));
        Row { lse, sum }
    }

    /// Turns a raw score and the gradient of its weight into the weight and the gradient of the raw score.
    fn element(&self, scope: &mut Scope, pair: &Pair, at: &Expr, place: &Place, row: &Row) {
        let attend = self.attend;
        let seen = attend.seen(scope, place);
        let raw = scope.k.bind(pair.scores.load(at));
        let logit = attend.program(scope, &attend.score, raw.clone(), place, &seen);
        let mut weight = seen.clone().select((logit - &row.lse).unary(UnaryOp::Exp), 0.0f32);
        if attend.of.empty_is_zero {
            let empty = row.lse.equal(Expr::constant(DType::F32, f64::NEG_INFINITY));
            weight = empty.select(0.0f32, weight);
        }
        let weight = scope.k.bind(weight);
        let slope = attend.program(scope, &self.slope, raw, place, &seen);
        let change = &weight * (pair.slopes.load(at) - &row.sum) * seen.select(slope, 0.0f32);
        scope.k.store(pair.slopes, at, change);
        scope.k.store(pair.scores, at, weight);
    }

    fn of_queries(&self, scope: &mut Scope) {
        let attend = self.attend;
        let of = attend.of;
        let (own_rows, columns) = (owned(attend.dtype), self.columns);
        let (head, value) = (padded(attend.head), padded(attend.value));
        let out = scope.write((attend.id, 0));
        let sums = scope.temporary(attend.id, 0, DType::F32, false);
        let groups = scope.dim(&attend.outer.iter().fold(Dim::ONE, |n, d| n * d.clone()));
        let tiles = scope.dim(&attend.queries.ceil_div(&Dim::from(own_rows)));
        let (group, tile) = (scope.k.grid(groups), scope.k.grid(tiles));
        let engine = Engine::new(scope, attend.dtype, columns);
        let dtype = attend.dtype;
        let [own_q, own_do] = [head, value].map(|width| Tile::new(scope, dtype, own_rows, width));
        let [keys, values] = [head, value].map(|width| Tile::new(scope, dtype, columns, width));
        let pair = Pair { scores: engine.registers(scope, columns), slopes: engine.registers(scope, columns) };
        let total = engine.registers(scope, head);
        let q = Source::new(scope, attend, attend.q, &of.q, Rows::Queries);
        let d_o = Source::new(scope, attend, self.d_o, &of.o, Rows::Queries);
        let k = Source::new(scope, attend, attend.k, &of.k, Rows::Keys);
        let v = Source::new(scope, attend, attend.v, &of.v, Rows::Keys);
        let outer = scope.unflatten(group, &attend.outer);
        let first = scope.k.bind(tile * own_rows);
        let end = attend.end_of_keys(scope, &first, own_rows);
        let steps = scope.k.bind(end.ceil_div(columns));
        scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
            let lanes = Lanes::new(scope, thread);
            let thread = lanes.thread.clone();
            q.bring(scope, attend, (&own_q, &outer), &first, &thread);
            d_o.bring(scope, attend, (&own_do, &outer), &first, &thread);
            engine.clear(scope, total, head);
            let rows: SmallVec<[(i64, Expr, Row); 2]> = (0..engine.groups())
                .map(|group| {
                    let query = scope.k.bind(&first + engine.row(&lanes, group));
                    let place = Place { outer: &outer, query: query.clone(), key: Expr::int(0) };
                    let row = self.row(scope, sums, &place);
                    (group, query, row)
                })
                .collect();
            scope.for_(Expr::int(0), steps, LoopKind::Serial, |scope, step| {
                let start = scope.k.bind(step * columns);
                k.bring(scope, attend, (&keys, &outer), &start, &thread);
                v.bring(scope, attend, (&values, &outer), &start, &thread);
                scope.k.commit_copies();
                scope.k.wait_copies(0);
                scope.k.barrier();
                engine.scores(scope, &lanes, pair.scores, &own_q, &keys);
                engine.scores(scope, &lanes, pair.slopes, &own_do, &values);
                for (group, query, row) in &rows {
                    scope.for_(Expr::int(0), Expr::int(columns / 4), LoopKind::Unroll, |scope, i| {
                        let key = scope.k.bind(&start + engine.column(&lanes, &i));
                        let at = scope.k.bind(engine.register(&i, *group));
                        let place = Place { outer: &outer, query: query.clone(), key };
                        self.element(scope, &pair, &at, &place, row);
                    });
                }
                engine.combine(scope, &lanes, (total, head), pair.slopes, (&keys, &Expr::int(0)));
                scope.k.barrier();
            });
            // without keys there was no wait
            scope.k.wait_copies(0);
            scope.k.barrier();
            let to = Target {
                attend,
                memory: out,
                part: 0,
                labels: &of.q,
                rows: Rows::Queries,
                outer: &outer,
                first_row: first.clone(),
                first_channel: Expr::int(0),
            };
            engine.store(scope, &lanes, (total, head), &own_q, &to);
        });
    }

    fn of_keys(&self, scope: &mut Scope) {
        let attend = self.attend;
        let of = attend.of;
        let (own_rows, columns) = (owned(attend.dtype), self.columns);
        // a block has a slice of the gradients' channels, and makes all of the scores
        let widest = padded(attend.head.max(attend.value));
        let slices = if attend.dtype == DType::F32 { 1 } else { (widest + MOST_KEPT - 1) / MOST_KEPT };
        let sliced = |channels: i64| padded((padded(channels) + slices - 1) / slices);
        let (kept_head, kept_value) = (sliced(attend.head), sliced(attend.value));
        let (head, value) = (kept_head * slices, kept_value * slices);
        let (out_k, out_v) = (scope.write((attend.id, 1)), scope.write((attend.id, 2)));
        let sums = scope.temporary(attend.id, 0, DType::F32, false);
        let own_axes = attend.outer.len() - attend.roles.shared;
        let (own_outer, shared) = attend.outer.split_at(own_axes);
        let product = |dims: &[Dim]| dims.iter().fold(Dim::ONE, |n, d| n * d.clone());
        let groups = scope.dim(&product(own_outer));
        let tiles = scope.dim(&attend.keys.ceil_div(&Dim::from(own_rows)));
        let (group, tile) = (scope.k.grid(groups), scope.k.grid(tiles));
        let slice = if slices > 1 { scope.k.grid(Expr::int(slices)) } else { Expr::int(0) };
        let engine = Engine::new(scope, attend.dtype, columns);
        let dtype = attend.dtype;
        let [own_k, own_v] = [head, value].map(|width| Tile::new(scope, dtype, own_rows, width));
        let [queries, changes] = [head, value].map(|width| Tile::new(scope, dtype, columns, width));
        let known = [0, 1].map(|_| scope.k.scratch(DType::F32, columns as usize, Space::Shared));
        let pair = Pair { scores: engine.registers(scope, columns), slopes: engine.registers(scope, columns) };
        let (total_k, total_v) = (engine.registers(scope, kept_head), engine.registers(scope, kept_value));
        let k = Source::new(scope, attend, attend.k, &of.k, Rows::Keys);
        let v = Source::new(scope, attend, attend.v, &of.v, Rows::Keys);
        let q = Source::new(scope, attend, attend.q, &of.q, Rows::Queries);
        let d_o = Source::new(scope, attend, self.d_o, &of.o, Rows::Queries);
        let mut own = scope.unflatten(group, own_outer);
        let first = scope.k.bind(tile * own_rows);
        let [first_k, first_v] = [kept_head, kept_value].map(|kept| scope.k.bind(&slice * kept));
        // queries before these see none of the block's keys
        let begin = match &of.causal {
            Some(causal) => {
                let reach = scope.dim(causal);
                scope.k.bind((&first - reach).max(0) / columns)
            }
            None => Expr::int(0),
        };
        let steps = scope.dim(&attend.queries.ceil_div(&Dim::from(columns)));
        let heads = scope.dim(&product(shared));
        scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
            let lanes = Lanes::new(scope, thread);
            let thread = lanes.thread.clone();
            own.extend(shared.iter().map(|_| Expr::int(0)));
            k.bring(scope, attend, (&own_k, &own), &first, &thread);
            v.bring(scope, attend, (&own_v, &own), &first, &thread);
            engine.clear(scope, total_k, kept_head);
            engine.clear(scope, total_v, kept_value);
            scope.for_(Expr::int(0), heads, LoopKind::Serial, |scope, number| {
                let mut outer: SmallVec<[Expr; 6]> = own[..own_axes].into();
                outer.extend(scope.unflatten(number, shared));
                scope.for_(begin.clone(), steps, LoopKind::Serial, |scope, step| {
                    let start = scope.k.bind(step * columns);
                    q.bring(scope, attend, (&queries, &outer), &start, &thread);
                    d_o.bring(scope, attend, (&changes, &outer), &start, &thread);
                    scope.k.commit_copies();
                    scope.if_(thread.less(columns), |scope| {
                        let query = scope.k.bind(&start + &thread);
                        let place = Place { outer: &outer, query, key: Expr::int(0) };
                        let row = self.row(scope, sums, &place);
                        scope.k.store(known[0], &thread, row.lse);
                        scope.k.store(known[1], &thread, row.sum);
                    });
                    scope.k.wait_copies(0);
                    scope.k.barrier();
                    engine.scores(scope, &lanes, pair.scores, &own_k, &queries);
                    engine.scores(scope, &lanes, pair.slopes, &own_v, &changes);
                    for group in 0..engine.groups() {
                        let key = scope.k.bind(&first + engine.row(&lanes, group));
                        scope.for_(Expr::int(0), Expr::int(columns / 4), LoopKind::Unroll, |scope, i| {
                            let column = scope.k.bind(engine.column(&lanes, &i));
                            let at = scope.k.bind(engine.register(&i, group));
                            let [lse, sum] = known.map(|memory| scope.k.bind(memory.load(&column)));
                            let query = scope.k.bind(&start + column);
                            let place = Place { outer: &outer, query, key: key.clone() };
                            self.element(scope, &pair, &at, &place, &Row { lse, sum });
                        });
                    }
                    engine.combine(scope, &lanes, (total_v, kept_value), pair.scores, (&changes, &first_v));
                    engine.combine(scope, &lanes, (total_k, kept_head), pair.slopes, (&queries, &first_k));
                    scope.k.barrier();
                });
            });
            scope.k.wait_copies(0);
            scope.k.barrier();
            let results = [
                (1, out_k, &of.k, (total_k, kept_head), &own_k, first_k),
                (2, out_v, &of.v, (total_v, kept_value), &own_v, first_v),
            ];
            for (part, memory, labels, total, tile, first_channel) in results {
                let first_row = first.clone();
                let to =
                    Target { attend, memory, part, labels, rows: Rows::Keys, outer: &own, first_row, first_channel };
                engine.store(scope, &lanes, total, tile, &to);
            }
        });
    }
}
