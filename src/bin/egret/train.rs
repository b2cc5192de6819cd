//! `egret train`: a model is trained further on files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use egret::ir::{Op, files, text};
use egret::nn::data::{self, DataSet, Subset};
use egret::nn::{Adagrad, Adam, Imported, Optimiser, RmsProp, Schedule, Sgd, loss};
use egret::{
    DType, Diagnostic, Fit, Graph, History, Objective, Progress, Shape, Tensor, TensorType, Tensors, Trainer, Weight,
};
use serde_json::json;

use crate::args::{LossKind, OptimiserKind, TrainArgs};
use crate::failure::Failure;
use crate::model;
use crate::train_data::{Fitted, open};

/// What the output of a model is compared with.
struct Goal {
    loss: LossKind,
    /// The input that holds what is wanted.
    name: String,
    ty: TensorType,
    /// Whether the output is a softmax, not its logits.
    probabilities: bool,
}

impl Goal {
    fn of(graph: &Graph, args: &TrainArgs) -> Result<Goal, Failure> {
        let Some((_, output)) = graph.outputs().first() else {
            return Err(Diagnostic::new("E0957", "the model has no output").into());
        };
        let ty = graph.tensor_type(*output).clone();
        let mut name = String::from("target");
        while model::inputs(graph).iter().any(|(have, _)| *have == name) {
            name.push('_');
        }
        let probabilities = matches!(&graph.node(*output).op, Op::Softmax(softmax) if !softmax.log);
        let rows: Option<Shape> = ty.shape.split_last().map(|(_, rows)| rows.iter().cloned().collect());
        let ty = match (args.loss, rows) {
            (LossKind::Mse, _) => ty,
            (LossKind::CrossEntropy, Some(rows)) => TensorType::new(DType::I64, rows),
            (LossKind::CrossEntropy, None) => {
                let message = format!("the model's output is {ty}: cross-entropy needs logits [batch, classes]");
                return Err(Diagnostic::new("E0957", message).into());
            }
        };
        Ok(Goal { loss: args.loss, name, ty, probabilities })
    }
}

fn optimiser(args: &TrainArgs) -> Box<dyn Optimiser> {
    let weight_decay = args.decay;
    match args.optimiser {
        OptimiserKind::Sgd => Box::new(Sgd { weight_decay, ..Sgd::default() }),
        OptimiserKind::Momentum => Box::new(Sgd { weight_decay, ..Sgd::momentum(0.9) }),
        OptimiserKind::Adam => Box::new(Adam { weight_decay, ..Adam::default() }),
        OptimiserKind::Adamw => Box::new(Adam::w(weight_decay)),
        OptimiserKind::Rmsprop => Box::new(RmsProp { weight_decay, ..RmsProp::default() }),
        OptimiserKind::Adagrad => Box::new(Adagrad { weight_decay, ..Adagrad::default() }),
    }
}

/// Trains a model, and writes it.
pub fn train(args: &TrainArgs, as_json: bool) -> Result<(), Failure> {
    let graph = model::load(&args.compile.model)?;
    let inputs = model::inputs(&graph);
    let goal = Goal::of(&graph, args)?;
    let set = open(&args.data, &inputs, args)?;
    let fitted = Fitted::new(&*set, &inputs, (&goal.name, &goal.ty), args.target.as_deref())?;
    let (training, validation) = data::split(&fitted, args.valid, args.seed);

    let imported = args.freeze.iter().fold(Imported::new(graph.clone()), |m, name| m.freeze(name));
    let (device, options) = (args.compile.target.device(), args.compile.target.options());
    let values = BTreeMap::new();
    let mut trainer = Trainer::with_values(&device, &*optimiser(args), args.seed, &values, &options, |p| {
        let given: Vec<(&str, egret::Var)> =
            inputs.iter().map(|(name, ty)| (name.as_str(), p.tracer().input(name, ty.clone()))).collect();
        let output = imported.apply(p, &given)[0];
        let target = p.tracer().input(&goal.name, goal.ty.clone());
        match (goal.loss, goal.probabilities) {
            (LossKind::Mse, _) => Objective::new(loss::mse(output, target)),
            (LossKind::CrossEntropy, true) => {
                Objective::new(loss::cross_entropy_of_probabilities(output, target)).classes(output, target)
            }
            (LossKind::CrossEntropy, false) => {
                Objective::new(loss::cross_entropy(output, target)).classes(output, target)
            }
        }
    })?;

    let batch = fixed_batch(&inputs).unwrap_or(args.batch).max(1);
    let fixed = fixed_batch(&inputs).is_some();
    let validation = if fixed { whole_batches(&validation, batch) } else { whole_batches(&validation, 1) };
    if fixed && training.len() < batch {
        let message = format!("the model takes batches of {batch}, and there are {} examples", training.len());
        return Err(Diagnostic::new("E0957", message).into());
    }
    let fit = options_of(args, batch, fixed, training.len());
    let valid: Option<&dyn DataSet> = if validation.is_empty() { None } else { Some(&validation) };
    let history = trainer.fit(&training, valid, &fit)?;
    if let Some(path) = &args.output {
        write(path, &graph, &trainer)?;
    }
    report(args, &history, as_json);
    Ok(())
}

/// The batch that a model was made for, where it takes no other.
fn fixed_batch(inputs: &[(String, TensorType)]) -> Option<usize> {
    let first = inputs.iter().filter_map(|(_, ty)| ty.shape.first()?.as_const());
    first.filter_map(|n| usize::try_from(n).ok()).next()
}

/// As many examples as fill batches.
fn whole_batches<'a>(set: &'a Subset<'a>, batch: usize) -> Subset<'a> {
    Subset::new(set, (0..set.len() / batch * batch).collect())
}

fn options_of(args: &TrainArgs, batch: usize, full: bool, examples: usize) -> Fit {
    let progress = if args.quiet { Progress::Off } else { Progress::Bars };
    let mut fit = Fit::new(args.epochs).batch(batch).full_batches(full).seed(args.seed).progress(progress);
    let schedule = match args.cosine {
        true => Schedule::cosine(args.rate, fit.steps(examples).saturating_sub(args.warm_up)),
        false => Schedule::constant(args.rate),
    };
    fit = fit.schedule(schedule.warm_up(args.warm_up)).check_numerics(args.check_numerics).resume(args.resume);
    if let Some(folder) = &args.checkpoints {
        fit = fit.checkpoints(folder).checkpoint_every(args.every);
    }
    if let Some(path) = &args.curve {
        fit = fit.curve(path);
    }
    match args.patience {
        Some(patience) => fit.patience(patience),
        None => fit,
    }
}

/// Writes the trained model: ONNX, its parameters as safetensors, or a graph as text, by the extension.
fn write(path: &Path, graph: &Graph, trainer: &Trainer) -> Result<(), Failure> {
    let mut trained: Vec<(String, Tensor)> = Vec::new();
    for name in trainer.parameters() {
        trained.push((name.clone(), trainer.parameter(name)?));
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if extension == "safetensors" {
        return Ok(files::write_safetensors(path, &trained.into_iter().collect::<Tensors>())?);
    }
    let mut graph = graph.clone();
    let weights = Arc::make_mut(&mut graph.weights);
    trained.into_iter().for_each(|(name, tensor)| {
        weights.insert(name, Weight::Tensor(tensor));
    });
    match extension {
        "onnx" => Ok(egret::onnx::export::save(path, &graph).map(|_| ())?),
        _ => Ok(text::save(path, &graph)?),
    }
}

fn report(args: &TrainArgs, history: &History, as_json: bool) {
    let epochs = &history.epochs;
    if as_json {
        let epochs: Vec<_> = epochs
            .iter()
            .map(|e| {
                json!({ "epoch": e.number, "steps": e.steps, "loss": e.loss, "valid_loss": e.valid_loss,
                    "accuracy": e.accuracy, "rate": e.rate, "seconds": e.seconds })
            })
            .collect();
        let (steps, best, early) = (history.steps, history.best, history.stopped_early);
        let whole = json!({ "epochs": epochs, "steps": steps, "best": best, "stopped_early": early,
            "output": args.output });
        println!("{whole:#}");
        return;
    }
    for epoch in epochs {
        let valid = epoch.valid_loss.map(|loss| format!(", validation {loss:.4}")).unwrap_or_default();
        let accuracy = epoch.accuracy.map(|share| format!(", accuracy {:.2} %", 100.0 * share)).unwrap_or_default();
        println!("epoch {}: loss {:.4}{valid}{accuracy}, {:.1} s", epoch.number, epoch.loss, epoch.seconds);
    }
    if history.stopped_early {
        println!("ended early; the parameters are those of epoch {}", history.best);
    }
    if let Some(path) = &args.output {
        println!("written to {}", path.display());
    }
}
