//! What can go wrong: text that is not understood, and faults of a kernel.

use thiserror::Error;

/// PTX text that is malformed or uses something the interpreter does not have.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line}: {message}: `{text}`")]
pub struct ParseError {
    /// Line of the text, from one.
    pub line: u32,
    /// What is wrong.
    pub message: String,
    /// The line as it stands.
    pub text: String,
}

impl ParseError {
    /// An error at a line of a text.
    pub(crate) fn at(source: &str, line: u32, message: impl Into<String>) -> Self {
        let text = source.lines().nth(line.saturating_sub(1) as usize).unwrap_or("").trim().to_string();
        Self { line, message: message.into(), text }
    }
}

/// A launch that ended early, and where.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("line {line}: {kind} (block {block:?}, thread {thread:?}): `{text}`")]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// Line of the PTX text; zero where no instruction is at fault.
    pub line: u32,
    /// That line as it stands.
    pub text: String,
    /// The block.
    pub block: [u32; 3],
    /// The first thread concerned.
    pub thread: [u32; 3],
}

/// What a kernel did wrong.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum FaultKind {
    /// The launch itself is not possible.
    #[error("bad launch: {0}")]
    Launch(String),
    /// An access outside every allocation.
    #[error("out of bounds: {bytes} bytes at {space} address {address:#x}{near}")]
    OutOfBounds {
        /// The state space.
        space: &'static str,
        /// The address.
        address: u64,
        /// Bytes accessed.
        bytes: usize,
        /// The nearest allocation below, and how far past its start.
        near: String,
    },
    /// A write to constant memory.
    #[error("write to `{0}`, which is read-only")]
    ReadOnly(String),
    /// An access whose address is no multiple of its width.
    #[error("misaligned {bytes}-byte access at {space} address {address:#x}")]
    Misaligned {
        /// The state space.
        space: &'static str,
        /// The address.
        address: u64,
        /// Bytes accessed.
        bytes: usize,
    },
    /// A use of what was read from shared or local memory that nothing wrote: in a branch, an address, or what global
    /// memory is to hold.
    #[error("use of what line {line} read from uninitialised {space} memory at {address:#x}")]
    Uninitialised {
        /// The state space.
        space: &'static str,
        /// The address.
        address: u64,
        /// The line that read it.
        line: u32,
    },
    /// Two accesses, one of them a write, that no barrier orders; of a read, only once its value is used: in a branch, an
    /// address, a store, or by other lanes.
    #[error(
        "race at {space} address {address:#x} of line {line} with the {other} at line {other_line} by {other_thread}"
    )]
    Race {
        /// The state space.
        space: &'static str,
        /// The address.
        address: u64,
        /// The line of the access, which for a read is before that of its use.
        line: u32,
        /// What the other access was.
        other: &'static str,
        /// Its line.
        other_line: u32,
        /// Its thread, and its block if that differs.
        other_thread: String,
    },
    /// A barrier of the block reached by a part of a warp.
    #[error("barrier {barrier} reached by lanes {active:#010x} of {launched:#010x}")]
    DivergentBarrier {
        /// The barrier.
        barrier: u32,
        /// The lanes that reached it.
        active: u32,
        /// The lanes that the warp was launched with.
        launched: u32,
    },
    /// A barrier's thread count that is not possible, or differs between warps.
    #[error("barrier {barrier}: {message}")]
    BarrierMisuse {
        /// The barrier.
        barrier: u32,
        /// Why.
        message: String,
    },
    /// A warp-level operation whose mask names lanes that never come, or leaves out the lane that runs it.
    #[error("mask {mask:#010x} of a warp operation does not fit the lanes {active:#010x} that run it")]
    WarpMask {
        /// The mask.
        mask: u32,
        /// The lanes that run it.
        active: u32,
    },
    /// A shuffle from a lane that takes no part.
    #[error("shuffle from lane {lane}, which takes no part")]
    ShuffleSource {
        /// The lane.
        lane: u32,
    },
    /// No warp can go on.
    #[error("deadlock: {0}")]
    Deadlock(String),
    /// More instructions than the options allow.
    #[error("more than {0} warp instructions")]
    StepLimit(u64),
    /// The kernel executed `trap`.
    #[error("trap")]
    Trap,
}
