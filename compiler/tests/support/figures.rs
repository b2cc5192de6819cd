//! CUDA kernels of a graph as people read them, and what NVRTC makes of each.
#![allow(dead_code)]

use std::fmt::Write as _;

use egret_compiler::{CompileOptions, Compiled, compile};
use egret_ir::{Graph, text};
use egret_program::{DeviceDescription, KernelBody, Target};

use super::nvrtc;

fn compiled(graph: &Graph, device: &DeviceDescription, options: &CompileOptions) -> Compiled {
    compile(graph, device, options).unwrap_or_else(|e| panic!("{e}"))
}

/// Rewritten graph, launches and kernels, without the prelude.
pub fn kernels(graph: &Graph, options: &CompileOptions) -> String {
    let compiled = compiled(graph, &DeviceDescription::named("sm_90a").unwrap(), options);
    let mut out = text::print(&compiled.rewritten.graph);
    for launch in compiled.program.launches() {
        let kernel = compiled.program.kernel(launch.kernel);
        let _ = writeln!(out, "\n{} {}: grid {}", kernel.family, kernel.name, launch.grid);
    }
    for kernel in &compiled.program.kernels {
        let KernelBody::Cuda(code) = &kernel.body else { panic!("{}", kernel.name) };
        let body = code.source.find("extern \"C\" __global__").expect("a kernel");
        let _ = write!(out, "\n// {:?} threads\n{}", code.threads, &code.source[body..]);
    }
    out
}

/// Registers, shared memory, spills and blocks of a multiprocessor, by architecture; nothing without NVRTC.
pub fn figures(graph: &Graph, options: &CompileOptions) -> Option<String> {
    let nvrtc = nvrtc::nvrtc()?;
    let mut out = String::from("architecture kernel family threads registers shared spilled blocks\n");
    for name in ["sm_80", "sm_89", "sm_90a"] {
        let device = DeviceDescription::named(name).unwrap();
        let Target::Cuda { arch, shared_bytes, .. } = &device.target else { panic!("{name}") };
        let program = compiled(graph, &device, options).program;
        let stats = egret_runtime::cuda::stats(&program, arch, *shared_bytes).unwrap_or_else(|e| panic!("{e}"));
        for s in stats {
            let kernel = &program.kernels[s.kernel];
            let (threads, registers, shared, blocks) = (s.threads, s.registers, s.shared_bytes, s.blocks);
            assert_eq!((s.spill_bytes, s.stack_bytes), (0, 0), "{name} {}", kernel.name);
            assert!(blocks > 0, "{name} {}: no block fits", kernel.name);
            let _ = writeln!(
                out,
                "{name} {} {} {threads} {registers} {shared} {} {blocks}",
                kernel.name, kernel.family, s.spill_bytes
            );
        }
        if name == "sm_90a" {
            // no description yet, but the same texts
            for kernel in &program.kernels {
                let KernelBody::Cuda(code) = &kernel.body else { panic!("{}", kernel.name) };
                let made = nvrtc.compile(&code.source, &kernel.name, "sm_100", &[]).unwrap_or_else(|e| panic!("{e}"));
                let defect = made.log.contains("Potential Performance Loss") || made.log.contains("(C7");
                assert!(!defect, "{}", made.log);
            }
        }
    }
    Some(out)
}
