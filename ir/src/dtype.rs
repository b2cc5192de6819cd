//! Element types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident $text:literal $size:literal),* $(,)?) => {
        /// The element type of a tensor.
        ///
        /// ```
        /// use egret_ir::DType;
        /// assert_eq!("bf16".parse::<DType>().unwrap().size(), 2);
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum DType { $($(#[$doc])* $variant),* }

        impl DType {
            /// Every element type, in declaration order.
            pub const ALL: &'static [DType] = &[$(DType::$variant),*];

            /// The name in text forms: `f32`, `i64`, `bool`, …
            pub const fn name(self) -> &'static str { match self { $(DType::$variant => $text),* } }

            /// Bytes of one element in memory.
            pub const fn size(self) -> usize { match self { $(DType::$variant => $size),* } }
        }

        impl FromStr for DType {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(DType::$variant),)*
                    other => Err(format!("unknown element type `{other}`")),
                }
            }
        }
    };
}

dtypes! {
    /// One byte, 0 or 1.
    Bool "bool" 1,
    /// 8-bit unsigned integer.
    U8 "u8" 1,
    /// 16-bit unsigned integer.
    U16 "u16" 2,
    /// 32-bit unsigned integer.
    U32 "u32" 4,
    /// 64-bit unsigned integer.
    U64 "u64" 8,
    /// 8-bit signed integer.
    I8 "i8" 1,
    /// 16-bit signed integer.
    I16 "i16" 2,
    /// 32-bit signed integer.
    I32 "i32" 4,
    /// 64-bit signed integer.
    I64 "i64" 8,
    /// IEEE 754 binary16.
    F16 "f16" 2,
    /// The upper half of binary32.
    BF16 "bf16" 2,
    /// IEEE 754 binary32.
    F32 "f32" 4,
    /// IEEE 754 binary64.
    F64 "f64" 8,
}

impl DType {
    /// `f16`, `bf16`, `f32` or `f64`.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }

    /// Signed or unsigned integer; not `bool`.
    pub const fn is_int(self) -> bool {
        !self.is_float() && !matches!(self, DType::Bool)
    }

    /// Unsigned integer.
    pub const fn is_unsigned(self) -> bool {
        matches!(self, DType::U8 | DType::U16 | DType::U32 | DType::U64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
