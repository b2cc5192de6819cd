//! The rules of statements on tiles.

use egret_ir::DType;

use super::expr::{Expr, Memory};
use super::ir::{Access, LoopKind, Space, Strip};
use super::tile::{TileStmt, Turn};
use super::verify::{ACCESS, ALIGN, BOUNDS, Checker, TILE, TYPE, UNDEFINED, WAIT};

/// How far the copies into a scratch memory have come, by the text so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Copies {
    /// None were started, or a wait and a barrier have followed.
    #[default]
    Arrived,
    /// Started.
    Started,
    /// Waited for, but by each thread for itself.
    Waited,
}

impl Checker<'_> {
    pub(super) fn tile(&mut self, s: &TileStmt, uniform: bool) {
        s.expressions(|e| {
            let expected = match s {
                TileStmt::CopyAsync { mask: Some(mask), .. } if std::ptr::eq(mask, e) => DType::Bool,
                TileStmt::Pack { halves, .. } if halves.iter().any(|half| std::ptr::eq(half, e)) => DType::F32,
                _ => DType::I64,
            };
            self.expr(e, Some(expected));
        });
        match s {
            TileStmt::CopyAsync { dst, buffer, index, len, .. } => {
                let from = Memory::Buffer(*buffer);
                self.vector(from, index, *len, true);
                self.vector(Memory::Scratch(dst.scratch), &dst.index, *len, true);
                let to = self.place(dst, Space::Shared, *len as usize);
                self.readable(*buffer);
                let (have, want) = (self.kernel.memory(from), to);
                self.require(have == want, TYPE, || format!("a copy of {from} to {dst}"));
                // a loop that waits first reads what earlier steps have started
                let ahead = self.met.1 && self.loops.contains(&LoopKind::Serial);
                if let Some(state) = self.copies.get_mut(dst.scratch as usize).filter(|_| !ahead) {
                    *state = Copies::Started;
                }
            }
            TileStmt::CommitCopies => {}
            TileStmt::WaitCopies { .. } => {
                self.met.0 = true;
                self.advance(Copies::Started, Copies::Waited);
            }
            TileStmt::LoadVector { dst, memory, index, len } => {
                if let Memory::Buffer(buffer) = memory {
                    self.readable(*buffer);
                }
                self.arrived(*memory);
                self.vector(*memory, index, *len, false);
                self.registers(dst, *memory, *len);
            }
            TileStmt::StoreVector { memory, index, src, len } => {
                if let Memory::Buffer(b) = memory {
                    let writes = self.kernel.buffers.get(*b as usize).is_none_or(|b| b.access.writes());
                    self.require(writes, ACCESS, || format!("a store to {memory}"));
                }
                self.vector(*memory, index, *len, false);
                self.registers(src, *memory, *len);
            }
            TileStmt::Pack { dst, dtype, .. } => {
                let half = matches!(dtype, DType::F16 | DType::BF16);
                self.require(half, TYPE, || format!("packed {dtype}"));
                let word = self.place(dst, Space::Register, 1);
                self.require(word == Some(DType::U32), TYPE, || format!("halves in {dst}"));
            }
            TileStmt::LoadMatrices { dst, src, turn } => {
                self.warp(uniform, "a load of matrices");
                let word = self.place(dst, Space::Register, 4);
                let fits = matches!(word, Some(DType::U32)) || word == Some(DType::F32) && *turn == Turn::None;
                self.require(fits, TYPE, || format!("matrices in {dst}"));
                let element = self.place(src, Space::Shared, 1);
                let row = 16 / element.map_or(1, DType::size) as u32;
                self.vector(Memory::Scratch(src.scratch), &src.index, row, false);
                self.arrived(Memory::Scratch(src.scratch));
            }
            TileStmt::Multiply { kind, sums, left, right } => {
                self.warp(uniform, "a product of matrices");
                for (strip, len, dtype) in [(sums, 4, kind.sum()), (left, 4, kind.word()), (right, 2, kind.word())] {
                    let found = self.place(strip, Space::Register, len);
                    self.require(found == Some(dtype), TYPE, || format!("{strip} is not {dtype}"));
                }
            }
            TileStmt::WarpBarrier => self.warp(uniform, "a barrier of a warp"),
        }
    }

    /// What a barrier of the block does to copies: those waited for have arrived.
    pub(super) fn arrive(&mut self) {
        self.met.1 |= self.met.0;
        self.advance(Copies::Waited, Copies::Arrived);
    }

    fn advance(&mut self, from: Copies, to: Copies) {
        self.copies.iter_mut().filter(|state| **state == from).for_each(|state| *state = to);
    }

    /// A read of memory into which copies may still be on their way.
    pub(super) fn arrived(&mut self, memory: Memory) {
        let Memory::Scratch(s) = memory else { return };
        let state = self.copies.get(s as usize).copied().unwrap_or_default();
        self.require(state == Copies::Arrived, WAIT, || format!("{memory} is read"));
    }

    fn warp(&mut self, uniform: bool, what: &str) {
        self.meeting(uniform, what);
        let [x, y, z] = self.kernel.threads;
        self.require(x % 32 == 0 && y == 1 && z == 1, TILE, || format!("{what} in blocks of {x} {y} {z} threads"));
    }

    fn readable(&mut self, buffer: u32) {
        let read = self.kernel.buffers.get(buffer as usize).is_none_or(|b| b.access != Access::Write);
        self.require(read, ACCESS, || format!("a load from b{buffer}"));
    }

    /// A strip of scratch of a space; its type.
    fn place(&mut self, strip: &Strip, space: Space, len: usize) -> Option<DType> {
        let Some(scratch) = self.kernel.scratch.get(strip.scratch as usize).copied() else {
            self.report(UNDEFINED, format!("s{} does not exist", strip.scratch));
            return None;
        };
        self.require(scratch.space == space, TILE, || format!("{strip} lies elsewhere"));
        if let Some(first) = strip.index.as_int() {
            let inside = usize::try_from(first).is_ok_and(|first| first + len <= scratch.len);
            self.require(inside, BOUNDS, || format!("{strip} and {len} of {}", scratch.len));
        }
        Some(scratch.dtype)
    }

    /// Registers that take neighbours of a memory.
    fn registers(&mut self, strip: &Strip, memory: Memory, len: u32) {
        let word = self.place(strip, Space::Register, len as usize);
        let element = self.kernel.memory(memory);
        if let Memory::Scratch(s) = memory {
            let shared = self.kernel.scratch.get(s as usize).is_none_or(|s| s.space == Space::Shared);
            self.require(shared, TILE, || format!("{memory} is not shared"));
        }
        let half = |dtype| matches!(dtype, Some(DType::F16 | DType::BF16));
        let wide = |dtype| dtype == Some(DType::F32);
        let fits = word == element || half(element) && wide(word) || half(word) && wide(element);
        self.require(fits, TYPE, || format!("{strip} takes {memory}"));
    }

    /// An access of neighbours: a width that there is, from a place that may be a multiple of it.
    fn vector(&mut self, memory: Memory, index: &Expr, len: u32, copy: bool) {
        let Some(dtype) = self.kernel.memory(memory) else {
            return self.report(UNDEFINED, format!("{memory} does not exist"));
        };
        let bytes = dtype.size() * len as usize;
        let width = matches!(bytes, 4 | 8 | 16) || !copy && bytes == 2;
        self.require(width, TILE, || format!("{bytes} bytes of {memory} at once"));
        if let Memory::Buffer(b) = memory {
            let align = self.kernel.buffers.get(b as usize).map_or(0, |b| b.align as usize);
            self.require(align.is_multiple_of(bytes) && align >= bytes, ALIGN, || format!("{memory} is not aligned"));
        }
        if let Some(first) = index.as_int() {
            self.require(first % i64::from(len.max(1)) == 0, ALIGN, || format!("{memory}[{first}] x {len}"));
        }
    }
}
