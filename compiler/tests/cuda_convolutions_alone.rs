//! Convolutions between row-major values: by tensor cores, from images as they lie or from copies with channels last,
//! whichever the model thinks faster; on the simulator against the interpreter.

#[path = "support/drawn.rs"]
mod drawn;
#[path = "support/nvrtc.rs"]
mod nvrtc;
#[path = "support/orders.rs"]
mod orders;
#[path = "support/simulate.rs"]
mod simulate;

use std::sync::Arc;

use egret_compiler::{CompileOptions, F32Products, compile};
use egret_ir::bound::interpret_bounded;
use egret_ir::ops::{Conv, ConvForm};
use egret_ir::{Bindings, DType, Dim, Graph, Literal, Shape, Tensor, TensorType, Tensors, Weight, interpret, trace};
use egret_program::{DeviceDescription, Program};
use egret_runtime::cuda::{Cache, Device, Executable, LoadOptions};
use orders::{check, compare, of, program};

const BF16: DType = DType::BF16;

/// A square window, its stride and its padding, and groups.
fn conv(stride: i64, padding: i64, groups: i64) -> Conv {
    Conv::forward(&[stride; 2], &[padding; 2], &[padding; 2], &[1, 1], groups)
}

/// A convolution with a bias and a rectifier.
fn forward(dtype: DType, conv: Conv, x: [i64; 4], w: [i64; 4]) -> Graph {
    let graph = trace(|t| {
        let y = t.input("x", of(dtype, x)).conv(t.input("w", of(dtype, w)), conv);
        (y + t.input("bias", of(dtype, [w[0], 1, 1]))).relu()
    });
    graph.unwrap()
}

/// Extents of a convolution's result.
fn result(conv: &Conv, x: [i64; 4], w: [i64; 4]) -> [i64; 4] {
    let along = |i: usize| {
        let room = x[2 + i] + conv.pad_low[i] + conv.pad_high[i] - (w[2 + i] - 1) * conv.dilation[i] - 1;
        room / conv.stride[i] + 1
    };
    [x[0], w[0], along(0), along(1)]
}

/// The gradient of the image alone.
fn input_gradient(dtype: DType, conv: Conv, x: [i64; 4], w: [i64; 4]) -> Graph {
    let dy = result(&conv, x, w);
    let graph = trace(|t| {
        let extent: Shape = [x[2], x[3]].into_iter().map(Dim::from).collect();
        let form = Conv { form: ConvForm::InputGrad, extent, ..conv };
        t.input("dy", of(dtype, dy)).conv(t.input("w", of(dtype, w)), form)
    });
    graph.unwrap()
}

/// The gradient of the weights alone.
fn weight_gradient(dtype: DType, conv: Conv, x: [i64; 4], w: [i64; 4]) -> Graph {
    let dy = result(&conv, x, w);
    let graph = trace(|t| {
        let extent: Shape = [w[2], w[3]].into_iter().map(Dim::from).collect();
        let form = Conv { form: ConvForm::WeightGrad, extent, ..conv };
        t.input("x", of(dtype, x)).conv(t.input("dy", of(dtype, dy)), form)
    });
    graph.unwrap()
}

/// Kernels by family: products of tensor cores, others that multiply, and copies.
fn kernels(program: &Program) -> [usize; 3] {
    let mut count = [0; 3];
    for launch in program.launches() {
        let kernel = program.kernel(launch.kernel);
        let of = match (kernel.text.contains("multiply "), kernel.name.contains("conv")) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        };
        count[of] += 1;
    }
    count
}

/// Window of 3, of 1, of 7 over three channels with stride 2, with groups, and of 4, whose taps are whole vectors.
fn cases() -> [(&'static str, Conv, [i64; 4], [i64; 4]); 6] {
    [
        ("3x3", conv(1, 1, 1), [2, 16, 6, 8], [24, 16, 3, 3]),
        ("1x1", conv(1, 0, 1), [2, 24, 4, 6], [16, 24, 1, 1]),
        ("1x1 strided", conv(2, 0, 1), [1, 16, 7, 8], [16, 16, 1, 1]),
        ("7x7", conv(2, 3, 1), [1, 3, 20, 18], [16, 3, 7, 7]),
        ("grouped", conv(1, 1, 2), [1, 32, 5, 8], [32, 16, 3, 3]),
        ("4x4", conv(2, 1, 1), [1, 8, 10, 16], [16, 8, 4, 4]),
    ]
}

#[test]
fn halves_run_on_tensor_cores() {
    for (name, conv, x, w) in cases() {
        check(name, &forward(BF16, conv, x, w), F32Products::Fma, false);
    }
}

#[test]
fn gradients_of_images_run_on_tensor_cores() {
    for (name, conv, x, w) in cases().into_iter().filter(|(_, _, x, _)| x[1] >= 8) {
        check(&format!("{name} image"), &input_gradient(DType::F16, conv, x, w), F32Products::Fma, false);
    }
}

#[test]
fn gradients_of_weights_run_on_tensor_cores() {
    for (name, conv, x, w) in cases() {
        check(&format!("{name} weights"), &weight_gradient(BF16, conv, x, w), F32Products::Fma, false);
    }
}

/// Sums of integers on tensor cores are the very ones of the interpreter.
fn exact(name: &str, graph: &Graph) {
    let program = program(graph, F32Products::Fma);
    assert_eq!(kernels(&program)[..2], [1, 0], "{name}");
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let simulated = simulate::Simulated::new(nvrtc, &program, &|text| text.to_string());
    let (inputs, _) = orders::inputs(graph);
    let tensors: Tensors = inputs.iter().cloned().collect();
    let want = interpret(graph, &tensors, &Tensors::new()).unwrap().outputs;
    let given: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
    for order in simulate::everywhere() {
        let (have, _) =
            simulated.run(&given, &Bindings::default(), order, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (bytes, (output, want)) in have.iter().zip(&want) {
            assert!(bytes == want.bytes(), "{name} {output} {order:?}");
        }
    }
}

#[test]
fn bytes_and_tf32_run_on_tensor_cores() {
    let [plain, one, _, first, ..] = cases();
    for (name, conv, x, w) in [plain, one, first] {
        let graph = forward(DType::F32, conv.clone(), x, w);
        check(&format!("{name} tf32x3"), &graph, F32Products::Tf32x3, false);
        let graph = trace(|t| {
            let conv = Conv { wide: true, ..conv };
            t.input("x", of(DType::U8, x)).conv(t.input("w", of(DType::I8, w)), conv)
        });
        exact(&format!("{name} bytes"), &graph.unwrap());
    }
}

#[test]
fn what_follows_stays_row_major() {
    // a bias, a sum with an image, a second result
    let graph = trace(|t| {
        let x = t.input("x", of(BF16, [2, 16, 8, 8]));
        let y = x.conv2d(t.input("w", of(BF16, [16, 16, 3, 3])), [1, 1], [1, 1]);
        let y = y + t.input("bias", of(BF16, [16, 1, 1])) + x;
        vec![y.relu(), y.reduce_sum(&[3], false)]
    });
    check("followed", &graph.unwrap(), F32Products::Fma, false);
}

#[test]
fn batches_and_images_of_any_size() {
    let free = |shape: [Dim; 4]| TensorType { dtype: BF16, shape: shape.into_iter().collect() };
    let graphs = [
        ("batch", [Dim::symbol_in("batch", 1, 128), 8.into(), 5.into(), 8.into()]),
        ("image", [1.into(), 8.into(), Dim::symbol_in("height", 4, 96), Dim::symbol_in("width", 4, 96)]),
    ];
    for (name, shape) in graphs {
        for (window, padding) in [(3, 1), (1, 0)] {
            let graph = trace(|t| {
                let x = t.input("x", free(shape.clone()));
                let y = x.conv2d(t.input("w", of(BF16, [8, 8, window, window])), [1, 1], [padding; 2]).relu();
                y.conv2d(t.input("v", of(BF16, [8, 8, 3, 3])), [2, 2], [1, 1])
            });
            let graph = graph.unwrap();
            let program = program(&graph, F32Products::Fma);
            assert_eq!(kernels(&program)[..2], [2, 0], "{name} {window}");
            compare(&format!("{name} {window}"), &graph, &program, false);
        }
    }
}

fn compiled(graph: &Graph, device: &DeviceDescription) -> Program {
    compile(graph, device, &CompileOptions::default()).unwrap().program
}

/// Images of 56 × 56 and 64 channels: taps that are shifted are read from a copy, where a batch is worth it.
#[test]
fn copies_are_made_where_they_pay() {
    let device = DeviceDescription::named("a100").unwrap();
    // weights are turned when they are loaded
    let loaded = |x: [i64; 4], window: i64, stride: i64| {
        let shape = [64, x[1], window, window].map(|n| n as usize).to_vec();
        let weights = Weight::Fill { value: Literal::float(0.5, BF16), shape };
        trace(|t| t.input("x", of(BF16, x)).conv(t.param("w", weights.clone()), conv(stride, window / 2, 1)).relu())
            .unwrap()
    };
    let layer = |batch: i64, window: i64| loaded([batch, 64, 56, 56], window, 1);
    let found = |batch, window| kernels(&compiled(&layer(batch, window), &device));
    assert_eq!(found(32, 3), [1, 0, 1]);
    // pixels are neighbours as they lie
    assert_eq!(found(32, 1), [1, 0, 0]);
    // nor is an image of three channels copied
    assert_eq!(kernels(&compiled(&loaded([32, 3, 224, 224], 7, 2), &device)), [1, 0, 0]);
    // launches that take long, and slow memory, outweigh the same copies
    let mut slow = device.clone();
    slow.launch_us = 1e3;
    assert_eq!(kernels(&compiled(&layer(32, 3), &slow)), [1, 0, 0]);
    let mut narrow = device;
    narrow.memory_gbps /= 64.0;
    assert_eq!(kernels(&compiled(&layer(32, 3), &narrow)), [1, 0, 0]);
}

/// Copies of images read and write whole sectors, and meet in no bank of shared memory.
#[test]
fn copies_touch_what_they_need() {
    let mut device = DeviceDescription::named("sm_80").unwrap();
    device.launch_us = 0.0;
    let graph = forward(BF16, conv(1, 1, 1), [2, 64, 16, 16], [64, 64, 3, 3]);
    let program = compiled(&graph, &device);
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let simulated = simulate::Simulated::new(nvrtc, &program, &|text| text.to_string());
    let given: Vec<Tensor> = orders::inputs(&graph).0.into_iter().map(|(_, tensor)| tensor).collect();
    let order = simulate::everywhere().next().unwrap();
    let (_, reports) = simulated.run(&given, &Bindings::default(), order, Some(&[0, 3])).unwrap();
    let mut found = 0;
    for (launch, report) in program.launches().iter().zip(&reports) {
        let text = &program.kernel(launch.kernel).text;
        // a copy by tiles has three axes of its grid
        if !text.contains("multiply") && text.contains("grid v2") {
            found += 1;
            for line in &report.lines {
                assert_eq!((line.sectors, line.wavefronts), (line.least_sectors, line.least_wavefronts), "{line:?}");
            }
        }
    }
    assert_eq!(found, 1);
}

/// Weights that are known when they are loaded lie with channels last then, so that a stage has the terms of one tap, of
/// an image as it lies.
#[test]
fn weights_are_turned_when_they_are_loaded() {
    let conv = Conv::forward(&[1, 1], &[0, 1], &[0, 1], &[1, 1], 1);
    let shapes = ([1, 32, 12, 10], [16, 32, 1, 3]);
    let weights = drawn::drawn(BF16, &shapes.1.map(|n| n as usize), 3, 1.0, 5);
    let graph = trace(|t| t.input("x", of(BF16, shapes.0)).conv(t.param("w", weights.clone()), conv.clone()).relu());
    let graph = graph.unwrap();
    let program = program(&graph, F32Products::Fma);
    assert_eq!(kernels(&program), [1, 0, 0]);
    assert!(!program.prepare.is_empty());
    if nvrtc::nvrtc().is_none() {
        return;
    }
    let device = Device::simulated(&DeviceDescription::named("sm_80").unwrap()).unwrap();
    let options = LoadOptions { cache: Cache::at(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")) };
    let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
    let exe = Executable::load(Arc::new(program), &device, &weights, &options).unwrap_or_else(|e| panic!("{e}"));
    let mut session = exe.session().unwrap();
    let inputs = orders::inputs(&graph).0;
    let want = interpret_bounded(&graph, &inputs.iter().cloned().collect()).unwrap();
    let have = session.run(&[("x", &inputs[0].1)]).unwrap();
    let have = have.at(0).unwrap().to_tensor();
    let bounded = &want[0].1;
    for ((x, y), error) in have.values().zip(bounded.value.values()).zip(&bounded.error) {
        assert!((x.as_f64() - y.as_f64()).abs() <= 4.0 * error, "{x:?} {y:?}");
    }
}

/// Depthwise convolutions stay a thread an element, and nothing is copied for them.
#[test]
fn depthwise_images_are_not_copied() {
    let graph = forward(BF16, conv(1, 1, 64), [32, 64, 56, 56], [64, 1, 3, 3]);
    let device = DeviceDescription::named("a100").unwrap();
    let all = kernels(&compiled(&graph, &device));
    assert_eq!((all[0], all.iter().sum::<usize>()), (0, 1));
}
