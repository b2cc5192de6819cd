//! DAG greedy: each class keeps the set of classes that its choice needs; a node costs its operands' union.

use std::collections::VecDeque;

use super::flat::{Choice, Flat};

/// The greedy choice.
pub fn choose(flat: &Flat) -> Choice {
    let n = flat.ids.len();
    let words = n.div_ceil(64);
    let mut sets: Vec<Option<Vec<u64>>> = vec![None; n];
    let mut own = vec![0.0; n];
    let mut total = vec![f64::INFINITY; n];
    let mut choice = vec![u32::MAX; n];
    let parents = parents(flat);
    let mut queue: VecDeque<u32> =
        (0..n as u32).filter(|c| flat.nodes[*c as usize].iter().any(|node| node.operands.is_empty())).collect();
    let mut queued = vec![false; n];
    queue.iter().for_each(|c| queued[*c as usize] = true);
    let mut needed = vec![0u64; words];
    while let Some(class) = queue.pop_front() {
        let i = class as usize;
        queued[i] = false;
        let mut improved = false;
        'nodes: for (j, node) in flat.nodes[i].iter().enumerate() {
            needed.fill(0);
            for operand in &node.operands {
                let Some(set) = &sets[*operand as usize] else { continue 'nodes };
                needed.iter_mut().zip(set).for_each(|(a, b)| *a |= b);
            }
            let cyclic = needed[i / 64] >> (i % 64) & 1 == 1;
            if cyclic {
                continue;
            }
            let cost = node.cost + sum(&needed, &own);
            if cost < total[i] - 1e-9 {
                total[i] = cost;
                own[i] = node.cost;
                choice[i] = j as u32;
                improved = true;
                let mut set = needed.clone();
                set[i / 64] |= 1 << (i % 64);
                sets[i] = Some(set);
            }
        }
        if improved {
            for parent in &parents[i] {
                if !std::mem::replace(&mut queued[*parent as usize], true) {
                    queue.push_back(*parent);
                }
            }
        }
    }
    choice
}

fn sum(set: &[u64], own: &[f64]) -> f64 {
    let mut total = 0.0;
    for (w, bits) in set.iter().enumerate() {
        let mut bits = *bits;
        while bits != 0 {
            total += own[w * 64 + bits.trailing_zeros() as usize];
            bits &= bits - 1;
        }
    }
    total
}

fn parents(flat: &Flat) -> Vec<Vec<u32>> {
    let mut parents = vec![Vec::new(); flat.ids.len()];
    for (class, nodes) in flat.nodes.iter().enumerate() {
        for operand in nodes.iter().flat_map(|node| &node.operands) {
            parents[*operand as usize].push(class as u32);
        }
    }
    for list in &mut parents {
        list.sort();
        list.dedup();
    }
    parents
}
