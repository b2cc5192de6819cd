//! What a tuner measures: every schedule that a problem may have makes a program that runs alone and agrees with the
//! model's, on processors in every bit, on simulated GPUs within the interpreter's bounds.

#[path = "support/nvrtc.rs"]
mod support;

use std::sync::Arc;

use egret_compiler::tune::{self, Agreement, Tunable};
use egret_compiler::{CompileOptions, F32Products, Schedules, compile, optimise, plan};
use egret_ir::{Bindings, DType, Dim, Graph, Tensor, TensorType, f32, trace};
use egret_program::{DeviceDescription, Program};
use egret_runtime::cuda::{self, Cache};
use egret_runtime::{Executable, LoadOptions};
use egret_simd::Isa;
use support::nvrtc;

const ALL: usize = usize::MAX;
/// Schedules of a problem where there are many.
const FEW: usize = 8;

fn of(dtype: DType, shape: &[i64]) -> TensorType {
    TensorType { dtype, shape: shape.iter().map(|n| Dim::from(*n)).collect() }
}

fn results<'t>(
    inputs: &'t [(String, Tensor)],
    run: impl FnOnce(&[(&'t str, &'t Tensor)]) -> Vec<(String, Tensor)>,
) -> Vec<Tensor> {
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut outputs = run(&given);
    outputs.sort_by(|(a, _), (b, _)| a.cmp(b));
    outputs.into_iter().map(|(_, tensor)| tensor).collect()
}

fn on_cpu(program: &Program, threads: usize) -> Vec<Tensor> {
    let exe = Executable::load(Arc::new(program.clone()), &|_| None, LoadOptions { threads, isa: None });
    let mut session = exe.and_then(|exe| exe.session()).unwrap_or_else(|e| panic!("{e}"));
    results(&tune::inputs(program).unwrap(), |given| {
        let outputs = session.run(given).unwrap_or_else(|e| panic!("{e}"));
        outputs.iter().map(|output| (output.name().to_string(), output.to_tensor())).collect()
    })
}

fn on_gpu(program: &Program, device: &Arc<cuda::Device>) -> Vec<Tensor> {
    let cache = Cache::at(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels"));
    let exe = cuda::Executable::load(Arc::new(program.clone()), device, &|_| None, &cuda::LoadOptions { cache });
    let mut session = exe.and_then(|exe| exe.session()).unwrap_or_else(|e| panic!("{e}"));
    results(&tune::inputs(program).unwrap(), |given| {
        let outputs = session.run(given).unwrap_or_else(|e| panic!("{e}"));
        outputs.iter().map(|output| (output.name().to_string(), output.to_tensor())).collect()
    })
}

/// The processor of this machine.
fn host() -> Option<DeviceDescription> {
    DeviceDescription::named(&format!("x86-64-{}", Isa::detect())).ok()
}

/// Runs every candidate of every problem; how many there are, by problem.
fn agree(
    graph: &Graph,
    device: &DeviceDescription,
    options: &CompileOptions,
    most: usize,
    run: &dyn Fn(&Program) -> Vec<Tensor>,
) -> Vec<usize> {
    let made = optimise(graph, device, options).unwrap_or_else(|e| panic!("{e}"));
    let sizes: Bindings = [("n".into(), 3)].into_iter().collect();
    let tunable = Tunable::new(&made.rematerialised.graph, device, &options.plan(), &sizes);
    let problems = tunable.problems(most).unwrap();
    let all = tunable.candidates(&problems.iter().collect::<Vec<_>>()).unwrap();
    let mut counts = Vec::new();
    for (problem, candidates) in problems.iter().zip(all) {
        assert_eq!(candidates[0].schedule, problem.schedules[0], "the model's choice is the first");
        assert_eq!(device.is_cpu(), problem.agreement == Agreement::Bits, "{:?}", problem.agreement);
        assert!(problem.least_us(device) > 0.0 && problem.flops > 0.0, "{problem:?}");
        let program = |at: usize| candidates[at].program.as_ref().unwrap_or_else(|e| panic!("{e}"));
        let want = run(program(0));
        assert!(!want.is_empty() && want.iter().any(|t| t.values().any(|v| v.as_f64() != 0.0)));
        for (at, candidate) in candidates.iter().enumerate().skip(1) {
            let difference = problem.agreement.difference(&want, &run(program(at)));
            assert_eq!(difference, None, "{}: {} {:?}", problem.origin, candidate.schedule, problem.agreement);
        }
        counts.push(candidates.len());
    }
    counts
}

/// A product of open rows with an epilogue, one with a row operator, convolutions of each engine, and gradients.
fn graphs() -> Vec<(&'static str, Graph)> {
    let rows =
        TensorType { dtype: DType::F32, shape: [Dim::symbol("n"), Dim::from(70), Dim::from(96)].into_iter().collect() };
    let product = trace(|t| {
        let hidden = (t.input("x", rows.clone()).matmul(t.input("w", f32([96, 80])))).gelu();
        hidden.matmul(t.input("v", f32([80, 48]))).softmax(-1)
    });
    let convolutions = trace(|t| {
        let x = t.input("x", f32([2, 3, 30, 30]));
        let one = x.conv2d(t.input("a", f32([32, 3, 3, 3])), [2, 2], [1, 1]).relu();
        let two = one.conv2d(t.input("b", f32([48, 32, 1, 1])), [1, 1], [0, 0]).sigmoid();
        two.conv2d(t.input("c", f32([32, 48, 3, 3])), [1, 1], [1, 1]) + one
    });
    let gradients = trace(|t| {
        let (x, w) = (t.input("x", f32([1, 16, 12, 12])), t.input("w", f32([32, 16, 3, 3])));
        let y = x.conv2d(w, [1, 1], [1, 1]);
        t.grad((y * t.input("d", f32([1, 32, 12, 12]))).sum(), &[x, w])
    });
    [("product", product), ("convolutions", convolutions), ("gradients", gradients)]
        .map(|(name, graph)| (name, graph.unwrap_or_else(|e| panic!("{name}: {e}"))))
        .to_vec()
}

#[test]
fn processors_keep_every_bit() {
    let Some(device) = host() else { return };
    let options = CompileOptions::default();
    for (name, graph) in graphs() {
        for threads in [1, 2] {
            let counts = agree(&graph, &device, &options, ALL, &|program| on_cpu(program, threads));
            assert!(counts.iter().all(|n| *n > 1) && !counts.is_empty(), "{name}: {counts:?}");
        }
    }
    // weights that are known at load: packed, and Winograd's
    let graph = trace(|t| {
        let x = t.input("x", f32([1, 64, 28, 28]));
        let y = x.conv2d(t.param("w", ones(&[64, 64, 3, 3])), [1, 1], [1, 1]).relu();
        y.conv2d(t.param("v", ones(&[96, 64, 1, 1])), [1, 1], [0, 0])
    });
    let counts = agree(&graph.unwrap(), &device, &options, ALL, &|program| on_cpu(program, 2));
    assert_eq!(counts.len(), 2, "{counts:?}");
}

fn ones(shape: &[usize]) -> Tensor {
    Tensor::new(shape, &vec![1.0f32; shape.iter().product()]).unwrap()
}

fn simulated(name: &str) -> Option<(DeviceDescription, Arc<cuda::Device>)> {
    nvrtc()?;
    let description = DeviceDescription::named(name).unwrap();
    let device = cuda::Device::simulated(&description).unwrap_or_else(|e| panic!("{e}"));
    Some((device.description(), device))
}

#[test]
fn products_on_gpus() {
    let Some((description, device)) = simulated("sm_80") else { return };
    let run = |program: &Program| on_gpu(program, &device);
    let product = |dtype: DType| {
        trace(|t| {
            let product = t.input("x", of(dtype, &[72, 160])).matmul(t.input("w", of(dtype, &[160, 136])));
            (product + t.input("b", of(dtype, &[136]))).tanh()
        })
        .unwrap()
    };
    for (dtype, products) in [
        (DType::BF16, F32Products::Fma),
        (DType::F16, F32Products::Fma),
        (DType::F32, F32Products::Fma),
        (DType::F32, F32Products::Tf32),
    ] {
        let options = CompileOptions { products, ..CompileOptions::default() };
        let counts = agree(&product(dtype), &description, &options, ALL, &run);
        let least = if dtype == DType::F32 && products == F32Products::Fma { 5 } else { 12 };
        assert!(counts.len() == 1 && counts[0] >= least, "{dtype}: {counts:?}");
    }
}

#[test]
fn convolutions_on_gpus() {
    let Some((description, device)) = simulated("sm_80") else { return };
    let run = |program: &Program| on_gpu(program, &device);
    for dtype in [DType::BF16, DType::F32] {
        let graph = trace(|t| {
            let leaf = |name: &str, shape: &[i64]| t.input(name, of(dtype, shape));
            let x = leaf("x", &[1, 32, 8, 8]);
            let y = x.conv2d(leaf("v", &[16, 32, 1, 1]), [1, 1], [0, 0]);
            let y = (y + leaf("bias", &[16, 1, 1])).relu();
            let y = y.conv2d(leaf("w", &[16, 16, 3, 3]), [1, 1], [1, 1]).relu();
            let y = y.conv2d(leaf("u", &[32, 16, 1, 1]), [1, 1], [0, 0]);
            (y + x).relu().reduce_mean(&[2, 3], false)
        });
        let counts = agree(&graph.unwrap(), &description, &CompileOptions::default(), FEW, &run);
        // sums of sixteen terms are too few for the stages of multiply-adds
        let want = if dtype == DType::F32 { 2 } else { 3 };
        assert!(counts.len() == want && counts.iter().all(|n| *n > 1), "{dtype}: {counts:?}");
    }
    for dtype in [DType::BF16, DType::F32] {
        let gradients = trace(|t| {
            let leaf = |name: &str, shape: &[i64]| t.input(name, of(dtype, shape));
            let (v, w) = (leaf("v", &[32, 32, 3, 3]), leaf("w", &[32, 32, 3, 3]));
            let y = leaf("x", &[2, 32, 8, 8]).conv2d(v, [1, 1], [1, 1]).relu().conv2d(w, [1, 1], [1, 1]);
            t.grad((y * leaf("d", &[2, 32, 8, 8])).sum(), &[v, w])
        });
        let counts = agree(&gradients.unwrap(), &description, &CompileOptions::default(), FEW, &run);
        assert!(counts.len() >= 3 && counts.iter().all(|n| *n > 1), "{dtype}: {counts:?}");
    }
}

#[test]
fn attention_on_gpus() {
    let Some((description, device)) = simulated("sm_80") else { return };
    let run = |program: &Program| on_gpu(program, &device);
    for (dtype, queries) in [(DType::BF16, 70), (DType::F32, 70), (DType::F16, 1)] {
        let keys = if queries == 1 { 600 } else { 70 };
        let graph = trace(|t| {
            let q = t.input("q", of(dtype, &[1, 2, queries, 32]));
            let [k, v] = ["k", "v"].map(|name| t.input(name, of(dtype, &[1, 2, keys, 32])));
            let o = (q.matmul(k.transpose(&[0, 1, 3, 2])) * 0.25).softmax(-1).matmul(v);
            let mut all = vec![o];
            if queries > 1 {
                all.extend(t.grad((o * t.input("d", of(dtype, &[1, 2, queries, 32]))).sum(), &[q, k, v]));
            }
            all
        });
        let counts = agree(&graph.unwrap(), &description, &CompileOptions::default(), ALL, &run);
        let want = if queries > 1 { 2 } else { 1 };
        assert!(counts.len() == want && counts.iter().all(|n| *n > 1), "{dtype}: {counts:?}");
    }
}

#[test]
fn rows_on_gpus() {
    let Some((description, device)) = simulated("sm_80") else { return };
    let run = |program: &Program| on_gpu(program, &device);
    for dtype in [DType::F32, DType::BF16] {
        let graph = trace(|t| {
            let x = t.input("x", of(dtype, &[3, 5, 200]));
            vec![x.softmax(-1) * t.input("s", of(dtype, &[200])), x.layer_norm(-1, 1e-5), x.softmax(1)]
        });
        let counts = agree(&graph.unwrap(), &description, &CompileOptions::default(), ALL, &run);
        assert!(counts.len() == 3 && counts.iter().all(|n| *n > 1), "{dtype}: {counts:?}");
    }
}

/// Equal products, whatever their weights, are one problem; what is chosen for it changes both, and nothing else.
#[test]
fn equal_problems_are_one() {
    let device = DeviceDescription::named("x86-64-avx512").unwrap();
    let graph = trace(|t| {
        let [a, b] = ["a", "b"].map(|name| t.input(name, f32([200, 64])));
        let [v, w] = ["v", "w"].map(|name| t.param(name, ones(&[64, 96])));
        vec![a.matmul(v).relu(), b.matmul(w).relu()]
    });
    let graph = graph.unwrap();
    let options = CompileOptions::default();
    let made = optimise(&graph, &device, &options).unwrap();
    let tunable = Tunable::new(&made.rematerialised.graph, &device, &options.plan(), &Bindings::new());
    let problems = tunable.problems(4).unwrap();
    assert_eq!(problems.iter().map(|p| p.uses).collect::<Vec<_>>(), [2], "{problems:?}");
    let [problem] = problems.as_slice() else { panic!() };
    assert!(problem.schedules.len() > 2 && problem.schedules.len() <= 4);

    let own = compile(&graph, &device, &options).unwrap().program;
    let with = |schedules: Schedules| compile(&graph, &device, &CompileOptions { schedules, ..options.clone() });
    let other = problem.schedules[1].clone();
    let tuned = with([(problem.key, other.clone())].into_iter().collect()).unwrap().program;
    let gemms = |program: &Program| -> Vec<String> {
        program.launches().iter().map(|launch| program.kernel(launch.kernel).text.clone()).collect()
    };
    assert_ne!(gemms(&own), gemms(&tuned));
    assert!(gemms(&tuned).iter().all(|text| text.contains(&other.to_string())), "{:?}", gemms(&tuned));
    assert_eq!(own.steps, tuned.steps);
    // the model's choice, none at all, and what the problem does not have are the plan as it is
    let wrong = optimise_elsewhere();
    for schedules in [vec![(problem.key, problem.schedules[0].clone())], vec![], vec![(problem.key, wrong)]] {
        assert_eq!(with(schedules.into_iter().collect()).unwrap().program, own);
    }
}

/// A schedule of a problem on a GPU.
fn optimise_elsewhere() -> egret_compiler::Schedule {
    let device = DeviceDescription::named("sm_80").unwrap();
    let graph =
        trace(|t| t.input("x", of(DType::BF16, &[256, 256])).matmul(t.input("w", of(DType::BF16, &[256, 256]))));
    let made = optimise(&graph.unwrap(), &device, &CompileOptions::default()).unwrap();
    let options = plan::Options::default();
    let tunable = Tunable::new(&made.rematerialised.graph, &device, &options, &Bindings::new());
    tunable.problems(1).unwrap()[0].schedules[0].clone()
}
