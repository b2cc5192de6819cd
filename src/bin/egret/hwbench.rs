//! `egret hwbench`: what this machine's cores, caches and memory do, as a description for the compiler.

use std::hint::black_box;
use std::time::{Duration, Instant};

use egret::Device;
use egret_program::Target;
use egret_runtime::cpu::team::Team;
use egret_simd::words::WordUnit;
use egret_simd::{Isa, MICRO_KERNELS, copy_bandwidth, kernel_rate, peak, read_bandwidth, word_rate};
use serde_json::{Value, json};

use crate::args::{HwbenchArgs, threads};
use crate::failure::Failure;
use crate::sample;

/// Samples of each figure; the median is told.
const SAMPLES: usize = 9;
/// A level of the memory hierarchy.
struct Level {
    name: &'static str,
    /// Bytes that a measurement touches: well inside of this level, well beyond the one before.
    bytes: usize,
}

/// Measures, prints, and writes the description if a file is named.
pub fn hwbench(args: &HwbenchArgs, as_json: bool) -> Result<(), Failure> {
    let mut description =
        Device::cpu().description()?.ok_or_else(|| Failure::usage("this processor has no description"))?;
    let (isa, span) = (Isa::detect(), Duration::from_millis(args.span));
    let threads = threads(args.threads);
    let caches = [("1", "Data"), ("2", "Unified"), ("3", "Unified")].map(|(level, kind)| cache_bytes(level, kind));
    let known = [description.l1_bytes, description.l2_bytes, description.l3_bytes];
    let [l1, l2, l3] = std::array::from_fn(|i| caches[i].unwrap_or(known[i]));
    let levels = levels(l1, l2, l3);

    let counts: Vec<usize> = if threads == 1 { vec![1] } else { vec![1, threads] };
    let teams: Vec<Team> = counts.iter().map(|n| Team::new(*n)).collect();
    let sampled = |team: &Team, measure: &(dyn Fn(usize) -> Option<f64> + Sync)| {
        sample::median((0..SAMPLES).map(|_| sample::together(team, measure)))
    };
    let peaks: Vec<f64> = teams.iter().map(|team| sampled(team, &|_| peak(isa, span))).collect();
    let mut rates = Vec::with_capacity(levels.len());
    for level in &levels {
        let floats = level.bytes / 4;
        let read = |team: &Team| {
            sampled(team, &|_| {
                let data = vec![1f32; floats];
                read_bandwidth(isa, &data, span)
            })
        };
        let copied = |team: &Team| {
            sampled(team, &|_| {
                let (from, mut to) = (vec![1f32; floats / 2], vec![0f32; floats / 2]);
                copy_bandwidth(isa, &from, &mut to, span)
            })
        };
        rates.push((teams.iter().map(read).collect::<Vec<f64>>(), teams.iter().map(copied).collect::<Vec<f64>>()));
    }
    let fork_join = if threads > 1 { fork_join_us(threads) } else { 0.0 };
    // a kernel in turn with the peak: the clock moves; vectors have half as many doubles as floats
    let beside = |name: &'static str, bytes: usize, rate: &dyn Fn() -> Option<f64>| {
        let peak = || Some(peak(isa, span)? * 4.0 / bytes as f64);
        let pairs: Vec<(f64, f64)> = (0..SAMPLES).filter_map(|_| Some((rate()?, peak()?))).collect();
        let share = sample::median(pairs.iter().map(|(rate, peak)| rate / peak));
        (name, sample::median(pairs.iter().map(|(rate, _)| *rate)), share)
    };
    let of_isa = MICRO_KERNELS.iter().filter(|kernel| kernel.isa == isa);
    let mut kernels: Vec<(&str, f64, f64)> =
        of_isa.map(|kernel| beside(kernel.name, kernel.bytes, &|| kernel_rate(kernel, span))).collect();
    // words hold several factors: beside the peak of floats
    let units = WordUnit::ALL.into_iter().filter(|unit| unit.kernels().is_some());
    kernels.extend(units.map(|unit| beside(unit.name(), 4, &|| word_rate(unit, span))));
    let of_bf16 = |unit: WordUnit| kernels.iter().find(|(name, ..)| *name == unit.name()).map(|(.., share)| *share);
    if let (Some(share), Target::Cpu { bf16, .. }) = (WordUnit::bf16().and_then(of_bf16), &mut description.target) {
        *bf16 = rounded(share);
    }

    description.name = args.name.clone();
    (description.cores, description.core_gflops) = (threads as u32, rounded(peaks[0]));
    (description.l1_bytes, description.l2_bytes, description.l3_bytes) = (l1, l2, l3);
    // what a core reads from the last cache, and what all read from memory
    let last_cache = if l3 > 0 { 2 } else { 1 };
    description.cache_gbps = rounded(rates[last_cache].0[0]);
    description.memory_gbps = rounded(*rates[levels.len() - 1].0.last().unwrap_or(&description.memory_gbps));
    if let Some(file) = &args.out {
        let text = serde_json::to_string_pretty(&description).map_err(|e| Failure::usage(e.to_string()))?;
        std::fs::write(file, text + "\n").map_err(|e| Failure::file(file, &e))?;
    }

    if as_json {
        let level = |(level, (read, copied)): (&Level, &(Vec<f64>, Vec<f64>))| -> Value {
            json!({ "level": level.name, "bytes": level.bytes, "read_gbps": read, "copy_gbps": copied })
        };
        let kernel = |(name, rate, share): &(&str, f64, f64)| json!({ "kernel": name, "gflops": rate, "share": share });
        println!(
            "{:#}",
            json!({
                "isa": isa.name(), "threads": counts, "peak_gflops": peaks,
                "levels": levels.iter().zip(&rates).map(level).collect::<Vec<Value>>(),
                "fork_join_us": fork_join, "kernels": kernels.iter().map(kernel).collect::<Vec<Value>>(),
                "description": description,
            })
        );
        return Ok(());
    }
    let each = |values: &[f64]| values.iter().map(|v| format!("{v:>10.1}")).collect::<String>();
    let heads: String = counts.iter().map(|n| format!("{:>10}", format!("{n} thr."))).collect();
    println!("{:<26}{heads}", isa.name());
    println!("{:<26}{}", "f32, GFLOP/s", each(&peaks));
    for (level, (read, copied)) in levels.iter().zip(&rates) {
        println!("{:<26}{}", format!("{} read, GB/s", level.name), each(read));
        println!("{:<26}{}", format!("{} copy, GB/s", level.name), each(copied));
    }
    if threads > 1 {
        println!("{:<26}{:>20.2}", "fork and join, µs", fork_join);
    }
    for (name, rate, share) in &kernels {
        println!("{name:<26}{rate:>10.1} GFLOP/s, {:.1} % of the peak beside it", share * 100.0);
    }
    Ok(())
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn levels(l1: u64, l2: u64, l3: u64) -> Vec<Level> {
    let half = |bytes: u64| (bytes / 2) as usize;
    let mut levels = vec![Level { name: "L1", bytes: half(l1) }, Level { name: "L2", bytes: half(l2) }];
    if l3 > 0 {
        // another guest may have the rest
        levels.push(Level { name: "L3", bytes: (l3 / 4).max(2 * l2) as usize });
    }
    levels.push(Level { name: "memory", bytes: (4 * l2.max(l3)).clamp(64 << 20, 512 << 20) as usize });
    levels
}

/// Bytes of a cache of the first core, as the system tells.
fn cache_bytes(level: &str, kind: &str) -> Option<u64> {
    let read = |index: usize, what: &str| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{what}");
        std::fs::read_to_string(path).ok().map(|text| text.trim().to_string())
    };
    let is_it = |index: &usize| {
        read(*index, "level").as_deref() == Some(level) && read(*index, "type").as_deref() == Some(kind)
    };
    let size = read((0..8).find(is_it)?, "size")?;
    let number: u64 = size.trim_end_matches(['K', 'M']).parse().ok()?;
    Some(number << if size.ends_with('M') { 20 } else { 10 })
}

/// What dividing nothing among a team that is awake takes, µs.
fn fork_join_us(threads: usize) -> f64 {
    const ROUNDS: u32 = 2000;
    let team = Team::new(threads);
    let awake = team.awake();
    let rounds = (0..SAMPLES).map(|_| {
        let start = Instant::now();
        (0..ROUNDS).for_each(|_| {
            team.parallel(threads, &|chunk, _| {
                black_box(chunk);
            })
        });
        start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS)
    });
    let median = sample::median(rounds.collect::<Vec<f64>>().into_iter());
    drop(awake);
    median
}
