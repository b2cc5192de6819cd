//! Training steps on a simulated GPU, beside the same steps on the CPU.

mod support {
    pub mod drawn;
    pub mod host;
    pub mod nvrtc;
    pub mod steps;
}

use std::sync::Arc;

use egret_compiler::{CompileOptions, compile};
use egret_ir::{DType, Graph, Literal, Op, Tensor, Tracer, Var, Weight, f32, i64, trace};
use egret_program::DeviceDescription;
use egret_runtime::cuda::{self, Cache};
use egret_runtime::{Copied, Executable, LoadOptions, State};
use support::drawn::drawn;
use support::host::description;
use support::nvrtc::nvrtc;
use support::steps;

/// Of the greatest element of a value: what sums in another order and FMA make of f32 in five steps.
const TOLERANCE: f64 = 2e-5;
const STEPS: u64 = 5;

/// Values in −0.5 to 0.5, the same on every run; labels below 10.
fn fill(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    drawn(dtype, shape, seed, 0.5, 10)
}

/// Convolution, pool, product, cross entropy, descent with momentum.
fn cnn() -> Graph {
    trace(|t: &Tracer<'_>| {
        let (x, labels) = (t.input("x", f32([4i64, 2, 8, 8])), t.input("labels", i64([4i64])));
        let shapes: [(&str, &[usize]); 4] =
            [("conv", &[6, 2, 3, 3]), ("conv.b", &[6, 1, 1]), ("fc", &[96, 10]), ("fc.b", &[10])];
        let weight = |shape: &[usize]| Weight::Fill { value: Literal::float(0.0, DType::F32), shape: shape.to_vec() };
        let p = shapes.map(|(name, shape)| t.state(name, weight(shape)));
        let a = (x.conv2d(p[0], [1, 1], [1, 1]) + p[1]).relu().max_pool(&[2, 2], &[2, 2], &[0, 0]);
        let loss = (a.flatten(1).matmul(p[2]) + p[3]).cross_entropy(labels).mean();
        let gradients = t.grad(loss, &p);
        for ((name, shape), (param, gradient)) in shapes.iter().zip(p.iter().zip(gradients)) {
            let momentum: Var = t.state(&format!("{name}.momentum"), weight(shape));
            let step = momentum * 0.9 + gradient;
            t.update(momentum, step);
            t.update(*param, *param - step * 0.05);
        }
        t.output("loss", loss);
    })
    .unwrap_or_else(|e| panic!("{e}"))
}

fn assert_near(what: &str, have: &Tensor, want: &Tensor) {
    let most = want.values().fold(1e-3, |m: f64, v| m.max(v.as_f64().abs()));
    for (i, (a, b)) in have.values().zip(want.values()).enumerate() {
        let off = (a.as_f64() - b.as_f64()).abs();
        assert!(off <= TOLERANCE * most, "{what}[{i}] is {a:?}, the CPU has {b:?}");
    }
}

/// Steps, those inside others counted too.
fn every_step(steps: &[egret_program::Step]) -> usize {
    steps.iter().map(|step| 1 + step.inner().into_iter().map(every_step).sum::<usize>()).sum()
}

fn steps_agree(name: &str, graph: &Graph) {
    let weights = |_: &str| None;
    let program = |device: &DeviceDescription| {
        let compiled = compile(graph, device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        Arc::new(compiled.program)
    };
    let first = |id: &str| -> Option<Tensor> {
        let state = graph.iter().find_map(|(_, node)| match &node.op {
            Op::State(state) if state.name == id => Some(state.ty.clone()),
            _ => None,
        })?;
        let shape: Vec<usize> = state.shape.constant()?.iter().map(|n| *n as usize).collect();
        let seed = id.bytes().map(u64::from).sum();
        Some(fill(state.dtype, &shape, seed))
    };

    let options = LoadOptions { threads: 1, isa: None };
    let cpu = Executable::load(program(&description()), &weights, options).unwrap_or_else(|e| panic!("{name}: {e}"));
    let cpu_state = State::new(&cpu, &first).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut cpu = cpu.session_with(&cpu_state).unwrap_or_else(|e| panic!("{name}: {e}"));

    let described = DeviceDescription::named("sm_80").expect("a shipped description");
    let device = cuda::Device::simulated(&described).unwrap_or_else(|e| panic!("{e}"));
    let cache = Cache::at(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels"));
    let gpu = cuda::Executable::load(program(&device.description()), &device, &weights, &cuda::LoadOptions { cache });
    let gpu = gpu.unwrap_or_else(|e| panic!("{name}: {e}"));
    let gpu_state = cuda::State::empty(&device);
    gpu_state.add(&gpu, &first).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut gpu = gpu.session_with(&gpu_state).unwrap_or_else(|e| panic!("{name}: {e}"));

    for step in 0..STEPS {
        let given: Vec<(String, Tensor)> = (0..)
            .zip(graph.inputs())
            .filter_map(|(seed, id)| match &graph.node(*id).op {
                Op::Input(input) => {
                    let shape: Vec<usize> = input.ty.shape.constant()?.iter().map(|n| *n as usize).collect();
                    Some((input.name.clone(), fill(input.ty.dtype, &shape, 100 * step + seed)))
                }
                _ => None,
            })
            .collect();
        let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let want = cpu.run(&given).unwrap_or_else(|e| panic!("{name}: {e}")).get("loss").unwrap().to_tensor();
        let have = gpu.run(&given).unwrap_or_else(|e| panic!("{name}: {e}")).get("loss").unwrap().to_tensor();
        assert_near(&format!("{name}, loss of step {step}"), &have, &want);
        // no state moves: what is copied is the batch, the loss, and what the steps report
        let batch: usize = given.iter().map(|(_, tensor)| tensor.bytes().len()).sum();
        let told = 4 * every_step(&gpu.executable().program().steps);
        assert_eq!(gpu.copied(), Copied { inputs: batch, outputs: 4 + told, within: 0 }, "{name}: step {step}");
        assert_eq!(gpu.is_recorded(), step > 0, "{name}: step {step}");
    }
    for id in cpu_state.names() {
        assert_near(&format!("{name}, {id}"), &gpu_state.get(&id).unwrap(), &cpu_state.get(&id).unwrap());
    }
}

#[test]
fn steps_of_a_cnn() {
    if nvrtc().is_some() {
        steps_agree("cnn", &cnn());
    }
}

#[test]
fn steps_of_a_transformer() {
    if nvrtc().is_some() {
        steps_agree("transformer", &steps::transformer(1, true));
    }
}
