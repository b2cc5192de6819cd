//! Folders of tensors: `input_0.pb`, …, or `.npy` and `.npz` by name; and their comparison.

use std::path::Path;

use egret::ir::files;
use egret::{Diagnostic, Graph, Tensor};

use crate::failure::Failure;

/// The tensors of these names in a folder; the i-th may be in `PREFIX_i.pb`.
pub fn read(folder: &Path, prefix: &str, names: &[&str]) -> Result<Vec<(String, Tensor)>, Failure> {
    let found = read_present(folder, prefix, names)?;
    match names.iter().find(|name| !found.iter().any(|(have, _)| have == *name)) {
        Some(name) => Err(missing(folder, prefix, name)),
        None => Ok(found),
    }
}

fn missing(folder: &Path, prefix: &str, name: &str) -> Failure {
    let message = format!("{} holds no {prefix} `{name}`", folder.display());
    let help = format!("it is looked for in `{prefix}_0.pb`, …, `{}` and .npz files", file_name(name));
    Failure::Failed(Diagnostic::new("E0955", message).help(help))
}

/// Whether every input of a graph is among those of a folder.
pub fn complete(graph: &Graph, inputs: &[(String, Tensor)], folder: &Path) -> Result<(), Failure> {
    for (name, _) in crate::model::inputs(graph) {
        if !inputs.iter().any(|(have, _)| *have == name) {
            return Err(missing(folder, "input", &name));
        }
    }
    Ok(())
}

/// Those tensors of these names that a folder has; an empty name stands for nothing.
pub fn read_present(folder: &Path, prefix: &str, names: &[&str]) -> Result<Vec<(String, Tensor)>, Failure> {
    let mut archives = Vec::new();
    let entries = std::fs::read_dir(folder).map_err(|e| Failure::file(folder, &e))?;
    let mut paths: Vec<_> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    paths.sort();
    for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "npz")) {
        archives.push(files::read_npz(path)?);
    }
    let mut all = Vec::with_capacity(names.len());
    for (i, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        let (message, array) = (folder.join(format!("{prefix}_{i}.pb")), folder.join(file_name(name)));
        let tensor = if message.is_file() {
            egret::onnx::read_tensor(&message)?.1
        } else if array.is_file() {
            files::read_npy(&array)?
        } else if let Some(tensor) = archives.iter().find_map(|archive| archive.get(*name)) {
            tensor.clone()
        } else {
            continue;
        };
        all.push((name.to_string(), tensor));
    }
    Ok(all)
}

/// The `.npy` file of a name; what cannot be in a file name becomes `_`.
fn file_name(name: &str) -> String {
    let plain: String = name.chars().map(|c| if matches!(c, '/' | '\\' | ':' | '\0') { '_' } else { c }).collect();
    format!("{plain}.npy")
}

/// Writes `PREFIX_0.pb`, ….
pub fn write(folder: &Path, prefix: &str, tensors: &[(String, Tensor)]) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| Failure::file(folder, &e))?;
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        egret::onnx::write_tensor(&folder.join(format!("{prefix}_{i}.pb")), name, tensor)?;
    }
    Ok(())
}

/// How two tensors differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Largest |have − want|.
    pub absolute: f64,
    /// Largest |have − want| / |want|, where that is not zero.
    pub relative: f64,
    /// Cosine of the angle between them as vectors, of the elements that are finite in both; 1 where nothing is left of one.
    pub cosine: f64,
    /// Elements outside the tolerance.
    pub wrong: usize,
    /// The first of them: index, have, want.
    pub first: Option<(usize, f64, f64)>,
    /// Types or shapes differ: nothing was compared.
    pub types: Option<String>,
}

impl Difference {
    /// Whether the tensors agree.
    pub fn is_none(&self) -> bool {
        self.wrong == 0 && self.types.is_none()
    }
}

/// Compares: `|have − want| ≤ atol + rtol·|want|`; NaN equals NaN, an infinity itself.
pub fn compare(have: &Tensor, want: &Tensor, rtol: f64, atol: f64) -> Difference {
    let mut difference = Difference { cosine: 1.0, ..Difference::default() };
    if (have.dtype(), have.shape()) != (want.dtype(), want.shape()) {
        let (have_type, want_type) = (have.dtype(), want.dtype());
        difference.types =
            Some(format!("{have_type}{:?} is not of the expected type {want_type}{:?}", have.shape(), want.shape()));
        return difference;
    }
    let (mut product, mut squares) = (0.0, (0.0, 0.0));
    for (i, (a, b)) in have.values().zip(want.values()).map(|(a, b)| (a.as_f64(), b.as_f64())).enumerate() {
        if a.is_finite() && b.is_finite() {
            product += a * b;
            squares = (squares.0 + a * a, squares.1 + b * b);
        }
        if a == b || (a.is_nan() && b.is_nan()) {
            continue;
        }
        let error = (a - b).abs();
        let error = if error.is_nan() { f64::INFINITY } else { error };
        difference.absolute = difference.absolute.max(error);
        if b != 0.0 {
            let relative = error / b.abs();
            difference.relative = difference.relative.max(if relative.is_nan() { f64::INFINITY } else { relative });
        }
        if b.is_infinite() || error > atol + rtol * b.abs() {
            difference.wrong += 1;
            difference.first.get_or_insert((i, a, b));
        }
    }
    if squares.0 > 0.0 && squares.1 > 0.0 {
        difference.cosine = product / (squares.0.sqrt() * squares.1.sqrt());
    }
    difference
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(&[values.len()], values).unwrap()
    }

    #[test]
    fn tolerance_is_absolute_plus_relative() {
        let close = |a: &[f32], b: &[f32]| compare(&tensor(a), &tensor(b), 1e-2, 1e-3);
        assert!(close(&[1.0, 100.0, 0.0], &[1.005, 100.9, 0.0005]).is_none());
        let wrong = close(&[1.0, 5.0], &[1.0, 4.0]);
        assert_eq!((wrong.wrong, wrong.first, wrong.absolute, wrong.relative), (1, Some((1, 5.0, 4.0)), 1.0, 0.25));
        assert!(close(&[f32::NAN, f32::INFINITY], &[f32::NAN, f32::INFINITY]).is_none());
        assert_eq!(close(&[f32::NAN, 1.0, f32::INFINITY], &[1.0, f32::INFINITY, -f32::INFINITY]).wrong, 3);
        assert!(close(&[1.0], &[1.0, 1.0]).types.is_some());
        assert!((close(&[1.0, 0.0, f32::NAN], &[1.0, 1.0, 7.0]).cosine - 0.5f64.sqrt()).abs() < 1e-15);
        assert_eq!(close(&[0.0], &[1.0]).cosine, 1.0);
    }

    #[test]
    fn folders_survive_a_round_trip() {
        let folder = std::env::temp_dir().join(format!("egret-tensors-{}", std::process::id()));
        let tensors = [("a/b".to_string(), tensor(&[1.0, 2.0])), ("c".to_string(), tensor(&[3.0]))];
        write(&folder, "input", &tensors).unwrap();
        assert_eq!(read(&folder, "input", &["a/b", "c"]).unwrap(), tensors);
        files::write_npy(&folder.join("d_e.npy"), &tensors[1].1).unwrap();
        assert_eq!(read(&folder, "output", &["d/e"]).unwrap()[0].1, tensors[1].1);
        assert!(matches!(read(&folder, "output", &["c"]), Err(Failure::Failed(d)) if d.code == "E0955"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
