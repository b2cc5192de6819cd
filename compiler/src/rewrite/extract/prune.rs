//! Nodes that no cheapest choice needs.
//!
//! A node is dominated by another of its class that costs no more and reads nothing beyond what it reads or what every
//! choice computes. Dropping it leaves a cheapest choice, as long as the class is on no cycle.

use super::bound::common;
use super::flat::Flat;

/// By class, the nodes that are left, ascending by cost.
pub fn undominated(flat: &Flat) -> Vec<Vec<u32>> {
    let mut left: Vec<Vec<u32>> = flat.nodes.iter().map(|nodes| (0..nodes.len() as u32).collect()).collect();
    for (class, list) in left.iter_mut().enumerate() {
        let cost = |j: &u32| flat.nodes[class][*j as usize].cost;
        list.sort_by(|a, b| cost(a).total_cmp(&cost(b)).then(a.cmp(b)));
    }
    loop {
        let always = always(flat, &left);
        let mut dropped = false;
        for (class, list) in left.iter_mut().enumerate() {
            let component = flat.component[class] as usize;
            if list.len() < 2 || flat.component_size[component] > 1 {
                continue;
            }
            let nodes = &flat.nodes[class];
            let mut kept: Vec<u32> = Vec::new();
            for j in list.iter().copied() {
                let node = &nodes[j as usize];
                let within = |k: &u32| {
                    let better = &nodes[*k as usize];
                    better.operands.iter().all(|o| always[*o as usize] || node.operands.contains(o))
                };
                // those before it cost no more
                if !kept.iter().any(within) {
                    kept.push(j);
                }
            }
            dropped |= kept.len() < list.len();
            *list = kept;
        }
        if !dropped {
            return left;
        }
    }
}

/// Classes that every choice computes: the roots, and what all nodes of such a class read.
fn always(flat: &Flat, left: &[Vec<u32>]) -> Vec<bool> {
    let mut always = vec![false; flat.ids.len()];
    let mut todo: Vec<u32> = flat.roots.clone();
    while let Some(class) = todo.pop() {
        if std::mem::replace(&mut always[class as usize], true) {
            continue;
        }
        todo.extend(common(flat, class as usize, &left[class as usize]));
    }
    always
}
