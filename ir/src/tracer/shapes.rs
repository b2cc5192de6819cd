//! Operators that move elements.

use smallvec::SmallVec;

use super::Var;
use crate::dim::Dim;
use crate::ops::{Broadcast, Pad, Reshape, Reverse, Slice, Transpose};
use crate::scalar::Literal;
use crate::types::Shape;

impl<'t> Var<'t> {
    /// The same elements in another shape; one extent may be −1, which stands for what is left.
    #[track_caller]
    pub fn reshape(self, shape: impl Into<Shape>) -> Var<'t> {
        let mut shape: Shape = shape.into();
        if let Some(open) = shape.iter().position(|dim| dim.is(-1)) {
            let elements = self.shape().elements();
            let rest = shape.iter().enumerate().filter(|(i, _)| *i != open).map(|(_, dim)| dim);
            let rest = rest.fold(Dim::ONE, |n, dim| n * dim.clone());
            if rest.is(0) {
                return self.refuse(format!("the extent −1 of {shape} is not determined"));
            }
            shape.dims_mut()[open] = elements.floor_div(&rest);
        }
        if shape == self.shape() { self } else { self.then(Reshape { shape }, &[]) }
    }

    /// Axes in another order: axis `i` of the result is axis `permutation[i]` of this.
    #[track_caller]
    pub fn transpose(self, permutation: &[usize]) -> Var<'t> {
        self.then(Transpose { permutation: permutation.iter().copied().collect() }, &[])
    }

    /// The last two axes exchanged.
    #[track_caller]
    pub fn t(self) -> Var<'t> {
        let mut permutation: Vec<usize> = (0..self.rank()).collect();
        let rank = permutation.len();
        if rank < 2 {
            return self.refuse(format!("{} has no two axes to exchange", self.ty()));
        }
        permutation.swap(rank - 1, rank - 2);
        self.transpose(&permutation)
    }

    /// Repeats extents of 1 and adds leading axes.
    #[track_caller]
    pub fn broadcast(self, shape: impl Into<Shape>) -> Var<'t> {
        let shape = shape.into();
        if shape == self.shape() { self } else { self.then(Broadcast { shape }, &[]) }
    }

    /// Adds axes of extent 1, at these places of the result.
    #[track_caller]
    pub fn unsqueeze(self, axes: &[isize]) -> Var<'t> {
        let rank = self.rank() + axes.len();
        let places: Vec<isize> = axes.iter().map(|a| if *a < 0 { a + rank as isize } else { *a }).collect();
        let own = self.shape();
        let mut old = own.iter().cloned();
        let shape: Shape = (0..rank as isize)
            .map(|i| if places.contains(&i) { Dim::ONE } else { old.next().unwrap_or(Dim::ONE) })
            .collect();
        if old.next().is_some() {
            return self.refuse(format!("axes {axes:?} cannot be added to {own}"));
        }
        self.reshape(shape)
    }

    /// Removes axes of extent 1.
    #[track_caller]
    pub fn squeeze(self, axes: &[isize]) -> Var<'t> {
        match self.axes(axes) {
            Some(axes) => self.without_axes(&axes),
            None => Var::poisoned(self.key),
        }
    }

    /// All axes from `axis` on as one.
    #[track_caller]
    pub fn flatten(self, axis: usize) -> Var<'t> {
        let shape = self.shape();
        let axis = axis.min(shape.rank());
        let tail = shape[axis..].iter().fold(Dim::ONE, |n, dim| n * dim.clone());
        self.reshape(shape[..axis].iter().cloned().chain([tail]).collect::<Shape>())
    }

    /// Elements `start..limit` along an axis, each `step`-th.
    #[track_caller]
    pub fn slice(self, axis: isize, start: impl Into<Dim>, limit: impl Into<Dim>, step: i64) -> Var<'t> {
        let Some(axis) = self.axis(axis) else { return Var::poisoned(self.key) };
        let shape = self.shape();
        let mut slice = Slice {
            start: SmallVec::from_elem(Dim::ZERO, shape.rank()),
            limit: shape.iter().cloned().collect(),
            step: SmallVec::from_elem(1, shape.rank()),
        };
        slice.start[axis] = start.into();
        slice.limit[axis] = limit.into();
        slice.step[axis] = step;
        self.then(slice, &[])
    }

    /// `count` elements from `start` along an axis.
    #[track_caller]
    pub fn narrow(self, axis: isize, start: impl Into<Dim>, count: impl Into<Dim>) -> Var<'t> {
        let start = start.into();
        self.slice(axis, start.clone(), start + count.into(), 1)
    }

    /// Consecutive parts along an axis, of these extents.
    #[track_caller]
    pub fn split(self, axis: isize, extents: &[Dim]) -> Vec<Var<'t>> {
        let mut start = Dim::ZERO;
        let mut parts = Vec::with_capacity(extents.len());
        for extent in extents {
            parts.push(self.narrow(axis, start.clone(), extent.clone()));
            start = start + extent.clone();
        }
        parts
    }

    /// Surrounds the elements with `value`, `low` before and `high` after, by axis.
    #[track_caller]
    pub fn pad(self, low: &[i64], high: &[i64], value: f64) -> Var<'t> {
        let dims = |pads: &[i64]| pads.iter().map(|p| Dim::from(*p)).collect();
        let pad = Pad {
            low: dims(low),
            high: dims(high),
            interior: SmallVec::from_elem(0, self.rank()),
            value: Literal::new(crate::ScalarValue::Float(value), self.dtype()),
        };
        self.then(pad, &[])
    }

    /// Axes run backwards.
    #[track_caller]
    pub fn reverse(self, axes: &[isize]) -> Var<'t> {
        let Some(axes) = self.axes(axes) else { return Var::poisoned(self.key) };
        self.then(Reverse { axes: axes.into_iter().collect() }, &[])
    }

    /// An axis, negative ones counted from the last; records an error when there is none.
    #[track_caller]
    pub fn axis(self, axis: isize) -> Option<usize> {
        let rank = self.rank();
        let place = if axis < 0 { axis + rank as isize } else { axis };
        let place = usize::try_from(place).ok().filter(|p| *p < rank);
        if place.is_none() {
            self.refuse(format!("axis {axis} is outside rank {rank} of {}", self.ty()));
        }
        place.filter(|_| self.node.is_some())
    }

    /// Several axes, as [`Var::axis`].
    #[track_caller]
    pub fn axes(self, axes: &[isize]) -> Option<Vec<usize>> {
        let mut places = Vec::with_capacity(axes.len());
        for axis in axes {
            places.push(self.axis(*axis)?);
        }
        Some(places)
    }

    /// The same elements without axes whose extent is 1.
    #[track_caller]
    pub(super) fn without_axes(self, axes: &[usize]) -> Var<'t> {
        if axes.is_empty() {
            return self;
        }
        let shape = self.shape();
        self.reshape(
            shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect::<Shape>(),
        )
    }
}
