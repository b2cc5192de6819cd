//! Random graphs through the compiler, on every element type, rewrite level and instruction set.
//!
//! *Exact* graphs must give the interpreter's very bits; *real* ones stay within four times the interpreter's own error
//! bound.

mod support {
    pub mod programs;
}

use std::collections::BTreeMap;
use std::ops::Range;

use egret_compiler::{CompileOptions, Level, compile};
use egret_ir::bound::interpret_bounded;
use egret_ir::random::{self, Sample};
use egret_ir::{DType, Tensor, Tensors, interpret, text};
use egret_program::{DeviceDescription, KernelBody};
use support::programs::{descriptions, run};

const LEVELS: [Level; 3] = [Level::None, Level::Greedy, Level::Full];

/// Kernels met, by family and element type of what they write.
type Met = BTreeMap<(String, DType), usize>;

/// The outputs of a sample, compiled.
fn outputs(sample: &Sample, seed: u64, met: &mut Met) -> Vec<(String, Tensor)> {
    let level = LEVELS[seed as usize % 3];
    let devices = descriptions();
    let device = &devices[seed as usize / 3 % devices.len()];
    let show = || format!("seed {seed}, {level:?}, {}\n{}", device.name, text::print(&sample.graph));
    let options = CompileOptions { level, ..CompileOptions::default() };
    let compiled = compile(&sample.graph, device, &options).unwrap_or_else(|e| panic!("{e}\n{}", show()));
    for launch in compiled.program.launches() {
        let family = &compiled.program.kernel(launch.kernel).family;
        for arg in launch.args.iter().filter(|arg| arg.writes) {
            *met.entry((family.clone(), compiled.program.buffer(arg.buffer).dtype)).or_default() += 1;
        }
    }
    let threads = 1 + seed as usize % 2;
    run(&compiled.program, &|_| None, &sample.inputs, threads).unwrap_or_else(|e| panic!("{e}\n{}", show()))
}

/// Runs the samples of these seeds, and compares them with the interpreter's values.
fn check_exact(
    seeds: Range<u64>,
    sample: impl Fn(u64, usize, DType) -> Result<Sample, egret_ir::Diagnostic>,
    met: &mut Met,
) {
    for seed in seeds {
        let dtype = DType::ALL[1 + seed as usize % (DType::ALL.len() - 1)];
        let sample = sample(seed, 24, dtype).unwrap_or_else(|e| panic!("{e}"));
        let want = interpret(&sample.graph, &sample.inputs, &Tensors::new()).unwrap_or_else(|e| panic!("{e}"));
        let have = outputs(&sample, seed, met);
        for ((name, have), (_, want)) in have.iter().zip(&want.outputs) {
            let differs = (0..want.elements()).find(|i| have.get(*i) != want.get(*i));
            if have.shape() != want.shape() || differs.is_some() {
                panic!("seed {seed}: {name} differs at {differs:?}: {have:?} {want:?}\n{}", text::print(&sample.graph));
            }
        }
    }
}

#[test]
fn exact_graphs_give_the_same_bits() {
    let mut met = Met::new();
    check_exact(0..1500, random::exact, &mut met);
    // every generated family writes every element type
    for family in ["map", "concat", "reduce", "window", "contract", "scatter"] {
        for dtype in &DType::ALL[1..] {
            // f32 contractions have drivers, and sums of halves are scattered in f32
            let half = matches!(dtype, DType::F16 | DType::BF16);
            let other = family == "contract" && *dtype == DType::F32 || family == "scatter" && half;
            assert!(other || met.contains_key(&(family.to_string(), *dtype)), "no {family} of {dtype}");
        }
    }
    for family in ["gemm", "conv"] {
        assert!(met.contains_key(&(family.to_string(), DType::F32)), "no {family}");
    }
}

/// Graphs with places, sizes and control that the data tell.
#[test]
fn dynamic_graphs_give_the_same_bits() {
    let mut met = Met::new();
    check_exact(0..500, random::exact_dynamic, &mut met);
    for family in ["scatter", "top_k", "non_zero", "unique", "cumulative"] {
        assert!(met.keys().any(|(have, _)| have == family), "no {family}");
    }
}

/// Every kernel has code for a machine that is not this one.
#[test]
fn graphs_compile_for_another_machine() {
    let device = DeviceDescription::named("aarch64-neon").unwrap_or_else(|e| panic!("{e}"));
    let mut functions = 0;
    for seed in 0..130 {
        let dtype = DType::ALL[1 + seed as usize % (DType::ALL.len() - 1)];
        let sample = random::exact(seed, 24, dtype).unwrap_or_else(|e| panic!("{e}"));
        let options = CompileOptions { level: LEVELS[seed as usize % 3], ..CompileOptions::default() };
        let compiled = compile(&sample.graph, &device, &options)
            .unwrap_or_else(|e| panic!("seed {seed}: {e}\n{}", text::print(&sample.graph)));
        for kernel in &compiled.program.kernels {
            if let KernelBody::Code(code) | KernelBody::Hook(code) = &kernel.body {
                assert!(!code.bytes.is_empty());
                functions += 1;
            }
        }
    }
    assert!(functions > 300, "{functions}");
}

#[test]
fn real_graphs_stay_within_the_bound() {
    check_real(0..250);
}

/// The second half is a test of its own, which runs beside the first.
#[test]
fn more_real_graphs_stay_within_the_bound() {
    check_real(250..500);
}

fn check_real(seeds: Range<u64>) {
    /// Times the bound, which leaves room for primitives that are right to two units in the last place.
    const FACTOR: f64 = 4.0;
    let floats = [DType::F32, DType::F64, DType::F16, DType::BF16];
    let mut met = Met::new();
    let (mut elements, mut skipped) = (0, 0);
    for seed in seeds {
        let sample = random::real(seed, 30, floats[seed as usize % 4]).unwrap_or_else(|e| panic!("{e}"));
        let want = interpret_bounded(&sample.graph, &sample.inputs).unwrap_or_else(|e| panic!("{e}"));
        let have = outputs(&sample, seed, &mut met);
        for ((name, have), (_, want)) in have.iter().zip(&want) {
            assert_eq!(have.shape(), want.value.shape());
            for (i, error) in want.error.iter().enumerate() {
                let (a, b) = (have.get(i).as_f64(), want.value.get(i).as_f64());
                elements += 1;
                if !error.is_finite() || !b.is_finite() {
                    skipped += 1;
                    continue;
                }
                assert!(
                    (a - b).abs() <= FACTOR * error,
                    "seed {seed}: {name}[{i}] is {a}, the interpreter has {b} ± {error:e}\n{}",
                    text::print(&sample.graph)
                );
            }
        }
    }
    assert!(20 * skipped <= elements, "{skipped} of {elements} elements have no bound");
    for dtype in floats {
        assert!(met.contains_key(&("row".to_string(), dtype)), "no row of {dtype}");
    }
}
