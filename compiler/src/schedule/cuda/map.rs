//! Elements dealt to threads.

use egret_ir::{Dim, NodeId, Shape};
use smallvec::SmallVec;

use crate::kernel::{Expr, LoopKind, Memory, Space};
use crate::schedule::scope::{Scope, Value};

/// The widest access.
pub const VECTOR_BYTES: usize = 16;

/// Threads of a block.
pub const THREADS: i64 = 256;
/// Elements of a block: neighbouring threads have neighbouring elements.
pub const CHUNK: i64 = 4 * THREADS;

/// A block a chunk of a flat index, and a loop of its threads.
pub fn flat(scope: &mut Scope, total: &Dim, body: impl FnOnce(&mut Scope, Expr)) {
    let chunks = if total.range().1 <= CHUNK { Expr::int(1) } else { scope.dim(&total.ceil_div(&Dim::from(CHUNK))) };
    let chunk = scope.k.grid(chunks);
    stretch(scope, &chunk, total, body);
}

/// A loop of the threads over chunk `chunk` of a flat index.
pub fn stretch(scope: &mut Scope, chunk: &Expr, total: &Dim, body: impl FnOnce(&mut Scope, Expr)) {
    let end = scope.dim(total);
    if total.range().1 <= CHUNK {
        return scope.for_(chunk * CHUNK, end, LoopKind::Thread(0), body);
    }
    let start = scope.k.bind(chunk * CHUNK);
    let stop = scope.k.bind((&start + CHUNK).min(end));
    scope.for_(start, stop, LoopKind::Thread(0), body);
}

/// [`flat`] over the elements of a shape; the body gets one index an axis.
pub fn elements(scope: &mut Scope, shape: &Shape, body: impl FnOnce(&mut Scope, &[Expr])) {
    flat(scope, &shape.elements(), |scope, at| {
        let index = scope.unflatten(at, shape);
        body(scope, &index);
    });
}

/// [`elements`] in the order in which a stored value of that shape lies.
pub fn elements_of(scope: &mut Scope, value: Value, shape: &Shape, body: impl FnOnce(&mut Scope, &[Expr])) {
    flat(scope, &shape.elements(), |scope, at| {
        let index = scope.unflatten_as(value, at, shape);
        body(scope, &index);
    });
}

/// Elements of [`VECTOR_BYTES`] of the narrowest of some element types, at most eight.
pub fn vector_width(scope: &Scope, ids: impl Iterator<Item = NodeId>) -> i64 {
    let narrowest = ids.map(|id| scope.graph.tensor_type(id).dtype.size()).min().unwrap_or(4);
    (VECTOR_BYTES / narrowest).clamp(4, 8) as i64
}

/// A flat map whose threads have neighbouring elements: each loads those of every operand that is read element by element
/// (`leaves`), computes, and stores. What reaches beyond the last whole vector goes element by element.
pub fn vectors(scope: &mut Scope, total: &Dim, axis: usize, outputs: &[(NodeId, Memory)], leaves: &[NodeId]) {
    scope.vectors = true;
    let width = vector_width(scope, outputs.iter().map(|(id, _)| *id).chain(leaves.iter().copied()));
    let rank = scope.graph.tensor_type(outputs[0].0).shape.rank();
    let index = move |at: Expr| -> SmallVec<[Expr; 6]> {
        let mut index: SmallVec<[Expr; 6]> = SmallVec::from_elem(Expr::int(0), rank);
        if rank > 0 {
            index[axis] = at;
        }
        index
    };
    let end = scope.dim(total);
    let chunks = scope.dim(&total.ceil_div(&Dim::from(THREADS * width)));
    let chunk = scope.k.grid(chunks);
    let registers = |scope: &mut Scope, id: NodeId| {
        let dtype = scope.graph.tensor_type(id).dtype;
        scope.k.scratch(dtype, width as usize, Space::Register)
    };
    let loaded: Vec<(NodeId, Memory)> = leaves.iter().map(|id| (*id, registers(scope, *id))).collect();
    let made: Vec<Memory> = outputs.iter().map(|(id, _)| registers(scope, *id)).collect();
    scope.for_(Expr::int(0), Expr::int(THREADS), LoopKind::Thread(0), |scope, thread| {
        let base = scope.k.bind(chunk * (THREADS * width) + thread * width);
        let lanes = |scope: &mut Scope, body: &mut dyn FnMut(&mut Scope, Expr, SmallVec<[Expr; 6]>)| {
            scope.for_(Expr::int(0), Expr::int(width), LoopKind::Unroll, |scope, i| {
                let at = index(&base + &i);
                body(scope, i, at);
            });
        };
        let whole = |scope: &mut Scope| {
            // one loop of loads, one of stores, so that they are neighbours in the code too
            lanes(scope, &mut |scope, i, at| {
                for (id, register) in &loaded {
                    let value = scope.element(*id, &at);
                    scope.k.store(*register, i.clone(), value);
                }
            });
            lanes(scope, &mut |scope, i, at| {
                for (id, register) in &loaded {
                    scope.remember(*id, &at, &register.load(&i));
                }
                for ((id, _), register) in outputs.iter().zip(&made) {
                    let value = scope.element_of_root(*id, &at);
                    let value = scope.k.bind(value);
                    scope.remember(*id, &at, &value);
                    scope.k.store(*register, i.clone(), value);
                }
            });
            lanes(scope, &mut |scope, i, at| {
                for ((id, memory), register) in outputs.iter().zip(&made) {
                    let address = scope.address((*id, 0), &at);
                    scope.k.store(*memory, address, register.load(&i));
                }
            });
        };
        if total.modulo(&Dim::from(THREADS * width)).is(0) {
            return whole(scope);
        }
        if total.modulo(&Dim::from(width)).is(0) {
            return scope.if_(base.less(&end), whole);
        }
        scope.if_((&base + width).less_equal(&end), whole);
        scope.if_((&base + width).greater(&end), |scope| {
            scope.for_(base.clone(), end.clone(), LoopKind::Serial, |scope, at| {
                let at = index(at);
                let mut values: SmallVec<[Expr; 4]> = SmallVec::new();
                for (id, _) in outputs {
                    let value = scope.element_of_root(*id, &at);
                    let value = scope.k.bind(value);
                    scope.remember(*id, &at, &value);
                    values.push(value);
                }
                // what is written in place may have been read for another result
                for ((id, memory), value) in outputs.iter().zip(values) {
                    let address = scope.address((*id, 0), &at);
                    scope.k.store(*memory, address, value);
                }
            });
        });
    });
}
