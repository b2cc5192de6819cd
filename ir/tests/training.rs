//! The first step of a recorded training run: loss and gradients.
//!
//! Data are found through `EGRET_TEST_DATA` (default: `shared` beside the checkout); without them the test says that it
//! is skipped.

use std::path::{Path, PathBuf};

use egret_ir::{
    DType, Diagnostic, Graph, ScalarValue, Tensor, TensorType, Tensors, Tracer, Var, files, interpret, trace,
};

fn data() -> PathBuf {
    std::env::var_os("EGRET_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from)
}

fn cast(tensor: &Tensor, dtype: DType) -> Tensor {
    let mut out = Tensor::zeros(dtype, tensor.shape());
    tensor.values().enumerate().for_each(|(i, v)| out.set(i, v));
    out
}

/// Two convolutions with pooling, two dense layers.
fn cnn<'t>(x: Var<'t>, param: &dyn Fn(&str) -> Var<'t>) -> Var<'t> {
    let conv = |x: Var<'t>, name: &str| {
        let bias = param(&format!("{name}.bias")).unsqueeze(&[1, 2]);
        (x.conv2d(param(&format!("{name}.weight")), [1, 1], [1, 1]) + bias).relu().max_pool(&[2, 2], &[2, 2], &[0, 0])
    };
    let dense = |x: Var<'t>, name: &str| {
        x.dot_general(param(&format!("{name}.weight")), "bi,oi->bo") + param(&format!("{name}.bias"))
    };
    let x = conv(conv(x, "conv1"), "conv2").flatten(1);
    dense(dense(x, "fc1").relu(), "fc2")
}

fn training_graph(dtype: DType, init: &Tensors) -> Result<Graph, Diagnostic> {
    trace(|t: &Tracer<'_>| {
        let x = t.input("x", TensorType::new(dtype, [32i64, 1, 28, 28]));
        let labels = t.input("y", egret_ir::i64([32]));
        let param = |name: &str| t.param(name, cast(&init[name], dtype));
        let loss = cnn(x, &param).cross_entropy(labels).mean();
        let params: Vec<Var> = init.keys().map(|name| param(name)).collect();
        let mut outputs = vec![("loss".to_string(), loss)];
        outputs.extend(init.keys().cloned().zip(t.grad(loss, &params)));
        outputs
    })
}

#[test]
fn first_gradients_of_the_recorded_cnn() {
    let folder = data().join("training/cnn");
    if !folder.exists() {
        println!("skipped: {} is not there", folder.display());
        return;
    }
    let init = files::read(&folder.join("init.npz")).unwrap();
    let batches = files::read(&folder.join("batches.npz")).unwrap();
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 5e-6)] {
        let want = files::read(&folder.join("grads_step0_float64.npz")).unwrap();
        let graph = training_graph(dtype, &init).unwrap();
        let (x, y) = first_batch(&batches, dtype);
        let inputs = Tensors::from([("x".to_string(), x), ("y".to_string(), y)]);
        let outcome = interpret(&graph, &inputs, &Tensors::new()).unwrap();
        for name in init.keys() {
            let (have, want) = (outcome.output(name).unwrap(), &want[name]);
            let most = want.values().fold(0.0, |m: f64, v| m.max(v.as_f64().abs()));
            let worst =
                have.values().zip(want.values()).fold(0.0, |m: f64, (a, b)| m.max((a.as_f64() - b.as_f64()).abs()));
            println!("{dtype} {name}: {:.2e} of the greatest gradient {most:.3e}", worst / most);
            assert!(worst <= tolerance * most, "{dtype} {name}: {worst:e} of {most:e}");
        }
    }
}

/// Images and labels of the first training batch.
fn first_batch(batches: &Tensors, dtype: DType) -> (Tensor, Tensor) {
    let first = |name: &str, shape: &[usize], dtype: DType| {
        let mut out = Tensor::zeros(dtype, shape);
        let n = out.elements();
        batches[name].values().take(n).enumerate().for_each(|(i, v): (usize, ScalarValue)| out.set(i, v));
        out
    };
    (first("x", &[32, 1, 28, 28], dtype), first("target", &[32], DType::I64))
}
