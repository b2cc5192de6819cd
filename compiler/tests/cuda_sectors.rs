//! What kernels cost: accesses of 16 bytes, and no more sectors than their bytes need, counted by the simulator.

#[path = "support/nvrtc.rs"]
mod support;

use egret_compiler::{CompileOptions, compile};
use egret_ir::{Bindings, Graph, f32, trace};
use egret_program::{DeviceDescription, KernelBody, Launch, Program};
use egret_sim::{Arg, LaunchOptions, Memory, Module, Report};
use support::nvrtc;

/// Runs one launch of a program on zeros: every buffer is an allocation of its own.
fn run(program: &Program, launch: &Launch) -> Option<Report> {
    let kernel = program.kernel(launch.kernel);
    let KernelBody::Cuda(code) = &kernel.body else { panic!("{}", kernel.name) };
    let made = nvrtc()?.compile(&code.source, &kernel.name, "sm_80", &[]).unwrap_or_else(|e| panic!("{e}"));
    let module = Module::parse(&made.ptx).unwrap_or_else(|e| panic!("{e}"));
    let mut memory = Memory::new();
    let none = Bindings::default();
    let mut args = Vec::new();
    for (i, arg) in launch.args.iter().enumerate() {
        let bytes = program.buffer(arg.buffer).bytes.eval(&none).unwrap() as usize;
        args.push(Arg::Pointer(memory.allocate(&format!("b{i}"), vec![0; bytes])));
    }
    args.extend(launch.dims.iter().map(|dim| Arg::U64(dim.eval(&none).unwrap() as u64)));
    args.push(Arg::Pointer(memory.allocate("status", vec![0; 4])));
    let grid = [launch.grid.eval(&none).unwrap() as u32, 1, 1];
    let options = LaunchOptions { dynamic_shared: code.shared_bytes as usize, ..LaunchOptions::default() };
    let report = module.launch(&kernel.name, grid, code.threads, &args, &mut memory, &options);
    Some(report.unwrap_or_else(|e| panic!("{e}\n{}", code.source)))
}

/// Every access to global memory of a graph's only kernel is of 16 bytes by all lanes of a warp, and touches `sectors` in all.
fn least(graph: &Graph, sectors: u64) {
    let device = DeviceDescription::named("sm_80").unwrap();
    let program = compile(graph, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
    let launches = program.launches();
    let [launch] = launches.as_slice() else { panic!("{} launches", launches.len()) };
    let Some(report) = run(&program, launch) else { return };
    for line in report.lines.iter().filter(|line| line.global_requests > 0) {
        assert_eq!(line.sectors, 16 * line.global_requests, "line {}: {line:?}", line.line);
        assert_eq!(line.sectors, line.least_sectors, "line {}: {line:?}", line.line);
    }
    assert_eq!(report.sectors, sectors);
}

#[test]
fn elementwise_kernels_move_vectors() {
    let graph = trace(|t| {
        let [x, y, z] = ["x", "y", "z"].map(|name| t.input(name, f32([64, 128])));
        (x * y + z).gelu().tanh()
    });
    least(&graph.unwrap(), 4 * 64 * 128 * 4 / 32);
}

#[test]
fn a_softmax_reads_and_writes_each_element_once() {
    let graph = trace(|t| t.input("x", f32([6, 512])).softmax(-1));
    least(&graph.unwrap(), 2 * 6 * 512 * 4 / 32);
}

#[test]
fn a_norm_reads_and_writes_each_element_once() {
    let graph = trace(|t| t.input("x", f32([4, 1024])).layer_norm(-1, 1e-5));
    least(&graph.unwrap(), 2 * 4 * 1024 * 4 / 32);
}
