//! Graphs, functions and nodes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use egret_ir::interpret::interpret;
use egret_ir::tracer::extend;
use egret_ir::{DType, Diagnostic, Dim, Graph, Literal, Op, Shape, Tensor, TensorType, Tensors, Tracer, Var};
use prost::Message;
use smallvec::SmallVec;

use crate::contrib;
use crate::cx::{Cx, Region, Scope, Source, origin};
use crate::dims;
use crate::model::{COUNTER, Model, is_standard, opset};
use crate::ops::{self, Import};
use crate::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::tensor::{Extent, LARGEST, declared, dtype, from_proto, from_sparse};

/// Constants up to this size are written into the graph; larger ones are params.
pub(crate) const SMALL: usize = 4096;

/// Values in between may be this large when a node is computed while importing.
const WORK: i64 = 1 << 22;

/// Functions and bodies are nested at most this deep.
const DEPTH: usize = 32;

/// What is known of inputs when a model is imported.
pub(crate) struct Given<'a> {
    /// Values by name.
    pub inputs: &'a Tensors,
    /// Names of those whose values become constants.
    pub fixed: &'a [String],
    /// Whether extents that the model leaves open are those of the values.
    pub extents: bool,
}

/// Names of extents as the text form can write them; different names stay different.
#[derive(Default)]
struct Symbols {
    known: HashMap<String, String>,
    taken: HashSet<String>,
}

impl Symbols {
    fn clean(&mut self, name: &str) -> String {
        if let Some(clean) = self.known.get(name) {
            return clean.clone();
        }
        let mut clean: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if !clean.starts_with(|c: char| c.is_ascii_alphabetic()) {
            clean.insert(0, 'd');
        }
        while !self.taken.insert(clean.clone()) {
            clean.push('_');
        }
        self.known.insert(name.to_string(), clean.clone());
        clean
    }
}

/// The inputs of a graph that are no initializers.
pub(crate) fn inputs(graph: &GraphProto) -> Vec<&ValueInfoProto> {
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
    let constants: HashSet<&str> = graph.initializer.iter().chain(sparse).map(|i| i.name.as_str()).collect();
    graph.input.iter().filter(|info| !constants.contains(info.name.as_str())).collect()
}

/// Imports the main graph.
pub(crate) fn main<'t>(
    t: &Tracer<'t>,
    model: &Model,
    proto: &ModelProto,
    graph: &GraphProto,
    given: &Given,
) -> Result<(), Diagnostic> {
    let at = Region { root: t, t, model, opset: opset(&proto.opset_import), depth: 0 };
    let mut scope = Scope::default();
    initializers(at, graph, &mut scope)?;
    let mut symbols = Symbols::default();
    let mut seen = HashSet::new();
    for info in inputs(graph) {
        if !seen.insert(info.name.as_str()) {
            return Err(Diagnostic::new("E0309", format!("the input `{}` is declared twice", info.name)));
        }
        let source = input(t, info, &mut symbols, given)?;
        scope.values.insert(info.name.clone(), source);
    }
    nodes(at, &graph.node, &mut scope)?;
    for info in &graph.output {
        let Some(source) = scope.values.get(&info.name).cloned() else {
            return Err(Diagnostic::new("E0307", format!("nothing makes the output `{}`", info.name)));
        };
        let node = NodeProto { name: info.name.clone(), op_type: "output".into(), ..NodeProto::default() };
        let var = Cx::new(at, &node, &mut scope).node_of(source)?;
        t.output(&info.name, var);
    }
    if model.is_random() {
        let counter = t.state(COUNTER, Tensor::scalar(Literal::int(0, DType::U64)));
        t.update(counter, counter + 1i64);
    }
    Ok(())
}

fn initializers<'t>(at: Region<'_, 't>, graph: &GraphProto, scope: &mut Scope<'t>) -> Result<(), Diagnostic> {
    let mut add = |name: &str, tensor: Tensor| {
        // integers are shapes, axes and indices; a scalar is a number in a formula
        let constant = !tensor.dtype().is_float() || tensor.shape().is_empty();
        let source = match constant && tensor.bytes().len() <= SMALL {
            true => Source::Const(tensor),
            false => Source::Param(at.model.param_name(name), tensor),
        };
        scope.values.insert(name.to_string(), source);
    };
    for proto in &graph.initializer {
        add(&proto.name, at.model.with_files(|files| from_proto(proto, files))?);
    }
    for proto in &graph.sparse_initializer {
        let name = proto.values.as_ref().map_or("", |values| values.name.as_str());
        add(name, at.model.with_files(|files| from_sparse(proto, files))?);
    }
    Ok(())
}

/// An input as a node, or as a constant when its value is fixed.
fn input<'t>(
    t: &Tracer<'t>,
    info: &ValueInfoProto,
    symbols: &mut Symbols,
    given: &Given,
) -> Result<Source<'t>, Diagnostic> {
    let name = &info.name;
    let refuse = |code, why: String| Err(Diagnostic::new(code, format!("the input `{name}` {why}")));
    let (number, extents) = match declared(info) {
        Some((0, _)) => return refuse("E0309", "has no element type".into()),
        Some(declared) => declared,
        None if info.r#type.is_some() => return refuse("E0311", "is no tensor, which is not supported".into()),
        None => return refuse("E0309", "has no type".into()),
    };
    let dtype = dtype(number).map_err(|e| e.note(format!("input `{name}`")))?;
    let value = given.inputs.get(name);
    // an empty shape is also how exporters write an unknown one
    let unknown = value.is_some_and(|v| !v.shape().is_empty()) && extents.as_ref().is_some_and(Vec::is_empty);
    let extents = if unknown { None } else { extents };
    let Some(extents) = extents.or_else(|| Some(value?.shape().iter().map(|n| Extent::Value(*n as i64)).collect()))
    else {
        return refuse("E0309", "has no shape".into());
    };
    if extents.iter().any(|e| matches!(e, Extent::Value(value) if *value > LARGEST)) {
        return refuse("E0309", "is too large".into());
    }
    if let Some(value) = value {
        let fits = |(extent, have): (&Extent, &usize)| match extent {
            Extent::Value(want) => *want == *have as i64,
            _ => true,
        };
        if value.dtype() != dtype
            || value.shape().len() != extents.len()
            || !extents.iter().zip(value.shape()).all(fits)
        {
            return refuse(
                "E0309",
                format!("was given {}{:?}, which is not its declared type", value.dtype(), value.shape()),
            );
        }
        if given.fixed.contains(name) {
            return Ok(Source::Const(value.clone()));
        }
    }
    let mut extent = |(axis, extent): (usize, &Extent)| match (extent, value) {
        (Extent::Value(value), _) => Dim::from(*value),
        (_, Some(value)) if given.extents => Dim::from(value.shape()[axis]),
        (Extent::Name(name), _) => Dim::symbol(&symbols.clean(name)),
        (Extent::Unknown(axis), _) => Dim::symbol(&symbols.clean(&format!("{name}_{axis}"))),
    };
    let shape: Shape = extents.iter().enumerate().map(&mut extent).collect();
    Ok(Source::Var(t.input(name, TensorType { dtype, shape })))
}

/// Imports nodes in order.
pub(crate) fn nodes<'t>(at: Region<'_, 't>, nodes: &[NodeProto], scope: &mut Scope<'t>) -> Result<(), Diagnostic> {
    for node in nodes {
        at.model.count(node)?;
        at.t.set_origins(Some(SmallVec::from_iter([Arc::new(origin(node))])));
        let called = at.model.function(node).map(Cow::Borrowed).or_else(|| contrib::function(node).map(Cow::Owned));
        let results = match (called, ops::find(&node.op_type)) {
            (Some(function), _) => call(at, &function, node, scope)?,
            (None, Some(import)) if is_standard(&node.domain) => one(&mut Cx::new(at, node, scope), import)?,
            _ => return Err(Diagnostic::new("E0303", node.op_type.clone()).at(origin(node))),
        };
        if let Some(error) = at.t.error().or_else(|| at.root.error()) {
            return Err(error);
        }
        for (name, source) in node.output.iter().zip(results).filter(|(name, _)| !name.is_empty()) {
            scope.values.insert(name.clone(), source);
        }
    }
    at.t.set_origins(None);
    Ok(())
}

/// One level deeper, if that is not too deep.
fn deeper<'a, 't>(at: Region<'a, 't>, node: &NodeProto) -> Result<Region<'a, 't>, Diagnostic> {
    if at.depth >= DEPTH {
        let message = format!("functions and bodies are nested more than {DEPTH} deep");
        return Err(Diagnostic::new("E0312", message).at(origin(node)));
    }
    Ok(Region { depth: at.depth + 1, ..at })
}

/// The body of a function in place of a node.
fn call<'t>(
    at: Region<'_, 't>,
    function: &FunctionProto,
    node: &NodeProto,
    scope: &Scope<'t>,
) -> Result<Vec<Source<'t>>, Diagnostic> {
    at.model.count_bytes(node, function.encoded_len())?;
    let at = Region { opset: opset(&function.opset_import), ..deeper(at, node)? };
    let mut inner = Scope::default();
    for (formal, actual) in function.input.iter().zip(&node.input).filter(|(_, actual)| !actual.is_empty()) {
        let source = scope.values.get(actual);
        let source = source.ok_or_else(|| Diagnostic::new("E0307", format!("nothing makes `{actual}`")))?;
        inner.values.insert(formal.clone(), source.clone());
    }
    let absent: HashSet<&str> = function
        .input
        .iter()
        .enumerate()
        .filter(|(i, _)| node.input.get(*i).is_none_or(String::is_empty))
        .map(|(_, name)| name.as_str())
        .collect();
    let mut body = function.node.clone();
    body.iter_mut().for_each(|inner| instantiate(inner, &absent, node, function));
    nodes(at, &body, &mut inner)?;
    let find = |name: &String| inner.values.get(name).cloned();
    let missing = |name: &String| Diagnostic::new("E0307", format!("nothing makes `{name}`")).at(origin(node));
    function.output.iter().take(node.output.len()).map(|name| find(name).ok_or_else(|| missing(name))).collect()
}

/// Puts the caller's attributes in the places of a body's node, and of the nodes that it holds, and leaves out operands
/// that the caller left out.
fn instantiate(node: &mut NodeProto, absent: &HashSet<&str>, caller: &NodeProto, function: &FunctionProto) {
    node.input.iter_mut().filter(|name| absent.contains(name.as_str())).for_each(String::clear);
    node.attribute.retain_mut(|attribute| {
        if let Some(graph) = &mut attribute.g {
            graph.node.iter_mut().for_each(|inner| instantiate(inner, absent, caller, function));
        }
        if attribute.ref_attr_name.is_empty() {
            return true;
        }
        let given = caller.attribute.iter().chain(&function.attribute_proto);
        let Some(given) = given.into_iter().find(|a| a.name == attribute.ref_attr_name) else { return false };
        *attribute = AttributeProto { name: attribute.name.clone(), ..given.clone() };
        true
    });
}

/// The results of a graph that a node holds, on these operands. Names of the graph around it may be read.
pub(crate) fn body<'t>(
    at: Region<'_, 't>,
    node: &NodeProto,
    graph: &GraphProto,
    operands: &[Source<'t>],
    outer: &Scope<'t>,
) -> Result<Vec<Source<'t>>, Diagnostic> {
    let at = deeper(at, node)?;
    if graph.input.len() != operands.len() {
        let message =
            format!("{}: the body takes {} operands, not {}", node.op_type, graph.input.len(), operands.len());
        return Err(Diagnostic::new("E0305", message).at(origin(node)));
    }
    let mut scope = Scope::default();
    for name in free_names(graph) {
        if let Some(source) = outer.values.get(name) {
            scope.values.insert(name.to_string(), source.clone());
        }
    }
    initializers(at, graph, &mut scope)?;
    for (info, source) in graph.input.iter().zip(operands) {
        scope.values.insert(info.name.clone(), source.clone());
    }
    nodes(at, &graph.node, &mut scope)?;
    let missing = |name: &str| Diagnostic::new("E0307", format!("nothing makes the output `{name}`")).at(origin(node));
    let find = |info: &ValueInfoProto| scope.values.get(&info.name).cloned().ok_or_else(|| missing(&info.name));
    graph.output.iter().map(find).collect()
}

/// Every name that a graph, or a graph in it, reads.
fn free_names(graph: &GraphProto) -> HashSet<&str> {
    let mut names: HashSet<&str> = HashSet::new();
    let mut open = vec![graph];
    while let Some(graph) = open.pop() {
        names.extend(graph.output.iter().map(|info| info.name.as_str()));
        for node in &graph.node {
            names.extend(node.input.iter().map(String::as_str));
            open.extend(node.attribute.iter().filter_map(|a| a.g.as_ref()));
        }
    }
    names
}

/// The results of one node: sizes or constants where they are known now, nodes otherwise.
fn one<'t>(cx: &mut Cx<'_, 't>, import: Import) -> Result<Vec<Source<'t>>, Diagnostic> {
    if let Some(source) = dims::fold(cx) {
        return Ok(vec![source]);
    }
    match import {
        Import::Values(import) => import(cx),
        Import::Nodes(import) => match folded(cx, import) {
            Some(constants) => Ok(constants),
            None => Ok(import(cx)?.into_iter().map(Source::Var).collect()),
        },
    }
}

/// The results of a node whose operands are small constants, by running it in a graph of its own.
fn folded<'t>(cx: &mut Cx<'_, 't>, import: ops::Nodes) -> Option<Vec<Source<'t>>> {
    let mut scope = Scope::default();
    for (i, name) in cx.node.input.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        match cx.source(i).ok()? {
            Source::Const(tensor) if tensor.bytes().len() <= SMALL => {
                scope.values.insert(name.clone(), Source::Const(tensor.clone()));
            }
            _ => return None,
        }
    }
    if scope.values.is_empty() {
        return None;
    }
    let (graph, count) = extend(Graph::new(), |t| {
        let at = Region { root: t, t, ..cx.region };
        let mut cx = Cx::new(at, cx.node, &mut scope);
        let results = import(&mut cx).unwrap_or_default();
        results.iter().enumerate().for_each(|(i, var)| t.output(&i.to_string(), *var));
        results.len()
    })
    .ok()?;
    let bytes = |id| graph.ty(id).parts().iter().try_fold(0i64, |n, ty| n.checked_add(ty.bytes().as_const()?));
    let small = graph.outputs().iter().all(|(_, id)| bytes(*id).is_some_and(|n| n <= SMALL as i64));
    let bounded = small && graph.iter().all(|(id, _)| bytes(id).is_some_and(|n| n <= WORK));
    // a fill is a param wherever it is made, and random numbers are those of a run
    let leaf = |op: &Op| matches!(op, Op::Param(_) | Op::State(_));
    if count == 0 || !bounded || graph.iter().any(|(_, node)| leaf(&node.op)) {
        return None;
    }
    let outcome = interpret(&graph, &Tensors::new(), &Tensors::new()).ok()?;
    Some(outcome.outputs.into_iter().map(|(_, tensor)| Source::Const(tensor)).collect())
}

/// A tensor in the graph: a constant when small, else a param.
pub(crate) fn tensor_source<'t>(model: &Model, name: &str, tensor: Tensor) -> Source<'t> {
    match tensor.bytes().len() <= SMALL || tensor.dtype() == DType::Bool {
        true => Source::Const(tensor),
        false => Source::Param(model.param_name(name), tensor),
    }
}

/// A [`Var`] list of one.
pub(crate) fn single<'t>(var: Var<'t>) -> Result<Vec<Var<'t>>, Diagnostic> {
    Ok(vec![var])
}
