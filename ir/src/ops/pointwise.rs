//! Elementwise operators: scalar functions over tensors, and conversions.

use super::{InferCx, InferError, Operator, arity, operand};
use crate::dtype::DType;
use crate::scalar::ScalarFn;
use crate::types::{Shape, TensorType, Type};

/// A scalar function of tensors that broadcast together by NumPy's rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pointwise {
    /// The function.
    pub f: ScalarFn,
}

impl Operator for Pointwise {
    fn name(&self) -> &'static str {
        self.f.name()
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, self.f.arity())?;
        let types: Vec<&TensorType> = (0..operands.len()).map(|i| operand(operands, i)).collect::<Result<_, _>>()?;
        let dtypes: Vec<DType> = types.iter().map(|ty| ty.dtype).collect();
        let dtype = self.f.result_dtype(&dtypes)?;
        let shapes: Vec<&Shape> = types.iter().map(|ty| &ty.shape).collect();
        Ok(TensorType { dtype, shape: cx.broadcast(shapes)? }.into())
    }
}

/// A conversion: integers wrap, float to integer truncates and saturates, NaN becomes 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cast {
    /// The element type of the result.
    pub dtype: DType,
}

impl Operator for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        Ok(TensorType { dtype: self.dtype, shape: operand(operands, 0)?.shape.clone() }.into())
    }
}
