//! Runs kernel IR as a GPU would, every statement for all threads of a block in lockstep, and reports races: an element
//! that one thread writes and another touches with no barrier between.

use std::collections::HashMap;

use egret_compiler::kernel::{
    BinaryOp, CompareOp, Expr, Kernel, Literal, LoopKind, Memory, ReduceOp, Space, Stmt, TileStmt, UnaryOp,
};

/// Who touched an element, and in which stretch between barriers.
#[derive(Clone, Copy, Default)]
struct Touch {
    wrote: Option<(usize, u64)>,
    read: Option<(usize, u64)>,
    read_by_many: bool,
}

struct Block<'a> {
    kernel: &'a Kernel,
    dims: &'a [i64],
    buffers: &'a mut [Vec<f64>],
    vars: Vec<Vec<f64>>,
    scratch: Vec<Vec<f64>>,
    touches: HashMap<(Memory, usize), Touch>,
    stretch: u64,
    threads: usize,
    status: u32,
}

/// Runs a kernel; every number is an `f64`. Gives the status word.
pub fn run(kernel: &Kernel, buffers: &mut [Vec<f64>], dims: &[i64]) -> u32 {
    let extents: Vec<i64> = kernel.grid.iter().map(|e| extent(e, dims)).collect();
    let threads = kernel.block_threads() as usize;
    let mut status = 0;
    for point in 0..extents.iter().product::<i64>() {
        let mut block = Block {
            kernel,
            dims,
            buffers,
            vars: vec![vec![f64::NAN; threads]; kernel.vars.len()],
            scratch: (kernel.scratch.iter())
                .map(|s| vec![f64::NAN; if s.space == Space::Shared { s.len } else { s.len * threads }])
                .collect(),
            touches: HashMap::new(),
            stretch: 0,
            threads,
            status: 0,
        };
        let mut rest = point;
        for axis in (0..extents.len()).rev() {
            block.vars[axis] = vec![(rest % extents[axis]) as f64; threads];
            rest /= extents[axis];
        }
        block.block(&kernel.body, &vec![true; threads]);
        status = status.max(block.status);
    }
    status
}

fn extent(e: &Expr, dims: &[i64]) -> i64 {
    match e {
        Expr::Dim(d) => dims[*d as usize],
        other => other.as_int().unwrap(),
    }
}

impl Block<'_> {
    fn block(&mut self, body: &[Stmt], active: &[bool]) {
        body.iter().for_each(|s| self.stmt(s, active));
    }

    fn assign(&mut self, var: usize, value: &Expr, active: &[bool]) {
        for t in (0..self.threads).filter(|t| active[*t]) {
            self.vars[var][t] = self.eval(value, t);
        }
    }

    /// Copies arrive at once, and accesses of several elements are as many accesses; what whole warps do is the
    /// simulator's.
    fn tile(&mut self, s: &TileStmt, active: &[bool]) {
        let (to, from, len, mask) = match s {
            TileStmt::CopyAsync { dst, buffer, index, len, mask } => {
                ((Memory::Scratch(dst.scratch), &dst.index), (Memory::Buffer(*buffer), index), *len, mask.as_ref())
            }
            TileStmt::LoadVector { dst, memory, index, len } => {
                ((Memory::Scratch(dst.scratch), &dst.index), (*memory, index), *len, None)
            }
            TileStmt::StoreVector { memory, index, src, len } => {
                ((*memory, index), (Memory::Scratch(src.scratch), &src.index), *len, None)
            }
            TileStmt::CommitCopies | TileStmt::WaitCopies { .. } | TileStmt::WarpBarrier => return,
            TileStmt::Pack { .. } | TileStmt::LoadMatrices { .. } | TileStmt::Multiply { .. } => panic!("{s}"),
        };
        for i in 0..i64::from(len) {
            let value = Expr::Load { memory: from.0, index: Box::new(from.1 + i), mask: mask.cloned().map(Box::new) };
            self.stmt(&Stmt::Store { memory: to.0, index: to.1 + i, value }, active);
        }
    }

    fn stmt(&mut self, s: &Stmt, active: &[bool]) {
        match s {
            Stmt::Let { var, value } | Stmt::Mut { var, value } | Stmt::Assign { var, value } => {
                self.assign(var.0 as usize, value, active);
            }
            Stmt::Accumulate { var, op, value } => {
                let sum = Expr::Var(*var).binary(op.step(), value);
                self.assign(var.0 as usize, &sum, active);
            }
            Stmt::Store { memory, index, value } => {
                let all: Vec<_> = (0..self.threads)
                    .filter(|t| active[*t])
                    .map(|t| (t, self.eval(index, t) as usize, self.eval(value, t)))
                    .collect();
                for (t, at, value) in all {
                    let touch = self.touches.entry((*memory, at)).or_default();
                    let others = |who: Option<(usize, u64)>, now| who.is_some_and(|(o, s)| o != t && s == now);
                    let shared = !matches!(memory, Memory::Scratch(s)
                        if self.kernel.scratch[*s as usize].space != Space::Shared);
                    let many = touch.read_by_many && touch.read.is_some_and(|(_, s)| s == self.stretch);
                    let race = others(touch.wrote, self.stretch) || others(touch.read, self.stretch) || many;
                    assert!(!(shared && race), "a race on {memory}[{at}]\n{}", self.kernel);
                    touch.wrote = Some((t, self.stretch));
                    *self.place(*memory, at, t) = value;
                }
            }
            Stmt::For { var, start, end, step, kind, body } => {
                let own = |t: usize| if matches!(kind, LoopKind::Thread(_)) { t as f64 } else { 0.0 };
                let stride = if matches!(kind, LoopKind::Thread(_)) { self.threads as f64 } else { 1.0 } * *step as f64;
                let mut at: Vec<f64> =
                    (0..self.threads).map(|t| self.bound(start, t, active) + own(t) * *step as f64).collect();
                let ends: Vec<f64> = (0..self.threads).map(|t| self.bound(end, t, active)).collect();
                loop {
                    let now: Vec<bool> = (0..self.threads).map(|t| active[t] && at[t] < ends[t]).collect();
                    if !now.contains(&true) {
                        return;
                    }
                    self.vars[var.0 as usize].clone_from(&at);
                    self.block(body, &now);
                    at.iter_mut().for_each(|at| *at += stride);
                }
            }
            Stmt::If { condition, then, otherwise } => {
                let holds: Vec<bool> = (0..self.threads).map(|t| active[t] && self.eval(condition, t) != 0.0).collect();
                let not: Vec<bool> = (0..self.threads).map(|t| active[t] && !holds[t]).collect();
                self.block(then, &holds);
                self.block(otherwise, &not);
            }
            Stmt::Call { .. } => panic!("a call"),
            Stmt::Tile(tile) => self.tile(tile, active),
            Stmt::Barrier => {
                assert!(!active.contains(&false), "a barrier where threads diverge");
                self.stretch += 1;
            }
            Stmt::WarpReduce { var, op, .. } | Stmt::BlockReduce { var, op } => {
                assert!(!active.contains(&false), "a reduction where threads diverge");
                let warp = matches!(s, Stmt::WarpReduce { .. });
                self.stretch += u64::from(!warp);
                let width = if let Stmt::WarpReduce { lanes, .. } = s { *lanes as usize } else { self.threads };
                for values in self.vars[var.0 as usize].chunks_mut(width) {
                    let total = values.iter().copied().reduce(|a, b| match op {
                        ReduceOp::Sum => a + b,
                        ReduceOp::Prod => a * b,
                        ReduceOp::Max => a.max(b),
                        ReduceOp::Min => a.min(b),
                    });
                    values.fill(total.unwrap());
                }
            }
            Stmt::Status { condition, code } => {
                let raised = (0..self.threads).any(|t| active[t] && self.eval(condition, t) != 0.0);
                self.status = self.status.max(if raised { *code } else { 0 });
            }
        }
    }

    fn bound(&mut self, e: &Expr, t: usize, active: &[bool]) -> f64 {
        if active[t] { self.eval(e, t) } else { 0.0 }
    }

    fn place(&mut self, memory: Memory, at: usize, t: usize) -> &mut f64 {
        match memory {
            Memory::Buffer(b) => &mut self.buffers[b as usize][at],
            Memory::Scratch(s) => {
                let scratch = &self.kernel.scratch[s as usize];
                assert!(at < scratch.len, "{memory}[{at}]");
                let own = if scratch.space == Space::Shared { 0 } else { t * scratch.len };
                &mut self.scratch[s as usize][own + at]
            }
        }
    }

    fn load(&mut self, memory: Memory, at: usize, t: usize) -> f64 {
        let touch = self.touches.entry((memory, at)).or_default();
        let private = matches!(memory, Memory::Scratch(s) if self.kernel.scratch[s as usize].space != Space::Shared);
        let race = touch.wrote.is_some_and(|(who, stretch)| who != t && stretch == self.stretch);
        assert!(private || !race, "a race on {memory}[{at}]\n{}", self.kernel);
        let again = touch.read.is_some_and(|(_, stretch)| stretch == self.stretch);
        touch.read_by_many = again && (touch.read_by_many || touch.read.is_some_and(|(who, _)| who != t));
        touch.read = Some((t, self.stretch));
        *self.place(memory, at, t)
    }

    fn eval(&mut self, e: &Expr, t: usize) -> f64 {
        let truth = |b: bool| if b { 1.0 } else { 0.0 };
        match e {
            Expr::Var(v) => self.vars[v.0 as usize][t],
            Expr::Literal(Literal::Bool(b)) => truth(*b),
            Expr::Literal(Literal::Int(_, i)) => *i as f64,
            Expr::Literal(Literal::Float(_, bits)) => f64::from_bits(*bits),
            Expr::Dim(d) => self.dims[*d as usize] as f64,
            Expr::Load { memory, index, mask } => {
                if mask.as_ref().is_some_and(|mask| self.eval(mask, t) == 0.0) {
                    return 0.0;
                }
                let at = self.eval(index, t);
                assert!(at >= 0.0, "{memory}[{at}]");
                self.load(*memory, at as usize, t)
            }
            Expr::Unary(op, a) => {
                let x = self.eval(a, t);
                match op {
                    UnaryOp::Neg => -x,
                    UnaryOp::Abs => x.abs(),
                    UnaryOp::Not => truth(x == 0.0),
                    UnaryOp::Sqrt => x.sqrt(),
                    UnaryOp::Rsqrt => 1.0 / x.sqrt(),
                    UnaryOp::Recip => 1.0 / x,
                    UnaryOp::Exp => x.exp(),
                    UnaryOp::Log => x.ln(),
                    UnaryOp::Tanh => x.tanh(),
                    UnaryOp::Sigmoid => 1.0 / (1.0 + (-x).exp()),
                    UnaryOp::Erf => erf(x),
                    other => panic!("{}", other.name()),
                }
            }
            Expr::Binary(op, a, b) => {
                let int = a.dtype(self.kernel).unwrap().is_int();
                let (x, y) = (self.eval(a, t), self.eval(b, t));
                match op {
                    BinaryOp::Add => x + y,
                    BinaryOp::Sub => x - y,
                    BinaryOp::Mul => x * y,
                    BinaryOp::Div if int => {
                        if y == 0.0 {
                            0.0
                        } else {
                            (x / y).trunc()
                        }
                    }
                    BinaryOp::Div => x / y,
                    BinaryOp::Rem => {
                        if int && y == 0.0 {
                            0.0
                        } else {
                            x % y
                        }
                    }
                    BinaryOp::Max => x.max(y),
                    BinaryOp::Min => x.min(y),
                    BinaryOp::Pow => x.powf(y),
                    BinaryOp::And => truth(x != 0.0 && y != 0.0),
                    BinaryOp::Or => truth(x != 0.0 || y != 0.0),
                    other => panic!("{}", other.name()),
                }
            }
            Expr::Compare(op, a, b) => {
                let (x, y) = (self.eval(a, t), self.eval(b, t));
                truth(match op {
                    CompareOp::Eq => x == y,
                    CompareOp::Ne => x != y,
                    CompareOp::Lt => x < y,
                    CompareOp::Le => x <= y,
                    CompareOp::Gt => x > y,
                    CompareOp::Ge => x >= y,
                })
            }
            Expr::Select(c, a, b) => {
                if self.eval(c, t) != 0.0 {
                    self.eval(a, t)
                } else {
                    self.eval(b, t)
                }
            }
            Expr::Cast(to, a) => {
                let x = self.eval(a, t);
                if to.is_int() { x.trunc() } else { x }
            }
        }
    }
}

/// The error function by its series: slow and exact enough.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() && n < 300.0 {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}
