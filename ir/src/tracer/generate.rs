//! Writing programs of `generate` as Rust.

use std::ops::{Add, Div, Mul, Neg, Rem, Sub};

use super::{Tracer, Var};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::ops::{Generate, InnerKind, Outside, ProgramBuilder};
use crate::scalar::{Literal, ScalarExpr, ScalarFn, ScalarValue};
use crate::types::TensorType;

/// A value of a program under construction. It is computed wherever it is read, unless [`Generator::bind`] names it.
#[derive(Clone, Debug)]
pub struct Scalar {
    expr: ScalarExpr,
    dtype: DType,
}

/// What stands beside a [`Scalar`]: another, or a number that takes its element type.
pub trait Beside {
    /// Its element type, if it has one of its own.
    fn own_dtype(&self) -> Option<DType>;
    /// The value; a number in element type `dtype`.
    fn of(self, dtype: DType) -> Scalar;
}

impl Beside for Scalar {
    fn own_dtype(&self) -> Option<DType> {
        Some(self.dtype)
    }

    fn of(self, _: DType) -> Scalar {
        self
    }
}

impl Beside for &Scalar {
    fn own_dtype(&self) -> Option<DType> {
        Some(self.dtype)
    }

    fn of(self, _: DType) -> Scalar {
        self.clone()
    }
}

impl Beside for f64 {
    fn own_dtype(&self) -> Option<DType> {
        None
    }

    fn of(self, dtype: DType) -> Scalar {
        Scalar::literal(Literal::float(self, dtype))
    }
}

impl Beside for i64 {
    fn own_dtype(&self) -> Option<DType> {
        None
    }

    fn of(self, dtype: DType) -> Scalar {
        Scalar::literal(Literal::new(ScalarValue::Int(self.into()), dtype))
    }
}

impl Scalar {
    /// A constant.
    pub fn literal(value: Literal) -> Scalar {
        Scalar { expr: ScalarExpr::constant(value), dtype: value.dtype }
    }

    /// An i64 constant.
    pub fn int(value: i64) -> Scalar {
        Scalar::literal(Literal::int(value, DType::I64))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The program.
    pub fn expr(&self) -> &ScalarExpr {
        &self.expr
    }

    /// A scalar function of this value and others.
    pub fn map(&self, f: ScalarFn, others: &[&Scalar]) -> Scalar {
        let operand = others.last().map_or(self.dtype, |last| last.dtype);
        let dtype = if f.is_predicate() { DType::Bool } else { operand };
        let args = std::iter::once(self).chain(others.iter().copied()).map(|v| v.expr.clone());
        Scalar { expr: ScalarExpr::apply(f, args, dtype), dtype }
    }

    /// The value converted.
    pub fn cast(&self, dtype: DType) -> Scalar {
        if self.dtype == dtype { self.clone() } else { Scalar { expr: self.expr.clone().cast(dtype), dtype } }
    }

    /// `yes` where this is true, else `no`; a number takes the element type of the other, or f32 beside another number.
    pub fn select(&self, yes: impl Beside, no: impl Beside) -> Scalar {
        let dtype = yes.own_dtype().or(no.own_dtype()).unwrap_or(DType::F32);
        self.map(ScalarFn::Select, &[&yes.of(dtype), &no.of(dtype)])
    }

    /// Greatest integer not above it.
    pub fn floor(&self) -> Scalar {
        self.map(ScalarFn::Floor, &[])
    }

    /// The quotient of integers rounded towards negative infinity.
    pub fn floor_div(&self, by: impl Beside) -> Scalar {
        let by = by.of(self.dtype);
        let rest = self.modulo(by.clone());
        (self.clone() - rest) / by
    }
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident $f:ident;)*) => {
        /// Scalar functions of two values.
        impl Scalar {
            $($(#[$doc])* pub fn $name(&self, other: impl Beside) -> Scalar {
                let other = other.of(self.dtype);
                self.map(ScalarFn::$f, &[&other])
            })*
        }
    };
}

functions! {
    /// The greater.
    maximum Max;
    /// The lesser.
    minimum Min;
    /// a = b.
    equal Eq;
    /// a < b.
    less Lt;
    /// a ≤ b.
    less_equal Le;
    /// a > b.
    greater Gt;
    /// a ≥ b.
    greater_equal Ge;
    /// Both.
    and And;
    /// Either.
    or Or;
    /// Remainder with the sign of the divisor.
    modulo Mod;
}

macro_rules! overload {
    ($($trait:ident $method:ident $f:ident;)*) => {$(
        impl<R: Beside> $trait<R> for Scalar {
            type Output = Scalar;
            fn $method(self, other: R) -> Scalar {
                let other = other.of(self.dtype);
                self.map(ScalarFn::$f, &[&other])
            }
        }

        impl<R: Beside> $trait<R> for &Scalar {
            type Output = Scalar;
            fn $method(self, other: R) -> Scalar {
                let other = other.of(self.dtype);
                self.map(ScalarFn::$f, &[&other])
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

impl Neg for Scalar {
    type Output = Scalar;
    fn neg(self) -> Scalar {
        self.map(ScalarFn::Neg, &[])
    }
}

/// A program of one element under construction.
pub struct Generator<'a> {
    b: &'a mut ProgramBuilder,
    operands: &'a [DType],
}

impl Generator<'_> {
    fn value(&self, expr: ScalarExpr) -> Scalar {
        let dtype = expr.dtype(self.b.dtypes());
        Scalar { expr, dtype }
    }

    /// A size, as i64.
    pub fn dim(&mut self, dim: &Dim) -> Scalar {
        let expr = self.b.dim(dim);
        self.value(expr)
    }

    /// A value that is computed once, wherever it is read.
    pub fn bind(&mut self, value: impl Into<Scalar>) -> Scalar {
        let expr = self.b.bind(value.into().expr);
        self.value(expr)
    }

    /// An element of an operand, at i64 places, one an axis.
    pub fn load(&mut self, operand: usize, index: &[Scalar], outside: Outside) -> Scalar {
        let index: Vec<ScalarExpr> = index.iter().map(|i| i.expr.clone()).collect();
        let dtype = self.operands.get(operand).copied().unwrap_or(DType::F32);
        let expr = self.b.load(operand, dtype, &index, outside);
        self.value(expr)
    }

    /// A loop of `extent` trips, or of `count` of at most so many; `body` gets its counter.
    pub fn reduce(
        &mut self,
        kind: InnerKind,
        extent: impl Into<Dim>,
        count: Option<Scalar>,
        body: impl FnOnce(&mut Generator, Scalar) -> Scalar,
    ) -> Scalar {
        let operands = self.operands;
        let expr = self.b.reduce(kind, &extent.into(), count.map(|c| c.expr), |b, counter| {
            body(&mut Generator { b, operands }, Scalar { expr: counter, dtype: DType::I64 }).expr
        });
        self.value(expr)
    }

    /// The sum of `extent` trips.
    pub fn sum(&mut self, extent: impl Into<Dim>, body: impl FnOnce(&mut Generator, Scalar) -> Scalar) -> Scalar {
        self.reduce(InnerKind::Sum, extent, None, body)
    }
}

impl From<&Scalar> for Scalar {
    fn from(value: &Scalar) -> Scalar {
        value.clone()
    }
}

impl<'t> Tracer<'t> {
    /// A tensor of type `ty`, each element by the program that `build` writes from its indices.
    ///
    /// ```
    /// use egret_ir::{Dim, TensorType, f32, ops::Outside, trace};
    /// // y[i] = x[i − 1] + x[i + 1], zero beyond the ends
    /// let graph = trace(|t| {
    ///     let x = t.input("x", f32(["n"]));
    ///     let zero = Outside::Fill(egret_ir::Literal::float(0.0, x.dtype()));
    ///     t.generate(x.ty(), &[x], |g, i| g.load(0, &[&i[0] - 1], zero) + g.load(0, &[&i[0] + 1], zero))
    /// });
    /// assert!(graph.is_ok());
    /// ```
    #[track_caller]
    pub fn generate(
        &self,
        ty: TensorType,
        operands: &[Var<'t>],
        build: impl FnOnce(&mut Generator, &[Scalar]) -> Scalar,
    ) -> Var<'t> {
        let rank = ty.shape.rank();
        let dtypes: Vec<DType> = operands.iter().map(|v| v.dtype()).collect();
        let mut b = ProgramBuilder::new(rank);
        let indices: Vec<Scalar> = (0..rank).map(|i| Scalar { expr: ScalarExpr::arg(i), dtype: DType::I64 }).collect();
        let result = build(&mut Generator { b: &mut b, operands: &dtypes }, &indices);
        self.add(Generate { ty, body: b.finish(result.expr) }, operands)
    }
}
