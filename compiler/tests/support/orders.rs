//! Programs of products on the simulator, against the interpreter: warps in three orders, copies at once and as late as
//! waits allow.
#![allow(dead_code)]

use egret_compiler::{CompileOptions, F32Products, compile};
use egret_ir::bound::interpret_bounded;
use egret_ir::{Bindings, DType, Dim, Graph, Op, Tensor, TensorType, Tensors};
use egret_program::{DeviceDescription, KernelBody, Program};

use super::drawn::drawn;
use super::nvrtc;
use super::simulate::{Simulated, everywhere};

/// Times the bound of another correct evaluation, as in the tests of whole programs.
const BOUNDS: f64 = 4.0;
/// The value of every symbol.
const SYMBOL: i64 = 70;

/// The program of a graph, for `sm_80`.
pub fn program(graph: &Graph, products: F32Products) -> Program {
    let device = DeviceDescription::named("sm_80").unwrap();
    let options = CompileOptions { products, ..CompileOptions::default() };
    compile(graph, &device, &options).unwrap_or_else(|e| panic!("{e}")).program
}

/// Whether tensor cores compute some of it.
pub fn multiplies(program: &Program) -> bool {
    program.kernels.iter().any(|kernel| kernel.text.contains("multiply "))
}

/// The text of the first kernel of these.
pub fn source(program: &Program) -> &str {
    let kernel = program.kernels.iter().find(|kernel| kernel.text.contains("multiply ")).expect("a product");
    let KernelBody::Cuda(code) = &kernel.body else { panic!("{}", kernel.name) };
    &code.source
}

/// Inputs of a graph, and its symbols.
pub fn inputs(graph: &Graph) -> (Vec<(String, Tensor)>, Bindings) {
    let mut bindings = Bindings::default();
    let mut all = Vec::new();
    for (seed, id) in (0..).zip(graph.inputs()) {
        let Op::Input(input) = &graph.node(*id).op else { continue };
        for dim in input.ty.shape.iter() {
            dim.symbols(&mut |name, _, _| {
                bindings.insert(name.clone(), SYMBOL);
            });
        }
        let shape: Vec<usize> = input.ty.shape.eval(&bindings).unwrap().iter().map(|n| *n as usize).collect();
        all.push((input.name.clone(), drawn(input.ty.dtype, &shape, seed, 1.0, 5)));
    }
    (all, bindings)
}

/// Every order gives what the interpreter does, and copies, stores and matrices cost the least where `least`.
pub fn check(name: &str, graph: &Graph, products: F32Products, least: bool) {
    let program = program(graph, products);
    assert!(multiplies(&program), "{name} is not computed by tensor cores");
    compare(name, graph, &program, least);
}

/// [`check`] of a graph's program, whatever computes it.
pub fn compare(name: &str, graph: &Graph, program: &Program, least: bool) {
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let simulated = Simulated::new(nvrtc, program, &|text| text.to_string());
    let (inputs, bindings) = inputs(graph);
    let tensors: Tensors = inputs.iter().cloned().collect();
    let expanded = egret_ir::autodiff::expand(graph).unwrap();
    let want = interpret_bounded(&expanded, &tensors).unwrap();
    let given: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
    for order in everywhere() {
        let (have, reports) =
            simulated.run(&given, &bindings, order, None).unwrap_or_else(|e| panic!("{name} {order:?}: {e}"));
        for (bytes, (output, want)) in have.iter().zip(&want) {
            let have = Tensor::from_bytes(want.value.dtype(), want.value.shape(), bytes).unwrap();
            for (i, ((x, y), error)) in have.values().zip(want.value.values()).zip(&want.error).enumerate() {
                let (x, y) = (x.as_f64(), y.as_f64());
                let near = (x - y).abs() <= BOUNDS * error;
                assert!(near, "{name} {output}[{i}] is {x}, the interpreter has {y}, within {:e}", BOUNDS * error);
            }
        }
        if least {
            simulated.assert_least(name, &reports);
        }
    }
}

/// A type.
pub fn of(dtype: DType, shape: impl IntoIterator<Item = i64>) -> TensorType {
    TensorType { dtype, shape: shape.into_iter().map(Dim::from).collect() }
}
