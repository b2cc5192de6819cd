//! A warp: its registers, and one instruction at a time for the lanes that stand lowest in the text.

use crate::arith;
use crate::block::{Common, Step, Trouble};
use crate::error::FaultKind;
use crate::inst::*;
use crate::launch::Launch;

mod access;
mod collective;
mod matrix;
mod undefined;

/// Generic addresses of shared and local memory start here.
pub(crate) const SHARED_WINDOW: u64 = 0x7f10_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0x7f20_0000_0000;

/// The lanes of a mask.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}

/// A warp that runs.
pub(crate) struct Warp {
    index: u32,
    regs: Vec<u64>,
    masks: Vec<u64>,
    pc: [usize; 32],
    /// The lanes that were launched, and those that have not exited. Barriers and masks are held to the first: what an
    /// early exit does to them, CUDA leaves open.
    launched: u32,
    live: u32,
    at: usize,
    local: Vec<u8>,
    local_written: Vec<bool>,
    undefined: undefined::Undefined,
    /// Copies of no group yet, and groups that are not done, oldest first.
    open: Vec<matrix::Copy>,
    groups: std::collections::VecDeque<Vec<matrix::Copy>>,
}

impl Warp {
    pub fn new(launch: &Launch<'_>, index: u32, threads: u32) -> Self {
        let count = (threads - index * 32).min(32);
        let local = launch.entry.local_bytes * 32;
        Self {
            index,
            regs: vec![0; launch.entry.regs.len() * 32],
            masks: launch.entry.regs.iter().map(|ty| ty.mask()).collect(),
            pc: [0; 32],
            launched: u32::MAX >> (32 - count),
            live: u32::MAX >> (32 - count),
            at: 0,
            local: vec![0; local],
            local_written: vec![false; local],
            undefined: Default::default(),
            open: Vec::new(),
            groups: Default::default(),
        }
    }

    /// The instruction that ran last.
    pub fn current(&self) -> usize {
        self.at
    }

    /// The coordinates of a lane's thread.
    pub fn thread(&self, launch: &Launch<'_>, lane: u32) -> [u32; 3] {
        let [x, y, _] = launch.dims;
        let linear = self.index * 32 + lane;
        [linear % x, linear / x % y, linear / x / y]
    }

    fn set(&mut self, reg: Reg, lane: u32, bits: u64) {
        self.regs[reg as usize * 32 + lane as usize] = bits & self.masks[reg as usize];
    }

    fn get(&self, launch: &Launch<'_>, common: &Common, value: Value, lane: u32) -> u64 {
        match value {
            Value::Reg(reg) => self.regs[reg as usize * 32 + lane as usize],
            Value::Imm(bits) => bits,
            Value::Symbol(symbol) => launch.symbols[symbol as usize],
            Value::Special(special) => self.special(launch, common, special, lane),
        }
    }

    fn special(&self, launch: &Launch<'_>, common: &Common, special: Special, lane: u32) -> u64 {
        let below = (1u64 << lane) - 1;
        match special {
            Special::Tid(axis) => self.thread(launch, lane)[axis].into(),
            Special::NTid(axis) => launch.dims[axis].into(),
            Special::CtaId(axis) => common.at[axis].into(),
            Special::NCtaId(axis) => launch.grid[axis].into(),
            Special::LaneId => lane.into(),
            Special::WarpId => self.index.into(),
            Special::NWarpId => common.known.len() as u64,
            Special::MaskEq => 1 << lane,
            Special::MaskLt => below,
            Special::MaskLe => below << 1 | 1,
            Special::MaskGt => !(below << 1 | 1) & 0xffff_ffff,
            Special::MaskGe => !below & 0xffff_ffff,
            Special::Clock => launch.steps,
            Special::DynamicShared => launch.options.dynamic_shared as u64,
            Special::TotalShared => launch.shared_bytes as u64,
            Special::Zero => 0,
        }
    }

    /// Runs one instruction for the lanes with the lowest program counter; if those wait for others of the warp, for
    /// the next ones.
    pub fn step(&mut self, launch: &mut Launch<'_>, common: &mut Common) -> Result<Step, Trouble> {
        if self.live == 0 {
            return Ok(Step::Done);
        }
        if launch.steps >= launch.options.max_steps {
            return Err((FaultKind::StepLimit(launch.options.max_steps), self.live.trailing_zeros()));
        }
        launch.steps += 1;
        let mut left = self.live;
        let mut first_trouble = None;
        while left != 0 {
            let at = lanes(left).map(|lane| self.pc[lane as usize]).min().unwrap_or(0);
            let group = lanes(left).filter(|&lane| self.pc[lane as usize] == at).fold(0, |mask, lane| mask | 1 << lane);
            left &= !group;
            let entry = launch.entry;
            let inst = &entry.insts[at];
            if let Some(guard) = inst.guard
                && let Err(trouble) = self.needs_guard(guard, group)
            {
                self.at = at;
                return Err(trouble);
            }
            let active = match inst.guard {
                Some(guard) => lanes(group)
                    .filter(|&lane| (self.regs[guard.reg as usize * 32 + lane as usize] & 1 == 1) != guard.negated)
                    .fold(0, |mask, lane| mask | 1 << lane),
                None => group,
            };
            if active != 0
                && let Some(trouble) = self.missing(launch, common, &inst.op, active)
            {
                first_trouble.get_or_insert((at, trouble));
                continue;
            }
            self.at = at;
            lanes(group).for_each(|lane| self.pc[lane as usize] = at + 1);
            launch.stats[at].executed += 1;
            // a guard decides for the lanes that do not branch too
            let runs = if matches!(inst.op, Op::Bra { .. }) { group } else { active };
            common.runs(self.index, at, runs)?;
            return if active == 0 { Ok(Step::On) } else { self.run(launch, common, &inst.op, active) };
        }
        // Every group of lanes waits for another one.
        let Some((at, trouble)) = first_trouble else { return Ok(Step::Done) };
        self.at = at;
        Err(trouble)
    }

    /// What is wrong if a group runs an operation that needs more lanes than it has.
    fn missing(&self, launch: &Launch<'_>, common: &Common, op: &Op, active: u32) -> Option<Trouble> {
        let first = active.trailing_zeros();
        match *op {
            Op::Bar { id, .. } if active != self.launched => {
                let barrier = self.get(launch, common, id, first) as u32;
                Some((FaultKind::DivergentBarrier { barrier, active, launched: self.launched }, first))
            }
            Op::LoadMatrix { .. } | Op::Multiply { .. } if active != u32::MAX => {
                Some((FaultKind::WarpMask { mask: u32::MAX, active }, first))
            }
            Op::WarpSync { mask } | Op::Shfl { mask, .. } | Op::Vote { mask, .. } => lanes(active).find_map(|lane| {
                let mask = self.get(launch, common, mask, lane) as u32;
                let fits = mask & self.launched & !active == 0 && mask >> lane & 1 == 1;
                (!fits).then_some((FaultKind::WarpMask { mask, active }, lane))
            }),
            _ => None,
        }
    }

    fn run(&mut self, launch: &mut Launch<'_>, common: &mut Common, op: &Op, active: u32) -> Result<Step, Trouble> {
        let first = active.trailing_zeros();
        if !self.undefined.is_empty() {
            self.needs_operands(op, active)?;
        }
        match op {
            Op::Nop => {}
            Op::Trap => return Err((FaultKind::Trap, first)),
            Op::Exit => self.live &= !active,
            Op::Bra { target } => lanes(active).for_each(|lane| self.pc[lane as usize] = *target),
            Op::Bar { id, count, wait } => {
                let id = self.get(launch, common, *id, first);
                let count = count.map(|count| self.get(launch, common, count, first) as u32);
                return common.arrive(self.index as usize, id, count, *wait).map_err(|kind| (kind, first));
            }
            Op::WarpSync { .. } => common.tick(self.index as usize),
            Op::Shfl { .. } | Op::Vote { .. } | Op::ActiveMask { .. } => self.collective(launch, common, op, active)?,
            Op::Ld { .. } | Op::St { .. } | Op::Atom { .. } => self.access(launch, common, op, active)?,
            Op::CopyAsync { .. } | Op::CommitGroup | Op::WaitGroup { .. } => {
                self.copy_async(launch, common, op, active)?;
            }
            Op::LoadMatrix { .. } => self.load_matrix(launch, common, op, active)?,
            Op::Multiply { .. } => self.multiply(op),
            _ => {
                if !self.undefined.is_empty() {
                    self.pass_on(launch, common, op, active);
                }
                lanes(active).for_each(|lane| self.compute(launch, common, op, lane));
            }
        }
        Ok(Step::On)
    }

    /// Instructions that a lane runs by itself.
    fn compute(&mut self, launch: &Launch<'_>, common: &Common, op: &Op, lane: u32) {
        let get = |value: &Value| self.get(launch, common, *value, lane);
        match op {
            Op::Mov { dst, src } => self.set(*dst, lane, get(src)),
            Op::Pack { dst, parts, bits } => {
                let mask = u64::MAX >> (64 - bits);
                let all = parts.iter().rev().fold(0, |all, part| all << bits | get(part) & mask);
                self.set(*dst, lane, all);
            }
            Op::Unpack { dst, src, bits } => {
                let all = get(src);
                for (part, reg) in dst.iter().enumerate() {
                    if let Some(reg) = reg {
                        self.set(*reg, lane, (all >> (part as u32 * bits)) & (u64::MAX >> (64 - bits)));
                    }
                }
            }
            Op::Unary { op, ty, flags, dst, a } => self.set(*dst, lane, arith::unary(*op, *ty, *flags, get(a))),
            Op::Binary { op, ty, flags, dst, a, b } => {
                self.set(*dst, lane, arith::binary(*op, *ty, *flags, get(a), get(b)));
            }
            Op::Ternary { op, ty, flags, dst, a, b, c } => {
                self.set(*dst, lane, arith::ternary(*op, *ty, *flags, get(a), get(b), get(c)));
            }
            Op::Bfi { ty, dst, a, b, pos, len } => {
                self.set(*dst, lane, arith::bfi(*ty, get(a), get(b), get(pos), get(len)));
            }
            Op::Selp { dst, a, b, pred } => self.set(*dst, lane, if get(pred) & 1 == 1 { get(a) } else { get(b) }),
            Op::Slct { dst, a, b, by, c } => {
                self.set(*dst, lane, if by.real(get(c)) >= 0.0 { get(a) } else { get(b) });
            }
            Op::Setp { ty, compare, unordered, ftz, dst, other, a, b, with } => {
                let holds = arith::compare(*ty, *compare, *unordered, *ftz, get(a), get(b));
                let combine = |holds: bool| match with {
                    None => holds,
                    Some((how, value, negated)) => {
                        let with = (get(value) & 1 == 1) != *negated;
                        match how {
                            Combine::And => holds && with,
                            Combine::Or => holds || with,
                            Combine::Xor => holds != with,
                        }
                    }
                };
                let (yes, no) = (combine(holds), combine(!holds));
                for (reg, value) in [(dst, yes), (other, no)] {
                    if let Some(reg) = reg {
                        self.set(*reg, lane, value.into());
                    }
                }
            }
            Op::Set { ty, compare, unordered, dst, one, a, b } => {
                let holds = arith::compare(*ty, *compare, *unordered, false, get(a), get(b));
                self.set(*dst, lane, if holds { *one } else { 0 });
            }
            Op::Cvt { to, from, round, flags, relu, dst, a } => {
                let mut bits = arith::convert(*to, *from, *round, *flags, *relu, get(a));
                if to.is_signed() {
                    // A register wider than the type holds the sign in its upper bits.
                    bits = to.integer(bits) as u64;
                }
                self.set(*dst, lane, bits);
            }
            Op::CvtPack { to, from, relu, dst, a, b } => {
                self.set(*dst, lane, arith::pack(*to, *from, *relu, get(a), get(b)));
            }
            Op::Cvta { space, to_space, dst, a } => {
                let base = match space {
                    Space::Shared => SHARED_WINDOW,
                    Space::Local => LOCAL_WINDOW,
                    _ => 0,
                };
                let a = get(a);
                self.set(*dst, lane, if *to_space { a.wrapping_sub(base) } else { a.wrapping_add(base) });
            }
            // What concerns more than a lane is run elsewhere.
            _ => {}
        }
    }
}
