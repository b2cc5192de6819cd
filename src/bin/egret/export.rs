//! `egret export`: a graph as an ONNX model.

use egret::onnx::export::{OPSET, save};
use serde_json::json;

use crate::args::ExportArgs;
use crate::failure::Failure;
use crate::model;

/// Writes a graph as an ONNX model.
pub fn export(args: &ExportArgs, as_json: bool) -> Result<(), Failure> {
    let graph = match &args.inputs {
        Some(folder) => model::load_for(&args.model, folder)?.graph,
        None => model::load(&args.model)?,
    };
    let data = save(&args.output, &graph)?;
    let bytes = std::fs::metadata(&args.output).map_err(|e| Failure::file(&args.output, &e))?.len();
    if as_json {
        println!("{:#}", json!({ "file": args.output, "data": data, "bytes": bytes, "opset": OPSET }));
        return Ok(());
    }
    println!("{}: {:.2} MB, opset {OPSET}", args.output.display(), bytes as f64 / 1e6);
    if let Some(data) = data {
        println!("{}: the elements of its tensors", data.display());
    }
    Ok(())
}
