//! Strips.

/// Elements of a strip.
pub const STRIP: usize = 256;
