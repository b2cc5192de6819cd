//! Vector loops: 128-bit lanes, several accumulators, a scalar remainder.
//!
//! A loop has four lanes (32-bit data) or two (64-bit data). An expression whose type fits the lanes is one vector;
//! any other (an index, a call of the C library) is computed lane by lane as scalars. Inner loops and
//! conditionals are vectorised where all lanes go the same way; a loop whose lanes part runs as scalars.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use cranelift_frontend::Variable;
use egret_ir::DType;

use super::function::{Lower, Slot};
use super::half::is_half;
use super::narrow::is_narrow;
use crate::emit::EmitError;
use crate::kernel::{BinaryOp, Expr, Kernel, LoopKind, Memory, ReduceOp, Stmt, Var};

/// Vectors that a reduction's main loop takes at a time, each with its own accumulator.
const REDUCTION_COPIES: u32 = 4;
/// Vectors that any other main loop takes at a time.
const MAP_COPIES: u32 = 2;
/// Steps above which a body is not copied.
const COPY_STEPS: usize = 48;

/// A variable that the body of a vector loop defines, or the loop's own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Inner<'s> {
    /// The loop's own.
    Counter,
    /// A value that differs from lane to lane.
    Let(&'s Expr),
    /// A mutable variable, taken to differ from lane to lane.
    Mutable,
    /// The same in all lanes: an inner loop's variable, or a value made of such.
    Uniform,
}

/// What is known of a vector loop while its body is emitted.
pub(super) struct VectorLoop<'s> {
    pub var: Var,
    pub lanes: u32,
    /// Memory that the body stores to: loads from it stay where they are.
    pub written: BTreeSet<Memory>,
    /// Variables of the loop and its body.
    pub inner: BTreeMap<Var, Inner<'s>>,
    /// Outer variables that the body accumulates into.
    pub reduced: BTreeMap<Var, ReduceOp>,
    /// Values computed before the loop: splats of invariant expressions.
    pub splats: HashMap<Expr, Value>,
    /// Addresses of element `base` of a memory, for unit-stride accesses.
    pub pointers: HashMap<(Memory, Expr), Value>,
    /// Vector accumulators of outer variables, one a copy.
    pub accumulators: BTreeMap<Var, Vec<Variable>>,
    /// Variables whose values are stored, accumulated or assigned as such.
    values: BTreeSet<Var>,
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
    /// Mutable variables: one vector, or a scalar a lane.
    pub mutables: BTreeMap<Var, Vec<Variable>>,
}

/// The vector type of an element type in a loop of so many lanes. A `bool` is a mask of all ones or zeros, a half its
/// bits in a wider lane, a narrow integer its value in one.
pub(super) fn vector_type(dtype: DType, lanes: u32) -> Option<Type> {
    match (dtype, lanes) {
        (DType::F32, 4) => Some(types::F32X4),
        (DType::I32 | DType::U32 | DType::Bool | DType::F16 | DType::BF16, 4) => Some(types::I32X4),
        (narrow, 4) if is_narrow(narrow) => Some(types::I32X4),
        (DType::F64, 2) => Some(types::F64X2),
        (DType::I64 | DType::U64 | DType::Bool, 2) => Some(types::I64X2),
        _ => None,
    }
}

pub(super) fn same_bytes() -> MemFlagsData {
    MemFlagsData::new().with_endianness(Endianness::Little)
}

fn steps(body: &[Stmt]) -> usize {
    let mut total = 0;
    for s in body {
        s.any(&mut |s| {
            s.expressions(|e| total += e.steps());
            false
        });
    }
    total
}

impl Lower<'_, '_> {
    /// Emits a `Vector` loop; false where its lanes part or its data have no vectors, for the caller to emit it as
    /// scalars.
    pub fn vector_loop(&mut self, var: Var, start: &Expr, end: &Expr, body: &[Stmt]) -> Result<bool, EmitError> {
        let Some(mut looped) = VectorLoop::survey(self.kernel, var, body) else { return Ok(false) };
        let copies = match (steps(body) <= COPY_STEPS, looped.reduced.is_empty()) {
            (false, _) => 1,
            (true, false) => REDUCTION_COPIES,
            (true, true) => MAP_COPIES,
        };

        let (start, end) = (self.scalar(start)?, self.scalar(end)?);
        let (enter, done) = (self.b.create_block(), self.b.create_block());
        let any = self.b.ins().icmp(IntCC::SignedLessThan, start, end);
        self.b.ins().brif(any, enter, &[], done, &[]);
        self.b.switch_to_block(enter);
        self.hoist_block(&mut looped, body, false)?;
        self.open_accumulators(&mut looped, copies)?;

        let length = self.b.ins().isub(end, start);
        let whole = |this: &mut Self, group: u32| {
            let counted = this.b.ins().band_imm_s(length, -i64::from(group));
            this.b.ins().iadd(start, counted)
        };
        let vector_end = whole(self, looped.lanes);
        let mut from = start;
        if copies > 1 {
            let main_end = whole(self, looped.lanes * copies);
            self.groups(&looped, body, from, main_end, copies)?;
            self.join_copies(&looped)?;
            from = main_end;
        }
        self.groups(&looped, body, from, vector_end, 1)?;
        self.close_accumulators(&looped)?;
        self.counted(vector_end, end, 1, |this, counter| {
            this.slots[var.0 as usize] = Slot::Value(counter);
            this.block(body)
        })?;
        self.b.ins().jump(done, &[]);
        self.b.switch_to_block(done);
        Ok(true)
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
            let group = |copy| Group {
                copy,
                counter,
                vectors: BTreeMap::new(),
                scalars: BTreeMap::new(),
                mutables: BTreeMap::new(),
            };
            let mut groups: Vec<Group> = (0..copies).map(group).collect();
            this.vector_block(looped, &mut groups, body)
        })
    }

    /// Statements, each for every copy in turn.
    fn vector_block(&mut self, looped: &VectorLoop<'_>, groups: &mut [Group], body: &[Stmt]) -> Result<(), EmitError> {
        for s in body {
            match s {
                Stmt::For { var, start, end, step, kind, body } => {
                    self.inner_loop(looped, groups, *var, (start, end, *step), *kind, body)?;
                }
                Stmt::If { condition, then, otherwise } => {
                    let condition = self.scalar(condition)?;
                    let (yes, no, done) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
                    self.b.ins().brif(condition, yes, &[], no, &[]);
                    for (block, body) in [(yes, then), (no, otherwise)] {
                        self.b.switch_to_block(block);
                        self.nested(looped, groups, body)?;
                        self.b.ins().jump(done, &[]);
                    }
                    self.b.switch_to_block(done);
                }
                Stmt::Let { var, value } if matches!(looped.inner.get(var), Some(Inner::Uniform)) => {
                    let value = self.scalar(value)?;
                    self.slots[var.0 as usize] = Slot::Value(value);
                }
                _ => groups.iter_mut().try_for_each(|group| self.vector_stmt(looped, group, s))?,
            }
        }
        Ok(())
    }

    /// A body that may not run: what is computed in it on the way is forgotten after it.
    fn nested(&mut self, looped: &VectorLoop<'_>, groups: &mut [Group], body: &[Stmt]) -> Result<(), EmitError> {
        let known: Vec<_> = groups.iter().map(|group| group.scalars.clone()).collect();
        self.vector_block(looped, groups, body)?;
        groups.iter_mut().zip(known).for_each(|(group, known)| group.scalars = known);
        Ok(())
    }

    fn inner_loop(
        &mut self,
        looped: &VectorLoop<'_>,
        groups: &mut [Group],
        var: Var,
        (start, end, step): (&Expr, &Expr, i64),
        kind: LoopKind,
        body: &[Stmt],
    ) -> Result<(), EmitError> {
        if let (LoopKind::Unroll, Some(first), Some(last)) = (kind, start.as_int(), end.as_int()) {
            let mut i = first;
            while i < last {
                let value = self.b.ins().iconst(types::I64, i);
                self.slots[var.0 as usize] = Slot::Value(value);
                self.nested(looped, groups, body)?;
                i = i.saturating_add(step);
            }
            return Ok(());
        }
        let (start, end) = (self.scalar(start)?, self.scalar(end)?);
        self.counted(start, end, step, |this, counter| {
            this.slots[var.0 as usize] = Slot::Value(counter);
            this.nested(looped, groups, body)
        })
    }

    /// A statement without a body, for one copy.
    fn vector_stmt(&mut self, looped: &VectorLoop<'_>, group: &mut Group, s: &Stmt) -> Result<(), EmitError> {
        match s {
            Stmt::Let { var, value } => {
                let fits = vector_type(self.dtype(value)?, looped.lanes).is_some();
                if fits && !looped.index_only(*var, value) {
                    let vector = self.vector(looped, group, value)?;
                    group.vectors.insert(*var, vector);
                } else if looped.is_momentary(value) {
                    for lane in 0..looped.lanes {
                        self.lane_variable(looped, group, *var, lane)?;
                    }
                }
            }
            Stmt::Mut { var, value } => {
                let values = self.all_lanes(looped, group, value)?;
                let declare = |value: Value| {
                    let variable = self.b.declare_var(self.b.func.dfg.value_type(value));
                    self.b.def_var(variable, value);
                    variable
                };
                let variables = values.into_iter().map(declare).collect();
                group.mutables.insert(*var, variables);
            }
            Stmt::Assign { var, value } => {
                let values = self.all_lanes(looped, group, value)?;
                self.assign(group, *var, values)?;
            }
            Stmt::Accumulate { var, op, value } if matches!(looped.inner.get(var), Some(Inner::Mutable)) => {
                let sum = Expr::Binary(op.step(), Box::new(Expr::Var(*var)), Box::new(value.clone()));
                let values = self.all_lanes(looped, group, &sum)?;
                self.assign(group, *var, values)?;
            }
            Stmt::Accumulate { var, op, value } => self.accumulate(looped, group, *var, *op, value)?,
            Stmt::Store { memory, index, value } => self.vector_store(looped, group, *memory, index, value)?,
            Stmt::Status { condition, code } => {
                let mut any = self.lane(looped, group, condition, 0)?;
                for lane in 1..looped.lanes {
                    let more = self.lane(looped, group, condition, lane)?;
                    any = self.b.ins().bor(any, more);
                }
                self.raise(any, *code);
            }
            _ => return Err(EmitError::Backend("a statement that no vector loop has".into())),
        }
        Ok(())
    }

    /// One vector, or a scalar a lane where the type does not fit.
    fn all_lanes(&mut self, looped: &VectorLoop<'_>, group: &mut Group, e: &Expr) -> Result<Vec<Value>, EmitError> {
        if vector_type(self.dtype(e)?, looped.lanes).is_some() {
            return Ok(vec![self.vector(looped, group, e)?]);
        }
        (0..looped.lanes).map(|lane| self.lane(looped, group, e, lane)).collect()
    }

    fn assign(&mut self, group: &Group, var: Var, values: Vec<Value>) -> Result<(), EmitError> {
        let Some(variables) = group.mutables.get(&var).filter(|v| v.len() == values.len()) else {
            return Err(EmitError::Backend(format!("{var} is assigned before it has lanes")));
        };
        variables.iter().zip(values).for_each(|(variable, value)| self.b.def_var(*variable, value));
        Ok(())
    }

    /// One step into an outer variable.
    fn accumulate(
        &mut self,
        looped: &VectorLoop<'_>,
        group: &mut Group,
        var: Var,
        op: ReduceOp,
        value: &Expr,
    ) -> Result<(), EmitError> {
        let dtype = self.dtype(&Expr::Var(var))?;
        let Some(copies) = looped.accumulators.get(&var) else {
            for lane in 0..looped.lanes {
                let value = self.lane(looped, group, value, lane)?;
                let sum = self.get(var)?;
                let next = self.combine_scalars(op, dtype, sum, value)?;
                self.set(var, next)?;
            }
            return Ok(());
        };
        let Some(&variable) = copies.get(group.copy as usize) else {
            return Err(EmitError::Backend("an accumulator".into()));
        };
        let sum = self.b.use_var(variable);
        let next = match (op, value) {
            (ReduceOp::Sum, Expr::Binary(BinaryOp::Mul, x, y)) if self.fma && dtype.is_float() => {
                let x = self.vector(looped, group, x)?;
                let y = self.vector(looped, group, y)?;
                self.b.ins().fma(x, y, sum)
            }
            _ => {
                let value = self.vector(looped, group, value)?;
                self.combine(op, dtype, value, sum)?
            }
        };
        self.b.def_var(variable, next);
        Ok(())
    }
}

impl<'s> VectorLoop<'s> {
    /// What a loop is as a vector loop; `None` where it is none.
    fn survey(kernel: &Kernel, var: Var, body: &'s [Stmt]) -> Option<VectorLoop<'s>> {
        let mut looped = VectorLoop {
            var,
            lanes: lanes(kernel, body)?,
            written: BTreeSet::new(),
            inner: BTreeMap::from([(var, Inner::Counter)]),
            reduced: BTreeMap::new(),
            splats: HashMap::new(),
            pointers: HashMap::new(),
            accumulators: BTreeMap::new(),
            values: BTreeSet::new(),
        };
        for s in body {
            s.any(&mut |s| {
                if let Stmt::Store { memory, .. } = s {
                    looped.written.insert(*memory);
                }
                if let Stmt::Store { value, .. }
                | Stmt::Accumulate { value, .. }
                | Stmt::Mut { value, .. }
                | Stmt::Assign { value, .. } = s
                {
                    value.any(&mut |e| {
                        if let Expr::Var(v) = e {
                            looped.values.insert(*v);
                        }
                        false
                    });
                }
                false
            });
        }
        looped.survey_block(body).then_some(looped)
    }

    fn survey_block(&mut self, body: &'s [Stmt]) -> bool {
        body.iter().all(|s| match s {
            Stmt::Let { var, value } => {
                let kind = if self.varies(value) { Inner::Let(value) } else { Inner::Uniform };
                self.inner.insert(*var, kind);
                true
            }
            Stmt::Mut { var, .. } => {
                self.inner.insert(*var, Inner::Mutable);
                true
            }
            Stmt::Assign { var, .. } => matches!(self.inner.get(var), Some(Inner::Mutable)),
            Stmt::Accumulate { var, op, .. } => match self.inner.get(var) {
                Some(kind) => matches!(kind, Inner::Mutable),
                None => *self.reduced.entry(*var).or_insert(*op) == *op,
            },
            Stmt::For { var, start, end, body, .. } => {
                self.inner.insert(*var, Inner::Uniform);
                !self.varies(start) && !self.varies(end) && self.survey_block(body)
            }
            Stmt::If { condition, then, otherwise } => {
                !self.varies(condition) && self.survey_block(then) && self.survey_block(otherwise)
            }
            Stmt::Store { .. } | Stmt::Status { .. } => true,
            Stmt::Call { .. } | Stmt::Barrier | Stmt::WarpReduce { .. } | Stmt::BlockReduce { .. } | Stmt::Tile(_) => {
                false
            }
        })
    }

    /// Whether lanes may have different values of an expression.
    pub fn varies(&self, e: &Expr) -> bool {
        e.any(&mut |e| match e {
            Expr::Var(v) => self.inner.get(v).is_some_and(|kind| !matches!(kind, Inner::Uniform)),
            Expr::Load { memory, .. } => self.written.contains(memory),
            _ => false,
        })
    }

    /// Whether an expression has one value in all iterations, and may be computed before them.
    pub fn invariant(&self, e: &Expr) -> bool {
        !self.varies(e) && !e.any(&mut |e| matches!(e, Expr::Var(v) if self.inner.contains_key(v)))
    }

    /// Whether an expression may have another value later in the same iteration.
    fn is_momentary(&self, e: &Expr) -> bool {
        e.any(&mut |e| match e {
            Expr::Load { memory, .. } => self.written.contains(memory),
            Expr::Var(v) => matches!(self.inner.get(v), Some(Inner::Mutable)),
            _ => false,
        })
    }

    /// Whether a variable is affine and no stored value mentions it, so that indices alone use it.
    fn index_only(&self, var: Var, value: &Expr) -> bool {
        self.lanes == 2 && !self.values.contains(&var) && self.affine(value).is_some()
    }
}

/// Four lanes where a body handles data of at most 32 bits in vectors, two where it handles 64-bit data only.
fn lanes(kernel: &Kernel, body: &[Stmt]) -> Option<u32> {
    let mut seen = BTreeSet::new();
    let mut look = |s: &Stmt| {
        let value = match s {
            Stmt::Store { value, .. } | Stmt::Accumulate { value, .. } => {
                seen.extend(value.dtype(kernel));
                value
            }
            Stmt::Let { value, .. } | Stmt::Mut { value, .. } | Stmt::Assign { value, .. } => value,
            _ => return false,
        };
        value.any(&mut |e| {
            if let Expr::Load { memory, .. } = e {
                seen.extend(kernel.memory(*memory));
            }
            false
        });
        false
    };
    body.iter().for_each(|s| {
        s.any(&mut look);
    });
    let any = |types: &[DType]| types.iter().any(|t| seen.contains(t));
    if any(&[DType::F32, DType::I32, DType::U32]) || seen.iter().any(|t| is_half(*t)) {
        Some(4)
    } else if any(&[DType::F64, DType::I64, DType::U64]) {
        Some(2)
    } else {
        seen.iter().any(|t| *t == DType::Bool || is_narrow(*t)).then_some(4)
    }
}
