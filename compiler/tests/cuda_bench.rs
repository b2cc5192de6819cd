//! What `scripts/gpu-check` measures: products, convolutions of ResNet-50, attention and its gradient, what memory bounds,
//! whole models and training steps, a line of JSON each. On the GPU that `EGRET_TEST_GPU` numbers, or a
//! simulated one of the description that it names, whose times are modelled; `EGRET_BENCH_QUICK=1` takes small sizes.

mod support {
    pub mod drawn;
    pub mod steps;
}

use std::sync::Arc;
use std::time::Instant;

use egret_compiler::{CompileOptions, F32Products, compile};
use egret_ir::tracer::{Tracer, Var};
use egret_ir::{Bindings, DType, Dim, Graph, Literal, Op, Shape, Tensor, TensorType, Weight, trace};
use egret_program::{DeviceDescription, Program};
use egret_runtime::cuda::{Cache, Device, Executable, LoadOptions, State};
use support::drawn::drawn;
use support::steps::cnn_training_step;

/// Runs before times count, and that count.
const WARM_UP: usize = 3;
const RUNS: usize = 30;

struct Case {
    /// Family, element type and sizes: `gpu-check` finds its counterpart in PyTorch by it.
    name: String,
    graph: Graph,
    products: F32Products,
}

fn of(dtype: DType, shape: &[i64]) -> TensorType {
    TensorType { dtype, shape: shape.iter().map(|n| Dim::from(*n)).collect() }
}

fn case(name: String, graph: Result<Graph, egret_ir::Diagnostic>) -> Case {
    let graph = graph.unwrap_or_else(|e| panic!("{name}: {e}"));
    Case { name, graph, products: F32Products::Fma }
}

fn products(quick: bool) -> Vec<Case> {
    let sizes: &[i64] = if quick { &[64] } else { &[512, 1024, 2048, 4096, 8192] };
    let kinds = [
        ("bf16", DType::BF16, F32Products::Fma),
        ("f16", DType::F16, F32Products::Fma),
        ("f32", DType::F32, F32Products::Fma),
        ("tf32", DType::F32, F32Products::Tf32),
        ("tf32x3", DType::F32, F32Products::Tf32x3),
    ];
    let one = |n: i64, (kind, dtype, products): (&str, DType, F32Products)| {
        let graph = trace(|t| t.input("x", of(dtype, &[n, n])).matmul(t.input("y", of(dtype, &[n, n]))));
        Case { products, ..case(format!("product {kind} {n}"), graph) }
    };
    sizes.iter().flat_map(|n| kinds.into_iter().map(move |kind| one(*n, kind))).collect()
}

/// Channels in and out, extent of the filter, stride, extent of the image.
const CONVOLUTIONS: [[i64; 5]; 12] = [
    [3, 64, 7, 2, 224],
    [64, 64, 1, 1, 56],
    [64, 64, 3, 1, 56],
    [64, 256, 1, 1, 56],
    [128, 128, 3, 1, 28],
    [128, 512, 1, 1, 28],
    [512, 256, 1, 2, 28],
    [256, 256, 3, 1, 14],
    [256, 1024, 1, 1, 14],
    [512, 512, 3, 1, 7],
    [512, 2048, 1, 1, 7],
    [2048, 512, 1, 1, 7],
];

fn convolutions(quick: bool) -> Vec<Case> {
    let (batch, all) = if quick { (1, &CONVOLUTIONS[9..10]) } else { (32, &CONVOLUTIONS[..]) };
    let one = |[from, to, filter, stride, extent]: [i64; 5], dtype: DType| {
        let graph = trace(|t| {
            let x = t.input("x", of(dtype, &[batch, from, extent, extent]));
            x.conv2d(t.input("w", of(dtype, &[to, from, filter, filter])), [stride; 2], [filter / 2; 2])
        });
        case(format!("convolution {} {batch} {from} {to} {filter} {stride} {extent}", dtype.name()), graph)
    };
    all.iter().flat_map(|sizes| [DType::BF16, DType::F32].map(|dtype| one(*sizes, dtype))).collect()
}

fn attention(quick: bool) -> Vec<Case> {
    let lengths: &[i64] = if quick { &[64] } else { &[512, 1024, 2048, 4096, 8192, 16_384] };
    let one = |length: i64, train: bool| {
        // as many queries in all, whatever the length
        let batch = if quick { 1 } else { 16_384 / length };
        let ty = of(DType::BF16, &[batch, 16, length, 128]);
        let graph = trace(|t| {
            let [q, k, v] = ["q", "k", "v"].map(|name| t.input(name, ty.clone()));
            let o = (q.matmul(k.transpose(&[0, 1, 3, 2])) * 128f64.powf(-0.5)).softmax(-1).matmul(v);
            if train { t.grad((o * t.input("do", ty.clone())).sum(), &[q, k, v]) } else { vec![o] }
        });
        let what = if train { "gradient" } else { "forward" };
        case(format!("attention {what} {batch} 16 {length} 128"), graph)
    };
    lengths.iter().flat_map(|length| [false, true].map(|train| one(*length, train))).collect()
}

fn bound_by_memory(quick: bool) -> Vec<Case> {
    let shape = if quick { [32, 256] } else { [16_384, 4096] };
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let mut add = |name: &str, f: fn(Var<'_>) -> Var<'_>| {
            let graph = trace(|t| f(t.input("x", of(dtype, &shape))));
            all.push(case(format!("{name} {} {} {}", dtype.name(), shape[0], shape[1]), graph));
        };
        add("copy", |x| -x);
        add("tanh", |x| (x * 0.5 + 1.0).tanh());
        add("softmax", |x| x.softmax(-1));
        add("layer_norm", |x| x.layer_norm(-1, 1e-5));
        add("row_sum", |x| x.reduce_sum(&[1], false));
        add("column_sum", |x| x.reduce_sum(&[0], false));
    }
    all
}

/// Weights of a model, and of one that is trained its states.
struct Leaves<'a, 't> {
    t: &'a Tracer<'t>,
    trained: Option<Vec<Var<'t>>>,
}

impl<'a, 't> Leaves<'a, 't> {
    fn new(t: &'a Tracer<'t>, train: bool) -> Leaves<'a, 't> {
        Leaves { t, trained: train.then(Vec::new) }
    }

    fn leaf(&mut self, name: &str, shape: &[i64]) -> Var<'t> {
        let shape = shape.iter().map(|n| *n as usize).collect();
        let weight = Weight::Fill { value: Literal::float(0.01, DType::BF16), shape };
        let Some(trained) = &mut self.trained else { return self.t.param(name, weight) };
        let var = self.t.state(name, weight);
        trained.push(var);
        var
    }

    fn project(&mut self, name: &str, x: Var<'t>, from: i64, to: i64) -> Var<'t> {
        x.matmul(self.leaf(name, &[from, to])) + self.leaf(&format!("{name}.b"), &[to])
    }

    /// A convolution between channels, with a window of some extent and a stride, and its bias.
    fn convolve(&mut self, name: &str, x: Var<'t>, [from, to, window, stride]: [i64; 4]) -> Var<'t> {
        let filters = self.leaf(name, &[to, from, window, window]);
        x.conv2d(filters, [stride; 2], [window / 2; 2]) + self.leaf(&format!("{name}.b"), &[to, 1, 1])
    }

    /// The result, or of what is trained the loss: the mean square of that, and a step of descent.
    fn finish(self, y: Var<'t>) -> Var<'t> {
        let Some(trained) = self.trained else { return y };
        let y = y.cast(DType::F32);
        let loss = (y * y).mean();
        let gradients = self.t.grad(loss, &trained);
        trained.iter().zip(gradients).for_each(|(leaf, by)| self.t.update(*leaf, *leaf - by * 0.01));
        loss
    }
}

/// A pre-norm transformer of BERT's or GPT-2's form without its embedding, or its training step.
fn encoder(causal: bool, train: bool, [layers, width, heads, batch, length]: [i64; 5]) -> Case {
    let dtype = DType::BF16;
    let graph = trace(|t: &Tracer<'_>| {
        let mut all = Leaves::new(t, train);
        let mut x = t.input("x", of(dtype, &[batch, length, width]));
        for layer in 0..layers {
            let normed = x.layer_norm(-1, 1e-5) * all.leaf(&format!("{layer}.a"), &[width]);
            let heads_of = |name: &str| {
                let split: Shape = [batch, length, heads, width / heads].into();
                all.project(&format!("{layer}.{name}"), normed, width, width).reshape(split).transpose(&[0, 2, 1, 3])
            };
            let [q, k, v] = ["q", "k", "v"].map(heads_of);
            let mut scores = q.matmul(k.transpose(&[0, 1, 3, 2])) * (heads as f64 / width as f64).sqrt();
            if causal {
                let places = of(DType::I64, &[length, length]);
                let (query, key) = (t.iota(places.clone(), 0), t.iota(places, 1));
                let never = t.scalar(Literal::float(f64::NEG_INFINITY, dtype));
                scores = key.less_equal(query).select(scores, never);
            }
            let mixed = scores.softmax(-1).matmul(v).transpose(&[0, 2, 1, 3]);
            let joined: Shape = [batch, length, width].into();
            x = x + all.project(&format!("{layer}.o"), mixed.reshape(joined), width, width);
            let normed = x.layer_norm(-1, 1e-5) * all.leaf(&format!("{layer}.c"), &[width]);
            let up = all.project(&format!("{layer}.up"), normed, width, 4 * width).gelu();
            x = x + all.project(&format!("{layer}.down"), up, 4 * width, width);
        }
        all.finish(x)
    });
    let kind = match (causal, train) {
        (false, _) => "bert",
        (true, false) => "gpt2",
        (true, true) => "train_gpt2",
    };
    case(format!("{kind} bf16 {layers} {width} {heads} {batch} {length}"), graph)
}

/// A residual network of bottlenecks, as ResNet-50 is one whose norms are in its weights: images, channels of the first
/// convolution, extent of an image, blocks of each stage.
fn residual([batch, width, extent]: [i64; 3], blocks: [i64; 4]) -> Case {
    let graph = trace(|t: &Tracer<'_>| {
        let mut all = Leaves::new(t, false);
        let x = t.input("x", of(DType::BF16, &[batch, 3, extent, extent]));
        let mut x = all.convolve("stem", x, [3, width, 7, 2]).relu().max_pool(&[3, 3], &[2, 2], &[1, 1]);
        let mut from = width;
        for (stage, count) in blocks.into_iter().enumerate() {
            let inner = width << stage;
            for block in 0..count {
                let name = |part: &str| format!("{stage}.{block}.{part}");
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let y = all.convolve(&name("a"), x, [from, inner, 1, 1]).relu();
                let y = all.convolve(&name("b"), y, [inner, inner, 3, stride]).relu();
                let y = all.convolve(&name("c"), y, [inner, 4 * inner, 1, 1]);
                let own = if block == 0 { all.convolve(&name("d"), x, [from, 4 * inner, 1, stride]) } else { x };
                x = (y + own).relu();
                from = 4 * inner;
            }
        }
        let y = all.project("head", x.reduce_mean(&[2, 3], false), from, 1000);
        all.finish(y)
    });
    let [a, b, c, d] = blocks;
    case(format!("resnet bf16 {batch} {width} {extent} {a} {b} {c} {d}"), graph)
}

fn cases(quick: bool) -> Vec<Case> {
    let sizes = if quick { [1, 64, 2, 1, 32] } else { [12, 768, 12, 8, 512] };
    let parts = [products(quick), convolutions(quick), attention(quick), bound_by_memory(quick)];
    let mut all: Vec<Case> = parts.into_iter().flatten().collect();
    all.push(match quick {
        true => residual([1, 8, 32], [1, 1, 1, 1]),
        false => residual([32, 64, 224], [3, 4, 6, 3]),
    });
    all.extend([encoder(false, false, sizes), encoder(true, false, sizes), encoder(true, true, sizes)]);
    all.push(case("train_cnn f32 64".into(), Ok(cnn_training_step())));
    all
}

fn program(case: &Case, device: &DeviceDescription) -> Program {
    let options = CompileOptions { products: case.products, ..CompileOptions::default() };
    compile(&case.graph, device, &options).unwrap_or_else(|e| panic!("{}: {e}", case.name)).program
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Elements of a product that are computed again.
const SAMPLED: usize = 256;

/// The greatest error of sampled elements of `x · y`, as a share of the sum of the terms' magnitudes.
fn error(x: &Tensor, y: &Tensor, product: &Tensor) -> f64 {
    let (n, k) = (y.shape()[1], y.shape()[0]);
    let at = |tensor: &Tensor, i: usize| tensor.get(i).as_f64();
    let all = product.elements();
    let sampled = (0..SAMPLED).map(|i| i * (all / SAMPLED).max(1) + i * 31 % n).map(|i| i % all);
    let errors = sampled.map(|i| {
        let terms = (0..k).map(|l| at(x, i / n * k + l) * at(y, l * n + i % n));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + f64::abs(term)));
        (at(product, i) - sum).abs() / f64::max(size, f64::MIN_POSITIVE)
    });
    errors.fold(0.0, f64::max)
}

/// Runs a case and tells its line.
fn measure(case: &Case, device: &Arc<Device>, runs: usize) -> String {
    let program = program(case, &device.description());
    let total = |f: &dyn Fn(&egret_program::Launch) -> i64| program.launches().into_iter().map(f).sum::<i64>() as f64;
    let bound = |dim: &Dim| dim.eval(&Bindings::default()).expect("constant extents");
    let (flops, bytes) = (total(&|launch| bound(&launch.flops)), total(&|launch| bound(&launch.bytes)));
    let kernels = program.launches().len();
    let weights = |name: &str| case.graph.weights.get(name).map(Weight::materialise);
    let options = LoadOptions { cache: Cache::standard() };
    let started = Instant::now();
    let exe = Executable::load(Arc::new(program), device, &weights, &options);
    let exe = exe.unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let state = State::empty(device);
    let session = state.add(&exe, &weights).and_then(|()| exe.session_with(&state));
    let mut session = session.unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let inputs: Vec<(String, Tensor)> = (0..)
        .zip(case.graph.inputs())
        .filter_map(|(seed, id)| {
            let Op::Input(input) = &case.graph.node(*id).op else { return None };
            let shape: Vec<usize> = input.ty.shape.constant()?.iter().map(|n| *n as usize).collect();
            Some((input.name.clone(), drawn(input.ty.dtype, &shape, seed, 0.5, 10)))
        })
        .collect();
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let run = |session: &mut egret_runtime::cuda::Session| {
        let started = Instant::now();
        session.run(&given).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        started.elapsed().as_secs_f64() * 1e3
    };
    let outputs = session.run(&given).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let error = if case.name.starts_with("product") {
        let y = outputs.at(0).expect("a product").to_tensor();
        format!(", \"error\": {:e}", error(&inputs[0].1, &inputs[1].1, &y))
    } else {
        String::new()
    };
    for _ in 0..WARM_UP {
        run(&mut session);
    }
    let run_ms = median((0..runs).map(|_| run(&mut session)).collect());
    session.profile(true);
    let kernel_ms = median(
        (0..runs)
            .map(|_| {
                run(&mut session);
                session.timings().iter().map(|step| step.ns).sum::<u64>() as f64 / 1e6
            })
            .collect(),
    );
    format!(
        "{{\"name\": \"{}\", \"kernel_ms\": {kernel_ms:.6}, \"run_ms\": {run_ms:.6}, \"load_ms\": {load_ms:.1}, \
         \"kernels\": {kernels}, \"flops\": {flops:e}, \"bytes\": {bytes:e}{error}}}",
        case.name
    )
}

#[test]
#[ignore = "needs a GPU, and tells times"]
fn benchmarks() {
    let named = std::env::var("EGRET_TEST_GPU").unwrap_or("0".into());
    let device = match named.parse() {
        Ok(number) => Device::open(number).unwrap_or_else(|e| panic!("{e}")),
        Err(_) => Device::simulated(&DeviceDescription::named(&named).unwrap_or_else(|e| panic!("{e}")))
            .unwrap_or_else(|e| panic!("{e}")),
    };
    let quick = std::env::var_os("EGRET_BENCH_QUICK").is_some();
    for case in cases(quick) {
        println!("{}", measure(&case, &device, if quick { 3 } else { RUNS }));
    }
}

/// What is measured compiles, runs on a simulated GPU where it is small, and tells what it does.
#[test]
fn what_is_measured_compiles() {
    if egret_runtime::cuda::nvrtc::Nvrtc::get().is_err() {
        return;
    }
    let description = DeviceDescription::named("h200").expect("a shipped description");
    let device = Device::simulated(&description).unwrap_or_else(|e| panic!("{e}"));
    for case in cases(true) {
        let small = case.name.starts_with("copy") || case.name.starts_with("product bf16");
        match small {
            true => assert!(measure(&case, &device, 1).contains("\"kernels\": 1")),
            false => assert!(!program(&case, &description).launches().is_empty(), "{}", case.name),
        }
    }
}
