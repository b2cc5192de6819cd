//! Random bits: Philox4x32-10, four words a block.

use egret_ir::ops::{PHILOX_MULTIPLIERS, PHILOX_ROUNDS, PHILOX_STEPS, Rng};
use egret_ir::{DType, Dim, NodeId};

use super::cuda;
use super::scope::Scope;
use crate::kernel::{BinaryOp, Expr, Literal, LoopKind, Memory};

/// Blocks of a grid point.
const CHUNK: i64 = 1024;

/// Builds the kernel.
pub fn build(scope: &mut Scope, id: NodeId, rng: &Rng) {
    let graph = scope.graph;
    let counter = graph.node(id).operands[0];
    let total = graph.tensor_type(id).shape.elements();
    let out = scope.write((id, 0));
    let elements = scope.dim(&total);
    let blocks = total.ceil_div(&Dim::from(4));
    if scope.is_gpu() {
        return cuda::map::flat(scope, &blocks, |scope, at| block(scope, rng, counter, &at, out, &elements));
    }
    let end = scope.dim(&blocks);
    let chunks = scope.dim(&blocks.ceil_div(&Dim::from(CHUNK)));
    let chunk = scope.k.grid(chunks);
    let first = scope.k.bind(chunk * Expr::int(CHUNK));
    let stop = scope.k.bind((first.clone() + Expr::int(CHUNK)).min(end));
    scope.for_(first, stop, LoopKind::Serial, |scope, at| block(scope, rng, counter, &at, out, &elements));
}

/// Four words.
fn block(scope: &mut Scope, rng: &Rng, counter: NodeId, block: &Expr, out: Memory, elements: &Expr) {
    let counter = scope.element(counter, &[]).cast(DType::U64);
    let counter = scope.k.bind(counter);
    let wide = |v: i64| Expr::Literal(Literal::Int(DType::U64, v));
    let word = |v: u32| Expr::Literal(Literal::Int(DType::U32, i64::from(v)));
    let halves = |scope: &mut Scope, of: Expr| {
        let high = of.clone().binary(BinaryOp::Shr, wide(32)).cast(DType::U32);
        [scope.k.bind(of.cast(DType::U32)), scope.k.bind(high)]
    };
    let [low, high] = halves(scope, counter);
    let [a, b] = halves(scope, block.clone().cast(DType::U64));
    let mut c = [a, b, low, high];
    let mut key = [rng.stream as u32, (rng.stream >> 32) as u32];
    for round in 0..PHILOX_ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(PHILOX_STEPS[0]), key[1].wrapping_add(PHILOX_STEPS[1])];
        }
        let product = |scope: &mut Scope, of: &Expr, by: u32| {
            let product = scope.k.bind(of.clone().cast(DType::U64) * wide(by.into()));
            halves(scope, product)
        };
        let [low_a, high_a] = product(scope, &c[0], PHILOX_MULTIPLIERS[0]);
        let [low_b, high_b] = product(scope, &c[2], PHILOX_MULTIPLIERS[1]);
        let mix = |scope: &mut Scope, a: Expr, b: &Expr, key: u32| {
            let mixed = a.binary(BinaryOp::Xor, b.clone()).binary(BinaryOp::Xor, word(key));
            scope.k.bind(mixed)
        };
        let x = mix(scope, high_b, &c[1], key[0]);
        let z = mix(scope, high_a, &c[3], key[1]);
        c = [x, low_b, z, low_a];
    }
    let at = scope.k.bind(block * Expr::int(4));
    for (i, word) in c.into_iter().enumerate() {
        let place = at.clone() + Expr::int(i as i64);
        scope.if_(place.less(elements.clone()), |scope| scope.k.store(out, place.clone(), word));
    }
}
