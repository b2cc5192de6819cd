//! Reads that nothing orders with a write: faults, unless nothing uses what they found.
//!
//! A compiler may load early what a later guard throws away, while another thread writes it. Of a load that comes after the
//! write its registers are undefined ([`crate::warp`]). Of one that came before it, what the value may decide is
//! looked up in the text: if the thread has run none of that, the race is a fault once it does.

use std::collections::BTreeSet;

use crate::error::FaultKind;
use crate::inst::{Inst, Op, Reg, Value};
use crate::shadow::Event;

/// An access that races with an earlier or later one of another thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Race {
    space: &'static str,
    address: u64,
    line: u32,
    wrote: bool,
    other_line: u32,
    thread: u32,
    /// Its block, if that is another.
    block: Option<u32>,
}

impl Race {
    /// The race of an event with another one, which wrote or read.
    pub fn new(space: &'static str, address: u64, own: Event, other: Event, wrote: bool, insts: &[Inst]) -> Race {
        let line = |event: Event| insts.get(event.at as usize).map_or(0, |inst| inst.line);
        let block = (other.block != own.block).then(|| other.block.saturating_sub(1));
        Race { space, address, line: line(own), wrote, other_line: line(other), thread: other.thread, block }
    }

    pub fn fault(self) -> FaultKind {
        let block = self.block.map_or(String::new(), |block| format!(" of block {block}"));
        FaultKind::Race {
            space: self.space,
            address: self.address,
            line: self.line,
            other: if self.wrote { "write" } else { "read" },
            other_line: self.other_line,
            other_thread: format!("thread {}{block}", self.thread),
        }
    }
}

/// A value that a thread loaded before another one wrote it, with no order between, and has not used.
pub(crate) struct Contested {
    pub thread: u32,
    /// The load.
    pub load: usize,
    /// The instructions that would use it.
    pub uses: BTreeSet<usize>,
    /// The write.
    pub race: Race,
}

/// The instructions for which a load's value decides something, itself or by what lanes compute from it; `None` where that
/// cannot be told: of what is no load of registers, or where it guards something else than a branch.
pub(crate) fn uses(insts: &[Inst], load: usize) -> Option<BTreeSet<usize>> {
    let Op::Ld { dst, .. } = &insts.get(load)?.op else { return None };
    let mut tainted: BTreeSet<Reg> = dst.iter().flatten().copied().collect();
    let mut found = BTreeSet::new();
    loop {
        let before = tainted.len();
        for (at, inst) in insts.iter().enumerate() {
            if inst.guard.is_some_and(|guard| tainted.contains(&guard.reg)) {
                if !matches!(inst.op, Op::Bra { .. }) {
                    return None;
                }
                found.insert(at);
            }
            let mut reads = false;
            inst.op.operands(&mut |value| reads |= matches!(value, Value::Reg(reg) if tainted.contains(&reg)));
            if !reads {
                continue;
            }
            let mut alone = false;
            inst.op.writes(&mut |reg| {
                alone = true;
                tainted.insert(reg);
            });
            if !alone {
                found.insert(at);
            }
        }
        if tainted.len() == before {
            return Some(found);
        }
    }
}
