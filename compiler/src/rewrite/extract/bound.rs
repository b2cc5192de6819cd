//! Branch and bound with a step budget: proves a choice, or improves it, or gives up.
//!
//! Classes between which no open decision is shared are searched apart, so that decisions in one do not multiply with those
//! in another.

use petgraph::unionfind::UnionFind;

use super::flat::{Choice, Flat};
use super::prune::Open;

struct Bound<'f> {
    flat: &'f Flat,
    open: &'f Open,
    best: f64,
    best_choice: Option<Choice>,
    choice: Choice,
    /// Classes known to be needed, in the order in which they are decided.
    needed: Vec<u32>,
    is_needed: Vec<bool>,
    steps: usize,
    limit: usize,
}

/// The best choice found, its cost, and whether it is proved.
pub fn search(flat: &Flat, start: Choice, cost: f64, limit: usize) -> (Choice, f64, bool) {
    let open = Open::new(flat);
    let known = among_left(flat, &open, &start);
    let mut choice: Choice = open.left.iter().map(|list| list.first().copied().unwrap_or(u32::MAX)).collect();
    let mut bound = Bound {
        flat,
        open: &open,
        best: f64::INFINITY,
        best_choice: None,
        choice: vec![u32::MAX; flat.ids.len()],
        needed: Vec::new(),
        is_needed: vec![false; flat.ids.len()],
        steps: 0,
        limit,
    };
    open.always.iter().for_each(|class| bound.is_needed[class as usize] = true);
    for group in groups(flat, &open) {
        let reached = known.as_ref().map(|known| group.members.iter().filter(|class| known.reached[**class as usize]));
        bound.best = reached.map_or(f64::INFINITY, |reached| {
            let known = known.as_ref().map(|known| &known.choice);
            reached.filter_map(|class| Some(flat.chosen(known?, *class)?.cost)).sum()
        });
        bound.best_choice = known.as_ref().map(|known| known.choice.clone());
        bound.needed = group.always;
        let floor = bound.needed.iter().map(|class| open.least[*class as usize]).sum();
        bound.run(floor);
        let found = bound.best_choice.as_ref();
        group.members.iter().for_each(|class| choice[*class as usize] = found.map_or(u32::MAX, |c| c[*class as usize]));
    }
    let proved = bound.steps < bound.limit;
    match flat.total(&choice) {
        Some(total) if total < cost - 1e-9 => (choice, total, proved),
        _ => (start, cost, proved),
    }
}

/// A choice of nodes that are left, and what it reaches.
struct Known {
    choice: Choice,
    reached: Vec<bool>,
}

/// A choice with each node that was dropped replaced by the one of its class that costs least with what it reads.
fn among_left(flat: &Flat, open: &Open, start: &Choice) -> Option<Known> {
    let mut choice = start.clone();
    for (class, list) in open.left.iter().enumerate() {
        let cost = |j: &u32| {
            let node = &flat.nodes[class][*j as usize];
            let operands = node.operands.iter().filter(|o| !open.always.has(**o));
            node.cost + operands.map(|o| open.most[*o as usize]).sum::<f64>()
        };
        if !list.contains(&choice[class]) {
            choice[class] = list.iter().copied().min_by(|a, b| cost(a).total_cmp(&cost(b)))?;
        }
    }
    let mut reached = vec![false; flat.ids.len()];
    flat.order(&choice)?.into_iter().for_each(|class| reached[class as usize] = true);
    Some(Known { choice, reached })
}

/// Classes whose decisions are searched together.
struct Group {
    members: Vec<u32>,
    /// Those of them that every choice computes.
    always: Vec<u32>,
}

/// Groups with something to decide. A class is in the group of those that read it, unless every choice computes it and no
/// choice can make it read them.
fn groups(flat: &Flat, open: &Open) -> Vec<Group> {
    let n = flat.ids.len();
    let mut sets: UnionFind<u32> = UnionFind::new(n);
    for (class, list) in open.left.iter().enumerate() {
        for operand in list.iter().flat_map(|j| &flat.nodes[class][*j as usize].operands) {
            if !open.always.has(*operand) || flat.on_cycle(*operand) {
                sets.union(class as u32, *operand);
            }
        }
    }
    let mut place = vec![usize::MAX; n];
    let mut groups: Vec<Group> = Vec::new();
    for class in 0..n as u32 {
        let place = &mut place[sets.find(class) as usize];
        if *place == usize::MAX {
            *place = groups.len();
            groups.push(Group { members: Vec::new(), always: Vec::new() });
        }
        groups[*place].members.push(class);
        if open.always.has(class) {
            groups[*place].always.push(class);
        }
    }
    groups.retain(|group| {
        !group.always.is_empty() && group.members.iter().any(|class| open.left[*class as usize].len() > 1)
    });
    groups
}

/// A decision: the class at one place of `needed`, and how to undo it.
struct Frame {
    /// Place of the next of its nodes to try.
    next: usize,
    /// Length of `needed` before its node was chosen.
    before: usize,
    /// What is paid, and the least that every class known to be needed adds, before it was chosen.
    floor: f64,
}

impl Bound<'_> {
    /// Notes that a class is needed, and what is computed with it; what that adds to the floor.
    fn need(&mut self, class: u32) -> f64 {
        if self.is_needed[class as usize] {
            return 0.0;
        }
        let open = self.open;
        let mut floor = 0.0;
        for class in std::iter::once(class).chain(open.besides[class as usize].iter()) {
            if !std::mem::replace(&mut self.is_needed[class as usize], true) {
                self.needed.push(class);
                floor += open.least[class as usize];
            }
        }
        floor
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
            let node = self.open.left[i].get(frame.next).copied().filter(|_| self.steps < self.limit);
            let Some(node) = node else {
                self.choice[i] = u32::MAX;
                stack.pop();
                continue;
            };
            frame.next += 1;
            self.steps += 1;
            self.choice[i] = node;
            let node = &self.flat.nodes[i][node as usize];
            let mut floor = frame.floor - self.open.least[i] + node.cost;
            for operand in &node.operands {
                floor += self.need(*operand);
            }
            if floor < self.best - 1e-9 {
                stack.push(Frame { next: 0, before: self.needed.len(), floor });
            }
        }
    }

    /// A whole choice, unless it is cyclic. What it reaches outside of the group is on no cycle with it.
    fn take(&mut self, floor: f64) {
        if floor < self.best - 1e-9 && self.flat.acyclic(&self.choice, &self.needed) {
            self.best = floor;
            self.best_choice = Some(self.choice.clone());
        }
    }
}
