//! Compiled programs, run on whatever instruction sets this machine has.
#![allow(dead_code)]

use std::sync::Arc;

use egret_ir::{Tensor, Tensors};
use egret_program::{DeviceDescription, Program};
use egret_runtime::{Executable, LoadOptions, RuntimeError};
use egret_simd::Isa;

/// A CPU description for every instruction set that this machine has.
pub fn descriptions() -> Vec<DeviceDescription> {
    let all = [(Isa::Portable, "x86-64-portable"), (Isa::Avx2, "x86-64-avx2"), (Isa::Avx512, "x86-64-avx512")];
    let here = all.into_iter().filter(|(isa, _)| isa.is_supported());
    here.map(|(_, name)| DeviceDescription::named(name).expect("a shipped description")).collect()
}

/// The outputs of a program, by name and in order.
pub fn run(
    program: &Program,
    weights: &dyn Fn(&str) -> Option<Tensor>,
    given: &Tensors,
    threads: usize,
) -> Result<Vec<(String, Tensor)>, RuntimeError> {
    let executable = Executable::load(Arc::new(program.clone()), weights, LoadOptions { threads, isa: None })?;
    let mut session = executable.session()?;
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let outputs = session.run(&given)?;
    Ok(outputs.iter().map(|output| (output.name().to_string(), output.to_tensor())).collect())
}
