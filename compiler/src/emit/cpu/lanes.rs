//! Expressions of vector loops, as vectors or lane by lane.

use std::collections::BTreeSet;

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value, types};
use egret_ir::DType;

use super::function::{Lower, Slot};
use super::half::{arithmetic, is_half};
use super::narrow::{is_clamped_to, is_narrow};
use super::scalar::{float_condition, int_condition, never_nan, signed};
use super::vector::{Group, Inner, VectorLoop, vector_type};
use crate::emit::EmitError;
use crate::kernel::{BinaryOp, Expr, Memory, UnaryOp, Var};

impl Lower<'_, '_> {
    /// The vector of an expression whose type fits the lanes.
    pub fn vector(&mut self, looped: &VectorLoop<'_>, group: &mut Group, e: &Expr) -> Result<Value, EmitError> {
        if let Some(&splat) = looped.splats.get(e) {
            return Ok(splat);
        }
        let dtype = self.dtype(e)?;
        let Some(ty) = vector_type(dtype, looped.lanes) else {
            return Err(EmitError::Backend(format!("a vector of {dtype}")));
        };
        if let Expr::Var(v) = e {
            if let Some(&vector) = group.vectors.get(v) {
                return Ok(vector);
            }
            if let Some([variable]) = group.mutables.get(v).map(Vec::as_slice) {
                return Ok(self.b.use_var(*variable));
            }
        }
        if !looped.varies(e) {
            let value = self.scalar(e)?;
            return Ok(self.splat(ty, dtype, value));
        }
        let fits = |this: &Self, e: &Expr| this.dtype(e).ok().is_some_and(|t| vector_type(t, looped.lanes).is_some());
        match e {
            Expr::Load { memory, index, mask: None } => {
                if let Some(vector) = self.vector_load(looped, group, *memory, index)? {
                    return Ok(vector);
                }
            }
            Expr::Load { memory, index, mask: Some(mask) }
                if (dtype != DType::Bool || looped.lanes == 4) && looped.is_contiguous(index) =>
            {
                return self.masked_load(looped, group, (*memory, index, mask), ty, e);
            }
            Expr::Unary(op, a) if fits(self, a) => {
                let of = self.dtype(a)?;
                arithmetic(of)?;
                if of.is_float() {
                    let x = self.vector(looped, group, a)?;
                    let source = self.b.func.dfg.value_type(x);
                    if let Some(value) = self.float_unary(*op, source, x) {
                        return Ok(value);
                    }
                    return self.each_lane(looped, ty, dtype, |this, lane| {
                        let x = this.b.ins().extractlane(x, lane as u8);
                        this.unary(*op, of, x)
                    });
                }
                let x = self.vector(looped, group, a)?;
                match op {
                    UnaryOp::Not | UnaryOp::Neg => {
                        let value = if *op == UnaryOp::Not { self.b.ins().bnot(x) } else { self.b.ins().ineg(x) };
                        return Ok(if is_narrow(of) { self.wrapped(of, value) } else { value });
                    }
                    UnaryOp::Abs if of == DType::I32 => return Ok(self.b.ins().iabs(x)),
                    _ => {}
                }
            }
            Expr::Binary(op, a, b) => {
                if let Some(value) = self.vector_binary(looped, group, *op, dtype, a, b)? {
                    return Ok(value);
                }
            }
            Expr::Compare(op, a, b) if fits(self, a) => {
                let of = self.dtype(a)?;
                arithmetic(of)?;
                let (x, y) = (self.vector(looped, group, a)?, self.vector(looped, group, b)?);
                return Ok(if of.is_float() {
                    self.b.ins().fcmp(float_condition(*op), x, y)
                } else {
                    // Masks order as their bits do: true is −1, so as unsigned.
                    self.b.ins().icmp(int_condition(*op, signed(of)), x, y)
                });
            }
            Expr::Select(c, a, b) => {
                let mask = self.vector(looped, group, c)?;
                let (x, y) = (self.vector(looped, group, a)?, self.vector(looped, group, b)?);
                return Ok(self.choose(mask, x, y));
            }
            Expr::Cast(to, a) if fits(self, a) => {
                let from = self.dtype(a)?;
                let x = self.vector(looped, group, a)?;
                if from == DType::F32 && is_clamped_to(a, *to) {
                    return Ok(self.clamped_to_int(x));
                }
                if let Some(value) = self.vector_cast(from, *to, ty, x)? {
                    return Ok(value);
                }
            }
            _ => {}
        }
        let lanes = (0..looped.lanes).map(|lane| self.lane(looped, group, e, lane));
        let lanes: Vec<Value> = lanes.collect::<Result<_, _>>()?;
        self.gather(ty, dtype, &lanes)
    }

    /// A load of consecutive elements: one of a vector where all lanes load, else lane by lane.
    fn masked_load(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        (memory, index, mask): (Memory, &Expr, &Expr),
        ty: Type,
        e: &Expr,
    ) -> Result<Value, EmitError> {
        let mask = self.vector(looped, group, mask)?;
        let all = self.b.ins().vall_true(mask);
        let (whole, single, done) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let result = self.b.append_block_param(done, ty);
        self.b.set_cold_block(single);
        self.b.ins().brif(all, whole, &[], single, &[]);

        self.b.switch_to_block(whole);
        let Some(loaded) = self.vector_load(looped, group, memory, index)? else {
            return Err(EmitError::Backend("a load that is not contiguous".into()));
        };
        self.b.ins().jump(done, &[loaded.into()]);

        self.b.switch_to_block(single);
        // what is computed here is known nowhere else
        let known = group.scalars.clone();
        let lanes: Vec<Value> =
            (0..looped.lanes).map(|lane| self.lane(looped, group, e, lane)).collect::<Result<_, _>>()?;
        group.scalars = known;
        let dtype = self.dtype(e)?;
        let gathered = self.gather(ty, dtype, &lanes)?;
        self.b.ins().jump(done, &[gathered.into()]);
        self.b.switch_to_block(done);
        Ok(result)
    }

    fn each_lane(
        &mut self,
        looped: &VectorLoop<'_>,
        ty: Type,
        dtype: DType,
        mut f: impl FnMut(&mut Self, u32) -> Result<Value, EmitError>,
    ) -> Result<Value, EmitError> {
        let lanes: Vec<Value> = (0..looped.lanes).map(|lane| f(self, lane)).collect::<Result<_, _>>()?;
        self.gather(ty, dtype, &lanes)
    }

    /// A vector of scalars.
    fn gather(&mut self, ty: Type, dtype: DType, lanes: &[Value]) -> Result<Value, EmitError> {
        let Some((&first, rest)) = lanes.split_first() else {
            return Err(EmitError::Backend("no lanes".into()));
        };
        let mut vector = self.splat(ty, dtype, first);
        for (lane, &value) in (1u8..).zip(rest) {
            let value = self.lane_bits(ty, dtype, value);
            vector = self.b.ins().insertlane(vector, value, lane);
        }
        Ok(vector)
    }

    fn vector_binary(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        op: BinaryOp,
        dtype: DType,
        a: &Expr,
        b: &Expr,
    ) -> Result<Option<Value>, EmitError> {
        arithmetic(dtype)?;
        if let Some([x, y, z]) = self.contraction(op, a, b) {
            let vx = self.vector(looped, group, x.expr)?;
            let vy = self.vector(looped, group, y.expr)?;
            let vz = self.vector(looped, group, z.expr)?;
            return Ok(Some(self.fused(x.negate, vx, vy, z.negate, vz)));
        }
        let vectorised = match op {
            BinaryOp::Rem | BinaryOp::Pow | BinaryOp::Shl | BinaryOp::Shr => false,
            BinaryOp::Div => dtype.is_float(),
            _ => true,
        };
        if !vectorised {
            return Ok(None);
        }
        let (mut x, mut y) = (self.vector(looped, group, a)?, self.vector(looped, group, b)?);
        if dtype.is_float() {
            return Ok(Some(match op {
                BinaryOp::Max | BinaryOp::Min => {
                    let swap = never_nan(b) && !never_nan(a);
                    if swap {
                        std::mem::swap(&mut x, &mut y);
                    }
                    self.float_extremum(op == BinaryOp::Max, x, y, swap || never_nan(a))
                }
                _ => self.float_arithmetic(op, x, y)?,
            }));
        }
        self.int_vectors(op, dtype, x, y).map(Some)
    }

    /// An operation on vectors of integers or masks.
    pub fn int_vectors(&mut self, op: BinaryOp, dtype: DType, x: Value, y: Value) -> Result<Value, EmitError> {
        let value = self.int_lanes(op, dtype, x, y)?;
        let leaves = matches!(op, BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul) && is_narrow(dtype);
        let lanes = self.b.func.dfg.value_type(value).is_vector();
        Ok(if leaves && lanes { self.wrapped(dtype, value) } else { value })
    }

    fn int_lanes(&mut self, op: BinaryOp, dtype: DType, x: Value, y: Value) -> Result<Value, EmitError> {
        // 64 bits have no instruction
        let words = self.b.func.dfg.value_type(x) == types::I32X4;
        Ok(match (op, dtype) {
            (BinaryOp::Add, _) => self.b.ins().iadd(x, y),
            (BinaryOp::Sub, _) => self.b.ins().isub(x, y),
            (BinaryOp::Mul, _) => self.b.ins().imul(x, y),
            (BinaryOp::And, _) | (BinaryOp::Min, DType::Bool) => self.b.ins().band(x, y),
            (BinaryOp::Or, _) | (BinaryOp::Max, DType::Bool) => self.b.ins().bor(x, y),
            (BinaryOp::Xor, _) => self.b.ins().bxor(x, y),
            (BinaryOp::Max, _) if words && signed(dtype) => self.b.ins().smax(x, y),
            (BinaryOp::Max, _) if words => self.b.ins().umax(x, y),
            (BinaryOp::Min, _) if words && signed(dtype) => self.b.ins().smin(x, y),
            (BinaryOp::Min, _) if words => self.b.ins().umin(x, y),
            (BinaryOp::Max | BinaryOp::Min, _) => {
                let condition = match (op == BinaryOp::Max, signed(dtype)) {
                    (true, true) => IntCC::SignedGreaterThan,
                    (true, false) => IntCC::UnsignedGreaterThan,
                    (false, true) => IntCC::SignedLessThan,
                    (false, false) => IntCC::UnsignedLessThan,
                };
                let first = self.b.ins().icmp(condition, x, y);
                self.b.ins().bitselect(first, x, y)
            }
            _ => {
                return Err(EmitError::Backend(format!("vectors {} of {dtype}", op.name())));
            }
        })
    }

    /// `None` where lanes are converted one by one.
    fn vector_cast(&mut self, from: DType, to: DType, ty: Type, x: Value) -> Result<Option<Value>, EmitError> {
        let lane = |dtype: DType| if is_narrow(dtype) { DType::I32 } else { dtype };
        let integer = matches!(lane(from), DType::I32 | DType::U32);
        Ok(match to {
            _ if !is_narrow(to) => self.lane_cast(lane(from), to, ty, x),
            _ if from == to => Some(x),
            _ if integer => Some(self.wrapped(to, x)),
            _ if from == DType::F32 => Some(self.float_to_narrow(to, x)?),
            _ if from == DType::Bool => self.lane_cast(from, DType::I32, ty, x),
            _ => None,
        })
    }

    fn lane_cast(&mut self, from: DType, to: DType, ty: Type, x: Value) -> Option<Value> {
        Some(match (from, to) {
            _ if from == to => x,
            (_, DType::F32) if is_half(from) => self.half_to_float(from, x),
            (DType::F32, _) if is_half(to) => self.float_to_half(to, x),
            _ if is_half(from) || is_half(to) => return None,
            (DType::I32, DType::U32) | (DType::U32, DType::I32) => x,
            (DType::I64, DType::U64) | (DType::U64, DType::I64) => x,
            (DType::F32, DType::I32) => self.b.ins().fcvt_to_sint_sat(ty, x),
            (DType::I32, DType::F32) => self.b.ins().fcvt_from_sint(ty, x),
            (DType::Bool, DType::F32 | DType::F64) => {
                let one = self.float(ty, 1.0);
                let bits = self.b.ins().bitcast(ty, MemFlagsData::new(), x);
                self.b.ins().band(bits, one)
            }
            (DType::Bool, _) => self.b.ins().ineg(x),
            (DType::F32 | DType::F64, DType::Bool) => {
                let source = self.b.func.dfg.value_type(x);
                let zero = self.float(source, 0.0);
                self.b.ins().fcmp(FloatCC::NotEqual, x, zero)
            }
            (_, DType::Bool) => {
                let zero = self.b.ins().iconst(ty.lane_type(), 0);
                let zeros = self.b.ins().splat(ty, zero);
                self.b.ins().icmp(IntCC::NotEqual, x, zeros)
            }
            _ => return None,
        })
    }

    /// The scalar of an expression in one lane.
    pub fn lane(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        e: &Expr,
        lane: u32,
    ) -> Result<Value, EmitError> {
        let mut mentioned = BTreeSet::new();
        e.any(&mut |e| {
            if let Expr::Var(v) = e
                && looped.inner.get(v).is_some_and(|kind| !matches!(kind, Inner::Uniform))
            {
                mentioned.insert(*v);
            }
            false
        });
        let mut values = Vec::new();
        for var in mentioned {
            values.push((var, self.lane_variable(looped, group, var, lane)?));
        }
        for (var, value) in values {
            self.slots[var.0 as usize] = Slot::Value(value);
        }
        self.scalar(e)
    }

    /// The scalar of a variable of the body in one lane.
    pub fn lane_variable(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        var: Var,
        lane: u32,
    ) -> Result<Value, EmitError> {
        if let Some(&value) = group.scalars.get(&(var, lane)) {
            return Ok(value);
        }
        let dtype = self.dtype(&Expr::Var(var))?;
        let value = match (looped.inner.get(&var), group.vectors.get(&var)) {
            (Some(Inner::Mutable), _) => {
                // its value changes: nothing is kept
                let missing = || EmitError::Backend(format!("{var} has no lanes"));
                let variables = group.mutables.get(&var).ok_or_else(missing)?;
                return match variables.as_slice() {
                    [vector] if vector_type(dtype, looped.lanes).is_some() => {
                        let vector = self.b.use_var(*vector);
                        Ok(self.lane_of(dtype, vector, lane))
                    }
                    scalars => {
                        let scalar = *scalars.get(lane as usize).ok_or_else(missing)?;
                        Ok(self.b.use_var(scalar))
                    }
                };
            }
            (Some(Inner::Let(_)), Some(&vector)) => self.lane_of(dtype, vector, lane),
            (Some(Inner::Let(definition)), None) => self.lane(looped, group, definition, lane)?,
            _ => self.b.ins().iadd_imm_s(group.counter, i64::from(group.copy * looped.lanes + lane)),
        };
        group.scalars.insert((var, lane), value);
        Ok(value)
    }
}
