//! `generate`: each element of the result by a scalar program of its indices.

mod eval;
mod program;
mod vjp;

use super::{InferCx, InferError, Op, Operator, operand};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{TensorType, Type};

pub use program::{Block, InnerKind, Outside, ProgramBuilder, Step};

/// `(operands…) → y` of type `ty`: element `y[p0, p1, …]` is the value of `body`, which may load elements of the
/// operands at places that it computes, and sum (or take extrema) over inner loops with a bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generate {
    /// The type of the result.
    pub ty: TensorType,
    /// The program of one element.
    pub body: Block,
}

impl Generate {
    /// The element types of the program's values, by number.
    ///
    /// # Errors
    /// When the program does not fit operands of these types.
    pub fn value_dtypes(&self, operands: &[&TensorType]) -> Result<Vec<DType>, InferError> {
        program::check(&self.body, self.ty.shape.rank(), operands).map(|(dtypes, _)| dtypes)
    }
}

impl Operator for Generate {
    fn name(&self) -> &'static str {
        "generate"
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        let types: Vec<&TensorType> = (0..operands.len()).map(|i| operand(operands, i)).collect::<Result<_, _>>()?;
        let (_, dtype) = program::check(&self.body, self.ty.shape.rank(), &types)?;
        if dtype != self.ty.dtype {
            return Err(format!("the program gives {dtype}, not {}", self.ty));
        }
        Ok(self.ty.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = cx.result(self, operands)?;
        eval::eval(self, operands, dtype, &shape, cx).map(|y| vec![y])
    }

    /// For each load, the gradient that its element gets, added at its place.
    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        vjp::vjp(self, cx)
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("body", Attr::Program(self.body.clone(), self.ty.shape.rank()))]
    }

    fn flops(&self, _: &[Type], result: &Type) -> Dim {
        super::elements(result) * self.body.operations()
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    if name != "generate" {
        return Ok(None);
    }
    let ty = a.tensor_type()?;
    let body = a.program("body", ty.shape.rank())?;
    Ok(Some(Generate { ty, body }.into()))
}
