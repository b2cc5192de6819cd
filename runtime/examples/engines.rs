//! Convolutions of ResNet-50 and VGG-19 on each engine that computes them, in turn, weights cold. Usage:
//! `engines [ROUNDS] [ISA] [THREADS]`; prints GFLOP/s by the operations of the direct sum, from the medians and the minima.

use egret_program::driver::{
    Activation, Bias, ConvForm, ConvInput, ConvProblem, ConvSchedule, Epilogue, PackProblem, Words,
};
use egret_runtime::cpu::drivers::{ConvArgs, ConvPlan, PackPlan, ScratchPool};
use egret_runtime::cpu::memory::Buffer;
use egret_runtime::cpu::team::Team;
use egret_simd::words::WordUnit;
use egret_simd::{Isa, peak};
use std::time::{Duration, Instant};

/// Channels in and out, extent, kernel.
const LAYERS: [(usize, usize, usize, usize); 20] = [
    (16, 16, 56, 3),
    (32, 32, 28, 3),
    (32, 64, 56, 3),
    (64, 32, 56, 3),
    (64, 64, 56, 3),
    (128, 128, 28, 3),
    (256, 256, 14, 3),
    (512, 512, 7, 3),
    (64, 64, 224, 3),
    (64, 128, 112, 3),
    (128, 128, 112, 3),
    (128, 256, 56, 3),
    (256, 256, 56, 3),
    (256, 512, 28, 3),
    (512, 512, 28, 3),
    (512, 512, 14, 3),
    (64, 256, 56, 1),
    (256, 64, 56, 1),
    (1024, 256, 14, 1),
    (512, 2048, 7, 1),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let rounds = arguments.get(1).and_then(|n| n.parse().ok()).unwrap_or(20);
    let isa = arguments.get(2).and_then(|n| Isa::from_name(n)).unwrap_or_else(Isa::detect);
    let threads = arguments.get(3).and_then(|n| n.parse().ok()).unwrap_or(1);
    let (lanes, team) = (isa.lanes_f32(), Team::new(threads));
    println!("{isa}, {threads} thread(s): GFLOP/s of direct, F(2x2), F(4x4), bf16, F(2x2) of bf16, and of the peak");
    // Between two runs this much is read, so that weights come from where a network's would.
    let others = Buffer::floats(10 << 20).expect("memory");
    for (i, o, extent, kernel) in LAYERS {
        let batch_stride = |channels, halo| ConvProblem::blocked_len(channels, &[extent, extent], &[halo, halo], lanes);
        let problem = ConvProblem {
            form: ConvForm::Forward,
            input: ConvInput::Blocked,
            batch: 1,
            in_channels: i,
            out_channels: o,
            groups: 1,
            in_spatial: vec![extent; 2],
            out_spatial: vec![extent; 2],
            kernel: vec![kernel; 2],
            stride: vec![1; 2],
            dilation: vec![1; 2],
            pad_begin: vec![kernel / 2; 2],
            in_halo: vec![1; 2],
            out_halo: vec![1; 2],
            in_batch_stride: batch_stride(i, 1),
            out_batch_stride: batch_stride(o, 1),
            prologue: None,
            epilogue: Epilogue::Direct { bias: Some(Bias::PerColumn), residual: None, activation: Activation::Relu },
        };
        let bf16 = problem.has_words(Words::Bf16, lanes) && WordUnit::bf16().is_some();
        let engines = [
            Some(ConvSchedule::choose(&problem, lanes)),
            problem.has_winograd().then(|| ConvSchedule::winograd(&problem, 2, None, lanes)),
            problem.has_winograd().then(|| ConvSchedule::winograd(&problem, 4, None, lanes)),
            bf16.then(|| ConvSchedule::words(&problem, Words::Bf16, lanes)),
            (bf16 && problem.has_winograd()).then(|| ConvSchedule::winograd(&problem, 2, Some(Words::Bf16), lanes)),
        ];
        let input = Buffer::floats(problem.in_batch_stride).expect("memory");
        let output = Buffer::floats(problem.out_batch_stride).expect("memory");
        let bias = Buffer::floats(o).expect("memory");
        let engines = engines.map(|schedule| {
            let schedule = schedule?;
            let plan = ConvPlan::new(&problem, &schedule, isa).expect("a plan");
            let pack = PackPlan::new(&PackProblem::for_conv(&problem, &schedule), isa).expect("a plan");
            let mut weights = Buffer::floats(pack.packed_len()).expect("memory");
            weights.as_f32_mut().fill(0.01);
            let scratch = ScratchPool::new(team.size(), plan.scratch()).expect("memory");
            Some((plan, weights, scratch))
        });
        let mut times = [const { Vec::new() }; 5];
        let mut peaks = Vec::new();
        for round in 0..rounds + 2 {
            for (engine, times) in engines.iter().zip(&mut times) {
                let Some((plan, weights, scratch)) = engine else { continue };
                let read: f32 = others.as_f32().iter().step_by(16).sum();
                assert!(read == 0.0);
                let _awake = team.awake();
                let args = ConvArgs {
                    input: input.as_ptr(),
                    weights: weights.as_ptr(),
                    output: output.as_ptr(),
                    extras: &[bias.as_ptr()],
                    outs: &[],
                    hook: None,
                    prologue_extras: &[],
                    prologue: None,
                };
                let start = (Instant::now(), thread_seconds());
                // SAFETY: buffers are those of the problem.
                unsafe { plan.run(&args, &team, scratch) };
                if round >= 2 {
                    // Alone, the thread's own time: on a shared machine no long run escapes others.
                    let wall = start.0.elapsed().as_secs_f64();
                    times.push(if team.size() == 1 { thread_seconds() - start.1 } else { wall });
                }
            }
            peaks.push(peak(isa, Duration::from_millis(1)).expect("supported") * team.size() as f64);
        }
        let sorted = |list: &mut Vec<f64>| {
            list.sort_by(f64::total_cmp);
            (!list.is_empty()).then(|| [list[list.len() / 2], list[0]])
        };
        let rates = times.each_mut().map(|times| match sorted(times) {
            Some(times) => times.map(|time| format!("{:.0}", problem.flops() / time / 1e9)).join("/"),
            None => "-".into(),
        });
        let [median, _] = sorted(&mut peaks).expect("as many as rounds");
        let [direct, f2, f4, bf16, f2_bf16] = rates;
        println!(
            "{:>15} {direct:>9} {f2:>9} {f4:>9} {bf16:>9} {f2_bf16:>9} {median:7.0}",
            format!("{i}->{o} {kernel}x{kernel} {extent}")
        );
    }
}

fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the structure.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
