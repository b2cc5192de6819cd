//! Scans: what is joined of all elements of a line up to each. A block scans a tile of a line; where a line has several
//! tiles, a kernel before leaves each tile's total, and a block joins those of the tiles before its own.

use egret_ir::{DType, Dim};
use smallvec::SmallVec;

use super::map::THREADS;
use crate::kernel::{BinaryOp, Expr, LoopKind, Memory, ReduceOp, Space};
use crate::schedule::Temporary;
use crate::schedule::map::grid_over;
use crate::schedule::scope::Scope;

/// Neighbours that a thread scans by itself.
const OWN: i64 = 4;
/// Elements of a tile.
const TILE: i64 = THREADS * OWN;

/// An element of a line, by the line's indices and the place along it.
pub type Element<'e> = &'e mut dyn FnMut(&mut Scope, &[Expr], &Expr) -> Expr;

/// A scan of lines.
pub struct Scan<'s> {
    /// Extents over lines.
    pub lines: &'s [Dim],
    /// Elements of a line.
    pub extent: &'s Dim,
    /// What joins.
    pub op: ReduceOp,
    /// What no elements give.
    pub neutral: Expr,
    /// Element type of what is joined.
    pub dtype: DType,
    /// Whether an element itself is left out.
    pub exclusive: bool,
}

impl Scan<'_> {
    /// Whether lines have several tiles: the totals of these are then a kernel of their own.
    pub fn is_split(&self) -> bool {
        self.extent.range().1 > TILE
    }

    fn tiles(&self) -> Dim {
        if self.is_split() { self.extent.ceil_div(&Dim::from(TILE)) } else { Dim::ONE }
    }

    /// Memory of the tiles' totals.
    pub fn totals(&self) -> Temporary {
        let elements = self.lines.iter().fold(self.tiles(), |n, d| n * d.clone());
        Temporary { dtype: self.dtype, elements }
    }

    /// The block's line and tile.
    fn block(&self, scope: &mut Scope) -> (SmallVec<[Expr; 6]>, Expr) {
        let mut extents: SmallVec<[Dim; 6]> = self.lines.into();
        extents.push(self.tiles());
        let mut line = grid_over(scope, &extents);
        let tile = line.pop().unwrap_or(Expr::int(0));
        (line, tile)
    }

    /// The place of the total of a line's first tile.
    fn first_total(&self, scope: &mut Scope, line: &[Expr]) -> Expr {
        let mut at = Expr::int(0);
        for (i, extent) in line.iter().zip(self.lines) {
            at = at * scope.dim(extent) + i;
        }
        at * scope.dim(&self.tiles())
    }

    /// Builds the kernel of the tiles' totals.
    pub fn sum_tiles(&self, scope: &mut Scope, totals: Memory, value: Element<'_>) {
        let (line, tile) = self.block(scope);
        let end = scope.dim(self.extent);
        let first = scope.k.bind(&tile * TILE);
        let last = scope.k.bind((&first + TILE).min(end));
        let total = scope.k.variable(self.neutral.clone());
        scope.for_(first, last, LoopKind::Thread(0), |scope, at| {
            let value = value(scope, &line, &at);
            scope.k.accumulate(total, self.op, value);
        });
        scope.k.block_reduce(total, self.op);
        let to = self.first_total(scope, &line) + tile;
        scope.for_(Expr::int(0), Expr::int(1), LoopKind::Thread(0), |scope, _| {
            scope.k.store(totals, to, total);
        });
    }

    /// Builds the scan; `leave` stores a result.
    pub fn build(
        &self,
        scope: &mut Scope,
        totals: Option<Memory>,
        value: Element<'_>,
        leave: &mut dyn FnMut(&mut Scope, &[Expr], &Expr, Expr),
    ) {
        let (line, tile) = self.block(scope);
        let end = scope.dim(self.extent);
        let own = scope.k.scratch(self.dtype, OWN as usize, Space::Register);
        // two lists: each step reads one and writes the other
        let lists = scope.k.scratch(self.dtype, 2 * THREADS as usize, Space::Shared);
        let before = scope.k.variable(self.neutral.clone());
        if let Some(totals) = totals {
            let first = self.first_total(scope, &line);
            let first = scope.k.bind(first);
            scope.for_(Expr::int(0), tile.clone(), LoopKind::Thread(0), |scope, i| {
                scope.k.accumulate(before, self.op, totals.load(first + i));
            });
            scope.k.block_reduce(before, self.op);
        }
        scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
            let base = scope.k.bind(tile * TILE + &thread * OWN);
            let sum = scope.k.variable(self.neutral.clone());
            scope.for_(Expr::int(0), Expr::int(OWN), LoopKind::Unroll, |scope, i| {
                let at = scope.k.bind(&base + &i);
                let inside = scope.k.bind(at.less(&end));
                let value = scope.masked(inside.clone(), |scope| value(scope, &line, &at));
                let value = scope.k.bind(inside.select(value, self.neutral.clone()));
                scope.k.store(own, i, value.clone());
                scope.k.accumulate(sum, self.op, value);
            });
            scope.k.store(lists, &thread, sum);
            scope.k.barrier();
            self.double(scope, lists, &thread);
            let has = scope.k.bind(thread.greater(0));
            let others = has.clone().select(lists.load_if(has, &thread - 1), self.neutral.clone());
            let running = scope.k.variable(Expr::Var(before).binary(self.op.step(), others));
            scope.for_(Expr::int(0), Expr::int(OWN), LoopKind::Unroll, |scope, i| {
                let at = scope.k.bind(&base + &i);
                let left_out = scope.k.bind(Expr::Var(running));
                scope.k.accumulate(running, self.op, own.load(i));
                let result = if self.exclusive { left_out } else { Expr::Var(running) };
                scope.if_(at.less(&end), |scope| leave(scope, &line, &at, result));
            });
        });
    }

    /// Scans the threads' sums by joining those at doubling distances; the first list has the result.
    fn double(&self, scope: &mut Scope, lists: Memory, thread: &Expr) {
        let steps = i64::from(THREADS.ilog2());
        debug_assert!(steps % 2 == 0, "the last step writes the first list");
        scope.for_(Expr::int(0), Expr::int(steps), LoopKind::Serial, |scope, step| {
            let distance = scope.k.bind(Expr::int(1).binary(BinaryOp::Shl, step.clone()));
            let from = scope.k.bind(step % 2 * THREADS);
            let mine = scope.k.bind(lists.load(&from + thread));
            let has = scope.k.bind(thread.greater_equal(&distance));
            let other = lists.load_if(has.clone(), &from + thread - distance);
            let joined = other.binary(self.op.step(), mine.clone());
            scope.k.store(lists, Expr::int(THREADS) - from + thread, has.select(joined, mine));
            scope.k.barrier();
        });
    }
}
