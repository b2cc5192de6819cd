//! Tensors of ONNX files.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use egret_ir::{DType, Diagnostic, ScalarValue, Tensor};
use memmap2::Mmap;
use prost::Message;

use crate::proto::{SparseTensorProto, TensorProto, ValueInfoProto};

/// Element types with their numbers in ONNX.
const DTYPES: [(i32, DType); 13] = [
    (1, DType::F32),
    (2, DType::U8),
    (3, DType::I8),
    (4, DType::U16),
    (5, DType::I16),
    (6, DType::I32),
    (7, DType::I64),
    (9, DType::Bool),
    (10, DType::F16),
    (11, DType::F64),
    (12, DType::U32),
    (13, DType::U64),
    (16, DType::BF16),
];

/// The element type of that number.
///
/// # Errors
/// `E0311` when there is none here.
pub fn dtype(number: i32) -> Result<DType, Diagnostic> {
    let found = DTYPES.iter().find(|(n, _)| *n == number);
    found.map(|(_, dtype)| *dtype).ok_or_else(|| {
        let name = match number {
            8 => "string",
            14 | 15 => "complex",
            17..=20 | 24 => "float8",
            21 | 22 => "4-bit integer",
            23 => "float4",
            25 | 26 => "2-bit integer",
            _ => "unknown",
        };
        Diagnostic::new("E0311", format!("element type {number} ({name}) is not supported"))
    })
}

/// The number of an element type.
pub(crate) fn number(dtype: DType) -> i32 {
    DTYPES.iter().find(|(_, have)| *have == dtype).map_or(0, |(number, _)| *number)
}

/// Files that hold the elements of tensors, all inside one folder.
pub(crate) struct External {
    folder: Option<PathBuf>,
    files: BTreeMap<String, Arc<Mmap>>,
}

impl External {
    /// Files of that folder; none when a model comes from memory.
    pub(crate) fn new(folder: Option<&Path>) -> External {
        External { folder: folder.map(Path::to_path_buf), files: BTreeMap::new() }
    }

    fn file(&mut self, location: &str) -> Result<Arc<Mmap>, Diagnostic> {
        if let Some(file) = self.files.get(location) {
            return Ok(file.clone());
        }
        let refuse = |why: &str| Diagnostic::new("E0302", format!("external data `{location}`: {why}"));
        let Some(folder) = &self.folder else {
            return Err(refuse("the model was read from memory and has no folder"));
        };
        let inside = Path::new(location).components().all(|part| matches!(part, Component::Normal(_)));
        if location.is_empty() || !inside {
            return Err(refuse("the path must stay inside the model's folder"));
        }
        let io = |e: std::io::Error| refuse(&e.to_string());
        let path = folder.join(location).canonicalize().map_err(io)?;
        if !path.starts_with(folder.canonicalize().map_err(io)?) {
            return Err(refuse("the path must stay inside the model's folder"));
        }
        let file = std::fs::File::open(&path).map_err(io)?;
        // SAFETY: the file is only read; whoever truncates a model while it is loaded gets a bus error, as with any
        // mapped file.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        self.files.insert(location.to_string(), map.clone());
        Ok(map)
    }
}

/// The tensor of a message; elements in other files are mapped.
pub(crate) fn from_proto(proto: &TensorProto, external: &mut External) -> Result<Tensor, Diagnostic> {
    let dtype = dtype(proto.data_type).map_err(|e| e.note(format!("tensor `{}`", proto.name)))?;
    let wrong = |why: String| Diagnostic::new("E0306", format!("tensor `{}`: {why}", proto.name));
    let shape: Option<Vec<usize>> = proto.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let shape = shape.ok_or_else(|| wrong(format!("negative extents {:?}", proto.dims)))?;
    let bytes = shape.iter().try_fold(dtype.size(), |n, d| n.checked_mul(*d));
    let bytes = bytes.ok_or_else(|| wrong(format!("the shape {shape:?} is too large")))?;
    if proto.data_location == 1 {
        let find = |key: &str| proto.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str| match find(key) {
            Some(text) => text.parse::<usize>().map(Some).map_err(|_| wrong(format!("bad {key} `{text}`"))),
            None => Ok(None),
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        if length.is_some_and(|length| length != bytes) {
            return Err(wrong(format!("{length:?} bytes of external data for shape {shape:?}")));
        }
        let file = external.file(find("location").unwrap_or_default())?;
        let have = file.len();
        return Tensor::mapped(dtype, &shape, file, offset).ok_or_else(|| {
            wrong(format!("bytes {offset}..{} are outside an external file of {have}", offset.saturating_add(bytes)))
        });
    }
    if !proto.raw_data.is_empty() {
        return Tensor::from_bytes(dtype, &shape, &proto.raw_data)
            .ok_or_else(|| wrong(format!("{} bytes of data for shape {shape:?}", proto.raw_data.len())));
    }
    typed(proto, dtype, &shape, bytes / dtype.size()).ok_or_else(|| wrong(format!("not the data of shape {shape:?}")))
}

/// The tensor of a message whose elements are in a field by type.
fn typed(proto: &TensorProto, dtype: DType, shape: &[usize], elements: usize) -> Option<Tensor> {
    match dtype {
        DType::F32 => Tensor::new(shape, &proto.float_data),
        DType::F64 => Tensor::new(shape, &proto.double_data),
        DType::I64 => Tensor::new(shape, &proto.int64_data),
        DType::U64 => Tensor::new(shape, &proto.uint64_data),
        DType::F16 | DType::BF16 => {
            let bytes: Vec<u8> = proto.int32_data.iter().flat_map(|v| (*v as u16).to_le_bytes()).collect();
            Tensor::from_bytes(dtype, shape, &bytes)
        }
        DType::U32 => (proto.uint64_data.len() == elements)
            .then(|| filled(dtype, shape, proto.uint64_data.iter().map(|v| i128::from(*v)))),
        _ => (proto.int32_data.len() == elements)
            .then(|| filled(dtype, shape, proto.int32_data.iter().map(|v| i128::from(*v)))),
    }
}

fn filled(dtype: DType, shape: &[usize], values: impl Iterator<Item = i128>) -> Tensor {
    let mut tensor = Tensor::zeros(dtype, shape);
    values.enumerate().for_each(|(i, v)| tensor.set(i, ScalarValue::Int(v)));
    tensor
}

/// No sparse tensor is larger when its zeros are written out.
const DENSE: usize = 1 << 30;

/// The tensor of a sparse message, with its zeros.
pub(crate) fn from_sparse(proto: &SparseTensorProto, external: &mut External) -> Result<Tensor, Diagnostic> {
    let (Some(values), Some(indices)) = (&proto.values, &proto.indices) else {
        return Err(Diagnostic::new("E0306", "a sparse tensor without values or indices"));
    };
    let wrong = |why: String| Diagnostic::new("E0306", format!("sparse tensor `{}`: {why}", values.name));
    let (given, indices) = (from_proto(values, external)?, from_proto(indices, external)?);
    let shape: Option<Vec<usize>> = proto.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let shape = shape.ok_or_else(|| wrong(format!("negative extents {:?}", proto.dims)))?;
    let bytes = shape.iter().try_fold(given.dtype().size(), |n, d| n.checked_mul(*d));
    if bytes.is_none_or(|bytes| bytes > DENSE) {
        return Err(wrong(format!("the shape {shape:?} is too large")));
    }
    let count = given.elements();
    let width = match indices.shape() {
        [n] if *n == count => None,
        [n, rank] if *n == count && *rank == shape.len() => Some(*rank),
        other => return Err(wrong(format!("indices of shape {other:?} for {count} values of shape {shape:?}"))),
    };
    let mut tensor = Tensor::zeros(given.dtype(), &shape);
    for i in 0..count {
        let flat = match width {
            None => usize::try_from(indices.get(i).as_int()).ok().filter(|flat| *flat < tensor.elements()),
            Some(rank) => (0..rank).try_fold(0usize, |flat, axis| {
                let at = usize::try_from(indices.get(i * rank + axis).as_int()).ok()?;
                (at < shape[axis]).then(|| flat * shape[axis] + at)
            }),
        };
        let flat = flat.ok_or_else(|| wrong(format!("the index of value {i} is outside {shape:?}")))?;
        tensor.set(flat, given.get(i));
    }
    Ok(tensor)
}

/// The message of a tensor.
pub(crate) fn to_proto(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: name.to_string(),
        dims: tensor.shape().iter().map(|d| *d as i64).collect(),
        data_type: number(tensor.dtype()),
        raw_data: tensor.bytes().to_vec(),
        ..TensorProto::default()
    }
}

/// Reads a tensor as the test data of models hold it: one `TensorProto`.
///
/// # Errors
/// `E0301` when the bytes are no such message, `E0306` when it is no tensor that is supported.
pub fn tensor_from_bytes(bytes: &[u8]) -> Result<(String, Tensor), Diagnostic> {
    let proto = TensorProto::decode(bytes).map_err(|e| Diagnostic::new("E0301", format!("not a tensor: {e}")))?;
    let tensor = from_proto(&proto, &mut External::new(None))?;
    Ok((proto.name, tensor))
}

/// The bytes of a tensor as one `TensorProto`.
pub fn tensor_to_bytes(name: &str, tensor: &Tensor) -> Vec<u8> {
    to_proto(name, tensor).encode_to_vec()
}

/// Reads a `.pb` file; see [`tensor_from_bytes`].
///
/// # Errors
/// `E0308` when the file cannot be read, and those of [`tensor_from_bytes`].
pub fn read_tensor(path: &Path) -> Result<(String, Tensor), Diagnostic> {
    let bytes = std::fs::read(path).map_err(|e| io(path, &e))?;
    tensor_from_bytes(&bytes)
}

/// Writes a `.pb` file.
///
/// # Errors
/// `E0308` when the file cannot be written.
pub fn write_tensor(path: &Path, name: &str, tensor: &Tensor) -> Result<(), Diagnostic> {
    std::fs::write(path, tensor_to_bytes(name, tensor)).map_err(|e| io(path, &e))
}

pub(crate) fn io(path: &Path, error: &std::io::Error) -> Diagnostic {
    Diagnostic::new("E0308", format!("{}: {error}", path.display()))
}

/// Element type and extents as declared: a number, a name, or unknown. `None` when it is no tensor.
pub(crate) fn declared(info: &ValueInfoProto) -> Option<(i32, Option<Vec<Extent>>)> {
    let tensor = info.r#type.as_ref()?.tensor_type.as_ref()?;
    let dims = tensor.shape.as_ref().map(|shape| {
        let extent = |(axis, dim): (usize, &crate::proto::DimensionProto)| match (&dim.dim_value, &dim.dim_param) {
            (Some(value), _) if *value >= 0 => Extent::Value(*value),
            // `?` is how exporters name an extent that they know nothing of
            (_, Some(name)) if name.contains(char::is_alphanumeric) => Extent::Name(name.clone()),
            _ => Extent::Unknown(axis),
        };
        shape.dim.iter().enumerate().map(extent).collect()
    });
    Some((tensor.elem_type, dims))
}

/// No extent is larger, so that sizes cannot overflow when a few are added and multiplied.
pub(crate) const LARGEST: i64 = 1 << 40;

/// A declared extent.
pub(crate) enum Extent {
    Value(i64),
    Name(String),
    Unknown(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_a_round_trip_in_every_type() {
        for (_, dtype) in DTYPES {
            let tensor = filled(dtype, &[2, 3], 0..6);
            assert_eq!(tensor_from_bytes(&tensor_to_bytes("x", &tensor)).unwrap(), ("x".to_string(), tensor));
        }
    }

    #[test]
    fn lying_tensors_are_refused() {
        let lie = |f: &dyn Fn(&mut TensorProto)| {
            let mut proto = to_proto("x", &Tensor::zeros(DType::F32, &[2]));
            f(&mut proto);
            tensor_from_bytes(&proto.encode_to_vec()).unwrap_err().code
        };
        assert_eq!(lie(&|p| p.dims = vec![3]), "E0306");
        assert_eq!(lie(&|p| p.dims = vec![i64::MAX, 8]), "E0306");
        assert_eq!(lie(&|p| p.dims = vec![-1]), "E0306");
        assert_eq!(lie(&|p| p.data_type = 8), "E0311");
        assert_eq!(lie(&|p| p.data_location = 1), "E0302");
        assert_eq!(tensor_from_bytes(&[0xff; 7]).unwrap_err().code, "E0301");
    }

    #[test]
    fn external_data_stays_inside_its_folder() {
        let folder = std::env::temp_dir();
        let mut external = External::new(Some(&folder));
        for location in ["../x", "/etc/hostname", "", "a/../../x"] {
            assert_eq!(external.file(location).unwrap_err().code, "E0302", "{location}");
        }
    }
}
