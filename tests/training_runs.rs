//! Training runs recorded with PyTorch, step by step: models traced in both precisions, and the same models read from ONNX
//! and trained further.
//!
//! The runs are in `$EGRET_TEST_DATA/training`; without them the tests say that they are skipped.

use std::collections::BTreeMap;
use std::path::PathBuf;

use egret::ir::files;
use egret::nn::{
    Adam, Conv2d, Embedding, Flatten, Imported, Layer, Linear, Lstm, MaxPool2d, Mode, Optimiser, Params, Sequential,
    Sgd, loss,
};
use egret::{CompileOptions, DType, Device, Objective, ScalarFn, Tensor, Tensors, Trainer, Var};
use serde_json::Value;

/// Of a loss: some ten times what two implementations in f32 differ by, and what is left of f64 after
/// twenty steps.
const LOSS: [(DType, f64); 2] = [(DType::F32, 5e-6), (DType::F64, 1e-10)];
/// Of the greatest element of a gradient.
const GRADIENT: [(DType, f64); 2] = [(DType::F32, 5e-6), (DType::F64, 1e-12)];

fn bound(bounds: [(DType, f64); 2], dtype: DType) -> f64 {
    bounds.iter().find(|(have, _)| *have == dtype).expect("f32 or f64").1
}

/// A recorded run.
struct Run {
    name: &'static str,
    folder: PathBuf,
    spec: Value,
    trace: Value,
    init: BTreeMap<String, Tensor>,
    batches: Tensors,
    /// Whether the classes are known, or a target in 0..1.
    classes: bool,
}

impl Run {
    fn read(name: &'static str) -> Option<Run> {
        let folder = xtask::data().join("training").join(name);
        if !folder.exists() {
            println!("skipped: {} is not there", folder.display());
            return None;
        }
        let json = |file: &str| {
            let text = std::fs::read_to_string(folder.join(file)).unwrap();
            serde_json::from_str::<Value>(&text).unwrap()
        };
        let tensors = |file: &str| files::read(&folder.join(file)).unwrap();
        let batches = tensors("batches.npz");
        let classes = batches["target"].dtype() == DType::I64;
        let init = tensors("init.npz").into_iter().collect();
        Some(Run { name, spec: json("spec.json"), trace: json("trace.json"), init, batches, classes, folder })
    }

    fn inputs(&self) -> Vec<String> {
        self.spec["inputs"].as_object().unwrap().keys().cloned().chain(["target".into()]).collect()
    }

    /// The input or target of a step; floats in that precision.
    fn batch(&self, name: &str, step: usize, dtype: DType) -> Tensor {
        let all = &self.batches[name];
        let shape = &all.shape()[1..];
        let count: usize = shape.iter().product();
        let mut batch = Tensor::zeros(if all.dtype().is_float() { dtype } else { all.dtype() }, shape);
        (0..count).for_each(|i| batch.set(i, all.get(step * count + i)));
        batch
    }

    /// The optimiser of that name, and its learning rate.
    fn optimiser(&self, name: &str) -> (Box<dyn Optimiser>, f64) {
        let spec = &self.spec["optimizers"][name];
        let number = |key: &str| spec[key].as_f64().unwrap();
        let optimiser: Box<dyn Optimiser> = match name {
            "sgd" => Box::new(Sgd::momentum(number("momentum"))),
            "adam" => Box::new(Adam { eps: number("eps"), ..Adam::default() }),
            _ => Box::new(Adam { eps: number("eps"), ..Adam::w(number("weight_decay")) }),
        };
        (optimiser, number("lr"))
    }

    fn recorded(&self, optimiser: &str, dtype: DType, what: &str) -> Vec<f64> {
        let list = &self.trace[optimiser][if dtype == DType::F32 { "float32" } else { "float64" }][what];
        list.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    }

    /// The inputs of a graph under construction, the target last.
    fn declare<'t>(&self, p: &Params<'_, 't>, dtype: DType) -> Vec<(String, Var<'t>)> {
        let declare = |name: String| {
            let batch = self.batch(&name, 0, dtype);
            let shape: egret::Shape = batch.shape().iter().map(|n| egret::Dim::from(*n)).collect();
            let value = p.tracer().input(&name, egret::TensorType::new(batch.dtype(), shape));
            (name, value)
        };
        self.inputs().into_iter().map(declare).collect()
    }

    fn loss<'t>(&self, output: Var<'t>, target: Var<'t>) -> Var<'t> {
        match self.classes {
            true => loss::cross_entropy(output, target),
            false => loss::binary_cross_entropy(output, target),
        }
    }

    /// The loss of the model as traced, or of the imported one.
    fn objective<'t>(&self, p: &Params<'_, 't>, dtype: DType, imported: Option<&Imported>) -> Var<'t> {
        p.of(dtype);
        let inputs = self.declare(p, dtype);
        let target = inputs[inputs.len() - 1].1;
        let output = match imported {
            Some(model) => {
                let given: Vec<(&str, Var)> = inputs.iter().map(|(name, value)| (name.as_str(), *value)).collect();
                model.apply(p, &given)[0]
            }
            None => traced(self.name, p, &|name| inputs.iter().find(|(have, _)| have == name).expect("an input").1),
        };
        self.loss(output, target)
    }
}

/// The output of a model.
fn traced<'t>(name: &str, p: &Params<'_, 't>, input: &dyn Fn(&str) -> Var<'t>) -> Var<'t> {
    let linear = |name: &str, out: usize, x: Var<'t>| Linear::new(out).forward(&p.at(name), x);
    match name {
        "mlp" => Sequential::new()
            .named("fc1", Linear::new(128))
            .layer(ScalarFn::Relu)
            .named("fc2", Linear::new(64))
            .layer(ScalarFn::Relu)
            .named("fc3", Linear::new(10))
            .forward(p, input("x")),
        "cnn" => Sequential::new()
            .named("conv1", Conv2d::new(8, 3).padding(1))
            .layer(ScalarFn::Relu)
            .layer(MaxPool2d::new(2))
            .named("conv2", Conv2d::new(16, 3).padding(1))
            .layer(ScalarFn::Relu)
            .layer(MaxPool2d::new(2))
            .layer(Flatten)
            .named("fc1", Linear::new(64))
            .layer(ScalarFn::Relu)
            .named("fc2", Linear::new(10))
            .forward(p, input("x")),
        "lstm" => Sequential::new()
            .named("emb", Embedding::new(65, 32))
            .named("rnn", Lstm::new(64))
            .named("out", Linear::new(65))
            .forward(p, input("ids")),
        _ => {
            let dense = linear("bot.2", 16, linear("bot.0", 32, input("dense")).relu()).relu();
            let (idx, mut vectors) = (input("idx"), vec![dense.unsqueeze(&[1])]);
            for (i, count) in [943, 1682, 19, 21].into_iter().enumerate() {
                let column = idx.narrow(1, i as i64, 1);
                vectors.push(Embedding::new(count, 16).forward(&p.at(format!("e.{i}")), column));
            }
            // the products of all pairs of the five vectors
            let vectors = p.tracer().concat(&vectors, 1);
            let products = vectors.dot_general(vectors, "bik,bjk->bij");
            let pair = |i: i64, j: i64| products.narrow(1, i, 1).narrow(2, j, 1).squeeze(&[2]);
            let pairs: Vec<Var> =
                (0..5).flat_map(|i| (i + 1..5).map(move |j| (i, j))).map(|(i, j)| pair(i, j)).collect();
            let x = p.tracer().concat(&[vec![dense], pairs].concat(), 1);
            let x = linear("top.2", 32, linear("top.0", 64, x).relu()).relu();
            linear("top.4", 1, x).squeeze(&[1])
        }
    }
}

/// Twenty steps by each optimiser.
fn steps(run: &Run, dtype: DType, imported: Option<&Imported>) {
    let device = Device::cpu().with_threads(2);
    for optimiser in ["sgd", "adam", "adamw"] {
        let (rule, rate) = run.optimiser(optimiser);
        let options = CompileOptions::default();
        let mut trainer = Trainer::with_values(&device, &*rule, 0, &run.init, &options, |p| {
            Objective::new(run.objective(p, dtype, imported))
        })
        .unwrap_or_else(|e| panic!("{}: {e}", run.name));
        trainer.set_learning_rate(rate);
        let (before, after) =
            (run.recorded(optimiser, dtype, "loss_before"), run.recorded(optimiser, dtype, "loss_after"));
        assert_eq!(before.len(), 20);
        let mut worst = 0f64;
        for (step, (want, later)) in before.iter().zip(&after).enumerate() {
            let batch: Vec<(String, Tensor)> =
                run.inputs().into_iter().map(|name| (name.clone(), run.batch(&name, step, dtype))).collect();
            let batch: Vec<(&str, &Tensor)> = batch.iter().map(|(name, value)| (name.as_str(), value)).collect();
            let have = trainer.step(&batch).unwrap();
            let after = trainer.evaluate_batch(&batch).unwrap().scalar("loss").unwrap();
            for (have, want) in [(have, want), (after, later)] {
                worst = worst.max((have - want).abs());
                let most = bound(LOSS, dtype);
                assert!(
                    (have - want).abs() <= most,
                    "{} {optimiser} {dtype}, step {step}: {have} for {want}",
                    run.name
                );
            }
        }
        println!("{} {optimiser} {dtype} imported={}: off by at most {worst:.1e}", run.name, imported.is_some());
    }
}

/// The gradients before the first step.
fn gradients(run: &Run, dtype: DType) {
    let file = if dtype == DType::F32 { "grads_step0_float32.npz" } else { "grads_step0_float64.npz" };
    let want = files::read(&run.folder.join(file)).unwrap();
    let graph = egret::trace(|t| {
        let p = Params::with_values(t, Mode::Infer, 0, run.init.clone());
        let loss = run.objective(&p, dtype, None);
        let parameters = p.all();
        let values: Vec<Var> = parameters.iter().map(|parameter| parameter.value).collect();
        for (parameter, gradient) in parameters.iter().zip(t.grad(loss, &values)) {
            t.output(&parameter.name, gradient);
        }
    })
    .unwrap();
    let exe = egret::compile(&graph, &Device::cpu().with_threads(2)).unwrap();
    let batch: Vec<(String, Tensor)> =
        run.inputs().into_iter().map(|name| (name.clone(), run.batch(&name, 0, dtype))).collect();
    let batch: Vec<(&str, &Tensor)> = batch.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let mut session = exe.session().unwrap();
    let outputs = session.run(&batch).unwrap();
    assert_eq!(outputs.len(), run.init.len());
    let mut most_off = 0f64;
    for output in outputs.iter() {
        let (have, want) = (output.to_tensor(), &want[output.name()]);
        let most = want.values().fold(0f64, |most, x| most.max(x.as_f64().abs()));
        for (a, b) in have.values().zip(want.values()) {
            let off = (a.as_f64() - b.as_f64()).abs();
            most_off = most_off.max(off / most);
            assert!(off <= bound(GRADIENT, dtype) * most, "{} {}: off by {off:e} of {most:e}", run.name, output.name());
        }
    }
    println!("{} {dtype}: gradients off by at most {most_off:.1e} of the greatest", run.name);
}

fn check(name: &'static str) {
    let Some(run) = Run::read(name) else { return };
    for (dtype, _) in LOSS {
        gradients(&run, dtype);
        steps(&run, dtype, None);
    }
    let forward = egret::onnx::load(&run.folder.join("forward.onnx")).unwrap();
    steps(&run, DType::F32, Some(&Imported::new(forward)));
}

#[test]
fn a_perceptron() {
    check("mlp");
}

#[test]
fn a_convolutional_network() {
    check("cnn");
}

#[test]
fn a_recurrent_network() {
    check("lstm");
}

#[test]
fn a_recommender() {
    check("dlrm_synth");
}
