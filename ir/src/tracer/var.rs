//! Handles of values, and the operators that Rust lets them overload.

use std::marker::PhantomData;
use std::ops::{Add, Div, Mul, Neg, Rem, Sub};
use std::panic::Location;

use super::{Tracer, add, with};
use crate::dtype::DType;
use crate::graph::NodeId;
use crate::ops::{Op, Pointwise};
use crate::scalar::{Literal, ScalarFn, ScalarValue};
use crate::types::{Shape, TensorType};

/// A value of a graph under construction.
#[derive(Clone, Copy, Debug)]
pub struct Var<'t> {
    pub(super) key: u64,
    /// `None` after an error.
    pub(super) node: Option<NodeId>,
    of: PhantomData<(&'t (), *const ())>,
}

/// What stands beside a value in an elementwise operation: another value, or a number that takes its element type.
pub trait Operand<'t> {
    /// The value.
    #[track_caller]
    fn beside(self, other: Var<'t>) -> Var<'t>;
}

impl<'t> Operand<'t> for Var<'t> {
    fn beside(self, _: Var<'t>) -> Var<'t> {
        self
    }
}

impl<'t> Operand<'t> for f64 {
    #[track_caller]
    fn beside(self, other: Var<'t>) -> Var<'t> {
        other.tracer().scalar(Literal::float(self, other.dtype()))
    }
}

impl<'t> Operand<'t> for i64 {
    #[track_caller]
    fn beside(self, other: Var<'t>) -> Var<'t> {
        other.tracer().scalar(Literal::new(ScalarValue::Int(self.into()), other.dtype()))
    }
}

impl<'t> Var<'t> {
    pub(super) fn of(key: u64, id: NodeId) -> Var<'t> {
        Var { key, node: Some(id), of: PhantomData }
    }

    pub(super) fn poisoned(key: u64) -> Var<'t> {
        Var { key, node: None, of: PhantomData }
    }

    /// The tracer that this value belongs to.
    pub fn tracer(self) -> Tracer<'t> {
        Tracer { key: self.key, of: PhantomData }
    }

    /// The node; `None` after an error.
    pub fn id(self) -> Option<NodeId> {
        self.node
    }

    /// The type; a scalar after an error, and the first part's of a tuple.
    pub fn ty(self) -> TensorType {
        let find = |id: NodeId| with(self.key, |b| b.graph.ty(id).parts().first().cloned()).flatten();
        self.node.and_then(find).unwrap_or(TensorType::scalar(DType::F32))
    }

    /// The element type.
    pub fn dtype(self) -> DType {
        self.ty().dtype
    }

    /// The extents.
    pub fn shape(self) -> Shape {
        self.ty().shape
    }

    /// Number of axes.
    pub fn rank(self) -> usize {
        self.shape().rank()
    }

    /// Adds an operator on this value and others.
    #[track_caller]
    pub fn then(self, op: impl Into<Op>, others: &[Var<'t>]) -> Var<'t> {
        let operands: Vec<Var> = std::iter::once(self).chain(others.iter().copied()).collect();
        add(self.innermost(others), op.into(), &operands, Location::caller())
    }

    /// A scalar function of this value and others.
    #[track_caller]
    pub fn map(self, f: ScalarFn, others: &[Var<'t>]) -> Var<'t> {
        self.then(Pointwise { f }, others)
    }

    /// The graph that an operation belongs to: that of the innermost region among its operands.
    pub(super) fn innermost(self, others: &[Var<'t>]) -> u64 {
        others.iter().fold(self.key, |key, other| key.max(other.key))
    }
}

macro_rules! overload {
    ($($trait:ident $method:ident $f:ident;)*) => {$(
        impl<'t, R: Operand<'t>> $trait<R> for Var<'t> {
            type Output = Var<'t>;
            #[track_caller]
            fn $method(self, other: R) -> Var<'t> {
                self.map(ScalarFn::$f, &[other.beside(self)])
            }
        }

        impl<'t> $trait<Var<'t>> for f64 {
            type Output = Var<'t>;
            #[track_caller]
            fn $method(self, other: Var<'t>) -> Var<'t> {
                self.beside(other).map(ScalarFn::$f, &[other])
            }
        }
    )*};
}

overload! {
    Add add Add;
    Sub sub Sub;
    Mul mul Mul;
    Div div Div;
    Rem rem Rem;
}

impl<'t> Neg for Var<'t> {
    type Output = Var<'t>;
    #[track_caller]
    fn neg(self) -> Var<'t> {
        self.map(ScalarFn::Neg, &[])
    }
}
