//! The table of scalar functions.

use serde::{Deserialize, Serialize};

use super::expr::ScalarExpr as E;
use super::value::ScalarValue as V;
use crate::dtype::DType;

/// How a scalar function is computed.
pub enum Meaning {
    /// Spelled by every emitter; the closure computes it, on operands already in their element type.
    Primitive(fn(&[V]) -> V),
    /// A program over primitives; constants take the element type given.
    Defined(fn(&[E], DType) -> E),
}

/// Derivative by operand `i`, given the operands, the result and the element type; `None` where it is zero everywhere.
type Derivative = fn(args: &[E], result: &E, i: usize, dtype: DType) -> Option<E>;

macro_rules! table {
    ($($(#[$doc:meta])* $variant:ident $name:literal $onnx:literal $arity:literal $meaning:expr, $derivative:expr;)*) => {
        /// A scalar function: one row of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum ScalarFn { $($(#[$doc])* $variant),* }

        impl ScalarFn {
            /// Every function, in table order.
            pub const ALL: &'static [ScalarFn] = &[$(ScalarFn::$variant),*];
            /// The name in text forms.
            pub const fn name(self) -> &'static str { match self { $(ScalarFn::$variant => $name),* } }
            /// The ONNX operator of this meaning; empty where there is none.
            pub const fn onnx(self) -> &'static str { match self { $(ScalarFn::$variant => $onnx),* } }
            /// Number of operands.
            pub const fn arity(self) -> usize { match self { $(ScalarFn::$variant => $arity),* } }
            /// How it is computed.
            pub fn meaning(self) -> Meaning { match self { $(ScalarFn::$variant => $meaning),* } }
            pub(super) fn derivative_rule(self) -> Option<Derivative> { match self { $(ScalarFn::$variant => $derivative),* } }
        }
    };
}

use Meaning::{Defined, Primitive};

fn unary(f: fn(f64) -> f64, v: &[V]) -> V {
    V::Float(f(v[0].as_f64()))
}

fn binary(v: &[V], float: fn(f64, f64) -> f64, int: fn(i128, i128) -> i128) -> V {
    match (v[0], v[1]) {
        (V::Float(a), V::Float(b)) => V::Float(float(a, b)),
        (a, b) => V::Int(int(a.as_int(), b.as_int())),
    }
}

fn compare(v: &[V], float: fn(&f64, &f64) -> bool, int: fn(&i128, &i128) -> bool) -> V {
    V::Bool(match (v[0], v[1]) {
        (V::Float(a), V::Float(b)) => float(&a, &b),
        (a, b) => int(&a.as_int(), &b.as_int()),
    })
}

/// The greater operand; NaN if either is NaN.
fn maximum(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// The lesser operand; NaN if either is NaN.
fn minimum(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

/// Half to even, as IEEE 754 and ONNX round.
fn round_even(x: f64) -> f64 {
    x.round_ties_even()
}

fn c(value: f64, dtype: DType) -> E {
    E::float(value, dtype)
}

macro_rules! d {
    ($body:expr) => {
        Some($body as Derivative)
    };
}

table! {
    // ---- primitives, one operand
    /// −x.
    Neg "neg" "Neg" 1 Primitive(|v| match v[0] { V::Float(x) => V::Float(-x), x => V::Int(x.as_int().wrapping_neg()) }),
        d!(|_, _, _, t| Some(c(-1.0, t)));
    /// |x|.
    Abs "abs" "Abs" 1 Primitive(|v| match v[0] { V::Float(x) => V::Float(x.abs()), x => V::Int(x.as_int().abs()) }),
        d!(|a, _, _, _| Some(a[0].clone().un(ScalarFn::Sign)));
    /// −1, 0 or 1; NaN of NaN.
    Sign "sign" "Sign" 1 Primitive(|v| match v[0] {
        V::Float(x) => V::Float(if x.is_nan() || x == 0.0 { x } else { x.signum() }), x => V::Int(x.as_int().signum()) }),
        d!(|_, _, _, _| None);
    /// Greatest integer not above x.
    Floor "floor" "Floor" 1 Primitive(|v| unary(f64::floor, v)), d!(|_, _, _, _| None);
    /// Least integer not below x.
    Ceil "ceil" "Ceil" 1 Primitive(|v| unary(f64::ceil, v)), d!(|_, _, _, _| None);
    /// Nearest integer, half to even.
    Round "round" "Round" 1 Primitive(|v| unary(round_even, v)), d!(|_, _, _, _| None);
    /// eˣ.
    Exp "exp" "Exp" 1 Primitive(|v| unary(f64::exp, v)), d!(|_, y, _, _| Some(y.clone()));
    /// Natural logarithm.
    Log "log" "Log" 1 Primitive(|v| unary(f64::ln, v)), d!(|a, _, _, t| Some(c(1.0, t).div(a[0].clone())));
    /// Square root.
    Sqrt "sqrt" "Sqrt" 1 Primitive(|v| unary(f64::sqrt, v)), d!(|_, y, _, t| Some(c(0.5, t).div(y.clone())));
    /// Sine of radians.
    Sin "sin" "Sin" 1 Primitive(|v| unary(f64::sin, v)), d!(|a, _, _, _| Some(a[0].clone().un(ScalarFn::Cos)));
    /// Cosine of radians.
    Cos "cos" "Cos" 1 Primitive(|v| unary(f64::cos, v)),
        d!(|a, _, _, _| Some(a[0].clone().un(ScalarFn::Sin).un(ScalarFn::Neg)));
    /// Hyperbolic tangent.
    Tanh "tanh" "Tanh" 1 Primitive(|v| unary(f64::tanh, v)),
        d!(|_, y, _, t| Some(c(1.0, t).sub(y.clone().mul(y.clone()))));
    /// Error function.
    Erf "erf" "Erf" 1 Primitive(|v| unary(erf, v)),
        d!(|a, _, _, t| Some(c(std::f64::consts::FRAC_2_SQRT_PI, t).mul(a[0].clone().mul(a[0].clone()).un(ScalarFn::Neg).un(ScalarFn::Exp))));
    /// 1 / (1 + e⁻ˣ), without overflow.
    Sigmoid "sigmoid" "Sigmoid" 1 Primitive(|v| unary(|x| if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { let e = x.exp(); e / (1.0 + e) }, v)),
        d!(|_, y, _, t| Some(y.clone().mul(c(1.0, t).sub(y.clone()))));
    /// Arc sine.
    Asin "asin" "Asin" 1 Primitive(|v| unary(f64::asin, v)),
        d!(|a, _, _, t| Some(c(1.0, t).div(complement(&a[0], t).un(ScalarFn::Sqrt))));
    /// Arc cosine.
    Acos "acos" "Acos" 1 Primitive(|v| unary(f64::acos, v)),
        d!(|a, _, _, t| Some(c(-1.0, t).div(complement(&a[0], t).un(ScalarFn::Sqrt))));
    /// Arc tangent.
    Atan "atan" "Atan" 1 Primitive(|v| unary(f64::atan, v)),
        d!(|a, _, _, t| Some(c(1.0, t).div(c(1.0, t).add(a[0].clone().mul(a[0].clone())))));
    /// eˣ − 1, exact for small x.
    Expm1 "expm1" "" 1 Primitive(|v| unary(f64::exp_m1, v)), d!(|a, _, _, _| Some(a[0].clone().un(ScalarFn::Exp)));
    /// Logarithm of 1 + x, exact for small x.
    Log1p "log1p" "" 1 Primitive(|v| unary(f64::ln_1p, v)),
        d!(|a, _, _, t| Some(c(1.0, t).div(c(1.0, t).add(a[0].clone()))));
    /// Every bit of an integer inverted.
    BitNot "bit_not" "BitwiseNot" 1 Primitive(|v| V::Int(!v[0].as_int())), d!(|_, _, _, _| None);
    /// Logical negation.
    Not "not" "Not" 1 Primitive(|v| V::Bool(!v[0].truthy())), d!(|_, _, _, _| None);
    /// Whether x is NaN.
    IsNan "is_nan" "IsNaN" 1 Primitive(|v| V::Bool(v[0].as_f64().is_nan())), d!(|_, _, _, _| None);

    // ---- primitives, two operands
    /// a + b.
    Add "add" "Add" 2 Primitive(|v| binary(v, |a, b| a + b, |a, b| a.wrapping_add(b))), d!(|_, _, _, t| Some(c(1.0, t)));
    /// a − b.
    Sub "sub" "Sub" 2 Primitive(|v| binary(v, |a, b| a - b, |a, b| a.wrapping_sub(b))),
        d!(|_, _, i, t| Some(c(if i == 0 { 1.0 } else { -1.0 }, t)));
    /// a · b.
    Mul "mul" "Mul" 2 Primitive(|v| binary(v, |a, b| a * b, |a, b| a.wrapping_mul(b))), d!(|a, _, i, _| Some(a[1 - i].clone()));
    /// a / b; integers truncate, and division by zero gives 0 and sets the status word.
    Div "div" "Div" 2 Primitive(|v| binary(v, |a, b| a / b, |a, b| if b == 0 { 0 } else { a.wrapping_div(b) })),
        d!(|a, y, i, t| Some(if i == 0 { c(1.0, t).div(a[1].clone()) } else { y.clone().div(a[1].clone()).un(ScalarFn::Neg) }));
    /// Remainder with the sign of the dividend, as C's fmod; 0 where an integer divisor is 0.
    Rem "rem" "" 2 Primitive(|v| binary(v, |a, b| a % b, |a, b| if b == 0 { 0 } else { a.wrapping_rem(b) })),
        d!(|a, y, i, t| Some(if i == 0 { c(1.0, t) } else { y.clone().sub(a[0].clone()).div(a[1].clone()) }));
    /// aᵇ.
    Pow "pow" "Pow" 2 Primitive(|v| binary(v, f64::powf, |a, b| if b < 0 { if a == 1 { 1 } else { 0 } } else { a.wrapping_pow(b.min(u32::MAX as i128) as u32) })),
        d!(|a, y, i, t| Some(if i == 0 { a[1].clone().mul(a[0].clone().bin(ScalarFn::Pow, a[1].clone().sub(c(1.0, t)))) } else { y.clone().mul(a[0].clone().un(ScalarFn::Log)) }));
    /// The greater operand; NaN if either is NaN. The gradient of a tie is split.
    Max "max" "" 2 Primitive(|v| binary(v, maximum, i128::max)), d!(|a, _, i, t| Some(tie(ScalarFn::Gt, a, i, t)));
    /// The lesser operand; NaN if either is NaN. The gradient of a tie is split.
    Min "min" "" 2 Primitive(|v| binary(v, minimum, i128::min)), d!(|a, _, i, t| Some(tie(ScalarFn::Lt, a, i, t)));
    /// Bits of both integers.
    BitAnd "bit_and" "BitwiseAnd" 2 Primitive(|v| V::Int(v[0].as_int() & v[1].as_int())), d!(|_, _, _, _| None);
    /// Bits of either integer.
    BitOr "bit_or" "BitwiseOr" 2 Primitive(|v| V::Int(v[0].as_int() | v[1].as_int())), d!(|_, _, _, _| None);
    /// Bits of exactly one integer.
    BitXor "bit_xor" "BitwiseXor" 2 Primitive(|v| V::Int(v[0].as_int() ^ v[1].as_int())), d!(|_, _, _, _| None);
    /// Bits of an unsigned integer moved up by b places; by the width or more, none is left.
    Shl "shl" "" 2 Primitive(|v| V::Int(if v[1].as_int() < 64 { v[0].as_int() << v[1].as_int() } else { 0 })), d!(|_, _, _, _| None);
    /// Bits of an unsigned integer moved down by b places; by the width or more, none is left.
    Shr "shr" "" 2 Primitive(|v| V::Int(if v[1].as_int() < 64 { v[0].as_int() >> v[1].as_int() } else { 0 })), d!(|_, _, _, _| None);
    /// Both.
    And "and" "And" 2 Primitive(|v| V::Bool(v[0].truthy() && v[1].truthy())), d!(|_, _, _, _| None);
    /// Either.
    Or "or" "Or" 2 Primitive(|v| V::Bool(v[0].truthy() || v[1].truthy())), d!(|_, _, _, _| None);
    /// Exactly one.
    Xor "xor" "Xor" 2 Primitive(|v| V::Bool(v[0].truthy() != v[1].truthy())), d!(|_, _, _, _| None);
    /// a = b.
    Eq "eq" "Equal" 2 Primitive(|v| compare(v, f64::eq, i128::eq)), d!(|_, _, _, _| None);
    /// a < b.
    Lt "lt" "Less" 2 Primitive(|v| compare(v, f64::lt, i128::lt)), d!(|_, _, _, _| None);
    /// a ≤ b.
    Le "le" "LessOrEqual" 2 Primitive(|v| compare(v, f64::le, i128::le)), d!(|_, _, _, _| None);
    /// a > b.
    Gt "gt" "Greater" 2 Primitive(|v| compare(v, f64::gt, i128::gt)), d!(|_, _, _, _| None);
    /// a ≥ b.
    Ge "ge" "GreaterOrEqual" 2 Primitive(|v| compare(v, f64::ge, i128::ge)), d!(|_, _, _, _| None);

    // ---- primitives, three operands
    /// b where a is true, else c.
    Select "select" "Where" 3 Primitive(|v| if v[0].truthy() { v[1] } else { v[2] }),
        d!(|a, _, i, t| (i > 0).then(|| { let (one, zero) = (c(1.0, t), c(0.0, t)); if i == 1 { E::select(a[0].clone(), one, zero) } else { E::select(a[0].clone(), zero, one) } }));

    // ---- defined
    /// max(x, 0). The gradient at 0 is 0.
    Relu "relu" "Relu" 1 Defined(|a, t| a[0].clone().bin(ScalarFn::Max, c(0.0, t))),
        // of the result, so that the operand need not be kept
        d!(|_, y, _, t| Some(E::select(y.clone().bin(ScalarFn::Gt, c(0.0, t)), c(1.0, t), c(0.0, t))));
    /// 1 / x.
    Recip "recip" "Reciprocal" 1 Defined(|a, t| c(1.0, t).div(a[0].clone())), None;
    /// 1 / √x.
    Rsqrt "rsqrt" "" 1 Defined(|a, t| c(1.0, t).div(a[0].clone().un(ScalarFn::Sqrt))),
        d!(|a, y, _, t| Some(c(-0.5, t).mul(y.clone().div(a[0].clone()))));
    /// x·Φ(x) by the error function (Hendrycks and Gimpel, 2016).
    Gelu "gelu" "" 1 Defined(|a, t| { let x = a[0].clone();
        c(0.5, t).mul(x.clone()).mul(c(1.0, t).add(x.mul(c(std::f64::consts::FRAC_1_SQRT_2, t)).un(ScalarFn::Erf))) }), None;
    /// The tanh approximation of GELU.
    GeluTanh "gelu_tanh" "" 1 Defined(|a, t| { let x = a[0].clone(); let cube = x.clone().mul(x.clone()).mul(x.clone());
        let inner = c(0.797_884_560_802_865_4, t).mul(x.clone().add(c(0.044715, t).mul(cube)));
        c(0.5, t).mul(x).mul(c(1.0, t).add(inner.un(ScalarFn::Tanh))) }), None;
    /// x·sigmoid(1.702 x), the quick approximation of GELU (Hendrycks and Gimpel, 2016).
    QuickGelu "quick_gelu" "" 1 Defined(|a, t| a[0].clone().mul(a[0].clone().mul(c(1.702, t)).un(ScalarFn::Sigmoid))), None;
    /// x·sigmoid(x), also Swish.
    Silu "silu" "Swish" 1 Defined(|a, _| a[0].clone().mul(a[0].clone().un(ScalarFn::Sigmoid))), None;
    /// log(1 + eˣ), as max(x, 0) + log(1 + e^−|x|): no overflow.
    Softplus "softplus" "Softplus" 1 Defined(|a, t| { let x = a[0].clone();
        x.clone().un(ScalarFn::Relu).add(c(1.0, t).add(x.un(ScalarFn::Abs).un(ScalarFn::Neg).un(ScalarFn::Exp)).un(ScalarFn::Log)) }),
        d!(|a, _, _, _| Some(a[0].clone().un(ScalarFn::Sigmoid)));
    /// log(sigmoid(x)), as min(x, 0) − log1p(e^−|x|): neither underflow nor cancellation.
    LogSigmoid "log_sigmoid" "" 1 Defined(|a, t| { let x = a[0].clone();
        x.clone().bin(ScalarFn::Min, c(0.0, t)).bin(ScalarFn::Sub, x.un(ScalarFn::Abs).un(ScalarFn::Neg).un(ScalarFn::Exp).un(ScalarFn::Log1p)) }),
        d!(|a, _, _, _| Some(a[0].clone().un(ScalarFn::Neg).un(ScalarFn::Sigmoid)));
    /// x·tanh(softplus(x)).
    Mish "mish" "Mish" 1 Defined(|a, _| a[0].clone().mul(a[0].clone().un(ScalarFn::Softplus).un(ScalarFn::Tanh))), None;
    /// x·min(max(x + 3, 0), 6) / 6.
    HardSwish "hard_swish" "HardSwish" 1 Defined(|a, t| { let x = a[0].clone();
        x.clone().mul(x.mul(c(1.0 / 6.0, t)).add(c(0.5, t)).bin(ScalarFn::Max, c(0.0, t)).bin(ScalarFn::Min, c(1.0, t))) }), None;
    /// x / (1 + |x|).
    Softsign "softsign" "Softsign" 1 Defined(|a, t| a[0].clone().div(c(1.0, t).add(a[0].clone().un(ScalarFn::Abs)))),
        d!(|a, _, _, t| { let d = c(1.0, t).add(a[0].clone().un(ScalarFn::Abs)); Some(c(1.0, t).div(d.clone().mul(d))) });
    /// sin x / cos x.
    Tan "tan" "Tan" 1 Defined(|a, _| a[0].clone().un(ScalarFn::Sin).div(a[0].clone().un(ScalarFn::Cos))),
        d!(|_, y, _, t| Some(c(1.0, t).add(y.clone().mul(y.clone()))));
    /// (eˣ − e⁻ˣ)/2 by two `expm1`: nothing cancels near 0. It overflows one half of a doubling early.
    Sinh "sinh" "Sinh" 1 Defined(|a, t| c(0.5, t).mul(a[0].clone().un(ScalarFn::Expm1).sub(a[0].clone().un(ScalarFn::Neg).un(ScalarFn::Expm1)))),
        d!(|a, _, _, _| Some(a[0].clone().un(ScalarFn::Cosh)));
    /// (eˣ + e⁻ˣ)/2. It overflows one half of a doubling early.
    Cosh "cosh" "Cosh" 1 Defined(|a, t| c(0.5, t).mul(a[0].clone().un(ScalarFn::Exp).add(a[0].clone().un(ScalarFn::Neg).un(ScalarFn::Exp)))),
        d!(|a, _, _, _| Some(a[0].clone().un(ScalarFn::Sinh)));
    /// sign x · log(|x| + √(x² + 1)), as log1p(|x| + x²/(1 + √(x² + 1))): nothing cancels near 0. Beyond 10⁸, where x²
    /// may overflow, log 2|x|.
    Asinh "asinh" "Asinh" 1 Defined(|a, t| { let x = a[0].clone().un(ScalarFn::Abs); let square = x.clone().mul(x.clone());
        let near = x.clone().add(square.clone().div(c(1.0, t).add(c(1.0, t).add(square).un(ScalarFn::Sqrt)))).un(ScalarFn::Log1p);
        a[0].clone().un(ScalarFn::Sign).mul(logarithm_beyond(x, near, t)) }),
        d!(|a, _, _, t| Some(c(1.0, t).div(a[0].clone().mul(a[0].clone()).add(c(1.0, t)).un(ScalarFn::Sqrt))));
    /// log(x + √(x² − 1)), as log1p(u + √(u·(u + 2))) of u = x − 1: nothing cancels near 1. Beyond 10⁸ log 2x.
    Acosh "acosh" "Acosh" 1 Defined(|a, t| { let u = a[0].clone().sub(c(1.0, t));
        let near = u.clone().add(u.clone().mul(u.add(c(2.0, t))).un(ScalarFn::Sqrt)).un(ScalarFn::Log1p);
        logarithm_beyond(a[0].clone(), near, t) }),
        d!(|a, _, _, t| { let (low, high) = (a[0].clone().sub(c(1.0, t)), a[0].clone().add(c(1.0, t)));
        Some(c(1.0, t).div(low.un(ScalarFn::Sqrt).mul(high.un(ScalarFn::Sqrt)))) });
    /// log((1 + x)/(1 − x))/2, as log1p(2|x|/(1 − |x|))/2 with the sign of x: nothing cancels near 0.
    Atanh "atanh" "Atanh" 1 Defined(|a, t| { let x = a[0].clone().un(ScalarFn::Abs);
        let inner = x.clone().add(x.clone()).div(c(1.0, t).sub(x)).un(ScalarFn::Log1p);
        c(0.5, t).mul(a[0].clone().un(ScalarFn::Sign).mul(inner)) }),
        d!(|a, _, _, t| Some(c(1.0, t).div(complement(&a[0], t))));
    /// Whether x is an infinity of either sign.
    IsInf "is_inf" "" 1 Defined(|a, t| a[0].clone().un(ScalarFn::Abs).bin(ScalarFn::Eq, c(f64::INFINITY, t))), None;
    /// Remainder with the sign of the divisor; 0 where an integer divisor is 0.
    Mod "mod" "" 2 Defined(|a, t| { let (b, rest) = (a[1].clone(), a[0].clone().bin(ScalarFn::Rem, a[1].clone())); let zero = || c(0.0, t);
        let apart = rest.clone().bin(ScalarFn::Lt, zero()).bin(ScalarFn::Xor, b.clone().bin(ScalarFn::Lt, zero()));
        let rests = rest.clone().bin(ScalarFn::Eq, zero()).un(ScalarFn::Not);
        E::select(apart.bin(ScalarFn::And, rests), rest.clone().add(b), rest) }),
        d!(|a, y, i, t| Some(if i == 0 { c(1.0, t) } else { y.clone().sub(a[0].clone()).div(a[1].clone()) }));
    /// a ≠ b.
    Ne "ne" "" 2 Defined(|a, _| a[0].clone().bin(ScalarFn::Eq, a[1].clone()).un(ScalarFn::Not)), None;
}

/// 1 where operand `i` wins, ½ where they tie, else 0.
fn tie(wins: ScalarFn, a: &[E], i: usize, t: DType) -> E {
    let (mine, other) = (a[i].clone(), a[1 - i].clone());
    let tied = E::select(mine.clone().bin(ScalarFn::Eq, other.clone()), c(0.5, t), c(0.0, t));
    E::select(mine.bin(wins, other), c(1.0, t), tied)
}

/// 1 − x², without cancelling near ±1.
fn complement(x: &E, t: DType) -> E {
    c(1.0, t).sub(x.clone()).mul(c(1.0, t).add(x.clone()))
}

/// log 2x beyond 10⁸, else `near`.
fn logarithm_beyond(x: E, near: E, t: DType) -> E {
    let far = x.clone().un(ScalarFn::Log).add(c(std::f64::consts::LN_2, t));
    E::select(x.bin(ScalarFn::Gt, c(1e8, t)), far, near)
}

/// erf to within 1 ulp or so: series for small |x|, continued fraction of erfc beyond (Abramowitz and Stegun 7.1.6, 7.1.14).
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a.is_nan() {
        return x;
    }
    let value = if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > sum.abs() * 1e-18 {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp()
    } else if a > 6.0 {
        1.0
    } else {
        let fraction = (1..=60).rev().fold(0.0, |tail, k| f64::from(k) / 2.0 / (a + tail));
        1.0 - (-a * a).exp() / ((a + fraction) * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

impl ScalarFn {
    /// The function of that text name.
    pub fn from_name(name: &str) -> Option<ScalarFn> {
        ScalarFn::ALL.iter().copied().find(|f| f.name() == name)
    }

    /// The function that an ONNX operator names.
    pub fn from_onnx(op_type: &str) -> Option<ScalarFn> {
        ScalarFn::ALL.iter().copied().find(|f| !op_type.is_empty() && f.onnx() == op_type)
    }

    /// Whether emitters spell it.
    pub fn is_primitive(self) -> bool {
        matches!(self.meaning(), Meaning::Primitive(_))
    }

    /// Whether it costs many times what a sum or a product does.
    pub fn is_transcendental(self) -> bool {
        use ScalarFn::*;
        matches!(
            self,
            Exp | Expm1
                | Log
                | Log1p
                | Tanh
                | Erf
                | Sigmoid
                | Sin
                | Cos
                | Tan
                | Asin
                | Acos
                | Atan
                | Sinh
                | Cosh
                | Asinh
                | Acosh
                | Atanh
                | Pow
                | Gelu
                | GeluTanh
                | QuickGelu
                | Silu
                | Mish
                | Softplus
        )
    }

    /// Whether the operands may be exchanged.
    pub fn commutes(self) -> bool {
        use ScalarFn::*;
        matches!(self, Add | Mul | Max | Min | And | Or | Xor | BitAnd | BitOr | BitXor | Eq | Ne)
    }

    /// Whether the result is a bool whatever the operands.
    pub fn is_predicate(self) -> bool {
        use ScalarFn::*;
        matches!(self, Not | IsNan | IsInf | And | Or | Xor | Eq | Ne | Lt | Le | Gt | Ge)
    }

    /// Whether the operands must be bool.
    pub fn is_logical(self) -> bool {
        use ScalarFn::*;
        matches!(self, Not | And | Or | Xor)
    }

    /// Whether the operands must be integers, whose bits it reads.
    pub fn is_bitwise(self) -> bool {
        use ScalarFn::*;
        matches!(self, BitNot | BitAnd | BitOr | BitXor) || self.is_shift()
    }

    /// Whether the operands must be unsigned integers.
    pub fn is_shift(self) -> bool {
        matches!(self, ScalarFn::Shl | ScalarFn::Shr)
    }

    /// Whether only floats are legal operands.
    pub fn is_float_only(self) -> bool {
        use ScalarFn::*;
        !self.is_logical()
            && !self.is_bitwise()
            && !matches!(
                self,
                Neg | Abs
                    | Sign
                    | Add
                    | Sub
                    | Mul
                    | Div
                    | Rem
                    | Mod
                    | Pow
                    | Max
                    | Min
                    | Eq
                    | Ne
                    | Lt
                    | Le
                    | Gt
                    | Ge
                    | Select
                    | Relu
            )
    }

    /// The element type of the result.
    ///
    /// # Errors
    /// A text that says which operand types are wrong.
    pub fn result_dtype(self, operands: &[DType]) -> Result<DType, String> {
        if operands.len() != self.arity() {
            return Err(format!("takes {} operands, not {}", self.arity(), operands.len()));
        }
        let values = if self == ScalarFn::Select { &operands[1..] } else { operands };
        if self == ScalarFn::Select && operands[0] != DType::Bool {
            return Err(format!("the condition must be bool, not {}", operands[0]));
        }
        let first = values[0];
        if values.iter().any(|dtype| *dtype != first) {
            return Err(format!("operands differ in element type: {values:?}"));
        }
        if self.is_logical() && first != DType::Bool {
            return Err(format!("operands must be bool, not {first}"));
        }
        if self.is_bitwise() && !first.is_int() || self.is_shift() && !first.is_unsigned() {
            let kind = if self.is_shift() { "unsigned integers" } else { "integers" };
            return Err(format!("operands must be {kind}, not {first}"));
        }
        if self.is_float_only() && !first.is_float() {
            return Err(format!("operands must be floats, not {first}"));
        }
        let arithmetic = !self.is_predicate() && self != ScalarFn::Select;
        if arithmetic && first == DType::Bool {
            return Err("operands must be numbers, not bool".into());
        }
        Ok(if self.is_predicate() { DType::Bool } else { first })
    }

    /// The value on operands of `dtypes`, rounded to the result's element type after each primitive.
    pub fn eval(self, operands: &[V], dtype: DType) -> V {
        match self.meaning() {
            Primitive(f) => f(operands),
            Defined(f) => {
                let args: Vec<E> = (0..self.arity()).map(E::arg).collect();
                f(&args, if dtype.is_float() { DType::F64 } else { dtype }).eval_unrounded(operands)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_exact_to_double() {
        // values of the function to 16 digits
        for (x, y) in
            [(0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (2.0, 0.9953222650189527), (3.0, 0.9999779095030014)]
        {
            assert!((erf(x) - y).abs() < 4e-16, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    /// What is defined over primitives stays exact where the plain formula would cancel or overflow.
    #[test]
    fn defined_functions_are_stable() {
        let at = |f: ScalarFn, x: f64| f.eval(&[V::Float(x)], DType::F64).as_f64();
        for (f, x, want) in [
            (ScalarFn::Sinh, 1e-9, 1e-9f64.sinh()),
            (ScalarFn::Asinh, -1e-9, -1e-9f64.asinh()),
            (ScalarFn::Asinh, 1e200, 1e200f64.ln() + std::f64::consts::LN_2),
            // √(2u)·(1 − u/12) of u = x − 1
            (ScalarFn::Acosh, 1.0 + 1e-12, 1.4142764231805424e-6),
            (ScalarFn::Acosh, 1e200, 1e200f64.ln() + std::f64::consts::LN_2),
            (ScalarFn::Atanh, -1e-9, -1e-9f64.atanh()),
            (ScalarFn::LogSigmoid, -800.0, -800.0),
            (ScalarFn::LogSigmoid, 40.0, -(-40f64).exp()),
            (ScalarFn::Atanh, 1.0, f64::INFINITY),
            (ScalarFn::Tan, 1.5, 1.5f64.tan()),
        ] {
            let got = at(f, x);
            assert!(got == want || (got - want).abs() <= 4e-16 * want.abs(), "{}({x}) = {got}, not {want}", f.name());
        }
    }

    #[test]
    fn shifts_and_remainders_have_no_undefined_cases() {
        let u8s = |f: ScalarFn, a: i128, b: i128| f.eval(&[V::Int(a), V::Int(b)], DType::U8).cast(DType::U8);
        assert_eq!(u8s(ScalarFn::Shl, 0x81, 1), V::Int(2));
        assert_eq!(u8s(ScalarFn::Shl, 1, 8), V::Int(0));
        assert_eq!(u8s(ScalarFn::Shr, 0x81, 200), V::Int(0));
        for (a, b, want) in [(7, 3, 1), (-7, 3, 2), (7, -3, -2), (-7, -3, -1), (6, -3, 0)] {
            let ints = ScalarFn::Mod.eval(&[V::Int(a), V::Int(b)], DType::I32);
            let floats = ScalarFn::Mod.eval(&[V::Float(a as f64), V::Float(b as f64)], DType::F32);
            assert_eq!((ints, floats), (V::Int(want), V::Float(want as f64)));
        }
    }

    #[test]
    fn derivatives_match_finite_differences() {
        for f in ScalarFn::ALL.iter().filter(|f| f.result_dtype(&vec![DType::F64; f.arity()]) == Ok(DType::F64)) {
            let args: Vec<E> = (0..f.arity()).map(E::arg).collect();
            let program = E::apply(*f, args, DType::F64);
            let mut inside = 0;
            for point in [[0.7, 1.3], [0.2, 0.6], [1.9, 0.4], [2.6, 3.1]] {
                if program.eval_unrounded(&point.map(V::Float)).as_f64().is_nan() {
                    continue;
                }
                inside += 1;
                for i in 0..f.arity() {
                    let at = |d: f64| {
                        let mut p = point;
                        p[i] += d;
                        program.eval_unrounded(&[V::Float(p[0]), V::Float(p[1])]).as_f64()
                    };
                    let h = 1e-6;
                    let want = (at(h) - at(-h)) / (2.0 * h);
                    let got = program
                        .derivative(i, &[DType::F64; 2])
                        .map_or(0.0, |d| d.eval_unrounded(&[V::Float(point[0]), V::Float(point[1])]).as_f64());
                    assert!(
                        (want - got).abs() < 1e-7 * want.abs().max(1.0),
                        "{} by {i} at {point:?}: {got}, finite difference {want}",
                        f.name()
                    );
                }
            }
            assert!(inside >= 2, "{} is NaN at all points", f.name());
        }
    }
}
