//! From a file to a graph.

use std::path::Path;

use egret_ir::tracer::extend;
use egret_ir::{Diagnostic, Graph, Tensors};
use prost::Message;

use crate::graph::{self, Given};
use crate::model::{Model, Needs};
use crate::proto::ModelProto;
use crate::tensor::{External, declared, io};

/// Reads a model file. External data must be beside it or below.
///
/// # Errors
/// `E0308` an unreadable file, `E0301` a file that is no model, `E0302` bad external data, `E0303` unsupported
/// operators (all of them, with their nodes), `E0304` a shape that depends on data, `E0305` and `E0101` a node that is
/// not legal, `E0306` a bad tensor, `E0307` a value that nothing makes, `E0309` an input without a shape, `E0310` a form
/// of an operator that is not supported, `E0311` an element type that is not supported, `E0312` a model that grows too
/// large when its functions and loops are written out.
///
/// ```no_run
/// let graph = egret_onnx::load("model.onnx".as_ref())?;
/// # Ok::<(), egret_ir::Diagnostic>(())
/// ```
pub fn load(path: &Path) -> Result<Graph, Diagnostic> {
    load_for(path, &Tensors::new()).map(|loaded| loaded.graph)
}

/// Reads a model without external data.
///
/// # Errors
/// As [`load`].
pub fn from_bytes(bytes: &[u8]) -> Result<Graph, Diagnostic> {
    from_bytes_for(bytes, &Tensors::new()).map(|loaded| loaded.graph)
}

/// A graph, and what of the inputs it was made for.
#[derive(Clone, Debug)]
pub struct Specialised {
    /// The graph; inputs in `fixed` are no inputs of it.
    pub graph: Graph,
    /// Inputs whose values became constants, because a shape or an attribute depends on them.
    pub fixed: Vec<String>,
    /// Whether extents that the model leaves open are those of the given inputs.
    pub fixed_extents: bool,
}

/// Reads a model for inputs that are known now, by name. What the model leaves open stays open where it can: an input's
/// value becomes a constant only when a shape or another attribute of the graph depends on it, and open extents become
/// numbers only when an operator has no form for open ones.
///
/// # Errors
/// As [`load`].
pub fn load_for(path: &Path, inputs: &Tensors) -> Result<Specialised, Diagnostic> {
    let bytes = std::fs::read(path).map_err(|e| io(path, &e))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    specialise(&bytes, Some(folder), inputs)
}

/// [`load_for`] of a model without external data.
///
/// # Errors
/// As [`load`].
pub fn from_bytes_for(bytes: &[u8], inputs: &Tensors) -> Result<Specialised, Diagnostic> {
    specialise(bytes, None, inputs)
}

/// The names of a model's inputs that are no initializers, in order, and whether they are tensors.
///
/// # Errors
/// `E0308` an unreadable file, `E0301` a file that is no model.
pub fn inputs(path: &Path) -> Result<Vec<(String, bool)>, Diagnostic> {
    let bytes = std::fs::read(path).map_err(|e| io(path, &e))?;
    let model = decode(&bytes)?;
    let infos = model.graph.iter().flat_map(graph::inputs);
    Ok(infos.map(|info| (info.name.clone(), declared(info).is_some())).collect())
}

fn decode(bytes: &[u8]) -> Result<ModelProto, Diagnostic> {
    let model = ModelProto::decode(bytes).map_err(|e| Diagnostic::new("E0301", format!("not an ONNX model: {e}")))?;
    match &model.graph {
        // an empty file is a legal message without fields
        None => Err(Diagnostic::new("E0301", "not an ONNX model: it has no graph")),
        Some(_) => Ok(model),
    }
}

fn specialise(bytes: &[u8], folder: Option<&Path>, inputs: &Tensors) -> Result<Specialised, Diagnostic> {
    let proto = decode(bytes)?;
    let mut fixed: Vec<String> = Vec::new();
    let mut fixed_extents = false;
    let mut legal = None;
    loop {
        let model = Model::new(&proto, External::new(folder));
        let given = Given { inputs, fixed: &fixed, extents: fixed_extents };
        let outcome = import(&model, &proto, &given);
        // each turn fixes more, and there is only so much to fix
        let Needs { values, extents, wishes } = model.needs();
        let unfixed = |name: &String| inputs.contains_key(name) && !fixed.contains(name);
        let error = match (outcome, legal.take()) {
            (Ok(graph), _) => {
                let more: Vec<String> = wishes.into_iter().filter(unfixed).collect();
                let graph = Specialised { graph, fixed: fixed.clone(), fixed_extents };
                if more.is_empty() {
                    return Ok(graph);
                }
                fixed.extend(more);
                legal = Some(graph);
                continue;
            }
            (Err(_), Some(graph)) => return Ok(graph),
            (Err(error), None) => error,
        };
        let more: Vec<String> = values.into_iter().filter(unfixed).collect();
        let data_dependent = error.code == "E0304";
        if data_dependent && !more.is_empty() {
            fixed.extend(more);
        } else if data_dependent && extents && !fixed_extents && !inputs.is_empty() {
            fixed_extents = true;
        } else if matches!(error.code, "E0303" | "E0304" | "E0309" | "E0310" | "E0311") {
            return Err(model.unsupported(&proto).unwrap_or(error));
        } else {
            return Err(error);
        }
    }
}

fn import(model: &Model, proto: &ModelProto, given: &Given) -> Result<Graph, Diagnostic> {
    let Some(graph) = &proto.graph else { return Err(Diagnostic::new("E0301", "not an ONNX model: it has no graph")) };
    let mut failed = None;
    let built = extend(Graph::new(), |t| failed = graph::main(t, model, proto, graph, given).err());
    // the tracer's own error came first if there is one
    let (graph, ()) = built?;
    failed.map_or(Ok(graph), Err)
}
