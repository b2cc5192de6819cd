//! Building kernels by hand.

use egret_ir::DType;

use super::expr::{Expr, Memory, VectorFunction};
use super::ir::{Abi, Access, BufferParam, Kernel, LoopKind, ReduceOp, Scratch, Space, Stmt, Strip, Var};
use super::tile::{MatrixKind, TileStmt, Turn};
use super::verify::Finding;

/// Collects parameters and statements into a [`Kernel`]. Mistakes are found by [`KernelBuilder::finish`], which
/// verifies.
#[derive(Debug)]
pub struct KernelBuilder {
    kernel: Kernel,
    open: Vec<Vec<Stmt>>,
    /// Types come from expressions whose variables may not exist; such a variable has this error noted.
    untyped: Vec<Finding>,
}

impl Default for KernelBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl KernelBuilder {
    /// A kernel of [`Abi::Kernel`] with blocks of one thread.
    pub fn new() -> Self {
        KernelBuilder {
            kernel: Kernel {
                abi: Abi::Kernel,
                buffers: Vec::new(),
                dims: 0,
                scratch: Vec::new(),
                grid: Vec::new(),
                threads: [1; 3],
                exact: false,
                vars: Vec::new(),
                body: Vec::new(),
            },
            open: vec![Vec::new()],
            untyped: Vec::new(),
        }
    }

    /// A kernel whose blocks have these threads (CUDA), axis 0 fastest.
    pub fn with_threads(threads: [u32; 3]) -> Self {
        let mut builder = Self::new();
        builder.kernel.threads = threads;
        builder
    }

    /// Sets the threads of a block (CUDA), axis 0 fastest.
    pub fn set_threads(&mut self, threads: [u32; 3]) {
        self.kernel.threads = threads;
    }

    /// A hook over a tile. The dims are there already: [`Hook::rows`], [`Hook::cols`] and a row stride a buffer.
    pub fn hook(acc: DType, extras: &[DType], outs: &[DType]) -> (Self, Hook) {
        let mut builder = Self::new();
        builder.kernel.abi = Abi::Hook { extras: extras.len() as u32, outs: outs.len() as u32 };
        let (rows, cols) = (builder.dim(), builder.dim());
        let acc = builder.buffer(acc, Access::ReadWrite);
        let extras: Vec<_> = extras.iter().map(|&t| builder.buffer(t, Access::Read)).collect();
        let outs: Vec<_> = outs.iter().map(|&t| builder.buffer(t, Access::ReadWrite)).collect();
        let mut strides = (0..1 + extras.len() + outs.len()).map(|_| builder.dim());
        let mut strided = |memory| Tile { memory, row_stride: strides.next().unwrap_or_else(|| Expr::int(0)) };
        let hook = Hook {
            rows,
            cols,
            acc: strided(acc),
            extras: extras.into_iter().map(&mut strided).collect(),
            outs: outs.into_iter().map(&mut strided).collect(),
        };
        (builder, hook)
    }

    /// Whether every bit is to be as the interpreter has it.
    pub fn is_exact(&self) -> bool {
        self.kernel.exact
    }

    /// Forbids FMA contraction.
    pub fn exact(&mut self) -> &mut Self {
        self.kernel.exact = true;
        self
    }

    /// Another buffer parameter.
    pub fn buffer(&mut self, dtype: DType, access: Access) -> Memory {
        self.kernel.buffers.push(BufferParam { dtype, access, align: 0 });
        Memory::Buffer(self.kernel.buffers.len() as u32 - 1)
    }

    /// States that every buffer so far starts at a multiple of so many bytes.
    pub fn align_buffers(&mut self, bytes: u32) {
        self.kernel.buffers.iter_mut().for_each(|b| b.align = bytes);
    }

    /// Another dim parameter.
    pub fn dim(&mut self) -> Expr {
        self.kernel.dims += 1;
        Expr::Dim(self.kernel.dims - 1)
    }

    /// Another scratch memory.
    pub fn scratch(&mut self, dtype: DType, len: usize, space: Space) -> Memory {
        self.kernel.scratch.push(Scratch { dtype, len, space, over: None });
        Memory::Scratch(self.kernel.scratch.len() as u32 - 1)
    }

    /// Another shared scratch memory, over the start of one that is no shorter.
    pub fn scratch_over(&mut self, dtype: DType, len: usize, below: Memory) -> Memory {
        let over = self.number(below, "scratch over a buffer");
        self.kernel.scratch.push(Scratch { dtype, len, space: Space::Shared, over: Some(over) });
        Memory::Scratch(self.kernel.scratch.len() as u32 - 1)
    }

    /// Index of a scratch memory.
    fn number(&mut self, memory: Memory, otherwise: &str) -> u32 {
        match memory {
            Memory::Scratch(scratch) => scratch,
            Memory::Buffer(_) => {
                self.untyped.push(Finding::new("undefined", otherwise));
                u32::MAX
            }
        }
    }

    fn strip(&mut self, memory: Memory, index: impl Into<Expr>) -> Strip {
        Strip { scratch: self.number(memory, "a strip of a buffer"), index: index.into() }
    }

    /// States that a buffer starts at a multiple of so many bytes.
    pub fn align_buffer(&mut self, memory: Memory, bytes: u32) {
        if let Memory::Buffer(b) = memory
            && let Some(buffer) = self.kernel.buffers.get_mut(b as usize)
        {
            buffer.align = buffer.align.max(bytes);
        }
    }

    /// Starts a copy of `len` elements from a buffer to shared scratch; zeros where the mask is false.
    pub fn copy_async(
        &mut self,
        (dst, at): (Memory, Expr),
        (buffer, index): (Memory, Expr),
        len: u32,
        mask: Option<Expr>,
    ) {
        let dst = self.strip(dst, at);
        let Memory::Buffer(buffer) = buffer else {
            return self.untyped.push(Finding::new("undefined", "a copy that is not from a buffer"));
        };
        self.push(Stmt::Tile(TileStmt::CopyAsync { dst, buffer, index, len, mask }));
    }

    /// The thread's copies since the last group are a group.
    pub fn commit_copies(&mut self) {
        self.push(Stmt::Tile(TileStmt::CommitCopies));
    }

    /// Waits until at most `pending` of the thread's latest groups are on their way.
    pub fn wait_copies(&mut self, pending: u32) {
        self.push(Stmt::Tile(TileStmt::WaitCopies { pending }));
    }

    /// Loads `len` neighbours into registers at once.
    pub fn load_vector(&mut self, dst: (Memory, impl Into<Expr>), memory: Memory, index: impl Into<Expr>, len: u32) {
        let (dst, index) = (self.strip(dst.0, dst.1), index.into());
        self.push(Stmt::Tile(TileStmt::LoadVector { dst, memory, index, len }));
    }

    /// Stores `len` registers to neighbours at once.
    pub fn store_vector(&mut self, memory: Memory, index: impl Into<Expr>, src: (Memory, impl Into<Expr>), len: u32) {
        let (src, index) = (self.strip(src.0, src.1), index.into());
        self.push(Stmt::Tile(TileStmt::StoreVector { memory, index, src, len }));
    }

    /// Rounds two `f32` to halves in one register, the first in its lower half.
    pub fn pack(&mut self, dst: (Memory, impl Into<Expr>), dtype: DType, halves: [Expr; 2]) {
        let dst = self.strip(dst.0, dst.1);
        self.push(Stmt::Tile(TileStmt::Pack { dst, dtype, halves }));
    }

    /// Loads four matrices of 8 rows of 16 bytes into four registers: see [`TileStmt::LoadMatrices`].
    pub fn load_matrices(&mut self, dst: (Memory, impl Into<Expr>), src: (Memory, Expr), turn: Turn) {
        let (dst, src) = (self.strip(dst.0, dst.1), self.strip(src.0, src.1));
        self.push(Stmt::Tile(TileStmt::LoadMatrices { dst, src, turn }));
    }

    /// `sums += left · right`, matrices of a warp.
    pub fn multiply(
        &mut self,
        kind: MatrixKind,
        sums: (Memory, impl Into<Expr>),
        left: (Memory, impl Into<Expr>),
        right: (Memory, impl Into<Expr>),
    ) {
        let sums = self.strip(sums.0, sums.1);
        let (left, right) = (self.strip(left.0, left.1), self.strip(right.0, right.1));
        self.push(Stmt::Tile(TileStmt::Multiply { kind, sums, left, right }));
    }

    /// A barrier of the warp.
    pub fn warp_barrier(&mut self) {
        self.push(Stmt::Tile(TileStmt::WarpBarrier));
    }

    /// Another axis of the grid, of an extent over dims; its index. Axes come before every other variable.
    pub fn grid(&mut self, extent: impl Into<Expr>) -> Expr {
        if self.kernel.vars.len() != self.kernel.grid.len() {
            self.untyped.push(Finding::new("grid-order", "a grid axis after a variable"));
        }
        self.kernel.grid.push(extent.into());
        Expr::Var(self.fresh(DType::I64))
    }

    fn fresh(&mut self, dtype: DType) -> Var {
        self.kernel.vars.push(dtype);
        Var(self.kernel.vars.len() as u32 - 1)
    }

    fn typed(&mut self, value: &Expr) -> DType {
        value.dtype(&self.kernel).unwrap_or_else(|| {
            self.untyped.push(Finding::new("undefined", "a variable or memory that does not exist"));
            DType::I64
        })
    }

    /// Appends any statement.
    pub fn push(&mut self, stmt: Stmt) {
        if let Some(body) = self.open.last_mut() {
            body.push(stmt);
        }
    }

    /// `let`: names a value, to share it.
    pub fn bind(&mut self, value: impl Into<Expr>) -> Expr {
        let value = value.into();
        if matches!(value, Expr::Literal(_) | Expr::Dim(_)) {
            return value;
        }
        let dtype = self.typed(&value);
        let var = self.fresh(dtype);
        self.push(Stmt::Let { var, value });
        Expr::Var(var)
    }

    /// A mutable variable; read it as `Expr::from(var)`.
    pub fn variable(&mut self, value: impl Into<Expr>) -> Var {
        let value = value.into();
        let dtype = self.typed(&value);
        let var = self.fresh(dtype);
        self.push(Stmt::Mut { var, value });
        var
    }

    /// `var = value`.
    pub fn assign(&mut self, var: Var, value: impl Into<Expr>) {
        self.push(Stmt::Assign { var, value: value.into() });
    }

    /// `var = op(var, value)`.
    pub fn accumulate(&mut self, var: Var, op: ReduceOp, value: impl Into<Expr>) {
        self.push(Stmt::Accumulate { var, op, value: value.into() });
    }

    /// `memory[index] = value`.
    pub fn store(&mut self, memory: Memory, index: impl Into<Expr>, value: impl Into<Expr>) {
        self.push(Stmt::Store { memory, index: index.into(), value: value.into() });
    }

    /// A loop of step 1.
    pub fn for_(
        &mut self,
        start: impl Into<Expr>,
        end: impl Into<Expr>,
        kind: LoopKind,
        body: impl FnOnce(&mut Self, Expr),
    ) {
        self.for_step(start, end, 1, kind, body);
    }

    /// A loop.
    pub fn for_step(
        &mut self,
        start: impl Into<Expr>,
        end: impl Into<Expr>,
        step: i64,
        kind: LoopKind,
        body: impl FnOnce(&mut Self, Expr),
    ) {
        let var = self.fresh(DType::I64);
        let body = self.nested(|k| body(k, Expr::Var(var)));
        self.push(Stmt::For { var, start: start.into(), end: end.into(), step, kind, body });
    }

    /// Opens a block by hand: statements go there until [`KernelBuilder::end`]. For callers whose own state must be
    /// reachable between the two; else the closures of [`KernelBuilder::for_`] are simpler.
    pub fn begin(&mut self) {
        self.open.push(Vec::new());
    }

    /// Closes the block that [`KernelBuilder::begin`] opened.
    pub fn end(&mut self) -> Vec<Stmt> {
        self.open.pop().unwrap_or_default()
    }

    /// A variable of type `i64` for a loop that is pushed by hand.
    pub fn index(&mut self) -> Var {
        self.fresh(DType::I64)
    }

    /// A conditional.
    pub fn if_(&mut self, condition: impl Into<Expr>, then: impl FnOnce(&mut Self)) {
        let then = self.nested(then);
        self.push(Stmt::If { condition: condition.into(), then, otherwise: Vec::new() });
    }

    /// A conditional with both branches.
    pub fn if_else(
        &mut self,
        condition: impl Into<Expr>,
        then: impl FnOnce(&mut Self),
        otherwise: impl FnOnce(&mut Self),
    ) {
        let then = self.nested(then);
        let otherwise = self.nested(otherwise);
        self.push(Stmt::If { condition: condition.into(), then, otherwise });
    }

    fn nested(&mut self, body: impl FnOnce(&mut Self)) -> Vec<Stmt> {
        self.open.push(Vec::new());
        body(self);
        self.open.pop().unwrap_or_default()
    }

    /// A strip-wise call of a wide function; strips are (scratch, first element).
    pub fn call(&mut self, function: VectorFunction, dst: (Memory, Expr), src: (Memory, Expr), len: impl Into<Expr>) {
        let mut strip = |(memory, index): (Memory, Expr)| match memory {
            Memory::Scratch(scratch) => Strip { scratch, index },
            Memory::Buffer(_) => {
                self.untyped.push(Finding::new("call-strip", "a call on a buffer"));
                Strip { scratch: u32::MAX, index }
            }
        };
        let (dst, src) = (strip(dst), strip(src));
        self.push(Stmt::Call { function, dst, src, len: len.into() });
    }

    /// A barrier of the block.
    pub fn barrier(&mut self) {
        self.push(Stmt::Barrier);
    }

    /// Combines a variable over the warp.
    pub fn warp_reduce(&mut self, var: Var, op: ReduceOp) {
        self.lanes_reduce(var, op, 32);
    }

    /// Combines a variable over each run of so many lanes of a warp.
    pub fn lanes_reduce(&mut self, var: Var, op: ReduceOp, lanes: u32) {
        self.push(Stmt::WarpReduce { var, op, lanes });
    }

    /// Combines a variable over the block.
    pub fn block_reduce(&mut self, var: Var, op: ReduceOp) {
        self.push(Stmt::BlockReduce { var, op });
    }

    /// Raises the status word where the condition holds.
    pub fn status(&mut self, condition: impl Into<Expr>, code: u32) {
        self.push(Stmt::Status { condition: condition.into(), code });
    }

    /// The kernel, canonical and verified.
    pub fn finish(mut self) -> Result<Kernel, Vec<Finding>> {
        self.kernel.body = self.open.pop().unwrap_or_default();
        if !self.untyped.is_empty() {
            return Err(self.untyped);
        }
        self.kernel.canonicalise();
        self.kernel.verify()?;
        Ok(self.kernel)
    }
}

/// The parameters of a hook.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Rows of the tile.
    pub rows: Expr,
    /// Columns of the tile.
    pub cols: Expr,
    /// The tile that the driver computed.
    pub acc: Tile,
    /// Extra operands.
    pub extras: Vec<Tile>,
    /// Outputs.
    pub outs: Vec<Tile>,
}

/// A strided matrix of a hook.
#[derive(Clone, Debug)]
pub struct Tile {
    /// The buffer.
    pub memory: Memory,
    /// Its row stride, a dim.
    pub row_stride: Expr,
}

impl Tile {
    /// Element index of a row and a column whose stride is 1.
    pub fn at(&self, row: &Expr, col: &Expr) -> Expr {
        row * &self.row_stride + col
    }

    /// Element index of a row, for operands whose column stride is 0.
    pub fn row(&self, row: &Expr) -> Expr {
        row * &self.row_stride
    }
}
