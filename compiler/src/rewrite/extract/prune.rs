//! What a cheapest choice needs: nodes that none needs are dropped, and what every choice computes is told.
//!
//! Of the nodes that are left follow, by class, what all ways to compute it compute besides (as dominators of a flow graph),
//! the most that it costs beside a choice that has it not, and the least that it adds to one.

use super::flat::Flat;

/// A set of classes.
#[derive(Clone, PartialEq, Eq)]
pub struct Classes(Vec<u64>);

impl Classes {
    fn new(n: usize, full: bool) -> Classes {
        Classes(vec![if full { u64::MAX } else { 0 }; n.div_ceil(64)])
    }

    /// Whether a class is in it.
    pub fn has(&self, class: u32) -> bool {
        self.0[class as usize / 64] >> (class % 64) & 1 == 1
    }

    fn insert(&mut self, class: u32) {
        self.0[class as usize / 64] |= 1 << (class % 64);
    }

    fn unite(&mut self, other: &Classes) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }

    fn meet(&mut self, other: &Classes) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= b);
    }

    /// Its classes, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            let mut bits = *bits;
            std::iter::from_fn(move || {
                let at = (bits != 0).then(|| bits.trailing_zeros())?;
                bits &= bits - 1;
                Some(word as u32 * 64 + at)
            })
        })
    }
}

/// A choice of nodes, as far as it is open.
pub struct Open {
    /// By class, the nodes that are left, ascending by cost.
    pub left: Vec<Vec<u32>>,
    /// By class, what every way to compute it computes besides.
    pub besides: Vec<Classes>,
    /// Classes that every choice computes.
    pub always: Classes,
    /// By class, the most that it costs beside what every choice computes, µs.
    pub most: Vec<f64>,
    /// By class, the least that it adds, with what it alone reads and is not in [`Open::besides`], µs.
    pub least: Vec<f64>,
}

impl Open {
    /// Drops nodes until none can be dropped.
    pub fn new(flat: &Flat) -> Open {
        let n = flat.ids.len();
        let mut left: Vec<Vec<u32>> = flat.nodes.iter().map(|nodes| (0..nodes.len() as u32).collect()).collect();
        for (class, list) in left.iter_mut().enumerate() {
            let cost = |j: &u32| flat.nodes[class][*j as usize].cost;
            list.sort_by(|a, b| cost(a).total_cmp(&cost(b)).then(a.cmp(b)));
        }
        // operands first, but on cycles
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_by_key(|class| flat.component[*class as usize]);
        loop {
            let besides = besides(flat, &left, &order);
            let mut always = Classes::new(n, false);
            for root in &flat.roots {
                always.insert(*root);
                always.unite(&besides[*root as usize]);
            }
            let most = most(flat, &left, &order, &always);
            if !drop_dominated(flat, &mut left, &always, &most) {
                let least = least(flat, &left, &order, &always, &besides);
                return Open { left, besides, always, most, least };
            }
        }
    }
}

/// Drops each node that another of its class dominates: with what it reads and the other neither reads nor every choice
/// computes it costs no more. A cheapest choice stays as long as the class is on no cycle. Whether any was.
fn drop_dominated(flat: &Flat, left: &mut [Vec<u32>], always: &Classes, most: &[f64]) -> bool {
    let mut dropped = false;
    for (class, list) in left.iter_mut().enumerate().filter(|(class, _)| !flat.on_cycle(*class as u32)) {
        let nodes = &flat.nodes[class];
        let mut kept: Vec<u32> = Vec::new();
        for j in list.iter().copied() {
            let node = &nodes[j as usize];
            let dominates = |k: &u32| {
                let other = &nodes[*k as usize];
                let further = other.operands.iter().filter(|o| !always.has(**o) && !node.operands.contains(o));
                other.cost + further.map(|o| most[*o as usize]).sum::<f64>() <= node.cost
            };
            // those before it cost no more
            if !kept.iter().any(dominates) {
                kept.push(j);
            }
        }
        dropped |= kept.len() < list.len();
        *list = kept;
    }
    dropped
}

/// Calls `f` for each class in turn until it says of none that something changed.
fn until_stable(order: &[u32], mut f: impl FnMut(usize) -> bool) {
    while order.iter().fold(false, |changed, class| f(*class as usize) | changed) {}
}

fn besides(flat: &Flat, left: &[Vec<u32>], order: &[u32]) -> Vec<Classes> {
    let n = flat.ids.len();
    let mut besides = vec![Classes::new(n, true); n];
    until_stable(order, |class| {
        let mut all: Option<Classes> = None;
        for j in &left[class] {
            let mut one = Classes::new(n, false);
            for operand in &flat.nodes[class][*j as usize].operands {
                one.insert(*operand);
                one.unite(&besides[*operand as usize]);
            }
            match &mut all {
                Some(all) => all.meet(&one),
                None => all = Some(one),
            }
        }
        let all = all.unwrap_or_else(|| Classes::new(n, false));
        let changed = all != besides[class];
        besides[class] = all;
        changed
    });
    besides
}

fn most(flat: &Flat, left: &[Vec<u32>], order: &[u32], always: &Classes) -> Vec<f64> {
    let mut most = vec![f64::INFINITY; flat.ids.len()];
    until_stable(order, |class| {
        let costs = left[class].iter().map(|j| {
            let node = &flat.nodes[class][*j as usize];
            let operands = node.operands.iter().filter(|o| !always.has(**o)).map(|o| most[*o as usize]);
            node.cost + operands.sum::<f64>()
        });
        let cost = costs.fold(f64::INFINITY, f64::min);
        let changed = cost < most[class];
        most[class] = most[class].min(cost);
        changed
    });
    most
}

fn least(flat: &Flat, left: &[Vec<u32>], order: &[u32], always: &Classes, besides: &[Classes]) -> Vec<f64> {
    // by class, the only other one that reads it
    let mut reader: Vec<Option<Option<u32>>> = vec![None; flat.ids.len()];
    for (class, list) in left.iter().enumerate() {
        for operand in list.iter().flat_map(|j| &flat.nodes[class][*j as usize].operands) {
            let have = &mut reader[*operand as usize];
            *have = Some(have.map_or(Some(class as u32), |only| only.filter(|only| *only == class as u32)));
        }
    }
    let mut least = vec![0.0; flat.ids.len()];
    // once: on cycles it is less than it could be, but no more than it is
    for class in order.iter().map(|class| *class as usize) {
        let own =
            |o: &u32| reader[*o as usize] == Some(Some(class as u32)) && !always.has(*o) && !besides[class].has(*o);
        let costs = left[class].iter().map(|j| {
            let node = &flat.nodes[class][*j as usize];
            node.cost + node.operands.iter().filter(|o| own(o)).map(|o| least[*o as usize]).sum::<f64>()
        });
        least[class] = costs.fold(f64::INFINITY, f64::min);
    }
    least
}
