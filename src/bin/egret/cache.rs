//! `egret cache`: what is kept of kernels compiled for GPUs.

use egret_program::{Image, KernelBody};
use egret_runtime::RuntimeError;
use egret_runtime::cuda::{Cache, cache_key};
use serde_json::{Value, json};

use crate::args::{CacheAction, CacheArgs};
use crate::failure::Failure;
use crate::model;

/// Lists, explains or clears the cache.
pub fn cache(args: &CacheArgs, as_json: bool) -> Result<(), Failure> {
    let cache = Cache::standard();
    let folder = cache.folder().map(|f| f.display().to_string()).unwrap_or_else(|| "nowhere".into());
    match &args.action {
        CacheAction::List => {
            let entries = cache.entries();
            let bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
            if as_json {
                let entry = |e: &egret_runtime::cuda::cache::Entry| -> Value {
                    json!({ "file": e.path, "about": e.about, "bytes": e.bytes })
                };
                let all: Vec<Value> = entries.iter().map(entry).collect();
                println!("{:#}", json!({ "folder": folder, "bytes": bytes, "entries": all }));
                return Ok(());
            }
            for entry in &entries {
                println!("{:>8} {}", entry.bytes, entry.about);
            }
            println!("{} entries, {:.2} MB in {folder}", entries.len(), bytes as f64 / 1e6);
        }
        CacheAction::Explain { model, arch } => {
            let description = model::description(arch)?;
            let Some(arch) = description.arch() else {
                return Err(Failure::usage(format!("`{}` is no GPU", description.name)));
            };
            let graph = model::load(model)?;
            let options = egret::CompileOptions::default();
            let program = egret_compiler::compile(&graph, &description, &options)?.program;
            let mut rows = Vec::new();
            for kernel in &program.kernels {
                let KernelBody::Cuda(code) = &kernel.body else { continue };
                let key = cache_key(code, arch, Image::Cubin).map_err(|source| {
                    let (kernel, source) = (kernel.name.clone(), Box::new(source));
                    let error = egret_runtime::cuda::CudaError::Compile { kernel, origin: String::new(), source };
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
            println!("{kept} of {} kernels for {arch} are kept in {folder}", rows.len());
        }
        CacheAction::Clear => {
            let removed =
                cache.clear().map_err(|e| Failure::file(cache.folder().unwrap_or(std::path::Path::new("")), &e))?;
            match as_json {
                true => println!("{:#}", json!({ "folder": folder, "removed": removed })),
                false => println!("{removed} entries removed from {folder}"),
            }
        }
    }
    Ok(())
}
