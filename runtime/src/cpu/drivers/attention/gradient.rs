//! The gradient: one part by blocks of keys (of keys and values), one by blocks of queries, or, where there are many heads, one
//! chunk for all of a head. Probabilities are computed again from the log-sum-exp; each output is summed by one chunk in a fixed
//! order.

use super::blocks::{Blocks, Unit, check, exclude, plain};
use super::{AttentionGradArgs, views};
use crate::cpu::drivers::epilogue::MAX_VIEWS;
use crate::cpu::drivers::{DriverError, ScratchNeed, ScratchPool, Shared};
use crate::cpu::team::Team;
use egret_program::driver::hook::{ScoreFn, View2};
use egret_program::driver::{AttentionGradProblem, AttentionOperand, AttentionSchedule, Score};
use egret_simd::Isa;

/// Groups of heads with the same keys from which each of them is one chunk: then scores and their gradients are computed once
/// instead of by keys and again by queries.
const WHOLE_GROUPS: usize = 16;

/// The gradient of attention whose extents are known.
#[derive(Debug)]
pub struct AttentionGradPlan {
    p: AttentionGradProblem,
    lse: AttentionOperand,
    blocks: Blocks,
    block: usize,
    /// Gradients of queries are summed beside those of keys, a group a chunk.
    whole: bool,
}

struct Operands<'a>(&'a AttentionGradArgs<'a>);

// SAFETY: operands are read, and written in parts that do not overlap.
unsafe impl Sync for Operands<'_> {}

impl<'a> Operands<'a> {
    fn get(&self) -> &'a AttentionGradArgs<'a> {
        self.0
    }
}

/// Log-sum-exps and deltas of a unit, contiguous.
#[derive(Clone, Copy)]
struct Rows {
    lse: *const f32,
    delta: *const f32,
}

impl AttentionGradPlan {
    /// Binds.
    ///
    /// # Errors
    /// If the numbers contradict each other, or the log-sum-exp is missing.
    pub fn new(
        problem: &AttentionGradProblem,
        schedule: &AttentionSchedule,
        isa: Isa,
    ) -> Result<AttentionGradPlan, DriverError> {
        check(&problem.forward)?;
        let outer = problem.forward.outer.len();
        let gradients = [&problem.grad_o, &problem.grad_q, &problem.grad_k, &problem.grad_v];
        if gradients.iter().any(|g| g.outer.len() != outer) {
            return Err(DriverError::Problem("a gradient has not one stride for each outer axis"));
        }
        let Some(lse) = problem.forward.lse.clone() else {
            return Err(DriverError::Problem("the gradient needs the log-sum-exp"));
        };
        let f = &problem.forward;
        let groups = f.units() / f.sharing().max(1);
        let blocks = Blocks::new(isa, schedule.lanes)?;
        let vectors = f.head_dim > 0 && f.head_dim.is_multiple_of(blocks.width / 2);
        Ok(AttentionGradPlan {
            whole: groups >= WHOLE_GROUPS && vectors && f.k_len > 0,
            p: problem.clone(),
            lse,
            blocks,
            block: schedule.key_block.max(1),
        })
    }

    /// Scratch that `run` needs.
    pub fn scratch(&self) -> ScratchNeed {
        let f = &self.p.forward;
        let rows = 2 * (f.head_dim + f.value_dim) + 4 * self.block;
        ScratchNeed { per_worker: rows * self.blocks.width * 4, shared: 2 * f.units() * self.row_stride() * 4 }
    }

    /// Rows of a unit in shared scratch: whole vectors may be read.
    fn row_stride(&self) -> usize {
        self.p.forward.q_len.next_multiple_of(self.blocks.width)
    }

    /// Computes.
    ///
    /// # Safety
    /// The operands have the extents and strides of the problem, outputs overlap nothing, and `scratch` was made for this
    /// team and at least [`scratch`](AttentionGradPlan::scratch).
    pub unsafe fn run(&self, args: &AttentionGradArgs, team: &Team, scratch: &ScratchPool) {
        let f = &self.p.forward;
        let operands = &Operands(args);
        let stride = self.row_stride();
        let units = f.units();
        let lse = Shared(scratch.shared());
        let delta = Shared(scratch.shared().wrapping_add(units * stride));
        let (lse, delta) = (&lse, &delta);
        team.parallel(units, &|unit, _| {
            // SAFETY: each unit has its own part of the scratch.
            unsafe {
                let (lse, delta) = (lse.0.add(unit * stride), delta.0.add(unit * stride));
                self.rows(operands.get(), Unit::new(&f.outer, unit), lse, delta);
            }
        });
        let rows =
            |unit: usize| Rows { lse: lse.0.wrapping_add(unit * stride), delta: delta.0.wrapping_add(unit * stride) };
        let width = self.blocks.width;
        let (key_blocks, query_blocks) = (f.k_len.div_ceil(width), f.q_len.div_ceil(width));
        let groups = units / f.sharing().max(1);
        if self.whole {
            team.parallel(groups, &|group, worker| {
                for block in 0..key_blocks {
                    // SAFETY: chunks write the gradients of different heads.
                    unsafe { self.keys(operands.get(), group, block * width, &rows, scratch.worker(worker)) };
                }
            });
            return;
        }
        let by_keys = groups * key_blocks;
        team.parallel(by_keys + units * query_blocks, &|chunk, worker| {
            let scratch = scratch.worker(worker);
            // SAFETY: chunks write different rows.
            unsafe {
                if chunk < by_keys {
                    let (group, block) = (chunk / key_blocks, chunk % key_blocks);
                    self.keys(operands.get(), group, block * width, &rows, scratch);
                } else {
                    let chunk = chunk - by_keys;
                    let (unit, block) = (chunk / query_blocks, chunk % query_blocks);
                    let place = Unit::new(&f.outer, unit);
                    self.queries(operands.get(), place, block * width, rows(unit), scratch);
                }
            }
        });
    }

    /// Copies the log-sum-exps of a unit, and computes `delta = sum of o * do` for each row.
    unsafe fn rows(&self, args: &AttentionGradArgs, unit: Unit, lse: *mut f32, delta: *mut f32) {
        let f = &self.p.forward;
        for row in 0..f.q_len {
            // SAFETY: within operands and scratch, by the plan's extents.
            unsafe {
                let value = *args.lse.add(unit.row(&self.lse, row));
                // exp(s - inf) = 0: a row without keys has no gradient.
                let empty = f.empty_is_zero && value == f32::NEG_INFINITY;
                *lse.add(row) = if empty { f32::INFINITY } else { value };
                let o = args.o.add(unit.row(&f.o, row));
                let grad = args.grad_o.add(unit.row(&self.p.grad_o, row));
                *delta.add(row) = (self.blocks.strips.dot)(o, grad, f.value_dim);
            }
        }
    }

    /// Gradients of a block of keys and values, keys side by side: sums over all queries of all units that read them. What
    /// the block gives to these queries is added to their gradient, if a chunk is a whole group.
    unsafe fn keys(
        &self,
        args: &AttentionGradArgs,
        group: usize,
        k0: usize,
        rows: &impl Fn(usize) -> Rows,
        scratch: *mut f32,
    ) {
        let (p, f) = (&self.p, &self.p.forward);
        let (b, width) = (&self.blocks, self.blocks.width);
        let count = (f.k_len - k0).min(width);
        let (scale, mask, truth) = plain(&f.score);
        let part = |n: usize| scratch.wrapping_add(n * width);
        let (d, dv) = (f.head_dim, f.value_dim);
        let (packed_k, packed_v) = (part(0), part(d));
        let (sum_k, sum_v) = (part(d + dv), part(2 * d + dv));
        let (s, dp) = (part(2 * (d + dv)), part(2 * (d + dv) + self.block));
        let tmp = part(2 * (d + dv) + 2 * self.block);
        let sharing = f.sharing();
        let first = Unit::new(&f.outer, group * sharing);
        // SAFETY: offsets within operands and scratch, by the plan's extents.
        unsafe {
            b.pack(packed_k, args.k.add(first.row(&f.k, k0)), f.k.row, d, count, scale);
            b.pack(packed_v, args.v.add(first.row(&f.v, k0)), f.v.row, dv, count, 1.0);
            std::ptr::write_bytes(sum_k, 0, (d + dv) * width);
            for number in group * sharing..(group + 1) * sharing {
                let rows = rows(number);
                let unit = Unit::new(&f.outer, number);
                // Earlier queries see none of these keys.
                let mut q0 = f.causal.map_or(0, |c| k0.saturating_sub(c));
                while q0 < f.q_len {
                    let n = (f.q_len - q0).min(self.block);
                    let q = args.q.add(unit.row(&f.q, q0));
                    let grad_o = args.grad_o.add(unit.row(&p.grad_o, q0));
                    b.dots(s, q, f.q.row, n, packed_k, d);
                    if let Some(m) = mask {
                        let mask = args.extras[0].cast_const().cast::<f32>().add(unit.score(m, q0, k0));
                        b.add_mask(s, tmp, mask, (m.query, m.key), (n, count));
                    }
                    if let Some(m) = truth {
                        let truth = args.extras[usize::from(mask.is_some())].cast_const();
                        b.mask_out(s, truth.add(unit.score(m, q0, k0)), (m.query, m.key), (n, count));
                    }
                    let hooks = self.hooks(args, unit, (q0, k0));
                    let view = |at: *mut f32| View2 { ptr: at.cast(), row: width as i64, col: 1 };
                    if let Some((hook, _, views)) = &hooks {
                        std::ptr::copy_nonoverlapping(s, tmp, n * width);
                        hook(&view(s), n as i64, count as i64, views.as_ptr(), &view(s));
                    }
                    if let Some(c) = f.causal {
                        exclude(s, width, n, |i| ((q0 + i + c + 1).saturating_sub(k0), width));
                    }
                    b.dots(dp, grad_o, p.grad_o.row, n, packed_v, dv);
                    let (lse, delta) = (rows.lse.add(q0), rows.delta.add(q0));
                    (b.strips.gradient)(s, dp, n, lse, delta, true, scale);
                    if let Some((_, slope, mut views)) = hooks {
                        views[args.extras.len()] = view(dp);
                        slope(&view(tmp), n as i64, count as i64, views.as_ptr(), &view(dp));
                    }
                    b.sums(sum_v, grad_o, p.grad_o.row, n, s, dv, true);
                    b.sums(sum_k, q, f.q.row, n, dp, d, true);
                    if self.whole {
                        let to = (args.grad_q.add(unit.row(&p.grad_q, q0)), p.grad_q.row);
                        let keys = (args.k.add(first.row(&f.k, k0)), f.k.row);
                        b.spread(to, dp, (n, count), keys, d, k0 > 0);
                    }
                    q0 += n;
                }
            }
            let to = args.grad_k.add(first.row(&p.grad_k, k0));
            (b.transpose)(to, p.grad_k.row, sum_k, width, d, count);
            let to = args.grad_v.add(first.row(&p.grad_v, k0));
            (b.transpose)(to, p.grad_v.row, sum_v, width, dv, count);
        }
    }

    /// The hooks of the score and of its slope, with the operands of both at a query and key.
    fn hooks(
        &self,
        args: &AttentionGradArgs,
        unit: Unit,
        at: (usize, usize),
    ) -> Option<(ScoreFn, ScoreFn, [View2; MAX_VIEWS])> {
        let Score::Hook { extras, element_bytes } = &self.p.forward.score else { return None };
        Some((args.hook?, args.slope?, views(extras, element_bytes, args.extras, unit, at)))
    }

    /// Gradient of a block of queries, queries side by side: sums over keys.
    unsafe fn queries(&self, args: &AttentionGradArgs, unit: Unit, q0: usize, rows: Rows, scratch: *mut f32) {
        let (p, f) = (&self.p, &self.p.forward);
        let (b, width) = (&self.blocks, self.blocks.width);
        let count = (f.q_len - q0).min(width);
        let (scale, mask, truth) = plain(&f.score);
        let part = |n: usize| scratch.wrapping_add(n * width);
        let (d, dv) = (f.head_dim, f.value_dim);
        let (packed_q, packed_o, sum_q) = (part(0), part(d), part(d + dv));
        let (s, dp) = (part(2 * (d + dv)), part(2 * (d + dv) + self.block));
        // blocks `[query][key]`, as hooks want them
        let (raw, tmp) = (part(2 * (d + dv) + 2 * self.block), part(2 * (d + dv) + 3 * self.block));
        let view = |at: *mut f32| View2 { ptr: at.cast(), row: self.block as i64, col: 1 };
        let keys = f.causal.map_or(f.k_len, |c| f.k_len.min(q0 + count + c));
        // SAFETY: offsets within operands and scratch, by the plan's extents.
        unsafe {
            b.pack(packed_q, args.q.add(unit.row(&f.q, q0)), f.q.row, d, count, scale);
            let grad_o = args.grad_o.add(unit.row(&p.grad_o, q0));
            b.pack(packed_o, grad_o, p.grad_o.row, dv, count, 1.0);
            std::ptr::write_bytes(sum_q, 0, d * width);
            let mut k0 = 0;
            while k0 < keys {
                let n = (keys - k0).min(self.block);
                let k = args.k.add(unit.row(&f.k, k0));
                b.dots(s, k, f.k.row, n, packed_q, d);
                if let Some(m) = mask {
                    let mask = args.extras[0].cast_const().cast::<f32>().add(unit.score(m, q0, k0));
                    b.add_mask(s, tmp, mask, (m.key, m.query), (n, count));
                }
                if let Some(m) = truth {
                    let truth = args.extras[usize::from(mask.is_some())].cast_const();
                    b.mask_out(s, truth.add(unit.score(m, q0, k0)), (m.key, m.query), (n, count));
                }
                let hooks = self.hooks(args, unit, (q0, k0));
                if let Some((hook, _, views)) = &hooks {
                    (b.transpose)(raw, self.block, s, width, n, count);
                    std::ptr::copy_nonoverlapping(raw, tmp, count * self.block);
                    hook(&view(tmp), count as i64, n as i64, views.as_ptr(), &view(tmp));
                    (b.transpose)(s, width, tmp, self.block, count, n);
                }
                if let Some(c) = f.causal {
                    exclude(s, width, n, |i| (0, (k0 + i).saturating_sub(q0 + c)));
                }
                let v = args.v.add(unit.row(&f.v, k0));
                b.dots(dp, v, f.v.row, n, packed_o, dv);
                let (lse, delta) = (rows.lse.add(q0), rows.delta.add(q0));
                (b.strips.gradient)(s, dp, n, lse, delta, false, scale);
                if let Some((_, slope, mut views)) = hooks {
                    (b.transpose)(tmp, self.block, dp, width, n, count);
                    views[args.extras.len()] = view(tmp);
                    slope(&view(raw), count as i64, n as i64, views.as_ptr(), &view(tmp));
                    (b.transpose)(dp, width, tmp, self.block, count, n);
                }
                b.sums(sum_q, k, f.k.row, n, dp, d, true);
                k0 += n;
            }
            let to = args.grad_q.add(unit.row(&p.grad_q, q0));
            (b.transpose)(to, p.grad_q.row, sum_q, width, d, count);
        }
    }
}
