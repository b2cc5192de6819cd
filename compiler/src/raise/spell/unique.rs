//! `unique` of elements in operators that GPUs have: equal ones are sorted together, the first of each run is found by
//! `non_zero`, and what was permuted is put back by sorting the permutation.

use egret_ir::ops::{
    Cast, Concat, Cumulative, CumulativeKind, Gather, Iota, NonZero, Places, Proj, Reduce, ReduceKind, Slice, TopK,
    Unique,
};
use egret_ir::{DType, Dim, Literal, NodeId, ScalarFn, Shape, TensorType};

use super::{Speller, is_half};

/// What is known once elements are sorted.
struct Runs {
    /// Which element is at each place of the order.
    order: NodeId,
    /// By place of the order, the number of the run that it is in.
    run: NodeId,
    /// By run, its first place in the order.
    starts: NodeId,
}

impl Speller<'_> {
    /// A part of `unique` on a device that has no kernel for it; `None` of slices of several elements.
    pub(super) fn unique(&mut self, unique: &Unique, operand: NodeId, part: usize) -> Option<NodeId> {
        let ty = self.builder.graph().tensor_type(operand).clone();
        let extent = match unique.axis {
            Some(axis) if (0..ty.shape.rank()).any(|a| a != axis && !ty.shape[a].is(1)) => return None,
            Some(axis) => ty.shape[axis].clone(),
            None => ty.shape.elements(),
        };
        let x = self.reshaped(operand, Shape::from([extent.clone()]))?;
        let size = Dim::fresh(unique.size, extent.clone());
        // halves and truth values are compared as what holds them
        let keys = match ty.dtype {
            dtype if is_half(dtype) => self.cast(x, DType::F32)?,
            DType::Bool => self.cast(x, DType::U8)?,
            _ => x,
        };
        let runs = self.runs(unique, keys, &extent)?;
        let first = self.take(runs.order, runs.starts)?;
        // the runs in the order of their first elements
        let by_first = if unique.sorted { None } else { Some(self.sorted(first, &size)?) };
        let arranged = |speller: &mut Self, of: NodeId| match by_first {
            Some(order) => speller.take(of, order),
            None => Some(of),
        };
        match part {
            0 => {
                let first = arranged(self, first)?;
                let values = self.take(x, first)?;
                let mut shape = if unique.axis.is_some() { ty.shape } else { Shape::from([extent]) };
                shape.dims_mut()[unique.axis.unwrap_or(0)] = size;
                self.reshaped(values, shape)
            }
            1 => arranged(self, first),
            2 => {
                let number = match by_first {
                    Some(order) => {
                        let numbers = self.sorted(order, &size)?;
                        self.take(numbers, runs.run)?
                    }
                    None => runs.run,
                };
                let back = self.sorted(runs.order, &extent)?;
                self.take(number, back)
            }
            _ => {
                let counts = self.counts(runs.starts, &extent, &size)?;
                arranged(self, counts)
            }
        }
    }

    /// The order of elements, and the runs of equal ones.
    fn runs(&mut self, unique: &Unique, keys: NodeId, extent: &Dim) -> Option<Runs> {
        let order = self.sorted(keys, extent)?;
        // each element of the order beside the one before; the first has itself
        let places = self.iota(extent)?;
        let one = self.builder.scalar(Literal::int(1, DType::I64)).ok()?;
        let zero = self.builder.scalar(Literal::int(0, DType::I64)).ok()?;
        let before = self.map(ScalarFn::Sub, &[places, one])?;
        let before = self.map(ScalarFn::Max, &[before, zero])?;
        let before = self.take(order, before)?;
        let (own, other) = (self.take(keys, order)?, self.take(keys, before)?);
        let mut differs = self.map(ScalarFn::Ne, &[own, other])?;
        if self.dtype(keys).is_float() {
            let missing = [own, other].map(|x| self.map(ScalarFn::IsNan, &[x]));
            let both = self.map(ScalarFn::And, &[missing[0]?, missing[1]?])?;
            let some = self.map(ScalarFn::Not, &[both])?;
            differs = self.map(ScalarFn::And, &[differs, some])?;
        }
        let is_first = self.map(ScalarFn::Eq, &[places, zero])?;
        let begins = self.map(ScalarFn::Or, &[differs, is_first])?;
        let found = self.add(NonZero { size: unique.size }, &[begins])?;
        let starts = self.reshaped(found, Shape::from([Dim::fresh(unique.size, extent.clone())]))?;
        let count = self.add(Cast { dtype: DType::I64 }, &[begins])?;
        let sum = Cumulative { kind: CumulativeKind::Sum, axis: 0, exclusive: false, reverse: false };
        let number = self.add(sum, &[count])?;
        let run = self.map(ScalarFn::Sub, &[number, one])?;
        Some(Runs { order, run, starts })
    }

    /// Elements of each run: how far its start is from the next one's, of the last from the end.
    fn counts(&mut self, starts: NodeId, extent: &Dim, size: &Dim) -> Option<NodeId> {
        let places = self.iota(extent)?;
        let zero = self.builder.scalar(Literal::int(0, DType::I64)).ok()?;
        let all = self.map(ScalarFn::Ge, &[places, zero])?;
        let all = self.cast(all, DType::I64)?;
        let end = self.add(Reduce { kind: ReduceKind::Sum, axes: smallvec::smallvec![0], keep: true }, &[all])?;
        let ends = self.add(Concat { axis: 0 }, &[starts, end])?;
        let slice = Slice {
            start: smallvec::smallvec![Dim::ONE],
            limit: smallvec::smallvec![size.clone() + Dim::ONE],
            step: smallvec::smallvec![1],
        };
        let next = self.add(slice, &[ends])?;
        self.map(ScalarFn::Sub, &[next, starts])
    }

    /// Where the elements of a list go when it is sorted: of a permutation, its inverse.
    fn sorted(&mut self, list: NodeId, extent: &Dim) -> Option<NodeId> {
        let sorted = self.add(TopK { axis: 0, k: extent.clone(), largest: false }, &[list])?;
        self.add(Proj { index: 1 }, &[sorted])
    }

    fn take(&mut self, of: NodeId, at: NodeId) -> Option<NodeId> {
        self.add(Gather { places: Places::Rows { axis: 0 } }, &[of, at])
    }

    /// 0, 1, 2, …
    fn iota(&mut self, extent: &Dim) -> Option<NodeId> {
        let ty = TensorType { dtype: DType::I64, shape: Shape::from([extent.clone()]) };
        self.add(Iota { ty, axis: 0 }, &[])
    }
}
