//! Who last touched each byte, and whether a barrier stands between.
//!
//! Each warp has a clock that barriers raise, and knows up to which clock of each other warp it is ordered behind. An
//! access is ordered behind an earlier one if it is the same thread's, or if its warp knows the earlier clock to be
//! past. Two readers of different threads are kept for each byte: enough to find one that differs from any writer.

use std::collections::HashMap;

/// One access, for comparison with later ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Block plus one; zero where nothing happened.
    pub block: u32,
    pub thread: u32,
    pub clock: u32,
    /// The instruction.
    pub at: u32,
    pub atomic: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    write: Event,
    reads: [Event; 2],
}

/// What an access collides with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Collision {
    pub with: Event,
    pub wrote: bool,
}

/// Accesses by byte, in pages that appear when they are touched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shadow {
    pages: HashMap<u64, Box<[Cell]>>,
}

const PAGE: u64 = 256;

impl Shadow {
    /// Records an access to some bytes and tells the earlier ones that nothing orders before it, each once. `known` is
    /// what the accessing warp knows of the clocks of its block's warps.
    pub fn access(&mut self, address: u64, bytes: usize, event: Event, write: bool, known: &[u32]) -> Vec<Collision> {
        let mut collisions = Vec::new();
        let mut collide = |with: Event, wrote: bool| {
            let collision = Collision { with, wrote };
            if !collisions.contains(&collision) {
                collisions.push(collision);
            }
        };
        let ordered = |old: &Event| {
            let same_block = old.block == event.block;
            let past = || known.get((old.thread / 32) as usize).is_some_and(|&clock| clock > old.clock);
            old.block == 0 || (old.atomic && event.atomic) || (same_block && (old.thread == event.thread || past()))
        };
        for byte in address..address.saturating_add(bytes as u64) {
            let page = self.pages.entry(byte / PAGE).or_insert_with(|| vec![Cell::default(); PAGE as usize].into());
            let cell = &mut page[(byte % PAGE) as usize];
            if !ordered(&cell.write) {
                collide(cell.write, true);
            }
            if !write {
                let same = |old: &Event| old.block == event.block && old.thread == event.thread;
                if !same(&cell.reads[0]) {
                    cell.reads[1] = cell.reads[0];
                }
                cell.reads[0] = event;
                continue;
            }
            cell.reads.iter().filter(|read| !ordered(read)).for_each(|read| collide(*read, false));
            *cell = Cell { write: event, reads: Default::default() };
        }
        collisions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(thread: u32, clock: u32) -> Event {
        Event { block: 1, thread, clock, at: 1, atomic: false }
    }

    #[test]
    fn a_barrier_orders_and_nothing_else_does() {
        let mut shadow = Shadow::default();
        assert!(shadow.access(0, 4, event(0, 0), true, &[0, 0]).is_empty());
        assert!(shadow.access(2, 4, event(0, 0), false, &[0, 0]).is_empty());
        assert!(shadow.access(3, 1, event(40, 0), false, &[0, 0])[0].wrote);
        assert!(shadow.access(2, 2, event(40, 1), false, &[1, 1]).is_empty());
        // the reader after the barrier, once for both bytes
        let found = shadow.access(2, 2, event(1, 1), true, &[1, 1]);
        assert_eq!(found, [Collision { with: event(40, 1), wrote: false }]);
    }
}
