//! Whole programs for GPUs through the runtime and a driver that stands in for NVIDIA's: kernels are compiled by NVRTC and
//! run by the simulator with all its checks.

#[path = "support/drawn.rs"]
mod drawn;
#[path = "support/graphs.rs"]
mod graphs;
#[path = "support/nvrtc.rs"]
mod support;

use std::sync::Arc;

use drawn::drawn;
use egret_compiler::{CompileOptions, compile};
use egret_ir::bound::{Bounded, interpret_bounded};
use egret_ir::ops::{CumulativeKind, Places, ScatterKind};
use egret_ir::{DType, Graph, Literal, Op, Tensor, TensorType, Tensors, f32, i64, trace};
use egret_program::DeviceDescription;
use egret_runtime::RuntimeError;
use egret_runtime::cuda::{Cache, CudaError, Device, Executable, LoadOptions, Session, State};
use support::nvrtc;

/// A simulated GPU, or the one that `EGRET_TEST_GPU` numbers.
fn device() -> Arc<Device> {
    if let Some(number) = std::env::var("EGRET_TEST_GPU").ok().and_then(|n| n.parse().ok()) {
        return Device::open(number).unwrap_or_else(|e| panic!("{e}"));
    }
    let description = DeviceDescription::named("sm_90a").expect("a shipped description");
    Device::simulated(&description).unwrap_or_else(|e| panic!("{e}"))
}

/// Compiled kernels that all tests of a build share.
fn cache() -> LoadOptions {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    LoadOptions { cache: Cache::at(folder) }
}

fn load(graph: &Graph, device: &Arc<Device>) -> Result<Arc<Executable>, RuntimeError> {
    let compiled = compile(graph, &device.description(), &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
    Executable::load(Arc::new(compiled.program), device, &weights, &cache())
}

/// Values in −2 to 2, the same on every run; small integers for indices.
fn fill(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    drawn(dtype, shape, seed, 2.0, 5)
}

/// Inputs of a graph whose symbols are all `size`.
fn inputs(graph: &Graph, size: i64) -> Vec<(String, Tensor)> {
    let mut bindings = egret_ir::Bindings::default();
    let mut all = Vec::new();
    for (seed, id) in (0..).zip(graph.inputs()) {
        let Op::Input(input) = &graph.node(*id).op else { continue };
        for dim in input.ty.shape.iter() {
            dim.symbols(&mut |name, _, _| {
                bindings.insert(name.clone(), size);
            });
        }
        let shape: Vec<usize> = input.ty.shape.eval(&bindings).unwrap().iter().map(|n| *n as usize).collect();
        all.push((input.name.clone(), fill(input.ty.dtype, &shape, seed)));
    }
    all
}

fn borrowed(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

/// Times the bound of another correct evaluation, as in the tests of random graphs: it leaves room for primitives that are
/// right to two units in the last place.
const BOUNDS: f64 = 4.0;

/// Every element is within the bound of the interpreter's; where nothing is known of one, near it.
fn assert_close(name: &str, have: &Tensor, want: &Bounded) {
    let Bounded { value: want, error } = want;
    assert_eq!((have.dtype(), have.shape()), (want.dtype(), want.shape()), "{name}");
    let unknown = 1e-5;
    for (i, ((a, b), error)) in have.values().zip(want.values()).zip(error).enumerate() {
        let (x, y) = (a.as_f64(), b.as_f64());
        let allowed = if error.is_finite() { BOUNDS * error } else { unknown * (1.0 + y.abs()) };
        let same = a == b || x.is_nan() && y.is_nan() || (x - y).abs() <= allowed;
        assert!(same, "{name}[{i}] is {x}, the interpreter has {y}, within {allowed:e}");
    }
}

fn check(name: &str, session: &mut Session, graph: &Graph, size: i64) {
    let given = inputs(graph, size);
    let tensors: Tensors = given.iter().cloned().collect();
    let expanded = egret_ir::autodiff::expand(graph).unwrap_or_else(|e| panic!("{name}: {e}"));
    let want = interpret_bounded(&expanded, &tensors).unwrap_or_else(|e| panic!("{name}: {e}"));
    let have = session.run(&borrowed(&given)).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (output, (_, want)) in have.iter().zip(&want) {
        assert_close(&format!("{name} {}", output.name()), &output.to_tensor(), want);
    }
}

#[test]
fn programs_compute_what_the_interpreter_does() {
    if nvrtc().is_none() {
        return;
    }
    let device = device();
    for (name, graph) in graphs::all().into_iter().chain([("attention", graphs::attention())]) {
        let exe = load(&graph, &device).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut session = exe.session().unwrap_or_else(|e| panic!("{name}: {e}"));
        check(name, &mut session, &graph, graphs::BATCH);
    }
}

/// Families that the graphs of the schedules leave out.
fn further() -> Vec<(&'static str, Graph)> {
    let ty =
        |dtype, shape: &[i64]| TensorType { dtype, shape: shape.iter().map(|n| egret_ir::Dim::from(*n)).collect() };
    let random = trace(|t| {
        let counter = t.input("counter", ty(DType::I64, &[]));
        vec![t.uniform(3, counter, f32([5, 301])), t.normal(4, counter, f32([70]))]
    });
    let cumulative = trace(|t| {
        let x = t.input("x", f32([3, 41, 5]));
        vec![
            x.cumulative(CumulativeKind::Sum, 1, false, false),
            x.cumulative(CumulativeKind::Max, 2, false, true),
            (x * 0.5).cumulative(CumulativeKind::Prod, 0, true, false),
        ]
    });
    let scattered = trace(|t| {
        let (x, i) = (t.input("x", f32([5, 6])), t.input("i", i64([3, 4])));
        let updates = t.input("u", f32([3, 4]));
        let rows = t.input("rows", i64([3]));
        let of_rows = t.input("of_rows", f32([3, 6]));
        vec![
            x.scatter(Places::Elements { axis: 0 }, ScatterKind::Set, i, updates),
            x.scatter(Places::Elements { axis: 1 }, ScatterKind::Max, i, updates),
            x.scatter(Places::Rows { axis: 0 }, ScatterKind::Mul, rows, of_rows),
        ]
    });
    let integers = trace(|t| {
        let bytes = t.input("bytes", ty(DType::U8, &[7, 300]));
        let words = t.input("words", ty(DType::I16, &[40, 9]));
        vec![
            bytes.reduce_sum(&[1], false),
            words.reduce_max(&[0], false),
            words.reduce_prod(&[1], false),
            words.reduce_min(&[0, 1], true),
            (words - t.scalar(Literal::int(1, DType::I16))).pow(words - t.scalar(Literal::int(2, DType::I16))),
        ]
    });
    let sorted = trace(|t| {
        let x = t.input("x", f32([3, 50, 2]));
        let i = t.input("i", i64([4, 21]));
        // half of them NaN or equal
        let some = x.greater(1.0).select(x * f64::NAN, (x * 2.0).round());
        let (values, places) = some.top_k(1, 7, true);
        let (all, where_) = some.sort(1, false);
        let (least, of) = i.top_k(-1, 21, false);
        vec![values, places, all, where_, least, of]
    });
    // lengths that vectors divide and that they do not, at a multiple of a block and beyond
    let flat = |n: i64| {
        trace(move |t| {
            let (x, y) = (t.input("x", f32([n])), t.input("y", f32([n])));
            let shifted = (x * y).gelu() + t.input("s", f32([1]));
            vec![shifted, (x - y).tanh(), x.greater(y).cast(DType::F32)]
        })
    };
    let halves = trace(|t| {
        let x = t.input("x", ty(DType::BF16, &[3, 1000]));
        vec![(x * x).exp(), x.softmax(-1)]
    });
    // places named by tuples: of many elements, of single ones, within a batch; some named twice
    let tuples = trace(|t| {
        let (x, i) = (t.input("x", f32([5, 6, 3])), t.input("i", i64([7, 2])));
        let (rows, each) = (t.input("rows", f32([7, 3])), t.input("each", f32([4, 9])));
        let (y, j) = (t.input("y", f32([4, 5])), t.input("j", i64([4, 9, 1])));
        vec![
            x.scatter(Places::Tuples { batch: 0 }, ScatterKind::Add, i, rows),
            x.scatter(Places::Tuples { batch: 0 }, ScatterKind::Set, i, rows),
            y.scatter(Places::Tuples { batch: 1 }, ScatterKind::Mul, j, each),
        ]
    });
    // few results of many elements: parts of them are reduced by blocks of their own
    let split = trace(|t| {
        let (x, y) = (t.input("x", f32([1, 70_001])), t.input("y", f32([2, 140_000])));
        let (a, b) = (t.input("a", f32([6000, 7])), t.input("b", ty(DType::BF16, &[3, 5000, 9])));
        let words = t.input("words", ty(DType::I32, &[200, 700]));
        vec![
            (x * x).reduce_sum(&[1], false),
            y.reduce_mean(&[1], true) * 3.0,
            a.reduce_max(&[0], false),
            (a * a).reduce_mean(&[0], false).sqrt(),
            b.reduce_sum(&[1], false),
            words.reduce_sum(&[0, 1], false),
        ]
    });
    // sorted in one tile, and in several
    let long = trace(|t| {
        let (x, y) = (t.input("x", f32([2, 300, 2])), t.input("y", f32([9001])));
        let some = y.greater(1.5).select(y * f64::NAN, (y * 50.0).round());
        let words = t.input("words", ty(DType::I16, &[3, 4500]));
        let (a, b) = x.top_k(1, 40, true);
        let (c, d) = some.sort(0, false);
        let (e, f) = words.top_k(1, 700, true);
        let (g, h) = x.round().top_k(1, 300, false);
        vec![a, b, c, d, e, f, g, h]
    });
    // rows that do not fit into shared memory
    let wide = trace(|t| {
        let (x, labels) = (t.input("x", f32([2, 17_000])), t.input("labels", i64([2])));
        let some = x.greater(1.0).select(x * 0.0 - f64::INFINITY, x * 30.0);
        vec![some.softmax(-1), x.log_softmax(-1), x.cross_entropy(labels), x.layer_norm(-1, 1e-5)]
    });
    let joined = trace(|t| {
        let (x, y, z) = (t.input("x", f32([4, 16])), t.input("y", f32([3, 16])), t.input("z", f32([2, 16])));
        let (a, b) = (x.exp(), y.softmax(-1));
        let all = t.concat(&[a, z, b], 0);
        vec![all.t().matmul(all), t.concat(&[x, x.exp()], 1)]
    });
    let named = [
        ("tuples", tuples),
        ("split", split),
        ("long", long),
        ("wide", wide),
        ("joined", joined),
        ("random", random),
        ("cumulative", cumulative),
        ("scattered", scattered),
        ("integers", integers),
        ("sorted", sorted),
        ("flat_2048", flat(2048)),
        ("flat_1028", flat(1028)),
        ("flat_1031", flat(1031)),
        ("halves", halves),
    ];
    named.into_iter().map(|(name, graph)| (name, graph.unwrap_or_else(|e| panic!("{name}: {e}")))).collect()
}

#[test]
fn further_families_compute_what_the_interpreter_does() {
    if nvrtc().is_none() {
        return;
    }
    let device = device();
    for (name, graph) in further() {
        let exe = load(&graph, &device).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut session = exe.session().unwrap_or_else(|e| panic!("{name}: {e}"));
        check(name, &mut session, &graph, 1);
    }
}

#[test]
fn runs_are_replayed_until_memory_moves() {
    if nvrtc().is_none() {
        return;
    }
    let graph = graphs::mlp();
    let mut session = load(&graph, &device()).unwrap().session().unwrap();
    let mut recorded = Vec::new();
    for size in [2, 2, 2, 5, 5, 2, 2] {
        check("mlp", &mut session, &graph, size);
        recorded.push(session.is_recorded());
    }
    // the second run of a binding records; a larger one moves the arena, and what was recorded names the old place
    assert_eq!(recorded, [false, true, true, false, true, false, true]);
    session.record(false);
    check("mlp", &mut session, &graph, 2);
    assert!(!session.is_recorded());
    session.profile(true);
    check("mlp", &mut session, &graph, 2);
    assert!(session.timings().iter().all(|time| time.calls == 1), "{:?}", session.timings());
}

#[test]
fn state_lives_on_the_gpu() {
    if nvrtc().is_none() {
        return;
    }
    let graph = trace(|t| {
        let total = t.state("total", Tensor::new(&[3], &[1.0f32, 2.0, 3.0]).unwrap());
        let next = total + t.input("x", f32([3]));
        t.update(total, next);
        total * next
    })
    .unwrap();
    let device = device();
    let exe = load(&graph, &device).unwrap();
    assert_eq!(exe.session().unwrap_err().code(), "E0512");
    let state = State::empty(&device);
    state.add(&exe, &|name| graph.weights.get(name).map(|w| w.materialise())).unwrap();
    let mut session = exe.session_with(&state).unwrap();
    let x = Tensor::new(&[3], &[1.0f32, 1.0, -1.0]).unwrap();
    for (run, want) in [[2.0, 6.0, 6.0], [6.0, 12.0, 2.0], [12.0, 20.0, 0.0]].into_iter().enumerate() {
        let outputs = session.run(&[("x", &x)]).unwrap();
        assert_eq!(outputs.at(0).unwrap().as_slice::<f32>().unwrap(), want, "run {run}");
    }
    assert_eq!(state.get("total").unwrap().as_slice::<f32>().unwrap(), [4.0, 5.0, 0.0]);
    state.set("total", &Tensor::new(&[3], &[0.0f32, 0.0, 1.0]).unwrap()).unwrap();
    let mut product = Tensor::zeros(DType::F32, &[3]);
    session.run_into(&[("x", &x)], &mut [("output", &mut product)]).unwrap();
    assert_eq!(product.as_slice::<f32>().unwrap(), [0.0, 0.0, 0.0]);
    assert_eq!(state.get("total").unwrap().as_slice::<f32>().unwrap(), [1.0, 1.0, 0.0]);
}

#[test]
fn loops_and_branches_run_on_the_host() {
    if nvrtc().is_none() {
        return;
    }
    let graph = trace(|t| {
        let x = t.input("x", f32([4, 3]));
        let (carried, stacked) = t.scan(&[t.input("s", f32([3]))], &[x], |_, carried, slices| {
            let next = carried[0] * 0.5 + slices[0];
            (vec![next], vec![next])
        });
        vec![carried[0], stacked[0]]
    });
    let graph = graph.unwrap_or_else(|e| panic!("{e}"));
    let mut session = load(&graph, &device()).unwrap().session().unwrap();
    for _ in 0..3 {
        check("scan", &mut session, &graph, 1);
    }
    assert!(session.is_recorded());
    let graph = trace(|t| {
        let x = t.input("x", f32([3]));
        let (last, trips, _) = t.while_loop(
            Some(egret_ir::Dim::from(20)),
            &[x],
            |_, carried| carried[0].sum().less(100.0),
            |_, carried| (vec![carried[0] * 1.5 + 1.0], vec![]),
        );
        let chosen = t.cond(x.sum().greater(0.0), |_| vec![last[0] * 2.0], |_| vec![last[0] - 1.0]);
        vec![chosen[0], trips.cast(DType::F32)]
    });
    let graph = graph.unwrap_or_else(|e| panic!("{e}"));
    let mut session = load(&graph, &device()).unwrap().session().unwrap();
    for _ in 0..3 {
        check("while", &mut session, &graph, 1);
    }
    assert!(!session.is_recorded());
}

#[test]
fn data_at_fault_is_named() {
    if nvrtc().is_none() {
        return;
    }
    let graph = trace(|t| t.input("x", f32([4, 3])).gather(t.input("i", i64([2])), 0)).unwrap();
    let mut session = load(&graph, &device()).unwrap().session().unwrap();
    let x = fill(DType::F32, &[4, 3], 1);
    let index = |i: i64| Tensor::new(&[2], &[1i64, i]).unwrap();
    for _ in 0..3 {
        session.run(&[("x", &x), ("i", &index(3))]).unwrap();
        let error = session.run(&[("x", &x), ("i", &index(4))]).unwrap_err();
        assert!(matches!(&error, RuntimeError::Fault { origin, .. } if origin.contains("cuda_programs")), "{error}");
    }
}

#[test]
fn memory_that_is_short_is_explained() {
    if nvrtc().is_none() {
        return;
    }
    let small = DeviceDescription { memory_bytes: 1 << 20, ..DeviceDescription::named("sm_90a").unwrap() };
    let device = Device::simulated(&small).unwrap();
    let graph = trace(|t| t.input("x", f32(["n".into(), egret_ir::Dim::from(64)] as [egret_ir::Dim; 2])).softmax(-1));
    let graph = graph.unwrap();
    let mut session = load(&graph, &device).unwrap().session().unwrap();
    let error = session.run(&borrowed(&inputs(&graph, 4096))).unwrap_err();
    let RuntimeError::Cuda(CudaError::Memory { largest, total, .. }) = &error else { panic!("{error}") };
    assert_eq!((largest[0].0.as_str(), *total), ("input `x`", 1 << 20), "{error}");
    assert_eq!(error.code(), "E0524");
    // what fits still runs
    check("softmax", &mut session, &graph, 8);
}

#[test]
fn a_lost_gpu_is_an_error_and_another_goes_on() {
    if nvrtc().is_none() {
        return;
    }
    let (lost, other) = (device(), device());
    let graph = graphs::softmax();
    let sessions = [&lost, &other].map(|device| load(&graph, device).unwrap().session().unwrap());
    let [mut first, mut second] = sessions;
    check("softmax", &mut first, &graph, graphs::BATCH);
    lost.unplug();
    let error = first.run(&borrowed(&inputs(&graph, graphs::BATCH))).unwrap_err();
    assert!(matches!(error, RuntimeError::Cuda(CudaError::Lost { .. })), "{error}");
    assert!(error.to_string().contains("taken away"), "{error}");
    check("softmax", &mut second, &graph, graphs::BATCH);
}

#[test]
fn sessions_and_threads_share_a_gpu() {
    if nvrtc().is_none() {
        return;
    }
    let device = device();
    let (mlp, softmax) = (graphs::mlp(), graphs::softmax());
    let executables = [load(&mlp, &device).unwrap(), load(&softmax, &device).unwrap()];
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let exe = executables[thread % 2].clone();
            let graph = [&mlp, &softmax][thread % 2];
            scope.spawn(move || {
                // two sessions a thread, in turn, each replayed from its second run on
                let mut sessions = [exe.session().unwrap(), exe.session().unwrap()];
                for run in 0..4 {
                    check("shared", &mut sessions[run % 2], graph, 2 + thread as i64 / 2);
                }
            });
        }
    });
}
