//! `iota`: indices along an axis.

use super::{InferCx, InferError, Operator, arity};
use crate::types::{TensorType, Type};

/// A tensor whose elements are their own index along `axis`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Iota {
    /// The type of the result.
    pub ty: TensorType,
    /// The axis counted along.
    pub axis: usize,
}

impl Operator for Iota {
    fn name(&self) -> &'static str {
        "iota"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 0)?;
        super::check_axes(&[self.axis], self.ty.shape.rank())?;
        Ok(self.ty.clone().into())
    }
}
