//! `gather` and its adjoint.

use super::{InferCx, InferError, Op, Operator, arity, check_axes, operand, same_dtype};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::eval::{EvalCx, EvalError, Num, by_kind};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{Shape, TensorType, Type};

/// `(x, indices) → y`: `axis` of `x` is replaced by the axes of `indices`. An index outside `0..n` is reported and
/// clamped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gather {
    /// The axis of `x` that is indexed.
    pub axis: usize,
}

fn gathered(axis: usize, x: &TensorType, indices: &TensorType) -> Result<Shape, InferError> {
    check_axes(&[axis], x.shape.rank())?;
    if !indices.dtype.is_int() {
        return Err(format!("indices must be integers, not {indices}"));
    }
    Ok(x.shape[..axis].iter().chain(indices.shape.iter()).chain(&x.shape[axis + 1..]).cloned().collect())
}

impl Operator for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 2)?;
        let (x, indices) = (operand(operands, 0)?, operand(operands, 1)?);
        Ok(TensorType { dtype: x.dtype, shape: gathered(self.axis, x, indices)? }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        let x = &operands[0];
        let rows = checked_indices(&operands[1], x.shape(), self.axis)?;
        let run = x.shape()[self.axis + 1..].iter().product::<usize>() * dtype.size();
        let extent = x.shape()[self.axis];
        let mut out = Tensor::zeros(dtype, &shape);
        let source = x.bytes();
        if run > 0 {
            let mut slots = out.bytes_mut().chunks_exact_mut(run);
            for outer in 0..x.shape()[..self.axis].iter().product() {
                for row in &rows {
                    if let Some(slot) = slots.next() {
                        slot.copy_from_slice(&source[(outer * extent + row) * run..][..run]);
                    }
                }
            }
        }
        Ok(vec![out])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let zeros = cx.zeros(cx.operands[0].ty());
        Ok(vec![Some(zeros.then(ScatterAdd { axis: self.axis }, &[cx.operands[1], cx.dy()])), None])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("axis", Attr::Int(self.axis as i64))]
    }
}

/// `(x, indices, updates) → x` with updates added at the places that [`Gather`] reads, in order of the indices.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScatterAdd {
    /// The axis of `x` that is indexed.
    pub axis: usize,
}

impl Operator for ScatterAdd {
    fn name(&self) -> &'static str {
        "scatter_add"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 3)?;
        let (x, indices, updates) = (operand(operands, 0)?, operand(operands, 1)?, operand(operands, 2)?);
        same_dtype(&[x, updates])?;
        let shape = gathered(self.axis, x, indices)?;
        if shape.rank() != updates.shape.rank() {
            return Err(format!("updates {updates} are not of shape {shape}"));
        }
        for (a, b) in shape.iter().zip(updates.shape.iter()) {
            cx.require_equal(a, b, "extents of scattered updates")?;
        }
        Ok(x.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        fn go<N: Num>(axis: usize, operands: &[Tensor], rows: &[usize]) -> Tensor {
            let shape = operands[0].shape();
            let (mut x, updates) = (N::load(&operands[0]), N::load(&operands[2]));
            let run: usize = shape[axis + 1..].iter().product();
            for (i, update) in updates.iter().enumerate() {
                let (row, inner) = (i / run, i % run);
                let at = (row / rows.len() * shape[axis] + rows[row % rows.len()]) * run + inner;
                x[at] = x[at].plus(*update);
            }
            N::store(operands[0].dtype(), shape, &x)
        }
        let (dtype, _) = cx.result(self, operands)?;
        let rows = checked_indices(&operands[1], operands[0].shape(), self.axis)?;
        Ok(vec![by_kind!(dtype, go(self.axis, operands, &rows))])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let dy = cx.dy();
        Ok(vec![Some(dy), None, Some(dy.then(Gather { axis: self.axis }, &[cx.operands[1]]))])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("axis", Attr::Int(self.axis as i64))]
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        super::operand_elements(operands, 2)
    }
}

/// The indices as places on `axis`.
fn checked_indices(indices: &Tensor, shape: &[usize], axis: usize) -> Result<Vec<usize>, EvalError> {
    let extent = shape[axis];
    let check = |index: i128| match usize::try_from(index) {
        Ok(row) if row < extent => Ok(row),
        _ => Err(EvalError::Index { index, extent, axis }),
    };
    indices.values().map(|v| check(v.as_int())).collect()
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(Some(match name {
        "gather" => Gather { axis: a.place("axis")? }.into(),
        "scatter_add" => ScatterAdd { axis: a.place("axis")? }.into(),
        _ => return Ok(None),
    }))
}
