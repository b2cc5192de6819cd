//! A kernel as one Cranelift function: parameters, grid loop, statements.

use std::collections::BTreeMap;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, AtomicRmwOp, Block, ExtFuncData, ExternalName, FuncRef, Function, InstBuilder, MemFlagsData, Signature,
    StackSlotData, StackSlotKind, Type, UserExternalName, UserFuncName, Value, types,
};
use cranelift_codegen::isa::TargetIsa;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use egret_ir::DType;

use super::Symbol;
use crate::emit::EmitError;
use crate::kernel::{Abi, Expr, Kernel, LoopKind, Memory, Space, Stmt, Strip, Var};

/// What a kernel variable is in the function.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    Unknown,
    Value(Value),
    Variable(Variable),
}

/// A function under construction.
pub(super) struct Lower<'a, 'f> {
    pub b: FunctionBuilder<'f>,
    pub kernel: &'a Kernel,
    pub fma: bool,
    /// Whether the target is x86-64.
    pub x86: bool,
    pub slots: Vec<Slot>,
    isa: &'a dyn TargetIsa,
    buffers: Vec<Value>,
    dims: Vec<Value>,
    scratch: Vec<Value>,
    status: Option<Value>,
    symbols: Vec<Symbol>,
    functions: BTreeMap<Symbol, FuncRef>,
}

/// The type in registers of a scalar; a `bool` is an `i8` of 0 or 1, a half its bits.
pub(super) fn clif_type(dtype: DType) -> Type {
    match dtype {
        DType::Bool | DType::U8 | DType::I8 => types::I8,
        DType::U16 | DType::I16 | DType::F16 | DType::BF16 => types::I16,
        DType::U32 | DType::I32 => types::I32,
        DType::U64 | DType::I64 => types::I64,
        DType::F32 => types::F32,
        DType::F64 => types::F64,
    }
}

/// Memory accesses that cannot trap; `aligned` to the element.
pub(super) fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Builds the function of a kernel.
pub(super) fn build(
    kernel: &Kernel,
    isa: &dyn TargetIsa,
    fma: bool,
    context: &mut FunctionBuilderContext,
) -> Result<(Function, Vec<Symbol>), EmitError> {
    kernel
        .verify()
        .map_err(|findings| EmitError::Malformed(findings.first().map(ToString::to_string).unwrap_or_default()))?;
    if kernel.block_threads() != 1 {
        return Err(EmitError::UnsupportedForm { backend: "CPU", what: "blocks of several threads" });
    }
    let parameters = match kernel.abi {
        Abi::Kernel => 6,
        Abi::Hook { .. } => 5,
    };
    let mut signature = Signature::new(isa.default_call_conv());
    signature.params.extend((0..parameters).map(|_| AbiParam::new(types::I64)));
    let mut function = Function::with_name_signature(UserFuncName::default(), signature);
    let mut b = FunctionBuilder::new(&mut function, context);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    let mut lower = Lower {
        b,
        kernel,
        fma: fma && !kernel.exact,
        x86: isa.name() == "x64",
        slots: vec![Slot::Unknown; kernel.vars.len()],
        isa,
        buffers: Vec::new(),
        dims: Vec::new(),
        scratch: Vec::new(),
        status: None,
        symbols: Vec::new(),
        functions: BTreeMap::new(),
    };
    let params = lower.b.block_params(entry).to_vec();
    let built = match kernel.abi {
        Abi::Kernel => lower.kernel_body(&params),
        Abi::Hook { .. } => lower.hook_body(&params),
    };
    if let Err(error) = built {
        // The context is reused: it has to be left clean.
        *context = FunctionBuilderContext::new();
        return Err(error);
    }
    lower.b.ins().return_(&[]);
    lower.b.seal_all_blocks();
    let symbols = std::mem::take(&mut lower.symbols);
    lower.b.finalize(isa.frontend_config());
    Ok((function, symbols))
}

impl Lower<'_, '_> {
    fn kernel_body(&mut self, params: &[Value]) -> Result<(), EmitError> {
        let [buffers, dims, begin, end, scratch, status] = *params else {
            return Err(EmitError::Backend("parameters".into()));
        };
        self.status = Some(status);
        for i in 0..self.kernel.buffers.len() {
            let pointer = self.b.ins().load(types::I64, flags(), buffers, 8 * i as i32);
            self.buffers.push(pointer);
        }
        for i in 0..self.kernel.dims {
            let dim = self.b.ins().load(types::I64, flags(), dims, 8 * i as i32);
            self.dims.push(dim);
        }
        self.scratch_memory(Some(scratch))?;
        let mut extents = Vec::new();
        for extent in &self.kernel.grid {
            let extent = self.scalar(extent)?;
            let one = self.b.ins().iconst(types::I64, 1);
            extents.push(self.b.ins().umax(extent, one));
        }
        self.counted(begin, end, 1, |this, flat| {
            let mut rest = flat;
            for (axis, &extent) in extents.iter().enumerate().rev() {
                let index = if axis == 0 {
                    rest
                } else {
                    let index = this.b.ins().urem(rest, extent);
                    rest = this.b.ins().udiv(rest, extent);
                    index
                };
                this.slots[axis] = Slot::Value(index);
            }
            this.block(&this.kernel.body)
        })
    }

    fn hook_body(&mut self, params: &[Value]) -> Result<(), EmitError> {
        let ([acc, rows, cols, extras, outs], Abi::Hook { extras: n, outs: m }) = (params, self.kernel.abi) else {
            return Err(EmitError::Backend("parameters".into()));
        };
        // View2 is { pointer, row, col }: 24 bytes.
        let views = std::iter::once((*acc, 0))
            .chain((0..n).map(|i| (*extras, 24 * i as i32)))
            .chain((0..m).map(|i| (*outs, 24 * i as i32)));
        self.dims.extend([*rows, *cols]);
        for (base, offset) in views {
            let pointer = self.b.ins().load(types::I64, flags(), base, offset);
            let row = self.b.ins().load(types::I64, flags(), base, offset + 8);
            self.buffers.push(pointer);
            self.dims.push(row);
        }
        self.scratch_memory(None)?;
        self.block(&self.kernel.body)
    }

    fn scratch_memory(&mut self, argument: Option<Value>) -> Result<(), EmitError> {
        let (offsets, _) = self.kernel.scratch_layout();
        for (scratch, offset) in self.kernel.scratch.iter().zip(offsets) {
            let pointer = match (offset, argument) {
                (Some(offset), Some(argument)) => self.b.ins().iadd_imm_s(argument, offset as i64),
                _ if scratch.space == Space::Shared => {
                    return Err(EmitError::UnsupportedForm { backend: "CPU", what: "shared scratch" });
                }
                _ => {
                    let bytes = scratch.bytes() as u32;
                    let data = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 4);
                    let slot = self.b.create_sized_stack_slot(data);
                    self.b.ins().stack_addr(types::I64, slot, 0)
                }
            };
            self.scratch.push(pointer);
        }
        Ok(())
    }

    /// Start of a memory.
    pub fn base(&self, memory: Memory) -> Result<Value, EmitError> {
        let pointer = match memory {
            Memory::Buffer(b) => self.buffers.get(b as usize),
            Memory::Scratch(s) => self.scratch.get(s as usize),
        };
        pointer.copied().ok_or_else(|| EmitError::Malformed("memory".into()))
    }

    /// A dim parameter.
    pub fn dim(&self, dim: u32) -> Result<Value, EmitError> {
        self.dims.get(dim as usize).copied().ok_or_else(|| EmitError::Malformed("dim".into()))
    }

    /// Element type of a memory.
    pub fn element(&self, memory: Memory) -> Result<DType, EmitError> {
        self.kernel.memory(memory).ok_or_else(|| EmitError::Malformed("memory".into()))
    }

    /// Type of an expression.
    pub fn dtype(&self, e: &Expr) -> Result<DType, EmitError> {
        e.dtype(self.kernel).ok_or_else(|| EmitError::Malformed("an expression without a type".into()))
    }

    /// Address of an element.
    pub fn address(&mut self, memory: Memory, index: Value) -> Result<Value, EmitError> {
        let size = self.element(memory)?.size();
        let base = self.base(memory)?;
        let offset = self.b.ins().ishl_imm_s(index, i64::from(size.trailing_zeros()));
        Ok(self.b.ins().iadd(base, offset))
    }

    /// A loop `start, start + step, … < end`, tested at its end.
    pub fn counted(
        &mut self,
        start: Value,
        end: Value,
        step: i64,
        body: impl FnOnce(&mut Self, Value) -> Result<(), EmitError>,
    ) -> Result<(), EmitError> {
        let (repeat, done) = (self.b.create_block(), self.b.create_block());
        let counter = self.b.append_block_param(repeat, types::I64);
        let any = self.b.ins().icmp(IntCC::SignedLessThan, start, end);
        self.b.ins().brif(any, repeat, &[start.into()], done, &[]);
        self.b.switch_to_block(repeat);
        body(self, counter)?;
        let next = self.b.ins().iadd_imm_s(counter, step);
        let more = self.b.ins().icmp(IntCC::SignedLessThan, next, end);
        self.b.ins().brif(more, repeat, &[next.into()], done, &[]);
        self.b.switch_to_block(done);
        Ok(())
    }

    /// A list of statements.
    pub fn block(&mut self, body: &[Stmt]) -> Result<(), EmitError> {
        body.iter().try_for_each(|s| self.stmt(s))
    }

    fn stmt(&mut self, s: &Stmt) -> Result<(), EmitError> {
        match s {
            Stmt::Let { var, value } => {
                let value = self.scalar(value)?;
                self.slots[var.0 as usize] = Slot::Value(value);
            }
            Stmt::Mut { var, value } => {
                let value = self.scalar(value)?;
                let variable = self.b.declare_var(self.b.func.dfg.value_type(value));
                self.b.def_var(variable, value);
                self.slots[var.0 as usize] = Slot::Variable(variable);
            }
            Stmt::Assign { var, value } => {
                let value = self.scalar(value)?;
                self.set(*var, value)?;
            }
            Stmt::Accumulate { var, op, value } => {
                let combined = Expr::Binary(op.step(), Box::new(Expr::Var(*var)), Box::new(value.clone()));
                let value = self.scalar(&combined)?;
                self.set(*var, value)?;
            }
            Stmt::Store { memory, index, value } => {
                let value = self.scalar(value)?;
                let index = self.scalar(index)?;
                let address = self.address(*memory, index)?;
                self.b.ins().store(flags(), value, address, 0);
            }
            Stmt::For { var, start, end, step, kind, body } => {
                self.loop_(*var, start, end, *step, *kind, body)?;
            }
            Stmt::If { condition, then, otherwise } => {
                let condition = self.scalar(condition)?;
                let (yes, no, done) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
                self.b.ins().brif(condition, yes, &[], no, &[]);
                for (block, body) in [(yes, then), (no, otherwise)] {
                    self.b.switch_to_block(block);
                    self.block(body)?;
                    self.b.ins().jump(done, &[]);
                }
                self.b.switch_to_block(done);
            }
            Stmt::Call { function, dst, src, len } => {
                let (dst, src, len) = (self.strip(dst)?, self.strip(src)?, self.scalar(len)?);
                let parameters = [types::I64; 3];
                let callee = self.callee(Symbol::Vector(function.name().into()), &parameters, None);
                self.b.ins().call(callee, &[dst, src, len]);
            }
            // One thread: nothing to wait for, nothing to combine.
            Stmt::Barrier | Stmt::WarpReduce { .. } | Stmt::BlockReduce { .. } => {}
            Stmt::Tile(_) => return Err(EmitError::UnsupportedForm { backend: "CPU", what: "tiles of blocks" }),
            Stmt::Status { condition, code } => {
                let condition = self.scalar(condition)?;
                self.raise(condition, *code);
            }
        }
        Ok(())
    }

    /// Raises the status word where the condition holds.
    pub fn raise(&mut self, condition: Value, code: u32) {
        let (raise, done): (Block, Block) = (self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(raise);
        self.b.ins().brif(condition, raise, &[], done, &[]);
        self.b.switch_to_block(raise);
        if let Some(status) = self.status {
            let code = self.b.ins().iconst(types::I32, i64::from(code));
            self.b.ins().atomic_rmw(types::I32, flags(), AtomicRmwOp::Umax, status, code);
        }
        self.b.ins().jump(done, &[]);
        self.b.switch_to_block(done);
    }

    fn loop_(
        &mut self,
        var: Var,
        start: &Expr,
        end: &Expr,
        step: i64,
        kind: LoopKind,
        body: &[Stmt],
    ) -> Result<(), EmitError> {
        if let (LoopKind::Unroll, Some(first), Some(last)) = (kind, start.as_int(), end.as_int()) {
            let mut i = first;
            while i < last {
                let value = self.b.ins().iconst(types::I64, i);
                self.slots[var.0 as usize] = Slot::Value(value);
                self.block(body)?;
                i = i.saturating_add(step);
            }
            return Ok(());
        }
        if kind == LoopKind::Vector && self.vector_loop(var, start, end, body)? {
            return Ok(());
        }
        let (start, end) = (self.scalar(start)?, self.scalar(end)?);
        self.counted(start, end, step, |this, counter| {
            this.slots[var.0 as usize] = Slot::Value(counter);
            this.block(body)
        })
    }

    /// The value of a variable.
    pub fn get(&mut self, var: Var) -> Result<Value, EmitError> {
        match self.slots.get(var.0 as usize) {
            Some(Slot::Value(value)) => Ok(*value),
            Some(Slot::Variable(variable)) => Ok(self.b.use_var(*variable)),
            _ => Err(EmitError::Malformed(format!("{var} has no value"))),
        }
    }

    /// Assigns to a mutable variable.
    pub fn set(&mut self, var: Var, value: Value) -> Result<(), EmitError> {
        match self.slots.get(var.0 as usize) {
            Some(Slot::Variable(variable)) => {
                self.b.def_var(*variable, value);
                Ok(())
            }
            _ => Err(EmitError::Malformed(format!("{var} is not mutable"))),
        }
    }

    fn strip(&mut self, strip: &Strip) -> Result<Value, EmitError> {
        let index = self.scalar(&strip.index)?;
        self.address(Memory::Scratch(strip.scratch), index)
    }

    /// An external function. Its address comes from a relocated constant, so that it may lie anywhere.
    pub fn callee(&mut self, symbol: Symbol, parameters: &[Type], result: Option<Type>) -> FuncRef {
        if let Some(&callee) = self.functions.get(&symbol) {
            return callee;
        }
        let mut signature = Signature::new(self.isa.default_call_conv());
        signature.params.extend(parameters.iter().map(|&t| AbiParam::new(t)));
        signature.returns.extend(result.map(AbiParam::new));
        let signature = self.b.import_signature(signature);
        let index = self.symbols.len() as u32;
        let name = self.b.func.declare_imported_user_function(UserExternalName { namespace: 0, index });
        let name = ExternalName::user(name);
        let data = ExtFuncData { name, signature, colocated: false, patchable: false };
        let callee = self.b.import_function(data);
        self.symbols.push(symbol.clone());
        self.functions.insert(symbol, callee);
        callee
    }
}
