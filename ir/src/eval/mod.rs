//! Reference evaluation: what operators share to compute on host tensors.
//!
//! Floats are computed in f64 within an operator and rounded to its element type after it; integers are exact and wrap
//! to their own width at the end.

mod contract;
mod gemm;
mod numbers;
mod strided;

use crate::dim::{Bindings, Dim, DimError};
use crate::dtype::DType;
use crate::ops::{InferCx, Operator};
use crate::tensor::Tensor;
use crate::types::{TensorType, Type};
use crate::weights::Weights;

pub(crate) use contract::contract;
pub(crate) use numbers::{Num, by_kind};
pub(crate) use strided::{PADDING, Taps, broadcast_strides, copy_elements, gathered, place_elements, row_major};

/// Host tensors by name.
pub type Tensors = std::collections::BTreeMap<String, Tensor>;

static NO_TENSORS: Tensors = Tensors::new();
static NO_WEIGHTS: Weights = Weights::new();

/// No tensor of one value is larger, so that a wrong shape is an error and not an exhausted machine.
const MAX_BYTES: usize = 1 << 38;

/// What evaluation may read besides the operands.
#[derive(Clone, Copy)]
pub struct EvalCx<'a> {
    /// Values of symbols in attributes.
    pub bindings: &'a Bindings,
    /// Values of inputs.
    pub inputs: &'a Tensors,
    /// Values of states; what is missing here is looked up in `weights`.
    pub states: &'a Tensors,
    /// Values of params, and first values of states.
    pub weights: &'a Weights,
}

impl<'a> EvalCx<'a> {
    /// A context for operators that are no leaves.
    pub fn new(bindings: &'a Bindings) -> EvalCx<'a> {
        EvalCx { bindings, inputs: &NO_TENSORS, states: &NO_TENSORS, weights: &NO_WEIGHTS }
    }

    /// The actual types of an operator's results on these operands.
    ///
    /// # Errors
    /// When the operands do not fit, or a result would be too large.
    pub(crate) fn results(
        &self,
        op: &dyn Operator,
        operands: &[Tensor],
    ) -> Result<Vec<(DType, Vec<usize>)>, EvalError> {
        self.check(op, operands)?.parts().iter().map(|part| Ok((part.dtype, self.extents(part)?))).collect()
    }

    /// The type that inference gives on these operands; its data-dependent sizes have no value yet.
    ///
    /// # Errors
    /// When the operands do not fit.
    pub(crate) fn check(&self, op: &dyn Operator, operands: &[Tensor]) -> Result<Type, EvalError> {
        let types: Vec<Type> = operands.iter().map(|t| actual_type(t).into()).collect();
        let mut cx = InferCx::default();
        let ty = op.infer(&types, &mut cx).map_err(EvalError::Operands)?;
        for equality in cx.assumptions {
            let (left, right) = (equality.left.eval(self.bindings)?, equality.right.eval(self.bindings)?);
            if left != right {
                return Err(EvalError::Operands(format!("{}: {left} is not {right}", equality.what)));
            }
        }
        Ok(ty)
    }

    /// The only result of an operator that is no tuple.
    pub(crate) fn result(&self, op: &dyn Operator, operands: &[Tensor]) -> Result<(DType, Vec<usize>), EvalError> {
        let mut all = self.results(op, operands)?;
        all.pop().ok_or_else(|| EvalError::Operands("no result".into()))
    }

    /// The extents of a type, checked to be sizes that memory can hold.
    pub(crate) fn extents(&self, ty: &TensorType) -> Result<Vec<usize>, EvalError> {
        let dims = ty.shape.eval(self.bindings)?;
        let sizes: Option<Vec<usize>> = dims.iter().map(|d| usize::try_from(*d).ok()).collect();
        let Some(sizes) = sizes else {
            return Err(EvalError::Operands(format!("the shape {} has negative extents {dims:?}", ty.shape)));
        };
        let bytes = sizes.iter().try_fold(ty.dtype.size(), |n, d| n.checked_mul(*d));
        match bytes {
            Some(bytes) if bytes <= MAX_BYTES => Ok(sizes),
            _ => Err(EvalError::TooLarge { shape: sizes }),
        }
    }
}

/// The type of a tensor in memory.
pub fn actual_type(tensor: &Tensor) -> TensorType {
    TensorType { dtype: tensor.dtype(), shape: tensor.shape().iter().map(|n| (*n).into()).collect() }
}

/// Why an operator has no value on some operands.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EvalError {
    /// An index outside the axis that it indexes.
    #[error("index {index} is outside the extent {extent} of axis {axis}")]
    Index {
        /// The index.
        index: i128,
        /// The extent.
        extent: usize,
        /// The axis.
        axis: usize,
    },
    /// An integer divided by zero.
    #[error("an integer is divided by zero at element {element}")]
    DivisionByZero {
        /// The first such element, in row-major order.
        element: usize,
    },
    /// A size that the data tell is above its bound.
    #[error("a size of {size} is above its bound {bound}")]
    Bound {
        /// The size.
        size: i128,
        /// The bound.
        bound: i128,
    },
    /// What the graph assumed of data-dependent sizes does not hold.
    #[error("{what} must be equal: `{left}` is {}, `{right}` is {}", values.0, values.1)]
    Assumption {
        /// What needs it.
        what: &'static str,
        /// One side.
        left: Dim,
        /// The other.
        right: Dim,
        /// Their values.
        values: (i64, i64),
    },
    /// A dim has no value.
    #[error(transparent)]
    Dim(#[from] DimError),
    /// The operands do not fit.
    #[error("{0}")]
    Operands(String),
    /// A leaf has no value.
    #[error("no value is given for the {kind} `{name}`")]
    Missing {
        /// `input`, `param` or `state`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A value that memory cannot hold.
    #[error("a value of shape {shape:?} is too large")]
    TooLarge {
        /// Its extents.
        shape: Vec<usize>,
    },
    /// The operator must be expanded by a pass before it can be evaluated.
    #[error("`{0}` is expanded by a pass and has no value of its own")]
    Unexpanded(&'static str),
}

impl EvalError {
    /// The stable code of the diagnostic.
    pub fn code(&self) -> &'static str {
        match self {
            EvalError::Index { .. } => "E0210",
            EvalError::DivisionByZero { .. } => "E0211",
            EvalError::Bound { .. } => "E0216",
            EvalError::Assumption { .. } => "E0207",
            EvalError::Dim(_) => "E0206",
            EvalError::Operands(_) => "E0212",
            EvalError::Missing { .. } => "E0213",
            EvalError::TooLarge { .. } => "E0214",
            EvalError::Unexpanded(_) => "E0215",
        }
    }
}
