//! `egret cache`: what is kept of kernels compiled for GPUs, and of what tuning measured.

use std::path::Path;

use egret_runtime::Cache;
use egret_runtime::cache::Entry;
use serde_json::{Value, json};

use crate::args::{CacheAction, CacheArgs};
use crate::failure::Failure;

/// Lists, explains or clears the cache.
pub fn cache(args: &CacheArgs, as_json: bool) -> Result<(), Failure> {
    match &args.action {
        CacheAction::List => list(as_json),
        #[cfg(feature = "cuda")]
        CacheAction::Explain { model, arch } => explain(model, arch, as_json)?,
        CacheAction::Clear => clear(as_json)?,
    }
    Ok(())
}

/// Compiled kernels, and measurements.
fn parts() -> [(&'static str, Cache); 2] {
    [("kernels", Cache::standard()), ("tuning", Cache::tuning())]
}

fn folder(cache: &Cache) -> String {
    cache.folder().map_or_else(|| "nowhere".into(), |folder| folder.display().to_string())
}

fn list(as_json: bool) {
    let mut value = json!({});
    for (name, cache) in parts() {
        let (entries, folder) = (cache.entries(), folder(&cache));
        let bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
        if as_json {
            let entry = |e: &Entry| -> Value { json!({ "file": e.path, "about": e.about, "bytes": e.bytes }) };
            let all: Vec<Value> = entries.iter().map(entry).collect();
            value[name] = json!({ "folder": folder, "bytes": bytes, "entries": all });
            continue;
        }
        for entry in &entries {
            println!("{:>8} {}", entry.bytes, entry.about);
        }
        println!("{name}: {} entries, {:.2} MB in {folder}", entries.len(), bytes as f64 / 1e6);
    }
    if as_json {
        println!("{value:#}");
    }
}

#[cfg(feature = "cuda")]
fn explain(model: &Path, arch: &str, as_json: bool) -> Result<(), Failure> {
    use egret_program::{Image, KernelBody};
    use egret_runtime::RuntimeError;
    use egret_runtime::cuda::{CudaError, cache_key};

    let cache = Cache::standard();
    let description = crate::model::description(arch)?;
    let Some(arch) = description.arch() else {
        return Err(Failure::usage(format!("`{}` is no GPU", description.name)));
    };
    let graph = crate::model::load(model)?;
    let options = egret::CompileOptions::default();
    let program = egret_compiler::compile(&graph, &description, &options)?.program;
    let mut rows = Vec::new();
    for kernel in &program.kernels {
        let KernelBody::Cuda(code) = &kernel.body else { continue };
        let key = cache_key(code, arch, Image::Cubin).map_err(|source| {
            let (kernel, source) = (kernel.name.clone(), Box::new(source));
            let error = CudaError::Compile { kernel, origin: String::new(), source };
            egret::Error::from(RuntimeError::from(error))
        })?;
        rows.push((kernel, key, cache.has(key)));
    }
    let kept = rows.iter().filter(|(_, _, kept)| *kept).count();
    if as_json {
        let row = |(kernel, key, kept): &(&egret_program::Kernel, u128, bool)| -> Value {
            json!({ "kernel": kernel.name, "key": format!("{key:032x}"), "kept": kept })
        };
        println!("{:#}", Value::from(rows.iter().map(row).collect::<Vec<Value>>()));
        return Ok(());
    }
    for (kernel, key, kept) in &rows {
        let state = if *kept { "kept" } else { "to be compiled" };
        println!("{:<22} {:<10} {key:032x} {state}", kernel.name, kernel.family);
    }
    println!("{kept} of {} kernels for {arch} are kept in {}", rows.len(), folder(&cache));
    Ok(())
}

fn clear(as_json: bool) -> Result<(), Failure> {
    let mut value = json!({});
    for (name, cache) in parts() {
        let removed = cache.clear().map_err(|e| Failure::file(cache.folder().unwrap_or(Path::new("")), &e))?;
        let folder = folder(&cache);
        match as_json {
            true => value[name] = json!({ "folder": folder, "removed": removed }),
            false => println!("{name}: {removed} entries removed from {folder}"),
        }
    }
    if as_json {
        println!("{value:#}");
    }
    Ok(())
}
