//! A function with a gradient of its own.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::{InferCx, InferError, Op, Operator, arity, control, operand, scan};
use crate::autodiff::{Gradients, VjpCx, outputs_of, replay};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::eval::{EvalCx, EvalError};
use crate::graph::{Graph, NodeId};
use crate::interpret::evaluate;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::tracer::{Var, extend};
use crate::types::{TensorType, Type};

/// `(operands…) → (results…)` by `forward`, with the gradient that `backward` gives.
///
/// The inputs of `backward` are the operands, the results, and the gradients by the results; its outputs are the gradients
/// by those operands that are floats, in order. [`expand`](crate::autodiff::expand) puts `forward` in its place once
/// gradients are known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CustomVjp {
    /// What is computed.
    pub forward: Arc<Graph>,
    /// Its vector-Jacobian product.
    pub backward: Arc<Graph>,
}

impl CustomVjp {
    /// Whether `backward` fits operands and results.
    fn check_backward(
        &self,
        operands: &[&TensorType],
        results: &[&TensorType],
        cx: &mut InferCx,
    ) -> Result<(), InferError> {
        let given = operands.iter().chain(results).chain(results).map(|ty| Type::from((*ty).clone()));
        let given: Vec<Type> = given.collect();
        if self.backward.inputs().len() != given.len() {
            return Err(format!("the gradient takes {} values, not {}", given.len(), self.backward.inputs().len()));
        }
        control::check_inputs(&self.backward, &given, 0, cx)?;
        let gradients = control::output_types(&self.backward)?;
        let floats: Vec<&&TensorType> = operands.iter().filter(|ty| ty.dtype.is_float()).collect();
        if gradients.len() != floats.len() {
            return Err(format!("the gradient gives {} values for {} float operands", gradients.len(), floats.len()));
        }
        for (gradient, of) in gradients.iter().zip(floats) {
            if gradient.dtype != of.dtype || gradient.shape.rank() != of.shape.rank() {
                return Err(format!("the gradient by {of} is {gradient}"));
            }
            for (a, b) in gradient.shape.iter().zip(of.shape.iter()) {
                cx.require_equal(a, b, "extents of an operand and of its gradient")?;
            }
        }
        Ok(())
    }
}

impl Operator for CustomVjp {
    fn name(&self) -> &'static str {
        "custom_vjp"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, self.forward.inputs().len())?;
        control::check_inputs(&self.forward, operands, 0, cx)?;
        let results = control::output_types(&self.forward)?;
        let given: Vec<&TensorType> = (0..operands.len()).map(|i| operand(operands, i)).collect::<Result<_, _>>()?;
        self.check_backward(&given, &results, cx)?;
        Ok(Type::Tuple(results.into_iter().cloned().collect::<Vec<_>>().into()))
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        cx.check(self, operands)?;
        evaluate(&self.forward, operands, cx).map_err(|e| e.error)
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let upstream = cx.results.iter().zip(cx.upstream);
        let upstream: Vec<Var> = upstream.map(|(y, dy)| dy.unwrap_or_else(|| cx.zeros(y.ty()))).collect();
        let given: Vec<Var> = cx.operands.iter().chain(cx.results).chain(&upstream).copied().collect();
        let mut found = outputs_of(&self.backward, &replay(cx.t, &self.backward, &given)).into_iter();
        Ok(cx.operands.iter().map(|x| if x.dtype().is_float() { found.next() } else { None }).collect())
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("forward", Attr::Region(self.forward.clone())), ("backward", Attr::Region(self.backward.clone()))]
    }

    fn regions(&self) -> SmallVec<[&Arc<Graph>; 2]> {
        smallvec![&self.forward, &self.backward]
    }

    fn flops(&self, _: &[Type], _: &Type) -> Dim {
        scan::flops(&self.forward)
    }
}

/// Whether there is a function with its own gradient, in regions too.
pub(crate) fn has_custom(graph: &Graph) -> bool {
    graph.nodes().iter().any(|node| {
        matches!(node.op, Op::CustomVjp(_)) || node.op.home().regions().into_iter().any(|region| has_custom(region))
    })
}

/// The graph with each such function replaced by what it computes, and by node the node that has its value; of the
/// function itself, its first result.
pub(crate) fn inline(graph: &Graph) -> Result<(Graph, Vec<Option<NodeId>>), Diagnostic> {
    let mut failed = None;
    let built = extend(Graph::new(), |t| {
        t.reserve_sizes(graph.next_size());
        let mut values: Vec<Var> = Vec::with_capacity(graph.nodes().len());
        let mut parts: Vec<Vec<Var>> = vec![Vec::new(); graph.nodes().len()];
        for (id, node) in graph.iter() {
            t.set_origins(Some(graph.origins(id).clone()));
            let operands: Vec<Var> = node.operands.iter().map(|o| values[o.index()]).collect();
            let value = match &node.op {
                Op::CustomVjp(custom) => {
                    parts[id.index()] = outputs_of(&custom.forward, &replay(t, &custom.forward, &operands));
                    match parts[id.index()].first() {
                        Some(first) => *first,
                        None => t.fail(Diagnostic::new("E0101", "a function gives no result")),
                    }
                }
                Op::Proj(proj) if !parts[node.operands[0].index()].is_empty() => {
                    parts[node.operands[0].index()][proj.index]
                }
                op => {
                    let mut op = op.clone();
                    for region in op.regions_mut().into_iter().filter(|region| has_custom(region)) {
                        match inline(region) {
                            Ok((whole, _)) => *region = Arc::new(whole),
                            Err(error) => failed = Some(error),
                        }
                    }
                    t.add(op, &operands)
                }
            };
            values.push(value);
        }
        t.set_origins(None);
        values.iter().map(|value| value.id()).collect::<Vec<Option<NodeId>>>()
    });
    let (mut whole, mut map) = built?;
    if let Some(error) = failed {
        return Err(error);
    }
    whole.weights = graph.weights.clone();
    whole.take_roots_of(graph, |id| map[id.index()]);
    // a function may be made of such functions
    if has_custom(&whole) {
        let (next, further) = inline(&whole)?;
        map.iter_mut().for_each(|id| *id = id.and_then(|id| further[id.index()]));
        whole = next;
    }
    Ok((whole, map))
}

/// Reads the operator from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    if name != "custom_vjp" {
        return Ok(None);
    }
    let (forward, backward) = (Arc::new(a.region("forward")?), Arc::new(a.region("backward")?));
    Ok(Some(CustomVjp { forward, backward }.into()))
}
