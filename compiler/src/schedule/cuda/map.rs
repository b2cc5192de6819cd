//! Elements dealt to threads.

use egret_ir::{Dim, Shape};

use crate::kernel::{Expr, LoopKind};
use crate::schedule::scope::Scope;

/// Threads of a block.
pub const THREADS: i64 = 256;
/// Elements of a block: neighbouring threads have neighbouring elements.
const CHUNK: i64 = 4 * THREADS;

/// A block a chunk of a flat index, and a loop of its threads.
pub fn flat(scope: &mut Scope, total: &Dim, body: impl FnOnce(&mut Scope, Expr)) {
    let end = scope.dim(total);
    if total.range().1 <= CHUNK {
        scope.k.grid(Expr::int(1));
        return scope.for_(Expr::int(0), end, LoopKind::Thread(0), body);
    }
    let chunks = scope.dim(&total.ceil_div(&Dim::from(CHUNK)));
    let chunk = scope.k.grid(chunks);
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
