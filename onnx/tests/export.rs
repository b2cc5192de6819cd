//! Graphs that are written as ONNX models and read back give the same outputs.

#[path = "../../ir/tests/samples/mod.rs"]
mod samples;

use std::path::{Path, PathBuf};

use egret_ir::random::{Random, exact, exact_dynamic, real};
use egret_ir::{DType, Graph, Literal, Op, ScalarValue, Tensor, TensorType, Tensors, f32, interpret, trace};
use egret_onnx::export::{to_bytes, to_model};
use samples::{Given, kind, needs_integers, samples};

fn outputs(graph: &Graph, inputs: &Tensors) -> Vec<(String, Tensor)> {
    interpret(graph, inputs, &Tensors::new()).unwrap_or_else(|e| panic!("{e}")).outputs
}

/// The graph after it was written and read.
fn back(graph: &Graph) -> Graph {
    let bytes = to_bytes(graph).unwrap_or_else(|e| panic!("{e}"));
    egret_onnx::from_bytes(&bytes).unwrap_or_else(|e| panic!("{e}\n{}", egret_ir::text::print(graph)))
}

/// What an element type resolves.
fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => 1.0 / 1024.0,
        DType::BF16 => 1.0 / 128.0,
        _ => 0.0,
    }
}

/// Outputs agree to `ulps` of their element type: what is spelled in more steps rounds more often.
fn agree(what: &str, have: &[(String, Tensor)], want: &[(String, Tensor)], ulps: f64) {
    assert_eq!(have.len(), want.len(), "{what}");
    for ((name, have), (_, want)) in have.iter().zip(want) {
        assert_eq!((have.dtype(), have.shape()), (want.dtype(), want.shape()), "{what}: {name}");
        let scale = want.values().map(|v| v.as_f64().abs()).filter(|v| v.is_finite()).fold(0.0, f64::max);
        for (i, (a, b)) in have.values().zip(want.values()).enumerate() {
            let (a, b) = (a.as_f64(), b.as_f64());
            let same = a == b || a.is_nan() && b.is_nan();
            let near = (a - b).abs() <= ulps * epsilon(want.dtype()) * scale.max(1e-30);
            assert!(same || near, "{what}: {name}[{i}] is {a}, not {b}");
        }
    }
}

fn elements(given: &Given, dtype: DType, random: &mut Random) -> Tensor {
    match given {
        Given::Ints(shape, values) => Tensor::new(shape, values).unwrap(),
        Given::Values(shape) | Given::Positive(shape) => {
            let mut tensor = Tensor::zeros(dtype, shape);
            for i in 0..tensor.elements() {
                let low = if matches!(given, Given::Positive(_)) || dtype.is_unsigned() { 1 } else { -3 };
                let whole = random.below((4 - low) as usize) as i64 + low;
                // positive floats are at most one
                let value = match given {
                    Given::Positive(_) if dtype.is_float() => ScalarValue::Float(whole as f64 / 4.0),
                    _ => ScalarValue::Int(whole.into()),
                };
                tensor.set(i, value);
            }
            tensor
        }
    }
}

/// Kinds of operators that ONNX cannot say.
const NO_FORM: [&str; 8] = [
    "bitcast",
    "reduce_window_grad",
    "softmax_grad",
    "norm_grad",
    "attention_grad",
    "fused",
    "grad",
    "conv_weight_grad",
];

/// Every operator in element types of each kind: it is written and read back with the same meaning, or it is one of those
/// that have no form, and the error names it.
#[test]
fn every_operator_is_written_or_refused() {
    let mut random = Random::new(5);
    let mut written = std::collections::BTreeSet::new();
    for sample in samples() {
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::I64, DType::I8, DType::U32, DType::Bool] {
            let mut inputs = Tensors::new();
            let graph = trace(|t| {
                let mut x = Vec::new();
                for (i, given) in sample.given.iter().enumerate() {
                    let tensor = elements(given, dtype, &mut random);
                    let shape = tensor.shape().iter().map(|n| (*n).into()).collect();
                    x.push(t.input(&format!("x{i}"), TensorType { dtype: tensor.dtype(), shape }));
                    inputs.insert(format!("x{i}"), tensor);
                }
                for (i, y) in (sample.build)(t, dtype, &x).into_iter().enumerate() {
                    t.output(&format!("y{i}"), y);
                }
            });
            // not legal in this element type
            let Ok(graph) = graph else { continue };
            if needs_integers(&sample.name) && dtype.is_float() {
                continue;
            }
            let Ok(want) = interpret(&graph, &inputs, &Tensors::new()) else { continue };
            let what = format!("{} of {dtype}", sample.name);
            let kinds: Vec<&str> = graph
                .nodes()
                .iter()
                .map(
                    |node| {
                        if node.op.home().name() == "conv_weight_grad" { "conv_weight_grad" } else { kind(&node.op) }
                    },
                )
                .collect();
            match to_bytes(&graph) {
                Ok(bytes) => {
                    assert!(!kinds.iter().any(|k| NO_FORM.contains(k) && *k != "bitcast"), "{what}");
                    let read = egret_onnx::from_bytes(&bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
                    agree(&what, &outputs(&read, &inputs), &want.outputs, 8.0);
                    written.extend(kinds);
                }
                Err(e) => {
                    let window = kinds.contains(&"reduce_window") && dtype.is_int();
                    assert!(kinds.iter().any(|k| NO_FORM.contains(k)) || window, "{what}: {e}");
                    assert_eq!(e.code, "E0313", "{what}");
                }
            }
        }
    }
    assert_eq!(written.len() + NO_FORM.len() - 2, samples::KINDS, "{written:?}");
}

/// Random graphs: exact ones to the bit, loops, branches and look-ups among them.
#[test]
fn random_graphs() {
    let mut written = 0;
    for seed in 0..60 {
        let plain = [DType::F32, DType::I32, DType::F16].map(|dtype| (exact(seed, 14, dtype), 0.0));
        let others = [(exact_dynamic(seed, 14, DType::F32), 0.0), (real(seed, 10, DType::F64), 1e6)];
        for (i, (sample, ulps)) in plain.into_iter().chain(others).enumerate() {
            let sample = sample.unwrap();
            written += 1;
            let (have, want) = (outputs(&back(&sample.graph), &sample.inputs), outputs(&sample.graph, &sample.inputs));
            agree(&format!("graph {seed}, {i}"), &have, &want, ulps);
        }
    }
    assert!(written > 250, "{written}");
}

/// Symbols stay open: one model for every batch and length, with sizes that are sums, products, quotients and extrema.
#[test]
fn symbols_stay_open() {
    let graph = trace(|t| {
        let x = t.input("x", f32([egret_ir::Dim::from("batch"), egret_ir::Dim::from("length") * 2.into(), 4.into()]));
        let shape = x.shape();
        let (b, l) = (shape[0].clone(), shape[1].clone());
        let flat = x.reshape([b.clone() * l.clone(), 4.into()]);
        let half = x.slice(1, 0, l.floor_div(&3.into()), 1).reduce_sum(&[1], false);
        let wide = half.unsqueeze(&[1]).broadcast([b.clone(), l.clone() + 1.into(), 4.into()]);
        let pairs = flat.reshape([b, l.floor_div(&2.into()), 8.into()]).window_rows();
        t.output("wide", wide);
        t.output("pairs", pairs);
        t.output("again", x);
    })
    .unwrap();
    let read = back(&graph);
    for (batch, length) in [(1usize, 2usize), (3, 6), (2, 10)] {
        let values: Vec<f32> = (0..batch * length * 4).map(|i| (i % 13) as f32 - 6.0).collect();
        let inputs = Tensors::from([("x".to_string(), Tensor::new(&[batch, length, 4], &values).unwrap())]);
        agree("symbols", &outputs(&read, &inputs), &outputs(&graph, &inputs), 4.0);
    }
}

trait Rows<'t> {
    fn window_rows(self) -> egret_ir::Var<'t>;
}

impl<'t> Rows<'t> for egret_ir::Var<'t> {
    /// Pools the last axis.
    fn window_rows(self) -> egret_ir::Var<'t> {
        self.avg_pool(&[3], &[2], &[1])
    }
}

#[test]
fn what_cannot_be_said_is_named() {
    let counter = trace(|t| {
        let n = t.state("n", Tensor::zeros(DType::F32, &[1]));
        t.update(n, n + 1.0);
        t.output("y", n);
    });
    let e = to_model(&counter.unwrap()).unwrap_err();
    assert!(e.code == "E0314" && e.message.contains("`n`"), "{e}");
    let bits = trace(|t| {
        let x = t.input("x", f32([3]));
        t.output("y", x.bitcast(DType::I32));
    });
    let e = to_model(&bits.unwrap()).unwrap_err();
    assert!(e.code == "E0313" && e.message.contains("bitcast") && !e.origin.is_empty(), "{e}");
    let lost = trace(|t| {
        let x = t.input("x", f32([egret_ir::Dim::from("a") * egret_ir::Dim::from("b")]));
        t.output("y", x.reshape(["a", "b"]));
    });
    let e = to_model(&lost.unwrap()).unwrap_err();
    assert!(e.code == "E0313" && e.message.contains("`a`"), "{e}");
}

/// Random numbers of whole and of partly used blocks, of open sizes, and of 64-bit counters and streams, to the bit. The
/// counter is an input then, and an output what the next run is given.
#[test]
fn random_numbers_are_those_of_the_counter() {
    let graph = trace(|t| {
        let x = t.input("x", f32(["batch", "three"]));
        let counter = t.state("counter", Tensor::scalar(Literal::int(-3, DType::I64)));
        t.update(counter, counter + 1i64);
        let kept = t.uniform(1 << 63 | 5, counter, x.ty()).greater_equal(0.25);
        t.output("dropped", kept.select(x * (1.0 / 0.75), x * 0.0));
        t.output("words", t.random_bits(7, counter, [2, 6]));
        t.output("doubles", t.uniform(8, counter, TensorType::new(DType::F64, [5])));
        t.output("counter.next", t.random_bits(9, counter + (1i64 << 40), Vec::<egret_ir::Dim>::new().as_slice()));
    })
    .unwrap();
    let read = back(&graph);
    let x = Tensor::new(&[5, 3], &[1.0f32; 15]).unwrap();
    let mut states = Tensors::new();
    let mut counter = Tensor::scalar(Literal::int(-3, DType::I64));
    for _ in 0..4 {
        let mut inputs = Tensors::from([("x".to_string(), x.clone())]);
        let want = interpret(&graph, &inputs, &states).unwrap();
        inputs.insert("counter".to_string(), counter);
        let mut have = outputs(&read, &inputs);
        counter = have.pop().unwrap().1;
        assert!(have == want.outputs);
        states = want.updates.into_iter().collect();
        assert_eq!(counter, states["counter"]);
    }
}

fn data() -> PathBuf {
    std::env::var_os("EGRET_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from)
}

/// Trained models: the interpreter gives the same outputs before and after. Those of millions of operations are run
/// elsewhere; here they are written and read.
#[test]
fn models() {
    let Ok(entries) = std::fs::read_dir(data().join("models")) else {
        println!("skipped: {} is not there", data().join("models").display());
        return;
    };
    let mut folders: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    let light = std::fs::read_dir(data().join("models/light")).into_iter().flatten();
    folders.extend(light.filter_map(|e| Some(e.ok()?.path())));
    folders.sort();
    let mut count = 0;
    for folder in folders.iter().filter(|folder| folder.join("model.onnx").exists()) {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let path = folder.join("model.onnx");
        let names = egret_onnx::inputs(&path).unwrap().into_iter().map(|(name, _)| name).enumerate();
        let recorded = |i: usize| egret_onnx::read_tensor(&folder.join(format!("test_data_set_0/input_{i}.pb"))).ok();
        let mut inputs: Tensors = names.filter_map(|(i, name)| Some((name, recorded(i)?.1))).collect();
        let graph = match egret_onnx::load_for(&path, &inputs) {
            Ok(loaded) => {
                loaded.fixed.iter().for_each(|name| _ = inputs.remove(name));
                loaded.graph
            }
            // weights that are fetched
            Err(e) if e.code == "E0302" => continue,
            Err(e) => panic!("{name}: {e}"),
        };
        let read = back(&graph);
        count += 1;
        let work = |op: &Op, operands: &[egret_ir::NodeId], ty| {
            let types: Vec<egret_ir::Type> = operands.iter().map(|id| graph.ty(*id).clone()).collect();
            op.home().flops(&types, ty).hint(1)
        };
        let small = graph.nodes().iter().map(|node| work(&node.op, &node.operands, &node.ty)).sum::<i64>() < 1 << 28;
        if small && inputs.len() == graph.inputs().len() {
            agree(&name, &outputs(&read, &inputs), &outputs(&graph, &inputs), 64.0);
        } else {
            println!("{name}: written and read, not run");
        }
    }
    assert!(count > 0);
}
