//! Concatenation: a block copies its stretch of every part that is not written where it belongs.

use egret_ir::{Dim, NodeId};

use super::map::{CHUNK, stretch};
use crate::kernel::Expr;
use crate::schedule::scope::Scope;

/// Builds the kernel.
pub fn build(scope: &mut Scope, id: NodeId, axis: usize) {
    let graph = scope.graph;
    let out = scope.write((id, 0));
    let mut offset = Dim::ZERO;
    let mut parts: Vec<(NodeId, Dim)> = Vec::new();
    for (i, part) in graph.node(id).operands.iter().enumerate() {
        if !scope.stored.is_in_place(id, i) {
            parts.push((*part, offset.clone()));
        }
        offset = offset + graph.tensor_type(*part).shape[axis].clone();
    }
    let longest =
        parts.iter().fold(Dim::ZERO, |most, (part, _)| most.maximum(&graph.tensor_type(*part).shape.elements()));
    let chunks = scope.dim(&longest.ceil_div(&Dim::from(CHUNK)).maximum(&Dim::ONE));
    let chunk = scope.k.grid(chunks);
    for (part, offset) in parts {
        let shape = graph.tensor_type(part).shape.clone();
        let start: Expr = scope.dim(&offset);
        stretch(scope, &chunk, &shape.elements(), |scope, at| {
            let from = scope.unflatten_as((id, 0), at, &shape);
            let mut to = from.clone();
            to[axis] = &from[axis] + start;
            let value = scope.element(part, &from);
            let address = scope.address((id, 0), &to);
            scope.k.store(out, address, value);
        });
    }
}
