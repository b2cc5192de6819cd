//! Egret's runtime: devices, sessions, CPU drivers, CUDA.

pub mod cpu;
