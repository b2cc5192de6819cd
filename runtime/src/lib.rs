//! Egret's runtime: devices, sessions, CPU drivers, CUDA.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
