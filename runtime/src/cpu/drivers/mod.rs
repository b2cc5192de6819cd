//! Loop-nest drivers: Rust code around the micro-kernels of `egret-simd`, driven by plain problems and schedules.
//!
//! Each driver has a *plan*, made once when extents are known: it checks all bounds, allocates its tables and says what
//! scratch it needs. `run` then allocates nothing. Results do not depend on the number of threads.

mod attention;
mod channels;
mod conv;
mod cut;
mod epilogue;
mod gemm;
mod help;
mod kernels;
mod pool;
mod relayout;
mod select;
#[cfg(test)]
mod testing;
mod words;

pub use attention::{AttentionArgs, AttentionGradArgs, AttentionGradPlan, AttentionPlan};
pub use channels::ChannelsPlan;
pub use conv::{ConvArgs, ConvPlan};
pub(crate) use conv::{Copies, Link, MAX_LINKS, chain_scratch, run_chain};
pub use epilogue::MAX_VIEWS;
pub use gemm::{GemmArgs, GemmPlan};
pub use pool::{PoolArgs, PoolGradArgs, PoolGradPlan, PoolPlan};
pub use relayout::{PackPlan, RelayoutPlan};
pub use select::{NonZeroPlan, SuppressionArgs, SuppressionPlan, TopKPlan, UniqueArgs, UniquePlan};

use super::memory::{Buffer, OutOfMemory};
pub(super) use cut::part;
use cut::{Nest2, chunk_count, even_rows, lines_by_blocks, row_cuts};
pub(crate) use cut::{RowCut, Spread};

/// Why a plan cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The host lacks the instruction set, or the schedule was made for another layout.
    #[error("the schedule is for vectors of {scheduled} elements, {isa} has {actual} (or the host lacks it)")]
    Isa {
        /// Instruction set asked for.
        isa: egret_simd::Isa,
        /// L of the schedule.
        scheduled: usize,
        /// L of the instruction set.
        actual: usize,
    },
    /// A form that this driver does not have.
    #[error("the driver does not support {0}")]
    Unsupported(&'static str),
    /// The problem contradicts itself.
    #[error("{0}")]
    Problem(&'static str),
    /// A tensor that is read through taps has too small a halo.
    #[error("spatial dim {dim}: the halo is {actual}, taps reach {needed}")]
    Halo {
        /// Which dim.
        dim: usize,
        /// Halo that taps reach.
        needed: usize,
        /// Halo given.
        actual: usize,
    },
}

/// Scratch that a plan needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScratchNeed {
    /// Bytes for each thread of the team.
    pub per_worker: usize,
    /// Bytes shared by all.
    pub shared: usize,
}

impl ScratchNeed {
    /// Enough for either.
    pub fn max(self, other: ScratchNeed) -> ScratchNeed {
        ScratchNeed { per_worker: self.per_worker.max(other.per_worker), shared: self.shared.max(other.shared) }
    }
}

/// Scratch of a session: one part for each thread, one shared.
#[derive(Debug)]
pub struct ScratchPool {
    buffer: Buffer,
    stride: usize,
    shared: usize,
}

impl ScratchPool {
    /// A pool for a team of `workers`.
    ///
    /// # Errors
    /// When there is no such memory.
    pub fn new(workers: usize, need: ScratchNeed) -> Result<ScratchPool, OutOfMemory> {
        // Parts lie apart by more than vectors that reach beyond their end.
        let too_large = OutOfMemory(usize::MAX);
        let stride = (need.per_worker.checked_add(256).ok_or(too_large)?).next_multiple_of(4096);
        let shared = stride.checked_mul(workers).ok_or(too_large)?;
        let total = shared.checked_add(need.shared).ok_or(too_large)?;
        Ok(ScratchPool { buffer: Buffer::new(total)?, stride, shared })
    }

    pub(crate) fn worker(&self, worker: usize) -> *mut f32 {
        debug_assert!((worker + 1) * self.stride <= self.shared);
        // Within the buffer for every worker of the team that it was made for.
        self.buffer.as_ptr::<u8>().wrapping_add(worker * self.stride).cast()
    }

    pub(crate) fn shared(&self) -> *mut f32 {
        self.buffer.as_ptr::<u8>().wrapping_add(self.shared).cast()
    }
}

/// A pointer that may be handed to other threads; what it points at is divided among them by chunk.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);

// SAFETY: the drivers give each chunk its own part.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}
