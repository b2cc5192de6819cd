//! `reduce_window`: pooling.

use smallvec::SmallVec;

use super::{InferCx, InferError, Operator, arity, operand};
use crate::dim::Dim;
use crate::types::{Shape, TensorType, Type};

/// What a window computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WindowKind {
    /// The greatest element; padding never wins; NaN if one is NaN.
    Max,
    /// The sum.
    Sum,
    /// The mean over elements that exist.
    MeanValid,
    /// The mean over the whole window, padding counted as zeros.
    MeanAll,
}

/// A window over the last axes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Window {
    /// Extent by windowed axis.
    pub size: SmallVec<[i64; 3]>,
    /// Distance of windows.
    pub stride: SmallVec<[i64; 3]>,
    /// Padding before.
    pub pad_low: SmallVec<[i64; 3]>,
    /// Padding after.
    pub pad_high: SmallVec<[i64; 3]>,
    /// Distance of elements in a window.
    pub dilation: SmallVec<[i64; 3]>,
}

impl Window {
    /// The shape of the windowed result.
    ///
    /// # Errors
    /// When the window does not fit.
    pub fn output(&self, x: &Shape) -> Result<Shape, InferError> {
        let n = self.size.len();
        if [self.stride.len(), self.pad_low.len(), self.pad_high.len(), self.dilation.len()] != [n; 4] {
            return Err(format!("strides, pads and dilations must have {n} entries"));
        }
        let Some(lead) = x.rank().checked_sub(n) else { return Err(format!("{n} windowed axes do not fit {x}")) };
        let mut shape: Shape = x[..lead].iter().cloned().collect();
        for i in 0..n {
            if self.size[i] < 1 || self.stride[i] < 1 || self.dilation[i] < 1 {
                return Err("windows, strides and dilations must be at least 1".into());
            }
            let reach = self.dilation[i] * (self.size[i] - 1) + 1;
            let room = x[lead + i].clone() + Dim::from(self.pad_low[i] + self.pad_high[i] - reach);
            let out = room.floor_div(&Dim::from(self.stride[i])) + Dim::ONE;
            if out.range().1 < 1 {
                return Err(format!("window {:?} does not fit into padded {x}", self.size));
            }
            shape.push(out);
        }
        Ok(shape)
    }
}

/// A reduction over windows of the last axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReduceWindow {
    /// What is computed.
    pub kind: WindowKind,
    /// The windows.
    pub window: Window,
}

impl Operator for ReduceWindow {
    fn name(&self) -> &'static str {
        match self.kind {
            WindowKind::Max => "window_max",
            WindowKind::Sum => "window_sum",
            WindowKind::MeanValid => "window_mean_valid",
            WindowKind::MeanAll => "window_mean_all",
        }
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        Ok(TensorType { dtype: x.dtype, shape: self.window.output(&x.shape)? }.into())
    }
}

/// `(x, dy) → dx` of [`ReduceWindow`]; the gradient of tied maxima is split.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReduceWindowGrad {
    /// What the forward window computed.
    pub kind: WindowKind,
    /// The windows.
    pub window: Window,
}

impl Operator for ReduceWindowGrad {
    fn name(&self) -> &'static str {
        match self.kind {
            WindowKind::Max => "window_max_grad",
            WindowKind::Sum => "window_sum_grad",
            WindowKind::MeanValid => "window_mean_valid_grad",
            WindowKind::MeanAll => "window_mean_all_grad",
        }
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 2)?;
        let (x, dy) = (operand(operands, 0)?, operand(operands, 1)?);
        let y = self.window.output(&x.shape)?;
        if y.rank() != dy.shape.rank() {
            return Err(format!("the gradient {dy} does not fit windows of {x}"));
        }
        for (a, b) in y.iter().zip(dy.shape.iter()) {
            cx.require_equal(a, b, "extents of a window's gradient")?;
        }
        Ok(x.clone().into())
    }
}
