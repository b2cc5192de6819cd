//! Runs kernels on the simulator: NVRTC's own PTX, with every check.
#![allow(dead_code)]

use egret_compiler::emit::cuda::CudaSource;
use egret_ir::{Bindings, Tensor};
use egret_program::{Kernel, KernelBody, Place, Port, Program};
use egret_runtime::cuda::nvrtc::Nvrtc;
use egret_sim::{Arg, Fault, LaunchOptions, Memory, Module, Report, WarpOrder};

/// A launch: buffers are allocated with what they hold, in the order of the parameters; dims follow.
pub struct Launch<'a> {
    pub buffers: &'a [Vec<u8>],
    pub dims: &'a [i64],
    pub blocks: u32,
    /// The blocks to run; all where it is `None`.
    pub sampled: Option<Vec<u32>>,
}

/// The three orders of warps, each with copies at once and as late as their waits allow.
pub fn everywhere() -> impl Iterator<Item = (WarpOrder, bool)> {
    [WarpOrder::Forward, WarpOrder::Reverse, WarpOrder::Seeded(5)]
        .into_iter()
        .flat_map(|order| [(order, false), (order, true)])
}

/// PTX of a kernel.
pub fn module(nvrtc: &Nvrtc, source: &CudaSource) -> Module {
    let made = nvrtc.compile(&source.text, &source.name, "sm_80", &[]).unwrap_or_else(|e| panic!("{e}"));
    Module::parse(&made.ptx).unwrap_or_else(|e| panic!("{e}"))
}

/// Runs a kernel once. What its buffers hold afterwards, and what it cost.
pub fn run(
    module: &Module,
    source: &CudaSource,
    launch: &Launch,
    (warp_order, late): (WarpOrder, bool),
) -> Result<(Vec<Vec<u8>>, Report), Box<Fault>> {
    let mut memory = Memory::new();
    let names: Vec<String> = (0..launch.buffers.len()).map(|i| format!("b{i}")).collect();
    let mut args: Vec<Arg> =
        names.iter().zip(launch.buffers).map(|(n, b)| Arg::Pointer(memory.allocate(n, b.clone()))).collect();
    args.extend(launch.dims.iter().map(|d| Arg::U64(*d as u64)));
    args.push(Arg::Pointer(memory.allocate("status", vec![0; 4])));
    let options = LaunchOptions {
        warp_order,
        late,
        dynamic_shared: source.dynamic_shared_bytes,
        blocks: launch.sampled.as_ref().map(|blocks| blocks.iter().map(|b| [*b, 0, 0]).collect()),
        ..LaunchOptions::default()
    };
    let report = module.launch(&source.name, [launch.blocks, 1, 1], source.threads, &args, &mut memory, &options)?;
    let after = names.iter().map(|n| memory.bytes(n).expect("an allocation").to_vec()).collect();
    Ok((after, report))
}

/// A program whose steps are launches, on the simulator.
pub struct Simulated<'p> {
    program: &'p Program,
    modules: Vec<Module>,
    texts: Vec<String>,
}

impl<'p> Simulated<'p> {
    /// Compiles the kernels of a program, each text changed by `change`.
    pub fn new(nvrtc: &Nvrtc, program: &'p Program, change: &dyn Fn(&str) -> String) -> Simulated<'p> {
        let text = |kernel: &Kernel| {
            let KernelBody::Cuda(code) = &kernel.body else { panic!("{}", kernel.name) };
            let made = nvrtc.compile(&change(&code.source), &kernel.name, "sm_80", &[]);
            made.unwrap_or_else(|e| panic!("{e}")).ptx
        };
        let texts: Vec<String> = program.kernels.iter().map(text).collect();
        let modules = texts.iter().map(|ptx| Module::parse(ptx).unwrap_or_else(|e| panic!("{e}"))).collect();
        Simulated { program, modules, texts }
    }

    /// Panics where a launch touches more sectors, or passes over the banks of shared memory more often, than its bytes
    /// need.
    pub fn assert_least(&self, name: &str, reports: &[Report]) {
        for (launch, report) in self.program.launches().iter().zip(reports) {
            let ptx = &self.texts[launch.kernel.0 as usize];
            for line in &report.lines {
                let text = || ptx.lines().nth(line.line as usize - 1).unwrap_or_default().trim();
                assert_eq!(line.sectors, line.least_sectors, "{name}: {} {line:?}", text());
                assert_eq!(line.wavefronts, line.least_wavefronts, "{name}: {} {line:?}", text());
            }
        }
    }

    /// Runs the launches, or of each of them sampled blocks. The outputs, and what each launch cost.
    pub fn run(
        &self,
        inputs: &[Tensor],
        bindings: &Bindings,
        (warp_order, late): (WarpOrder, bool),
        sampled: Option<&[u32]>,
    ) -> Result<(Vec<Vec<u8>>, Vec<Report>), Box<Fault>> {
        let program = self.program;
        let mut memory = Memory::new();
        let name = |i: usize| format!("b{i}");
        let mut places = Vec::new();
        for (i, buffer) in program.buffers.iter().enumerate() {
            let bytes = buffer.bytes.eval(bindings).unwrap() as usize;
            let data = match &buffer.place {
                Place::Input(at) => inputs[*at as usize].bytes().to_vec(),
                Place::Constant(at) => program.constants[*at as usize].clone(),
                // NaN in every float
                _ => vec![0xff; bytes],
            };
            assert_eq!(data.len(), bytes);
            places.push(memory.allocate(&name(i), data));
        }
        let status = memory.allocate("status", vec![0; 4]);
        let mut reports = Vec::new();
        for launch in program.launches() {
            let kernel = program.kernel(launch.kernel);
            let KernelBody::Cuda(code) = &kernel.body else { panic!("{}", kernel.name) };
            let mut args: Vec<Arg> =
                launch.args.iter().map(|arg| Arg::Pointer(places[arg.buffer.0 as usize])).collect();
            args.extend(launch.dims.iter().map(|dim| Arg::U64(dim.eval(bindings).unwrap() as u64)));
            args.push(Arg::Pointer(status));
            let grid = launch.grid.eval(bindings).unwrap() as u32;
            let options = LaunchOptions {
                warp_order,
                late,
                dynamic_shared: code.shared_bytes as usize,
                blocks: sampled.map(|blocks| blocks.iter().map(|b| [b % grid, 0, 0]).collect()),
                ..LaunchOptions::default()
            };
            let module = &self.modules[launch.kernel.0 as usize];
            let report = module.launch(&kernel.name, [grid, 1, 1], code.threads, &args, &mut memory, &options);
            reports.push(report?);
        }
        let output = |port: &Port| memory.bytes(&name(port.buffer.0 as usize)).expect("a buffer").to_vec();
        Ok((program.outputs.iter().map(output).collect(), reports))
    }
}
