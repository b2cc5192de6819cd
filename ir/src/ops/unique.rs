//! `unique`: each element, or slice, once.

use std::cmp::Ordering;

use super::top_k::order;
use super::{InferCx, InferError, Op, Operator, Places, Scatter, ScatterKind, arity, check_axes, operand};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::scalar::ScalarValue;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{Shape, TensorType, Type};

/// `(x) → (values, first, inverse, counts)`: the distinct slices along `axis`, or without it the distinct elements of the
/// flattened operand; the place of the first of each, the number of the distinct one that each is, and how often each
/// occurs, i64. NaNs are equal, and so are zeros of both signs. The number of distinct ones is the data-dependent size
/// `size`.
///
/// No other operator does this without comparing all pairs, so it is one of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unique {
    /// The axis whose slices are compared.
    pub axis: Option<usize>,
    /// Ascending, by the first elements that differ; else in order of first occurrence.
    pub sorted: bool,
    /// The number of the data-dependent size.
    pub size: u32,
}

impl Operator for Unique {
    fn name(&self) -> &'static str {
        "unique"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        let (extent, mut shape, axis) = match self.axis {
            Some(axis) => {
                check_axes(&[axis], x.shape.rank())?;
                (x.shape[axis].clone(), x.shape.clone(), axis)
            }
            None => (x.shape.elements(), Shape::from([x.shape.elements()]), 0),
        };
        let size = Dim::fresh(self.size, extent.clone());
        shape.dims_mut()[axis] = size.clone();
        let line = |dim: Dim| TensorType { dtype: DType::I64, shape: Shape::from([dim]) };
        let parts = [TensorType { dtype: x.dtype, shape }, line(size.clone()), line(extent), line(size)];
        Ok(Type::Tuple(parts.into()))
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        cx.check(self, operands)?;
        let x = &operands[0];
        let shape: Vec<usize> = if self.axis.is_some() { x.shape().to_vec() } else { vec![x.elements()] };
        let axis = self.axis.unwrap_or(0);
        let (outer, inner) = (shape[..axis].iter().product::<usize>(), shape[axis + 1..].iter().product::<usize>());
        let extent = shape[axis];
        let element = |slice: usize, i: usize| x.get((i / inner * extent + slice) * inner + i % inner);
        let compare = |a: usize, b: usize| {
            (0..outer * inner)
                .map(|i| order(element(a, i), element(b, i), false))
                .find(|o| *o != Ordering::Equal)
                .unwrap_or(Ordering::Equal)
        };
        // equal slices stand together, the first of them first
        let mut sorted: Vec<usize> = (0..extent).collect();
        sorted.sort_by(|a, b| compare(*a, *b));
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for slice in sorted {
            match groups.last_mut() {
                Some(group) if compare(group[0], slice) == Ordering::Equal => group.push(slice),
                _ => groups.push(vec![slice]),
            }
        }
        if !self.sorted {
            groups.sort_by_key(|group| group[0]);
        }
        let mut kept = shape.clone();
        kept[axis] = groups.len();
        let mut values = Tensor::zeros(x.dtype(), &kept);
        let mut inverse = Tensor::zeros(DType::I64, &[extent]);
        let (mut first, mut counts) = (counters(groups.len()), counters(groups.len()));
        let int = |value: usize| ScalarValue::Int(value as i128);
        for (number, group) in groups.iter().enumerate() {
            for i in 0..outer * inner {
                values.set((i / inner * groups.len() + number) * inner + i % inner, element(group[0], i));
            }
            first.set(number, int(group[0]));
            counts.set(number, int(group.len()));
            group.iter().for_each(|slice| inverse.set(*slice, int(number)));
        }
        Ok(vec![values, first, inverse, counts])
    }

    /// The gradient goes to the first of equal slices, the one whose value is taken.
    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let x = cx.operands[0];
        let zeros = cx.zeros(x.ty());
        let flat = if self.axis.is_some() { zeros } else { zeros.reshape([-1]) };
        let scatter = Scatter { places: Places::Rows { axis: self.axis.unwrap_or(0) }, kind: ScatterKind::Add };
        Ok(vec![Some(flat.then(scatter, &[cx.results[1], cx.dy()]).reshape(x.shape()))])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        let axis = self.axis.map(|axis| ("axis", Attr::Int(axis as i64)));
        axis.into_iter().chain([("sorted", Attr::Bool(self.sorted)), ("size", Attr::Int(self.size.into()))]).collect()
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        super::operand_elements(operands, 0)
    }
}

fn counters(count: usize) -> Tensor {
    Tensor::zeros(DType::I64, &[count])
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "unique" => Unique {
            axis: if a.has("axis") { Some(a.place("axis")?) } else { None },
            sorted: a.truth("sorted")?,
            size: a.fresh("size")?,
        }
        .into(),
        _ => return Ok(None),
    }))
}
