//! Contractions leave loops where no step needs the one before: a recurrent layer keeps one product a step each way.

mod support {
    pub mod host;
    pub mod models;
    pub mod programs;
}

use egret_compiler::{CompileOptions, Level, compile};
use egret_ir::tracer::trace;
use egret_ir::{Graph, Op, Tensor, Tensors, f32, interpret};
use support::host::compiled;
use support::models::model;
use support::programs::{descriptions, run};

fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 37 + seed * 101) % 97) as f32 / 97.0 - 0.5).collect();
    Tensor::new(shape, &values).expect("as many values as the shape has")
}

/// Contractions in the bodies of loops, by loop.
fn inside(graph: &Graph) -> Vec<usize> {
    let is_product = |op: &Op| match op {
        Op::DotGeneral(_) => true,
        Op::Fused(fused) => matches!(*fused.anchor, Op::DotGeneral(_)),
        _ => false,
    };
    let count = |graph: &Graph| graph.nodes().iter().filter(|node| is_product(&node.op)).count();
    let bodies = graph.nodes().iter().filter_map(|node| match &node.op {
        Op::Scan(scan) => Some(count(&scan.body)),
        _ => None,
    });
    bodies.collect()
}

fn lstm(steps: usize, batch: usize, width: usize) -> Graph {
    trace(|t| {
        let xs = t.input("xs", f32([steps, batch, width]));
        let (w, r) = (t.input("w", f32([width, 4 * width])), t.input("r", f32([width, 4 * width])));
        let b = t.input("b", f32([4 * width]));
        let (h, c) = (t.input("h", f32([batch, width])), t.input("c", f32([batch, width])));
        let (last, ys) = t.scan(&[h, c], &[xs], |_, carry, x| {
            let gates = x[0].matmul(w) + carry[0].matmul(r) + b;
            let part = |i: usize| gates.narrow(-1, i * width, width);
            let c = part(1).sigmoid() * carry[1] + part(0).sigmoid() * part(2).tanh();
            let h = part(3).sigmoid() * c.tanh();
            (vec![h, c], vec![h])
        });
        let loss = (ys[0] * ys[0]).sum() + last[1].sum();
        let grads = t.grad(loss, &[w, r, b, xs, h, c]);
        [("ys", ys[0]), ("h", last[0]), ("c", last[1])].iter().for_each(|(name, v)| t.output(name, *v));
        ["dw", "dr", "db", "dxs", "dh", "dc"].iter().zip(&grads).for_each(|(name, v)| t.output(name, *v));
    })
    .unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn an_lstm_keeps_two_products_in_its_loops() {
    let (steps, batch, width) = (5, 3, 8);
    let graph = lstm(steps, batch, width);
    let given: Tensors = [
        ("xs", numbers(&[steps, batch, width], 1)),
        ("w", numbers(&[width, 4 * width], 2)),
        ("r", numbers(&[width, 4 * width], 3)),
        ("b", numbers(&[4 * width], 4)),
        ("h", numbers(&[batch, width], 5)),
        ("c", numbers(&[batch, width], 6)),
    ]
    .map(|(name, tensor)| (name.to_string(), tensor))
    .into();
    let want = interpret(&graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{e}"));
    for level in [Level::None, Level::Full] {
        for device in descriptions() {
            let compiled = compile(&graph, &device, &CompileOptions { level, ..CompileOptions::default() })
                .unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(inside(&compiled.rewritten.graph), [1, 1], "one product a step each way");
            let have = run(&compiled.program, &|_| None, &given, 2).unwrap_or_else(|e| panic!("{e}"));
            for ((name, have), (_, want)) in have.iter().zip(&want.outputs) {
                assert_eq!(have.shape(), want.shape(), "{name}");
                // sums of fewer than 2⁸ terms of f32
                for (a, b) in have.values().zip(want.values()) {
                    let (a, b) = (a.as_f64(), b.as_f64());
                    assert!((a - b).abs() <= 2e-5 * b.abs().max(1.0), "{name}: {a}, the interpreter has {b}");
                }
            }
        }
    }
}

/// Sums over steps keep their order where every bit counts.
#[test]
fn exact_sums_stay_in_the_loop() {
    let device = &descriptions()[0];
    let options = CompileOptions { exact: true, ..CompileOptions::default() };
    let compiled = compile(&lstm(4, 2, 8), device, &options).unwrap_or_else(|e| panic!("{e}"));
    let products = inside(&compiled.rewritten.graph);
    assert_eq!(products[0], 1);
    assert!(products[1] > 1, "{products:?}");
}

#[test]
fn an_imported_lstm_keeps_one_product_in_each_direction() {
    let Some(folder) = model("byte_bidi_lstm") else { return };
    let loaded = egret_onnx::load(&folder.join("model.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let products = inside(&compiled(&loaded, Level::Full).rewritten.graph);
    assert!(!products.is_empty() && products.iter().all(|n| *n == 1), "{products:?}");
}
