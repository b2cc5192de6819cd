//! Egret's compiler: raise, rewrite, fuse, schedule, emit.

pub mod emit;
pub mod kernel;
