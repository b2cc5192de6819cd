//! The CPU device: worker team, memory, machine code and loop-nest drivers.

pub(crate) mod bind;
pub(crate) mod bound;
mod chain;
pub mod code;
mod driver_plan;
pub mod drivers;
mod halo;
pub(crate) mod late;
pub(crate) mod launch;
pub(crate) mod lifetime;
pub mod memory;
pub mod team;
