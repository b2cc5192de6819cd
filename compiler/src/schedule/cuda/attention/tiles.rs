//! Tiles in shared memory, and their products in the registers of a block of four warps.
//!
//! The block owns rows of one side; rows of the other side are the columns of its scores. Halves are multiplied by
//! matrices of warps: a warp has 16 rows, and lane `l` of them rows `l / 4` and `l / 4 + 8`. `f32` is multiplied by FMA:
//! thread `t` has row `t / 4`. Either way four neighbouring lanes share a row.

use egret_ir::DType;
use egret_ir::ops::Labels;

use super::{Attend, Index, Place};
use crate::kernel::{Expr, LoopKind, MatrixKind, Memory, Space, Turn};
use crate::schedule::scope::{Scope, value_of};
use crate::schedule::view::{StridedView, row_major, strided};

/// Threads of a block.
pub const THREADS: i64 = 128;
/// Threads of a warp.
const WARP: i64 = 32;
/// Lanes that share a row.
pub const SHARING: u32 = 4;

/// Rows in shared memory, a pitch apart that spreads them over its banks.
#[derive(Clone, Copy)]
pub struct Tile {
    pub memory: Memory,
    rows: i64,
    /// Channels, a multiple of 16.
    pub width: i64,
    pitch: i64,
}

/// How products are made.
#[derive(Clone, Copy)]
pub struct Engine {
    dtype: DType,
    kind: Option<MatrixKind>,
    /// Columns of the scores: rows of a tile that streams.
    pub columns: i64,
    /// Registers of an operand's matrices, or of neighbours.
    left: Memory,
    right: Memory,
    /// Scores of `f32` on their way to other lanes.
    passed: Option<Memory>,
}

/// Where a thread is.
#[derive(Clone)]
pub struct Lanes {
    pub thread: Expr,
    warp: Expr,
    lane: Expr,
    /// The row in the warp's rows, and which of the lanes that share it.
    row: Expr,
    pub part: Expr,
}

/// Which axis the rows of an operand are.
#[derive(Clone, Copy, PartialEq)]
pub enum Rows {
    Queries,
    Keys,
}

/// An operand, read by rows of channels.
pub struct Source<'a> {
    id: egret_ir::NodeId,
    labels: &'a Labels,
    rows: Rows,
    channels: i64,
    view: Option<StridedView>,
    /// Neighbours that are copied at once; 0 where they are moved one by one.
    at_once: i64,
}

/// A multiple of 16 that is not less.
pub fn padded(channels: i64) -> i64 {
    (channels as u64).next_multiple_of(16) as i64
}

/// Rows that a block owns.
pub fn owned(dtype: DType) -> i64 {
    if dtype == DType::F32 { 32 } else { 64 }
}

/// Bytes of shared memory of a block past which tiles of so many rows stream.
pub fn shared_bytes(attend: &Attend, columns: i64, gradient: bool) -> i64 {
    let (head, value) = (padded(attend.head), padded(attend.value));
    let pitch = |width: i64| width + chunk(attend.dtype);
    let own = if gradient { pitch(head) + pitch(value) } else { pitch(head.max(value)) };
    let passed = if attend.dtype == DType::F32 { (columns + 1) * owned(attend.dtype) } else { 0 };
    // of the gradient a row's log-sum-exp and sum too
    let rows = if gradient { 8 * columns } else { 0 };
    (owned(attend.dtype) * own + columns * (pitch(head) + pitch(value)) + passed) * attend.dtype.size() as i64 + rows
}

/// Elements of 16 bytes.
fn chunk(dtype: DType) -> i64 {
    16 / dtype.size() as i64
}

impl Tile {
    /// A tile of so many rows of channels.
    pub fn new(scope: &mut Scope, dtype: DType, rows: i64, width: i64) -> Tile {
        let pitch = width + chunk(dtype);
        Tile { memory: scope.k.scratch(dtype, (rows * pitch) as usize, Space::Shared), rows, width, pitch }
    }
}

impl<'a> Source<'a> {
    pub fn new(scope: &Scope, attend: &'a Attend, id: egret_ir::NodeId, labels: &'a Labels, rows: Rows) -> Source<'a> {
        let graph = scope.graph;
        let stored = scope.stored;
        let shape = &graph.tensor_type(id).shape;
        let axis = labels.0.iter().position(|l| *l == attend.roles.channel || *l == attend.roles.value).unwrap_or(0);
        let channels = shape[axis].as_const().unwrap_or(1);
        let view = strided(graph, id, &|at| stored.layout(value_of(graph, at)).is_some());
        let unit = chunk(attend.dtype);
        let whole = |d: &egret_ir::Dim| d.modulo(&egret_ir::Dim::from(unit)).is(0);
        let wide = view.as_ref().is_some_and(|view| {
            let others = view.strides.iter().enumerate().filter(|(i, _)| *i != axis && !shape[*i].is(1));
            view.strides[axis].is(1)
                && others.map(|(_, stride)| stride).chain([&view.offset]).all(whole)
                && stored.is_aligned(value_of(graph, view.source))
        });
        let at_once = if wide && channels % unit == 0 { unit } else { 0 };
        Source { id, labels, rows, channels, view, at_once }
    }

    fn place<'p>(&self, outer: &'p [Expr], row: &Expr) -> Place<'p> {
        Place { outer, query: row.clone(), key: row.clone() }
    }

    /// Memory and element index of an element of a strided source.
    fn address(&self, scope: &mut Scope, view: &StridedView, index: &Index) -> (Memory, Expr) {
        let memory = scope.read(value_of(scope.graph, view.source));
        let shape = scope.graph.tensor_type(self.id).shape.clone();
        let mut total = scope.dim(&view.offset);
        for (axis, at) in index.iter().enumerate().filter(|(axis, _)| !shape[*axis].is(1)) {
            let stride = scope.dim(&view.strides[axis]);
            if stride.as_int() != Some(0) {
                total = total + at * stride;
            }
        }
        (memory, total)
    }

    /// Brings rows from `first` on into a tile; zeros where rows end and beyond the channels. What is copied
    /// asynchronously belongs to the next group of copies.
    pub fn bring(
        &self,
        scope: &mut Scope,
        attend: &Attend,
        (tile, outer): (&Tile, &[Expr]),
        first: &Expr,
        thread: &Expr,
    ) {
        let end = scope.dim(if self.rows == Rows::Queries { &attend.queries } else { &attend.keys });
        let unit = chunk(attend.dtype);
        let across = tile.width / unit;
        let total = tile.rows * across;
        scope.for_(Expr::int(0), Expr::int((total + THREADS - 1) / THREADS), LoopKind::Unroll, |scope, i| {
            let slot = scope.k.bind(i * THREADS + thread);
            let body = |scope: &mut Scope| {
                let (row, channel) = (scope.k.bind(&slot / across), scope.k.bind(&slot % across * unit));
                let to = scope.k.bind(&row * tile.pitch + &channel);
                let row = scope.k.bind(first + row);
                let place = self.place(outer, &row);
                let mut inside = row.less(&end);
                if self.channels < tile.width {
                    inside = inside.and(channel.less(self.channels));
                }
                if let (Some(view), true) = (&self.view, self.at_once > 0) {
                    let index = attend.index(self.labels, &place, &channel);
                    let (memory, address) = self.address(scope, view, &index);
                    scope.k.align_buffer(memory, 16);
                    return scope.k.copy_async((tile.memory, to), (memory, address), unit as u32, Some(inside));
                }
                scope.for_(Expr::int(0), Expr::int(unit), LoopKind::Unroll, |scope, i| {
                    let channel = scope.k.bind(channel + &i);
                    let inside = scope.k.bind(row.less(end).and(channel.less(self.channels)));
                    let index = attend.index(self.labels, &place, &channel);
                    let value = match &self.view {
                        Some(view) => {
                            let (memory, address) = self.address(scope, view, &index);
                            memory.load_if(inside, address)
                        }
                        None => {
                            let value = scope.masked(inside.clone(), |scope| scope.element(self.id, &index));
                            inside.select(value, Expr::constant(attend.dtype, 0.0))
                        }
                    };
                    scope.k.store(tile.memory, to + i, value);
                });
            };
            if total % THREADS == 0 {
                return body(scope);
            }
            scope.if_(slot.less(total), body);
        });
    }
}

impl Lanes {
    pub fn new(scope: &mut Scope, thread: Expr) -> Lanes {
        let lane = scope.k.bind(&thread % WARP);
        Lanes {
            warp: scope.k.bind(&thread / WARP),
            row: scope.k.bind(&lane / i64::from(SHARING)),
            part: scope.k.bind(&lane % i64::from(SHARING)),
            thread,
            lane,
        }
    }
}

impl Engine {
    pub fn new(scope: &mut Scope, dtype: DType, columns: i64) -> Engine {
        let kind = match dtype {
            DType::F16 => Some(MatrixKind::F16),
            DType::BF16 => Some(MatrixKind::BF16),
            _ => None,
        };
        let word = if kind.is_some() { DType::U32 } else { DType::F32 };
        let passed = (columns + 1) * owned(dtype);
        Engine {
            dtype,
            kind,
            columns,
            left: scope.k.scratch(word, 4, Space::Register),
            right: scope.k.scratch(word, 4, Space::Register),
            passed: kind.is_none().then(|| scope.k.scratch(DType::F32, passed as usize, Space::Shared)),
        }
    }

    /// Registers of sums over the rows of a thread and so many columns.
    pub fn registers(&self, scope: &mut Scope, columns: i64) -> Memory {
        scope.k.scratch(DType::F32, (columns / 4 * self.groups()) as usize, Space::Register)
    }

    /// Rows of a thread.
    pub fn groups(&self) -> i64 {
        if self.kind.is_some() { 2 } else { 1 }
    }

    /// Rows of a warp.
    fn warp_rows(&self) -> i64 {
        owned(self.dtype) / (THREADS / WARP)
    }

    /// The block's row of a thread's row.
    pub fn row(&self, lanes: &Lanes, group: i64) -> Expr {
        &lanes.warp * self.warp_rows() + &lanes.row + group * 8
    }

    /// The register of element `i` of a thread's row.
    pub fn register(&self, i: &Expr, group: i64) -> Expr {
        if self.kind.is_some() { i / 2 * 4 + group * 2 + i % 2 } else { i.clone() }
    }

    /// The column of score `i` of a thread's row.
    pub fn column(&self, lanes: &Lanes, i: &Expr) -> Expr {
        match self.kind {
            Some(_) => i / 2 * 8 + &lanes.part * 2 + i % 2,
            None => i * i64::from(SHARING) + &lanes.part,
        }
    }

    /// The channel of sum `i` of a thread's row.
    fn channel(&self, lanes: &Lanes, i: &Expr) -> Expr {
        match self.kind {
            Some(_) => self.column(lanes, i),
            None => i / 4 * 16 + &lanes.part * 4 + i % 4,
        }
    }

    /// Zeroes registers over so many columns.
    pub fn clear(&self, scope: &mut Scope, registers: Memory, columns: i64) {
        let count = Expr::int(columns / 4 * self.groups());
        scope.for_(Expr::int(0), count, LoopKind::Unroll, |scope, i| scope.k.store(registers, i, 0.0f32));
    }

    /// `scores = own · streamedᵀ`, over the channels of the tile that streams.
    pub fn scores(&self, scope: &mut Scope, lanes: &Lanes, scores: Memory, own: &Tile, streamed: &Tile) {
        self.clear(scope, scores, self.columns);
        let (left, right) = (self.left, self.right);
        let Some(kind) = self.kind else {
            let first = scope.k.bind(self.row(lanes, 0) * own.pitch);
            let other = scope.k.bind(&lanes.part * streamed.pitch);
            let step = i64::from(SHARING) * streamed.pitch;
            return scope.for_step(Expr::int(0), Expr::int(streamed.width), 4, LoopKind::Serial, |scope, k| {
                scope.k.load_vector((left, 0), own.memory, first + &k, 4);
                scope.for_(Expr::int(0), Expr::int(self.columns / 4), LoopKind::Unroll, |scope, i| {
                    scope.k.load_vector((right, 0), streamed.memory, &i * step + &other + k, 4);
                    let sum = (0..4).fold(scores.load(&i), |sum, e| left.load(e) * right.load(e) + sum);
                    scope.k.store(scores, i, sum);
                });
            });
        };
        let row = &lanes.warp * 16 + &lanes.lane % 16;
        let own_at = scope.k.bind(row * own.pitch + &lanes.lane / 16 * 8);
        let row = &lanes.lane / 16 * 8 + &lanes.lane % 8;
        let at = scope.k.bind(row * streamed.pitch + &lanes.lane / 8 % 2 * 8);
        scope.for_(Expr::int(0), Expr::int(streamed.width / 16), LoopKind::Unroll, |scope, k| {
            scope.k.load_matrices((left, 0), (own.memory, own_at + &k * 16), Turn::None);
            scope.for_(Expr::int(0), Expr::int(self.columns / 16), LoopKind::Unroll, |scope, n| {
                let from = at + &n * (16 * streamed.pitch) + &k * 16;
                scope.k.load_matrices((right, 0), (streamed.memory, from), Turn::None);
                scope.k.multiply(kind, (scores, &n * 8), (left, 0), (right, 0));
                scope.k.multiply(kind, (scores, n * 8 + 4), (left, 0), (right, 2));
            });
        });
    }

    /// `sums += weights · streamed`, over `width` channels of the tile from `first` on. The weights are scores.
    pub fn combine(
        &self,
        scope: &mut Scope,
        lanes: &Lanes,
        (sums, width): (Memory, i64),
        weights: Memory,
        (streamed, first): (&Tile, &Expr),
    ) {
        let (left, right) = (self.left, self.right);
        let (Some(kind), None) = (self.kind, self.passed) else {
            return self.combine_by_fma(scope, lanes, (sums, width), weights, (streamed, first));
        };
        let row = &lanes.lane % 16;
        let at = scope.k.bind(row * streamed.pitch + &lanes.lane / 16 * 8 + first);
        scope.for_(Expr::int(0), Expr::int(self.columns / 16), LoopKind::Unroll, |scope, k| {
            for word in 0..4 {
                let pair = [0, 1].map(|e| weights.load(&k * 8 + 2 * word + e));
                scope.k.pack((left, word), self.dtype, pair);
            }
            scope.for_(Expr::int(0), Expr::int(width / 16), LoopKind::Unroll, |scope, n| {
                let from = at + &k * (16 * streamed.pitch) + &n * 16;
                scope.k.load_matrices((right, 0), (streamed.memory, from), Turn::Halves);
                scope.k.multiply(kind, (sums, &n * 8), (left, 0), (right, 0));
                scope.k.multiply(kind, (sums, n * 8 + 4), (left, 0), (right, 2));
            });
        });
    }

    fn combine_by_fma(
        &self,
        scope: &mut Scope,
        lanes: &Lanes,
        (sums, width): (Memory, i64),
        weights: Memory,
        (streamed, first): (&Tile, &Expr),
    ) {
        let Some(passed) = self.passed else { return };
        let right = self.right;
        let row = scope.k.bind(self.row(lanes, 0) * (self.columns + 1));
        scope.for_(Expr::int(0), Expr::int(self.columns / 4), LoopKind::Unroll, |scope, i| {
            let column = self.column(lanes, &i);
            scope.k.store(passed, &row + column, weights.load(i));
        });
        scope.k.warp_barrier();
        let own = scope.k.bind(&lanes.part * 4 + first);
        scope.for_(Expr::int(0), Expr::int(self.columns), LoopKind::Serial, |scope, c| {
            let weight = scope.k.bind(passed.load(&row + &c));
            scope.for_(Expr::int(0), Expr::int(width / 16), LoopKind::Unroll, |scope, j| {
                scope.k.load_vector((right, 0), streamed.memory, c * streamed.pitch + &own + &j * 16, 4);
                for e in 0..4 {
                    let at = &j * 4 + e;
                    scope.k.store(sums, &at, &weight * right.load(e) + sums.load(&at));
                }
            });
        });
        // the weights' places are written again
        scope.k.warp_barrier();
    }

    /// Stores sums over `width` channels by way of a tile of which this warp alone read its rows.
    pub fn store(&self, scope: &mut Scope, lanes: &Lanes, (sums, width): (Memory, i64), tile: &Tile, to: &Target) {
        scope.k.warp_barrier();
        for group in 0..self.groups() {
            let row = scope.k.bind(self.row(lanes, group) * tile.pitch);
            scope.for_(Expr::int(0), Expr::int(width / 4), LoopKind::Unroll, |scope, i| {
                let value = sums.load(self.register(&i, group));
                let value = if self.dtype == DType::F32 { value } else { value.cast(self.dtype) };
                let at = &row + self.channel(lanes, &i);
                scope.k.store(tile.memory, at, value);
            });
        }
        scope.k.warp_barrier();
        let unit = chunk(self.dtype);
        let across = width / unit;
        let rows = self.warp_rows();
        let total = rows * across;
        let attend = to.attend;
        let end = scope.dim(if to.rows == Rows::Queries { &attend.queries } else { &attend.keys });
        let shape = scope.graph.ty(attend.id).parts()[to.part].shape.clone();
        let axis = to.labels.0.iter().position(|l| *l == attend.roles.channel || *l == attend.roles.value).unwrap_or(0);
        let channels = shape[axis].as_const().unwrap_or(1);
        let value = (attend.id, to.part);
        let wide = row_major(&shape)[axis].is(1) && channels % unit == 0 && scope.stored.is_aligned(value);
        let held = wide.then(|| scope.k.scratch(DType::F32, unit as usize, Space::Register));
        scope.for_(Expr::int(0), Expr::int((total + WARP - 1) / WARP), LoopKind::Unroll, |scope, i| {
            let slot = scope.k.bind(i * WARP + &lanes.lane);
            let row = scope.k.bind(&lanes.warp * rows + &slot / across);
            let channel = scope.k.bind(&slot % across * unit);
            let from = scope.k.bind(&row * tile.pitch + &channel);
            let row = scope.k.bind(&to.first_row + row);
            let channel = scope.k.bind(&to.first_channel + channel);
            let place = Place { outer: to.outer, query: row.clone(), key: row.clone() };
            let mut inside = row.less(end).and(channel.less(channels));
            if total % WARP != 0 {
                inside = inside.and(slot.less(total));
            }
            scope.if_(inside, |scope| {
                if let Some(held) = held {
                    let index = attend.index(to.labels, &place, &channel);
                    let address = scope.address(value, &index);
                    scope.k.align_buffer(to.memory, 16);
                    scope.k.load_vector((held, 0), tile.memory, from, unit as u32);
                    return scope.k.store_vector(to.memory, address, (held, 0), unit as u32);
                }
                scope.for_(Expr::int(0), Expr::int(unit), LoopKind::Unroll, |scope, i| {
                    let channel = scope.k.bind(channel + &i);
                    scope.if_(channel.less(channels), |scope| {
                        let index = attend.index(to.labels, &place, &channel);
                        let address = scope.address(value, &index);
                        scope.k.store(to.memory, address, tile.memory.load(from + i));
                    });
                });
            });
        });
    }
}

/// Where sums go.
pub struct Target<'a> {
    pub attend: &'a Attend<'a>,
    pub memory: Memory,
    /// The part of the node's value.
    pub part: usize,
    pub labels: &'a Labels,
    pub rows: Rows,
    pub outer: &'a [Expr],
    pub first_row: Expr,
    pub first_channel: Expr,
}
