//! Operators: one file each holds attributes, type rule, evaluation, gradient, cost and text form.

use std::fmt;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::{Dim, Truth};
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::graph::Graph;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{Shape, TensorType, Type};

/// An equality that a graph needs and that its symbols do not decide; checked when they are bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Equality {
    /// One side.
    pub left: Dim,
    /// The other.
    pub right: Dim,
    /// What needs it: `the contracted dimension`.
    pub what: &'static str,
}

impl Equality {
    /// Whether a run must have begun before both sides are known.
    pub fn is_data_dependent(&self) -> bool {
        self.left.is_data_dependent() || self.right.is_data_dependent()
    }
}

/// Gives type rules their operands, and takes the equalities that they could not decide.
#[derive(Default)]
pub struct InferCx {
    /// Equalities assumed so far.
    pub assumptions: Vec<Equality>,
}

/// Why operands do not fit an operator: one sentence with the shapes.
pub type InferError = String;

impl InferCx {
    /// Needs `left = right`.
    ///
    /// # Errors
    /// When they are never equal.
    pub fn require_equal(&mut self, left: &Dim, right: &Dim, what: &'static str) -> Result<(), InferError> {
        match left.equals(right) {
            Truth::Yes => Ok(()),
            Truth::No => Err(format!("{what}: {left} is not {right}")),
            Truth::Unknown => {
                self.assumptions.push(Equality { left: left.clone(), right: right.clone(), what });
                Ok(())
            }
        }
    }

    /// The shape that all broadcast to by NumPy's rule: aligned at the end, extents equal or 1.
    ///
    /// # Errors
    /// When two extents can be neither equal nor 1.
    pub fn broadcast<'a>(&mut self, shapes: impl IntoIterator<Item = &'a Shape>) -> Result<Shape, InferError> {
        let shapes: SmallVec<[&Shape; 4]> = shapes.into_iter().collect();
        let rank = shapes.iter().map(|shape| shape.rank()).max().unwrap_or(0);
        let mut result: SmallVec<[Dim; 6]> = smallvec![Dim::ONE; rank];
        for shape in &shapes {
            let offset = result.len() - shape.rank();
            for (have, dim) in result[offset..].iter_mut().zip(shape.iter()) {
                if have.is(1) {
                    *have = dim.clone();
                } else if !dim.is(1) {
                    self.require_equal(have, dim, "extents that broadcast together")?;
                }
            }
        }
        // most often it is the shape of an operand, which is shared
        let same = shapes.into_iter().find(|shape| shape[..] == result[..]).cloned();
        Ok(same.unwrap_or_else(|| result.into_iter().collect()))
    }
}

/// The tensor type of operand `i`.
///
/// # Errors
/// When it is missing or a tuple.
pub fn operand(operands: &[Type], i: usize) -> Result<&TensorType, InferError> {
    let ty = operands.get(i).ok_or_else(|| format!("operand {i} is missing"))?;
    ty.tensor().ok_or_else(|| format!("operand {i} is a tuple; read it with proj"))
}

/// Checks the number of operands.
///
/// # Errors
/// When it differs.
pub fn arity(operands: &[Type], n: usize) -> Result<(), InferError> {
    if operands.len() == n { Ok(()) } else { Err(format!("takes {n} operands, not {}", operands.len())) }
}

/// An f64 attribute compared by its bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Real(u64);

impl Real {
    /// The attribute of that value.
    pub fn new(value: f64) -> Real {
        Real(value.to_bits())
    }

    /// The value.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

mod attention;
mod bitcast;
mod control;
mod conv;
mod cross_entropy;
mod cumulative;
mod custom_vjp;
mod dot_general;
mod fused;
mod gather;
mod generate;
mod grad;
mod iota;
mod leaf;
mod movement;
mod nms;
mod non_zero;
mod norm;
mod pointwise;
mod recompute;
mod reduce;
mod reduce_window;
mod rng;
mod scan;
mod scatter;
mod softmax;
mod top_k;
mod unique;

pub use attention::{Attention, AttentionGrad};
pub use bitcast::Bitcast;
pub use control::{If, While};
pub use conv::{Conv, ConvForm};
pub use cross_entropy::CrossEntropy;
pub use cumulative::{Cumulative, CumulativeKind};
pub use custom_vjp::CustomVjp;
pub(crate) use custom_vjp::{has_custom, inline};
pub use dot_general::{DotGeneral, Labels};
pub use fused::{Fused, Prologue};
pub use gather::{Gather, Places};
pub use generate::{Block, Generate, InnerKind, Outside, ProgramBuilder, Step};
pub use grad::{Grad, Proj, StopGradient};
pub use iota::Iota;
pub use leaf::{Const, Input, Param, State};
pub use movement::{Broadcast, Concat, Pad, Reshape, Reverse, Slice, Transpose};
pub use nms::NonMaxSuppression;
pub use non_zero::NonZero;
pub use norm::{Norm, NormGrad, NormKind};
pub use pointwise::{Cast, Pointwise};
pub use recompute::Recompute;
pub use reduce::{Reduce, ReduceKind};
pub use reduce_window::{ReduceWindow, ReduceWindowGrad, Window, WindowKind};
pub use rng::{PHILOX_MULTIPLIERS, PHILOX_ROUNDS, PHILOX_STEPS, Rng, philox};
pub use scan::Scan;
pub use scatter::{Scatter, ScatterKind};
pub use softmax::{Softmax, SoftmaxGrad};
pub use top_k::TopK;
pub use unique::Unique;

/// An operator's home: what the rest of the compiler asks of it.
pub trait Operator {
    /// The name in text forms.
    fn name(&self) -> &'static str;

    /// The type of the result.
    ///
    /// # Errors
    /// When the operands do not fit, in one sentence with the shapes.
    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError>;

    /// The parts of the value on these operands; a tuple operand is given as its parts.
    ///
    /// # Errors
    /// When the operands do not fit, or hold an index or divisor that has no meaning.
    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError>;

    /// Arithmetic operations on these operands; data movement has none. A transcendental function counts as one.
    fn flops(&self, _: &[Type], _: &Type) -> Dim {
        Dim::ZERO
    }

    /// The attributes in text; those that the type of the result tells, and a leaf's name or elements, are left out.
    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        Vec::new()
    }

    /// Graphs inside the operator, in the order of the text.
    fn regions(&self) -> SmallVec<[&Arc<Graph>; 2]> {
        SmallVec::new()
    }

    /// The gradients by operands, given those by the results.
    ///
    /// # Errors
    /// `E0401` when the operator has none, `E0402` when it has none in this case.
    fn vjp<'t>(&self, _: &VjpCx<'_, 't>) -> Gradients<'t> {
        let why = self.no_gradient().map(|why| format!(": {why}")).unwrap_or_default();
        Err(Diagnostic::new("E0401", format!("`{}` has no gradient{why}", self.name())))
    }

    /// Why the operator has no gradient; `None` of one that has.
    fn no_gradient(&self) -> Option<&'static str> {
        None
    }
}

/// Elements of all parts of a type.
pub(crate) fn elements(ty: &Type) -> Dim {
    ty.parts().iter().fold(Dim::ZERO, |n, part| n + part.shape.elements())
}

/// Elements of operand `i`.
pub(crate) fn operand_elements(operands: &[Type], i: usize) -> Dim {
    operands.get(i).map_or(Dim::ZERO, elements)
}

macro_rules! operators {
    (inline $($small:ident),*; shared $($large:ident),* $(,)?) => {
        /// An operator with its attributes. A copy costs at most a count: what is larger than a word or two is shared.
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($small), "`].")] $small($small),)*
            $(#[doc = concat!("See [`", stringify!($large), "`].")] $large(Arc<$large>)),*
        }

        $(impl From<$small> for Op { fn from(op: $small) -> Op { Op::$small(op) } })*
        $(impl From<$large> for Op { fn from(op: $large) -> Op { Op::$large(Arc::new(op)) } })*

        impl Op {
            /// The operator's home.
            pub fn home(&self) -> &dyn Operator {
                match self {
                    $(Op::$small(op) => op,)*
                    $(Op::$large(op) => &**op),*
                }
            }
        }
    };
}

operators! {
    inline Pointwise, Cast, Bitcast, Softmax, SoftmaxGrad, CrossEntropy, Proj, StopGradient, Recompute;
    shared Input, Param, State, Const, Iota,
    Reshape, Transpose, Broadcast, Slice, Pad, Concat, Reverse,
    DotGeneral, Conv, Reduce, ReduceWindow, ReduceWindowGrad, Norm, NormGrad, Attention, AttentionGrad,
    Gather, Scatter, Generate, TopK, Cumulative, NonZero, Unique, NonMaxSuppression, Rng,
    Scan, If, While, Fused, Grad, CustomVjp,
}

impl Op {
    /// [`Operator::regions`], to change.
    pub fn regions_mut(&mut self) -> SmallVec<[&mut Arc<Graph>; 2]> {
        match self {
            Op::Scan(scan) => smallvec![&mut Arc::make_mut(scan).body],
            Op::If(branch) => {
                let branch = Arc::make_mut(branch);
                smallvec![&mut branch.then, &mut branch.otherwise]
            }
            Op::While(looped) => {
                let looped = Arc::make_mut(looped);
                smallvec![&mut looped.condition, &mut looped.body]
            }
            Op::CustomVjp(custom) => {
                let custom = Arc::make_mut(custom);
                smallvec![&mut custom.forward, &mut custom.backward]
            }
            _ => SmallVec::new(),
        }
    }
}

/// Strides, pads and window extents this small cannot overflow when they are added and multiplied.
pub(crate) fn check_moderate(lists: &[&[i64]]) -> Result<(), InferError> {
    let bound = i64::from(i32::MAX);
    match lists.iter().flat_map(|list| list.iter()).find(|v| **v > bound || **v < -bound) {
        Some(value) => Err(format!("{value} is too large for a stride, pad or extent of a window")),
        None => Ok(()),
    }
}

/// A result dtype that must be one of the operands'.
pub(crate) fn same_dtype(types: &[&TensorType]) -> Result<DType, InferError> {
    let first = types[0].dtype;
    match types.iter().find(|ty| ty.dtype != first) {
        Some(other) => Err(format!("operands differ in element type: {} and {other}", types[0])),
        None => Ok(first),
    }
}

/// The result dtype of a sum of products: that of both operands, or, where `wide`, `i32` of two of 8 bits.
pub(crate) fn summed_dtype(a: &TensorType, b: &TensorType, wide: bool) -> Result<DType, InferError> {
    if !wide {
        return same_dtype(&[a, b]);
    }
    match [a, b].into_iter().find(|ty| !matches!(ty.dtype, DType::I8 | DType::U8)) {
        Some(other) => Err(format!("operands of a wide sum have 8 bits, not {other}")),
        None => Ok(DType::I32),
    }
}

/// A list of axes, all below `rank`, without repeats.
pub(crate) fn check_axes(axes: &[usize], rank: usize) -> Result<(), InferError> {
    for (i, axis) in axes.iter().enumerate() {
        if *axis >= rank {
            return Err(format!("axis {axis} is outside rank {rank}"));
        }
        if axes[..i].contains(axis) {
            return Err(format!("axis {axis} is given twice"));
        }
    }
    Ok(())
}

/// The operator of that name with its attributes; leaves are read apart.
pub(crate) fn read(name: &str, a: &Attributes) -> Result<Op, Diagnostic> {
    if name == "cross_entropy" {
        return Ok(CrossEntropy.into());
    }
    let homes = [
        iota::read,
        bitcast::read,
        movement::read,
        dot_general::read,
        conv::read,
        reduce::read,
        reduce_window::read,
        softmax::read,
        norm::read,
        attention::read,
        gather::read,
        scatter::read,
        generate::read,
        top_k::read,
        cumulative::read,
        custom_vjp::read,
        non_zero::read,
        unique::read,
        nms::read,
        rng::read,
        scan::read,
        control::read,
        fused::read,
        recompute::read,
        grad::read,
        pointwise::read,
    ];
    for home in homes {
        if let Some(op) = home(name, a)? {
            return Ok(op);
        }
    }
    Err(a.error(&format!("`{name}` is no operator")))
}
