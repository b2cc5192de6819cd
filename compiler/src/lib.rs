//! Egret's compiler: raise, rewrite, fuse, schedule, emit.
