//! Convolutions by tensor cores, in channels-last memory: on the simulator against the interpreter, and what their layout
//! costs.

#[path = "support/drawn.rs"]
mod drawn;
#[path = "support/nvrtc.rs"]
mod nvrtc;
#[path = "support/orders.rs"]
mod orders;
#[path = "support/simulate.rs"]
mod simulate;

use egret_compiler::{CompileOptions, F32Products, compile};
use egret_ir::ops::Conv;
use egret_ir::{Bindings, DType, Graph, trace};
use egret_program::{DeviceDescription, Place, Program};
use orders::{check, compare, multiplies, of, program};

const BF16: DType = DType::BF16;

/// A block of a residual network, with the pool before it and the mean after it.
fn residual(dtype: DType, batch: i64, channels: i64, size: i64) -> Graph {
    let graph = trace(|t| {
        let c = channels;
        let x = t.input("x", of(dtype, [batch, 3, 2 * size, 2 * size]));
        let stem = x.conv2d(t.input("s", of(dtype, [c, 3, 7, 7])), [1, 1], [3, 3]).relu();
        let x = stem.max_pool(&[3, 3], &[2, 2], &[1, 1]);
        let y = x.conv2d(t.input("v", of(dtype, [c / 2, c, 1, 1])), [1, 1], [0, 0]);
        let y = (y + t.input("bias", of(dtype, [c / 2, 1, 1]))).relu();
        let y = y.conv2d(t.input("w", of(dtype, [c / 2, c / 2, 3, 3])), [1, 1], [1, 1]).relu();
        let y = y.conv2d(t.input("u", of(dtype, [c, c / 2, 1, 1])), [1, 1], [0, 0]);
        (y + x).relu().reduce_mean(&[2, 3], false)
    });
    graph.unwrap()
}

/// Two convolutions of a concatenation that is normed and rectified before each, once with padding.
fn normed(channels: i64, size: i64) -> Graph {
    let graph = trace(|t| {
        let (c, dtype) = (channels, DType::F32);
        let x = t.input("x", of(dtype, [2, c, size, size]));
        let stem = x.conv2d(t.input("s", of(dtype, [c, c, 1, 1])), [1, 1], [0, 0]);
        let both = t.concat(&[stem, x], 1);
        let normed = |i: i32| {
            let by_channel = |name: &str| t.input(&format!("{name}{i}"), of(dtype, [2 * c, 1, 1]));
            (both * by_channel("scale") + by_channel("shift")).relu()
        };
        let y = normed(0).conv2d(t.input("v", of(dtype, [8, 2 * c, 1, 1])), [1, 1], [0, 0]);
        let z = normed(1).conv2d(t.input("w", of(dtype, [8, 2 * c, 3, 3])), [2, 2], [1, 1]);
        vec![y, z, both]
    });
    graph.unwrap()
}

/// Maps before convolutions are computed where these read: padding is not mapped, in either layout and by either engine.
#[test]
fn prologues_join_convolutions() {
    let graph = normed(16, 7);
    let device = DeviceDescription::named("sm_80").unwrap();
    let rewritten = compile(&graph, &device, &CompileOptions::default()).unwrap().rewritten.graph;
    let mapped = |node: &egret_ir::Node| matches!(&node.op, egret_ir::Op::Fused(fused) if fused.prologue.is_some());
    assert!(rewritten.nodes().iter().any(mapped), "{}", egret_ir::text::print(&rewritten));
    for products in [F32Products::Fma, F32Products::Tf32x3] {
        compare(&format!("prologue {products:?}"), &graph, &program(&graph, products), false);
    }
}

/// Launches whose kernels have such a text.
fn count(program: &Program, text: &str) -> usize {
    program.launches().iter().filter(|launch| program.kernel(launch.kernel).text.contains(text)).count()
}

#[test]
fn a_residual_block_keeps_channels_last() {
    let graph = residual(BF16, 2, 32, 8);
    let program = program(&graph, F32Products::Fma);
    assert_eq!(count(&program, "multiply bf16"), 4);
    check("residual", &graph, F32Products::Fma, false);
}

#[test]
fn f32_images_are_the_same_either_way() {
    check("residual tf32x3", &residual(DType::F32, 1, 16, 6), F32Products::Tf32x3, false);
}

/// `forward` of a convolution and the gradients of both operands.
fn trained(conv: Conv, x: [i64; 4], w: [i64; 4]) -> Graph {
    let graph = trace(|t| {
        let outputs = w[0];
        let (x, w) = (t.input("x", of(BF16, x)), t.input("w", of(BF16, w)));
        let y = x.conv(w, conv.clone()).relu();
        // a convolution on either side keeps images where they are
        let z =
            y.conv(t.input("v", of(BF16, [8, outputs, 1, 1])), Conv::forward(&[1, 1], &[0, 0], &[0, 0], &[1, 1], 1));
        let loss = (z * z).cast(DType::F32).sum();
        let grads = t.grad(loss, &[x, w]);
        vec![loss, grads[0], grads[1]]
    });
    graph.unwrap()
}

#[test]
fn forward_and_both_gradients() {
    let cases = [
        ("padded", Conv::forward(&[1, 1], &[1, 1], &[1, 1], &[1, 1], 1), [2, 32, 7, 9], [40, 32, 3, 3]),
        ("strided", Conv::forward(&[2, 2], &[1, 0], &[1, 2], &[1, 1], 1), [1, 32, 9, 8], [32, 32, 3, 3]),
        ("dilated", Conv::forward(&[1, 2], &[2, 2], &[2, 2], &[2, 2], 1), [1, 32, 9, 9], [32, 32, 3, 3]),
        ("grouped", Conv::forward(&[1, 1], &[1, 1], &[1, 1], &[1, 1], 2), [1, 64, 6, 6], [32, 32, 3, 3]),
    ];
    for (name, conv, x, w) in cases {
        check(name, &trained(conv, x, w), F32Products::Fma, false);
    }
}

#[test]
fn depthwise_convolutions_have_a_thread_an_element() {
    let graph = trace(|t| {
        let x = t.input("x", of(BF16, [1, 64, 8, 8])).conv2d(t.input("p", of(BF16, [64, 64, 1, 1])), [1, 1], [0, 0]);
        let depthwise = Conv::forward(&[1, 1], &[1, 1], &[1, 1], &[1, 1], 64);
        let y = x.conv(t.input("d", of(BF16, [64, 1, 3, 3])), depthwise).relu();
        y.conv2d(t.input("q", of(BF16, [16, 64, 1, 1])), [1, 1], [0, 0])
    });
    let graph = graph.unwrap();
    assert_eq!(count(&program(&graph, F32Products::Fma), "multiply bf16"), 2);
    check("depthwise", &graph, F32Products::Fma, false);
}

/// Bytes that the launches of a program move.
fn moved(program: &Program) -> i64 {
    program.launches().iter().map(|launch| launch.bytes.eval(&Bindings::default()).unwrap()).sum()
}

#[test]
fn halves_move_half_as_much() {
    let [single, half] = [DType::F32, BF16].map(|dtype| program(&residual(dtype, 8, 256, 56), F32Products::Fma));
    assert!(multiplies(&half) && !multiplies(&single));
    let (a, b) = (moved(&single), moved(&half));
    assert!(b as f64 <= 0.55 * a as f64, "{b} of {a} bytes");
    // nor does a device's arena hold more
    let arena = |program: &Program| -> i64 {
        let of = |buffer: &egret_program::Buffer| buffer.bytes.eval(&Bindings::default()).unwrap();
        program.buffers.iter().filter(|buffer| buffer.place == Place::Arena).map(of).sum()
    };
    assert!(arena(&half) as f64 <= 0.55 * arena(&single) as f64);
}

#[test]
fn a_region_costs_what_else_reads_it() {
    // many sums of an image, which read pixels one by one, outweigh one small convolution
    let graph = |sums: i32| {
        trace(move |t| {
            let x = t.input("x", of(BF16, [4, 32, 64, 64]));
            let y = x.conv2d(t.input("w", of(BF16, [32, 32, 3, 3])), [1, 1], [1, 1]).relu();
            let mut all = vec![y.conv2d(t.input("v", of(BF16, [8, 32, 3, 3])), [1, 1], [1, 1])];
            all.extend((0..sums).map(|i: i32| (y * f64::from(i + 2)).reduce_max(&[2 + i as isize % 2], false)));
            all
        })
        .unwrap()
    };
    let device = DeviceDescription::named("sm_80").unwrap();
    // the kernel of the first convolution, which says where it writes its channels
    let first = |sums| {
        let program = compile(&graph(sums), &device, &CompileOptions::default()).unwrap().program;
        assert_eq!(count(&program, "multiply bf16"), 2);
        let texts = program.launches().into_iter().map(|launch| program.kernel(launch.kernel).text.clone());
        texts.into_iter().find(|text| text.contains("multiply bf16"))
    };
    assert_ne!(first(0), first(20));
}
