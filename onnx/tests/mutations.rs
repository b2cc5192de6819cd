//! Damaged models are errors, or other models; never a panic, a hang, or more memory than their sizes justify.
//!
//! The corpus is the ONNX backend suite, as `cargo xtask fetch` leaves it under `target/test-data`; without it the small
//! models of `EGRET_TEST_DATA`.

#[path = "support/attack.rs"]
mod attack;

use std::path::{Path, PathBuf};

use attack::attack;
use egret_ir::Tensors;

/// Models that are damaged, each in several ways.
const MODELS: usize = 2000;

/// A model larger than this is left out: its weights would take most of the damage.
const LARGEST: u64 = 16 << 10;

/// xorshift64* (Vigna, 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

fn corpus() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let data = std::env::var_os("EGRET_TEST_DATA").map_or_else(|| root.join("../shared"), PathBuf::from);
    let mut open = vec![root.join("target/test-data/onnx-suite"), data.join("models")];
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
    found
}

/// The inputs that a model of the suite is tested with.
fn recorded(model: &Path) -> Tensors {
    let names = egret_onnx::inputs(model).unwrap_or_default().into_iter().enumerate();
    let tensor = |(i, (name, _)): (usize, (String, bool))| {
        let path = model.with_file_name("test_data_set_0").join(format!("input_{i}.pb"));
        Some((name, egret_onnx::read_tensor(&path).ok()?.1))
    };
    names.filter_map(tensor).collect()
}

#[test]
fn damaged_models_are_errors_or_models() {
    let corpus = corpus();
    if corpus.is_empty() {
        println!("skipped: there are no small models; `cargo xtask fetch` gets some");
        return;
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let step = corpus.len().div_ceil(MODELS);
    let (mut legal, mut attacks) = (0, 0);
    let mut panics = Vec::new();
    for path in corpus.iter().step_by(step) {
        let bytes = std::fs::read(path).unwrap();
        let given = recorded(path);
        let other = std::fs::read(&corpus[random.below(corpus.len())]).unwrap();
        for round in 0..30 {
            let damaged = damage(&bytes, &other, round % 6, &mut random);
            let outcome = std::panic::catch_unwind(|| attack(&damaged, &given));
            match outcome {
                Ok(is_legal) => legal += usize::from(is_legal),
                Err(_) => panics.push(format!("{}, round {round}", path.display())),
            }
            attacks += 1;
        }
    }
    println!("{attacks} damaged models of {}, {legal} still legal", corpus.len());
    assert!(panics.is_empty(), "{} panics:\n{}", panics.len(), panics.join("\n"));
    // both ways are taken: damage is not so great that nothing is imported, nor so small that all is
    assert!(legal > 0 && legal < attacks);
}

fn damage(bytes: &[u8], other: &[u8], round: usize, random: &mut Random) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    match round {
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
        _ => damaged.extend_from_slice(&other[random.below(other.len())..]),
    }
    damaged
}

/// Two models as one message: repeated fields are joined, so that nodes and names of both meet.
#[test]
fn joined_models_are_errors_or_models() {
    let corpus = corpus();
    let mut random = Random(7);
    for _ in 0..2000.min(corpus.len()) {
        let read = |random: &mut Random| std::fs::read(&corpus[random.below(corpus.len())]).unwrap();
        let mut bytes = read(&mut random);
        bytes.extend(read(&mut random));
        attack(&bytes, &Tensors::new());
    }
}
