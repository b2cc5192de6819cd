//! Layers run by the interpreter, against plain loops and properties.

use egret_ir::{Graph, Origin, ScalarFn, Tensor, Tensors, f32, i64, interpret, trace};

use super::*;
use crate::params::{Mode, Params};

fn ramp(shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::new(shape, &values).unwrap()
}

fn graph_of(layer: &dyn Layer, shape: [i64; 3]) -> Graph {
    trace(|t| layer.forward(&Params::new(t, Mode::Infer, 3), t.input("x", f32(shape)))).unwrap()
}

fn run(graph: &Graph, x: &Tensor) -> Vec<f32> {
    let inputs = Tensors::from([("x".into(), x.clone())]);
    interpret(graph, &inputs, &Tensors::new()).unwrap().outputs[0].1.as_slice::<f32>().unwrap().to_vec()
}

fn weight(graph: &Graph, name: &str) -> Vec<f64> {
    graph.weights[name].materialise().values().map(|v| v.as_f64()).collect()
}

#[test]
fn an_lstm_is_its_recurrence() {
    let (batch, steps, inputs, hidden) = (2, 3, 4, 5);
    let graph = graph_of(&Lstm::new(hidden), [batch as i64, steps as i64, inputs as i64]);
    let x = ramp(&[batch, steps, inputs]);
    let have = run(&graph, &x);
    let [wx, wh, bx, bh] =
        ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"].map(|name| weight(&graph, name));
    let x: Vec<f64> = x.values().map(|v| v.as_f64()).collect();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for b in 0..batch {
        let (mut h, mut c) = (vec![0.0; hidden], vec![0.0; hidden]);
        for s in 0..steps {
            let gate = |g: usize| {
                let row = &x[(b * steps + s) * inputs..][..inputs];
                let dot = |w: &[f64], v: &[f64]| w.iter().zip(v).map(|(a, b)| a * b).sum::<f64>();
                dot(&wx[g * inputs..][..inputs], row) + bx[g] + dot(&wh[g * hidden..][..hidden], &h) + bh[g]
            };
            let gates: Vec<f64> = (0..4 * hidden).map(gate).collect();
            for j in 0..hidden {
                let at = |k: usize| gates[k * hidden + j];
                c[j] = sigmoid(at(1)) * c[j] + sigmoid(at(0)) * at(2).tanh();
                h[j] = sigmoid(at(3)) * c[j].tanh();
                assert!((f64::from(have[(b * steps + s) * hidden + j]) - h[j]).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn causal_attention_does_not_look_ahead() {
    let block = TransformerBlock::new(MultiHeadAttention::new(2).causal(), 12);
    let graph = graph_of(&block, [1, 4, 6]);
    let x = ramp(&[1, 4, 6]);
    let mut other = x.clone();
    other.as_mut_slice::<f32>().unwrap()[18..].fill(7.0);
    let (a, b) = (run(&graph, &x), run(&graph, &other));
    assert_eq!(a[..18], b[..18]);
    assert_ne!(a[18..], b[18..]);
    let names: Vec<&str> = graph.weights.keys().map(String::as_str).collect();
    let want = "linear1.bias linear1.weight linear2.bias linear2.weight norm1.bias norm1.weight norm2.bias \
                norm2.weight self_attn.in_proj_bias self_attn.in_proj_weight self_attn.out_proj.bias \
                self_attn.out_proj.weight";
    assert_eq!(names.join(" "), want);
}

#[test]
fn modes_agree_and_origins_are_the_callers_lines() {
    let line = line!() + 1;
    let net = Sequential::new().layer(Linear::new(4)).named("act", ScalarFn::Relu).named("out", Linear::new(2));
    let make = |mode| trace(|t| net.forward(&Params::new(t, mode, 9), t.input("x", f32([3, 5])))).unwrap();
    let (infer, train) = (make(Mode::Infer), make(Mode::Train));
    assert_eq!(infer.weights, train.weights);
    assert_eq!(infer.weights.keys().collect::<Vec<_>>(), ["0.bias", "0.weight", "out.bias", "out.weight"]);
    assert_eq!(run(&infer, &ramp(&[3, 5])), run(&train, &ramp(&[3, 5])));
    let (_, last) = infer.outputs()[0];
    assert_eq!(*infer.origins(last)[0], Origin::Source { file: file!().into(), line });
}

#[test]
fn images_and_tables_have_the_right_shapes() {
    let net = Sequential::new()
        .layer(Conv2d::new(6, 3).stride(2).padding(1))
        .layer(ScalarFn::Relu)
        .layer(Residual(Conv2d::new(6, 3).padding(1).groups(2).no_bias()))
        .layer(MaxPool2d::new(2))
        .layer(Flatten);
    let graph = trace(|t| net.forward(&Params::new(t, Mode::Infer, 1), t.input("x", f32([2, 3, 9, 9])))).unwrap();
    assert_eq!(graph.tensor_type(graph.outputs()[0].1).to_string(), "f32[2, 24]");
    let table = trace(|t| {
        let p = Params::new(t, Mode::Infer, 1);
        LayerNorm::default().forward(&p.at("norm"), Embedding::new(7, 4).forward(&p, t.input("ids", i64([2, 3]))))
    })
    .unwrap();
    assert_eq!(table.tensor_type(table.outputs()[0].1).to_string(), "f32[2, 3, 4]");
    let error = trace(|t| Linear::new(2).forward(&Params::new(t, Mode::Infer, 1), t.input("x", f32(["n", "m"]))));
    assert_eq!(error.unwrap_err().code, "E0610");
}
