//! Integers of 8 and 16 bits in vectors of four: each is the `i32` of its value, so that comparisons, extrema and conversions are
//! those of `i32`; sums, differences and products are wrapped to the type's range.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use egret_ir::DType;

use super::function::{Lower, flags};
use super::scalar::signed;
use super::vector::same_bytes;
use crate::emit::EmitError;
use crate::kernel::{BinaryOp, Expr, Literal};

/// Whether a type is an integer of less than 32 bits.
pub(super) fn is_narrow(dtype: DType) -> bool {
    dtype.is_int() && dtype.size() < 4
}

/// Whether a clamp by constants keeps an expression of `f32` within an integer type of at most 32 bits; NaN passes through it.
pub(super) fn is_clamped_to(e: &Expr, dtype: DType) -> bool {
    let bits = 8 * dtype.size() as i32;
    let (least, greatest) = match dtype {
        // the greatest `f32` below 2³¹
        DType::I32 => (-2f64.powi(31), 2f64.powi(31) - 128.0),
        _ if !is_narrow(dtype) => return false,
        _ if signed(dtype) => (-2f64.powi(bits - 1), 2f64.powi(bits - 1) - 1.0),
        _ => (0.0, 2f64.powi(bits) - 1.0),
    };
    let (low, high) = clamp(e);
    low >= least && high <= greatest
}

/// The interval that outer extrema with constants leave.
fn clamp(e: &Expr) -> (f64, f64) {
    let Expr::Binary(op @ (BinaryOp::Max | BinaryOp::Min), a, b) = e else {
        return (f64::NEG_INFINITY, f64::INFINITY);
    };
    let number = |e: &Expr| match e {
        Expr::Literal(Literal::Float(_, bits)) => Some(f64::from_bits(*bits)),
        _ => None,
    };
    let (bound, (low, high)) = match (number(a), number(b)) {
        (Some(bound), _) => (bound, clamp(b)),
        (None, Some(bound)) => (bound, clamp(a)),
        (None, None) => return (f64::NEG_INFINITY, f64::INFINITY),
    };
    if *op == BinaryOp::Max { (low.max(bound), high.max(bound)) } else { (low.min(bound), high.min(bound)) }
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

    /// The integers of `f32` lanes that lie in the type's range, towards zero; NaN is zero.
    pub fn clamped_to_int(&mut self, x: Value) -> Value {
        if !self.x86 {
            return self.b.ins().fcvt_to_sint_sat(types::I32X4, x);
        }
        let number = self.b.ins().fcmp(FloatCC::Equal, x, x);
        let bits = self.b.ins().bitcast(types::I32X4, same_bytes(), x);
        let bits = self.b.ins().band(bits, number);
        let x = self.b.ins().bitcast(types::F32X4, same_bytes(), bits);
        self.b.ins().x86_cvtt2dq(types::I32X4, x)
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
