//! Traced graphs for the tests of CUDA schedules. Weights are inputs, so that nothing is computed at load.

#![allow(dead_code)]

use egret_ir::ops::Conv;
use egret_ir::{DType, Graph, TensorType, f32, i64, trace};

/// The value of the symbol `batch`.
pub const BATCH: i64 = 3;

/// Every graph that must compile and compute, by name.
pub fn all() -> Vec<(&'static str, Graph)> {
    vec![
        ("conv_bias_relu", conv_bias_relu()),
        ("softmax", softmax()),
        ("matmul_softmax", matmul_softmax()),
        ("matmul_norm", matmul_norm()),
        ("layer_norm", layer_norm()),
        ("rms_norm_symbolic", rms_norm()),
        ("residual_block", residual_block()),
        ("mlp", mlp()),
        ("batched_product", batched_product()),
        ("cross_entropy", cross_entropy()),
        ("column_reduce", column_reduce()),
        ("row_reduce", row_reduce()),
        ("gather", gather()),
        ("scatter", scatter()),
        ("concat", concat()),
        ("grouped_conv", grouped_conv()),
        ("bf16_mlp", bf16_mlp()),
        ("f16_softmax", f16_softmax()),
        ("training_conv", training_conv()),
        ("training_norm", training_norm()),
    ]
}

/// Graphs of real size, for compiling only.
pub fn large() -> Vec<(&'static str, Graph)> {
    let conv = trace(|t| {
        let x = t.input("x", f32(["batch".into(), 64.into(), 56.into(), 56.into()] as [egret_ir::Dim; 4]));
        x.conv2d(t.input("w", f32([64, 64, 3, 3])), [1, 1], [1, 1]) + t.input("bias", f32([64, 1, 1]))
    });
    let product = trace(|t| {
        let y = t.input("x", f32([1024, 2048])).matmul(t.input("w", f32([2048, 4096])));
        (y + t.input("bias", f32([4096]))).gelu()
    });
    let transposed = trace(|t| t.input("x", f32([512, 256])).t().matmul(t.input("y", f32([1024, 512])).t()));
    let vocabulary =
        trace(|t| t.input("x", f32(["batch".into(), 50_257.into()] as [egret_ir::Dim; 2])).log_softmax(-1));
    vec![
        ("large_conv", conv.unwrap()),
        ("large_product", product.unwrap()),
        ("large_transposed", transposed.unwrap()),
        ("large_softmax", vocabulary.unwrap()),
    ]
}

/// A loop without bound that stacks results: no memory can be set aside for these.
pub fn endless() -> Graph {
    trace(|t| {
        let x = t.input("x", f32([3]));
        t.while_loop(None, &[x], |_, c| c[0].sum().less(100.0), |_, c| (vec![c[0] + 1.0], vec![c[0] * 2.0])).2
    })
    .unwrap()
}

/// 3 × 3 convolution, bias, relu; any batch.
pub fn conv_bias_relu() -> Graph {
    trace(|t| {
        let x = t.input("x", f32(["batch".into(), 5.into(), 9.into(), 10.into()] as [egret_ir::Dim; 4]));
        let w = t.input("w", f32([7, 5, 3, 3]));
        let bias = t.input("bias", f32([7, 1, 1]));
        (x.conv2d(w, [1, 1], [1, 1]) + bias).relu()
    })
    .unwrap()
}

/// Softmax of rows that fit into shared memory.
pub fn softmax() -> Graph {
    trace(|t| t.input("x", f32([5, 1000])).softmax(-1)).unwrap()
}

/// A product, softmax over its columns.
pub fn matmul_softmax() -> Graph {
    trace(|t| {
        let x = t.input("x", f32([70, 40]));
        let w = t.input("w", f32([40, 100]));
        let bias = t.input("bias", f32([100]));
        (x.matmul(w) + bias).softmax(-1)
    })
    .unwrap()
}

/// A product of any number of rows, layer norm with scale over its columns.
pub fn matmul_norm() -> Graph {
    trace(|t| {
        let x = t.input("x", f32(["batch".into(), 33.into()] as [egret_ir::Dim; 2]));
        let w = t.input("w", f32([33, 80]));
        let scale = t.input("scale", f32([80]));
        x.matmul(w).layer_norm(-1, 1e-5) * scale
    })
    .unwrap()
}

/// Layer norm with scale and shift; any batch.
pub fn layer_norm() -> Graph {
    trace(|t| {
        let x = t.input("x", f32(["batch".into(), 7.into(), 96.into()] as [egret_ir::Dim; 3]));
        let (scale, shift) = (t.input("scale", f32([96])), t.input("shift", f32([96])));
        x.layer_norm(-1, 1e-5) * scale + shift
    })
    .unwrap()
}

/// RMS norm of rows of any length.
fn rms_norm() -> Graph {
    trace(|t| t.input("x", f32([4.into(), "batch".into()] as [egret_ir::Dim; 2])).rms_norm(-1, 1e-5)).unwrap()
}

/// Two convolutions around a residual, and a pool.
fn residual_block() -> Graph {
    trace(|t| {
        let x = t.input("x", f32([2, 8, 8, 8]));
        let (v, w) = (t.input("v", f32([8, 8, 3, 3])), t.input("w", f32([8, 8, 3, 3])));
        let bias = t.input("bias", f32([8, 1, 1]));
        let y = (x.conv2d(v, [1, 1], [1, 1]) + bias).relu();
        let y = (y.conv2d(w, [1, 1], [1, 1]) + x).relu();
        y.max_pool(&[3, 3], &[2, 2], &[1, 1])
    })
    .unwrap()
}

/// Norm, product, gelu, product, residual.
pub fn mlp() -> Graph {
    trace(|t| {
        let x = t.input("x", f32(["batch".into(), 5.into(), 32.into()] as [egret_ir::Dim; 3]));
        let (a, b) = (t.input("a", f32([32, 128])), t.input("b", f32([128, 32])));
        let bias = t.input("bias", f32([128]));
        let y = (x.layer_norm(-1, 1e-5).matmul(a) + bias).gelu();
        y.matmul(b) + x
    })
    .unwrap()
}

/// A batched product with a transposed right side.
fn batched_product() -> Graph {
    trace(|t| {
        let x = t.input("x", f32([2, 3, 17, 24]));
        let y = t.input("y", f32([2, 3, 19, 24]));
        x.matmul(y.transpose(&[0, 1, 3, 2]))
    })
    .unwrap()
}

fn cross_entropy() -> Graph {
    trace(|t| {
        let x = t.input("x", f32(["batch".into(), 10.into()] as [egret_ir::Dim; 2]));
        let labels = t.input("labels", i64(["batch"]));
        let loss = x.cross_entropy(labels).mean();
        let grad = t.grad(loss, &[x]);
        (loss, grad[0])
    })
    .unwrap()
}

fn column_reduce() -> Graph {
    trace(|t| {
        let x = t.input("x", f32(["batch".into(), 11.into(), 45.into()] as [egret_ir::Dim; 3]));
        let y = t.input("y", f32([45]));
        ((x * x).reduce_sum(&[0, 1], false) * y, x.reduce_max(&[1], true))
    })
    .unwrap()
}

fn row_reduce() -> Graph {
    trace(|t| {
        let x = t.input("x", f32([4, 300]));
        (x.exp().reduce_mean(&[1], false), x.reduce_min(&[0, 1], false))
    })
    .unwrap()
}

fn gather() -> Graph {
    trace(|t| {
        let (table, at) =
            (t.input("table", f32([9, 20])), t.input("at", i64(["batch".into(), 4.into()] as [egret_ir::Dim; 2])));
        let scale = t.input("scale", f32([20]));
        table.gather(at, 0) * scale
    })
    .unwrap()
}

fn scatter() -> Graph {
    trace(|t| {
        let (x, at) = (t.input("x", f32([9, 20])), t.input("at", i64([6])));
        x.scatter_add(at, t.input("updates", f32([6, 20])), 0)
    })
    .unwrap()
}

fn concat() -> Graph {
    trace(|t| {
        let (x, y) = (t.input("x", f32([3, 5])), t.input("y", f32([3, 7])));
        t.concat(&[x.relu(), y], 1).t()
    })
    .unwrap()
}

/// Norm, product, gelu and a mean in bf16: computed in f32.
fn bf16_mlp() -> Graph {
    let bf16 = |shape: &[i64]| TensorType::new(DType::BF16, shape);
    trace(|t| {
        let (x, w) = (t.input("x", bf16(&[5, 48])), t.input("w", bf16(&[48, 70])));
        let y = (x.layer_norm(-1, 1e-5).matmul(w) + t.input("bias", bf16(&[70]))).gelu();
        (y, y.reduce_mean(&[0], false))
    })
    .unwrap()
}

fn f16_softmax() -> Graph {
    trace(|t| (t.input("x", TensorType::new(DType::F16, [4, 90])) * 0.5).softmax(-1)).unwrap()
}

fn grouped_conv() -> Graph {
    trace(|t| {
        let (x, w) = (t.input("x", f32([2, 6, 9, 9])), t.input("w", f32([8, 3, 3, 3])));
        let conv = Conv::forward(&[2, 2], &[1, 1], &[1, 1], &[1, 1], 2);
        x.conv(w, conv)
    })
    .unwrap()
}

/// A convolution with the gradients of both operands.
fn training_conv() -> Graph {
    trace(|t| {
        let (x, w) = (t.input("x", f32([2, 3, 8, 7])), t.input("w", f32([4, 3, 3, 3])));
        let y = x.conv2d(w, [2, 2], [1, 1]).relu().avg_pool(&[2, 2], &[2, 2], &[0, 0]);
        let loss = (y * y).sum();
        let grads = t.grad(loss, &[x, w]);
        (loss, grads[0], grads[1])
    })
    .unwrap()
}

/// A product, norm and softmax with the gradients of all operands.
fn training_norm() -> Graph {
    trace(|t| {
        let (x, w) = (t.input("x", f32([6, 20])), t.input("w", f32([20, 30])));
        let scale = t.input("scale", f32([30]));
        let y = (x.matmul(w).layer_norm(-1, 1e-5) * scale).softmax(-1);
        let loss = (y * y).sum();
        let grads = t.grad(loss, &[x, w, scale]);
        (loss, grads[0], grads[1], grads[2])
    })
    .unwrap()
}

/// Attention.
pub fn attention() -> Graph {
    trace(|t| {
        let [q, k, v] = ["q", "k", "v"].map(|name| t.input(name, f32([2, 16, 8])));
        let scores = q.matmul(k.transpose(&[0, 2, 1])) * 0.5;
        scores.softmax(-1).matmul(v)
    })
    .unwrap()
}
