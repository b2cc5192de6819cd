//! The CPU device: worker team, memory and loop-nest drivers.

pub mod drivers;
pub mod memory;
pub mod team;
