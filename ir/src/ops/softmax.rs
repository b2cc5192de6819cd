//! `softmax` and `log_softmax` along an axis.

use super::{InferCx, InferError, Op, Operator, arity, check_axes, operand, same_dtype};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::eval::{EvalCx, EvalError, Num};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::Type;

/// `exp(x − max x) / Σ exp(x − max x)`, or its logarithm, along `axis`. A row of −inf gives NaN.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Softmax {
    /// The axis.
    pub axis: usize,
    /// The logarithm of it.
    pub log: bool,
}

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log_softmax" } else { "softmax" }
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        check_axes(&[self.axis], x.shape.rank())?;
        if !x.dtype.is_float() {
            return Err(format!("is not defined on {}", x.dtype));
        }
        Ok(x.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let mut x = f64::load(&operands[0]);
        for_each_row(&shape, self.axis, |row| {
            let max = row.clone().fold(f64::NEG_INFINITY, |m, i| m.greater(x[i]));
            let sum: f64 = row.clone().map(|i| (x[i] - max).exp()).sum();
            row.for_each(|i| x[i] = if self.log { x[i] - max - sum.ln() } else { (x[i] - max).exp() / sum });
        });
        Ok(vec![f64::store(dtype, &shape, &x)])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        Ok(vec![Some(cx.results[0].then(SoftmaxGrad { axis: self.axis, log: self.log }, &[cx.dy()]))])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("axis", Attr::Int(self.axis as i64))]
    }

    fn flops(&self, _: &[Type], result: &Type) -> Dim {
        // maximum, difference, exponential, sum, quotient
        super::elements(result) * Dim::from(5)
    }
}

/// `(y, dy) → dx` of [`Softmax`]: `y·(dy − Σ dy·y)`, or `dy − exp(y)·Σ dy` of the logarithm.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SoftmaxGrad {
    /// The axis.
    pub axis: usize,
    /// Of the logarithm.
    pub log: bool,
}

impl Operator for SoftmaxGrad {
    fn name(&self) -> &'static str {
        if self.log { "log_softmax_grad" } else { "softmax_grad" }
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 2)?;
        let (y, dy) = (operand(operands, 0)?, operand(operands, 1)?);
        check_axes(&[self.axis], y.shape.rank())?;
        if !same_dtype(&[y, dy])?.is_float() || y.shape.rank() != dy.shape.rank() {
            return Err(format!("{dy} is no gradient of {y}"));
        }
        for (a, b) in y.shape.iter().zip(dy.shape.iter()) {
            cx.require_equal(a, b, "extents of a softmax's gradient")?;
        }
        Ok(y.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let (y, mut dy) = (f64::load(&operands[0]), f64::load(&operands[1]));
        for_each_row(&shape, self.axis, |row| {
            if self.log {
                let sum: f64 = row.clone().map(|i| dy[i]).sum();
                row.for_each(|i| dy[i] -= y[i].exp() * sum);
            } else {
                let sum: f64 = row.clone().map(|i| dy[i] * y[i]).sum();
                row.for_each(|i| dy[i] = y[i] * (dy[i] - sum));
            }
        });
        Ok(vec![f64::store(dtype, &shape, &dy)])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let axes = [self.axis as isize];
        cx.through(|operands| {
            let (y, dy) = (operands[0], operands[1]);
            vec![match self.log {
                true => dy - y.exp() * dy.reduce_sum(&axes, true),
                false => y * (dy - (dy * y).reduce_sum(&axes, true)),
            }]
        })
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("axis", Attr::Int(self.axis as i64))]
    }

    fn flops(&self, _: &[Type], result: &Type) -> Dim {
        super::elements(result) * Dim::from(4)
    }
}

/// Calls `f` with the offsets of each line along `axis`.
fn for_each_row(shape: &[usize], axis: usize, mut f: impl FnMut(std::iter::StepBy<std::ops::Range<usize>>)) {
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    let line = shape[axis] * inner;
    for start in (0..outer).flat_map(|o| (0..inner).map(move |i| o * line + i)) {
        f((start..start - start % inner.max(1) + line).step_by(inner.max(1)));
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "softmax" | "log_softmax" => Softmax { axis: a.place("axis")?, log: name == "log_softmax" }.into(),
        "softmax_grad" | "log_softmax_grad" => {
            SoftmaxGrad { axis: a.place("axis")?, log: name == "log_softmax_grad" }.into()
        }
        _ => return Ok(None),
    }))
}
