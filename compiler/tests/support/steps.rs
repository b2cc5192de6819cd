//! Graphs of whole size: a transformer of any depth, a training step of a CNN. Weights are fills: nothing reads them.
#![allow(dead_code)]

use egret_ir::tracer::{Tracer, Var, trace};
use egret_ir::{DType, Graph, Literal, Shape, Weight, f32, i64};

fn fill(shape: &[usize]) -> Weight {
    Weight::Fill { value: Literal::float(0.01, DType::F32), shape: shape.to_vec() }
}

const WIDTH: usize = 32;
const HEADS: usize = 2;

/// Adds a weight of that name and shape.
type Leaf<'l, 't> = &'l mut dyn FnMut(String, &[usize]) -> Var<'t>;

fn project<'t>(leaf: Leaf<'_, 't>, name: &str, x: Var<'t>, from: usize, to: usize) -> Var<'t> {
    x.matmul(leaf(name.to_string(), &[from, to])) + leaf(format!("{name}.b"), &[to])
}

fn split(v: Var<'_>) -> Var<'_> {
    let shape: Shape = [2i64, 16, HEADS as i64, (WIDTH / HEADS) as i64].into();
    v.reshape(shape).transpose(&[0, 2, 1, 3])
}

fn pool(x: Var<'_>) -> Var<'_> {
    x.max_pool(&[2, 2], &[2, 2], &[0, 0])
}

/// A pre-norm encoder with spelled-out softmax, and with `train` its step of gradient descent.
pub fn transformer(layers: usize, train: bool) -> Graph {
    trace(|t: &Tracer<'_>| {
        let mut params = Vec::new();
        let mut leaf = |name: String, shape: &[usize]| {
            let var = if train { t.state(&name, fill(shape)) } else { t.param(&name, fill(shape)) };
            params.push(var);
            var
        };
        let mut x = t.input("x", f32([2i64, 16, WIDTH as i64]));
        for layer in 0..layers {
            let normed = x.layer_norm(-1, 1e-5) * leaf(format!("{layer}.gamma"), &[WIDTH]);
            let named = |name: &str| format!("{layer}.{name}");
            let [q, k, v] = ["q", "k", "v"].map(|name| split(project(&mut leaf, &named(name), normed, WIDTH, WIDTH)));
            let scores = q.matmul(k.transpose(&[0, 1, 3, 2])) * 0.25;
            let exp = (scores - scores.reduce_max(&[-1], true)).exp();
            let mixed = (exp / exp.reduce_sum(&[-1], true)).matmul(v).transpose(&[0, 2, 1, 3]);
            let joined: Shape = [2i64, 16, WIDTH as i64].into();
            x = x + project(&mut leaf, &named("o"), mixed.reshape(joined), WIDTH, WIDTH);
            let up = project(&mut leaf, &named("up"), x.layer_norm(-1, 1e-5), WIDTH, 4 * WIDTH).gelu();
            x = x + project(&mut leaf, &named("down"), up, 4 * WIDTH, WIDTH);
        }
        if train {
            let loss = (x * x).mean();
            let gradients = t.grad(loss, &params);
            params.iter().zip(gradients).for_each(|(p, g)| t.update(*p, *p - g * 0.1));
            t.output("loss", loss);
        } else {
            t.output("y", x);
        }
    })
    .unwrap_or_else(|e| panic!("{e}"))
}

/// Two convolutions with pools, two products, cross entropy, and descent with momentum on all params.
pub fn cnn_training_step() -> Graph {
    trace(|t: &Tracer<'_>| {
        let x = t.input("x", f32([64i64, 1, 28, 28]));
        let labels = t.input("labels", i64([64i64]));
        let shapes: [(&str, &[usize]); 8] = [
            ("conv1", &[16, 1, 3, 3]),
            ("conv1.b", &[16, 1, 1]),
            ("conv2", &[32, 16, 3, 3]),
            ("conv2.b", &[32, 1, 1]),
            ("fc1", &[32 * 49, 128]),
            ("fc1.b", &[128]),
            ("fc2", &[128, 10]),
            ("fc2.b", &[10]),
        ];
        let p = shapes.map(|(name, shape)| t.state(name, fill(shape)));
        let a = pool((x.conv2d(p[0], [1, 1], [1, 1]) + p[1]).relu());
        let b = pool((a.conv2d(p[2], [1, 1], [1, 1]) + p[3]).relu());
        let hidden = (b.flatten(1).matmul(p[4]) + p[5]).relu();
        let loss = (hidden.matmul(p[6]) + p[7]).cross_entropy(labels).mean();
        let gradients = t.grad(loss, &p);
        for ((name, shape), (param, gradient)) in shapes.iter().zip(p.iter().zip(gradients)) {
            let momentum = t.state(&format!("{name}.momentum"), fill(shape));
            let step = momentum * 0.9 + gradient;
            t.update(momentum, step);
            t.update(*param, *param - step * 0.01);
        }
        t.output("loss", loss);
    })
    .unwrap_or_else(|e| panic!("{e}"))
}
