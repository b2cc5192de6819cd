//! The body of every tile kernel.

use super::{MAX_ROWS, Tile};
use crate::vector::{Vector, prefetch, prefetch_write};

pub(super) const PACKED: u8 = 0;
pub(super) const TABLE: u8 = 1;
pub(super) const LANES: u8 = 2;

/// Repeats a block with a constant index. Not a loop, because LLVM's unroller gives up at 28 accumulators and then keeps
/// them in memory, which is three times slower.
macro_rules! unroll {
    ($i:ident < $n:expr, $body:block) => {
        unroll!(@ $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    ($i:ident < $n:expr, max 2, $body:block) => {
        unroll!(@ $i, $n, $body, 0 1)
    };
    (@ $i:ident, $n:expr, $body:block, $($k:literal)*) => {
        $(if $k < $n { const $i: usize = $k; $body })*
    };
}

/// # Safety
/// The host has the instruction set of `V`, and the pointers of `t` are valid for `M` rows and `N` vectors.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, const M: usize, const N: usize, const KIND: u8>(t: &Tile) {
    const { assert!(M <= MAX_ROWS && N <= 2) };
    unsafe {
        let mut acc = [[V::zero(); N]; M];
        if !t.bias.is_null() {
            let mut bias = [V::zero(); N];
            unroll!(I < N, max 2, { bias[I] = V::load(t.bias.add(V::LANES * I)); });
            unroll!(J < M, {
                acc[J] = bias;
            });
        }
        if !t.row_bias.is_null() {
            unroll!(J < M, {
                let bias = V::splat(*t.row_bias.add(J));
                unroll!(I < N, max 2, { acc[J][I] = acc[J][I].add(bias); });
            });
        }
        // The lines of the output (and of the residual) travel while the products run.
        unroll!(J < M, {
            let row = t.c.wrapping_add(*t.c_rows.add(J));
            unroll!(I < N, max 2, { prefetch_write(row.wrapping_add(I * t.c_vector)); });
        });
        if !t.residual.is_null() {
            unroll!(J < M, {
                let row = t.residual.wrapping_add(*t.residual_rows.add(J));
                unroll!(I < N, max 2, { prefetch(row.wrapping_add(I * t.residual_vector)); });
            });
        }

        products::<V, M, N, KIND>(t, &mut acc);
        finish::<V, M, N>(t, &acc);
    }
}

#[inline(always)]
unsafe fn products<V: Vector, const M: usize, const N: usize, const KIND: u8>(t: &Tile, acc: &mut [[V; N]; M]) {
    unsafe {
        // Offsets are read once: the compiler cannot know that nothing below writes to the table.
        let mut rows = [0usize; M];
        if KIND != PACKED {
            unroll!(J < M, {
                rows[J] = *t.rows.add(J);
            });
        }
        let (b_step, b_vector) = (t.b_step, t.b_vector);
        let a_step = if KIND == PACKED { M } else { t.a_step };
        let mut b = t.b;
        let mut ahead = t.prefetch;
        for i in 0..t.tap_count {
            let mut p = t.a.add(*t.taps.add(i));
            if t.prefetch_a != 0 {
                let next = p.wrapping_add(t.prefetch_a);
                unroll!(J < M, {
                    prefetch(next.wrapping_add(rows[J]));
                });
            }
            for _ in 0..t.prefetch_lines {
                prefetch(ahead);
                ahead = ahead.wrapping_add(16);
            }
            let run = if i + 1 == t.tap_count { t.last_run } else { t.run };
            for _ in 0..run {
                let mut columns = [V::zero(); N];
                unroll!(I < N, max 2, { columns[I] = V::load(b.add(I * b_vector)); });
                unroll!(J < M, {
                    let q = if KIND == PACKED { p.add(J) } else { p.add(rows[J]) };
                    let x = if KIND == LANES { V::load(q) } else { V::splat(*q) };
                    unroll!(I < N, max 2, { acc[J][I] = x.fma(columns[I], acc[J][I]); });
                });
                b = b.wrapping_add(b_step);
                p = p.wrapping_add(a_step);
            }
            b = b.wrapping_add(t.b_skip);
        }
    }
}

#[inline(always)]
unsafe fn finish<V: Vector, const M: usize, const N: usize>(t: &Tile, acc: &[[V; N]; M]) {
    unsafe {
        let partial = t.last_lanes < V::LANES;
        let mask = V::first(t.last_lanes);
        let (lo, hi) = (V::splat(t.lo), V::splat(t.hi));
        unroll!(J < M, {
            let row = t.c.add(*t.c_rows.add(J));
            unroll!(I < N, max 2, {
                let mut v = acc[J][I];
                let at = row.add(I * t.c_vector);
                let masked = I == N - 1 && partial;
                if !t.partial.is_null() {
                    let r = t.partial.add(*t.partial_rows.add(J) + I * t.partial_vector);
                    v = v.add(if masked { V::load_masked(r, mask) } else { V::load(r) });
                }
                if !t.residual.is_null() {
                    let r = t.residual.add(*t.residual_rows.add(J) + I * t.residual_vector);
                    v = v.add(if masked { V::load_masked(r, mask) } else { V::load(r) });
                }
                if t.clamp {
                    v = hi.min(lo.max(v));
                }
                if !masked {
                    v.store(at);
                } else if t.fill {
                    V::select(mask, v, V::zero()).store(at);
                } else {
                    v.store_masked(at, mask);
                }
            });
        });
    }
}
