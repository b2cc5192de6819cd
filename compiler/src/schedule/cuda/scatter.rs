//! `scatter` of sums to rows: each thread owns a stretch along the indexed axis, so that the order of sums is fixed.

use egret_ir::ops::{Places, Scatter};
use egret_ir::{DType, Dim, NodeId, Op, Shape};
use smallvec::SmallVec;

use super::map;
use crate::kernel::{Expr, LoopKind};
use crate::schedule::scope::Scope;

/// Builds the kernel: a thread copies its stretch of the operand, then adds the updates that fall into it, in order.
pub fn build(scope: &mut Scope, id: NodeId) {
    let graph = scope.graph;
    let node = graph.node(id);
    let Op::Scatter(Scatter { places: Places::Rows { axis }, .. }) = node.op else {
        return super::super::map::build(scope, &[id]);
    };
    let (x, indices, updates) = (node.operands[0], node.operands[1], node.operands[2]);
    let shape = graph.tensor_type(id).shape.clone();
    let chosen_from = graph.tensor_type(indices).shape.clone();
    let out = scope.write((id, 0));
    let mut owned = shape.clone();
    owned.dims_mut()[axis] = Dim::ONE;
    let owned: Shape = owned;
    let length = scope.dim(&shape[axis]);
    let count = scope.dim(&chosen_from.elements());
    let last = scope.dim(&(shape[axis].clone() - Dim::ONE));
    let code = scope.fault(format!("an index along axis {axis} is outside 0..{}", shape[axis]));
    map::elements(scope, &owned, |scope, own| {
        let at = |i: Expr| -> SmallVec<[Expr; 6]> {
            let mut index: SmallVec<[Expr; 6]> = own.into();
            index[axis] = i;
            index
        };
        scope.for_(Expr::int(0), length, LoopKind::Serial, |scope, i| {
            let index = at(i);
            let value = scope.element(x, &index);
            let address = scope.address((id, 0), &index);
            scope.k.store(out, address, value);
        });
        scope.for_(Expr::int(0), count, LoopKind::Serial, |scope, update| {
            let place = scope.unflatten(update, &chosen_from);
            let chosen = scope.element(indices, &place).cast(DType::I64);
            let chosen = scope.k.bind(chosen);
            scope.k.status(chosen.less(0).or(chosen.greater(&last)), code);
            let chosen = scope.k.bind(chosen.max(0).min(&last));
            let mut from: SmallVec<[Expr; 6]> = own[..axis].into();
            from.extend(place);
            from.extend(own[axis + 1..].iter().cloned());
            let value = scope.element(updates, &from);
            let address = scope.address((id, 0), &at(chosen));
            let address = scope.k.bind(address);
            let sum = out.load(&address) + value;
            scope.k.store(out, address, sum);
        });
    });
}
