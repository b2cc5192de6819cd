//! Integers of 8 and 16 bits in vectors of four: each is the `i32` of its value, so that comparisons, extrema and conversions are
//! those of `i32`; sums, differences and products are wrapped to the type's range.

use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use egret_ir::DType;

use super::function::{Lower, flags};
use super::scalar::signed;
use super::vector::same_bytes;
use crate::emit::EmitError;
use crate::kernel::BinaryOp;

/// Whether a type is an integer of less than 32 bits.
pub(super) fn is_narrow(dtype: DType) -> bool {
    dtype.is_int() && dtype.size() < 4
}

/// The type of a scalar.
pub(super) fn scalar_type(dtype: DType) -> Type {
    if dtype.size() == 1 { types::I8 } else { types::I16 }
}

impl Lower<'_, '_> {
    /// Four consecutive elements.
    pub fn load_narrow(&mut self, dtype: DType, address: Value, offset: i32) -> Value {
        let words = if dtype.size() == 1 {
            let packed = self.b.ins().load(types::I32, flags(), address, offset);
            let bytes = self.b.ins().scalar_to_vector(types::I32X4, packed);
            let bytes = self.b.ins().bitcast(types::I8X16, same_bytes(), bytes);
            self.widened(dtype, bytes)
        } else {
            let packed = self.b.ins().load(types::I64, flags(), address, offset);
            let words = self.b.ins().scalar_to_vector(types::I64X2, packed);
            self.b.ins().bitcast(types::I16X8, same_bytes(), words)
        };
        self.widened(dtype, words)
    }

    fn widened(&mut self, dtype: DType, x: Value) -> Value {
        if signed(dtype) { self.b.ins().swiden_low(x) } else { self.b.ins().uwiden_low(x) }
    }

    /// Four lanes as the scalar of their elements side by side. Lanes are in range, so that nothing saturates.
    pub fn pack_narrow(&mut self, dtype: DType, lanes: Value) -> Value {
        let words = self.narrowed(dtype, lanes);
        if dtype.size() == 1 {
            let bytes = self.narrowed(dtype, words);
            let packed = self.b.ins().bitcast(types::I32X4, same_bytes(), bytes);
            return self.b.ins().extractlane(packed, 0);
        }
        let packed = self.b.ins().bitcast(types::I64X2, same_bytes(), words);
        self.b.ins().extractlane(packed, 0)
    }

    fn narrowed(&mut self, dtype: DType, x: Value) -> Value {
        if signed(dtype) { self.b.ins().snarrow(x, x) } else { self.b.ins().unarrow(x, x) }
    }

    /// The low bits of `i32` lanes as a value of the type.
    pub fn wrapped(&mut self, dtype: DType, lanes: Value) -> Value {
        let bits = 8 * dtype.size() as i64;
        let by = self.b.ins().iconst(types::I32, 32 - bits);
        let high = self.b.ins().ishl(lanes, by);
        if signed(dtype) { self.b.ins().sshr(high, by) } else { self.b.ins().ushr(high, by) }
    }

    /// The nearest values of the type to `f32` lanes, towards zero; NaN is zero.
    pub fn float_to_narrow(&mut self, dtype: DType, x: Value) -> Result<Value, EmitError> {
        let bits = 8 * dtype.size() as u32;
        let (least, greatest) = match signed(dtype) {
            true => (-(1i64 << (bits - 1)), (1 << (bits - 1)) - 1),
            false => (0, (1 << bits) - 1),
        };
        let lanes = self.b.ins().fcvt_to_sint_sat(types::I32X4, x);
        let mut bound = |value: i64| {
            let value = self.b.ins().iconst(types::I32, value & 0xffff_ffff);
            self.b.ins().splat(types::I32X4, value)
        };
        let (least, greatest) = (bound(least), bound(greatest));
        let lanes = self.int_vectors(BinaryOp::Max, DType::I32, lanes, least)?;
        self.int_vectors(BinaryOp::Min, DType::I32, lanes, greatest)
    }
}
