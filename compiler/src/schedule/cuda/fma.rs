//! Products by fused multiply-adds, of every element type: tiles of 64 × 64 in shared memory, steps of 16, 4 × 4 sums a
//! thread in registers.

use egret_ir::{DType, Op};
use smallvec::SmallVec;

use super::contract::{Extent, both};
use super::problem::{Index, Problem, Which};
use super::{row_stage, written};
use crate::kernel::{Expr, LoopKind, Memory, Space};
use crate::schedule::row::results;
use crate::schedule::scope::Scope;

/// Threads of a block.
pub const THREADS: i64 = SIDE * SIDE;
/// Rows and columns of a tile.
pub const TILE: i64 = 64;
/// Terms of the sum that a step brings.
const STEP: i64 = 16;
/// Rows and columns of a thread.
const OWN: i64 = 4;
/// Threads along a side of the tile.
const SIDE: i64 = TILE / OWN;
/// Elements from one term of the sum to the next in shared memory.
const PITCH: i64 = TILE + 4;

/// A product under construction.
pub struct Product<'p> {
    /// What is computed.
    pub problem: &'p Problem,
    /// The results; of rows, one.
    pub outs: SmallVec<[Memory; 2]>,
    /// Rows of the product.
    pub rows: Extent,
    /// Columns.
    pub columns: Extent,
    sums: Extent,
    left: Memory,
    right: Memory,
    own: Memory,
    dtype: DType,
}

/// Where a block is.
pub struct Block {
    /// Indices of the batch.
    pub batch: Index,
    /// The thread.
    pub thread: Expr,
    /// First row.
    pub row0: Expr,
}

/// Builds the kernel: a block a tile, or a block 64 whole rows where a row operator follows.
pub fn build(scope: &mut Scope, problem: &Problem) {
    let graph = scope.graph;
    let rows_op = match &graph.node(problem.id).op {
        Op::Fused(fused) => fused.rows.as_ref(),
        _ => None,
    };
    let outs = written(scope, problem.id);
    let dtype = problem.sum_dtype(scope);
    let batch = Extent::new(scope, &problem.batch);
    let rows = Extent::new(scope, &problem.rows);
    let columns = Extent::new(scope, &problem.columns);
    let sums = Extent::new(scope, &problem.sums);
    let (row_tiles, column_tiles) = (rows.tiles(scope, TILE), columns.tiles(scope, TILE));
    // every axis of the grid before any other variable
    let group = if batch.size.is(1) { Expr::int(0) } else { scope.k.grid(batch.end.clone()) };
    let row_tile = scope.k.grid(row_tiles);
    let column_tile = rows_op.is_none().then(|| scope.k.grid(column_tiles.clone()));
    let product = Product {
        problem,
        outs,
        rows,
        columns,
        sums,
        left: scope.k.scratch(dtype, (STEP * PITCH) as usize, Space::Shared),
        right: scope.k.scratch(dtype, (STEP * PITCH) as usize, Space::Shared),
        own: scope.k.scratch(dtype, (OWN * OWN) as usize, Space::Register),
        dtype,
    };
    let batch = scope.unflatten(group, &batch.parts);
    let row0 = scope.k.bind(row_tile * TILE);
    scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
        let block = Block { batch, thread, row0 };
        match (column_tile, rows_op) {
            (Some(tile), _) => {
                let column0 = scope.k.bind(tile * TILE);
                product.tile(scope, &block, &column0);
            }
            (None, Some((op, finish))) => {
                scope.for_(Expr::int(0), column_tiles, LoopKind::Serial, |scope, tile| {
                    let column0 = scope.k.bind(tile * TILE);
                    product.tile(scope, &block, &column0);
                });
                // the rows are complete, and visible to the block
                scope.k.barrier();
                row_stage::build(scope, &product, &block, op, finish);
            }
            (None, None) => {}
        }
    });
}

impl Product<'_> {
    /// Computes a tile and stores its epilogue.
    fn tile(&self, scope: &mut Scope, block: &Block, column0: &Expr) {
        let zero = Expr::constant(self.dtype, 0.0);
        scope.for_(Expr::int(0), Expr::int(OWN * OWN), LoopKind::Unroll, |scope, i| scope.k.store(self.own, i, zero));
        scope.for_step(Expr::int(0), self.sums.end.clone(), STEP, LoopKind::Serial, |scope, sum0| {
            self.bring_left(scope, block, &sum0);
            self.bring_right(scope, block, column0, &sum0);
            scope.k.barrier();
            self.multiply(scope, block);
            scope.k.barrier();
        });
        self.store(scope, block, column0);
    }

    /// Puts a tile of one side into shared memory; neighbouring threads read neighbours in memory. `value` gets the
    /// index along the side and the term of the sum.
    fn bring(
        &self,
        scope: &mut Scope,
        thread: &Expr,
        to: Memory,
        along: bool,
        value: &mut dyn FnMut(&mut Scope, &Expr, &Expr) -> Expr,
    ) {
        let width = if along { TILE } else { STEP };
        let (near, far) = (scope.k.bind(thread % width), scope.k.bind(thread / width));
        scope.for_(Expr::int(0), Expr::int(TILE * STEP / THREADS), LoopKind::Unroll, |scope, i| {
            let far = scope.k.bind(i * (THREADS / width) + far);
            let (at, term) = if along { (near, far) } else { (far, near) };
            let value = value(scope, &at, &term);
            scope.k.store(to, term * PITCH + at, value);
        });
    }

    fn bring_left(&self, scope: &mut Scope, block: &Block, sum0: &Expr) {
        self.bring(scope, &block.thread, self.left, self.problem.left_by_row, &mut |scope, at, term| {
            let (row, sum) = (scope.k.bind(&block.row0 + at), scope.k.bind(sum0 + term));
            let inside = both(self.rows.guard(&row, TILE), self.sums.guard(&sum, STEP));
            let row = scope.unflatten(row, &self.rows.parts);
            let sum = scope.unflatten(sum, &self.sums.parts);
            let value = self.problem.element(scope, Which::Left, &block.batch, &row, &sum, inside);
            self.widened(scope, value)
        });
    }

    fn bring_right(&self, scope: &mut Scope, block: &Block, column0: &Expr, sum0: &Expr) {
        self.bring(scope, &block.thread, self.right, self.problem.right_by_column, &mut |scope, at, term| {
            let (column, sum) = (scope.k.bind(column0 + at), scope.k.bind(sum0 + term));
            let inside = both(self.columns.guard(&column, TILE), self.sums.guard(&sum, STEP));
            let column = scope.unflatten(column, &self.columns.parts);
            let sum = scope.unflatten(sum, &self.sums.parts);
            let value = self.problem.element(scope, Which::Right, &block.batch, &column, &sum, inside);
            self.widened(scope, value)
        });
    }

    /// An element as the sums need it.
    fn widened(&self, scope: &Scope, value: Expr) -> Expr {
        if self.problem.is_wide(scope) { value.cast(self.dtype) } else { value }
    }

    /// Adds the products of a step.
    fn multiply(&self, scope: &mut Scope, block: &Block) {
        let row = scope.k.bind(&block.thread / SIDE * OWN);
        let column = scope.k.bind(&block.thread % SIDE * OWN);
        scope.for_(Expr::int(0), Expr::int(STEP), LoopKind::Unroll, |scope, term| {
            let mut own = |memory: Memory, first: &Expr| -> SmallVec<[Expr; 4]> {
                let at = &term * PITCH + first;
                (0..OWN).map(|i| scope.k.bind(memory.load(&at + i))).collect()
            };
            let (left, right) = (own(self.left, &row), own(self.right, &column));
            for (i, x) in (0..).zip(&left) {
                for (j, y) in (0..).zip(&right) {
                    let at = i * OWN + j;
                    scope.k.store(self.own, at, self.own.load(at) + x * y);
                }
            }
        });
    }

    /// Stores the epilogue of the sums.
    fn store(&self, scope: &mut Scope, block: &Block, column0: &Expr) {
        let first_row = scope.k.bind(&block.row0 + &block.thread / SIDE * OWN);
        let first_column = scope.k.bind(column0 + &block.thread % SIDE * OWN);
        scope.for_(Expr::int(0), Expr::int(OWN), LoopKind::Unroll, |scope, i| {
            let row = scope.k.bind(first_row + &i);
            let row_index = scope.unflatten(row.clone(), &self.rows.parts);
            scope.for_(Expr::int(0), Expr::int(OWN), LoopKind::Unroll, |scope, j| {
                let column = scope.k.bind(first_column + &j);
                let inside = both(self.rows.guard(&row, TILE), self.columns.guard(&column, TILE));
                let body = |scope: &mut Scope| {
                    let column_index = scope.unflatten(column.clone(), &self.columns.parts);
                    let index = self.problem.result(&block.batch, &row_index, &column_index);
                    let sum = self.own.load(&i * OWN + &j);
                    let values = results(scope, self.problem.id, &index, sum);
                    for (part, (out, value)) in self.outs.iter().zip(values).enumerate() {
                        let address = scope.address((self.problem.id, part), &index);
                        scope.k.store(*out, address, value);
                    }
                };
                match inside {
                    Some(inside) => scope.if_(inside, body),
                    None => body(scope),
                }
            });
        });
    }
}
