//! Egret's compiler: raise, rewrite, fuse, schedule, emit.

pub mod cost;
pub mod emit;
pub mod kernel;
pub mod layout;
pub mod partition;
pub mod raise;
pub mod rewrite;
pub mod schedule;
