//! The safetensors format.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, View};

use super::{WholeFile, io, malformed, of};
use crate::diagnostic::Diagnostic;
use crate::dtype::DType;
use crate::eval::Tensors;
use crate::tensor::Tensor;

const DTYPES: [(Dtype, DType); 13] = [
    (Dtype::BOOL, DType::Bool),
    (Dtype::U8, DType::U8),
    (Dtype::U16, DType::U16),
    (Dtype::U32, DType::U32),
    (Dtype::U64, DType::U64),
    (Dtype::I8, DType::I8),
    (Dtype::I16, DType::I16),
    (Dtype::I32, DType::I32),
    (Dtype::I64, DType::I64),
    (Dtype::F16, DType::F16),
    (Dtype::BF16, DType::BF16),
    (Dtype::F32, DType::F32),
    (Dtype::F64, DType::F64),
];

/// The tensors of a file, mapped rather than read where their place allows it.
///
/// # Errors
/// `E0651` when the file cannot be read, `E0652` when it is no such file, `E0653` when an element type is not supported.
pub fn read_safetensors(path: &Path) -> Result<Tensors, Diagnostic> {
    let file = std::fs::File::open(path).map_err(|e| io(path, &e))?;
    // SAFETY: the file is only read; whoever truncates it while it is mapped gets a bus error, as with any mapped file.
    let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(|e| io(path, &e))?);
    let parsed = SafeTensors::deserialize(&map).map_err(|e| malformed(e.to_string())).map_err(of(path))?;
    let mut tensors = Tensors::new();
    for (name, view) in parsed.iter() {
        let dtype = DTYPES.iter().find(|(theirs, _)| *theirs == view.dtype()).map(|(_, ours)| *ours);
        let dtype = dtype.ok_or_else(|| {
            Diagnostic::new("E0653", format!("`{name}` has element type {:?}, which is not supported", view.dtype()))
        })?;
        let offset = view.data().as_ptr() as usize - map.as_ptr() as usize;
        let tensor = Tensor::mapped(dtype, view.shape(), map.clone(), offset);
        let tensor = tensor.ok_or_else(|| malformed(format!("`{name}` is cut short"))).map_err(of(path))?;
        tensors.insert(name.to_string(), tensor);
    }
    Ok(tensors)
}

/// A tensor as the writer sees it.
struct Stored<'a>(&'a Tensor);

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        DTYPES.iter().find(|(_, ours)| *ours == self.0.dtype()).map_or(Dtype::F32, |(theirs, _)| *theirs)
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.0.bytes())
    }

    fn data_len(&self) -> usize {
        self.0.bytes().len()
    }
}

/// Writes a file, which is there whole or not at all: where writing fails or is cut off, an older file stays as it was.
///
/// # Errors
/// `E0651` when it cannot be written.
pub fn write_safetensors(path: &Path, tensors: &Tensors) -> Result<(), Diagnostic> {
    let failed = |why: String| Diagnostic::new("E0651", format!("{}: {why}", path.display()));
    let partial = WholeFile::create(path).map_err(|e| failed(e.to_string()))?;
    let views = tensors.iter().map(|(name, tensor)| (name, Stored(tensor)));
    safetensors::serialize_to_file(views, None, partial.path()).map_err(|e| failed(e.to_string()))?;
    partial.finish().map_err(|e| failed(e.to_string()))
}
