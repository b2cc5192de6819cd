//! Which operations use which buffers, and from that the arena.
//!
//! Operations are numbered in program order; position 0 is before the first and holds the copies of inputs. A buffer that
//! belongs to one iteration of a loop (first written in the body, used only there, no part of it taken as a slice) lives
//! within the body; any other that a loop uses lives as long as the loop.

use egret_program::memory::{Lifetime, plan};
use egret_program::{Place, Program};

use crate::RuntimeError;

#[derive(Clone, Copy, Debug)]
struct Use {
    position: usize,
    writes: bool,
    /// The innermost loop around it.
    within: Option<usize>,
}

#[derive(Debug)]
struct Nest {
    parent: Option<usize>,
    begin: usize,
    end: usize,
}

/// The uses of every buffer.
#[derive(Debug)]
pub(crate) struct Uses {
    /// By buffer.
    uses: Vec<Vec<Use>>,
    /// By buffer: what it is a slice or part of, and so on to the buffer that holds the bytes.
    root: Vec<usize>,
    /// By buffer: it, or what it is part of, is a slice.
    moves: Vec<bool>,
    /// By buffer: some of it is used slice by slice.
    sliced: Vec<bool>,
    arena: Vec<bool>,
    loops: Vec<Nest>,
    within: Option<usize>,
    /// Bytes and position.
    temporaries: Vec<(usize, usize)>,
}

/// The arena.
#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) offsets: Vec<Option<usize>>,
    pub(crate) temporaries: Vec<usize>,
    pub(crate) arena_bytes: usize,
    pub(crate) live_bytes_bound: usize,
    pub(crate) logical_live_bytes: usize,
}

/// The buffer that holds the bytes of each; `None` for slices and parts that go in circles.
pub(crate) fn roots(program: &Program) -> Option<Vec<usize>> {
    let buffers = &program.buffers;
    (0..buffers.len())
        .map(|mut i| {
            for _ in 0..=buffers.len() {
                match &buffers.get(i)?.place {
                    Place::Slice { of, .. } | Place::Part { of, .. } => i = of.0 as usize,
                    _ => return Some(i),
                }
            }
            None
        })
        .collect()
}

fn moves(program: &Program, mut buffer: usize) -> bool {
    for _ in 0..=program.buffers.len() {
        match &program.buffers[buffer].place {
            Place::Slice { .. } => return true,
            Place::Part { of, .. } => buffer = of.0 as usize,
            _ => return false,
        }
    }
    false
}

impl Uses {
    /// No uses yet. The program has been checked.
    pub(crate) fn new(program: &Program) -> Uses {
        let count = program.buffers.len();
        Uses {
            uses: vec![Vec::new(); count],
            root: roots(program).unwrap_or_else(|| (0..count).collect()),
            moves: (0..count).map(|i| moves(program, i)).collect(),
            sliced: vec![false; count],
            arena: program.buffers.iter().map(|b| b.place == Place::Arena).collect(),
            loops: Vec::new(),
            within: None,
            temporaries: Vec::new(),
        }
    }

    /// The buffer that holds a buffer's bytes.
    pub(crate) fn root(&self, buffer: usize) -> usize {
        self.root[buffer]
    }

    /// Operation `op` uses a buffer.
    pub(crate) fn add(&mut self, buffer: usize, op: usize, writes: bool) {
        let it = Use { position: op + 1, writes, within: self.within };
        self.uses[buffer].push(it);
        let root = self.root[buffer];
        if root != buffer {
            self.sliced[root] |= self.moves[buffer];
            self.uses[root].push(it);
        }
    }

    /// An input is copied into the arena before the first operation.
    pub(crate) fn stage(&mut self, buffer: usize) {
        self.arena[buffer] = true;
        self.uses[buffer].push(Use { position: 0, writes: true, within: None });
    }

    /// A buffer is read when all `ops` operations are done.
    pub(crate) fn keep(&mut self, buffer: usize, ops: usize) {
        self.uses[buffer].push(Use { position: ops + 1, writes: false, within: None });
    }

    /// Memory for one operation.
    pub(crate) fn temporary(&mut self, bytes: usize, op: usize) -> usize {
        self.temporaries.push((bytes, op + 1));
        self.temporaries.len() - 1
    }

    /// A loop begins.
    pub(crate) fn enter(&mut self, index: usize, op: usize) {
        debug_assert_eq!(index, self.loops.len());
        self.loops.push(Nest { parent: self.within, begin: op + 1, end: op + 1 });
        self.within = Some(index);
    }

    /// The innermost loop ends.
    pub(crate) fn leave(&mut self, op: usize) {
        if let Some(index) = self.within {
            self.loops[index].end = op + 1;
            self.within = self.loops[index].parent;
        }
    }

    /// Whether anything uses the buffer, or a slice of it.
    pub(crate) fn is_used(&self, buffer: usize) -> bool {
        !self.uses[buffer].is_empty() || self.sliced[buffer]
    }

    /// The operations that use a buffer of the arena, if nothing else does, and none a part of it.
    pub(crate) fn users(&self, buffer: usize) -> Option<Vec<usize>> {
        let whole = self.arena[buffer] && self.root[buffer] == buffer && !self.sliced[buffer];
        let mut users: Vec<usize> =
            self.uses[buffer].iter().map(|it| it.position.checked_sub(1)).collect::<Option<_>>()?;
        users.sort_unstable();
        users.dedup();
        whole.then_some(users)
    }

    fn depth(&self, mut within: Option<usize>) -> usize {
        let mut depth = 0;
        while let Some(index) = within {
            within = self.loops[index].parent;
            depth += 1;
        }
        depth
    }

    fn common(&self, mut a: Option<usize>, mut b: Option<usize>) -> Option<usize> {
        while a != b {
            let up = |x: Option<usize>| x.and_then(|i| self.loops[i].parent);
            if self.depth(a) >= self.depth(b) { a = up(a) } else { b = up(b) }
        }
        a
    }

    /// Each used slice with the loop that moves it: the innermost one around all its uses. What a slice is taken of comes
    /// before the slice.
    pub(crate) fn slices(&mut self, program: &Program) -> Result<Vec<(usize, usize)>, RuntimeError> {
        let base = |i: usize| match &program.buffers[i].place {
            Place::Slice { of, .. } => Some(of.0 as usize),
            _ => None,
        };
        let chain = |mut i: usize| {
            let mut length = 0;
            while let Some(of) = base(i) {
                (i, length) = (of, length + 1);
            }
            length
        };
        let mut order: Vec<usize> = (0..program.buffers.len()).filter(|i| base(*i).is_some()).collect();
        order.sort_by_key(|i| (std::cmp::Reverse(chain(*i)), *i));
        let mut moved = Vec::new();
        for slice in order {
            let Some(first) = self.uses[slice].first() else { continue };
            let owner = self.uses[slice].iter().fold(first.within, |owner, it| self.common(owner, it.within));
            let Some(owner) = owner else {
                return Err(RuntimeError::malformed(format!("buffer {slice} is a slice, but used outside a loop")));
            };
            moved.push((slice, owner));
            if let Some(of) = base(slice)
                && base(of).is_some()
            {
                let nest = &self.loops[owner];
                let it = Use { position: nest.begin, writes: false, within: nest.parent };
                self.uses[of].push(it);
            }
        }
        moved.reverse();
        Ok(moved)
    }

    fn lifetime(&self, buffer: usize) -> Option<(usize, usize)> {
        let uses = &self.uses[buffer];
        let mut first = uses.iter().map(|it| it.position).min()?;
        let mut last = uses.iter().map(|it| it.position).max()?;
        // Inner loops come after outer ones.
        for nest in self.loops.iter().rev() {
            if !uses.iter().any(|it| (nest.begin..=nest.end).contains(&it.position)) {
                continue;
            }
            let written = uses.iter().filter(|it| it.position == first).all(|it| it.writes);
            let local = first >= nest.begin && last <= nest.end && written && !self.sliced[buffer];
            if !local {
                (first, last) = (first.min(nest.begin), last.max(nest.end));
            }
        }
        Some((first, last))
    }

    /// Plans the arena from bytes by buffer; `logical` counts elements alone.
    pub(crate) fn plan(&self, program: &Program, bytes: &[usize], logical: &[usize]) -> Arena {
        let held: Vec<(usize, (usize, usize))> = (0..program.buffers.len())
            .filter(|i| self.arena[*i])
            .filter_map(|i| Some((i, self.lifetime(i)?)))
            .collect();
        let mut lifetimes: Vec<Lifetime> =
            held.iter().map(|(i, (first, last))| Lifetime { bytes: bytes[*i], first: *first, last: *last }).collect();
        lifetimes.extend(self.temporaries.iter().map(|(bytes, at)| Lifetime { bytes: *bytes, first: *at, last: *at }));
        let planned = plan(&lifetimes);
        let logical: Vec<Lifetime> =
            held.iter().zip(&lifetimes).map(|((i, _), l)| Lifetime { bytes: logical[*i], ..*l }).collect();
        let mut offsets = vec![None; program.buffers.len()];
        for ((i, _), offset) in held.iter().zip(&planned.offsets) {
            offsets[*i] = Some(*offset);
        }
        Arena {
            offsets,
            temporaries: planned.offsets[held.len()..].to_vec(),
            arena_bytes: planned.arena_bytes,
            live_bytes_bound: planned.live_bytes_bound,
            logical_live_bytes: plan(&logical).live_bytes_bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_ir::{DType, Dim};
    use egret_program::{Buffer, BufferId};

    fn program(places: &[Place]) -> Program {
        let buffer = |place: &Place| Buffer {
            place: place.clone(),
            dtype: DType::F32,
            bytes: Dim::from(64),
            logical_bytes: Dim::from(60),
        };
        Program {
            version: egret_program::program::VERSION,
            device: String::new(),
            lanes: 8,
            inputs: vec![],
            outputs: vec![],
            params: vec![],
            states: vec![],
            checks: vec![],
            kernels: vec![],
            buffers: places.iter().map(buffer).collect(),
            constants: vec![],
            prepare: vec![],
            steps: vec![],
        }
    }

    #[test]
    fn loops_hold_what_outlives_an_iteration() {
        let slice = Place::Slice { of: BufferId(3), stride: Dim::from(4) };
        let mut uses = Uses::new(&program(&[Place::Arena, Place::Arena, Place::Arena, Place::Arena, slice]));
        uses.add(0, 0, true);
        uses.enter(0, 1); // operation 1 begins the loop, 5 ends it
        uses.add(1, 2, true);
        uses.add(0, 2, false);
        uses.add(1, 3, false);
        uses.add(2, 3, false); // read before it is written: of the iteration before
        uses.add(2, 4, true);
        uses.add(4, 3, true); // a slice
        uses.leave(5);
        let lifetimes: Vec<_> = (0..4).map(|i| uses.lifetime(i)).collect();
        assert_eq!(lifetimes, [Some((1, 6)), Some((3, 4)), Some((2, 6)), Some((2, 6))]);
    }

    #[test]
    fn staged_inputs_and_kept_outputs() {
        let program = program(&[Place::Input(0), Place::Arena, Place::Arena]);
        let mut uses = Uses::new(&program);
        uses.stage(0);
        uses.add(0, 0, false);
        uses.add(1, 0, true);
        uses.add(1, 1, false);
        uses.add(2, 1, true);
        uses.keep(2, 2);
        assert_eq!((uses.lifetime(0), uses.lifetime(2)), (Some((0, 1)), Some((2, 3))));
        let arena = uses.plan(&program, &[64; 3], &[60; 3]);
        assert_eq!((arena.arena_bytes, arena.offsets[0].is_some()), (128, true));
    }
}
