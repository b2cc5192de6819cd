//! Machine code of generated kernels, made in parallel.

use egret_ir::Diagnostic;
use egret_program::{DeviceDescription, KernelBody, KernelId, Program, Relocation, Symbol, Target};
use rayon::prelude::*;

use crate::emit::cpu::{self, CpuEmitter, CpuTarget};
use crate::emit::cuda;
use crate::kernel::Kernel;

/// What generated code of a CPU description may use.
fn target(device: &DeviceDescription) -> Result<CpuTarget, Diagnostic> {
    let Target::Cpu { arch, isa, .. } = &device.target else {
        return Err(Diagnostic::new("E0462", format!("`{}` is no CPU", device.name)));
    };
    let names: &[&str] = match isa.as_str() {
        "avx512" => {
            &["sse4.2", "popcnt", "avx", "avx2", "fma", "bmi1", "bmi2", "lzcnt", "avx512f", "avx512dq", "avx512vl"]
        }
        "avx2" => &["sse4.2", "popcnt", "avx", "avx2", "fma", "bmi1", "bmi2", "lzcnt"],
        _ => &["sse4.2", "popcnt"],
    };
    let mut features: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    features.splice(0..0, ["sse3", "ssse3", "sse4.1"].map(String::from));
    Ok(CpuTarget { triple: format!("{arch}-unknown-linux-gnu"), features })
}

fn fail(why: String) -> Diagnostic {
    Diagnostic::new("E0462", format!("no machine code can be made: {why}"))
}

/// A form of generated kernels that people read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Cranelift's IR.
    Clif,
    /// Machine instructions, before branches are laid out.
    Asm,
}

/// Generated kernels as text.
pub fn list(
    kernels: &[(KernelId, Kernel)],
    device: &DeviceDescription,
    listing: Listing,
) -> Result<Vec<(KernelId, String)>, Diagnostic> {
    let mut emitter = CpuEmitter::new(&target(device)?).map_err(|e| fail(e.to_string()))?;
    let text = |(id, kernel): &(KernelId, Kernel)| {
        let text = match listing {
            Listing::Clif => emitter.clif_text(kernel),
            Listing::Asm => emitter.asm_text(kernel),
        };
        Ok((*id, text.map_err(|e| fail(e.to_string()).note(kernel.text()))?))
    };
    kernels.iter().map(text).collect()
}

/// Fills in the code of generated kernels.
pub fn emit(
    program: &mut Program,
    kernels: Vec<(KernelId, Kernel)>,
    device: &DeviceDescription,
) -> Result<(), Diagnostic> {
    if kernels.is_empty() {
        return Ok(());
    }
    if !device.is_cpu() {
        return emit_cuda(program, &kernels);
    }
    let emitter = CpuEmitter::new(&target(device)?).map_err(|e| fail(e.to_string()))?;
    let codes: Result<Vec<_>, Diagnostic> = kernels
        .par_iter()
        .map_init(
            || emitter.clone(),
            |emitter, (id, kernel)| {
                let code = emitter.emit(kernel).map_err(|e| fail(e.to_string()).note(kernel.text()))?;
                Ok((*id, code, kernel.scratch_bytes()))
            },
        )
        .collect();
    for (id, code, scratch_bytes) in codes? {
        if let KernelBody::Code(slot) | KernelBody::Hook(slot) = &mut program.kernels[id.0 as usize].body {
            slot.bytes = code.bytes;
            slot.entry = code.entry;
            slot.scratch_bytes = scratch_bytes;
            slot.relocations = code.relocations.into_iter().map(relocation).collect();
        }
    }
    Ok(())
}

/// CUDA C of kernels.
fn emit_cuda(program: &mut Program, kernels: &[(KernelId, Kernel)]) -> Result<(), Diagnostic> {
    let sources: Result<Vec<_>, Diagnostic> = kernels
        .par_iter()
        .map(|(id, kernel)| {
            let source = cuda::emit(kernel, &[])
                .map_err(|e| Diagnostic::new("E0462", format!("no CUDA C can be made: {e}")).note(kernel.text()))?;
            Ok((*id, source))
        })
        .collect();
    for (id, source) in sources? {
        if let KernelBody::Cuda(code) = &mut program.kernels[id.0 as usize].body {
            code.source = source.text;
            code.prelude = source.prelude;
            code.threads = source.threads;
            code.shared_bytes = u32::try_from(source.dynamic_shared_bytes).unwrap_or(u32::MAX);
        }
    }
    Ok(())
}

fn relocation(from: cpu::Relocation) -> Relocation {
    let symbol = match from.symbol {
        cpu::Symbol::Vector(name) => Symbol::Vector(name),
        cpu::Symbol::Scalar(name) => Symbol::Scalar(name),
    };
    Relocation { offset: from.offset, symbol, addend: from.addend }
}
