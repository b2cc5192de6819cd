//! `scatter` along an axis: each thread owns a line along it, so that the order in which updates are joined is fixed.

use egret_ir::ops::{Places, Scatter, ScatterKind};
use egret_ir::{DType, Dim, NodeId, Shape};
use smallvec::SmallVec;

use super::map;
use crate::kernel::{BinaryOp, Expr, LoopKind, Memory};
use crate::schedule::scope::Scope;

/// Indices, one an axis.
type Index = SmallVec<[Expr; 6]>;

/// Builds the kernel: a thread copies its line of the operand, then joins the updates that fall into it, in order.
pub fn build(scope: &mut Scope, id: NodeId, scatter: &Scatter, axis: usize) {
    let shape = scope.graph.tensor_type(id).shape.clone();
    let out = scope.write((id, 0));
    let mut lines = shape.clone();
    lines.dims_mut()[axis] = Dim::ONE;
    let code = scope.fault(format!("an index along axis {axis} is outside 0..{}", shape[axis]));
    let line = Lines { id, scatter, axis, shape, out, code };
    map::elements(scope, &lines, |scope, own| {
        line.copy(scope, own);
        // an empty line has no place for an update
        let length = scope.dim(&line.shape[axis]);
        if line.shape[axis].range().0 >= 1 {
            return line.updates(scope, own);
        }
        scope.if_(length.greater(0), |scope| line.updates(scope, own));
    });
}

struct Lines<'s> {
    id: NodeId,
    scatter: &'s Scatter,
    axis: usize,
    shape: Shape,
    out: Memory,
    code: u32,
}

impl Lines<'_> {
    fn at(&self, own: &[Expr], i: Expr) -> Index {
        let mut index: Index = own.into();
        index[self.axis] = i;
        index
    }

    fn copy(&self, scope: &mut Scope, own: &[Expr]) {
        let x = scope.graph.node(self.id).operands[0];
        let length = scope.dim(&self.shape[self.axis]);
        scope.for_(Expr::int(0), length, LoopKind::Serial, |scope, i| {
            let index = self.at(own, i);
            let value = scope.element(x, &index);
            let address = scope.address((self.id, 0), &index);
            scope.k.store(self.out, address, value);
        });
    }

    fn updates(&self, scope: &mut Scope, own: &[Expr]) {
        let indices = scope.graph.node(self.id).operands[1];
        let extents = scope.graph.tensor_type(indices).shape.clone();
        if matches!(self.scatter.places, Places::Elements { .. }) {
            // the indices may reach less far than the result
            let mut reached = Expr::from(true);
            for (i, at) in own.iter().enumerate().filter(|(i, _)| *i != self.axis && extents[*i] != self.shape[*i]) {
                let extent = scope.dim(&extents[i]);
                reached = reached.and(at.less(extent));
            }
            let count = scope.dim(&extents[self.axis]);
            return scope.if_(reached, |scope| {
                scope.for_(Expr::int(0), count, LoopKind::Serial, |scope, update| {
                    let from = self.at(own, update);
                    self.join(scope, own, &from, &from);
                });
            });
        }
        let count = scope.dim(&extents.elements());
        scope.for_(Expr::int(0), count, LoopKind::Serial, |scope, update| {
            let place = scope.unflatten(update, &extents);
            let mut from: Index = own[..self.axis].into();
            from.extend(place.iter().cloned());
            from.extend(own[self.axis + 1..].iter().cloned());
            self.join(scope, own, &place, &from);
        });
    }

    /// Joins an update to the place that its index names.
    fn join(&self, scope: &mut Scope, own: &[Expr], index: &[Expr], from: &[Expr]) {
        let operands = &scope.graph.node(self.id).operands;
        let last = scope.dim(&(self.shape[self.axis].clone() - Dim::ONE));
        let chosen = scope.element(operands[1], index).cast(DType::I64);
        let chosen = scope.k.bind(chosen);
        scope.k.status(chosen.less(0).or(chosen.greater(&last)), self.code);
        let chosen = scope.k.bind(chosen.max(0).min(&last));
        let value = scope.element(operands[2], from);
        let address = scope.address((self.id, 0), &self.at(own, chosen));
        let address = scope.k.bind(address);
        let op = match self.scatter.kind {
            ScatterKind::Set => return scope.k.store(self.out, address, value),
            ScatterKind::Add => BinaryOp::Add,
            ScatterKind::Mul => BinaryOp::Mul,
            ScatterKind::Min => BinaryOp::Min,
            ScatterKind::Max => BinaryOp::Max,
        };
        let joined = self.out.load(&address).binary(op, value);
        scope.k.store(self.out, address, joined);
    }
}
