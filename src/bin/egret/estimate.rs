//! `egret estimate`: time and memory on devices that need not be there.

use egret::{DeviceDescription, estimate};
use serde_json::{Value, json};

use crate::args::EstimateArgs;
use crate::failure::Failure;
use crate::model;

/// Estimates a model on the devices that were named.
pub fn run(args: &EstimateArgs, as_json: bool) -> Result<(), Failure> {
    let graph = model::load(&args.model)?;
    let bindings = model::sizes(&model::inputs(&graph), &args.dims)?;
    let options = egret::CompileOptions { level: args.rewrite, ..egret::CompileOptions::default() };
    let names: Vec<&str> = match args.device.as_str() {
        "all" => DeviceDescription::names().collect(),
        one => vec![one],
    };
    let mut rows = Vec::with_capacity(names.len());
    for name in names {
        let device = model::description(name)?;
        rows.push(estimate(&graph, &device, &options, &bindings)?);
    }
    if as_json {
        let row = |e: &egret::Estimate| -> Value {
            json!({
                "device": e.device, "time_ms": e.work.time / 1e3, "kernels": e.work.launches, "flops": e.work.flops,
                "bytes": e.work.bytes, "weight_bytes": e.memory.weights, "live_bytes": e.memory.live, "fits": e.fits,
            })
        };
        println!("{:#}", Value::from(rows.iter().map(row).collect::<Vec<Value>>()));
        return Ok(());
    }
    let sizes: Vec<String> = bindings.iter().map(|(name, size)| format!("{name}={size}")).collect();
    if !sizes.is_empty() {
        println!("sizes: {}", sizes.join(", "));
    }
    println!(
        "{:<16} {:>11} {:>8} {:>9} {:>10} {:>11} {:>10}  fits",
        "device", "time ms", "kernels", "GFLOP", "moved MB", "weights MB", "live MB"
    );
    for e in &rows {
        let fits = match e.fits {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        println!(
            "{:<16} {:>11.4} {:>8.0} {:>9.3} {:>10.2} {:>11.2} {:>10.2}  {fits}",
            e.device,
            e.work.time / 1e3,
            e.work.launches,
            e.work.flops / 1e9,
            e.work.bytes / 1e6,
            e.memory.weights / 1e6,
            e.memory.live / 1e6
        );
    }
    Ok(())
}
