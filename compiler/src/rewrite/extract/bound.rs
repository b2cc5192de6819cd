//! Branch and bound with a step budget: proves a choice, or improves it, or gives up.

use super::flat::{Choice, Flat};
use super::prune::undominated;

struct Bound<'f> {
    flat: &'f Flat,
    /// By class, the nodes to try, cheapest first.
    left: Vec<Vec<u32>>,
    /// Cheapest node by class.
    least: Vec<f64>,
    /// By class, what all its nodes read: needed as soon as the class is.
    common: Vec<Vec<u32>>,
    best: f64,
    best_choice: Choice,
    choice: Choice,
    /// Classes known to be needed, in the order in which they are decided.
    needed: Vec<u32>,
    is_needed: Vec<bool>,
    steps: usize,
    limit: usize,
}

/// The best choice found, its cost, and whether it is proved.
pub fn search(flat: &Flat, start: Choice, cost: f64, limit: usize) -> (Choice, f64, bool) {
    let n = flat.ids.len();
    let left = undominated(flat);
    let cheapest =
        |(class, list): (usize, &Vec<u32>)| list.first().map_or(f64::INFINITY, |j| flat.nodes[class][*j as usize].cost);
    let mut bound = Bound {
        flat,
        common: left.iter().enumerate().map(|(class, list)| common(flat, class, list)).collect(),
        least: left.iter().enumerate().map(cheapest).collect(),
        left,
        best: cost,
        best_choice: start,
        choice: vec![u32::MAX; n],
        needed: Vec::new(),
        is_needed: vec![false; n],
        steps: 0,
        limit,
    };
    let mut floor = 0.0;
    for root in &flat.roots {
        floor += bound.need(*root);
    }
    bound.run(floor);
    let proved = bound.steps < bound.limit;
    (bound.best_choice, bound.best, proved)
}

/// What the listed nodes of a class all read.
pub fn common(flat: &Flat, class: usize, list: &[u32]) -> Vec<u32> {
    let operands = |j: &u32| &flat.nodes[class][*j as usize].operands;
    let Some((first, rest)) = list.split_first() else { return Vec::new() };
    operands(first).iter().copied().filter(|o| rest.iter().all(|j| operands(j).contains(o))).collect()
}

/// A decision: the class at one place of `needed`, and how to undo it.
struct Frame {
    /// Place of the next of its nodes to try.
    next: usize,
    /// Length of `needed` before its node was chosen.
    before: usize,
    /// What is paid, and the cheapest node of every class known to be needed, before it was chosen.
    floor: f64,
}

impl Bound<'_> {
    /// Notes that a class is needed, and what all its nodes read; what that adds to the floor.
    fn need(&mut self, class: u32) -> f64 {
        let mut floor = 0.0;
        let mut at = self.needed.len();
        self.note(class, &mut floor);
        while let Some(class) = self.needed.get(at).copied() {
            for i in 0..self.common[class as usize].len() {
                self.note(self.common[class as usize][i], &mut floor);
            }
            at += 1;
        }
        floor
    }

    fn note(&mut self, class: u32, floor: &mut f64) {
        if !std::mem::replace(&mut self.is_needed[class as usize], true) {
            self.needed.push(class);
            *floor += self.least[class as usize];
        }
    }

    fn forget(&mut self, length: usize) {
        for class in self.needed.drain(length..) {
            self.is_needed[class as usize] = false;
        }
    }

    /// Depth first over needed classes. A frame stands at each decided place of `needed`.
    fn run(&mut self, floor: f64) {
        let mut stack = vec![Frame { next: 0, before: self.needed.len(), floor }];
        while let Some(depth) = stack.len().checked_sub(1) {
            let frame = &mut stack[depth];
            self.forget(frame.before);
            let Some(class) = self.needed.get(depth).copied() else {
                // everything is decided
                self.take(frame.floor);
                stack.pop();
                continue;
            };
            let i = class as usize;
            let node = self.left[i].get(frame.next).copied().filter(|_| self.steps < self.limit);
            let Some(node) = node else {
                self.choice[i] = u32::MAX;
                stack.pop();
                continue;
            };
            frame.next += 1;
            self.steps += 1;
            self.choice[i] = node;
            let node = &self.flat.nodes[i][node as usize];
            let mut floor = frame.floor - self.least[i] + node.cost;
            for operand in &node.operands {
                floor += self.need(*operand);
            }
            if floor < self.best - 1e-9 {
                stack.push(Frame { next: 0, before: self.needed.len(), floor });
            }
        }
    }

    fn take(&mut self, floor: f64) {
        if floor < self.best - 1e-9
            && let Some(total) = self.flat.total(&self.choice).filter(|total| *total < self.best - 1e-9)
        {
            self.best = total;
            self.best_choice = self.choice.clone();
        }
    }
}
