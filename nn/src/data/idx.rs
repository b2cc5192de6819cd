//! IDX files, plain or compressed by gzip: the form of MNIST.

use std::path::Path;

use egret_ir::{DType, ScalarValue, Tensor};

use super::Images;
use super::unpack::{find, unpacked};
use crate::error::DataError;

/// Reads an IDX file; one that begins as gzip does is unpacked.
///
/// # Errors
/// When the file cannot be read or is no IDX file.
pub fn read_idx(path: &Path) -> Result<Tensor, DataError> {
    let format = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let bytes = unpacked(path)?;
    parse(&bytes).map_err(format)
}

/// The tensor of an IDX file: two zeros, element type, rank, extents, elements, all big-endian.
fn parse(bytes: &[u8]) -> Result<Tensor, String> {
    let [0, 0, kind, rank, rest @ ..] = bytes else { return Err("is no IDX file".into()) };
    let dtype = match kind {
        0x08 => DType::U8,
        0x09 => DType::I8,
        0x0b => DType::I16,
        0x0c => DType::I32,
        0x0d => DType::F32,
        0x0e => DType::F64,
        other => return Err(format!("has elements of unknown type {other:#x}")),
    };
    let rank = usize::from(*rank);
    let (extents, elements) =
        rest.split_at_checked(4 * rank).ok_or_else(|| format!("ends within its {rank} extents"))?;
    let shape: Vec<usize> =
        extents.chunks_exact(4).map(|b| b.iter().fold(0, |n, byte| n << 8 | usize::from(*byte))).collect();
    let want = shape.iter().try_fold(dtype.size(), |n, extent| n.checked_mul(*extent));
    if want != Some(elements.len()) {
        return Err(format!("holds {} bytes for a tensor {dtype}{shape:?}", elements.len()));
    }
    if dtype.size() == 1 {
        return Tensor::from_bytes(dtype, &shape, elements).ok_or_else(|| "has the wrong length".into());
    }
    let mut swapped = elements.to_vec();
    swapped.chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
    Tensor::from_bytes(dtype, &shape, &swapped).ok_or_else(|| "has the wrong length".into())
}

/// The training and the test images of a folder that holds MNIST's four files, plain or with `.gz`.
///
/// # Errors
/// When a file is missing, is no IDX file, or does not fit the others.
pub fn mnist(folder: &Path) -> Result<(Images, Images), DataError> {
    Ok((pair(folder, "train")?, pair(folder, "t10k")?))
}

fn pair(folder: &Path, part: &str) -> Result<Images, DataError> {
    let image_path = find(folder, &format!("{part}-images-idx3-ubyte"))?;
    let label_path = find(folder, &format!("{part}-labels-idx1-ubyte"))?;
    let (images, labels) = (read_idx(&image_path)?, read_idx(&label_path)?);
    let wrong = |path: &Path, why: String| DataError::Format { path: path.to_path_buf(), why };
    if images.dtype() != DType::U8 || images.shape().len() != 3 {
        return Err(wrong(&image_path, format!("holds {}{:?}, not images of bytes", images.dtype(), images.shape())));
    }
    if !labels.dtype().is_int() || labels.shape() != &images.shape()[..1] {
        let why = format!("holds {}{:?} for {} images", labels.dtype(), labels.shape(), images.shape()[0]);
        return Err(wrong(&label_path, why));
    }
    let mut wide = Tensor::zeros(DType::I64, labels.shape());
    labels.values().enumerate().for_each(|(i, v)| wide.set(i, ScalarValue::Int(v.as_int())));
    Images::new(images, wide).ok_or_else(|| wrong(&label_path, "does not fit the images".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn files_are_read_plain_and_packed() {
        let folder = std::env::temp_dir().join(format!("egret-idx-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let bytes = [0, 0, 0x0b, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0x01, 0x02, 0xff, 0xff];
        let want = Tensor::new(&[1, 2], &[0x0102i16, -1]).unwrap();
        let plain = folder.join("plain");
        std::fs::write(&plain, bytes).unwrap();
        assert_eq!(read_idx(&plain).unwrap(), want);
        let packed = folder.join("packed.gz");
        let mut gz =
            flate2::write::GzEncoder::new(std::fs::File::create(&packed).unwrap(), flate2::Compression::fast());
        gz.write_all(&bytes).unwrap();
        gz.finish().unwrap();
        assert_eq!(read_idx(&packed).unwrap(), want);
        assert!(matches!(mnist(&folder), Err(DataError::Missing { .. })));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn damaged_files_are_refused() {
        let good = [0, 0, 8, 1, 0, 0, 0, 2, 5, 6];
        assert!(parse(&good).is_ok());
        for cut in 0..good.len() {
            assert!(parse(&good[..cut]).is_err(), "{cut} bytes");
        }
        assert!(parse(&[0, 0, 8, 2, 255, 255, 255, 255, 255, 255, 255, 255, 1]).is_err());
        assert!(parse(&[0, 0, 7, 1, 0, 0, 0, 1, 1]).is_err());
    }
}
