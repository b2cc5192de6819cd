//! Operators that compute places, sizes and control from data.

use super::{Grower, Known};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::ops::{CumulativeKind, InnerKind, Outside, Places, ReduceKind, ScatterKind};
use crate::scalar::{Literal, ScalarFn};
use crate::tensor::Tensor;
use crate::tracer::Var;
use crate::types::{Shape, TensorType};

impl<'t> Grower<'_, 't> {
    /// Adds one such operator, with what brings its result back to a fixed shape.
    pub(super) fn grow_dynamic(&mut self) {
        let Some(a) = self.any() else { return };
        if a.var.rank() == 0 || a.var.shape().elements().is(0) {
            return;
        }
        let axis = self.random.below(a.var.rank()) as isize;
        match self.random.below(12) {
            0 => self.neighbours(a, axis),
            1 => self.inner_loop(a, axis),
            2 => self.picked(a, axis),
            3 => self.scattered(a, axis),
            4 => {
                let k = 1 + self.random.below(self.extent(a.var, axis) as usize) as i64;
                let (values, places) = a.var.top_k(axis, k, self.random.below(2) == 0);
                self.push(values, a.most, a.quantum);
                self.push(places.cast(self.dtype), self.extent(a.var, axis), 1.0);
            }
            5 => {
                let n = self.extent(a.var, axis);
                let reverse = self.random.below(2) == 0;
                let exclusive = self.random.below(2) == 0;
                if self.fits(a.most * n, a.quantum) {
                    let sums = a.var.cumulative(CumulativeKind::Sum, axis, exclusive, reverse);
                    self.push(sums, a.most * n, a.quantum);
                }
                for kind in [CumulativeKind::Max, CumulativeKind::Min] {
                    self.push(a.var.cumulative(kind, axis, false, reverse), a.most, a.quantum);
                }
            }
            6 => self.compressed(a, axis),
            7 => {
                let [values, _, inverse, counts] = a.var.unique(None, self.random.below(2) == 0);
                self.push(values.gather(inverse, 0).reshape(a.var.shape()), a.most, a.quantum);
                let total = a.var.shape().elements().as_const().unwrap_or(0) as f64;
                if self.fits(total, 1.0) {
                    self.push(counts.cast(self.dtype).reduce(ReduceKind::Sum, &[0], true), total, 1.0);
                }
            }
            8 => {
                let counter = self.t.scalar(Literal::int(self.random.below(100) as i64, DType::U64));
                let bits = self.t.random_bits(self.random.bits(), counter, a.var.shape());
                let one = self.t.scalar(Literal::int(1, DType::U32));
                self.push(bits.bit_and(one).cast(self.dtype), 1.0, 1.0);
            }
            9 => self.branch(a, axis),
            10 => self.loop_of(a, axis),
            _ if self.dtype.is_unsigned() => {
                let two = self.t.scalar(Literal::int(2, self.dtype));
                self.push(a.var.shift_right(two), a.most, 1.0);
                self.push(a.var.map(ScalarFn::BitXor, &[a.var.reverse(&[axis])]), 2.0 * a.most, 1.0);
            }
            _ => {}
        }
    }

    fn ints(&self, shape: &[usize], values: &[i64]) -> Option<Var<'t>> {
        Tensor::new(shape, values).map(|tensor| self.t.constant(tensor))
    }

    /// A sum of both neighbours along an axis.
    fn neighbours(&mut self, a: Known<'t>, axis: isize) {
        if !self.fits(2.0 * a.most, a.quantum) {
            return;
        }
        let outside = match self.random.below(2) {
            0 => Outside::Clamp,
            _ => Outside::Fill(Literal::int(1, self.dtype)),
        };
        let sum = self.t.generate(a.var.ty(), &[a.var], |g, index| {
            let mut at = |by: i64| {
                let mut place = index.to_vec();
                place[axis as usize] = &index[axis as usize] + by;
                g.load(0, &place, outside)
            };
            at(-1) + at(1)
        });
        self.push(sum, (2.0 * a.most).max(2.0), a.quantum.min(1.0));
    }

    /// A sum or extremum of the first elements of a flattened value, as many as the index says.
    fn inner_loop(&mut self, a: Known<'t>, _: isize) {
        let row = a.var.flatten(0);
        let n = self.extent(row, 0);
        let kind = [InnerKind::Sum, InnerKind::Max, InnerKind::Min][self.random.below(3)];
        let most = if kind == InnerKind::Sum { a.most * n } else { a.most };
        if n > 60.0 || !self.fits(most, a.quantum) {
            return;
        }
        let joined = self.t.generate(row.ty(), &[row], |g, index| {
            let count = &index[0] + 1;
            g.reduce(kind, n as i64, Some(count), |g, r| g.load(0, &[r], Outside::Fault))
        });
        self.push(joined, most, a.quantum);
    }

    fn picked(&mut self, a: Known<'t>, axis: isize) {
        let n = self.extent(a.var, axis) as usize;
        let mut shape: Vec<usize> =
            a.var.shape().iter().map(|dim| dim.as_const().and_then(|n| usize::try_from(n).ok()).unwrap_or(1)).collect();
        let first = self.extent(a.var, 0) as usize;
        let tuples: Vec<i64> = (0..3).map(|_| self.random.below(first) as i64).collect();
        if let Some(tuples) = self.ints(&[3, 1], &tuples) {
            self.push(a.var.gather_at(Places::Tuples { batch: 0 }, tuples), a.most, a.quantum);
        }
        shape[axis as usize] = 2;
        let index: Vec<i64> = (0..shape.iter().product()).map(|_| self.random.below(n) as i64).collect();
        if let Some(index) = self.ints(&shape, &index) {
            self.push(a.var.gather_at(Places::Elements { axis: axis as usize }, index), a.most, a.quantum);
        }
    }

    /// Updates of two places along an axis, some twice.
    fn scattered(&mut self, a: Known<'t>, axis: isize) {
        let n = self.extent(a.var, axis) as usize;
        let kind = [ScatterKind::Set, ScatterKind::Min, ScatterKind::Max][self.random.below(3)];
        let axis = axis as usize;
        let mut shape = a.var.shape();
        shape.dims_mut()[axis] = Dim::from(3);
        let place = self.random.below(n) as i64;
        let Some(line) = self.ints(&[3], &[place, 0, place]) else { return };
        let updates = a.var.gather(line, axis as isize).reverse(&[axis as isize]);
        self.push(a.var.scatter(Places::Rows { axis }, kind, line, updates), a.most, a.quantum);
        let mut column = vec![Dim::ONE; shape.rank()];
        column[axis] = Dim::from(3);
        let index = line.reshape(column.as_slice()).broadcast(shape);
        self.push(a.var.scatter(Places::Elements { axis }, kind, index, updates), a.most, a.quantum);
    }

    /// The slices whose first element is above zero, summed.
    fn compressed(&mut self, a: Known<'t>, axis: isize) {
        let n = self.extent(a.var, axis);
        if !self.fits(a.most * n, a.quantum) {
            return;
        }
        let others: Vec<isize> = (0..a.var.rank() as isize).filter(|i| *i != axis).collect();
        let keep = a.var.reduce(ReduceKind::Max, &others, false).greater(self.quantum());
        let sums = a.var.compress(keep, Some(axis)).reduce(ReduceKind::Sum, &[axis], true);
        self.push(sums, a.most * n, a.quantum);
    }

    fn branch(&mut self, a: Known<'t>, axis: isize) {
        let others: Vec<isize> = (0..a.var.rank() as isize).collect();
        let go = a.var.reduce(ReduceKind::Max, &others, false).greater(2.0);
        let results = self.t.cond(
            go,
            |_| vec![a.var.reverse(&[axis]), a.var.narrow(axis, 0, 1)],
            |_| vec![a.var.maximum(0.0), a.var],
        );
        self.push(results[0], a.most, a.quantum);
        // the extent differs between the branches
        self.push(results[1].reduce(ReduceKind::Max, &[axis], true), a.most, a.quantum);
    }

    fn loop_of(&mut self, a: Known<'t>, axis: isize) {
        let trips = self.random.below(4) as i64;
        if !self.fits(a.most * 8.0, a.quantum) {
            return;
        }
        let counter = TensorType { dtype: DType::I64, shape: Shape::scalar() };
        let zero = self.t.iota(TensorType { dtype: DType::I64, shape: [1i64].into() }, 0).reshape(counter.shape);
        let (last, _, slices) = self.t.while_loop(
            Some(3.into()),
            &[a.var, zero],
            |_, carry| carry[1].less(trips),
            |_, carry| {
                let next = carry[0] + carry[0].reverse(&[axis]);
                (vec![next, carry[1] + 1i64], vec![carry[0].maximum(0.0)])
            },
        );
        self.push(last[0], a.most * 8.0, a.quantum);
        self.push(last[1].cast(self.dtype).reshape([1]), 3.0, 1.0);
        // no slices sum to zero
        if self.fits(a.most * 32.0, a.quantum) {
            self.push(slices[0].reduce(ReduceKind::Sum, &[0], false), a.most * 32.0, a.quantum);
        }
    }
}
