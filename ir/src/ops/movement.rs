//! Data movement: the same elements in another place.

use smallvec::SmallVec;

use super::{InferCx, InferError, Op, Operator, arity, check_axes, check_moderate, operand, same_dtype};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::eval::{EvalCx, EvalError, broadcast_strides, copy_elements, place_elements, row_major};
use crate::scalar::Literal;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{Shape, TensorType, Type};

/// The same elements, in row-major order, in another shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reshape {
    /// The shape of the result.
    pub shape: Shape,
}

impl Operator for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        cx.require_equal(&x.shape.elements(), &self.shape.elements(), "the number of elements of a reshape")?;
        Ok(TensorType { dtype: x.dtype, shape: self.shape.clone() }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (_, shape) = cx.result(self, operands)?;
        let wrong = || EvalError::Operands(format!("{:?} has not the elements of {shape:?}", operands[0].shape()));
        operands[0].reshaped(&shape).map(|y| vec![y]).ok_or_else(wrong)
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        Ok(vec![Some(cx.dy().reshape(cx.operands[0].shape()))])
    }
}

/// Axes in another order: axis `i` of the result is axis `permutation[i]` of the operand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Transpose {
    /// Which axis of the operand each axis of the result is.
    pub permutation: SmallVec<[usize; 6]>,
}

impl Operator for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        check_axes(&self.permutation, x.shape.rank())?;
        if self.permutation.len() != x.shape.rank() {
            return Err(format!("permutation {:?} does not fit rank {}", self.permutation, x.shape.rank()));
        }
        let shape = self.permutation.iter().map(|axis| x.shape[*axis].clone()).collect();
        Ok(TensorType { dtype: x.dtype, shape }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (_, shape) = cx.result(self, operands)?;
        let own = row_major(operands[0].shape());
        let strides: Vec<isize> = self.permutation.iter().map(|axis| own[*axis]).collect();
        Ok(vec![copy_elements(&operands[0], &shape, &strides, 0)])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let mut inverse = vec![0; self.permutation.len()];
        self.permutation.iter().enumerate().for_each(|(i, axis)| inverse[*axis] = i);
        Ok(vec![Some(cx.dy().transpose(&inverse))])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("permutation", Attr::places(&self.permutation))]
    }
}

/// Repeats extents of 1, and adds leading axes, by NumPy's rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Broadcast {
    /// The shape of the result.
    pub shape: Shape,
}

impl Operator for Broadcast {
    fn name(&self) -> &'static str {
        "broadcast"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        let Some(offset) = self.shape.rank().checked_sub(x.shape.rank()) else {
            return Err(format!("{} does not broadcast to {}", x.shape, self.shape));
        };
        for (have, want) in x.shape.iter().zip(&self.shape[offset..]) {
            if !have.is(1) {
                cx.require_equal(have, want, "an extent that is broadcast")?;
            }
        }
        Ok(TensorType { dtype: x.dtype, shape: self.shape.clone() }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (_, shape) = cx.result(self, operands)?;
        Ok(vec![copy_elements(&operands[0], &shape, &broadcast_strides(operands[0].shape(), &shape), 0)])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        Ok(vec![Some(cx.sum_to(cx.dy(), &cx.operands[0].shape()))])
    }
}

/// Elements `start, start + step, …` below `limit`, of every axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slice {
    /// First index by axis.
    pub start: SmallVec<[Dim; 4]>,
    /// One past the last index by axis.
    pub limit: SmallVec<[Dim; 4]>,
    /// Distance of taken indices by axis, at least 1.
    pub step: SmallVec<[i64; 4]>,
}

impl Operator for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        let rank = x.shape.rank();
        if [self.start.len(), self.limit.len(), self.step.len()] != [rank; 3] {
            return Err(format!("start, limit and step must have {rank} entries for {}", x.shape));
        }
        check_moderate(&[&self.step])?;
        let mut shape = Shape::default();
        for axis in 0..rank {
            let (start, limit) = (&self.start[axis], &self.limit[axis]);
            let inside = start.range().0 >= 0
                && (x.shape[axis].clone() - limit.clone()).range().1 >= 0
                && (limit.clone() - start.clone()).range().1 >= 0;
            if self.step[axis] < 1 || !inside {
                return Err(format!(
                    "slice {start}..{limit} step {} is outside extent {} of axis {axis}",
                    self.step[axis], x.shape[axis]
                ));
            }
            shape.push((limit.clone() - start.clone()).ceil_div(&Dim::from(self.step[axis])));
        }
        Ok(TensorType { dtype: x.dtype, shape }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (_, shape) = cx.result(self, operands)?;
        let x = &operands[0];
        let own = row_major(x.shape());
        let mut offset = 0;
        let mut strides = Vec::new();
        for (axis, own) in own.iter().enumerate() {
            let (start, limit) = (self.start[axis].eval(cx.bindings)?, self.limit[axis].eval(cx.bindings)?);
            let extent = x.shape()[axis] as i64;
            if start < 0 || start > limit || limit > extent {
                return Err(EvalError::Operands(format!("slice {start}..{limit} is outside extent {extent}")));
            }
            offset += start as isize * own;
            strides.push(own * self.step[axis] as isize);
        }
        Ok(vec![copy_elements(x, &shape, &strides, offset)])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let (x, y) = (cx.operands[0].ty(), cx.results[0].shape());
        let mut pad = Pad {
            low: self.start.clone(),
            high: SmallVec::new(),
            interior: self.step.iter().map(|step| step - 1).collect(),
            value: Literal::float(0.0, x.dtype),
        };
        for axis in 0..y.rank() {
            let taken = match self.step[axis] {
                1 => self.limit[axis].clone(),
                step => (y[axis].clone() - Dim::ONE) * Dim::from(step) + Dim::ONE + self.start[axis].clone(),
            };
            // a run checks that the slice lies inside, where symbols alone do not tell
            let after = x.shape[axis].clone() - taken;
            pad.high.push(if after.range().0 < 0 { after.maximum(&Dim::ZERO) } else { after });
        }
        Ok(vec![Some(cx.dy().then(pad, &[]).reshape(x.shape))])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("start", Attr::Dims(self.start.to_vec())),
            ("limit", Attr::Dims(self.limit.to_vec())),
            ("step", Attr::Ints(self.step.to_vec())),
        ]
    }
}

/// Surrounds the elements with `value`; `interior` puts that many between neighbours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pad {
    /// Elements before, by axis; negative is not legal.
    pub low: SmallVec<[Dim; 4]>,
    /// Elements after, by axis.
    pub high: SmallVec<[Dim; 4]>,
    /// Elements between neighbours, by axis.
    pub interior: SmallVec<[i64; 4]>,
    /// The element put in.
    pub value: Literal,
}

impl Operator for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        let rank = x.shape.rank();
        if [self.low.len(), self.high.len(), self.interior.len()] != [rank; 3] {
            return Err(format!("low, high and interior must have {rank} entries for {}", x.shape));
        }
        check_moderate(&[&self.interior])?;
        if self.value.dtype != x.dtype {
            return Err(format!("the padding value {:?} is not {}", self.value, x.dtype));
        }
        if self.low.iter().chain(&self.high).any(|pad| pad.range().0 < 0) || self.interior.iter().any(|n| *n < 0) {
            return Err(format!("negative padding {:?} {:?} {:?}", self.low, self.high, self.interior));
        }
        let shape = (0..rank).map(|axis| {
            let inner = x.shape[axis].clone();
            let spread = match self.interior[axis] {
                0 => inner,
                gap => ((inner - Dim::ONE) * Dim::from(gap + 1) + Dim::ONE).maximum(&Dim::ZERO),
            };
            spread + self.low[axis].clone() + self.high[axis].clone()
        });
        Ok(TensorType { dtype: x.dtype, shape: shape.collect() }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (_, shape) = cx.result(self, operands)?;
        let own = row_major(&shape);
        let mut offset = 0;
        for (axis, own) in own.iter().enumerate() {
            let (low, high) = (self.low[axis].eval(cx.bindings)?, self.high[axis].eval(cx.bindings)?);
            if low < 0 || high < 0 {
                return Err(EvalError::Operands(format!("negative padding {low}, {high} of axis {axis}")));
            }
            offset += low as isize * own;
        }
        let strides: Vec<isize> = own.iter().zip(&self.interior).map(|(s, gap)| s * (*gap as isize + 1)).collect();
        let mut out = Tensor::splat(self.value, &shape);
        place_elements(&operands[0], &mut out, &strides, offset);
        Ok(vec![out])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let x = cx.operands[0].shape();
        let limit = |axis: usize| match self.interior[axis] {
            0 => self.low[axis].clone() + x[axis].clone(),
            gap => self.low[axis].clone() + (x[axis].clone() - Dim::ONE) * Dim::from(gap + 1) + Dim::ONE,
        };
        let slice = Slice {
            start: self.low.clone(),
            limit: (0..x.rank()).map(limit).collect(),
            step: self.interior.iter().map(|gap| gap + 1).collect(),
        };
        Ok(vec![Some(cx.dy().then(slice, &[]))])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("low", Attr::Dims(self.low.to_vec())),
            ("high", Attr::Dims(self.high.to_vec())),
            ("interior", Attr::Ints(self.interior.to_vec())),
            ("value", Attr::Literal(self.value)),
        ]
    }
}

/// Tensors one after the other along an axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

impl Operator for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        let types: Vec<&TensorType> = (0..operands.len()).map(|i| operand(operands, i)).collect::<Result<_, _>>()?;
        let Some(first) = types.first() else { return Err("takes at least one operand".into()) };
        let dtype = same_dtype(&types)?;
        let mut shape = first.shape.clone();
        check_axes(&[self.axis], shape.rank())?;
        for ty in &types[1..] {
            if ty.shape.rank() != shape.rank() {
                return Err(format!("parts differ in rank: {first} and {ty}"));
            }
            for axis in 0..shape.rank() {
                if axis == self.axis {
                    shape.dims_mut()[axis] = shape[axis].clone() + ty.shape[axis].clone();
                } else {
                    cx.require_equal(&shape[axis], &ty.shape[axis], "extents of concatenated parts")?;
                }
            }
        }
        Ok(TensorType { dtype, shape }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let own = row_major(&shape);
        let mut out = Tensor::zeros(dtype, &shape);
        let mut offset = 0;
        for part in operands {
            place_elements(part, &mut out, &own, offset);
            offset += part.shape()[self.axis] as isize * own[self.axis];
        }
        Ok(vec![out])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let extents: Vec<Dim> = cx.operands.iter().map(|part| part.shape()[self.axis].clone()).collect();
        Ok(cx.dy().split(self.axis as isize, &extents).into_iter().map(Some).collect())
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("axis", Attr::Int(self.axis as i64))]
    }
}

/// Axes run backwards.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reverse {
    /// The axes.
    pub axes: SmallVec<[usize; 4]>,
}

impl Operator for Reverse {
    fn name(&self) -> &'static str {
        "reverse"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        check_axes(&self.axes, x.shape.rank())?;
        Ok(x.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (_, shape) = cx.result(self, operands)?;
        let mut strides = row_major(&shape);
        let mut offset = 0;
        for axis in &self.axes {
            offset += (shape[*axis] as isize - 1) * strides[*axis];
            strides[*axis] = -strides[*axis];
        }
        Ok(vec![copy_elements(&operands[0], &shape, &strides, offset)])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        Ok(vec![Some(cx.dy().then(self.clone(), &[]))])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("axes", Attr::places(&self.axes))]
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "reshape" => Reshape { shape: a.tensor_type()?.shape }.into(),
        "broadcast" => Broadcast { shape: a.tensor_type()?.shape }.into(),
        "transpose" => Transpose { permutation: a.places("permutation")?.into() }.into(),
        "slice" => {
            Slice { start: a.dims("start")?.into(), limit: a.dims("limit")?.into(), step: a.ints("step")?.into() }
                .into()
        }
        "pad" => Pad {
            low: a.dims("low")?.into(),
            high: a.dims("high")?.into(),
            interior: a.ints("interior")?.into(),
            value: a.literal("value")?,
        }
        .into(),
        "concat" => Concat { axis: a.place("axis")? }.into(),
        "reverse" => Reverse { axes: a.places("axes")?.into() }.into(),
        _ => return Ok(None),
    }))
}
