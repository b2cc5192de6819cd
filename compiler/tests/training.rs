//! The first step of a recorded training run, compiled: gradients at every rewrite level.
//!
//! Data are found through `EGRET_TEST_DATA` (default: `shared` beside the checkout); without them the test says that it
//! is skipped.

mod support {
    pub mod drawn;
    pub mod host;
}

use std::path::{Path, PathBuf};
use std::sync::Arc;

use egret_compiler::rewrite::RewriteSet;
use egret_compiler::rewrite::rules::Topic;
use egret_compiler::{CompileOptions, Level, compile};
use egret_ir::{DType, Graph, Tensor, Tensors, Tracer, Var, f32, files, i64, interpret, trace};
use egret_runtime::{Executable, LoadOptions, State};
use support::drawn::drawn;
use support::host::description;

fn data() -> PathBuf {
    std::env::var_os("EGRET_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from)
}

fn conv<'t>(x: Var<'t>, filters: Var<'t>, bias: Var<'t>) -> Var<'t> {
    (x.conv2d(filters, [1, 1], [1, 1]) + bias.unsqueeze(&[1, 2])).relu().max_pool(&[2, 2], &[2, 2], &[0, 0])
}

/// Two convolutions with pooling, two dense layers: the gradient of every parameter, by its name.
fn training_graph(init: &Tensors) -> Graph {
    trace(|t: &Tracer<'_>| {
        let named: Vec<(String, Var)> =
            init.iter().map(|(name, value)| (name.clone(), t.param(name, value.clone()))).collect();
        let param = |name: &str| named.iter().find(|(have, _)| have == name).expect("a recorded parameter").1;
        let x = t.input("x", f32([32i64, 1, 28, 28]));
        let x = conv(x, param("conv1.weight"), param("conv1.bias"));
        let x = conv(x, param("conv2.weight"), param("conv2.bias")).flatten(1);
        let x = (x.dot_general(param("fc1.weight"), "bi,oi->bo") + param("fc1.bias")).relu();
        let logits = x.dot_general(param("fc2.weight"), "bi,oi->bo") + param("fc2.bias");
        let loss = logits.cross_entropy(t.input("y", i64([32]))).mean();
        let wrt: Vec<Var> = named.iter().map(|(_, v)| *v).collect();
        let grads = t.grad(loss, &wrt);
        named.iter().map(|(name, _)| name.clone()).zip(grads).collect::<Vec<_>>()
    })
    .expect("a graph")
}

/// Images and labels of the first training batch.
fn first(batches: &Tensors, name: &str, shape: &[usize], dtype: DType) -> Tensor {
    let mut out = Tensor::zeros(dtype, shape);
    let n = out.elements();
    batches[name].values().take(n).enumerate().for_each(|(i, v)| out.set(i, v));
    out
}

#[test]
fn first_gradients_of_the_recorded_cnn() {
    /// Of the greatest gradient of a tensor: what the recorded f32 and f64 runs allow an f32 implementation.
    const TOLERANCE: f64 = 5e-6;
    let folder = data().join("training/cnn");
    if !folder.exists() {
        println!("skipped: {} is not there", folder.display());
        return;
    }
    let read = |name: &str| files::read(&folder.join(name)).unwrap_or_else(|e| panic!("{e}"));
    let (init, batches, want) = (read("init.npz"), read("batches.npz"), read("grads_step0_float64.npz"));
    let graph = training_graph(&init);
    let x = first(&batches, "x", &[32, 1, 28, 28], DType::F32);
    let y = first(&batches, "target", &[32], DType::I64);
    let device = description();
    for level in [Level::None, Level::Greedy, Level::Full] {
        let options = CompileOptions { level, ..CompileOptions::default() };
        let program = compile(&graph, &device, &options).unwrap_or_else(|e| panic!("{e}")).program;
        let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
        let options = LoadOptions { threads: 2, isa: None };
        let executable = Executable::load(Arc::new(program), &weights, options).unwrap_or_else(|e| panic!("{e}"));
        let mut session = executable.session().unwrap_or_else(|e| panic!("{e}"));
        let outputs = session.run(&[("x", &x), ("y", &y)]).unwrap_or_else(|e| panic!("{e}"));
        for output in outputs.iter() {
            let (have, want) = (output.to_tensor(), &want[output.name()]);
            let most = want.values().fold(0.0, |m: f64, v| m.max(v.as_f64().abs()));
            for (a, b) in have.values().zip(want.values()) {
                let off = (a.as_f64() - b.as_f64()).abs();
                assert!(off <= TOLERANCE * most, "{} at {level:?}: off by {off:e} of {most:e}", output.name());
            }
        }
    }
}

/// Descent with momentum on layers of these extents, each trained by its own gradient.
fn descent(extents: &[usize]) -> Graph {
    trace(|t: &Tracer<'_>| {
        let mut x = t.input("x", f32([8i64, extents[0] as i64]));
        let mut params = Vec::new();
        for (i, pair) in extents.windows(2).enumerate() {
            let fill = |shape: &[usize]| drawn(DType::F32, shape, i as u64, 0.5, 1);
            let (w, b) = (t.state(&format!("{i}.w"), fill(pair)), t.state(&format!("{i}.b"), fill(&pair[1..])));
            x = (x.matmul(w) + b).tanh();
            params.extend([w, b]);
        }
        let loss = (x * x).mean();
        for (i, (p, g)) in params.iter().zip(t.grad(loss, &params)).enumerate() {
            let mean = t.state(&format!("{i}.mean"), Tensor::zeros(DType::F32, &extents_of(*p)));
            let square = t.state(&format!("{i}.square"), Tensor::zeros(DType::F32, &extents_of(*p)));
            let (next_mean, next_square) = (mean * 0.9 + g * 0.1, square * 0.99 + g * g * 0.01);
            t.update(mean, next_mean);
            t.update(square, next_square);
            t.update(*p, *p - next_mean * 0.1 / (next_square.sqrt() + 1e-3));
        }
        t.output("loss", loss);
    })
    .expect("a graph")
}

fn extents_of(value: Var<'_>) -> Vec<usize> {
    value.shape().iter().filter_map(|dim| dim.as_const()).map(|n| n as usize).collect()
}

/// Kernels that write states, and the states after four steps.
fn descended(graph: &Graph, level: Level, rules: RewriteSet) -> (usize, Tensors) {
    let options = CompileOptions { level, rules, ..CompileOptions::default() };
    let program = compile(graph, &description(), &options).unwrap_or_else(|e| panic!("{e}")).program;
    let states: Vec<_> = program.states.iter().map(|port| port.buffer).collect();
    let writes = |launch: &egret_program::Launch| launch.args.iter().any(|a| a.writes && states.contains(&a.buffer));
    let kernels = program.launches().into_iter().filter(|launch| writes(launch)).count();
    let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
    let options = LoadOptions { threads: 2, isa: None };
    let executable = Executable::load(Arc::new(program), &weights, options).unwrap_or_else(|e| panic!("{e}"));
    let state = State::new(&executable, &weights).unwrap_or_else(|e| panic!("{e}"));
    let mut session = executable.session_with(&state).unwrap_or_else(|e| panic!("{e}"));
    for step in 0..STEPS {
        session.run(&[("x", &batch(step))]).unwrap_or_else(|e| panic!("{e}"));
    }
    let value = |name: &String| state.get(name).unwrap_or_else(|e| panic!("{e}"));
    (kernels, state.names().iter().map(|name| (name.clone(), value(name))).collect())
}

const STEPS: u64 = 4;

fn batch(step: u64) -> Tensor {
    drawn(DType::F32, &[8, 64], step, 1.0, 1)
}

/// Tensors that end within a chunk of the grid, at its end, and beyond it: all their updates are one kernel, and what it
/// writes is what the interpreter writes.
#[test]
fn small_updates_are_one_kernel() {
    /// Where roots of squares are near zero, they divide what rounding left.
    const TOLERANCE: f64 = 1e-4;
    let graph = descent(&[64, 64, 100, 3]);
    let mut want = Tensors::new();
    for step in 0..STEPS {
        let outcome = interpret(&graph, &Tensors::from([("x".into(), batch(step))]), &want);
        want.extend(outcome.unwrap_or_else(|e| panic!("{e}")).updates);
    }
    let standard = RewriteSet::standard;
    // where products take up no update, all are maps
    let maps = (Level::Greedy, standard().without_topic(Topic::Epilogue), 1);
    let others = [Level::None, Level::Greedy, Level::Full].map(|level| (level, standard(), usize::MAX));
    for (level, rules, most) in others.into_iter().chain([maps]) {
        let (kernels, have) = descended(&graph, level, rules);
        assert!(kernels <= most, "{kernels} kernels write states at {level:?}");
        for (name, want) in &want {
            let off = |(a, b): (egret_ir::ScalarValue, egret_ir::ScalarValue)| (a.as_f64() - b.as_f64()).abs();
            let off = have[name].values().zip(want.values()).map(off).fold(0.0, f64::max);
            assert!(off <= TOLERANCE, "{name} is off by {off:e} at {level:?}");
        }
    }
}
