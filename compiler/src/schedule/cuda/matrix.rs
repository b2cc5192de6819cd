//! Products in stages: both sides in shared memory, filled by asynchronous copies while the warps multiply an earlier
//! stage, by tensor cores or by multiply-adds; sums in registers.

use egret_ir::Dim;
use smallvec::SmallVec;

use super::bring::{Side, slabs};
use super::contract::Extent;
use super::problem::{Index, Problem, Which};
use super::tiles::{Engine, OWN, Tiles, WARP_COLUMNS};
use super::{map, store, written};
use crate::kernel::{Expr, LoopKind, MatrixKind, Memory, ReduceOp, Space};
use crate::schedule::Temporary;
use crate::schedule::row::results;
use crate::schedule::scope::Scope;

/// A product under construction.
pub struct Product<'p> {
    /// What is computed.
    pub problem: &'p Problem,
    /// How.
    pub tiles: Tiles,
    /// The results, or the parts of a split sum.
    pub outs: SmallVec<[Memory; 2]>,
    /// Rows of the product.
    pub rows: Extent,
    /// Columns.
    pub columns: Extent,
    sums: Extent,
    /// The side that has the rows.
    pub left: Side,
    /// The side that has the columns.
    pub right: Side,
    /// Registers of matrices: those of the left side, those of the right one, sums.
    operands: [Memory; 2],
    /// Sums: of tensor cores 4 a matrix of 16 × 8, those of 16 rows together; else those of a thread, by rows.
    pub totals: Memory,
}

/// Where a block and its warp are.
pub struct Block {
    /// Number of the product, and of the part of its sums.
    pub group: Expr,
    /// Indices of the batch.
    pub batch: Index,
    /// First row of the warp.
    pub row0: Expr,
    /// First column of the warp.
    pub column0: Expr,
    /// The thread in its warp.
    pub lane: Expr,
    /// The warp.
    pub warp: Expr,
}

/// Builds the kernel: a block a tile, or a tile's part of the sum.
pub fn build(scope: &mut Scope, problem: &Problem, tiles: Tiles) {
    scope.set_threads(tiles.threads());
    let outs = if tiles.splits > 1 {
        smallvec::smallvec![scope.temporary(problem.id, 0, tiles.engine.sum(), true)]
    } else {
        written(scope, problem.id)
    };
    let batch = Extent::new(scope, &problem.batch);
    let (rows, columns) = (Extent::new(scope, &problem.rows), Extent::new(scope, &problem.columns));
    let sums = Extent::new(scope, &problem.sums);
    let steps = sums.size.ceil_div(&Dim::from(tiles.step));
    let part = scope.dim(&steps.ceil_div(&Dim::from(tiles.splits)));
    let steps = scope.dim(&steps);
    let row_tiles = rows.size.ceil_div(&Dim::from(tiles.rows));
    let column_tiles = columns.size.ceil_div(&Dim::from(tiles.columns));
    // every axis of the grid before any other variable
    let groups = batch.size.clone() * Dim::from(tiles.splits);
    let group = if groups.is(1) {
        Expr::int(0)
    } else {
        let groups = scope.dim(&groups);
        scope.k.grid(groups)
    };
    let (row_tile, column_tile) = place(scope, &tiles, row_tiles, column_tiles);

    let (left, right) =
        (Side::new(scope, problem, Which::Left, &tiles), Side::new(scope, problem, Which::Right, &tiles));
    let matrices = tiles.warp_rows / 16;
    let word = tiles.engine.word();
    let (operands, totals) = match tiles.engine {
        Engine::Matrix(_) => ([matrices * 4, WARP_COLUMNS / 4], matrices * WARP_COLUMNS / 2),
        Engine::Fma => ([OWN, OWN], OWN * OWN),
    };
    let operands = operands.map(|n| scope.k.scratch(word, n as usize, Space::Register));
    let product = Product {
        problem,
        tiles,
        outs,
        rows,
        columns,
        sums,
        left,
        right,
        operands,
        totals: scope.k.scratch(tiles.engine.sum(), totals as usize, Space::Register),
    };

    let (first, count) = if tiles.splits > 1 {
        let first = scope.k.bind(&group % tiles.splits * &part);
        let count = scope.k.bind((steps - &first).min(part).max(0));
        (first, count)
    } else {
        (Expr::int(0), steps)
    };
    let number = if tiles.splits > 1 { scope.k.bind(&group / tiles.splits) } else { group.clone() };
    let batch = batch.index(scope, number);
    let (row0, column0) = (scope.k.bind(row_tile * tiles.rows), scope.k.bind(column_tile * tiles.columns));
    scope.for_(Expr::int(0), Expr::int(tiles.threads()), LoopKind::Thread(0), |scope, thread| {
        let (warp, lane) = (scope.k.bind(&thread / 32), scope.k.bind(&thread % 32));
        let side = tiles.rows / tiles.warp_rows;
        let warp_row = scope.k.bind(&warp % side * tiles.warp_rows);
        let warp_column = scope.k.bind(&warp / side * WARP_COLUMNS);
        let zero = Expr::constant(tiles.engine.sum(), 0.0);
        scope.for_(Expr::int(0), Expr::int(totals), LoopKind::Unroll, |scope, i| {
            scope.k.store(product.totals, i, zero);
        });
        let places = [
            product.left.places(scope, &product, &row0, &thread),
            product.right.places(scope, &product, &column0, &thread),
        ];
        // of each turn the first half brings a step, the second multiplies the one that came longest ago
        let fill = scope.k.variable(Expr::int(0));
        let ahead = tiles.stages - 1;
        scope.for_(Expr::int(0), &count + ahead, LoopKind::Serial, |scope, turn| {
            scope.k.wait_copies(ahead as u32 - 1);
            scope.k.barrier();
            let next = Expr::from(fill) + 1;
            let next = scope.k.bind(next.equal(tiles.stages).select(Expr::int(0), next));
            scope.if_(turn.less(&count), |scope| {
                let step = scope.k.bind(first + &turn);
                for (side, places) in [&product.left, &product.right].into_iter().zip(&places) {
                    let stage = scope.k.bind(Expr::from(fill) * side.stage_len());
                    side.bring(scope, &product, &batch, places, &stage, &step);
                }
            });
            scope.k.commit_copies();
            scope.if_(turn.greater_equal(ahead), |scope| match tiles.engine {
                Engine::Matrix(kind) => product.multiply(scope, kind, &next, &warp_row, &warp_column, &lane),
                Engine::Fma => product.multiply_add(scope, &next, &thread),
            });
            scope.k.assign(fill, next);
        });
        if tiles.engine == Engine::Fma {
            let block = Block { group, batch, row0, column0, lane, warp };
            return store::store_own(scope, &product, &block, &thread);
        }
        // the sums go through the stages' memory
        scope.k.wait_copies(0);
        scope.k.barrier();
        let (row0, column0) = (scope.k.bind(row0 + warp_row), scope.k.bind(column0 + warp_column));
        store::store(scope, &product, &Block { group, batch, row0, column0, lane, warp });
    });
}

/// The block's row and column of tiles, by the last axes of the grid.
fn place(scope: &mut Scope, tiles: &Tiles, rows: Dim, columns: Dim) -> (Expr, Expr) {
    if tiles.band == 1 {
        let (rows, columns) = (scope.dim(&rows), scope.dim(&columns));
        return (scope.k.grid(rows), scope.k.grid(columns));
    }
    let all = scope.dim(&(rows.clone() * columns.clone()));
    let at = scope.k.grid(all);
    let (rows, columns) = (scope.dim(&rows), scope.dim(&columns));
    let band_len = scope.k.bind(columns * tiles.band);
    let first = scope.k.bind(&at / &band_len * tiles.band);
    // the last band may be lower
    let height = scope.k.bind((rows - &first).min(tiles.band));
    let within = scope.k.bind(at % band_len);
    (scope.k.bind(first + &within % &height), scope.k.bind(within / height))
}

impl Product<'_> {
    /// Shared memory whose stages the sums may take, once nothing is multiplied any more.
    pub fn free(&self) -> Memory {
        if self.tiles.rows < self.tiles.columns { self.right.tile } else { self.left.tile }
    }

    /// Indices of a term of a step, and where it is inside, unless it always is.
    pub fn term(&self, scope: &mut Scope, step: &Expr, offset: &Expr) -> (Index, Option<Expr>) {
        let width = Dim::from(self.tiles.step);
        // steps that never reach over the last part's end have the other parts in common
        if let Some((last, outer)) = self.sums.parts.split_last()
            && !outer.is_empty()
            && last.modulo(&width).is(0)
        {
            let mut parts: SmallVec<[Dim; 4]> = outer.into();
            parts.push(last.floor_div(&width));
            let mut index = scope.unflatten(step.clone(), &parts);
            if let Some(innermost) = index.last_mut() {
                *innermost = innermost.clone() * self.tiles.step + offset;
            }
            return (index, None);
        }
        let at = scope.k.bind(step * self.tiles.step + offset);
        let guard = self.sums.guard(&at, self.tiles.step);
        (self.sums.index(scope, at), guard)
    }

    /// Adds the products of a stage, a thread those of its own rows and columns: two times four that lie together.
    fn multiply_add(&self, scope: &mut Scope, stage: &Expr, thread: &Expr) {
        let [left, right] = self.operands;
        let sides = [(&self.left, left, thread / (self.tiles.columns / OWN)), {
            (&self.right, right, thread % (self.tiles.columns / OWN))
        }];
        let sides = sides.map(|(side, registers, number)| {
            let first = scope.k.bind(stage * side.stage_len() + number * (OWN / 2));
            (side, registers, first)
        });
        unrolled(scope, self.tiles.step, &mut |scope, term| {
            for (side, registers, first) in &sides {
                let apart = if side.tile == self.left.tile { self.tiles.rows } else { self.tiles.columns } / 2;
                for half in 0..2 {
                    let from = &term * side.pitch.unwrap_or(0) + first + half * apart;
                    scope.k.load_vector((*registers, half * (OWN / 2)), side.tile, from, (OWN / 2) as u32);
                }
            }
            unrolled(scope, OWN, &mut |scope, i| {
                unrolled(scope, OWN, &mut |scope, j| {
                    let at = &i * OWN + &j;
                    let sum = self.totals.load(&at) + left.load(&i) * right.load(j);
                    scope.k.store(self.totals, at, sum);
                });
            });
        });
    }

    /// Adds the products of a stage.
    fn multiply(
        &self,
        scope: &mut Scope,
        kind: MatrixKind,
        stage: &Expr,
        warp_row: &Expr,
        warp_column: &Expr,
        lane: &Expr,
    ) {
        let [left, right] = self.operands;
        let stages = [&self.left, &self.right].map(|side| scope.k.bind(stage * side.stage_len()));
        let matrices = self.tiles.warp_rows / 16;
        // three products have three times the operands
        let slabs_kind = if kind == MatrixKind::Tf32x3 { LoopKind::Rolled } else { LoopKind::Unroll };
        scope.for_(Expr::int(0), Expr::int(slabs(&self.tiles)), slabs_kind, |scope, slab| {
            unrolled(scope, matrices, &mut |scope, i| {
                self.left.load(scope, &stages[0], &(warp_row + &i * 16), &slab, lane, (left, i * 4));
            });
            unrolled(scope, WARP_COLUMNS / 16, &mut |scope, j| {
                self.right.load(scope, &stages[1], &(warp_column + &j * 16), &slab, lane, (right, j * 4));
            });
            unrolled(scope, matrices, &mut |scope, i| {
                unrolled(scope, WARP_COLUMNS / 8, &mut |scope, j| {
                    let sums = &i * (WARP_COLUMNS / 2) + &j * 4;
                    scope.k.multiply(kind, (self.totals, sums), (left, &i * 4), (right, j * 2));
                });
            });
        });
    }
}

/// A loop whose copies are all in the text.
fn unrolled(scope: &mut Scope, n: i64, body: &mut dyn FnMut(&mut Scope, Expr)) {
    scope.for_(Expr::int(0), Expr::int(n), LoopKind::Unroll, |scope, i| body(scope, i));
}

/// Builds the kernel that adds up the parts of split sums, in their order: a thread an element.
pub fn combine(scope: &mut Scope, problem: &Problem, tiles: &Tiles) {
    let (dtype, splits) = (problem.sum_dtype(scope), tiles.splits);
    let (outs, parts) = (written(scope, problem.id), scope.temporary(problem.id, 0, tiles.engine.sum(), false));
    scope.k.align_buffer(parts, 16);
    let sizes = [&problem.batch, &problem.rows, &problem.columns];
    let size = |extents: &[&Vec<Dim>]| extents.iter().copied().flatten().fold(Dim::ONE, |n, d| n * d.clone());
    let plane = scope.dim(&size(&sizes[1..]));
    let part = scope.k.scratch(dtype, 1, Space::Register);
    map::flat(scope, &size(&sizes), |scope, at| {
        let first = scope.k.bind(&at / &plane * (splits - 1) * &plane + &at);
        let total = scope.k.variable(Expr::constant(dtype, 0.0));
        scope.for_(Expr::int(0), Expr::int(splits), LoopKind::Serial, |scope, i| {
            scope.k.load_vector((part, 0), parts, &first + i * &plane, 1);
            scope.k.accumulate(total, ReduceOp::Sum, part.load(0));
        });
        let all: SmallVec<[Dim; 6]> = sizes.into_iter().flatten().cloned().collect();
        let index = scope.unflatten(at, &all);
        let (batch, rest) = index.split_at(problem.batch.len());
        let (row, column) = rest.split_at(problem.rows.len());
        let index = problem.result(batch, row, column);
        let values = results(scope, problem.id, &index, Expr::Var(total));
        for (part, (out, value)) in outs.into_iter().zip(values).enumerate() {
            let address = scope.address((problem.id, part), &index);
            scope.k.store(out, address, value);
        }
    });
}

/// Memory of the parts of split sums.
pub fn parts(problem: &Problem, tiles: &Tiles) -> Temporary {
    let extents = [&problem.batch, &problem.rows, &problem.columns].into_iter().flatten();
    let elements = extents.fold(Dim::from(tiles.splits), |n, d| n * d.clone());
    Temporary { dtype: tiles.engine.sum(), elements }
}
