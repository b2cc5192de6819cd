//! Reverse-mode differentiation, graph to graph.
//!
//! [`expand`] replaces each `grad` node by nodes that compute the gradients. Inner ones come first, because a node's
//! operands come before it. Each operator's home knows its vector-Jacobian product ([`Operator::vjp`]).

mod cotangents;

use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use cotangents::Cotangents;

use crate::diagnostic::{Diagnostic, Origin};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::graph::{Assumption, Graph, NodeId};
use crate::ops::{Broadcast, Op, Proj, ReduceKind, has_custom, inline};
use crate::scalar::Literal;
use crate::tracer::{Tracer, Var, extend};
use crate::types::{Shape, TensorType, Type};

#[allow(unused_imports, reason = "named in documentation")]
use crate::ops::Operator;

/// What the gradient of a value is that the loss does not depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unreached {
    /// Zeros.
    #[default]
    Zeros,
    /// An error, because a param that nothing trains is most often a mistake.
    Error,
}

/// Gradients by operand; `None` where there is none.
pub type Gradients<'t> = Result<Vec<Option<Var<'t>>>, Diagnostic>;

/// What an operator's vector-Jacobian product reads.
pub struct VjpCx<'a, 't> {
    /// Adds nodes.
    pub t: &'a Tracer<'t>,
    /// The operands.
    pub operands: &'a [Var<'t>],
    /// The result; of a tuple, its parts.
    pub results: &'a [Var<'t>],
    /// The gradient of the loss by each part of the result; `None` where the loss does not depend on it.
    pub upstream: &'a [Option<Var<'t>>],
    /// By operand, whether its gradient is needed.
    pub wanted: &'a [bool],
}

impl<'t> VjpCx<'_, 't> {
    /// The gradient by the only result.
    pub fn dy(&self) -> Var<'t> {
        self.upstream.first().copied().flatten().unwrap_or_else(|| self.zeros(self.results[0].ty()))
    }

    /// Zeros of a type.
    pub fn zeros(&self, ty: TensorType) -> Var<'t> {
        self.t.scalar(Literal::int(0, ty.dtype)).broadcast(ty.shape)
    }

    /// The gradient of a value that was broadcast to the shape of `gradient`: summed back.
    pub fn sum_to(&self, gradient: Var<'t>, shape: &Shape) -> Var<'t> {
        let wide = gradient.shape();
        let lead = wide.rank().saturating_sub(shape.rank());
        let added: Vec<isize> = (0..lead as isize).collect();
        let repeated: Vec<isize> =
            (0..shape.rank()).filter(|i| shape[*i].is(1) && !wide[lead + i].is(1)).map(|i| i as isize).collect();
        let mut sum = gradient;
        if !added.is_empty() {
            sum = sum.reduce_sum(&added, false);
        }
        if !repeated.is_empty() {
            sum = sum.reduce_sum(&repeated, true);
        }
        sum
    }

    /// A size as a scalar of an element type.
    pub fn size(&self, dim: &Dim, dtype: DType) -> Var<'t> {
        match dim.as_const() {
            Some(value) => self.t.scalar(Literal::new(crate::ScalarValue::Int(value.into()), dtype)),
            None => {
                let ones = Broadcast { shape: Shape::from([dim.clone()]) };
                self.t.scalar(Literal::int(1, dtype)).then(ones, &[]).reduce(ReduceKind::Sum, &[0], false)
            }
        }
    }

    /// The gradients of an operator by those of a plain expression of its meaning.
    ///
    /// # Errors
    /// When an operator of the expression has no gradient.
    pub fn through(&self, build: impl FnOnce(&[Var<'t>]) -> Vec<Var<'t>>) -> Gradients<'t> {
        let first = self.t.graph(|graph| graph.nodes().len());
        let results = build(self.operands);
        let seeds: Vec<(Var, Var)> =
            results.iter().zip(self.upstream).filter_map(|(y, dy)| dy.map(|dy| (*y, dy))).collect();
        backward(self.t, &seeds, self.operands, first)
    }

    /// The error of an operator that cannot be differentiated, with the reason.
    pub fn refuse(&self, why: impl Into<String>) -> Diagnostic {
        Diagnostic::new("E0402", why)
    }
}

/// The graph with each `grad` node replaced by what computes it; gradients of values that a loss does not reach are
/// zeros.
///
/// # Errors
/// `E0401` an operator without gradient, `E0402` one that has none in this case, `E0404` a gradient by integers.
pub fn expand(graph: &Graph) -> Result<Graph, Diagnostic> {
    expand_with(graph, Unreached::Zeros)
}

/// [`expand`], with a choice for values that a loss does not reach.
///
/// # Errors
/// Those of [`expand`], and `E0403` an unreached value where that is an error.
pub fn expand_with(graph: &Graph, unreached: Unreached) -> Result<Graph, Diagnostic> {
    expand_mapped(graph, unreached).map(|(expanded, _)| expanded)
}

/// [`expand`], and by node of the given graph the node that has its value; of a `grad` node, the loss.
///
/// # Errors
/// Those of [`expand`].
pub fn expand_traced(graph: &Graph) -> Result<(Graph, Vec<Option<NodeId>>), Diagnostic> {
    expand_mapped(graph, Unreached::Zeros)
}

fn expand_mapped(graph: &Graph, unreached: Unreached) -> Result<(Graph, Vec<Option<NodeId>>), Diagnostic> {
    let (expanded, mut map) = differentiate(graph, unreached)?;
    if !has_custom(&expanded) {
        return Ok((expanded, map));
    }
    let (whole, further) = inline(&expanded)?;
    map.iter_mut().for_each(|id| *id = id.and_then(|id| further[id.index()]));
    Ok((whole, map))
}

/// [`expand_mapped`], functions with their own gradients left: a graph around this one may still ask for them.
fn differentiate(graph: &Graph, unreached: Unreached) -> Result<(Graph, Vec<Option<NodeId>>), Diagnostic> {
    let mut failed = None;
    let mut map = Vec::new();
    let built = extend(Graph::new(), |t| {
        t.reserve_sizes(graph.next_size());
        t.share_scalars();
        match rebuild(t, graph, unreached) {
            Ok(values) => map = values.iter().map(|value| value.id()).collect(),
            Err(error) => failed = Some(error),
        }
    });
    let (mut expanded, ()) = built?;
    if let Some(error) = failed {
        return Err(error);
    }
    expanded.weights = graph.weights.clone();
    expanded.take_roots_of(graph, |id| map[id.index()]);
    for assumption in graph.assumptions() {
        if let Some(node) = map[assumption.node.index()] {
            expanded.assume(Assumption { node, equality: assumption.equality.clone() });
        }
    }
    Ok((expanded, map))
}

/// Whether [`expand`] has anything to replace: a `grad` node, or a function with its own gradient, in regions too.
pub fn has_grad(graph: &Graph) -> bool {
    differentiates(graph) || has_custom(graph)
}

/// Whether a `grad` node is left, in regions too.
fn differentiates(graph: &Graph) -> bool {
    graph.nodes().iter().any(|node| {
        matches!(node.op, Op::Grad(_)) || node.op.home().regions().into_iter().any(|region| differentiates(region))
    })
}

fn rebuild<'t>(t: &Tracer<'t>, graph: &Graph, unreached: Unreached) -> Result<Vec<Var<'t>>, Diagnostic> {
    let last_grad = graph.iter().rev().find(|(_, node)| matches!(node.op, Op::Grad(_))).map(|(id, _)| id);
    let mut values: Vec<Var<'t>> = Vec::with_capacity(graph.nodes().len());
    let mut gradients: FxHashMap<NodeId, Vec<Var<'t>>> = FxHashMap::default();
    for (id, node) in graph.iter() {
        let operands: SmallVec<[Var<'t>; 4]> = node.operands.iter().map(|o| values[o.index()]).collect();
        let value = match &node.op {
            Op::Grad(_) => {
                t.set_origins(Some(graph.origins(id).clone()));
                let found = grad(t, &operands, unreached).map_err(|e| at(e, graph.origins(id)))?;
                gradients.insert(id, found);
                operands[0]
            }
            Op::Proj(proj) if gradients.contains_key(&node.operands[0]) => gradients[&node.operands[0]][proj.index],
            op if op.home().regions().is_empty() => t.add_again(node, &operands, graph.origins(id)),
            op => {
                t.set_origins(Some(graph.origins(id).clone()));
                let mut op = op.clone();
                for region in op.regions_mut() {
                    if differentiates(region) {
                        *region = Arc::new(differentiate(region, unreached)?.0);
                    }
                }
                // a gradient reads what each step began with
                if last_grad.is_some_and(|last| id < last) {
                    op = match op {
                        Op::Scan(scan) => Arc::unwrap_or_clone(scan).with_record().into(),
                        Op::While(looped) if looped.bound.is_some() => {
                            Arc::unwrap_or_clone(looped).with_history().into()
                        }
                        other => other,
                    };
                }
                t.add(op, &operands)
            }
        };
        values.push(value);
    }
    t.set_origins(None);
    Ok(values)
}

fn at(mut error: Diagnostic, origins: &[Arc<Origin>]) -> Diagnostic {
    if error.origin.is_empty() {
        error.origin = origins.iter().map(|o| (**o).clone()).collect();
    }
    error
}

fn grad<'t>(t: &Tracer<'t>, operands: &[Var<'t>], unreached: Unreached) -> Result<Vec<Var<'t>>, Diagnostic> {
    let (loss, wrt) = (operands[0], &operands[1..]);
    if let Some(value) = wrt.iter().find(|value| !value.dtype().is_float()) {
        return Err(Diagnostic::new("E0404", format!("there is no gradient by {}", value.ty())));
    }
    let one = t.scalar(Literal::float(1.0, loss.dtype()));
    let found = backward(t, &[(loss, one)], wrt, 0)?;
    let mut gradients = Vec::with_capacity(wrt.len());
    for (value, gradient) in wrt.iter().zip(found) {
        gradients.push(match gradient {
            Some(gradient) => gradient.reshape(value.shape()),
            None if unreached == Unreached::Zeros => {
                t.scalar(Literal::float(0.0, value.dtype())).broadcast(value.shape())
            }
            None => {
                let name = t.graph(|graph| value.id().map(|id| describe(graph, id))).unwrap_or_default();
                let message = format!("the loss does not depend on {name}");
                return Err(Diagnostic::new("E0403", message).help("leave it out of the gradient, or ask for zeros"));
            }
        });
    }
    Ok(gradients)
}

fn describe(graph: &Graph, id: NodeId) -> String {
    match &graph.node(id).op {
        Op::Input(leaf) => format!("input `{}`", leaf.name),
        Op::Param(leaf) => format!("param `{}`", leaf.name),
        Op::State(leaf) => format!("state `{}`", leaf.name),
        op => format!("%{} = {}", id.index(), op.home().name()),
    }
}

/// The gradients of `Σ ⟨seed, value⟩` by `wrt`, through nodes from `first` on. Values of `wrt` that depend on each
/// other get their whole gradient.
pub(crate) fn backward<'t>(
    t: &Tracer<'t>,
    seeds: &[(Var<'t>, Var<'t>)],
    wrt: &[Var<'t>],
    first: usize,
) -> Gradients<'t> {
    let Some(end) = seeds.iter().filter_map(|(y, _)| y.id()).map(|id| id.index() + 1).max() else {
        return Ok(vec![None; wrt.len()]);
    };
    let active = t.graph(|graph| reached(graph, wrt, first, end));
    let mut cotangents = Cotangents::default();
    for (y, dy) in seeds {
        if let Some(id) = y.id() {
            cotangents.add(id, 0, *dy);
        }
    }
    for index in (first..end).rev().filter(|index| active[*index]) {
        let id = NodeId::new(index);
        if !cotangents.reaches(id) {
            continue;
        }
        let (node, origins) = t.graph(|graph| (graph.node(id).clone(), graph.origins(id).clone()));
        if node.operands.is_empty() {
            continue;
        }
        let derived = origins.iter().map(|o| match &**o {
            Origin::Gradient(_) => o.clone(),
            _ => Arc::new(Origin::Gradient(o.clone())),
        });
        t.set_origins(Some(derived.collect()));
        let mut upstream = cotangents.totals(t, id);
        if let Op::Proj(proj) = &node.op {
            if let Some(dy) = upstream[0] {
                cotangents.add(node.operands[0], proj.index, dy);
            }
            continue;
        }
        let operands: Vec<Var> = node.operands.iter().map(|o| t.var(*o)).collect();
        let wanted: Vec<bool> = node.operands.iter().map(|o| active.get(o.index()).copied() == Some(true)).collect();
        let parts = node.ty.parts().len();
        let results: Vec<Var> = match &node.ty {
            Type::Tensor(_) => vec![t.var(id)],
            Type::Tuple(_) => (0..parts).map(|index| t.add(Proj { index }, &[t.var(id)])).collect(),
        };
        upstream.resize(parts, None);
        let cx = VjpCx { t, operands: &operands, results: &results, upstream: &upstream, wanted: &wanted };
        let found = node.op.home().vjp(&cx).map_err(|e| at(e, &origins))?;
        for ((operand, gradient), wanted) in node.operands.iter().zip(found).zip(&wanted) {
            if let (Some(gradient), true) = (gradient, *wanted) {
                cotangents.add(*operand, 0, gradient);
            }
        }
    }
    let mut found = |value: &Var<'t>| cotangents.totals(t, value.id()?).first().copied().flatten();
    Ok(wrt.iter().map(&mut found).collect())
}

/// By node below `end`, whether a value of `wrt` reaches it and it can carry a gradient.
fn reached(graph: &Graph, wrt: &[Var], first: usize, end: usize) -> Vec<bool> {
    let mut active = vec![false; graph.nodes().len()];
    for id in wrt.iter().filter_map(|value| value.id()) {
        active[id.index()] = true;
    }
    for (id, node) in graph.iter().take(end).skip(first) {
        let carries =
            node.ty.parts().iter().any(|part| part.dtype.is_float()) && !matches!(node.op, Op::StopGradient(_));
        if carries && node.operands.iter().any(|o| active[o.index()]) {
            active[id.index()] = true;
        }
    }
    active
}

/// Adds the nodes of a region to another graph, its inputs replaced; gives the value of each.
pub(crate) fn replay<'t>(t: &Tracer<'t>, region: &Graph, inputs: &[Var<'t>]) -> Vec<Var<'t>> {
    let mut given = region.inputs().iter().zip(inputs);
    let mut values: Vec<Var<'t>> = Vec::with_capacity(region.nodes().len());
    for node in region.nodes() {
        let operands: Vec<Var<'t>> = node.operands.iter().map(|o| values[o.index()]).collect();
        values.push(match &node.op {
            Op::Input(_) => match given.next() {
                Some((_, var)) => *var,
                None => t.fail(Diagnostic::new("E0104", "a loop's body has more inputs than values")),
            },
            op => t.add(op.clone(), &operands),
        });
    }
    values
}

/// The outputs of a region among the values of its nodes.
pub(crate) fn outputs_of<'t>(region: &Graph, values: &[Var<'t>]) -> Vec<Var<'t>> {
    region.outputs().iter().map(|(_, id)| values[id.index()]).collect()
}
