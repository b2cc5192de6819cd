//! Operands that are narrowed to words of 32 bits before they are multiplied.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Words that hold neighbours along what is summed. Weights are narrowed when they are packed, in panels of 32 columns:
/// `[tap][16][32]` words, [`depth`](Words::depth) elements of the sum in a tap; what they are multiplied by is narrowed into
/// scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Words {
    /// Pairs of `f32` rounded to bf16, sums in `f32` (AVX-512 BF16, AMX).
    Bf16,
    /// Quads of `i32` as bytes, sums in `i32`, which wrap (AVX-512 VNNI; no direct activation). Weights lie in −128 to 127; a
    /// panel of them begins with `low` times the sum of each column.
    Bytes {
        /// The least of what weights are multiplied by; the greatest is at most 255 more.
        low: i32,
    },
}

impl Words {
    /// Elements of the sum in a tap.
    pub fn depth(self) -> usize {
        match self {
            Words::Bf16 => 32,
            Words::Bytes { .. } => 64,
        }
    }

    /// Rows of 32 words that a panel has before its taps.
    pub fn lead(self) -> usize {
        match self {
            Words::Bf16 => 0,
            Words::Bytes { .. } => 1,
        }
    }

    /// What is taken from integers before they are narrowed.
    pub fn low(self) -> i32 {
        match self {
            Words::Bf16 => 0,
            Words::Bytes { low } => low,
        }
    }

    /// Whether they hold integers.
    pub fn is_integer(self) -> bool {
        matches!(self, Words::Bytes { .. })
    }

    /// Words of a panel of so many taps.
    pub fn panel(self, taps: usize) -> usize {
        (self.lead() + 16 * taps) * 32
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Words::Bf16 => f.write_str("bf16"),
            Words::Bytes { low } => write!(f, "bytes from {low}"),
        }
    }
}
