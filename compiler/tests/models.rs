//! Real models, compiled: recorded outputs at every level and thread count, symbols, fusions, explanations.
//!
//! Models lie in `EGRET_TEST_DATA` (default: `shared` beside the checkout), or in `target/test-data`, where
//! `scripts/fetch-test-data` puts those whose weights are fetched. A model that is not there is skipped, and says so.
//!
//! The light models' weights are fills, so that their outputs are all equal: they are run with random weights besides.

mod support {
    pub mod host;
    pub mod models;
    pub mod programs;
}

use std::collections::BTreeMap;

use egret_compiler::{CompileOptions, Compiled, Level, compile};
use egret_ir::{Graph, NodeId, Op, Tensor, Tensors, interpret};
use egret_program::KernelBody;
use egret_program::driver::Driver;
use support::host::compiled;
use support::models::{Weights, difference, inputs, model, recorded, run, run_measured, weights};

/// Tolerance of recorded outputs: the one that their recorders state.
const RELATIVE: f64 = 1e-3;
const ABSOLUTE: f64 = 1e-4;

const LEVELS: [Level; 3] = [Level::None, Level::Greedy, Level::Full];

/// Runs with 1, 2 and 7 threads, which must give the same bits, in an arena of at most 1.25 of what lives at once.
fn run_on_threads(compiled: &Compiled, weights: Weights, given: &Tensors) -> Vec<(String, Tensor)> {
    let (outputs, memory) = run_measured(&compiled.program, weights, given, 1);
    for threads in [2, 7] {
        let others = run(&compiled.program, weights, given, threads);
        assert!(outputs == others, "bits differ between 1 and {threads} threads");
    }
    let (arena, bound) = (memory.arena_bytes, memory.live_bytes_bound);
    assert!(4 * arena <= 5 * bound, "an arena of {arena} bytes, of which {bound} live at once");
    outputs
}

fn assert_close(what: &str, outputs: &[(String, Tensor)], want: &[Tensor], relative: f64, absolute: f64) {
    assert_eq!(outputs.len(), want.len(), "{what}");
    for ((name, have), want) in outputs.iter().zip(want) {
        let worst = difference(have, want, relative, absolute);
        println!("{what} {name}: {worst:.3} of the tolerance");
        assert!(worst <= 1.0, "{what} {name}: {worst} times the tolerance");
    }
}

fn replays(name: &str, level: Level, compiled: &Compiled) {
    let replayed = compiled.rewritten.replay().unwrap_or_else(|e| panic!("{name} {level:?}: {e}"));
    assert!(replayed == compiled.rewritten.graph, "{name} {level:?}: the journal does not give the chosen graph");
}

fn check(name: &str, levels: &[Level]) {
    let Some(folder) = model(name) else { return };
    // some models branch on a value of an input: they are imported for the recorded one
    let path = folder.join("model.onnx");
    let names = egret_onnx::inputs(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    let given: Tensors = names.into_iter().map(|(name, _)| name).zip(recorded(&folder, "input")).collect();
    let loaded = egret_onnx::load_for(&path, &given).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (graph, want) = (loaded.graph, recorded(&folder, "output"));
    let given: Tensors = given.into_iter().filter(|(name, _)| !loaded.fixed.contains(name)).collect();
    for &level in levels {
        let compiled = compiled(&graph, level);
        replays(name, level, &compiled);
        let outputs = run_on_threads(&compiled, &weights(&graph), &given);
        assert_close(&format!("{name} {level:?}"), &outputs, &want, RELATIVE, ABSOLUTE);
    }
}

macro_rules! models {
    ($levels:expr; $($test:ident $name:literal;)*) => { $(#[test] fn $test() { check($name, $levels); })* };
}

models! {
    &LEVELS;
    mnist_cntk "mnist_cntk";
    super_resolution "super_resolution";
    resnet50 "light/test_light_resnet50";
    squeezenet "light/test_light_squeezenet";
    vgg19 "light/test_light_vgg19";
    all_minilm_l6_v2 "all_minilm_l6_v2";
    dtln_1 "dtln_1";
}

models! {
    &[Level::Full];
    blazeface_front "blazeface_front";
    byte_bidi_lstm "byte_bidi_lstm";
    face_landmark "face_landmark";
    magika_v3_3 "magika_v3_3";
    mlagents_dungeon_escape "mlagents_dungeon_escape";
    mlagents_gridworld "mlagents_gridworld";
    ppocr_cls "ppocr_cls";
    ppocr_v4_det "ppocr_v4_det";
    silero_vad_op18_ifless "silero_vad_op18_ifless";
    ultraface_rfb320 "ultraface_rfb320";
    alexnet "light/test_light_bvlc_alexnet";
    densenet121 "light/test_light_densenet121";
    inception_v1 "light/test_light_inception_v1";
    inception_v2 "light/test_light_inception_v2";
    shufflenet "light/test_light_shufflenet";
    zfnet512 "light/test_light_zfnet512";
}

/// The small models at every instruction set of this machine: code, drivers and vector functions.
#[test]
fn small_models_at_every_instruction_set() {
    for name in ["mnist_cntk", "dtln_1", "super_resolution"] {
        let Some(folder) = model(name) else { continue };
        let graph = egret_onnx::load(&folder.join("model.onnx")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (given, want) = (inputs(&graph, recorded(&folder, "input")), recorded(&folder, "output"));
        for device in support::programs::descriptions() {
            let options = CompileOptions::default();
            let compiled = compile(&graph, &device, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
            let outputs = run_on_threads(&compiled, &weights(&graph), &given);
            assert_close(&format!("{name} {}", device.name), &outputs, &want, RELATIVE, ABSOLUTE);
        }
    }
}

/// Random weights in place of a model's own: by He's rule where there is a fan-in, around one elsewhere (biases, means,
/// and variances, which must be positive). `gain` scales the former, so that values neither vanish nor grow over depth.
fn random_weights(graph: &Graph, gain: f64) -> BTreeMap<String, Tensor> {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    };
    let make = |(name, weight): (&String, &egret_ir::Weight)| {
        if weight.ty().dtype != egret_ir::DType::F32 {
            return (name.clone(), weight.materialise());
        }
        let shape = weight.shape();
        let fan_in: usize = shape.iter().skip(1).product();
        let scale = gain * (6.0 / fan_in as f64).sqrt();
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| if shape.len() > 1 { uniform() * scale } else { 1.0 + uniform() * 0.5 })
            .map(|x| x as f32)
            .collect();
        (name.clone(), Tensor::new(shape, &values).expect("as many values as the shape has"))
    };
    graph.weights.iter().map(make).collect()
}

/// A model with random weights gives what the interpreter gives.
fn check_with_random_weights(name: &str, gain: f64) {
    let Some(folder) = model(name) else { return };
    let mut graph = egret_onnx::load(&folder.join("model.onnx")).unwrap_or_else(|e| panic!("{name}: {e}"));
    let random = random_weights(&graph, gain);
    let given: Tensors = inputs(&graph, recorded(&folder, "input"))
        .into_iter()
        .map(|(name, like)| {
            let values: Vec<f32> = (0..like.elements()).map(|i| (i as f32 * 0.37).sin()).collect();
            (name, Tensor::new(like.shape(), &values).expect("as many values as the shape has"))
        })
        .collect();
    let compiled = compiled(&graph, Level::Full);
    let outputs = run_on_threads(&compiled, &|name| random.get(name).cloned(), &given);
    graph.weights = std::sync::Arc::new(random.into_iter().map(|(name, tensor)| (name, tensor.into())).collect());
    let expected = interpret(&graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let want: Vec<Tensor> = expected.outputs.into_iter().map(|(_, tensor)| tensor).collect();
    for tensor in &want {
        let (low, high) =
            tensor.values().fold((f64::MAX, f64::MIN), |(low, high), v| (v.as_f64().min(low), v.as_f64().max(high)));
        println!("{name}: from {low} to {high}");
        assert!(high > 1.5 * low.abs() && high < 0.99, "the outputs of {name} do not differ: the test shows nothing");
    }
    assert_close(name, &outputs, &want, RELATIVE, 1e-6);
}

#[test]
fn resnet50_with_random_weights() {
    check_with_random_weights("light/test_light_resnet50", 0.7);
}

#[test]
fn squeezenet_with_random_weights() {
    check_with_random_weights("light/test_light_squeezenet", 1.0);
}

/// A convolution that adds a bias and a tensor of the result's shape, and then clamps at zero. The bias is a number where
/// a model's parameters are fills.
fn is_residual_relu(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let Op::Fused(fused) = &node.op else { return false };
    let program = fused.epilogue.to_string();
    let sum_under_relu =
        program.starts_with("relu(add(") && program.matches("add(").count() == 2 && fused.epilogue.size() == 3;
    let residual = node.operands[fused.bases..].iter().filter(|extra| graph.ty(**extra) == graph.ty(id)).count();
    matches!(&*fused.anchor, Op::Conv(_)) && sum_under_relu && residual == 1
}

#[test]
fn resnet50_is_at_most_56_kernels() {
    let Some(folder) = model("light/test_light_resnet50") else { return };
    let graph = egret_onnx::load(&folder.join("model.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let compiled = compiled(&graph, Level::Full);
    let launches = compiled.program.launches();
    assert!(launches.len() <= 56, "{} kernels", launches.len());
    let graph = &compiled.rewritten.graph;
    let residual = graph.iter().filter(|(id, _)| is_residual_relu(graph, *id)).count();
    assert_eq!(residual, 16, "convolutions with bias, residual and ReLU, one in each of 16 blocks");
    let heads = launches.iter().filter(|launch| match &compiled.program.kernel(launch.kernel).body {
        KernelBody::Driver { driver: Driver::Gemm(problem, _), finisher, .. } => {
            problem.finisher.is_some() && finisher.is_some()
        }
        _ => false,
    });
    assert_eq!(heads.count(), 1, "the product of the head with its softmax");
    let families: Vec<&str> = launches.iter().map(|l| compiled.program.kernel(l.kernel).family.as_str()).collect();
    assert!(!families.contains(&"row") && !families.contains(&"map"), "{families:?}");
}

/// One import with symbols, compiled once, runs for three batches and lengths.
#[test]
fn one_import_of_minilm_runs_three_sizes() {
    let Some(folder) = model("all_minilm_l6_v2") else { return };
    let graph = egret_onnx::load(&folder.join("model.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<String> = inputs(&graph, recorded(&folder, "input")).into_keys().collect();
    let compiled = compiled(&graph, Level::Full);
    for (batch, length) in [(1usize, 5usize), (2, 17), (3, 40)] {
        // the last row ends early: its mask is 0 behind
        let element = |name: &str, row: usize, column: usize| match name {
            name if name.contains("mask") => i64::from(row + 1 < batch || column < length - 2),
            name if name.contains("type") => 0,
            _ => 1000 + (37 * row + 11 * column) as i64,
        };
        let tensor = |name: &str| {
            let values: Vec<i64> = (0..batch * length).map(|i| element(name, i / length, i % length)).collect();
            Tensor::new(&[batch, length], &values).expect("as many values as the shape has")
        };
        let given: Tensors = names.iter().map(|name| (name.clone(), tensor(name))).collect();
        let outputs = run_on_threads(&compiled, &weights(&graph), &given);
        let expected = interpret(&graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{e}"));
        let want: Vec<Tensor> = expected.outputs.into_iter().map(|(_, tensor)| tensor).collect();
        assert_close(&format!("({batch}, {length})"), &outputs, &want, RELATIVE, ABSOLUTE);
    }
}

/// What `explain` says of one attention kernel: where it comes from, what raised it, and which rules applied since.
#[test]
fn an_attention_of_minilm_is_explained() {
    let Some(folder) = model("all_minilm_l6_v2") else { return };
    let graph = egret_onnx::load(&folder.join("model.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let compiled = compiled(&graph, Level::Full);
    let rewritten = &compiled.rewritten;
    let attentions: Vec<_> =
        rewritten.graph.iter().filter(|(_, node)| matches!(node.op, Op::Attention(_))).map(|(id, _)| id).collect();
    assert_eq!(attentions.len(), 6, "one attention a layer");
    let id = attentions[0];
    let origins: Vec<String> = rewritten.graph.origins(id).iter().map(|origin| origin.to_string()).collect();
    let explanation = rewritten.explain(id).expect("rewriting made the node");
    let covered = |node| explanation.covers.contains(&node);
    // the node itself or its projection is what raise gave
    let original = rewritten.original();
    let raised: Vec<&str> = compiled
        .raise_log
        .iter()
        .filter(|applied| {
            covered(applied.node) || original.node(applied.node).operands.first().is_some_and(|of| covered(*of))
        })
        .map(|applied| applied.rule)
        .collect();
    println!("origins {origins:?}\nraised by {raised:?}\nrewritten by {:?}", explanation.rules());
    assert!(explanation.covers.iter().any(|node| matches!(original.node(*node).op, Op::Attention(_))));
    for op in ["MatMul", "Softmax"] {
        assert!(origins.iter().any(|origin| origin.starts_with(op)), "{op} is not among {origins:?}");
    }
    assert!(raised.contains(&"attention"), "{raised:?}");
}
