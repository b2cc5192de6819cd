//! Runs of compiled graphs allocate nothing once their dims are known: a convolutional net, and a transformer block of
//! symbolic batch and length.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use egret_compiler::{CompileOptions, compile};
use egret_ir::tracer::{Tracer, Var, trace};
use egret_ir::{Dim, Graph, Shape, Tensor, f32};
use egret_program::DeviceDescription;
use egret_runtime::{Executable, LoadOptions};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: that of the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, SeqCst);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, SeqCst);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, SeqCst);
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn filled(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i: usize| (i as f32 * 0.37).sin() * 0.2).collect();
    Tensor::new(shape, &values).expect("as many values as the shape has")
}

fn conv<'t>(t: &Tracer<'t>, x: Var<'t>, name: &str, out: usize, channels: usize, stride: i64) -> Var<'t> {
    let w = t.param(&format!("{name}.w"), filled(&[out, channels, 3, 3]));
    let b = t.param(&format!("{name}.b"), filled(&[out, 1, 1]));
    x.conv2d(w, [stride, stride], [1, 1]) + b
}

fn linear<'t>(t: &Tracer<'t>, x: Var<'t>, name: &str, from: usize, to: usize) -> Var<'t> {
    let w = t.param(&format!("{name}.w"), filled(&[from, to]));
    x.matmul(w) + t.param(&format!("{name}.b"), filled(&[to]))
}

/// Convolutions with residual and pooling, and a head with softmax.
fn convnet() -> Graph {
    trace(|t| {
        let x = t.input("x", f32([1, 3, 24, 24]));
        let a = conv(t, x, "a", 32, 3, 2).relu().max_pool(&[3, 3], &[2, 2], &[1, 1]);
        let b = conv(t, conv(t, a, "b", 32, 32, 1).relu(), "c", 32, 32, 1);
        let c = conv(t, (a + b).relu(), "d", 48, 32, 2).gelu().reduce_mean(&[2, 3], false);
        t.output("y", c.matmul(t.param("head", filled(&[48, 10]))).softmax(-1));
    })
    .expect("a graph")
}

/// Attention and a feed-forward layer, each with its residual and layer norm.
fn encoder() -> Graph {
    trace(|t| {
        let (heads, depth, width) = (3usize, 16usize, 48usize);
        let x = t.input("x", f32([Dim::symbol("batch"), Dim::symbol("seq"), Dim::from(width)]));
        let (batch, seq) = (x.shape()[0].clone(), x.shape()[1].clone());
        let split: Shape = [batch.clone(), seq.clone(), heads.into(), depth.into()].into_iter().collect();
        let part = |name: &str| linear(t, x, name, width, width).reshape(split.clone()).transpose(&[0, 2, 1, 3]);
        let (q, k, v) = (part("q"), part("k"), part("v"));
        let scores = q.matmul(k.transpose(&[0, 1, 3, 2])) * 0.25;
        let joined: Shape = [batch, seq, width.into()].into_iter().collect();
        let mixed = scores.softmax(-1).matmul(v).transpose(&[0, 2, 1, 3]).reshape(joined);
        let a = (x + linear(t, mixed, "o", width, width)).layer_norm(-1, 1e-5);
        let up = linear(t, a, "up", width, 4 * width).gelu();
        t.output("y", (a + linear(t, up, "down", 4 * width, width)).layer_norm(-1, 1e-5));
    })
    .expect("a graph")
}

fn check(name: &str, graph: &Graph, sizes: &[&[usize]]) {
    let device = match egret_simd::Isa::detect() {
        egret_simd::Isa::Avx512 => "x86-64-avx512",
        egret_simd::Isa::Avx2 => "x86-64-avx2",
        egret_simd::Isa::Portable => "x86-64-portable",
        egret_simd::Isa::Neon => "aarch64-neon",
    };
    let device = DeviceDescription::named(device).expect("a shipped description");
    let compiled = compile(graph, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let program = Arc::new(compiled.program);
    let weights = |name: &str| graph.weights.get(name).map(|weight| weight.materialise());
    let inputs: Vec<Tensor> = sizes.iter().map(|shape| filled(shape)).collect();
    for threads in 1..=2 {
        let options = LoadOptions { threads, isa: None };
        let executable = Executable::load(program.clone(), &weights, options).unwrap_or_else(|e| panic!("{e}"));
        let mut session = executable.session().unwrap_or_else(|e| panic!("{e}"));
        let mut counts = Vec::new();
        for round in 0..4 {
            for input in &inputs {
                let before = COUNT.load(SeqCst);
                let outputs = session.run(&[("x", input)]).unwrap_or_else(|e| panic!("{e}"));
                let sum: f32 = outputs.at(0).and_then(|y| Some(y.as_slice::<f32>()?.iter().sum())).expect("an f32");
                counts.push((round, COUNT.load(SeqCst) - before));
                assert!(sum.is_finite());
            }
        }
        // each size is seen in the first round
        assert!(
            counts.iter().all(|(round, count)| *round == 0 || *count == 0),
            "{name}, {threads} threads: {counts:?}"
        );
        println!(
            "{name}, {threads} threads: {} allocations before, none since",
            counts.iter().map(|c| c.1).sum::<usize>()
        );
    }
}

fn main() {
    check("convnet", &convnet(), &[&[1, 3, 24, 24]]);
    check("encoder", &encoder(), &[&[2, 19, 48], &[1, 5, 48], &[3, 32, 48]]);
}
