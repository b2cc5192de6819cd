//! `conv`: N-dimensional convolution in the three forms that are closed under differentiation.

mod eval;

use smallvec::SmallVec;

use super::{InferCx, InferError, Op, Operator, arity, check_moderate, operand, summed_dtype};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::eval::{EvalCx, EvalError};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{Shape, TensorType, Type};

/// Which of the three bilinear maps of a convolution. `x [N, C, in…]`, `w [O, C/groups, k…]`, `y [N, O, out…]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConvForm {
    /// `(x, w) → y`.
    Forward,
    /// `(y, w) → x`, also called transposed convolution; `extent` holds the spatial extents of `x`.
    InputGrad,
    /// `(x, y) → w`; `extent` holds the spatial extents of `w`.
    WeightGrad,
}

/// A convolution; see [`ConvForm`] for operands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conv {
    /// Which map.
    pub form: ConvForm,
    /// Distance of windows by spatial axis.
    pub stride: SmallVec<[i64; 3]>,
    /// Zeros before by spatial axis.
    pub pad_low: SmallVec<[i64; 3]>,
    /// Zeros after by spatial axis.
    pub pad_high: SmallVec<[i64; 3]>,
    /// Distance of taps by spatial axis.
    pub dilation: SmallVec<[i64; 3]>,
    /// Channel groups.
    pub groups: i64,
    /// Spatial extents of the result, where the operands do not tell; empty in the forward form.
    pub extent: Shape,
    /// Sums of 8-bit integers of either sign are in `i32`, and so is the result.
    pub wide: bool,
}

impl Conv {
    /// A forward convolution.
    pub fn forward(stride: &[i64], pad_low: &[i64], pad_high: &[i64], dilation: &[i64], groups: i64) -> Conv {
        let list = |v: &[i64]| v.iter().copied().collect();
        Conv {
            form: ConvForm::Forward,
            stride: list(stride),
            pad_low: list(pad_low),
            pad_high: list(pad_high),
            dilation: list(dilation),
            groups,
            extent: Shape::default(),
            wide: false,
        }
    }

    /// Number of spatial axes.
    pub fn spatial(&self) -> usize {
        self.stride.len()
    }

    /// `floor((in + pads − dilation·(k − 1) − 1) / stride) + 1`.
    fn output_extent(&self, i: usize, input: &Dim, kernel: &Dim) -> Dim {
        let reach = (kernel.clone() - Dim::ONE) * Dim::from(self.dilation[i]) + Dim::ONE;
        let room = input.clone() + Dim::from(self.pad_low[i] + self.pad_high[i]) - reach;
        room.floor_div(&Dim::from(self.stride[i])) + Dim::ONE
    }
}

impl Operator for Conv {
    fn name(&self) -> &'static str {
        match self.form {
            ConvForm::Forward => "conv",
            ConvForm::InputGrad => "conv_input_grad",
            ConvForm::WeightGrad => "conv_weight_grad",
        }
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 2)?;
        let (a, b) = (operand(operands, 0)?, operand(operands, 1)?);
        let dtype = summed_dtype(a, b, self.wide)?;
        let n = self.spatial();
        if a.shape.rank() != n + 2 || b.shape.rank() != n + 2 {
            return Err(format!("{a} and {b} must have rank {} for {n} spatial axes", n + 2));
        }
        if [self.pad_low.len(), self.pad_high.len(), self.dilation.len()] != [n; 3] {
            return Err(format!("pads and dilations must have {n} entries"));
        }
        if self.groups < 1 || self.stride.iter().chain(&self.dilation).any(|v| *v < 1) {
            return Err("groups, strides and dilations must be at least 1".into());
        }
        check_moderate(&[&self.stride, &self.pad_low, &self.pad_high, &self.dilation, &[self.groups]])?;
        let groups = Dim::from(self.groups);
        let expected_extent = if self.form == ConvForm::Forward { 0 } else { n };
        if self.extent.rank() != expected_extent {
            return Err(format!("extent {} must have {expected_extent} entries", self.extent));
        }
        let mut shape = Shape::default();
        match self.form {
            ConvForm::Forward => {
                cx.require_equal(&a.shape[1], &(b.shape[1].clone() * groups.clone()), "the channels of a convolution")?;
                if !b.shape[0].modulo(&groups).is(0) {
                    return Err(format!("{} output channels are not a multiple of {groups} groups", b.shape[0]));
                }
                shape.push(a.shape[0].clone());
                shape.push(b.shape[0].clone());
                for i in 0..n {
                    let out = self.output_extent(i, &a.shape[2 + i], &b.shape[2 + i]);
                    if out.range().1 < 1 {
                        return Err(format!("the kernel {b} does not fit into the padded input {a}"));
                    }
                    shape.push(out);
                }
            }
            ConvForm::InputGrad => {
                cx.require_equal(&a.shape[1], &b.shape[0], "the channels of a convolution's gradient")?;
                for i in 0..n {
                    let out = self.output_extent(i, &self.extent[i], &b.shape[2 + i]);
                    cx.require_equal(&a.shape[2 + i], &out, "spatial extents of a convolution's gradient")?;
                }
                shape.push(a.shape[0].clone());
                shape.push(b.shape[1].clone() * groups);
                shape = shape.iter().chain(self.extent.iter()).cloned().collect();
            }
            ConvForm::WeightGrad => {
                cx.require_equal(&a.shape[0], &b.shape[0], "the batch of a convolution's gradient")?;
                for i in 0..n {
                    let out = self.output_extent(i, &a.shape[2 + i], &self.extent[i]);
                    cx.require_equal(&b.shape[2 + i], &out, "spatial extents of a convolution's gradient")?;
                }
                shape.push(b.shape[1].clone());
                shape.push(a.shape[1].floor_div(&groups));
                shape = shape.iter().chain(self.extent.iter()).cloned().collect();
            }
        }
        Ok(TensorType { dtype, shape }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        eval::eval(self, operands, cx)
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let (a, b, dy) = (cx.operands[0], cx.operands[1], cx.dy());
        let spatial = |shape: Shape| Shape::from(&shape[2..]);
        let form = |form, extent| Conv { form, extent, ..self.clone() };
        let forward = || form(ConvForm::Forward, Shape::default());
        // each form is linear in both operands, and the adjoints are the other two forms
        let (da, db) = match self.form {
            ConvForm::Forward => (
                cx.wanted[0].then(|| dy.conv(b, form(ConvForm::InputGrad, spatial(a.shape())))),
                cx.wanted[1].then(|| a.conv(dy, form(ConvForm::WeightGrad, spatial(b.shape())))),
            ),
            ConvForm::InputGrad => (
                cx.wanted[0].then(|| dy.conv(b, forward())),
                cx.wanted[1].then(|| dy.conv(a, form(ConvForm::WeightGrad, spatial(b.shape())))),
            ),
            ConvForm::WeightGrad => (
                cx.wanted[0].then(|| b.conv(dy, form(ConvForm::InputGrad, spatial(a.shape())))),
                cx.wanted[1].then(|| a.conv(dy, forward())),
            ),
        };
        Ok(vec![da, db])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        let mut all = vec![
            ("stride", Attr::Ints(self.stride.to_vec())),
            ("pad_low", Attr::Ints(self.pad_low.to_vec())),
            ("pad_high", Attr::Ints(self.pad_high.to_vec())),
            ("dilation", Attr::Ints(self.dilation.to_vec())),
            ("groups", Attr::Int(self.groups)),
            ("extent", Attr::Dims(self.extent.to_vec())),
        ];
        if self.wide {
            all.push(("wide", Attr::Bool(true)));
        }
        all
    }

    fn flops(&self, operands: &[Type], result: &Type) -> Dim {
        // each form does the forward form's products: for each element of y, a filter
        let shape = |i: usize| operands.get(i).and_then(Type::tensor).map(|ty| ty.shape.clone()).unwrap_or_default();
        let own = result.parts().first().map(|ty| ty.shape.clone()).unwrap_or_default();
        let (w, y) = match self.form {
            ConvForm::Forward => (shape(1), own),
            ConvForm::InputGrad => (shape(1), shape(0)),
            ConvForm::WeightGrad => (own, shape(1)),
        };
        let filter = w.iter().skip(1).fold(Dim::from(2), |n, extent| n * extent.clone());
        y.elements() * filter
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    let form = match name {
        "conv" => ConvForm::Forward,
        "conv_input_grad" => ConvForm::InputGrad,
        "conv_weight_grad" => ConvForm::WeightGrad,
        _ => return Ok(None),
    };
    Ok(Some(
        Conv {
            form,
            stride: a.ints("stride")?.into(),
            pad_low: a.ints("pad_low")?.into(),
            pad_high: a.ints("pad_high")?.into(),
            dilation: a.ints("dilation")?.into(),
            groups: a.int("groups")?,
            extent: a.dims("extent")?.into_iter().collect(),
            wide: a.has("wide") && a.truth("wide")?,
        }
        .into(),
    ))
}
