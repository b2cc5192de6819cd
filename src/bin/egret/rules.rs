//! `egret rules`: the rules of rewriting, and those that no model uses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use egret::ir::Diagnostic;
use egret::rewrite::Class;
use egret::{CompileOptions, DeviceDescription, RewriteSet};
use egret_compiler::rewrite::{self, Options, rules as standard};
use serde_json::{Value, json};

use crate::args::RulesArgs;
use crate::failure::Failure;
use crate::model;

/// A rule as it is shown; rules that are code have no sides.
struct Shown {
    name: &'static str,
    topic: String,
    class: &'static str,
    doc: &'static str,
    sides: Option<(&'static str, &'static str)>,
}

fn class(class: Class) -> &'static str {
    match class {
        Class::Exact => "exact",
        Class::Real => "real",
        Class::Approximate => "approximate",
    }
}

fn all() -> Vec<Shown> {
    let set = RewriteSet::standard();
    let text = set.rules().map(|(topic, rule)| Shown {
        name: rule.name,
        topic: format!("{topic:?}").to_lowercase(),
        class: class(rule.class),
        doc: rule.doc,
        sides: Some((rule.left, rule.right)),
    });
    let code = standard::code_rules().iter().map(|rule| Shown {
        name: rule.name,
        topic: format!("{:?}", rule.topic).to_lowercase(),
        class: class(rule.class),
        doc: rule.doc,
        sides: None,
    });
    let mut all: Vec<Shown> = code.chain(text).collect();
    all.sort_by(|a, b| a.topic.cmp(&b.topic));
    all
}

impl Shown {
    fn print(&self) {
        println!("{} ({}, {})\n  {}", self.name, self.topic, self.class, self.doc);
        if let Some((left, right)) = self.sides {
            println!("  {left}\n  => {right}");
        }
    }

    fn as_value(&self) -> Value {
        let (left, right) = self.sides.unzip();
        json!({
            "name": self.name, "topic": self.topic, "class": self.class, "doc": self.doc, "left": left, "right": right,
        })
    }
}

/// Lists rules, shows one, or lists those that no model uses.
pub fn rules(args: &RulesArgs, as_json: bool) -> Result<(), Failure> {
    if let Some(paths) = &args.unused {
        return unused(paths, as_json);
    }
    let mut shown = all();
    if let Some(name) = &args.name {
        shown.retain(|rule| rule.name == name);
        if shown.is_empty() {
            return Err(Failure::Usage(Diagnostic::new("E0454", format!("there is no rule `{name}`"))));
        }
    }
    if as_json {
        println!("{:#}", Value::Array(shown.iter().map(Shown::as_value).collect()));
    } else {
        shown.iter().for_each(Shown::print);
    }
    Ok(())
}

/// The models in files and folders.
fn models(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = paths.to_vec();
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).map_err(|e| Failure::file(&path, &e))?;
            for entry in entries {
                let entry = entry.map_err(|e| Failure::file(&path, &e))?.path();
                let model = entry.extension().is_some_and(|e| e == "onnx" || e == "egret");
                if entry.is_dir() || model {
                    todo.push(entry);
                }
            }
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn used(path: &Path, device: &DeviceDescription, names: &mut BTreeSet<&'static str>) -> Result<(), Failure> {
    let graph = model::load(path)?;
    let options = CompileOptions::default();
    let raised = egret_compiler::compile::raise(&graph, device, &options.rules, options.exact, &mut Vec::new())?;
    names.extend(raised.log.iter().map(|applied| applied.rule));
    let rewritten = rewrite::rewrite(&raised.graph, device, &Options::default())?;
    names.extend(rewritten.applied());
    Ok(())
}

/// Rules that apply to none of the models, for a CPU and for a GPU.
fn unused(paths: &[PathBuf], as_json: bool) -> Result<(), Failure> {
    let mut names = BTreeSet::new();
    let models = models(paths)?;
    let mut skipped = Vec::new();
    for path in &models {
        for device in ["x86-64-avx512", "sm_90a"] {
            let device = DeviceDescription::named(device).map_err(|e| Failure::usage(e.to_string()))?;
            if used(path, &device, &mut names).is_err() {
                skipped.push(path.display().to_string());
            }
        }
    }
    skipped.dedup();
    let unused: Vec<&str> = all().iter().map(|rule| rule.name).filter(|name| !names.contains(name)).collect();
    if as_json {
        println!("{:#}", json!({ "unused": unused, "models": models.len(), "skipped": skipped }));
    } else {
        unused.iter().for_each(|name| println!("{name}"));
        skipped.iter().for_each(|path| eprintln!("skipped {path}: it cannot be read without inputs"));
        eprintln!("{} of the rules are used by none of {} models", unused.len(), models.len());
    }
    if unused.is_empty() { Ok(()) } else { Err(Failure::Mismatch) }
}
