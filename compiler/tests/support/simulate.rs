//! Runs kernels on the simulator: NVRTC's own PTX, with every check.
#![allow(dead_code)]

use egret_compiler::emit::cuda::CudaSource;
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
