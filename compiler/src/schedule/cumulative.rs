//! Cumulative sums, products and extrema.

use egret_ir::ops::{Cumulative, ReduceKind};
use egret_ir::{Dim, NodeId};
use smallvec::SmallVec;

use super::cuda;
use super::map::grid_over;
use super::reduce::{operation, start};
use super::scope::Scope;
use crate::kernel::{Expr, LoopKind, Memory};

/// Builds the kernel: one grid point runs along the axis, side by side for the places of the last axis if that is another.
pub fn build(scope: &mut Scope, id: NodeId, cumulative: &Cumulative) {
    let graph = scope.graph;
    let x = graph.node(id).operands[0];
    let shape = graph.tensor_type(id).shape.clone();
    let axis = cumulative.axis;
    let kind = cuda::cumulative::kind(cumulative.kind);
    let out = scope.write((id, 0));
    let last = shape.iter().rposition(|d| !d.is(1)).unwrap_or(axis);
    let across = (last > axis).then_some(last);
    let extents: SmallVec<[Dim; 6]> =
        (0..shape.rank()).map(|a| if a == axis || Some(a) == across { Dim::ONE } else { shape[a].clone() }).collect();
    if scope.is_gpu() {
        // a line a thread; neighbours have neighbouring lines
        let mut lines = shape.clone();
        lines.dims_mut()[axis] = Dim::ONE;
        let line = Line { id, x, cumulative, kind, out };
        return cuda::map::elements(scope, &lines, |scope, index| line.build(scope, index.into()));
    }
    let outer = grid_over(scope, &extents);
    let line = Line { id, x, cumulative, kind, out };
    match across {
        None => line.build(scope, outer),
        Some(across) => {
            let width = scope.dim(&shape[across]);
            scope.for_(Expr::int(0), width, LoopKind::Vector, |scope, lane| {
                let mut index = outer;
                index[across] = lane;
                line.build(scope, index);
            });
        }
    }
}

/// What runs along the axis.
struct Line<'c> {
    id: NodeId,
    x: NodeId,
    cumulative: &'c Cumulative,
    kind: ReduceKind,
    out: Memory,
}

impl Line<'_> {
    fn build(&self, scope: &mut Scope, index: SmallVec<[Expr; 6]>) {
        let graph = scope.graph;
        let Line { id, x, cumulative, kind, out } = *self;
        let axis = cumulative.axis;
        let end = scope.dim(&graph.tensor_type(id).shape[axis]);
        let total = scope.k.variable(start(kind, graph.tensor_type(x).dtype));
        let top = end.clone() - Expr::int(1);
        scope.for_(Expr::int(0), end, LoopKind::Serial, |scope, i| {
            let mut at = index;
            at[axis] = if cumulative.reverse { scope.k.bind(top - i) } else { i };
            let value = scope.element(x, &at);
            let address = scope.address((id, 0), &at);
            let joined = Expr::Var(total).binary(operation(kind).0.step(), value);
            if cumulative.exclusive {
                scope.k.store(out, address, Expr::Var(total));
                scope.k.assign(total, joined);
            } else {
                scope.k.assign(total, joined);
                scope.k.store(out, address, Expr::Var(total));
            }
        });
    }
}
