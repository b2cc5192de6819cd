//! `scan`: a loop over the leading axis.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::control::check_slice;
use super::{InferCx, InferError, Op, Operator, Proj, operand};
use crate::autodiff::{Gradients, VjpCx, backward, outputs_of, replay};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::eval::{EvalCx, EvalError, copy_elements, row_major};
use crate::graph::{Graph, NodeId};
use crate::interpret::evaluate;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::tracer::Var;
use crate::types::{TensorType, Type};

/// `(carries…, xs…, captured…) → (carries…, ys…)`.
///
/// The body's inputs are, in order, the carried values, one slice of each `xs` (its leading axis removed) and the
/// captured values; its outputs are the next carried values and one slice of each `ys`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scan {
    /// One step.
    pub body: Arc<Graph>,
    /// Number of carried values.
    pub carried: usize,
    /// Number of scanned operands.
    pub scanned: usize,
    /// Number of steps.
    pub length: Dim,
    /// From the last slice to the first; `ys` keep the order of `xs`.
    pub reverse: bool,
}

impl Scan {
    /// The gradient of the loop, given each carried value when each step begins: a loop the other way, whose step replays
    /// one step from there. Values of the body of which all steps' are `known` are not computed again.
    pub(super) fn pull_back<'t>(
        &self,
        cx: &VjpCx<'_, 't>,
        history: &[Var<'t>],
        known: &[(NodeId, Var<'t>)],
    ) -> Gradients<'t> {
        let (carries, rest) = cx.operands.split_at(self.carried);
        let (xs, captured) = rest.split_at(self.scanned);
        let float = |v: &Var<'t>| v.dtype().is_float();
        // what flows backwards: gradients of carried values, then sums of gradients of captured ones
        let flowing: Vec<usize> = (0..self.carried).filter(|i| float(&carries[*i])).collect();
        let summed: Vec<usize> = (0..captured.len())
            .filter(|i| cx.wanted[self.carried + self.scanned + i] && float(&captured[*i]))
            .collect();
        let sliced: Vec<usize> = (0..self.scanned).filter(|i| cx.wanted[self.carried + i] && float(&xs[*i])).collect();
        let stacked: Vec<usize> = (self.carried..self.body.outputs().len())
            .filter(|i| cx.upstream.get(*i).is_some_and(Option::is_some))
            .collect();
        let start = |i: &usize| cx.upstream[*i].unwrap_or_else(|| cx.zeros(carries[*i].ty()));
        let init: Vec<Var> =
            flowing.iter().map(start).chain(summed.iter().map(|i| cx.zeros(captured[*i].ty()))).collect();
        let dys: Vec<Var> = stacked.iter().filter_map(|i| cx.upstream[*i]).collect();
        let known_values = known.iter().map(|(_, value)| value);
        let scanned: Vec<Var> = history.iter().chain(xs).chain(&dys).chain(known_values).copied().collect();
        let mut failed = None;
        let (ends, dxs) = cx.t.scan_of(self.length.clone(), !self.reverse, &init, &scanned, |t, flow, slices| {
            let (state, slices) = slices.split_at(self.carried);
            let (inputs, slices) = slices.split_at(self.scanned);
            let (dys, known_slices) = slices.split_at(dys.len());
            let outside: Vec<Var> = captured.iter().map(|v| t.capture(*v)).collect();
            let given: Vec<Var> = state.iter().chain(inputs).chain(&outside).copied().collect();
            let first = t.graph(|graph| graph.nodes().len());
            let values = replay(t, &self.body, &given);
            let results = outputs_of(&self.body, &values);
            let seeds: Vec<(Var, Var)> = flowing
                .iter()
                .map(|i| results[*i])
                .zip(flow.iter().copied())
                .chain(stacked.iter().map(|i| results[*i]).zip(dys.iter().copied()))
                .collect();
            let found = backward(t, &seeds, &given, first).unwrap_or_else(|error| {
                failed = Some(error);
                vec![None; given.len()]
            });
            let zeros = |v: Var<'t>| t.scalar(crate::Literal::float(0.0, v.dtype())).broadcast(v.shape());
            let of = |i: usize| found[i].map_or_else(|| zeros(given[i]), |g| g.reshape(given[i].shape()));
            let next = flowing.iter().map(|i| of(*i));
            let sums = summed.iter().enumerate().map(|(at, i)| {
                let so_far = flow[flowing.len() + at];
                found[self.carried + self.scanned + i].map_or(so_far, |g| so_far + g)
            });
            let next: Vec<Var> = next.chain(sums).collect();
            let dxs = sliced.iter().map(|i| of(self.carried + i)).collect();
            known.iter().zip(known_slices).for_each(|((id, _), slice)| t.redirect(values[id.index()], *slice));
            (next, dxs)
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let mut gradients = vec![None; cx.operands.len()];
        flowing.iter().zip(&ends).for_each(|(i, end)| gradients[*i] = Some(*end));
        let sums = summed.iter().zip(&ends[flowing.len()..]);
        sums.for_each(|(i, sum)| gradients[self.carried + self.scanned + i] = Some(*sum));
        sliced.iter().zip(dxs).for_each(|(i, dx)| gradients[self.carried + i] = Some(dx));
        Ok(gradients)
    }
}

impl Operator for Scan {
    fn name(&self) -> &'static str {
        "scan"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        let inputs = self.body.inputs();
        let outputs = self.body.outputs();
        if operands.len() != inputs.len() || self.carried + self.scanned > inputs.len() || outputs.len() < self.carried
        {
            return Err(format!("the body takes {} values and gives {}", inputs.len(), outputs.len()));
        }
        for (i, input) in inputs.iter().enumerate() {
            let given = operand(operands, i)?;
            let Some(want) = self.body.ty(*input).tensor() else { return Err("a body input is a tuple".into()) };
            let dims = if (self.carried..self.carried + self.scanned).contains(&i) {
                let lead = given.shape.first().ok_or_else(|| format!("scanned operand {given} has no axis"))?;
                cx.require_equal(lead, &self.length, "the length of a scan")?;
                &given.shape[1..]
            } else {
                &given.shape[..]
            };
            if dims.len() != want.shape.rank() || given.dtype != want.dtype {
                return Err(format!("operand {i}, {given}, does not fit the body's {want}"));
            }
            for (a, b) in dims.iter().zip(want.shape.iter()) {
                cx.require_equal(a, b, "extents of a scan's operand and its body")?;
            }
        }
        let mut parts = Vec::new();
        for (i, (_, output)) in outputs.iter().enumerate() {
            let Some(ty) = self.body.ty(*output).tensor() else { return Err("a body output is a tuple".into()) };
            if i < self.carried {
                parts.push(operand(operands, i)?.clone());
            } else {
                check_slice(&self.body, ty)?;
                let shape = std::iter::once(&self.length).chain(ty.shape.iter()).cloned().collect();
                parts.push(TensorType { dtype: ty.dtype, shape });
            }
        }
        Ok(Type::Tuple(parts.into()))
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let results = cx.results(self, operands)?;
        let steps = usize::try_from(self.length.eval(cx.bindings)?).unwrap_or(0);
        let (carries, rest) = operands.split_at(self.carried);
        let (scanned, captured) = rest.split_at(self.scanned);
        let mut carries = carries.to_vec();
        let mut stacked: Vec<Tensor> =
            results[self.carried..].iter().map(|(dtype, shape)| Tensor::zeros(*dtype, shape)).collect();
        for step in 0..steps {
            let row = if self.reverse { steps - 1 - step } else { step };
            let slices = scanned.iter().map(|x| {
                let own = row_major(x.shape());
                copy_elements(x, &x.shape()[1..], &own[1..], row as isize * own[0])
            });
            let inputs: Vec<Tensor> = carries.iter().cloned().chain(slices).chain(captured.iter().cloned()).collect();
            let mut outputs = evaluate(&self.body, &inputs, cx).map_err(|e| e.error)?;
            let slices = outputs.split_off(self.carried);
            carries = outputs;
            for (y, slice) in stacked.iter_mut().zip(slices) {
                let bytes = slice.bytes();
                y.bytes_mut()[row * bytes.len()..][..bytes.len()].copy_from_slice(bytes);
            }
        }
        for (carry, (dtype, shape)) in carries.iter().zip(&results) {
            if carry.dtype() != *dtype || carry.shape() != shape {
                return Err(EvalError::Operands("a carried value changes its type".into()));
            }
        }
        carries.extend(stacked);
        Ok(carries)
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let full = self.clone().with_record();
        let record = self.record();
        let outputs = full.body.outputs().len();
        let values: Vec<Var> = match full == *self {
            true => cx.results[outputs - record.len()..].to_vec(),
            false => {
                let again = cx.t.add(full.clone(), cx.operands);
                (outputs - record.len()..outputs).map(|index| cx.t.add(Proj { index }, &[again])).collect()
            }
        };
        let (history, known) = values.split_at(self.carried);
        let known: Vec<(NodeId, Var)> = record[self.carried..].iter().copied().zip(known.iter().copied()).collect();
        self.pull_back(cx, history, &known)
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("carried", Attr::Int(self.carried as i64)),
            ("scanned", Attr::Int(self.scanned as i64)),
            ("length", Attr::Dim(self.length.clone())),
            ("reverse", Attr::Bool(self.reverse)),
            ("body", Attr::Region(self.body.clone())),
        ]
    }

    fn flops(&self, _: &[Type], _: &Type) -> Dim {
        flops(&self.body) * self.length.clone()
    }

    fn regions(&self) -> SmallVec<[&Arc<Graph>; 2]> {
        smallvec![&self.body]
    }
}

impl Scan {
    /// What the gradient reads of each step: its carried values when it begins, and contractions of them, which take
    /// longer to repeat than to keep.
    fn record(&self) -> Vec<NodeId> {
        let body = &*self.body;
        let history = &body.inputs()[..self.carried];
        let mut depends = vec![false; body.nodes().len()];
        history.iter().for_each(|id| depends[id.index()] = true);
        let mut record = history.to_vec();
        for (id, node) in body.iter() {
            depends[id.index()] |= node.operands.iter().any(|o| depends[o.index()]);
            let contracts = matches!(node.op, Op::DotGeneral(_) | Op::Conv(_));
            if contracts && depends[id.index()] && check_slice(body, body.tensor_type(id)).is_ok() {
                record.push(id);
            }
        }
        record
    }

    /// The loop with the values of [`Scan::record`] as its last stacked results.
    pub(crate) fn with_record(self) -> Scan {
        match keeping(&self.body, self.carried, &self.record()) {
            Some(body) => Scan { body: Arc::new(body), ..self },
            None => self,
        }
    }
}

/// A loop's body with `kept` as further outputs; `None` when its last outputs are these already.
pub(super) fn keeping(body: &Graph, carried: usize, kept: &[NodeId]) -> Option<Graph> {
    let outputs = body.outputs();
    let start = outputs.len().checked_sub(kept.len()).filter(|start| *start >= carried);
    if start.is_some_and(|start| outputs[start..].iter().zip(kept).all(|((_, output), id)| output == id)) {
        return None;
    }
    let mut longer = body.clone();
    kept.iter().enumerate().for_each(|(i, id)| longer.add_output(format!("kept{i}"), *id));
    Some(longer)
}

/// Arithmetic operations of one evaluation of a region.
pub(super) fn flops(region: &Graph) -> Dim {
    region.nodes().iter().fold(Dim::ZERO, |n, node| {
        let operands: Vec<Type> = node.operands.iter().map(|o| region.ty(*o).clone()).collect();
        n + node.op.home().flops(&operands, &node.ty)
    })
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "scan" => Scan {
            carried: a.place("carried")?,
            scanned: a.place("scanned")?,
            length: a.dim("length")?,
            reverse: a.truth("reverse")?,
            body: Arc::new(a.region("body")?),
        }
        .into(),
        _ => return Ok(None),
    }))
}
