//! Models as files.

use std::io::Write;
use std::path::{Path, PathBuf};

use egret_ir::files::WholeFile;
use egret_ir::{Diagnostic, Graph};
use prost::Message;

use crate::proto::{ModelProto, StringStringEntryProto};

use super::{LONGEST, to_model, too_long};

/// Tensors of fewer bytes stay in the model whatever its size.
const INSIDE: usize = 1024;

/// Elements in another file begin at multiples of this, so that they can be mapped.
const ALIGNMENT: usize = 64;

/// Writes the model of a graph. One that does not fit into a protobuf message has its elements in a file beside it, of
/// the same name with `.data` after it; the path of that file is the result. Both are there whole or not at all.
///
/// # Errors
/// Those of [`to_model`], `E0308` a file that cannot be written, `E0315` a model whose nodes alone are too many.
pub fn save(path: &Path, graph: &Graph) -> Result<Option<PathBuf>, Diagnostic> {
    let mut model = to_model(graph)?;
    if model.encoded_len() <= LONGEST {
        return write(path, &[&model.encode_to_vec()]).map(|()| None);
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("model.onnx");
    let name = format!("{name}.data");
    let data = path.with_file_name(&name);
    let elements = apart(&mut model, &name);
    let elements: Vec<&[u8]> = elements.iter().map(Vec::as_slice).collect();
    if model.encoded_len() > LONGEST {
        return Err(too_long(model.encoded_len()));
    }
    write(&data, &elements)?;
    write(path, &[&model.encode_to_vec()])?;
    Ok(Some(data))
}

/// Takes the elements of large tensors out of a model, which finds them in the file of that name.
fn apart(model: &mut ModelProto, file: &str) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut offset = 0;
    let tensors = model.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
    for tensor in tensors.filter(|tensor| tensor.raw_data.len() >= INSIDE) {
        let mut bytes = std::mem::take(&mut tensor.raw_data);
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
        tensor.data_location = 1;
        tensor.external_data = vec![
            entry("location", file.to_string()),
            entry("offset", offset.to_string()),
            entry("length", bytes.len().to_string()),
        ];
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        offset += bytes.len();
        parts.push(bytes);
    }
    parts
}

fn write(path: &Path, parts: &[&[u8]]) -> Result<(), Diagnostic> {
    let failed = |e: std::io::Error| crate::tensor::io(path, &e);
    let mut file = WholeFile::create(path).map_err(failed)?;
    parts.iter().try_for_each(|part| file.write_all(part)).map_err(failed)?;
    file.finish().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_ir::{Tensor, interpret, trace};

    /// What is written apart is read back.
    #[test]
    fn elements_in_another_file_are_read_back() {
        let weights: Vec<f32> = (0..600).map(|i| i as f32).collect();
        let graph = trace(|t| {
            let (a, b) = (Tensor::new(&[300], &weights[..300]), Tensor::new(&[600], &weights));
            t.output("a", t.param("a", a.unwrap()) + 1.0);
            t.output("b", t.param("b", b.unwrap()) + 1.0);
        })
        .unwrap();
        let mut model = to_model(&graph).unwrap();
        let parts = apart(&mut model, "m.onnx.data");
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [1216, 2432]);
        let folder = std::env::temp_dir().join(format!("egret-export-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        write(&folder.join("m.onnx.data"), &parts.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        write(&folder.join("m.onnx"), &[&model.encode_to_vec()]).unwrap();
        let back = crate::load(&folder.join("m.onnx")).unwrap();
        let none = Default::default();
        assert_eq!(interpret(&back, &none, &none).unwrap().outputs, interpret(&graph, &none, &none).unwrap().outputs);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(save(&folder.join("m.onnx"), &graph).unwrap_err().code, "E0308");
    }
}
