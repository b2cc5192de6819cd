//! Scalar expressions and how to write them.

use std::ops;

use egret_ir::DType;

use super::ir::{Kernel, Var};

/// Memory that can be loaded from and stored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Memory {
    /// A buffer parameter.
    Buffer(u32),
    /// Scratch memory.
    Scratch(u32),
}

impl Memory {
    /// The element at `index`.
    pub fn load(self, index: impl Into<Expr>) -> Expr {
        Expr::Load { memory: self, index: Box::new(index.into()), mask: None }
    }

    /// The element at `index` where `mask` is true, else zero; memory is then not touched at `index`.
    pub fn load_if(self, mask: impl Into<Expr>, index: impl Into<Expr>) -> Expr {
        Expr::Load { memory: self, index: Box::new(index.into()), mask: Some(Box::new(mask.into())) }
    }
}

/// A typed constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Literal {
    /// A `bool`.
    Bool(bool),
    /// An integer, wrapped to its type.
    Int(DType, i64),
    /// A float: the bits of the value as `f64`.
    Float(DType, u64),
}

impl Literal {
    /// Its type.
    pub fn dtype(self) -> DType {
        match self {
            Literal::Bool(_) => DType::Bool,
            Literal::Int(t, _) | Literal::Float(t, _) => t,
        }
    }
}

macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant),* }
        impl $name {
            /// Every one, in declaration order.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
            /// Its spelling in text.
            pub const fn name(self) -> &'static str { match self { $($name::$variant => $text),* } }
        }
    };
}

table! {
    /// Functions of one argument. All but `Neg`, `Abs`, `Not`, `Sign` and `IsNan` take floats.
    UnaryOp {
        /// Negation; integers wrap.
        Neg "neg",
        /// Absolute value; integers wrap.
        Abs "abs",
        /// Logical not of a `bool`, bitwise not of an integer.
        Not "not",
        /// −1, 0 or 1 with the type of the argument; NaN stays, so does a zero's sign.
        Sign "sign",
        /// Whether a float is NaN.
        IsNan "is_nan",
        /// Square root.
        Sqrt "sqrt",
        /// `1 / sqrt(x)`, correctly divided.
        Rsqrt "rsqrt",
        /// `1 / x`, correctly divided.
        Recip "recip",
        /// Toward −∞.
        Floor "floor",
        /// Toward +∞.
        Ceil "ceil",
        /// To nearest, halves to even.
        Round "round",
        /// Toward zero.
        Trunc "trunc",
        /// eˣ.
        Exp "exp",
        /// eˣ − 1.
        Expm1 "expm1",
        /// Natural logarithm.
        Log "log",
        /// ln(1 + x).
        Log1p "log1p",
        /// Hyperbolic tangent.
        Tanh "tanh",
        /// Error function.
        Erf "erf",
        /// 1 / (1 + e⁻ˣ).
        Sigmoid "sigmoid",
        /// Sine.
        Sin "sin",
        /// Cosine.
        Cos "cos",
        /// Tangent.
        Tan "tan",
        /// Arc sine.
        Asin "asin",
        /// Arc cosine.
        Acos "acos",
        /// Arc tangent.
        Atan "atan",
    }
}

table! {
    /// Functions of two arguments of one type.
    BinaryOp {
        /// Sum; integers wrap.
        Add "+",
        /// Difference; integers wrap.
        Sub "-",
        /// Product; integers wrap.
        Mul "*",
        /// Quotient. Integers truncate; by zero gives 0; the least by −1 wraps.
        Div "/",
        /// Remainder with the sign of the dividend. Integers: by zero gives 0.
        Rem "%",
        /// Maximum; NaN propagates. Of `bool`: or.
        Max "max",
        /// Minimum; NaN propagates. Of `bool`: and.
        Min "min",
        /// Power. Integers wrap; a negative exponent gives 0, but for the base 1; exponents above 2³² − 1 count as that.
        Pow "pow",
        /// Logical and bitwise and.
        And "&",
        /// Logical and bitwise or.
        Or "|",
        /// Logical and bitwise exclusive or.
        Xor "^",
        /// Shift left; the amount is taken modulo the width.
        Shl "<<",
        /// Shift right, arithmetic for signed types; the amount is taken modulo the width.
        Shr ">>",
    }
}

table! {
    /// Comparisons; with NaN all but `Ne` are false.
    CompareOp {
        /// Equal.
        Eq "==",
        /// Not equal.
        Ne "!=",
        /// Less.
        Lt "<",
        /// Less or equal.
        Le "<=",
        /// Greater.
        Gt ">",
        /// Greater or equal.
        Ge ">=",
    }
}

table! {
    /// Functions that exist wide, over strips of `f32`: `fn(dst: *mut f32, src: *const f32, n: usize)`.
    VectorFunction {
        /// eˣ.
        Exp "exp",
        /// Natural logarithm.
        Log "log",
        /// Hyperbolic tangent.
        Tanh "tanh",
        /// Error function.
        Erf "erf",
        /// Logistic function.
        Sigmoid "sigmoid",
        /// Sine.
        Sin "sin",
        /// Cosine.
        Cos "cos",
    }
}

impl UnaryOp {
    /// The wide form, if there is one.
    pub fn vector_function(self) -> Option<VectorFunction> {
        Some(match self {
            UnaryOp::Exp => VectorFunction::Exp,
            UnaryOp::Log => VectorFunction::Log,
            UnaryOp::Tanh => VectorFunction::Tanh,
            UnaryOp::Erf => VectorFunction::Erf,
            UnaryOp::Sigmoid => VectorFunction::Sigmoid,
            UnaryOp::Sin => VectorFunction::Sin,
            UnaryOp::Cos => VectorFunction::Cos,
            _ => return None,
        })
    }
}

/// A scalar expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A variable.
    Var(Var),
    /// A constant.
    Literal(Literal),
    /// A dim parameter, `i64`.
    Dim(u32),
    /// An element of memory.
    Load {
        /// Which.
        memory: Memory,
        /// Element index, `i64`.
        index: Box<Expr>,
        /// Where false, the load is not made and gives zero.
        mask: Option<Box<Expr>>,
    },
    /// A function of one argument.
    Unary(UnaryOp, Box<Expr>),
    /// A function of two.
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// A comparison.
    Compare(CompareOp, Box<Expr>, Box<Expr>),
    /// `condition ? a : b`; both are evaluated.
    Select(Box<Expr>, Box<Expr>, Box<Expr>),
    /// Conversion. Float to integer truncates and saturates, NaN gives 0; integer to integer wraps; to `bool` is `!= 0`.
    Cast(DType, Box<Expr>),
}

impl Expr {
    /// An `i64` constant.
    pub fn int(value: i64) -> Expr {
        Expr::Literal(Literal::Int(DType::I64, value))
    }

    /// The constant of a type nearest to `value`.
    pub fn constant(dtype: DType, value: f64) -> Expr {
        Expr::Literal(match dtype {
            DType::Bool => Literal::Bool(value != 0.0),
            t if t.is_float() => Literal::Float(t, value.to_bits()),
            t => Literal::Int(t, value as i64),
        })
    }

    /// Its value, if it is an integer constant.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Expr::Literal(Literal::Int(_, value)) => Some(*value),
            _ => None,
        }
    }

    /// The type of its value, or `None` where a variable or memory does not exist.
    pub fn dtype(&self, kernel: &Kernel) -> Option<DType> {
        match self {
            Expr::Var(v) => kernel.var(*v),
            Expr::Literal(literal) => Some(literal.dtype()),
            Expr::Dim(_) => Some(DType::I64),
            Expr::Load { memory, .. } => kernel.memory(*memory),
            Expr::Unary(UnaryOp::IsNan, _) | Expr::Compare(..) => Some(DType::Bool),
            Expr::Unary(_, a) | Expr::Binary(_, a, _) => a.dtype(kernel),
            Expr::Select(_, a, _) => a.dtype(kernel),
            Expr::Cast(t, _) => Some(*t),
        }
    }

    /// A function of one argument.
    pub fn unary(self, op: UnaryOp) -> Expr {
        Expr::Unary(op, Box::new(self))
    }

    /// A function of two. Integer constants fold, and neutral ones vanish, so that index arithmetic stays readable.
    pub fn binary(self, op: BinaryOp, other: impl Into<Expr>) -> Expr {
        let other = other.into();
        match (op, self.as_int(), other.as_int()) {
            (_, Some(a), Some(b)) if matches!(self, Expr::Literal(Literal::Int(DType::I64, _))) => {
                let folded = match op {
                    BinaryOp::Add => Some(a.wrapping_add(b)),
                    BinaryOp::Sub => Some(a.wrapping_sub(b)),
                    BinaryOp::Mul => Some(a.wrapping_mul(b)),
                    BinaryOp::Div if b != 0 => Some(a.wrapping_div(b)),
                    BinaryOp::Rem if b != 0 => Some(a.wrapping_rem(b)),
                    BinaryOp::Min => Some(a.min(b)),
                    BinaryOp::Max => Some(a.max(b)),
                    _ => None,
                };
                match folded {
                    Some(value) => Expr::int(value),
                    None => Expr::Binary(op, Box::new(self), Box::new(other)),
                }
            }
            (BinaryOp::Add | BinaryOp::Sub, _, Some(0)) | (BinaryOp::Mul | BinaryOp::Div, _, Some(1)) => self,
            (BinaryOp::Add, Some(0), _) | (BinaryOp::Mul, Some(1), _) => other,
            _ => Expr::Binary(op, Box::new(self), Box::new(other)),
        }
    }

    /// A comparison.
    pub fn compare(self, op: CompareOp, other: impl Into<Expr>) -> Expr {
        Expr::Compare(op, Box::new(self), Box::new(other.into()))
    }

    /// `self ? a : b`.
    pub fn select(self, a: impl Into<Expr>, b: impl Into<Expr>) -> Expr {
        Expr::Select(Box::new(self), Box::new(a.into()), Box::new(b.into()))
    }

    /// Conversion.
    pub fn cast(self, dtype: DType) -> Expr {
        Expr::Cast(dtype, Box::new(self))
    }

    /// `(self + other - 1) / other`.
    pub fn ceil_div(&self, other: impl Into<Expr>) -> Expr {
        let other = other.into();
        let rounding = other.clone() - 1;
        (self + rounding) / other
    }
}

macro_rules! methods {
    ($($(#[$doc:meta])* $method:ident = $op:expr),* $(,)?) => {
        impl Expr { $($(#[$doc])* pub fn $method(&self, other: impl Into<Expr>) -> Expr {
            self.clone().binary($op, other)
        })* }
    };
}
methods! {
    /// Maximum.
    max = BinaryOp::Max,
    /// Minimum.
    min = BinaryOp::Min,
    /// Power.
    pow = BinaryOp::Pow,
    /// And.
    and = BinaryOp::And,
    /// Or.
    or = BinaryOp::Or,
}

macro_rules! comparisons {
    ($($(#[$doc:meta])* $method:ident = $op:expr),* $(,)?) => {
        impl Expr { $($(#[$doc])* pub fn $method(&self, other: impl Into<Expr>) -> Expr {
            self.clone().compare($op, other)
        })* }
    };
}
comparisons! {
    /// `self < other`.
    less = CompareOp::Lt,
    /// `self <= other`.
    less_equal = CompareOp::Le,
    /// `self > other`.
    greater = CompareOp::Gt,
    /// `self >= other`.
    greater_equal = CompareOp::Ge,
    /// `self == other`.
    equal = CompareOp::Eq,
    /// `self != other`.
    not_equal = CompareOp::Ne,
}

macro_rules! operators {
    ($($trait:ident $method:ident $op:expr),*) => { $(
        impl<T: Into<Expr>> ops::$trait<T> for Expr {
            type Output = Expr;
            fn $method(self, other: T) -> Expr { self.binary($op, other) }
        }
        impl<T: Into<Expr>> ops::$trait<T> for &Expr {
            type Output = Expr;
            fn $method(self, other: T) -> Expr { self.clone().binary($op, other) }
        }
    )* };
}
operators!(Add add BinaryOp::Add, Sub sub BinaryOp::Sub, Mul mul BinaryOp::Mul, Div div BinaryOp::Div, Rem rem BinaryOp::Rem);

impl ops::Neg for Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        self.unary(UnaryOp::Neg)
    }
}

impl ops::Not for Expr {
    type Output = Expr;
    fn not(self) -> Expr {
        self.unary(UnaryOp::Not)
    }
}

impl From<&Expr> for Expr {
    fn from(expr: &Expr) -> Expr {
        expr.clone()
    }
}

impl From<Var> for Expr {
    fn from(var: Var) -> Expr {
        Expr::Var(var)
    }
}

impl From<i64> for Expr {
    fn from(value: i64) -> Expr {
        Expr::int(value)
    }
}

impl From<i32> for Expr {
    /// An `i64`, the type of indices, so that plain integer literals serve.
    fn from(value: i32) -> Expr {
        Expr::int(value.into())
    }
}

impl From<f32> for Expr {
    fn from(value: f32) -> Expr {
        Expr::Literal(Literal::Float(DType::F32, f64::from(value).to_bits()))
    }
}

impl From<f64> for Expr {
    fn from(value: f64) -> Expr {
        Expr::Literal(Literal::Float(DType::F64, value.to_bits()))
    }
}

impl From<bool> for Expr {
    fn from(value: bool) -> Expr {
        Expr::Literal(Literal::Bool(value))
    }
}
