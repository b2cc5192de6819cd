//! Steps with numbers in the place of dims: what a session runs.

use egret_program::Size;
use egret_program::driver::hook::EpilogueFn;

use super::driver_plan::DriverPlan;
use super::drivers::{Copies, RowCut, ScratchNeed};
use super::halo::Border;
use super::late::{Extent, LateLaunch};

/// Generated code of a kernel: `fn(buffers, dims, begin, end, scratch, status)`.
pub(crate) type KernelFn = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8, *mut u32);

/// The entry of a kernel or hook in mapped code.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    Kernel(KernelFn),
    Hook(EpilogueFn),
    Driver,
    /// A function of a CUDA module.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only GPUs need it"))]
    Device,
}

/// A place in a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) buffer: u32,
    pub(crate) offset: usize,
}

/// Part of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) first: usize,
    pub(crate) len: usize,
}

/// An operation. Loops lie flat between their ends.
#[derive(Debug)]
pub(crate) enum Op {
    Clear {
        border: Border,
        tensor: Address,
    },
    Code {
        entry: KernelFn,
        args: Span,
        dims: Span,
        grid: usize,
        chunks: usize,
    },
    Driver {
        plan: DriverPlan,
        args: Span,
    },
    /// A launch of the kernel of that number on a GPU.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only GPUs need it"))]
    Device {
        kernel: usize,
        args: Span,
        dims: Span,
        grid: usize,
    },
    Copy {
        source: Address,
        destination: Address,
        bytes: Extent,
    },
    Begin(usize),
    End(usize),
    /// A launch with extents that only the run tells: a place in [`Bound::late`].
    Late(usize),
    /// Binds a size: a place in [`Bound::sizes`].
    Size(usize),
    /// Checks an equality: a place in [`Bound::checks`].
    Check(usize),
    /// Goes on at another operation unless the truth value there is true.
    Unless {
        test: Address,
        to: usize,
    },
    /// Goes on at another operation.
    Jump(usize),
    /// Leaves a loop unless the truth value there is true and a trip is left.
    Test {
        index: usize,
        test: Address,
    },
}

/// A size that a run tells.
#[derive(Debug)]
pub(crate) struct BoundSize {
    pub(crate) name: std::sync::Arc<str>,
    pub(crate) size: Size,
    pub(crate) read: Option<Address>,
}

/// An operation and the step it belongs to, counted in preorder.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) op: Op,
    pub(crate) step: usize,
    /// How many of the operations behind it run with it, without a join.
    pub(crate) links: usize,
    /// How the rows of a link of such a chain are cut, and which of its operands each chunk has a copy of.
    pub(crate) cut: Option<(RowCut, Copies)>,
}

/// A value carried around a loop.
#[derive(Debug)]
pub(crate) struct Carry {
    pub(crate) first: Address,
    pub(crate) current: u32,
    pub(crate) next: Address,
    pub(crate) bytes: Extent,
    /// Offset in the arena of a place between `next` and `current`, where the order of copies would matter.
    pub(crate) stage: Option<usize>,
}

/// A slice that moves with a loop.
#[derive(Debug)]
pub(crate) struct Moving {
    pub(crate) slice: u32,
    pub(crate) of: u32,
    pub(crate) stride: Extent,
}

/// A loop.
#[derive(Debug)]
pub(crate) struct Repeat {
    /// How often, at most; `None` without bound.
    pub(crate) length: Option<Extent>,
    /// Where the number of trips goes, of a loop that a condition ends.
    pub(crate) trips: Option<Address>,
    pub(crate) reverse: bool,
    pub(crate) begin: usize,
    pub(crate) end: usize,
    pub(crate) carried: Vec<Carry>,
    pub(crate) slices: Vec<Moving>,
}

/// Steps whose extents are known.
#[derive(Debug, Default)]
pub(crate) struct Bound {
    pub(crate) ops: Vec<Item>,
    pub(crate) args: Vec<Address>,
    pub(crate) dims: Vec<i64>,
    pub(crate) loops: Vec<Repeat>,
    pub(crate) late: Vec<LateLaunch>,
    pub(crate) sizes: Vec<BoundSize>,
    pub(crate) checks: Vec<egret_program::Check>,
    /// First operation of each step that is in no loop.
    pub(crate) tops: Vec<usize>,
    /// By buffer: bytes, where used.
    pub(crate) bytes: Vec<usize>,
    /// By buffer: place in the arena.
    pub(crate) offsets: Vec<Option<usize>>,
    pub(crate) arena_bytes: usize,
    pub(crate) live_bytes_bound: usize,
    pub(crate) logical_live_bytes: usize,
    pub(crate) scratch: ScratchNeed,
    /// Arguments of the launch that has most.
    pub(crate) most_args: usize,
    /// By step: operations and bytes of one execution.
    pub(crate) work: Vec<(f64, f64)>,
}
