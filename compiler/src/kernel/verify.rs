//! The verifier: a table of named rules, and the walk that applies them.

use std::fmt;

use egret_ir::DType;

use super::expr::{BinaryOp, Expr, Literal, Memory, UnaryOp};
use super::ir::{Abi, Access, Kernel, LoopKind, ReduceOp, Scratch, Space, Stmt, Strip, Var};
use super::verify_tile::Copies;

/// Steps (loads, functions, comparisons, selects, casts, stores) in the straight-line part of one body. Bicubic sampling of a
/// grid, the longest program that an operator decomposes to, takes several hundred.
pub const MAX_STEPS: usize = 1024;
/// Bytes of shared scratch.
pub const MAX_SHARED_BYTES: usize = 232_448;
/// Bytes of scratch on the stack of a CPU kernel.
pub const MAX_STACK_BYTES: usize = 64 * 1024;
/// Depth of an expression.
const MAX_DEPTH: usize = 128;
/// Copies that an `Unroll` loop may make.
const MAX_UNROLL: i64 = 256;

macro_rules! rules {
    ($($name:ident $text:literal $doc:literal),* $(,)?) => {
        $(pub(super) const $name: &str = $text;)*
        /// Every rule: its name, and what must hold.
        pub(super) const RULES: &[(&str, &str)] = &[$(($text, $doc)),*];
    };
}

rules! {
    ABI "abi" "a hook has no grid, no status and one thread; its buffers and dims are those of its ABI",
    GRID "grid" "at most three extents, over dims and constants; grid indices are the first variables",
    THREADS "threads" "one to 1024 threads; thread loops, warps, blocks and barriers only where there are several",
    UNDEFINED "undefined" "a variable is defined once, before its use and in its scope; parameters exist",
    TYPE "type" "operands have the types that their operation takes",
    MUTABLE "mutable" "only mutable variables are assigned",
    ACCESS "access" "a buffer is loaded from and stored to only as its parameter says",
    BOUNDS "bounds" "a constant index lies in its scratch",
    LOOP "loop" "a step is positive; an unrolled loop has constant bounds and at most 256 copies; vector loops have step 1",
    VECTOR "vector" "a vector loop changes outside variables by accumulation alone, and does not read them",
    UNIFORM "uniform" "barriers are reached by all threads of the block or by none",
    TILE "tile" "tiles are shared scratch, matrices registers of whole warps; at once go 4, 8 or 16 bytes",
    ALIGN "align" "what is accessed by several elements at once begins at a multiple of their bytes",
    WAIT "wait" "what copies bring is read after a wait and a barrier; in a loop both may come before the copy",
    OVER "over" "what lies over other shared scratch is no longer than that",
    CALL "call" "a call works on strips of f32 scratch of a CPU kernel",
    STATUS "status" "a status code is not zero",
    BUDGET "budget" "steps, depth, shared memory and stack stay within their budgets",
}

/// A rule that a kernel breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// What breaks it.
    pub detail: String,
}

impl Finding {
    pub(super) fn new(rule: &'static str, detail: impl Into<String>) -> Self {
        Finding { rule, detail: detail.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.detail)?;
        match RULES.iter().find(|(name, _)| *name == self.rule) {
            Some((_, doc)) => write!(f, " ({doc})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Finding {}

impl Kernel {
    /// Checks every rule; all findings, in order of the text.
    pub fn verify(&self) -> Result<(), Vec<Finding>> {
        let mut check = Checker {
            kernel: self,
            vars: vec![State::default(); self.vars.len()],
            loops: Vec::new(),
            copies: vec![Copies::default(); self.scratch.len()],
            met: (false, false),
            findings: Vec::new(),
        };
        check.signature();
        check.block(&self.body, true);
        if check.findings.is_empty() { Ok(()) } else { Err(check.findings) }
    }
}

/// What is known of a variable.
#[derive(Clone, Copy, Default)]
struct State {
    defined: bool,
    in_scope: bool,
    mutable: bool,
    /// Differs between threads of a block.
    varying: bool,
    /// How many loops surround its definition.
    depth: usize,
}

pub(super) struct Checker<'a> {
    pub(super) kernel: &'a Kernel,
    vars: Vec<State>,
    pub(super) loops: Vec<LoopKind>,
    /// By scratch memory.
    pub(super) copies: Vec<Copies>,
    /// Whether a wait for copies, and whether a barrier after one, came before.
    pub(super) met: (bool, bool),
    findings: Vec<Finding>,
}

impl Checker<'_> {
    pub(super) fn report(&mut self, rule: &'static str, detail: impl Into<String>) {
        self.findings.push(Finding::new(rule, detail));
    }

    pub(super) fn require(&mut self, holds: bool, rule: &'static str, detail: impl FnOnce() -> String) {
        if !holds {
            self.report(rule, detail());
        }
    }

    fn signature(&mut self) {
        let k = self.kernel;
        let threads: u64 = k.threads.iter().map(|&t| u64::from(t)).product();
        self.require((1..=1024).contains(&threads), THREADS, || format!("{threads} threads"));
        self.require(k.grid.len() <= 3, GRID, || format!("{} extents", k.grid.len()));
        if let Abi::Hook { extras, outs } = k.abi {
            let buffers = 1 + extras as usize + outs as usize;
            let fits = k.buffers.len() == buffers && k.dims as usize == 2 + buffers;
            self.require(fits, ABI, || format!("{} buffers, {} dims", k.buffers.len(), k.dims));
            self.require(k.grid.is_empty() && threads == 1, ABI, || "a grid or threads".into());
        }
        for (i, extent) in k.grid.iter().enumerate() {
            let constant = !extent.any(&mut |e| matches!(e, Expr::Var(_) | Expr::Load { .. }));
            self.require(constant, GRID, || format!("extent {extent}"));
            self.expr(extent, Some(DType::I64));
            self.define(Var(i as u32), DType::I64, false, false);
        }
        for (i, s) in k.scratch.iter().enumerate() {
            let Some(over) = s.over else { continue };
            let below = k.scratch[..i].get(over as usize).filter(|b| b.space == Space::Shared && b.over.is_none());
            let fits = s.space == Space::Shared && below.is_some_and(|b| s.bytes() <= b.bytes());
            self.require(fits, OVER, || format!("s{i} over s{over}"));
        }
        let own = |s: &&Scratch| s.over.is_none();
        let bytes =
            |space| -> usize { k.scratch.iter().filter(own).filter(|s| s.space == space).map(|s| s.bytes()).sum() };
        let (shared, mut stack) = (bytes(Space::Shared), bytes(Space::Register));
        if matches!(k.abi, Abi::Hook { .. }) {
            stack += bytes(Space::Local);
        }
        self.require(shared <= MAX_SHARED_BYTES, BUDGET, || format!("{shared} bytes of shared memory"));
        self.require(stack <= MAX_STACK_BYTES, BUDGET, || format!("{stack} bytes of stack"));
    }

    fn define(&mut self, var: Var, dtype: DType, mutable: bool, varying: bool) {
        let depth = self.loops.len();
        let typed = self.kernel.var(var);
        self.require(typed == Some(dtype), TYPE, || format!("{var} has a value of type {dtype}"));
        match self.vars.get_mut(var.0 as usize) {
            Some(state) if !state.defined => {
                *state = State { defined: true, in_scope: true, mutable, varying, depth };
            }
            _ => self.report(UNDEFINED, format!("{var} is defined twice or unknown")),
        }
    }

    fn state(&self, var: Var) -> State {
        self.vars.get(var.0 as usize).copied().unwrap_or_default()
    }

    fn varies(&self, e: &Expr) -> bool {
        e.any(&mut |e| match e {
            Expr::Var(v) => self.state(*v).varying,
            Expr::Load { memory: Memory::Scratch(s), .. } => {
                self.kernel.scratch.get(*s as usize).is_none_or(|s| s.space != Space::Shared)
            }
            _ => false,
        })
    }

    /// A block of statements; `uniform` where all threads reach it together.
    fn block(&mut self, body: &[Stmt], uniform: bool) {
        let mut steps = 0;
        for s in body {
            s.expressions(|e| steps += e.steps());
            steps += usize::from(matches!(s, Stmt::Store { .. }));
            self.stmt(s, uniform);
        }
        self.require(steps <= MAX_STEPS, BUDGET, || format!("{steps} steps in one body"));
        for s in body {
            if let Some(state) = s.defines().and_then(|v| self.vars.get_mut(v.0 as usize)) {
                state.in_scope = false;
            }
        }
    }

    fn stmt(&mut self, s: &Stmt, uniform: bool) {
        match s {
            Stmt::Let { var, value } | Stmt::Mut { var, value } => {
                let dtype = self.expr(value, None);
                let mutable = matches!(s, Stmt::Mut { .. });
                let varying = self.varies(value) || !uniform;
                self.define(*var, dtype.unwrap_or(DType::I64), mutable, varying);
            }
            Stmt::Assign { var, value } => {
                let dtype = self.assigned(*var);
                self.expr(value, dtype);
                let outside = self.outside_vector(*var);
                self.require(!outside, VECTOR, || format!("{var} is assigned"));
                self.taint(*var, value, uniform);
            }
            Stmt::Accumulate { var, op, value } => {
                let dtype = self.assigned(*var);
                self.expr(value, dtype);
                self.reducible(*op, dtype);
                self.taint(*var, value, uniform);
            }
            Stmt::Store { memory, index, value } => {
                if let Memory::Buffer(b) = memory
                    && self.kernel.buffers.get(*b as usize).is_some_and(|b| !b.access.writes())
                {
                    self.report(ACCESS, format!("a store to {memory}"));
                }
                self.expr(index, Some(DType::I64));
                self.bounds(*memory, index);
                let dtype = self.element(*memory);
                self.expr(value, dtype);
            }
            Stmt::For { var, start, end, step, kind, body } => {
                self.loop_(*var, start, end, *step, *kind, body, uniform);
            }
            Stmt::If { condition, then, otherwise } => {
                self.expr(condition, Some(DType::Bool));
                let uniform = uniform && !self.varies(condition);
                self.block(then, uniform);
                self.block(otherwise, uniform);
            }
            Stmt::Call { dst, src, len, .. } => {
                self.expr(len, Some(DType::I64));
                self.strip(dst);
                self.strip(src);
                let one = self.kernel.block_threads() == 1;
                self.require(one, CALL, || "in a kernel of many threads".into());
            }
            Stmt::Barrier => {
                self.meeting(uniform, "a barrier");
                self.arrive();
            }
            Stmt::Tile(tile) => self.tile(tile, uniform),
            Stmt::WarpReduce { var, op, .. } | Stmt::BlockReduce { var, op } => {
                if let Stmt::WarpReduce { lanes, .. } = s {
                    let run = lanes.is_power_of_two() && (2..=32).contains(lanes);
                    self.require(run, THREADS, || format!("a reduction over {lanes} lanes"));
                }
                self.meeting(uniform, "a reduction");
                let dtype = self.assigned(*var);
                self.reducible(*op, dtype);
                if let Some(state) = self.vars.get_mut(var.0 as usize) {
                    state.varying = matches!(s, Stmt::WarpReduce { .. });
                }
            }
            Stmt::Status { condition, code } => {
                self.expr(condition, Some(DType::Bool));
                self.require(*code != 0, STATUS, || "code 0".into());
                self.require(self.kernel.abi == Abi::Kernel, ABI, || "a status in a hook".into());
            }
        }
    }

    fn loop_(&mut self, var: Var, start: &Expr, end: &Expr, step: i64, kind: LoopKind, body: &[Stmt], uniform: bool) {
        self.expr(start, Some(DType::I64));
        self.expr(end, Some(DType::I64));
        self.require(step > 0, LOOP, || format!("step {step}"));
        let trips = match (start.as_int(), end.as_int()) {
            (Some(a), Some(b)) => Some(b.saturating_sub(a).max(0)),
            _ => None,
        };
        let mut meets = uniform && !self.varies(start) && !self.varies(end);
        let mut varying = !meets;
        match kind {
            LoopKind::Serial | LoopKind::Rolled => {}
            LoopKind::Unroll => {
                let copies = trips.map(|t| t / step.max(1));
                let fits = copies.is_some_and(|c| c <= MAX_UNROLL);
                self.require(fits, LOOP, || format!("{start} .. {end} unrolled"));
            }
            LoopKind::Vector => self.require(step == 1, LOOP, || format!("vector step {step}")),
            LoopKind::Thread(axis) => {
                let threads = self.kernel.threads.get(axis as usize).copied();
                self.require(threads.is_some(), THREADS, || format!("axis {axis}"));
                let nested = self.loops.contains(&kind);
                self.require(!nested, THREADS, || format!("axis {axis} within itself"));
                // One iteration a thread, all threads busy.
                meets &= threads.is_some_and(|t| trips == Some(i64::from(t)) && step == 1);
                varying = true;
            }
        }
        self.define(var, DType::I64, false, varying);
        self.loops.push(kind);
        // What the body does to a variable reaches its next iteration.
        self.carry(body, kind, meets);
        if kind == LoopKind::Vector {
            self.accumulators(body);
        }
        self.block(body, meets);
        self.loops.pop();
    }

    /// Marks outer variables that a body changes in a varying way before the body is checked.
    fn carry(&mut self, body: &[Stmt], kind: LoopKind, uniform: bool) {
        let varying = matches!(kind, LoopKind::Thread(_)) || !uniform;
        for s in body {
            s.any(&mut |s| {
                if let Stmt::Assign { var, value } | Stmt::Accumulate { var, value, .. } = s
                    && (varying || self.varies(value))
                    && let Some(state) = self.vars.get_mut(var.0 as usize)
                {
                    state.varying = true;
                }
                false
            });
        }
    }

    /// A vector loop does not read what it accumulates.
    fn accumulators(&mut self, body: &[Stmt]) {
        let mut outside = Vec::new();
        let mut reads = Vec::new();
        for s in body {
            s.any(&mut |s| {
                if let Stmt::Accumulate { var, .. } = s
                    && self.state(*var).in_scope
                {
                    outside.push(*var);
                }
                s.expressions(|e| {
                    e.any(&mut |e| {
                        if let Expr::Var(v) = e {
                            reads.push(*v);
                        }
                        false
                    });
                });
                false
            });
        }
        for var in outside {
            self.require(!reads.contains(&var), VECTOR, || format!("{var} is read"));
        }
    }

    fn outside_vector(&self, var: Var) -> bool {
        let depth = self.state(var).depth;
        self.loops.iter().skip(depth).any(|kind| *kind == LoopKind::Vector)
    }

    fn taint(&mut self, var: Var, value: &Expr, uniform: bool) {
        let inside_threads = self.loops.iter().any(|k| matches!(k, LoopKind::Thread(_)));
        let varying = !uniform || inside_threads || self.varies(value);
        if let Some(state) = self.vars.get_mut(var.0 as usize) {
            state.varying |= varying;
        }
    }

    pub(super) fn meeting(&mut self, uniform: bool, what: &str) {
        self.require(uniform, UNIFORM, || format!("{what} where threads diverge"));
        let vector = self.loops.contains(&LoopKind::Vector);
        self.require(!vector, UNIFORM, || format!("{what} in a vector loop"));
    }

    fn assigned(&mut self, var: Var) -> Option<DType> {
        let state = self.state(var);
        self.require(state.in_scope, UNDEFINED, || format!("{var} is assigned out of scope"));
        self.require(state.mutable, MUTABLE, || format!("{var} is assigned"));
        self.kernel.var(var)
    }

    fn reducible(&mut self, op: ReduceOp, dtype: Option<DType>) {
        let numeric = dtype != Some(DType::Bool) || matches!(op, ReduceOp::Max | ReduceOp::Min);
        self.require(numeric, TYPE, || format!("{} of bool", op.name()));
    }

    fn element(&mut self, memory: Memory) -> Option<DType> {
        let dtype = self.kernel.memory(memory);
        self.require(dtype.is_some(), UNDEFINED, || format!("{memory} does not exist"));
        dtype
    }

    fn bounds(&mut self, memory: Memory, index: &Expr) {
        let Memory::Scratch(s) = memory else { return };
        let len = self.kernel.scratch.get(s as usize).map_or(0, |s| s.len);
        if let Some(i) = index.as_int() {
            let inside = usize::try_from(i).is_ok_and(|i| i < len);
            self.require(inside, BOUNDS, || format!("{memory}[{i}] of {len}"));
        }
    }

    fn strip(&mut self, strip: &Strip) {
        let memory = Memory::Scratch(strip.scratch);
        let dtype = self.element(memory);
        self.require(dtype == Some(DType::F32), CALL, || format!("{memory} is not f32"));
        self.expr(&strip.index, Some(DType::I64));
        self.bounds(memory, &strip.index);
    }

    /// Checks an expression at the root of a statement; its type.
    pub(super) fn expr(&mut self, e: &Expr, expected: Option<DType>) -> Option<DType> {
        let dtype = self.typed(e, 0);
        if let (Some(found), Some(expected)) = (dtype, expected) {
            self.require(found == expected, TYPE, || format!("{e} is {found}, not {expected}"));
        }
        dtype
    }

    fn typed(&mut self, e: &Expr, depth: usize) -> Option<DType> {
        if depth > MAX_DEPTH {
            self.report(BUDGET, "an expression is too deep");
            return None;
        }
        let depth = depth + 1;
        match e {
            Expr::Var(v) => {
                self.require(self.state(*v).in_scope, UNDEFINED, || format!("{v} is not defined here"));
                self.kernel.var(*v)
            }
            Expr::Literal(l) => {
                let fits = match l {
                    Literal::Bool(_) => true,
                    Literal::Int(t, _) => t.is_int(),
                    Literal::Float(t, _) => t.is_float(),
                };
                self.require(fits, TYPE, || format!("literal {l}"));
                Some(l.dtype())
            }
            Expr::Dim(d) => {
                self.require(*d < self.kernel.dims, UNDEFINED, || format!("d{d} does not exist"));
                Some(DType::I64)
            }
            Expr::Load { memory, index, mask } => {
                if let Memory::Buffer(b) = memory
                    && self.kernel.buffers.get(*b as usize).is_some_and(|b| b.access == Access::Write)
                {
                    self.report(ACCESS, format!("a load from {memory}"));
                }
                self.operand(index, depth, DType::I64);
                self.bounds(*memory, index);
                self.arrived(*memory);
                if let Some(mask) = mask {
                    self.operand(mask, depth, DType::Bool);
                }
                self.element(*memory)
            }
            Expr::Unary(op, a) => {
                let t = self.typed(a, depth)?;
                let takes = match op {
                    UnaryOp::Not => !t.is_float(),
                    UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Sign => t != DType::Bool,
                    _ => t.is_float(),
                };
                self.require(takes, TYPE, || format!("{} of {t}", op.name()));
                Some(if *op == UnaryOp::IsNan { DType::Bool } else { t })
            }
            Expr::Binary(op, a, b) => {
                let (ta, tb) = (self.typed(a, depth)?, self.typed(b, depth)?);
                self.require(ta == tb, TYPE, || format!("{ta} {} {tb}", op.name()));
                let takes = match op {
                    BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => !ta.is_float(),
                    BinaryOp::Max | BinaryOp::Min => true,
                    BinaryOp::Shl | BinaryOp::Shr => ta.is_int(),
                    _ => ta != DType::Bool,
                };
                self.require(takes, TYPE, || format!("{} of {ta}", op.name()));
                Some(ta)
            }
            Expr::Compare(op, a, b) => {
                let (ta, tb) = (self.typed(a, depth)?, self.typed(b, depth)?);
                self.require(ta == tb, TYPE, || format!("{ta} {} {tb}", op.name()));
                Some(DType::Bool)
            }
            Expr::Select(c, a, b) => {
                self.operand(c, depth, DType::Bool);
                let (ta, tb) = (self.typed(a, depth)?, self.typed(b, depth)?);
                self.require(ta == tb, TYPE, || format!("select of {ta} and {tb}"));
                Some(ta)
            }
            Expr::Cast(t, a) => {
                self.typed(a, depth)?;
                Some(*t)
            }
        }
    }

    fn operand(&mut self, e: &Expr, depth: usize, expected: DType) {
        if let Some(found) = self.typed(e, depth) {
            self.require(found == expected, TYPE, || format!("{e} is {found}, not {expected}"));
        }
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
