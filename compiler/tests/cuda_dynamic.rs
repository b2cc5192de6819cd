//! What only the data tell the size of, and scans, on a simulated GPU with every check on, or the GPU that `EGRET_TEST_GPU`
//! numbers: to the bit what the interpreter has.

mod support {
    pub mod drawn;
    pub mod nvrtc;
}

use std::sync::Arc;

use egret_compiler::{CompileOptions, compile};
use egret_ir::ops::{CumulativeKind, NonMaxSuppression};
use egret_ir::{
    DType, Dim, Graph, Literal, ScalarValue, Shape, Tensor, TensorType, Tensors, f32, i64, interpret, trace,
};
use egret_program::DeviceDescription;
use egret_runtime::cuda::{Cache, Device, Executable, LoadOptions};
use support::drawn::drawn;
use support::nvrtc::nvrtc;

fn device() -> Arc<Device> {
    if let Some(number) = std::env::var("EGRET_TEST_GPU").ok().and_then(|n| n.parse().ok()) {
        return Device::open(number).unwrap_or_else(|e| panic!("{e}"));
    }
    let description = DeviceDescription::named("sm_80").expect("a shipped description");
    Device::simulated(&description).unwrap_or_else(|e| panic!("{e}"))
}

/// One session runs each of the inputs in turn.
fn check(name: &str, graph: &Graph, runs: &[Vec<(&str, Tensor)>]) {
    if nvrtc().is_none() {
        return;
    }
    let device = device();
    let program = compile(graph, &device.description(), &CompileOptions::default());
    let program = program.unwrap_or_else(|e| panic!("{name}: {e}")).program;
    let cache = Cache::at(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels"));
    let exe = Executable::load(Arc::new(program), &device, &|_| None, &LoadOptions { cache });
    let mut session = exe.and_then(|exe| exe.session()).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (run, inputs) in runs.iter().enumerate() {
        let given: Tensors = inputs.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
        let want = interpret(graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{name}: {e}")).outputs;
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let outputs = session.run(&inputs).unwrap_or_else(|e| panic!("{name} {run}: {e}"));
        for (output, (_, want)) in outputs.iter().zip(&want) {
            let have = output.to_tensor();
            let what = format!("{name} {run} {}", output.name());
            assert_eq!((have.dtype(), have.shape()), (want.dtype(), want.shape()), "{what}");
            for (i, (a, b)) in have.values().zip(want.values()).enumerate() {
                let same = a == b || a.as_f64().is_nan() && b.as_f64().is_nan();
                assert!(same, "{what}[{i}] is {a:?}, the interpreter has {b:?}");
            }
        }
    }
}

fn graph(build: impl FnOnce() -> Result<Graph, egret_ir::Diagnostic>) -> Graph {
    build().unwrap_or_else(|e| panic!("{e}"))
}

/// Small integers, of which about one in `every` is not zero.
fn sparse(dtype: DType, shape: &[usize], every: usize, seed: usize) -> Tensor {
    let mut tensor = Tensor::zeros(dtype, shape);
    for i in (0..tensor.elements()).filter(|i| (i * 31 + seed * 7) % (2 * every + 1) < 2) {
        let value = (i % 5) as i128 - if dtype.is_unsigned() { 0 } else { 2 };
        tensor.set(i, if dtype.is_float() { ScalarValue::Float(value as f64) } else { ScalarValue::Int(value) });
    }
    tensor
}

#[test]
fn places_of_what_is_not_zero() {
    // in one tile of a scan and in several; none, some and all
    for (dtype, shape) in [(DType::F32, [7usize, 9, 5]), (DType::BF16, [3, 400, 4]), (DType::I64, [1, 4099, 1])] {
        let dims: Vec<Dim> = shape.iter().map(|n| Dim::from(*n as i64)).collect();
        let ty = TensorType { dtype, shape: dims.into_iter().collect() };
        let found = graph(|| {
            trace(|t| {
                let x = t.input("x", ty.clone());
                let places = x.non_zero();
                // what is found goes on
                vec![places, places.reduce_sum(&[0], false), (places * places).transpose(&[1, 0])]
            })
        });
        let mut all = sparse(dtype, &shape, 1, 0);
        (0..all.elements()).for_each(|i| {
            all.set(i, if dtype.is_float() { ScalarValue::Float(1.0) } else { ScalarValue::Int(1) });
        });
        let runs = [sparse(dtype, &shape, 3, 1), Tensor::zeros(dtype, &shape), all, sparse(dtype, &shape, 40, 2)];
        check("non_zero", &found, &runs.map(|x| vec![("x", x)]));
    }
    let symbolic = graph(|| {
        trace(|t| {
            let x = t.input("x", f32(["n"]));
            x.compress(x.greater(0.0), None) * 2.0
        })
    });
    let runs = [5usize, 3000, 1, 40].map(|n| vec![("x", drawn(DType::F32, &[n], 3, 1.0, 5))]);
    check("compress", &symbolic, &runs);
}

#[test]
fn distinct_elements() {
    for dtype in [DType::F32, DType::BF16, DType::I64, DType::U8] {
        for (axis, sorted) in [(None, true), (None, false), (Some(1), true), (Some(1), false)] {
            let rows = if axis.is_some() { 1 } else { 12 };
            let unique = graph(|| {
                trace(|t| t.input("x", TensorType::new(dtype, [rows as i64, 11])).unique(axis, sorted).to_vec())
            });
            let few = drawn(dtype, &[rows, 11], 1, 3.0, 4);
            let mut some = Tensor::zeros(dtype, &[rows, 11]);
            for i in 0..11 * rows {
                // numbers that are none, and zeros of both signs
                let value = few.get(i % 7).as_f64().round();
                let value = if dtype.is_float() && i % 11 == 3 { f64::NAN } else { value };
                some.set(i, if dtype.is_float() { ScalarValue::Float(value) } else { ScalarValue::Int(value as i128) });
            }
            let runs = [some, Tensor::zeros(dtype, &[rows, 11]), few].map(|x| vec![("x", x)]);
            check(&format!("unique {dtype} {axis:?} {sorted}"), &unique, &runs);
        }
    }
    let long = graph(|| trace(|t| t.input("x", f32(["n"])).unique(None, true).to_vec()));
    let runs = [2500usize, 1].map(|n| vec![("x", sparse(DType::F32, &[n], 4, 1))]);
    check("unique of many", &long, &runs);
}

#[test]
fn boxes_that_overlap_better_ones() {
    for center in [false, true] {
        let boxes = graph(|| {
            trace(|t| {
                let (boxes, scores) = (
                    t.input("boxes", f32([Dim::from("b"), Dim::from("n"), Dim::from(4)])),
                    t.input("scores", f32(["b", "c", "n"])),
                );
                let most = t.input("most", i64(Shape::scalar()));
                let number = |x: f64| t.scalar(Literal::float(x, DType::F32));
                let size = t.new_size();
                t.add(NonMaxSuppression { center, size }, &[boxes, scores, most, number(0.3), number(0.1)])
            })
        });
        let given = |n: usize, most: i64| {
            let mut scores = drawn(DType::F32, &[2, 3, n], 2, 1.0, 5);
            // of equal scores the lower place comes first
            for i in 0..scores.elements() {
                scores.set(i, ScalarValue::Float((scores.get(i).as_f64() * 4.0).round() / 4.0));
            }
            vec![
                ("boxes", drawn(DType::F32, &[2, n, 4], 1, 2.0, 5)),
                ("scores", scores),
                ("most", Tensor::new(&[], &[most]).expect("one number")),
            ]
        };
        check("suppression", &boxes, &[given(70, i64::MAX), given(300, 5), given(17, 0), given(1, 1)]);
    }
}

#[test]
fn long_scans() {
    use CumulativeKind::{Max, Min, Prod, Sum};
    let scans = graph(|| {
        trace(|t| {
            let (x, y) = (t.input("x", i64([3, 2600])), t.input("y", f32([2, 300, 3])));
            let words = t.input("words", TensorType::new(DType::I32, [5000i64]));
            vec![
                x.cumulative(Sum, 1, false, false),
                x.cumulative(Sum, 1, true, true),
                x.cumulative(Max, 1, false, true),
                y.cumulative(Min, 1, true, false),
                y.cumulative(Max, 1, false, false),
                words.cumulative(Prod, 0, true, false),
                words.cumulative(Sum, 0, false, true),
            ]
        })
    });
    let given = vec![
        ("x", drawn(DType::I64, &[3, 2600], 1, 1.0, 9)),
        ("y", drawn(DType::F32, &[2, 300, 3], 2, 1.0, 9)),
        ("words", drawn(DType::I32, &[5000], 3, 1.0, 9)),
    ];
    check("scans", &scans, &[given]);
}
