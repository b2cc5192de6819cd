//! Images whose extents depend on symbols run on the same loop nests as others.

mod support {
    pub mod programs;
}

use std::collections::BTreeSet;

use egret_compiler::{CompileOptions, compile};
use egret_ir::ops::{Conv, Window, WindowKind};
use egret_ir::{DType, Graph, Tensor, Tracer, Var, f32, trace};
use support::programs::{check, descriptions, few};

/// Sums of at most 40 · 9 products of eighths of small integers are exact in f32; what a hook or a division rounds is less.
const TOLERANCE: f64 = 1e-5;

fn graph(build: impl FnOnce(&Tracer<'_>)) -> Graph {
    trace(|t| build(t)).unwrap_or_else(|e| panic!("{e}"))
}

fn weights<'t>(t: &Tracer<'t>, name: &str, shape: &[usize]) -> Var<'t> {
    t.param(name, few(DType::F32, shape, name.len()))
}

/// Families of the kernels that a run launches.
fn families(graph: &Graph) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for device in descriptions() {
        let program = compile(graph, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
        found.extend(program.launches().iter().map(|launch| program.kernel(launch.kernel).family.clone()));
    }
    found
}

fn image(batch: usize, channels: usize, h: usize, w: usize) -> Tensor {
    few(DType::F32, &[batch, channels, h, w], h + w)
}

fn only(graph: &Graph, allowed: &[&str]) {
    let found = families(graph);
    let other: Vec<&String> = found.iter().filter(|family| !allowed.contains(&family.as_str())).collect();
    assert!(found.contains(allowed[0]) && other.is_empty(), "{found:?}");
}

/// Strides, dilations, uneven pads, groups, a residual and pools, in one region of blocked channels.
#[test]
fn networks_of_any_extent_stay_in_blocked_channels() {
    let network = graph(|t| {
        let x = t.input("x", f32(["n".into(), 3i64.into(), "h".into(), "w".into()] as [egret_ir::Dim; 4]));
        let first =
            x.conv(weights(t, "first", &[32, 3, 3, 3]), Conv::forward(&[2, 2], &[1, 0], &[1, 1], &[1, 1], 1)).relu();
        let deep =
            first.conv(weights(t, "deep", &[32, 32, 3, 3]), Conv::forward(&[1, 1], &[2, 2], &[2, 2], &[2, 2], 1));
        let sum = (deep + first).relu();
        let own =
            sum.conv(weights(t, "depthwise", &[32, 1, 5, 5]), Conv::forward(&[1, 1], &[2, 2], &[2, 2], &[1, 1], 32));
        let list = |a: i64, b: i64| [a, b].into_iter().collect();
        let (size, stride, dilation) = (list(3, 3), list(2, 2), list(1, 1));
        let window = Window { size, stride, pad_low: list(1, 1), pad_high: list(1, 0), dilation };
        let pooled = own.reduce_window(WindowKind::Max, window);
        let last =
            pooled.conv(weights(t, "pointwise", &[20, 32, 1, 1]), Conv::forward(&[1, 1], &[0, 0], &[0, 0], &[1, 1], 1));
        t.output("y", last);
    });
    only(&network, &["conv", "pool", "relayout"]);
    for (batch, h, w) in [(1, 17, 23), (2, 8, 9), (1, 40, 12)] {
        check(&network, &[("x", image(batch, 3, h, w))], TOLERANCE);
    }
}

#[test]
fn signals_and_volumes_of_any_extent() {
    let signal = graph(|t| {
        let x = t.input("x", f32(["n".into(), 1i64.into(), "length".into()] as [egret_ir::Dim; 3]));
        let frames = x.conv(weights(t, "basis", &[34, 1, 16]), Conv::forward(&[8], &[0], &[0], &[1], 1));
        let y = frames.relu().conv(weights(t, "w", &[24, 34, 3]), Conv::forward(&[2], &[1], &[1], &[1], 1));
        t.output("y", y);
    });
    only(&signal, &["conv", "relayout"]);
    for length in [64, 133] {
        check(&signal, &[("x", few(DType::F32, &[2, 1, length], length))], TOLERANCE);
    }
    let volume = graph(|t| {
        let x =
            t.input("x", f32([1i64.into(), 16i64.into(), "d".into(), 5i64.into(), "w".into()] as [egret_ir::Dim; 5]));
        let conv = Conv::forward(&[1, 2, 1], &[1, 1, 0], &[1, 1, 0], &[1, 1, 1], 1);
        t.output("y", x.conv(weights(t, "w", &[16, 16, 3, 3, 2]), conv));
    });
    only(&volume, &["conv", "relayout"]);
    check(&volume, &[("x", few(DType::F32, &[1, 16, 4, 5, 7], 2))], TOLERANCE);
}

/// Transposed convolutions and both gradients: the halo is bound by pads and strides alone.
#[test]
fn gradients_of_images_of_any_extent() {
    for (stride, low, high) in [([1, 1], [1, 1], [1, 1]), ([2, 2], [0, 1], [1, 1]), ([3, 1], [2, 0], [0, 2])] {
        let step = graph(|t| {
            let x = t.input("x", f32([2i64.into(), 16i64.into(), "h".into(), "w".into()] as [egret_ir::Dim; 4]));
            let v = t.input("v", f32([16, 16, 3, 3]));
            let y = x.conv(v, Conv::forward(&stride, &low, &high, &[1, 1], 1));
            let grads = t.grad((y * y).sum(), &[x, v]);
            t.output("dx", grads[0]);
            t.output("dv", grads[1]);
        });
        assert!(families(&step).contains("conv"));
        for (h, w) in [(7, 9), (10, 8)] {
            let given = [("x", image(2, 16, h, w)), ("v", few(DType::F32, &[16, 16, 3, 3], 5))];
            check(&step, &given, TOLERANCE);
        }
    }
}
