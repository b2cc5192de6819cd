//! Vector loops: 128-bit lanes, several accumulators, a scalar remainder.
//!
//! A loop has four lanes (32-bit data) or two (64-bit data). An expression whose type fits the lanes is one vector;
//! any other (an index, a narrow integer, a call of the C library) is computed lane by lane as scalars, so that every
//! straight-line loop has a vector form. Loops that hold control flow run as scalars.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use cranelift_frontend::Variable;
use egret_ir::DType;

use super::function::{Lower, Slot, flags};
use super::scalar::{float_condition, int_condition, never_nan, signed};
use crate::emit::EmitError;
use crate::kernel::{Affine, BinaryOp, Expr, Literal, Memory, ReduceOp, Stmt, UnaryOp, Var};

/// Vectors that a reduction's main loop takes at a time, each with its own accumulator.
const REDUCTION_COPIES: u32 = 4;
/// Vectors that any other main loop takes at a time.
const MAP_COPIES: u32 = 2;
/// Steps above which a body is not copied.
const COPY_STEPS: usize = 48;

/// What is known of a vector loop while its body is emitted.
struct VectorLoop<'s> {
    var: Var,
    lanes: u32,
    /// Memory that the body stores to: loads from it stay where they are.
    written: BTreeSet<Memory>,
    /// Variables that differ from iteration to iteration, with their definitions (the loop variable has none).
    varying: BTreeMap<Var, Option<&'s Expr>>,
    /// Values computed before the loop: splats of invariant expressions.
    splats: HashMap<Expr, Value>,
    /// Addresses of element `base` of a memory, for unit-stride accesses.
    pointers: HashMap<(Memory, Expr), Value>,
    /// Vector accumulators, one a copy, by their position in the body.
    accumulators: BTreeMap<usize, Vec<Variable>>,
}

/// One copy of the body: a group of consecutive iterations.
struct Group {
    copy: u32,
    /// The loop variable in lane 0 of copy 0.
    counter: Value,
    /// Vectors of the variables defined in the body.
    vectors: BTreeMap<Var, Value>,
    /// Scalars of variables that are no vectors.
    scalars: BTreeMap<(Var, u32), Value>,
}

/// The vector type of an element type in a loop of so many lanes. A `bool` is a mask of all ones or zeros.
fn vector_type(dtype: DType, lanes: u32) -> Option<Type> {
    match (dtype, lanes) {
        (DType::F32, 4) => Some(types::F32X4),
        (DType::I32 | DType::U32 | DType::Bool, 4) => Some(types::I32X4),
        (DType::F64, 2) => Some(types::F64X2),
        (DType::I64 | DType::U64 | DType::Bool, 2) => Some(types::I64X2),
        _ => None,
    }
}

fn same_bytes() -> MemFlagsData {
    MemFlagsData::new().with_endianness(Endianness::Little)
}

impl Lower<'_, '_> {
    /// Emits a `Vector` loop; false where its body has control flow, for the caller to emit it as scalars.
    pub fn vector_loop(
        &mut self,
        var: Var,
        start: &Expr,
        end: &Expr,
        body: &[Stmt],
    ) -> Result<bool, EmitError> {
        let straight = body.iter().all(|s| {
            matches!(
                s,
                Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Accumulate { .. }
            )
        });
        let Some(lanes) = straight.then(|| self.lanes(body)).flatten() else {
            return Ok(false);
        };
        let mut looped = VectorLoop {
            var,
            lanes,
            written: BTreeSet::new(),
            varying: BTreeMap::from([(var, None)]),
            splats: HashMap::new(),
            pointers: HashMap::new(),
            accumulators: BTreeMap::new(),
        };
        let mut steps = 0;
        for s in body {
            s.expressions(|e| steps += e.steps());
            match s {
                Stmt::Let { var, value } => {
                    looped.varying.insert(*var, Some(value));
                }
                Stmt::Store { memory, .. } => {
                    looped.written.insert(*memory);
                }
                _ => {}
            }
        }
        let reduces = body.iter().any(|s| matches!(s, Stmt::Accumulate { .. }));
        let copies = match (steps <= COPY_STEPS, reduces) {
            (false, _) => 1,
            (true, true) => REDUCTION_COPIES,
            (true, false) => MAP_COPIES,
        };

        let (start, end) = (self.scalar(start)?, self.scalar(end)?);
        let (enter, done) = (self.b.create_block(), self.b.create_block());
        let any = self.b.ins().icmp(IntCC::SignedLessThan, start, end);
        self.b.ins().brif(any, enter, &[], done, &[]);
        self.b.switch_to_block(enter);
        for s in body {
            let mut result = Ok(());
            s.expressions(|e| {
                if result.is_ok() {
                    result = self.hoist(&mut looped, e);
                }
            });
            result?;
            if let Stmt::Store { memory, index, .. } = s {
                self.hoist_pointer(&mut looped, *memory, index)?;
            }
        }
        self.open_accumulators(&mut looped, body, copies)?;

        let length = self.b.ins().isub(end, start);
        let whole = |this: &mut Self, group: u32| {
            let counted = this.b.ins().band_imm_s(length, -i64::from(group));
            this.b.ins().iadd(start, counted)
        };
        let vector_end = whole(self, lanes);
        let mut from = start;
        if copies > 1 {
            let main_end = whole(self, lanes * copies);
            self.groups(&looped, body, from, main_end, copies)?;
            self.join_copies(&looped, body)?;
            from = main_end;
        }
        self.groups(&looped, body, from, vector_end, 1)?;
        self.close_accumulators(&looped, body)?;
        self.counted(vector_end, end, 1, |this, counter| {
            this.slots[var.0 as usize] = Slot::Value(counter);
            this.block(body)
        })?;
        self.b.ins().jump(done, &[]);
        self.b.switch_to_block(done);
        Ok(true)
    }

    /// Four lanes where the body handles 32-bit data, two where it handles 64-bit data only.
    fn lanes(&self, body: &[Stmt]) -> Option<u32> {
        let mut seen = BTreeSet::new();
        for s in body {
            let (Stmt::Store { value, .. }
            | Stmt::Accumulate { value, .. }
            | Stmt::Let { value, .. }) = s
            else {
                continue;
            };
            if !matches!(s, Stmt::Let { .. }) {
                seen.extend(value.dtype(self.kernel));
            }
            value.any(&mut |e| {
                if let Expr::Load { memory, .. } = e {
                    seen.extend(self.kernel.memory(*memory));
                }
                false
            });
        }
        let any = |types: &[DType]| types.iter().any(|t| seen.contains(t));
        if any(&[DType::F32, DType::I32, DType::U32]) {
            Some(4)
        } else if any(&[DType::F64, DType::I64, DType::U64]) {
            Some(2)
        } else {
            any(&[DType::Bool]).then_some(4)
        }
    }

    fn groups(
        &mut self,
        looped: &VectorLoop<'_>,
        body: &[Stmt],
        start: Value,
        end: Value,
        copies: u32,
    ) -> Result<(), EmitError> {
        let step = i64::from(looped.lanes * copies);
        self.counted(start, end, step, |this, counter| {
            for copy in 0..copies {
                let mut group = Group {
                    copy,
                    counter,
                    vectors: BTreeMap::new(),
                    scalars: BTreeMap::new(),
                };
                this.group(looped, &mut group, body)?;
            }
            Ok(())
        })
    }

    fn group(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        body: &[Stmt],
    ) -> Result<(), EmitError> {
        for (position, s) in body.iter().enumerate() {
            match s {
                Stmt::Let { var, value } => {
                    if vector_type(self.dtype(value)?, looped.lanes).is_some()
                        && !looped.index_only(*var, value, body)
                    {
                        let vector = self.vector(looped, group, value)?;
                        group.vectors.insert(*var, vector);
                    } else if looped.loads_written(value) {
                        // The load must not sink below a store.
                        for lane in 0..looped.lanes {
                            self.lane_variable(looped, group, *var, lane)?;
                        }
                    }
                }
                Stmt::Store {
                    memory,
                    index,
                    value,
                } => self.store(looped, group, *memory, index, value)?,
                Stmt::Accumulate { var, op, value } => match looped.accumulators.get(&position) {
                    Some(copies) => {
                        let Some(&variable) = copies.get(group.copy as usize) else {
                            return Err(EmitError::Backend("an accumulator".into()));
                        };
                        let sum = self.b.use_var(variable);
                        let next = match (op, value) {
                            (ReduceOp::Sum, Expr::Binary(BinaryOp::Mul, x, y))
                                if self.fma && self.dtype(value)?.is_float() =>
                            {
                                let x = self.vector(looped, group, x)?;
                                let y = self.vector(looped, group, y)?;
                                self.b.ins().fma(x, y, sum)
                            }
                            _ => {
                                let dtype = self.dtype(value)?;
                                let value = self.vector(looped, group, value)?;
                                self.combine(*op, dtype, value, sum)?
                            }
                        };
                        self.b.def_var(variable, next);
                    }
                    None => {
                        for lane in 0..looped.lanes {
                            let value = self.lane(looped, group, value, lane)?;
                            let sum = self.get(*var)?;
                            let dtype = self.dtype(&Expr::Var(*var))?;
                            let next = self.combine_scalars(*op, dtype, sum, value)?;
                            self.set(*var, next)?;
                        }
                    }
                },
                _ => return Err(EmitError::Backend("control flow in a vector body".into())),
            }
        }
        Ok(())
    }

    /// Before the loop: splats what does not vary, and the addresses of unit-stride accesses.
    fn hoist(&mut self, looped: &mut VectorLoop<'_>, e: &Expr) -> Result<(), EmitError> {
        if looped.invariant(e) {
            if let Some(ty) = vector_type(self.dtype(e)?, looped.lanes)
                && !looped.splats.contains_key(e)
            {
                let value = self.scalar(e)?;
                let vector = self.splat(ty, self.dtype(e)? == DType::Bool, value);
                looped.splats.insert(e.clone(), vector);
            }
            return Ok(());
        }
        if let Expr::Load {
            memory,
            index,
            mask: None,
        } = e
        {
            self.hoist_pointer(looped, *memory, index)?;
        }
        let mut result = Ok(());
        e.operands(|e| {
            if result.is_ok() {
                result = self.hoist(looped, e);
            }
        });
        result
    }

    fn hoist_pointer(
        &mut self,
        looped: &mut VectorLoop<'_>,
        memory: Memory,
        index: &Expr,
    ) -> Result<(), EmitError> {
        if let Some(affine) = looped.affine(index)
            && affine.coefficient == 1
            && !looped.pointers.contains_key(&(memory, affine.base.clone()))
        {
            let base = self.scalar(&affine.base)?;
            let pointer = self.address(memory, base)?;
            looped.pointers.insert((memory, affine.base), pointer);
        }
        Ok(())
    }

    fn splat(&mut self, ty: Type, mask: bool, value: Value) -> Value {
        let value = if mask {
            let wide = self.b.ins().uextend(ty.lane_type(), value);
            self.b.ins().ineg(wide)
        } else {
            value
        };
        self.b.ins().splat(ty, value)
    }

    /// Address of lane 0 of a unit-stride access, if it is one, and the offset of the group.
    fn contiguous(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &Group,
        memory: Memory,
        index: &Expr,
    ) -> Result<Option<(Value, i32)>, EmitError> {
        let Some(affine) = looped.affine(index).filter(|a| a.coefficient == 1) else {
            return Ok(None);
        };
        let Some(&pointer) = looped.pointers.get(&(memory, affine.base)) else {
            return Ok(None);
        };
        let size = self.element(memory)?.size();
        let offset = self
            .b
            .ins()
            .ishl_imm_s(group.counter, i64::from(size.trailing_zeros()));
        let address = self.b.ins().iadd(pointer, offset);
        Ok(Some((
            address,
            (group.copy * looped.lanes) as i32 * size as i32,
        )))
    }

    fn store(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        memory: Memory,
        index: &Expr,
        value: &Expr,
    ) -> Result<(), EmitError> {
        let dtype = self.element(memory)?;
        if let Some(ty) = vector_type(dtype, looped.lanes)
            && let Some((address, offset)) = self.contiguous(looped, group, memory, index)?
        {
            let vector = self.vector(looped, group, value)?;
            let packed = match (dtype, looped.lanes) {
                (DType::Bool, 4) => {
                    let one = self.b.ins().iconst(types::I32, 1);
                    let ones = self.b.ins().splat(ty, one);
                    let bits = self.b.ins().band(vector, ones);
                    let words = self.b.ins().snarrow(bits, bits);
                    let bytes = self.b.ins().snarrow(words, words);
                    let lanes = self.b.ins().bitcast(types::I32X4, same_bytes(), bytes);
                    self.b.ins().extractlane(lanes, 0)
                }
                (DType::Bool, _) => {
                    for lane in 0..looped.lanes {
                        let bit = self.mask_lane(vector, lane);
                        self.b
                            .ins()
                            .store(flags(), bit, address, offset + lane as i32);
                    }
                    return Ok(());
                }
                _ => vector,
            };
            self.b.ins().store(flags(), packed, address, offset);
            return Ok(());
        }
        for lane in 0..looped.lanes {
            let value = self.lane(looped, group, value, lane)?;
            let index = self.lane(looped, group, index, lane)?;
            let address = self.address(memory, index)?;
            self.b.ins().store(flags(), value, address, 0);
        }
        Ok(())
    }

    /// The vector of an expression whose type fits the lanes.
    fn vector(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        e: &Expr,
    ) -> Result<Value, EmitError> {
        if let Some(&splat) = looped.splats.get(e) {
            return Ok(splat);
        }
        if let Expr::Var(v) = e
            && let Some(&vector) = group.vectors.get(v)
        {
            return Ok(vector);
        }
        let dtype = self.dtype(e)?;
        let Some(ty) = vector_type(dtype, looped.lanes) else {
            return Err(EmitError::Backend(format!("a vector of {dtype}")));
        };
        let fits = |this: &Self, e: &Expr| {
            this.dtype(e)
                .ok()
                .is_some_and(|t| vector_type(t, looped.lanes).is_some())
        };
        match e {
            Expr::Load {
                memory,
                index,
                mask: None,
            } => {
                if let Some((address, offset)) = self.contiguous(looped, group, *memory, index)? {
                    if dtype != DType::Bool {
                        return Ok(self.b.ins().load(ty, flags(), address, offset));
                    }
                    if looped.lanes == 4 {
                        let packed = self.b.ins().load(types::I32, flags(), address, offset);
                        let bytes = self.b.ins().scalar_to_vector(types::I32X4, packed);
                        let bytes = self.b.ins().bitcast(types::I8X16, same_bytes(), bytes);
                        let words = self.b.ins().uwiden_low(bytes);
                        let lanes = self.b.ins().uwiden_low(words);
                        return Ok(self.b.ins().ineg(lanes));
                    }
                }
            }
            Expr::Unary(op, a) if fits(self, a) => {
                let of = self.dtype(a)?;
                if of.is_float() {
                    let x = self.vector(looped, group, a)?;
                    let source = self.b.func.dfg.value_type(x);
                    if let Some(value) = self.float_unary(*op, source, x) {
                        return Ok(value);
                    }
                    return self.each_lane(looped, ty, |this, lane| {
                        let x = this.b.ins().extractlane(x, lane as u8);
                        this.unary(*op, of, x)
                    });
                }
                let x = self.vector(looped, group, a)?;
                match op {
                    UnaryOp::Not => return Ok(self.b.ins().bnot(x)),
                    UnaryOp::Neg => return Ok(self.b.ins().ineg(x)),
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
                let (x, y) = (
                    self.vector(looped, group, a)?,
                    self.vector(looped, group, b)?,
                );
                return Ok(if of.is_float() {
                    self.b.ins().fcmp(float_condition(*op), x, y)
                } else {
                    // Masks order as their bits do: true is −1, so as unsigned.
                    self.b.ins().icmp(int_condition(*op, signed(of)), x, y)
                });
            }
            Expr::Select(c, a, b) => {
                let mask = self.vector(looped, group, c)?;
                let (x, y) = (
                    self.vector(looped, group, a)?,
                    self.vector(looped, group, b)?,
                );
                return Ok(self.choose(mask, x, y));
            }
            Expr::Cast(to, a) if fits(self, a) => {
                let from = self.dtype(a)?;
                let x = self.vector(looped, group, a)?;
                if let Some(value) = self.vector_cast(from, *to, ty, x) {
                    return Ok(value);
                }
            }
            _ => {}
        }
        let mask = dtype == DType::Bool;
        let lanes = (0..looped.lanes).map(|lane| self.lane(looped, group, e, lane));
        let lanes: Vec<Value> = lanes.collect::<Result<_, _>>()?;
        self.gather(ty, mask, &lanes)
    }

    fn each_lane(
        &mut self,
        looped: &VectorLoop<'_>,
        ty: Type,
        mut f: impl FnMut(&mut Self, u32) -> Result<Value, EmitError>,
    ) -> Result<Value, EmitError> {
        let lanes: Vec<Value> = (0..looped.lanes)
            .map(|lane| f(self, lane))
            .collect::<Result<_, _>>()?;
        self.gather(ty, false, &lanes)
    }

    /// A vector of scalars.
    fn gather(&mut self, ty: Type, mask: bool, lanes: &[Value]) -> Result<Value, EmitError> {
        let Some((&first, rest)) = lanes.split_first() else {
            return Err(EmitError::Backend("no lanes".into()));
        };
        let mut vector = self.splat(ty, mask, first);
        for (lane, &value) in (1u8..).zip(rest) {
            let value = if mask {
                let wide = self.b.ins().uextend(ty.lane_type(), value);
                self.b.ins().ineg(wide)
            } else {
                value
            };
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
        let (mut x, mut y) = (
            self.vector(looped, group, a)?,
            self.vector(looped, group, b)?,
        );
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

    fn int_vectors(
        &mut self,
        op: BinaryOp,
        dtype: DType,
        x: Value,
        y: Value,
    ) -> Result<Value, EmitError> {
        Ok(match (op, dtype) {
            (BinaryOp::Add, _) => self.b.ins().iadd(x, y),
            (BinaryOp::Sub, _) => self.b.ins().isub(x, y),
            (BinaryOp::Mul, _) => self.b.ins().imul(x, y),
            (BinaryOp::And, _) | (BinaryOp::Min, DType::Bool) => self.b.ins().band(x, y),
            (BinaryOp::Or, _) | (BinaryOp::Max, DType::Bool) => self.b.ins().bor(x, y),
            (BinaryOp::Xor, _) => self.b.ins().bxor(x, y),
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
                return Err(EmitError::Backend(format!(
                    "vectors {} of {dtype}",
                    op.name()
                )));
            }
        })
    }

    fn vector_cast(&mut self, from: DType, to: DType, ty: Type, x: Value) -> Option<Value> {
        Some(match (from, to) {
            _ if from == to => x,
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

    /// A lane of a mask as a `bool`.
    fn mask_lane(&mut self, mask: Value, lane: u32) -> Value {
        let bits = self.b.ins().extractlane(mask, lane as u8);
        let bit = self.b.ins().band_imm_s(bits, 1);
        self.b.ins().ireduce(types::I8, bit)
    }

    /// The scalar of an expression in one lane.
    fn lane(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        e: &Expr,
        lane: u32,
    ) -> Result<Value, EmitError> {
        let mut mentioned = BTreeSet::new();
        e.any(&mut |e| {
            if let Expr::Var(v) = e
                && looped.varying.contains_key(v)
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

    fn lane_variable(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        var: Var,
        lane: u32,
    ) -> Result<Value, EmitError> {
        if let Some(&value) = group.scalars.get(&(var, lane)) {
            return Ok(value);
        }
        let value = match looped.varying.get(&var) {
            Some(Some(definition)) => match group.vectors.get(&var) {
                Some(&vector) if self.kernel.var(var) == Some(DType::Bool) => {
                    self.mask_lane(vector, lane)
                }
                Some(&vector) => self.b.ins().extractlane(vector, lane as u8),
                None => self.lane(looped, group, definition, lane)?,
            },
            _ => self
                .b
                .ins()
                .iadd_imm_s(group.counter, i64::from(group.copy * looped.lanes + lane)),
        };
        group.scalars.insert((var, lane), value);
        Ok(value)
    }

    /// Vector accumulators start from the neutral element.
    fn open_accumulators(
        &mut self,
        looped: &mut VectorLoop<'_>,
        body: &[Stmt],
        copies: u32,
    ) -> Result<(), EmitError> {
        for (position, s) in body.iter().enumerate() {
            let Stmt::Accumulate { var, op, .. } = s else {
                continue;
            };
            let dtype = self.dtype(&Expr::Var(*var))?;
            let Some(ty) = vector_type(dtype, looped.lanes).filter(|_| dtype != DType::Bool) else {
                continue;
            };
            let neutral = self.scalar(&neutral(*op, dtype))?;
            let neutral = self.b.ins().splat(ty, neutral);
            let variables = (0..copies).map(|_| {
                let variable = self.b.declare_var(ty);
                self.b.def_var(variable, neutral);
                variable
            });
            let variables = variables.collect();
            looped.accumulators.insert(position, variables);
        }
        Ok(())
    }

    /// After the main loop: the copies are combined in pairs into the first.
    fn join_copies(&mut self, looped: &VectorLoop<'_>, body: &[Stmt]) -> Result<(), EmitError> {
        for (position, variables) in &looped.accumulators {
            let Some(Stmt::Accumulate { var, op, .. }) = body.get(*position) else {
                continue;
            };
            let dtype = self.dtype(&Expr::Var(*var))?;
            let mut values: Vec<Value> = variables.iter().map(|&v| self.b.use_var(v)).collect();
            while values.len() > 1 {
                let mut next = Vec::with_capacity(values.len() / 2);
                for pair in values.chunks(2) {
                    next.push(match *pair {
                        [a, b] => self.combine(*op, dtype, a, b)?,
                        _ => pair[0],
                    });
                }
                values = next;
            }
            if let (Some(&first), Some(&value)) = (variables.first(), values.first()) {
                self.b.def_var(first, value);
            }
        }
        Ok(())
    }

    /// After the vector loops: the lanes are combined in pairs, and with the variable.
    fn close_accumulators(
        &mut self,
        looped: &VectorLoop<'_>,
        body: &[Stmt],
    ) -> Result<(), EmitError> {
        for (position, variables) in &looped.accumulators {
            let (Some(Stmt::Accumulate { var, op, .. }), Some(&first)) =
                (body.get(*position), variables.first())
            else {
                continue;
            };
            let dtype = self.dtype(&Expr::Var(*var))?;
            let vector = self.b.use_var(first);
            let mut lanes: Vec<Value> = (0..looped.lanes)
                .map(|lane| self.b.ins().extractlane(vector, lane as u8))
                .collect();
            while lanes.len() > 1 {
                let half = lanes.len() / 2;
                for i in 0..half {
                    lanes[i] = self.combine_scalars(*op, dtype, lanes[i], lanes[i + half])?;
                }
                lanes.truncate(half);
            }
            let before = self.get(*var)?;
            let total = self.combine_scalars(*op, dtype, before, lanes[0])?;
            self.set(*var, total)?;
        }
        Ok(())
    }

    fn combine(
        &mut self,
        op: ReduceOp,
        dtype: DType,
        x: Value,
        y: Value,
    ) -> Result<Value, EmitError> {
        match (op, dtype.is_float()) {
            (ReduceOp::Max | ReduceOp::Min, true) => {
                Ok(self.float_extremum(op == ReduceOp::Max, x, y, false))
            }
            (_, true) => self.float_arithmetic(op.step(), x, y),
            (_, false) => self.int_vectors(op.step(), dtype, x, y),
        }
    }

    fn combine_scalars(
        &mut self,
        op: ReduceOp,
        dtype: DType,
        x: Value,
        y: Value,
    ) -> Result<Value, EmitError> {
        match (op, dtype.is_float()) {
            (ReduceOp::Max | ReduceOp::Min, true) => {
                Ok(self.float_extremum(op == ReduceOp::Max, x, y, false))
            }
            (_, true) => self.float_arithmetic(op.step(), x, y),
            (ReduceOp::Max | ReduceOp::Min, false) => {
                let signed = signed(dtype);
                Ok(match (op == ReduceOp::Max, signed) {
                    (true, true) => self.b.ins().smax(x, y),
                    (true, false) => self.b.ins().umax(x, y),
                    (false, true) => self.b.ins().smin(x, y),
                    (false, false) => self.b.ins().umin(x, y),
                })
            }
            (_, false) => self.int_vectors(op.step(), dtype, x, y),
        }
    }
}

impl VectorLoop<'_> {
    /// Whether an expression has one value in all iterations, and may be computed before them.
    fn invariant(&self, e: &Expr) -> bool {
        !e.any(&mut |e| match e {
            Expr::Var(v) => self.varying.contains_key(v),
            Expr::Load { memory, .. } => self.written.contains(memory),
            _ => false,
        })
    }

    /// An index as an affine function of the loop variable alone, definitions in the body written out.
    fn affine(&self, index: &Expr) -> Option<Affine> {
        let written_out = self.write_out(index);
        let affine = Affine::of(&written_out, self.var)?;
        self.invariant(&affine.base).then_some(affine)
    }

    fn write_out(&self, e: &Expr) -> Expr {
        e.substitute(&mut |v| match self.varying.get(&v) {
            Some(Some(definition)) => Some(self.write_out(definition)),
            _ => None,
        })
    }

    /// Whether an expression loads from memory that the loop stores to.
    fn loads_written(&self, e: &Expr) -> bool {
        e.any(&mut |e| matches!(e, Expr::Load { memory, .. } if self.written.contains(memory)))
    }

    /// Whether a variable is affine and no stored value mentions it, so that indices alone use it.
    fn index_only(&self, var: Var, value: &Expr, body: &[Stmt]) -> bool {
        let used_as_value = body.iter().any(|s| match s {
            Stmt::Store { value, .. } | Stmt::Accumulate { value, .. } => value.mentions(var),
            _ => false,
        });
        self.lanes == 2 && !used_as_value && self.affine(value).is_some()
    }
}

/// The neutral element.
fn neutral(op: ReduceOp, dtype: DType) -> Expr {
    let int = |v| Expr::Literal(Literal::Int(dtype, v));
    let bits = 8 * dtype.size() as u32;
    match (op, dtype.is_float()) {
        (ReduceOp::Sum, true) => Expr::constant(dtype, -0.0),
        (ReduceOp::Max, true) => Expr::constant(dtype, f64::NEG_INFINITY),
        (ReduceOp::Min, true) => Expr::constant(dtype, f64::INFINITY),
        (ReduceOp::Prod, true) => Expr::constant(dtype, 1.0),
        (ReduceOp::Sum, false) => int(0),
        (ReduceOp::Prod, false) => int(1),
        (ReduceOp::Max, false) if signed(dtype) => int(i64::MIN >> (64 - bits)),
        (ReduceOp::Max, false) => int(0),
        (ReduceOp::Min, false) if signed(dtype) => int(i64::MAX >> (64 - bits)),
        (ReduceOp::Min, false) => int(-1),
    }
}
