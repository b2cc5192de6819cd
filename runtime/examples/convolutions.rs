//! The 53 convolutions of ResNet-50 through the driver, each with weights of its own so that they come from memory, beside the
//! multiply-add peak of the same minute. Usage: `convolutions [THREADS] [ISA] [WITHOUT]`, WITHOUT being prefetches to leave out: `input`, `weights`.

use egret_program::driver::{
    Activation, Bias, ConvForm, ConvInput, ConvProblem, ConvSchedule, Epilogue, Operand, PackProblem,
};
use egret_runtime::cpu::drivers::{ConvArgs, ConvPlan, PackPlan, ScratchNeed, ScratchPool};
use egret_runtime::cpu::memory::Buffer;
use egret_runtime::cpu::team::Team;
use egret_simd::{Isa, peak};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

struct Layer {
    name: String,
    flops: f64,
    plan: ConvPlan,
    weights: Buffer,
    bias: Buffer,
    residual: bool,
    image: bool,
    times: Vec<f64>,
}

/// Channels in and out, kernel, stride, extent, whether a residual is added.
fn resnet50() -> Vec<(usize, usize, usize, usize, usize, bool)> {
    let mut layers = vec![(3, 64, 7, 2, 224, false)];
    let (mut channels, mut extent) = (64, 56);
    for (stage, (blocks, inner)) in [(3, 64), (4, 128), (6, 256), (3, 512)].into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            layers.push((channels, inner, 1, 1, extent, false));
            if block == 0 {
                layers.push((channels, inner * 4, 1, stride, extent, false));
            }
            layers.push((inner, inner, 3, stride, extent, false));
            extent /= stride;
            layers.push((inner, inner * 4, 1, 1, extent, true));
            channels = inner * 4;
        }
    }
    layers
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let threads = arguments.get(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    let isa = arguments.get(2).and_then(|n| Isa::from_name(n)).unwrap_or_else(Isa::detect);
    let without = arguments.get(3).cloned().unwrap_or_default();
    let lanes = isa.lanes_f32();
    let team = Team::new(threads);
    let mut need = ScratchNeed::default();
    let mut layers: Vec<Layer> = resnet50()
        .into_iter()
        .map(|(i, o, k, s, extent, residual)| {
            let image = i == 3;
            let halo = if image { 0 } else { k / 2 };
            let out = extent / s;
            let batch_stride =
                |channels, extent, halo| ConvProblem::blocked_len(channels, &[extent, extent], &[halo, halo], lanes);
            let out_stride = batch_stride(o, out, 0);
            let full = Operand::Full { halo: vec![0; 2], batch_stride: out_stride };
            let problem = ConvProblem {
                form: ConvForm::Forward,
                input: if image { ConvInput::Image } else { ConvInput::Blocked },
                batch: 1,
                in_channels: i,
                out_channels: o,
                groups: 1,
                in_spatial: vec![extent; 2],
                out_spatial: vec![out; 2],
                kernel: vec![k; 2],
                stride: vec![s; 2],
                dilation: vec![1; 2],
                pad_begin: vec![k / 2; 2],
                in_halo: vec![halo; 2],
                out_halo: vec![0; 2],
                in_batch_stride: batch_stride(i, extent, halo),
                out_batch_stride: out_stride,
                prologue: None,
                epilogue: Epilogue::Direct {
                    bias: Some(Bias::PerColumn),
                    residual: residual.then_some(full),
                    activation: Activation::Relu,
                },
            };
            let mut schedule = ConvSchedule::choose(&problem, lanes);
            schedule.prefetch_input &= !without.contains("input");
            schedule.prefetch_weights &= !without.contains("weights");
            let plan = ConvPlan::new(&problem, &schedule, isa).expect("a plan");
            need = need.max(plan.scratch());
            let pack = PackPlan::new(&PackProblem::for_conv(&problem, &schedule), isa).expect("a plan");
            let mut weights = Buffer::floats(pack.packed_len()).expect("memory");
            weights.as_f32_mut().fill(0.01);
            Layer {
                name: format!("{i}->{o} {k}x{k} s{s} {extent}"),
                flops: problem.flops(),
                plan,
                weights,
                bias: Buffer::floats(o).expect("memory"),
                residual,
                image,
                times: vec![],
            }
        })
        .collect();
    let scratch = ScratchPool::new(team.size(), need).expect("memory");
    let arena: Vec<Buffer> = (0..4).map(|_| Buffer::floats(64 * 116 * 116 + 4096).expect("memory")).collect();
    let ceiling = || peak(isa, Duration::from_millis(20)).expect("supported") * team.size() as f64;
    let mut ceilings = vec![ceiling()];
    for round in 0..30 {
        let _awake = team.awake();
        for (n, layer) in layers.iter_mut().enumerate() {
            let bias = layer.bias.as_ptr();
            let both = [bias, arena[(n + 2) % 4].as_ptr()];
            let input = if layer.image { &arena[3] } else { &arena[n % 4] };
            let args = ConvArgs {
                input: input.as_ptr(),
                weights: layer.weights.as_ptr(),
                output: arena[(n + 1) % 4].as_ptr(),
                extras: if layer.residual { &both } else { &both[..1] },
                outs: &[],
                hook: None,
                prologue_extras: &[],
                prologue: None,
            };
            let start = Instant::now();
            // SAFETY: buffers are as large as the greatest layer.
            unsafe { layer.plan.run(&args, &team, &scratch) };
            if round >= 2 {
                layer.times.push(start.elapsed().as_secs_f64());
            }
        }
        ceilings.push(ceiling());
    }
    ceilings.sort_by(f64::total_cmp);
    let ceiling = ceilings[ceilings.len() / 2];
    let mut shapes: BTreeMap<usize, (usize, f64)> = BTreeMap::new();
    let (mut flops, mut seconds, mut best) = (0.0, 0.0, 0.0);
    for n in 0..layers.len() {
        layers[n].times.sort_by(f64::total_cmp);
        let median = layers[n].times[layers[n].times.len() / 2];
        best += layers[n].times[0];
        flops += layers[n].flops;
        seconds += median;
        let first = layers.iter().position(|l| l.name == layers[n].name).expect("itself");
        let entry = shapes.entry(first).or_default();
        *entry = (entry.0 + 1, entry.1 + layers[n].times[0]);
    }
    println!("{isa}, {threads} thread(s), peak {ceiling:.0} GFLOP/s; layers by their best time");
    for (n, (count, time)) in shapes {
        let rate = layers[n].flops * count as f64 / time / 1e9;
        println!("{:24} x{count}  {rate:6.1} GFLOP/s  {:3.0} %", layers[n].name, rate / ceiling * 100.0);
    }
    let rate = flops / seconds / 1e9;
    println!("sum of medians {:.2} ms, {rate:.1} GFLOP/s, {:.1} %", seconds * 1e3, rate / ceiling * 100.0);
    let rate = flops / best / 1e9;
    println!("sum of minima  {:.2} ms, {rate:.1} GFLOP/s, {:.1} %", best * 1e3, rate / ceiling * 100.0);
}
