//! What an operator's importer sees: its operands, its attributes and the graph under construction.

use std::collections::HashMap;

use egret_ir::ops::Broadcast;
use egret_ir::{DType, Diagnostic, Dim, Literal, Origin, ScalarValue, Shape, Tensor, Tracer, Var, Weight};

use crate::graph;
use crate::model::{COUNTER, Model};
use crate::proto::{AttributeProto, GraphProto, NodeProto};
use crate::tensor::{from_proto, from_sparse};

/// A value of the model.
#[derive(Clone)]
pub(crate) enum Source<'t> {
    /// A node of the graph.
    Var(Var<'t>),
    /// A constant; a node only when an operator reads it as a tensor.
    Const(Tensor),
    /// A param; a node only when an operator reads it as a tensor.
    Param(String, Tensor),
    /// Integers that are known in terms of symbols.
    Dims(Known),
}

/// A scalar or vector of integers in terms of symbols.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Known {
    pub dims: Vec<Dim>,
    /// Whether it is a scalar.
    pub scalar: bool,
    pub dtype: DType,
}

impl Known {
    /// The tensor, if no symbol occurs.
    pub(crate) fn constant(&self) -> Option<Tensor> {
        let values: Option<Vec<i64>> = self.dims.iter().map(Dim::as_const).collect();
        let values = values?;
        let shape: &[usize] = if self.scalar { &[] } else { &[values.len()] };
        let mut tensor = Tensor::zeros(self.dtype, shape);
        values.iter().enumerate().for_each(|(i, v)| tensor.set(i, ScalarValue::Int(i128::from(*v))));
        Some(tensor)
    }
}

/// The values of a graph or function by name.
#[derive(Default)]
pub(crate) struct Scope<'t> {
    pub values: HashMap<String, Source<'t>>,
}

/// A graph under construction, and the part of the model that is written into it.
#[derive(Clone, Copy)]
pub(crate) struct Region<'a, 't> {
    /// The outermost graph, which has the params.
    pub root: &'a Tracer<'t>,
    /// This graph: the outermost, or a body.
    pub t: &'a Tracer<'t>,
    pub model: &'a Model<'a>,
    /// Version of the standard operator set.
    pub opset: i64,
    /// How many functions and bodies are around.
    pub depth: usize,
}

/// One node while it is imported.
pub(crate) struct Cx<'a, 't> {
    pub t: &'a Tracer<'t>,
    pub node: &'a NodeProto,
    /// Version of the standard operator set.
    pub opset: i64,
    pub scope: &'a mut Scope<'t>,
    pub region: Region<'a, 't>,
}

impl<'a, 't> Cx<'a, 't> {
    pub(crate) fn new(region: Region<'a, 't>, node: &'a NodeProto, scope: &'a mut Scope<'t>) -> Cx<'a, 't> {
        Cx { t: region.t, node, opset: region.opset, scope, region }
    }

    /// The graph in an attribute.
    pub(crate) fn graph(&self, name: &str) -> Result<&'a GraphProto, Diagnostic> {
        let found = self.node.attribute.iter().find(|a| a.name == name);
        found.and_then(|a| a.g.as_ref()).ok_or_else(|| self.error(format!("has no graph `{name}`")))
    }

    /// The results of a graph that the node holds, written into `t`.
    pub(crate) fn body(
        &self,
        t: &Tracer<'t>,
        graph: &GraphProto,
        operands: &[Source<'t>],
    ) -> Result<Vec<Source<'t>>, Diagnostic> {
        graph::body(Region { t, ..self.region }, self.node, graph, operands, self.scope)
    }
}

impl<'t> Cx<'_, 't> {
    /// Whether operand `i` is there.
    pub(crate) fn has(&self, i: usize) -> bool {
        self.node.input.get(i).is_some_and(|name| !name.is_empty())
    }

    /// Number of operands, absent ones at the end not counted.
    pub(crate) fn operands(&self) -> usize {
        (0..self.node.input.len()).rev().find(|i| self.has(*i)).map_or(0, |i| i + 1)
    }

    /// Whether result `i` is read.
    pub(crate) fn wants(&self, i: usize) -> bool {
        self.node.output.get(i).is_some_and(|name| !name.is_empty())
    }

    pub(crate) fn source(&self, i: usize) -> Result<&Source<'t>, Diagnostic> {
        let name = self.node.input.get(i).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| self.error(format!("operand {i} is missing")))?;
        self.scope.values.get(name).ok_or_else(|| {
            Diagnostic::new("E0307", format!("the value `{name}` is read before it is made")).at(self.origin())
        })
    }

    /// Operand `i` as a node.
    pub(crate) fn var(&mut self, i: usize) -> Result<Var<'t>, Diagnostic> {
        let source = self.source(i)?.clone();
        if let Source::Var(var) = source {
            return Ok(var);
        }
        let var = self.node_of(source)?;
        if let Some(slot) = self.scope.values.get_mut(&self.node.input[i])
            && matches!(slot, Source::Param(..))
        {
            *slot = Source::Var(var);
        }
        Ok(var)
    }

    /// A node for a value.
    pub(crate) fn node_of(&self, source: Source<'t>) -> Result<Var<'t>, Diagnostic> {
        self.node_in(self.t, source)
    }

    /// A node for a value, in the graph or a body of it.
    pub(crate) fn node_in(&self, t: &Tracer<'t>, source: Source<'t>) -> Result<Var<'t>, Diagnostic> {
        Ok(match source {
            Source::Var(var) => var,
            Source::Const(tensor) => t.constant(tensor),
            Source::Param(name, tensor) => self.region.root.param(&name, Weight::Tensor(tensor)),
            Source::Dims(known) => self.dims_as_tensor(t, &known)?,
        })
    }

    /// Sizes as a tensor: each is the sum of that many ones.
    fn dims_as_tensor(&self, t: &Tracer<'t>, known: &Known) -> Result<Var<'t>, Diagnostic> {
        if let Some(tensor) = known.constant() {
            return Ok(t.constant(tensor));
        }
        let one = t.scalar(Literal::int(1, known.dtype));
        let mut parts = Vec::new();
        for dim in &known.dims {
            if dim.range().0 < 0 && dim.as_const().is_none() {
                return Err(self.error(format!("the size `{dim}` may be negative and cannot be a tensor")));
            }
            let value = match dim.as_const() {
                Some(value) => t.scalar(Literal::int(value, known.dtype)),
                None => one.then(Broadcast { shape: Shape::from([dim.clone()]) }, &[]).reduce_sum(&[0], false),
            };
            parts.push(value.reshape(Shape::from([1i64])));
        }
        let all = t.concat(&parts, 0);
        Ok(if known.scalar { all.reshape(Shape::scalar()) } else { all })
    }

    /// A value that was just made, or why it was not: what has no type has no extents either.
    pub(crate) fn made(&self, var: Var<'t>) -> Result<Var<'t>, Diagnostic> {
        if var.id().is_some() {
            return Ok(var);
        }
        let first = self.t.error().or_else(|| self.region.root.error());
        Err(first.unwrap_or_else(|| self.error("the operands do not fit")))
    }

    /// Operand `i` as a node, if it is there.
    pub(crate) fn optional(&mut self, i: usize) -> Result<Option<Var<'t>>, Diagnostic> {
        if self.has(i) { self.var(i).map(Some) } else { Ok(None) }
    }

    /// The elements of operand `i`, if they are known now.
    pub(crate) fn tensor(&self, i: usize) -> Option<Tensor> {
        match self.source(i).ok()? {
            Source::Const(tensor) | Source::Param(_, tensor) => Some(tensor.clone()),
            Source::Dims(known) => known.constant(),
            Source::Var(var) => var.tracer().graph(|graph| match &graph.node(var.id()?).op {
                egret_ir::Op::Const(leaf) => Some(leaf.value.clone()),
                egret_ir::Op::Param(leaf) => match graph.weights.get(&leaf.name)? {
                    Weight::Tensor(tensor) => Some(tensor.clone()),
                    Weight::Fill { .. } => None,
                },
                _ => None,
            }),
        }
    }

    /// The integers of operand `i`, if it is there; they must be known now.
    pub(crate) fn ints(&self, i: usize) -> Result<Option<Vec<i64>>, Diagnostic> {
        if !self.has(i) {
            return Ok(None);
        }
        match self.tensor(i) {
            Some(tensor) => Ok(Some(tensor.values().map(|v| v.as_int() as i64).collect())),
            None => Err(self.data_dependent(i)),
        }
    }

    /// The number in operand `i`, if it is there; it must be known now.
    pub(crate) fn number(&self, i: usize) -> Result<Option<f64>, Diagnostic> {
        if !self.has(i) {
            return Ok(None);
        }
        let value = self.tensor(i).and_then(|t| t.values().next());
        value.map(|v| Some(v.as_f64())).ok_or_else(|| self.data_dependent(i))
    }

    /// The integers of operand `i` in terms of symbols, if that is what they are.
    pub(crate) fn known(&self, i: usize) -> Option<Known> {
        match self.source(i).ok()? {
            Source::Dims(known) => Some(known.clone()),
            _ => {
                let tensor = self.tensor(i)?;
                let legal = tensor.dtype().is_int() && tensor.shape().len() < 2 && tensor.elements() <= 1024;
                legal.then(|| Known {
                    dims: tensor.values().map(|v| Dim::from(v.as_int() as i64)).collect(),
                    scalar: tensor.shape().is_empty(),
                    dtype: tensor.dtype(),
                })
            }
        }
    }

    /// The sizes in operand `i`, which no data may decide; floats must be whole numbers.
    pub(crate) fn dims(&self, i: usize) -> Result<Vec<Dim>, Diagnostic> {
        if let Some(known) = self.known(i) {
            return Ok(known.dims);
        }
        let tensor = self.tensor(i).ok_or_else(|| self.data_dependent(i))?;
        let whole = |v: ScalarValue| (v.as_f64().fract() == 0.0).then(|| Dim::from(v.as_int() as i64));
        let dims: Option<Vec<Dim>> =
            if tensor.elements() <= 1024 { tensor.values().map(whole).collect() } else { None };
        dims.ok_or_else(|| self.error(format!("operand {i}, {tensor:?}, holds no sizes")))
    }

    /// The shape of operand `i`, without making a node of it.
    pub(crate) fn shape(&self, i: usize) -> Result<Shape, Diagnostic> {
        let constant = |t: &Tensor| t.shape().iter().map(|n| Dim::from(*n)).collect();
        Ok(match self.source(i)? {
            Source::Var(var) => var.shape(),
            Source::Const(tensor) | Source::Param(_, tensor) => constant(tensor),
            Source::Dims(known) if known.scalar => Shape::scalar(),
            Source::Dims(known) => Shape::from([known.dims.len() as i64]),
        })
    }

    /// The element type of operand `i`, without making a node of it.
    pub(crate) fn element_type(&self, i: usize) -> Result<DType, Diagnostic> {
        Ok(match self.source(i)? {
            Source::Var(var) => var.dtype(),
            Source::Const(tensor) | Source::Param(_, tensor) => tensor.dtype(),
            Source::Dims(known) => known.dtype,
        })
    }

    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.node.attribute.iter().find(|a| a.name == name)
    }

    /// Whether an attribute is there.
    pub(crate) fn has_attribute(&self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |a| a.i)
    }

    pub(crate) fn float(&self, name: &str, default: f64) -> f64 {
        // attributes are decimal texts rounded to f32: 1e-5 means the f32 nearest to it
        self.attribute(name).map_or(default, |a| f64::from(a.f))
    }

    pub(crate) fn int_list(&self, name: &str) -> Option<Vec<i64>> {
        self.attribute(name).map(|a| a.ints.clone())
    }

    pub(crate) fn float_list(&self, name: &str) -> Option<Vec<f32>> {
        self.attribute(name).map(|a| a.floats.clone())
    }

    pub(crate) fn text(&self, name: &str, default: &str) -> String {
        self.attribute(name).map_or(default.to_string(), |a| String::from_utf8_lossy(&a.s).into_owned())
    }

    pub(crate) fn texts(&self, name: &str) -> Option<Vec<String>> {
        self.attribute(name).map(|a| a.strings.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect())
    }

    pub(crate) fn tensor_attribute(&mut self, name: &str) -> Result<Option<Tensor>, Diagnostic> {
        let Some(proto) = self.attribute(name).and_then(|a| a.t.clone()) else { return Ok(None) };
        let tensor = self.region.model.with_files(|files| from_proto(&proto, files));
        tensor.map(Some).map_err(|e| e.at(self.origin()))
    }

    pub(crate) fn sparse_attribute(&mut self, name: &str) -> Result<Option<Tensor>, Diagnostic> {
        let Some(proto) = self.attribute(name).and_then(|a| a.sparse_tensor.clone()) else { return Ok(None) };
        let tensor = self.region.model.with_files(|files| from_sparse(&proto, files));
        tensor.map(Some).map_err(|e| e.at(self.origin()))
    }

    /// The counter of random numbers, which each run advances.
    pub(crate) fn random_counter(&self) -> Var<'t> {
        self.region.root.state(COUNTER, Tensor::scalar(Literal::int(0, DType::U64)))
    }

    /// An axis counted from the last when negative.
    pub(crate) fn axis(&self, axis: i64, rank: usize) -> Result<usize, Diagnostic> {
        let place = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
        usize::try_from(place)
            .ok()
            .filter(|p| *p < rank)
            .ok_or_else(|| self.error(format!("axis {axis} is outside rank {rank}")))
    }

    /// Several axes, as [`Cx::axis`].
    pub(crate) fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, Diagnostic> {
        axes.iter().map(|axis| self.axis(*axis, rank)).collect()
    }

    /// A scalar constant of the element type of another value.
    pub(crate) fn like(&self, var: Var<'t>, value: f64) -> Var<'t> {
        self.t.scalar(Literal::new(ScalarValue::Float(value), var.dtype()))
    }

    pub(crate) fn origin(&self) -> Origin {
        origin(self.node)
    }

    /// The node is not legal.
    pub(crate) fn error(&self, message: impl AsRef<str>) -> Diagnostic {
        self.refuse("E0305", message.as_ref())
    }

    /// The node is legal, but this form of the operator is not supported.
    pub(crate) fn unsupported(&self, message: impl AsRef<str>) -> Diagnostic {
        self.refuse("E0310", message.as_ref())
    }

    /// The operator needs an extent that the model leaves open.
    pub(crate) fn open_extent(&self, message: impl AsRef<str>) -> Diagnostic {
        self.region.model.need(|needs| needs.extents = true);
        self.refuse("E0304", message.as_ref()).help("give the inputs, or a model whose extents are numbers")
    }

    fn refuse(&self, code: &'static str, message: &str) -> Diagnostic {
        Diagnostic::new(code, format!("{}: {message}", self.node.op_type)).at(self.origin())
    }

    /// The element type whose number is in an attribute.
    pub(crate) fn dtype(&self, name: &str) -> Result<Option<DType>, Diagnostic> {
        if !self.has_attribute(name) {
            return Ok(None);
        }
        crate::dtype(self.int(name, 0) as i32).map(Some).map_err(|e| e.at(self.origin()))
    }

    /// The extents of a shape that must all be numbers.
    pub(crate) fn extents(&self, shape: &[Dim]) -> Result<Vec<i64>, Diagnostic> {
        let all: Option<Vec<i64>> = shape.iter().map(Dim::as_const).collect();
        all.ok_or_else(|| self.open_extent(format!("the extents {} must be numbers", Shape::from(shape))))
    }

    pub(crate) fn data_dependent(&self, i: usize) -> Diagnostic {
        if let Ok(source) = self.source(i) {
            let names = self.inputs_of(source);
            self.region.model.need(|needs| {
                needs.values.extend(names);
                needs.extents = true;
            });
        }
        let name = self.node.input.get(i).map_or("", String::as_str);
        self.refuse("E0304", &format!("operand {i}, `{name}`, must not depend on data"))
            .help("shapes may depend on the shapes of inputs; give the inputs to compile for their values")
    }

    /// Records that the graph would be a better one if operand `i` were known.
    pub(crate) fn wish(&self, i: usize) {
        if let Ok(source) = self.source(i) {
            let names = self.inputs_of(source);
            self.region.model.need(|needs| needs.wishes.extend(names));
        }
    }

    /// The inputs on whose elements a value depends.
    fn inputs_of(&self, source: &Source<'t>) -> Vec<String> {
        let Source::Var(var) = source else { return Vec::new() };
        let Some(root) = var.id() else { return Vec::new() };
        var.tracer().graph(|graph| {
            let (mut seen, mut open, mut names) = (vec![false; graph.nodes().len()], vec![root], Vec::new());
            while let Some(id) = open.pop() {
                if std::mem::replace(&mut seen[id.index()], true) {
                    continue;
                }
                let node = graph.node(id);
                if let egret_ir::Op::Input(leaf) = &node.op {
                    names.push(leaf.name.clone());
                }
                open.extend(node.operands.iter().copied());
            }
            names
        })
    }
}

/// Where the nodes of an operator come from.
pub(crate) fn origin(node: &NodeProto) -> Origin {
    let first = node.output.first().cloned().unwrap_or_default();
    let name = if node.name.is_empty() { first } else { node.name.clone() };
    Origin::Onnx { node: name, op: node.op_type.clone() }
}
