//! `egret verify`: a compiled model against the reference interpreter or the CPU, and where they part.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use egret::ir::ops::Input;
use egret::ir::{NodeId, Op, text};
use egret::{CompileOptions, Device, Diagnostic, Graph, Tensor, Tensors, interpret};
use serde_json::json;

use crate::args::{Against, VerifyArgs};
use crate::failure::Failure;
use crate::model;
use crate::tensors::{self, Difference};
use crate::tuning;

/// Values by name.
type Named = Vec<(String, Tensor)>;

/// How results are made and compared.
struct Check {
    device: Device,
    against: Against,
    options: CompileOptions,
    rtol: f64,
    atol: f64,
}

impl Check {
    fn compiled(&self, graph: &Graph, inputs: &[(String, Tensor)]) -> Result<Named, Failure> {
        self.compiled_for(graph, &self.device, &self.options, inputs)
    }

    /// What results are compared with.
    fn reference(&self, graph: &Graph, inputs: &[(String, Tensor)]) -> Result<Named, Failure> {
        match self.against {
            Against::Cpu => self.compiled_for(graph, &Device::cpu(), &CompileOptions::default(), inputs),
            Against::Interpreter | Against::None => {
                let given: Tensors = inputs.iter().cloned().collect();
                Ok(interpret(graph, &given, &Tensors::new()).map_err(Diagnostic::from)?.outputs)
            }
        }
    }

    fn compiled_for(
        &self,
        graph: &Graph,
        device: &Device,
        options: &CompileOptions,
        inputs: &[(String, Tensor)],
    ) -> Result<Named, Failure> {
        let exe = egret::compile_with(graph, &tuning::for_inputs(device, graph, inputs)?, options)?;
        let mut session = exe.session()?;
        let outputs = session.run(&model::borrowed(inputs))?;
        Ok(outputs.iter().map(|output| (output.name().to_string(), output.to_tensor())).collect())
    }

    /// The difference of each output.
    fn differences(&self, graph: &Graph, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Difference)>, Failure> {
        let (have, want) = (self.compiled(graph, inputs)?, self.reference(graph, inputs)?);
        let pairs = have.into_iter().zip(want);
        Ok(pairs
            .map(|((name, have), (_, want))| (name, tensors::compare(&have, &want, self.rtol, self.atol)))
            .collect())
    }

    /// Whether the value of one node differs when it is the only output.
    fn differs(&self, graph: &Graph, id: NodeId, inputs: &[(String, Tensor)]) -> Result<bool, Failure> {
        let part = copied(graph, &ancestors(graph, id), &BTreeMap::new(), &[id])?;
        let inputs = read_by(&part, inputs);
        Ok(self.differences(&part, &inputs)?.iter().any(|(_, difference)| !difference.is_none()))
    }
}

/// Those inputs that a graph has.
fn read_by(graph: &Graph, inputs: &[(String, Tensor)]) -> Named {
    let names: BTreeSet<String> = model::inputs(graph).into_iter().map(|(name, _)| name).collect();
    inputs.iter().filter(|(name, _)| names.contains(name)).cloned().collect()
}

/// Inputs that a part of a graph keeps whether it reads them or not: their extents bind symbols.
fn binders(graph: &Graph) -> impl Iterator<Item = NodeId> + '_ {
    let open = |id: &NodeId| graph.tensor_type(*id).shape.iter().any(|dim| dim.as_const().is_none());
    graph.inputs().iter().copied().filter(open)
}

/// A node and all that it depends on.
fn ancestors(graph: &Graph, root: NodeId) -> BTreeSet<NodeId> {
    let (mut found, mut open): (BTreeSet<NodeId>, _) = (binders(graph).collect(), vec![root]);
    while let Some(id) = open.pop() {
        if found.insert(id) {
            open.extend(graph.node(id).operands.iter().copied());
        }
    }
    found
}

/// The nodes `kept` as a graph of their own; those in `cut` become inputs.
fn copied(
    graph: &Graph,
    kept: &BTreeSet<NodeId>,
    cut: &BTreeMap<NodeId, String>,
    outputs: &[NodeId],
) -> Result<Graph, Failure> {
    let mut part = Graph::new();
    part.weights = graph.weights.clone();
    let mut places: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for id in kept {
        let node = graph.node(*id);
        let place = match cut.get(id) {
            Some(name) => part.add(Input { name: name.clone(), ty: graph.tensor_type(*id).clone() }, &[])?,
            None => {
                let operands: Vec<NodeId> = node.operands.iter().filter_map(|o| places.get(o).copied()).collect();
                part.add_from(node.op.clone(), &operands, graph.origins(*id).clone())?
            }
        };
        places.insert(*id, place);
    }
    for id in outputs {
        if let Some(place) = places.get(id) {
            part.add_output(format!("v{}", id.index()), *place);
        }
    }
    Ok(part)
}

/// Verifies a model.
pub fn verify(args: &VerifyArgs, as_json: bool) -> Result<(), Failure> {
    let model::Given { graph, inputs, .. } = model::given(&args.compile.model, &args.inputs)?;
    egret::ir::verify(&graph)?;
    let target = &args.compile.target;
    let (device, options) = (target.device(), target.options());
    let check = Check { device, against: args.against, options, rtol: args.rtol, atol: args.atol };
    if args.against == Against::None {
        check.compiled(&graph, &inputs)?;
        match as_json {
            true => println!("{:#}", json!({ "ok": true, "against": "none" })),
            false => println!("it compiles and runs; nothing was compared"),
        }
        return Ok(());
    }
    let differences = check.differences(&graph, &inputs)?;
    let wrong = differences.iter().position(|(_, difference)| !difference.is_none());
    if !as_json {
        for (name, difference) in &differences {
            println!("{name}: {}", crate::run::errors(difference));
        }
    }
    let found = match wrong {
        Some(output) => Some(Found::search(&check, &graph, &inputs, output, &args.output)?),
        None => None,
    };
    if as_json {
        let outputs: Vec<_> = differences
            .iter()
            .map(|(name, d)| {
                json!({ "name": name, "ok": d.is_none(), "max_absolute_error": d.absolute,
                "max_relative_error": d.relative, "cosine_similarity": d.cosine, "wrong": d.wrong, "mismatch": d.types })
            })
            .collect();
        let against = if args.against == Against::Cpu { "cpu" } else { "interpreter" };
        let first =
            found.as_ref().map(|f| json!({ "node": f.node, "origin": f.origin, "graph": f.path, "nodes": f.nodes }));
        println!("{:#}", json!({ "ok": wrong.is_none(), "against": against, "outputs": outputs, "first": first }));
    } else if let Some(found) = &found {
        println!("the first value that differs is {} ({})", found.node, found.origin);
        println!(
            "{} nodes show it: egret verify {} --inputs {}",
            found.nodes,
            found.path.display(),
            found.folder.display()
        );
    }
    if wrong.is_none() { Ok(()) } else { Err(Failure::Mismatch) }
}

/// The first value that differs, and the smallest graph around it that shows it.
struct Found {
    node: String,
    origin: String,
    nodes: usize,
    path: PathBuf,
    folder: PathBuf,
}

impl Found {
    fn search(
        check: &Check,
        graph: &Graph,
        inputs: &[(String, Tensor)],
        output: usize,
        to: &Path,
    ) -> Result<Found, Failure> {
        let expanded = egret::ir::autodiff::expand(graph)?;
        let graph = &expanded;
        let root = graph.outputs()[output].1;
        let all = ancestors(graph, root);
        let values: Vec<NodeId> = all
            .iter()
            .copied()
            .filter(|id| !graph.node(*id).operands.is_empty() && graph.ty(*id).tensor().is_some())
            .collect();
        if values.is_empty() || !check.differs(graph, root, inputs)? {
            return Found::write(graph, root, graph, inputs, to);
        }
        // the last of `values` is the root: `differs` holds at `high`, and not at any place looked at below `low`
        let (mut low, mut high) = (0, values.len() - 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if check.differs(graph, values[middle], inputs)? { high = middle } else { low = middle + 1 }
        }
        let first = values[high];
        let whole = ancestors(graph, first);
        let mut size = 0;
        for depth in 1.. {
            let (kept, cut) = around(graph, first, depth);
            if kept.len() == size {
                break;
            }
            size = kept.len();
            let ids: Vec<NodeId> = cut.keys().copied().collect();
            let above = copied(graph, &whole, &BTreeMap::new(), &ids)?;
            let given: Named = check
                .reference(&above, &read_by(&above, inputs))?
                .into_iter()
                .zip(cut.values())
                .map(|((_, tensor), name)| (name.clone(), tensor))
                .collect();
            let part = copied(graph, &kept, &cut, &[first])?;
            let given = in_order(&part, &[given, inputs.to_vec()].concat());
            // a part that cannot be compiled alone shows nothing
            let shows = check.differences(&part, &given).unwrap_or_default();
            if shows.iter().any(|(_, difference)| !difference.is_none()) {
                return Found::write(graph, first, &part, &given, to);
            }
        }
        let part = copied(graph, &whole, &BTreeMap::new(), &[first])?;
        Found::write(graph, first, &part, &in_order(&part, inputs), to)
    }

    fn write(
        graph: &Graph,
        id: NodeId,
        part: &Graph,
        inputs: &[(String, Tensor)],
        to: &Path,
    ) -> Result<Found, Failure> {
        let (path, folder) = (to.with_extension("txt"), to.with_extension("inputs"));
        text::save(&path, part)?;
        tensors::write(&folder, "input", inputs)?;
        let origin: Vec<String> = graph.origins(id).iter().map(ToString::to_string).collect();
        Ok(Found {
            node: format!("%{} {}", id.index(), graph.node(id).op.home().name()),
            origin: origin.join(", "),
            nodes: part.nodes().len(),
            path,
            folder,
        })
    }
}

/// Inputs in the order of the graph.
fn in_order(graph: &Graph, given: &[(String, Tensor)]) -> Named {
    let find = |(name, _)| given.iter().find(|(have, _)| *have == name).cloned();
    model::inputs(graph).into_iter().filter_map(find).collect()
}

/// Nodes at most `depth` steps above a node, and those beyond that become inputs. Leaves stay what they are.
fn around(graph: &Graph, root: NodeId, depth: usize) -> (BTreeSet<NodeId>, BTreeMap<NodeId, String>) {
    let (mut kept, mut cut): (BTreeSet<NodeId>, _) = (binders(graph).collect(), BTreeMap::new());
    let mut level = vec![root];
    for step in 0..=depth {
        let mut next = Vec::new();
        while let Some(id) = level.pop() {
            let node = graph.node(id);
            if !kept.insert(id) || node.operands.is_empty() {
                continue;
            }
            if step == depth && !matches!(node.op, Op::Proj(_)) && graph.ty(id).tensor().is_some() {
                cut.insert(id, format!("v{}", id.index()));
                continue;
            }
            // a tuple and its parts stay together
            let part = matches!(node.op, Op::Proj(_)) || graph.ty(id).tensor().is_none() && step == depth;
            let to = if part { &mut level } else { &mut next };
            to.extend(node.operands.iter().copied());
        }
        level = next;
    }
    (kept, cut)
}
