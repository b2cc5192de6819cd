//! Attention on GPUs: every kernel on the simulator, warps in three orders, copies at once and as late as waits allow; what
//! NVRTC makes of them; and planted bugs.

#[path = "support/drawn.rs"]
mod drawn;
#[path = "support/nvrtc.rs"]
mod nvrtc;
#[path = "support/simulate.rs"]
mod simulate;

use drawn::drawn;
use egret_compiler::{CompileOptions, compile};
use egret_ir::bound::{Bounded, interpret_bounded};
use egret_ir::interpret;
use egret_ir::ops::{Attention, Labels};
use egret_ir::{
    Bindings, DType, Dim, Graph, Literal, Op, ScalarExpr, ScalarFn, ScalarValue, Tensor, TensorType, Tensors, Var,
    trace,
};
use egret_program::{DeviceDescription, KernelBody, Program};
use simulate::{Simulated, everywhere};

/// Times the bound of another correct evaluation, as in the tests of whole programs.
const BOUNDS: f64 = 4.0;
const BATCH: i64 = 2;

#[derive(Clone, Copy, PartialEq)]
enum Mask {
    None,
    Causal,
    /// One of the scores' element type, added.
    Added,
    /// Keys that are seen; in the second batch there are none.
    Truth,
}

#[derive(Clone, Copy)]
struct Form {
    dtype: DType,
    /// Heads of queries, and of keys and values.
    heads: [i64; 2],
    queries: i64,
    keys: i64,
    /// Channels of queries and keys, and of values.
    channels: [i64; 2],
    mask: Mask,
}

const PLAIN: Form =
    Form { dtype: DType::F32, heads: [1, 1], queries: 37, keys: 45, channels: [24, 40], mask: Mask::None };

fn of(dtype: DType, shape: &[i64]) -> TensorType {
    TensorType { dtype, shape: shape.iter().map(|n| Dim::from(*n)).collect() }
}

/// Keys or values, for each head that shares them.
fn repeated<'t>(x: Var<'t>, form: Form, channels: i64) -> Var<'t> {
    let Form { heads: [heads, groups], keys, .. } = form;
    let wide = [BATCH, groups, heads / groups, keys, channels].map(Dim::from);
    x.reshape([BATCH, groups, 1, keys, channels]).broadcast(wide).reshape([BATCH, heads, keys, channels])
}

/// Attention as people spell it: heads beside channels, groups repeated. With gradients where `train`.
fn graph(form: Form, train: bool) -> Graph {
    let Form { dtype, heads: [heads, groups], queries, keys, channels: [head, value], mask } = form;
    let graph = trace(|t| {
        let leaf = |name: &str, rows: i64, heads: i64, channels: i64| {
            let x = t.input(name, of(dtype, &[BATCH, rows, heads * channels]));
            (x, x.reshape([BATCH, rows, heads, channels]).transpose(&[0, 2, 1, 3]))
        };
        let (x, q) = leaf("q", queries, heads, head);
        let (y, k) = leaf("k", keys, groups, head);
        let (z, v) = leaf("v", keys, groups, value);
        let (k, v) = if groups < heads { (repeated(k, form, head), repeated(v, form, value)) } else { (k, v) };
        let scores = q.matmul(k.transpose(&[0, 1, 3, 2])) * (1.0 / (head as f64).sqrt());
        let low = t.scalar(Literal::float(f64::NEG_INFINITY, dtype));
        let index = |axis: usize| t.iota(of(DType::I64, &[queries, keys]), axis);
        let scores = match mask {
            Mask::None => scores,
            Mask::Causal => index(1).less_equal(index(0)).select(scores, low),
            Mask::Added => scores + t.input("mask", of(dtype, &[BATCH, 1, queries, keys])),
            Mask::Truth => t.input("mask", of(DType::Bool, &[BATCH, 1, 1, keys])).select(scores, low),
        };
        let o = scores.softmax(-1).matmul(v).transpose(&[0, 2, 1, 3]).reshape([BATCH, queries, heads * value]);
        if !train {
            return vec![o];
        }
        let upstream = t.input("do", of(dtype, &[BATCH, queries, heads * value]));
        [vec![o], t.grad((o * upstream).sum(), &[x, y, z])].concat()
    });
    graph.unwrap_or_else(|e| panic!("{e}"))
}

fn program(graph: &Graph) -> Program {
    let device = DeviceDescription::named("sm_80").unwrap();
    compile(graph, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program
}

fn families(program: &Program) -> Vec<&str> {
    program.launches().iter().map(|launch| program.kernel(launch.kernel).family.as_str()).collect()
}

/// Inputs by name: numbers in −1 to 1, and truths of which the second half of a mask has none.
fn inputs(graph: &Graph) -> Vec<(String, Tensor)> {
    let mut all = Vec::new();
    for (seed, id) in (0..).zip(graph.inputs()) {
        let Op::Input(input) = &graph.node(*id).op else { continue };
        let shape: Vec<usize> =
            input.ty.shape.eval(&Bindings::default()).unwrap().iter().map(|n| *n as usize).collect();
        let mut tensor = drawn(input.ty.dtype, &shape, seed, 1.0, 5);
        if input.ty.dtype == DType::Bool {
            let half = tensor.elements() / 2;
            (0..2 * half).for_each(|i| tensor.set(i, ScalarValue::Bool(i < half && i % 3 != 1)));
        }
        all.push((input.name.clone(), tensor));
    }
    all
}

/// How near a result must be where the interpreter's bound is not finite.
const UNKNOWN: f64 = 1e-5;

fn near(name: &str, have: &Tensor, want: &Bounded) {
    for (i, ((x, y), error)) in have.values().zip(want.value.values()).zip(&want.error).enumerate() {
        let (x, y) = (x.as_f64(), y.as_f64());
        let allowed = if error.is_finite() { BOUNDS * error } else { UNKNOWN * (1.0 + y.abs()) };
        let same = x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= allowed;
        assert!(same, "{name}[{i}] is {x}, the interpreter has {y}, within {allowed:e}");
    }
}

/// Half the distance from 1 to the next number.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-24),
    }
}

/// Gradients of halves are near those of the same numbers in `f32`: weights, their gradients, the saved result and what
/// leaves are each rounded once, and the first two are met in two products, so that each term of a sum, none of which is
/// more than the greatest result, is off by a few units.
fn check_half_gradient(name: &str, form: Form, graph: &dyn Fn(Form) -> Graph) {
    const ROUNDINGS: f64 = 8.0;
    let wide_graph = graph(Form { dtype: DType::F32, ..form });
    let graph = graph(form);
    let program = program(&graph);
    assert_eq!(families(&program), GRADIENT, "{name}");
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let simulated = Simulated::new(nvrtc, &program, &|text| text.to_string());
    let given = inputs(&graph);
    let wide = |tensor: &Tensor| {
        let mut wide = Tensor::zeros(DType::F32, tensor.shape());
        tensor.values().enumerate().for_each(|(i, value)| wide.set(i, value));
        wide
    };
    let tensors: Tensors = given.iter().map(|(name, tensor)| (name.clone(), wide(tensor))).collect();
    let want = interpret(&wide_graph, &tensors, &Tensors::new()).unwrap();
    let given: Vec<Tensor> = given.into_iter().map(|(_, tensor)| tensor).collect();
    for order in everywhere() {
        let (have, _) = simulated
            .run(&given, &Bindings::default(), order, None)
            .unwrap_or_else(|e| panic!("{name} {order:?}: {e}"));
        for (bytes, (output, want)) in have.iter().zip(&want.outputs) {
            let have = Tensor::from_bytes(form.dtype, want.shape(), bytes).unwrap();
            let greatest = want.values().fold(0.0f64, |most, y| most.max(y.as_f64().abs()));
            let allowed = ROUNDINGS * unit(form.dtype) * greatest;
            for (i, (x, y)) in have.values().zip(want.values()).enumerate() {
                let (x, y) = (x.as_f64(), y.as_f64());
                assert!((x - y).abs() <= allowed, "{name} {output}[{i}] is {x}, not {y}, within {allowed:e}");
            }
        }
    }
}

/// The kernels of a training step.
const GRADIENT: [&str; 4] = ["attention", "attention_grad", "attention_grad", "attention_grad"];

/// Every order gives what the interpreter does.
fn check_graph(name: &str, graph: &Graph, expected: &[&str]) {
    let program = program(graph);
    assert_eq!(families(&program), expected, "{name}");
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let simulated = Simulated::new(nvrtc, &program, &|text| text.to_string());
    let inputs = inputs(graph);
    let tensors: Tensors = inputs.iter().cloned().collect();
    let expanded = egret_ir::autodiff::expand(graph).unwrap_or_else(|e| panic!("{name}: {e}"));
    let want = interpret_bounded(&expanded, &tensors).unwrap();
    let given: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
    for order in everywhere() {
        let (have, _) = simulated
            .run(&given, &Bindings::default(), order, None)
            .unwrap_or_else(|e| panic!("{name} {order:?}: {e}"));
        for (bytes, (output, want)) in have.iter().zip(&want) {
            let have = Tensor::from_bytes(want.value.dtype(), want.value.shape(), bytes).unwrap();
            near(&format!("{name} {output} {order:?}"), &have, want);
        }
    }
}

fn check(name: &str, form: Form) {
    check_graph(name, &graph(form, false), &["attention"]);
}

fn check_gradient(name: &str, form: Form) {
    check_graph(name, &graph(form, true), &GRADIENT);
}

#[test]
fn f32_is_attended_by_fma() {
    check("f32", PLAIN);
    check("f32 causal", Form { queries: 70, keys: 70, channels: [16, 16], mask: Mask::Causal, ..PLAIN });
    check("f32 wide", Form { queries: 9, keys: 20, channels: [136, 200], ..PLAIN });
    check("f32 odd channels", Form { channels: [7, 5], mask: Mask::Added, ..PLAIN });
}

#[test]
fn halves_are_attended_by_matrices() {
    let plain = Form { dtype: DType::BF16, queries: 70, keys: 130, channels: [64, 64], ..PLAIN };
    check("bf16", plain);
    check("bf16 causal", Form { keys: 90, queries: 90, mask: Mask::Causal, ..plain });
    check("f16 padded channels", Form { dtype: DType::F16, channels: [40, 24], mask: Mask::Truth, ..plain });
    check("bf16 odd channels", Form { channels: [20, 9], keys: 70, ..plain });
    check("f16 wide", Form { dtype: DType::F16, queries: 20, keys: 50, channels: [256, 160], ..plain });
}

#[test]
fn heads_may_share_keys() {
    let grouped = Form { heads: [4, 2], queries: 40, keys: 40, mask: Mask::Causal, ..PLAIN };
    check("f32 grouped", Form { channels: [8, 8], ..grouped });
    check("bf16 grouped", Form { dtype: DType::BF16, channels: [32, 32], ..grouped });
}

#[test]
fn masks_are_added_or_truths() {
    check("f32 added", Form { mask: Mask::Added, heads: [2, 2], ..PLAIN });
    // rows without keys are NaN
    check("f32 truth", Form { mask: Mask::Truth, heads: [2, 2], ..PLAIN });
}

#[test]
fn one_query_is_decoded() {
    let one = Form { queries: 1, keys: 700, channels: [64, 64], ..PLAIN };
    let split = ["attention", "attention"];
    check_graph("f32 split", &graph(one, false), &split);
    check_graph("bf16 grouped", &graph(Form { dtype: DType::BF16, heads: [4, 1], ..one }, false), &split);
    check_graph("f32 masked", &graph(Form { mask: Mask::Truth, channels: [20, 36], ..one }, false), &split);
    check("few keys", Form { keys: 33, channels: [128, 48], heads: [2, 2], ..one });
}

#[test]
fn gradients_by_fma() {
    check_gradient("f32", Form { queries: 33, keys: 37, channels: [16, 24], ..PLAIN });
    check_gradient("f32 causal", Form { queries: 36, keys: 36, channels: [16, 16], mask: Mask::Causal, ..PLAIN });
    check_gradient("f32 added", Form { queries: 12, keys: 20, channels: [8, 8], mask: Mask::Added, ..PLAIN });
    check_gradient("f32 grouped", Form { heads: [4, 2], queries: 20, keys: 18, channels: [8, 8], ..PLAIN });
}

#[test]
fn gradients_by_matrices() {
    let plain = Form { dtype: DType::BF16, queries: 70, keys: 66, channels: [32, 32], ..PLAIN };
    let spelled = |form: Form| graph(form, true);
    check_half_gradient("bf16", plain, &spelled);
    check_half_gradient("bf16 causal", Form { keys: 70, mask: Mask::Causal, ..plain }, &spelled);
    check_half_gradient("bf16 grouped", Form { heads: [6, 2], queries: 40, ..plain }, &grouped);
    let wide = Form { dtype: DType::F16, queries: 20, keys: 20, channels: [144, 136], ..plain };
    check_half_gradient("f16 sliced", wide, &spelled);
}

/// The gradient of the operator whose keys and values lack the label of the heads that share them.
fn grouped(form: Form) -> Graph {
    let Form { dtype, heads: [heads, groups], queries, keys, channels: [head, value], .. } = form;
    let labels = ["abcde", "abfe", "abfg", "abcdg", "abcdf"].map(Labels::new);
    let scale = ScalarExpr::float(0.25, dtype);
    let attention = Attention::new(labels, ScalarExpr::apply(ScalarFn::Mul, [ScalarExpr::arg(0), scale], dtype));
    let graph = trace(|t| {
        let q = t.input("q", of(dtype, &[BATCH, groups, heads / groups, queries, head]));
        let k = t.input("k", of(dtype, &[BATCH, groups, keys, head]));
        let v = t.input("v", of(dtype, &[BATCH, groups, keys, value]));
        let upstream = t.input("do", of(dtype, &[BATCH, groups, heads / groups, queries, value]));
        let (o, _) = q.attention(k, v, attention, &[]);
        [vec![o], t.grad((o * upstream).sum(), &[q, k, v])].concat()
    });
    graph.unwrap_or_else(|e| panic!("{e}"))
}

/// An attention that gives 0 where no key is seen.
#[test]
fn rows_without_keys_may_be_zeros() {
    let labels = ["abc", "adc", "ade", "abe", "abd"].map(Labels::new);
    let low = ScalarExpr::float(f64::NEG_INFINITY, DType::F32);
    let score = ScalarExpr::apply(ScalarFn::Select, [ScalarExpr::arg(1), ScalarExpr::arg(0), low], DType::F32);
    for queries in [5, 1] {
        let attention = Attention { empty_is_zero: true, ..Attention::new(labels.clone(), score.clone()) };
        let graph = trace(|t| {
            let leaf = |name: &str, rows: i64| t.input(name, of(DType::F32, &[BATCH, rows, 16]));
            let mask = t.input("mask", of(DType::Bool, &[BATCH, 1, 30]));
            let (q, k, v) = (leaf("q", queries), leaf("k", 30), leaf("v", 30));
            let (o, _) = q.attention(k, v, attention, &[mask]);
            o
        });
        check_graph("empty", &graph.unwrap(), &["attention"]);
    }
}

/// Kernels stay within the registers and the shared memory of a block, and spill nothing.
#[test]
fn kernels_compile_without_spills() {
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    for (dtype, channels) in [(DType::BF16, 128), (DType::F16, 256), (DType::F32, 128)] {
        let form = Form { dtype, queries: 512, keys: 512, channels: [channels; 2], mask: Mask::Causal, ..PLAIN };
        let program = program(&graph(form, true));
        for kernel in &program.kernels {
            let KernelBody::Cuda(code) = &kernel.body else { panic!("{}", kernel.name) };
            for arch in if channels == 256 { &["sm_80"][..] } else { &["sm_80", "sm_90a"] } {
                let made = nvrtc.compile(&code.source, &kernel.name, arch, &[]).unwrap_or_else(|e| panic!("{e}"));
                let defect = made.log.contains("Potential Performance Loss") || made.log.contains("(C7");
                assert!(!defect, "{}", made.log);
                let [resources] = &*made.kernels else { panic!("{}", made.log) };
                let shared = resources.shared_bytes as usize + code.shared_bytes as usize;
                println!(
                    "{dtype} {channels} {} {arch}: {} registers, {shared} bytes shared, {} spilled",
                    kernel.family, resources.registers, resources.spill_bytes
                );
                assert_eq!(
                    (resources.spill_bytes, resources.stack_bytes),
                    (0, 0),
                    "{dtype} {channels} {}",
                    kernel.family
                );
                // of every GPU from sm_80 on
                assert!(shared <= 99 * 1024, "{shared} bytes");
            }
        }
    }
}

/// Bugs in the text of a kernel that the simulator, or the result, must show.
#[test]
fn planted_bugs_are_caught() {
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let form = Form { dtype: DType::BF16, queries: 70, keys: 130, channels: [64, 64], ..PLAIN };
    let graph = graph(form, false);
    let program = program(&graph);
    let inputs = inputs(&graph);
    let want = interpret_bounded(&graph, &inputs.iter().cloned().collect()).unwrap();
    let given: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
    // of the n-th occurrence
    let nth = |text: &str, what: &str, with: &str, n: usize| -> String {
        let (at, _) = text.match_indices(what).nth(n).unwrap_or_else(|| panic!("no {what}"));
        format!("{}{with}{}", &text[..at], &text[at + what.len()..])
    };
    let body = |text: &str| text.find("extern \"C\" __global__").expect("a kernel");
    let bugs: [(&str, &str, &str, usize); 5] = [
        ("no barrier before scores", "__syncthreads();", ";", 0),
        ("no barrier after scores", "__syncthreads();", ";", 1),
        ("no barrier after the values are weighed", "__syncthreads();", ";", 3),
        ("a wait too few for keys", "wait_copies<1>();", "wait_copies<2>();", 0),
        ("a wait too few for values", "wait_copies<1>();", "wait_copies<2>();", 1),
    ];
    for (name, what, with, n) in bugs {
        let change = |text: &str| {
            let at = body(text);
            format!("{}{}", &text[..at], nth(&text[at..], what, with, n))
        };
        let simulated = Simulated::new(nvrtc, &program, &change);
        let wrong = everywhere().any(|order| match simulated.run(&given, &Bindings::default(), order, None) {
            Err(_) => true,
            Ok((have, _)) => {
                let have = Tensor::from_bytes(want[0].1.value.dtype(), want[0].1.value.shape(), &have[0]).unwrap();
                let pairs = have.values().zip(want[0].1.value.values()).zip(&want[0].1.error);
                pairs.into_iter().any(|((x, y), error)| {
                    let distance = (x.as_f64() - y.as_f64()).abs();
                    distance.is_nan() || distance > BOUNDS * error
                })
            }
        });
        assert!(wrong, "{name} is not noticed");
    }
}
