//! Normalisation of rows: layer norm and RMS norm, without their affine part.

use super::{InferCx, InferError, Operator, Real, arity, operand, same_dtype};
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
        same_dtype(&[x, dy])?;
        if x.shape.rank() != dy.shape.rank() || self.axis >= x.shape.rank() {
            return Err(format!("{dy} is no gradient of {x} normalised from axis {}", self.axis));
        }
        for (a, b) in x.shape.iter().zip(dy.shape.iter()) {
            cx.require_equal(a, b, "extents of a norm's gradient")?;
        }
        Ok(x.clone().into())
    }
}
