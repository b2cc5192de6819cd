//! `gather`: elements by index.

use super::{InferCx, InferError, Op, Operator, Scatter, ScatterKind, arity, check_axes, operand};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::eval::{EvalCx, EvalError, row_major};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{Shape, TensorType, Type};

/// How a tensor of indices names places of another tensor `x`. Indices count from 0 and lie below the extent that they
/// index; any other is an error of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Places {
    /// Slices: `axis` of `x` is replaced by the axes of the indices.
    Rows {
        /// The axis that is indexed.
        axis: usize,
    },
    /// Elements: place `[…, i, …]` of the indices names `x[…, indices[…, i, …], …]`. The ranks are equal, and no extent of
    /// the indices but that of `axis` is above `x`'s.
    Elements {
        /// The axis that is indexed.
        axis: usize,
    },
    /// Slices by tuples: the last axis of the indices, of fixed extent, holds places on the axes of `x` from `batch` on.
    /// The first `batch` axes are common to both.
    Tuples {
        /// How many leading axes `x` and the indices share.
        batch: usize,
    },
}

/// Places named by indices: the offset in `x` of the first element of each slice, in row-major order of what is
/// gathered, and the number of elements of a slice.
pub(super) struct Slices {
    pub starts: Vec<usize>,
    pub run: usize,
}

impl Places {
    /// The suffix of the operator's name in text forms.
    pub(super) fn suffix(self) -> usize {
        match self {
            Places::Rows { .. } => 0,
            Places::Elements { .. } => 1,
            Places::Tuples { .. } => 2,
        }
    }

    pub(super) fn attribute(self) -> (&'static str, Attr) {
        match self {
            Places::Rows { axis } | Places::Elements { axis } => ("axis", Attr::Int(axis as i64)),
            Places::Tuples { batch } => ("batch", Attr::Int(batch as i64)),
        }
    }

    /// Reads the form that operator names end with.
    pub(super) fn read(suffix: &str, a: &Attributes) -> Result<Option<Places>, Diagnostic> {
        Ok(Some(match suffix {
            "" => Places::Rows { axis: a.place("axis")? },
            "_elements" => Places::Elements { axis: a.place("axis")? },
            "_nd" => Places::Tuples { batch: a.place("batch")? },
            _ => return Ok(None),
        }))
    }

    /// The number of axes of `x` that a tuple of [`Places::Tuples`] names.
    pub fn width(indices: &TensorType) -> Option<usize> {
        usize::try_from(indices.shape.last()?.as_const()?).ok()
    }

    /// The shape of what is gathered.
    pub(super) fn shape(self, x: &TensorType, indices: &TensorType, cx: &mut InferCx) -> Result<Shape, InferError> {
        if !indices.dtype.is_int() {
            return Err(format!("indices must be integers, not {indices}"));
        }
        let rank = x.shape.rank();
        match self {
            Places::Rows { axis } => {
                check_axes(&[axis], rank)?;
                Ok(x.shape[..axis].iter().chain(indices.shape.iter()).chain(&x.shape[axis + 1..]).cloned().collect())
            }
            Places::Elements { axis } => {
                check_axes(&[axis], rank)?;
                if indices.shape.rank() != rank {
                    return Err(format!("indices {indices} have not the rank of {x}"));
                }
                for (i, (have, most)) in indices.shape.iter().zip(x.shape.iter()).enumerate() {
                    if i != axis {
                        cx.require_equal(
                            &have.minimum(most),
                            have,
                            "an extent of indices within that of their operand",
                        )?;
                    }
                }
                Ok(indices.shape.clone())
            }
            Places::Tuples { batch } => {
                let Some(width) = Places::width(indices) else {
                    return Err(format!("the last extent of the indices {indices} must be fixed"));
                };
                let lead = indices.shape.rank() - 1;
                if batch > lead || batch.saturating_add(width) > rank {
                    return Err(format!("indices {indices} after {batch} common axes do not fit {x}"));
                }
                for (a, b) in indices.shape[..batch].iter().zip(x.shape.iter()) {
                    cx.require_equal(a, b, "extents that indices and operand share")?;
                }
                Ok(indices.shape[..lead].iter().chain(&x.shape[batch + width..]).cloned().collect())
            }
        }
    }

    /// The places named in a tensor of shape `shape`.
    ///
    /// # Errors
    /// An index outside its axis.
    pub(super) fn slices(self, shape: &[usize], indices: &Tensor) -> Result<Slices, EvalError> {
        let place = |index: i128, axis: usize| match usize::try_from(index) {
            Ok(place) if place < shape[axis] => Ok(place),
            _ => Err(EvalError::Index { index, extent: shape[axis], axis }),
        };
        let product = |dims: &[usize]| dims.iter().product::<usize>();
        match self {
            Places::Rows { axis } => {
                let run = product(&shape[axis + 1..]);
                let rows: Vec<usize> = indices.values().map(|v| place(v.as_int(), axis)).collect::<Result<_, _>>()?;
                let starts = (0..product(&shape[..axis]))
                    .flat_map(|outer| rows.iter().map(move |row| (outer * shape[axis] + row) * run));
                Ok(Slices { starts: starts.collect(), run })
            }
            Places::Elements { axis } => {
                let (own, dims) = (row_major(shape), indices.shape());
                let mut starts = Vec::with_capacity(indices.elements());
                let mut at = vec![0usize; dims.len()];
                for value in indices.values() {
                    let row = place(value.as_int(), axis)?;
                    let offset = |i: usize| own[i] as usize * if i == axis { row } else { at[i] };
                    starts.push((0..dims.len()).map(offset).sum());
                    for i in (0..dims.len()).rev() {
                        at[i] += 1;
                        if at[i] < dims[i] {
                            break;
                        }
                        at[i] = 0;
                    }
                }
                Ok(Slices { starts, run: 1 })
            }
            Places::Tuples { batch } => {
                let width = indices.shape().last().copied().unwrap_or(0);
                let run = product(&shape[batch + width..]);
                let tuples = product(&indices.shape()[..indices.shape().len() - 1]);
                let each = tuples / product(&shape[..batch]).max(1);
                let mut starts = Vec::with_capacity(tuples);
                for tuple in 0..tuples {
                    let mut at = tuple / each.max(1);
                    for i in 0..width {
                        let axis = batch + i;
                        at = at * shape[axis] + place(indices.get(tuple * width + i).as_int(), axis)?;
                    }
                    starts.push(at * run);
                }
                Ok(Slices { starts, run })
            }
        }
    }
}

/// `(x, indices) → y`: the elements of `x` at the places that the indices name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gather {
    /// How they name them.
    pub places: Places,
}

impl Operator for Gather {
    fn name(&self) -> &'static str {
        ["gather", "gather_elements", "gather_nd"][self.places.suffix()]
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 2)?;
        let (x, indices) = (operand(operands, 0)?, operand(operands, 1)?);
        Ok(TensorType { dtype: x.dtype, shape: self.places.shape(x, indices, cx)? }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let x = &operands[0];
        let slices = self.places.slices(x.shape(), &operands[1])?;
        let mut out = Tensor::zeros(dtype, &shape);
        let run = slices.run * dtype.size();
        if run > 0 {
            let source = x.bytes();
            for (slot, start) in out.bytes_mut().chunks_exact_mut(run).zip(&slices.starts) {
                slot.copy_from_slice(&source[start * dtype.size()..][..run]);
            }
        }
        Ok(vec![out])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let zeros = cx.zeros(cx.operands[0].ty());
        let scatter = Scatter { places: self.places, kind: ScatterKind::Add };
        Ok(vec![Some(zeros.then(scatter, &[cx.operands[1], cx.dy()])), None])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![self.places.attribute()]
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    let Some(suffix) = name.strip_prefix("gather") else { return Ok(None) };
    Ok(Places::read(suffix, a)?.map(|places| Gather { places }.into()))
}
