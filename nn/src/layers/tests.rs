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

/// The weights of a layer, and what it gives for a ramp.
fn layer(layer: &dyn Layer, shape: &[usize]) -> (Graph, Vec<f32>) {
    let extents: egret_ir::Shape = shape.iter().map(|n| egret_ir::Dim::from(*n)).collect();
    let ty = egret_ir::TensorType::new(egret_ir::DType::F32, extents);
    let graph = trace(|t| layer.forward(&Params::new(t, Mode::Infer, 3), t.input("x", ty))).unwrap();
    let values = run(&graph, &ramp(shape));
    (graph, values)
}

#[test]
fn a_gru_in_both_directions_is_its_recurrence() {
    let (steps, inputs, hidden) = (3, 2, 4);
    let (graph, have) = layer(&Gru::new(hidden).bidirectional(), &[1, steps, inputs]);
    let x: Vec<f64> = ramp(&[1, steps, inputs]).values().map(|v| v.as_f64()).collect();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for (direction, suffix) in ["", "_reverse"].into_iter().enumerate() {
        let [wx, wh, bx, bh] =
            ["weight_ih", "weight_hh", "bias_ih", "bias_hh"].map(|name| weight(&graph, &format!("{name}_l0{suffix}")));
        let mut h = vec![0.0; hidden];
        for step in 0..steps {
            let at = if direction == 0 { step } else { steps - 1 - step };
            let dot = |w: &[f64], row: usize, v: &[f64]| -> f64 {
                w[row * v.len()..][..v.len()].iter().zip(v).map(|(a, b)| a * b).sum()
            };
            let given = |row: usize| dot(&wx, row, &x[at * inputs..][..inputs]) + bx[row];
            let own = |row: usize| dot(&wh, row, &h) + bh[row];
            let next: Vec<f64> = (0..hidden)
                .map(|j| {
                    let (reset, update) = (sigmoid(given(j) + own(j)), sigmoid(given(hidden + j) + own(hidden + j)));
                    let new = (given(2 * hidden + j) + reset * own(2 * hidden + j)).tanh();
                    (1.0 - update) * new + update * h[j]
                })
                .collect();
            h = next;
            for (j, want) in h.iter().enumerate() {
                let have = f64::from(have[at * 2 * hidden + direction * hidden + j]);
                assert!((have - want).abs() < 1e-6, "{have} for {want}");
            }
        }
    }
}

#[test]
fn a_transposed_convolution_spreads_its_input() {
    let (graph, have) = layer(&ConvTranspose1d::new(3, 4).stride(2).padding(1).output_padding(1), &[1, 2, 5]);
    let (w, bias) = (weight(&graph, "weight"), weight(&graph, "bias"));
    let x: Vec<f64> = ramp(&[1, 2, 5]).values().map(|v| v.as_f64()).collect();
    let length = (5 - 1) * 2 - 2 + 3 + 1 + 1;
    assert_eq!(have.len(), 3 * length);
    let mut want: Vec<f64> = (0..3 * length).map(|i| bias[i / length]).collect();
    for (i, x) in x.iter().enumerate() {
        let (channel, at) = (i / 5, i % 5);
        for o in 0..3 {
            for k in 0..4 {
                if let Some(place) = (at * 2 + k).checked_sub(1).filter(|place| *place < length) {
                    want[o * length + place] += x * w[(channel * 3 + o) * 4 + k];
                }
            }
        }
    }
    for (have, want) in have.iter().zip(&want) {
        assert!((f64::from(*have) - want).abs() < 1e-6, "{have} for {want}");
    }
}

#[test]
fn groups_are_normalised_on_their_own() {
    let (_, have) = layer(&GroupNorm::new(2).eps(0.0), &[2, 4, 3]);
    for group in have.chunks(6) {
        let mean = group.iter().sum::<f32>() / 6.0;
        let variance = group.iter().map(|x| x * x).sum::<f32>() / 6.0;
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5, "{mean} {variance}");
    }
    let (_, have) = layer(&RmsNorm::new(0.0), &[2, 6]);
    for row in have.chunks(6) {
        assert!((row.iter().map(|x| x * x).sum::<f32>() / 6.0 - 1.0).abs() < 1e-5);
    }
    let refused = trace(|t| GroupNorm::new(3).forward(&Params::new(t, Mode::Infer, 1), t.input("x", f32([1, 4, 2]))));
    assert_eq!(refused.unwrap_err().code, "E0610");
}

/// A graph of x `[4, 3, 5]` with its first states.
fn trained(layer: &dyn Layer, mode: Mode) -> (Graph, Tensors) {
    let graph = trace(|t| layer.forward(&Params::new(t, mode, 3), t.input("x", f32([4, 3, 5])))).unwrap();
    let states = graph.weights.iter().map(|(name, weight)| (name.clone(), weight.materialise())).collect();
    (graph, states)
}

#[test]
fn batch_statistics_move_the_running_ones() {
    let (graph, states) = trained(&BatchNorm::default(), Mode::Train);
    let x = ramp(&[4, 3, 5]);
    let given = Tensors::from([("x".into(), x.clone())]);
    let outcome = interpret(&graph, &given, &states).unwrap();
    let updates: Tensors = outcome.updates.into_iter().collect();
    let x: Vec<f64> = x.values().map(|v| v.as_f64()).collect();
    for channel in 0..3 {
        let values: Vec<f64> = (0..20).map(|i| x[(i / 5 * 3 + channel) * 5 + i % 5]).collect();
        let mean = values.iter().sum::<f64>() / 20.0;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let updated = |name: &str| updates[name].get(channel).as_f64();
        assert!((updated("running_mean") - 0.1 * mean).abs() < 1e-6);
        assert!((updated("running_var") - (0.9 + 0.1 * squares / 19.0)).abs() < 1e-6);
        for (i, value) in values.iter().enumerate() {
            let have = outcome.outputs[0].1.get((i / 5 * 3 + channel) * 5 + i % 5).as_f64();
            assert!((have - (value - mean) / (squares / 20.0 + 1e-5).sqrt()).abs() < 1e-5);
        }
    }
    // evaluation reads what training left
    let (evaluation, _) = trained(&BatchNorm::default(), Mode::Evaluate);
    assert!(evaluation.updates().is_empty());
    let mut states = states;
    states.extend(updates);
    let outcome = interpret(&evaluation, &given, &states).unwrap();
    let (mean, var) = (states["running_mean"].get(1).as_f64(), states["running_var"].get(1).as_f64());
    assert!((outcome.outputs[0].1.get(5).as_f64() - (x[5] - mean) / (var + 1e-5).sqrt()).abs() < 1e-6);
}

#[test]
fn dropout_drops_its_share_and_others_each_step() {
    let layer = Dropout::new(0.25);
    let graph = trace(|t| layer.forward(&Params::new(t, Mode::Train, 3), t.input("x", f32([40, 10, 10])))).unwrap();
    let ones = Tensor::new(&[40, 10, 10], &[1.0f32; 4000]).unwrap();
    let (mut states, mut last) = (Tensors::new(), Vec::new());
    states.insert("random.counter".into(), graph.weights["random.counter"].materialise());
    for _ in 0..3 {
        let outcome = interpret(&graph, &Tensors::from([("x".into(), ones.clone())]), &states).unwrap();
        states.extend(outcome.updates);
        let values: Vec<f64> = outcome.outputs[0].1.values().map(|v| v.as_f64()).collect();
        let dropped = values.iter().filter(|v| **v == 0.0).count();
        // of 4,000 with probability ¼: within five standard deviations
        assert!((dropped as f64 - 1000.0).abs() < 5.0 * (4000.0f64 * 0.25 * 0.75).sqrt(), "{dropped}");
        assert!(values.iter().all(|v| *v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-6));
        assert_ne!(values, last);
        last = values;
    }
    let (evaluation, _) = trained(&layer, Mode::Evaluate);
    assert_eq!(run(&evaluation, &ramp(&[4, 3, 5])), ramp(&[4, 3, 5]).as_slice::<f32>().unwrap());
}
