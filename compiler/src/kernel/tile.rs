//! Statements of CUDA blocks on tiles: asynchronous copies, accesses of several elements, and products of matrices by
//! whole warps.
//!
//! A warp's matrices are spread over the registers of its 32 lanes (PTX, "Matrix multiply-accumulate operation using
//! mma instruction"). Lane `l` has, of the left matrix, rows `l / 4` and `l / 4 + 8`, and of each those terms of the sum
//! whose word is `l % 4` and `l % 4 + 4`; of the right one, columns for rows; of the sums, rows `l / 4` and `l / 4 + 8`,
//! columns `l % 4 · 2` and the next. A word is two halves, four bytes, or one `f32`.

use std::fmt;

use egret_ir::DType;
use serde::{Deserialize, Serialize};

use super::expr::{Expr, Memory};
use super::ir::Strip;

/// Element types and rounding of a product of matrices: 16 rows, 8 columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatrixKind {
    /// 16 terms of `f16`, sums in `f32`.
    F16,
    /// 16 terms of `bf16`, sums in `f32`.
    BF16,
    /// 8 terms of `f32`, of which the products see 10 bits of fraction; sums in `f32`.
    Tf32,
    /// 8 terms of `f32`, each split into two of 10 bits; three products, without that of the lower parts.
    Tf32x3,
    /// 32 terms of 8 bits, of the left and the right side signed or not; sums in `i32`, which wrap.
    Int8 {
        /// Whether the left side is `i8`, not `u8`; the right side.
        signed: [bool; 2],
    },
}

/// How matrices of shared scratch are turned on their way to registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Turn {
    /// Words of rows.
    None,
    /// Columns of 8 × 8 halves.
    Halves,
    /// Columns of bytes, for a left matrix. The rows that lanes name are 16 bytes of a term: those of matrices 0 and 1
    /// are terms `0, 1, 4, 5, 8, 9, 12, 13` and the ones two after each of them, those of matrices 2 and 3 16 terms later.
    /// Lane `l` gets words of columns `l / 4 · 2` and the next: of the earlier terms, then of the later ones.
    ByteRows,
    /// The same for two right matrices: words of the even column, then of the odd one.
    ByteColumns,
}

impl MatrixKind {
    /// Its spelling in text.
    pub const fn name(self) -> &'static str {
        match self {
            MatrixKind::F16 => "f16",
            MatrixKind::BF16 => "bf16",
            MatrixKind::Tf32 => "tf32",
            MatrixKind::Tf32x3 => "tf32x3",
            MatrixKind::Int8 { signed: [true, true] } => "i8",
            MatrixKind::Int8 { signed: [false, false] } => "u8",
            MatrixKind::Int8 { signed: [true, false] } => "i8_u8",
            MatrixKind::Int8 { signed: [false, true] } => "u8_i8",
        }
    }

    /// Type of a register of an operand.
    pub const fn word(self) -> DType {
        match self {
            MatrixKind::Tf32 | MatrixKind::Tf32x3 => DType::F32,
            _ => DType::U32,
        }
    }

    /// Type of a sum.
    pub const fn sum(self) -> DType {
        match self {
            MatrixKind::Int8 { .. } => DType::I32,
            _ => DType::F32,
        }
    }
}

/// A statement on tiles. All threads of a warp run it together, but for those on a thread's own elements: copies and
/// accesses of several elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TileStmt {
    /// Starts a copy of neighbours from a buffer to shared scratch of the same type: 4, 8 or 16 bytes, at multiples of
    /// that. Where the mask is false the source is not read, and zeros arrive.
    CopyAsync {
        /// The first element's place.
        dst: Strip,
        /// Index of the buffer.
        buffer: u32,
        /// The first element's index, `i64`.
        index: Expr,
        /// How many elements.
        len: u32,
        /// A `bool`.
        mask: Option<Expr>,
    },
    /// The thread's copies since the last group are a group.
    CommitCopies,
    /// Waits until at most so many of the thread's latest groups are on their way. Other threads see what arrived after
    /// a barrier.
    WaitCopies {
        /// How many groups.
        pending: u32,
    },
    /// Loads neighbours of memory into registers at once: 4, 8 or 16 bytes, at multiples of that. Registers in `f32` may
    /// take halves, and registers of halves `f32`, which they become when arithmetic is made wide.
    LoadVector {
        /// Registers.
        dst: Strip,
        /// Where from.
        memory: Memory,
        /// The first element's index, `i64`.
        index: Expr,
        /// How many elements.
        len: u32,
    },
    /// Stores registers to neighbours of memory at once, as [`TileStmt::LoadVector`] loads them.
    StoreVector {
        /// Where to.
        memory: Memory,
        /// The first element's index, `i64`.
        index: Expr,
        /// Registers.
        src: Strip,
        /// How many elements.
        len: u32,
    },
    /// Rounds two `f32` to halves of a type and puts them into one register, the first in its lower half.
    Pack {
        /// A register.
        dst: Strip,
        /// `f16` or `bf16`.
        dtype: DType,
        /// The halves.
        halves: [Expr; 2],
    },
    /// Loads four matrices of 8 rows of 16 bytes from shared scratch. Lanes `8 i .. 8 i + 8` name the rows of matrix
    /// `i`; register `i` of lane `l` gets word `l % 4` of its row `l / 4`. Turned, of matrices of 8 × 8 halves: the
    /// halves `l % 4 · 2` and the next of column `l / 4`; of bytes, see [`Turn`].
    LoadMatrices {
        /// Four registers.
        dst: Strip,
        /// A row's first element, at a multiple of 16 bytes.
        src: Strip,
        /// How they are turned on the way.
        turn: Turn,
    },
    /// `sums += left · right`: four registers of sums, four of the left matrix, two of the right.
    Multiply {
        /// Element types.
        kind: MatrixKind,
        /// Sums.
        sums: Strip,
        /// The left matrix.
        left: Strip,
        /// The right matrix.
        right: Strip,
    },
    /// The threads of a warp wait for each other; what they wrote to shared scratch is then visible to them.
    WarpBarrier,
}

impl TileStmt {
    /// Calls `f` on its expressions.
    pub fn expressions<'a>(&'a self, mut f: impl FnMut(&'a Expr)) {
        match self {
            TileStmt::CopyAsync { dst, index, mask, .. } => {
                f(&dst.index);
                f(index);
                mask.iter().for_each(f);
            }
            TileStmt::LoadVector { dst: strip, index, .. } | TileStmt::StoreVector { src: strip, index, .. } => {
                f(&strip.index);
                f(index);
            }
            TileStmt::Pack { dst, halves, .. } => {
                f(&dst.index);
                halves.iter().for_each(f);
            }
            TileStmt::LoadMatrices { dst, src, .. } => {
                f(&dst.index);
                f(&src.index);
            }
            TileStmt::Multiply { sums, left, right, .. } => {
                for strip in [sums, left, right] {
                    f(&strip.index);
                }
            }
            TileStmt::CommitCopies | TileStmt::WaitCopies { .. } | TileStmt::WarpBarrier => {}
        }
    }

    /// Calls `f` on its expressions, mutably.
    pub fn expressions_mut(&mut self, mut f: impl FnMut(&mut Expr)) {
        match self {
            TileStmt::CopyAsync { dst, index, mask, .. } => {
                f(&mut dst.index);
                f(index);
                mask.iter_mut().for_each(f);
            }
            TileStmt::LoadVector { dst: strip, index, .. } | TileStmt::StoreVector { src: strip, index, .. } => {
                f(&mut strip.index);
                f(index);
            }
            TileStmt::Pack { dst, halves, .. } => {
                f(&mut dst.index);
                halves.iter_mut().for_each(f);
            }
            TileStmt::LoadMatrices { dst, src, .. } => {
                f(&mut dst.index);
                f(&mut src.index);
            }
            TileStmt::Multiply { sums, left, right, .. } => {
                for strip in [sums, left, right] {
                    f(&mut strip.index);
                }
            }
            TileStmt::CommitCopies | TileStmt::WaitCopies { .. } | TileStmt::WarpBarrier => {}
        }
    }
}

impl fmt::Display for TileStmt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TileStmt::CopyAsync { dst, buffer, index, len, mask } => {
                write!(f, "copy {dst} <- b{buffer}[{index}] x {len}")?;
                mask.iter().try_for_each(|mask| write!(f, " if {mask}"))
            }
            TileStmt::CommitCopies => write!(f, "commit copies"),
            TileStmt::WaitCopies { pending } => write!(f, "wait copies {pending}"),
            TileStmt::LoadVector { dst, memory, index, len } => write!(f, "load {dst} <- {memory}[{index}] x {len}"),
            TileStmt::StoreVector { memory, index, src, len } => write!(f, "store {memory}[{index}] <- {src} x {len}"),
            TileStmt::Pack { dst, dtype, halves: [low, high] } => write!(f, "pack {dtype} {dst} <- {low}, {high}"),
            TileStmt::LoadMatrices { dst, src, turn } => {
                let turned = match turn {
                    Turn::None => "",
                    Turn::Halves => "transposed ",
                    Turn::ByteRows => "rows of bytes ",
                    Turn::ByteColumns => "columns of bytes ",
                };
                write!(f, "matrices {turned}{dst} <- {src}")
            }
            TileStmt::Multiply { kind, sums, left, right } => {
                write!(f, "multiply {} {sums} += {left} * {right}", kind.name())
            }
            TileStmt::WarpBarrier => write!(f, "warp barrier"),
        }
    }
}
