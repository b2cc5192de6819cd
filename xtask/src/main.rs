//! Chores: `cargo xtask fetch`.

use std::process::{Command, ExitCode};

const USAGE: &str = "\
cargo xtask fetch
    Puts test data under target/test-data: the ONNX backend suite, unpacked from the archive in
    $EGRET_TEST_DATA/onnx-suite or made by the Python package `onnx` ($PYTHON, default python3), and models whose
    weights are fetched.";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("fetch") => fetch(),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn fetch() -> ExitCode {
    let suite = match xtask::suite() {
        Ok(None) => xtask::generate_suite().map(Some),
        other => other,
    };
    let mut status = ExitCode::SUCCESS;
    match suite {
        Ok(Some(folder)) => println!("the ONNX suite is in {}", folder.display()),
        Ok(None) => {}
        Err(error) => {
            eprintln!("the ONNX suite: {error}; its tests are skipped");
            status = ExitCode::FAILURE;
        }
    }
    match Command::new("bash").arg(xtask::root().join("scripts/fetch-test-data")).status() {
        Ok(code) if code.success() => {}
        Ok(code) => {
            eprintln!("scripts/fetch-test-data {code}");
            status = ExitCode::FAILURE;
        }
        Err(error) => {
            eprintln!("scripts/fetch-test-data: {error}");
            status = ExitCode::FAILURE;
        }
    }
    status
}
