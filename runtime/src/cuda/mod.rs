//! The CUDA device.

pub mod nvrtc;
