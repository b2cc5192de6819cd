//! The ONNX backend suite: models of one or a few operators with inputs and expected outputs.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{data, fetched};

/// Kinds of tests, which are folders of the suite.
const KINDS: [&str; 4] = ["node", "simple", "pytorch-operator", "pytorch-converted"];

/// A test of the suite.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its kind and name, as `node/test_abs`.
    pub name: String,
    /// The model.
    pub model: PathBuf,
    /// Folders with `input_0.pb`, … and `output_0.pb`, ….
    pub sets: Vec<PathBuf>,
    /// Allowed difference relative to the expected element, and beside that.
    pub tolerance: (f64, f64),
}

/// The unpacked suite: as it lies under `target/test-data`, or unpacked from the archive among the test data. `None`
/// when neither is there.
///
/// # Errors
/// An archive that cannot be read, or no room for what is in it.
pub fn suite() -> io::Result<Option<PathBuf>> {
    let folder = fetched().join("onnx-suite");
    if folder.join("node").is_dir() {
        return Ok(Some(folder));
    }
    let Some(archive) = archive(&data().join("onnx-suite"))? else { return Ok(None) };
    // in its place at once, so that what is there is whole
    let part = fetched().join(format!("onnx-suite.{}", std::process::id()));
    fs::create_dir_all(&part)?;
    tar::Archive::new(lzma_rust2::XzReader::new(BufReader::new(File::open(archive)?), true)).unpack(&part)?;
    match fs::rename(&part, &folder) {
        // another process was first
        Err(_) if folder.join("node").is_dir() => fs::remove_dir_all(&part)?,
        other => other?,
    }
    Ok(Some(folder))
}

fn archive(folder: &Path) -> io::Result<Option<PathBuf>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".tar.xz")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found.pop())
}

/// Makes the suite with the generator of the Python package `onnx`, which holds the node tests alone.
///
/// # Errors
/// No Python with `onnx` and `numpy`.
pub fn generate() -> io::Result<PathBuf> {
    let folder = fetched().join("onnx-suite");
    fs::create_dir_all(&folder)?;
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let arguments = ["-m", "onnx.backend.test.cmd_tools", "generate-data", "--output"];
    let status = Command::new(&python).args(arguments).arg(&folder).status()?;
    match status.success() && folder.join("node").is_dir() {
        true => Ok(folder),
        false => Err(io::Error::other(format!("{} with the package `onnx` {status}", python.to_string_lossy()))),
    }
}

/// The tests of an unpacked suite, by name.
///
/// # Errors
/// A folder that cannot be read.
pub fn cases(suite: &Path) -> io::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for kind in KINDS {
        let folder = suite.join(kind);
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let model = path.join("model.onnx");
            let Some(name) = path.file_name().map(|n| n.to_string_lossy().into_owned()) else { continue };
            if !model.is_file() {
                continue;
            }
            let mut sets: Vec<PathBuf> = fs::read_dir(&path)?
                .filter_map(|entry| entry.ok().map(|e| e.path()))
                .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("test_data_set_")))
                .collect();
            sets.sort();
            let tolerance = tolerance(&path.join("data.json"))?;
            cases.push(Case { name: format!("{kind}/{name}"), model, sets, tolerance });
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

/// `rtol` and `atol` of a test, else those of the suite's own runner.
fn tolerance(path: &Path) -> io::Result<(f64, f64)> {
    const DEFAULT: (f64, f64) = (1e-3, 1e-7);
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(DEFAULT),
        Err(e) => return Err(e),
    };
    // one flat object of numbers
    let number = |key: &str| -> Option<f64> {
        let (_, rest) = text.split_once(&format!("\"{key}\""))?;
        let rest = rest.trim_start().strip_prefix(':')?.trim_start();
        let end = rest.find([',', '}', ' ', '\n']).unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    Ok((number("rtol").unwrap_or(DEFAULT.0), number("atol").unwrap_or(DEFAULT.1)))
}
