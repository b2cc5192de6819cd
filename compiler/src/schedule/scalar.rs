//! Scalar programs as kernel expressions.

use egret_ir::{DType, ExprKind, ScalarExpr, ScalarFn, ScalarValue};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::scope::Scope;
use crate::kernel::{BinaryOp, CompareOp, Expr, KernelBuilder, Literal, UnaryOp};

/// Where a program's shared values and faults go.
pub trait Sink {
    /// Names a value.
    fn bind(&mut self, value: Expr) -> Expr;
    /// Reports a zero divisor where the condition holds.
    fn zero_divisor(&mut self, condition: Expr);
    /// Whether every bit is to be as the interpreter has it.
    fn is_exact(&self) -> bool;
}

impl Sink for Scope<'_> {
    fn bind(&mut self, value: Expr) -> Expr {
        self.k.bind(value)
    }

    fn zero_divisor(&mut self, condition: Expr) {
        self.fault_if(condition, "an integer is divided by zero".into());
    }

    fn is_exact(&self) -> bool {
        self.k.is_exact()
    }
}

impl Sink for KernelBuilder {
    fn bind(&mut self, value: Expr) -> Expr {
        KernelBuilder::bind(self, value)
    }

    // hooks have no status word, and no integer programs reach them
    fn zero_divisor(&mut self, _: Expr) {}

    fn is_exact(&self) -> bool {
        KernelBuilder::is_exact(self)
    }
}

/// A constant.
pub fn literal(value: egret_ir::Literal) -> Expr {
    Expr::Literal(match value.value() {
        ScalarValue::Bool(b) => Literal::Bool(b),
        ScalarValue::Int(i) => Literal::Int(value.dtype, i as i64),
        ScalarValue::Float(x) => Literal::Float(value.dtype, x.to_bits()),
    })
}

/// A program of primitives. What occurs more than once is bound to a variable.
pub fn program(scope: &mut dyn Sink, program: &ScalarExpr, args: &[Expr], dtypes: &[DType]) -> Expr {
    let mut counts: FxHashMap<&ScalarExpr, usize> = FxHashMap::default();
    count(program, &mut counts);
    let args: Vec<Expr> = args
        .iter()
        .enumerate()
        .map(|(i, arg)| {
            let often = counts.iter().any(|(e, n)| e.is_arg(i) && *n > 1);
            if often { scope.bind(arg.clone()) } else { arg.clone() }
        })
        .collect();
    let mut known = FxHashMap::default();
    build(scope, program, &args, dtypes, &counts, &mut known)
}

fn count<'e>(e: &'e ScalarExpr, counts: &mut FxHashMap<&'e ScalarExpr, usize>) {
    let n = counts.entry(e).or_default();
    *n += 1;
    if *n > 1 {
        return;
    }
    match e.kind() {
        ExprKind::Cast(_, inner) => count(inner, counts),
        ExprKind::Apply(_, args) => args.iter().for_each(|a| count(a, counts)),
        _ => {}
    }
}

fn build<'e>(
    scope: &mut dyn Sink,
    e: &'e ScalarExpr,
    args: &[Expr],
    dtypes: &[DType],
    counts: &FxHashMap<&'e ScalarExpr, usize>,
    known: &mut FxHashMap<&'e ScalarExpr, Expr>,
) -> Expr {
    if let Some(value) = known.get(e) {
        return value.clone();
    }
    let value = match e.kind() {
        ExprKind::Arg(i) => return args[usize::from(*i)].clone(),
        ExprKind::Const(value) => return literal(*value),
        ExprKind::Cast(dtype, inner) => build(scope, inner, args, dtypes, counts, known).cast(*dtype),
        ExprKind::Apply(f, operands) => {
            let dtype = operands.last().map_or(DType::F32, |o| o.dtype(dtypes));
            let values: SmallVec<[Expr; 3]> =
                operands.iter().map(|o| build(scope, o, args, dtypes, counts, known)).collect();
            apply(scope, *f, &values, dtype)
        }
    };
    if counts.get(e).is_some_and(|n| *n > 1) {
        let bound = scope.bind(value);
        known.insert(e, bound.clone());
        return bound;
    }
    value
}

/// One primitive on operands of `dtype`.
fn apply(scope: &mut dyn Sink, f: ScalarFn, v: &[Expr], dtype: DType) -> Expr {
    use ScalarFn as F;
    let unary = |op: UnaryOp| v[0].clone().unary(op);
    let binary = |op: BinaryOp| v[0].clone().binary(op, v[1].clone());
    let compare = |op: CompareOp| v[0].clone().compare(op, v[1].clone());
    if matches!(f, F::Div | F::Rem) && dtype.is_int() {
        scope.zero_divisor(v[1].clone().compare(CompareOp::Eq, Expr::constant(dtype, 0.0)));
    }
    match f {
        F::Neg => unary(UnaryOp::Neg),
        F::Abs => unary(UnaryOp::Abs),
        F::Sign => unary(UnaryOp::Sign),
        F::Floor => unary(UnaryOp::Floor),
        F::Ceil => unary(UnaryOp::Ceil),
        F::Round => unary(UnaryOp::Round),
        F::Exp => unary(UnaryOp::Exp),
        F::Log => unary(UnaryOp::Log),
        F::Sqrt => unary(UnaryOp::Sqrt),
        F::Sin => unary(UnaryOp::Sin),
        F::Cos => unary(UnaryOp::Cos),
        F::Tanh => unary(UnaryOp::Tanh),
        F::Erf => unary(UnaryOp::Erf),
        F::Sigmoid => unary(UnaryOp::Sigmoid),
        F::Asin => unary(UnaryOp::Asin),
        F::Acos => unary(UnaryOp::Acos),
        F::Atan => unary(UnaryOp::Atan),
        F::Expm1 => unary(UnaryOp::Expm1),
        F::Log1p => unary(UnaryOp::Log1p),
        F::Not | F::BitNot => unary(UnaryOp::Not),
        F::IsNan => unary(UnaryOp::IsNan),
        F::Add => binary(BinaryOp::Add),
        F::Sub => binary(BinaryOp::Sub),
        F::Mul => binary(BinaryOp::Mul),
        F::Div => binary(BinaryOp::Div),
        F::Rem => binary(BinaryOp::Rem),
        // x^¾ = √x·√√x: three roundings instead of a library's power (local response normalisation); of −∞ it is NaN
        F::Pow if !scope.is_exact() && is_three_quarters(&v[1]) => {
            let root = scope.bind(unary(UnaryOp::Sqrt));
            root.clone() * root.unary(UnaryOp::Sqrt)
        }
        F::Pow => binary(BinaryOp::Pow),
        F::Max => binary(BinaryOp::Max),
        F::Min => binary(BinaryOp::Min),
        F::And | F::BitAnd => binary(BinaryOp::And),
        F::Or | F::BitOr => binary(BinaryOp::Or),
        F::Xor | F::BitXor => binary(BinaryOp::Xor),
        F::Shl => shifted(BinaryOp::Shl, v, dtype),
        F::Shr => shifted(BinaryOp::Shr, v, dtype),
        F::Eq => compare(CompareOp::Eq),
        F::Lt => compare(CompareOp::Lt),
        F::Le => compare(CompareOp::Le),
        F::Gt => compare(CompareOp::Gt),
        F::Ge => compare(CompareOp::Ge),
        F::Select => v[0].clone().select(v[1].clone(), v[2].clone()),
        defined => {
            // expansion leaves primitives only
            debug_assert!(false, "{} is no primitive", defined.name());
            v[0].clone()
        }
    }
}

fn is_three_quarters(e: &Expr) -> bool {
    matches!(e, Expr::Literal(Literal::Float(_, bits)) if f64::from_bits(*bits) == 0.75)
}

/// A shift of an unsigned integer; the kernel's own takes the amount modulo the width.
fn shifted(op: BinaryOp, v: &[Expr], dtype: DType) -> Expr {
    let width = Expr::constant(dtype, 8.0 * dtype.size() as f64);
    let inside = v[1].clone().compare(CompareOp::Lt, width);
    inside.select(v[0].clone().binary(op, v[1].clone()), Expr::constant(dtype, 0.0))
}
