//! The sums of a product on their way to memory: through shared memory, so that each thread has neighbours of a row; their
//! epilogue; stores of up to 16 bytes.

use egret_ir::{DType, NodeId, Op};
use smallvec::SmallVec;

use super::contract::both;
use super::matrix::{Block, Product};
use super::tiles::{OWN, WARP_COLUMNS};
use crate::kernel::{BinaryOp, Expr, LoopKind, Memory, Space};
use crate::schedule::row::results;
use crate::schedule::scope::Scope;

/// Rows of a warp that are stored together.
const SLAB: i64 = 16;
/// Elements of a slab.
const SLAB_LEN: i64 = SLAB * WARP_COLUMNS;

/// Stores the sums of a warp, all threads of the block together.
pub fn store(scope: &mut Scope, product: &Product, block: &Block) {
    let warps = product.tiles.threads() / 32;
    let slabs = scope.k.scratch_over(product.tiles.engine.sum(), (warps * SLAB_LEN) as usize, product.free());
    let slab = scope.k.bind(&block.warp * SLAB_LEN);
    let rows = Rows::new(scope, product, block, slabs, slab, 8);
    let width = rows.width;
    scope.for_(Expr::int(0), Expr::int(product.tiles.warp_rows / SLAB), LoopKind::Unroll, |scope, i| {
        // the slab before has been read
        scope.k.warp_barrier();
        rows.put(scope, &i);
        scope.k.warp_barrier();
        // a pass has as many rows as a thread has columns
        scope.for_(Expr::int(0), Expr::int(SLAB / width), LoopKind::Serial, |scope, pass| {
            let threads = WARP_COLUMNS / width;
            let row = scope.k.bind(pass * width + &block.lane / threads);
            let column = scope.k.bind(&block.lane % threads * width);
            rows.finish(scope, &i, &row, &column);
        });
    });
}

/// Stores the sums that each thread has of its own.
pub fn store_own(scope: &mut Scope, product: &Product, block: &Block, thread: &Expr) {
    let tiles = &product.tiles;
    let together = OWN / 2;
    let rows = Rows::new(scope, product, block, product.totals, Expr::int(0), together);
    let threads = tiles.columns / OWN;
    let (row0, column0) = (scope.k.bind(thread / threads * together), scope.k.bind(thread % threads * together));
    scope.for_(Expr::int(0), Expr::int(OWN), LoopKind::Unroll, |scope, i| {
        scope.for_(Expr::int(0), Expr::int(OWN / rows.width), LoopKind::Unroll, |scope, j| {
            let column = scope.k.bind(j * rows.width);
            scope.for_(Expr::int(0), Expr::int(rows.width), LoopKind::Unroll, |scope, at| {
                let sum = product.totals.load(&i * OWN + &column + &at);
                scope.k.store(rows.own, at, sum);
            });
            let row = &i / together * (tiles.rows / 2) + &row0 + i % together;
            let column = &column / together * (tiles.columns / 2) + &column0 + column % together;
            rows.check(scope, row, column);
        });
    });
}

/// Columns that a thread stores at once.
fn width(scope: &Scope, product: &Product, dtype: DType, limit: i64) -> i64 {
    let limit = (16 / dtype.size() as i64).min(limit);
    let id = product.problem.id;
    if product.tiles.splits > 1 {
        return if product.columns.size.modulo(&limit.into()).is(0) { limit } else { 1 };
    }
    let Some(axis) = product.problem.column_axis(scope) else { return 1 };
    // all results have one type, and begin where vectors do
    let aligned = (0..product.outs.len()).all(|part| scope.stored.is_aligned((id, part)));
    let mut width = if aligned { scope.neighbours(id, axis, limit) } else { 1 };
    // of grouped channels some may be another group's
    while width > 1 && !product.columns.parts.last().is_some_and(|last| last.modulo(&width.into()).is(0)) {
        width /= 2;
    }
    width
}

/// Extra operands of which a thread loads neighbours at once.
fn extras(scope: &mut Scope, product: &Product, width: i64) -> Vec<(NodeId, Memory)> {
    let graph = scope.graph;
    let node = graph.node(product.problem.id);
    let Op::Fused(fused) = &node.op else { return Vec::new() };
    if width == 1 || product.tiles.splits > 1 {
        return Vec::new();
    }
    let rank = graph.tensor_type(product.problem.id).shape.rank();
    let Some(column) = product.problem.column_axis(scope) else { return Vec::new() };
    let mut found: Vec<(NodeId, Memory)> = Vec::new();
    for extra in fused.split(&node.operands).1.iter().copied() {
        let ty = graph.tensor_type(extra);
        let fits = width * ty.dtype.size() as i64 <= 16 && !found.iter().any(|(id, _)| *id == extra);
        // leading axes may be missing
        let axis = (column + ty.shape.rank()).checked_sub(rank);
        if fits && axis.is_some_and(|axis| scope.neighbours(extra, axis, width) == width) {
            found.push((extra, scope.k.scratch(ty.dtype, width as usize, Space::Register)));
        }
    }
    found
}

/// The rows of a warp on their way.
struct Rows<'p> {
    product: &'p Product<'p>,
    block: &'p Block,
    /// Where the block's sums are.
    slabs: Memory,
    /// The warp's first element there.
    slab: Expr,
    width: i64,
    own: Memory,
    /// By result, what a thread stores at once.
    made: SmallVec<[Memory; 2]>,
    extras: Vec<(NodeId, Memory)>,
}

impl<'p> Rows<'p> {
    /// Rows of which a thread stores up to `limit` columns at once.
    fn new(
        scope: &mut Scope,
        product: &'p Product<'p>,
        block: &'p Block,
        slabs: Memory,
        slab: Expr,
        limit: i64,
    ) -> Rows<'p> {
        let problem = product.problem;
        let is_part = product.tiles.splits > 1;
        let sum = product.tiles.engine.sum();
        let out = if is_part { sum } else { scope.graph.tensor_type(problem.id).dtype };
        let own = if is_part { sum } else { problem.sum_dtype(scope) };
        let width = width(scope, product, out, limit);
        if is_part || width > 1 {
            product.outs.iter().for_each(|out| scope.k.align_buffer(*out, 16));
        }
        Rows {
            product,
            block,
            slabs,
            slab,
            width,
            own: scope.k.scratch(own, width as usize, Space::Register),
            made: product.outs.iter().map(|_| scope.k.scratch(out, width as usize, Space::Register)).collect(),
            extras: extras(scope, product, width),
        }
    }

    /// The place of a column in the warp's slab: chunks of 16 bytes are permuted by rows, so that neither the stores of
    /// matrices nor the loads of rows meet in a bank.
    fn at(&self, row: &Expr, column: &Expr) -> Expr {
        let spread = |row: &Expr| (row % 4 * 2).binary(BinaryOp::Xor, row % 2);
        let key = match (self.product.left.parts_bytes(), self.product.right.parts_bytes()) {
            // columns come four together, of two rows, next to each other or every other one
            (_, true) => (row % 2 * 5).binary(BinaryOp::Xor, row / 2 % 2 * 4),
            // of four rows, every other one
            (true, false) => spread(&(row / 2)).binary(BinaryOp::Xor, row % 2),
            (false, false) => spread(row),
        };
        &self.slab + row * WARP_COLUMNS + (column / 4).binary(BinaryOp::Xor, key) * 4 + column % 4
    }

    /// Puts 16 rows of the sums into the slab.
    fn put(&self, scope: &mut Scope, i: &Expr) {
        let (lane, product) = (&self.block.lane, self.product);
        let row = |half: &Expr| match product.left.parts_bytes() {
            true => lane / 4 * 2 + half,
            false => lane / 4 + half * 8,
        };
        let first = i * (WARP_COLUMNS / 2);
        if product.right.parts_bytes() {
            // of two products a lane has every other column each: together four neighbours
            let four = scope.k.scratch(product.tiles.engine.sum(), 4, Space::Register);
            scope.for_(Expr::int(0), Expr::int(WARP_COLUMNS / 16), LoopKind::Unroll, |scope, pair| {
                scope.for_(Expr::int(0), Expr::int(2), LoopKind::Unroll, |scope, half| {
                    scope.for_(Expr::int(0), Expr::int(4), LoopKind::Unroll, |scope, at| {
                        let from = &first + &pair * 8 + &at % 2 * 4 + &half * 2 + &at / 2;
                        scope.k.store(four, at, product.totals.load(from));
                    });
                    let to = self.at(&row(&half), &(&pair * 16 + lane % 4 * 4));
                    scope.k.store_vector(self.slabs, to, (four, 0), 4);
                });
            });
            return;
        }
        scope.for_(Expr::int(0), Expr::int(WARP_COLUMNS / 8), LoopKind::Unroll, |scope, j| {
            scope.for_(Expr::int(0), Expr::int(2), LoopKind::Unroll, |scope, half| {
                let to = self.at(&row(&half), &(&j * 8 + lane % 4 * 2));
                let from = &first + &j * 4 + half * 2;
                scope.k.store_vector(self.slabs, to, (product.totals, from), 2);
            });
        });
    }

    /// Stores neighbours of a row of the slab.
    fn finish(&self, scope: &mut Scope, i: &Expr, row: &Expr, column: &Expr) {
        for part in 0..(self.width + 3) / 4 {
            let from = self.at(row, &(column + part * 4));
            scope.k.load_vector((self.own, part * 4), self.slabs, from, self.width.min(4) as u32);
        }
        self.check(scope, i * SLAB + row, column.clone());
    }

    /// Stores what a thread has of a row, from the block's first row and column, if that is inside.
    fn check(&self, scope: &mut Scope, row: Expr, column: Expr) {
        let (product, tiles) = (self.product, &self.product.tiles);
        let row = scope.k.bind(&self.block.row0 + row);
        let column = scope.k.bind(&self.block.column0 + column);
        let inside = both(product.rows.guard(&row, tiles.rows), product.columns.guard(&column, tiles.columns));
        let body = |scope: &mut Scope| self.leave(scope, row, column);
        match inside {
            Some(inside) => scope.if_(inside, body),
            None => body(scope),
        }
    }

    fn leave(&self, scope: &mut Scope, row: Expr, column: Expr) {
        let (product, problem) = (self.product, self.product.problem);
        if product.tiles.splits > 1 {
            let first = (&self.block.group * &product.rows.end + row) * &product.columns.end + column;
            return scope.k.store_vector(product.outs[0], first, (self.own, 0), self.width as u32);
        }
        let row = product.rows.index(scope, row);
        let column = product.columns.index(scope, column);
        let index = problem.result(&self.block.batch, &row, &column);
        for (extra, registers) in &self.extras {
            let at = scope.broadcast_index(*extra, &index);
            if let Some((memory, address)) = scope.place(*extra, &at) {
                scope.k.align_buffer(memory, 16);
                scope.k.load_vector((*registers, 0), memory, address, self.width as u32);
            }
        }
        let address = |scope: &mut Scope, part: usize| scope.address((problem.id, part), &index);
        if self.width == 1 {
            let values = results(scope, problem.id, &index, self.own.load(0));
            for (part, (out, value)) in product.outs.iter().zip(values).enumerate() {
                let address = address(scope, part);
                scope.k.store(*out, address, value);
            }
            return;
        }
        let addresses: SmallVec<[Expr; 2]> = (0..product.outs.len())
            .map(|part| {
                let address = address(scope, part);
                scope.k.bind(address)
            })
            .collect();
        scope.for_(Expr::int(0), Expr::int(self.width), LoopKind::Unroll, |scope, i| {
            let mut column = column.clone();
            if let Some(last) = column.last_mut() {
                *last = last.clone() + &i;
            }
            let index = problem.result(&self.block.batch, &row, &column);
            for (extra, registers) in &self.extras {
                let at = scope.broadcast_index(*extra, &index);
                scope.remember(*extra, &at, &registers.load(&i));
            }
            let values = results(scope, problem.id, &index, self.own.load(&i));
            for (made, value) in self.made.iter().zip(values) {
                scope.k.store(*made, &i, value);
            }
        });
        for ((out, address), made) in product.outs.iter().zip(addresses).zip(&self.made) {
            scope.k.store_vector(*out, address, (*made, 0), self.width as u32);
        }
    }
}
