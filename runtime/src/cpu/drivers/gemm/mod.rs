//! Matrix products: panels of B, tiles of A, a sum in registers over as much of k as caches allow.

mod block;
mod element;
mod plan;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod word_tests;
mod words;

use super::{DriverError, ScratchNeed, ScratchPool, Shared, chunk_count, part};
use crate::cpu::team::Team;
use block::Chunk;
use egret_program::driver::hook::{EpilogueFn, RowsFn};
use egret_program::driver::{GemmProblem, GemmSchedule, Products};
use egret_simd::Isa;
use element::Factor;
use plan::{BSource, Plan, Target};

/// Operands of a product, of the element type that its schedule's products have.
#[derive(Clone, Copy, Debug)]
pub struct GemmArgs<'a> {
    /// A.
    pub a: *const u8,
    /// B, or its packed form (see [`PackPlan`](super::PackPlan)).
    pub b: *const u8,
    /// C (not used with a hook or a finisher, whose outputs are `outs`).
    pub c: *mut u8,
    /// Extra operands of the epilogue: direct: the bias, then the residual, as far as they exist; hook: its extras.
    pub extras: &'a [*mut u8],
    /// Outputs of the hook or of the finisher.
    pub outs: &'a [*mut u8],
    /// The epilogue hook, if the problem has one.
    pub hook: Option<EpilogueFn>,
    /// The finisher, if the problem has one.
    pub finisher: Option<RowsFn>,
    /// Extra operands of the finisher.
    pub finisher_extras: &'a [*mut u8],
}

/// The operands, shared by the team.
struct Operands<'a, E> {
    a: *const E,
    b: *const E,
    c: *mut E,
    rest: &'a GemmArgs<'a>,
}

// SAFETY: operands are read, and written in parts that do not overlap.
unsafe impl<E> Sync for Operands<'_, E> {}

/// A product whose extents are known.
#[derive(Debug)]
pub struct GemmPlan(Form);

#[derive(Debug)]
enum Form {
    F32(Plan<f32>),
    F64(Plan<f64>),
}

impl GemmPlan {
    /// Binds.
    ///
    /// # Errors
    /// If a form does not exist: more than 6 batch dims, hooks or finishers on an output whose columns are not
    /// contiguous, a hook together with a finisher, a direct activation of integers, words of what is
    /// not packed or on a processor without their unit.
    pub fn new(problem: &GemmProblem, schedule: &GemmSchedule, isa: Isa) -> Result<GemmPlan, DriverError> {
        Ok(GemmPlan(match schedule.products {
            Products::F64 => Form::F64(Plan::new(problem, schedule, isa)?),
            Products::F32 | Products::Words(_) | Products::Shorts => Form::F32(Plan::new(problem, schedule, isa)?),
        }))
    }

    /// Scratch that `run` needs.
    pub fn scratch(&self) -> ScratchNeed {
        match &self.0 {
            Form::F32(plan) => plan.scratch(),
            Form::F64(plan) => plan.scratch(),
        }
    }

    /// Computes.
    ///
    /// # Safety
    /// The operands have the extents and strides of the problem and are aligned for their elements, C overlaps no operand except
    /// the residual element by element, and `scratch` was made for this team and at least [`scratch`](GemmPlan::scratch).
    pub unsafe fn run(&self, args: &GemmArgs<'_>, team: &Team, scratch: &ScratchPool) {
        // SAFETY: the caller's.
        unsafe {
            match &self.0 {
                Form::F32(plan) => plan.run(args, team, scratch),
                Form::F64(plan) => plan.run(args, team, scratch),
            }
        }
    }
}

impl<E: Factor> Plan<E> {
    fn scratch(&self) -> ScratchNeed {
        let bytes = size_of::<E>();
        ScratchNeed {
            per_worker: self.worker_layout().total * bytes,
            shared: (self.shared_b + self.shared_rows) * bytes,
        }
    }

    /// # Safety
    /// See [`GemmPlan::run`].
    unsafe fn run(&self, args: &GemmArgs<'_>, team: &Team, scratch: &ScratchPool) {
        if self.m == 0 || self.n == 0 || self.items == 0 {
            return;
        }
        let (a, b) = if self.swapped { (args.b, args.a) } else { (args.a, args.b) };
        let operands = Operands { a: a.cast::<E>(), b: b.cast(), c: args.c.cast(), rest: args };
        // SAFETY: the caller's.
        unsafe {
            if self.one_item_at_a_time {
                for item in 0..self.items {
                    self.items(&operands, item, 1, team, scratch);
                }
            } else {
                self.items(&operands, 0, self.items, team, scratch);
            }
        }
    }

    /// `count` batch items from `first` on.
    unsafe fn items(&self, operands: &Operands<'_, E>, first: usize, count: usize, team: &Team, scratch: &ScratchPool) {
        let panels = self.panels();
        if self.b_source == BSource::Shared {
            let packed = Shared(scratch.shared().cast::<E>());
            let b = operands.b.wrapping_add(self.offset(first, |d| d.b));
            let b = Shared(b.cast_mut());
            team.parallel(panels, &|panel, _| {
                let (packed, b) = (&packed, &b);
                // SAFETY: each panel has its own part of the scratch.
                unsafe {
                    let to = packed.0.add(panel * self.k * self.width());
                    self.pack_panel(b.0, panel, to);
                }
            });
        }
        let row_blocks = self.m.div_ceil(self.m_block);
        let fixed = count * row_blocks;
        // Whole rows belong to one chunk if a finisher waits for them; else columns are divided as threads need.
        let column_blocks = if self.target == Target::OwnRows {
            1
        } else {
            chunk_count(fixed * panels, fixed, team.size()).div_ceil(fixed).min(panels)
        };
        team.parallel(fixed * column_blocks, &|chunk, worker| {
            let (unit, columns) = (chunk / column_blocks, chunk % column_blocks);
            let (item, rows) = (unit / row_blocks, unit % row_blocks);
            let (m0, m1) = part(self.m, rows, row_blocks);
            let (p0, p1) = part(panels, columns, column_blocks);
            let chunk = Chunk::new(self, operands, first + item, scratch, worker);
            // SAFETY: chunks write different parts of C.
            unsafe { chunk.run((m0, m1), (p0, p1)) };
        });
        if self.target == Target::SharedRows {
            let chunks = chunk_count(self.m, 1, team.size());
            team.parallel(chunks, &|index, worker| {
                let (m0, m1) = part(self.m, index, chunks);
                let chunk = Chunk::new(self, operands, first, scratch, worker);
                // SAFETY: all rows are complete; chunks write different ones.
                unsafe { chunk.finish(m0, m1) };
            });
        }
    }
}
