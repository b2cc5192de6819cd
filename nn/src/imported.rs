//! Graphs that come from elsewhere, as models to be trained further.

use egret_ir::{DType, Graph, Op, Var};

use crate::params::Params;

/// A graph whose floating-point params are parameters under their own names: a model read from ONNX, to be trained further
/// or used as a layer.
///
/// ```
/// use egret_ir::{Literal, DType, Tensor, f32, trace};
/// use egret_nn::{Imported, Mode, Params, Sgd, Optimiser};
///
/// let line = trace(|t| t.input("x", f32([4])) * t.param("slope", Tensor::scalar(Literal::float(2.0, DType::F32))))?;
/// let model = Imported::new(line);
/// let step = trace(|t| {
///     let p = Params::new(t, Mode::Train, 1);
///     let y = model.apply(&p, &[("x", t.input("x", f32([4])))])[0];
///     Sgd::default().minimise(&p, (y * y).mean(), t.input("rate", f32([0i64; 0])));
/// })?;
/// assert_eq!(step.updates()[0].0, "slope");
/// # Ok::<(), egret_ir::Diagnostic>(())
/// ```
#[derive(Clone, Debug)]
pub struct Imported {
    graph: Graph,
    frozen: Vec<String>,
}

impl Imported {
    /// A graph without state.
    pub fn new(graph: Graph) -> Imported {
        Imported { graph, frozen: Vec::new() }
    }

    /// Params whose names begin so stay as they are.
    pub fn freeze(mut self, beginning: impl Into<String>) -> Imported {
        self.frozen.push(beginning.into());
        self
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Adds the graph's nodes, with these values for its inputs; its outputs, in order.
    #[track_caller]
    pub fn apply<'t>(&self, p: &Params<'_, 't>, inputs: &[(&str, Var<'t>)]) -> Vec<Var<'t>> {
        let (t, graph) = (p.tracer(), &self.graph);
        let mut places: Vec<Var<'t>> = Vec::with_capacity(graph.nodes().len());
        for (id, node) in graph.iter() {
            let operands: Vec<Var<'t>> = node.operands.iter().map(|operand| places[operand.index()]).collect();
            let place = match &node.op {
                Op::Input(input) => match inputs.iter().find(|(name, _)| *name == input.name) {
                    Some((_, value)) => *value,
                    None => p.fail(format!(
                        "the imported graph has an input `{}`: {}, which is not given",
                        input.name, input.ty
                    )),
                },
                Op::Param(param) => match graph.weights.get(&param.name) {
                    Some(weight) if self.trains(&param.name, param.ty.dtype) => p.weight(&param.name, weight.clone()),
                    Some(weight) => t.param(&param.name, weight.clone()),
                    None => p.fail(format!("the imported graph has no value for its param `{}`", param.name)),
                },
                Op::State(state) => p.fail(format!("the imported graph has a state, `{}`", state.name)),
                op => {
                    t.set_origins(Some(graph.origins(id).clone()));
                    t.add(op.clone(), &operands)
                }
            };
            places.push(place);
        }
        t.set_origins(None);
        graph.outputs().iter().map(|(_, id)| places[id.index()]).collect()
    }

    fn trains(&self, name: &str, dtype: DType) -> bool {
        dtype.is_float() && !self.frozen.iter().any(|beginning| name.starts_with(beginning))
    }
}
