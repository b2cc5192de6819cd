//! Kernels, their parameters and their statements.

use egret_ir::DType;

use super::expr::{BinaryOp, Expr, Memory, VectorFunction};
use super::tile::TileStmt;

/// A variable of a kernel: an index into [`Kernel::vars`].
///
/// In a canonical kernel the grid indices come first, then every variable in the order of its definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Var(pub u32);

/// How a kernel is called on the CPU. On CUDA the parameters are the buffers, the dims and the status word, by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Abi {
    /// `fn(buffers: *const *mut u8, dims: *const i64, begin: i64, end: i64, scratch: *mut u8, status: *mut u32)`.
    ///
    /// `[begin, end)` is a range of the flattened grid (last index fastest): a worker's chunk. Every buffer pointer is
    /// valid for at least one element, even where the tensor is empty; `scratch` has [`Kernel::scratch_bytes`] bytes,
    /// aligned to 64.
    Kernel,
    /// `fn(acc: *const View2, rows: i64, cols: i64, extras: *const View2, outs: *const View2)`: called by a driver's
    /// loop nest on a tile. The buffers are acc, then the extras, then the outs; the dims are rows, cols, then the row
    /// stride of each buffer in elements. A column stride is 0 or 1, known when the hook is built, and so in its
    /// indices. No grid, no status, scratch on the stack.
    Hook {
        /// How many extra operands there are.
        extras: u32,
        /// How many outputs there are.
        outs: u32,
    },
}

/// What a kernel does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Only loads; no other parameter that is written overlaps it.
    Read,
    /// Only loads; a parameter that is written may be the same memory, element by element: a state updated in place.
    ReadInPlace,
    /// Only stores.
    Write,
    /// Loads and stores (in place).
    ReadWrite,
}

impl Access {
    /// Whether the kernel stores to it.
    pub fn writes(self) -> bool {
        matches!(self, Access::Write | Access::ReadWrite)
    }
}

/// A buffer parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferParam {
    /// Element type in memory.
    pub dtype: DType,
    /// What the kernel does with it.
    pub access: Access,
    /// Bytes of which its start is a multiple, where that is more than the element's own: vectors may be loaded and stored.
    pub align: u32,
}

/// Where scratch memory lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Private to a thread (CPU: a worker's scratch; CUDA: local memory).
    Local,
    /// Shared by the threads of a block (CUDA only).
    Shared,
    /// Private and small: indices become constants once `Unroll` loops are unrolled, so that it lives in registers.
    Register,
}

/// Scratch memory of constant size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scratch {
    /// Element type.
    pub dtype: DType,
    /// Elements.
    pub len: usize,
    /// Where it lives.
    pub space: Space,
    /// Shared scratch over whose start it lies, if it has no memory of its own: what is written to one is lost to the
    /// other.
    pub over: Option<u32>,
}

impl Scratch {
    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.len.saturating_mul(self.dtype.size())
    }
}

/// How the iterations of a loop run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoopKind {
    /// One after the other.
    Serial,
    /// As `Serial`, unrolled in the text: start and end are constants.
    Unroll,
    /// As `Serial`, and never unrolled: copies of the body would not fit a thread's registers.
    Rolled,
    /// Independent of each other, except through [`Stmt::Accumulate`] and writes to scratch at the loop's own index;
    /// step 1. 128-bit vectors on the CPU (a sum is then taken in a fixed order of its own), serial on CUDA.
    Vector,
    /// Iterations are dealt to the threads of the block along an axis (0 = fastest). Serial on the CPU.
    Thread(u8),
}

/// An associative operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// Sum.
    Sum,
    /// Maximum; NaN propagates.
    Max,
    /// Minimum; NaN propagates.
    Min,
    /// Product.
    Prod,
}

impl ReduceOp {
    /// The operation of one step.
    pub fn step(self) -> BinaryOp {
        match self {
            ReduceOp::Sum => BinaryOp::Add,
            ReduceOp::Max => BinaryOp::Max,
            ReduceOp::Min => BinaryOp::Min,
            ReduceOp::Prod => BinaryOp::Mul,
        }
    }
}

/// A place in scratch memory: a strip that starts at an element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Strip {
    /// Index into [`Kernel::scratch`].
    pub scratch: u32,
    /// First element.
    pub index: Expr,
}

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stmt {
    /// Defines an immutable variable.
    Let {
        /// The variable.
        var: Var,
        /// Its value.
        value: Expr,
    },
    /// Defines a mutable variable, private to a thread.
    Mut {
        /// The variable.
        var: Var,
        /// Its first value.
        value: Expr,
    },
    /// Assigns to a mutable variable.
    Assign {
        /// The variable.
        var: Var,
        /// Its next value.
        value: Expr,
    },
    /// `var = op(var, value)`: the only way in which an iteration of a `Vector` loop may change a variable outside it.
    Accumulate {
        /// A mutable variable.
        var: Var,
        /// The operation.
        op: ReduceOp,
        /// What is accumulated.
        value: Expr,
    },
    /// Stores an element.
    Store {
        /// Where.
        memory: Memory,
        /// Element index, `i64`.
        index: Expr,
        /// What; of the memory's element type.
        value: Expr,
    },
    /// A counted loop: `var` from `start` while it is less than `end`.
    For {
        /// The loop variable, `i64`.
        var: Var,
        /// First value.
        start: Expr,
        /// Exclusive bound.
        end: Expr,
        /// Step, positive.
        step: i64,
        /// How iterations run.
        kind: LoopKind,
        /// The iteration.
        body: Vec<Stmt>,
    },
    /// A conditional.
    If {
        /// A `bool`.
        condition: Expr,
        /// Taken when true.
        then: Vec<Stmt>,
        /// Taken when false.
        otherwise: Vec<Stmt>,
    },
    /// `dst[..len] = function(src[..len])`, `f32`, dst equal to src or apart from it. CPU only.
    Call {
        /// The wide function.
        function: VectorFunction,
        /// Where results go.
        dst: Strip,
        /// Where arguments are.
        src: Strip,
        /// How many elements, `i64`.
        len: Expr,
    },
    /// All threads of the block wait for each other; shared scratch is then visible to all.
    Barrier,
    /// Combines a variable over lanes of a warp; each has the result.
    WarpReduce {
        /// A mutable variable.
        var: Var,
        /// The operation.
        op: ReduceOp,
        /// How many lanes: a power of two; those of a warp are cut into runs of so many.
        lanes: u32,
    },
    /// Combines a variable over the threads of the block, in a fixed order; each has the result. Holds barriers.
    BlockReduce {
        /// A mutable variable.
        var: Var,
        /// The operation.
        op: ReduceOp,
    },
    /// A statement on tiles (CUDA only).
    Tile(TileStmt),
    /// Where the condition is true, raises the status word to `code` (the greatest code of a run is kept); execution
    /// goes on, so the kernel itself clamps the index or replaces the value.
    Status {
        /// A `bool`.
        condition: Expr,
        /// Not zero.
        code: u32,
    },
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Calling convention on the CPU.
    pub abi: Abi,
    /// Buffer parameters.
    pub buffers: Vec<BufferParam>,
    /// How many `i64` dim parameters there are.
    pub dims: u32,
    /// Scratch memory.
    pub scratch: Vec<Scratch>,
    /// Extents of the parallel iteration space, expressions over dims; at most three, the last fastest. Grid index `k`
    /// is `Var(k)`. CUDA launches as many blocks as their product, in one dimension.
    pub grid: Vec<Expr>,
    /// Threads of a CUDA block, axis 0 fastest; ones on the CPU.
    pub threads: [u32; 3],
    /// Forbids contraction of `a * b + c` to FMA.
    pub exact: bool,
    /// Type of each variable.
    pub vars: Vec<DType>,
    /// What is done at each grid point.
    pub body: Vec<Stmt>,
}

impl Kernel {
    /// `k_` and a hash of the text: equal kernels have equal names.
    pub fn name(&self) -> String {
        // FNV-1a, 128 bits: stable over versions of Rust and hosts.
        let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        for byte in self.text().bytes() {
            hash = (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        }
        format!("k_{:016x}", (hash >> 64) as u64 ^ hash as u64)
    }

    /// Type of a variable.
    pub fn var(&self, var: Var) -> Option<DType> {
        self.vars.get(var.0 as usize).copied()
    }

    /// Element type of a memory.
    pub fn memory(&self, memory: Memory) -> Option<DType> {
        match memory {
            Memory::Buffer(b) => self.buffers.get(b as usize).map(|b| b.dtype),
            Memory::Scratch(s) => self.scratch.get(s as usize).map(|s| s.dtype),
        }
    }

    /// How many threads a block has.
    pub fn block_threads(&self) -> u32 {
        self.threads.iter().product()
    }

    /// Offset of each `Local` scratch in the `scratch` argument (64-byte aligned), and the bytes in all.
    /// `None` for scratch that lives elsewhere.
    pub fn scratch_layout(&self) -> (Vec<Option<usize>>, usize) {
        let mut end = 0;
        let in_argument = |s: &Scratch| matches!(self.abi, Abi::Kernel) && s.space == Space::Local;
        let offsets = self.scratch.iter().map(|s| {
            in_argument(s).then(|| {
                let offset = end;
                end += s.bytes().next_multiple_of(64);
                offset
            })
        });
        (offsets.collect(), end)
    }

    /// Bytes that the `scratch` argument of [`Abi::Kernel`] points to.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch_layout().1
    }
}
