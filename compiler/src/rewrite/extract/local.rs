//! Local search: a class takes another node, or all classes that can read a class do so together, or leave it.
//!
//! A merged contraction pays only when all its slices switch: no single move finds it.

use super::flat::{Choice, Flat};
use super::priced::{Move, Priced};

const ROUNDS: usize = 8;
const GAIN: f64 = 1e-9;

/// Improves a choice until no move helps.
pub fn improve(flat: &Flat, choice: Choice) -> (Choice, f64) {
    let Some(mut priced) = Priced::new(flat, choice.clone()) else { return (choice, f64::INFINITY) };
    let readers = readers(flat);
    for _ in 0..ROUNDS {
        let before = priced.total();
        single_moves(flat, &mut priced);
        group_moves(flat, &readers, &mut priced);
        if before - priced.total() < GAIN {
            break;
        }
    }
    let choice = priced.into_choice();
    // summed anew: the moves' roundings add up
    let total = flat.total(&choice).unwrap_or(f64::INFINITY);
    (choice, total)
}

/// By class, the nodes of classes with alternatives that read it.
fn readers(flat: &Flat) -> Vec<Vec<Move>> {
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

fn single_moves(flat: &Flat, priced: &mut Priced) {
    for class in 0..flat.ids.len() as u32 {
        for j in 0..flat.nodes[class as usize].len() as u32 {
            if priced.reached(class) && j != priced.chosen(class) {
                priced.improve(&[(class, j)], GAIN);
            }
        }
    }
}

fn group_moves(flat: &Flat, readers: &[Vec<Move>], priced: &mut Priced) {
    let mut moves: Vec<Move> = Vec::new();
    for (class, readers) in readers.iter().enumerate() {
        let free = flat.nodes[class].iter().all(|node| node.cost == 0.0);
        if readers.len() < 2 || free {
            continue;
        }
        for join in [true, false] {
            moves.clear();
            for (reader, j) in readers.iter().filter(|(reader, _)| priced.reached(*reader)) {
                if moves.iter().any(|(moved, _)| moved == reader) {
                    continue;
                }
                let nodes = &flat.nodes[*reader as usize];
                let reads = |k: u32| nodes.get(k as usize).is_some_and(|n| n.operands.contains(&(class as u32)));
                let chosen = priced.chosen(*reader);
                if join && !reads(chosen) {
                    moves.push((*reader, *j));
                } else if !join && chosen == *j {
                    let other = nodes.iter().enumerate().filter(|(k, _)| !reads(*k as u32));
                    if let Some((k, _)) = other.min_by(|a, b| a.1.cost.total_cmp(&b.1.cost)) {
                        moves.push((*reader, k as u32));
                    }
                }
            }
            if moves.len() > 1 {
                priced.improve(&moves, GAIN);
            }
        }
    }
}
