//! Scalar expressions.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value, types};
use egret_ir::DType;

use super::Symbol;
use super::function::{Lower, clif_type, flags};
use super::half::{arithmetic, is_half};
use crate::emit::EmitError;
use crate::kernel::{BinaryOp, CompareOp, Expr, Literal, UnaryOp};

/// The float condition of a comparison: false with NaN, but for `Ne`.
pub(super) fn float_condition(op: CompareOp) -> FloatCC {
    match op {
        CompareOp::Eq => FloatCC::Equal,
        CompareOp::Ne => FloatCC::NotEqual,
        CompareOp::Lt => FloatCC::LessThan,
        CompareOp::Le => FloatCC::LessThanOrEqual,
        CompareOp::Gt => FloatCC::GreaterThan,
        CompareOp::Ge => FloatCC::GreaterThanOrEqual,
    }
}

/// The integer condition of a comparison.
pub(super) fn int_condition(op: CompareOp, signed: bool) -> IntCC {
    match (op, signed) {
        (CompareOp::Eq, _) => IntCC::Equal,
        (CompareOp::Ne, _) => IntCC::NotEqual,
        (CompareOp::Lt, true) => IntCC::SignedLessThan,
        (CompareOp::Le, true) => IntCC::SignedLessThanOrEqual,
        (CompareOp::Gt, true) => IntCC::SignedGreaterThan,
        (CompareOp::Ge, true) => IntCC::SignedGreaterThanOrEqual,
        (CompareOp::Lt, false) => IntCC::UnsignedLessThan,
        (CompareOp::Le, false) => IntCC::UnsignedLessThanOrEqual,
        (CompareOp::Gt, false) => IntCC::UnsignedGreaterThan,
        (CompareOp::Ge, false) => IntCC::UnsignedGreaterThanOrEqual,
    }
}

/// Whether integers of the type compare, divide and widen as signed.
pub(super) fn signed(dtype: DType) -> bool {
    dtype.is_int() && !dtype.is_unsigned()
}

/// Whether a float expression is a constant other than NaN.
pub(super) fn never_nan(e: &Expr) -> bool {
    matches!(e, Expr::Literal(Literal::Float(_, bits)) if !f64::from_bits(*bits).is_nan())
}

impl Lower<'_, '_> {
    /// The value of an expression.
    pub fn scalar(&mut self, e: &Expr) -> Result<Value, EmitError> {
        match e {
            Expr::Var(v) => self.get(*v),
            Expr::Literal(l) => self.literal(*l),
            Expr::Dim(d) => self.dim(*d),
            Expr::Load { memory, index, mask } => {
                let ty = clif_type(self.element(*memory)?);
                let mut index = self.scalar(index)?;
                let Some(mask) = mask else {
                    let address = self.address(*memory, index)?;
                    return Ok(self.b.ins().load(ty, flags(), address, 0));
                };
                // Element 0 may always be read.
                let mask = self.scalar(mask)?;
                let first = self.b.ins().iconst(types::I64, 0);
                index = self.b.ins().select(mask, index, first);
                let address = self.address(*memory, index)?;
                let value = self.b.ins().load(ty, flags(), address, 0);
                let zero = self.zero(ty);
                Ok(self.b.ins().select(mask, value, zero))
            }
            Expr::Unary(op, a) => {
                let dtype = self.dtype(a)?;
                let value = self.scalar(a)?;
                self.unary(*op, dtype, value)
            }
            Expr::Binary(op, a, b) => self.scalar_binary(*op, a, b),
            Expr::Compare(op, a, b) => {
                let dtype = self.dtype(a)?;
                arithmetic(dtype)?;
                let (a, b) = (self.scalar(a)?, self.scalar(b)?);
                Ok(if dtype.is_float() {
                    self.b.ins().fcmp(float_condition(*op), a, b)
                } else {
                    self.b.ins().icmp(int_condition(*op, signed(dtype)), a, b)
                })
            }
            Expr::Select(c, a, b) => {
                let (c, a, b) = (self.scalar(c)?, self.scalar(a)?, self.scalar(b)?);
                Ok(self.b.ins().select(c, a, b))
            }
            Expr::Cast(to, a) => {
                let from = self.dtype(a)?;
                let value = self.scalar(a)?;
                Ok(self.cast(from, *to, value))
            }
        }
    }

    fn literal(&mut self, literal: Literal) -> Result<Value, EmitError> {
        let ty = clif_type(literal.dtype());
        if matches!(literal, Literal::Float(..)) {
            arithmetic(literal.dtype())?;
        }
        Ok(match literal {
            Literal::Bool(v) => self.b.ins().iconst(ty, i64::from(v)),
            Literal::Int(_, v) => {
                let bits = ty.bits();
                let v = if bits == 64 { v } else { v & ((1 << bits) - 1) };
                self.b.ins().iconst(ty, v)
            }
            Literal::Float(DType::F32, bits) => self.b.ins().f32const(f64::from_bits(bits) as f32),
            Literal::Float(_, bits) => self.b.ins().f64const(f64::from_bits(bits)),
        })
    }

    /// Zero of a scalar type.
    fn zero(&mut self, ty: Type) -> Value {
        match ty {
            types::F32 => self.b.ins().f32const(0.0),
            types::F64 => self.b.ins().f64const(0.0),
            _ => self.b.ins().iconst(ty, 0),
        }
    }

    /// A float constant of a scalar or vector type.
    pub fn float(&mut self, ty: Type, value: f64) -> Value {
        let scalar = match ty.lane_type() {
            types::F32 => self.b.ins().f32const(value as f32),
            _ => self.b.ins().f64const(value),
        };
        if ty.is_vector() { self.b.ins().splat(ty, scalar) } else { scalar }
    }

    /// A call of a C function on scalars, named with the suffix of its type.
    fn libm(&mut self, name: &str, ty: Type, arguments: &[Value]) -> Value {
        let suffix = if ty == types::F32 { "f" } else { "" };
        self.function([name, suffix].concat(), ty, arguments)
    }

    /// A call of a function whose arguments and result are of one type.
    fn function(&mut self, name: String, ty: Type, arguments: &[Value]) -> Value {
        let parameters = vec![ty; arguments.len()];
        let callee = self.callee(Symbol::Scalar(name), &parameters, Some(ty));
        let call = self.b.ins().call(callee, arguments);
        self.b.inst_results(call)[0]
    }

    /// An integer power, computed in 64 bits: a product modulo 2⁶⁴ is one modulo every narrower width.
    fn integer_power(&mut self, dtype: DType, x: Value, y: Value) -> Value {
        let wide = if signed(dtype) { DType::I64 } else { DType::U64 };
        let (x, y) = (self.cast(dtype, wide, x), self.cast(dtype, wide, y));
        let name = if signed(dtype) { "pow_i64" } else { "pow_u64" };
        let power = self.function(name.into(), types::I64, &[x, y]);
        self.cast(wide, dtype, power)
    }

    /// A function of one argument.
    pub fn unary(&mut self, op: UnaryOp, dtype: DType, x: Value) -> Result<Value, EmitError> {
        arithmetic(dtype)?;
        let ty = clif_type(dtype);
        if dtype == DType::Bool {
            return Ok(self.b.ins().bxor_imm_s(x, 1));
        }
        if !dtype.is_float() {
            return Ok(match op {
                UnaryOp::Neg => self.b.ins().ineg(x),
                UnaryOp::Not => self.b.ins().bnot(x),
                UnaryOp::Abs if signed(dtype) => {
                    let negative = self.b.ins().icmp_imm_s(IntCC::SignedLessThan, x, 0);
                    let negated = self.b.ins().ineg(x);
                    self.b.ins().select(negative, negated, x)
                }
                UnaryOp::Abs => x,
                _ => {
                    let zero = self.b.ins().iconst(ty, 0);
                    let positive = self.b.ins().icmp(int_condition(CompareOp::Gt, signed(dtype)), x, zero);
                    let one = self.b.ins().iconst(ty, 1);
                    let not_positive =
                        if signed(dtype) { self.b.ins().sshr_imm_s(x, i64::from(ty.bits()) - 1) } else { zero };
                    self.b.ins().select(positive, one, not_positive)
                }
            });
        }
        if let Some(value) = self.float_unary(op, ty, x) {
            return Ok(value);
        }
        Ok(match op {
            UnaryOp::Sigmoid => {
                let negated = self.b.ins().fneg(x);
                let exp = self.libm("exp", ty, &[negated]);
                let one = self.float(ty, 1.0);
                let sum = self.b.ins().fadd(one, exp);
                self.b.ins().fdiv(one, sum)
            }
            // The names of the table are those of C.
            _ => self.libm(op.name(), ty, &[x]),
        })
    }

    /// The functions of floats that are instructions, on scalars and vectors alike.
    pub fn float_unary(&mut self, op: UnaryOp, ty: Type, x: Value) -> Option<Value> {
        Some(match op {
            UnaryOp::Neg => self.b.ins().fneg(x),
            UnaryOp::Abs => self.b.ins().fabs(x),
            UnaryOp::Sqrt => self.b.ins().sqrt(x),
            UnaryOp::Floor => self.b.ins().floor(x),
            UnaryOp::Ceil => self.b.ins().ceil(x),
            UnaryOp::Trunc => self.b.ins().trunc(x),
            UnaryOp::Round => self.b.ins().nearest(x),
            UnaryOp::Recip => {
                let one = self.float(ty, 1.0);
                self.b.ins().fdiv(one, x)
            }
            UnaryOp::Rsqrt => {
                let one = self.float(ty, 1.0);
                let root = self.b.ins().sqrt(x);
                self.b.ins().fdiv(one, root)
            }
            UnaryOp::IsNan => self.b.ins().fcmp(FloatCC::Unordered, x, x),
            UnaryOp::Sign => {
                let (zero, one, minus) = (self.float(ty, 0.0), self.float(ty, 1.0), self.float(ty, -1.0));
                let negative = self.b.ins().fcmp(FloatCC::LessThan, x, zero);
                let positive = self.b.ins().fcmp(FloatCC::LessThan, zero, x);
                let value = self.choose(negative, minus, x);
                self.choose(positive, one, value)
            }
            _ => return None,
        })
    }

    /// `mask ? a : b` of floats, scalar or vector; the mask is a comparison's result.
    pub fn choose(&mut self, mask: Value, a: Value, b: Value) -> Value {
        let ty = self.b.func.dfg.value_type(a);
        if !ty.is_vector() {
            return self.b.ins().select(mask, a, b);
        }
        let mask = if self.b.func.dfg.value_type(mask) == ty {
            mask
        } else {
            self.b.ins().bitcast(ty, MemFlagsData::new(), mask)
        };
        self.b.ins().bitselect(mask, a, b)
    }

    /// Maximum or minimum of floats. One instruction takes the second operand where either is NaN; unless the first
    /// never is, one more comparison lets its NaN through.
    pub fn float_extremum(&mut self, max: bool, x: Value, y: Value, x_never_nan: bool) -> Value {
        let order =
            if max { self.b.ins().fcmp(FloatCC::LessThan, y, x) } else { self.b.ins().fcmp(FloatCC::LessThan, x, y) };
        let extremum = self.choose(order, x, y);
        if x_never_nan {
            return extremum;
        }
        let nan = self.b.ins().fcmp(FloatCC::Unordered, x, x);
        self.choose(nan, x, extremum)
    }

    fn scalar_binary(&mut self, op: BinaryOp, a: &Expr, b: &Expr) -> Result<Value, EmitError> {
        let dtype = self.dtype(a)?;
        arithmetic(dtype)?;
        if let Some([x, y, z]) = self.contraction(op, a, b) {
            let (vx, vy, vz) = (self.scalar(x.expr)?, self.scalar(y.expr)?, self.scalar(z.expr)?);
            return Ok(self.fused(x.negate, vx, vy, z.negate, vz));
        }
        let (divisor, swap) = (b.as_int(), never_nan(b) && !never_nan(a));
        let known = never_nan(a) || swap;
        let (mut x, mut y) = (self.scalar(a)?, self.scalar(b)?);
        if dtype.is_float() {
            return Ok(match op {
                BinaryOp::Max | BinaryOp::Min => {
                    if swap {
                        std::mem::swap(&mut x, &mut y);
                    }
                    self.float_extremum(op == BinaryOp::Max, x, y, known)
                }
                BinaryOp::Rem => self.libm("fmod", clif_type(dtype), &[x, y]),
                BinaryOp::Pow => self.libm("pow", clif_type(dtype), &[x, y]),
                _ => self.float_arithmetic(op, x, y)?,
            });
        }
        Ok(match op {
            BinaryOp::Div | BinaryOp::Rem => self.divide(op, dtype, x, y, divisor)?,
            BinaryOp::Max | BinaryOp::Min => {
                let comparison = if op == BinaryOp::Max { CompareOp::Gt } else { CompareOp::Lt };
                let first = self.b.ins().icmp(int_condition(comparison, signed(dtype)), x, y);
                self.b.ins().select(first, x, y)
            }
            BinaryOp::Add => self.b.ins().iadd(x, y),
            BinaryOp::Sub => self.b.ins().isub(x, y),
            BinaryOp::Mul => self.b.ins().imul(x, y),
            BinaryOp::And => self.b.ins().band(x, y),
            BinaryOp::Or => self.b.ins().bor(x, y),
            BinaryOp::Xor => self.b.ins().bxor(x, y),
            BinaryOp::Shl => self.b.ins().ishl(x, y),
            BinaryOp::Shr if signed(dtype) => self.b.ins().sshr(x, y),
            BinaryOp::Shr => self.b.ins().ushr(x, y),
            BinaryOp::Pow => self.integer_power(dtype, x, y),
        })
    }

    /// Sum, difference, product, quotient of floats, scalar or vector.
    pub fn float_arithmetic(&mut self, op: BinaryOp, x: Value, y: Value) -> Result<Value, EmitError> {
        Ok(match op {
            BinaryOp::Add => self.b.ins().fadd(x, y),
            BinaryOp::Sub => self.b.ins().fsub(x, y),
            BinaryOp::Mul => self.b.ins().fmul(x, y),
            BinaryOp::Div => self.b.ins().fdiv(x, y),
            _ => return Err(EmitError::Malformed(format!("{} of floats", op.name()))),
        })
    }

    /// Quotient or remainder of integers that never traps.
    fn divide(
        &mut self,
        op: BinaryOp,
        dtype: DType,
        x: Value,
        y: Value,
        divisor: Option<i64>,
    ) -> Result<Value, EmitError> {
        let ty = clif_type(dtype);
        let quotient = op == BinaryOp::Div;
        let zero = self.b.ins().iconst(ty, 0);
        if !signed(dtype) {
            let safe = match divisor {
                Some(d) if d != 0 => y,
                _ => {
                    let one = self.b.ins().iconst(ty, 1);
                    self.b.ins().umax(y, one)
                }
            };
            let value = if quotient { self.b.ins().udiv(x, safe) } else { self.b.ins().urem(x, safe) };
            if divisor.is_some_and(|d| d != 0) {
                return Ok(value);
            }
            let by_zero = self.b.ins().icmp_imm_s(IntCC::Equal, y, 0);
            return Ok(self.b.ins().select(by_zero, zero, value));
        }
        if divisor.is_some_and(|d| d > 0) {
            return Ok(if quotient { self.b.ins().sdiv(x, y) } else { self.b.ins().srem(x, y) });
        }
        // Divisors 0 and −1 are replaced by 1; by −1 the quotient is the negation, which wraps.
        let next = self.b.ins().iadd_imm_s(y, 1);
        let special = self.b.ins().icmp_imm_s(IntCC::UnsignedLessThanOrEqual, next, 1);
        let one = self.b.ins().iconst(ty, 1);
        let safe = self.b.ins().select(special, one, y);
        let value = if quotient { self.b.ins().sdiv(x, safe) } else { self.b.ins().srem(x, safe) };
        let by_zero = self.b.ins().icmp_imm_s(IntCC::Equal, y, 0);
        let instead = if quotient {
            let negated = self.b.ins().ineg(x);
            self.b.ins().select(by_zero, zero, negated)
        } else {
            zero
        };
        Ok(self.b.ins().select(special, instead, value))
    }

    /// Conversion of scalars.
    fn cast(&mut self, from: DType, to: DType, x: Value) -> Value {
        let (source, target) = (clif_type(from), clif_type(to));
        if from == to {
            return x;
        }
        if is_half(from) {
            let bits = self.b.ins().uextend(types::I32, x);
            let value = self.half_to_float(from, bits);
            return self.cast(DType::F32, to, value);
        }
        if is_half(to) {
            let value = self.cast(from, DType::F32, x);
            let bits = self.float_to_half(to, value);
            return self.b.ins().ireduce(types::I16, bits);
        }
        if to == DType::Bool {
            let zero = self.zero(source);
            return if from.is_float() {
                self.b.ins().fcmp(FloatCC::NotEqual, x, zero)
            } else {
                self.b.ins().icmp(IntCC::NotEqual, x, zero)
            };
        }
        match (from.is_float(), to.is_float()) {
            (true, true) if source.bits() < target.bits() => self.b.ins().fpromote(target, x),
            (true, true) => self.b.ins().fdemote(target, x),
            (false, true) => {
                let wide = if source.bits() >= 32 {
                    x
                } else if signed(from) {
                    self.b.ins().sextend(types::I32, x)
                } else {
                    self.b.ins().uextend(types::I32, x)
                };
                if signed(from) || source.bits() < 32 {
                    self.b.ins().fcvt_from_sint(target, wide)
                } else {
                    self.b.ins().fcvt_from_uint(target, wide)
                }
            }
            (true, false) if target.bits() >= 32 => {
                if signed(to) {
                    self.b.ins().fcvt_to_sint_sat(target, x)
                } else {
                    self.b.ins().fcvt_to_uint_sat(target, x)
                }
            }
            (true, false) => {
                let wide = self.b.ins().fcvt_to_sint_sat(types::I32, x);
                let bits = target.bits();
                let (least, greatest) =
                    if signed(to) { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
                let least = self.b.ins().iconst(types::I32, least & 0xffff_ffff);
                let greatest = self.b.ins().iconst(types::I32, greatest);
                let wide = self.b.ins().smax(wide, least);
                let wide = self.b.ins().smin(wide, greatest);
                self.b.ins().ireduce(target, wide)
            }
            (false, false) if source.bits() > target.bits() => self.b.ins().ireduce(target, x),
            (false, false) if source.bits() == target.bits() => x,
            (false, false) if signed(from) => self.b.ins().sextend(target, x),
            (false, false) => self.b.ins().uextend(target, x),
        }
    }

    /// Whether `a op b` is a fused multiply-add `±x·y ± z`, contracted unless the kernel is exact.
    pub fn contraction<'e>(&self, op: BinaryOp, a: &'e Expr, b: &'e Expr) -> Option<[Operand<'e>; 3]> {
        let plain = |expr| Operand { expr, negate: false };
        let float = matches!(a.dtype(self.kernel), Some(DType::F32 | DType::F64));
        if !self.fma || !float {
            return None;
        }
        match (op, a, b) {
            (BinaryOp::Add, Expr::Binary(BinaryOp::Mul, x, y), z)
            | (BinaryOp::Add, z, Expr::Binary(BinaryOp::Mul, x, y)) => Some([plain(x), plain(y), plain(z)]),
            (BinaryOp::Sub, Expr::Binary(BinaryOp::Mul, x, y), z) => {
                Some([plain(x), plain(y), Operand { expr: z, negate: true }])
            }
            (BinaryOp::Sub, z, Expr::Binary(BinaryOp::Mul, x, y)) => {
                Some([Operand { expr: x, negate: true }, plain(y), plain(z)])
            }
            _ => None,
        }
    }

    /// `±x·y ± z`.
    pub fn fused(&mut self, negate_x: bool, x: Value, y: Value, negate_z: bool, z: Value) -> Value {
        let x = if negate_x { self.b.ins().fneg(x) } else { x };
        let z = if negate_z { self.b.ins().fneg(z) } else { z };
        self.b.ins().fma(x, y, z)
    }
}

/// An operand of a fused multiply-add.
pub(super) struct Operand<'e> {
    pub expr: &'e Expr,
    pub negate: bool,
}
