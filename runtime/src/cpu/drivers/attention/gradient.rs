//! The gradient: one part by blocks of keys (of keys and values), one by blocks of queries. Probabilities are computed again
//! from the log-sum-exp; each output is summed by one chunk in a fixed order.

use super::AttentionGradArgs;
use super::blocks::{Blocks, check, exclude, plain};
use crate::cpu::drivers::{DriverError, ScratchNeed, ScratchPool, Shared};
use crate::cpu::team::Team;
use egret_program::driver::{AttentionGradProblem, AttentionOperand, AttentionSchedule, Score};
use egret_simd::Isa;

/// The gradient of attention whose extents are known.
#[derive(Debug)]
pub struct AttentionGradPlan {
    p: AttentionGradProblem,
    lse: AttentionOperand,
    blocks: Blocks,
    block: usize,
}

struct Operands<'a>(&'a AttentionGradArgs);

// SAFETY: operands are read, and written in parts that do not overlap.
unsafe impl Sync for Operands<'_> {}

impl<'a> Operands<'a> {
    fn get(&self) -> &'a AttentionGradArgs {
        self.0
    }
}

/// Log-sum-exps and deltas of a head, contiguous.
#[derive(Clone, Copy)]
struct Rows {
    lse: *const f32,
    delta: *const f32,
}

fn at(o: &AttentionOperand, item: usize, head: usize, row: usize) -> usize {
    item * o.batch + head * o.head + row * o.row
}

impl AttentionGradPlan {
    /// Binds.
    ///
    /// # Errors
    /// If the score is a hook (its derivative is not known here), or the log-sum-exp is missing.
    pub fn new(
        problem: &AttentionGradProblem,
        schedule: &AttentionSchedule,
        isa: Isa,
    ) -> Result<AttentionGradPlan, DriverError> {
        check(&problem.forward)?;
        if matches!(problem.forward.score, Score::Hook { .. }) {
            return Err(DriverError::Unsupported("the gradient of a score hook"));
        }
        let Some(lse) = problem.forward.lse.clone() else {
            return Err(DriverError::Problem("the gradient needs the log-sum-exp"));
        };
        Ok(AttentionGradPlan {
            p: problem.clone(),
            lse,
            blocks: Blocks::new(isa, schedule.lanes)?,
            block: schedule.key_block.max(1),
        })
    }

    /// Scratch that `run` needs.
    pub fn scratch(&self) -> ScratchNeed {
        let f = &self.p.forward;
        let rows = 2 * (f.head_dim + f.value_dim) + 3 * self.block;
        ScratchNeed { per_worker: rows * self.blocks.width * 4, shared: 2 * f.batch * f.heads * self.row_stride() * 4 }
    }

    /// Rows of a head in shared scratch: whole vectors may be read.
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
        let heads = f.batch * f.heads;
        let lse = Shared(scratch.shared());
        let delta = Shared(scratch.shared().wrapping_add(heads * stride));
        let (lse, delta) = (&lse, &delta);
        team.parallel(heads, &|unit, _| {
            let (item, head) = (unit / f.heads, unit % f.heads);
            // SAFETY: each head has its own part of the scratch.
            unsafe {
                let (lse, delta) = (lse.0.add(unit * stride), delta.0.add(unit * stride));
                self.rows(operands.get(), item, head, lse, delta);
            }
        });
        let rows = |item: usize, head: usize| {
            let offset = (item * f.heads + head) * stride;
            Rows { lse: lse.0.wrapping_add(offset), delta: delta.0.wrapping_add(offset) }
        };
        let width = self.blocks.width;
        let (key_blocks, query_blocks) = (f.k_len.div_ceil(width), f.q_len.div_ceil(width));
        let by_keys = f.batch * f.kv_heads * key_blocks;
        team.parallel(by_keys + heads * query_blocks, &|chunk, worker| {
            let scratch = scratch.worker(worker);
            // SAFETY: chunks write different rows.
            unsafe {
                if chunk < by_keys {
                    let (unit, block) = (chunk / key_blocks, chunk % key_blocks);
                    let (item, head) = (unit / f.kv_heads, unit % f.kv_heads);
                    self.keys(operands.get(), item, head, block * width, &rows, scratch);
                } else {
                    let chunk = chunk - by_keys;
                    let (unit, block) = (chunk / query_blocks, chunk % query_blocks);
                    let (item, head) = (unit / f.heads, unit % f.heads);
                    self.queries(operands.get(), item, head, block * width, rows(item, head), scratch);
                }
            }
        });
    }

    /// Copies the log-sum-exps of a head, and computes `delta = sum of o * do` for each row.
    unsafe fn rows(&self, args: &AttentionGradArgs, item: usize, head: usize, lse: *mut f32, delta: *mut f32) {
        let f = &self.p.forward;
        for row in 0..f.q_len {
            // SAFETY: within operands and scratch, by the plan's extents.
            unsafe {
                let value = *args.lse.add(at(&self.lse, item, head, row));
                // exp(s - inf) = 0: a row without keys has no gradient.
                let empty = f.empty_is_zero && value == f32::NEG_INFINITY;
                *lse.add(row) = if empty { f32::INFINITY } else { value };
                let o = args.o.add(at(&f.o, item, head, row));
                let grad = args.grad_o.add(at(&self.p.grad_o, item, head, row));
                *delta.add(row) = (self.blocks.strips.dot)(o, grad, f.value_dim);
            }
        }
    }

    /// Gradients of a block of keys and values, keys side by side: sums over all queries of all heads that read them.
    unsafe fn keys(
        &self,
        args: &AttentionGradArgs,
        item: usize,
        kv_head: usize,
        k0: usize,
        rows: &impl Fn(usize, usize) -> Rows,
        scratch: *mut f32,
    ) {
        let (p, f) = (&self.p, &self.p.forward);
        let (b, width) = (&self.blocks, self.blocks.width);
        let count = (f.k_len - k0).min(width);
        let (scale, mask, causal) = plain(&f.score);
        let part = |n: usize| scratch.wrapping_add(n * width);
        let (d, dv) = (f.head_dim, f.value_dim);
        let (packed_k, packed_v) = (part(0), part(d));
        let (sum_k, sum_v) = (part(d + dv), part(2 * d + dv));
        let (s, dp) = (part(2 * (d + dv)), part(2 * (d + dv) + self.block));
        let tmp = part(2 * (d + dv) + 2 * self.block);
        // SAFETY: offsets within operands and scratch, by the plan's extents.
        unsafe {
            b.pack(packed_k, args.k.add(at(&f.k, item, kv_head, k0)), f.k.row, d, count, scale);
            b.pack(packed_v, args.v.add(at(&f.v, item, kv_head, k0)), f.v.row, dv, count, 1.0);
            std::ptr::write_bytes(sum_k, 0, (d + dv) * width);
            let group = f.heads / f.kv_heads;
            for head in kv_head * group..(kv_head + 1) * group {
                let rows = rows(item, head);
                // Earlier queries see none of these keys.
                let mut q0 = causal.map_or(0, |c| k0.saturating_sub(c));
                while q0 < f.q_len {
                    let n = (f.q_len - q0).min(self.block);
                    let q = args.q.add(at(&f.q, item, head, q0));
                    let grad_o = args.grad_o.add(at(&p.grad_o, item, head, q0));
                    b.dots(s, q, f.q.row, n, packed_k, d);
                    if let Some(m) = mask {
                        let at = item * m.batch + head * m.head + q0 * m.query + k0 * m.key;
                        b.add_mask(s, tmp, args.mask.add(at), (m.query, m.key), (n, count));
                    }
                    if let Some(c) = causal {
                        exclude(s, width, n, |i| ((q0 + i + c + 1).saturating_sub(k0), width));
                    }
                    b.dots(dp, grad_o, p.grad_o.row, n, packed_v, dv);
                    let (lse, delta) = (rows.lse.add(q0), rows.delta.add(q0));
                    (b.strips.gradient)(s, dp, n, lse, delta, true, scale);
                    b.sums(sum_v, grad_o, p.grad_o.row, n, s, dv, true);
                    b.sums(sum_k, q, f.q.row, n, dp, d, true);
                    q0 += n;
                }
            }
            let to = args.grad_k.add(at(&p.grad_k, item, kv_head, k0));
            (b.transpose)(to, p.grad_k.row, sum_k, width, d, count);
            let to = args.grad_v.add(at(&p.grad_v, item, kv_head, k0));
            (b.transpose)(to, p.grad_v.row, sum_v, width, dv, count);
        }
    }

    /// Gradient of a block of queries, queries side by side: sums over keys.
    unsafe fn queries(
        &self,
        args: &AttentionGradArgs,
        item: usize,
        head: usize,
        q0: usize,
        rows: Rows,
        scratch: *mut f32,
    ) {
        let (p, f) = (&self.p, &self.p.forward);
        let (b, width) = (&self.blocks, self.blocks.width);
        let count = (f.q_len - q0).min(width);
        let kv_head = head / (f.heads / f.kv_heads);
        let (scale, mask, causal) = plain(&f.score);
        let part = |n: usize| scratch.wrapping_add(n * width);
        let (d, dv) = (f.head_dim, f.value_dim);
        let (packed_q, packed_o, sum_q) = (part(0), part(d), part(d + dv));
        let (s, dp) = (part(2 * (d + dv)), part(2 * (d + dv) + self.block));
        let tmp = part(2 * (d + dv) + 2 * self.block);
        let keys = causal.map_or(f.k_len, |c| f.k_len.min(q0 + count + c));
        // SAFETY: offsets within operands and scratch, by the plan's extents.
        unsafe {
            b.pack(packed_q, args.q.add(at(&f.q, item, head, q0)), f.q.row, d, count, scale);
            let grad_o = args.grad_o.add(at(&p.grad_o, item, head, q0));
            b.pack(packed_o, grad_o, p.grad_o.row, dv, count, 1.0);
            std::ptr::write_bytes(sum_q, 0, d * width);
            let mut k0 = 0;
            while k0 < keys {
                let n = (keys - k0).min(self.block);
                let k = args.k.add(at(&f.k, item, kv_head, k0));
                b.dots(s, k, f.k.row, n, packed_q, d);
                if let Some(m) = mask {
                    let at = item * m.batch + head * m.head + q0 * m.query + k0 * m.key;
                    b.add_mask(s, tmp, args.mask.add(at), (m.key, m.query), (n, count));
                }
                if let Some(c) = causal {
                    exclude(s, width, n, |i| (0, (k0 + i).saturating_sub(q0 + c)));
                }
                let v = args.v.add(at(&f.v, item, kv_head, k0));
                b.dots(dp, v, f.v.row, n, packed_o, dv);
                let (lse, delta) = (rows.lse.add(q0), rows.delta.add(q0));
                (b.strips.gradient)(s, dp, n, lse, delta, false, scale);
                b.sums(sum_q, k, f.k.row, n, dp, d, true);
                k0 += n;
            }
            let to = args.grad_q.add(at(&p.grad_q, item, head, q0));
            (b.transpose)(to, p.grad_q.row, sum_q, width, d, count);
        }
    }
}
