//! Values of params and states, apart from the graph.

use std::collections::BTreeMap;

use crate::eval::actual_type;
use crate::scalar::Literal;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// Where the elements of a param come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Weight {
    /// Elements in memory or in a mapped file.
    Tensor(Tensor),
    /// One value everywhere, made when the program is loaded.
    Fill {
        /// The value.
        value: Literal,
        /// Extents.
        shape: Vec<usize>,
    },
}

impl Weight {
    /// The elements.
    pub fn materialise(&self) -> Tensor {
        match self {
            Weight::Tensor(tensor) => tensor.clone(),
            Weight::Fill { value, shape } => Tensor::splat(*value, shape),
        }
    }

    /// The type.
    pub fn ty(&self) -> TensorType {
        match self {
            Weight::Tensor(tensor) => actual_type(tensor),
            Weight::Fill { value, shape } => {
                TensorType { dtype: value.dtype, shape: shape.iter().map(|n| (*n).into()).collect() }
            }
        }
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        match self {
            Weight::Tensor(tensor) => tensor.shape(),
            Weight::Fill { shape, .. } => shape,
        }
    }
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Weight {
        Weight::Tensor(tensor)
    }
}

/// Values of params and states by name.
pub type Weights = BTreeMap<String, Weight>;
