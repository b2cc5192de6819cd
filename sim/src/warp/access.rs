//! Loads, stores and atomic operations, with their checks and counts.

use super::undefined::Origin;
use super::{LOCAL_WINDOW, SHARED_WINDOW, Warp, lanes};
use crate::arith;
use crate::block::{Common, Trouble};
use crate::error::FaultKind;
use crate::inst::*;
use crate::launch::Launch;
use crate::race::{Contested, Race};
use crate::shadow::{Collision, Event};
use crate::types::Type;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Atomic,
}

/// Where an access lies after its checks.
pub(super) struct Place {
    space: Space,
    allocation: usize,
    pub offset: usize,
    /// The write that a load of registers has no order with.
    contested: Option<Race>,
}

impl Warp {
    pub(super) fn access(
        &mut self,
        launch: &mut Launch<'_>,
        common: &mut Common,
        op: &Op,
        active: u32,
    ) -> Result<(), Trouble> {
        let (space, address, ty, width, kind) = match op {
            Op::Ld { space, ty, dst, address } => (*space, *address, *ty, dst.len(), Kind::Read),
            Op::St { space, ty, src, address } => (*space, *address, *ty, src.len(), Kind::Write),
            Op::Atom { space, ty, address, .. } => (*space, *address, *ty, 1, Kind::Atomic),
            _ => return Ok(()),
        };
        let bytes = ty.bytes() * width;
        let (mut global, mut shared) = (Vec::new(), Vec::new());
        for lane in lanes(active) {
            let base = self.get(launch, common, address.base, lane);
            let flat = base.wrapping_add(address.offset as u64);
            let (space, flat) = resolve(space, flat);
            match space {
                Space::Global | Space::Const => global.push((lane, flat)),
                Space::Shared => shared.push((lane, flat)),
                _ => {}
            }
            if let Op::St { src, .. } = op
                && !self.undefined.is_empty()
            {
                self.leaves(space, src, lane).map_err(|kind| (kind, lane))?;
            }
            let place = self.place(launch, common, space, flat, bytes, kind, lane).map_err(|kind| (kind, lane))?;
            self.perform(launch, common, op, ty, &place, lane);
            self.follow(launch, common, op, ty, flat, &place, lane);
        }
        let stats = &mut launch.stats[self.at];
        if !global.is_empty() {
            stats.global(&global, bytes);
        }
        if !shared.is_empty() {
            stats.shared(&shared, bytes);
        }
        Ok(())
    }

    /// Checks bounds, alignment, races and initialisation.
    pub(super) fn place(
        &mut self,
        launch: &mut Launch<'_>,
        common: &mut Common,
        space: Space,
        address: u64,
        bytes: usize,
        kind: Kind,
        lane: u32,
    ) -> Result<Place, FaultKind> {
        let name = space.name();
        if !address.is_multiple_of(bytes as u64) {
            return Err(FaultKind::Misaligned { space: name, address, bytes });
        }
        let write = kind != Kind::Read;
        let (allocation, offset) = match space {
            Space::Global | Space::Const | Space::Generic => launch.memory.locate(address, bytes, write)?,
            Space::Shared | Space::Local | Space::Param => {
                let size = match space {
                    Space::Shared => common.shared.len(),
                    Space::Local => launch.entry.local_bytes,
                    _ => launch.params.len(),
                };
                if address.checked_add(bytes as u64).is_none_or(|end| end > size as u64) {
                    let near = format!(", which has {size} bytes");
                    return Err(FaultKind::OutOfBounds { space: name, address, bytes, near });
                }
                if space == Space::Param && write {
                    return Err(FaultKind::ReadOnly("param".into()));
                }
                let start = if space == Space::Local { lane as usize * size } else { 0 };
                (0, start + address as usize)
            }
        };
        let mut contested = None;
        let written = match space {
            Space::Shared => Some(&mut common.written[offset..offset + bytes]),
            Space::Local => Some(&mut self.local_written[offset..offset + bytes]),
            _ => None,
        };
        if let Some(written) = written {
            if kind == Kind::Atomic && launch.options.checks.uninitialised && written.contains(&false) {
                let line = launch.entry.insts[self.at].line;
                return Err(FaultKind::Uninitialised { space: name, address, line });
            }
            if write {
                written.fill(true);
            }
        }
        if launch.options.checks.races && matches!(space, Space::Shared | Space::Global) {
            let known = &common.known[self.index as usize];
            let event = Event {
                block: common.index,
                thread: self.index * 32 + lane,
                clock: known[self.index as usize],
                at: self.at as u32,
                atomic: kind == Kind::Atomic,
            };
            let shadow = if space == Space::Shared { &mut common.shadow } else { &mut launch.shadow };
            let loads = matches!(launch.entry.insts[self.at].op, Op::Ld { .. });
            for Collision { with, wrote } in shadow.access(address, bytes, event, write, known) {
                let insts = &launch.entry.insts;
                let race = Race::new(name, address, event, with, wrote, insts);
                if wrote && loads {
                    // a fault where the value is used
                    contested = Some(race);
                    continue;
                }
                // nor is a value a fault that a load found before this write, and that nothing has used so far
                let before = !wrote && kind == Kind::Write && with.block == common.index;
                let unused = if before { common.unused(insts, with) } else { None };
                let Some(uses) = unused else { return Err(race.fault()) };
                let race = Race::new(name, address, with, event, true, insts);
                common.contested.push(Contested { thread: with.thread, load: with.at as usize, uses, race });
            }
        }
        Ok(Place { space, allocation, offset, contested })
    }

    fn perform(&mut self, launch: &mut Launch<'_>, common: &mut Common, op: &Op, ty: Type, place: &Place, lane: u32) {
        let size = ty.bytes();
        let at = |part: usize| place.offset + part * size..place.offset + (part + 1) * size;
        match op {
            Op::Ld { dst, .. } => {
                for (part, reg) in dst.iter().enumerate() {
                    let value = load(ty, &self.bytes(launch, common, place)[at(part)]);
                    if let Some(reg) = reg {
                        self.set(*reg, lane, value);
                    }
                }
            }
            Op::St { src, .. } => {
                for (part, value) in src.iter().enumerate() {
                    let value = self.get(launch, common, *value, lane);
                    self.bytes(launch, common, place)[at(part)].copy_from_slice(&value.to_le_bytes()[..size]);
                }
            }
            Op::Atom { op, dst, b, c, .. } => {
                let (b, c) = (self.get(launch, common, *b, lane), self.get(launch, common, *c, lane));
                let old = load(ty, &self.bytes(launch, common, place)[at(0)]);
                let new = arith::atomic(*op, ty, old & ty.mask(), b, c);
                self.bytes(launch, common, place)[at(0)].copy_from_slice(&new.to_le_bytes()[..size]);
                if let Some(reg) = dst {
                    self.set(*reg, lane, old);
                }
            }
            _ => {}
        }
    }

    /// Notes which registers a load leaves undefined, and which memory a store does.
    fn follow(
        &mut self,
        launch: &Launch<'_>,
        common: &mut Common,
        op: &Op,
        ty: Type,
        address: u64,
        place: &Place,
        lane: u32,
    ) {
        if !launch.options.checks.uninitialised && !launch.options.checks.races {
            return;
        }
        let size = ty.bytes();
        let at = |part: usize| place.offset + part * size..place.offset + (part + 1) * size;
        let memory = match place.space {
            Space::Shared if launch.options.checks.uninitialised => &mut common.written,
            Space::Local if launch.options.checks.uninitialised => &mut self.local_written,
            _ => &mut Vec::new(),
        };
        match op {
            Op::Ld { dst, .. } => {
                for (part, reg) in dst.iter().enumerate() {
                    let Some(reg) = reg else { continue };
                    let unwritten = memory.get(at(part)).is_some_and(|bytes| bytes.contains(&false));
                    let line = launch.entry.insts[self.at].line;
                    let address = address + (part * size) as u64;
                    let origin = unwritten
                        .then_some(Origin::Unwritten { space: place.space.name(), address, line })
                        .or(place.contested.map(Origin::Contested));
                    self.undefined.write(*reg, 1 << lane, origin.map(|origin| (1 << lane, origin)));
                }
            }
            Op::St { src, .. } => {
                for (part, value) in src.iter().enumerate() {
                    let Value::Reg(reg) = value else { continue };
                    let undefined = self.undefined.lanes(*reg).is_some_and(|(lanes, _)| lanes >> lane & 1 == 1);
                    if let Some(bytes) = memory.get_mut(at(part)).filter(|_| undefined) {
                        bytes.fill(false);
                    }
                }
            }
            Op::Atom { dst: Some(reg), .. } => self.undefined.write(*reg, 1 << lane, None),
            _ => {}
        }
    }

    pub(super) fn bytes<'b>(
        &'b mut self,
        launch: &'b mut Launch<'_>,
        common: &'b mut Common,
        place: &Place,
    ) -> &'b mut [u8] {
        match place.space {
            Space::Shared => &mut common.shared,
            Space::Local => &mut self.local,
            Space::Param => &mut launch.params,
            Space::Global | Space::Const | Space::Generic => launch.memory.data(place.allocation),
        }
    }
}

/// A generic address's space, and the address in it.
fn resolve(space: Space, address: u64) -> (Space, u64) {
    match space {
        Space::Generic if address >= LOCAL_WINDOW => (Space::Local, address - LOCAL_WINDOW),
        Space::Generic if address >= SHARED_WINDOW => (Space::Shared, address - SHARED_WINDOW),
        Space::Generic => (Space::Global, address),
        _ => (space, address),
    }
}

/// A value from memory; a signed one fills its register.
fn load(ty: Type, bytes: &[u8]) -> u64 {
    let bits = bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
    if ty.is_signed() { ty.integer(bits) as u64 } else { bits }
}
