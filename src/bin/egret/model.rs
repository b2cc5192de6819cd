//! Models, and inputs for them.

use std::path::Path;

use egret::ir::random::Random;
use egret::ir::{Bindings, Op};
use egret::{DType, DeviceDescription, Diagnostic, Graph, ScalarValue, Tensor, TensorType};

use crate::args::InputArgs;
use crate::failure::Failure;
use crate::tensors;

fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
}

/// Reads a model: ONNX by its extension, otherwise a graph as text.
pub fn load(path: &Path) -> Result<Graph, Failure> {
    Ok(if is_onnx(path) { egret::onnx::load(path)? } else { egret::ir::text::load(path)? })
}

/// A graph with the inputs that it is run on.
pub struct Given {
    /// The graph.
    pub graph: Graph,
    /// Its inputs by name.
    pub inputs: Vec<(String, Tensor)>,
    /// What the graph was made for, if a shape or attribute depends on an input.
    pub fixed: Vec<String>,
}

/// Reads a model for the inputs of a folder; an input that shapes depend on becomes a constant.
pub fn load_for(path: &Path, folder: &Path) -> Result<Given, Failure> {
    if !is_onnx(path) {
        let graph = load(path)?;
        let inputs = read(&graph, folder)?;
        return Ok(Given { graph, inputs, fixed: Vec::new() });
    }
    let names = egret::onnx::inputs(path)?;
    // one that is no tensor is refused with the model
    let names: Vec<&str> = names.iter().map(|(name, tensor)| if *tensor { name.as_str() } else { "" }).collect();
    let mut inputs = tensors::read_present(folder, "input", &names)?;
    let known = inputs.iter().cloned().collect();
    let loaded = egret::onnx::load_for(path, &known)?;
    inputs.retain(|(name, _)| !loaded.fixed.contains(name));
    tensors::complete(&loaded.graph, &inputs, folder)?;
    Ok(Given { graph: loaded.graph, inputs, fixed: loaded.fixed })
}

/// The inputs of a graph by name, in order.
pub fn inputs(graph: &Graph) -> Vec<(String, TensorType)> {
    let leaf = |id: &egret::ir::NodeId| match &graph.node(*id).op {
        Op::Input(input) => Some((input.name.clone(), input.ty.clone())),
        _ => None,
    };
    graph.inputs().iter().filter_map(leaf).collect()
}

/// A model with inputs from the folder that was named, or drawn.
pub fn given(path: &Path, args: &InputArgs) -> Result<Given, Failure> {
    if let Some(folder) = &args.inputs {
        return load_for(path, folder);
    }
    let graph = load(path)?;
    let inputs = drawn(&graph, args)?;
    Ok(Given { graph, inputs, fixed: Vec::new() })
}

/// Inputs from a folder.
fn read(graph: &Graph, folder: &Path) -> Result<Vec<(String, Tensor)>, Failure> {
    let ports = inputs(graph);
    let names: Vec<&str> = ports.iter().map(|(name, _)| name.as_str()).collect();
    tensors::read(folder, "input", &names)
}

/// Seeded inputs: floats in −1..1, integers and truth values 0 or 1, which are legal indices almost everywhere.
fn drawn(graph: &Graph, args: &InputArgs) -> Result<Vec<(String, Tensor)>, Failure> {
    let ports = &inputs(graph);
    let bindings = sizes(ports, &args.dims)?;
    let mut random = Random::new(args.seed);
    let mut all = Vec::with_capacity(ports.len());
    for (name, ty) in ports {
        let too_large = || Diagnostic::new("E0954", format!("the input `{name}`: {ty} is too large to be drawn"));
        let extents =
            ty.shape.eval(&bindings).map_err(|e| Diagnostic::new("E0206", format!("the input `{name}`: {e}")))?;
        let shape: Option<Vec<usize>> = extents.iter().map(|n| usize::try_from(*n).ok()).collect();
        let shape = shape.ok_or_else(too_large)?;
        let elements = shape.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent));
        elements.filter(|n| *n <= 1 << 32).ok_or_else(too_large)?;
        let mut tensor = Tensor::zeros(ty.dtype, &shape);
        for i in 0..tensor.elements() {
            let value = match ty.dtype {
                DType::F32 | DType::F64 | DType::F16 | DType::BF16 => ScalarValue::Float(random.unit() * 2.0 - 1.0),
                _ => ScalarValue::Int(random.below(2) as i128),
            };
            tensor.set(i, value);
        }
        all.push((name.clone(), tensor));
    }
    Ok(all)
}

/// Sizes of the symbols of inputs: as given, else the least legal one from 1 on.
pub fn sizes(ports: &[(String, TensorType)], given: &[(String, i64)]) -> Result<Bindings, Failure> {
    let mut bindings = Bindings::new();
    for (_, ty) in ports {
        for dim in ty.shape.iter() {
            dim.symbols(&mut |name, least, _| {
                bindings.insert(name.clone(), least.max(1));
            });
        }
    }
    for (name, size) in given {
        match bindings.get_mut(name.as_str()) {
            Some(bound) => *bound = *size,
            None => {
                let known: Vec<String> = bindings.keys().map(|k| format!("`{k}`")).collect();
                let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
                return Err(Failure::usage(format!("--dim: the model has no symbol `{name}`; there are {known}")));
            }
        }
    }
    Ok(bindings)
}

/// Names and tensors as sessions take them.
pub fn borrowed(tensors: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

/// A shipped description.
pub fn description(name: &str) -> Result<DeviceDescription, Failure> {
    DeviceDescription::named(name).map_err(|e| Failure::usage(e.to_string()))
}
