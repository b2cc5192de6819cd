//! `egret bench --roofline`: each step beside the least time that this machine could do it in.

use std::time::Duration;

use egret::{Session, StepTime, Tensor};
use egret_runtime::cpu::team::Team;
use egret_simd::{Isa, peak, read_bandwidth};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::sample;

/// Profiled runs; the median of each step is told.
const RUNS: usize = 15;
/// What one measurement of the machine takes.
const SPAN: Duration = Duration::from_millis(20);
/// After a run the session's workers spin for half a millisecond, on the cores that are then measured.
const PAUSE: Duration = Duration::from_millis(1);

/// A step, or several executions of it in a run.
struct Row {
    step: StepTime,
    /// Measured, ns.
    ns: f64,
    /// The least: its FLOPs at the peak or its bytes at the last cache's rate, whichever takes longer; ns.
    floor: f64,
    /// Whether the bytes do.
    by_bytes: bool,
}

/// What a model's steps take, and could take.
pub struct Roofline {
    rows: Vec<Row>,
    /// GFLOP/s of all threads.
    peak: f64,
    /// GB/s that all threads read from the last cache.
    cache: f64,
    /// GB/s that all threads read from memory.
    memory: f64,
    /// The least time of the whole, ns: the sum of the steps' floors, or all weights from memory where they fit no cache.
    floor: f64,
}

/// Measures a session's steps and the machine, in turn.
pub fn measure(
    session: &mut Session,
    given: &[(&str, &Tensor)],
    threads: usize,
    weights: f64,
) -> Result<Roofline, Failure> {
    let isa = Isa::detect();
    let description = egret::Device::cpu().description()?;
    let (l2, l3) = description.map_or((1 << 20, 0), |d| (d.l2_bytes as usize, d.l3_bytes as usize));
    // each thread reads its own part: beyond the second-level cache if there is a third, or beyond all
    let own = if l3 > 0 { (l3 / 4 / threads).max(2 * l2) } else { l2 / 2 };
    let all = (4 * l2.max(l3)).max(64 << 20);
    let (in_cache, beyond) = (vec![1f32; own * threads / 4], vec![1f32; all / 4]);
    let read = |data: &[f32], number: usize| {
        let part = data.len() / threads;
        read_bandwidth(isa, &data[number * part..][..part], SPAN)
    };
    let (mut peaks, mut cached, mut streamed) = (Vec::new(), Vec::new(), Vec::new());
    let mut times: Vec<Vec<f64>> = Vec::new();
    let team = Team::new(threads);
    session.profile(true);
    for _ in 0..RUNS {
        session.run(given)?;
        let steps = session.timings();
        times.resize(steps.len(), Vec::new());
        times.iter_mut().zip(steps).for_each(|(all, step)| all.push(step.ns as f64));
        std::thread::sleep(PAUSE);
        peaks.push(sample::together(&team, &|_| peak(isa, SPAN)));
        cached.push(sample::together(&team, &|number| read(&in_cache, number)));
        streamed.push(sample::together(&team, &|number| read(&beyond, number)));
    }
    let steps = session.timings().to_vec();
    session.profile(false);
    let [peak, cache, memory] = [peaks, cached, streamed].map(|measured| sample::median(measured.into_iter()));
    let rows: Vec<Row> = steps
        .into_iter()
        .zip(times)
        .filter(|(step, _)| step.calls > 0)
        .map(|(step, times)| {
            let calls = step.calls as f64;
            let (arithmetic, bytes) = (step.flops * calls / peak, step.bytes * calls / cache);
            Row {
                ns: sample::median(times.into_iter()),
                floor: arithmetic.max(bytes),
                by_bytes: bytes > arithmetic,
                step,
            }
        })
        .collect();
    let sum: f64 = rows.iter().map(|row| row.floor).sum();
    let floor = if weights > l2.max(l3) as f64 { sum.max(weights / memory) } else { sum };
    Ok(Roofline { rows, peak, cache, memory, floor })
}

impl Roofline {
    fn measured(&self) -> f64 {
        self.rows.iter().map(|row| row.ns).sum()
    }

    /// The figures as JSON.
    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "kernel": row.step.name, "family": row.step.family, "nodes": row.step.origin, "us": row.ns / 1e3,
                "floor_us": row.floor / 1e3, "bound": if row.by_bytes { "bytes" } else { "arithmetic" },
                "flops": row.step.flops, "bytes": row.step.bytes, "calls": row.step.calls,
            })
        };
        json!({
            "peak_gflops": self.peak, "cache_gbps": self.cache, "memory_gbps": self.memory,
            "us": self.measured() / 1e3, "floor_us": self.floor / 1e3,
            "steps": self.rows.iter().map(row).collect::<Vec<Value>>(),
        })
    }

    /// Prints the steps that are farthest above their floors, and the whole.
    pub fn print(&self, most: usize) {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by(|a, b| (b.ns - b.floor).total_cmp(&(a.ns - a.floor)));
        println!("{:>10} {:>10} {:>6}  {:>9} {:>8}  step", "µs", "floor", "share", "GFLOP/s", "GB/s");
        for row in rows.iter().take(most) {
            let calls = row.step.calls as f64;
            let mut origin: String = row.step.origin.chars().take(60).collect();
            if origin.len() < row.step.origin.len() {
                origin.push('…');
            }
            let name = if row.step.name.is_empty() { &row.step.family } else { &row.step.name };
            let times = if row.step.calls > 1 { format!(" ×{}", row.step.calls) } else { String::new() };
            let bound = if row.by_bytes { 'b' } else { 'f' };
            println!(
                "{:>10.1} {:>9.1}{bound} {:>5.0}%  {:>9.1} {:>8.1}  {name}{times} {origin}",
                row.ns / 1e3,
                row.floor / 1e3,
                100.0 * row.floor / row.ns.max(1.0),
                row.step.flops * calls / row.ns.max(1.0),
                row.step.bytes * calls / row.ns.max(1.0)
            );
        }
        let (us, floor) = (self.measured() / 1e3, self.floor / 1e3);
        println!("{us:>10.1} {floor:>10.1} {:>5.0}%  all {} steps", 100.0 * floor / us.max(1e-3), self.rows.len());
        println!(
            "floors: f: at {:.1} GFLOP/s, b: at {:.1} GB/s of the last cache; all weights at {:.1} GB/s of memory",
            self.peak, self.cache, self.memory
        );
    }
}
