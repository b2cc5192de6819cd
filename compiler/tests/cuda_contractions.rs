//! CUDA kernels of products and convolutions as people read them, engine by engine: the rewritten graph, the launches, the
//! CUDA C without the prelude, and what NVRTC makes of each kernel for each architecture; and of the training step of a small
//! CNN. A change of any shows in a snapshot.

#[path = "support/figures.rs"]
mod figures;
#[path = "support/nvrtc.rs"]
mod nvrtc;
#[path = "support/steps.rs"]
mod steps;

use egret_compiler::{CompileOptions, F32Products};
use egret_ir::ops::{Conv, DotGeneral};
use egret_ir::{DType, Graph, TensorType, trace};

fn of<const N: usize>(dtype: DType, shape: [i64; N]) -> TensorType {
    TensorType::new(dtype, shape)
}

fn check(name: &str, graph: &Graph, products: F32Products) {
    let options = CompileOptions { products, ..CompileOptions::default() };
    insta::assert_snapshot!(format!("{name}.kernels"), figures::kernels(graph, &options));
    if let Some(figures) = figures::figures(graph, &options) {
        insta::assert_snapshot!(format!("{name}.figures"), figures);
    }
}

/// `gelu(x · w + bias)`.
fn perceptron(dtype: DType, [m, n, k]: [i64; 3]) -> Graph {
    let graph = trace(|t| {
        let (w, bias) = (t.input("w", of(dtype, [k, n])), t.input("bias", of(dtype, [n])));
        (t.input("x", of(dtype, [m, k])).matmul(w) + bias).gelu()
    });
    graph.unwrap()
}

#[test]
fn product_bias_and_gelu_by_each_engine() {
    use F32Products::{Fma, Tf32, Tf32x3};
    check("gelu_small", &perceptron(DType::F32, [100, 72, 56]), Fma);
    check("gelu_large", &perceptron(DType::F32, [2048, 2048, 512]), Fma);
    check("gelu_tf32", &perceptron(DType::F32, [512, 768, 256]), Tf32);
    check("gelu_tf32x3", &perceptron(DType::F32, [512, 768, 256]), Tf32x3);
    check("gelu_bf16", &perceptron(DType::BF16, [2048, 2048, 512]), Fma);
}

#[test]
fn product_of_bytes() {
    let graph = trace(|t| {
        let (x, w) = (t.input("x", of(DType::U8, [512, 256])), t.input("w", of(DType::I8, [256, 384])));
        let sums = x.then(DotGeneral::parse("ab,bc->ac").expect("a contraction").wide(), &[w]);
        ((sums + t.input("bias", of(DType::I32, [384]))).cast(DType::F32) * 0.125).round().cast(DType::I8)
    });
    check("bytes", &graph.unwrap(), F32Products::Fma);
}

#[test]
fn product_and_softmax() {
    let graph = trace(|t| {
        let (w, bias) = (t.input("w", of(DType::F32, [40, 100])), t.input("bias", of(DType::F32, [100])));
        (t.input("x", of(DType::F32, [70, 40])).matmul(w) + bias).softmax(-1)
    });
    check("product_softmax", &graph.unwrap(), F32Products::Fma);
}

/// `relu(conv(x, w) + bias)`.
fn convolution(dtype: DType, x: [i64; 4], w: [i64; 4], groups: i64) -> Graph {
    let graph = trace(|t| {
        let bias = t.input("bias", of(dtype, [w[0], 1, 1]));
        let y = t
            .input("x", of(dtype, x))
            .conv(t.input("w", of(dtype, w)), Conv::forward(&[1, 1], &[1, 1], &[1, 1], &[1, 1], groups));
        (y + bias).relu()
    });
    graph.unwrap()
}

#[test]
fn convolution_bias_and_relu() {
    check("conv_f32", &convolution(DType::F32, [8, 32, 28, 28], [64, 32, 3, 3], 1), F32Products::Fma);
    check("conv_bf16", &convolution(DType::BF16, [8, 64, 28, 28], [128, 64, 3, 3], 1), F32Products::Fma);
    check("depthwise", &convolution(DType::F32, [8, 96, 28, 28], [96, 1, 3, 3], 96), F32Products::Fma);
}

#[test]
fn residual_block() {
    let graph = trace(|t| {
        let x = t.input("x", of(DType::BF16, [8, 64, 28, 28]));
        let weights = |i: i32| t.input(&format!("w{i}"), of(DType::BF16, [64, 64, 3, 3]));
        let bias = |i: i32| t.input(&format!("b{i}"), of(DType::BF16, [64, 1, 1]));
        let y = (x.conv2d(weights(0), [1, 1], [1, 1]) + bias(0)).relu();
        ((y.conv2d(weights(1), [1, 1], [1, 1]) + bias(1)) + x).relu()
    });
    check("residual_block", &graph.unwrap(), F32Products::Fma);
}

#[test]
fn training_step_of_a_cnn() {
    check("cnn_step", &steps::cnn_training_step(), F32Products::Fma);
}
