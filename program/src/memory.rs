//! The memory plan: which temporaries share memory.
//!
//! Offsets are chosen when sizes are known: greedily, large buffers first, each at the lowest place where no buffer
//! that lives at the same time lies (Pisarchyk and Lee, 2020, greedy by size).

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
    let size = |l: &Lifetime| l.bytes.next_multiple_of(ALIGNMENT);
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(lifetimes[*i].bytes), *i));
    let mut offsets = vec![0; lifetimes.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut arena_bytes = 0;
    for i in order {
        let mine = lifetimes[i];
        let mut others: Vec<(usize, usize)> = placed
            .iter()
            .filter(|j| lifetimes[**j].first <= mine.last && mine.first <= lifetimes[**j].last)
            .map(|j| (offsets[*j], offsets[*j] + size(&lifetimes[*j])))
            .collect();
        others.sort_unstable();
        let mut at = 0;
        for (start, end) in others {
            if at + size(&mine) <= start {
                break;
            }
            at = at.max(end);
        }
        offsets[i] = at;
        arena_bytes = arena_bytes.max(at + size(&mine));
        placed.push(i);
    }
    MemoryPlan { offsets, arena_bytes, live_bytes_bound: bound(lifetimes) }
}

fn bound(lifetimes: &[Lifetime]) -> usize {
    let steps = lifetimes.iter().map(|l| l.last + 1).max().unwrap_or(0);
    let mut change = vec![0i64; steps + 1];
    for l in lifetimes {
        let bytes = l.bytes.next_multiple_of(ALIGNMENT) as i64;
        change[l.first] += bytes;
        change[l.last + 1] -= bytes;
    }
    let (mut live, mut most) = (0, 0);
    for delta in change {
        live += delta;
        most = most.max(live);
    }
    most as usize
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
}
