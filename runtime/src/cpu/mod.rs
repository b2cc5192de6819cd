//! The CPU device: worker team, memory, machine code and loop-nest drivers.

pub mod code;
pub mod drivers;
pub mod memory;
pub mod team;
