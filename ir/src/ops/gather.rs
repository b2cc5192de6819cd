//! `gather` and its adjoint.

use super::{InferCx, InferError, Operator, arity, check_axes, operand, same_dtype};
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
}
