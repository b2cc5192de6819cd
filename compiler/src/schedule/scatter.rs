//! Scatters: the operand is copied, then updates are joined in row-major order. One grid point owns all places that its
//! updates may name, so that the order is fixed.

use egret_ir::ops::{Places, Scatter, ScatterKind};
use egret_ir::{DType, NodeId, Shape};
use smallvec::SmallVec;

use super::map::{grid_over, nest};
use super::scope::Scope;
use crate::kernel::{BinaryOp, Expr, LoopKind, Memory};

struct Updates<'s> {
    id: NodeId,
    indices: NodeId,
    updates: NodeId,
    kind: ScatterKind,
    out: Memory,
    shape: &'s Shape,
}

/// Builds a scatter.
pub fn build(scope: &mut Scope, id: NodeId, scatter: &Scatter) {
    let graph = scope.graph;
    let operands = &graph.node(id).operands;
    let shape = graph.tensor_type(id).shape.clone();
    let out = scope.write((id, 0));
    let own = match scatter.places {
        Places::Rows { axis } | Places::Elements { axis } => axis,
        Places::Tuples { batch } => batch,
    };
    let outer = grid_over(scope, &shape[..own]);
    nest(scope, &shape[own..], SmallVec::new(), &mut |scope, inner| {
        let at: SmallVec<[Expr; 6]> = outer.iter().chain(inner).cloned().collect();
        let value = scope.element(operands[0], &at);
        let address = scope.address((id, 0), &at);
        scope.k.store(out, address, value);
    });
    let updates = Updates { id, indices: operands[1], updates: operands[2], kind: scatter.kind, out, shape: &shape };
    match scatter.places {
        Places::Rows { axis } => updates.rows(scope, &outer, axis),
        Places::Elements { axis } => updates.elements(scope, &outer, axis),
        Places::Tuples { batch } => updates.tuples(scope, &outer, batch),
    }
}

impl Updates<'_> {
    /// The place that an index names along an axis; a place outside is reported, and the nearest one taken.
    fn place(&self, scope: &mut Scope, at: &[Expr], axis: usize) -> Expr {
        let chosen = scope.element(self.indices, at).cast(DType::I64);
        let chosen = scope.k.bind(chosen);
        let extent = scope.dim(&self.shape[axis]);
        let outside = chosen.less(Expr::int(0)).or(chosen.greater_equal(extent));
        scope.fault_if(outside, format!("an index along axis {axis} is outside 0..{}", self.shape[axis]));
        scope.within(chosen, &self.shape[axis])
    }

    /// Runs `body` where the result has elements: there is no nearest place otherwise.
    fn guarded(&self, scope: &mut Scope, body: impl FnOnce(&mut Scope)) {
        let elements = self.shape.elements();
        if elements.range().0 >= 1 {
            return body(scope);
        }
        let any = scope.dim(&elements).greater(Expr::int(0));
        scope.if_(any, body);
    }

    fn join(&self, scope: &mut Scope, to: &[Expr], from: &[Expr]) {
        let value = scope.element(self.updates, from);
        let address = scope.address((self.id, 0), to);
        let op = match self.kind {
            ScatterKind::Set => return scope.k.store(self.out, address, value),
            ScatterKind::Add => BinaryOp::Add,
            ScatterKind::Mul => BinaryOp::Mul,
            ScatterKind::Min => BinaryOp::Min,
            ScatterKind::Max => BinaryOp::Max,
        };
        let joined = self.out.load(address.clone()).binary(op, value);
        scope.k.store(self.out, address, joined);
    }

    /// Serial loops over axes of the indices.
    fn serial(
        &self,
        scope: &mut Scope,
        axes: std::ops::Range<usize>,
        at: SmallVec<[Expr; 6]>,
        body: &mut dyn FnMut(&mut Scope, &[Expr]),
    ) {
        let Some(extent) = axes.clone().nth(at.len()) else { return body(scope, &at) };
        let end = scope.dim(&scope.graph.tensor_type(self.indices).shape[extent].clone());
        scope.for_(Expr::int(0), end, LoopKind::Serial, |scope, i| {
            let mut at = at;
            at.push(i);
            self.serial(scope, axes, at, body);
        });
    }

    fn rows(&self, scope: &mut Scope, outer: &[Expr], axis: usize) {
        let rank = scope.graph.tensor_type(self.indices).shape.rank();
        self.guarded(scope, |scope| {
            self.serial(scope, 0..rank, SmallVec::new(), &mut |scope, at| {
                let chosen = self.place(scope, at, axis);
                nest(scope, &self.shape[axis + 1..], SmallVec::new(), &mut |scope, inner| {
                    let to: SmallVec<[Expr; 6]> = outer.iter().chain([&chosen]).chain(inner).cloned().collect();
                    let from: SmallVec<[Expr; 6]> = outer.iter().chain(at).chain(inner).cloned().collect();
                    self.join(scope, &to, &from);
                });
            });
        });
    }

    fn elements(&self, scope: &mut Scope, outer: &[Expr], axis: usize) {
        let extents = scope.graph.tensor_type(self.indices).shape.clone();
        // the indices may reach less far than the result
        let mut reached = Expr::from(true);
        for (i, at) in outer.iter().enumerate().filter(|(i, _)| extents[*i] != self.shape[*i]) {
            let extent = scope.dim(&extents[i]);
            reached = reached.and(at.less(extent));
        }
        self.guarded(scope, |scope| {
            scope.if_(reached, |scope| {
                self.serial(scope, axis..axis + 1, SmallVec::new(), &mut |scope, at| {
                    nest(scope, &extents[axis + 1..], SmallVec::new(), &mut |scope, inner| {
                        let from: SmallVec<[Expr; 6]> = outer.iter().chain(at).chain(inner).cloned().collect();
                        let chosen = self.place(scope, &from, axis);
                        let to: SmallVec<[Expr; 6]> = outer.iter().chain([&chosen]).chain(inner).cloned().collect();
                        self.join(scope, &to, &from);
                    });
                });
            });
        });
    }

    fn tuples(&self, scope: &mut Scope, outer: &[Expr], batch: usize) {
        let indices = scope.graph.tensor_type(self.indices).clone();
        let (lead, width) = (indices.shape.rank() - 1, Places::width(&indices).unwrap_or(0));
        self.guarded(scope, |scope| {
            self.serial(scope, batch..lead, SmallVec::new(), &mut |scope, at| {
                let mut to: SmallVec<[Expr; 6]> = outer.into();
                for i in 0..width {
                    let last = Expr::int(i as i64);
                    let of: SmallVec<[Expr; 6]> = outer.iter().chain(at).chain([&last]).cloned().collect();
                    to.push(self.place(scope, &of, batch + i));
                }
                nest(scope, &self.shape[batch + width..], SmallVec::new(), &mut |scope, inner| {
                    let to: SmallVec<[Expr; 6]> = to.iter().chain(inner).cloned().collect();
                    let from: SmallVec<[Expr; 6]> = outer.iter().chain(at).chain(inner).cloned().collect();
                    self.join(scope, &to, &from);
                });
            });
        });
    }
}
