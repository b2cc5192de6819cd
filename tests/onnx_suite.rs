//! The ONNX backend suite through the command, against a ledger that may only get better.
//!
//! `tests/onnx-ledger.tsv` says of each test whether it passes or needs what Egret does not have, and what that is. A test
//! that gives wrong numbers, that crashes, or that passed when the ledger was written and does not now, fails this one.
//! `EGRET_BLESS=1` writes the ledger anew.
//!
//! The suite comes from `cargo xtask fetch`, or from the archive in `$EGRET_TEST_DATA/onnx-suite`; without either the
//! test is skipped, and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use egret::{DType, Tensor};
use xtask::Case;

/// Tests whose outputs are random: only that they run, with outputs of the right types, is compared.
fn is_random(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    name.starts_with("test_bernoulli")
        || name == "test_dropout_default_ratio"
        || (name.starts_with("test_training_dropout") && !name.contains("_zero"))
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Passed,
    Unsupported(String),
    Failed(String),
}

/// Whether an output is the expected one by the suite's rule: element type and shape, and `|have − want| ≤ atol +
/// rtol·|want|`, where NaN equals NaN and an infinity itself; bf16 has at least the tolerance of two of its ulps.
fn compare(have: &Tensor, want: &Tensor, (rtol, atol): (f64, f64), random: bool) -> Result<(), String> {
    if (have.dtype(), have.shape()) != (want.dtype(), want.shape()) {
        let ty = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
        return Err(format!("{}, not {}", ty(have), ty(want)));
    }
    if random {
        return Ok(());
    }
    let rtol = if want.dtype() == DType::BF16 { rtol.max(2f64.powi(-6)) } else { rtol };
    let mut wrong = (0, None);
    for (i, (a, b)) in have.values().zip(want.values()).map(|(a, b)| (a.as_f64(), b.as_f64())).enumerate() {
        let same = a == b || (a.is_nan() && b.is_nan());
        if !same && (b.is_infinite() || (a - b).abs() > atol + rtol * b.abs() || a.is_nan() || b.is_nan()) {
            wrong.0 += 1;
            wrong.1.get_or_insert((i, a, b));
        }
    }
    match wrong.1 {
        None => Ok(()),
        Some((i, a, b)) => Err(format!("{} of {} elements, first [{i}]: {a}, not {b}", wrong.0, want.elements())),
    }
}

/// The outputs of one data set.
fn check(case: &Case, set: &Path, outputs: &Path) -> Outcome {
    let status = std::fs::read_to_string(outputs.join("status")).unwrap_or("error: no status".into());
    if let Some(why) = status.strip_prefix("unsupported: ") {
        return Outcome::Unsupported(class(why));
    }
    if status != "ok" {
        return Outcome::Failed(status);
    }
    for i in 0.. {
        let (have, want) = (outputs.join(format!("output_{i}.pb")), set.join(format!("output_{i}.pb")));
        if !want.exists() {
            return match have.exists() {
                true => Outcome::Failed(format!("output {i} is not expected")),
                false => Outcome::Passed,
            };
        }
        let read = |path: &Path| egret::onnx::read_tensor(path).map(|(_, tensor)| tensor);
        let compared = match (read(&have), read(&want)) {
            (Ok(have), Ok(want)) => compare(&have, &want, case.tolerance, is_random(&case.name)),
            (Err(e), _) | (_, Err(e)) => Err(e.to_string()),
        };
        if let Err(why) = compared {
            return Outcome::Failed(format!("output {i}: {why}"));
        }
    }
    Outcome::Passed
}

/// A reason without nodes: its code, and which operators or what form.
fn class(why: &str) -> String {
    let end = why.find([';', '(']).unwrap_or(why.len());
    why[..end].trim().chars().filter(|c| !c.is_control()).take(120).collect()
}

fn run(cases: &[Case], folder: &Path, device: &[&str]) -> BTreeMap<String, Outcome> {
    let outputs = |case: &Case, i: usize| folder.join(&case.name).join(i.to_string());
    let mut list = String::new();
    for case in cases {
        for (i, set) in case.sets.iter().enumerate() {
            let (model, outputs) = (case.model.display(), outputs(case, i));
            let _ = writeln!(list, "{model}\t{}\t{}", set.display(), outputs.display());
        }
    }
    let path = folder.join("list.tsv");
    std::fs::write(&path, list).unwrap();
    let command = env!("CARGO_BIN_EXE_egret");
    let ran = Command::new(command).arg("run").args(device).arg("--batch").arg(&path).output().unwrap();
    print!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    let outcome = |case: &Case| {
        let mut sets = case.sets.iter().enumerate().map(|(i, set)| check(case, set, &outputs(case, i)));
        sets.find(|outcome| *outcome != Outcome::Passed).unwrap_or(match case.sets.is_empty() {
            true => Outcome::Failed("no data".into()),
            false => Outcome::Passed,
        })
    };
    cases.iter().map(|case| (case.name.clone(), outcome(case))).collect()
}

fn ledger() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx-ledger.tsv")
}

#[test]
fn the_onnx_suite_is_as_good_as_its_ledger() {
    let Some(suite) = xtask::suite().unwrap_or_else(|e| panic!("the ONNX suite cannot be unpacked: {e}")) else {
        println!("skipped: there is no ONNX suite; `cargo xtask fetch` gets it");
        return;
    };
    let cases = xtask::cases(&suite).unwrap();
    assert!(cases.len() > 1000, "{} holds {} tests", suite.display(), cases.len());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("onnx-suite-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let outcomes = run(&cases, &folder, &[]);
    std::fs::remove_dir_all(&folder).unwrap();

    let mut text = String::new();
    let mut wrong = Vec::new();
    for (name, outcome) in &outcomes {
        let _ = match outcome {
            Outcome::Passed => writeln!(text, "{name}\tpassed"),
            Outcome::Unsupported(why) => writeln!(text, "{name}\tunsupported\t{why}"),
            Outcome::Failed(why) => {
                wrong.push(format!("{name}: {why}"));
                writeln!(text, "{name}\tunsupported\tit fails")
            }
        };
    }
    let passed = outcomes.values().filter(|outcome| **outcome == Outcome::Passed).count();
    println!("{passed} of {} tests pass, {} fail", outcomes.len(), wrong.len());
    assert!(wrong.is_empty(), "{} tests fail:\n{}", wrong.len(), wrong.join("\n"));
    if std::env::var_os("EGRET_BLESS").is_some() {
        std::fs::write(ledger(), text).unwrap();
        return;
    }
    let known = std::fs::read_to_string(ledger()).unwrap();
    let good = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_suffix("\tpassed"));
        lines.map(str::to_string).collect()
    };
    let (known, now) = (good(&known), good(&text));
    // a suite that was generated holds fewer tests
    let lost: Vec<String> = known
        .difference(&now)
        .filter_map(|name| outcomes.get(name).map(|outcome| format!("{name}: {outcome:?}")))
        .collect();
    assert!(lost.is_empty(), "{} tests passed and do not now:\n{}", lost.len(), lost.join("\n"));
    let gained: Vec<&String> = now.difference(&known).collect();
    if !gained.is_empty() {
        println!("{} more tests pass than the ledger says; EGRET_BLESS=1 writes it anew: {gained:?}", gained.len());
    }
}

/// Tests of the suite that run on a simulated GPU: one of so many, over all operators.
#[cfg(feature = "sim")]
const SAMPLED: usize = 40;

/// A sample of the suite on a simulated GPU, with every check on; `scripts/deep-check` runs all of it. What the ledger says
/// passes on a CPU passes there, unless its form has no kernel for GPUs, which few have not.
#[cfg(feature = "sim")]
#[test]
fn a_sample_passes_on_a_simulated_gpu() {
    if let Err(error) = egret_runtime::cuda::nvrtc::Nvrtc::get() {
        assert!(!std::env::var("CI").is_ok_and(|v| v == "true"), "{error}");
        println!("skipped: {error}");
        return;
    }
    let Some(suite) = xtask::suite().unwrap_or_else(|e| panic!("the ONNX suite cannot be unpacked: {e}")) else {
        println!("skipped: there is no ONNX suite; `cargo xtask fetch` gets it");
        return;
    };
    let text = std::fs::read_to_string(ledger()).unwrap();
    let passes: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_suffix("\tpassed")).collect();
    let cases = xtask::cases(&suite).unwrap();
    let nodes = cases.into_iter().filter(|case| case.name.starts_with("node/") && passes.contains(case.name.as_str()));
    let cases: Vec<Case> = nodes.step_by(SAMPLED).collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("onnx-sample-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let outcomes = run(&cases, &folder, &["--device", "cuda-sim:sm_80"]);
    std::fs::remove_dir_all(&folder).unwrap();
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_))).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let passed = outcomes.values().filter(|outcome| **outcome == Outcome::Passed).count();
    println!("{passed} of {} sampled tests pass", outcomes.len());
    assert!(passed >= 30 && passed * 20 >= outcomes.len() * 19, "{outcomes:#?}");
}
