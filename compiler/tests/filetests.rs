//! Stages of the compiler as text: graphs of `filetests/` in, snapshots out.
//!
//! The comment at the head of a file says what the file shows. Some of its lines are directives:
//!
//! - `stages: …` lists what is recorded, each in a snapshot of its own:
//!   - `raised`: the graph after canonicalisation and raise;
//!   - `rewritten`: the graph after rewriting at level `full`;
//!   - `kernels`: the launches in order, then each kernel: its kernel IR, or its driver with the hooks;
//!   - `clif`: the Cranelift text of generated kernels and hooks;
//!   - `cuda`: the CUDA C of every kernel for `sm_90a`;
//! - `search beats greedy`: the extracted plan is cheaper than the greedy one, in the model and in launches;
//! - `search beats greedy on DEVICE`, `search equals greedy on DEVICE`: the modelled cost alone, on that description.
//!
//! - `device: NAME`: the description that the stages are compiled for.
//!
//! Everything else is compiled for one description of a CPU, so that the snapshots are the same on every host.

use std::fmt::Write;
use std::path::Path;

use egret_compiler::{CompileOptions, Compiled, Level, compile, plan};
use egret_ir::{Graph, text};
use egret_program::{DeviceDescription, Launch, Program, Step};

/// What is compiled for where a file names nothing else.
const DEVICE: &str = "x86-64-avx512";

fn compiled(graph: &Graph, device: &str, level: Level) -> Compiled {
    let device = DeviceDescription::named(device).unwrap();
    compile(graph, &device, &CompileOptions { level, ..CompileOptions::default() }).unwrap_or_else(|e| panic!("{e}"))
}

/// Launches in order, then each kernel once.
fn kernels(program: &Program) -> String {
    let mut text = String::new();
    let line = |text: &mut String, launch: &Launch| {
        let kernel = program.kernel(launch.kernel);
        // writing to a string cannot fail
        let _ = writeln!(text, "  {} {} ({})", kernel.family, kernel.name, launch.origin);
    };
    text.push_str("prepare\n");
    for step in &program.prepare {
        if let Step::Launch(launch) = step {
            line(&mut text, launch);
        }
    }
    text.push_str("run\n");
    program.launches().into_iter().for_each(|launch| line(&mut text, launch));
    // hooks are part of the text of the driver that calls them
    for kernel in program.kernels.iter().filter(|kernel| kernel.family != "hook") {
        let _ = write!(text, "\n{} {}:\n{}\n", kernel.family, kernel.name, kernel.text.trim_end());
    }
    text
}

fn clif(compiled: &Compiled, device: &str) -> String {
    let (graph, options) = (&compiled.rewritten.graph, plan::Options::default());
    let device = DeviceDescription::named(device).unwrap();
    let texts = plan::list(graph, &device, &options, plan::Listing::Clif).unwrap_or_else(|e| panic!("{e}"));
    let named = texts.iter().map(|(id, text)| {
        let kernel = compiled.program.kernel(*id);
        format!("{} {}:\n{}\n", kernel.family, kernel.name, text.trim_end())
    });
    named.collect::<Vec<_>>().join("\n")
}

/// The CUDA C of every kernel, in order of execution.
fn cuda(full: &Compiled) -> String {
    let device = DeviceDescription::named("sm_90a").unwrap();
    let options = egret_compiler::rewrite::Options::default();
    let rewritten = egret_compiler::rewrite::rewrite(&full.raised, &device, &options).unwrap_or_else(|e| panic!("{e}"));
    let kernels = egret_compiler::cuda::kernels(&rewritten.graph, &device).unwrap_or_else(|e| panic!("{e}"));
    kernels.iter().map(|kernel| kernel.source.text.trim_end().to_string() + "\n").collect::<Vec<_>>().join("\n")
}

fn search_beats_greedy(graph: &Graph, device: &str) {
    let (greedy, full) = (compiled(graph, device, Level::Greedy), compiled(graph, device, Level::Full));
    let report = full.rewritten.report();
    assert!(report.greedy_cost > report.cost, "greedy {} µs, search {} µs", report.greedy_cost, report.cost);
    let launches = |c: &Compiled| c.program.launches().len();
    assert!(launches(&greedy) > launches(&full), "greedy {}, search {}", launches(&greedy), launches(&full));
}

/// The modelled cost of the chosen plan and of the greedy one on a description, µs.
fn modelled(graph: &Graph, device: &str) -> (f64, f64) {
    let device = DeviceDescription::named(device).unwrap();
    let options = CompileOptions::default();
    let raised =
        egret_compiler::compile::raise(graph, &device, &options.rules, options.exact, &mut Vec::new()).unwrap();
    let options = egret_compiler::rewrite::Options::default();
    let report = egret_compiler::rewrite::rewrite(&raised.graph, &device, &options).unwrap().report();
    (report.cost, report.greedy_cost)
}

fn check(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    let source = std::fs::read_to_string(folder.join(name).with_extension("egret")).unwrap();
    let graph = text::parse(&source).unwrap_or_else(|e| panic!("{name}: {e}"));
    let head: Vec<&str> = source.lines().map_while(|line| line.strip_prefix("// ")).collect();
    let stages = head.iter().find_map(|line| line.strip_prefix("stages: ")).expect("a line `stages: …`");
    let device = head.iter().find_map(|line| line.strip_prefix("device: ")).unwrap_or(DEVICE);
    let full = compiled(&graph, device, Level::Full);
    let replayed = full.rewritten.replay().unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(replayed == full.rewritten.graph, "{name}: the journal does not give the chosen graph");
    if head.contains(&"search beats greedy") {
        search_beats_greedy(&graph, device);
    }
    for line in &head {
        if let Some(device) = line.strip_prefix("search beats greedy on ") {
            let (full, greedy) = modelled(&graph, device);
            assert!(full < greedy, "{name} on {device}: the search finds {full} µs, greedy {greedy} µs");
        } else if let Some(device) = line.strip_prefix("search equals greedy on ") {
            let (full, greedy) = modelled(&graph, device);
            assert_eq!(full, greedy, "{name} on {device}");
        }
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for stage in stages.split(", ") {
            let text = match stage {
                "raised" => text::print(&full.raised),
                "rewritten" => text::print(&full.rewritten.graph),
                "kernels" => kernels(&full.program),
                "clif" => clif(&full, device),
                "cuda" => cuda(&full),
                other => panic!("{name}: there is no stage `{other}`"),
            };
            insta::assert_snapshot!(format!("{name}.{stage}"), text);
        }
    });
}

macro_rules! files {
    ($($name:ident)*) => {
        $(#[test] fn $name() { check(stringify!($name)); })*

        /// A file without a test would never be read.
        #[test]
        fn every_file_is_tested() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
            let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            for path in paths.filter(|path| path.extension().is_some_and(|e| e == "egret")) {
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                assert!([$(stringify!($name)),*].contains(&name.as_str()), "{name} is not tested");
            }
        }
    };
}

files! {
    attention
    batch_norm
    conv_bias_gelu
    conv_bias_relu
    gelu_erf
    identities
    layer_norm
    mapped_images
    lstm_step
    matmul_softmax
    merged_convolutions
    merged_projections
    movement
    pooled_gradient
    residual_block
    residual_stream
    rotary
    scaled_integers
    scales
    softmax
    spelled_attention
    spelled_norms
    spellings
    tapped_product
    transposed_product
    wide_projections
}
