//! Concatenations whose operands are written where they belong.

mod support {
    pub mod programs;
}

use egret_compiler::{CompileOptions, compile};
use egret_ir::{DType, Graph, Tracer, Var, f32, trace};
use egret_program::{DeviceDescription, Place, Program};
use support::programs::{check, few, positive};

fn program(graph: &Graph) -> Program {
    let device = DeviceDescription::named("x86-64-avx512").expect("a shipped description");
    let options = CompileOptions::default();
    compile(graph, &device, &options).unwrap_or_else(|e| panic!("{e}")).program
}

/// Launches of kernels that copy operands of concatenations.
fn copies(graph: &Graph) -> usize {
    let program = program(graph);
    let copies = |family: &str| matches!(family, "concat" | "channels");
    program.launches().iter().filter(|launch| copies(&program.kernel(launch.kernel).family)).count()
}

/// Buffers that are part of another.
fn parts(graph: &Graph) -> usize {
    program(graph).buffers.iter().filter(|buffer| matches!(buffer.place, Place::Part { .. })).count()
}

fn conv<'t>(t: &Tracer<'t>, x: Var<'t>, filters: usize, size: usize, seed: usize) -> Var<'t> {
    let channels = x.shape()[1].as_const().expect("known channels") as usize;
    let w = t.param(&format!("w{seed}"), positive(&[filters, channels, size, size], seed));
    let pad = (size as i64 - 1) / 2;
    x.conv2d(w, [1, 1], [pad, pad])
}

/// Four layers of at most 80 · 9 products each, half a unit of f32 each.
const TOLERANCE: f64 = 4.0 * 80.0 * 9.0 * 6e-8;

/// A dense block: each layer reads the concatenation of all before it, spelled as a chain or as a whole.
fn dense_block(batch: i64, chained: bool) -> Graph {
    trace(|t| {
        let x = t.input("x", f32([batch, 32, 6, 5]));
        let mut parts = vec![conv(t, x, 32, 1, 0)];
        let mut all = parts[0];
        for layer in 1..4 {
            let y = conv(t, all.relu(), 16, 3, layer);
            parts.push(y);
            all = if chained { t.concat(&[all, y], 1) } else { t.concat(&parts, 1) };
        }
        conv(t, all, 8, 1, 9)
    })
    .unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn dense_blocks_grow_in_one_buffer() {
    for chained in [true, false] {
        let graph = dense_block(1, chained);
        assert_eq!(copies(&graph), 0, "chained: {chained}");
        // three layers and the first, and all concatenations but the last
        assert_eq!(parts(&graph), 4 + 2, "chained: {chained}");
        check(&graph, &[("x", positive(&[1, 32, 6, 5], 3))], TOLERANCE);
    }
    // items of a batch are a whole block apart
    let batched = dense_block(2, true);
    assert_eq!(parts(&batched), 0);
    check(&batched, &[("x", positive(&[2, 32, 6, 5], 3))], TOLERANCE);
}

#[test]
fn rows_are_written_where_they_belong() {
    let graph = trace(|t| {
        let x = t.input("x", f32(["n", "k"]));
        let w = t.input("w", f32(["k", "m"]));
        let rows = [x.softmax(-1).matmul(w), x.matmul(w).relu()];
        t.concat(&rows, 0) * 2.0
    });
    check(
        &graph.unwrap_or_else(|e| panic!("{e}")),
        &[("x", few(DType::F32, &[5, 7], 1)), ("w", few(DType::F32, &[7, 9], 2))],
        1e-5,
    );
    let graph = trace(|t| {
        let x = t.input("x", f32([4i64, 16]));
        let y = t.concat(&[x.softmax(-1), x.transpose(&[1, 0]).softmax(-1).reshape([4i64, 16])], 0);
        y.softmax(0)
    })
    .unwrap_or_else(|e| panic!("{e}"));
    // a reshape is the memory of what it reshapes: it is copied
    assert_eq!((parts(&graph), copies(&graph)), (1, 1));
    check(&graph, &[("x", few(DType::F32, &[4, 16], 1))], 1e-6);
}

#[test]
fn what_has_another_place_is_copied() {
    let graph = trace(|t| {
        let x = t.input("x", f32([1i64, 16, 4, 4]));
        let (a, b) = (conv(t, x, 16, 3, 1), conv(t, x, 32, 1, 2));
        // a result, a value twice, and a value in two concatenations
        t.output("b", b);
        let twice = t.concat(&[a, a, b], 1);
        let again = t.concat(&[b, a], 1);
        t.output("y", conv(t, twice, 8, 3, 3) + conv(t, again, 8, 1, 4));
    })
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((parts(&graph), copies(&graph)), (1, 2));
    check(&graph, &[("x", positive(&[1, 16, 4, 4], 3))], TOLERANCE);
}

#[test]
fn the_last_operand_may_end_within_a_block() {
    let graph = trace(|t| {
        let x = t.input("x", f32([1i64, 16, 4, 4]));
        let (a, b) = (conv(t, x, 16, 3, 1), conv(t, x, 5, 1, 2));
        conv(t, t.concat(&[a, b], 1), 8, 3, 3)
    })
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((parts(&graph), copies(&graph)), (2, 0));
    check(&graph, &[("x", positive(&[1, 16, 4, 4], 3))], TOLERANCE);
}
