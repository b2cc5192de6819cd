//! `while`: a region again and again, as long as another says so.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::{check_condition, check_inputs, check_slice, output_types};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::graph::{Graph, NodeId};
use crate::interpret::evaluate;
use crate::ops::{InferCx, InferError, Operator, Proj, Scan, operand, scan};
use crate::scalar::Literal;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::tracer::Var;
use crate::types::{TensorType, Type};

/// `(carries…, captured by condition…, captured by body…) → (carries…, trips, ys…)`.
///
/// As long as `condition` gives true, and at most `bound` times, `body` gives the next carried values. The inputs of
/// either region are the carried values and then what it captures; the condition gives one truth value, the body the next
/// carried values and then one slice of each of `ys`. `trips` is how often the body ran, i64. The leading extent of `ys`
/// is the data-dependent size `size`, the number of trips.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct While {
    /// Whether to go on.
    pub condition: Arc<Graph>,
    /// One trip.
    pub body: Arc<Graph>,
    /// Number of carried values.
    pub carried: usize,
    /// The greatest number of trips, where there is one: the loop ends there whatever the condition says.
    pub bound: Option<Dim>,
    /// The number of the data-dependent size.
    pub size: u32,
}

impl While {
    /// The number of trips as a size.
    pub fn trips(&self) -> Dim {
        Dim::fresh(self.size, self.bound.clone().unwrap_or(Dim::from(i64::MAX)))
    }

    /// Number of operands that the condition captures.
    fn tested(&self) -> usize {
        self.condition.inputs().len().saturating_sub(self.carried)
    }

    /// The loop with one more stacked result for each carried value: its value when each trip begins.
    pub(crate) fn with_history(self) -> While {
        let history: Vec<NodeId> = self.body.inputs().iter().take(self.carried).copied().collect();
        match scan::keeping(&self.body, self.carried, &history) {
            Some(body) => While { body: Arc::new(body), ..self },
            None => self,
        }
    }
}

impl Operator for While {
    fn name(&self) -> &'static str {
        "while"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        let (tests, steps) = (self.condition.inputs().len(), self.body.inputs().len());
        if tests < self.carried || steps < self.carried {
            return Err(format!("a region takes fewer values than the {} that are carried", self.carried));
        }
        let count = tests + steps - self.carried;
        if operands.len() != count {
            return Err(format!("takes {count} operands, not {}", operands.len()));
        }
        check_inputs(&self.condition, operands, 0, cx)?;
        let body: Vec<Type> =
            operands[..self.carried].iter().chain(&operands[self.carried + self.tested()..]).cloned().collect();
        check_inputs(&self.body, &body, 0, cx)?;
        match output_types(&self.condition)?.as_slice() {
            [ty] => check_condition(ty)?,
            other => return Err(format!("the condition gives {} values, not one", other.len())),
        }
        let outputs = output_types(&self.body)?;
        if outputs.len() < self.carried {
            return Err(format!("the body gives {} values, but {} are carried", outputs.len(), self.carried));
        }
        let mut parts = Vec::with_capacity(outputs.len() + 1);
        for (i, next) in outputs[..self.carried].iter().enumerate() {
            let ty = operand(operands, i)?;
            let differs = ty.shape.iter().zip(next.shape.iter()).any(|(a, b)| a.equals(b) == crate::Truth::No);
            if ty.dtype != next.dtype || ty.shape.rank() != next.shape.rank() || differs {
                return Err(format!("carried value {i} is {ty}, but the body gives {next}"));
            }
            parts.push(ty.clone());
        }
        parts.push(TensorType::scalar(DType::I64));
        for y in &outputs[self.carried..] {
            check_slice(&self.body, y)?;
            let shape = std::iter::once(&self.trips()).chain(y.shape.iter()).cloned().collect();
            parts.push(TensorType { dtype: y.dtype, shape });
        }
        Ok(Type::Tuple(parts.into()))
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        cx.check(self, operands)?;
        let (carries, rest) = operands.split_at(self.carried);
        let (tested, captured) = rest.split_at(self.tested());
        let bound = self.bound.as_ref().map(|bound| bound.eval(cx.bindings)).transpose()?;
        let mut carries = carries.to_vec();
        let mut trips = 0i64;
        let mut stacked: Vec<Vec<Tensor>> = vec![Vec::new(); self.body.outputs().len() - self.carried];
        let inputs = |carries: &[Tensor], more: &[Tensor]| [carries, more].concat();
        while bound.is_none_or(|bound| trips < bound) {
            let go_on = evaluate(&self.condition, &inputs(&carries, tested), cx).map_err(|e| e.error)?;
            if !go_on.first().is_some_and(|v| v.get(0).truthy()) {
                break;
            }
            let mut outputs = evaluate(&self.body, &inputs(&carries, captured), cx).map_err(|e| e.error)?;
            stacked.iter_mut().zip(outputs.split_off(self.carried)).for_each(|(ys, y)| ys.push(y));
            let same = |(a, b): (&Tensor, &Tensor)| a.dtype() == b.dtype() && a.shape() == b.shape();
            if !carries.iter().zip(&outputs).all(same) {
                return Err(EvalError::Operands("a carried value changes its type".into()));
            }
            carries = outputs;
            trips += 1;
        }
        carries.push(Tensor::scalar(Literal::int(trips, DType::I64)));
        for (ys, (_, output)) in stacked.into_iter().zip(&self.body.outputs()[self.carried..]) {
            let ty = self.body.tensor_type(*output);
            // without a trip, the types alone tell the extents
            let slice = match ys.first() {
                Some(y) => y.shape().to_vec(),
                None => cx.extents(ty)?,
            };
            if ys.iter().any(|y| y.shape() != slice) {
                return Err(EvalError::Operands("slices of a stacked result differ in extent".into()));
            }
            let shape: Vec<usize> = std::iter::once(ys.len()).chain(slice).collect();
            let bytes: Vec<u8> = ys.iter().flat_map(|y| y.bytes().iter().copied()).collect();
            let too_large = EvalError::TooLarge { shape: shape.clone() };
            carries.push(Tensor::from_bytes(ty.dtype, &shape, &bytes).ok_or(too_large)?);
        }
        Ok(carries)
    }

    /// A loop of as many steps the other way, whose step replays one trip from the carried values that it began with.
    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        if self.bound.is_none() {
            let why = "a loop without a bound on its trips has no gradient: what each trip began with cannot be kept";
            return Err(cx.refuse(why).help("give the loop a bound"));
        }
        let full = self.clone().with_history();
        // results are carries, trips, ys, history
        let parts = full.body.outputs().len() + 1;
        let history: Vec<Var> = match full == *self {
            true => cx.results[parts - self.carried..].to_vec(),
            false => {
                let again = cx.t.add(full.clone(), cx.operands);
                (parts - self.carried..parts).map(|index| cx.t.add(Proj { index }, &[again])).collect()
            }
        };
        let body = |i: usize| i < self.carried || i >= self.carried + self.tested();
        let kept: Vec<usize> = (0..cx.operands.len()).filter(|i| body(*i)).collect();
        let operands: Vec<Var> = kept.iter().map(|i| cx.operands[*i]).collect();
        let wanted: Vec<bool> = kept.iter().map(|i| cx.wanted[*i]).collect();
        let without_trips = |i: &usize| *i != self.carried;
        let results: Vec<Var> = (0..cx.results.len()).filter(without_trips).map(|i| cx.results[i]).collect();
        let upstream: Vec<Option<Var>> = (0..cx.upstream.len()).filter(without_trips).map(|i| cx.upstream[i]).collect();
        let steps =
            Scan { body: self.body.clone(), carried: self.carried, scanned: 0, length: self.trips(), reverse: false };
        let inner = VjpCx { t: cx.t, operands: &operands, results: &results, upstream: &upstream, wanted: &wanted };
        let found = steps.pull_back(&inner, &history, &[])?;
        let mut gradients = vec![None; cx.operands.len()];
        kept.iter().zip(found).for_each(|(i, gradient)| gradients[*i] = gradient);
        Ok(gradients)
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        let bound = self.bound.clone().map(|bound| ("bound", Attr::Dim(bound)));
        let regions = [("condition", Attr::Region(self.condition.clone())), ("body", Attr::Region(self.body.clone()))];
        [("carried", Attr::Int(self.carried as i64)), ("size", Attr::Int(self.size.into()))]
            .into_iter()
            .chain(bound)
            .chain(regions)
            .collect()
    }

    fn regions(&self) -> SmallVec<[&Arc<Graph>; 2]> {
        smallvec![&self.condition, &self.body]
    }

    /// Those of as many trips as the bound allows; of one, where there is none.
    fn flops(&self, _: &[Type], _: &Type) -> Dim {
        let trip = scan::flops(&self.condition) + scan::flops(&self.body);
        self.bound.clone().unwrap_or(Dim::ONE) * trip
    }
}

pub(super) fn read(a: &Attributes) -> Result<While, Diagnostic> {
    Ok(While {
        condition: Arc::new(a.region("condition")?),
        body: Arc::new(a.region("body")?),
        carried: a.place("carried")?,
        bound: if a.has("bound") { Some(a.dim("bound")?) } else { None },
        size: a.fresh("size")?,
    })
}
