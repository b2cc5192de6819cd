//! Memory of vector loops: what is computed before them, contiguous accesses, stores.

use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use egret_ir::DType;

use super::function::{Lower, flags};
use super::half::is_half;
use super::narrow::{is_narrow, scalar_type};
use super::scalar::signed;
use super::vector::{Group, Inner, VectorLoop, same_bytes, vector_type};
use crate::emit::EmitError;
use crate::kernel::{Affine, Expr, Memory, Stmt};

impl Lower<'_, '_> {
    /// Before the loop: splats what does not vary, and the addresses of unit-stride accesses. Bodies that may not run
    /// (`guarded`) keep their loads.
    pub fn hoist_block(&mut self, looped: &mut VectorLoop<'_>, body: &[Stmt], guarded: bool) -> Result<(), EmitError> {
        for s in body {
            if !matches!(s, Stmt::For { .. } | Stmt::If { .. }) {
                let mut result = Ok(());
                s.expressions(|e| {
                    if result.is_ok() {
                        result = self.hoist(looped, e, guarded);
                    }
                });
                result?;
            }
            if let Stmt::Store { memory, index, .. } = s {
                self.hoist_pointer(looped, *memory, index)?;
            }
            for inner in s.bodies() {
                self.hoist_block(looped, inner, true)?;
            }
        }
        Ok(())
    }

    fn hoist(&mut self, looped: &mut VectorLoop<'_>, e: &Expr, guarded: bool) -> Result<(), EmitError> {
        let loads = |e: &Expr| e.any(&mut |e| matches!(e, Expr::Load { .. }));
        if looped.invariant(e) && !(guarded && loads(e)) {
            let dtype = self.dtype(e)?;
            if let Some(ty) = vector_type(dtype, looped.lanes)
                && !looped.splats.contains_key(e)
            {
                let value = self.scalar(e)?;
                let vector = self.splat(ty, dtype, value);
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
                result = self.hoist(looped, e, guarded);
            }
        });
        result
    }

    fn hoist_pointer(&mut self, looped: &mut VectorLoop<'_>, memory: Memory, index: &Expr) -> Result<(), EmitError> {
        let loads = |e: &Expr| e.any(&mut |e| matches!(e, Expr::Load { .. }));
        if let Some(affine) = looped.affine(index)
            && affine.coefficient == 1
            && looped.invariant(&affine.base)
            && !loads(&affine.base)
            && !looped.pointers.contains_key(&(memory, affine.base.clone()))
        {
            let base = self.scalar(&affine.base)?;
            let pointer = self.address(memory, base)?;
            looped.pointers.insert((memory, affine.base), pointer);
        }
        Ok(())
    }

    /// A vector of one scalar.
    pub fn splat(&mut self, ty: Type, dtype: DType, value: Value) -> Value {
        let value = self.lane_bits(ty, dtype, value);
        self.b.ins().splat(ty, value)
    }

    /// A scalar as it lies in a lane.
    pub fn lane_bits(&mut self, ty: Type, dtype: DType, value: Value) -> Value {
        match dtype {
            DType::Bool => {
                let wide = self.b.ins().uextend(ty.lane_type(), value);
                self.b.ins().ineg(wide)
            }
            _ if is_narrow(dtype) && signed(dtype) => self.b.ins().sextend(ty.lane_type(), value),
            _ if is_half(dtype) || is_narrow(dtype) => self.b.ins().uextend(ty.lane_type(), value),
            _ => value,
        }
    }

    /// The scalar in a lane.
    pub fn lane_of(&mut self, dtype: DType, vector: Value, lane: u32) -> Value {
        let bits = self.b.ins().extractlane(vector, lane as u8);
        match dtype {
            DType::Bool => {
                let bit = self.b.ins().band_imm_s(bits, 1);
                self.b.ins().ireduce(types::I8, bit)
            }
            _ if is_half(dtype) => self.b.ins().ireduce(types::I16, bits),
            _ if is_narrow(dtype) => self.b.ins().ireduce(scalar_type(dtype), bits),
            _ => bits,
        }
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
        let pointer = match looped.pointers.get(&(memory, affine.base.clone())) {
            Some(&pointer) => pointer,
            None => {
                let base = self.scalar(&affine.base)?;
                self.address(memory, base)?
            }
        };
        let size = self.element(memory)?.size();
        let offset = self.b.ins().ishl_imm_s(group.counter, i64::from(size.trailing_zeros()));
        let address = self.b.ins().iadd(pointer, offset);
        Ok(Some((address, (group.copy * looped.lanes) as i32 * size as i32)))
    }

    /// The lanes of a load from consecutive elements; `None` where they are not, or have no vector form.
    pub fn vector_load(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &Group,
        memory: Memory,
        index: &Expr,
    ) -> Result<Option<Value>, EmitError> {
        let dtype = self.element(memory)?;
        let Some(ty) = vector_type(dtype, looped.lanes).filter(|_| dtype != DType::Bool || looped.lanes == 4) else {
            return Ok(None);
        };
        let Some((address, offset)) = self.contiguous(looped, group, memory, index)? else { return Ok(None) };
        Ok(Some(match dtype {
            DType::Bool => {
                let packed = self.b.ins().load(types::I32, flags(), address, offset);
                let bytes = self.b.ins().scalar_to_vector(types::I32X4, packed);
                let bytes = self.b.ins().bitcast(types::I8X16, same_bytes(), bytes);
                let words = self.b.ins().uwiden_low(bytes);
                let lanes = self.b.ins().uwiden_low(words);
                self.b.ins().ineg(lanes)
            }
            _ if is_half(dtype) => {
                let packed = self.b.ins().load(types::I64, flags(), address, offset);
                let halves = self.b.ins().scalar_to_vector(types::I64X2, packed);
                let halves = self.b.ins().bitcast(types::I16X8, same_bytes(), halves);
                self.b.ins().uwiden_low(halves)
            }
            _ if is_narrow(dtype) => self.load_narrow(dtype, address, offset),
            _ => self.b.ins().load(ty, flags(), address, offset),
        }))
    }

    /// Stores the lanes of a value.
    pub fn vector_store(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        memory: Memory,
        index: &Expr,
        value: &Expr,
    ) -> Result<(), EmitError> {
        let dtype = self.element(memory)?;
        let Some(ty) = vector_type(dtype, looped.lanes) else {
            return self.store_lanes(looped, group, memory, index, value);
        };
        let Some((address, offset)) = self.contiguous(looped, group, memory, index)? else {
            return self.store_lanes(looped, group, memory, index, value);
        };
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
                    let bit = self.lane_of(dtype, vector, lane);
                    self.b.ins().store(flags(), bit, address, offset + lane as i32);
                }
                return Ok(());
            }
            _ if is_half(dtype) => {
                let halves = self.b.ins().unarrow(vector, vector);
                let halves = self.b.ins().bitcast(types::I64X2, same_bytes(), halves);
                self.b.ins().extractlane(halves, 0)
            }
            _ if is_narrow(dtype) => self.pack_narrow(dtype, vector),
            _ => vector,
        };
        self.b.ins().store(flags(), packed, address, offset);
        Ok(())
    }

    fn store_lanes(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        memory: Memory,
        index: &Expr,
        value: &Expr,
    ) -> Result<(), EmitError> {
        // all values before any store, as in a contiguous one
        let dtype = self.dtype(value)?;
        let whole = match vector_type(dtype, looped.lanes) {
            Some(_) => Some(self.vector(looped, group, value)?),
            None => None,
        };
        for lane in 0..looped.lanes {
            let value = match whole {
                Some(vector) => self.lane_of(dtype, vector, lane),
                None => self.lane(looped, group, value, lane)?,
            };
            let index = self.lane(looped, group, index, lane)?;
            let address = self.address(memory, index)?;
            self.b.ins().store(flags(), value, address, 0);
        }
        Ok(())
    }
}

impl VectorLoop<'_> {
    /// An index as an affine function of the loop variable alone, definitions in the body written out.
    pub fn affine(&self, index: &Expr) -> Option<Affine> {
        let written_out = self.write_out(index, 8);
        let affine = Affine::of(&written_out, self.var)?;
        (!self.varies(&affine.base)).then_some(affine)
    }

    /// Whether consecutive iterations touch consecutive elements.
    pub fn is_contiguous(&self, index: &Expr) -> bool {
        self.affine(index).is_some_and(|affine| affine.coefficient == 1)
    }

    /// An index with the definitions of the body written out, so deep at most: shared definitions double at each level.
    fn write_out(&self, e: &Expr, depth: u32) -> Expr {
        e.substitute(&mut |v| match self.inner.get(&v) {
            Some(Inner::Let(definition)) if depth > 0 => Some(self.write_out(definition, depth - 1)),
            _ => None,
        })
    }
}
