//! `top_k` of long lines: a block sorts a tile of a line in shared memory by a bitonic network. Where a line has several
//! tiles, a second kernel finds each element's place by counting, in every other tile, what comes before it.
//!
//! Elements are in order of value, NaN last, then of place, so that no two are equal and every order of comparisons gives
//! the same result.

use egret_ir::ops::{ReduceKind, TopK};
use egret_ir::{DType, Diagnostic, Dim, Graph, NodeId, Shape};
use smallvec::SmallVec;

use super::finished;
use crate::kernel::{BinaryOp, CompareOp, Expr, LoopKind, Memory, ReduceOp, Space, UnaryOp};
use crate::schedule::map::grid_over;
use crate::schedule::reduce::start;
use crate::schedule::scope::{Scope, Stored};
use crate::schedule::{Passes, Temporary};

/// Lines up to this length are ordered by counting, each element on its own ([`super::select`]).
const SHORT: i64 = 128;
/// Most elements of a tile: with their places, no more than 48 KiB of any element type.
const TILE: i64 = 4096;
/// Most threads of a block.
const THREADS: i64 = 512;

/// Whether lines of this extent are sorted in tiles.
pub fn is_long(extent: &Dim) -> bool {
    extent.range().1 > SHORT
}

/// An element and its place in its line.
struct Item {
    key: Expr,
    place: Expr,
}

struct Sort<'g> {
    id: NodeId,
    x: NodeId,
    axis: usize,
    k: Dim,
    largest: bool,
    dtype: DType,
    shape: &'g Shape,
    /// Elements of a tile, a power of two.
    tile: i64,
    /// Tiles of a line.
    tiles: Dim,
}

/// Builds the kernels.
///
/// # Errors
/// As [`super::generate`].
pub fn generate(graph: &Graph, stored: &dyn Stored, id: NodeId, top: &TopK, exact: bool) -> Result<Passes, Diagnostic> {
    let x = graph.node(id).operands[0];
    let ty = graph.tensor_type(x);
    let extent = &ty.shape[top.axis];
    let tile = (extent.range().1.clamp(2 * SHORT, TILE) as u64).next_power_of_two() as i64;
    let tiles = if extent.range().1 <= tile { Dim::ONE } else { extent.ceil_div(&Dim::from(tile)) };
    let sort = Sort {
        id,
        x,
        axis: top.axis,
        k: top.k.clone(),
        largest: top.largest,
        dtype: ty.dtype,
        shape: &ty.shape,
        tile,
        tiles,
    };
    let mut scope = Scope::on_gpu(graph, stored, exact, sort.threads() as u32);
    sort.tiles(&mut scope);
    let mut passes = Passes::from(finished(scope, id)?);
    if sort.is_merged() {
        let elements = sort.lines().elements() * sort.tiles.clone() * Dim::from(tile);
        passes.temporaries = [ty.dtype, DType::I64].map(|dtype| Temporary { dtype, elements: elements.clone() }).into();
        let mut scope = Scope::on_gpu(graph, stored, exact, super::map::THREADS as u32);
        sort.merge(&mut scope);
        passes.kernels.push(finished(scope, id)?);
    }
    Ok(passes)
}

impl Sort<'_> {
    fn threads(&self) -> i64 {
        (self.tile / 2).min(THREADS)
    }

    fn is_merged(&self) -> bool {
        !self.tiles.is(1)
    }

    /// The shape with one place a line.
    fn lines(&self) -> Shape {
        let mut lines = self.shape.clone();
        lines.dims_mut()[self.axis] = Dim::ONE;
        lines
    }

    fn before(&self, scope: &mut Scope, a: &Item, b: &Item) -> Expr {
        let first = if self.largest { CompareOp::Gt } else { CompareOp::Lt };
        let mut before = a.key.clone().compare(first, &b.key);
        let mut equal = a.key.equal(&b.key);
        if self.dtype.is_float() {
            let missing = |scope: &mut Scope, x: &Item| scope.k.bind(x.key.clone().unary(UnaryOp::IsNan));
            let (a, b) = (missing(scope, a), missing(scope, b));
            before = before.or(b.and(a.clone().unary(UnaryOp::Not)));
            equal = equal.or(a.and(b));
        }
        scope.k.bind(before.or(equal.and(a.place.less(&b.place))))
    }

    /// What comes after every element of a line.
    fn last(&self) -> Expr {
        match self.dtype {
            dtype if dtype.is_float() => Expr::constant(dtype, f64::NAN),
            dtype => start(if self.largest { ReduceKind::Max } else { ReduceKind::Min }, dtype),
        }
    }

    /// Stores an element at its rank, if that is wanted.
    fn emit(&self, scope: &mut Scope, outs: [Memory; 2], line: &[Expr], rank: &Expr, item: Item) {
        let mut to: SmallVec<[Expr; 6]> = line.into();
        to[self.axis] = rank.clone();
        let [values, places] = outs;
        let address = scope.address((self.id, 0), &to);
        scope.k.store(values, address, item.key);
        let address = scope.address((self.id, 1), &to);
        scope.k.store(places, address, item.place);
    }

    /// Sorts each tile; a line of one tile is then in order.
    fn tiles(&self, scope: &mut Scope) {
        let outs = match self.is_merged() {
            false => [scope.write((self.id, 0)), scope.write((self.id, 1))],
            true => [scope.temporary(self.id, 0, self.dtype, true), scope.temporary(self.id, 1, DType::I64, true)],
        };
        let mut extents: SmallVec<[Dim; 6]> = self.lines().iter().cloned().collect();
        extents.push(self.tiles.clone());
        let mut line = grid_over(scope, &extents);
        let number = line.pop().unwrap_or(Expr::int(0));
        let keys = scope.k.scratch(self.dtype, self.tile as usize, Space::Shared);
        let places = scope.k.scratch(DType::I32, self.tile as usize, Space::Shared);
        let extent = scope.dim(&self.shape[self.axis]);
        let k = scope.dim(&self.k);
        let threads = self.threads();
        let first = scope.k.bind(&number * self.tile);
        let count = Expr::int(self.tile / threads);
        scope.for_(Expr::int(0), Expr::int(threads), LoopKind::Thread(0), |scope, thread| {
            scope.for_(Expr::int(0), count.clone(), LoopKind::Serial, |scope, i| {
                let slot = scope.k.bind(i * threads + &thread);
                let at = scope.k.bind(&first + &slot);
                let inside = scope.k.bind(at.less(&extent));
                let mut index = line.clone();
                index[self.axis] = at.clone();
                let key = scope.masked(inside.clone(), |scope| scope.element(self.x, &index));
                scope.k.store(keys, &slot, inside.select(key, self.last()));
                scope.k.store(places, slot, at.cast(DType::I32));
            });
            scope.k.barrier();
            self.network(scope, keys, places, &thread);
            scope.for_(Expr::int(0), count, LoopKind::Serial, |scope, i| {
                let slot = scope.k.bind(i * threads + &thread);
                let item = |_: &mut Scope| Item { key: keys.load(&slot), place: places.load(&slot).cast(DType::I64) };
                if self.is_merged() {
                    let lines = self.lines();
                    let tiles = scope.dim(&self.tiles);
                    let mut at = Expr::int(0);
                    for (axis, extent) in lines.iter().enumerate().filter(|(_, extent)| !extent.is(1)) {
                        let extent = scope.dim(extent);
                        at = at * extent + &line[axis];
                    }
                    let at = scope.k.bind((at * tiles + &number) * self.tile + &slot);
                    let Item { key, place } = item(scope);
                    scope.k.store(outs[0], &at, key);
                    return scope.k.store(outs[1], at, place);
                }
                let item = item(scope);
                scope.if_(slot.less(&k), |scope| self.emit(scope, outs, &line, &slot, item));
            });
        });
    }

    /// Batcher's bitonic network: runs of doubling length, up and down in turn, are joined by halving distances.
    fn network(&self, scope: &mut Scope, keys: Memory, places: Memory, thread: &Expr) {
        let shift = |x: Expr, op: BinaryOp, by: &Expr| x.binary(op, by);
        let stages = i64::from(self.tile.ilog2());
        let pairs = self.tile / 2 / self.threads();
        scope.for_(Expr::int(0), Expr::int(stages), LoopKind::Serial, |scope, stage| {
            let run = scope.k.bind(shift(Expr::int(2), BinaryOp::Shl, &stage));
            scope.for_(Expr::int(0), &stage + 1, LoopKind::Serial, |scope, step| {
                let log = scope.k.bind(&stage - step);
                let distance = scope.k.bind(shift(Expr::int(1), BinaryOp::Shl, &log));
                scope.for_(Expr::int(0), Expr::int(pairs), LoopKind::Serial, |scope, i| {
                    let pair = scope.k.bind(i * self.threads() + thread);
                    let high = shift(shift(pair.clone(), BinaryOp::Shr, &log), BinaryOp::Shl, &(&log + 1));
                    let low = scope.k.bind(high + pair.and(&distance - 1));
                    let high = scope.k.bind(&low + &distance);
                    let mut item =
                        |at: &Expr| Item { key: scope.k.bind(keys.load(at)), place: scope.k.bind(places.load(at)) };
                    let (a, b) = (item(&low), item(&high));
                    let up = low.and(&run).equal(0);
                    let ordered = self.before(scope, &a, &b);
                    scope.if_(ordered.not_equal(up), |scope| {
                        scope.k.store(keys, &low, b.key);
                        scope.k.store(keys, &high, a.key);
                        scope.k.store(places, &low, b.place);
                        scope.k.store(places, &high, a.place);
                    });
                });
                scope.k.barrier();
            });
        });
    }

    /// A thread an element of the sorted tiles: its rank in its tile, and how many come before it in each other one.
    fn merge(&self, scope: &mut Scope) {
        let outs = [scope.write((self.id, 0)), scope.write((self.id, 1))];
        let keys = scope.temporary(self.id, 0, self.dtype, false);
        let places = scope.temporary(self.id, 1, DType::I64, false);
        let lines = self.lines();
        let (extent, k) = (scope.dim(&self.shape[self.axis]), scope.dim(&self.k));
        let tiles = scope.dim(&self.tiles);
        let extents: SmallVec<[Dim; 3]> =
            smallvec::smallvec![lines.elements(), self.tiles.clone(), Dim::from(self.tile)];
        let total = extents.iter().fold(Dim::ONE, |n, d| n * d.clone());
        super::map::flat(scope, &total, |scope, at| {
            let at = scope.k.bind(at);
            let [line, own, slot] = match scope.unflatten(at.clone(), &extents).as_slice() {
                [line, own, slot] => [line.clone(), own.clone(), slot.clone()],
                _ => return,
            };
            let item = Item { key: scope.k.bind(keys.load(&at)), place: scope.k.bind(places.load(&at)) };
            // what is behind the first k of its tile is so in the line
            let wanted = item.place.less(&extent).and(slot.less(&k));
            scope.if_(wanted, |scope| {
                let rank = scope.k.variable(&slot);
                scope.for_(Expr::int(0), tiles.clone(), LoopKind::Serial, |scope, tile| {
                    let first = scope.k.bind((&line * &tiles + &tile) * self.tile);
                    scope.if_(tile.not_equal(&own), |scope| {
                        let count = self.count_before(scope, [keys, places], &first, &item);
                        scope.k.accumulate(rank, ReduceOp::Sum, count);
                    });
                });
                scope.if_(Expr::Var(rank).less(&k), |scope| {
                    let index = scope.unflatten(line.clone(), &lines);
                    self.emit(scope, outs, &index, &Expr::Var(rank), item);
                });
            });
        });
    }

    /// How many elements of the sorted tile that begins at `first` come before `item`, by halving.
    fn count_before(&self, scope: &mut Scope, [keys, places]: [Memory; 2], first: &Expr, item: &Item) -> Expr {
        let count = scope.k.variable(Expr::int(0));
        let steps = i64::from(self.tile.ilog2());
        // halves of the tile, down to one element, and that element again
        scope.for_(Expr::int(0), Expr::int(steps + 1), LoopKind::Serial, |scope, step| {
            let width = Expr::int(self.tile / 2).binary(BinaryOp::Shr, step).max(1);
            let width = scope.k.bind(width);
            let at = scope.k.bind(first + Expr::Var(count) + &width - 1);
            let other = Item { key: scope.k.bind(keys.load(&at)), place: scope.k.bind(places.load(&at)) };
            let before = self.before(scope, &other, item);
            scope.k.accumulate(count, ReduceOp::Sum, before.select(width, Expr::int(0)));
        });
        Expr::Var(count)
    }
}
