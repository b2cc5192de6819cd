//! How a side of a product gets into shared memory, and from there into the registers of warps.
//!
//! A stage holds `extent` rows (or columns) of `step` terms. Neighbours in shared memory are what neighbours are in
//! memory: terms of a row, or rows of a term. Copies are asynchronous where at least four bytes lie side by side; else
//! threads load elements and store them. The 16-byte chunks of a line are permuted by the line's number, so that neither
//! copies nor the warps' loads meet in a bank of shared memory.

use egret_ir::DType;

use super::contract::{Extent, both};
use super::matrix::Product;
use super::problem::{Index, Problem, Which};
use super::tiles::{Engine, Tiles};
use crate::kernel::{BinaryOp, Expr, LoopKind, MatrixKind, Memory, Space, Turn};
use crate::schedule::scope::Scope;

/// What the number of a line does to its chunks: they are combined with one of these by exclusive or.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swizzle {
    /// Lines of four chunks, two of which fill the banks: half the line's number, of four.
    HalfLines,
    /// Lines that are loaded eight together: the line's number, of eight.
    Lines,
    /// Lines of which four are read at once by words, eight of each: twice the line's number, of four.
    Words,
    /// Lines of bytes, one a term, of which pairs four apart are loaded together: the number of the four, of four where two
    /// lines fill the banks; where one does, twice that and the place in the pair.
    ByteHalfLines,
    ByteLines,
}

/// A side of a product.
pub struct Side {
    which: Which,
    /// Its stages in shared memory.
    pub tile: Memory,
    extent: i64,
    step: i64,
    along_terms: bool,
    /// Elements that are copied at once.
    width: i64,
    is_async: bool,
    /// Elements of 16 bytes.
    chunk: i64,
    swizzle: Swizzle,
    /// Elements from a term to the next, where threads read the rows of a term whichever way memory lies: chunks are then
    /// where they are.
    pub pitch: Option<i64>,
    threads: i64,
}

/// What a thread copies in every stage.
pub enum Places {
    /// Few, worked out once.
    Each(Vec<Place>),
    /// Many: a loop of passes works them out.
    Passes(Box<Passes>),
}

/// A place of the side, and where in the stage it goes.
pub struct Place {
    index: Index,
    guard: Option<Expr>,
    /// First term, from the stage's first.
    term: Expr,
    to: Expr,
}

/// Lines of a stage, so many after each other a pass.
pub struct Passes {
    count: i64,
    lines: i64,
    /// The place in a line, the same in every pass, and the line of the first.
    near: Expr,
    far: Expr,
    /// First row, or column, of the tile.
    first: Expr,
    /// Where lines are terms: the row's, or column's, index and bounds.
    own: Option<(Index, Option<Expr>)>,
}

/// Places that are worked out once.
const FEW: i64 = 4;

impl Side {
    /// A side of a problem, with shared memory for its stages.
    pub fn new(scope: &mut Scope, problem: &Problem, which: Which, tiles: &Tiles) -> Side {
        let dtype = problem.side_dtype(scope, which);
        let chunk = 16 / dtype.size() as i64;
        let extent = if which == Which::Left { tiles.rows } else { tiles.columns };
        let (along_terms, width) = problem.neighbours(scope, which, chunk);
        let by_term = tiles.engine == Engine::Fma;
        // four elements longer, so that neighbouring terms of neighbouring rows are in banks of their own
        let pitch = by_term.then_some(extent + 4);
        let width = if by_term && along_terms { 1 } else { width };
        let is_async = width * dtype.size() as i64 >= 4;
        let chunks = if along_terms { tiles.step } else { extent } / chunk;
        let swizzle = match chunks {
            _ if !along_terms && dtype == DType::F32 => Swizzle::Words,
            4 if !along_terms && chunk == 16 => Swizzle::ByteHalfLines,
            _ if !along_terms && chunk == 16 => Swizzle::ByteLines,
            4 => Swizzle::HalfLines,
            _ => Swizzle::Lines,
        };
        Side {
            which,
            tile: scope.k.scratch(dtype, (pitch.unwrap_or(extent) * tiles.step * tiles.stages) as usize, Space::Shared),
            extent,
            step: tiles.step,
            along_terms,
            width: if is_async { width } else { 1 },
            is_async,
            chunk,
            swizzle,
            pitch,
            threads: tiles.threads(),
        }
    }

    /// Elements of a stage.
    pub fn stage_len(&self) -> i64 {
        self.pitch.unwrap_or(self.extent) * self.step
    }

    /// Elements of a line: terms of a row, or rows of a term.
    fn line(&self) -> i64 {
        if self.along_terms { self.step } else { self.extent }
    }

    /// The place in a stage of a chunk of a line. Of `within` only the last bits count: the line's number from a
    /// multiple of eight, of bytes of sixteen.
    fn chunk_at(&self, line: Expr, within: &Expr, chunk: Expr) -> Expr {
        let key = match self.swizzle {
            Swizzle::HalfLines => within / 2 % 4,
            Swizzle::Lines => within % 8,
            Swizzle::Words => within % 4 * 2,
            Swizzle::ByteHalfLines => within / 4 % 4,
            Swizzle::ByteLines => within / 4 % 4 * 2 + within % 2,
        };
        line * self.line() + chunk.binary(BinaryOp::Xor, key) * self.chunk
    }

    fn extents<'p>(&self, product: &'p Product) -> &'p Extent {
        match self.which {
            Which::Left => &product.rows,
            Which::Right => &product.columns,
        }
    }

    /// What a thread copies of the rows (or columns) from `first`.
    pub fn places(&self, scope: &mut Scope, product: &Product, first: &Expr, thread: &Expr) -> Places {
        let near_count = self.line() / self.width;
        let lines = self.threads / near_count;
        let count = self.extent * self.step / self.line() / lines;
        let near = scope.k.bind(thread % near_count * self.width);
        let far = scope.k.bind(thread / near_count);
        if count > FEW {
            let own = (!self.along_terms).then(|| self.own(scope, product, first, &near));
            return Places::Passes(Box::new(Passes { count, lines, near, far, first: first.clone(), own }));
        }
        let place = |pass: i64| {
            let line = scope.k.bind(&far + pass * lines);
            let (own, term) = if self.along_terms { (&line, &near) } else { (&near, &line) };
            let (index, guard) = self.own(scope, product, first, own);
            let to = self.to(&near, &far, &line, lines);
            Place { index, guard, term: term.clone(), to: scope.k.bind(to) }
        };
        Places::Each((0..count).map(place).collect())
    }

    /// Index and bounds of a row (or column) of the tile from `first`.
    fn own(&self, scope: &mut Scope, product: &Product, first: &Expr, own: &Expr) -> (Index, Option<Expr>) {
        let at = scope.k.bind(first + own);
        let extents = self.extents(product);
        let guard = extents.guard(&at, self.extent).map(|guard| scope.k.bind(guard));
        (extents.index(scope, at), guard)
    }

    /// Where in a stage an element goes, of a line and of the place `near` in it; passes have so many `lines`, of which the
    /// thread's first is `far`.
    fn to(&self, near: &Expr, far: &Expr, line: &Expr, lines: i64) -> Expr {
        let (own, term) = if self.along_terms { (line, near) } else { (near, line) };
        if let Some(pitch) = self.pitch {
            return term * pitch + own;
        }
        // the same for every pass, where passes are whole groups of lines
        let group = if self.parts_bytes() { 16 } else { 8 };
        let within = if lines % group == 0 { far } else { line };
        self.chunk_at(line.clone(), within, near / self.chunk) + near % self.chunk
    }

    /// Brings a step of the sum into a stage, which begins at an element of the tile.
    pub fn bring(
        &self,
        scope: &mut Scope,
        product: &Product,
        batch: &[Expr],
        places: &Places,
        stage: &Expr,
        step: &Expr,
    ) {
        match places {
            Places::Each(places) => {
                // rows of the same term share its indices
                let mut terms: Vec<(&Expr, (Index, Option<Expr>))> = Vec::new();
                for place in places {
                    let known = terms.iter().find(|(term, _)| **term == place.term).map(|(_, found)| found.clone());
                    let (sum, guard) = known.unwrap_or_else(|| {
                        let found = product.term(scope, step, &place.term);
                        terms.push((&place.term, found.clone()));
                        found
                    });
                    let inside = both(place.guard.clone(), guard);
                    self.copy(scope, product.problem, batch, (&place.index, &sum), inside, stage + &place.to);
                }
            }
            Places::Passes(passes) => {
                let near = self.along_terms.then(|| product.term(scope, step, &passes.near));
                scope.for_(Expr::int(0), Expr::int(passes.count), LoopKind::Unroll, |scope, pass| {
                    let line = scope.k.bind(pass * passes.lines + &passes.far);
                    let (index, bound) = match &passes.own {
                        Some(own) => own.clone(),
                        None => self.own(scope, product, &passes.first, &line),
                    };
                    let (sum, guard) = match near {
                        Some(near) => near,
                        None => product.term(scope, step, &line),
                    };
                    let to = self.to(&passes.near, &passes.far, &line, passes.lines);
                    self.copy(scope, product.problem, batch, (&index, &sum), both(bound, guard), stage + to);
                });
            }
        }
    }

    /// Copies what lies side by side from an index of the side and of the sum to a place of the stages.
    fn copy(
        &self,
        scope: &mut Scope,
        problem: &Problem,
        batch: &[Expr],
        (index, sum): (&Index, &Index),
        inside: Option<Expr>,
        to: Expr,
    ) {
        let source = self.is_async.then(|| problem.source(scope, self.which, batch, index, sum));
        match source.flatten() {
            Some((memory, from, place)) => {
                let inside = both(inside, place);
                scope.k.align_buffer(memory, (16 * self.width / self.chunk) as u32);
                scope.k.copy_async((self.tile, to), (memory, from), self.width as u32, inside);
            }
            None => {
                let value = problem.element(scope, self.which, batch, index, sum, inside);
                scope.k.store(self.tile, to, value);
            }
        }
    }

    /// Loads the 16 rows (or columns) from `first`, a multiple of eight, of the terms that one product takes: into the
    /// registers of one left matrix from `to`, or those of two right ones.
    pub fn load(&self, scope: &mut Scope, stage: &Expr, first: &Expr, slab: &Expr, lane: &Expr, to: (Memory, Expr)) {
        if self.swizzle == Swizzle::Words {
            return self.load_words(scope, stage, first, slab, lane, to);
        }
        let (low, matrix) = (lane % 8, lane / 8);
        let (row_half, term_half) = match self.which {
            Which::Left => (&matrix % 2, &matrix / 2),
            Which::Right => (&matrix / 2, &matrix % 2),
        };
        let bytes = self.chunk == 16;
        let from = if bytes && !self.along_terms {
            // of a pair of lines two terms, those of the next matrix two later
            let within = &matrix / 2 * 16 + &low / 2 * 4 + &low % 2 + &matrix % 2 * 2;
            self.chunk_at(slab * 32 + &within, &within, first / 16)
        } else if self.along_terms {
            let within = row_half * 8 + low;
            self.chunk_at(first + &within, &within, slab * 2 + term_half)
        } else {
            let within = term_half * 8 + low;
            self.chunk_at(slab * 16 + &within, &within, first / 8 + row_half)
        };
        let turn = match (self.along_terms, bytes, self.which) {
            (true, ..) => Turn::None,
            (false, false, _) => Turn::Halves,
            (false, true, Which::Left) => Turn::ByteRows,
            (false, true, Which::Right) => Turn::ByteColumns,
        };
        scope.k.load_matrices(to, (self.tile, stage + from), turn);
    }

    /// Whether bytes are turned on their way to registers: sums of rows, or columns, `i` and `i + 8` of a product are then
    /// those of `2 i` and the next.
    pub fn parts_bytes(&self) -> bool {
        self.chunk == 16 && !self.along_terms
    }

    /// [`Side::load`] of rows of terms in words, which nothing transposes on the way.
    fn load_words(
        &self,
        scope: &mut Scope,
        stage: &Expr,
        first: &Expr,
        slab: &Expr,
        lane: &Expr,
        (registers, to): (Memory, Expr),
    ) {
        scope.for_(Expr::int(0), Expr::int(4), LoopKind::Unroll, |scope, i| {
            let (row_half, term_half) = match self.which {
                Which::Left => (&i % 2, &i / 2),
                Which::Right => (&i / 2, &i % 2),
            };
            let (row, within) = (lane / 4, lane % 4);
            let chunk = first / 4 + row_half * 2 + &row / 4;
            let from = self.chunk_at(slab * 8 + term_half * 4 + &within, &within, chunk) + row % 4;
            scope.k.store(registers, to + i, self.tile.load(stage + from));
        });
    }
}

/// How many products a step takes: each has 32 bytes of terms.
pub fn slabs(tiles: &Tiles) -> i64 {
    let terms = match tiles.engine {
        Engine::Matrix(MatrixKind::F16 | MatrixKind::BF16) => 16,
        Engine::Matrix(MatrixKind::Tf32 | MatrixKind::Tf32x3) => 8,
        Engine::Matrix(MatrixKind::Int8 { .. }) => 32,
        Engine::Fma => 1,
    };
    tiles.step / terms
}
