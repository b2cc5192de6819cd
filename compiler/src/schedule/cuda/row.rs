//! Rows: a block has one, and its threads deal its elements among themselves, the same in every loop.

use egret_ir::{Dim, NodeId, Shape};
use smallvec::SmallVec;

use super::expected;
use crate::kernel::{Expr, LoopKind, Memory, Space};
use crate::schedule::scope::Scope;

/// Elements of a vector: 16 bytes of f32.
pub const WIDTH: i64 = 4;
/// Bytes of shared memory in which the rows of a block wait: every GPU runs a block that has so much.
const STAGED_BYTES: usize = 64 * 1024;

/// Threads for a row of this length: about four elements a thread.
pub fn threads(length: &Dim) -> u32 {
    let threads = (expected(length).max(1) as u64).div_ceil(4).next_power_of_two();
    threads.clamp(32, 512) as u32
}

/// Threads of a row that may be measured, beginning with these.
pub fn candidates(threads: u32) -> impl Iterator<Item = u32> {
    [threads, threads / 2, threads * 2, threads / 4].into_iter().filter(|threads| (32..=1024).contains(threads))
}

/// A loop of the block's threads over a row. Elements of staged operands come from shared memory: each thread reads
/// only what it wrote, so no barrier is needed.
pub fn each(
    scope: &mut Scope,
    shape: &Shape,
    axes: &[usize],
    outer: &[Expr],
    staged: &[(NodeId, Memory)],
    body: &mut dyn FnMut(&mut Scope, &[Expr]),
) {
    let end = scope.dim(&elements(shape, axes));
    each_of(scope, shape, axes, outer, staged, &[Expr::int(0), end], body);
}

/// [`each`] over a part of the row: the first element, and the one after the last.
pub fn each_of(
    scope: &mut Scope,
    shape: &Shape,
    axes: &[usize],
    outer: &[Expr],
    staged: &[(NodeId, Memory)],
    range: &[Expr; 2],
    body: &mut dyn FnMut(&mut Scope, &[Expr]),
) {
    let extents: SmallVec<[Dim; 4]> = axes.iter().map(|axis| shape[*axis].clone()).collect();
    deal(scope, shape, axes, range, &mut |scope, at| {
        let mut index: SmallVec<[Expr; 6]> = outer.into();
        for (axis, i) in axes.iter().zip(scope.unflatten(at.clone(), &extents)) {
            index[*axis] = i;
        }
        for (id, memory) in staged {
            scope.remember(*id, &index, &memory.load(&at));
        }
        body(scope, &index);
    });
}

/// Elements of a row.
fn elements(shape: &Shape, axes: &[usize]) -> Dim {
    axes.iter().fold(Dim::ONE, |n, axis| n * shape[*axis].clone())
}

/// Deals the elements of a row, or of a part that begins and ends with a vector, to the threads, always in the same way: by
/// vectors where a row is one stretch of memory that vectors divide.
fn deal(
    scope: &mut Scope,
    shape: &Shape,
    axes: &[usize],
    [first, last]: &[Expr; 2],
    body: &mut dyn FnMut(&mut Scope, Expr),
) {
    let wide = axes.iter().filter(|axis| !shape[**axis].is(1)).count() <= 1
        && axes.last().is_some_and(|axis| shape[axis + 1..].iter().all(|d| d.is(1)))
        && elements(shape, axes).as_const().is_some_and(|n| n >= WIDTH && n % WIDTH == 0);
    if !wide {
        return scope.for_(first.clone(), last.clone(), LoopKind::Thread(0), body);
    }
    scope.vectors = true;
    let (first, last) = (scope.k.bind(first / WIDTH), scope.k.bind(last / WIDTH));
    scope.for_(first, last, LoopKind::Thread(0), |scope, part| {
        let base = scope.k.bind(part * WIDTH);
        scope.for_(Expr::int(0), Expr::int(WIDTH), LoopKind::Unroll, |scope, i| {
            let at = scope.k.bind(&base + i);
            body(scope, at);
        });
    });
}

/// Puts the block's row of each operand that fits into shared memory.
pub fn stage(
    scope: &mut Scope,
    shape: &Shape,
    axes: &[usize],
    outer: &[Expr],
    operands: &[NodeId],
) -> Vec<(NodeId, Memory)> {
    let mut staged: Vec<(NodeId, Memory)> = Vec::new();
    let length = elements(shape, axes).range().1;
    // a thread alone has such a row, and finds it in the first cache
    if length <= WIDTH {
        return staged;
    }
    let mut left = STAGED_BYTES;
    for id in operands {
        let ty = scope.graph.tensor_type(*id);
        // halves wait as f32
        let size = if ty.dtype.is_float() { ty.dtype.size().max(4) } else { ty.dtype.size() };
        let bytes = usize::try_from(length).ok().and_then(|n| n.checked_mul(size));
        let Some(bytes) = bytes.filter(|bytes| (1..=left).contains(bytes)) else { continue };
        if ty.shape != *shape || staged.iter().any(|(have, _)| have == id) {
            continue;
        }
        left -= bytes;
        staged.push((*id, scope.k.scratch(ty.dtype, length as usize, Space::Shared)));
    }
    if staged.is_empty() {
        return staged;
    }
    let extents: SmallVec<[Dim; 4]> = axes.iter().map(|axis| shape[*axis].clone()).collect();
    let end = scope.dim(&elements(shape, axes));
    deal(scope, shape, axes, &[Expr::int(0), end], &mut |scope, at| {
        let mut index: SmallVec<[Expr; 6]> = outer.into();
        for (axis, i) in axes.iter().zip(scope.unflatten(at.clone(), &extents)) {
            index[*axis] = i;
        }
        for (id, memory) in &staged {
            let value = scope.element(*id, &index);
            scope.k.store(*memory, at.clone(), value);
        }
    });
    staged
}
