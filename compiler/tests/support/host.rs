//! The machine that runs the tests, and numbers for it.
#![allow(dead_code)]

use egret_compiler::{CompileOptions, Compiled, Level, compile};
use egret_ir::{Graph, Tensor};
use egret_program::DeviceDescription;

/// The description of the machine that runs the tests.
pub fn description() -> DeviceDescription {
    let name = match egret_simd::Isa::detect() {
        egret_simd::Isa::Avx512 => "x86-64-avx512",
        egret_simd::Isa::Avx2 => "x86-64-avx2",
        egret_simd::Isa::Portable => "x86-64-portable",
        egret_simd::Isa::Neon => "aarch64-neon",
    };
    DeviceDescription::named(name).expect("a shipped description")
}

/// A graph compiled for this machine.
pub fn compiled(graph: &Graph, level: Level) -> Compiled {
    compile(graph, &description(), &CompileOptions { level, ..CompileOptions::default() })
        .unwrap_or_else(|e| panic!("{e}"))
}

/// Numbers in −1..1 from a seed.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::new(shape, &values).expect("as many values as the shape has")
}
