//! Local search: a class takes another node, or all classes that can read a class do so together, or leave it.
//!
//! A merged contraction pays only when all its slices switch: no single move finds it.

use super::flat::{Choice, Flat};

const ROUNDS: usize = 8;
const GAIN: f64 = 1e-9;

/// Improves a choice until no move helps.
pub fn improve(flat: &Flat, mut choice: Choice) -> (Choice, f64) {
    let mut best = flat.total(&choice).unwrap_or(f64::INFINITY);
    let readers = readers(flat);
    for _ in 0..ROUNDS {
        let before = best;
        single_moves(flat, &mut choice, &mut best);
        group_moves(flat, &readers, &mut choice, &mut best);
        if before - best < GAIN {
            break;
        }
    }
    (choice, best)
}

/// By class, the nodes of classes with alternatives that read it.
fn readers(flat: &Flat) -> Vec<Vec<(u32, u32)>> {
    let mut readers = vec![Vec::new(); flat.ids.len()];
    for (class, nodes) in flat.nodes.iter().enumerate().filter(|(_, nodes)| nodes.len() > 1) {
        for (j, node) in nodes.iter().enumerate() {
            for operand in &node.operands {
                readers[*operand as usize].push((class as u32, j as u32));
            }
        }
    }
    readers
}

fn reached(flat: &Flat, choice: &Choice) -> Vec<u32> {
    flat.order(choice).unwrap_or_default()
}

fn single_moves(flat: &Flat, choice: &mut Choice, best: &mut f64) {
    for class in reached(flat, choice) {
        let i = class as usize;
        if flat.nodes[i].len() < 2 {
            continue;
        }
        for j in 0..flat.nodes[i].len() as u32 {
            if j == choice[i] {
                continue;
            }
            let old = std::mem::replace(&mut choice[i], j);
            match flat.total(choice) {
                Some(total) if total < *best - GAIN => *best = total,
                _ => choice[i] = old,
            }
        }
    }
}

fn group_moves(flat: &Flat, readers: &[Vec<(u32, u32)>], choice: &mut Choice, best: &mut f64) {
    for (class, readers) in readers.iter().enumerate() {
        let free = flat.nodes[class].iter().all(|node| node.cost == 0.0);
        if readers.len() < 2 || free {
            continue;
        }
        let mut on = vec![false; flat.ids.len()];
        reached(flat, choice).into_iter().for_each(|c| on[c as usize] = true);
        for join in [true, false] {
            let mut trial = choice.clone();
            let mut moved = 0;
            for (reader, j) in readers.iter().filter(|(reader, _)| on[*reader as usize]) {
                let i = *reader as usize;
                let reads =
                    |k: u32| flat.nodes[i].get(k as usize).is_some_and(|n| n.operands.contains(&(class as u32)));
                if join && !reads(trial[i]) {
                    trial[i] = *j;
                    moved += 1;
                } else if !join && trial[i] == *j {
                    let other = flat.nodes[i].iter().enumerate().filter(|(k, _)| !reads(*k as u32));
                    if let Some((k, _)) = other.min_by(|a, b| a.1.cost.total_cmp(&b.1.cost)) {
                        trial[i] = k as u32;
                        moved += 1;
                    }
                }
            }
            if moved < 2 {
                continue;
            }
            if let Some(total) = flat.total(&trial).filter(|total| *total < *best - GAIN) {
                *best = total;
                *choice = trial;
            }
        }
    }
}
