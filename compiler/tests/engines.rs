//! Convolutions on Winograd's engine, and products in bf16: which are, what their programs say, and how far they are from the
//! interpreter.

mod support {
    pub mod host;
    pub mod programs;
}

use egret_compiler::{CompileOptions, F32Products, Winograd, compile};
use egret_ir::{Graph, Tensor, Tensors, f32, interpret, trace};
use egret_program::{DeviceDescription, Program};
use egret_simd::winograd::matrices;
use egret_simd::words::WordUnit;
use support::host::random;
use support::programs::{descriptions, run};

/// `relu(conv(x, w) + b)`, then `relu(conv(·, v) + x)`, of `channels` at `extent`, padding 1.
fn block(batch: i64, channels: usize, extent: i64) -> Graph {
    let filter = |seed| random(&[channels, channels, 3, 3], seed);
    let graph = trace(|t| {
        let x = t.input("x", f32([batch, channels as i64, extent, extent]));
        let y = x.conv2d(t.param("w", filter(1)), [1, 1], [1, 1]);
        let y = (y + t.param("b", random(&[1, channels, 1, 1], 2))).relu();
        (y.conv2d(t.param("v", filter(3)), [1, 1], [1, 1]) + x).relu()
    });
    graph.unwrap_or_else(|e| panic!("{e}"))
}

/// One convolution with an epilogue that registers do not hold.
fn gelu(channels: usize, extent: i64) -> Graph {
    let graph = trace(|t| {
        let x = t.input("x", f32([1, channels as i64, extent, extent]));
        x.conv2d(t.param("w", random(&[channels, channels, 3, 3], 1)), [1, 1], [1, 1]).gelu()
    });
    graph.unwrap_or_else(|e| panic!("{e}"))
}

fn program(graph: &Graph, device: &DeviceDescription, winograd: Winograd, exact: bool) -> Program {
    let options = CompileOptions { winograd, exact, ..CompileOptions::default() };
    compile(graph, device, &options).unwrap_or_else(|e| panic!("{e}")).program
}

/// Launches whose kernel's text names an engine.
fn engines(program: &Program, engine: &str) -> usize {
    let named = |text: &str| text.contains(&format!("engine {engine}"));
    program.launches().iter().filter(|launch| named(&program.kernel(launch.kernel).text)).count()
}

#[test]
fn layers_of_networks_and_no_others() {
    let device = DeviceDescription::named("x86-64-avx512").expect("shipped");
    for (channels, extent) in [(64, 56), (128, 28), (256, 14)] {
        let graph = block(1, channels, extent);
        let made = program(&graph, &device, Winograd::F2, false);
        assert_eq!(engines(&made, "winograd F(2x2, 3x3)"), 2, "{channels} at {extent}");
        let direct = program(&graph, &device, Winograd::Off, false);
        assert_eq!((engines(&direct, "direct"), engines(&direct, "winograd")), (2, 0));
        assert_eq!(made.launches().len(), direct.launches().len());
        let families = made.launches().iter().filter(|l| made.kernel(l.kernel).family == "winograd").count();
        assert_eq!(families, 2);
        assert_eq!(engines(&program(&graph, &device, Winograd::F4, true), "winograd"), 0, "exact");
    }
    assert_eq!(engines(&program(&block(1, 64, 56), &device, Winograd::F4, false), "winograd F(4x4, 3x3)"), 2);
    for (channels, extent) in [(8, 56), (16, 28), (512, 2)] {
        let made = program(&block(1, channels, extent), &device, Winograd::F2, false);
        assert_eq!(engines(&made, "winograd"), 0, "{channels} at {extent}");
    }
}

/// Filters that a run makes would have to be transformed in it.
#[test]
fn filters_of_a_run_are_summed_directly() {
    let device = DeviceDescription::named("x86-64-avx512").expect("shipped");
    let graph = trace(|t| {
        let x = t.input("x", f32([1, 64, 56, 56]));
        x.conv2d(t.input("w", f32([64, 64, 3, 3])), [1, 1], [1, 1])
    });
    assert_eq!(engines(&program(&graph.unwrap(), &device, Winograd::F2, false), "winograd"), 0);
}

/// Within the bound of the method, of every element: `growth² · γ · Σ |w| · max |x|` of the roundings of a sum of so many
/// channels and of the transforms. Every instruction set, with equal bits for any number of threads.
#[test]
fn within_the_bound_of_the_method() {
    for (winograd, m) in [(Winograd::F2, 2), (Winograd::F4, 4)] {
        let cases = [(gelu(96, 15), 1.13), (one_layer(2, 64, 18), 1.0)];
        for (graph, slope) in cases {
            let x_shape: Vec<usize> =
                graph.tensor_type(graph.inputs()[0]).shape.iter().map(|d| d.as_const().unwrap_or(1) as usize).collect();
            let given: Tensors = [("x".to_string(), random(&x_shape, 7))].into();
            let want = &interpret(&graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{e}")).outputs[0].1;
            let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
            let filters = weights("w").expect("a param");
            let of_output: Vec<f64> = filters.values().map(|w| w.as_f64().abs()).collect();
            let largest = of_output.chunks(x_shape[1] * 9).map(|w| w.iter().sum()).fold(0.0, f64::max);
            let steps = (x_shape[1] + 1 + 13 + 2) as f64 * f64::from(f32::EPSILON) / 2.0;
            let growth = matrices(m).expect("there is one").growth().powi(2);
            // what is added to the sum, and the function of it, each round once more
            let bound = growth * steps / (1.0 - steps) * slope * (largest + 2.0);
            for device in descriptions() {
                let program = program(&graph, &device, winograd, false);
                assert_eq!(engines(&program, "winograd"), 1, "{}", device.name);
                let mut all = Vec::new();
                for threads in 1..=3 {
                    let outputs = run(&program, &weights, &given, threads).unwrap_or_else(|e| panic!("{e}"));
                    all.push(outputs.into_iter().next().expect("one output").1);
                }
                assert!(all.iter().all(|other| *other == all[0]), "{}: equal bits", device.name);
                let squares = |tensor: &Tensor| -> f64 { tensor.values().map(|v| v.as_f64().powi(2)).sum() };
                let mut error = 0.0;
                for (have, want) in all[0].values().zip(want.values()) {
                    let difference = (have.as_f64() - want.as_f64()).abs();
                    assert!(difference <= bound, "{}: {difference:e} beyond {bound:e}", device.name);
                    error += difference * difference;
                }
                // what the options promise of the whole result
                let relative = (error / squares(want)).sqrt();
                assert!(relative < if m == 2 { 1e-6 } else { 1e-5 }, "{}: {relative:e}", device.name);
            }
        }
    }
}

/// `relu(conv(x, w) + b)`, two batch items.
fn one_layer(batch: i64, channels: usize, extent: i64) -> Graph {
    let graph = trace(|t| {
        let x = t.input("x", f32([batch, channels as i64, extent, extent]));
        let y = x.conv2d(t.param("w", random(&[channels, channels, 3, 3], 1)), [1, 1], [1, 1]);
        (y + t.param("b", random(&[1, channels, 1, 1], 2))).relu()
    });
    graph.unwrap_or_else(|e| panic!("{e}"))
}

/// A convolution, and a product of its pooled result, with biases.
fn classifier() -> Graph {
    let graph = trace(|t| {
        let x = t.input("x", f32([2, 60, 9, 9]));
        let y = x.conv2d(t.param("w", random(&[60, 60, 3, 3], 1)), [1, 1], [1, 1]);
        (y + t.param("b", random(&[1, 60, 1, 1], 2))).relu()
    });
    graph.unwrap_or_else(|e| panic!("{e}"))
}

fn projection() -> Graph {
    let graph = trace(|t| {
        let x = t.input("x", f32([33, 70]));
        (x.matmul(t.param("w", random(&[70, 52], 1))) + t.param("b", random(&[52], 2))).relu()
    });
    graph.unwrap_or_else(|e| panic!("{e}"))
}

fn in_bf16(exact: bool) -> CompileOptions {
    CompileOptions { products: F32Products::Bf16, exact, ..CompileOptions::default() }
}

#[test]
fn bf16_where_it_is_asked_for_and_there() {
    let device = DeviceDescription::named("x86-64-avx512-bf16").expect("shipped");
    let kernels = |graph: &Graph, options: &CompileOptions| {
        let program = compile(graph, &device, options).unwrap_or_else(|e| panic!("{e}")).program;
        program.kernels.iter().filter(|kernel| kernel.text.contains("bf16")).count()
    };
    // each reads weights that are packed for it
    assert_eq!((kernels(&classifier(), &in_bf16(false)), kernels(&projection(), &in_bf16(false))), (2, 2));
    for options in [CompileOptions::default(), in_bf16(true)] {
        assert_eq!((kernels(&classifier(), &options), kernels(&projection(), &options)), (0, 0));
    }
    for name in ["x86-64-avx512", "x86-64-portable", "sm_90a"] {
        let device = DeviceDescription::named(name).expect("shipped");
        let error = compile(&projection(), &device, &in_bf16(false)).err().expect("it has none");
        assert!(error.code == "E0466" && error.message.contains(name), "{error}");
    }
}

/// Each of two operands is off by 2⁻⁸ of itself at most, and sums round in f32.
#[test]
fn bf16_is_within_its_rounding() {
    if WordUnit::bf16().is_none() {
        return println!("skipped: this processor has no products of bf16");
    }
    let device = DeviceDescription::named("x86-64-avx512-bf16").expect("shipped");
    for (graph, terms) in [(classifier(), 40 * 9), (projection(), 70)] {
        let shape = &graph.tensor_type(graph.inputs()[0]).shape;
        let shape: Vec<usize> = shape.iter().map(|d| d.as_const().unwrap_or(1) as usize).collect();
        let given: Tensors = [("x".to_string(), random(&shape, 7))].into();
        let want = &interpret(&graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{e}")).outputs[0].1;
        let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
        let program = compile(&graph, &device, &in_bf16(false)).unwrap_or_else(|e| panic!("{e}")).program;
        let mut all = Vec::new();
        for threads in 1..=3 {
            let outputs = run(&program, &weights, &given, threads).unwrap_or_else(|e| panic!("{e}"));
            all.push(outputs.into_iter().next().expect("one output").1);
        }
        assert!(all.iter().all(|other| *other == all[0]), "equal bits");
        // operands and bias are at most 1
        let size = f64::from(terms) + 1.0;
        let rounding = 2.0 * 2f64.powi(-8) + 2f64.powi(-16) + size * f64::from(f32::EPSILON);
        let mut most = 0f64;
        for (have, want) in all[0].values().zip(want.values()) {
            most = most.max((have.as_f64() - want.as_f64()).abs());
        }
        assert!(most <= rounding * size, "{most:e} beyond {:e}", rounding * size);
        assert!(most > 1e-5, "nothing was rounded to bf16: {most:e}");
    }
}
