//! Normalisation of rows: layer norm and RMS norm, without their affine part.

use super::{InferCx, InferError, Op, Operator, Real, arity, operand, same_dtype};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::eval::{EvalCx, EvalError, Num};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::tracer::Var;
use crate::types::Type;

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NormKind {
    /// `(x − mean) / √(var + eps)`, with the biased variance.
    Layer,
    /// `x / √(mean x² + eps)`.
    Rms,
}

/// Normalises over all axes from `axis` to the last; scale and bias are operators after it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Norm {
    /// Which normalisation.
    pub kind: NormKind,
    /// First normalised axis.
    pub axis: usize,
    /// Added to the variance.
    pub eps: Real,
}

impl Operator for Norm {
    fn name(&self) -> &'static str {
        match self.kind {
            NormKind::Layer => "layer_norm",
            NormKind::Rms => "rms_norm",
        }
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        if self.axis >= x.shape.rank() || !x.dtype.is_float() {
            return Err(format!("axis {} of {x} cannot be normalised", self.axis));
        }
        Ok(x.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let mut x = f64::load(&operands[0]);
        let width: usize = shape[self.axis..].iter().product();
        for row in x.chunks_exact_mut(width.max(1)) {
            let (mean, scale) = statistics(self.kind, self.eps, row);
            row.iter_mut().for_each(|x| *x = (*x - mean) * scale);
        }
        Ok(vec![f64::store(dtype, &shape, &x)])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let grad = NormGrad { kind: self.kind, axis: self.axis, eps: self.eps };
        Ok(vec![Some(cx.operands[0].then(grad, &[cx.dy()]))])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("axis", Attr::Int(self.axis as i64)), ("eps", Attr::Real(self.eps.get()))]
    }

    fn flops(&self, _: &[Type], result: &Type) -> Dim {
        // mean, difference, square and sum, product
        super::elements(result) * Dim::from(6)
    }
}

/// `(x, dy) → dx` of [`Norm`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NormGrad {
    /// Which normalisation.
    pub kind: NormKind,
    /// First normalised axis.
    pub axis: usize,
    /// Added to the variance.
    pub eps: Real,
}

impl Operator for NormGrad {
    fn name(&self) -> &'static str {
        match self.kind {
            NormKind::Layer => "layer_norm_grad",
            NormKind::Rms => "rms_norm_grad",
        }
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 2)?;
        let (x, dy) = (operand(operands, 0)?, operand(operands, 1)?);
        if !same_dtype(&[x, dy])?.is_float() || x.shape.rank() != dy.shape.rank() || self.axis >= x.shape.rank() {
            return Err(format!("{dy} is no gradient of {x} normalised from axis {}", self.axis));
        }
        for (a, b) in x.shape.iter().zip(dy.shape.iter()) {
            cx.require_equal(a, b, "extents of a norm's gradient")?;
        }
        Ok(x.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let (x, mut dy) = (f64::load(&operands[0]), f64::load(&operands[1]));
        let width: usize = shape[self.axis..].iter().product::<usize>().max(1);
        for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact_mut(width)) {
            let (mean, scale) = statistics(self.kind, self.eps, x);
            let n = width as f64;
            let along = x.iter().zip(dy.iter()).map(|(x, dy)| (x - mean) * scale * dy).sum::<f64>() / n;
            let level = match self.kind {
                NormKind::Layer => dy.iter().sum::<f64>() / n,
                NormKind::Rms => 0.0,
            };
            x.iter().zip(dy.iter_mut()).for_each(|(x, dy)| *dy = scale * (*dy - level - (x - mean) * scale * along));
        }
        Ok(vec![f64::store(dtype, &shape, &dy)])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        cx.through(|operands| {
            let (x, dy) = (operands[0], operands[1]);
            let axes: Vec<isize> = (self.axis as isize..x.rank() as isize).collect();
            let mean = |v: Var<'t>| v.reduce_mean(&axes, true);
            let centred = match self.kind {
                NormKind::Layer => x - mean(x),
                NormKind::Rms => x,
            };
            let scale = (mean(centred * centred) + self.eps.get()).rsqrt();
            let y = centred * scale;
            let level = match self.kind {
                NormKind::Layer => dy - mean(dy),
                NormKind::Rms => dy,
            };
            vec![scale * (level - y * mean(y * dy))]
        })
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("axis", Attr::Int(self.axis as i64)), ("eps", Attr::Real(self.eps.get()))]
    }

    fn flops(&self, _: &[Type], result: &Type) -> Dim {
        super::elements(result) * Dim::from(11)
    }
}

/// What is subtracted from a row, and what it is multiplied by.
fn statistics(kind: NormKind, eps: Real, row: &[f64]) -> (f64, f64) {
    let n = row.len() as f64;
    let mean = match kind {
        NormKind::Layer => row.iter().sum::<f64>() / n,
        NormKind::Rms => 0.0,
    };
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    (mean, 1.0 / (variance + eps.get()).sqrt())
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    let kind = match name.strip_suffix("_grad").unwrap_or(name) {
        "layer_norm" => NormKind::Layer,
        "rms_norm" => NormKind::Rms,
        _ => return Ok(None),
    };
    let (axis, eps) = (a.place("axis")?, Real::new(a.real("eps")?));
    Ok(Some(match name.ends_with("_grad") {
        true => NormGrad { kind, axis, eps }.into(),
        false => Norm { kind, axis, eps }.into(),
    }))
}
