//! Branch and bound with a step budget: proves a choice, or improves it, or gives up.

use super::flat::{Choice, Flat};

struct Bound<'f> {
    flat: &'f Flat,
    /// Cheapest node by class.
    least: Vec<f64>,
    best: f64,
    best_choice: Choice,
    choice: Choice,
    needed: Vec<bool>,
    steps: usize,
    limit: usize,
}

/// The best choice found, its cost, and whether it is proved.
pub fn search(flat: &Flat, start: Choice, cost: f64, limit: usize) -> (Choice, f64, bool) {
    let n = flat.ids.len();
    let least: Vec<f64> =
        flat.nodes.iter().map(|nodes| nodes.iter().map(|node| node.cost).fold(f64::INFINITY, f64::min)).collect();
    let mut bound = Bound {
        flat,
        least,
        best: cost,
        best_choice: start,
        choice: vec![u32::MAX; n],
        needed: vec![false; n],
        steps: 0,
        limit,
    };
    let mut open = Vec::new();
    let mut floor = 0.0;
    for root in &flat.roots {
        if !std::mem::replace(&mut bound.needed[*root as usize], true) {
            open.push(*root);
            floor += bound.least[*root as usize];
        }
    }
    bound.run(open, floor);
    let proved = bound.steps < bound.limit;
    (bound.best_choice, bound.best, proved)
}

/// A decision on the explicit stack: which class, which of its nodes come next, and how to undo.
struct Frame {
    class: u32,
    /// Nodes still to try, cheapest last.
    todo: Vec<u32>,
    /// Classes that the current node added to `needed`.
    added: Vec<u32>,
    open: Vec<u32>,
    floor: f64,
}

impl Bound<'_> {
    /// Depth first over needed classes; the floor is what is paid plus the cheapest node of every class known to be
    /// needed.
    fn run(&mut self, open: Vec<u32>, floor: f64) {
        let mut stack: Vec<Frame> = Vec::new();
        self.enter(&mut stack, open, floor);
        while let Some(frame) = stack.last_mut() {
            for class in frame.added.drain(..) {
                self.needed[class as usize] = false;
            }
            let class = frame.class as usize;
            let Some(node_index) = frame.todo.pop().filter(|_| self.steps < self.limit) else {
                self.choice[class] = u32::MAX;
                stack.pop();
                continue;
            };
            self.steps += 1;
            self.choice[class] = node_index;
            let node = &self.flat.nodes[class][node_index as usize];
            let mut floor = frame.floor - self.least[class] + node.cost;
            let mut open = frame.open.clone();
            for operand in &node.operands {
                if !std::mem::replace(&mut self.needed[*operand as usize], true) {
                    frame.added.push(*operand);
                    open.push(*operand);
                    floor += self.least[*operand as usize];
                }
            }
            if floor < self.best - 1e-9 {
                self.enter(&mut stack, open, floor);
            }
        }
    }

    fn enter(&mut self, stack: &mut Vec<Frame>, mut open: Vec<u32>, floor: f64) {
        // classes with one node are no decision
        let Some(class) = open.pop() else {
            if floor < self.best - 1e-9
                && let Some(total) = self.flat.total(&self.choice).filter(|total| *total < self.best - 1e-9)
            {
                self.best = total;
                self.best_choice = self.choice.clone();
            }
            return;
        };
        let mut todo: Vec<u32> = (0..self.flat.nodes[class as usize].len() as u32).collect();
        let cost = |j: &u32| self.flat.nodes[class as usize][*j as usize].cost;
        todo.sort_by(|a, b| cost(b).total_cmp(&cost(a)));
        stack.push(Frame { class, todo, added: Vec::new(), open, floor });
    }
}
