//! Every operator on symbolic extents: values and gradients are those of fixed ones.

mod samples;

use std::collections::BTreeSet;

use egret_ir::{DType, Dim, Graph, Shape, Tensor, TensorType, Tensors, Var, interpret, text, trace, verify};
use samples::{Given, Sample, samples};

fn tensor(shape: &[usize], seed: usize, positive: bool) -> Tensor {
    let n: usize = shape.iter().product();
    let value = |i: usize| ((i * 7 + seed * 13 + 3) % 101) as f64 / 130.0 + 0.1;
    let sign = |i: usize| if !positive && (i + seed).is_multiple_of(3) { -1.0 } else { 1.0 };
    let all: Vec<f64> = (0..n).map(|i| sign(i) * value(i)).collect();
    Tensor::new(shape, &all).unwrap()
}

/// The graph of a sample with its gradients; extents other than 1 are symbols, the same for equal ones, or fixed.
fn graph(sample: &Sample, symbolic: bool) -> Option<Graph> {
    let traced = trace(|t| {
        let inputs: Vec<Var> = sample
            .given
            .iter()
            .enumerate()
            .map(|(i, given)| {
                let (shape, dtype) = match given {
                    Given::Values(shape) | Given::Positive(shape) => (shape, DType::F64),
                    Given::Ints(shape, _) => (shape, DType::I64),
                };
                let symbol = |n: &usize| match (symbolic && dtype == DType::F64, n) {
                    (true, 2..) => Dim::from(format!("d{n}").as_str()),
                    _ => Dim::from(*n),
                };
                let shape: Shape = shape.iter().map(symbol).collect();
                t.input(&format!("x{i}"), TensorType { dtype, shape })
            })
            .collect();
        let results = (sample.build)(t, DType::F64, &inputs);
        let floats = results.iter().filter(|y| y.dtype() == DType::F64);
        let loss = floats.map(|y| (*y * *y * 0.3 + *y).sum()).reduce(|a, b| a + b);
        let wrt: Vec<Var> = inputs.iter().copied().filter(|x| x.dtype() == DType::F64).collect();
        let smooth = t.graph(|graph| !graph.nodes().iter().any(|node| node.op.home().no_gradient().is_some()));
        let gradients = loss.filter(|_| smooth).map_or_else(Vec::new, |loss| t.grad(loss, &wrt));
        [results, gradients].concat()
    });
    let graph = egret_ir::autodiff::expand(&traced.ok()?).ok()?;
    verify(&graph).unwrap_or_else(|e| panic!("{}: {e}", sample.name));
    let printed = text::print(&graph);
    let parsed = text::parse(&printed).unwrap_or_else(|e| panic!("{}: {e}\n{printed}", sample.name));
    assert_eq!(parsed, graph, "{printed}");
    Some(graph)
}

fn run(sample: &Sample, graph: &Graph) -> Vec<Tensor> {
    let given = sample.given.iter().enumerate().map(|(i, given)| {
        let tensor = match given {
            Given::Values(shape) => tensor(shape, i, false),
            Given::Positive(shape) => tensor(shape, i, true),
            Given::Ints(shape, values) => Tensor::new(shape, values).unwrap(),
        };
        (format!("x{i}"), tensor)
    });
    let outcome = interpret(graph, &given.collect(), &Tensors::new());
    let outcome = outcome.unwrap_or_else(|e| panic!("{}: {e}\n{}", sample.name, text::print(graph)));
    outcome.outputs.into_iter().map(|(_, v)| v).collect()
}

#[test]
fn symbols_and_numbers_agree() {
    let (mut agreed, mut fixed_only) = (BTreeSet::new(), BTreeSet::new());
    for sample in samples() {
        let Some(fixed) = graph(&sample, false) else {
            assert!(samples::needs_integers(&sample.name), "{}", sample.name);
            continue;
        };
        let Some(symbolic) = graph(&sample, true) else {
            fixed_only.insert(sample.name.clone());
            continue;
        };
        let (want, have) = (run(&sample, &fixed), run(&sample, &symbolic));
        assert_eq!(want.len(), have.len(), "{}", sample.name);
        for (want, have) in want.iter().zip(&have) {
            let near = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-12 * a.abs().max(1.0);
            let same = want.values().zip(have.values()).all(|(a, b)| near(a.as_f64(), b.as_f64()));
            assert!(same && want.shape() == have.shape(), "{}: {want:?} {have:?}", sample.name);
        }
        agreed.extend(symbolic.nodes().iter().map(|node| samples::kind(&node.op)));
    }
    // whether groups divide a number of channels must be known
    let fixed_only: Vec<&str> = fixed_only.iter().map(String::as_str).collect();
    assert_eq!(fixed_only, ["conv"], "these take no symbols");
    assert!(agreed.len() + 8 > samples::KINDS, "{agreed:?}");
}
