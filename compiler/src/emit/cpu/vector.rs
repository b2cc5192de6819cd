//! Vector loops: 128-bit lanes, several accumulators, a scalar remainder.
//!
//! A loop has four lanes (32-bit data) or two (64-bit data). An expression whose type fits the lanes is one vector;
//! any other (an index, a narrow integer, a call of the C library) is computed lane by lane as scalars, so that every
//! straight-line loop has a vector form. Loops that hold control flow run as scalars.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use cranelift_frontend::Variable;
use egret_ir::DType;

use super::function::{Lower, Slot, flags};
use crate::emit::EmitError;
use crate::kernel::{Affine, BinaryOp, Expr, Memory, ReduceOp, Stmt, Var};

/// Vectors that a reduction's main loop takes at a time, each with its own accumulator.
const REDUCTION_COPIES: u32 = 4;
/// Vectors that any other main loop takes at a time.
const MAP_COPIES: u32 = 2;
/// Steps above which a body is not copied.
const COPY_STEPS: usize = 48;

/// What is known of a vector loop while its body is emitted.
pub(super) struct VectorLoop<'s> {
    pub var: Var,
    pub lanes: u32,
    /// Memory that the body stores to: loads from it stay where they are.
    pub written: BTreeSet<Memory>,
    /// Variables that differ from iteration to iteration, with their definitions (the loop variable has none).
    pub varying: BTreeMap<Var, Option<&'s Expr>>,
    /// Values computed before the loop: splats of invariant expressions.
    pub splats: HashMap<Expr, Value>,
    /// Addresses of element `base` of a memory, for unit-stride accesses.
    pub pointers: HashMap<(Memory, Expr), Value>,
    /// Vector accumulators, one a copy, by their position in the body.
    pub accumulators: BTreeMap<usize, Vec<Variable>>,
}

/// One copy of the body: a group of consecutive iterations.
pub(super) struct Group {
    pub copy: u32,
    /// The loop variable in lane 0 of copy 0.
    pub counter: Value,
    /// Vectors of the variables defined in the body.
    pub vectors: BTreeMap<Var, Value>,
    /// Scalars of variables that are no vectors.
    pub scalars: BTreeMap<(Var, u32), Value>,
}

/// The vector type of an element type in a loop of so many lanes. A `bool` is a mask of all ones or zeros.
pub(super) fn vector_type(dtype: DType, lanes: u32) -> Option<Type> {
    match (dtype, lanes) {
        (DType::F32, 4) => Some(types::F32X4),
        (DType::I32 | DType::U32 | DType::Bool, 4) => Some(types::I32X4),
        (DType::F64, 2) => Some(types::F64X2),
        (DType::I64 | DType::U64 | DType::Bool, 2) => Some(types::I64X2),
        _ => None,
    }
}

pub(super) fn same_bytes() -> MemFlagsData {
    MemFlagsData::new().with_endianness(Endianness::Little)
}

impl Lower<'_, '_> {
    /// Emits a `Vector` loop; false where its body has control flow, for the caller to emit it as scalars.
    pub fn vector_loop(&mut self, var: Var, start: &Expr, end: &Expr, body: &[Stmt]) -> Result<bool, EmitError> {
        let straight =
            body.iter().all(|s| matches!(s, Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Accumulate { .. }));
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
            let (Stmt::Store { value, .. } | Stmt::Accumulate { value, .. } | Stmt::Let { value, .. }) = s else {
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
                let mut group = Group { copy, counter, vectors: BTreeMap::new(), scalars: BTreeMap::new() };
                this.group(looped, &mut group, body)?;
            }
            Ok(())
        })
    }

    fn group(&mut self, looped: &VectorLoop<'_>, group: &mut Group, body: &[Stmt]) -> Result<(), EmitError> {
        for (position, s) in body.iter().enumerate() {
            match s {
                Stmt::Let { var, value } => {
                    if vector_type(self.dtype(value)?, looped.lanes).is_some() && !looped.index_only(*var, value, body)
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
                Stmt::Store { memory, index, value } => self.store(looped, group, *memory, index, value)?,
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
        if let Expr::Load { memory, index, mask: None } = e {
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

    fn hoist_pointer(&mut self, looped: &mut VectorLoop<'_>, memory: Memory, index: &Expr) -> Result<(), EmitError> {
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

    /// A vector of one scalar.
    pub fn splat(&mut self, ty: Type, mask: bool, value: Value) -> Value {
        let value = if mask {
            let wide = self.b.ins().uextend(ty.lane_type(), value);
            self.b.ins().ineg(wide)
        } else {
            value
        };
        self.b.ins().splat(ty, value)
    }

    /// Address of lane 0 of a unit-stride access, if it is one, and the offset of the group.
    pub fn contiguous(
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
        let offset = self.b.ins().ishl_imm_s(group.counter, i64::from(size.trailing_zeros()));
        let address = self.b.ins().iadd(pointer, offset);
        Ok(Some((address, (group.copy * looped.lanes) as i32 * size as i32)))
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
                        self.b.ins().store(flags(), bit, address, offset + lane as i32);
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
        let written_out = self.write_out(index, 8);
        let affine = Affine::of(&written_out, self.var)?;
        self.invariant(&affine.base).then_some(affine)
    }

    /// An index with the definitions of the body written out, so deep at most: shared definitions double at each level.
    fn write_out(&self, e: &Expr, depth: u32) -> Expr {
        e.substitute(&mut |v| match self.varying.get(&v) {
            Some(Some(definition)) if depth > 0 => Some(self.write_out(definition, depth - 1)),
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
