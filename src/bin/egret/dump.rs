//! `egret dump`.

use std::fmt::Write;

use egret::ir::{NodeId, Op, text};
use egret::{Compiled, Diagnostic, Graph, Program};
use egret_compiler::plan::Listing;
use serde_json::{Value, json};

use crate::args::{DumpArgs, Format, Stage};
use crate::failure::Failure;
use crate::model;

/// Writes a stage of compilation.
pub fn dump(args: &DumpArgs) -> Result<(), Failure> {
    let of_graph = matches!(args.stage, Stage::Imported | Stage::Raised | Stage::Rewritten | Stage::Rematerialised);
    if args.format != Format::Text && !of_graph {
        return Err(Failure::usage(
            "only graphs can be written as dot or json: imported, raised, rewritten, rematerialised",
        ));
    }
    let graph = match &args.inputs {
        Some(folder) => model::load_for(&args.compile.model, folder)?.graph,
        None => model::load(&args.compile.model)?,
    };
    if args.stage == Stage::Imported {
        return write_graph(args, &graph);
    }
    let options = args.compile.target.options();
    let description = match (&args.arch, args.stage) {
        (Some(name), _) => model::description(name)?,
        (None, Stage::Cuda) => model::description(CUDA)?,
        #[cfg(feature = "cuda")]
        (None, Stage::Ptx | Stage::Stats) => model::description(CUDA)?,
        (None, _) => args
            .compile
            .target
            .device()
            .description()?
            .ok_or_else(|| Failure::usage("the interpreter compiles nothing: it has the stage `imported` alone"))?,
    };
    match args.stage {
        Stage::Cuda => {
            if description.is_cpu() {
                return Err(Diagnostic::new("E0462", format!("`{}` is no GPU", description.name)).into());
            }
            let program = egret_compiler::compile(&graph, &description, &options)?.program;
            let mut out = String::new();
            for (i, kernel) in program.kernels.iter().enumerate() {
                let egret_program::KernelBody::Cuda(code) = &kernel.body else { continue };
                for origin in origins(&program, i) {
                    let _ = writeln!(out, "// {origin}");
                }
                let _ = writeln!(out, "{}\n", code.source.trim_end());
            }
            write_text(args, &out)
        }
        #[cfg(feature = "cuda")]
        Stage::Ptx | Stage::Stats => {
            let egret_program::Target::Cuda { arch, shared_bytes, .. } = &description.target else {
                return Err(Diagnostic::new("E0462", format!("`{}` is no GPU", description.name)).into());
            };
            let program = egret_compiler::compile(&graph, &description, &options)?.program;
            let stats = egret_runtime::cuda::stats(&program, arch, *shared_bytes)
                .map_err(|e| egret::Error::from(egret_runtime::RuntimeError::from(e)))?;
            if args.stage == Stage::Stats {
                return write_text(args, &table(&program, &description, &stats));
            }
            let text = |s: &egret_runtime::cuda::KernelStats| {
                let origins: String = origins(&program, s.kernel).iter().map(|o| format!("// {o}\n")).collect();
                format!("{origins}{}\n", s.ptx.trim_end())
            };
            write_text(args, &stats.iter().map(text).collect::<Vec<_>>().join("\n"))
        }
        Stage::Raised => write_graph(args, &egret_compiler::optimise(&graph, &description, &options)?.raised),
        Stage::Rewritten => {
            write_graph(args, &egret_compiler::optimise(&graph, &description, &options)?.rewritten.graph)
        }
        Stage::Rematerialised => {
            write_graph(args, &egret_compiler::optimise(&graph, &description, &options)?.rematerialised.graph)
        }
        Stage::Clif | Stage::Asm => {
            let compiled = egret_compiler::compile(&graph, &description, &options)?;
            let listing = if args.stage == Stage::Asm { Listing::Asm } else { Listing::Clif };
            let plan = options.plan();
            let texts = egret_compiler::plan::list(&compiled.rematerialised.graph, &description, &plan, listing)?;
            let named = |(id, text): &(egret_program::KernelId, String)| {
                format!("; {}\n{}\n", compiled.program.kernel(*id).name, text.trim_end())
            };
            write_text(args, &texts.iter().map(named).collect::<Vec<_>>().join("\n"))
        }
        Stage::Kernels => write_text(args, &kernels(&egret_compiler::compile(&graph, &description, &options)?)),
        Stage::Imported | Stage::Plan => {
            write_text(args, &plan(&egret_compiler::compile(&graph, &description, &options)?.program))
        }
    }
}

/// What CUDA C is written for when no architecture is named: it runs on all later ones.
const CUDA: &str = "sm_80";

/// Where the nodes came from that a kernel computes, over all its launches, first seen first.
pub(crate) fn origins(program: &Program, kernel: usize) -> Vec<String> {
    let mut origins: Vec<String> = Vec::new();
    for launch in program.launches() {
        let origin = launch.origin.replace(['\n', '\r'], "?");
        if launch.kernel.0 as usize == kernel && !origin.is_empty() && !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    origins
}

/// A line for each kernel: what it needs, and the modelled time of one launch.
#[cfg(feature = "cuda")]
pub(crate) fn table(
    program: &Program,
    description: &egret::DeviceDescription,
    stats: &[egret_runtime::cuda::KernelStats],
) -> String {
    let mut out = format!(
        "{:<22} {:<10} {:>7} {:>9} {:>7} {:>6} {:>6} {:>9} {:>8} {:>9}\n",
        "kernel", "family", "threads", "registers", "shared", "stack", "spills", "blocks/SM", "launches", "µs"
    );
    for s in stats {
        let kernel = &program.kernels[s.kernel];
        let launches: Vec<_> = program.launches().into_iter().filter(|l| l.kernel.0 as usize == s.kernel).collect();
        let hint = |dim: &egret::Dim| dim.hint(egret_compiler::cost::SYMBOL_HINT) as f64;
        let time = launches.first().map_or(0.0, |launch| {
            let (flops, bytes) = (hint(&launch.flops), hint(&launch.bytes));
            let sketch =
                egret_compiler::cost::Sketch { flops, bytes, efficiency: 0.85, launches: 1.0, ..Default::default() };
            egret_compiler::cost::kernel(&sketch, description)
        });
        let _ = writeln!(
            out,
            "{:<22} {:<10} {:>7} {:>9} {:>7} {:>6} {:>6} {:>9} {:>8} {:>9.2}",
            kernel.name,
            kernel.family,
            s.threads,
            s.registers,
            s.shared_bytes,
            s.stack_bytes,
            s.spill_bytes,
            s.blocks,
            launches.len(),
            time
        );
    }
    out
}

fn write_graph(args: &DumpArgs, graph: &Graph) -> Result<(), Failure> {
    match (args.format, &args.output) {
        (Format::Text, Some(path)) => Ok(text::save(path, graph)?),
        (Format::Text, None) => write_text(args, &text::print(graph)),
        (Format::Dot, _) => write_text(args, &dot(graph)),
        (Format::Json, _) => write_text(args, &format!("{:#}\n", as_json(graph))),
    }
}

/// The graph in the language of Graphviz: an edge goes from operand to reader.
fn dot(graph: &Graph) -> String {
    let mut out = String::from("digraph {\n  node [shape=box]\n");
    let label = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    for (id, node) in graph.iter() {
        let name = match leaf(&node.op) {
            Some(name) => format!("{} {name}", node.op.home().name()),
            None => node.op.home().name().to_string(),
        };
        let _ = writeln!(out, "  n{} [label=\"{}\\n{}\"]", id.index(), label(&name), label(&node.ty.to_string()));
        for operand in &node.operands {
            let _ = writeln!(out, "  n{} -> n{}", operand.index(), id.index());
        }
    }
    for (name, id) in graph.outputs() {
        let _ = writeln!(out, "  \"output {0}\" [shape=oval]\n  n{1} -> \"output {0}\"", label(name), id.index());
    }
    out + "}\n"
}

fn leaf(op: &Op) -> Option<&str> {
    match op {
        Op::Input(leaf) => Some(&leaf.name),
        Op::Param(leaf) => Some(&leaf.name),
        Op::State(leaf) => Some(&leaf.name),
        _ => None,
    }
}

fn as_json(graph: &Graph) -> Value {
    let node = |(id, node): (NodeId, &egret::ir::Node)| {
        let operands: Vec<usize> = node.operands.iter().map(|o| o.index()).collect();
        let origins: Vec<String> = graph.origins(id).iter().map(ToString::to_string).collect();
        json!({
            "id": id.index(), "op": node.op.home().name(), "name": leaf(&node.op), "type": node.ty.to_string(),
            "operands": operands, "origins": origins,
        })
    };
    let named = |list: &[(String, NodeId)]| -> Vec<Value> {
        list.iter().map(|(name, id)| json!({ "name": name, "node": id.index() })).collect()
    };
    json!({
        "nodes": graph.iter().map(node).collect::<Vec<Value>>(),
        "outputs": named(graph.outputs()), "updates": named(graph.updates()),
    })
}

fn write_text(args: &DumpArgs, text: &str) -> Result<(), Failure> {
    use std::io::Write;
    match &args.output {
        Some(path) => std::fs::write(path, text).map_err(|e| Failure::file(path, &e)),
        None => match std::io::stdout().lock().write_all(text.as_bytes()) {
            // whoever reads may stop early
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Failure::Failed(Diagnostic::new("E0952", format!("standard output: {e}"))))
            }
            _ => Ok(()),
        },
    }
}

fn kernels(compiled: &Compiled) -> String {
    let mut out = String::new();
    for kernel in &compiled.program.kernels {
        let _ = writeln!(out, "// {} ({})\n{}\n", kernel.name, kernel.family, kernel.text.trim_end());
    }
    out
}

/// Ports, buffers and steps.
fn plan(program: &Program) -> String {
    use egret_program::{Arg, Carried, SizeValue, Step};
    let mut out = String::new();
    let _ = writeln!(out, "program for {} ({} lanes)", program.device, program.lanes);
    let ports = [
        ("input", &program.inputs),
        ("output", &program.outputs),
        ("param", &program.params),
        ("state", &program.states),
    ];
    for (kind, ports) in ports {
        for port in ports {
            let _ = writeln!(out, "{kind} \"{}\": {} in b{}", port.name, port.ty, port.buffer.0);
        }
    }
    for check in &program.checks {
        let _ = writeln!(out, "check {} = {}: {}", check.left, check.right, check.what);
    }
    for (i, buffer) in program.buffers.iter().enumerate() {
        let _ = writeln!(out, "b{i}: {}, {} bytes of {}", place(&buffer.place), buffer.bytes, buffer.dtype);
    }
    let arg = |arg: &Arg| {
        let offset = if arg.offset.is(0) { String::new() } else { format!("+{}", arg.offset) };
        format!("{}b{}{offset}", if arg.writes { "→" } else { "" }, arg.buffer.0)
    };
    let carried = |values: &[Carried]| {
        let one = |c: &Carried| format!("b{} = {} then {}", c.current.0, arg(&c.first), arg(&c.next));
        values.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    for (name, steps) in [("prepare", &program.prepare), ("run", &program.steps)] {
        let _ = writeln!(out, "{name}:");
        let mut todo: Vec<(usize, &Step)> = steps.iter().rev().map(|step| (1, step)).collect();
        while let Some((depth, step)) = todo.pop() {
            todo.extend(
                step.inner().into_iter().rev().flat_map(|steps| steps.iter().rev()).map(|step| (depth + 1, step)),
            );
            let indent = "  ".repeat(depth);
            let _ = match step {
                Step::Launch(launch) => {
                    let args: Vec<String> = launch.args.iter().map(arg).collect();
                    let kernel = &program.kernel(launch.kernel).name;
                    let origin =
                        if launch.origin.is_empty() { String::new() } else { format!("  // {}", launch.origin) };
                    writeln!(out, "{indent}{kernel}({}){origin}", args.join(", "))
                }
                Step::Copy { source, destination, bytes } => {
                    writeln!(out, "{indent}copy {} → b{}, {bytes} bytes", arg(source), destination.buffer.0)
                }
                Step::Loop(inner) => {
                    let reverse = if inner.reverse { " backwards" } else { "" };
                    writeln!(out, "{indent}loop {}{reverse} ({}):", inner.length, carried(&inner.carried))
                }
                Step::While(inner) => {
                    let most = inner.bound.as_ref().map(|bound| format!(", at most {bound} times")).unwrap_or_default();
                    let steps = inner.condition.len();
                    let text = format!("while {} of its first {steps} steps{most}", arg(&inner.test));
                    writeln!(out, "{indent}{text} ({}):", carried(&inner.carried))
                }
                Step::Branch(branch) => {
                    let (test, steps) = (arg(&branch.condition), branch.then.len());
                    writeln!(out, "{indent}if {test} the first {steps} steps, else the rest:")
                }
                Step::Size(size) => match &size.value {
                    SizeValue::Read(from) => writeln!(out, "{indent}{} = {}", size.name, arg(from)),
                    SizeValue::Known(dim) => writeln!(out, "{indent}{} = {dim}", size.name),
                },
                Step::Check(check) => writeln!(out, "{indent}check {} = {}", check.left, check.right),
            };
        }
    }
    out
}

fn place(place: &egret_program::Place) -> String {
    use egret_program::Place;
    match place {
        Place::Input(i) => format!("input {i}"),
        Place::Output(i) => format!("output {i}"),
        Place::Param(i) => format!("param {i}"),
        Place::Constant(i) => format!("constant {i}"),
        Place::State(i) => format!("state {i}"),
        Place::Prepared => "prepared".into(),
        Place::Arena => "arena".into(),
        Place::Slice { of, stride } => format!("slice of b{} every {stride} bytes", of.0),
        Place::Part { of, offset } => format!("part of b{} at {offset}", of.0),
    }
}
