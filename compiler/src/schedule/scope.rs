//! A kernel under construction: what it reads and writes, its dims, and elements of values at indices.

use egret_ir::{Dim, Graph, NodeId, Op};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::kernel::{Access, Expr, KernelBuilder, LoopKind, Memory, Space, Stmt, Var};
use crate::layout::{Layout, channels_last};

/// A stored value: a node, and the part of it if it is a tuple.
pub type Value = (NodeId, usize);

/// What the kernels of a program read: which values are stored, and how they lie.
pub trait Stored {
    /// The layout of a stored value; `None` of one that is not stored.
    fn layout(&self, value: Value) -> Option<&Layout>;
    /// f32 lanes of the blocked layout.
    fn lanes(&self) -> i64;
    /// Whether an operand of a concatenation, by number, is written where it belongs, so that nothing copies it.
    fn is_in_place(&self, _concat: NodeId, _operand: usize) -> bool {
        false
    }
    /// Whether a stored value begins at a multiple of 16 bytes.
    fn is_aligned(&self, _value: Value) -> bool {
        true
    }
}

/// The stored value that a node names: parts of tuples are read through `proj`.
pub fn value_of(graph: &Graph, id: NodeId) -> Value {
    match &graph.node(id).op {
        Op::Proj(proj) => (graph.node(id).operands[0], proj.index),
        _ => (id, 0),
    }
}

/// A status code and what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultText {
    /// The code.
    pub code: u32,
    /// One sentence.
    pub message: String,
}

/// A kernel under construction.
pub struct Scope<'g> {
    /// The graph.
    pub graph: &'g Graph,
    /// What is stored.
    pub stored: &'g dyn Stored,
    /// The kernel.
    pub k: KernelBuilder,
    /// Values by buffer argument, with whether the kernel writes them.
    pub args: Vec<(Value, bool)>,
    /// What each dim parameter is.
    pub dims: Vec<Dim>,
    /// What status codes mean.
    pub faults: Vec<FaultText>,
    /// Threads of a CUDA block; 0 on the CPU.
    pub threads: i64,
    /// Neighbouring elements that a thread loads at once make vectors, where buffers start at multiples of them.
    pub vectors: bool,
    /// Values that this kernel writes and reads: computed, though they are stored.
    pub own: SmallVec<[NodeId; 2]>,
    dim_exprs: FxHashMap<Dim, Expr>,
    reads: FxHashMap<Value, Memory>,
    elements: Vec<FxHashMap<(NodeId, Vec<Expr>), Expr>>,
    splits: Vec<(Expr, Expr, Expr)>,
    mask: Option<Expr>,
    live: Option<Expr>,
    users: FxHashMap<NodeId, usize>,
}

impl<'g> Scope<'g> {
    /// An empty kernel for the CPU.
    pub fn new(graph: &'g Graph, stored: &'g dyn Stored, exact: bool) -> Scope<'g> {
        Scope::with(KernelBuilder::new(), 0, graph, stored, exact)
    }

    /// An empty kernel for CUDA, with blocks of `threads`.
    pub fn on_gpu(graph: &'g Graph, stored: &'g dyn Stored, exact: bool, threads: u32) -> Scope<'g> {
        Scope::with(KernelBuilder::with_threads([threads, 1, 1]), threads.into(), graph, stored, exact)
    }

    fn with(mut k: KernelBuilder, threads: i64, graph: &'g Graph, stored: &'g dyn Stored, exact: bool) -> Scope<'g> {
        if exact {
            k.exact();
        }
        Scope {
            graph,
            stored,
            k,
            args: Vec::new(),
            dims: Vec::new(),
            faults: Vec::new(),
            threads,
            vectors: false,
            own: SmallVec::new(),
            dim_exprs: FxHashMap::default(),
            reads: FxHashMap::default(),
            elements: vec![FxHashMap::default()],
            splits: Vec::new(),
            mask: None,
            live: None,
            users: FxHashMap::default(),
        }
    }

    /// Whether the kernel is for CUDA.
    pub fn is_gpu(&self) -> bool {
        self.threads > 0
    }

    /// A dim as an expression: a constant, or a parameter.
    pub fn dim(&mut self, dim: &Dim) -> Expr {
        if let Some(value) = dim.as_const() {
            return Expr::int(value);
        }
        if let Some(known) = self.dim_exprs.get(dim) {
            return known.clone();
        }
        let expr = self.k.dim();
        self.dims.push(dim.clone());
        self.dim_exprs.insert(dim.clone(), expr.clone());
        expr
    }

    /// The buffer of a stored value that the kernel reads.
    pub fn read(&mut self, value: Value) -> Memory {
        if let Some(memory) = self.reads.get(&value) {
            return *memory;
        }
        let dtype = self.graph.ty(value.0).parts()[value.1].dtype;
        let memory = self.k.buffer(dtype, Access::Read);
        self.args.push((value, false));
        self.reads.insert(value, memory);
        memory
    }

    /// The buffer of a value that the kernel writes. Call it before reads, so that outputs come first.
    pub fn write(&mut self, value: Value) -> Memory {
        let dtype = self.graph.ty(value.0).parts()[value.1].dtype;
        let memory = self.k.buffer(dtype, Access::ReadWrite);
        self.args.push((value, true));
        memory
    }

    /// The buffer of a temporary of the group of `root`, by number.
    pub fn temporary(&mut self, root: NodeId, number: usize, dtype: egret_ir::DType, writes: bool) -> Memory {
        let value = (root, self.graph.ty(root).parts().len() + number);
        let memory = self.k.buffer(dtype, if writes { Access::Write } else { Access::Read });
        self.args.push((value, writes));
        if !writes {
            self.reads.insert(value, memory);
        }
        memory
    }

    /// The buffer of a temporary that the kernel reads, the same however often it is asked for.
    pub fn temporary_of(&mut self, root: NodeId, number: usize, dtype: egret_ir::DType) -> Memory {
        let value = (root, self.graph.ty(root).parts().len() + number);
        match self.reads.get(&value) {
            Some(memory) => *memory,
            None => self.temporary(root, number, dtype, false),
        }
    }

    /// The buffer of a temporary that the kernel writes and reads.
    pub fn working(&mut self, root: NodeId, number: usize, dtype: egret_ir::DType) -> Memory {
        let value = (root, self.graph.ty(root).parts().len() + number);
        let memory = self.k.buffer(dtype, Access::ReadWrite);
        self.args.push((value, true));
        memory
    }

    /// Sets how many threads a CUDA block has.
    pub fn set_threads(&mut self, threads: i64) {
        self.k.set_threads([threads as u32, 1, 1]);
        self.threads = threads;
    }

    /// Element index of a stored value at logical indices.
    pub fn address(&mut self, value: Value, index: &[Expr]) -> Expr {
        let ty = self.graph.ty(value.0).parts()[value.1].clone();
        let mut total: Option<Expr> = None;
        let mut add = |term: Expr| {
            total = Some(match total.take() {
                Some(sum) => sum + term,
                None => term,
            });
        };
        match self.stored.layout(value).cloned() {
            Some(Layout::Blocked { halo }) => {
                let lanes = self.stored.lanes();
                let (block, lane) = self.split(&index[1], lanes);
                let blocks = ty.shape[1].ceil_div(&Dim::from(lanes));
                let mut stride = Dim::from(lanes);
                add(lane);
                for axis in (0..halo.len()).rev() {
                    let step = self.dim(&stride);
                    add((index[2 + axis].clone() + Expr::int(halo[axis])) * step);
                    stride = stride * (ty.shape[2 + axis].clone() + Dim::from(2 * halo[axis]));
                }
                let step = self.dim(&stride);
                add(block * step);
                let step = self.dim(&(stride * blocks));
                add(index[0].clone() * step);
            }
            layout => {
                let strides: SmallVec<[Dim; 6]> = match layout {
                    Some(Layout::ChannelsLast) => channels_last::strides(&ty.shape),
                    _ => ty.shape.strides().into_iter().collect(),
                };
                for axis in (0..ty.shape.rank()).rev() {
                    if ty.shape[axis].is(1) {
                        continue;
                    }
                    let step = self.dim(&strides[axis]);
                    add(if step.as_int() == Some(1) { index[axis].clone() } else { index[axis].clone() * step });
                }
            }
        }
        total.unwrap_or(Expr::int(0))
    }

    /// States that `whole` is `block · lanes + lane`.
    pub fn note_split(&mut self, whole: Expr, block: Expr, lane: Expr) {
        self.splits.push((whole, block, lane));
    }

    /// The block and lane that an expression was [noted](Scope::note_split) to be.
    pub fn noted_split(&self, whole: &Expr) -> Option<(Expr, Expr)> {
        let (_, block, lane) = self.splits.iter().find(|(have, _, _)| have == whole)?;
        Some((block.clone(), lane.clone()))
    }

    fn split(&mut self, whole: &Expr, lanes: i64) -> (Expr, Expr) {
        if let Some(noted) = self.noted_split(whole) {
            return noted;
        }
        (whole.clone() / Expr::int(lanes), whole.clone() % Expr::int(lanes))
    }

    /// Loads a stored value at logical indices.
    pub fn load(&mut self, value: Value, index: &[Expr]) -> Expr {
        let memory = self.read(value);
        let address = self.address(value, index);
        // a block has memory for all its lanes
        let blocked = matches!(self.stored.layout(value), Some(Layout::Blocked { .. }))
            && self.splits.iter().any(|(whole, _, _)| *whole == index[1]);
        let live = self.live.clone().filter(|_| !blocked);
        let mask = match (self.mask.clone(), live) {
            (Some(mask), Some(live)) => Some(mask.and(live)),
            (mask, live) => mask.or(live),
        };
        match mask {
            Some(mask) => memory.load_if(mask, address),
            None => memory.load(address),
        }
    }

    /// Runs `f` with loads made only where `condition` holds.
    pub fn masked<T>(&mut self, condition: Expr, f: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.mask.clone();
        self.mask = Some(match &outer {
            Some(mask) => mask.and(condition),
            None => condition,
        });
        let result = self.apart(f);
        self.mask = outer;
        result
    }

    /// Runs `f` for lanes of which only those are channels where `condition` holds. What it gives elsewhere is unknown.
    pub fn live<T>(&mut self, condition: Expr, f: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.live.replace(condition);
        let result = self.apart(f);
        self.live = outer;
        result
    }

    /// Runs `f` with a memory of elements of its own.
    fn apart<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        self.elements.push(FxHashMap::default());
        let result = f(self);
        self.elements.pop();
        result
    }

    /// A loop. Elements that were computed outside are known inside.
    pub fn for_(&mut self, start: Expr, end: Expr, kind: LoopKind, body: impl FnOnce(&mut Self, Expr)) {
        self.for_step(start, end, 1, kind, body);
    }

    /// A loop by steps of `step`.
    pub fn for_step(&mut self, start: Expr, end: Expr, step: i64, kind: LoopKind, body: impl FnOnce(&mut Self, Expr)) {
        let var = self.k.index();
        self.k.begin();
        self.elements.push(FxHashMap::default());
        body(self, Expr::Var(var));
        self.elements.pop();
        let body = self.k.end();
        let runs = matches!((start.as_int(), end.as_int()), (Some(a), Some(b)) if a < b);
        let body = self.hoist(var, body, runs);
        self.k.push(Stmt::For { var, start, end, step, kind, body });
    }

    /// Puts what does not change from iteration to iteration in front of the loop; the rest is the body. Faults stay in
    /// loops that may not run.
    fn hoist(&mut self, var: Var, body: Vec<Stmt>, runs: bool) -> Vec<Stmt> {
        let mut inside: SmallVec<[Var; 16]> = smallvec::smallvec![var];
        for stmt in &body {
            stmt.any(&mut |stmt| {
                if let Stmt::Assign { var, .. } | Stmt::Accumulate { var, .. } = stmt {
                    inside.push(*var);
                }
                false
            });
        }
        let mut kept = Vec::with_capacity(body.len());
        for stmt in body {
            let varies = |e: &Expr, inside: &[Var]| {
                inside.iter().any(|v| e.mentions(*v))
                    || e.any(&mut |part| match part {
                        Expr::Load { memory, .. } => !self.reads.values().any(|read| read == memory),
                        _ => false,
                    })
            };
            match &stmt {
                Stmt::Let { value, .. } if !varies(value, &inside) => self.k.push(stmt),
                Stmt::Status { condition, .. } if runs && !varies(condition, &inside) => self.k.push(stmt),
                _ => {
                    inside.extend(stmt.defines());
                    kept.push(stmt);
                }
            }
        }
        kept
    }

    /// A conditional.
    pub fn if_(&mut self, condition: Expr, body: impl FnOnce(&mut Self)) {
        self.k.begin();
        self.elements.push(FxHashMap::default());
        body(self);
        self.elements.pop();
        let then = self.k.end();
        self.k.push(Stmt::If { condition, then, otherwise: Vec::new() });
    }

    /// Scratch of a worker.
    pub fn local(&mut self, dtype: egret_ir::DType, len: usize) -> Memory {
        self.k.scratch(dtype, len, Space::Local)
    }

    /// Remembers an element until the current loop or mask ends.
    pub fn remember(&mut self, id: NodeId, index: &[Expr], value: &Expr) {
        if let Some(scope) = self.elements.last_mut() {
            scope.insert((id, index.to_vec()), value.clone());
        }
    }

    pub(super) fn remembered(&self, id: NodeId, index: &[Expr]) -> Option<Expr> {
        let key = (id, index.to_vec());
        self.elements.iter().rev().find_map(|scope| scope.get(&key).cloned())
    }

    /// How many operands name this node.
    pub(super) fn uses(&mut self, id: NodeId) -> usize {
        if self.users.is_empty() {
            for (_, node) in self.graph.iter() {
                for operand in &node.operands {
                    *self.users.entry(*operand).or_default() += 1;
                }
            }
        }
        self.users.get(&id).copied().unwrap_or(0)
    }

    /// A new status code.
    pub fn fault(&mut self, message: String) -> u32 {
        let code = self.faults.len() as u32 + 1;
        self.faults.push(FaultText { code, message });
        code
    }

    /// Reports a fault where the condition holds, and elements are wanted at all.
    pub fn fault_if(&mut self, condition: Expr, message: String) {
        let code = self.fault(message);
        let wanted = self.mask.iter().chain(&self.live).fold(condition, |all, mask| mask.and(all));
        self.k.status(wanted, code);
    }

    /// The place within an extent that is nearest to an index; 0 where there is none.
    pub fn within(&mut self, index: Expr, extent: &Dim) -> Expr {
        let last = self.dim(&(extent.clone() - Dim::ONE));
        self.k.bind(index.min(last).max(Expr::int(0)))
    }

    /// Splits the number of an element of a shape, counted as a stored value lies, into one index an axis.
    pub fn unflatten_as(&mut self, value: Value, flat: Expr, shape: &[Dim]) -> SmallVec<[Expr; 6]> {
        if self.stored.layout(value) != Some(&Layout::ChannelsLast) {
            return self.unflatten(flat, shape);
        }
        let order = channels_last::order(shape.len());
        let extents: SmallVec<[Dim; 6]> = order.iter().map(|axis| shape[*axis].clone()).collect();
        let mut index: SmallVec<[Expr; 6]> = SmallVec::from_elem(Expr::int(0), shape.len());
        for (axis, at) in order.into_iter().zip(self.unflatten(flat, &extents)) {
            index[axis] = at;
        }
        index
    }

    /// Splits a flat index over `extents` into one index an axis.
    pub fn unflatten(&mut self, flat: Expr, extents: &[Dim]) -> SmallVec<[Expr; 6]> {
        let mut rest = flat;
        let mut index: SmallVec<[Expr; 6]> = SmallVec::new();
        for (i, extent) in extents.iter().enumerate().rev() {
            if extent.is(1) {
                index.push(Expr::int(0));
            } else if i == 0 {
                index.push(rest.clone());
            } else {
                let extent = self.dim(extent);
                let digit = self.k.bind(rest.clone() % extent.clone());
                rest = self.k.bind(rest / extent);
                index.push(digit);
            }
        }
        index.reverse();
        index
    }
}
