//! The `.npy` format of NumPy.

use std::path::Path;

use super::{io, malformed, of};
use crate::diagnostic::Diagnostic;
use crate::dtype::DType;
use crate::eval::{copy_elements, row_major};
use crate::tensor::Tensor;

const MAGIC: &[u8] = b"\x93NUMPY";

const NAMES: [(&str, DType); 12] = [
    ("?", DType::Bool),
    ("b1", DType::Bool),
    ("u1", DType::U8),
    ("u2", DType::U16),
    ("u4", DType::U32),
    ("u8", DType::U64),
    ("i1", DType::I8),
    ("i2", DType::I16),
    ("i4", DType::I32),
    ("i8", DType::I64),
    ("f2", DType::F16),
    ("f4", DType::F32),
];

fn dtype(descr: &str) -> Option<(DType, bool)> {
    let big = descr.starts_with('>');
    let name = descr.trim_start_matches(['<', '>', '|', '=']);
    let found = NAMES.iter().find(|(n, _)| *n == name).map(|(_, dtype)| *dtype);
    found.or((name == "f8").then_some(DType::F64)).map(|dtype| (dtype, big))
}

/// Reads a file; see [`npy_from_bytes`].
///
/// # Errors
/// `E0651` when the file cannot be read, and those of [`npy_from_bytes`].
pub fn read_npy(path: &Path) -> Result<Tensor, Diagnostic> {
    let bytes = std::fs::read(path).map_err(|e| io(path, &e))?;
    npy_from_bytes(&bytes).map_err(of(path))
}

/// Writes a file.
///
/// # Errors
/// `E0651` when it cannot be written, `E0653` for bf16, which the format does not have.
pub fn write_npy(path: &Path, tensor: &Tensor) -> Result<(), Diagnostic> {
    std::fs::write(path, npy_to_bytes(tensor)?).map_err(|e| io(path, &e))
}

/// The tensor of an `.npy` file, in either byte order and either order of axes.
///
/// # Errors
/// `E0652` when the bytes are no such file, `E0653` when the element type is not supported.
pub fn npy_from_bytes(bytes: &[u8]) -> Result<Tensor, Diagnostic> {
    let short = || malformed("an .npy file is cut short");
    if !bytes.starts_with(MAGIC) {
        return Err(malformed("not an .npy file"));
    }
    let byte = |i: usize| bytes.get(i).copied().map(usize::from).ok_or_else(short);
    let (start, length): (usize, usize) = match byte(6)? {
        1 => (10, byte(8)? + (byte(9)? << 8)),
        _ => (12, byte(8)? + (byte(9)? << 8) + (byte(10)? << 16) + (byte(11)? << 24)),
    };
    let header = bytes.get(start..start.saturating_add(length)).ok_or_else(short)?;
    let header = std::str::from_utf8(header).map_err(|_| malformed("the header of an .npy file is not text"))?;
    let field = |name: &str| {
        let after = header.split_once(&format!("'{name}':")).map(|(_, after)| after.trim_start());
        after.ok_or_else(|| malformed(format!("the header of an .npy file has no `{name}`")))
    };
    let descr = field("descr")?;
    let name = descr.strip_prefix('\'').and_then(|d| d.split_once('\'')).map_or(descr, |(name, _)| name);
    let (dtype, big) =
        dtype(name).ok_or_else(|| Diagnostic::new("E0653", format!("element type `{name}` is not supported")))?;
    let list = field("shape")?.strip_prefix('(').and_then(|s| s.split_once(')')).map(|(list, _)| list);
    let list = list.ok_or_else(|| malformed("the shape of an .npy file is not a tuple"))?;
    let extents = list.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::parse::<usize>);
    let shape: Vec<usize> = extents.collect::<Result<_, _>>().map_err(|_| malformed(format!("bad shape ({list})")))?;
    let mut data = bytes[start + length..].to_vec();
    let size = shape.iter().try_fold(dtype.size(), |n, d| n.checked_mul(*d));
    let size = size.filter(|size| *size <= data.len()).ok_or_else(short)?;
    data.truncate(size);
    if big {
        data.chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
    }
    if field("fortran_order")?.starts_with("True") {
        let turned: Vec<usize> = shape.iter().rev().copied().collect();
        let tensor = Tensor::from_bytes(dtype, &turned, &data).ok_or_else(short)?;
        let strides: Vec<isize> = row_major(&turned).into_iter().rev().collect();
        return Ok(copy_elements(&tensor, &shape, &strides, 0));
    }
    Tensor::from_bytes(dtype, &shape, &data).ok_or_else(short)
}

/// The bytes of an `.npy` file.
///
/// # Errors
/// `E0653` for bf16, which the format does not have.
pub fn npy_to_bytes(tensor: &Tensor) -> Result<Vec<u8>, Diagnostic> {
    let name = match tensor.dtype() {
        DType::F64 => "<f8".to_string(),
        DType::Bool => "|b1".to_string(),
        other => {
            let found = NAMES.iter().find(|(_, dtype)| *dtype == other);
            let missing = || Diagnostic::new("E0653", format!(".npy files have no {other}"));
            format!("{}{}", if other.size() == 1 { '|' } else { '<' }, found.ok_or_else(missing)?.0)
        }
    };
    let shape: String = tensor.shape().iter().map(|n| format!("{n}, ")).collect();
    let shape = if tensor.shape().len() == 1 { shape.trim_end() } else { shape.trim_end_matches(", ") };
    let mut header = format!("{{'descr': '{name}', 'fortran_order': False, 'shape': ({shape}), }}");
    // the data begin at a multiple of 64 bytes
    while !(MAGIC.len() + 4 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(tensor.bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_byte_orders_and_axis_orders_are_read() {
        let header = |descr: &str, fortran: &str| {
            let text = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': (2, 3), }}\n");
            let mut bytes = MAGIC.to_vec();
            bytes.extend([1, 0]);
            bytes.extend((text.len() as u16).to_le_bytes());
            bytes.extend(text.as_bytes());
            bytes
        };
        let mut big = header(">i2", "False");
        (0..6i16).for_each(|i| big.extend(i.to_be_bytes()));
        assert_eq!(npy_from_bytes(&big).unwrap(), Tensor::new(&[2, 3], &[0i16, 1, 2, 3, 4, 5]).unwrap());
        let mut fortran = header("<i2", "True");
        (0..6i16).for_each(|i| fortran.extend(i.to_le_bytes()));
        assert_eq!(npy_from_bytes(&fortran).unwrap(), Tensor::new(&[2, 3], &[0i16, 2, 4, 1, 3, 5]).unwrap());
        assert_eq!(npy_from_bytes(&header("<c8", "False")).unwrap_err().code, "E0653");
    }
}
