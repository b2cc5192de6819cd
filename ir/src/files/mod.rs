//! Tensors in files: `.npy`, `.npz` and safetensors.

mod npy;
mod npz;
mod safetensors;
mod whole;

use std::path::Path;

use crate::diagnostic::Diagnostic;
use crate::eval::Tensors;

pub use npy::{npy_from_bytes, npy_to_bytes, read_npy, write_npy};
pub use npz::{npz_from_bytes, npz_to_bytes, read_npz, write_npz};
pub use safetensors::{read_safetensors, write_safetensors};
pub use whole::WholeFile;

/// Reads the tensors of a file by the extension of its name; the tensor of an `.npy` file is called `array`.
///
/// # Errors
/// `E0651` a file that cannot be read, `E0652` one that is not of its format, `E0653` an element type that is not
/// supported.
pub fn read(path: &Path) -> Result<Tensors, Diagnostic> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => read_npy(path).map(|tensor| Tensors::from([("array".to_string(), tensor)])),
        Some("npz") => read_npz(path),
        Some("safetensors") => read_safetensors(path),
        _ => Err(Diagnostic::new("E0652", format!("{}: not an .npy, .npz or .safetensors file", path.display()))),
    }
}

fn io(path: &Path, error: &std::io::Error) -> Diagnostic {
    Diagnostic::new("E0651", format!("{}: {error}", path.display()))
}

/// Says which file is at fault.
fn of(path: &Path) -> impl Fn(Diagnostic) -> Diagnostic + '_ {
    move |error| error.note(format!("in {}", path.display()))
}

fn malformed(what: impl Into<String>) -> Diagnostic {
    Diagnostic::new("E0652", what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, ScalarValue, Tensor};

    fn samples() -> Tensors {
        let mut all = Tensors::new();
        for (i, dtype) in DType::ALL.iter().enumerate() {
            let shape: &[usize] = [&[2usize, 3][..], &[], &[4], &[0, 2]][i % 4];
            let mut tensor = Tensor::zeros(*dtype, shape);
            (0..tensor.elements()).for_each(|j| tensor.set(j, ScalarValue::Int(j as i128 % 2 + 1)));
            all.insert(format!("{dtype}.x"), tensor);
        }
        all
    }

    #[test]
    fn archives_round_trip_in_every_type_that_numpy_has() {
        let mut all = samples();
        assert_eq!(npz_to_bytes(&all).unwrap_err().code, "E0653");
        all.remove("bf16.x");
        assert_eq!(npz_from_bytes(&npz_to_bytes(&all).unwrap()).unwrap(), all);
    }

    #[test]
    fn safetensors_round_trip_in_every_type() {
        let path = std::env::temp_dir().join(format!("egret-{}.safetensors", std::process::id()));
        let all = samples();
        write_safetensors(&path, &all).unwrap();
        let back = read(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(back.unwrap(), all);
    }

    #[test]
    fn damaged_files_are_errors() {
        let mut all = samples();
        all.remove("bf16.x");
        let bytes = npz_to_bytes(&all).unwrap();
        for cut in (0..bytes.len()).step_by(7) {
            assert!(npz_from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut seed = 7u64;
        for _ in 0..500 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let mut damaged = bytes.clone();
            let at = (seed >> 33) as usize % bytes.len();
            damaged[at] ^= 1 << (seed >> 61);
            // what is read must be checked; a flip in padding or in a timestamp may go unseen
            let _ = npz_from_bytes(&damaged);
        }
        assert_eq!(npy_from_bytes(b"\x93NUMPY\x01\x00").unwrap_err().code, "E0652");
        assert_eq!(read(Path::new("x.txt")).unwrap_err().code, "E0652");
        assert_eq!(read(Path::new("/nowhere/x.npz")).unwrap_err().code, "E0651");
    }
}
