//! Quantised networks: integers that fit 16 bits are multiplied by the loop nests of floats, exactly, those that fit a byte by
//! products of bytes where there are any, and images meet operands and results whose elements are not of 32 bits.

mod support {
    pub mod programs;
}

use egret_compiler::{CompileOptions, compile};
use egret_ir::ops::Conv;
use egret_ir::{DType, Graph, ScalarValue, Tensor, TensorType, Tracer, Var, trace};
use egret_program::DeviceDescription;
use egret_simd::words::WordUnit;
use support::programs::{check_on, descriptions, few};

fn graph(build: impl FnOnce(&Tracer<'_>)) -> Graph {
    trace(|t| build(t)).unwrap_or_else(|e| panic!("{e}"))
}

/// Numbers of the whole range of a type of 8 bits.
fn drawn(dtype: DType, shape: &[usize], seed: usize) -> Tensor {
    let mut tensor = Tensor::zeros(dtype, shape);
    for i in 0..tensor.elements() {
        let n = (((i + seed) * 2_654_435_761) >> 7) as u8;
        let n = if dtype == DType::I8 { i128::from(n as i8) } else { i128::from(n) };
        tensor.set(i, ScalarValue::Int(n));
    }
    tensor
}

fn input<'t>(t: &Tracer<'t>, name: &str, dtype: DType, shape: &[i64]) -> Var<'t> {
    t.input(name, TensorType { dtype, shape: shape.into() })
}

/// A quantised value as a number less its zero point.
fn centred<'t>(x: Var<'t>, zero: Var<'t>) -> Var<'t> {
    x.cast(DType::I32) - zero.cast(DType::I32)
}

/// A sum in u8, by a scale and a zero point.
fn requantised<'t>(sum: Var<'t>, scale: f64, zero: f64) -> Var<'t> {
    ((sum.cast(DType::F32) * scale).round() + zero).maximum(0.0).minimum(255.0).cast(DType::U8)
}

/// The descriptions of what this machine has, with products of bytes and without.
fn devices() -> Vec<DeviceDescription> {
    let bytes = WordUnit::bytes().map(|_| DeviceDescription::named("x86-64-avx512-bf16").expect("shipped"));
    descriptions().into_iter().chain(bytes).collect()
}

fn check(graph: &Graph, inputs: &[(&str, Tensor)], tolerance: f64) {
    check_on(&devices(), graph, inputs, tolerance);
}

/// How many kernels of a device with products of bytes take them, by the least of what weights are multiplied by.
fn bytes_from(graph: &Graph, low: i32) -> usize {
    let device = DeviceDescription::named("x86-64-avx512-bf16").expect("shipped");
    let program = compile(graph, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
    let is = |kernel: &egret_program::Kernel| {
        let bytes = [format!("products bytes from {low}\n"), format!("engine bytes from {low} ")];
        let text = format!("{}\n", kernel.text);
        bytes.iter().any(|bytes| text.contains(bytes))
    };
    let launches = program.launches();
    launches.iter().filter(|launch| is(program.kernel(launch.kernel))).count()
}

/// Families of the launches on a device with products of bytes.
fn families(graph: &Graph) -> Vec<String> {
    let device = DeviceDescription::named("x86-64-avx512-bf16").expect("shipped");
    let program = compile(graph, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
    program.launches().iter().map(|launch| program.kernel(launch.kernel).family.clone()).collect()
}

/// On each description `at_least` launches multiply integers that fit 16 bits, and no generated kernel multiplies.
fn runs_on_drivers(graph: &Graph, at_least: usize) {
    for device in devices() {
        let program = compile(graph, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
        let launches = program.launches();
        let kernels: Vec<_> = launches.iter().map(|launch| program.kernel(launch.kernel)).collect();
        let families: Vec<&str> = kernels.iter().map(|kernel| kernel.family.as_str()).collect();
        let of_integers = |kernel: &&egret_program::Kernel| {
            let words = kernel.text.contains("bytes from") && !kernel.text.starts_with("pack");
            kernel.text.contains("shorts") || words
        };
        let shorts = kernels.into_iter().filter(of_integers).count();
        let multiply = families.iter().filter(|family| ["conv", "gemm"].contains(family)).count();
        assert!(shorts >= at_least && shorts == multiply, "{}: {shorts} of {families:?}", device.name);
    }
}

#[test]
fn products_with_weights() {
    for (m, k, n) in [(1, 40, 33), (3, 64, 5), (37, 100, 48), (130, 17, 70)] {
        let network = graph(|t| {
            let x = input(t, "x", DType::U8, &[2, m, k]);
            let zero = input(t, "zero", DType::U8, &[]);
            let w = t.param("w", drawn(DType::I8, &[k as usize, n as usize], 1));
            let own = t.param("own", drawn(DType::I8, &[n as usize], 2));
            let sum = centred(x, zero).matmul(centred(w, own));
            t.output("sum", sum);
            t.output("quantised", requantised(sum, 0.003, 117.0));
            let scales = t.param("scales", drawn(DType::U8, &[n as usize], 3)).cast(DType::F32);
            t.output("back", sum.cast(DType::F32) * scales);
        });
        runs_on_drivers(&network, 1);
        let x = drawn(DType::U8, &[2, m as usize, k as usize], 4);
        check(&network, &[("x", x), ("zero", drawn(DType::U8, &[], 9))], 0.0);
    }
}

/// Bytes less a zero point: one that is known is in what bytes begin from, one of the run is taken from the sums.
#[test]
fn products_of_bytes_with_weights() {
    for (m, k, n) in [(1, 40, 33), (3, 64, 5), (37, 100, 48), (130, 17, 70)] {
        for (own, dtype, low) in [(None, DType::U8, 0), (None, DType::I8, -128), (Some(77i64), DType::U8, -77)] {
            let network = graph(|t| {
                let x = input(t, "x", dtype, &[2, m, k]);
                let zero = input(t, "zero", dtype, &[]);
                let x = own.map_or_else(|| centred(x, zero), |own| x.cast(DType::I32) - own);
                let w = t.param("w", drawn(DType::I8, &[k as usize, n as usize], 1)).cast(DType::I32);
                let sum = x.matmul(w);
                t.output("sum", sum);
                let scales = t.param("scales", drawn(DType::U8, &[n as usize], 3)).cast(DType::F32);
                t.output("back", sum.cast(DType::F32) * scales);
            });
            runs_on_drivers(&network, 1);
            assert!(bytes_from(&network, low) > 0, "{own:?} {dtype}");
            let x = drawn(dtype, &[2, m as usize, k as usize], 4);
            check(&network, &[("x", x), ("zero", drawn(dtype, &[], 9))], 0.0);
        }
    }
}

#[test]
fn products_of_inputs() {
    for labels in ["bmk,bkn->bmn", "bkm,bnk->bmn", "bmk,bkn->nbm", "mk,kn->mn"] {
        let shape = |labels: &str| -> Vec<i64> {
            labels
                .bytes()
                .map(|l| match l {
                    b'b' => 3,
                    b'm' => 19,
                    b'k' => 70,
                    _ => 21,
                })
                .collect()
        };
        let (a, rest) = labels.split_once(',').unwrap();
        let (a, b) = (shape(a), shape(rest.split_once("->").unwrap().0));
        let network = graph(|t| {
            let x = input(t, "a", DType::U8, &a).cast(DType::I32) - 128i64;
            let y = input(t, "b", DType::I8, &b).cast(DType::I32);
            t.output("y", x.dot_general(y, labels));
        });
        runs_on_drivers(&network, 1);
        let sizes = |shape: &[i64]| shape.iter().map(|d| *d as usize).collect::<Vec<_>>();
        let given = [("a", drawn(DType::U8, &sizes(&a), 1)), ("b", drawn(DType::I8, &sizes(&b), 2))];
        check(&network, &given, 0.0);
    }
}

/// 255 · 255 · 40,000 is beyond an i32.
#[test]
fn sums_wrap() {
    let k = 40_000usize;
    let network = graph(|t| {
        let x = input(t, "x", DType::U8, &[2, k as i64]).cast(DType::I32);
        let mut w = Tensor::zeros(DType::U8, &[k, 3]);
        (0..3 * k).for_each(|i| w.set(i, ScalarValue::Int(255)));
        t.output("y", x.matmul(t.param("w", w).cast(DType::I32)));
    });
    let mut x = Tensor::zeros(DType::U8, &[2, k]);
    (0..2 * k).for_each(|i| x.set(i, ScalarValue::Int(if i < k { 255 } else { 1 })));
    check(&network, &[("x", x)], 0.0);
}

#[test]
fn wide_integers_are_multiplied_as_such() {
    let network = graph(|t| {
        let x = input(t, "x", DType::I32, &[5, 20]);
        let w = t.param("w", drawn(DType::I8, &[20, 18], 1)).cast(DType::I32);
        t.output("y", x.matmul(w * w * w));
    });
    for device in descriptions() {
        let program = compile(&network, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
        assert!(program.kernels.iter().all(|kernel| !kernel.text.contains("shorts")));
    }
    let mut x = Tensor::zeros(DType::I32, &[5, 20]);
    (0..100).for_each(|i| x.set(i, ScalarValue::Int((i as i128 - 50) * 40_000_003)));
    check(&network, &[("x", x)], 0.0);
}

/// Convolutions by channels, output channels, kernel, stride, low and high pads, dilation and groups.
#[test]
fn convolutions() {
    let forms: [(i64, i64, [i64; 2], [i64; 2], [i64; 2], [i64; 2], [i64; 2], i64); 7] = [
        (3, 24, [3, 3], [2, 2], [1, 1], [1, 1], [1, 1], 1),
        (32, 40, [1, 1], [1, 1], [0, 0], [0, 0], [1, 1], 1),
        (20, 33, [3, 3], [1, 1], [1, 1], [1, 1], [1, 1], 1),
        (16, 16, [3, 5], [2, 1], [0, 2], [1, 2], [2, 1], 1),
        (48, 48, [3, 3], [1, 1], [1, 1], [1, 1], [1, 1], 48),
        (24, 36, [3, 3], [1, 1], [1, 1], [1, 1], [1, 1], 4),
        (64, 32, [3, 3], [1, 1], [1, 0], [0, 1], [1, 1], 2),
    ];
    for (c, o, kernel, stride, low, high, dilation, groups) in forms {
        let network = graph(|t| {
            let x = input(t, "x", DType::U8, &[2, c, 11, 13]);
            let shape = [o, c / groups, kernel[0], kernel[1]].map(|d| d as usize);
            let w = t.param("w", drawn(DType::I8, &shape, 1)).cast(DType::I32);
            let conv = Conv::forward(&stride, &low, &high, &dilation, groups);
            let sum = centred(x, t.param("zero", drawn(DType::U8, &[], 5))).conv(w, conv);
            let bias = t.param("bias", drawn(DType::I8, &[o as usize, 1, 1], 2)).cast(DType::I32);
            t.output("y", requantised(sum + bias, 0.001, 100.0));
        });
        runs_on_drivers(&network, 1);
        check(&network, &[("x", drawn(DType::U8, &[2, c as usize, 11, 13], 3))], 0.0);
    }
}

/// The zero point of an image is known, or one of the run; the sum of weights inside it then depends on the place.
#[test]
fn convolutions_of_bytes() {
    for (own, low) in [(Some(131i64), -131), (None, 0)] {
        let network = graph(|t| {
            let x = input(t, "x", DType::U8, &[2, 40, 11, 13]);
            let zero = input(t, "zero", DType::U8, &[]);
            let x = own.map_or_else(|| centred(x, zero), |own| x.cast(DType::I32) - own);
            let w = t.param("w", drawn(DType::I8, &[36, 40, 3, 3], 1)).cast(DType::I32);
            let sum = x.conv(w, Conv::forward(&[2, 1], &[1, 0], &[1, 2], &[1, 1], 1));
            t.output("y", requantised(sum, 0.001, 100.0));
        });
        runs_on_drivers(&network, 1);
        assert_eq!(bytes_from(&network, low), 1, "{own:?}");
        check(&network, &[("x", drawn(DType::U8, &[2, 40, 11, 13], 3)), ("zero", drawn(DType::U8, &[], 9))], 0.0);
    }
}

/// Quantised to quantised, as in a network: nothing between two convolutions leaves 32 bits, nor blocked channels.
#[test]
fn networks_of_convolutions() {
    let network = graph(|t| {
        let mut x = input(t, "x", DType::U8, &[1, 3, 18, 18]);
        for (i, (c, o, stride)) in [(3, 32, 2), (32, 32, 1), (32, 32, 1), (32, 16, 1)].into_iter().enumerate() {
            let w = t.param(&format!("w{i}"), drawn(DType::I8, &[o, c, 3, 3], i)).cast(DType::I32);
            let sum = (x.cast(DType::I32) - 99i64).conv(w, Conv::forward(&[stride; 2], &[1, 1], &[1, 1], &[1, 1], 1));
            x = requantised(sum, 0.0007, 99.0);
        }
        t.output("y", x);
    });
    runs_on_drivers(&network, 4);
    check(&network, &[("x", drawn(DType::U8, &[1, 3, 18, 18], 3))], 0.0);
}

/// What an epilogue reads beside the image may be of any type.
#[test]
fn operands_of_an_epilogue_of_any_size() {
    for dtype in [DType::Bool, DType::U8, DType::I16, DType::F16, DType::I64, DType::F64] {
        let network = graph(|t| {
            let x = t.input("x", egret_ir::f32([2, 8, 6, 7]));
            let other = input(t, "other", dtype, &[2, 20, 6, 7]);
            let w = t.param("w", few(DType::F32, &[20, 8, 3, 3], 1));
            let y = x.conv(w, Conv::forward(&[1, 1], &[1, 1], &[1, 1], &[1, 1], 1));
            t.output("y", if dtype == DType::Bool { other.select(y, y * 0.5) } else { y + other.cast(DType::F32) });
        });
        let mut other = few(dtype, &[2, 20, 6, 7], 3);
        if dtype == DType::Bool {
            (0..other.elements()).for_each(|i| other.set(i, ScalarValue::Bool(i % 3 == 1)));
        }
        check(&network, &[("x", few(DType::F32, &[2, 8, 6, 7], 2)), ("other", other)], 1e-5);
    }
}

/// An image that is quantised, and read as such more than once.
#[test]
fn quantised_results_of_floats() {
    let network = graph(|t| {
        let x = t.input("x", egret_ir::f32([1, 8, 9, 7]));
        let conv = Conv::forward(&[1, 1], &[1, 1], &[1, 1], &[1, 1], 1);
        let y = x.conv(t.param("w", few(DType::F32, &[20, 8, 3, 3], 1)), conv.clone());
        let q = (y * 4.0).round().maximum(-128.0).minimum(127.0).cast(DType::I8);
        let back = q.cast(DType::F32) * 0.25;
        let z = back.conv(t.param("v", few(DType::F32, &[20, 20, 3, 3], 2)), conv);
        t.output("q", q);
        t.output("z", (z + back).relu());
    });
    check(&network, &[("x", few(DType::F32, &[1, 8, 9, 7], 2))], 1e-5);
}

/// Powers of two, so that floats scaled by them are exact.
fn scales(shape: &[usize]) -> Tensor {
    let mut tensor = Tensor::zeros(DType::F32, shape);
    (0..tensor.elements()).for_each(|i| tensor.set(i, ScalarValue::Float(2f64.powi(-4 - (i % 3) as i32))));
    tensor
}

/// A network as quantisers export it: numbers become bytes and scaled floats again before each operator. The operators
/// multiply the bytes: sums of fewer than 2⁹ terms, which floats hold too.
#[test]
fn scaled_integers_are_multiplied_as_integers() {
    let network = |channels: i64| {
        graph(|t| {
            let weights = |name: &str, shape: &[usize], of: &[usize]| {
                let integers = t.param(name, drawn(DType::I8, shape, name.len())).cast(DType::I32).cast(DType::F32);
                integers * t.param(&format!("{name} scales"), scales(of))
            };
            let c = channels as usize;
            let x = (input(t, "x", DType::U8, &[2, channels, 6, 7]).cast(DType::I32) - 117).cast(DType::F32) * 0.25;
            let conv = Conv::forward(&[1, 1], &[1, 1], &[1, 1], &[1, 1], 1);
            let again = |y| (requantised(y, 1.0 / 64.0, 3.0).cast(DType::I32) - 3).cast(DType::F32) * 64.0;
            let y = x.conv(weights("w", &[40, c, 3, 3], &[40, 1, 1, 1]), conv.clone()).relu();
            t.output("y", y);
            // what a pool makes of an image is quantised in its kernel
            let pooled = again(again(y).max_pool(&[2, 2], &[1, 1], &[0, 0]));
            let again = again(pooled.conv(weights("again", &[40, 40, 3, 3], &[1]), conv) / 512.0);
            let corner = (again.slice(2, 0i64, 1i64, 1).slice(3, 0i64, 1i64, 1).reshape([2i64, 40]) / 64.0)
                .round()
                .maximum(-128.0)
                .minimum(127.0)
                .cast(DType::I8);
            let rows = corner.cast(DType::F32) * t.input("run's scale", egret_ir::f32([1]));
            t.output("z", rows.matmul(weights("columns", &[40, 21], &[21])));
        })
    };
    let inputs = |channels: usize| [("x", drawn(DType::U8, &[2, channels, 6, 7], 3)), ("run's scale", scales(&[1]))];
    let quantised = network(40);
    check(&quantised, &inputs(40), 0.0);
    // the first begins with its zero point, the product has none
    assert_eq!([-117, -3, -128].map(|low| bytes_from(&quantised, low)), [1, 1, 1]);
    let pools = families(&quantised).into_iter().filter(|family| ["window", "pool"].contains(&family.as_str()));
    assert_eq!(pools.collect::<Vec<String>>(), ["pool"]);
    // a quad that would be mostly empty is no gain
    let few = network(16);
    check(&few, &inputs(16), 0.0);
    assert_eq!([-117, -3, -128].map(|low| bytes_from(&few, low)), [0, 1, 1]);
}

/// Sums that could leave `i32`, weights of a run, and results that must be as the reference rounds them stay floats.
#[test]
fn scaled_integers_that_stay_floats() {
    let product = |terms: i64, known: bool, exact: bool| {
        let network = graph(|t| {
            let x = input(t, "x", DType::U8, &[3, terms]).cast(DType::F32) * 0.5;
            let shape = [terms, 32];
            let w = match known {
                true => t.param("w", drawn(DType::I8, &shape.map(|n| n as usize), 1)),
                false => input(t, "w", DType::I8, &shape),
            };
            t.output("y", x.matmul(w.cast(DType::F32) * 0.5));
        });
        let device = DeviceDescription::named("x86-64-avx512-bf16").expect("shipped");
        let options = CompileOptions { exact, ..CompileOptions::default() };
        let program = compile(&network, &device, &options).unwrap_or_else(|e| panic!("{e}")).program;
        program.kernels.iter().any(|kernel| kernel.text.contains("bytes from"))
    };
    assert!(product(64, true, false));
    assert!(!product(64, true, true) && !product(64, false, false) && !product(70_000, true, false));
}
