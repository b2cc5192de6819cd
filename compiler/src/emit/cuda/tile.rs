//! Statements on tiles in CUDA C: a call each.

use super::Printer;
use crate::emit::EmitError;
use crate::kernel::{Expr, Memory, Strip, TileStmt, Turn};

impl Printer<'_> {
    pub(super) fn tile(&mut self, s: &TileStmt) -> Result<(), EmitError> {
        let line = match s {
            TileStmt::CopyAsync { dst, buffer, index, len, mask } => {
                let bytes = self.kernel.buffers.get(*buffer as usize).map_or(0, |b| b.dtype.size() * *len as usize);
                let (to, from) = (self.strip(dst)?, self.place(format!("b{buffer}"), index)?);
                match mask {
                    Some(mask) => format!("copy_async<{bytes}>({to}, {from}, {});", self.expr(mask)?),
                    None => format!("copy_async<{bytes}>({to}, {from});"),
                }
            }
            TileStmt::CommitCopies => "commit_copies();".into(),
            TileStmt::WaitCopies { pending } => format!("wait_copies<{pending}>();"),
            TileStmt::LoadVector { dst, memory, index, len } => {
                let (to, from) = (self.strip(dst)?, self.place(memory.to_string(), index)?);
                format!("load_vector_{}<{len}>({to}, {from});", space(*memory))
            }
            TileStmt::StoreVector { memory, index, src, len } => {
                let (to, from) = (self.place(memory.to_string(), index)?, self.strip(src)?);
                format!("store_vector_{}<{len}>({to}, {from});", space(*memory))
            }
            TileStmt::Pack { dst, dtype, halves: [low, high] } => {
                format!("*({}) = pack_{}({}, {});", self.strip(dst)?, dtype.name(), self.expr(low)?, self.expr(high)?)
            }
            TileStmt::LoadMatrices { dst, src, turn } => {
                let name = match turn {
                    Turn::None => "load_matrices",
                    Turn::Halves => "load_matrices_transposed",
                    Turn::ByteRows => "load_rows_of_bytes",
                    Turn::ByteColumns => "load_columns_of_bytes",
                };
                format!("{name}({}, {});", self.strip(dst)?, self.strip(src)?)
            }
            TileStmt::Multiply { kind, sums, left, right } => {
                let (sums, left, right) = (self.strip(sums)?, self.strip(left)?, self.strip(right)?);
                format!("multiply_{}({sums}, {left}, {right});", kind.name())
            }
            TileStmt::WarpBarrier => "__syncwarp();".into(),
        };
        self.line(&line);
        Ok(())
    }

    fn strip(&self, strip: &Strip) -> Result<String, EmitError> {
        self.place(format!("s{}", strip.scratch), &strip.index)
    }

    fn place(&self, memory: String, index: &Expr) -> Result<String, EmitError> {
        if index.as_int() == Some(0) {
            return Ok(memory);
        }
        Ok(format!("{memory} + {}", self.operand(index)?))
    }
}

/// Where memory that is accessed by several elements lies.
fn space(memory: Memory) -> &'static str {
    match memory {
        Memory::Buffer(_) => "global",
        Memory::Scratch(_) => "shared",
    }
}
