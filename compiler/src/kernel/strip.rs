//! Strips: vector loops that call wide functions.
//!
//! A vector loop with transcendental functions becomes a loop over strips of [`STRIP`] elements that stay in L1. In each
//! strip the body runs in phases: a phase computes the arguments of functions into scratch, the functions are called on
//! whole strips, the next phase goes on from their results. Values that a later phase needs are kept in scratch too,
//! but for cheap ones, which are computed again.

use std::collections::{BTreeMap, BTreeSet};

use egret_ir::DType;

use super::expr::{Expr, Memory, VectorFunction};
use super::ir::{Kernel, LoopKind, Scratch, Space, Stmt, Strip, Var};

/// Elements of a strip.
pub const STRIP: usize = 256;

/// Strips that one loop may use; with more, it is left as it is.
const MAX_STRIPS: usize = 24;
/// Steps up to which a value is computed again rather than kept.
const CHEAP_STEPS: usize = 2;

impl Kernel {
    /// The kernel as the CPU runs it: arithmetic of halves in `f32`, wide functions on strips.
    #[must_use]
    pub fn for_cpu(self) -> Kernel {
        self.with_wide_halves().with_strips()
    }

    /// The kernel with its vector loops cut into strips wherever they call a function that exists wide. For the CPU.
    #[must_use]
    pub fn with_strips(mut self) -> Kernel {
        let body = std::mem::take(&mut self.body);
        let mut pool = Pool::default();
        self.body = self.strip_block(body, &mut pool);
        self.canonicalise();
        self
    }

    fn strip_block(&mut self, body: Vec<Stmt>, pool: &mut Pool) -> Vec<Stmt> {
        let mut result = Vec::with_capacity(body.len());
        for s in body {
            match s {
                Stmt::For { var, start, end, step, kind: LoopKind::Vector, body } => {
                    match Splitter::split(self, var, &body) {
                        Some(splitter) => splitter.print(self, start, end, pool, &mut result),
                        None => result.push(Stmt::For { var, start, end, step, kind: LoopKind::Vector, body }),
                    }
                }
                Stmt::For { var, start, end, step, kind, body } => {
                    let body = self.strip_block(body, pool);
                    result.push(Stmt::For { var, start, end, step, kind, body });
                }
                Stmt::If { condition, then, otherwise } => {
                    let (then, otherwise) = (self.strip_block(then, pool), self.strip_block(otherwise, pool));
                    result.push(Stmt::If { condition, then, otherwise });
                }
                other => result.push(other),
            }
        }
        result
    }

    fn fresh(&mut self, dtype: DType) -> Var {
        self.vars.push(dtype);
        Var(self.vars.len() as u32 - 1)
    }
}

/// A step of the body, calls taken out of its expressions.
enum Item {
    Value { var: Var, value: Expr },
    Call { var: Var, function: VectorFunction, argument: Expr },
    Effect(Stmt),
}

impl Item {
    fn expressions<'a>(&'a self, mut f: impl FnMut(&'a Expr)) {
        match self {
            Item::Value { value: e, .. } | Item::Call { argument: e, .. } => f(e),
            Item::Effect(s) => s.expressions(f),
        }
    }

    fn defines(&self) -> Option<Var> {
        match self {
            Item::Value { var, .. } | Item::Call { var, .. } => Some(*var),
            Item::Effect(_) => None,
        }
    }
}

struct Splitter {
    var: Var,
    /// Items with their phase.
    items: Vec<(usize, Item)>,
    /// Phase after which a variable of the body has its value.
    ready: BTreeMap<Var, usize>,
    written: BTreeSet<Memory>,
}

impl Splitter {
    fn split(kernel: &mut Kernel, var: Var, body: &[Stmt]) -> Option<Splitter> {
        let straight =
            body.iter().all(|s| matches!(s, Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Accumulate { .. }));
        let mut functions = false;
        for s in body {
            s.expressions(|e| functions |= e.any(&mut |e| wide(kernel, e).is_some()));
        }
        if !straight || !functions {
            return None;
        }
        let mut splitter =
            Splitter { var, items: Vec::new(), ready: BTreeMap::from([(var, 0)]), written: BTreeSet::new() };
        for s in body {
            if let Stmt::Store { memory, .. } = s {
                splitter.written.insert(*memory);
            }
        }
        let mut flat = Vec::new();
        for s in body {
            let mut s = s.clone();
            s.expressions_mut(|e| *e = splitter.take_calls(kernel, e, &mut flat));
            flat.push(match s {
                Stmt::Let { var, value } => {
                    splitter.ready.insert(var, 0);
                    Item::Value { var, value }
                }
                other => Item::Effect(other),
            });
        }
        splitter.assign_phases(flat);
        let called = splitter.items.iter().any(|(_, i)| matches!(i, Item::Call { .. }));
        let strips = splitter.items.iter().filter(|(_, i)| i.defines().is_some()).count();
        (called && strips <= MAX_STRIPS).then_some(splitter)
    }

    /// The expression with its wide functions of varying arguments replaced by variables.
    fn take_calls(&mut self, kernel: &mut Kernel, e: &Expr, items: &mut Vec<Item>) -> Expr {
        let mut e = e.clone();
        let function = wide(kernel, &e);
        e.operands_mut(|e| *e = self.take_calls(kernel, e, items));
        let (Some(function), Expr::Unary(_, argument)) = (function, &e) else {
            return e;
        };
        if !argument.any(&mut |e| self.varies(e)) {
            return e;
        }
        let known = items.iter().find_map(|item| match item {
            Item::Call { var, function: f, argument: a }
                if *f == function && a == &**argument && !self.loads_written(a) =>
            {
                Some(*var)
            }
            _ => None,
        });
        let var = known.unwrap_or_else(|| {
            let var = kernel.fresh(DType::F32);
            self.ready.insert(var, 0);
            items.push(Item::Call { var, function, argument: (**argument).clone() });
            var
        });
        Expr::Var(var)
    }

    fn varies(&self, e: &Expr) -> bool {
        matches!(e, Expr::Var(v) if self.ready.contains_key(v)) || self.loads_written_here(e)
    }

    fn loads_written_here(&self, e: &Expr) -> bool {
        matches!(e, Expr::Load { memory, .. } if self.written.contains(memory))
    }

    fn loads_written(&self, e: &Expr) -> bool {
        e.any(&mut |e| self.loads_written_here(e))
    }

    /// An item runs once what it reads is ready, and not before an earlier access that it must follow.
    fn assign_phases(&mut self, flat: Vec<Item>) {
        let mut loaded: BTreeMap<Memory, usize> = BTreeMap::new();
        let mut stored: BTreeMap<Memory, usize> = BTreeMap::new();
        for item in flat {
            let mut phase = 0;
            let mut loads = BTreeSet::new();
            item.expressions(|e| {
                e.any(&mut |e| {
                    match e {
                        Expr::Var(v) => phase = phase.max(self.ready.get(v).copied().unwrap_or(0)),
                        Expr::Load { memory, .. } => {
                            phase = phase.max(stored.get(memory).copied().unwrap_or(0));
                            loads.insert(*memory);
                        }
                        _ => {}
                    }
                    false
                });
            });
            if let Item::Effect(Stmt::Store { memory, .. }) = &item {
                phase = phase.max(loaded.get(memory).copied().unwrap_or(0));
                phase = phase.max(stored.get(memory).copied().unwrap_or(0));
                stored.insert(*memory, phase);
            }
            for memory in loads {
                let last = loaded.entry(memory).or_default();
                *last = (*last).max(phase);
            }
            match &item {
                Item::Value { var, .. } => self.ready.insert(*var, phase),
                Item::Call { var, .. } => self.ready.insert(*var, phase + 1),
                Item::Effect(_) => None,
            };
            self.items.push((phase, item));
        }
    }

    /// The variables of the body that an expression reads.
    fn reads(&self, e: &Expr, into: &mut BTreeSet<Var>) {
        e.any(&mut |e| {
            if let Expr::Var(v) = e
                && *v != self.var
                && self.ready.contains_key(v)
            {
                into.insert(*v);
            }
            false
        });
    }

    /// A value that later phases compute again: cheap, and of the loop variable alone.
    fn cheap(&self, item: &Item) -> Option<Expr> {
        let Item::Value { value, .. } = item else {
            return None;
        };
        let mut reads = BTreeSet::new();
        self.reads(value, &mut reads);
        let again = reads.is_empty() && value.steps() <= CHEAP_STEPS && !self.loads_written(value);
        again.then(|| value.clone())
    }

    fn print(&self, kernel: &mut Kernel, start: Expr, end: Expr, pool: &mut Pool, out: &mut Vec<Stmt>) {
        let end = match end {
            Expr::Var(_) | Expr::Literal(_) | Expr::Dim(_) => end,
            value => {
                let var = kernel.fresh(DType::I64);
                out.push(Stmt::Let { var, value });
                Expr::Var(var)
            }
        };
        let strip = kernel.fresh(DType::I64);
        let length = kernel.fresh(DType::I64);
        pool.taken.clear();
        let rest = end.clone() - Expr::Var(strip);
        let mut body = vec![Stmt::Let { var: length, value: rest.min(STRIP as i64) }];
        let phases = self.items.iter().map(|(phase, _)| *phase).max().unwrap_or(0) + 1;
        let mut kept: BTreeMap<Var, Memory> = BTreeMap::new();
        for phase in 0..phases {
            self.phase(kernel, phase, strip, length, pool, &mut kept, &mut body);
        }
        out.push(Stmt::For { var: strip, start, end, step: STRIP as i64, kind: LoopKind::Serial, body });
    }

    fn phase(
        &self,
        kernel: &mut Kernel,
        phase: usize,
        strip: Var,
        length: Var,
        pool: &mut Pool,
        kept: &mut BTreeMap<Var, Memory>,
        out: &mut Vec<Stmt>,
    ) {
        let here = || self.items.iter().filter(|(p, _)| *p == phase).map(|(_, item)| item);
        // What this phase reads of earlier ones, and what later ones read of this.
        let mut reads = BTreeSet::new();
        here().for_each(|item| item.expressions(|e| self.reads(e, &mut reads)));
        let mut later = BTreeSet::new();
        for (p, item) in &self.items {
            if *p > phase {
                item.expressions(|e| self.reads(e, &mut later));
            }
        }

        let offset = kernel.fresh(DType::I64);
        let mut names: BTreeMap<Var, Expr> = BTreeMap::new();
        names.insert(self.var, Expr::Var(strip) + Expr::Var(offset));
        let mut body = Vec::new();
        let mut calls = Vec::new();
        let define = |kernel: &mut Kernel, body: &mut Vec<Stmt>, old: Var, value: Expr| {
            let dtype = value.dtype(kernel).unwrap_or(DType::F32);
            let var = kernel.fresh(dtype);
            body.push(Stmt::Let { var, value });
            (old, Expr::Var(var))
        };
        for old in reads {
            let Some((_, item)) = self.items.iter().find(|(_, item)| item.defines() == Some(old)) else {
                continue;
            };
            let value = match (kept.get(&old), self.cheap(item)) {
                (Some(memory), _) => memory.load(Expr::Var(offset)),
                (None, Some(value)) if self.ready.get(&old).is_some_and(|p| *p < phase) => {
                    value.substitute(&mut |v| names.get(&v).cloned())
                }
                _ => continue,
            };
            let (old, name) = define(kernel, &mut body, old, value);
            names.insert(old, name);
        }
        for item in here() {
            let rename = |e: &Expr| e.substitute(&mut |v| names.get(&v).cloned());
            match item {
                Item::Value { var, value } => {
                    let value = rename(value);
                    let (old, name) = define(kernel, &mut body, *var, value);
                    if later.contains(var) && self.cheap(item).is_none() {
                        let dtype = name.dtype(kernel).unwrap_or(DType::F32);
                        let memory = pool.take(kernel, dtype);
                        body.push(Stmt::Store { memory, index: Expr::Var(offset), value: name.clone() });
                        kept.insert(*var, memory);
                    }
                    names.insert(old, name);
                }
                Item::Call { var, function, argument } => {
                    let value = rename(argument);
                    let memory = pool.take(kernel, DType::F32);
                    body.push(Stmt::Store { memory, index: Expr::Var(offset), value });
                    kept.insert(*var, memory);
                    calls.push((*function, memory));
                }
                Item::Effect(s) => {
                    let mut s = s.clone();
                    s.expressions_mut(|e| *e = rename(e));
                    body.push(s);
                }
            }
        }
        if body.iter().all(|s| matches!(s, Stmt::Let { .. })) {
            return;
        }
        out.push(Stmt::For {
            var: offset,
            start: Expr::int(0),
            end: Expr::Var(length),
            step: 1,
            kind: LoopKind::Vector,
            body,
        });
        for (function, memory) in calls {
            let Memory::Scratch(scratch) = memory else {
                continue;
            };
            let place = Strip { scratch, index: Expr::int(0) };
            out.push(Stmt::Call { function, dst: place.clone(), src: place, len: Expr::Var(length) });
        }
    }
}

/// The strips that this pass added; each loop takes them from the first on.
#[derive(Default)]
struct Pool {
    strips: Vec<(DType, Memory)>,
    /// Which ones the current loop has taken.
    taken: BTreeSet<usize>,
}

impl Pool {
    fn take(&mut self, kernel: &mut Kernel, dtype: DType) -> Memory {
        let free = (0..self.strips.len()).find(|i| self.strips[*i].0 == dtype && !self.taken.contains(i));
        let index = free.unwrap_or_else(|| {
            kernel.scratch.push(Scratch { dtype, len: STRIP, space: Space::Local, over: None });
            self.strips.push((dtype, Memory::Scratch(kernel.scratch.len() as u32 - 1)));
            self.strips.len() - 1
        });
        self.taken.insert(index);
        self.strips[index].1
    }
}

fn wide(kernel: &Kernel, e: &Expr) -> Option<VectorFunction> {
    match e {
        Expr::Unary(op, a) if a.dtype(kernel) == Some(DType::F32) => op.vector_function(),
        _ => None,
    }
}
