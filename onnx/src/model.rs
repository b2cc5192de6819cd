//! A model while it is imported: its functions, its files, and what it turns out to need.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use egret_ir::{Diagnostic, Origin};

use crate::contrib;
use crate::cx::origin;
use crate::ops;
use crate::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::tensor::External;

/// No model has more nodes when its functions and loops are written out: functions that call functions twice double
/// with each level.
const NODES: usize = 1 << 20;

/// What kept a model from being imported without more knowledge of its inputs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Needs {
    /// Inputs whose values a shape or an attribute depends on.
    pub values: BTreeSet<String>,
    /// An operator has no form for extents that are left open.
    pub extents: bool,
    /// Inputs without whose values the graph is legal, but has loops that no device has memory set aside for.
    pub wishes: BTreeSet<String>,
}

/// What all parts of a model share.
pub(crate) struct Model<'m> {
    functions: HashMap<(&'m str, &'m str), &'m FunctionProto>,
    external: RefCell<External>,
    params: RefCell<HashSet<String>>,
    nodes: Cell<usize>,
    needs: RefCell<Needs>,
    streams: Cell<u64>,
}

/// The state that random numbers are counted by.
pub(crate) const COUNTER: &str = "random.counter";

/// Whether a domain is that of the standard operators.
pub(crate) fn is_standard(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// The version of the standard operators.
pub(crate) fn opset(imports: &[OperatorSetIdProto]) -> i64 {
    imports.iter().find(|o| is_standard(&o.domain)).map_or(1, |o| o.version)
}

impl<'m> Model<'m> {
    pub(crate) fn new(proto: &'m ModelProto, external: External) -> Model<'m> {
        Model {
            functions: proto.functions.iter().map(|f| ((f.domain.as_str(), f.name.as_str()), f)).collect(),
            external: RefCell::new(external),
            params: RefCell::new(HashSet::from([COUNTER.to_string()])),
            nodes: Cell::new(NODES),
            needs: RefCell::default(),
            streams: Cell::new(0),
        }
    }

    /// The function that a node calls.
    pub(crate) fn function(&self, node: &NodeProto) -> Option<&'m FunctionProto> {
        self.functions.get(&(node.domain.as_str(), node.op_type.as_str())).copied()
    }

    /// Runs `f` with the files of the model.
    pub(crate) fn with_files<R>(&self, f: impl FnOnce(&mut External) -> R) -> R {
        f(&mut self.external.borrow_mut())
    }

    /// A name that no param has: bodies that are written out more than once repeat names.
    pub(crate) fn param_name(&self, name: &str) -> String {
        let mut params = self.params.borrow_mut();
        let mut free = if name.is_empty() { "param".to_string() } else { name.to_string() };
        let stem = free.clone();
        let mut n = params.len();
        while !params.insert(free.clone()) {
            free = format!("{stem}.{n}");
            n += 1;
        }
        free
    }

    /// A stream of random numbers that no other node has.
    pub(crate) fn stream(&self) -> u64 {
        self.streams.replace(self.streams.get() + 1)
    }

    /// Whether any node has a stream.
    pub(crate) fn is_random(&self) -> bool {
        self.streams.get() > 0
    }

    /// Counts a node.
    pub(crate) fn count(&self, node: &NodeProto) -> Result<(), Diagnostic> {
        self.count_bytes(node, 0)
    }

    /// Counts a node whose body of so many bytes is copied.
    pub(crate) fn count_bytes(&self, node: &NodeProto, bytes: usize) -> Result<(), Diagnostic> {
        match self.nodes.get().checked_sub(1 + bytes / 4096) {
            Some(left) => {
                self.nodes.set(left);
                Ok(())
            }
            None => {
                let message = format!("the model has more than {NODES} nodes when functions and loops are written out");
                Err(Diagnostic::new("E0312", message).at(origin(node)))
            }
        }
    }

    /// Records what would have helped.
    pub(crate) fn need(&self, need: impl FnOnce(&mut Needs)) {
        need(&mut self.needs.borrow_mut());
    }

    /// What would have helped.
    pub(crate) fn needs(&self) -> Needs {
        self.needs.borrow().clone()
    }

    /// One error that lists every operator without an importer, in the graph, in what its nodes hold, and in what they
    /// call.
    pub(crate) fn unsupported(&self, proto: &ModelProto) -> Option<Diagnostic> {
        let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut called: HashSet<(&str, &str)> = HashSet::new();
        let mut open: Vec<&NodeProto> = proto.graph.iter().flat_map(|graph| &graph.node).rev().collect();
        while let Some(node) = open.pop() {
            let held = node.attribute.iter().filter_map(|a| a.g.as_ref());
            open.extend(held.flat_map(|graph: &GraphProto| graph.node.iter().rev()));
            if let Some(function) = self.function(node) {
                if called.insert((&function.domain, &function.name)) {
                    open.extend(function.node.iter().rev());
                }
                continue;
            }
            let standard = is_standard(&node.domain) && ops::find(&node.op_type).is_some();
            if standard || contrib::function(node).is_some() {
                continue;
            }
            let name = match node.domain.as_str() {
                "" => node.op_type.clone(),
                domain => format!("{domain}.{}", node.op_type),
            };
            let Origin::Onnx { node, .. } = origin(node) else { continue };
            missing.entry(name).or_default().push(node);
        }
        if missing.is_empty() {
            return None;
        }
        let names: Vec<&str> = missing.keys().map(String::as_str).collect();
        let mut error = Diagnostic::new("E0303", format!("operators that are not supported: {}", names.join(", ")));
        for (op, nodes) in &missing {
            let shown: Vec<&str> = nodes.iter().take(8).map(String::as_str).collect();
            let more = if nodes.len() > 8 { format!(" and {} more", nodes.len() - 8) } else { String::new() };
            error.notes.push(format!("{op}: {}{more}", shown.join(", ")));
        }
        Some(error)
    }
}
