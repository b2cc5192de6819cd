//! `reduce`: sums and extrema along axes.

use smallvec::SmallVec;

use super::{InferCx, InferError, Op, Operator, arity, check_axes, operand};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError, Num, by_kind, gathered, row_major};
use crate::scalar::{Literal, ScalarValue};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::tracer::Var;
use crate::types::{Shape, TensorType, Type};

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReduceKind {
    /// Σ x.
    Sum,
    /// Σ x / n.
    Mean,
    /// max x; NaN if one is NaN.
    Max,
    /// min x; NaN if one is NaN.
    Min,
    /// Π x.
    Prod,
}

/// A reduction along axes, which are removed or, with `keep`, become 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reduce {
    /// What is computed.
    pub kind: ReduceKind,
    /// The axes, ascending.
    pub axes: SmallVec<[usize; 4]>,
    /// Whether reduced axes stay, with extent 1.
    pub keep: bool,
}

/// The extremum of no elements: the element type's own opposite extremum, as in ONNX.
pub(super) fn of_nothing(max: bool, dtype: DType) -> Literal {
    let least = match dtype {
        _ if dtype.is_float() => ScalarValue::Float(f64::NEG_INFINITY),
        _ if dtype.is_unsigned() => ScalarValue::Int(0),
        _ => ScalarValue::Int(-1 << (8 * dtype.size() - 1)),
    };
    let value = match (max, least) {
        (true, least) => least,
        (false, ScalarValue::Float(x)) => ScalarValue::Float(-x),
        // all bits but the sign of a signed integer, all bits of an unsigned one
        (false, other) => ScalarValue::Int(if dtype.is_unsigned() { -1 } else { !other.as_int() }),
    };
    Literal::new(value, dtype)
}

impl Operator for Reduce {
    fn name(&self) -> &'static str {
        match self.kind {
            ReduceKind::Sum => "reduce_sum",
            ReduceKind::Mean => "reduce_mean",
            ReduceKind::Max => "reduce_max",
            ReduceKind::Min => "reduce_min",
            ReduceKind::Prod => "reduce_prod",
        }
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        check_axes(&self.axes, x.shape.rank())?;
        if !self.axes.is_sorted() {
            return Err(format!("axes {:?} are not ascending", self.axes));
        }
        if self.kind == ReduceKind::Mean && !x.dtype.is_float() || x.dtype == DType::Bool {
            return Err(format!("is not defined on {}", x.dtype));
        }
        let dims = x.shape.iter().enumerate().filter_map(|(axis, dim)| match self.axes.contains(&axis) {
            true => self.keep.then_some(Dim::ONE),
            false => Some(dim.clone()),
        });
        Ok(TensorType { dtype: x.dtype, shape: dims.collect() }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        fn go<N: Num>(op: &Reduce, x: &Tensor, shape: &[usize]) -> Tensor {
            let (dims, own) = (x.shape(), row_major(x.shape()));
            let kept = (0..dims.len()).filter(|axis| !op.axes.contains(axis));
            let order: Vec<usize> = kept.chain(op.axes.iter().copied()).collect();
            let turned: Vec<usize> = order.iter().map(|axis| dims[*axis]).collect();
            let strides: Vec<isize> = order.iter().map(|axis| own[*axis]).collect();
            let values = gathered(&N::load(x), &turned, &strides, 0);
            let count: usize = op.axes.iter().map(|axis| dims[*axis]).product();
            let groups: usize = shape.iter().product();
            let lines = (0..groups).map(|i| &values[i * count..][..count]);
            let reduced: Vec<N> = match op.kind {
                ReduceKind::Sum => lines.map(|l| l.iter().fold(N::ZERO, |s, v| s.plus(*v))).collect(),
                ReduceKind::Mean => {
                    lines.map(|l| l.iter().fold(N::ZERO, |s, v| s.plus(*v)).over_count(count)).collect()
                }
                ReduceKind::Prod => lines.map(|l| l.iter().fold(N::ONE, |s, v| s.times(*v))).collect(),
                ReduceKind::Max | ReduceKind::Min if count == 0 => {
                    return Tensor::splat(of_nothing(op.kind == ReduceKind::Max, x.dtype()), shape);
                }
                ReduceKind::Max => lines.map(|l| l.iter().fold(l[0], |m, v| m.greater(*v))).collect(),
                ReduceKind::Min => lines.map(|l| l.iter().fold(l[0], |m, v| m.lesser(*v))).collect(),
            };
            N::store(x.dtype(), shape, &reduced)
        }
        let (dtype, shape) = cx.result(self, operands)?;
        Ok(vec![by_kind!(dtype, go(self, &operands[0], &shape))])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let (x, dy) = (cx.operands[0], cx.dy());
        let shape = x.shape();
        let kept: Shape = (0..shape.rank())
            .map(|axis| if self.axes.contains(&axis) { Dim::ONE } else { shape[axis].clone() })
            .collect();
        let axes: Vec<isize> = self.axes.iter().map(|axis| *axis as isize).collect();
        let dy = dy.reshape(kept.clone());
        let zero = || cx.t.scalar(Literal::float(0.0, x.dtype()));
        let ones = |mask: Var<'t>| mask.cast(x.dtype());
        let gradient = match self.kind {
            ReduceKind::Sum => dy.broadcast(shape),
            ReduceKind::Mean => {
                let count = self.axes.iter().fold(Dim::ONE, |n, axis| n * shape[*axis].clone());
                (dy / cx.size(&count, x.dtype())).broadcast(shape)
            }
            // ties share the gradient
            ReduceKind::Max | ReduceKind::Min => {
                let wins = x.equal(cx.results[0].reshape(kept));
                let share = dy / ones(wins).reduce_sum(&axes, true);
                wins.select(share, zero())
            }
            // the product of the others: the whole over x, or, where x is 0, the whole without zeros
            ReduceKind::Prod => {
                let is_zero = x.equal(0.0);
                let one = cx.t.scalar(Literal::float(1.0, x.dtype()));
                let safe = is_zero.select(one, x);
                let others = safe.reduce_prod(&axes, true) / safe;
                let zeros_elsewhere = ones(is_zero).reduce_sum(&axes, true) - ones(is_zero);
                zeros_elsewhere.equal(0.0).select(dy * others, zero())
            }
        };
        Ok(vec![Some(gradient)])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("axes", Attr::places(&self.axes)), ("keep", Attr::Bool(self.keep))]
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        super::operand_elements(operands, 0)
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    let kind = match name {
        "reduce_sum" => ReduceKind::Sum,
        "reduce_mean" => ReduceKind::Mean,
        "reduce_max" => ReduceKind::Max,
        "reduce_min" => ReduceKind::Min,
        "reduce_prod" => ReduceKind::Prod,
        _ => return Ok(None),
    };
    Ok(Some(Reduce { kind, axes: a.places("axes")?.into(), keep: a.truth("keep")? }.into()))
}
