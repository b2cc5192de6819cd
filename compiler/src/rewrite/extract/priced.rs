//! A choice with its price, kept up to date move by move: a move costs what it changes, not the whole graph.

use super::flat::{Choice, Flat};

/// A move: a class takes another of its nodes.
pub type Move = (u32, u32);

/// A choice and what it reaches.
pub struct Priced<'f> {
    flat: &'f Flat,
    choice: Choice,
    /// By class, how many reached nodes and roots read it; what nothing reads is not paid for.
    readers: Vec<u32>,
    total: f64,
}

impl<'f> Priced<'f> {
    /// `None` when the choice is cyclic or incomplete.
    pub fn new(flat: &'f Flat, choice: Choice) -> Option<Priced<'f>> {
        let total = flat.total(&choice)?;
        let mut readers = vec![0; flat.ids.len()];
        flat.roots.iter().for_each(|root| readers[*root as usize] += 1);
        for class in flat.order(&choice)? {
            let operands = flat.chosen(&choice, class).map(|node| &node.operands);
            operands.into_iter().flatten().for_each(|operand| readers[*operand as usize] += 1);
        }
        Some(Priced { flat, choice, readers, total })
    }

    /// The cost of what is reached, µs.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// The chosen node of a class.
    pub fn chosen(&self, class: u32) -> u32 {
        self.choice[class as usize]
    }

    /// Whether a class is computed.
    pub fn reached(&self, class: u32) -> bool {
        self.readers[class as usize] > 0
    }

    /// The choice.
    pub fn into_choice(self) -> Choice {
        self.choice
    }

    /// Makes all moves if together they are cheaper by more than `gain` and close no cycle.
    pub fn improve(&mut self, moves: &[Move], gain: f64) -> bool {
        let before = self.total;
        let open = |(class, node): &Move| {
            let node = &self.flat.nodes[*class as usize][*node as usize];
            node.operands.iter().any(|operand| self.choice[*operand as usize] == u32::MAX)
        };
        if moves.iter().any(open) {
            return false;
        }
        let undo: Vec<Move> = moves.iter().map(|(class, _)| (*class, self.chosen(*class))).collect();
        moves.iter().for_each(|m| self.make(*m));
        if self.total < before - gain && !moves.iter().any(|(class, _)| self.cyclic(*class)) {
            return true;
        }
        undo.iter().rev().for_each(|m| self.make(*m));
        self.total = before;
        false
    }

    fn make(&mut self, (class, node): Move) {
        let old = std::mem::replace(&mut self.choice[class as usize], node);
        if !self.reached(class) || old == node {
            return;
        }
        let nodes = &self.flat.nodes[class as usize];
        self.total += nodes[node as usize].cost - nodes[old as usize].cost;
        // what both read is never let go
        self.take(&nodes[node as usize].operands);
        self.leave(&nodes[old as usize].operands);
    }

    fn take(&mut self, operands: &[u32]) {
        let mut todo: Vec<u32> = operands.to_vec();
        while let Some(class) = todo.pop() {
            self.readers[class as usize] += 1;
            if self.readers[class as usize] == 1
                && let Some(node) = self.flat.chosen(&self.choice, class)
            {
                self.total += node.cost;
                todo.extend(&node.operands);
            }
        }
    }

    fn leave(&mut self, operands: &[u32]) {
        let mut todo: Vec<u32> = operands.to_vec();
        while let Some(class) = todo.pop() {
            self.readers[class as usize] -= 1;
            if self.readers[class as usize] == 0
                && let Some(node) = self.flat.chosen(&self.choice, class)
            {
                self.total -= node.cost;
                todo.extend(&node.operands);
            }
        }
    }

    /// Whether a class reads itself. A cycle stays inside one component of all nodes together.
    fn cyclic(&self, class: u32) -> bool {
        if !self.flat.on_cycle(class) {
            return false;
        }
        let component = self.flat.component[class as usize];
        let mut seen = rustc_hash::FxHashSet::default();
        let mut todo = vec![class];
        while let Some(at) = todo.pop() {
            for operand in self.flat.chosen(&self.choice, at).map(|node| &node.operands).into_iter().flatten() {
                if *operand == class {
                    return true;
                }
                if self.flat.component[*operand as usize] == component && seen.insert(*operand) {
                    todo.push(*operand);
                }
            }
        }
        false
    }
}
