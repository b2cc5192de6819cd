//! Random graphs on simulated GPUs, every check on: *exact* ones must give the interpreter's very bits, *real* ones stay
//! within four times the interpreter's own error bound.
//!
//! `EGRET_TEST_GPU=N` runs them on a GPU instead. `EGRET_DEEP=N` runs N graphs of each kind on every architecture, and
//! `EGRET_RESULTS=FILE` appends a line for each: `scripts/deep-check` does.

#[path = "support/nvrtc.rs"]
mod support;

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use egret_compiler::{CompileOptions, Level, compile};
use egret_ir::bound::interpret_bounded;
use egret_ir::random::{self, Sample};
use egret_ir::{DType, Tensor, Tensors, interpret, text};
use egret_program::DeviceDescription;
use egret_runtime::cuda::{Cache, Device, Executable, LoadOptions};
use support::nvrtc;

const LEVELS: [Level; 3] = [Level::None, Level::Greedy, Level::Full];
const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_89", "sm_90a", "h200"];
/// Times the interpreter's bound of the error.
const BOUNDS: f64 = 4.0;

/// Graphs of a kind, and whether each runs on every architecture.
fn depth(shallow: u64) -> (u64, bool) {
    match std::env::var("EGRET_DEEP").ok().and_then(|n| n.parse().ok()) {
        Some(n) => (n, true),
        None => (shallow, false),
    }
}

/// Simulated GPUs, or the one that `EGRET_TEST_GPU` numbers.
fn devices() -> Vec<(&'static str, Arc<Device>)> {
    if let Some(number) = std::env::var("EGRET_TEST_GPU").ok().and_then(|n| n.parse().ok()) {
        return vec![("gpu", Device::open(number).unwrap_or_else(|e| panic!("{e}")))];
    }
    let open = |name: &&'static str| {
        let description = DeviceDescription::named(name).expect("a shipped description");
        (*name, Device::simulated(&description).unwrap_or_else(|e| panic!("{e}")))
    };
    ARCHITECTURES.iter().map(open).collect()
}

/// What running a sample came to, if not to outputs.
enum Stopped {
    /// It has no kernel for GPUs.
    Refused(String),
    Failed(String),
}

/// The outputs of a sample.
fn outputs(sample: &Sample, device: &Arc<Device>, level: Level) -> Result<Vec<(String, Tensor)>, Stopped> {
    let failed = |e: &dyn std::fmt::Display| Stopped::Failed(e.to_string());
    let options = CompileOptions { level, ..CompileOptions::default() };
    let compiled = compile(&sample.graph, &device.description(), &options).map_err(|error| match error.code {
        "E0465" => Stopped::Refused(error.to_string()),
        _ => failed(&error),
    })?;
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let options = LoadOptions { cache: Cache::at(folder) };
    let exe = Executable::load(Arc::new(compiled.program), device, &|_| None, &options);
    let mut session = exe.and_then(|exe| exe.session()).map_err(|e| failed(&e))?;
    let given: Vec<(&str, &Tensor)> = sample.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let outputs = session.run(&given).map_err(|e| failed(&e))?;
    Ok(outputs.iter().map(|output| (output.name().to_string(), output.to_tensor())).collect())
}

fn record(line: &str) {
    static FILE: Mutex<()> = Mutex::new(());
    let Some(path) = std::env::var_os("EGRET_RESULTS") else { return };
    let _guard = FILE.lock();
    let mut file = std::fs::File::options().create(true).append(true).open(path).expect("the results file");
    writeln!(file, "{line}").expect("a line of results");
}

/// Runs samples on the architectures in turn, or on all; `compare` says what differs. Every sample runs, and what fails is
/// told in the end.
fn run(
    kind: &str,
    count: u64,
    sample: &dyn Fn(u64) -> Sample,
    compare: &dyn Fn(&Sample, &[(String, Tensor)]) -> Option<String>,
) {
    if nvrtc().is_none() {
        return;
    }
    let devices = devices();
    let (count, all) = depth(count);
    let mut refused = 0;
    let mut failures = Vec::new();
    for seed in 0..count {
        let sample = sample(seed);
        let level = LEVELS[seed as usize % 3];
        for (i, (name, device)) in devices.iter().enumerate() {
            if !all && seed as usize % devices.len() != i {
                continue;
            }
            let outcome = outputs(&sample, device, level)
                .and_then(|have| compare(&sample, &have).map_or(Ok(()), |differs| Err(Stopped::Failed(differs))));
            let told = match outcome {
                Ok(()) => "equal".to_string(),
                Err(Stopped::Refused(why)) => {
                    refused += 1;
                    format!("refused: {}", why.lines().next().unwrap_or_default())
                }
                Err(Stopped::Failed(why)) => {
                    eprintln!("{kind} {seed} on {name}, {level:?}: {why}\n{}", text::print(&sample.graph));
                    let why = why.lines().next().unwrap_or_default().to_string();
                    failures.push(format!("{kind} {seed} on {name}, {level:?}: {why}"));
                    format!("failed: {why}")
                }
            };
            record(&format!("{kind}\t{seed}\t{name}\t{level:?}\t{told}"));
        }
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    let most = count as usize * if all { devices.len() } else { 1 } / 20;
    assert!(refused <= most, "{refused} graphs have no kernels");
}

#[test]
fn exact_graphs_give_the_same_bits() {
    let sample = |seed: u64| {
        let dtype = DType::ALL[1 + seed as usize % (DType::ALL.len() - 1)];
        random::exact(seed, 16, dtype).unwrap_or_else(|e| panic!("{e}"))
    };
    run("exact", 24, &sample, &|sample, have| {
        let want = interpret(&sample.graph, &sample.inputs, &Tensors::new()).unwrap_or_else(|e| panic!("{e}"));
        have.iter().zip(&want.outputs).find_map(|((name, have), (_, want))| {
            let differs = (0..want.elements()).find(|i| have.get(*i) != want.get(*i))?;
            Some(format!("{name}[{differs}] is {:?}, not {:?}", have.get(differs), want.get(differs)))
        })
    });
}

#[test]
fn real_graphs_stay_within_the_bound() {
    // sines of great f64 are a function that NVRTC calls, and the simulator has no calls
    let dtypes = [DType::F32, DType::BF16, DType::F32, DType::F16];
    let sample = |seed: u64| random::real(seed, 16, dtypes[seed as usize % 4]).unwrap_or_else(|e| panic!("{e}"));
    run("real", 24, &sample, &|sample, have| {
        let want = interpret_bounded(&sample.graph, &sample.inputs).unwrap_or_else(|e| panic!("{e}"));
        have.iter().zip(&want).find_map(|((name, have), (_, want))| {
            let pairs = have.values().zip(want.value.values()).zip(&want.error).enumerate();
            pairs.into_iter().find_map(|(i, ((x, y), error))| {
                let (x, y) = (x.as_f64(), y.as_f64());
                let near = x == y || x.is_nan() && y.is_nan() || !error.is_finite() || (x - y).abs() <= BOUNDS * error;
                (!near).then(|| format!("{name}[{i}] is {x}, not {y}, within {:e}", BOUNDS * error))
            })
        })
    });
}
