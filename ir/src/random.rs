//! Random graphs with inputs, from a seed.
//!
//! Two kinds: *exact*, in which every value is a small multiple of a power of two, so that all legal orders of
//! evaluation give the same bits in every element type; and *real*, of ordinary floats.

mod dynamic;

use crate::diagnostic::Diagnostic;
use crate::dtype::DType;
use crate::eval::Tensors;
use crate::graph::Graph;
use crate::ops::{Conv, ReduceKind, Window, WindowKind};
use crate::scalar::{ScalarFn, ScalarValue};
use crate::tensor::Tensor;
use crate::tracer::{Tracer, Var, trace};
use crate::types::{Shape, TensorType};

/// A generator of random numbers: splitmix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.bits() % n as u64) as usize }
    }

    /// A float in `0..1`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of the items.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }
}

/// A graph and inputs for it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The graph.
    pub graph: Graph,
    /// Values of its inputs.
    pub inputs: Tensors,
}

/// A graph of about `size` nodes whose every value is exact in `dtype`, a number type.
///
/// # Errors
/// Never for number types; `E0101` for bool.
pub fn exact(seed: u64, size: usize, dtype: DType) -> Result<Sample, Diagnostic> {
    build(seed, size, dtype, Kind { exact: true, dynamic: false })
}

/// [`exact`] with operators that compute places, sizes and control from data among the others.
///
/// # Errors
/// Those of [`exact`].
pub fn exact_dynamic(seed: u64, size: usize, dtype: DType) -> Result<Sample, Diagnostic> {
    build(seed, size, dtype, Kind { exact: true, dynamic: true })
}

/// A graph of about `size` nodes of ordinary values in `dtype`, a float type.
///
/// # Errors
/// Never for float types; `E0101` for others.
pub fn real(seed: u64, size: usize, dtype: DType) -> Result<Sample, Diagnostic> {
    build(seed, size, dtype, Kind { exact: false, dynamic: false })
}

/// The greatest whole number up to which all are exact in an element type.
fn limit(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 256.0,
        DType::F16 => 2048.0,
        DType::F32 => (1u64 << 24) as f64,
        DType::F64 => (1u64 << 53) as f64,
        int => 2f64.powi(8 * int.size() as i32 - 1) - 1.0,
    }
}

/// A value and what is known of its elements: all are multiples of `quantum` and at most `most` in magnitude.
#[derive(Clone, Copy)]
struct Known<'t> {
    var: Var<'t>,
    most: f64,
    quantum: f64,
}

/// What graphs are made of.
#[derive(Clone, Copy)]
struct Kind {
    exact: bool,
    dynamic: bool,
}

fn build(seed: u64, size: usize, dtype: DType, kind: Kind) -> Result<Sample, Diagnostic> {
    let Kind { exact, dynamic } = kind;
    let mut random = Random::new(seed);
    let mut inputs = Tensors::new();
    let graph = trace(|t| {
        let mut grower = Grower { t, random: &mut random, dtype, exact, values: Vec::new() };
        for i in 0..2 + grower.random.below(3) {
            let (name, tensor) = (format!("x{i}"), grower.leaf());
            inputs.insert(name.clone(), tensor.clone());
            let shape: Shape = tensor.shape().iter().map(|n| (*n).into()).collect();
            let var = t.input(&name, TensorType { dtype, shape });
            grower.values.push(Known { var, most: if exact { 3.0 } else { 2.0 }, quantum: grower.quantum() });
        }
        for _ in 0..size {
            if dynamic && grower.random.below(2) == 0 {
                grower.grow_dynamic();
            } else {
                grower.grow();
            }
        }
        grower.results()
    })?;
    Ok(Sample { graph, inputs })
}

struct Grower<'a, 't> {
    t: &'a Tracer<'t>,
    random: &'a mut Random,
    dtype: DType,
    exact: bool,
    values: Vec<Known<'t>>,
}

impl<'t> Grower<'_, 't> {
    fn quantum(&self) -> f64 {
        if self.dtype.is_float() { 0.5 } else { 1.0 }
    }

    /// Elements of an input.
    fn leaf(&mut self) -> Tensor {
        // odd, size-1 and distinct extents; most are small, so that sums of products stay exact in 8 bits
        let extents = [1, 2, 3, 5, 3, 5, 11, 21];
        let shape: Vec<usize> = (0..1 + self.random.below(3)).map(|_| extents[self.random.below(8)]).collect();
        let mut tensor = Tensor::zeros(self.dtype, &shape);
        for i in 0..tensor.elements() {
            let value = match (self.exact, self.dtype.is_unsigned()) {
                (true, true) => self.random.below(4) as f64,
                (true, false) => (self.random.below(13) as f64 - 6.0) * self.quantum(),
                (false, _) => self.random.unit() * 4.0 - 2.0,
            };
            tensor.set(i, ScalarValue::Float(value.trunc_to(self.quantum(), self.exact)));
        }
        tensor
    }

    /// Adds a value unless it could be inexact.
    fn push(&mut self, var: Var<'t>, most: f64, quantum: f64) {
        if self.fits(most, quantum) {
            self.values.push(Known { var, most, quantum });
        }
    }

    fn fits(&self, most: f64, quantum: f64) -> bool {
        !self.exact || most / quantum < limit(self.dtype) && quantum >= 2f64.powi(-8)
    }

    fn any(&mut self) -> Option<Known<'t>> {
        // later values more often, so that graphs grow deep
        let n = self.values.len();
        let at =
            if self.random.below(2) == 0 { n.saturating_sub(1 + self.random.below(3)) } else { self.random.below(n) };
        self.values.get(at).copied()
    }

    fn grow(&mut self) {
        let (Some(a), Some(b)) = (self.any(), self.any()) else { return };
        let axis = self.random.below(a.var.rank().max(1)) as isize;
        let both = a.most.max(b.most);
        let fine = a.quantum.min(b.quantum);
        match self.random.below(if self.exact { 20 } else { 25 }) {
            0 | 1 => self.elementwise(a, b),
            2 if a.var.rank() > 1 => {
                let mut order: Vec<usize> = (0..a.var.rank()).collect();
                let by = 1 + self.random.below(order.len() - 1);
                order.rotate_left(by);
                self.push(a.var.transpose(&order), a.most, a.quantum);
            }
            3 => {
                let from = self.random.below(a.var.rank() + 1);
                self.push(a.var.flatten(from), a.most, a.quantum);
            }
            4 if a.var.rank() > 0 => {
                let kind = [ReduceKind::Sum, ReduceKind::Max, ReduceKind::Min][self.random.below(3)];
                let n = self.extent(a.var, axis);
                let most = if kind == ReduceKind::Sum { a.most * n } else { a.most };
                if self.fits(most, a.quantum) {
                    let keep = self.random.below(2) == 0;
                    self.push(a.var.reduce(kind, &[axis], keep), most, a.quantum);
                }
            }
            5 if a.var.rank() > 0 => self.push(a.var.reverse(&[axis]), a.most, a.quantum),
            6 if a.var.rank() > 0 => {
                let n = self.extent(a.var, axis) as usize;
                let start = self.random.below(n);
                let limit = start + 1 + self.random.below(n - start);
                let step = 1 + self.random.below(2) as i64;
                self.push(a.var.slice(axis, start, limit, step), a.most, a.quantum);
            }
            7 if a.var.rank() > 0 && a.var.rank() < 4 => {
                self.push(self.t.concat(&[a.var, a.var], axis), a.most, a.quantum)
            }
            8 if a.var.rank() > 0 && b.var.rank() > 0 => {
                let (x, y) = (a.var.flatten(0), b.var.flatten(0));
                let n = self.extent(x, 0);
                let (most, quantum) = (a.most * b.most * n, a.quantum * b.quantum);
                let small = n * self.extent(y, 0) <= 400.0;
                if small && self.fits(most, quantum) {
                    let squares = x.dot_general(y, "a,b->ba").dot_general(x, "ba,a->b");
                    self.push(x.dot_general(x, "a,a->").reshape([1]), a.most * a.most * n, a.quantum * a.quantum);
                    if self.fits(most * a.most, quantum * a.quantum) {
                        self.push(squares, most * a.most, quantum * a.quantum);
                    }
                }
            }
            9 if a.var.shape() == b.var.shape() => {
                let one = self.quantum();
                self.push(a.var.greater(one).select(a.var, b.var), both, fine);
            }
            10 if a.var.rank() > 0 => {
                let n = self.extent(a.var, axis) as usize;
                let index: Vec<i64> = (0..3).map(|_| self.random.below(n) as i64).collect();
                if let Some(index) = Tensor::new(&[3], &index) {
                    self.push(a.var.gather(self.t.constant(index), axis), a.most, a.quantum);
                }
            }
            11 if a.var.rank() > 0 && a.var.rank() < 4 => {
                let mut pads = vec![0; a.var.rank()];
                pads[axis as usize] = 1;
                self.push(a.var.pad(&pads, &vec![0; pads.len()], 1.0), a.most.max(1.0), a.quantum);
            }
            12 if a.var.rank() > 0 => self.pool(a, WindowKind::Max),
            13 if a.var.rank() > 0 => self.pool(a, WindowKind::Sum),
            14 if a.var.rank() > 0 => self.convolution(a),
            15 if a.var.rank() > 0 => {
                // one place takes two updates, in either order
                let n = self.extent(a.var, axis) as usize;
                let last = self.random.below(n) as i64;
                if let Some(index) = Tensor::new(&[3], &[0i64, last, 0]) {
                    let index = self.t.constant(index);
                    if self.fits(4.0 * a.most, a.quantum) {
                        let sums = a.var.scatter_add(index, a.var.gather(index, axis), axis);
                        self.push(sums, 4.0 * a.most, a.quantum);
                    }
                }
            }
            16 => self.round_trip(a),
            17 => {
                let one = self.quantum();
                let tops = a.var.greater_equal(one);
                let both = tops.logical_or(a.var.less(0.0)).logical_not();
                self.push(both.cast(self.dtype), 1.0, 1.0);
                self.push(tops.select(a.var, a.var.cast(DType::Bool).cast(self.dtype)), a.most.max(1.0), fine.min(1.0));
            }
            18 if a.var.rank() > 1 && self.exact => {
                let n = self.extent(a.var, 0);
                if self.fits(a.most * (n + 1.0), a.quantum) {
                    let first = a.var.slice(0, 0, 1, 1).squeeze(&[0]);
                    let (ends, sums) = self.t.scan(&[first], &[a.var], |_, carry, slice| {
                        let next = carry[0] + slice[0];
                        (vec![next], vec![next.maximum(slice[0])])
                    });
                    self.push(ends[0], a.most * (n + 1.0), a.quantum);
                    self.push(sums[0], a.most * (n + 1.0), a.quantum);
                }
            }
            19 if !self.dtype.is_float() => {
                let two = self.t.scalar(crate::Literal::int(2, self.dtype));
                self.push(a.var.map(ScalarFn::Div, &[two]), a.most, 1.0);
                self.push(a.var.map(ScalarFn::Rem, &[two]), 1.0, 1.0);
                if self.fits(a.most * a.most, 1.0) {
                    self.push(a.var.map(ScalarFn::Pow, &[two]), a.most * a.most, 1.0);
                }
            }
            19 => self.push(a.var.map(ScalarFn::Floor, &[]), a.most, 1.0),
            20 if a.var.rank() > 0 => self.push(a.var.softmax(axis), 1.0, 0.0),
            21 if a.var.rank() > 0 => self.push(a.var.layer_norm(axis, 1e-3), 4.0, 0.0),
            22 => {
                let smooth =
                    [ScalarFn::Tanh, ScalarFn::Sigmoid, ScalarFn::Gelu, ScalarFn::Silu, ScalarFn::Erf, ScalarFn::Sin];
                if let Some(f) = self.random.pick(&smooth) {
                    self.push(a.var.map(*f, &[]), a.most.max(1.0), 0.0);
                }
            }
            23 => self.push(a.var.tanh().exp(), 3.0, 0.0),
            24 if a.var.rank() > 0 => self.pool(a, WindowKind::MeanValid),
            _ => {}
        }
    }

    /// A window over the last one or two axes.
    fn pool(&mut self, a: Known<'t>, kind: WindowKind) {
        let rank = a.var.rank();
        let axes = if rank > 1 && self.random.below(2) == 0 { 2 } else { 1 };
        let extents: Vec<i64> = (rank - axes..rank).map(|axis| self.extent(a.var, axis as isize) as i64).collect();
        let size: Vec<i64> = extents.iter().map(|n| (*n).min(1 + self.random.below(3) as i64)).collect();
        let stride: Vec<i64> = size.iter().map(|_| 1 + self.random.below(2) as i64).collect();
        let pad: Vec<i64> = size.iter().map(|n| (self.random.below(2) as i64).min(n - 1)).collect();
        let elements: i64 = size.iter().product();
        let most = if kind == WindowKind::Sum { a.most * elements as f64 } else { a.most };
        if self.fits(most, a.quantum) {
            let window = Window::symmetric(&size, &stride, &pad);
            self.push(a.var.reduce_window(kind, window), most, a.quantum);
        }
    }

    /// A convolution of the elements in a row with two small filters.
    fn convolution(&mut self, a: Known<'t>) {
        let row = a.var.flatten(0);
        let n = self.extent(row, 0) as i64;
        let most = 2.0 * a.most;
        if !(3..200).contains(&n) || !self.fits(most, a.quantum) {
            return;
        }
        let mut filters = Tensor::zeros(self.dtype, &[2, 1, 3]);
        let taps =
            if self.dtype.is_unsigned() { [1.0, 0.0, 1.0, 1.0, 1.0, 0.0] } else { [1.0, 0.0, -1.0, -1.0, 1.0, 0.0] };
        taps.iter().enumerate().for_each(|(i, tap)| filters.set(i, ScalarValue::Float(*tap)));
        let (stride, pad) = (1 + self.random.below(2) as i64, self.random.below(3) as i64);
        let conv = Conv::forward(&[stride], &[pad], &[0], &[1], 1);
        let image = row.reshape([1, 1, n]);
        self.push(image.conv(self.t.constant(filters), conv), most, a.quantum);
    }

    /// Through another element type that holds every value, and back.
    fn round_trip(&mut self, a: Known<'t>) {
        let Some(&through) = self.random.pick(DType::ALL) else { return };
        let whole = a.quantum >= 1.0 && a.quantum.fract() == 0.0;
        let signs = !through.is_unsigned() || self.dtype.is_unsigned();
        let holds = match through {
            DType::Bool => false,
            float if float.is_float() => !self.exact || a.most / a.quantum < limit(through),
            _ => self.exact && whole && signs && a.most < limit(through),
        };
        if holds {
            self.push(a.var.cast(through).cast(self.dtype), a.most, a.quantum);
        }
    }

    fn elementwise(&mut self, a: Known<'t>, b: Known<'t>) {
        let fine = a.quantum.min(b.quantum);
        let fits =
            a.var.shape().iter().rev().zip(b.var.shape().iter().rev()).all(|(m, n)| m == n || m.is(1) || n.is(1));
        let other = if fits { b } else { a };
        let unsigned = self.dtype.is_unsigned();
        let both = a.most.max(other.most);
        let (f, most, quantum) = match self.random.below(7) {
            0 | 1 => (ScalarFn::Add, a.most + other.most, fine),
            2 if !unsigned => (ScalarFn::Sub, a.most + other.most, fine),
            3 => (ScalarFn::Mul, a.most * other.most, a.quantum * other.quantum),
            4 => (ScalarFn::Max, both, fine),
            5 => (ScalarFn::Min, both, fine),
            _ => return self.push(a.var.relu(), a.most, a.quantum),
        };
        // reals stay small without a rule for magnitudes
        let limited = if self.exact { most } else { 1.0 };
        if self.fits(limited, quantum) && (self.exact || most < 1e3) {
            self.push(a.var.map(f, &[other.var]), most, quantum);
        }
    }

    fn extent(&self, var: Var<'t>, axis: isize) -> f64 {
        var.axis(axis).and_then(|axis| var.shape()[axis].as_const()).unwrap_or(1) as f64
    }

    /// The last values, and one from the middle.
    fn results(&mut self) -> Vec<Var<'t>> {
        let n = self.values.len();
        let mut places = vec![n - 1, n.saturating_sub(2), n / 2];
        places.sort_unstable();
        places.dedup();
        places.into_iter().map(|i| self.values[i].var).collect()
    }
}

/// Rounds towards zero to a multiple.
trait Truncate {
    fn trunc_to(self, quantum: f64, exact: bool) -> f64;
}

impl Truncate for f64 {
    fn trunc_to(self, quantum: f64, exact: bool) -> f64 {
        if exact { (self / quantum).trunc() * quantum } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{interpret, text, verify};

    #[test]
    fn samples_are_legal_run_and_survive_text() {
        let number = |seed: u64| DType::ALL[1 + seed as usize % (DType::ALL.len() - 1)];
        let float = |seed: u64| [DType::F32, DType::F64, DType::F16, DType::BF16][seed as usize % 4];
        let exact = (0..60).map(|seed| exact(seed, 24, number(seed)));
        let dynamic = (0..120).map(|seed| exact_dynamic(seed, 24, number(seed)));
        let real = (0..30).map(|seed| real(seed, 30, float(seed)));
        let mut seen = std::collections::BTreeSet::new();
        for sample in exact.chain(dynamic).chain(real) {
            let sample = sample.unwrap();
            verify(&sample.graph).unwrap();
            let printed = text::print(&sample.graph);
            let constants = text::large_constants(&sample.graph);
            let parsed = text::parse_with(&printed, &constants).unwrap_or_else(|e| panic!("{e}\n{printed}"));
            assert_eq!(parsed, sample.graph, "{printed}");
            let outcome = interpret(&sample.graph, &sample.inputs, &Tensors::new());
            outcome.unwrap_or_else(|e| panic!("{e}\n{printed}"));
            seen.extend(sample.graph.nodes().iter().map(|node| node.op.home().name()));
        }
        for name in ["generate", "gather_nd", "scatter_elements", "top_k", "non_zero", "unique", "rng", "if", "while"] {
            assert!(seen.contains(name), "{name} is in no sample");
        }
    }

    /// Exactness is a promise: the same graph in a wider type has the same values.
    #[test]
    fn exact_samples_are_exact() {
        let samples = (0..60).map(|seed| exact(seed, 30, DType::BF16));
        for (seed, narrow) in samples.chain((0..120).map(|seed| exact_dynamic(seed, 30, DType::BF16))).enumerate() {
            let narrow = narrow.unwrap();
            let wide_text = text::print(&narrow.graph).replace("bf16", "f64");
            let wide = text::parse_with(&wide_text, &text::large_constants(&narrow.graph)).unwrap();
            let inputs = narrow.inputs.iter().map(|(name, v)| {
                let mut copy = Tensor::zeros(DType::F64, v.shape());
                v.values().enumerate().for_each(|(i, v)| copy.set(i, v));
                (name.clone(), copy)
            });
            let narrow = interpret(&narrow.graph, &narrow.inputs, &Tensors::new()).unwrap();
            let wide = interpret(&wide, &inputs.collect(), &Tensors::new()).unwrap();
            for ((_, a), (_, b)) in narrow.outputs.iter().zip(&wide.outputs) {
                assert!(a.values().eq(b.values()), "seed {seed}: {a:?} {b:?}\n{wide_text}");
            }
        }
    }
}
