//! Reference evaluation of the three forms, by matrices of columns.

use super::{Conv, ConvForm};
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError, Num, PADDING, Taps, by_kind};
use crate::tensor::Tensor;

/// Windows whose columns are held at a time.
const BLOCK: usize = 1024;

/// Extents of a convolution `x [n, c, …] · w [o, c/groups, …] → y [n, o, …]`.
struct Geometry {
    n: usize,
    /// Channels of `x` and of `y` in one group.
    c: usize,
    o: usize,
    groups: usize,
    /// Elements of one channel of `x`.
    plane: usize,
    taps: Taps,
}

impl Geometry {
    fn new(op: &Conv, x: &[usize], w: &[usize], y: &[usize]) -> Result<Geometry, EvalError> {
        let groups = op.groups as usize;
        if !x[1].is_multiple_of(groups) || !y[1].is_multiple_of(groups) {
            return Err(EvalError::Operands(format!("{} and {} channels are not of {groups} groups", x[1], y[1])));
        }
        let plane: usize = x[2..].iter().product();
        let table = w[2..].iter().chain(&y[2..]).try_fold(1usize, |n, d| n.checked_mul(*d));
        if table.is_none_or(|t| t >= 1 << 34) || plane >= PADDING as usize {
            return Err(EvalError::TooLarge { shape: y.to_vec() });
        }
        let taps = Taps::new(&x[2..], &w[2..], &y[2..], &op.stride, &op.pad_low, &op.dilation);
        Ok(Geometry { n: x[0], c: x[1] / groups, o: y[1] / groups, groups, plane, taps })
    }

    /// Elements of a filter: the height of the matrix of columns.
    fn depth(&self) -> usize {
        self.c * self.taps.elements
    }

    /// The columns `[depth, width]` of the windows from `start`, read from the channels of one group.
    fn columns<N: Num>(&self, x: &[N], start: usize, width: usize, columns: &mut Vec<N>) {
        columns.clear();
        for channel in x.chunks_exact(self.plane.max(1)).take(self.c) {
            for element in 0..self.taps.elements {
                let places = &self.taps.of(element)[start..start + width];
                columns.extend(places.iter().map(|at| if *at == PADDING { N::ZERO } else { channel[*at as usize] }));
            }
        }
    }

    /// Adds columns to the places that they were read from.
    fn spread<N: Num>(&self, columns: &[N], start: usize, width: usize, x: &mut [N]) {
        let mut rows = columns.chunks_exact(width);
        for channel in x.chunks_exact_mut(self.plane.max(1)).take(self.c) {
            for (element, row) in (0..self.taps.elements).zip(&mut rows) {
                for (at, value) in self.taps.of(element)[start..start + width].iter().zip(row) {
                    if *at != PADDING {
                        channel[*at as usize] = channel[*at as usize].plus(*value);
                    }
                }
            }
        }
    }

    /// Calls `f` with each group's number (image and group), and each block of windows.
    fn blocks(&self, mut f: impl FnMut(usize, usize, usize)) {
        for group in 0..self.n * self.groups {
            for start in (0..self.taps.windows).step_by(BLOCK) {
                f(group, start, BLOCK.min(self.taps.windows - start));
            }
        }
    }

    fn forward<N: Num>(&self, x: &[N], w: &[N]) -> Vec<N> {
        let (o, depth, windows) = (self.o, self.depth(), self.taps.windows);
        let mut y = vec![N::ZERO; self.n * self.groups * o * windows];
        let (mut columns, mut part) = (Vec::new(), Vec::new());
        self.blocks(|group, start, width| {
            self.columns(&x[group * self.c * self.plane..], start, width, &mut columns);
            part.clear();
            part.resize(o * width, N::ZERO);
            N::gemm(o, width, depth, &w[group % self.groups * o * depth..][..o * depth], &columns, &mut part);
            for (i, row) in part.chunks_exact(width).enumerate() {
                y[(group * o + i) * windows + start..][..width].copy_from_slice(row);
            }
        });
        y
    }

    fn input_grad<N: Num>(&self, y: &[N], w: &[N]) -> Vec<N> {
        let (o, depth, windows) = (self.o, self.depth(), self.taps.windows);
        let mut x = vec![N::ZERO; self.n * self.groups * self.c * self.plane];
        let turned: Vec<Vec<N>> = w.chunks_exact((o * depth).max(1)).map(|w| transposed(w, o, depth)).collect();
        self.blocks(|group, start, width| {
            let rows: Vec<N> =
                (0..o).flat_map(|i| y[(group * o + i) * windows + start..][..width].iter().copied()).collect();
            let mut columns = vec![N::ZERO; depth * width];
            if let Some(turned) = turned.get(group % self.groups) {
                N::gemm(depth, width, o, turned, &rows, &mut columns);
            }
            self.spread(&columns, start, width, &mut x[group * self.c * self.plane..]);
        });
        x
    }

    fn weight_grad<N: Num>(&self, x: &[N], y: &[N]) -> Vec<N> {
        let (o, depth, windows) = (self.o, self.depth(), self.taps.windows);
        let mut w = vec![N::ZERO; self.groups * o * depth];
        let mut columns = Vec::new();
        self.blocks(|group, start, width| {
            self.columns(&x[group * self.c * self.plane..], start, width, &mut columns);
            let rows: Vec<N> =
                (0..o).flat_map(|i| y[(group * o + i) * windows + start..][..width].iter().copied()).collect();
            let turned = transposed(&columns, depth, width);
            N::gemm(o, depth, width, &rows, &turned, &mut w[group % self.groups * o * depth..][..o * depth]);
        });
        w
    }
}

fn transposed<N: Num>(matrix: &[N], rows: usize, columns: usize) -> Vec<N> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| matrix[i * columns + j])).collect()
}

pub(super) fn eval(op: &Conv, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
    fn run<N: Num>(form: ConvForm, geometry: &Geometry, operands: &[Tensor], dtype: DType, shape: &[usize]) -> Tensor {
        let (a, b) = (N::load(&operands[0]), N::load(&operands[1]));
        let result = match form {
            ConvForm::Forward => geometry.forward(&a, &b),
            ConvForm::InputGrad => geometry.input_grad(&a, &b),
            ConvForm::WeightGrad => geometry.weight_grad(&a, &b),
        };
        N::store(dtype, shape, &result)
    }
    let (dtype, shape) = cx.result(op, operands)?;
    let (a, b) = (operands[0].shape(), operands[1].shape());
    let geometry = match op.form {
        ConvForm::Forward => Geometry::new(op, a, b, &shape),
        ConvForm::InputGrad => Geometry::new(op, &shape, b, a),
        ConvForm::WeightGrad => Geometry::new(op, a, &shape, b),
    }?;
    Ok(vec![by_kind!(dtype, run(op.form, &geometry, operands, dtype, &shape))])
}
