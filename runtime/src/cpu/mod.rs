//! The CPU device.

pub mod code;
