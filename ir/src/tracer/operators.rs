//! Operators that compute.

use std::panic::Location;

use smallvec::SmallVec;

use super::{Operand, Var};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::ops::{
    Attention, Bitcast, Cast, Conv, CrossEntropy, Cumulative, CumulativeKind, DotGeneral, Gather, Labels, NonZero,
    Norm, NormKind, Places, Proj, Real, Reduce, ReduceKind, ReduceWindow, Scatter, ScatterKind, Softmax, StopGradient,
    TopK, Unique, Window, WindowKind,
};
use crate::scalar::ScalarFn;
use crate::types::{Shape, TensorType};

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident $f:ident;)*) => {
        /// Scalar functions of one operand.
        impl<'t> Var<'t> {
            $($(#[$doc])* #[track_caller] pub fn $name(self) -> Var<'t> { self.map(ScalarFn::$f, &[]) })*
        }
    };
}

unary! {
    /// |x|.
    abs Abs;
    /// −1, 0 or 1.
    sign Sign;
    /// Greatest integer not above x.
    floor Floor;
    /// Least integer not below x.
    ceil Ceil;
    /// Nearest integer, half to even.
    round Round;
    /// eˣ.
    exp Exp;
    /// Natural logarithm.
    log Log;
    /// Square root.
    sqrt Sqrt;
    /// 1 / √x.
    rsqrt Rsqrt;
    /// 1 / x.
    recip Recip;
    /// Sine of radians.
    sin Sin;
    /// Cosine of radians.
    cos Cos;
    /// Hyperbolic tangent.
    tanh Tanh;
    /// Error function.
    erf Erf;
    /// 1 / (1 + e⁻ˣ).
    sigmoid Sigmoid;
    /// max(x, 0).
    relu Relu;
    /// x·Φ(x) by the error function.
    gelu Gelu;
    /// The tanh approximation of GELU.
    gelu_tanh GeluTanh;
    /// x·sigmoid(1.702 x), the quick approximation of GELU.
    quick_gelu QuickGelu;
    /// x·sigmoid(x).
    silu Silu;
    /// log(1 + eˣ).
    softplus Softplus;
    /// x·tanh(softplus(x)).
    mish Mish;
    /// x·min(max(x + 3, 0), 6) / 6.
    hard_swish HardSwish;
    /// x / (1 + |x|).
    softsign Softsign;
    /// Tangent of radians.
    tan Tan;
    /// Arc sine.
    asin Asin;
    /// Arc cosine.
    acos Acos;
    /// Arc tangent.
    atan Atan;
    /// Hyperbolic sine.
    sinh Sinh;
    /// Hyperbolic cosine.
    cosh Cosh;
    /// Inverse hyperbolic sine.
    asinh Asinh;
    /// Inverse hyperbolic cosine.
    acosh Acosh;
    /// Inverse hyperbolic tangent.
    atanh Atanh;
    /// eˣ − 1.
    expm1 Expm1;
    /// Logarithm of 1 + x.
    log1p Log1p;
    /// Every bit of an integer inverted.
    bit_not BitNot;
    /// Whether x is an infinity.
    is_inf IsInf;
    /// Logical negation.
    logical_not Not;
    /// Whether x is NaN.
    is_nan IsNan;
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident $f:ident;)*) => {
        /// Scalar functions of two operands, which broadcast together.
        impl<'t> Var<'t> {
            $($(#[$doc])* #[track_caller] pub fn $name(self, other: impl Operand<'t>) -> Var<'t> {
                self.map(ScalarFn::$f, &[other.beside(self)])
            })*
        }
    };
}

binary! {
    /// aᵇ.
    pow Pow;
    /// The greater.
    maximum Max;
    /// The lesser.
    minimum Min;
    /// a = b.
    equal Eq;
    /// a ≠ b.
    not_equal Ne;
    /// a < b.
    less Lt;
    /// a ≤ b.
    less_equal Le;
    /// a > b.
    greater Gt;
    /// a ≥ b.
    greater_equal Ge;
    /// Remainder with the sign of the divisor.
    modulo Mod;
    /// Bits of both.
    bit_and BitAnd;
    /// Bits of either.
    bit_or BitOr;
    /// Bits of exactly one.
    bit_xor BitXor;
    /// Bits of an unsigned integer moved up.
    shift_left Shl;
    /// Bits of an unsigned integer moved down.
    shift_right Shr;
    /// Both.
    logical_and And;
    /// Either.
    logical_or Or;
    /// Exactly one.
    logical_xor Xor;
}

/// Products, reductions, normalisations and look-ups.
impl<'t> Var<'t> {
    /// `yes` where this is true, else `no`.
    #[track_caller]
    pub fn select(self, yes: Var<'t>, no: Var<'t>) -> Var<'t> {
        self.map(ScalarFn::Select, &[yes, no])
    }

    /// Converts elements.
    #[track_caller]
    pub fn cast(self, dtype: DType) -> Var<'t> {
        if self.dtype() == dtype { self } else { self.then(Cast { dtype }, &[]) }
    }

    /// The same bits as another element type of the same size.
    #[track_caller]
    pub fn bitcast(self, dtype: DType) -> Var<'t> {
        if self.dtype() == dtype { self } else { self.then(Bitcast { dtype }, &[]) }
    }

    /// The same value; no gradient flows through it.
    #[track_caller]
    pub fn stop_gradient(self) -> Var<'t> {
        self.then(StopGradient, &[])
    }

    /// The matrix product by NumPy's rule: leading axes broadcast, a vector is a row on the left and a column on the right.
    #[track_caller]
    pub fn matmul(self, other: Var<'t>) -> Var<'t> {
        let (a, b) = (self.shape(), other.shape());
        if a.rank() == 0 || b.rank() == 0 || a.rank() + b.rank() > 20 {
            return self.refuse(format!("matmul of shapes {a} and {b}"));
        }
        // labels: m, k, n of the matrices, then one for each leading axis, counted from the last
        let (m, k, n) = (b'a', b'b', b'c');
        let lead = |rank: usize| rank.saturating_sub(2);
        let batch = lead(a.rank()).max(lead(b.rank()));
        let mut out: SmallVec<[u8; 8]> = SmallVec::new();
        let (mut left, mut right) = (Labels::default(), Labels::default());
        let (mut drop_a, mut drop_b) = (Vec::new(), Vec::new());
        for from_last in (0..batch).rev() {
            let label = b'd' + from_last as u8;
            let axis = |rank: usize| lead(rank).checked_sub(from_last + 1);
            let (i, j) = (axis(a.rank()), axis(b.rank()));
            // an extent of 1 that is repeated is no axis of the contraction
            let repeats = |own: Option<usize>, s: &Shape, other: Option<usize>, o: &Shape| {
                own.is_some_and(|i| s[i].is(1)) && other.is_some_and(|j| !o[j].is(1))
            };
            match i {
                Some(axis) if repeats(i, &a, j, &b) => drop_a.push(axis),
                Some(_) => left.0.push(label),
                None => {}
            }
            match j {
                Some(axis) if repeats(j, &b, i, &a) => drop_b.push(axis),
                Some(_) => right.0.push(label),
                None => {}
            }
            out.push(label);
        }
        if a.rank() > 1 {
            left.0.push(m);
            out.push(m);
        }
        left.0.push(k);
        right.0.push(k);
        if b.rank() > 1 {
            right.0.push(n);
            out.push(n);
        }
        self.without_axes(&drop_a).then(DotGeneral::new(left, right, Labels(out)), &[other.without_axes(&drop_b)])
    }

    /// The contraction that labels such as `ab,bc->ac` name.
    #[track_caller]
    pub fn dot_general(self, other: Var<'t>, labels: &str) -> Var<'t> {
        match DotGeneral::parse(labels) {
            Some(dot) => self.then(dot, &[other]),
            None => self.refuse(format!("`{labels}` names no contraction such as `ab,bc->ac`")),
        }
    }

    /// A convolution, transposed or not, with all its attributes.
    #[track_caller]
    pub fn conv(self, other: Var<'t>, conv: Conv) -> Var<'t> {
        self.then(conv, &[other])
    }

    /// The convolution of images `[n, c, h, w]` with filters `[o, c, kh, kw]`, padded alike on both sides.
    #[track_caller]
    pub fn conv2d(self, filters: Var<'t>, stride: [i64; 2], padding: [i64; 2]) -> Var<'t> {
        self.conv(filters, Conv::forward(&stride, &padding, &padding, &[1, 1], 1))
    }

    /// A reduction over windows of the last axes.
    #[track_caller]
    pub fn reduce_window(self, kind: WindowKind, window: Window) -> Var<'t> {
        self.then(ReduceWindow { kind, window }, &[])
    }

    /// The greatest element of each window of the last axes.
    #[track_caller]
    pub fn max_pool(self, size: &[i64], stride: &[i64], padding: &[i64]) -> Var<'t> {
        self.reduce_window(WindowKind::Max, Window::symmetric(size, stride, padding))
    }

    /// The mean of the elements of each window of the last axes, padding not counted.
    #[track_caller]
    pub fn avg_pool(self, size: &[i64], stride: &[i64], padding: &[i64]) -> Var<'t> {
        self.reduce_window(WindowKind::MeanValid, Window::symmetric(size, stride, padding))
    }

    /// A reduction along axes; negative axes count from the last.
    #[track_caller]
    pub fn reduce(self, kind: ReduceKind, axes: &[isize], keep: bool) -> Var<'t> {
        let Some(mut axes) = self.axes(axes) else { return Var::poisoned(self.key) };
        axes.sort_unstable();
        self.then(Reduce { kind, axes: axes.into_iter().collect(), keep }, &[])
    }

    /// Sums along axes.
    #[track_caller]
    pub fn reduce_sum(self, axes: &[isize], keep: bool) -> Var<'t> {
        self.reduce(ReduceKind::Sum, axes, keep)
    }

    /// Means along axes.
    #[track_caller]
    pub fn reduce_mean(self, axes: &[isize], keep: bool) -> Var<'t> {
        self.reduce(ReduceKind::Mean, axes, keep)
    }

    /// Maxima along axes.
    #[track_caller]
    pub fn reduce_max(self, axes: &[isize], keep: bool) -> Var<'t> {
        self.reduce(ReduceKind::Max, axes, keep)
    }

    /// Minima along axes.
    #[track_caller]
    pub fn reduce_min(self, axes: &[isize], keep: bool) -> Var<'t> {
        self.reduce(ReduceKind::Min, axes, keep)
    }

    /// Products along axes.
    #[track_caller]
    pub fn reduce_prod(self, axes: &[isize], keep: bool) -> Var<'t> {
        self.reduce(ReduceKind::Prod, axes, keep)
    }

    /// The sum of all elements.
    #[track_caller]
    pub fn sum(self) -> Var<'t> {
        let axes: Vec<isize> = (0..self.rank() as isize).collect();
        self.reduce_sum(&axes, false)
    }

    /// The mean of all elements.
    #[track_caller]
    pub fn mean(self) -> Var<'t> {
        let axes: Vec<isize> = (0..self.rank() as isize).collect();
        self.reduce_mean(&axes, false)
    }

    /// Softmax along an axis.
    #[track_caller]
    pub fn softmax(self, axis: isize) -> Var<'t> {
        let Some(axis) = self.axis(axis) else { return Var::poisoned(self.key) };
        self.then(Softmax { axis, log: false }, &[])
    }

    /// The logarithm of softmax along an axis.
    #[track_caller]
    pub fn log_softmax(self, axis: isize) -> Var<'t> {
        let Some(axis) = self.axis(axis) else { return Var::poisoned(self.key) };
        self.then(Softmax { axis, log: true }, &[])
    }

    /// `(x − mean) / √(var + eps)` over the axes from `axis` on.
    #[track_caller]
    pub fn layer_norm(self, axis: isize, eps: f64) -> Var<'t> {
        let Some(axis) = self.axis(axis) else { return Var::poisoned(self.key) };
        self.then(Norm { kind: NormKind::Layer, axis, eps: Real::new(eps) }, &[])
    }

    /// `x / √(mean x² + eps)` over the axes from `axis` on.
    #[track_caller]
    pub fn rms_norm(self, axis: isize, eps: f64) -> Var<'t> {
        let Some(axis) = self.axis(axis) else { return Var::poisoned(self.key) };
        self.then(Norm { kind: NormKind::Rms, axis, eps: Real::new(eps) }, &[])
    }

    /// The negative log-likelihood of integer classes under these logits (last axis), one loss a row.
    #[track_caller]
    pub fn cross_entropy(self, labels: Var<'t>) -> Var<'t> {
        self.then(CrossEntropy, &[labels])
    }

    /// Rows of this value along an axis, by integer index.
    #[track_caller]
    pub fn gather(self, indices: Var<'t>, axis: isize) -> Var<'t> {
        let Some(axis) = self.axis(axis) else { return Var::poisoned(self.key) };
        self.gather_at(Places::Rows { axis }, indices)
    }

    /// The elements of this value at the places that the indices name.
    #[track_caller]
    pub fn gather_at(self, places: Places, indices: Var<'t>) -> Var<'t> {
        self.then(Gather { places }, &[indices])
    }

    /// This value with `updates` added to rows along an axis, by integer index.
    #[track_caller]
    pub fn scatter_add(self, indices: Var<'t>, updates: Var<'t>, axis: isize) -> Var<'t> {
        let Some(axis) = self.axis(axis) else { return Var::poisoned(self.key) };
        self.scatter(Places::Rows { axis }, ScatterKind::Add, indices, updates)
    }

    /// This value with `updates` joined to the elements at the places that the indices name.
    #[track_caller]
    pub fn scatter(self, places: Places, kind: ScatterKind, indices: Var<'t>, updates: Var<'t>) -> Var<'t> {
        self.then(Scatter { places, kind }, &[indices, updates])
    }

    /// The first `k` elements along an axis in descending or ascending order, and their places, i64; NaN last.
    #[track_caller]
    pub fn top_k(self, axis: isize, k: impl Into<Dim>, largest: bool) -> (Var<'t>, Var<'t>) {
        let Some(axis) = self.axis(axis) else { return (Var::poisoned(self.key), Var::poisoned(self.key)) };
        let tuple = self.then(TopK { axis, k: k.into(), largest }, &[]);
        (tuple.part(0), tuple.part(1))
    }

    /// All elements along an axis in order, equal ones in theirs, and their places.
    #[track_caller]
    pub fn sort(self, axis: isize, descending: bool) -> (Var<'t>, Var<'t>) {
        let Some(place) = self.axis(axis) else { return (Var::poisoned(self.key), Var::poisoned(self.key)) };
        self.top_k(axis, self.shape()[place].clone(), descending)
    }

    /// Each element joined with all before it along an axis.
    #[track_caller]
    pub fn cumulative(self, kind: CumulativeKind, axis: isize, exclusive: bool, reverse: bool) -> Var<'t> {
        let Some(axis) = self.axis(axis) else { return Var::poisoned(self.key) };
        self.then(Cumulative { kind, axis, exclusive, reverse }, &[])
    }

    /// The places of elements that are not zero, `[rank, count]`.
    #[track_caller]
    pub fn non_zero(self) -> Var<'t> {
        self.then(NonZero { size: self.tracer().new_size() }, &[])
    }

    /// The slices along an axis, or of the flattened value elements, at which the vector `keep` is true.
    #[track_caller]
    pub fn compress(self, keep: Var<'t>, axis: Option<isize>) -> Var<'t> {
        let (x, axis) = match axis {
            Some(axis) => (self, axis),
            None => (self.reshape([-1]), 0),
        };
        x.gather(keep.non_zero().reshape([-1]), axis)
    }

    /// The distinct slices along an axis, or elements, with the places of their firsts, the number of each, and counts.
    #[track_caller]
    pub fn unique(self, axis: Option<isize>, sorted: bool) -> [Var<'t>; 4] {
        let place = axis.map(|axis| self.axis(axis));
        if place == Some(None) {
            return [Var::poisoned(self.key); 4];
        }
        let tuple = self.then(Unique { axis: place.flatten(), sorted, size: self.tracer().new_size() }, &[]);
        [0, 1, 2, 3].map(|index| tuple.part(index))
    }

    /// A part of a tuple.
    #[track_caller]
    fn part(self, index: usize) -> Var<'t> {
        self.then(Proj { index }, &[])
    }

    /// Integers as rows of zeros with a one.
    #[track_caller]
    pub fn one_hot(self, classes: impl Into<Dim>, dtype: DType) -> Var<'t> {
        let mut shape = self.shape();
        shape.push(classes.into());
        let axis = shape.rank() - 1;
        let index = self.tracer().iota(TensorType { dtype: self.dtype(), shape }, axis);
        index.equal(self.unsqueeze(&[-1])).cast(dtype)
    }

    /// Attention of these queries to `k` and `v`; the extras are what the score program reads. Gives the result and the
    /// log-sum-exp of each row of scores.
    #[track_caller]
    pub fn attention(self, k: Var<'t>, v: Var<'t>, attention: Attention, extras: &[Var<'t>]) -> (Var<'t>, Var<'t>) {
        let operands: Vec<Var> = [k, v].iter().chain(extras).copied().collect();
        let tuple = self.then(attention.canonical(), &operands);
        (tuple.part(0), tuple.part(1))
    }

    /// Records that an operation on this value makes no sense.
    #[track_caller]
    pub(super) fn refuse(self, message: String) -> Var<'t> {
        let caller = Location::caller();
        if self.node.is_some() {
            super::with(self.key, |building| building.fail(Diagnostic::new("E0101", message), caller));
        }
        Var::poisoned(self.key)
    }
}
