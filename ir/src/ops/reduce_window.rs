//! `reduce_window`: pooling.

use smallvec::SmallVec;

use super::{InferCx, InferError, InnerKind, Op, Operator, Outside, arity, check_moderate, operand, same_dtype};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError, Num, PADDING, Taps, by_kind};
use crate::scalar::Literal;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::tracer::{Scalar, Var};
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

impl WindowKind {
    /// Whether the sum is divided.
    fn is_mean(self) -> bool {
        matches!(self, WindowKind::MeanValid | WindowKind::MeanAll)
    }
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
    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("size", Attr::Ints(self.size.to_vec())),
            ("stride", Attr::Ints(self.stride.to_vec())),
            ("pad_low", Attr::Ints(self.pad_low.to_vec())),
            ("pad_high", Attr::Ints(self.pad_high.to_vec())),
            ("dilation", Attr::Ints(self.dilation.to_vec())),
        ]
    }

    /// A window without dilation, padded alike on both sides.
    pub fn symmetric(size: &[i64], stride: &[i64], padding: &[i64]) -> Window {
        let list = |v: &[i64]| v.iter().copied().collect();
        Window {
            size: list(size),
            stride: list(stride),
            pad_low: list(padding),
            pad_high: list(padding),
            dilation: smallvec::smallvec![1; size.len()],
        }
    }

    /// The shape of the windowed result.
    ///
    /// # Errors
    /// When the window does not fit.
    pub fn output(&self, x: &Shape) -> Result<Shape, InferError> {
        let n = self.size.len();
        if [self.stride.len(), self.pad_low.len(), self.pad_high.len(), self.dilation.len()] != [n; 4] {
            return Err(format!("strides, pads and dilations must have {n} entries"));
        }
        check_moderate(&[&self.size, &self.stride, &self.pad_low, &self.pad_high, &self.dilation])?;
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

    /// Offsets of window elements in one plane of the windowed axes.
    fn taps(&self, x: &[usize], y: &[usize]) -> Taps {
        let lead = x.len() - self.size.len();
        let size: Vec<usize> = self.size.iter().map(|n| *n as usize).collect();
        Taps::new(&x[lead..], &size, &y[lead..], &self.stride, &self.pad_low, &self.dilation)
    }

    /// That planes and tables of offsets can be numbered.
    fn check(&self, x: &[usize], y: &[usize]) -> Result<(), EvalError> {
        let lead = x.len() - self.size.len();
        let plane: usize = x[lead..].iter().product();
        let elements = self.size.iter().try_fold(1usize, |n, k| n.checked_mul(*k as usize));
        let table = elements.and_then(|n| n.checked_mul(y[lead..].iter().product()));
        match table {
            Some(table) if table < 1 << 34 && plane < PADDING as usize => Ok(()),
            _ => Err(EvalError::TooLarge { shape: y.to_vec() }),
        }
    }

    /// The planes of the windowed axes.
    fn planes<'a, N>(&self, values: &'a [N], x: &[usize]) -> std::slice::ChunksExact<'a, N> {
        let plane: usize = x[x.len() - self.size.len()..].iter().product();
        values.chunks_exact(plane.max(1))
    }

    /// By window, what a mean divides by.
    fn counts(&self, kind: WindowKind, taps: &Taps) -> Vec<usize> {
        match kind {
            WindowKind::MeanValid => {
                (0..taps.windows).map(|w| (0..taps.elements).filter(|e| taps.of(*e)[w] != PADDING).count()).collect()
            }
            _ => vec![taps.elements; taps.windows],
        }
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
        if self.kind.is_mean() && !x.dtype.is_float() || x.dtype == DType::Bool {
            return Err(format!("is not defined on {}", x.dtype));
        }
        Ok(TensorType { dtype: x.dtype, shape: self.window.output(&x.shape)? }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        fn go<N: Num>(op: &ReduceWindow, x: &Tensor, shape: &[usize]) -> Tensor {
            let taps = op.window.taps(x.shape(), shape);
            let counts = op.window.counts(op.kind, &taps);
            let values = N::load(x);
            let mut out: Vec<N> = Vec::with_capacity(shape.iter().product());
            for plane in op.window.planes(&values, x.shape()) {
                let mut results: Vec<Option<N>> = vec![None; taps.windows];
                for element in 0..taps.elements {
                    for (result, at) in results.iter_mut().zip(taps.of(element)) {
                        if *at != PADDING {
                            let value = plane[*at as usize];
                            *result = Some(match (*result, op.kind) {
                                (None, _) => value,
                                (Some(have), WindowKind::Max) => have.greater(value),
                                (Some(have), _) => have.plus(value),
                            });
                        }
                    }
                }
                out.extend(results.iter().zip(&counts).map(|(result, count)| match result {
                    Some(value) if op.kind.is_mean() => value.over_count(*count),
                    Some(value) => *value,
                    None => N::ZERO,
                }));
            }
            N::store(x.dtype(), shape, &out)
        }
        let (dtype, shape) = cx.result(self, operands)?;
        self.window.check(operands[0].shape(), &shape)?;
        Ok(vec![by_kind!(dtype, go(self, &operands[0], &shape))])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let grad = ReduceWindowGrad { kind: self.kind, window: self.window.clone() };
        Ok(vec![Some(cx.operands[0].then(grad, &[cx.dy()]))])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        self.window.attributes()
    }

    fn flops(&self, _: &[Type], result: &Type) -> Dim {
        super::elements(result) * Dim::from(self.window.size.iter().fold(1i64, |n, k| n.saturating_mul(*k)))
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

impl ReduceWindowGrad {
    /// By window, the mean of the upstream gradient over the elements that are its maximum.
    fn at_maxima<'t>(&self, cx: &VjpCx<'_, 't>) -> Var<'t> {
        let (x, w) = (cx.operands[0], &self.window);
        let dtype = x.dtype();
        let elements = w.size.iter().fold(1i64, |n, size| n.saturating_mul(*size));
        cx.t.generate(cx.operands[1].ty(), &[x, cx.dy()], |g, index| {
            let lead = index.len() - w.size.len();
            // places of element `e` of the window, numbered in row-major order
            let places = |e: &Scalar| {
                let mut inner = elements;
                let mut places = index[..lead].to_vec();
                for (axis, size) in w.size.iter().enumerate() {
                    inner /= size;
                    let tap = (e / inner) % *size;
                    let first = &index[lead + axis] * w.stride[axis] - w.pad_low[axis];
                    places.push(first + tap * w.dilation[axis]);
                }
                places
            };
            let least = Outside::Fill(Literal::float(f64::NEG_INFINITY, dtype));
            let none = Outside::Fill(Literal::float(0.0, dtype));
            let best = g.reduce(InnerKind::Max, elements, None, |g, e| g.load(0, &places(&e), least));
            let ties = g.sum(elements, |g, e| g.load(0, &places(&e), least).equal(&best).cast(dtype));
            let sum = g.sum(elements, |g, e| {
                let wins = g.load(0, &places(&e), least).equal(&best);
                wins.select(g.load(1, &places(&e), none), 0.0)
            });
            sum / ties
        })
    }
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
        if y.rank() != dy.shape.rank() || !same_dtype(&[x, dy])?.is_float() {
            return Err(format!("the gradient {dy} does not fit windows of {x}"));
        }
        for (a, b) in y.iter().zip(dy.shape.iter()) {
            cx.require_equal(a, b, "extents of a window's gradient")?;
        }
        Ok(x.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let (x, dy) = (f64::load(&operands[0]), f64::load(&operands[1]));
        self.window.check(&shape, operands[1].shape())?;
        let taps = self.window.taps(&shape, operands[1].shape());
        let counts = self.window.counts(self.kind, &taps);
        let mut dx = vec![0.0; x.len()];
        let size: usize = shape[shape.len() - self.window.size.len()..].iter().product();
        for (i, dy) in dy.chunks_exact(taps.windows.max(1)).enumerate() {
            let (plane, dx) = (&x[i * size..][..size], &mut dx[i * size..][..size]);
            for (window, dy) in dy.iter().enumerate() {
                let places = (0..taps.elements).map(|e| taps.of(e)[window]).filter(|at| *at != PADDING);
                let places = places.map(|at| at as usize);
                if self.kind == WindowKind::Max {
                    let max = places.clone().fold(f64::NEG_INFINITY, |m, at| m.greater(plane[at]));
                    let wins = |at: &usize| plane[*at] == max || max.is_nan() && plane[*at].is_nan();
                    let ties = places.clone().filter(wins).count() as f64;
                    places.filter(wins).for_each(|at| dx[at] += dy / ties);
                } else {
                    places.for_each(|at| dx[at] += if self.kind.is_mean() { dy / counts[window] as f64 } else { *dy });
                }
            }
        }
        Ok(vec![f64::store(dtype, &shape, &dx)])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        // linear in dy, and independent of x but for where the maxima are
        Ok(vec![
            None,
            Some(match self.kind {
                WindowKind::Max => self.at_maxima(cx),
                kind => cx.dy().then(ReduceWindow { kind, window: self.window.clone() }, &[]),
            }),
        ])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        self.window.attributes()
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        super::operand_elements(operands, 1)
            * Dim::from(self.window.size.iter().fold(1i64, |n, k| n.saturating_mul(*k)))
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    let kind = match name.strip_suffix("_grad").unwrap_or(name) {
        "window_max" => WindowKind::Max,
        "window_sum" => WindowKind::Sum,
        "window_mean_valid" => WindowKind::MeanValid,
        "window_mean_all" => WindowKind::MeanAll,
        _ => return Ok(None),
    };
    let window = Window {
        size: a.ints("size")?.into(),
        stride: a.ints("stride")?.into(),
        pad_low: a.ints("pad_low")?.into(),
        pad_high: a.ints("pad_high")?.into(),
        dilation: a.ints("dilation")?.into(),
    };
    Ok(Some(match name.ends_with("_grad") {
        true => ReduceWindowGrad { kind, window }.into(),
        false => ReduceWindow { kind, window }.into(),
    }))
}
