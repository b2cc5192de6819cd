//! Shapes and the types of values.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::dim::{Bindings, Dim, DimError};
use crate::dtype::DType;

/// The extents of a tensor, outermost first. Shared: a copy costs a count.
#[derive(Clone, Default, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shape(Arc<[Dim]>);

impl PartialEq for Shape {
    fn eq(&self, other: &Shape) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Hash for Shape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Shape {
    /// The shape of a scalar.
    pub fn scalar() -> Shape {
        Shape::default()
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> Dim {
        self.0.iter().fold(Dim::ONE, |n, dim| n * dim.clone())
    }

    /// The extents, if all are constant.
    pub fn constant(&self) -> Option<Vec<i64>> {
        self.0.iter().map(Dim::as_const).collect()
    }

    /// Whether all extents are constant.
    pub fn is_constant(&self) -> bool {
        self.0.iter().all(|dim| dim.as_const().is_some())
    }

    /// The extents under `bindings`.
    ///
    /// # Errors
    /// As [`Dim::eval`].
    pub fn eval(&self, bindings: &Bindings) -> Result<Vec<i64>, DimError> {
        self.0.iter().map(|dim| dim.eval(bindings)).collect()
    }

    /// The shape with `bindings` put in.
    pub fn bind(&self, bindings: &Bindings) -> Shape {
        self.0.iter().map(|dim| dim.bind(bindings)).collect()
    }

    /// Appends an extent.
    pub fn push(&mut self, dim: Dim) {
        *self = self.0.iter().cloned().chain([dim]).collect();
    }

    /// The extents, to change.
    pub fn dims_mut(&mut self) -> &mut [Dim] {
        Arc::make_mut(&mut self.0)
    }

    /// Row-major strides in elements.
    pub fn strides(&self) -> SmallVec<[Dim; 4]> {
        let mut strides: SmallVec<[Dim; 4]> = SmallVec::new();
        let mut step = Dim::ONE;
        for dim in self.0.iter().rev() {
            strides.push(step.clone());
            step = step * dim.clone();
        }
        strides.reverse();
        strides
    }
}

impl Deref for Shape {
    type Target = [Dim];
    fn deref(&self) -> &[Dim] {
        &self.0
    }
}

impl FromIterator<Dim> for Shape {
    fn from_iter<I: IntoIterator<Item = Dim>>(dims: I) -> Shape {
        // gathered first: an iterator of unknown length would be allocated twice
        let dims: SmallVec<[Dim; 8]> = dims.into_iter().collect();
        Shape(dims.as_slice().into())
    }
}

impl<D: Into<Dim>, const N: usize> From<[D; N]> for Shape {
    fn from(dims: [D; N]) -> Shape {
        Shape(dims.map(Into::into).into())
    }
}

impl From<&[i64]> for Shape {
    fn from(dims: &[i64]) -> Shape {
        dims.iter().map(|dim| Dim::from(*dim)).collect()
    }
}

impl From<&[Dim]> for Shape {
    fn from(dims: &[Dim]) -> Shape {
        Shape(dims.into())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, dim) in self.0.iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Element type and shape of a tensor; text form `f32[batch, 784]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Shape,
}

impl TensorType {
    /// A tensor of `dtype` and `shape`.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> TensorType {
        TensorType { dtype, shape: shape.into() }
    }

    /// A scalar of `dtype`.
    pub fn scalar(dtype: DType) -> TensorType {
        TensorType { dtype, shape: Shape::scalar() }
    }

    /// Bytes of the tensor in row-major order without padding.
    pub fn bytes(&self) -> Dim {
        self.shape.elements() * Dim::from(self.dtype.size())
    }
}

/// `f32` of that shape.
pub fn f32(shape: impl Into<Shape>) -> TensorType {
    TensorType::new(DType::F32, shape)
}

/// `i64` of that shape.
pub fn i64(shape: impl Into<Shape>) -> TensorType {
    TensorType::new(DType::I64, shape)
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The type of a node's value. Only `proj` reads a tuple.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Type {
    /// One tensor.
    Tensor(TensorType),
    /// Several tensors, made by one operator.
    Tuple(Arc<[TensorType]>),
}

impl Type {
    /// The tensor type; `None` of a tuple.
    pub fn tensor(&self) -> Option<&TensorType> {
        match self {
            Type::Tensor(ty) => Some(ty),
            Type::Tuple(_) => None,
        }
    }

    /// Calls `visit` with the number and bound of every data-dependent size in it, repeats included.
    pub fn fresh_sizes(&self, visit: &mut dyn FnMut(u32, &Dim)) {
        self.parts().iter().flat_map(|part| part.shape.iter()).for_each(|dim| dim.fresh_sizes(visit));
    }

    /// The parts: one of a tensor, all of a tuple.
    pub fn parts(&self) -> &[TensorType] {
        match self {
            Type::Tensor(ty) => std::slice::from_ref(ty),
            Type::Tuple(parts) => parts,
        }
    }
}

impl From<TensorType> for Type {
    fn from(ty: TensorType) -> Type {
        Type::Tensor(ty)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tensor(ty) => write!(f, "{ty}"),
            Type::Tuple(parts) => {
                f.write_str("(")?;
                for (i, ty) in parts.iter().enumerate() {
                    write!(f, "{}{ty}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
        }
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
