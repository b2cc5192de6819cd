//! Damaged models are errors, or other models; never a panic, a trap, a hang, or more memory than their sizes justify.
//!
//! The corpus is the ONNX backend suite, as `cargo xtask fetch` leaves it under `target/test-data` or `EGRET_TEST_DATA`
//! holds it, and the small models there. The test takes a minute, or `EGRET_FUZZ_EXECUTIONS` from `EGRET_FUZZ_FIRST` on;
//! the same function is the fuzz target in `fuzz/`.

#[path = "support/attack.rs"]
mod attack;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use attack::{Outcome, attack};
use egret::{Level, Tensors};

/// How long it runs when no number is given.
const TIME: Duration = Duration::from_secs(60);

/// An execution that takes longer hangs: without optimisation the slowest takes a second or two.
const HANG: Duration = Duration::from_secs(60);

/// Of so many legal models one is compiled too, which takes most of the time.
const COMPILED: u64 = 4;

/// A model larger than this is left out: its weights would take most of the damage.
const LARGEST: u64 = 16 << 10;

/// xorshift64* (Vigna, 2016).
struct Random(u64);

impl Random {
    /// A generator for an execution; splitmix64's finaliser keeps those of neighbours apart.
    fn new(execution: u64) -> Random {
        let mut z = execution.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Random((z ^ (z >> 31)) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

/// A model, and the inputs that it is tested with.
struct Seed {
    path: PathBuf,
    bytes: Vec<u8>,
    inputs: Tensors,
}

fn corpus() -> Vec<Seed> {
    let data = std::env::var_os("EGRET_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let suite = xtask::suite().unwrap_or_else(|e| panic!("the ONNX suite cannot be unpacked: {e}"));
    let mut open: Vec<PathBuf> = suite.into_iter().chain([data.join("models")]).collect();
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "onnx") && entry.metadata().is_ok_and(|m| m.len() < LARGEST)
            {
                found.push(path);
            }
        }
    }
    found.sort();
    let seed = |path: PathBuf| Seed { bytes: std::fs::read(&path).unwrap(), inputs: recorded(&path), path };
    found.into_iter().map(seed).collect()
}

/// The inputs that a model of the suite is tested with.
fn recorded(model: &Path) -> Tensors {
    let names = egret::onnx::inputs(model).unwrap_or_default().into_iter().enumerate();
    let tensor = |(i, (name, _)): (usize, (String, bool))| {
        let path = model.with_file_name("test_data_set_0").join(format!("input_{i}.pb"));
        Some((name, egret::onnx::read_tensor(&path).ok()?.1))
    };
    names.filter_map(tensor).collect()
}

/// One execution: a model of the corpus, damaged as the number says.
fn execute(corpus: &[Seed], execution: u64) -> Outcome {
    let mut random = Random::new(execution);
    let seed = &corpus[execution as usize % corpus.len()];
    let other = &corpus[random.below(corpus.len())];
    let damaged = damage(&seed.bytes, &other.bytes, random.below(7), &mut random);
    let level = [Level::None, Level::Greedy, Level::Full][random.below(3)];
    let compiles = random.below(COMPILED as usize) == 0;
    attack(&damaged, &seed.inputs, compiles.then_some(level))
}

#[test]
fn damaged_models_are_errors_or_models() {
    let corpus = corpus();
    if corpus.is_empty() {
        println!("skipped: there are no small models; `cargo xtask fetch` gets some");
        return;
    }
    let asked: Option<u64> = std::env::var("EGRET_FUZZ_EXECUTIONS").ok().and_then(|n| n.parse().ok());
    let first: u64 = std::env::var("EGRET_FUZZ_FIRST").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let (start, next, done) = (Instant::now(), AtomicU64::new(first), AtomicBool::new(false));
    let current: Vec<Mutex<Option<(u64, Instant)>>> = (0..workers).map(|_| Mutex::new(None)).collect();
    let outcomes = Mutex::new((BTreeMap::<Outcome, u64>::new(), Vec::<String>::new()));
    std::thread::scope(|scope| {
        let work = |worker: usize| {
            let mut counts = BTreeMap::<Outcome, u64>::new();
            loop {
                let execution = next.fetch_add(1, Ordering::Relaxed);
                if asked.map_or(start.elapsed() > TIME, |n| execution >= first + n) {
                    break;
                }
                *current[worker].lock().unwrap() = Some((execution, Instant::now()));
                match catch_unwind(AssertUnwindSafe(|| execute(&corpus, execution))) {
                    Ok(outcome) => *counts.entry(outcome).or_default() += 1,
                    Err(_) => {
                        let model = &corpus[execution as usize % corpus.len()].path;
                        outcomes.lock().unwrap().1.push(format!("execution {execution}: {}", model.display()));
                    }
                }
                *current[worker].lock().unwrap() = None;
            }
            let mut all = outcomes.lock().unwrap();
            counts.into_iter().for_each(|(outcome, n)| *all.0.entry(outcome).or_default() += n);
        };
        let all: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        // a thread that hangs cannot be stopped: the process is
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                for (execution, since) in current.iter().filter_map(|slot| *slot.lock().unwrap()) {
                    if since.elapsed() > HANG {
                        eprintln!("execution {execution} hangs");
                        std::process::exit(1);
                    }
                }
            }
        });
        all.into_iter().for_each(|worker| worker.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    let (counts, panics) = outcomes.into_inner().unwrap();
    let executions: u64 = counts.values().sum::<u64>() + panics.len() as u64;
    println!("{executions} damaged models of {}: {counts:?}", corpus.len());
    assert!(panics.is_empty(), "{} panics:\n{}", panics.len(), panics.join("\n"));
    // all ways are taken: damage is not so great that nothing is imported, nor so small that all is
    let met = |outcome| counts.get(&outcome).copied().unwrap_or(0);
    assert!(met(Outcome::Refused) > 0 && met(Outcome::Interpreted) > 0 && met(Outcome::Compiled) > 0);
}

fn damage(bytes: &[u8], other: &[u8], kind: usize, random: &mut Random) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    match kind {
        // cut off
        0 => damaged.truncate(random.below(bytes.len())),
        // bits
        1 | 2 => {
            for _ in 0..1 + random.below(4) {
                let at = random.below(damaged.len());
                damaged[at] ^= 1 << random.below(8);
            }
        }
        // numbers that are lengths, extents, axes
        3 => {
            for _ in 0..1 + random.below(3) {
                let at = random.below(damaged.len());
                damaged[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
            }
        }
        // a part twice
        4 => {
            let (from, count) = (random.below(damaged.len()), random.below(64));
            let part: Vec<u8> = damaged[from..].iter().take(count).copied().collect();
            let at = random.below(damaged.len());
            damaged.splice(at..at, part);
        }
        // a part of another model, whose fields are added to those of this one
        5 => damaged.extend_from_slice(&other[random.below(other.len())..]),
        // two models as one message: repeated fields are joined, so that nodes and names of both meet
        _ => damaged.extend_from_slice(other),
    }
    damaged
}
