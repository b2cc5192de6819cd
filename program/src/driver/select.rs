//! Sorting, and results whose size only the data tell.

use std::fmt;

use egret_ir::DType;
use serde::{Deserialize, Serialize};

use super::{List, map_all};

/// The first `k` elements of each line of `[outer][extent][inner]` in order, and their places.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TopKProblem<D = usize> {
    /// Element type: an integer, `f32` or `f64`.
    pub dtype: DType,
    /// Extents before the axis.
    pub outer: D,
    /// Extent of the axis.
    pub extent: D,
    /// Extents after the axis.
    pub inner: D,
    /// How many, at most the extent.
    pub k: D,
    /// Whether the greatest come first.
    pub largest: bool,
}

impl<D> TopKProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> TopKProblem<E> {
        let (outer, extent, inner, k) = (f(&self.outer), f(&self.extent), f(&self.inner), f(&self.k));
        TopKProblem { dtype: self.dtype, outer, extent, inner, k, largest: self.largest }
    }
}

impl<D: fmt::Display> fmt::Display for TopKProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.largest { "largest" } else { "least" };
        let TopKProblem { dtype, outer, extent, inner, k, .. } = self;
        write!(f, "top_k {dtype} [{outer}][{extent}][{inner}] {order} {k}")
    }
}

/// Places of the true elements of a `bool` tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NonZeroProblem<D = usize> {
    /// Its extents.
    pub shape: Vec<D>,
}

impl<D> NonZeroProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> NonZeroProblem<E> {
        NonZeroProblem { shape: map_all(&self.shape, f) }
    }
}

impl<D: fmt::Display> fmt::Display for NonZeroProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "non_zero {}", List(&self.shape))
    }
}

/// The distinct slices of `[outer][extent][inner]` along the axis in the middle.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UniqueProblem<D = usize> {
    /// Element type: `bool`, an integer, `f32` or `f64`.
    pub dtype: DType,
    /// Extents before the axis.
    pub outer: D,
    /// Extent of the axis.
    pub extent: D,
    /// Extents after the axis.
    pub inner: D,
    /// In ascending order; else in that of first occurrence.
    pub sorted: bool,
}

impl<D> UniqueProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> UniqueProblem<E> {
        let (outer, extent, inner) = (f(&self.outer), f(&self.extent), f(&self.inner));
        UniqueProblem { dtype: self.dtype, outer, extent, inner, sorted: self.sorted }
    }
}

impl<D: fmt::Display> fmt::Display for UniqueProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorted = if self.sorted { " sorted" } else { "" };
        write!(f, "unique {} [{}][{}][{}]{sorted}", self.dtype, self.outer, self.extent, self.inner)
    }
}

/// Suppression of boxes that overlap better ones; numbers are `f64`, the most boxes of a class an `i64`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SuppressionProblem<D = usize> {
    /// Batch entries.
    pub batch: D,
    /// Classes.
    pub classes: D,
    /// Boxes of an entry.
    pub boxes: D,
    /// A box is its centre, width and height; else two opposite corners.
    pub center: bool,
}

impl<D> SuppressionProblem<D> {
    /// The same with each extent replaced by `f` of it.
    pub fn map<E>(&self, f: &mut impl FnMut(&D) -> E) -> SuppressionProblem<E> {
        let (batch, classes, boxes) = (f(&self.batch), f(&self.classes), f(&self.boxes));
        SuppressionProblem { batch, classes, boxes, center: self.center }
    }
}

impl<D: fmt::Display> fmt::Display for SuppressionProblem<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = if self.center { "centres" } else { "corners" };
        write!(f, "suppression batch {} classes {} boxes {} {form}", self.batch, self.classes, self.boxes)
    }
}
