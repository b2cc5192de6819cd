//! Graphs to ONNX models.
//!
//! One node becomes one operator of ONNX, or the plain expression that means the same; [`crate::from_bytes`] reads the
//! result back to a graph of the same outputs. Extents that are symbols are spelled as arithmetic on the shapes of
//! inputs, loops and branches as operators that hold graphs, and `generate` as arithmetic on whole tensors of indices.
//! Random bits are a function that the model brings along; their counter, and any other integer that the graph counts in a
//! state, is an input, and its next value an output. What only training has, and other states that change, have no form in
//! ONNX: an error names the node.
//!
//! A run that Egret ends with an error (an index out of range) may end with a value elsewhere: ONNX does not say.

mod attention;
mod contract;
mod control;
mod dims;
mod file;
mod generate;
mod indexing;
mod movement;
mod random;
mod reduce;
mod scalar;
mod window;
mod writer;

use std::collections::{HashMap, HashSet};

use egret_ir::{Diagnostic, Graph, NodeId, Op, TensorType, Type, Weight};
use prost::Message;

use crate::proto::{FunctionProto, GraphProto, ModelProto, OperatorSetIdProto};
use dims::Sizes;
use writer::{DOMAIN, Writer, info};

pub use file::save;

/// The version of the standard operators that models are written in.
pub const OPSET: i64 = 22;

/// The version of the file format that goes with it.
const IR_VERSION: i64 = 10;

/// A protobuf message is at most so long.
const LONGEST: usize = i32::MAX as usize;

/// The model of a graph. Names of inputs, outputs, params and states stay; states keep the values that the graph has. A
/// counter, a state of one integer that the graph changes, is an input of its name, and its next value the output `NAME.next`.
///
/// # Errors
/// `E0313` a node that has no form in ONNX, `E0314` another state that the graph changes, `E0515` a param without a value.
pub fn to_model(graph: &Graph) -> Result<ModelProto, Diagnostic> {
    let ty = |id: &NodeId| graph.tensor_type(*id);
    let counter = |id: &NodeId| ty(id).dtype.is_int() && ty(id).shape.rank() == 0;
    if let Some((name, _)) = graph.updates().iter().find(|(_, id)| !counter(id)) {
        let message = format!("the state `{name}` changes from run to run, which an ONNX model cannot say");
        return Err(Diagnostic::new("E0314", message).help("export the graph of evaluation"));
    }
    let mut inputs: Vec<(String, TensorType)> = graph
        .inputs()
        .iter()
        .filter_map(|id| match &graph.node(*id).op {
            Op::Input(leaf) => Some((leaf.name.clone(), leaf.ty.clone())),
            _ => None,
        })
        .collect();
    let names: Vec<String> = inputs.iter().map(|(name, _)| name.clone()).collect();
    let mut outputs: Vec<(String, NodeId)> = graph.outputs().to_vec();
    let mut w = Writer::new(names.iter().chain(outputs.iter().map(|(name, _)| name)).cloned().collect());
    let mut params = HashMap::new();
    for (state, id) in graph.updates() {
        let (input, output) = (w.fresh(state), w.fresh(&format!("{state}.next")));
        params.insert(state.clone(), input.clone());
        inputs.push((input, ty(id).clone()));
        outputs.push((output, *id));
    }
    let mut export = Export { w, sizes: Sizes::of(&inputs), params, functions: Vec::new(), at: None };
    let results = export.graph(graph, &names)?;
    export.w.name_outputs(&results, outputs.iter().map(|(name, _)| name.as_str()));
    let (node, initializer) = export.w.finish();
    let proto = GraphProto {
        node,
        initializer,
        name: "graph".into(),
        input: inputs.iter().map(|(name, ty)| info(name, ty)).collect(),
        output: outputs.iter().map(|(name, id)| info(name, ty(id))).collect(),
        ..GraphProto::default()
    };
    let import = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
    let own = (!export.functions.is_empty()).then(|| import(DOMAIN, 1));
    Ok(ModelProto {
        ir_version: IR_VERSION,
        producer_name: "egret".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(proto),
        opset_import: std::iter::once(import("", OPSET)).chain(own).collect(),
        functions: export.functions,
    })
}

/// The bytes of the model of a graph.
///
/// # Errors
/// Those of [`to_model`], and `E0315` a model of 2 GiB or more, which [`save`] can write.
pub fn to_bytes(graph: &Graph) -> Result<Vec<u8>, Diagnostic> {
    let model = to_model(graph)?;
    match model.encoded_len() {
        bytes if bytes > LONGEST => Err(too_long(bytes)),
        _ => Ok(model.encode_to_vec()),
    }
}

fn too_long(bytes: usize) -> Diagnostic {
    Diagnostic::new("E0315", format!("a model of {bytes} bytes does not fit into one protobuf message"))
}

/// A graph while it is written.
struct Export<'g> {
    w: Writer,
    sizes: Sizes,
    /// Values of params and states by name.
    params: HashMap<String, String>,
    /// What its nodes call.
    functions: Vec<FunctionProto>,
    /// The node that is written.
    at: Option<(&'g Graph, NodeId)>,
}

/// An operand: its name in the model, and its type.
struct Arg<'a> {
    name: &'a str,
    ty: &'a TensorType,
}

impl<'g> Export<'g> {
    /// The names of the results of a graph or region and of new values of states, given those of its inputs.
    fn graph(&mut self, graph: &'g Graph, inputs: &[String]) -> Result<Vec<String>, Diagnostic> {
        let live = graph.live();
        let mut values: Vec<Vec<String>> = vec![Vec::new(); graph.nodes().len()];
        for (id, name) in graph.inputs().iter().zip(inputs) {
            values[id.index()] = vec![name.clone()];
        }
        let outside = self.at;
        for (id, node) in graph.iter().filter(|(id, _)| live[id.index()]) {
            self.at = Some((graph, id));
            self.w.set_label(&graph.origins(id)[..], &node.op);
            values[id.index()] = match &node.op {
                Op::Input(_) => continue,
                Op::Proj(part) => {
                    let parts = &values[node.operands[0].index()];
                    vec![parts.get(part.index).cloned().ok_or_else(|| self.refuse("it reads no part"))?]
                }
                op => {
                    let mut args = Vec::with_capacity(node.operands.len());
                    for operand in &node.operands {
                        let (Some(name), Some(ty)) = (values[operand.index()].first(), graph.ty(*operand).tensor())
                        else {
                            return Err(self.refuse("an operand is a tuple"));
                        };
                        args.push(Arg { name, ty });
                    }
                    self.node(op, &args, &node.ty)?
                }
            };
            for (name, part) in values[id.index()].iter().zip(node.ty.parts()) {
                self.sizes.found(name, part);
            }
        }
        self.at = outside;
        let all: Option<Vec<String>> = graph.roots().map(|id| values[id.index()].first().cloned()).collect();
        all.ok_or_else(|| Diagnostic::new("E0313", "an output of the graph has no value"))
    }

    /// The names of a node's results.
    fn node(&mut self, op: &'g Op, x: &[Arg], ty: &Type) -> Result<Vec<String>, Diagnostic> {
        let y = &ty.parts()[0];
        let one = match op {
            Op::Param(leaf) => self.weight(&leaf.name)?,
            Op::State(leaf) => self.weight(&leaf.name)?,
            Op::Const(leaf) => self.w.constant(&leaf.value),
            Op::Iota(iota) => self.iota(iota, y)?,
            Op::Pointwise(map) => {
                let names: Vec<&str> = x.iter().map(|arg| arg.name).collect();
                self.pointwise(map.f, &names, x[x.len() - 1].ty.dtype)?
            }
            Op::Cast(cast) => self.w.cast(x[0].name, cast.dtype),
            Op::Bitcast(cast) => self.bitcast(&x[0], cast.dtype)?,
            Op::StopGradient(_) | Op::Recompute(_) => self.w.op("Identity", &[x[0].name]),
            Op::Reshape(_) => self.reshape(x[0].name, &y.shape)?,
            Op::Transpose(turn) => self.w.transpose(x[0].name, &turn.permutation),
            Op::Broadcast(_) => self.expand(x[0].name, &y.shape)?,
            Op::Slice(slice) => self.slice(slice, &x[0])?,
            Op::Pad(pad) => self.pad(pad, &x[0])?,
            Op::Concat(concat) => self.concat(concat.axis, x),
            Op::Reverse(reverse) => self.w.reverse(x[0].name, &reverse.axes),
            Op::DotGeneral(dot) => self.dot(dot, x),
            Op::Conv(conv) => self.conv(conv, x, y)?,
            Op::Reduce(reduce) => self.reduce(reduce.kind, x[0].name, x[0].ty.dtype, &reduce.axes, reduce.keep),
            Op::ReduceWindow(pool) => self.pool(pool, &x[0], y)?,
            Op::Softmax(softmax) => self.softmax(x[0].name, softmax.axis, softmax.log),
            Op::Norm(norm) => self.norm(norm, &x[0])?,
            Op::CrossEntropy(_) => self.cross_entropy(x, y)?,
            Op::Attention(attention) => return self.attention(attention, x),
            Op::Gather(gather) => self.gather(gather.places, x),
            Op::Scatter(scatter) => self.scatter(scatter, x, y)?,
            Op::Generate(generate) => self.generate(generate, x)?,
            Op::TopK(top) => return self.top_k(top, &x[0]),
            Op::Cumulative(cumulative) => self.cumulative(cumulative, &x[0])?,
            Op::NonZero(_) => self.w.op("NonZero", &[x[0].name]),
            Op::Unique(unique) => return Ok(self.unique(unique, x[0].name)),
            Op::NonMaxSuppression(suppression) => self.suppression(suppression, x),
            Op::Scan(scan) => return self.scan(scan, x),
            Op::If(branch) => return self.branch(branch, x, ty),
            Op::While(looped) => return self.looped(looped, x),
            Op::CustomVjp(custom) => {
                // what it computes; ONNX knows no gradients
                let names: Vec<String> = x.iter().map(|arg| arg.name.to_string()).collect();
                return self.graph(&custom.forward, &names);
            }
            Op::Input(_) | Op::Proj(_) => return Err(self.refuse("it has no value of its own")),
            Op::Rng(rng) => self.rng(rng, &x[0], y)?,
            Op::Fused(_) => return Err(self.refuse("only rewriting makes it")),
            Op::ReduceWindowGrad(_) | Op::SoftmaxGrad(_) | Op::NormGrad(_) | Op::AttentionGrad(_) | Op::Grad(_) => {
                return Err(self.refuse("it is a gradient").help("export the graph of evaluation"));
            }
        };
        Ok(vec![one])
    }

    /// A param or state as an initializer; a large fill as the operator that makes it.
    fn weight(&mut self, name: &str) -> Result<String, Diagnostic> {
        if let Some(value) = self.params.get(name) {
            return Ok(value.clone());
        }
        let Some((graph, _)) = self.at else { return Err(self.refuse("it is in no graph")) };
        let weight = graph.weights.get(name).ok_or_else(|| {
            Diagnostic::new("E0515", format!("`{name}` has no value")).help("give the weights of the graph")
        })?;
        let value = match weight {
            Weight::Tensor(tensor) => self.w.initializer(name, tensor),
            Weight::Fill { value, shape } => {
                // made in the outermost graph: loops may read it as well
                let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
                self.w.fill(name, *value, &shape)
            }
        };
        self.params.insert(name.to_string(), value.clone());
        Ok(value)
    }

    /// The node has no form in ONNX.
    fn refuse(&self, why: &str) -> Diagnostic {
        let Some((graph, id)) = self.at else { return Diagnostic::new("E0313", why) };
        let name = graph.node(id).op.home().name();
        let message = format!("`{name}` (%{}) has no form in ONNX: {why}", id.index());
        graph.origins(id).iter().fold(Diagnostic::new("E0313", message), |e, origin| e.at((**origin).clone()))
    }
}

/// Names that are in use.
type Names = HashSet<String>;
