//! Work that who is early takes from who is late.
//!
//! A team steals whole chunks. Where each thread has one, it could not: here a chunk is computed in stages, each in units, of
//! which everyone takes who has nothing else to do.

use crate::cpu::team::Patience;
use std::cell::Cell;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};

/// Nobody has begun the chunk.
const WAITS: u64 = u64::MAX;
/// Nothing is left of it.
const OVER: u64 = u64::MAX - 1;

/// Bits of a number of units; that of the stage has the rest.
const BITS: u32 = 24;

/// A chunk, on a cache line pair of its own.
#[repr(align(128))]
struct Left {
    /// The stage, the first unit of it that nobody took, and the end, in a word, so that an exchange takes of the stage that
    /// was seen.
    word: AtomicU64,
    /// Units of this stage that others computed.
    helped: AtomicUsize,
}

/// The chunks of a job.
pub(crate) struct Help {
    left: *const Left,
    chunks: usize,
}

// SAFETY: only atomics are shared.
unsafe impl Sync for Help {}

impl Help {
    /// Bytes that so many chunks need.
    pub(crate) fn bytes(chunks: usize) -> usize {
        chunks * size_of::<Left>()
    }

    /// So many chunks, that nobody has begun.
    ///
    /// # Safety
    /// There are [as many bytes](Help::bytes), aligned as lines are, and nobody else uses them while this lives.
    pub(crate) unsafe fn new(at: *mut u8, chunks: usize) -> Help {
        let left = at.cast::<Left>();
        for chunk in 0..chunks {
            // SAFETY: the caller's.
            unsafe { left.add(chunk).write(Left { word: AtomicU64::new(WAITS), helped: AtomicUsize::new(0) }) };
        }
        Help { left, chunks }
    }

    fn left(&self, chunk: usize) -> &Left {
        debug_assert!(chunk < self.chunks);
        // SAFETY: there are so many.
        unsafe { &*self.left.add(chunk) }
    }

    /// Computes a chunk, in stages of so many units, fewer than 2²⁴; a stage begins when the one before is complete. `compute` is
    /// called with a chunk, a stage and units of it. Then helps with others that were begun, until nothing is left of them.
    pub(crate) fn run(
        &self,
        chunk: usize,
        stages: impl Iterator<Item = usize>,
        mut compute: impl FnMut(usize, usize, &mut dyn Iterator<Item = usize>),
    ) {
        let left = self.left(chunk);
        let over = Over(left);
        for (stage, units) in stages.enumerate() {
            debug_assert!(units < 1 << BITS && stage < 1 << (63 - 2 * BITS));
            left.helped.store(0, Relaxed);
            left.word.store((stage as u64) << (2 * BITS) | units as u64, Release);
            let mut own = 0;
            compute(chunk, stage, &mut std::iter::from_fn(|| left.take(stage).inspect(|_| own += 1)));
            let mut patience = Patience::new();
            while own + left.helped.load(Acquire) < units {
                patience.wait();
            }
        }
        drop(over);
        let mut patience = Patience::new();
        loop {
            let mut is_over = true;
            for other in (chunk + 1..self.chunks).chain(0..chunk) {
                let left = self.left(other);
                let word = left.word.load(Acquire);
                if word >= OVER {
                    continue;
                }
                is_over = false;
                let stage = (word >> (2 * BITS)) as usize;
                if let Some(first) = left.take(stage) {
                    let helped = Helped(left, Cell::new(1));
                    let more = std::iter::from_fn(|| left.take(stage).inspect(|_| helped.1.set(helped.1.get() + 1)));
                    compute(other, stage, &mut std::iter::once(first).chain(more));
                    patience = Patience::new();
                }
            }
            if is_over {
                return;
            }
            patience.wait();
        }
    }
}

impl Left {
    /// Takes the first unit that is left of a stage.
    fn take(&self, stage: usize) -> Option<usize> {
        let part = |word: u64| word & ((1 << BITS) - 1);
        let (first, end) = (|word: u64| part(word >> BITS), part);
        let is_left = |word: u64| word < OVER && word >> (2 * BITS) == stage as u64 && first(word) < end(word);
        let next = |word: u64| is_left(word).then(|| word + (1 << BITS));
        self.word.fetch_update(AcqRel, Acquire, next).ok().map(|word| first(word) as usize)
    }
}

/// Units of another's chunk: they count as computed when this goes, also if one panics, or who began it would wait.
struct Helped<'a>(&'a Left, Cell<usize>);

impl Drop for Helped<'_> {
    fn drop(&mut self) {
        self.0.helped.fetch_add(self.1.get(), Release);
    }
}

/// A chunk of which nothing is left when this goes, also if a unit panics, or nobody would leave.
struct Over<'a>(&'a Left);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.word.store(OVER, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::memory::Buffer;
    use crate::cpu::team::Team;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    const UNITS: usize = 13;

    fn over(room: &Buffer, chunks: usize) -> Help {
        // SAFETY: made for it, page-aligned, used once.
        unsafe { Help::new(room.as_ptr(), chunks) }
    }

    /// Each unit finds all of the stage before.
    #[test]
    fn every_unit_once_and_stages_in_order() {
        const STAGES: usize = 3;
        for (threads, chunks) in [(1, 3), (2, 2), (3, 2), (4, 9)] {
            let (team, room) = (Team::new(threads), Buffer::new(Help::bytes(chunks)).unwrap());
            for _ in 0..200 {
                let help = over(&room, chunks);
                let counts: Vec<AtomicUsize> = (0..chunks * STAGES * UNITS).map(|_| AtomicUsize::new(0)).collect();
                let of = |chunk: usize, stage: usize| &counts[(chunk * STAGES + stage) * UNITS..][..UNITS];
                team.parallel(chunks, &|chunk, _| {
                    help.run(chunk, std::iter::repeat_n(UNITS, STAGES), |chunk, stage, units| {
                        for unit in units {
                            let before = stage.checked_sub(1).map(|stage| of(chunk, stage));
                            assert!(before.is_none_or(|all| all.iter().all(|count| count.load(Relaxed) == 1)));
                            of(chunk, stage)[unit].fetch_add(1, Relaxed);
                        }
                    });
                });
                let all = counts.iter().all(|count| count.load(Relaxed) == 1);
                assert!(all, "{threads} threads, {chunks} chunks");
            }
        }
    }

    #[test]
    fn who_is_early_helps() {
        let (team, room) = (Team::new(2), Buffer::new(Help::bytes(2)).unwrap());
        let help = over(&room, 2);
        let by = [const { AtomicUsize::new(usize::MAX) }; UNITS];
        let is_begun = AtomicBool::new(false);
        team.parallel(2, &|chunk, worker| {
            while chunk == 0 && !is_begun.load(Relaxed) {
                std::thread::yield_now();
            }
            help.run(chunk, [UNITS * chunk].into_iter(), |_, _, units| {
                for unit in units {
                    is_begun.store(true, Relaxed);
                    by[unit].store(worker, Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        });
        let by: Vec<usize> = by.iter().map(|unit| unit.load(Relaxed)).collect();
        assert!(by.contains(&0) && by.contains(&1), "{by:?}");
    }

    #[test]
    fn a_chunk_that_failed_keeps_nobody() {
        let (team, room) = (Team::new(2), Buffer::new(Help::bytes(2)).unwrap());
        let help = over(&room, 2);
        let job = || {
            team.parallel(2, &|chunk, _| {
                help.run(chunk, [UNITS, UNITS].into_iter(), |of, stage, units| {
                    assert!(of == 0 || stage == 0, "fails");
                    units.for_each(|_| {});
                });
            });
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err());
    }
}
