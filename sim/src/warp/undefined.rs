//! Registers that hold what was read from memory that nothing wrote, or while another thread wrote it.
//!
//! Such a read is no fault by itself: a compiler may load early what a later guard never uses. It is one when the value
//! decides something: a branch, an address, or what global memory holds. Until then results of it are as undefined as
//! their operands, lane by lane, and so is the shared memory that they are stored to.

use std::collections::HashMap;

use super::{Warp, lanes};
use crate::block::{Common, Trouble};
use crate::error::FaultKind;
use crate::inst::*;
use crate::launch::Launch;
use crate::race::Race;

/// Where an undefined value was read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// From memory that nothing wrote.
    Unwritten { space: &'static str, address: u64, line: u32 },
    /// From memory that another thread wrote meanwhile.
    Contested(Race),
}

impl Origin {
    fn fault(self) -> FaultKind {
        match self {
            Origin::Unwritten { space, address, line } => FaultKind::Uninitialised { space, address, line },
            Origin::Contested(race) => race.fault(),
        }
    }
}

/// Undefined registers of a warp: the lanes, and where the value of one of them came from.
#[derive(Default)]
pub(super) struct Undefined {
    of: HashMap<Reg, (u32, Origin)>,
}

impl Undefined {
    /// Whether no register is undefined.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// The lanes in which a register is undefined, and where that came from.
    pub fn lanes(&self, reg: Reg) -> Option<(u32, Origin)> {
        self.of.get(&reg).copied()
    }

    /// A register was written in some lanes, in `undefined` of them by something undefined.
    pub fn write(&mut self, reg: Reg, written: u32, undefined: Option<(u32, Origin)>) {
        let before = self.of.get(&reg).map_or(0, |(lanes, _)| *lanes);
        let after = before & !written | undefined.map_or(0, |(lanes, _)| lanes & written);
        match (after, undefined.map(|(_, origin)| origin).or_else(|| self.of.get(&reg).map(|(_, origin)| *origin))) {
            (1.., Some(origin)) => drop(self.of.insert(reg, (after, origin))),
            _ => drop(self.of.remove(&reg)),
        }
    }
}

impl Warp {
    /// Where lanes of a mask have something undefined in a value.
    pub(super) fn undefined_in(&self, value: Value, mask: u32) -> Option<(u32, Origin)> {
        let Value::Reg(reg) = value else { return None };
        self.undefined.lanes(reg).map(|(lanes, origin)| (lanes & mask, origin)).filter(|(lanes, _)| *lanes != 0)
    }

    /// The fault of lanes that need a value that is undefined.
    fn needs(&self, value: Value, active: u32) -> Result<(), Trouble> {
        match self.undefined_in(value, active) {
            Some((lanes, origin)) => Err((origin.fault(), lanes.trailing_zeros())),
            None => Ok(()),
        }
    }

    /// The fault of a guard that is undefined.
    pub(super) fn needs_guard(&self, guard: Guard, group: u32) -> Result<(), Trouble> {
        self.needs(Value::Reg(guard.reg), group)
    }

    /// Faults of what an operation decides by undefined values.
    pub(super) fn needs_operands(&self, op: &Op, active: u32) -> Result<(), Trouble> {
        let all = |values: &[Value]| values.iter().try_for_each(|value| self.needs(*value, active));
        match op {
            Op::Ld { address, .. } | Op::St { address, .. } | Op::LoadMatrix { address, .. } => all(&[address.base]),
            Op::Atom { address, b, c, .. } => all(&[address.base, *b, *c]),
            Op::CopyAsync { to, from, read, .. } => {
                all(&[to.base, from.base])?;
                read.map_or(Ok(()), |read| all(&[read]))
            }
            Op::WaitGroup { pending } => all(&[*pending]),
            Op::Shfl { b, c, mask, .. } => all(&[*b, *c, *mask]),
            Op::Vote { mask, .. } | Op::WarpSync { mask } => all(&[*mask]),
            Op::Bar { id, count, .. } => {
                all(&[*id])?;
                count.map_or(Ok(()), |count| all(&[count]))
            }
            _ => Ok(()),
        }
    }

    /// The fault of a store of something undefined: to global memory, or of what was contested, anywhere.
    pub(super) fn leaves(&self, space: Space, src: &[Value], lane: u32) -> Result<(), FaultKind> {
        let counts = |origin: &Origin| space == Space::Global || matches!(origin, Origin::Contested(_));
        let mut all = src.iter().filter_map(|value| self.undefined_in(*value, 1 << lane));
        all.find(|(_, origin)| counts(origin)).map_or(Ok(()), |(_, origin)| Err(origin.fault()))
    }

    /// What the results of an operation that each lane runs by itself are, before it runs.
    pub(super) fn pass_on(&mut self, launch: &Launch<'_>, common: &Common, op: &Op, active: u32) {
        let mut found: Option<(u32, Origin)> = None;
        let mut add = |(lanes, origin): (u32, Origin)| found = Some((lanes | found.map_or(0, |(had, _)| had), origin));
        let is = |value: Value, bits: u64| {
            lanes(active)
                .filter(|lane| {
                    self.undefined_in(value, 1 << lane).is_none() && self.get(launch, common, value, *lane) == bits
                })
                .fold(0, |mask, lane| mask | 1 << lane)
        };
        match op {
            Op::Selp { a, b, pred, .. } => {
                let picks = lanes(active)
                    .filter(|lane| self.get(launch, common, *pred, *lane) & 1 == 1)
                    .fold(0, |mask, lane| mask | 1 << lane);
                self.undefined_in(*pred, active).into_iter().for_each(&mut add);
                self.undefined_in(*a, picks).into_iter().for_each(&mut add);
                self.undefined_in(*b, active & !picks).into_iter().for_each(&mut add);
            }
            // what one operand decides alone
            Op::Binary { op: operation @ (Binary::And | Binary::Or), ty, a, b, .. } => {
                let alone = if *operation == Binary::And { 0 } else { ty.mask() };
                self.undefined_in(*a, active & !is(*b, alone)).into_iter().for_each(&mut add);
                self.undefined_in(*b, active & !is(*a, alone)).into_iter().for_each(&mut add);
            }
            Op::Setp { a, b, with: Some((how @ (Combine::And | Combine::Or), value, negated)), .. } => {
                let alone = u64::from((*how == Combine::Or) != *negated);
                let open = active & !is(*value, alone);
                self.undefined_in(*value, active).into_iter().for_each(&mut add);
                self.undefined_in(*a, open).into_iter().for_each(&mut add);
                self.undefined_in(*b, open).into_iter().for_each(&mut add);
            }
            _ => op.reads(&mut |value| self.undefined_in(value, active).into_iter().for_each(&mut add)),
        }
        op.writes(&mut |reg| self.undefined.write(reg, active, found));
    }
}
