//! Extraction: which node of each class is computed, priced as a DAG.

mod bound;
mod flat;
mod greedy;
mod local;
mod priced;
mod prune;

pub use flat::{Choice, Flat, alone};

use egg::Id;
use egret_program::DeviceDescription;

use super::term::Graph;

/// Which search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Each class takes the node that is cheapest with what it needs.
    Greedy,
    /// Greedy, then moves of classes and of groups of classes, then branch and bound.
    Full,
}

/// The outcome of an extraction.
#[derive(Clone, Debug)]
pub struct Extracted {
    /// Node by class.
    pub choice: Choice,
    /// Modelled cost of the choice, µs.
    pub cost: f64,
    /// Modelled cost of the greedy choice, µs.
    pub greedy_cost: f64,
    /// No choice is cheaper.
    pub proved: bool,
}

/// Chooses nodes for what `roots` need, with at most `steps` steps of branch and bound.
pub fn extract(
    egraph: &Graph,
    roots: &[Id],
    device: &DeviceDescription,
    search: Search,
    steps: usize,
) -> (Flat, Extracted) {
    let flat = Flat::new(egraph, roots, device);
    let greedy = greedy::choose(&flat);
    let greedy_cost = flat.total(&greedy).unwrap_or(f64::INFINITY);
    if search == Search::Greedy {
        let extracted = Extracted { choice: greedy, cost: greedy_cost, greedy_cost, proved: false };
        return (flat, extracted);
    }
    let (choice, cost) = local::improve(&flat, greedy);
    let (mut choice, mut cost, proved) = bound::search(&flat, choice, cost, steps);
    if !proved {
        // where the search gave up, its best choice may lie beside a better one
        (choice, cost) = local::improve(&flat, choice);
    }
    (flat, Extracted { choice, cost, greedy_cost, proved })
}
