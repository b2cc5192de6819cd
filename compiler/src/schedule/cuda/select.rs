//! `top_k` by rank: each element counts those of its line that come before it, and goes to that place.
//!
//! The number of comparisons is the square of a line's length, but all are independent, nothing is moved, and the order of
//! equal elements is theirs.

use egret_ir::NodeId;
use egret_ir::ops::TopK;
use smallvec::SmallVec;

use super::map;
use crate::kernel::{CompareOp, Expr, LoopKind, ReduceOp, UnaryOp};
use crate::schedule::scope::Scope;

/// Builds the kernel: a thread an element.
pub fn build(scope: &mut Scope, id: NodeId, top: &TopK) {
    let graph = scope.graph;
    let x = graph.node(id).operands[0];
    let ty = graph.tensor_type(x).clone();
    let (values, places) = (scope.write((id, 0)), scope.write((id, 1)));
    let axis = top.axis;
    let (extent, k) = (scope.dim(&ty.shape[axis]), scope.dim(&top.k));
    let first = if top.largest { CompareOp::Gt } else { CompareOp::Lt };
    let is_float = ty.dtype.is_float();
    map::elements(scope, &ty.shape, |scope, index| {
        let own = scope.element(x, index);
        let own = scope.k.bind(own);
        let missing = is_float.then(|| scope.k.bind(own.clone().unary(UnaryOp::IsNan)));
        let rank = scope.k.variable(Expr::int(0));
        scope.for_(Expr::int(0), extent, LoopKind::Serial, |scope, at| {
            let mut other: SmallVec<[Expr; 6]> = index.into();
            other[axis] = at.clone();
            let other = scope.element(x, &other);
            let other = scope.k.bind(other);
            let earlier = at.less(&index[axis]);
            let mut before = Expr::Compare(first, Box::new(other.clone()), Box::new(own.clone()));
            let mut equal = other.equal(&own);
            if let Some(missing) = &missing {
                // NaN comes last, and NaNs are equal
                let other_missing = scope.k.bind(other.clone().unary(UnaryOp::IsNan));
                before = before.or(missing.clone().and(other_missing.clone().unary(UnaryOp::Not)));
                equal = equal.or(missing.clone().and(other_missing));
            }
            let counts = before.or(equal.and(earlier)).select(Expr::int(1), Expr::int(0));
            scope.k.accumulate(rank, ReduceOp::Sum, counts);
        });
        scope.if_(Expr::Var(rank).less(&k), |scope| {
            let mut to: SmallVec<[Expr; 6]> = index.into();
            to[axis] = Expr::Var(rank);
            let address = scope.address((id, 0), &to);
            scope.k.store(values, address, own.clone());
            let address = scope.address((id, 1), &to);
            scope.k.store(places, address, index[axis].clone());
        });
    });
}
