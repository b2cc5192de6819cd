//! The reference interpreter: each node by its operator's [`eval`](crate::Operator::eval), in order.

use std::borrow::Cow;
use std::ops::ControlFlow;

use crate::autodiff::{expand, has_grad};
use crate::bind;
use crate::diagnostic::{Diagnostic, Origin};
use crate::dim::{Bindings, Dim};
use crate::eval::{EvalCx, EvalError, Tensors};
use crate::graph::{Assumption, Graph, NodeId};
use crate::ops::{Equality, Op};
use crate::tensor::Tensor;
use crate::types::Type;

/// What a run gives.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The results by name, in order.
    pub outputs: Vec<(String, Tensor)>,
    /// New values of states by name.
    pub updates: Vec<(String, Tensor)>,
}

impl Outcome {
    /// The output of that name.
    pub fn output(&self, name: &str) -> Option<&Tensor> {
        self.outputs.iter().find(|(have, _)| have == name).map(|(_, tensor)| tensor)
    }
}

/// Why a run has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InterpretError {
    /// The inputs do not fit the graph.
    #[error("{0}")]
    Bind(Box<Diagnostic>),
    /// A node has no value on its operands.
    #[error("{0}")]
    Node(Box<NodeError>),
}

/// Why a node has no value.
#[derive(Clone, Debug, thiserror::Error)]
#[error("%{} = {op}: {error}", node.index())]
pub struct NodeError {
    /// The node.
    pub node: NodeId,
    /// The name of its operator.
    pub op: &'static str,
    /// Where the node came from.
    pub origin: Vec<Origin>,
    /// What is wrong.
    pub error: EvalError,
}

impl From<InterpretError> for Diagnostic {
    fn from(error: InterpretError) -> Diagnostic {
        match error {
            InterpretError::Bind(diagnostic) => *diagnostic,
            InterpretError::Node(node) => {
                let mut diagnostic = Diagnostic::new(node.error.code(), node.to_string());
                diagnostic.origin = node.origin;
                diagnostic
            }
        }
    }
}

/// Runs a graph on inputs by name. Params come from the graph's weights; so do states that `states` lacks. Gradients are
/// expanded first.
///
/// # Errors
/// When inputs do not fit the graph, or a node has no value on them.
pub fn interpret(graph: &Graph, inputs: &Tensors, states: &Tensors) -> Result<Outcome, InterpretError> {
    let expanded;
    let mut graph = graph;
    if has_grad(graph) {
        expanded = expand(graph).map_err(|e| InterpretError::Bind(Box::new(e)))?;
        graph = &expanded;
    }
    let bindings = bind::bind(graph, inputs, states).map_err(|e| InterpretError::Bind(Box::new(e)))?;
    interpret_bound(graph, &bindings, inputs, states)
}

/// What [`interpret_watched`] tells of each node: its id, operands (those of tuples part by part), and values.
pub type Watch<'w> = dyn FnMut(NodeId, &[Tensor], &[Tensor]) -> ControlFlow<()> + 'w;

/// Runs a graph without `grad` nodes as [`interpret`] does, and shows each node to `watch`, which may end the run.
///
/// # Errors
/// As [`interpret`].
pub fn interpret_watched(
    graph: &Graph,
    inputs: &Tensors,
    states: &Tensors,
    watch: &mut Watch<'_>,
) -> Result<(), InterpretError> {
    let bindings = bind::bind(graph, inputs, states).map_err(|e| InterpretError::Bind(Box::new(e)))?;
    let cx = EvalCx { bindings: &bindings, inputs, states, weights: &graph.weights };
    let roots: Vec<NodeId> = graph.roots().collect();
    run(graph, &[], &roots, &cx, watch).map(|_| ()).map_err(InterpretError::Node)
}

/// Runs a graph whose symbols are bound already.
///
/// # Errors
/// When a node has no value.
pub fn interpret_bound(
    graph: &Graph,
    bindings: &Bindings,
    inputs: &Tensors,
    states: &Tensors,
) -> Result<Outcome, InterpretError> {
    let cx = EvalCx { bindings, inputs, states, weights: &graph.weights };
    let roots: Vec<NodeId> = graph.roots().collect();
    let mut values = run(graph, &[], &roots, &cx, &mut unwatched).map_err(InterpretError::Node)?.into_iter();
    let mut take = |names: &[(String, NodeId)]| -> Vec<(String, Tensor)> {
        names.iter().map(|(name, _)| name.clone()).zip(&mut values).collect()
    };
    Ok(Outcome { outputs: take(graph.outputs()), updates: take(graph.updates()) })
}

/// The outputs of a region whose inputs are given in order; other leaves are looked up in `cx`.
pub(crate) fn evaluate(graph: &Graph, inputs: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, Box<NodeError>> {
    let roots: Vec<NodeId> = graph.outputs().iter().map(|(_, id)| *id).collect();
    run(graph, inputs, &roots, cx, &mut unwatched)
}

fn unwatched(_: NodeId, _: &[Tensor], _: &[Tensor]) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn run(
    graph: &Graph,
    inputs: &[Tensor],
    roots: &[NodeId],
    cx: &EvalCx,
    watch: &mut Watch<'_>,
) -> Result<Vec<Tensor>, Box<NodeError>> {
    let mut needed = vec![false; graph.nodes().len()];
    // a value is dropped after its last reader
    let mut last_reader = vec![usize::MAX; graph.nodes().len()];
    roots.iter().for_each(|id| needed[id.index()] = true);
    for (id, node) in graph.iter().rev().filter(|(_, node)| !node.operands.is_empty()) {
        if needed[id.index()] {
            for operand in &node.operands {
                if !needed[operand.index()] {
                    needed[operand.index()] = true;
                    last_reader[operand.index()] = id.index();
                }
            }
        }
    }
    // sizes that the data tell are added as they become known
    let mut bindings = Cow::Borrowed(cx.bindings);
    let open: Vec<&Assumption> = graph.assumptions().iter().filter(|a| a.equality.is_data_dependent()).collect();
    let mut values: Vec<Vec<Tensor>> = vec![Vec::new(); graph.nodes().len()];
    for (id, node) in graph.iter().filter(|(id, _)| needed[id.index()]) {
        let failed = |error: EvalError| {
            Box::new(NodeError {
                node: id,
                op: node.op.home().name(),
                origin: graph.origins(id).iter().map(|o| (**o).clone()).collect(),
                error,
            })
        };
        let given = match &node.op {
            Op::Input(_) => graph.inputs().iter().position(|i| *i == id).and_then(|i| inputs.get(i)),
            _ => None,
        };
        let operands: Vec<Tensor> = node.operands.iter().flat_map(|o| values[o.index()].iter().cloned()).collect();
        values[id.index()] = match given {
            Some(tensor) => vec![tensor.clone()],
            None => {
                for assumption in open.iter().filter(|a| a.node == id) {
                    check(&assumption.equality, &bindings).map_err(failed)?;
                }
                let cx = EvalCx { bindings: &bindings, ..*cx };
                node.op.home().eval(&operands, &cx).map_err(failed)?
            }
        };
        learn(&node.ty, &values[id.index()], &mut bindings).map_err(failed)?;
        if watch(id, &operands, &values[id.index()]).is_break() {
            return Ok(Vec::new());
        }
        for operand in &node.operands {
            if last_reader[operand.index()] == id.index() {
                values[operand.index()] = Vec::new();
            }
        }
    }
    Ok(roots.iter().filter_map(|id| values[id.index()].first().cloned()).collect())
}

/// Binds the data-dependent sizes of a value that has been computed.
pub(crate) fn learn(ty: &Type, value: &[Tensor], bindings: &mut Cow<Bindings>) -> Result<(), EvalError> {
    for (part, tensor) in ty.parts().iter().zip(value) {
        for (dim, extent) in part.shape.iter().zip(tensor.shape()) {
            let Some((id, bound)) = dim.as_fresh() else { continue };
            let (name, size) = (Dim::fresh_name(id), i64::try_from(*extent).unwrap_or(i64::MAX));
            match bindings.get(&name) {
                Some(known) if *known != size => {
                    let what = "a data-dependent size that two operators tell";
                    return Err(EvalError::Assumption {
                        what,
                        left: dim.clone(),
                        right: dim.clone(),
                        values: (*known, size),
                    });
                }
                Some(_) => {}
                None => {
                    let bound = bound.eval(bindings)?;
                    if size > bound {
                        return Err(EvalError::Bound { size: size.into(), bound: bound.into() });
                    }
                    bindings.to_mut().insert(name, size);
                }
            }
        }
    }
    Ok(())
}

/// Checks what a node assumes of data-dependent sizes, which are known by now.
fn check(equality: &Equality, bindings: &Bindings) -> Result<(), EvalError> {
    let values = (equality.left.eval(bindings)?, equality.right.eval(bindings)?);
    if values.0 == values.1 {
        return Ok(());
    }
    let (left, right) = (equality.left.clone(), equality.right.clone());
    Err(EvalError::Assumption { what: equality.what, left, right, values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Const, Conv, ConvForm, Gather, Input, Places, Pointwise};
    use crate::scalar::ScalarFn;
    use crate::types::{Shape, TensorType};
    use crate::{DType, i64};

    fn ramp(shape: &[usize], scale: f32) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32 * scale).sin()).collect();
        Tensor::new(shape, &values).unwrap()
    }

    /// `⟨y, conv(x, w)⟩ = ⟨x, input_grad(y, w)⟩ = ⟨w, weight_grad(x, y)⟩`, and forward is the plain sum.
    #[test]
    fn the_three_forms_of_a_convolution_are_adjoint() {
        let (x, w) = (ramp(&[2, 4, 7, 6], 0.7), ramp(&[6, 2, 3, 2], 0.3));
        let forward = Conv::forward(&[2, 1], &[1, 0], &[0, 2], &[1, 2], 2);
        let bindings = Bindings::new();
        let cx = EvalCx::new(&bindings);
        let eval = |conv: &Conv, a: &Tensor, b: &Tensor| {
            Op::from(conv.clone()).home().eval(&[a.clone(), b.clone()], &cx).unwrap().remove(0)
        };
        let y = eval(&forward, &x, &w);
        assert_eq!(y.shape(), [2, 6, 3, 6]);
        let at = |t: &Tensor, i: [usize; 4]| {
            let s = t.shape();
            t.get(((i[0] * s[1] + i[1]) * s[2] + i[2]) * s[3] + i[3]).as_f64()
        };
        for (n, o, i, j) in [(0, 0, 0, 0), (1, 5, 2, 5), (0, 3, 1, 2)] {
            let mut sum = 0.0;
            for c in 0..2 {
                for (a, b) in (0..3).flat_map(|a| (0..2).map(move |b| (a, b))) {
                    let (row, column) = ((i * 2 + a) as i64 - 1, (j + 2 * b) as i64);
                    if (0..7).contains(&row) && column < 6 {
                        sum += at(&x, [n, o / 3 * 2 + c, row as usize, column as usize]) * at(&w, [o, c, a, b]);
                    }
                }
            }
            assert!((at(&y, [n, o, i, j]) - sum).abs() < 1e-6);
        }
        let dot =
            |a: &Tensor, b: &Tensor| a.values().zip(b.values()).map(|(a, b)| a.as_f64() * b.as_f64()).sum::<f64>();
        let dy = ramp(y.shape(), 1.3);
        let form = |form, extent: [i64; 2]| Conv { form, extent: Shape::from(extent), ..forward.clone() };
        let dx = eval(&form(ConvForm::InputGrad, [7, 6]), &dy, &w);
        let dw = eval(&form(ConvForm::WeightGrad, [3, 2]), &x, &dy);
        assert_eq!((dx.shape(), dw.shape()), (x.shape(), w.shape()));
        assert!((dot(&dy, &y) - dot(&x, &dx)).abs() < 1e-4 && (dot(&dy, &y) - dot(&w, &dw)).abs() < 1e-4);
    }

    #[test]
    fn a_bad_index_and_a_bad_divisor_are_typed_errors() {
        let mut graph = Graph::new();
        let x = graph.add(Input { name: "x".into(), ty: crate::f32([3]) }, &[]).unwrap();
        let i = graph.add(Input { name: "i".into(), ty: i64(["n"]) }, &[]).unwrap();
        let picked = graph.add(Gather { places: Places::Rows { axis: 0 } }, &[x, i]).unwrap();
        let ten = graph.add(Const { value: Tensor::new(&[1], &[10i64]).unwrap() }, &[]).unwrap();
        let quotient = graph.add(Pointwise { f: ScalarFn::Div }, &[ten, i]).unwrap();
        graph.add_output("picked", picked);
        graph.add_output("quotient", quotient);
        let run = |i: &[i64]| {
            let inputs = [("x".into(), ramp(&[3], 1.0)), ("i".into(), Tensor::new(&[i.len()], i).unwrap())]
                .into_iter()
                .collect();
            interpret(&graph, &inputs, &Tensors::new()).map_err(Diagnostic::from)
        };
        let outcome = run(&[2, 1]).unwrap();
        assert_eq!(outcome.output("quotient").unwrap().as_slice::<i64>(), Some(&[5i64, 10][..]));
        assert_eq!(run(&[1, 3]).unwrap_err().code, "E0210");
        assert_eq!(run(&[1, -1]).unwrap_err().code, "E0210");
        assert_eq!(run(&[1, 0]).unwrap_err().code, "E0211");
    }

    /// Every scalar function on every element type that it is legal for gives the type that inference promises.
    #[test]
    fn every_scalar_function_runs_on_every_legal_type() {
        let mut run = 0;
        for f in ScalarFn::ALL {
            for dtype in DType::ALL {
                let mut dtypes = vec![*dtype; f.arity()];
                if *f == ScalarFn::Select {
                    dtypes[0] = DType::Bool;
                }
                let Ok(result) = f.result_dtype(&dtypes) else { continue };
                let operands: Vec<Tensor> =
                    dtypes.iter().map(|d| Tensor::splat(crate::Literal::int(1, *d), &[2, 1])).collect();
                let bindings = Bindings::new();
                let y = Op::from(Pointwise { f: *f }).home().eval(&operands, &EvalCx::new(&bindings)).unwrap();
                assert_eq!(crate::eval::actual_type(&y[0]), TensorType::new(result, [2, 1]));
                run += 1;
            }
        }
        assert!(run > 200, "{run}");
    }
}
