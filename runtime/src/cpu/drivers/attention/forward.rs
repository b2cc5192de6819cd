//! The forward pass.

use super::AttentionArgs;
use super::blocks::{Blocks, Unit, check, exclude, plain};
use super::views;
use crate::cpu::drivers::{DriverError, ScratchNeed, ScratchPool};
use crate::cpu::team::Team;
use egret_program::driver::hook::View2;
use egret_program::driver::{AttentionProblem, AttentionSchedule, Score};
use egret_simd::Isa;

/// Attention whose extents are known.
#[derive(Debug)]
pub struct AttentionPlan {
    p: AttentionProblem,
    blocks: Blocks,
    key_block: usize,
}

struct Operands<'a>(&'a AttentionArgs<'a>);

// SAFETY: operands are read, and written in parts that do not overlap.
unsafe impl Sync for Operands<'_> {}

impl<'a> Operands<'a> {
    fn get(&self) -> &'a AttentionArgs<'a> {
        self.0
    }
}

/// A block of queries of one index of the outer axes.
#[derive(Clone, Copy)]
struct Place {
    unit: Unit,
    q0: usize,
    count: usize,
}

impl AttentionPlan {
    /// Binds.
    ///
    /// # Errors
    /// If the numbers contradict each other, or a hook has more operands than there is room for.
    pub fn new(
        problem: &AttentionProblem,
        schedule: &AttentionSchedule,
        isa: Isa,
    ) -> Result<AttentionPlan, DriverError> {
        check(problem)?;
        Ok(AttentionPlan {
            p: problem.clone(),
            blocks: Blocks::new(isa, schedule.lanes)?,
            key_block: schedule.key_block.max(1),
        })
    }

    /// Scratch that `run` needs.
    pub fn scratch(&self) -> ScratchNeed {
        let rows = self.p.head_dim + self.p.value_dim + 2 * self.key_block + 3;
        ScratchNeed { per_worker: rows * self.blocks.width * 4, shared: 0 }
    }

    /// Computes.
    ///
    /// # Safety
    /// The operands have the extents and strides of the problem, outputs overlap nothing, and `scratch` was made for this
    /// team and at least [`scratch`](AttentionPlan::scratch).
    pub unsafe fn run(&self, args: &AttentionArgs<'_>, team: &Team, scratch: &ScratchPool) {
        let p = &self.p;
        let width = self.blocks.width;
        let in_head = p.q_len.div_ceil(width);
        let operands = &Operands(args);
        team.parallel(p.units() * in_head, &|chunk, worker| {
            let (unit, block) = (chunk / in_head, chunk % in_head);
            let q0 = block * width;
            let place = Place { unit: Unit::new(&p.outer, unit), q0, count: (p.q_len - q0).min(width) };
            // SAFETY: chunks write different rows.
            unsafe { self.block(operands.get(), place, scratch.worker(worker)) };
        });
    }

    unsafe fn block(&self, args: &AttentionArgs<'_>, place: Place, scratch: *mut f32) {
        let p = &self.p;
        let (b, width) = (&self.blocks, self.blocks.width);
        let Place { unit, q0, count } = place;
        let q = args.q.wrapping_add(unit.row(&p.q, q0));
        let k = args.k.wrapping_add(unit.row(&p.k, 0));
        let v = args.v.wrapping_add(unit.row(&p.v, 0));
        let o = args.o.wrapping_add(unit.row(&p.o, q0));
        // Parts of the scratch, in rows of a block.
        let rows = |n: usize| scratch.wrapping_add(n * width);
        let (max, sum, factor) = (rows(0), rows(1), rows(2));
        let packed_q = rows(3);
        let out = rows(3 + p.head_dim);
        let scores = rows(3 + p.head_dim + p.value_dim);
        let other = rows(3 + p.head_dim + p.value_dim + self.key_block);
        let (scale, ..) = plain(&p.score);
        let keys = p.causal.map_or(p.k_len, |c| p.k_len.min(q0 + count + c));

        // SAFETY: offsets within operands and scratch, by the plan's extents.
        unsafe {
            b.pack(packed_q, q, p.q.row, p.head_dim, count, scale);
            for lane in 0..width {
                *max.add(lane) = f32::NEG_INFINITY;
                *sum.add(lane) = 0.0;
            }
            std::ptr::write_bytes(out, 0, p.value_dim * width);
            let mut k0 = 0;
            while k0 < keys {
                let n = (keys - k0).min(self.key_block);
                b.dots(scores, k.add(k0 * p.k.row), p.k.row, n, packed_q, p.head_dim);
                self.score(args, place, (k0, n), scores, other);
                (b.strips.online)(scores, n, max, sum, factor);
                if k0 > 0 {
                    (b.strips.rescale)(out, p.value_dim, factor);
                }
                b.sums(out, v.add(k0 * p.v.row), p.v.row, n, scores, p.value_dim, k0 > 0);
                k0 += n;
            }
            if p.lse.is_some() {
                self.store_lse(args, place, max, sum);
            }
            for lane in 0..width {
                let total = *sum.add(lane);
                let nothing = total == 0.0 && p.empty_is_zero;
                *factor.add(lane) = if nothing { 0.0 } else { 1.0 / total };
            }
            (b.strips.rescale)(out, p.value_dim, factor);
            (b.transpose)(o, p.o.row, out, width, p.value_dim, count);
        }
    }

    /// Makes scores of dots: `scores[key][query]`.
    unsafe fn score(
        &self,
        args: &AttentionArgs<'_>,
        place: Place,
        (k0, n): (usize, usize),
        scores: *mut f32,
        other: *mut f32,
    ) {
        let Place { unit, q0, count } = place;
        let (b, width) = (&self.blocks, self.blocks.width);
        let (_, mask, truth) = plain(&self.p.score);
        // SAFETY: offsets within operands and scratch, by the plan's extents.
        unsafe {
            if let Some(m) = mask {
                let mask = args.extras[0].cast_const().cast::<f32>().add(unit.score(m, q0, k0));
                b.add_mask(scores, other, mask, (m.key, m.query), (n, count));
            }
            if let Some(m) = truth {
                let truth = args.extras[usize::from(mask.is_some())].cast_const().add(unit.score(m, q0, k0));
                b.mask_out(scores, truth, (m.key, m.query), (n, count));
            }
            if let (Score::Hook { extras, element_bytes }, Some(hook)) = (&self.p.score, args.hook) {
                (b.transpose)(other, self.key_block, scores, width, n, count);
                let acc = View2 { ptr: other.cast(), row: self.key_block as i64, col: 1 };
                let views = views(extras, element_bytes, args.extras, unit, (q0, k0));
                hook(&acc, count as i64, n as i64, views.as_ptr(), &acc);
                (b.transpose)(scores, width, other, self.key_block, count, n);
            }
            if let Some(causal) = self.p.causal
                && k0 + n > q0 + causal + 1
            {
                exclude(scores, width, n, |i| (0, (k0 + i).saturating_sub(q0 + causal)));
            }
        }
    }

    unsafe fn store_lse(&self, args: &AttentionArgs<'_>, place: Place, max: *const f32, sum: *const f32) {
        let Some(lse) = &self.p.lse else { return };
        let base = place.unit.row(lse, place.q0);
        for lane in 0..place.count {
            // SAFETY: within the operand and the scratch.
            unsafe {
                let value = *max.add(lane) + (*sum.add(lane)).ln();
                *args.lse.add(base + lane * lse.row) = value;
            }
        }
    }
}
