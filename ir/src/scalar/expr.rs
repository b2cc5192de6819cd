//! Programs of scalar functions.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::table::{Meaning, ScalarFn};
use super::value::{Literal, ScalarValue};
use crate::dtype::DType;

/// A scalar program over arguments `p0, p1, …`, in normal form: operands of commutative functions are sorted, constant
/// subprograms are folded, nothing is reassociated. Equality is structural.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScalarExpr(Arc<Node>);

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Node {
    /// Number of functions and casts, counted as a tree; first, so that small programs sort first.
    size: u32,
    kind: ExprKind,
}

/// The outermost step of a [`ScalarExpr`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ExprKind {
    /// Argument by number; in an epilogue argument 0 is the accumulator.
    Arg(u16),
    /// A constant.
    Const(Literal),
    /// A conversion.
    Cast(DType, ScalarExpr),
    /// A function of operands.
    Apply(ScalarFn, SmallVec<[ScalarExpr; 3]>),
}

impl ScalarExpr {
    fn node(kind: ExprKind) -> ScalarExpr {
        let size = match &kind {
            ExprKind::Arg(_) | ExprKind::Const(_) => 0,
            ExprKind::Cast(_, inner) => inner.size().saturating_add(1),
            ExprKind::Apply(_, args) => args.iter().fold(1u32, |n, a| n.saturating_add(a.size())),
        };
        ScalarExpr(Arc::new(Node { size, kind }))
    }

    /// Argument `i`.
    pub fn arg(i: usize) -> ScalarExpr {
        ScalarExpr::node(ExprKind::Arg(i as u16))
    }

    /// A constant.
    pub fn constant(literal: Literal) -> ScalarExpr {
        ScalarExpr::node(ExprKind::Const(literal))
    }

    /// A float constant rounded to `dtype`.
    pub fn float(value: f64, dtype: DType) -> ScalarExpr {
        ScalarExpr::constant(Literal::float(value, dtype))
    }

    /// `f` of `args`, folded when all are constants; `dtype` is the element type of the result.
    pub fn apply(f: ScalarFn, args: impl IntoIterator<Item = ScalarExpr>, dtype: DType) -> ScalarExpr {
        let args: SmallVec<[ScalarExpr; 3]> = args.into_iter().collect();
        let constants: Option<SmallVec<[ScalarValue; 3]>> =
            args.iter().map(|a| a.as_const().map(Literal::value)).collect();
        if let Some(values) = constants.filter(|v| !v.is_empty()) {
            return ScalarExpr::constant(Literal::new(f.eval(&values, dtype), dtype));
        }
        ScalarExpr::raw(f, args)
    }

    /// `f` of `args`, not folded when all are constants.
    pub(crate) fn unfolded(f: ScalarFn, args: impl IntoIterator<Item = ScalarExpr>) -> ScalarExpr {
        ScalarExpr::raw(f, args.into_iter().collect())
    }

    fn raw(f: ScalarFn, mut args: SmallVec<[ScalarExpr; 3]>) -> ScalarExpr {
        if f.commutes() {
            args.sort();
        }
        ScalarExpr::node(ExprKind::Apply(f, args))
    }

    /// The value converted to `dtype`.
    pub fn cast(self, dtype: DType) -> ScalarExpr {
        match self.as_const() {
            Some(literal) => ScalarExpr::constant(Literal::new(literal.value(), dtype)),
            None => ScalarExpr::node(ExprKind::Cast(dtype, self)),
        }
    }

    pub(super) fn un(self, f: ScalarFn) -> ScalarExpr {
        ScalarExpr::raw(f, [self].into_iter().collect())
    }

    pub(super) fn bin(self, f: ScalarFn, other: ScalarExpr) -> ScalarExpr {
        ScalarExpr::raw(f, [self, other].into_iter().collect())
    }

    pub(super) fn add(self, other: ScalarExpr) -> ScalarExpr {
        self.bin(ScalarFn::Add, other)
    }

    pub(super) fn sub(self, other: ScalarExpr) -> ScalarExpr {
        self.bin(ScalarFn::Sub, other)
    }

    pub(super) fn mul(self, other: ScalarExpr) -> ScalarExpr {
        self.bin(ScalarFn::Mul, other)
    }

    pub(super) fn div(self, other: ScalarExpr) -> ScalarExpr {
        self.bin(ScalarFn::Div, other)
    }

    pub(super) fn select(cond: ScalarExpr, yes: ScalarExpr, no: ScalarExpr) -> ScalarExpr {
        ScalarExpr::raw(ScalarFn::Select, [cond, yes, no].into_iter().collect())
    }

    /// The outermost step.
    pub fn kind(&self) -> &ExprKind {
        &self.0.kind
    }

    /// Number of functions and casts, counted as a tree.
    pub fn size(&self) -> u32 {
        self.0.size
    }

    /// The constant, if it is one.
    pub fn as_const(&self) -> Option<Literal> {
        match self.kind() {
            ExprKind::Const(literal) => Some(*literal),
            _ => None,
        }
    }

    /// Whether it is just argument `i`.
    pub fn is_arg(&self, i: usize) -> bool {
        matches!(self.kind(), ExprKind::Arg(a) if usize::from(*a) == i)
    }

    /// The operands, if the outermost step is `f`.
    pub fn operands_of(&self, f: ScalarFn) -> Option<&[ScalarExpr]> {
        match self.kind() {
            ExprKind::Apply(g, args) if *g == f => Some(args),
            _ => None,
        }
    }

    /// The arguments read, in order of first use.
    pub fn args(&self) -> Vec<usize> {
        let mut seen = Vec::new();
        self.visit(&mut |e| {
            if let ExprKind::Arg(i) = e.kind()
                && !seen.contains(&usize::from(*i))
            {
                seen.push(usize::from(*i));
            }
        });
        seen
    }

    /// Calls `f` on every subprogram, operands before users, as a tree.
    pub fn visit(&self, f: &mut dyn FnMut(&ScalarExpr)) {
        match self.kind() {
            ExprKind::Cast(_, inner) => inner.visit(f),
            ExprKind::Apply(_, args) => args.iter().for_each(|a| a.visit(f)),
            _ => {}
        }
        f(self);
    }

    /// The program with each argument replaced; normal form is kept.
    pub fn substitute(&self, map: &mut dyn FnMut(usize) -> ScalarExpr) -> ScalarExpr {
        match self.kind() {
            ExprKind::Arg(i) => map(usize::from(*i)),
            ExprKind::Const(_) => self.clone(),
            ExprKind::Cast(dtype, inner) => inner.substitute(map).cast(*dtype),
            ExprKind::Apply(f, args) => {
                let args = args.iter().map(|a| a.substitute(map)).collect();
                ScalarExpr::raw(*f, args)
            }
        }
    }

    /// The program with defined functions spelled out in primitives; `dtypes` are those of the arguments.
    pub fn expand(&self, dtypes: &[DType]) -> ScalarExpr {
        match self.kind() {
            ExprKind::Arg(_) | ExprKind::Const(_) => self.clone(),
            ExprKind::Cast(dtype, inner) => inner.expand(dtypes).cast(*dtype),
            ExprKind::Apply(f, args) => {
                let operand = args.last().map_or(DType::F32, |a| a.dtype(dtypes));
                let args: SmallVec<[ScalarExpr; 3]> = args.iter().map(|a| a.expand(dtypes)).collect();
                match f.meaning() {
                    Meaning::Primitive(_) => ScalarExpr::raw(*f, args),
                    Meaning::Defined(define) => define(&args, operand).expand(dtypes),
                }
            }
        }
    }

    /// The element type of the result, given those of the arguments.
    pub fn dtype(&self, dtypes: &[DType]) -> DType {
        match self.kind() {
            ExprKind::Arg(i) => dtypes.get(usize::from(*i)).copied().unwrap_or(DType::F32),
            ExprKind::Const(literal) => literal.dtype,
            ExprKind::Cast(dtype, _) => *dtype,
            ExprKind::Apply(f, _) if f.is_predicate() => DType::Bool,
            ExprKind::Apply(_, args) => args.last().map_or(DType::F32, |a| a.dtype(dtypes)),
        }
    }

    /// The value in f64 and unbounded integers, without rounding between steps.
    pub fn eval_unrounded(&self, args: &[ScalarValue]) -> ScalarValue {
        match self.kind() {
            ExprKind::Arg(i) => args[usize::from(*i)],
            ExprKind::Const(literal) => literal.value(),
            ExprKind::Cast(dtype, inner) => inner.eval_unrounded(args).cast(*dtype),
            ExprKind::Apply(f, operands) => {
                let values: SmallVec<[ScalarValue; 3]> = operands.iter().map(|o| o.eval_unrounded(args)).collect();
                f.eval(&values, DType::F64)
            }
        }
    }

    /// The partial derivative by argument `i`, by the chain rule, in the element type of the result; `None` where it is
    /// zero everywhere. `dtypes` are those of the arguments.
    pub fn derivative(&self, i: usize, dtypes: &[DType]) -> Option<ScalarExpr> {
        match self.kind() {
            ExprKind::Arg(a) => (usize::from(*a) == i).then(|| ScalarExpr::float(1.0, self.dtype(dtypes))),
            ExprKind::Const(_) => None,
            ExprKind::Cast(to, inner) if to.is_float() => inner.derivative(i, dtypes).map(|d| d.cast(*to)),
            ExprKind::Cast(..) => None,
            ExprKind::Apply(f, args) => {
                let dtype = self.dtype(dtypes);
                let Some(rule) = f.derivative_rule() else {
                    let Meaning::Defined(define) = f.meaning() else { return None };
                    return define(args, dtype).derivative(i, dtypes);
                };
                let parts = args.iter().enumerate().filter_map(|(k, arg)| {
                    let inner = arg.derivative(i, dtypes)?;
                    let outer = rule(args, self, k, dtype)?;
                    Some(match (inner.as_const(), outer.as_const()) {
                        (Some(one), _) if one.as_f64() == 1.0 => outer,
                        (_, Some(one)) if one.as_f64() == 1.0 => inner,
                        _ => outer.mul(inner),
                    })
                });
                parts.reduce(ScalarExpr::add)
            }
        }
    }
}

impl fmt::Display for ScalarExpr {
    /// `add(p1, mul(p0, 2.0:f32))`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            ExprKind::Arg(i) => write!(f, "p{i}"),
            ExprKind::Const(literal) => write!(f, "{literal}"),
            ExprKind::Cast(dtype, inner) => write!(f, "cast<{dtype}>({inner})"),
            ExprKind::Apply(function, args) => {
                write!(f, "{}(", function.name())?;
                for (i, arg) in args.iter().enumerate() {
                    write!(f, "{}{arg}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
        }
    }
}

impl fmt::Debug for ScalarExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
