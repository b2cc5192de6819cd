//! Every operator on every element type that it is legal for: it evaluates, and agrees with the evaluation in the widest
//! type of its kind, rounded once.

mod samples;

use std::collections::BTreeMap;

use egret_ir::{DType, Graph, ScalarValue, Shape, Tensor, TensorType, Tensors, Var, interpret, text, trace, verify};
use samples::{Given, Sample, samples};

/// The operands in an element type. `extreme` brings the ends of an integer's range, and halves of a float's last places.
fn operands(sample: &Sample, dtype: DType, extreme: bool) -> Vec<Tensor> {
    let of = |(which, given): (usize, &Given)| {
        let (shape, positive) = match given {
            Given::Ints(shape, values) => return Tensor::new(shape, values).unwrap(),
            Given::Values(shape) => (shape, false),
            Given::Positive(shape) => (shape, true),
        };
        let mut tensor = Tensor::zeros(dtype, shape);
        for i in 0..tensor.elements() {
            let step = (i * 7 + which * 5 + 1) % 13;
            let sign = if positive || dtype.is_unsigned() || step % 3 != 0 { 1.0 } else { -1.0 };
            let value = if dtype.is_float() && extreme {
                // not a number of any narrower type
                sign * (step as f64 + 1.0) / 13.7
            } else if dtype == DType::Bool {
                f64::from(u8::from(step % 2 == 0))
            } else if positive {
                1.0
            } else {
                sign * (step % 4) as f64
            };
            tensor.set(i, ScalarValue::Float(value));
            if extreme && dtype.is_int() && !positive && i % 4 == 0 {
                let bits = 8 * dtype.size() as u32;
                let least = if dtype.is_unsigned() { 0 } else { -(1i128 << (bits - 1)) };
                let most = if dtype.is_unsigned() { (1i128 << bits) - 1 } else { (1i128 << (bits - 1)) - 1 };
                tensor.set(i, ScalarValue::Int(if i % 8 == 0 { most } else { least }));
            }
        }
        tensor
    };
    sample.given.iter().enumerate().map(of).collect()
}

fn graph(sample: &Sample, dtype: DType) -> Option<Graph> {
    let traced = trace(|t| {
        let inputs: Vec<Var> = sample
            .given
            .iter()
            .enumerate()
            .map(|(i, given)| {
                let (shape, dtype) = match given {
                    Given::Values(shape) | Given::Positive(shape) => (shape, dtype),
                    Given::Ints(shape, _) => (shape, DType::I64),
                };
                let shape: Shape = shape.iter().map(|n| (*n).into()).collect();
                t.input(&format!("x{i}"), TensorType { dtype, shape })
            })
            .collect();
        (sample.build)(t, dtype, &inputs)
    });
    let graph = traced.ok()?;
    verify(&graph).unwrap_or_else(|e| panic!("{}: {e}", sample.name));
    let printed = text::print(&graph);
    let parsed = text::parse(&printed).unwrap_or_else(|e| panic!("{}: {e}\n{printed}", sample.name));
    assert_eq!(parsed, graph, "{printed}");
    Some(graph)
}

fn run(sample: &Sample, graph: &Graph, operands: &[Tensor]) -> Vec<Tensor> {
    let inputs: Tensors = operands.iter().enumerate().map(|(i, v)| (format!("x{i}"), v.clone())).collect();
    let outcome = interpret(graph, &inputs, &Tensors::new()).unwrap_or_else(|e| panic!("{}: {e}", sample.name));
    outcome.outputs.into_iter().map(|(_, v)| v).collect()
}

fn widened(tensor: &Tensor, from: DType, to: DType) -> Tensor {
    if tensor.dtype() != from {
        return tensor.clone();
    }
    let mut wide = Tensor::zeros(to, tensor.shape());
    tensor.values().enumerate().for_each(|(i, v)| wide.set(i, v));
    wide
}

/// The type that holds every value of a type of its kind.
fn widest(dtype: DType) -> DType {
    match dtype {
        DType::Bool => DType::U8,
        float if float.is_float() => DType::F64,
        int if int.is_unsigned() => DType::U64,
        _ => DType::I64,
    }
}

#[test]
fn every_operator_on_every_legal_type() {
    let mut kinds: BTreeMap<&str, Vec<DType>> = BTreeMap::new();
    let mut wrong: BTreeMap<String, String> = BTreeMap::new();
    let (mut ran, mut compared) = (0, 0);
    for sample in samples() {
        for dtype in DType::ALL.iter().copied() {
            let Some(narrow) = graph(&sample, dtype) else {
                assert!(dtype != DType::F64 || samples::needs_integers(&sample.name), "{}", sample.name);
                continue;
            };
            for node in narrow.nodes() {
                let legal = kinds.entry(samples::kind(&node.op)).or_default();
                if !legal.contains(&dtype) {
                    legal.push(dtype);
                }
            }
            for extreme in [false, true] {
                // an overflow of a sum is another number in a wider type, but wraps to the same
                let given = operands(&sample, dtype, extreme && !sample.steps);
                let have = run(&sample, &narrow, &given);
                ran += 1;
                let wide_type = widest(dtype);
                let Some(wide) = graph(&sample, wide_type) else { continue };
                let given: Vec<Tensor> = given.iter().map(|v| widened(v, dtype, wide_type)).collect();
                let want = run(&sample, &wide, &given);
                compared += 1;
                assert_eq!(have.len(), want.len(), "{}", sample.name);
                for (have, want) in have.iter().zip(&want) {
                    assert_eq!(have.shape(), want.shape(), "{} in {dtype}", sample.name);
                    for (i, (a, b)) in have.values().zip(want.values()).enumerate() {
                        let b = b.cast(have.dtype());
                        let same = a == b || a.as_f64().is_nan() && b.as_f64().is_nan();
                        if !same {
                            wrong.insert(format!("{} in {dtype}", sample.name), format!("[{i}] is {a:?}, not {b:?}"));
                        }
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "not what rounding once gives: {wrong:#?}");
    // leaves and movement take every type; a kind that none runs has no sample
    for kind in ["input", "param", "const", "reshape", "gather", "concat", "iota", "cast"] {
        let least = if kind == "iota" { DType::ALL.len() - 1 } else { DType::ALL.len() };
        assert!(kinds[kind].len() >= least, "{kind}: {:?}", kinds[kind]);
    }
    assert_eq!(kinds.len(), samples::KINDS, "an operator has no sample: {:?}", kinds.keys());
    assert!(ran > 2400 && compared * 10 > ran * 9, "{ran} ran, {compared} compared");
}
