//! Rematerialisation: what gradients keep, what they compute again, and what becomes of the arena.

mod support {
    pub mod drawn;
    pub mod host;
}

use std::sync::Arc;

use egret_compiler::{CompileOptions, Compiled, Policy, compile, raise, rematerialise};
use egret_ir::{DType, Dim, Graph, Op, ScalarFn, Shape, Tensor, Tensors, f32, interpret, text, trace, verify};
use egret_nn::{
    BatchNorm, Conv2d, Dropout, Flatten, GlobalAvgPool, Layer, Linear, Lstm, Mode, MultiHeadAttention, Params,
    Sequential, TransformerBlock,
};
use egret_runtime::{Executable, LoadOptions, MemoryReport, State};
use support::drawn::drawn;
use support::host::description;

/// Of the greatest element of a gradient: another order of the same sums.
const TOLERANCE: f64 = 1e-6;

/// The gradients of the mean square of a net's results by its parameters, and the loss.
fn gradients(shape: &[usize], net: &dyn Layer) -> Graph {
    let graph = trace(|t| {
        let p = Params::new(t, Mode::Train, 3);
        let x = t.input("x", f32(shape.iter().map(|n| Dim::from(*n)).collect::<Shape>()));
        let y = net.forward(&p, x);
        let loss = (y * y).mean();
        let named = p.all();
        let wrt: Vec<_> = named.iter().map(|parameter| parameter.value).collect();
        for (parameter, gradient) in named.iter().zip(t.grad(loss, &wrt)) {
            t.output(&parameter.name, gradient);
        }
        t.output("loss", loss);
    });
    graph.unwrap_or_else(|e| panic!("{e}"))
}

/// Wide enough that no product is cheaper done twice.
fn perceptron() -> Sequential {
    let layer = |n: usize| Linear::new(n);
    Sequential::new().layer(layer(512)).layer(ScalarFn::Gelu).layer(layer(256)).layer(ScalarFn::Tanh).layer(layer(4))
}

/// Convolutions with running statistics, random numbers, attention, and a loop.
fn mixed() -> Vec<(Graph, Vec<usize>)> {
    let images = Sequential::new()
        .layer(Conv2d::new(8, 3))
        .layer(BatchNorm::default())
        .layer(ScalarFn::Silu)
        .layer(Conv2d::new(6, 3))
        .layer(ScalarFn::Sigmoid)
        .layer(GlobalAvgPool)
        .layer(Flatten)
        .layer(Linear::new(5));
    let dropped = perceptron().layer(Dropout::new(0.4)).layer(Linear::new(3));
    let block = TransformerBlock::new(MultiHeadAttention::new(2).causal(), 24);
    let sequence = Sequential::new().layer(block).layer(Lstm::new(7)).layer(Linear::new(3));
    let case = |shape: &[usize], net: Sequential| (gradients(shape, &net), shape.to_vec());
    vec![case(&[3, 2, 9, 9], images), case(&[24, 64], dropped), case(&[2, 5, 12], sequence)]
}

fn compiled(graph: &Graph, remat: Policy, exact: bool) -> Compiled {
    let options = CompileOptions { remat, exact, ..CompileOptions::default() };
    compile(graph, &description(), &options).unwrap_or_else(|e| panic!("{e}"))
}

type Outputs = Vec<(String, Tensor)>;

/// The results of a first run, and its memory.
fn run(graph: &Graph, compiled: &Compiled, x: &Tensor) -> (Outputs, MemoryReport) {
    let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
    let program = Arc::new(compiled.program.clone());
    let options = LoadOptions { threads: 1, isa: None };
    let exe = Executable::load(program, &weights, options).unwrap_or_else(|e| panic!("{e}"));
    let state = State::new(&exe, &weights).unwrap_or_else(|e| panic!("{e}"));
    let mut session = exe.session_with(&state).unwrap_or_else(|e| panic!("{e}"));
    let outputs = session.run(&[("x", x)]).unwrap_or_else(|e| panic!("{e}"));
    let outputs = outputs.iter().map(|o| (o.name().to_string(), o.to_tensor())).collect();
    (outputs, session.memory())
}

fn assert_near(have: &Outputs, want: &Outputs, what: &str) {
    for ((name, have), (_, want)) in have.iter().zip(want) {
        let most = want.values().fold(0.0, |m: f64, v| m.max(v.as_f64().abs()));
        let off = have.values().zip(want.values()).map(|(a, b)| (a.as_f64() - b.as_f64()).abs()).fold(0.0, f64::max);
        assert!(off <= TOLERANCE * most, "{what}: {name} is off by {off:e} of {most:e}");
    }
}

fn contracts(op: &Op) -> bool {
    match op {
        Op::Fused(fused) => contracts(&fused.anchor),
        op => matches!(op, Op::DotGeneral(_) | Op::Conv(_) | Op::Attention(_) | Op::Scan(_)),
    }
}

fn saved_bytes(compiled: &Compiled) -> i64 {
    compiled.rematerialised.saved.iter().map(|saved| saved.bytes.hint(1)).sum()
}

#[test]
fn the_peak_of_a_transformer_falls() {
    let shape = [8, 128, 256];
    let block = || TransformerBlock::new(MultiHeadAttention::new(4), 1024);
    let graph = gradients(&shape, &Sequential::new().layer(block()).layer(block()));
    let x = drawn(DType::F32, &shape, 1, 1.0, 1);
    let (all, least) = (compiled(&graph, Policy::SaveEverything, false), compiled(&graph, Policy::MinCut, false));
    assert!(all.rematerialised.recomputed.is_empty() && !least.rematerialised.recomputed.is_empty());
    let made = &least.rematerialised;
    let again = made.recomputed.iter().map(|again| made.graph.node(again.node));
    assert!(again.into_iter().all(|node| !contracts(&node.op)), "no contraction is done twice");
    let ((want, before), (have, after)) = (run(&graph, &all, &x), run(&graph, &least, &x));
    let (most, least) = (before.arena_bytes, after.arena_bytes);
    println!("arena: {most} bytes when all is kept, {least} by min_cut");
    assert!(5 * least <= 4 * most, "{least} bytes of {most}");
    assert_near(&have, &want, "min_cut");
}

#[test]
fn recomputed_maps_keep_every_bit() {
    let graph = gradients(&[512, 256], &perceptron());
    let x = drawn(DType::F32, &[512, 256], 2, 1.0, 1);
    let want = run(&graph, &compiled(&graph, Policy::SaveEverything, true), &x).0;
    for policy in [Policy::MinCut, Policy::SaveContractions] {
        let compiled = compiled(&graph, policy, true);
        let made = &compiled.rematerialised;
        let ops: Vec<&Op> = made.recomputed.iter().map(|again| &made.graph.node(again.node).op).collect();
        assert!(!ops.is_empty() && ops.iter().all(|op| matches!(op, Op::Pointwise(_))), "{policy}: {ops:?}");
        assert_eq!(run(&graph, &compiled, &x).0, want, "{policy}");
    }
}

#[test]
fn every_policy_gives_the_same_gradients() {
    for (graph, shape) in mixed() {
        let x = drawn(DType::F32, &shape, 3, 1.0, 1);
        let all = compiled(&graph, Policy::SaveEverything, false);
        let want = run(&graph, &all, &x).0;
        for (name, policy) in Policy::ALL {
            let compiled = compiled(&graph, policy, false);
            let made = &compiled.rematerialised;
            verify(&made.graph).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_near(&run(&graph, &compiled, &x).0, &want, name);
            assert!(saved_bytes(&compiled) <= saved_bytes(&all), "{name} keeps more than all");
            let source = |id| match &made.graph.node(id).op {
                Op::Proj(_) => made.graph.node(made.graph.node(id).operands[0]),
                _ => made.graph.node(id),
            };
            let mut kept = made.saved.iter().map(|saved| source(saved.value));
            match policy {
                Policy::SaveNothing => assert!(kept.next().is_none(), "{name}"),
                Policy::SaveContractions => assert!(kept.all(|node| contracts(&node.op)), "{name}"),
                _ => {}
            }
        }
    }
}

#[test]
fn nothing_undoes_what_is_computed_again() {
    let graph = gradients(&[512, 256], &perceptron());
    let compiled = compiled(&graph, Policy::MinCut, false);
    let made = &compiled.rematerialised.graph;
    let op = &made.node(compiled.rematerialised.recomputed[0].node).op;
    let count = |graph: &Graph| graph.nodes().iter().filter(|node| node.op == *op).count();
    let merged = raise::canonicalise(made).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(count(&merged), count(made));
    // without the marks the clones are what they are clones of
    let opened = rematerialise::opened(made);
    let merged = raise::canonicalise(&opened).unwrap_or_else(|e| panic!("{e}"));
    assert!(count(&merged) < count(&opened));
    let read = text::parse(&text::print(made)).unwrap_or_else(|e| panic!("{e}"));
    assert!(read == *made, "the text reads back");
    // a mark changes no value
    let inputs = Tensors::from([("x".into(), drawn(DType::F32, &[512, 256], 4, 1.0, 1))]);
    let results = |graph: &Graph| interpret(graph, &inputs, &Tensors::new()).unwrap_or_else(|e| panic!("{e}")).outputs;
    assert_eq!(results(made), results(&compiled.rewritten.graph));
}

#[test]
fn without_gradients_nothing_is_kept() {
    let graph = trace(|t| t.input("x", f32([4i64, 4])).gelu().matmul(t.input("w", f32([4i64, 4]))).gelu());
    let graph = graph.unwrap_or_else(|e| panic!("{e}"));
    let compiled = compiled(&graph, Policy::SaveNothing, false);
    assert!(compiled.rematerialised.graph == compiled.rewritten.graph && compiled.rematerialised.saved.is_empty());
}
