//! Training: a step and its evaluation, compiled once, over one state; whole runs ([`Trainer::fit`]).

mod checkpoint;
mod curve;
mod evaluation;
mod fit;
mod numerics;
mod progress;

use std::collections::BTreeMap;
use std::path::Path;

use egret_compiler::CompileOptions;
use egret_ir::{DType, Graph, Literal, Tensor, TensorType, Var, trace};
use egret_nn::{Mode, Optimiser, Params};
use egret_runtime::Copied;

use crate::compile::{Executable, compile_with};
use crate::device::Device;
use crate::error::Result;
use crate::outputs::Outputs;
use crate::session::Session;
use crate::shape;
use crate::state::State;

pub use evaluation::{Classification, Evaluation};
pub use fit::{EarlyStopping, Epoch, Fit, History};
pub use numerics::Maker;
pub use progress::Progress;

/// The input that holds the learning rate.
const RATE: &str = "learning_rate";
/// Outputs of evaluation that classification is counted from.
const LOGITS: &str = "classes.logits";
const LABELS: &str = "classes.labels";

/// What a model is trained for.
pub struct Objective<'t> {
    /// A scalar to be minimised.
    pub loss: Var<'t>,
    /// What evaluation gives beside `loss`, by name.
    pub outputs: Vec<(&'static str, Var<'t>)>,
    /// Logits `[…, classes]` and integer labels `[…]`.
    pub classes: Option<(Var<'t>, Var<'t>)>,
    /// The path below which parameters are trained; empty: all.
    pub path: String,
}

impl<'t> Objective<'t> {
    /// A loss and nothing else.
    pub fn new(loss: Var<'t>) -> Objective<'t> {
        Objective { loss, outputs: Vec::new(), classes: None, path: String::new() }
    }

    /// With logits `[…, classes]` and integer labels `[…]`, so that evaluation counts what is classified right.
    pub fn classes(mut self, logits: Var<'t>, labels: Var<'t>) -> Objective<'t> {
        self.classes = Some((logits, labels));
        self
    }

    /// Trains the parameters below a path only, and keeps what the optimiser remembers of none in particular there: one half
    /// of a GAN.
    pub fn below(mut self, path: impl Into<String>) -> Objective<'t> {
        self.path = path.into();
        self
    }

    /// With one more output of evaluation.
    pub fn output(mut self, name: &'static str, value: Var<'t>) -> Objective<'t> {
        self.outputs.push((name, value));
        self
    }
}

/// Trains a model.
///
/// The model is traced twice: with an optimiser, as one graph of a whole step, and without, for evaluation. Both read
/// the parameters from one state, so that nothing is copied between them.
///
/// ```
/// use egret::{Device, Objective, Tensor, Trainer, f32, shape};
/// use egret::nn::{Layer, Linear, Sgd, loss};
///
/// let mut trainer = Trainer::new(&Device::interpreter(), &Sgd::default(), 1, |p| {
///     let y = Linear::new(1).forward(p, p.tracer().input("x", f32(shape!["batch", 1])));
///     Objective::new(loss::mse(y, p.tracer().input("target", f32(shape!["batch", 1])))).output("y", y)
/// })?;
/// let x = Tensor::new(&[2, 1], &[0.0f32, 1.0]).unwrap();
/// let target = Tensor::new(&[2, 1], &[1.0f32, 3.0]).unwrap();
/// trainer.set_learning_rate(0.5);
/// for _ in 0..60 {
///     trainer.step(&[("x", &x), ("target", &target)])?;
/// }
/// assert!((trainer.parameter("weight")?.get(0).as_f64() - 2.0).abs() < 1e-2);
/// # Ok::<(), egret::Error>(())
/// ```
pub struct Trainer {
    step: Session,
    evaluation: Session,
    programs: (Executable, Executable),
    state: State,
    parameters: Vec<String>,
    rate: Tensor,
}

impl Trainer {
    /// A trainer of the model that `model` traces, its parameters drawn from `seed`, with learning rate 0.001.
    ///
    /// # Errors
    /// What is wrong with the model or the device.
    pub fn new<F>(device: &Device, optimiser: &dyn Optimiser, seed: u64, model: F) -> Result<Trainer>
    where
        F: for<'a, 't> Fn(&Params<'a, 't>) -> Objective<'t>,
    {
        Trainer::with_values(device, optimiser, seed, &BTreeMap::new(), &CompileOptions::default(), model)
    }

    /// [`Trainer::new`] on states that another trainer has: those of the same names are one, the others are added. The two
    /// halves of a GAN are two trainers, each with an objective [below](Objective::below) a path of its own.
    ///
    /// # Errors
    /// As [`Trainer::new`]; states of another device.
    pub fn sharing<F>(state: &State, device: &Device, optimiser: &dyn Optimiser, seed: u64, model: F) -> Result<Trainer>
    where
        F: for<'a, 't> Fn(&Params<'a, 't>) -> Objective<'t>,
    {
        let options = CompileOptions::default();
        Trainer::build(device, optimiser, seed, &BTreeMap::new(), &options, Some(state), model)
    }

    /// [`Trainer::new`], with first values of parameters by name and options of the compiler: [`CompileOptions::remat`] says
    /// what a step keeps of its forward pass.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn with_values<F>(
        device: &Device,
        optimiser: &dyn Optimiser,
        seed: u64,
        values: &BTreeMap<String, Tensor>,
        options: &CompileOptions,
        model: F,
    ) -> Result<Trainer>
    where
        F: for<'a, 't> Fn(&Params<'a, 't>) -> Objective<'t>,
    {
        Trainer::build(device, optimiser, seed, values, options, None, model)
    }

    fn build<F>(
        device: &Device,
        optimiser: &dyn Optimiser,
        seed: u64,
        values: &BTreeMap<String, Tensor>,
        options: &CompileOptions,
        shared: Option<&State>,
        model: F,
    ) -> Result<Trainer>
    where
        F: for<'a, 't> Fn(&Params<'a, 't>) -> Objective<'t>,
    {
        let mut parameters = Vec::new();
        let step: Graph = trace(|t| {
            let p = Params::with_values(t, Mode::Train, seed, values.clone());
            let objective = model(&p);
            let rate = t.input(RATE, TensorType::new(DType::F64, shape![]));
            let trained = p.at(&objective.path);
            optimiser.minimise(&trained, objective.loss, rate);
            parameters = trained.below().into_iter().map(|parameter| parameter.name).collect();
            [("loss", objective.loss)]
        })?;
        let evaluation: Graph = trace(|t| {
            let p = Params::with_values(t, Mode::Evaluate, seed, values.clone());
            p.averaged(optimiser.averages());
            let objective = model(&p);
            t.output("loss", objective.loss);
            objective.outputs.into_iter().for_each(|(name, value)| t.output(name, value));
            if let Some((logits, labels)) = objective.classes {
                t.output(LOGITS, logits);
                t.output(LABELS, labels);
            }
        })?;
        let step = compile_with(&step, device, options)?;
        let evaluation = compile_with(&evaluation, device, options)?;
        let state = match shared {
            Some(state) => state.clone(),
            None => step.state()?,
        };
        state.add(&step)?;
        state.add(&evaluation)?;
        Ok(Trainer {
            step: step.session_with(&state)?,
            evaluation: evaluation.session_with(&state)?,
            programs: (step, evaluation),
            state,
            parameters,
            rate: scalar(1e-3),
        })
    }

    /// Sets the learning rate of the steps that follow.
    pub fn set_learning_rate(&mut self, rate: f64) {
        self.rate = scalar(rate);
    }

    /// Trains on a batch; gives its loss before the step.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn step(&mut self, batch: &[(&str, &Tensor)]) -> Result<f64> {
        let mut inputs: Vec<(&str, &Tensor)> = batch.to_vec();
        inputs.push((RATE, &self.rate));
        evaluation::loss_of(&self.step.run(&inputs)?)
    }

    /// What the last step copied: of the batch what kernels cannot read where it is, and the loss.
    pub fn copied(&self) -> Copied {
        self.step.copied()
    }

    /// The loss of a batch, as `loss`, and the model's other outputs; nothing changes.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn evaluate_batch(&mut self, batch: &[(&str, &Tensor)]) -> Result<Outputs<'_>> {
        self.evaluation.run(batch)
    }

    /// Names of the parameters that are trained, in order of creation.
    pub fn parameters(&self) -> &[String] {
        &self.parameters
    }

    /// A parameter as it is now.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn parameter(&self, name: &str) -> Result<Tensor> {
        self.state.get(name)
    }

    /// Parameters, and what the optimiser remembers.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Writes everything that the next step depends on, but for the data: [`State::save`].
    ///
    /// # Errors
    /// As [`State::save`].
    pub fn save(&self, path: &Path) -> Result<()> {
        self.state.save(path)
    }

    /// Goes on from a file that [`Trainer::save`] wrote: the steps that follow give the bits of a run that did not stop.
    ///
    /// # Errors
    /// As [`State::load`].
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        self.state.load(path)
    }

    /// The compiled step.
    pub fn step_program(&self) -> &Executable {
        &self.programs.0
    }

    /// The compiled evaluation.
    pub fn evaluation_program(&self) -> &Executable {
        &self.programs.1
    }
}

fn scalar(value: f64) -> Tensor {
    Tensor::scalar(Literal::float(value, DType::F64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_ir::{ScalarFn, f32, i64};
    use egret_nn::{Adam, BatchNorm, Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, Sequential, Sgd, data, loss};

    /// Losses and last parameters of three steps.
    fn train(device: &Device, optimiser: &dyn Optimiser) -> (Vec<f64>, Vec<f64>, Vec<Tensor>) {
        let net = Sequential::new()
            .named("conv", Conv2d::new(6, 3).stride(2))
            .layer(ScalarFn::Relu)
            .layer(MaxPool2d::new(2))
            .layer(Flatten)
            .named("out", Linear::new(10));
        let mut trainer = Trainer::new(device, optimiser, 3, |p| {
            let images = p.tracer().input("x", f32(shape!["batch", 1, 28, 28]));
            let logits = net.forward(p, images);
            Objective::new(loss::cross_entropy(logits, p.tracer().input("y", i64(shape!["batch"]))))
                .output("logits", logits)
        })
        .unwrap();
        let digits = data::digits(24, 5);
        let (mut losses, mut after) = (Vec::new(), Vec::new());
        for (x, y) in digits.batches(10) {
            losses.push(trainer.step(&[("x", &x), ("y", &y)]).unwrap());
            after.push(trainer.evaluate_batch(&[("x", &x), ("y", &y)]).unwrap().scalar("loss").unwrap());
        }
        let parameters = trainer.parameters().iter().map(|name| trainer.parameter(name).unwrap()).collect();
        (losses, after, parameters)
    }

    #[test]
    fn compiled_training_is_that_of_the_interpreter() {
        for optimiser in [&Adam::default() as &dyn Optimiser, &Sgd::momentum(0.9)] {
            let (losses, after, parameters) = train(&Device::cpu().with_threads(2), optimiser);
            let (want_losses, want_after, want) = train(&Device::interpreter(), optimiser);
            let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(close(&losses, &want_losses) && close(&after, &want_after), "{losses:?} for {want_losses:?}");
            assert!(after.iter().zip(&losses).all(|(after, before)| after < before), "{losses:?}, then {after:?}");
            for (have, want) in parameters.iter().zip(&want) {
                let worst = have.values().zip(want.values()).map(|(a, b)| (a.as_f64() - b.as_f64()).abs());
                assert!(worst.fold(0.0, f64::max) < 2e-5);
            }
        }
    }

    #[test]
    fn a_restored_run_goes_on_with_the_same_bits() {
        let folder = std::env::temp_dir().join(format!("egret-checkpoint-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("state.safetensors");
        let trainer = |hidden: usize| {
            let net = Sequential::new()
                .named("in", Linear::new(hidden))
                .layer(BatchNorm::default())
                .layer(ScalarFn::Relu)
                .layer(Dropout::new(0.3))
                .named("out", Linear::new(1));
            Trainer::new(&Device::cpu(), &Adam::w(0.01), 3, |p| {
                let y = net.forward(p, p.tracer().input("x", f32(shape!["batch", 4])));
                Objective::new(loss::huber(y, p.tracer().input("y", f32(shape!["batch", 1])), 1.0))
            })
            .unwrap()
        };
        let batch = |step: usize| {
            let values: Vec<f32> = (0..40).map(|i| ((i * 7 + step * 13) % 11) as f32 / 5.0 - 1.0).collect();
            (Tensor::new(&[8, 4], &values[..32]).unwrap(), Tensor::new(&[8, 1], &values[32..]).unwrap())
        };
        let steps = |trainer: &mut Trainer, steps: std::ops::Range<usize>| {
            let step = |step: usize| {
                let (x, y) = batch(step);
                trainer.step(&[("x", &x), ("y", &y)]).unwrap()
            };
            steps.map(step).collect::<Vec<f64>>()
        };
        let mut whole = trainer(6);
        let losses = steps(&mut whole, 0..9);
        let mut first = trainer(6);
        steps(&mut first, 0..4);
        first.save(&file).unwrap();
        steps(&mut first, 4..6);
        let mut second = trainer(6);
        second.restore(&file).unwrap();
        assert_eq!(steps(&mut second, 4..9), losses[4..]);
        for name in whole.state().names() {
            assert_eq!(whole.state().get(&name).unwrap(), second.state().get(&name).unwrap(), "{name}");
        }
        // another model, a damaged file, and no folder: an error, and nothing changed
        let mut other = trainer(5);
        let before = other.parameter("in.weight").unwrap();
        let error = other.restore(&file).unwrap_err().diagnostic();
        assert!(error.code == "E0805" && error.message.contains("`in.weight` is f32[6, 4], not f32[5, 4]"), "{error}");
        assert_eq!(other.parameter("in.weight").unwrap(), before);
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(second.restore(&file).unwrap_err().diagnostic().code, "E0805");
        assert_eq!(second.save(&folder.join("missing/state")).unwrap_err().diagnostic().code, "E0805");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn states_belong_to_one_kind_of_device() {
        let graph = trace(|t| {
            let n = t.state("n", scalar(0.0));
            t.update(n, n + 1.0);
            n
        })
        .unwrap();
        let (cpu, reference) = (Device::cpu(), Device::interpreter());
        let (cpu, reference) = (crate::compile(&graph, &cpu).unwrap(), crate::compile(&graph, &reference).unwrap());
        let state = cpu.state().unwrap();
        assert_eq!(reference.session_with(&state).err().unwrap().diagnostic().code, "E0802");
        for exe in [cpu, reference] {
            let state = exe.state().unwrap();
            let (mut one, mut other) = (exe.session_with(&state).unwrap(), exe.session_with(&state).unwrap());
            assert_eq!(one.run(&[]).unwrap().scalar("output"), Some(0.0));
            assert_eq!(other.run(&[]).unwrap().scalar("output"), Some(1.0));
            assert_eq!(state.get("n").unwrap(), scalar(2.0));
            state.set("n", &scalar(7.0)).unwrap();
            assert_eq!(one.run(&[]).unwrap().scalar("output"), Some(7.0));
            assert_eq!(exe.session().unwrap().run(&[]).unwrap().scalar("output"), Some(0.0));
            assert_eq!(state.get("m").unwrap_err().diagnostic().code, "E0513");
        }
    }
}
