//! `egret run`.

use std::path::Path;
use std::time::{Duration, Instant};

use egret::{CompileOptions, Device, Tensor};
use serde_json::{Value, json};

use crate::args::{InputArgs, RunArgs};
use crate::batch::batch;
use crate::failure::Failure;
use crate::model;
use crate::tensors::{self, Difference};
use crate::{trace, tuning};

/// One run of a model.
pub struct Run {
    /// Inputs by name.
    pub inputs: Vec<(String, Tensor)>,
    /// Inputs whose values the program was compiled for.
    pub fixed: Vec<String>,
    /// Outputs by name.
    pub outputs: Vec<(String, Tensor)>,
    /// How long it took.
    pub took: Duration,
    /// What a profiled run measured, as a trace.
    pub trace: Option<Value>,
    /// What tuning measured.
    pub tuned: Value,
}

/// Compiles a model and runs it once; inputs come from the folder in `from`, or are drawn.
///
/// # Errors
/// What is wrong with the model, its inputs or the run.
pub fn once(
    model: &Path,
    from: &InputArgs,
    device: &Device,
    options: &CompileOptions,
    traced: bool,
) -> Result<Run, Failure> {
    let model::Given { graph, inputs, fixed } = model::given(model, from)?;
    let device = &tuning::for_inputs(device, &graph, &inputs)?;
    let exe = egret::compile_with(&graph, device, options)?;
    tuning::report(&exe);
    let tuned = tuning::as_value(exe.tuning());
    let mut session = exe.session()?;
    session.profile(traced);
    let start = Instant::now();
    let outputs = session.run(&model::borrowed(&inputs))?;
    let outputs = outputs.iter().map(|output| (output.name().to_string(), output.to_tensor())).collect();
    let took = start.elapsed();
    let trace = traced.then(|| trace::chrome(session.timings(), session.spans(), device.name()));
    Ok(Run { inputs, fixed, outputs, took, trace, tuned })
}

/// Runs a model once, and compares or summarises its outputs; or a batch of models.
pub fn run(args: &RunArgs, as_json: bool) -> Result<(), Failure> {
    if let Some(list) = &args.batch {
        return batch(list, args, as_json);
    }
    let Some(model) = &args.model else { return Err(Failure::usage("no model is named")) };
    let Run { inputs, fixed, outputs, took, trace, tuned } =
        once(model, &args.inputs, &args.target.device(), &args.target.options(), args.trace.is_some())?;
    if let (Some(path), Some(trace)) = (&args.trace, trace) {
        std::fs::write(path, trace.to_string()).map_err(|e| Failure::file(path, &e))?;
    }
    if let Some(folder) = &args.outputs {
        tensors::write(folder, "output", &outputs)?;
    }
    let differences = match &args.expect {
        Some(folder) => {
            let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
            let expected = tensors::read(folder, "output", &names)?;
            let compare = |(have, want): (&(String, Tensor), &(String, Tensor))| {
                tensors::compare(&have.1, &want.1, args.rtol, args.atol)
            };
            Some(outputs.iter().zip(&expected).map(compare).collect::<Vec<_>>())
        }
        None => None,
    };
    let ok = differences.iter().flatten().all(Difference::is_none);
    let of = |i: usize| differences.as_ref().map(|all| &all[i]);
    if as_json {
        let outputs: Vec<Value> = outputs.iter().enumerate().map(|(i, (n, t))| as_value(n, t, of(i))).collect();
        let run_ms = took.as_secs_f64() * 1e3;
        let value = json!({ "ok": ok, "fixed": fixed, "run_ms": run_ms, "outputs": outputs, "tuning": tuned });
        println!("{value:#}");
    } else {
        if args.inputs.inputs.is_none() {
            let shapes: Vec<String> = inputs.iter().map(|(name, t)| format!("{name} {}", typed(t))).collect();
            println!("inputs drawn with seed {}: {}", args.inputs.seed, shapes.join(", "));
        }
        if !fixed.is_empty() {
            println!("compiled for the given {}, which shapes depend on", fixed.join(", "));
        }
        for (i, (name, tensor)) in outputs.iter().enumerate() {
            println!("{name}: {}", describe(tensor, of(i)));
        }
    }
    if ok { Ok(()) } else { Err(Failure::Mismatch) }
}

fn typed(tensor: &Tensor) -> String {
    format!("{}{:?}", tensor.dtype(), tensor.shape())
}

/// Least, greatest and mean of the elements that are no NaN, and how many are.
struct Summary {
    least: f64,
    greatest: f64,
    mean: f64,
    nans: usize,
}

fn summary(tensor: &Tensor) -> Summary {
    let mut summary = Summary { least: f64::INFINITY, greatest: f64::NEG_INFINITY, mean: 0.0, nans: 0 };
    let mut count = 0usize;
    for x in tensor.values().map(|v| v.as_f64()) {
        if x.is_nan() {
            summary.nans += 1;
            continue;
        }
        count += 1;
        summary.least = summary.least.min(x);
        summary.greatest = summary.greatest.max(x);
        summary.mean += (x - summary.mean) / count as f64;
    }
    summary
}

/// What differs, in a line.
pub fn errors(difference: &Difference) -> String {
    if let Some(types) = &difference.types {
        return types.clone();
    }
    let (absolute, relative) = (difference.absolute, difference.relative);
    // near 1 what is missing tells more
    let angle = (1.0 - difference.cosine).max(0.0);
    let errors =
        format!("largest error {absolute:.3e} absolute, {relative:.3e} relative, cosine similarity 1 - {angle:.1e}");
    match difference.first {
        None => format!("{errors}, as expected"),
        Some((i, have, want)) => {
            format!("{errors}; {} elements are wrong, first [{i}]: {have}, not {want}", difference.wrong)
        }
    }
}

fn describe(tensor: &Tensor, difference: Option<&Difference>) -> String {
    if let Some(difference) = difference {
        return format!("{}: {}", typed(tensor), errors(difference));
    }
    if tensor.elements() == 0 {
        return format!("{}, empty", typed(tensor));
    }
    let Summary { least, greatest, mean, nans } = summary(tensor);
    let nans = if nans > 0 { format!(", {nans} NaN") } else { String::new() };
    let first: Vec<String> = tensor.values().take(4).map(|v| format!("{:.6}", v.as_f64())).collect();
    let more = if tensor.elements() > 4 { " …" } else { "" };
    format!("{}: {least:.6} to {greatest:.6}, mean {mean:.6}{nans}: {}{more}", typed(tensor), first.join(" "))
}

fn as_value(name: &str, tensor: &Tensor, difference: Option<&Difference>) -> Value {
    let Summary { least, greatest, mean, nans } = summary(tensor);
    let mut value = json!({
        "name": name, "dtype": tensor.dtype().name(), "shape": tensor.shape(),
        "min": least, "max": greatest, "mean": mean, "nan": nans,
    });
    if let Some(difference) = difference {
        value["ok"] = json!(difference.is_none());
        value["max_absolute_error"] = json!(difference.absolute);
        value["max_relative_error"] = json!(difference.relative);
        value["cosine_similarity"] = json!(difference.cosine);
        value["wrong"] = json!(difference.wrong);
        value["mismatch"] = json!(difference.types);
    }
    value
}
