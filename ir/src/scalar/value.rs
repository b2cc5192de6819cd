//! Scalar values and constants.

use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::dtype::DType;

/// A scalar while it is computed: floats in f64, integers exactly, rounded to an element type by [`ScalarValue::cast`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScalarValue {
    /// A truth value.
    Bool(bool),
    /// An integer of any width.
    Int(i128),
    /// A float of any width.
    Float(f64),
}

impl ScalarValue {
    /// The value as f64.
    pub fn as_f64(self) -> f64 {
        match self {
            ScalarValue::Bool(b) => f64::from(u8::from(b)),
            ScalarValue::Int(i) => i as f64,
            ScalarValue::Float(x) => x,
        }
    }

    /// The value as an integer; floats are truncated and saturate, NaN is 0.
    pub fn as_int(self) -> i128 {
        match self {
            ScalarValue::Bool(b) => i128::from(b),
            ScalarValue::Int(i) => i,
            ScalarValue::Float(x) => x as i128,
        }
    }

    /// Whether the value is not zero; NaN is true.
    pub fn truthy(self) -> bool {
        match self {
            ScalarValue::Bool(b) => b,
            ScalarValue::Int(i) => i != 0,
            ScalarValue::Float(x) => x != 0.0,
        }
    }

    /// The value converted to `dtype` and rounded there: integers wrap, float to integer saturates.
    pub fn cast(self, dtype: DType) -> ScalarValue {
        use DType::*;
        let float = |x: f64| ScalarValue::Float(x);
        match dtype {
            Bool => ScalarValue::Bool(self.truthy()),
            F64 => float(self.as_f64()),
            F32 => float(f64::from(match self {
                ScalarValue::Int(i) => i as f32,
                other => other.as_f64() as f32,
            })),
            F16 => float(f16::from_f64(self.as_f64()).to_f64()),
            BF16 => float(bf16::from_f64(self.as_f64()).to_f64()),
            int => ScalarValue::Int(match self {
                ScalarValue::Float(x) => saturate(x, int),
                other => wrap(other.as_int(), int),
            }),
        }
    }
}

fn saturate(x: f64, dtype: DType) -> i128 {
    match dtype {
        DType::U8 => i128::from(x as u8),
        DType::U16 => i128::from(x as u16),
        DType::U32 => i128::from(x as u32),
        DType::U64 => i128::from(x as u64),
        DType::I8 => i128::from(x as i8),
        DType::I16 => i128::from(x as i16),
        DType::I32 => i128::from(x as i32),
        _ => i128::from(x as i64),
    }
}

fn wrap(i: i128, dtype: DType) -> i128 {
    match dtype {
        DType::U8 => i128::from(i as u8),
        DType::U16 => i128::from(i as u16),
        DType::U32 => i128::from(i as u32),
        DType::U64 => i128::from(i as u64),
        DType::I8 => i128::from(i as i8),
        DType::I16 => i128::from(i as i16),
        DType::I32 => i128::from(i as i32),
        _ => i128::from(i as i64),
    }
}

/// A scalar constant of an element type; equality and order are of the bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Literal {
    /// Element type.
    pub dtype: DType,
    /// The f64 bits of a float, the two's complement of an integer, 0 or 1 of a bool.
    bits: u64,
}

impl Literal {
    /// `value` rounded to `dtype`.
    pub fn new(value: ScalarValue, dtype: DType) -> Literal {
        let bits = match value.cast(dtype) {
            ScalarValue::Bool(b) => u64::from(b),
            ScalarValue::Int(i) => i as u64,
            ScalarValue::Float(x) => x.to_bits(),
        };
        Literal { dtype, bits }
    }

    /// A float constant rounded to `dtype`.
    pub fn float(value: f64, dtype: DType) -> Literal {
        Literal::new(ScalarValue::Float(value), dtype)
    }

    /// An integer constant wrapped to `dtype`.
    pub fn int(value: i64, dtype: DType) -> Literal {
        Literal::new(ScalarValue::Int(i128::from(value)), dtype)
    }

    /// The value.
    pub fn value(self) -> ScalarValue {
        match self.dtype {
            DType::Bool => ScalarValue::Bool(self.bits != 0),
            DType::U64 => ScalarValue::Int(i128::from(self.bits)),
            dtype if dtype.is_float() => ScalarValue::Float(f64::from_bits(self.bits)),
            _ => ScalarValue::Int(i128::from(self.bits as i64)),
        }
    }

    /// The value as f64.
    pub fn as_f64(self) -> f64 {
        self.value().as_f64()
    }
}

impl fmt::Display for Literal {
    /// `1.5:f32`, `3:i64`, `true:bool`; floats print the shortest text that reads back to the same value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value() {
            ScalarValue::Bool(b) => write!(f, "{b}")?,
            ScalarValue::Int(i) => write!(f, "{i}")?,
            ScalarValue::Float(x) if self.dtype == DType::F64 => write!(f, "{x:?}")?,
            ScalarValue::Float(x) => write!(f, "{:?}", x as f32)?,
        }
        write!(f, ":{}", self.dtype)
    }
}

impl fmt::Debug for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
