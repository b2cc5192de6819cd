//! `egret compile`: a program as a file.

use serde_json::json;

use crate::args::SaveArgs;
use crate::failure::Failure;
use crate::{model, tuning};

/// Compiles a model and writes its program.
pub fn compile(args: &SaveArgs, as_json: bool) -> Result<(), Failure> {
    let graph = match &args.inputs {
        Some(folder) => model::load_for(&args.compile.model, folder)?.graph,
        None => model::load(&args.compile.model)?,
    };
    let exe = egret::compile_with(&graph, &args.compile.target.device(), &args.compile.target.options())?;
    tuning::report(&exe);
    exe.save(&args.output)?;
    let bytes = std::fs::metadata(&args.output).map_err(|e| Failure::file(&args.output, &e))?.len();
    let (kernels, device) = exe.program().map_or((0, ""), |p| (p.launches().len(), p.device.as_str()));
    if as_json {
        println!(
            "{:#}",
            json!({ "file": args.output, "bytes": bytes, "kernels": kernels, "device": device,
            "tuning": tuning::as_value(exe.tuning()) })
        );
    } else {
        println!("{}: {:.2} MB, {kernels} kernels for {device}", args.output.display(), bytes as f64 / 1e6);
    }
    Ok(())
}
