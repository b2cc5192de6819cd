//! Halves in registers: `f16` and `bf16` are storage, and convert to and from `f32` by integer arithmetic.
//!
//! The bits of a half are an `i16` as a scalar and the low 16 bits of an `i32` lane in a vector of four. The forms work
//! on both, and on every target: Cranelift has no instruction for either type.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value, types};
use egret_ir::DType;

use super::function::Lower;
use crate::emit::EmitError;

/// Whether a type is stored as a half.
pub(super) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// Halves are loaded, stored and converted; nothing is computed with them.
pub(super) fn arithmetic(dtype: DType) -> Result<(), EmitError> {
    if is_half(dtype) { Err(EmitError::UnsupportedType { backend: "CPU", dtype }) } else { Ok(()) }
}

impl Lower<'_, '_> {
    /// An `i32` constant in every lane of a type.
    fn word(&mut self, ty: Type, bits: u32) -> Value {
        let value = self.b.ins().iconst(types::I32, i64::from(bits));
        if ty.is_vector() { self.b.ins().splat(ty, value) } else { value }
    }

    fn and_word(&mut self, x: Value, bits: u32) -> Value {
        let mask = self.word(self.b.func.dfg.value_type(x), bits);
        self.b.ins().band(x, mask)
    }

    fn shift_left(&mut self, x: Value, by: i64) -> Value {
        let by = self.b.ins().iconst(types::I32, by);
        self.b.ins().ishl(x, by)
    }

    fn shift_right(&mut self, x: Value, by: i64) -> Value {
        let by = self.b.ins().iconst(types::I32, by);
        self.b.ins().ushr(x, by)
    }

    fn as_type(&mut self, ty: Type, x: Value) -> Value {
        self.b.ins().bitcast(ty, MemFlagsData::new(), x)
    }

    /// The `f32` of the bits of halves, which are `i32`.
    pub fn half_to_float(&mut self, dtype: DType, bits: Value) -> Value {
        let int = self.b.func.dfg.value_type(bits);
        let float = if int.is_vector() { types::F32X4 } else { types::F32 };
        if dtype == DType::BF16 {
            let wide = self.shift_left(bits, 16);
            return self.as_type(float, wide);
        }
        // exponent and mantissa in their places, times 2^(127 − 15): subnormals are normalised by the product
        let magnitude = self.and_word(bits, 0x7fff);
        let magnitude = self.shift_left(magnitude, 13);
        let magnitude = self.as_type(float, magnitude);
        let scale = self.float(float, 2f64.powi(112));
        let value = self.b.ins().fmul(magnitude, scale);
        // what comes out above the greatest half was an infinity or NaN
        let limit = self.float(float, 65_536.0);
        let special = self.b.ins().fcmp(FloatCC::GreaterThanOrEqual, value, limit);
        let (ones, zero) = (self.word(int, 0x7f80_0000), self.word(int, 0));
        let exponent = self.choose(special, ones, zero);
        let sign = self.and_word(bits, 0x8000);
        let sign = self.shift_left(sign, 16);
        let value = self.as_type(int, value);
        let value = self.b.ins().bor(value, exponent);
        let value = self.b.ins().bor(value, sign);
        self.as_type(float, value)
    }

    /// The bits of the halves nearest to `f32` values, ties to even, as `i32`.
    pub fn float_to_half(&mut self, dtype: DType, x: Value) -> Value {
        let float = self.b.func.dfg.value_type(x);
        let int = if float.is_vector() { types::I32X4 } else { types::I32 };
        let bits = self.as_type(int, x);
        let nan = self.b.ins().fcmp(FloatCC::Unordered, x, x);
        if dtype == DType::BF16 {
            let high = self.shift_right(bits, 16);
            let odd = self.and_word(high, 1);
            let below_half = self.word(int, 0x7fff);
            let rounded = self.b.ins().iadd(bits, below_half);
            let rounded = self.b.ins().iadd(rounded, odd);
            let rounded = self.shift_right(rounded, 16);
            let quiet = self.word(int, 0x40);
            let quiet = self.b.ins().bor(high, quiet);
            return self.choose(nan, quiet, rounded);
        }
        let sign = self.shift_right(bits, 16);
        let sign = self.and_word(sign, 0x8000);
        let magnitude = self.and_word(bits, 0x7fff_ffff);
        // normal: the bias changes from 127 to 15; a carry out of the mantissa raises the exponent, to infinity at last
        let top = self.shift_right(magnitude, 13);
        let odd = self.and_word(top, 1);
        let rebias = self.word(int, 0xfffu32.wrapping_sub(112 << 23));
        let normal = self.b.ins().iadd(magnitude, rebias);
        let normal = self.b.ins().iadd(normal, odd);
        let normal = self.shift_right(normal, 13);
        // subnormal: the sum with ½ rounds at 2^-24
        let half = self.float(float, 0.5);
        let absolute = self.as_type(float, magnitude);
        let sum = self.b.ins().fadd(absolute, half);
        let sum = self.as_type(int, sum);
        let half = self.word(int, 0x3f00_0000);
        let subnormal = self.b.ins().isub(sum, half);
        let least_normal = self.word(int, 0x3880_0000);
        let small = self.b.ins().icmp(IntCC::SignedLessThan, magnitude, least_normal);
        let finite = self.choose(small, subnormal, normal);
        let infinity = self.word(int, 0x7c00);
        let payload = self.and_word(top, 0x3ff);
        let quiet = self.word(int, 0x7e00);
        let quiet = self.b.ins().bor(payload, quiet);
        let special = self.choose(nan, quiet, infinity);
        let beyond = self.word(int, 0x4780_0000);
        let large = self.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, magnitude, beyond);
        let value = self.choose(large, special, finite);
        self.b.ins().bor(value, sign)
    }
}
