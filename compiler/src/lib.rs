//! Egret's compiler: raise, rewrite, fuse, schedule, emit.

pub mod cost;
pub mod raise;
pub mod rewrite;
