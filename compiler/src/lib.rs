//! Egret's compiler: raise, rewrite, fuse, schedule, emit.

pub mod cost;
pub mod emit;
pub mod kernel;
pub mod raise;
pub mod rewrite;
