//! From a model to a graph.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use egret_ir::interpret::interpret;
use egret_ir::tracer::extend;
use egret_ir::{DType, Diagnostic, Dim, Graph, Shape, Tensor, TensorType, Tensors, Tracer, Var};
use prost::Message;
use smallvec::SmallVec;

use crate::cx::{Cx, Scope, Source, origin};
use crate::dims;
use crate::ops::{self, Import};
use crate::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::tensor::{Extent, External, LARGEST, declared, dtype, from_proto, io};

/// Constants up to this size are written into the graph; larger ones are params.
pub(crate) const SMALL: usize = 4096;

/// Functions may call functions this deep.
const DEPTH: usize = 32;

/// Reads a model file. External data must be beside it or below.
///
/// # Errors
/// `E0308` an unreadable file, `E0301` a file that is no model, `E0302` bad external data, `E0303` unsupported
/// operators (all of them, with their nodes), `E0304` a shape that depends on data, `E0305` and `E0101` a node that is
/// not legal, `E0306` a bad tensor, `E0307` a value that nothing makes, `E0309` an input without a shape.
///
/// ```no_run
/// let graph = egret_onnx::load("model.onnx".as_ref())?;
/// # Ok::<(), egret_ir::Diagnostic>(())
/// ```
pub fn load(path: &Path) -> Result<Graph, Diagnostic> {
    let bytes = std::fs::read(path).map_err(|e| io(path, &e))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    import(&bytes, External::new(Some(folder)))
}

/// Reads a model without external data.
///
/// # Errors
/// As [`load`].
pub fn from_bytes(bytes: &[u8]) -> Result<Graph, Diagnostic> {
    import(bytes, External::new(None))
}

fn import(bytes: &[u8], mut external: External) -> Result<Graph, Diagnostic> {
    let model = ModelProto::decode(bytes).map_err(|e| Diagnostic::new("E0301", format!("not an ONNX model: {e}")))?;
    let Some(graph) = &model.graph else {
        return Err(Diagnostic::new("E0301", "not an ONNX model: it has no graph"));
    };
    let functions: Functions = model.functions.iter().map(|f| ((f.domain.as_str(), f.name.as_str()), f)).collect();
    refuse_unsupported(graph, &functions)?;
    let mut failed = None;
    let built = extend(Graph::new(), |t| {
        let mut importer = Importer { t, functions, external: &mut external };
        failed = importer.model(&model, graph).err();
    });
    // the tracer's own error came first if there is one
    let (graph, ()) = built?;
    failed.map_or(Ok(graph), Err)
}

type Functions<'a> = HashMap<(&'a str, &'a str), &'a FunctionProto>;

fn is_standard(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// One error that lists every operator without an importer.
fn refuse_unsupported(graph: &GraphProto, functions: &Functions) -> Result<(), Diagnostic> {
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let bodies = functions.values().flat_map(|f| &f.node);
    for node in graph.node.iter().chain(bodies) {
        let call = functions.contains_key(&(node.domain.as_str(), node.op_type.as_str()));
        if !call && (!is_standard(&node.domain) || ops::find(&node.op_type).is_none()) {
            let name = match node.domain.as_str() {
                "" => node.op_type.clone(),
                domain => format!("{domain}.{}", node.op_type),
            };
            let place = origin(node);
            let egret_ir::Origin::Onnx { node, .. } = place else { continue };
            missing.entry(name).or_default().push(node);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.keys().map(String::as_str).collect();
    let mut error = Diagnostic::new("E0303", format!("operators that are not supported: {}", names.join(", ")));
    for (op, nodes) in &missing {
        let shown: Vec<&str> = nodes.iter().take(8).map(String::as_str).collect();
        let more = if nodes.len() > 8 { format!(" and {} more", nodes.len() - 8) } else { String::new() };
        error.notes.push(format!("{op}: {}{more}", shown.join(", ")));
    }
    Err(error)
}

struct Importer<'a, 't> {
    t: &'a Tracer<'t>,
    functions: Functions<'a>,
    external: &'a mut External,
}

fn opset(imports: &[OperatorSetIdProto]) -> i64 {
    imports.iter().find(|o| is_standard(&o.domain)).map_or(1, |o| o.version)
}

/// Names of extents as the text form can write them; different names stay different.
#[derive(Default)]
struct Symbols {
    known: HashMap<String, String>,
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
        while self.known.values().any(|taken| *taken == clean) {
            clean.push('_');
        }
        self.known.insert(name.to_string(), clean.clone());
        clean
    }
}

impl<'t> Importer<'_, 't> {
    fn model(&mut self, model: &ModelProto, graph: &GraphProto) -> Result<(), Diagnostic> {
        let mut scope = Scope::default();
        for proto in &graph.initializer {
            let tensor = from_proto(proto, self.external)?;
            // integers are shapes, axes and indices; a scalar is a number in a formula
            let constant = !tensor.dtype().is_float() || tensor.shape().is_empty();
            let source = match constant && tensor.bytes().len() <= SMALL {
                true => Source::Const(tensor),
                false => Source::Param(proto.name.clone(), tensor),
            };
            scope.values.insert(proto.name.clone(), source);
        }
        let mut symbols = Symbols::default();
        for info in graph.input.iter().filter(|info| !graph.initializer.iter().any(|i| i.name == info.name)) {
            let name = &info.name;
            let Some((number, Some(extents))) = declared(info) else {
                return Err(Diagnostic::new("E0309", format!("the input `{name}` has no tensor type with a shape")));
            };
            if extents.iter().any(|e| matches!(e, Extent::Value(value) if *value > LARGEST)) {
                return Err(Diagnostic::new("E0309", format!("the input `{name}` is too large")));
            }
            let mut extent = |extent: &Extent| match extent {
                Extent::Value(value) => Dim::from(*value),
                Extent::Name(name) => Dim::symbol(&symbols.clean(name)),
                Extent::Unknown(axis) => Dim::symbol(&symbols.clean(&format!("{name}_{axis}"))),
            };
            let shape: Shape = extents.iter().map(&mut extent).collect();
            let dtype = dtype(number).map_err(|e| e.note(format!("input `{name}`")))?;
            let var = self.t.input(name, TensorType { dtype, shape });
            scope.values.insert(name.clone(), Source::Var(var));
        }
        self.nodes(&graph.node, opset(&model.opset_import), &mut scope, 0)?;
        for info in &graph.output {
            let Some(source) = scope.values.get(&info.name).cloned() else {
                return Err(Diagnostic::new("E0307", format!("nothing makes the output `{}`", info.name)));
            };
            let node = NodeProto { name: info.name.clone(), op_type: "output".into(), ..NodeProto::default() };
            let cx = Cx { t: self.t, node: &node, opset: 1, scope: &mut scope, external: self.external };
            let var = cx.node_of(source)?;
            self.t.output(&info.name, var);
        }
        Ok(())
    }

    fn nodes(
        &mut self,
        nodes: &[NodeProto],
        opset: i64,
        scope: &mut Scope<'t>,
        depth: usize,
    ) -> Result<(), Diagnostic> {
        for node in nodes {
            self.t.set_origins(Some(SmallVec::from_iter([Arc::new(origin(node))])));
            let call = self.functions.get(&(node.domain.as_str(), node.op_type.as_str())).copied();
            let results = match (call, ops::find(&node.op_type)) {
                (Some(function), _) => self.call(function, node, scope, depth)?,
                (None, Some(import)) => {
                    let mut cx = Cx { t: self.t, node, opset, scope, external: self.external };
                    one(&mut cx, import)?
                }
                (None, None) => return Err(Diagnostic::new("E0303", node.op_type.clone()).at(origin(node))),
            };
            if let Some(error) = self.t.error() {
                return Err(error);
            }
            for (name, source) in node.output.iter().zip(results).filter(|(name, _)| !name.is_empty()) {
                scope.values.insert(name.clone(), source);
            }
        }
        self.t.set_origins(None);
        Ok(())
    }

    /// The body of a function in place of a node.
    fn call(
        &mut self,
        function: &FunctionProto,
        node: &NodeProto,
        scope: &Scope<'t>,
        depth: usize,
    ) -> Result<Vec<Source<'t>>, Diagnostic> {
        let error = |message: String| Diagnostic::new("E0305", message).at(origin(node));
        if depth >= DEPTH {
            return Err(error(format!("functions are nested more than {DEPTH} deep")));
        }
        let mut inner = Scope::default();
        for (formal, actual) in function.input.iter().zip(&node.input).filter(|(_, actual)| !actual.is_empty()) {
            let source = scope.values.get(actual);
            let source = source.ok_or_else(|| Diagnostic::new("E0307", format!("nothing makes `{actual}`")))?;
            inner.values.insert(formal.clone(), source.clone());
        }
        let mut body = function.node.clone();
        for inner in &mut body {
            // an operand that the caller left out is absent in the body too
            let absent = |name: &String| {
                function
                    .input
                    .iter()
                    .position(|f| f == name)
                    .is_some_and(|i| node.input.get(i).is_none_or(String::is_empty))
            };
            inner.input.iter_mut().filter(|name| absent(name)).for_each(String::clear);
            inner.attribute.retain_mut(|attribute| {
                if attribute.ref_attr_name.is_empty() {
                    return true;
                }
                let given = node.attribute.iter().chain(&function.attribute_proto);
                let Some(given) = given.into_iter().find(|a| a.name == attribute.ref_attr_name) else { return false };
                *attribute = crate::proto::AttributeProto { name: attribute.name.clone(), ..given.clone() };
                true
            });
        }
        self.nodes(&body, opset(&function.opset_import), &mut inner, depth + 1)?;
        let find = |name: &String| inner.values.get(name).cloned();
        function.output.iter().map(|name| find(name).ok_or_else(|| error(format!("nothing makes `{name}`")))).collect()
    }
}

/// The results of one node: sizes or constants where they are known now, nodes otherwise.
fn one<'t>(cx: &mut Cx<'_, 't>, import: Import) -> Result<Vec<Source<'t>>, Diagnostic> {
    if let Some(source) = dims::fold(cx) {
        return Ok(vec![source]);
    }
    if cx.node.op_type == "Constant" {
        return Ok(vec![ops::constant(cx)?]);
    }
    if let Some(constants) = folded(cx, import) {
        return Ok(constants);
    }
    Ok(import(cx)?.into_iter().map(Source::Var).collect())
}

/// The results of a node whose operands are small constants, by running it in a graph of its own.
fn folded<'t>(cx: &mut Cx<'_, 't>, import: Import) -> Option<Vec<Source<'t>>> {
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
        let mut cx = Cx { t, node: cx.node, opset: cx.opset, scope: &mut scope, external: &mut *cx.external };
        let results = import(&mut cx).unwrap_or_default();
        results.iter().enumerate().for_each(|(i, var)| t.output(&i.to_string(), *var));
        results.len()
    })
    .ok()?;
    let small = |dim: Option<i64>| dim.is_some_and(|n| n <= SMALL as i64);
    let bounded = graph.outputs().iter().all(|(_, id)| small(graph.tensor_type(*id).bytes().as_const()));
    // a fill is a param wherever it is made
    if count == 0 || !bounded || graph.iter().any(|(_, node)| matches!(node.op, egret_ir::Op::Param(_))) {
        return None;
    }
    let outcome = interpret(&graph, &Tensors::new(), &Tensors::new()).ok()?;
    Some(outcome.outputs.into_iter().map(|(_, tensor)| Source::Const(tensor)).collect())
}

/// A tensor in the graph: a constant when small, else a param.
pub(crate) fn tensor_source<'t>(name: &str, tensor: Tensor) -> Source<'t> {
    match tensor.bytes().len() <= SMALL || tensor.dtype() == DType::Bool {
        true => Source::Const(tensor),
        false => Source::Param(name.to_string(), tensor),
    }
}

/// A [`Var`] list of one.
pub(crate) fn single<'t>(var: Var<'t>) -> Result<Vec<Var<'t>>, Diagnostic> {
    Ok(vec![var])
}
