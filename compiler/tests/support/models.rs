//! Models of the test data: where they lie, what they were recorded with, how they are run.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use egret_ir::{Graph, NodeId, Op, Tensor, Tensors};
use egret_program::Program;
use egret_runtime::{Executable, LoadOptions, MemoryReport};

/// Values of params by name.
pub type Weights<'w> = &'w dyn Fn(&str) -> Option<Tensor>;

/// The folder of a model; `None`, and a line that says so, when it or its weights are not there.
pub fn model(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let data = std::env::var_os("EGRET_TEST_DATA").map_or_else(|| root.join("../shared"), PathBuf::from);
    let fetched = root.join("target/test-data/models").join(name);
    let folder = if fetched.join("model.onnx").exists() { fetched } else { data.join("models").join(name) };
    if !folder.join("model.onnx").exists() {
        println!("skipped: {} is not there", folder.display());
        return None;
    }
    if folder.join("get_weights.sh").exists() && !folder.join("model.safetensors").exists() {
        println!("skipped: {name} has no weights; scripts/fetch-test-data fetches them");
        return None;
    }
    Some(folder)
}

/// The recorded inputs or outputs of a model, in order.
pub fn recorded(folder: &Path, kind: &str) -> Vec<Tensor> {
    (0..)
        .map(|i| folder.join(format!("test_data_set_0/{kind}_{i}.pb")))
        .take_while(|path| path.exists())
        .map(|path| egret_onnx::read_tensor(&path).unwrap_or_else(|e| panic!("{e}")).1)
        .collect()
}

/// Tensors as a graph's inputs, in order.
pub fn inputs(graph: &Graph, tensors: Vec<Tensor>) -> Tensors {
    assert_eq!(graph.inputs().len(), tensors.len());
    let name = |id: &NodeId| match &graph.node(*id).op {
        Op::Input(input) => input.name.clone(),
        other => panic!("{other:?} is no input"),
    };
    graph.inputs().iter().map(name).zip(tensors).collect()
}

/// The weights of a graph.
pub fn weights(graph: &Graph) -> impl Fn(&str) -> Option<Tensor> {
    |name| graph.weights.get(name).map(|weight| weight.materialise())
}

/// The outputs of a program, by name and in order.
pub fn run(program: &Program, weights: Weights, given: &Tensors, threads: usize) -> Vec<(String, Tensor)> {
    run_measured(program, weights, given, threads).0
}

/// The outputs of a program, and the memory of the session that made them.
pub fn run_measured(
    program: &Program,
    weights: Weights,
    given: &Tensors,
    threads: usize,
) -> (Vec<(String, Tensor)>, MemoryReport) {
    let options = LoadOptions { threads, isa: None };
    let executable = Executable::load(Arc::new(program.clone()), weights, options).unwrap_or_else(|e| panic!("{e}"));
    let mut session = executable.session().unwrap_or_else(|e| panic!("{e}"));
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let outputs = session.run(&given).unwrap_or_else(|e| panic!("{e}"));
    let outputs = outputs.iter().map(|output| (output.name().to_string(), output.to_tensor())).collect();
    (outputs, session.memory())
}

/// The greatest error as a multiple of what is allowed.
pub fn difference(have: &Tensor, want: &Tensor, relative: f64, absolute: f64) -> f64 {
    assert_eq!((have.dtype(), have.shape()), (want.dtype(), want.shape()));
    have.values().zip(want.values()).fold(0.0, |worst, (have, want)| {
        let (have, want) = (have.as_f64(), want.as_f64());
        let error = if have == want { 0.0 } else { (have - want).abs() };
        // a maximum would pass over a NaN
        let error = if error.is_nan() { f64::INFINITY } else { error };
        worst.max(error / (absolute + relative * want.abs()))
    })
}
