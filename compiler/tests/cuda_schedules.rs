//! CUDA kernels from traced graphs: their text, what NVRTC makes of them, and what they compute.

#[path = "support/drawn.rs"]
mod drawn;
#[path = "support/graphs.rs"]
mod graphs;
#[path = "support/lockstep.rs"]
mod lockstep;
#[path = "support/nvrtc.rs"]
mod support;

use std::collections::BTreeMap;

use drawn::drawn;
use egret_compiler::cuda::{self, CudaKernel, Lowered};
use egret_compiler::kernel::{Access, Kernel, KernelBuilder, LoopKind, Space};
use egret_compiler::raise;
use egret_compiler::rewrite::{self, Options};
use egret_ir::{Bindings, DType, Dim, Graph, Op, ScalarValue, Tensor, interpret};
use egret_program::{DeviceDescription, Place, Step};
use support::nvrtc;

fn rewritten(graph: &Graph) -> Graph {
    let device = DeviceDescription::named("sm_90a").unwrap();
    let canonical = raise::canonicalise(graph).unwrap();
    let (raised, _) = raise::raise(&canonical).unwrap();
    let expanded = egret_ir::autodiff::expand(&raised).unwrap();
    let raised = raise::canonicalise(&expanded).unwrap();
    rewrite::rewrite(&raised, &device, &Options::default()).unwrap().graph
}

fn kernels(graph: &Graph) -> Vec<CudaKernel> {
    cuda::kernels(&rewritten(graph), &DeviceDescription::named("sm_90a").unwrap()).unwrap_or_else(|e| panic!("{e}"))
}

/// The texts without the prelude.
fn bodies(graph: &Graph) -> String {
    let mut text = String::new();
    for kernel in kernels(graph) {
        let at = kernel.source.text.find("extern \"C\" __global__").unwrap();
        text += &format!("// {}, {} threads\n{}\n", kernel.family, kernel.source.threads[0], &kernel.source.text[at..]);
    }
    text
}

#[test]
fn text_of_a_convolution() {
    insta::assert_snapshot!("conv_bias_relu.cu", bodies(&graphs::conv_bias_relu()));
}

#[test]
fn text_of_a_softmax() {
    insta::assert_snapshot!("schedule_softmax.cu", bodies(&graphs::softmax()));
}

#[test]
fn text_of_a_product_and_softmax() {
    insta::assert_snapshot!("matmul_softmax.cu", bodies(&graphs::matmul_softmax()));
}

#[test]
fn text_of_a_layer_norm() {
    insta::assert_snapshot!("layer_norm.cu", bodies(&graphs::layer_norm()));
}

#[test]
fn each_distinct_text_comes_once() {
    let graph = rewritten(&graphs::mlp());
    let lowered = cuda::lower(&graph, &DeviceDescription::named("sm_90a").unwrap()).unwrap();
    let mut names: Vec<_> = lowered.kernels.iter().map(|k| k.source.name.clone()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), lowered.kernels.len());
    assert!(lowered.kernels.iter().all(|k| k.origin.iter().any(|o| o.contains("graphs.rs"))));
}

#[test]
fn what_has_no_kernel_is_named() {
    let error =
        cuda::kernels(&rewritten(&graphs::endless()), &DeviceDescription::named("sm_90a").unwrap()).unwrap_err();
    assert_eq!(error.code, "E0465");
    assert!(error.message.contains("while") && !error.origin.is_empty(), "{error}");
    let cpu = DeviceDescription::named("x86-64-avx2").unwrap();
    assert_eq!(cuda::kernels(&rewritten(&graphs::softmax()), &cpu).unwrap_err().code, "E0462");
}

#[test]
fn every_kernel_compiles_without_spills() {
    let Some(nvrtc) = nvrtc() else { return };
    for (name, graph) in graphs::all().into_iter().chain(graphs::large()) {
        for kernel in kernels(&graph) {
            for arch in ["sm_80", "sm_90a"] {
                let source = &kernel.source;
                let cubin =
                    nvrtc.compile(&source.text, &source.name, arch, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
                let [resources] = &*cubin.kernels else { panic!("{}", cubin.log) };
                let defect = cubin.log.contains("Potential Performance Loss") || cubin.log.contains("(C7");
                assert!(!defect, "{name}: {}", cubin.log);
                let threads = kernel.kernel.block_threads();
                eprintln!(
                    "{name:<22} {} {arch} {threads} threads, {} registers, {} bytes shared",
                    kernel.family, resources.registers, resources.shared_bytes
                );
                assert_eq!((resources.spill_bytes, resources.stack_bytes), (0, 0), "{name}\n{}", source.text);
                assert!(resources.registers * threads <= 65536, "{name}: {} registers", resources.registers);
            }
        }
    }
}

/// Deterministic values in −2 to 2; small integers for indices.
fn fill(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    drawn(dtype, shape, seed, 2.0, 5)
}

fn number(value: ScalarValue) -> f64 {
    match value {
        ScalarValue::Bool(b) => f64::from(u8::from(b)),
        ScalarValue::Int(i) => i as f64,
        ScalarValue::Float(x) => x,
    }
}

/// Each thread reads what its neighbour wrote, with or without a barrier between.
fn neighbours(barrier: bool) -> Kernel {
    let mut k = KernelBuilder::with_threads([32, 1, 1]);
    let y = k.buffer(DType::F32, Access::Write);
    let shared = k.scratch(DType::F32, 32, Space::Shared);
    k.for_(0, 32, LoopKind::Thread(0), |k, t| {
        k.store(shared, &t, t.clone().cast(DType::F32));
        if barrier {
            k.barrier();
        }
        k.store(y, &t, shared.load((&t + 1) % 32));
    });
    k.finish().unwrap()
}

#[test]
fn lockstep_runs_what_is_synchronised() {
    let mut buffers = [vec![0.0; 32]];
    lockstep::run(&neighbours(true), &mut buffers, &[]);
    assert_eq!((buffers[0][0], buffers[0][31]), (1.0, 0.0));
}

#[test]
#[should_panic(expected = "a race on s0")]
fn lockstep_reports_races() {
    lockstep::run(&neighbours(false), &mut [vec![0.0; 32]], &[]);
}

#[test]
fn kernels_compute_what_the_interpreter_does() {
    let device = DeviceDescription::named("sm_90a").unwrap();
    for (name, graph) in graphs::all() {
        let mut bindings = Bindings::default();
        bindings.insert("batch".into(), graphs::BATCH);
        let mut inputs = BTreeMap::new();
        for (seed, id) in (0..).zip(graph.inputs()) {
            let Op::Input(input) = &graph.node(*id).op else { continue };
            let shape: Vec<usize> = input.ty.shape.eval(&bindings).unwrap().iter().map(|n| *n as usize).collect();
            inputs.insert(input.name.clone(), fill(input.ty.dtype, &shape, seed));
        }
        let expected = interpret(&graph, &inputs, &BTreeMap::new()).unwrap_or_else(|e| panic!("{name}: {e}"));

        let graph = rewritten(&graph);
        let Lowered { kernels, program } = cuda::lower(&graph, &device).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut memory: Vec<Vec<f64>> = Vec::new();
        for buffer in &program.buffers {
            let elements = buffer.logical_bytes.eval(&bindings).unwrap() as usize / buffer.dtype.size();
            memory.push(match buffer.place {
                Place::Input(i) => inputs[&program.inputs[i as usize].name].values().map(number).collect(),
                Place::Constant(i) => {
                    let tensor = Tensor::from_bytes(buffer.dtype, &[elements], &program.constants[i as usize]);
                    tensor.expect("as many bytes as elements").values().map(number).collect()
                }
                _ => vec![f64::NAN; elements],
            });
        }
        for step in program.prepare.iter().chain(&program.steps) {
            let launch = match step {
                Step::Launch(launch) => launch,
                Step::Copy { source, destination, .. } => {
                    memory[destination.buffer.0 as usize] = memory[source.buffer.0 as usize].clone();
                    continue;
                }
                other => panic!("{name}: {other:?}"),
            };
            let dims: Vec<i64> = launch.dims.iter().map(|d: &Dim| d.eval(&bindings).unwrap()).collect();
            let mut buffers: Vec<Vec<f64>> =
                launch.args.iter().map(|arg| memory[arg.buffer.0 as usize].clone()).collect();
            let kernel = kernels.iter().find(|kernel| kernel.id == launch.kernel).unwrap();
            let status = lockstep::run(&kernel.kernel, &mut buffers, &dims);
            assert_eq!(status, 0, "{name}: {:?}", launch.faults);
            for (arg, values) in launch.args.iter().zip(buffers) {
                if arg.writes {
                    memory[arg.buffer.0 as usize] = values;
                }
            }
        }
        for ((output, expected), port) in expected.outputs.iter().zip(&program.outputs) {
            let found = &memory[port.buffer.0 as usize];
            assert_eq!(found.len(), expected.elements());
            let expected_type = expected.dtype();
            for (i, (found, expected)) in found.iter().zip(expected.values().map(number)).enumerate() {
                // lockstep does not round: the rest is the interpreter's rounding after each operation
                let tolerance = match expected_type {
                    DType::F16 => 4e-3,
                    DType::BF16 => 6e-2,
                    _ => 2e-5,
                };
                let close = (found - expected).abs() <= tolerance * (1.0 + expected.abs());
                assert!(close, "{name}: {output}[{i}] is {found}, not {expected}");
            }
        }
    }
}
