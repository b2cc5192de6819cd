//! Whole programs against the reference interpreter: every rewrite level, one to three threads.

use std::sync::Arc;

use egret_compiler::{Compiled, Level};
use egret_ir::tracer::{Tracer, Var, trace};
use egret_ir::{Graph, Op, Tensor, Tensors, f32, i64, interpret};
use egret_runtime::{Executable, LoadOptions};

mod support {
    pub mod host;
}

use support::host::{compiled, random};

/// Runs a graph at every level and thread count, and compares every output with the interpreter's.
///
/// The tolerance is relative to the largest element: sums here are of fewer than 2¹² terms of f32, whose rounding errors
/// stay below 2¹²·2⁻²⁴ of the sum of magnitudes, and chains of a few such sums.
fn check(graph: &Graph, inputs: &[(&str, Tensor)]) {
    check_within(graph, inputs, TOLERANCE);
}

const TOLERANCE: f64 = 2e-4;

fn check_within(graph: &Graph, inputs: &[(&str, Tensor)], tolerance: f64) {
    let named: Tensors = inputs.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    let expected = interpret(graph, &named, &Tensors::new()).unwrap_or_else(|e| panic!("{e}"));
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    for level in [Level::None, Level::Greedy, Level::Full] {
        let compiled = compiled(graph, level);
        let replayed = compiled.rewritten.replay().unwrap_or_else(|e| panic!("{e}"));
        assert!(replayed == compiled.rewritten.graph, "the journal does not give the chosen graph");
        let program = Arc::new(compiled.program);
        let mut first: Option<Vec<Tensor>> = None;
        for threads in 1..=3 {
            let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
            let options = LoadOptions { threads, isa: None };
            let executable = Executable::load(program.clone(), &weights, options).unwrap_or_else(|e| panic!("{e}"));
            let mut session = executable.session().unwrap_or_else(|e| panic!("{e}"));
            let mut results = Vec::new();
            for _ in 0..2 {
                let outputs = session.run(&given).unwrap_or_else(|e| panic!("{e}"));
                results = outputs.iter().map(|o| o.to_tensor()).collect::<Vec<_>>();
            }
            for (result, (name, want)) in results.iter().zip(&expected.outputs) {
                assert_eq!(result.shape(), want.shape(), "{name}");
                let scale = want.values().fold(1e-6, |m: f64, v| m.max(v.as_f64().abs()));
                for (i, (got, want)) in result.values().zip(want.values()).enumerate() {
                    let (got, want) = (got.as_f64(), want.as_f64());
                    let off = (got - want).abs();
                    assert!(
                        off <= tolerance * scale || got == want || (got.is_nan() && want.is_nan()),
                        "{name}[{i}] is {got}, the interpreter has {want} (level {level:?}, {threads} threads)"
                    );
                }
            }
            match &first {
                None => first = Some(results),
                Some(first) => assert!(*first == results, "bits differ between 1 and {threads} threads at {level:?}"),
            }
        }
    }
}

fn conv_bias<'t>(t: &Tracer<'t>, x: Var<'t>, name: &str, shape: [usize; 4], stride: i64, pad: i64) -> Var<'t> {
    let w = t.param(&format!("{name}.w"), random(&shape, shape[0] as u64 * 31 + shape[1] as u64));
    let b = t.param(&format!("{name}.b"), random(&[shape[0], 1, 1], shape[0] as u64 + 7));
    x.conv2d(w, [stride, stride], [pad, pad]) + b
}

#[test]
fn residual_net_with_pools() {
    let graph = trace(|t| {
        let x = t.input("x", f32([2, 3, 20, 18]));
        let a = conv_bias(t, x, "first", [24, 3, 5, 5], 2, 2).relu();
        let a = a.max_pool(&[3, 3], &[2, 2], &[1, 1]);
        let b = conv_bias(t, a, "one", [24, 24, 3, 3], 1, 1).relu();
        let b = conv_bias(t, b, "two", [24, 24, 3, 3], 1, 1);
        let c = (a + b).relu();
        let d = conv_bias(t, c, "three", [40, 24, 1, 1], 2, 0).gelu();
        let e = d.avg_pool(&[2, 2], &[1, 1], &[0, 0]);
        let mean = e.reduce_mean(&[2, 3], false);
        let w = t.param("head", random(&[40, 10], 5));
        t.output("probabilities", mean.matmul(w).softmax(-1));
        t.output("image", e);
    })
    .expect("a graph");
    check(&graph, &[("x", random(&[2, 3, 20, 18], 1))]);
}

#[test]
fn concatenated_branches() {
    let graph = trace(|t| {
        let x = t.input("x", f32([1, 16, 9, 9]));
        let a = conv_bias(t, x, "a", [16, 16, 1, 1], 1, 0).relu();
        let b = conv_bias(t, x, "b", [32, 16, 3, 3], 1, 1).relu();
        let c = conv_bias(t, x, "c", [5, 16, 3, 3], 1, 1);
        let even = t.concat(&[a, b], 1);
        let odd = t.concat(&[c, a], 1);
        t.output("even", conv_bias(t, even, "d", [8, 48, 3, 3], 1, 1));
        t.output("odd", conv_bias(t, odd, "e", [8, 21, 3, 3], 2, 0));
    })
    .expect("a graph");
    check(&graph, &[("x", random(&[1, 16, 9, 9], 3))]);
}

/// The scale is read through a reshape by the run, and as it is by the preparation of the shift.
#[test]
fn a_view_of_a_prepared_value_is_kept() {
    let graph = trace(|t| {
        let x = t.input("x", f32([1, 3, 9, 9]));
        let w = t.param("w", random(&[20, 3, 3, 3], 101));
        let mean = t.param("mean", random(&[20], 103));
        let scale = t.param("scale", random(&[20], 107)).exp();
        let shift = (mean * scale).reshape([20, 1, 1]);
        (x.conv2d(w, [1, 1], [1, 1]) * scale.reshape([20, 1, 1]) + shift).relu()
    })
    .expect("a graph");
    check(&graph, &[("x", random(&[1, 3, 9, 9], 109))]);
}

fn attention<'t>(t: &Tracer<'t>, x: Var<'t>, heads: usize, width: usize, mask: Option<Var<'t>>, tag: &str) -> Var<'t> {
    let (batch, seq) = (x.shape()[0].clone(), x.shape()[1].clone());
    let depth = width / heads;
    let project = |name: &str, x: Var<'t>, seed| {
        let w = t.param(&format!("{tag}.{name}"), random(&[width, width], seed));
        let b = t.param(&format!("{tag}.{name}.bias"), random(&[width], seed + 1));
        x.matmul(w) + b
    };
    let split = |v: Var<'t>| {
        let shape: egret_ir::Shape = [batch.clone(), seq.clone(), heads.into(), depth.into()].into_iter().collect();
        v.reshape(shape).transpose(&[0, 2, 1, 3])
    };
    let (q, k, v) = (split(project("q", x, 11)), split(project("k", x, 13)), split(project("v", x, 17)));
    let mut scores = q.matmul(k.transpose(&[0, 1, 3, 2])) * (1.0 / (depth as f64).sqrt());
    if let Some(mask) = mask {
        scores = scores + mask;
    }
    let joined: egret_ir::Shape = [batch.clone(), seq.clone(), width.into()].into_iter().collect();
    let mixed = scores.softmax(-1).matmul(v).transpose(&[0, 2, 1, 3]).reshape(joined);
    project("o", mixed, 19)
}

fn encoder<'t>(t: &Tracer<'t>, x: Var<'t>, mask: Option<Var<'t>>) -> Var<'t> {
    let width = 24;
    let gamma = t.param("gamma", random(&[width], 23));
    let x = (x + attention(t, x, 3, width, mask, "a")).layer_norm(-1, 1e-5) * gamma;
    let up = t.param("up", random(&[width, 48], 29));
    let down = t.param("down", random(&[48, width], 31));
    (x + x.matmul(up).gelu().matmul(down)).layer_norm(-1, 1e-5)
}

#[test]
fn encoder_with_symbolic_batch_and_sequence() {
    let graph = trace(|t| {
        let x =
            t.input("x", f32(["batch", "seq", "24"].map(|d| d.parse::<i64>().map_or(d.into(), egret_ir::Dim::from))));
        encoder(t, x, None)
    })
    .expect("a graph");
    for (batch, seq) in [(1, 5), (2, 17), (3, 33)] {
        check(&graph, &[("x", random(&[batch, seq, 24], 37))]);
    }
}

#[test]
fn masked_attention() {
    let graph = trace(|t| {
        let x = t.input("x", f32([2, 19, 24]));
        let mask = t.input("mask", f32([2, 1, 1, 19]));
        encoder(t, x, Some(mask))
    })
    .expect("a graph");
    check(&graph, &[("x", random(&[2, 19, 24], 41)), ("mask", random(&[2, 1, 1, 19], 43))]);
}

#[test]
fn attention_is_one_kernel_forward_and_one_backward() {
    let graph = trace(|t| {
        let q = t.input("q", f32([2, 3, 21, 8]));
        let k = t.input("k", f32([2, 3, 34, 8]));
        let v = t.input("v", f32([2, 3, 34, 8]));
        let scores = q.matmul(k.transpose(&[0, 1, 3, 2])) * 0.35;
        let o = scores.softmax(-1).matmul(v);
        let loss = (o * o).sum();
        let grads = t.grad(loss, &[q, k, v]);
        outputs(t, &[("o", o), ("dq", grads[0]), ("dk", grads[1]), ("dv", grads[2])]);
    })
    .expect("a graph");
    let compiled = compiled(&graph, Level::Full);
    let families: Vec<&str> =
        compiled.program.launches().iter().map(|l| compiled.program.kernel(l.kernel).family.as_str()).collect();
    assert_eq!(families.iter().filter(|f| **f == "attention").count(), 1, "{families:?}");
    assert_eq!(families.iter().filter(|f| **f == "attention_grad").count(), 1, "{families:?}");
    assert!(!families.contains(&"gemm") && !families.contains(&"row"), "{families:?}");
    let input = |seed, n| random(&[2, 3, n, 8], seed);
    check(&graph, &[("q", input(1, 21)), ("k", input(2, 34)), ("v", input(3, 34))]);
}

#[test]
fn gradients_of_a_convolutional_classifier() {
    let graph = trace(|t| {
        let x = t.input("x", f32([4, 1, 12, 12]));
        let labels = t.input("labels", i64([4]));
        let params = [
            t.state("c1", random(&[8, 1, 3, 3], 51)),
            t.state("c2", random(&[16, 8, 3, 3], 53)),
            t.state("fc", random(&[16 * 9, 10], 57)),
            t.state("bias", random(&[10], 59)),
        ];
        let a = x.conv2d(params[0], [1, 1], [1, 1]).relu().max_pool(&[2, 2], &[2, 2], &[0, 0]);
        let b = a.conv2d(params[1], [1, 1], [1, 1]).relu().max_pool(&[2, 2], &[2, 2], &[0, 0]);
        let logits = b.flatten(1).matmul(params[2]) + params[3];
        let loss = logits.cross_entropy(labels).mean();
        let grads = t.grad(loss, &params);
        t.output("loss", loss);
        for (i, grad) in grads.iter().enumerate() {
            t.output(&format!("d{i}"), *grad);
        }
        for (param, grad) in params.iter().zip(&grads) {
            t.update(*param, *param - *grad * 0.1);
        }
    })
    .expect("a graph");
    let labels = Tensor::new(&[4], &[3i64, 0, 9, 5]).expect("four labels");
    let x = random(&[4, 1, 12, 12], 61);
    let states: Tensors = graph.weights.iter().map(|(name, weight)| (name.clone(), weight.materialise())).collect();
    let inputs: Tensors = [("x".to_string(), x.clone()), ("labels".to_string(), labels.clone())].into();
    let expected = interpret(&graph, &inputs, &states).unwrap_or_else(|e| panic!("{e}"));
    for level in [Level::None, Level::Full] {
        let program = Arc::new(compiled(&graph, level).program);
        let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
        let options = LoadOptions { threads: 2, isa: None };
        let executable = Executable::load(program, &weights, options).unwrap_or_else(|e| panic!("{e}"));
        let state = egret_runtime::State::new(&executable, &weights).unwrap_or_else(|e| panic!("{e}"));
        let mut session = executable.session_with(&state).unwrap_or_else(|e| panic!("{e}"));
        let outputs = session.run(&[("x", &x), ("labels", &labels)]).unwrap_or_else(|e| panic!("{e}"));
        for (output, (name, want)) in outputs.iter().zip(&expected.outputs) {
            close(&output.to_tensor(), want, name);
        }
        for (name, want) in &expected.updates {
            close(&state.get(name).unwrap_or_else(|e| panic!("{e}")), want, name);
        }
    }
}

fn outputs<'t>(t: &Tracer<'t>, named: &[(&str, Var<'t>)]) {
    named.iter().for_each(|(name, value)| t.output(name, *value));
}

/// As in `check`.
fn close(got: &Tensor, want: &Tensor, name: &str) {
    let scale = want.values().fold(1e-6, |m: f64, v| m.max(v.as_f64().abs()));
    for (i, (got, want)) in got.values().zip(want.values()).enumerate() {
        let off = (got.as_f64() - want.as_f64()).abs();
        assert!(off <= 2e-4 * scale, "{name}[{i}] is {}, the interpreter has {}", got.as_f64(), want.as_f64());
    }
}

#[test]
fn lstm_cell_in_a_scan_forward_and_backward() {
    let (steps, batch, width) = (5usize, 3usize, 8usize);
    let graph = trace(|t| {
        let xs = t.input("xs", f32([steps, batch, width]));
        let w = t.param("w", random(&[width, 4 * width], 71));
        let r = t.param("r", random(&[width, 4 * width], 73));
        let h = t.input("h", f32([batch, width]));
        let c = t.input("c", f32([batch, width]));
        let (last, ys) = t.scan(&[h, c], &[xs], |_, carry, x| {
            let gates = x[0].matmul(w) + carry[0].matmul(r);
            let part = |i: usize| gates.narrow(-1, i * width, width);
            let c = part(1).sigmoid() * carry[1] + part(0).sigmoid() * part(2).tanh();
            let h = part(3).sigmoid() * c.tanh();
            (vec![h, c], vec![h])
        });
        let loss = (ys[0] * ys[0]).sum() + last[1].sum();
        let grads = t.grad(loss, &[w, r, xs]);
        outputs(t, &[("ys", ys[0]), ("h", last[0]), ("c", last[1])]);
        outputs(t, &[("dw", grads[0]), ("dr", grads[1]), ("dxs", grads[2])]);
    })
    .expect("a graph");
    check(
        &graph,
        &[
            ("xs", random(&[steps, batch, width], 79)),
            ("h", random(&[batch, width], 83)),
            ("c", random(&[batch, width], 89)),
        ],
    );
}

/// A loop over params alone runs at load, and what it makes lives as long as the executable.
#[test]
fn a_scan_of_params_is_kept_from_load_to_run() {
    let graph = trace(|t| {
        let x = t.input("x", f32([5, 8]));
        let (first, xs) = (t.param("first", random(&[8], 91)), t.param("xs", random(&[5, 8], 93)));
        let (last, ys) = t.scan(&[first], &[xs], |_, carry, x| (vec![carry[0] * 0.5 + x[0]], vec![carry[0]]));
        outputs(t, &[("sum", x + ys[0]), ("last", x * last[0])]);
    })
    .expect("a graph");
    check(&graph, &[("x", random(&[5, 8], 95))]);
}

#[test]
fn gather_scatter_and_reductions() {
    let graph = trace(|t| {
        let ids = t.input("ids", i64([3, 4]));
        let table = t.param("table", random(&[11, 6], 97));
        let e = table.gather(ids, 0);
        let loss = (e * e).sum();
        let grad = t.grad(loss, &[table])[0];
        t.output("embedding", e);
        t.output("gradient", grad);
        t.output("columns", e.reduce_sum(&[0, 1], false));
        t.output("rows", e.reduce_max(&[2], true));
        t.output("log", e.log_softmax(-1));
        t.output("first", e.softmax(0));
        t.output("rms", e.rms_norm(-1, 1e-6));
        t.output("moved", e.transpose(&[2, 0, 1]).reshape([6, 12]).pad(&[1, 0], &[0, 2], 0.5));
    })
    .expect("a graph");
    let ids = Tensor::new(&[3, 4], &[0i64, 3, 3, 10, 1, 1, 1, 2, 9, 8, 7, 3]).expect("twelve indices");
    check(&graph, &[("ids", ids)]);
}

#[test]
fn an_index_out_of_range_is_an_error_that_names_the_place() {
    let graph = trace(|t| {
        let ids = t.input("ids", i64([2]));
        t.param("table", random(&[5, 3], 1)).gather(ids, 0)
    })
    .expect("a graph");
    let program = Arc::new(compiled(&graph, Level::Full).program);
    let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
    let executable = Executable::load(program, &weights, LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut session = executable.session().unwrap_or_else(|e| panic!("{e}"));
    let ids = Tensor::new(&[2], &[1i64, 5]).expect("two indices");
    let error = session.run(&[("ids", &ids)]).map(|_| ()).expect_err("index 5 of 5 is out of range").to_string();
    assert!(error.contains("outside 0..5"), "{error}");
}

#[test]
fn one_program_has_one_text() {
    let graph = trace(|t| {
        let x = t.input("x", f32([2, 7, 24]));
        encoder(t, x, None)
    })
    .expect("a graph");
    let text = |c: &Compiled| c.program.kernels.iter().map(|k| k.text.clone()).collect::<Vec<_>>();
    let (a, b) = (compiled(&graph, Level::Full), compiled(&graph, Level::Full));
    assert_eq!(text(&a), text(&b));
    assert!(a.rewritten.graph == b.rewritten.graph);
    assert!(a.rewritten.graph.nodes().iter().all(|node| !matches!(node.op, Op::Grad(_))));
}

/// Gradients of pools with overlapping, padded and dilated windows, row-major and in blocks with lanes that are no
/// channels. Ties are there: elements are of few values.
#[test]
fn gradients_of_pools() {
    use egret_ir::ops::{Window, WindowKind};
    let few = |shape: &[usize], seed| {
        let x = random(shape, seed);
        let values: Vec<f32> = x.values().map(|v| (v.as_f64() * 3.0).round() as f32).collect();
        Tensor::new(shape, &values).expect("as many values as the shape has")
    };
    let windows = [
        Window::symmetric(&[2, 2], &[2, 2], &[0, 0]),
        Window::symmetric(&[3, 3], &[2, 1], &[1, 1]),
        Window { dilation: [1, 2].into_iter().collect(), ..Window::symmetric(&[2, 3], &[1, 2], &[1, 2]) },
    ];
    for window in windows {
        for kind in [WindowKind::Max, WindowKind::Sum, WindowKind::MeanValid, WindowKind::MeanAll] {
            let graph = trace(|t| {
                let x = t.input("x", f32([2, 3, 9, 22]));
                let w = t.param("w", random(&[5, 3, 3, 3], 23));
                let y = x.reduce_window(kind, window.clone());
                let z = x.conv2d(w, [1, 1], [1, 1]).relu().reduce_window(kind, window.clone());
                let loss = (y * y).sum() + (z * z.sin()).sum();
                let grads = t.grad(loss, &[x, w]);
                outputs(t, &[("y", y), ("dx", grads[0]), ("dw", grads[1])]);
            })
            .expect("a graph");
            check(&graph, &[("x", few(&[2, 3, 9, 22], 29))]);
        }
    }
}

/// Forms of attention that no driver has are spelled out: grouped heads, many batch axes, halves, `f64`, a score program
/// whose gradient is asked for.
#[test]
fn attention_of_every_form() {
    use egret_ir::ops::{Attention, Labels};
    use egret_ir::{DType, Literal, ScalarExpr, ScalarFn, ScalarValue, TensorType};
    let forms = [
        ("bhqc", "bhkc", "bhke", "bhqe", "bhqk"),
        ("bhgqc", "bhkc", "bhke", "bhgqe", "bhgqk"),
        ("qabhc", "kabhc", "abkhe", "abhqe", "abhqk"),
        ("bqhc", "bkc", "bke", "bqhe", "bhqk"),
    ];
    let extent = |label: u8| match label {
        b'a' | b'g' => 2usize,
        b'b' => 3,
        b'h' => 2,
        b'q' => 7,
        b'k' => 9,
        b'c' => 8,
        _ => 5,
    };
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        for (q, k, v, o, scores) in forms {
            let shape = |labels: &str| labels.bytes().map(extent).collect::<Vec<usize>>();
            let scale = ScalarExpr::constant(Literal::new(ScalarValue::Float(0.25), dtype));
            let raw = ScalarExpr::apply(ScalarFn::Mul, [ScalarExpr::arg(0), scale], dtype);
            let never = ScalarExpr::constant(Literal::new(ScalarValue::Float(-30.0), dtype));
            let masked = ScalarExpr::apply(ScalarFn::Select, [ScalarExpr::arg(1), raw, never], dtype);
            let graph = trace(|t| {
                let leaf = |name: &str, labels: &str| {
                    let shape = shape(labels).into_iter().map(|n| n.into()).collect();
                    t.input(name, TensorType { dtype, shape })
                };
                let (x, y, z) = (leaf("q", q), leaf("k", k), leaf("v", v));
                let mask = t.input("mask", TensorType { dtype: DType::Bool, shape: [7i64, 9].into() });
                let attention = Attention {
                    q: Labels::new(q),
                    k: Labels::new(k),
                    v: Labels::new(v),
                    o: Labels::new(o),
                    scores: Labels::new(scores),
                    score: masked.clone(),
                    causal: None,
                    empty_is_zero: false,
                };
                let (o, lse) = x.attention(y, z, attention.canonical(), &[mask]);
                let grads = t.grad((o * o).sum(), &[x, y, z]);
                outputs(t, &[("o", o), ("lse", lse), ("dq", grads[0]), ("dk", grads[1]), ("dv", grads[2])]);
            })
            .unwrap_or_else(|e| panic!("{e}"));
            let tensor = |labels: &str, seed| {
                let x = random(&shape(labels), seed);
                let mut y = Tensor::zeros(dtype, x.shape());
                x.values().enumerate().for_each(|(i, v)| y.set(i, v));
                y
            };
            let mut mask = Tensor::zeros(DType::Bool, &[7, 9]);
            (0..63).for_each(|i| mask.set(i, ScalarValue::Bool(i * 5 % 7 < 4 || i % 9 == 0)));
            let inputs = [("q", tensor(q, 1)), ("k", tensor(k, 2)), ("v", tensor(v, 3)), ("mask", mask)];
            // a half's unit in the last place, of the greatest element, times the few roundings on the way
            let tolerance = match dtype {
                DType::F16 => 8.0 * 2f64.powi(-11),
                DType::BF16 => 8.0 * 2f64.powi(-8),
                _ => TOLERANCE,
            };
            check_within(&graph, &inputs, tolerance);
        }
    }
}
