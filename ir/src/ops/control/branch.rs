//! `if`: one of two regions.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::{check_condition, check_inputs, output_types};
use crate::autodiff::{Gradients, VjpCx, backward, outputs_of, replay};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::eval::{EvalCx, EvalError};
use crate::graph::Graph;
use crate::interpret::evaluate;
use crate::ops::{InferCx, InferError, Operator, operand, scan};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::tracer::{Tracer, Var};
use crate::types::{TensorType, Type};

/// `(condition, values of then…, values of otherwise…) → (results…)`: the results of `then` where the scalar `condition`
/// is true, else those of `otherwise`. Only the region that is chosen runs.
///
/// The inputs of `then` are the first operands after the condition, as many as it has; those of `otherwise` the rest.
/// Both give as many results, of the same element types and ranks. An extent that differs between them is a
/// data-dependent size: `size` and the numbers after it, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct If {
    /// Runs where the condition is true.
    pub then: Arc<Graph>,
    /// Runs where it is false.
    pub otherwise: Arc<Graph>,
    /// The number of the first data-dependent size.
    pub size: u32,
}

impl If {
    /// The types of the results.
    pub(crate) fn results(&self) -> Result<Vec<TensorType>, InferError> {
        let (a, b) = (output_types(&self.then)?, output_types(&self.otherwise)?);
        if a.len() != b.len() {
            return Err(format!("one region gives {} results, the other {}", a.len(), b.len()));
        }
        let mut next = self.size;
        let mut parts = Vec::with_capacity(a.len());
        for (a, b) in a.into_iter().zip(b) {
            if a.dtype != b.dtype || a.shape.rank() != b.shape.rank() {
                return Err(format!("one region gives {a} where the other gives {b}"));
            }
            let dims = a.shape.iter().zip(b.shape.iter()).map(|(a, b)| {
                if a == b {
                    return a.clone();
                }
                let (a, b) = (a.upper_bound(), b.upper_bound());
                next += 1;
                Dim::fresh(next - 1, a.maximum(&b))
            });
            parts.push(TensorType { dtype: a.dtype, shape: dims.collect() });
        }
        Ok(parts)
    }

    fn region(&self, chosen: bool) -> (&Graph, std::ops::Range<usize>) {
        let split = 1 + self.then.inputs().len();
        if chosen { (&self.then, 1..split) } else { (&self.otherwise, split..split + self.otherwise.inputs().len()) }
    }
}

impl Operator for If {
    fn name(&self) -> &'static str {
        "if"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        check_condition(operand(operands, 0)?)?;
        for chosen in [true, false] {
            let (region, range) = self.region(chosen);
            check_inputs(region, operands, range.start, cx)?;
        }
        let count = self.region(false).1.end;
        if operands.len() != count {
            return Err(format!("takes {count} operands, not {}", operands.len()));
        }
        Ok(Type::Tuple(self.results()?.into()))
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        cx.check(self, operands)?;
        let (region, range) = self.region(operands[0].get(0).truthy());
        evaluate(region, &operands[range], cx).map_err(|e| e.error)
    }

    /// An `if` of the same condition, whose regions replay theirs; what the other region reads gets zeros.
    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let wanted: Vec<usize> =
            (1..cx.operands.len()).filter(|i| cx.wanted[*i] && cx.operands[*i].dtype().is_float()).collect();
        let mut failed = None;
        let mut pull = |t: &Tracer<'t>, chosen: bool| -> Vec<Var<'t>> {
            let (region, range) = self.region(chosen);
            let given: Vec<Var> = cx.operands[range.clone()].iter().map(|v| t.capture(*v)).collect();
            let first = t.graph(|graph| graph.nodes().len());
            let results = outputs_of(region, &replay(t, region, &given));
            let seeds: Vec<(Var, Var)> = results
                .iter()
                .zip(cx.upstream)
                .filter_map(|(y, dy)| dy.map(|dy| (*y, t.capture(dy).reshape(y.shape()))))
                .collect();
            let found = backward(t, &seeds, &given, first).unwrap_or_else(|error| {
                failed = Some(error);
                vec![None; given.len()]
            });
            let gradient = |i: &usize| {
                let ty = cx.operands[*i].ty();
                let own = range.contains(i).then(|| found[*i - range.start]).flatten();
                let zeros = || t.scalar(crate::Literal::float(0.0, ty.dtype)).broadcast(ty.shape.clone());
                own.map_or_else(zeros, |g| g.reshape(ty.shape.clone()))
            };
            wanted.iter().map(gradient).collect()
        };
        // both closures report into one place, one after the other
        let pull = std::cell::RefCell::new(&mut pull);
        let found = cx.t.cond(cx.operands[0], |t| (pull.borrow_mut())(t, true), |t| (pull.borrow_mut())(t, false));
        if let Some(error) = failed {
            return Err(error);
        }
        let mut gradients = vec![None; cx.operands.len()];
        wanted.iter().zip(found).for_each(|(i, gradient)| gradients[*i] = Some(gradient));
        Ok(gradients)
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("size", Attr::Int(self.size.into())),
            ("then", Attr::Region(self.then.clone())),
            ("else", Attr::Region(self.otherwise.clone())),
        ]
    }

    fn regions(&self) -> SmallVec<[&Arc<Graph>; 2]> {
        smallvec![&self.then, &self.otherwise]
    }

    /// Those of the dearer region.
    fn flops(&self, _: &[Type], _: &Type) -> Dim {
        scan::flops(&self.then).maximum(&scan::flops(&self.otherwise))
    }
}

pub(super) fn read(a: &Attributes) -> Result<If, Diagnostic> {
    Ok(If { then: Arc::new(a.region("then")?), otherwise: Arc::new(a.region("else")?), size: a.fresh("size")? })
}
