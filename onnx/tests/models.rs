//! Trained models give their recorded outputs on the reference interpreter.
//!
//! Data are found through `EGRET_TEST_DATA` (default: `shared` beside the checkout), and in `target/test-data`, where
//! `scripts/fetch-test-data` puts models with the weights that it fetches. A model that is not there is skipped, and says
//! so.
//!
//! The outputs of the light models are all equal (their weights are fills), so they test structure and shapes; numbers
//! are tested by the trained models.

use std::path::{Path, PathBuf};
use std::time::Instant;

use egret_ir::{Graph, Op, Tensor, Tensors, interpret};

const RELATIVE: f64 = 1e-3;
const ABSOLUTE: f64 = 1e-4;

fn data() -> PathBuf {
    std::env::var_os("EGRET_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from)
}

/// The folder of a model; `None`, and a line that says so, when it is not there.
fn model(name: &str) -> Option<PathBuf> {
    // models whose weights scripts/fetch-test-data has fetched
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-data/models").join(name);
    let folder = if fetched.join("model.onnx").exists() { fetched } else { data().join("models").join(name) };
    if folder.join("model.onnx").exists() {
        return Some(folder);
    }
    println!("skipped: {} is not there", folder.display());
    None
}

fn recorded(folder: &Path, kind: &str) -> Vec<Tensor> {
    (0..)
        .map(|i| folder.join(format!("test_data_set_0/{kind}_{i}.pb")))
        .take_while(|path| path.exists())
        .map(|path| egret_onnx::read_tensor(&path).unwrap().1)
        .collect()
}

fn inputs(graph: &Graph, tensors: Vec<Tensor>) -> Tensors {
    assert_eq!(graph.inputs().len(), tensors.len());
    let name = |id: &egret_ir::NodeId| match &graph.node(*id).op {
        Op::Input(input) => input.name.clone(),
        other => panic!("{other:?} is no input"),
    };
    graph.inputs().iter().map(name).zip(tensors).collect()
}

/// The greatest error as a multiple of what is allowed, and the greatest absolute error.
fn difference(have: &Tensor, want: &Tensor) -> (f64, f64) {
    assert_eq!((have.dtype(), have.shape()), (want.dtype(), want.shape()));
    have.values().zip(want.values()).fold((0.0, 0.0), |(worst, most): (f64, f64), (have, want)| {
        let (have, want) = (have.as_f64(), want.as_f64());
        let error = if have == want { 0.0 } else { (have - want).abs() };
        // a maximum would pass over a NaN
        let error = if error.is_nan() { f64::INFINITY } else { error };
        (worst.max(error / (ABSOLUTE + RELATIVE * want.abs())), most.max(error))
    })
}

fn check(name: &str) {
    let Some(folder) = model(name) else { return };
    let path = folder.join("model.onnx");
    let names = egret_onnx::inputs(&path).unwrap().into_iter().map(|(name, _)| name);
    let given: Tensors = names.zip(recorded(&folder, "input")).collect();
    let start = Instant::now();
    let loaded = egret_onnx::load_for(&path, &given).unwrap_or_else(|e| panic!("{name}: {e}"));
    let imported = start.elapsed();
    let graph = loaded.graph;
    // one model branches on an input; the others are imported as they are
    let open = loaded.fixed.is_empty() && !loaded.fixed_extents;
    assert!(open || name == "silero_vad_op18_ifless", "{name}: {:?} {}", loaded.fixed, loaded.fixed_extents);
    let given: Tensors = given.into_iter().filter(|(name, _)| !loaded.fixed.contains(name)).collect();
    egret_ir::verify(&graph).unwrap_or_else(|e| panic!("{name}: {e}"));
    let parsed = egret_ir::text::parse_with(&egret_ir::text::print(&graph), &egret_ir::text::large_constants(&graph));
    assert!(parsed.unwrap_or_else(|e| panic!("{name}: {e}")) == graph, "{name}: the text reads back differently");
    let want = recorded(&folder, "output");
    let start = Instant::now();
    let outcome = interpret(&graph, &given, &Tensors::new())
        .unwrap_or_else(|e| panic!("{name}: {}", egret_ir::Diagnostic::from(e)));
    let ran = start.elapsed();
    assert_eq!(outcome.outputs.len(), want.len(), "{name}");
    for ((output, have), want) in outcome.outputs.iter().zip(&want) {
        let (worst, most) = difference(have, want);
        println!(
            "{name} {output}: error {most:.2e}, {worst:.3} of the tolerance; {} nodes, import {imported:.2?}, run {ran:.2?}",
            graph.nodes().len()
        );
        assert!(worst <= 1.0, "{name} {output}: {worst} times the tolerance");
    }
}

macro_rules! models {
    ($($test:ident $name:literal;)*) => { $(#[test] fn $test() { check($name); })* };
}

models! {
    mnist_cntk "mnist_cntk";
    super_resolution "super_resolution";
    resnet50 "light/test_light_resnet50";
    squeezenet "light/test_light_squeezenet";
    vgg19 "light/test_light_vgg19";
    alexnet "light/test_light_bvlc_alexnet";
    densenet121 "light/test_light_densenet121";
    inception_v1 "light/test_light_inception_v1";
    inception_v2 "light/test_light_inception_v2";
    shufflenet "light/test_light_shufflenet";
    zfnet512 "light/test_light_zfnet512";
    dtln_1 "dtln_1";
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
}

/// One import of a model with symbols runs for three batches and lengths, and rows do not depend on their neighbours.
#[test]
fn all_minilm_l6_v2() {
    let Some(folder) = model("all_minilm_l6_v2") else { return };
    if !folder.join("model.safetensors").exists() {
        println!("skipped: all_minilm_l6_v2 has no weights; scripts/fetch-test-data fetches them");
        return;
    }
    check("all_minilm_l6_v2");
    let graph = egret_onnx::load(&folder.join("model.onnx")).unwrap();
    let mut rows: Vec<Tensor> = Vec::new();
    for (batch, length) in [(1usize, 5usize), (2, 5), (3, 11)] {
        let names = inputs(&graph, recorded(&folder, "input")).into_keys();
        let tensor = |name: &str| {
            let values: Vec<i64> = (0..batch * length)
                .map(|i| {
                    if name.contains("mask") {
                        1
                    } else if name.contains("type") {
                        0
                    } else {
                        1000 + (i % length) as i64
                    }
                })
                .collect();
            Tensor::new(&[batch, length], &values).unwrap()
        };
        let given: Tensors = names.map(|name| (name.clone(), tensor(&name))).collect();
        let outcome = interpret(&graph, &given, &Tensors::new()).unwrap();
        for (_, output) in &outcome.outputs {
            assert_eq!(output.shape()[0], batch);
        }
        rows.push(outcome.outputs.last().unwrap().1.clone());
    }
    let width = rows[0].elements();
    for i in 0..width {
        assert_eq!(rows[0].get(i), rows[1].get(width + i), "element {i} depends on the batch");
    }
}

/// Damaged models are errors or other models, never a panic.
#[test]
fn damaged_models_do_not_panic() {
    let Some(folder) = model("mnist_cntk") else { return };
    let bytes = std::fs::read(folder.join("model.onnx")).unwrap();
    let mut seed = 1u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    for round in 0..400 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + round % 7 {
            // nodes and types lie at both ends, weights in between
            let at = if random(2) == 0 { random(2500) } else { bytes.len() - 1 - random(1500) };
            damaged[at] = random(256) as u8;
        }
        if round % 5 == 0 {
            damaged.truncate(random(bytes.len()));
        }
        let _ = egret_onnx::from_bytes(&damaged);
    }
}
