//! A block: its warps, its shared memory, its barriers, and whose turn it is.

use crate::error::{Fault, FaultKind};
use crate::inst::Inst;
use crate::launch::{Launch, WarpOrder};
use crate::race::{self, Contested};
use crate::shadow::{Event, Shadow};
use crate::warp::Warp;

/// Named barriers of a block.
const BARRIERS: usize = 16;

/// What a step of a warp came to.
pub(crate) enum Step {
    /// It can go on.
    On,
    /// It waits at a barrier.
    Wait,
    /// All its lanes have exited.
    Done,
}

/// A fault without its place, and the lane concerned.
pub(crate) type Trouble = (FaultKind, u32);

/// A barrier that some warps have reached.
#[derive(Clone, Copy, Debug, Default)]
struct Barrier {
    /// Warps that arrived, and those of them that wait.
    arrived: u32,
    waiting: u32,
    /// Threads it waits for; `None` for all.
    count: Option<u32>,
}

/// Shared memory and what all warps of the block see.
pub(crate) struct Common {
    pub at: [u32; 3],
    pub index: u32,
    pub shared: Vec<u8>,
    pub written: Vec<bool>,
    pub shadow: Shadow,
    /// By warp, what it knows of every warp's clock.
    pub known: Vec<Vec<u32>>,
    /// By warp and instruction, the lanes that ran it.
    pub ran: Vec<Vec<u32>>,
    /// Values whose use would be a fault.
    pub contested: Vec<Contested>,
    barriers: [Barrier; BARRIERS],
    waiting: u32,
    done: u32,
}

/// A block that runs.
pub(crate) struct Block {
    common: Common,
    warps: Vec<Warp>,
}

impl Block {
    pub fn new(launch: &Launch<'_>, at: [u32; 3]) -> Self {
        let threads: u32 = launch.dims.iter().product();
        let warps: Vec<_> = (0..threads.div_ceil(32)).map(|index| Warp::new(launch, index, threads)).collect();
        let [x, y, _] = launch.grid;
        let index = at[0].wrapping_add(x.wrapping_mul(at[1].wrapping_add(y.wrapping_mul(at[2])))).wrapping_add(1);
        let common = Common {
            at,
            index,
            shared: vec![0; launch.shared_bytes],
            written: vec![false; launch.shared_bytes],
            shadow: Shadow::default(),
            known: vec![vec![0; warps.len()]; warps.len()],
            ran: vec![vec![0; if launch.options.checks.races { launch.entry.insts.len() } else { 0 }]; warps.len()],
            contested: Vec::new(),
            barriers: Default::default(),
            waiting: 0,
            done: 0,
        };
        Self { common, warps }
    }

    /// Runs all warps to their end.
    pub fn run(mut self, launch: &mut Launch<'_>) -> Result<(), Fault> {
        let count = self.warps.len();
        loop {
            let blocked = self.common.waiting | self.common.done;
            let ready: Vec<usize> = (0..count).filter(|warp| blocked >> warp & 1 == 0).collect();
            let pick = match (launch.options.warp_order, ready.as_slice()) {
                (_, []) if self.common.done.count_ones() as usize == count => return Ok(()),
                (_, []) => return Err(self.deadlock(launch)),
                (WarpOrder::Forward, [first, ..]) => *first,
                (WarpOrder::Reverse, [.., last]) => *last,
                (WarpOrder::Seeded(_), ready) => ready[(launch.random() % ready.len() as u64) as usize],
            };
            let turn = match launch.options.warp_order {
                WarpOrder::Seeded(_) => 1 + launch.random() % 64,
                _ => u64::MAX,
            };
            self.turn(launch, pick, turn)?;
        }
    }

    /// Lets one warp run until it waits, ends, or has had its instructions.
    fn turn(&mut self, launch: &mut Launch<'_>, pick: usize, steps: u64) -> Result<(), Fault> {
        for _ in 0..steps {
            let warp = &mut self.warps[pick];
            match warp.step(launch, &mut self.common) {
                Ok(Step::On) => {}
                Ok(Step::Wait) => return Ok(()),
                Ok(Step::Done) => {
                    self.common.done |= 1 << pick;
                    self.common.release();
                    return Ok(());
                }
                Err((kind, lane)) => {
                    let inst = &launch.entry.insts[warp.current()];
                    let thread = warp.thread(launch, lane);
                    let text = launch.module.line(inst.line).to_string();
                    return Err(Fault { kind, line: inst.line, text, block: self.common.at, thread });
                }
            }
        }
        Ok(())
    }

    fn deadlock(&self, launch: &Launch<'_>) -> Fault {
        let first = (self.common.waiting.trailing_zeros() as usize).min(self.warps.len() - 1);
        let warp = &self.warps[first];
        let line = launch.entry.insts[warp.current()].line;
        let waits = |(id, barrier): (usize, &Barrier)| {
            (barrier.waiting != 0).then(|| format!("warps {:#x} wait at barrier {id}", barrier.waiting))
        };
        let waits: Vec<_> = self.common.barriers.iter().enumerate().filter_map(waits).collect();
        let text = launch.module.line(line).to_string();
        let kind = FaultKind::Deadlock(waits.join(", "));
        Fault { kind, line, text, block: self.common.at, thread: warp.thread(launch, 0) }
    }
}

impl Common {
    /// A warp arrives at a barrier.
    pub fn arrive(&mut self, warp: usize, id: u64, count: Option<u32>, wait: bool) -> Result<Step, FaultKind> {
        let misuse = |message: &str| FaultKind::BarrierMisuse { barrier: id as u32, message: message.into() };
        let Some(barrier) = self.barriers.get_mut(id as usize) else { return Err(misuse("there are 16")) };
        if count.is_some_and(|count| count == 0 || count % 32 != 0) {
            return Err(misuse("its thread count is no multiple of 32"));
        }
        if barrier.arrived != 0 && barrier.count != count {
            return Err(misuse("warps give it different thread counts"));
        }
        if barrier.arrived >> warp & 1 == 1 {
            return Err(misuse("a warp arrives twice before it completes"));
        }
        barrier.count = count;
        barrier.arrived |= 1 << warp;
        if wait {
            barrier.waiting |= 1 << warp;
            self.waiting |= 1 << warp;
        }
        self.release();
        Ok(if self.waiting >> warp & 1 == 1 { Step::Wait } else { Step::On })
    }

    /// Completes each barrier that has all its warps.
    fn release(&mut self) {
        let warps = self.known.len();
        let all = u32::MAX >> (32 - warps);
        for id in 0..BARRIERS {
            let barrier = self.barriers[id];
            let complete = match barrier.count {
                Some(count) => barrier.arrived.count_ones() * 32 >= count,
                None => barrier.arrived | self.done == all,
            };
            if barrier.arrived == 0 || !complete {
                continue;
            }
            self.barriers[id] = Barrier::default();
            self.waiting &= !barrier.waiting;
            let members: Vec<_> = (0..warps).filter(|warp| barrier.arrived >> warp & 1 == 1).collect();
            members.iter().for_each(|&warp| self.tick(warp));
            let joined: Vec<u32> =
                (0..warps).map(|of| members.iter().map(|&warp| self.known[warp][of]).max().unwrap_or(0)).collect();
            // A warp that only arrived learns nothing of the others.
            for &warp in members.iter().filter(|&&warp| barrier.waiting >> warp & 1 == 1) {
                self.known[warp].clone_from(&joined);
            }
        }
    }

    /// Lanes of a warp run an instruction.
    ///
    /// # Errors
    /// One of them uses a value that another thread wrote after it was loaded, with no order between.
    pub fn runs(&mut self, warp: u32, at: usize, lanes: u32) -> Result<(), Trouble> {
        if let Some(ran) = self.ran[warp as usize].get_mut(at) {
            *ran |= lanes;
        }
        let is_here = |value: &Contested| value.thread / 32 == warp && lanes >> (value.thread % 32) & 1 == 1;
        if let Some(value) = self.contested.iter().find(|value| is_here(value) && value.uses.contains(&at)) {
            return Err((value.race.fault(), value.thread % 32));
        }
        // loaded again, it is another value
        self.contested.retain(|value| value.load != at || !is_here(value));
        Ok(())
    }

    /// The instructions that would use what a thread loaded; `None` if it has run one of them, or that cannot be told.
    pub fn unused(&self, insts: &[Inst], load: Event) -> Option<std::collections::BTreeSet<usize>> {
        let uses = race::uses(insts, load.at as usize)?;
        let ran = self.ran.get((load.thread / 32) as usize)?;
        let used = uses.iter().any(|at| ran.get(*at).is_none_or(|lanes| lanes >> (load.thread % 32) & 1 == 1));
        (!used).then_some(uses)
    }

    /// Raises a warp's own clock: what it did is ordered before what it will do.
    pub fn tick(&mut self, warp: usize) {
        self.known[warp][warp] += 1;
    }
}
