//! Egret's compiler: raise, rewrite, fuse, schedule, emit.

pub mod compile;
pub mod cost;
pub mod cuda;
pub mod emit;
pub mod estimate;
pub mod kernel;
pub mod layout;
pub mod partition;
pub mod plan;
pub mod raise;
pub mod range;
pub mod rematerialise;
pub mod rewrite;
pub mod schedule;
pub mod tune;

pub use compile::{CompileOptions, Compiled, Optimised, Raised, compile, compile_choosing, optimise};
pub use cost::engine::Winograd;
pub use estimate::{Estimate, estimate};
pub use rematerialise::Policy;
pub use rewrite::{Level, RewriteSet};
pub use schedule::choice::{ProblemKey, Schedule, Schedules};
pub use schedule::cuda::F32Products;
