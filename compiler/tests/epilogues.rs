//! The generic epilogue by itself: primitive spellings join the product before them with raise switched off.

mod support {
    pub mod host;
    pub mod models;
    pub mod programs;
}

use egret_compiler::{CompileOptions, Level, compile, plan, raise, rewrite};
use egret_ir::ops::Conv;
use egret_ir::tracer::{Tracer, Var, trace};
use egret_ir::{DType, Graph, Op, Tensor, TensorType, Tensors, f32, interpret};
use egret_program::{DeviceDescription, Program};
use support::host::compiled;
use support::models::model;
use support::programs::{check, descriptions, few, run};

fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 37 + seed * 101) % 97) as f32 / 97.0 - 0.5).collect();
    Tensor::new(shape, &values).expect("as many values as the shape has")
}

fn families(program: &Program) -> Vec<&str> {
    program.launches().iter().map(|l| program.kernel(l.kernel).family.as_str()).collect()
}

/// The program that canonicalisation, rewriting and the plan make; nothing names composites or activations.
fn without_raise(graph: &Graph, device: &egret_program::DeviceDescription) -> (Graph, Program) {
    let canonical = raise::canonicalise(graph).unwrap_or_else(|e| panic!("{e}"));
    let options = rewrite::Options { level: Level::Full, ..rewrite::Options::default() };
    let rewritten = rewrite::rewrite(&canonical, device, &options).unwrap_or_else(|e| panic!("{e}"));
    let program = plan::plan(&rewritten.graph, device, &plan::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    (rewritten.graph, program)
}

type Build = for<'t> fn(&Tracer<'t>, Var<'t>) -> Vec<Var<'t>>;

#[test]
fn primitive_spellings_join_the_product_before_them() {
    let cases: [(&str, Build, usize); 4] = [
        ("x·Φ(x)", |_, y| vec![y * 0.5 * ((y / std::f64::consts::SQRT_2).erf() + 1.0)], 1),
        ("SiLU", |_, y| vec![y / ((-y).exp() + 1.0)], 1),
        (
            "a bias and SiLU by a reciprocal",
            |t, y| {
                let y = y + t.param("b", numbers(&[40], 5));
                vec![y * ((-y).exp() + 1.0).recip()]
            },
            1,
        ),
        (
            "a residual that two read",
            |t, y| {
                let sum = y + t.input("r", f32([24, 40]));
                vec![sum, sum.relu()]
            },
            2,
        ),
    ];
    for (what, build, outputs) in cases {
        let graph = trace(|t| {
            let x = t.input("x", f32([24, 32]));
            let w = t.param("w", numbers(&[32, 40], 2));
            let made = build(t, x.matmul(w));
            made.iter().enumerate().for_each(|(i, v)| t.output(&format!("y{i}"), *v));
        })
        .unwrap_or_else(|e| panic!("{e}"));
        let mut given: Tensors = [("x".to_string(), numbers(&[24, 32], 1))].into();
        if outputs == 2 {
            given.insert("r".into(), numbers(&[24, 40], 3));
        }
        let want = interpret(&graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{e}"));
        for device in descriptions() {
            let (rewritten, program) = without_raise(&graph, &device);
            let named =
                |op: &Op| matches!(op, Op::Fused(_) | Op::DotGeneral(_) | Op::Input(_) | Op::Param(_) | Op::Proj(_));
            assert!(
                rewritten.nodes().iter().all(|node| named(&node.op)),
                "{what}\n{}",
                egret_ir::text::print(&rewritten)
            );
            let products = families(&program).iter().filter(|f| **f == "gemm").count();
            assert_eq!(products, 1, "{what}: {:?}\n{}", families(&program), egret_ir::text::print(&rewritten));
            assert_eq!(program.launches().len(), 1, "{what}: {:?}", families(&program));
            let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
            let have = run(&program, &weights, &given, 2).unwrap_or_else(|e| panic!("{e}"));
            for ((name, have), (_, want)) in have.iter().zip(&want.outputs) {
                for (a, b) in have.values().zip(want.values()) {
                    let (a, b) = (a.as_f64(), b.as_f64());
                    // sums of 32 products
                    assert!((a - b).abs() <= 2e-5 * b.abs().max(1.0), "{what} {name}: {a}, the interpreter has {b}");
                }
            }
        }
    }
}

/// A residual stream that goes on and is normed leaves one kernel, which writes both, and so does one that is only scaled.
#[test]
fn a_residual_stream_and_its_norm_are_one_kernel() {
    for bias in [false, true] {
        let graph = trace(|t| {
            let x = t.input("x", f32([24, 32]));
            let stream = t.input("r", f32([24, 40]));
            let sum = x.matmul(t.param("w", numbers(&[32, 40], 2))) + stream;
            let sum = if bias { sum + t.param("b", numbers(&[40], 7)) } else { sum.tanh() };
            let normed =
                sum.layer_norm(1, 1e-5) * t.param("scale", numbers(&[40], 3)) + t.param("shift", numbers(&[40], 4));
            t.output("stream", sum);
            t.output("normed", normed);
        })
        .unwrap_or_else(|e| panic!("{e}"));
        let given: Tensors =
            [("x".to_string(), numbers(&[24, 32], 1)), ("r".to_string(), numbers(&[24, 40], 5))].into();
        let want = interpret(&graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{e}"));
        for device in descriptions() {
            let options = CompileOptions::default();
            let program = compile(&graph, &device, &options).unwrap_or_else(|e| panic!("{e}")).program;
            assert_eq!(families(&program), ["gemm"]);
            let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
            for threads in [1, 2] {
                let have = run(&program, &weights, &given, threads).unwrap_or_else(|e| panic!("{e}"));
                for ((name, have), (_, want)) in have.iter().zip(&want.outputs) {
                    for (a, b) in have.values().zip(want.values()) {
                        let (a, b) = (a.as_f64(), b.as_f64());
                        // sums of 32 products, and of 40 squares
                        assert!((a - b).abs() <= 5e-5 * b.abs().max(1.0), "{name}: {a}, the interpreter has {b}");
                    }
                }
            }
        }
    }
}

/// A convolution with maps before it, and how many maps are left.
struct Mapped {
    what: &'static str,
    build: for<'t> fn(&Tracer<'t>, Var<'t>) -> Vec<Var<'t>>,
    maps: usize,
}

fn weights<'t>(t: &Tracer<'t>, name: &str, shape: &[usize]) -> Var<'t> {
    t.param(name, numbers(shape, name.len() + shape[0]))
}

fn norm<'t>(t: &Tracer<'t>, x: Var<'t>, name: &str, channels: usize) -> Var<'t> {
    x * weights(t, &format!("{name}.scale"), &[channels, 1, 1])
        + weights(t, &format!("{name}.shift"), &[channels, 1, 1])
}

/// Maps before a convolution join it, unless they end the kernel before it: scaled and shifted by channel in vectors, all
/// else by a hook, strided and padded, with an epilogue behind.
#[test]
fn maps_before_a_convolution_join_it() {
    let cases = [
        Mapped {
            what: "norm and ReLU of a concatenation, read twice",
            build: |t, x| {
                let both = t.concat(&[x, x * 2.0], 1);
                let y = norm(t, both, "a", 48).relu().conv2d(weights(t, "v", &[40, 48, 1, 1]), [1, 1], [0, 0]);
                let z = norm(t, both, "b", 48).relu().conv2d(weights(t, "w", &[33, 48, 3, 3]), [1, 1], [1, 1]);
                vec![y.relu(), z]
            },
            maps: 0,
        },
        Mapped {
            what: "a hook, strides and unequal padding",
            build: |t, x| {
                let mapped = norm(t, x, "a", 24).map(egret_ir::ScalarFn::HardSwish, &[]);
                let conv = Conv::forward(&[2, 1], &[1, 0], &[0, 2], &[1, 2], 1);
                vec![mapped.conv(weights(t, "w", &[17, 24, 3, 3]), conv).tanh()]
            },
            maps: 0,
        },
        Mapped {
            what: "the result of a convolution that is read besides",
            build: |t, x| {
                let y = x.conv2d(weights(t, "u", &[32, 24, 1, 1]), [1, 1], [0, 0]);
                let z = norm(t, y, "a", 32).relu().conv2d(weights(t, "v", &[32, 32, 1, 1]), [1, 1], [0, 0]);
                vec![z + y]
            },
            maps: 0,
        },
        Mapped {
            what: "a map that ends the convolution before it",
            build: |t, x| {
                let y = x.conv2d(weights(t, "u", &[32, 24, 1, 1]), [1, 1], [0, 0]).relu();
                vec![y.conv2d(weights(t, "v", &[32, 32, 1, 1]), [1, 1], [0, 0])]
            },
            maps: 0,
        },
    ];
    for Mapped { what, build, maps } in cases {
        let graph = trace(|t| {
            let made = build(t, t.input("x", f32([2, 24, 9, 11])));
            made.iter().enumerate().for_each(|(i, v)| t.output(&format!("y{i}"), *v));
        })
        .unwrap_or_else(|e| panic!("{e}"));
        let given: Tensors = [("x".to_string(), numbers(&[2, 24, 9, 11], 1))].into();
        let want = interpret(&graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{e}"));
        for device in descriptions() {
            let made = compile(&graph, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}"));
            let found = families(&made.program).iter().filter(|f| **f == "map").count();
            assert_eq!(found, maps, "{what}: {:?}", families(&made.program));
            let before = made.rewritten.applied().contains(&"prologue");
            assert_eq!(before, !what.ends_with("before it"), "{what}");
            let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
            let run = |threads| run(&made.program, &weights, &given, threads).unwrap_or_else(|e| panic!("{e}"));
            let have = run(1);
            assert!(have == run(3), "{what}: the number of threads changes the result");
            for ((name, have), (_, want)) in have.iter().zip(&want.outputs) {
                for (a, b) in have.values().zip(want.values()) {
                    let (a, b) = (a.as_f64(), b.as_f64());
                    // sums of at most 432 products
                    assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{what} {name}: {a}, the interpreter has {b}");
                }
            }
        }
    }
}

/// A classifier's product and softmax are one kernel.
#[test]
fn a_classifier_ends_in_one_kernel() {
    let graph = trace(|t| {
        let x = t.input("x", f32([512, 4096]));
        let w = t.param("w", egret_ir::Tensor::zeros(egret_ir::DType::F32, &[4096, 1000]));
        let b = t.param("b", numbers(&[1000], 3));
        (x.matmul(w) + b).softmax(-1)
    })
    .unwrap_or_else(|e| panic!("{e}"));
    let made = compiled(&graph, Level::Full);
    assert_eq!(families(&made.program), ["gemm"]);
}

#[test]
fn classifiers_of_models_end_in_one_kernel() {
    for name in ["light/test_light_resnet50", "light/test_light_vgg19"] {
        let Some(folder) = model(name) else { continue };
        let graph = egret_onnx::load(&folder.join("model.onnx")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let ends = graph.nodes().iter().any(|node| matches!(node.op, Op::Softmax(_)));
        let made = compiled(&graph, Level::Full);
        let families = families(&made.program);
        assert!(ends && families.last() == Some(&"gemm") && !families.contains(&"row"), "{name}: {families:?}");
    }
}

/// A sum of integers as a quantised result: scaled, rounded, moved by the zero point, saturated.
fn requantised<'t>(t: &Tracer<'t>, sum: Var<'t>) -> Var<'t> {
    let zero = t.param("zero", few(DType::U8, &[], 5));
    let scaled =
        (sum.cast(DType::F32) * t.param("scale", Tensor::scalar(egret_ir::Literal::float(0.125, DType::F32)))).round();
    (scaled + zero.cast(DType::F32)).maximum(0.0).minimum(255.0).cast(DType::U8)
}

/// Casts are steps of the program over a product's or convolution's result, on either side of what else it absorbs: sums in
/// one element type are stored in another, and a quantised model's scale, round, zero point, clip and cast are one kernel
/// with the sum. What is left before it takes the zero point off the activations; on CPUs images of row-major memory are laid
/// out in blocked channels and back besides.
#[test]
fn casts_join_the_anchor_before_them() {
    let cases: [(&str, DType, &[i64], Build, usize, &[&str]); 6] = [
        (
            "a product stored in bf16",
            DType::F32,
            &[24, 32],
            |t, x| {
                let y = x.matmul(t.param("w", few(DType::F32, &[32, 40], 2))) + t.param("b", few(DType::F32, &[40], 3));
                vec![y.cast(DType::BF16)]
            },
            1,
            &["gemm"],
        ),
        (
            "a convolution stored in f16",
            DType::F32,
            &[2, 8, 6, 6],
            |t, x| {
                let y = x.conv2d(t.param("w", few(DType::F32, &[16, 8, 3, 3], 2)), [1, 1], [1, 1]);
                vec![y.relu().cast(DType::F16)]
            },
            1,
            &["contract"],
        ),
        (
            "a product of halves read in f32",
            DType::BF16,
            &[8, 4],
            |t, x| {
                // sums of four are numbers of bf16
                let y = x.matmul(t.param("w", few(DType::BF16, &[4, 24], 2)));
                vec![y.cast(DType::F32) * 0.5 + t.param("b", few(DType::F32, &[24], 3))]
            },
            1,
            &["contract"],
        ),
        (
            "a quantised product",
            DType::U8,
            &[8, 16],
            |t, x| {
                let w = t.param("w", few(DType::I8, &[16, 24], 2)).cast(DType::I32);
                vec![requantised(t, (x.cast(DType::I32) - 3i64).matmul(w))]
            },
            2,
            &["map", "gemm"],
        ),
        (
            "a quantised product read in f32",
            DType::U8,
            &[8, 16],
            |t, x| {
                let w = t.param("w", few(DType::I8, &[16, 24], 2)).cast(DType::I32);
                let sum = (x.cast(DType::I32) - 3i64).matmul(w);
                vec![(sum.cast(DType::F32) * 0.125 + t.param("b", few(DType::F32, &[24], 3))).relu()]
            },
            2,
            &["map", "gemm"],
        ),
        (
            "a quantised convolution",
            DType::U8,
            &[2, 8, 6, 6],
            |t, x| {
                let w = t.param("w", few(DType::I8, &[16, 8, 3, 3], 2)).cast(DType::I32);
                let sum = (x.cast(DType::I32) - 3i64).conv2d(w, [1, 1], [1, 1]);
                let bias = t.param("b", few(DType::I32, &[16, 1, 1], 3));
                vec![requantised(t, sum + bias)]
            },
            2,
            &["map", "relayout", "conv", "map"],
        ),
    ];
    let gpu = DeviceDescription::named("sm_90a").expect("a shipped description");
    for (what, dtype, shape, build, kernels, on_cpu) in cases {
        let graph =
            trace(|t| build(t, t.input("x", TensorType::new(dtype, shape)))).unwrap_or_else(|e| panic!("{what}: {e}"));
        for device in descriptions().iter().chain([&gpu]) {
            let made = compile(&graph, device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
            let text = egret_ir::text::print(&made.rewritten.graph);
            let families = families(&made.program);
            // a GPU multiplies bytes as such, and takes zero points from the sums
            let fits = if device.is_cpu() { families == on_cpu } else { families.len() <= kernels };
            assert!(fits, "{what} on {}: {families:?}\n{text}", device.name);
        }
        let extents: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
        // small numbers: every sum is one of f32, and each result rounds once
        check(&graph, &[("x", few(dtype, &extents, 1))], 0.0);
    }
}
