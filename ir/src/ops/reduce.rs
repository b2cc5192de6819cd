//! `reduce`: sums and extrema along axes.

use smallvec::SmallVec;

use super::{InferCx, InferError, Operator, arity, check_axes, operand};
use crate::dim::Dim;
use crate::types::{TensorType, Type};

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReduceKind {
    /// Σ x.
    Sum,
    /// Σ x / n.
    Mean,
    /// max x; NaN if one is NaN.
    Max,
    /// min x; NaN if one is NaN.
    Min,
    /// Π x.
    Prod,
}

/// A reduction along axes, which are removed or, with `keep`, become 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reduce {
    /// What is computed.
    pub kind: ReduceKind,
    /// The axes, ascending.
    pub axes: SmallVec<[usize; 4]>,
    /// Whether reduced axes stay, with extent 1.
    pub keep: bool,
}

impl Operator for Reduce {
    fn name(&self) -> &'static str {
        match self.kind {
            ReduceKind::Sum => "reduce_sum",
            ReduceKind::Mean => "reduce_mean",
            ReduceKind::Max => "reduce_max",
            ReduceKind::Min => "reduce_min",
            ReduceKind::Prod => "reduce_prod",
        }
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        check_axes(&self.axes, x.shape.rank())?;
        if !self.axes.is_sorted() {
            return Err(format!("axes {:?} are not ascending", self.axes));
        }
        if self.kind == ReduceKind::Mean && !x.dtype.is_float() || x.dtype == crate::DType::Bool {
            return Err(format!("is not defined on {}", x.dtype));
        }
        let dims = x.shape.iter().enumerate().filter_map(|(axis, dim)| match self.axes.contains(&axis) {
            true => self.keep.then_some(Dim::ONE),
            false => Some(dim.clone()),
        });
        Ok(TensorType { dtype: x.dtype, shape: dims.collect() }.into())
    }
}
