//! Nodes, names and constants of a model that is written.

use std::collections::HashMap;
use std::sync::Arc;

use egret_ir::{DType, Dim, Literal, Op, Origin, Tensor, TensorType};

use super::Names;
use crate::proto::{
    AttributeProto, DimensionProto, GraphProto, NodeProto, ShapeProto, TensorProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};
use crate::tensor::{number, to_proto};

/// The domain of the functions that models bring along.
pub(super) const DOMAIN: &str = "egret";

/// Constants up to this many bytes are written once however often they are used.
const SHARED: usize = 4096;

/// A graph of the model: the outermost, or one that a node holds.
#[derive(Default)]
struct Scope {
    nodes: Vec<NodeProto>,
    /// Values that its nodes make.
    made: Names,
    /// Sizes that are known in it, as vectors of one element.
    sizes: HashMap<Dim, String>,
}

/// A model while it is written.
pub(super) struct Writer {
    taken: Names,
    initializers: Vec<TensorProto>,
    constants: HashMap<(DType, Vec<usize>, Vec<u8>), String>,
    /// Graphs that are open, the innermost last.
    scopes: Vec<Scope>,
    /// What the nodes that follow are called.
    label: String,
    /// Names of nodes.
    nodes: Names,
}

impl Writer {
    /// A model whose inputs and outputs have these names.
    pub(super) fn new(taken: Names) -> Writer {
        let scopes = vec![Scope::default()];
        let (initializers, constants, nodes) = (Vec::new(), HashMap::new(), Names::new());
        Writer { taken, initializers, constants, scopes, label: String::new(), nodes }
    }

    /// Nodes are named after where the one that they spell comes from.
    pub(super) fn set_label(&mut self, origins: &[Arc<Origin>], op: &Op) {
        self.label = match origins.first().map(|origin| &**origin) {
            Some(Origin::Onnx { node, .. }) if !node.is_empty() => node.clone(),
            _ => op.home().name().to_string(),
        };
    }

    /// A name that nothing has.
    pub(super) fn fresh(&mut self, stem: &str) -> String {
        free(&mut self.taken, stem)
    }

    /// An initializer of that name, or of one like it.
    pub(super) fn initializer(&mut self, name: &str, tensor: &Tensor) -> String {
        let name = self.fresh(name);
        self.initializers.push(to_proto(&name, tensor));
        name
    }

    /// A constant.
    pub(super) fn constant(&mut self, tensor: &Tensor) -> String {
        if tensor.bytes().len() > SHARED {
            return self.initializer("constant", tensor);
        }
        let key = (tensor.dtype(), tensor.shape().to_vec(), tensor.bytes().to_vec());
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = self.initializer("constant", tensor);
        self.constants.insert(key, name.clone());
        name
    }

    /// A scalar constant.
    pub(super) fn literal(&mut self, value: Literal) -> String {
        self.constant(&Tensor::scalar(value))
    }

    /// A scalar i64.
    pub(super) fn int(&mut self, value: i64) -> String {
        self.literal(Literal::int(value, DType::I64))
    }

    /// A scalar float.
    pub(super) fn float(&mut self, value: f64, dtype: DType) -> String {
        self.literal(Literal::float(value, dtype))
    }

    /// A vector of i64.
    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        match Tensor::from_bytes(DType::I64, &[values.len()], &bytes) {
            Some(tensor) => self.constant(&tensor),
            None => String::new(),
        }
    }

    /// One value everywhere, made in the outermost graph.
    pub(super) fn fill(&mut self, name: &str, value: Literal, shape: &[i64]) -> String {
        let (name, shape) = (self.fresh(name), self.ints(shape));
        let value = tensor("value", &Tensor::splat(value, &[1]));
        let node = self.node_of("ConstantOfShape", &[&shape], vec![value], vec![name.clone()]);
        self.scopes[0].made.insert(name.clone());
        // before anything that a loop of this graph reads
        self.scopes[0].nodes.insert(0, node);
        name
    }

    fn node_of(&mut self, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>, output: Vec<String>) -> NodeProto {
        let name = free(&mut self.nodes, &self.label);
        let input = inputs.iter().map(|name| name.to_string()).collect();
        NodeProto { input, output, name, op_type: op.into(), attribute, domain: String::new() }
    }

    /// An operator with several results.
    pub(super) fn ops(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>, n: usize) -> Vec<String> {
        let outputs: Vec<String> = (0..n).map(|_| self.fresh("v")).collect();
        let node = self.node_of(op, inputs, attributes, outputs);
        self.put(node)
    }

    /// A call of a function that the model brings along.
    pub(super) fn call(&mut self, function: &str, inputs: &[&str], n: usize) -> Vec<String> {
        let outputs: Vec<String> = (0..n).map(|_| self.fresh("v")).collect();
        let node = self.node_of(function, inputs, Vec::new(), outputs);
        self.put(NodeProto { domain: DOMAIN.into(), ..node })
    }

    fn put(&mut self, node: NodeProto) -> Vec<String> {
        let outputs = node.output.clone();
        if let Some(scope) = self.scopes.last_mut() {
            scope.nodes.push(node);
            scope.made.extend(outputs.iter().cloned());
        }
        outputs
    }

    /// An operator with attributes.
    pub(super) fn op_with(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.ops(op, inputs, attributes, 1).pop().unwrap_or_default()
    }

    /// An operator.
    pub(super) fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.op_with(op, inputs, Vec::new())
    }

    /// A conversion.
    pub(super) fn cast(&mut self, x: &str, dtype: DType) -> String {
        self.op_with("Cast", &[x], vec![int("to", number(dtype).into())])
    }

    /// Axes in another order, if it is another.
    pub(super) fn transpose(&mut self, x: &str, permutation: &[usize]) -> String {
        if permutation.is_sorted() {
            return x.to_string();
        }
        let permutation = permutation.iter().map(|axis| *axis as i64).collect();
        self.op_with("Transpose", &[x], vec![ints("perm", permutation)])
    }

    /// Axes backwards.
    pub(super) fn reverse(&mut self, x: &str, axes: &[usize]) -> String {
        if axes.is_empty() {
            return x.to_string();
        }
        let all = |value: i64| vec![value; axes.len()];
        let (start, end, step) = (self.ints(&all(-1)), self.ints(&all(i64::MIN)), self.ints(&all(-1)));
        let axes: Vec<i64> = axes.iter().map(|axis| *axis as i64).collect();
        let axes = self.ints(&axes);
        self.op("Slice", &[x, &start, &end, &axes, &step])
    }

    /// A size that is known here or in a graph around this one.
    pub(super) fn known_size(&self, dim: &Dim) -> Option<String> {
        self.scopes.iter().rev().find_map(|scope| scope.sizes.get(dim)).cloned()
    }

    /// Notes a size that is known from here on.
    pub(super) fn note_size(&mut self, dim: &Dim, name: &str) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.sizes.insert(dim.clone(), name.to_string());
        }
    }

    /// Opens a graph that a node holds.
    pub(super) fn open(&mut self) {
        self.scopes.push(Scope::default());
    }

    /// Closes the innermost graph, with these inputs and results.
    pub(super) fn close(&mut self, inputs: &[(String, TensorType)], results: &[(String, TensorType)]) -> GraphProto {
        let mut seen = Names::new();
        let mut output = Vec::with_capacity(results.len());
        for (name, ty) in results {
            // each result is a value of its own that this graph makes
            let own = self.scopes.last().is_some_and(|scope| scope.made.contains(name));
            let name = if own && seen.insert(name.clone()) { name.clone() } else { self.op("Identity", &[name]) };
            output.push(info(&name, ty));
        }
        let name = self.fresh("body");
        let node = self.scopes.pop().map(|scope| scope.nodes).unwrap_or_default();
        let input = inputs.iter().map(|(name, ty)| info(name, ty)).collect();
        GraphProto { node, name, input, output, ..GraphProto::default() }
    }

    /// Gives results their names: what the outermost graph makes is renamed, anything else copied.
    pub(super) fn name_outputs<'n>(&mut self, values: &[String], names: impl Iterator<Item = &'n str>) {
        let mut renamed: HashMap<String, String> = HashMap::new();
        for (value, name) in values.iter().zip(names) {
            if self.scopes[0].made.contains(value) && !renamed.contains_key(value) {
                renamed.insert(value.clone(), name.to_string());
                continue;
            }
            let node = self.node_of("Identity", &[value], Vec::new(), vec![name.to_string()]);
            self.scopes[0].nodes.push(node);
        }
        let mut open: Vec<&mut NodeProto> = self.scopes[0].nodes.iter_mut().collect();
        while let Some(node) = open.pop() {
            for value in node.input.iter_mut().chain(&mut node.output) {
                if let Some(name) = renamed.get(value) {
                    value.clone_from(name);
                }
            }
            let graphs = node.attribute.iter_mut().filter_map(|attribute| attribute.g.as_mut());
            open.extend(graphs.flat_map(|graph| graph.node.iter_mut()));
        }
    }

    /// The nodes of the outermost graph, and its constants.
    pub(super) fn finish(mut self) -> (Vec<NodeProto>, Vec<TensorProto>) {
        (self.scopes.swap_remove(0).nodes, self.initializers)
    }
}

/// A name that is not taken: the stem, or the stem with a number.
fn free(taken: &mut Names, stem: &str) -> String {
    let mut name = stem.to_string();
    let mut n = taken.len();
    while name.is_empty() || !taken.insert(name.clone()) {
        name = format!("{stem}.{n}");
        n += 1;
    }
    name
}

/// A name with its type.
pub(super) fn info(name: &str, ty: &TensorType) -> ValueInfoProto {
    let dim = |dim: &Dim| match dim.as_const() {
        Some(value) => DimensionProto { dim_value: Some(value), dim_param: None },
        None if dim.is_data_dependent() => DimensionProto::default(),
        None => DimensionProto { dim_value: None, dim_param: Some(dim.to_string()) },
    };
    let shape = ShapeProto { dim: ty.shape.iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: number(ty.dtype), shape: Some(shape) };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

/// An integer attribute.
pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 2, i, ..AttributeProto::default() }
}

/// A truth value as an attribute.
pub(super) fn flag(name: &str, value: bool) -> AttributeProto {
    int(name, value.into())
}

/// A float attribute.
pub(super) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 1, f, ..AttributeProto::default() }
}

/// A text attribute.
pub(super) fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 3, s: s.as_bytes().to_vec(), ..AttributeProto::default() }
}

/// A tensor attribute.
pub(super) fn tensor(name: &str, t: &Tensor) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 4, t: Some(to_proto("", t)), ..AttributeProto::default() }
}

/// A graph attribute.
pub(super) fn graph(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 5, g: Some(g), ..AttributeProto::default() }
}

/// A list of integers as an attribute.
pub(super) fn ints(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 7, ints, ..AttributeProto::default() }
}
