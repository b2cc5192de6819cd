//! `egret run --batch`: many models, each with a status of its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use egret::Diagnostic;
use serde_json::json;

use crate::args::{InputArgs, RunArgs, threads};
use crate::failure::Failure;
use crate::run;

/// A line of the list: a model, its inputs, and where its outputs go.
struct Job {
    model: PathBuf,
    inputs: PathBuf,
    outputs: PathBuf,
}

/// What became of a line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ran,
    Unsupported,
    Failed,
}

/// Runs every line `model<TAB>inputs<TAB>outputs` of a list, and writes `status` into each outputs folder: `ok`,
/// `unsupported: why` or `error: why`. A model that fails, even by a panic, does not stop the others.
///
/// # Errors
/// A list that cannot be read or has another form; a status that cannot be written; [`Failure::Mismatch`] when a model
/// failed.
pub fn batch(list: &Path, args: &RunArgs, as_json: bool) -> Result<(), Failure> {
    let text = std::fs::read_to_string(list).map_err(|e| Failure::file(list, &e))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let jobs: Vec<Job> = lines.map(|(i, line)| job(list, i, line)).collect::<Result<_, _>>()?;
    let workers = threads(args.jobs);
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<Outcome>, Failure> {
        let mut outcomes = Vec::new();
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            outcomes.push(settle(job, args)?);
        }
        Ok(outcomes)
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.min(jobs.len())).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let mut outcomes = Vec::with_capacity(jobs.len());
    for part in parts {
        // a worker catches panics of its models
        outcomes.extend(part.map_err(|panic| Failure::Failed(Diagnostic::new("E0956", text_of(&*panic))))??);
    }
    let count = |of| outcomes.iter().filter(|outcome| **outcome == of).count();
    let (ran, unsupported, failed) = (count(Outcome::Ran), count(Outcome::Unsupported), count(Outcome::Failed));
    match as_json {
        true => println!("{:#}", json!({ "ran": ran, "unsupported": unsupported, "failed": failed })),
        false => println!("{ran} ran, {unsupported} not supported, {failed} failed"),
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Mismatch) }
}

fn job(list: &Path, i: usize, line: &str) -> Result<Job, Failure> {
    let mut fields = line.split('\t').map(PathBuf::from);
    match (fields.next(), fields.next(), fields.next(), fields.next()) {
        (Some(model), Some(inputs), Some(outputs), None) => Ok(Job { model, inputs, outputs }),
        _ => Err(Failure::usage(format!(
            "{}:{}: a line is a model, a folder of inputs and a folder for outputs, with tabs between",
            list.display(),
            i + 1
        ))),
    }
}

/// Runs one line and writes its status.
fn settle(job: &Job, args: &RunArgs) -> Result<Outcome, Failure> {
    let device = args.target.device_with(args.target.threads.unwrap_or(1));
    let from = InputArgs { inputs: Some(job.inputs.clone()), dims: Vec::new(), seed: 0 };
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        let ran = run::once(&job.model, &from, &device, &args.target.options(), false)?;
        crate::tensors::write(&job.outputs, "output", &ran.outputs)
    }));
    let (outcome, status) = match attempt {
        Ok(Ok(())) => (Outcome::Ran, "ok".to_string()),
        Ok(Err(Failure::Unsupported(why))) => (Outcome::Unsupported, format!("unsupported: {}", line_of(&why))),
        Ok(Err(Failure::Failed(why) | Failure::Usage(why))) => (Outcome::Failed, format!("error: {}", line_of(&why))),
        Ok(Err(Failure::Mismatch)) => (Outcome::Failed, "error: wrong results".to_string()),
        Err(panic) => (Outcome::Failed, format!("error: panic: {}", text_of(&*panic))),
    };
    std::fs::create_dir_all(&job.outputs).map_err(|e| Failure::file(&job.outputs, &e))?;
    let path = job.outputs.join("status");
    std::fs::write(&path, status).map_err(|e| Failure::file(&path, &e))?;
    Ok(outcome)
}

/// A diagnostic in one line: code, message, notes, origin.
fn line_of(diagnostic: &Diagnostic) -> String {
    let mut line = format!("{}: {}", diagnostic.code, diagnostic.message);
    for note in &diagnostic.notes {
        line = format!("{line}; {note}");
    }
    let origin: Vec<String> = diagnostic.origin.iter().map(ToString::to_string).collect();
    if !origin.is_empty() {
        line = format!("{line} ({})", origin.join(", "));
    }
    line.replace(['\n', '\r'], " ")
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "of unknown kind".into())
}
