//! `top_k`: the greatest or least elements of an axis, in order.

use std::cmp::Ordering;

use super::{InferCx, InferError, Op, Operator, Places, Scatter, ScatterKind, arity, check_axes, operand};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::scalar::ScalarValue;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{TensorType, Type};

/// `(x) → (values, indices)`: the first `k` elements along `axis` in descending (`largest`) or ascending order, and
/// their places, i64. NaN comes last in either order; of equal elements the lower place comes first. With `k` the extent
/// of the axis this is a stable sort.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopK {
    /// The axis.
    pub axis: usize,
    /// How many.
    pub k: Dim,
    /// Whether the greatest come first.
    pub largest: bool,
}

/// The order of elements: by value, NaN last.
pub(super) fn order(a: ScalarValue, b: ScalarValue, largest: bool) -> Ordering {
    let ascending = match (a, b) {
        (ScalarValue::Float(a), ScalarValue::Float(b)) => match (a.is_nan(), b.is_nan()) {
            (false, false) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
            (x, y) => return x.cmp(&y),
        },
        (a, b) => a.as_int().cmp(&b.as_int()),
    };
    if largest { ascending.reverse() } else { ascending }
}

impl Operator for TopK {
    fn name(&self) -> &'static str {
        "top_k"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        check_axes(&[self.axis], x.shape.rank())?;
        if x.dtype == DType::Bool {
            return Err("is not defined on bool".into());
        }
        if self.k.range().1 < 0 {
            return Err(format!("k is {}, which is negative", self.k));
        }
        cx.require_equal(&self.k.minimum(&x.shape[self.axis]), &self.k, "k within the extent of its axis")?;
        let mut shape = x.shape.clone();
        shape.dims_mut()[self.axis] = self.k.clone();
        let indices = TensorType { dtype: DType::I64, shape: shape.clone() };
        Ok(Type::Tuple([TensorType { dtype: x.dtype, shape }, indices].into()))
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let results = cx.results(self, operands)?;
        let x = &operands[0];
        let (extent, k) = (x.shape()[self.axis], results[0].1[self.axis]);
        let outer: usize = x.shape()[..self.axis].iter().product();
        let inner: usize = x.shape()[self.axis + 1..].iter().product();
        let mut values = Tensor::zeros(x.dtype(), &results[0].1);
        let mut indices = Tensor::zeros(DType::I64, &results[1].1);
        for line in 0..outer * inner {
            let (o, i) = (line / inner, line % inner);
            let element = |place: usize| x.get((o * extent + place) * inner + i);
            let mut places: Vec<usize> = (0..extent).collect();
            // stable, so that ties keep the lower place
            places.sort_by(|a, b| order(element(*a), element(*b), self.largest));
            for (rank, place) in places.into_iter().take(k).enumerate() {
                let at = (o * k + rank) * inner + i;
                values.set(at, element(place));
                indices.set(at, ScalarValue::Int(place as i128));
            }
        }
        Ok(vec![values, indices])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let scatter = Scatter { places: Places::Elements { axis: self.axis }, kind: ScatterKind::Add };
        Ok(vec![Some(cx.zeros(cx.operands[0].ty()).then(scatter, &[cx.results[1], cx.dy()]))])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("axis", Attr::Int(self.axis as i64)),
            ("k", Attr::Dim(self.k.clone())),
            ("largest", Attr::Bool(self.largest)),
        ]
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        super::operand_elements(operands, 0)
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "top_k" => TopK { axis: a.place("axis")?, k: a.dim("k")?, largest: a.truth("largest")? }.into(),
        _ => return Ok(None),
    }))
}
