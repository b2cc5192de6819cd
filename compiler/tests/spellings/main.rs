//! Every spelling of a composite gives the same kernels, and each is right.

mod attention;
mod composites;
#[path = "../support/host.rs"]
mod host;

use std::sync::Arc;

use egret_compiler::Compiled;
use egret_ir::{DType, Graph, Tensor, Tensors, interpret};
use egret_runtime::{Executable, LoadOptions};

/// Texts of the kernels that a program launches, in order.
fn launched(compiled: &Compiled) -> Vec<String> {
    let program = &compiled.program;
    program.launches().iter().map(|l| program.kernel(l.kernel).text.clone()).collect()
}

fn families(compiled: &Compiled) -> Vec<String> {
    let program = &compiled.program;
    program.launches().iter().map(|l| program.kernel(l.kernel).family.clone()).collect()
}

/// The program gives what the interpreter gives: sums of fewer than 2¹⁰ terms of f32, relative to the largest element.
fn check(what: &str, graph: &Graph, compiled: Compiled, inputs: &Tensors) {
    let expected = interpret(graph, inputs, &Tensors::new()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
    let options = LoadOptions { threads: 2, isa: None };
    let executable = Executable::load(Arc::new(compiled.program), &weights, options).unwrap_or_else(|e| panic!("{e}"));
    let mut session = executable.session().unwrap_or_else(|e| panic!("{e}"));
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let outputs = session.run(&given).unwrap_or_else(|e| panic!("{what}: {e}"));
    for (output, (name, want)) in outputs.iter().zip(&expected.outputs) {
        let got = output.to_tensor();
        let finite = |v: f64| if v.is_finite() { v.abs() } else { 0.0 };
        let scale = want.values().fold(1e-6, |m: f64, v| m.max(finite(v.as_f64())));
        let unit = if want.dtype() == DType::F16 { 2f64.powi(-9) } else { 6e-5 };
        for (i, (got, want)) in got.values().zip(want.values()).enumerate() {
            let (got, want) = (got.as_f64(), want.as_f64());
            let same = got == want || got.is_nan() && want.is_nan() || (got - want).abs() <= unit * scale;
            assert!(same, "{what}: {name}[{i}] is {got}, the interpreter has {want}");
        }
    }
}
