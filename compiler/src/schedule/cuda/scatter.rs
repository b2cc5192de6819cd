//! `scatter`: each place of the result has one thread that owns it, which goes through the updates in order and joins those
//! that are its own. So the order in which updates are joined is fixed, and no two threads write one place.
//!
//! A thread owns, of one line along the axes that indices name, every `owners`-th place; `owners` is a power of two, and
//! neighbouring threads own neighbours in memory.

use egret_ir::ops::{Places, Scatter, ScatterKind};
use egret_ir::{DType, Dim, NodeId, Shape};
use smallvec::SmallVec;

use super::expected;
use crate::kernel::{BinaryOp, Expr, LoopKind, Memory};
use crate::schedule::scope::Scope;

/// Threads of a block.
pub const THREADS: i64 = 128;
/// Threads that fill a GPU.
const ENOUGH: i64 = 1 << 16;
/// Most updates that all threads together look at, to keep the loops short where there are many.
const MOST_LOOKS: i64 = 1 << 33;

/// Indices, one an axis.
type Index = SmallVec<[Expr; 6]>;

/// Builds the kernel.
pub fn build(scope: &mut Scope, id: NodeId, scatter: &Scatter) {
    let graph = scope.graph;
    let shape = graph.tensor_type(id).shape.clone();
    let indices = graph.node(id).operands[1];
    let (first, width) = match scatter.places {
        Places::Rows { axis } | Places::Elements { axis } => (axis, 1),
        Places::Tuples { batch } => (batch, Places::width(graph.tensor_type(indices)).unwrap_or(0)),
    };
    let out = scope.write((id, 0));
    let work = Work { id, scatter, first, width, shape, indices, out, owners: 1 };
    let owners = work.choose(scope);
    Work { owners, ..work }.build(scope);
}

struct Work<'s> {
    id: NodeId,
    scatter: &'s Scatter,
    /// The axes that indices name begin here, and are so many.
    first: usize,
    width: usize,
    shape: Shape,
    indices: NodeId,
    out: Memory,
    /// Threads that share a line.
    owners: i64,
}

/// The part of a thread.
struct Own {
    before: Index,
    owner: Expr,
    after: Index,
}

impl Work<'_> {
    fn named(&self) -> &[Dim] {
        &self.shape[self.first..self.first + self.width]
    }

    fn places(&self) -> Dim {
        product(self.named())
    }

    /// Updates that a thread goes through.
    fn updates(&self, scope: &Scope) -> SmallVec<[Dim; 4]> {
        let shape = &scope.graph.tensor_type(self.indices).shape;
        match self.scatter.places {
            Places::Rows { .. } => shape.iter().cloned().collect(),
            Places::Elements { axis } => smallvec::smallvec![shape[axis].clone()],
            Places::Tuples { batch } => shape[batch..shape.rank() - 1].iter().cloned().collect(),
        }
    }

    fn choose(&self, scope: &Scope) -> i64 {
        let lines = product(&self.shape[..self.first]) * product(&self.shape[self.first + self.width..]);
        let lines = expected(&lines).max(1);
        let looks = lines.saturating_mul(expected(&product(&self.updates(scope))).max(1));
        let most = expected(&self.places()).max(1).min(ENOUGH / lines).min(MOST_LOOKS / looks);
        // the power of two below
        1 << most.max(1).ilog2()
    }

    fn build(&self, scope: &mut Scope) {
        let extents: SmallVec<[Dim; 6]> = self.shape[..self.first]
            .iter()
            .chain([&Dim::from(self.owners)])
            .chain(&self.shape[self.first + self.width..])
            .cloned()
            .collect();
        let threads = product(&extents);
        let end = scope.dim(&threads);
        let blocks = scope.dim(&threads.ceil_div(&Dim::from(THREADS)));
        let block = scope.k.grid(blocks);
        scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
            let at = scope.k.bind(block * THREADS + thread);
            scope.if_(at.less(end), |scope| {
                let index = scope.unflatten(at, &extents);
                let own = Own {
                    before: index[..self.first].into(),
                    owner: index[self.first].clone(),
                    after: index[self.first + 1..].into(),
                };
                self.copy(scope, &own);
                // where there is no place there is none for an update
                if self.places().range().0 >= 1 {
                    return self.join_all(scope, &own);
                }
                let any = scope.dim(&self.places()).greater(0);
                scope.if_(any, |scope| self.join_all(scope, &own));
            });
        });
    }

    fn result(&self, scope: &mut Scope, own: &Own, place: Expr) -> Index {
        let named = scope.unflatten(place, self.named());
        own.before.iter().chain(&named).chain(&own.after).cloned().collect()
    }

    fn copy(&self, scope: &mut Scope, own: &Own) {
        let x = scope.graph.node(self.id).operands[0];
        let end = scope.dim(&self.places());
        scope.for_step(own.owner.clone(), end, self.owners, LoopKind::Serial, |scope, place| {
            let index = self.result(scope, own, place);
            let value = scope.element(x, &index);
            let address = scope.address((self.id, 0), &index);
            scope.k.store(self.out, address, value);
        });
    }

    fn join_all(&self, scope: &mut Scope, own: &Own) {
        let indices = scope.graph.tensor_type(self.indices).shape.clone();
        let updates = self.updates(scope);
        let count = scope.dim(&product(&updates));
        match self.scatter.places {
            Places::Rows { .. } => scope.for_(Expr::int(0), count, LoopKind::Serial, |scope, update| {
                let at = scope.unflatten(update, &updates);
                let chosen = self.chosen(scope, &at, self.first);
                let from: Index = own.before.iter().chain(&at).chain(&own.after).cloned().collect();
                self.join(scope, own, chosen, &from);
            }),
            Places::Elements { axis } => {
                // the indices may reach less far than the result
                let mut reached = Expr::from(true);
                let places = (0..axis).zip(&own.before).chain((axis + 1..).zip(&own.after));
                for (i, at) in places.filter(|(i, _)| indices[*i] != self.shape[*i]) {
                    let extent = scope.dim(&indices[i]);
                    reached = reached.and(at.less(extent));
                }
                scope.if_(reached, |scope| {
                    scope.for_(Expr::int(0), count, LoopKind::Serial, |scope, update| {
                        let from: Index = own.before.iter().chain([&update]).chain(&own.after).cloned().collect();
                        let chosen = self.chosen(scope, &from, axis);
                        self.join(scope, own, chosen, &from);
                    });
                });
            }
            Places::Tuples { batch } => scope.for_(Expr::int(0), count, LoopKind::Serial, |scope, update| {
                let at = scope.unflatten(update, &updates);
                let mut place = Expr::int(0);
                for i in 0..self.width {
                    let of: Index = own.before.iter().chain(&at).cloned().chain([Expr::int(i as i64)]).collect();
                    let chosen = self.chosen(scope, &of, batch + i);
                    let extent = scope.dim(&self.shape[batch + i]);
                    place = if i == 0 { chosen } else { place * extent + chosen };
                }
                let from: Index = own.before.iter().chain(&at).chain(&own.after).cloned().collect();
                self.join(scope, own, place, &from);
            }),
        }
    }

    /// The place along an axis that an index names; one outside is reported, and the nearest taken.
    fn chosen(&self, scope: &mut Scope, at: &[Expr], axis: usize) -> Expr {
        let chosen = scope.element(self.indices, at).cast(DType::I64);
        let chosen = scope.k.bind(chosen);
        let extent = scope.dim(&self.shape[axis]);
        let outside = chosen.less(0).or(chosen.greater_equal(extent));
        scope.fault_if(outside, format!("an index along axis {axis} is outside 0..{}", self.shape[axis]));
        scope.within(chosen, &self.shape[axis])
    }

    /// Joins an update to a place, if that is this thread's.
    fn join(&self, scope: &mut Scope, own: &Own, place: Expr, from: &[Expr]) {
        let place = scope.k.bind(place);
        let body = |scope: &mut Scope| {
            let updates = scope.graph.node(self.id).operands[2];
            let value = scope.element(updates, from);
            let index = self.result(scope, own, place.clone());
            let address = scope.address((self.id, 0), &index);
            let op = match self.scatter.kind {
                ScatterKind::Set => return scope.k.store(self.out, address, value),
                ScatterKind::Add => BinaryOp::Add,
                ScatterKind::Mul => BinaryOp::Mul,
                ScatterKind::Min => BinaryOp::Min,
                ScatterKind::Max => BinaryOp::Max,
            };
            let address = scope.k.bind(address);
            let joined = self.out.load(&address).binary(op, value);
            scope.k.store(self.out, address, joined);
        };
        if self.owners == 1 {
            return body(scope);
        }
        let mine = (&place % self.owners).equal(&own.owner);
        scope.if_(mine, body);
    }
}

fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::ONE, |n, d| n * d.clone())
}
