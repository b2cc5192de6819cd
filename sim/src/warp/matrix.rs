//! Asynchronous copies, and matrices that a warp holds.
//!
//! A late copy takes its destination away when it begins: bytes that no wait has made visible count as not written. The
//! layouts of matrices in registers are those of the PTX manual, "Matrix Fragments for mma.m16n8k…".

use super::access::Kind;
use super::undefined::Origin;
use super::{Warp, lanes};
use crate::block::{Common, Trouble};
use crate::error::FaultKind;
use crate::inst::*;
use crate::launch::Launch;
use crate::types::Type;

/// A copy that was begun by a lane.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    lane: u32,
    to: u64,
    data: Vec<u8>,
}

impl Warp {
    pub(super) fn copy_async(
        &mut self,
        launch: &mut Launch<'_>,
        common: &mut Common,
        op: &Op,
        active: u32,
    ) -> Result<(), Trouble> {
        match op {
            Op::CopyAsync { to, from, bytes, read } => {
                let (mut global, mut shared) = (Vec::new(), Vec::new());
                for lane in lanes(active) {
                    let at = |a: &Address| self.get(launch, common, a.base, lane).wrapping_add(a.offset as u64);
                    let (to, from) = (at(to) & 0xffff_ffff, at(from));
                    let read = read.map_or(*bytes, |read| self.get(launch, common, read, lane) as usize).min(*bytes);
                    let trouble = |kind: FaultKind| (kind, lane);
                    if !from.is_multiple_of(*bytes as u64) {
                        let bytes = *bytes;
                        return Err(trouble(FaultKind::Misaligned { space: "global", address: from, bytes }));
                    }
                    let mut data = vec![0; *bytes];
                    if read > 0 {
                        global.push((lane, from));
                        let place = self.place(launch, common, Space::Global, from, read, Kind::Read, lane);
                        let place = place.map_err(trouble)?;
                        let offset = place.offset;
                        data[..read].copy_from_slice(&self.bytes(launch, common, &place)[offset..offset + read]);
                    }
                    shared.push((lane, to));
                    // the memory belongs to the copy from now on
                    let place = self.place(launch, common, Space::Shared, to, *bytes, Kind::Write, lane);
                    let offset = place.map_err(trouble)?.offset;
                    if launch.options.late {
                        common.written[offset..offset + bytes].fill(false);
                        common.shared[offset..offset + bytes].fill(0xff);
                        self.open.push(Copy { lane, to, data });
                    } else {
                        common.shared[offset..offset + bytes].copy_from_slice(&data);
                    }
                }
                let stats = &mut launch.stats[self.at];
                if !global.is_empty() {
                    stats.global(&global, *bytes);
                }
                stats.shared(&shared, *bytes);
            }
            Op::CommitGroup => {
                let group = std::mem::take(&mut self.open);
                self.groups.push_back(group);
            }
            Op::WaitGroup { pending } => {
                let first = active.trailing_zeros();
                let pending = self.get(launch, common, *pending, first) as usize;
                while self.groups.len() > pending {
                    let group = self.groups.pop_front().unwrap_or_default();
                    for copy in group {
                        let place =
                            self.place(launch, common, Space::Shared, copy.to, copy.data.len(), Kind::Write, copy.lane);
                        let offset = place.map_err(|kind| (kind, copy.lane))?.offset;
                        common.shared[offset..offset + copy.data.len()].copy_from_slice(&copy.data);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn load_matrix(
        &mut self,
        launch: &mut Launch<'_>,
        common: &mut Common,
        op: &Op,
        active: u32,
    ) -> Result<(), Trouble> {
        let Op::LoadMatrix { dst, address, transpose } = op else { return Ok(()) };
        let mut accesses = Vec::new();
        let mut rows: Vec<[u16; 8]> = Vec::new();
        // rows of which not all was written
        let mut unwritten: Vec<Option<u64>> = Vec::new();
        for lane in lanes(active).take(8 * dst.len()) {
            let flat = self.get(launch, common, address.base, lane).wrapping_add(address.offset as u64) & 0xffff_ffff;
            let place = self.place(launch, common, Space::Shared, flat, 16, Kind::Read, lane);
            let offset = place.map_err(|kind| (kind, lane))?.offset;
            accesses.push((lane, flat));
            let halves: [u16; 8] = std::array::from_fn(|i| {
                u16::from_le_bytes([common.shared[offset + 2 * i], common.shared[offset + 2 * i + 1]])
            });
            rows.push(halves);
            let whole = !launch.options.checks.uninitialised || !common.written[offset..offset + 16].contains(&false);
            unwritten.push((!whole).then_some(flat));
        }
        let line = launch.entry.insts[self.at].line;
        for (matrix, reg) in dst.iter().enumerate() {
            let at = |row: usize, column: usize| u64::from(rows[8 * matrix + row][column]);
            for lane in lanes(active) {
                let (row, pair) = (lane as usize / 4, 2 * (lane as usize % 4));
                let (low, high) =
                    if *transpose { (at(pair, row), at(pair + 1, row)) } else { (at(row, pair), at(row, pair + 1)) };
                self.set(*reg, lane, high << 16 | low);
                let from = |row: usize| unwritten[8 * matrix + row];
                let address = if *transpose { from(pair).or(from(pair + 1)) } else { from(row) };
                let origin = address
                    .map(|address| (1 << lane, Origin::Unwritten { space: Space::Shared.name(), address, line }));
                self.undefined.write(*reg, 1 << lane, origin);
            }
        }
        launch.stats[self.at].shared(&accesses, 16);
        Ok(())
    }

    /// Sums are exact and rounded once: a GPU truncates products as it aligns them, within the same bound.
    pub(super) fn multiply(&mut self, op: &Op) {
        let Op::Multiply { kind, d, a, b, c } = op else { return };
        let value = |this: &Warp, reg: Reg, lane: usize| this.regs[reg as usize * 32 + lane] as u32;
        // by group of four lanes a row of `a`, a column of `b`; by lane of the group its elements along the sum
        let depth = match kind {
            MatrixKind::Half(_) => 16,
            MatrixKind::Tf32 => 8,
            MatrixKind::Bytes(_) => 32,
        };
        let per = depth / 8;
        let real = |side: usize, bits: u32, i: usize| match kind {
            MatrixKind::Half(ty) => ty.real((bits >> (16 * i)).into()),
            MatrixKind::Tf32 => Type::F32.real((bits & 0xffff_e000).into()),
            MatrixKind::Bytes(types) => types[side].real((bits >> (8 * i)).into()),
        };
        let (mut left, mut right) = ([[0.0; 32]; 16], [[0.0; 8]; 32]);
        for lane in 0..32 {
            let (group, own) = (lane / 4, lane % 4);
            for (r, reg) in a.iter().enumerate() {
                // registers go down the rows first, then along the sum
                let (row, first) = (group + 8 * (r % 2), own * per + depth / 2 * (r / 2));
                let bits = value(self, *reg, lane);
                (0..per).for_each(|i| left[row][first + i] = real(0, bits, i));
            }
            for (r, reg) in b.iter().enumerate() {
                let bits = value(self, *reg, lane);
                (0..per).for_each(|i| right[own * per + depth / 2 * r + i][group] = real(1, bits, i));
            }
        }
        let undefined = self.undefined_sums(d, a, b, c);
        for lane in 0..32 {
            for (r, (to, from)) in d.iter().zip(c).enumerate() {
                let (row, column) = (lane / 4 + 8 * (r / 2), 2 * (lane % 4) + r % 2);
                let sum: f64 = (0..depth).map(|k| left[row][k] * right[k][column]).sum();
                let start = value(self, *from, lane);
                let bits = match kind {
                    MatrixKind::Bytes(_) => (start as i32).wrapping_add(sum as i64 as i32) as u32,
                    _ => ((sum + f64::from(f32::from_bits(start))) as f32).to_bits(),
                };
                self.set(*to, lane as u32, bits.into());
            }
        }
        for (reg, found) in d.iter().zip(undefined) {
            self.undefined.write(*reg, u32::MAX, found);
        }
    }

    /// In which lanes each sum of a product is undefined: an element of its row or column is, or what it begins with.
    fn undefined_sums(&self, d: &[Reg], a: &[Reg], b: &[Reg], c: &[Reg]) -> Vec<Option<(u32, Origin)>> {
        let of = |reg: &Reg| self.undefined.lanes(*reg);
        if self.undefined.is_empty() || [a, b, c].into_iter().flatten().all(|reg| of(reg).is_none()) {
            return vec![None; d.len()];
        }
        let mut rows = [None; 16];
        let mut columns = [None; 8];
        for lane in 0..32 {
            let here = |reg: &Reg| of(reg).filter(|(lanes, _)| lanes >> lane & 1 == 1).map(|(_, origin)| origin);
            for (r, reg) in a.iter().enumerate() {
                let row = &mut rows[lane / 4 + 8 * (r % 2)];
                *row = row.or(here(reg));
            }
            for reg in b {
                columns[lane / 4] = columns[lane / 4].or(here(reg));
            }
        }
        let sum = |(r, from): (usize, &Reg)| {
            let mut found = of(from);
            for lane in 0..32 {
                let (row, column) = (lane / 4 + 8 * (r / 2), 2 * (lane % 4) + r % 2);
                if let Some(origin) = rows[row].or(columns[column]) {
                    found = Some((found.map_or(0, |(lanes, _)| lanes) | 1 << lane, origin));
                }
            }
            found
        };
        c.iter().enumerate().map(sum).collect()
    }
}
