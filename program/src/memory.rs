//! The memory plan: which temporaries share memory.
//!
//! Offsets are chosen when sizes are known: greedily, each at the lowest place where no buffer that lives at the same time
//! lies. In which order decides how well they fit (Pisarchyk and Lee, 2020): by size, by the most crowded step, and in order
//! of time; and whether the lower and the upper end of the arena take turns, which suits chains. The best is taken.

use std::cmp::Reverse;

/// A temporary: its size, and the first and last step that use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Bytes.
    pub bytes: usize,
    /// First step.
    pub first: usize,
    /// Last step.
    pub last: usize,
}

/// Offsets of temporaries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// By temporary, bytes from the start of the arena.
    pub offsets: Vec<usize>,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Most bytes that live at one step: no plan needs less.
    pub live_bytes_bound: usize,
}

/// Alignment of temporaries: a cache line, and a 512-bit vector.
pub const ALIGNMENT: usize = 64;

/// Plans an arena.
pub fn plan(lifetimes: &[Lifetime]) -> MemoryPlan {
    let live = live_bytes(lifetimes);
    let bound = live.iter().copied().max().unwrap_or(0);
    let crowd = |l: &Lifetime| live[l.first..=l.last].iter().copied().max().unwrap_or(0);
    let by = |key: &dyn Fn(usize) -> (Reverse<usize>, Reverse<usize>)| {
        let mut order: Vec<usize> = (0..lifetimes.len()).collect();
        order.sort_by_cached_key(|i| (key(*i), *i));
        order
    };
    let orders = [
        by(&|i| (Reverse(lifetimes[i].bytes), Reverse(0))),
        by(&|i| (Reverse(crowd(&lifetimes[i])), Reverse(lifetimes[i].bytes))),
        by(&|i| (Reverse(usize::MAX - lifetimes[i].first), Reverse(lifetimes[i].bytes))),
        by(&|i| (Reverse(lifetimes[i].last), Reverse(lifetimes[i].bytes))),
    ];
    let mut best = MemoryPlan { live_bytes_bound: bound, ..MemoryPlan::default() };
    for (order, top) in orders.iter().flat_map(|order| [(order, 0), (order, bound)]) {
        let (offsets, arena_bytes) = place(lifetimes, order, top);
        if best.offsets.is_empty() || arena_bytes < best.arena_bytes {
            best = MemoryPlan { offsets, arena_bytes, live_bytes_bound: bound };
        }
        if best.arena_bytes == bound {
            break;
        }
    }
    best
}

fn size(lifetime: &Lifetime) -> usize {
    lifetime.bytes.next_multiple_of(ALIGNMENT)
}

/// Offsets by temporary, and the bytes of the arena, when they are placed in that order: at the bottom, else so that they
/// end at `top`, else at the lowest place that is free.
fn place(lifetimes: &[Lifetime], order: &[usize], top: usize) -> (Vec<usize>, usize) {
    let mut offsets = vec![0; lifetimes.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut arena_bytes = 0;
    for &i in order {
        let mine = lifetimes[i];
        let mut others: Vec<(usize, usize)> = placed
            .iter()
            .filter(|j| lifetimes[**j].first <= mine.last && mine.first <= lifetimes[**j].last)
            .map(|j| (offsets[*j], offsets[*j] + size(&lifetimes[*j])))
            .collect();
        others.sort_unstable();
        let mut at = 0;
        for (start, end) in &others {
            if at + size(&mine) <= *start {
                break;
            }
            at = at.max(*end);
        }
        let free_above = others.iter().map(|(_, end)| *end).max().unwrap_or(0);
        if at > 0 && free_above + size(&mine) <= top {
            at = top - size(&mine);
        }
        offsets[i] = at;
        arena_bytes = arena_bytes.max(at + size(&mine));
        placed.push(i);
    }
    (offsets, arena_bytes)
}

/// Bytes that live at each step.
fn live_bytes(lifetimes: &[Lifetime]) -> Vec<usize> {
    let steps = lifetimes.iter().map(|l| l.last + 1).max().unwrap_or(0);
    let mut change = vec![0isize; steps + 1];
    for l in lifetimes {
        change[l.first] += size(l) as isize;
        change[l.last + 1] -= size(l) as isize;
    }
    let mut live = 0isize;
    change
        .iter()
        .map(|delta| {
            live += delta;
            live as usize
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_reuse_two_slots() {
        let chain: Vec<Lifetime> = (0..10).map(|i| Lifetime { bytes: 1000, first: i, last: i + 1 }).collect();
        let plan = plan(&chain);
        assert_eq!(plan.arena_bytes, 2 * 1024);
        assert_eq!(plan.live_bytes_bound, 2 * 1024);
    }

    #[test]
    fn live_buffers_never_overlap() {
        let lifetimes: Vec<Lifetime> = (0..60usize)
            .map(|i| Lifetime { bytes: (i * 7919) % 5000, first: (i * 31) % 40, last: (i * 31) % 40 + i % 9 })
            .collect();
        let plan = plan(&lifetimes);
        for (i, a) in lifetimes.iter().enumerate() {
            for (j, b) in lifetimes.iter().enumerate().skip(i + 1) {
                let together = a.first <= b.last && b.first <= a.last;
                let (p, q) = (plan.offsets[i], plan.offsets[j]);
                assert!(!together || p + a.bytes <= q || q + b.bytes <= p);
            }
        }
        assert!(plan.arena_bytes >= plan.live_bytes_bound);
    }

    /// A chain whose links differ in size needs two places, not three.
    #[test]
    fn chains_alternate() {
        let sizes = [640, 704, 704, 640, 704, 640, 704, 704];
        let chain: Vec<Lifetime> =
            sizes.iter().enumerate().map(|(i, bytes)| Lifetime { bytes: *bytes, first: i, last: i + 1 }).collect();
        let plan = plan(&chain);
        assert!(4 * plan.arena_bytes <= 5 * plan.live_bytes_bound, "{plan:?}");
    }
}
