//! The body of every tile kernel.

use super::{MAX_ROWS, Tile};
use crate::Element;
use crate::vector::{Lanes, another, prefetch, prefetch_write};

pub(super) const PACKED: u8 = 0;
pub(super) const TABLE: u8 = 1;
pub(super) const LANES: u8 = 2;
pub(super) const STRIDED: u8 = 3;
pub(super) const FEW: u8 = 4;

/// Repeats a block with a constant index. Not a loop, because LLVM's unroller gives up at 28 accumulators and then keeps
/// them in memory, which is three times slower.
macro_rules! unroll {
    ($i:ident < $n:expr, $body:block) => {
        unroll!(@ $i, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    ($i:ident < $n:expr, max 2, $body:block) => {
        unroll!(@ $i, $n, $body, 0 1)
    };
    ($i:ident < $n:expr, max 4, $body:block) => {
        unroll!(@ $i, $n, $body, 0 1 2 3)
    };
    (@ $i:ident, $n:expr, $body:block, $($k:literal)*) => {
        $(if $k < $n { const $i: usize = $k; $body })*
    };
}

/// Rows of the kind `STRIDED` lie `STEP` elements apart in runs of `RUN`.
///
/// # Safety
/// The host has the instruction set of `V`, and the pointers of `t` are valid for `M` rows and `N` vectors.
#[inline(always)]
pub(super) unsafe fn tile<
    V: Lanes,
    const M: usize,
    const N: usize,
    const KIND: u8,
    const STEP: usize,
    const RUN: usize,
>(
    t: &Tile<V::Element>,
) {
    const { assert!(M <= MAX_ROWS && N <= 2 && (KIND != STRIDED || RUN == M || 2 * RUN == M)) };
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

        products::<V, M, N, KIND, STEP, RUN>(t, &mut acc);
        finish::<V, M, N>(t, &acc);
    }
}

#[inline(always)]
unsafe fn products<V: Lanes, const M: usize, const N: usize, const KIND: u8, const STEP: usize, const RUN: usize>(
    t: &Tile<V::Element>,
    acc: &mut [[V; N]; M],
) {
    unsafe {
        // Offsets are read once: the compiler cannot know that nothing below writes to the table.
        let mut rows = [0usize; M];
        if KIND == TABLE || KIND == LANES || KIND == FEW {
            unroll!(J < M, {
                rows[J] = *t.rows.add(J);
            });
        }
        let second_run = if KIND == STRIDED && RUN < M { *t.rows.add(RUN) } else { 0 };
        let (b_step, b_vector) = (t.b_step, t.b_vector);
        let a_step = if KIND == PACKED { M } else { t.a_step };
        let mut b = t.b;
        let mut ahead = t.prefetch;
        // the first is `acc`
        let mut more = [[[V::zero(); N]; M]; 4];
        for i in 0..t.tap_count {
            let mut p = t.a.add(*t.taps.add(i));
            if !t.b_taps.is_null() {
                b = t.b.wrapping_add(*t.b_taps.add(i));
            }
            if t.prefetch_a != 0 {
                let next = p.wrapping_add(t.prefetch_a);
                unroll!(J < M, {
                    prefetch(match KIND {
                        STRIDED if J < RUN => next.wrapping_add(J * STEP),
                        STRIDED => next.wrapping_add(second_run + (J - RUN) * STEP),
                        _ => next.wrapping_add(rows[J]),
                    });
                });
            }
            for _ in 0..t.prefetch_lines {
                prefetch(ahead);
                ahead = ahead.wrapping_add(64 / size_of::<V::Element>());
            }
            let run = match i + 1 == t.tap_count {
                _ if !t.runs.is_null() => *t.runs.add(i),
                true => t.last_run,
                false => t.run,
            };
            // A multiply-add that broadcasts by itself saves an instruction and costs a load. Every second row does: then
            // neither the front end nor the load ports hold up the multipliers, also when another hardware thread shares
            // the core. The compiler would broadcast once for both vectors if it knew that the pointers are the same.
            let mut s = p.wrapping_add(second_run);
            let mut left = run;
            if KIND == FEW {
                // a chain takes every second or fourth step
                let chains = if M == 1 { 4 } else { 2 };
                while left >= chains {
                    unroll!(C < chains, max 4, {
                        let at = b.wrapping_add(C * b_step);
                        let mut columns = [V::zero(); N];
                        unroll!(I < N, max 2, { columns[I] = V::load(at.add(I * b_vector)); });
                        unroll!(J < M, {
                            let x = V::splat(*p.wrapping_add(rows[J] + C * a_step));
                            let sum = if C == 0 { &mut acc[J] } else { &mut more[C][J] };
                            unroll!(I < N, max 2, { sum[I] = x.fma(columns[I], sum[I]); });
                        });
                    });
                    left -= chains;
                    b = b.wrapping_add(chains * b_step);
                    p = p.wrapping_add(chains * a_step);
                }
            }
            for _ in 0..left {
                let (p_again, s_again) = (another(p), another(s));
                let mut columns = [V::zero(); N];
                unroll!(I < N, max 2, { columns[I] = V::load(b.add(I * b_vector)); });
                unroll!(J < M, {
                    let at = |first: *const V::Element, second: *const V::Element| match KIND {
                        PACKED => first.wrapping_add(J),
                        STRIDED if J < RUN => first.wrapping_add(J * STEP),
                        STRIDED => second.wrapping_add((J - RUN) * STEP),
                        _ => first.wrapping_add(rows[J]),
                    };
                    let q = at(p, s);
                    let twice = V::BROADCASTS && (KIND == PACKED || KIND == STRIDED) && N == 2 && J.is_multiple_of(2);
                    if KIND == LANES {
                        let x = V::load(q);
                        unroll!(I < N, max 2, { acc[J][I] = x.fma(columns[I], acc[J][I]); });
                    } else if twice {
                        acc[J][0] = V::splat(*q).fma(columns[0], acc[J][0]);
                        acc[J][N - 1] = V::splat(*at(p_again, s_again)).fma(columns[N - 1], acc[J][N - 1]);
                    } else {
                        let x = V::splat(*q);
                        unroll!(I < N, max 2, { acc[J][I] = x.fma(columns[I], acc[J][I]); });
                    }
                });
                b = b.wrapping_add(b_step);
                (p, s) = (p.wrapping_add(a_step), s.wrapping_add(a_step));
            }
            b = b.wrapping_add(t.b_skip);
        }
        if KIND == FEW {
            unroll!(C < 4, max 4, {
                unroll!(J < M, {
                    unroll!(I < N, max 2, { acc[J][I] = acc[J][I].add(more[C][J][I]); });
                });
            });
        }
    }
}

/// Chooses the epilogue once a tile: tested at each vector, its conditions cost as much as sixty multiply-adds.
#[inline(always)]
unsafe fn finish<V: Lanes, const M: usize, const N: usize>(t: &Tile<V::Element>, acc: &[[V; N]; M]) {
    unsafe {
        let added = match (t.partial.is_null(), t.residual.is_null()) {
            (true, true) => None,
            (true, false) => Some((t.residual, t.residual_rows, t.residual_vector)),
            (false, true) => Some((t.partial, t.partial_rows, t.partial_vector)),
            (false, false) => return finish_any::<V, M, N>(t, acc),
        };
        // whole vectors are stored of what is filled, and partial sums of it are whole vectors too: so halves of vectors are,
        // of which there are kernels where vectors are long
        let halves = N == 1 && V::LANES * size_of::<V::Element>() == 64;
        let partial = t.last_lanes < V::LANES;
        if partial && !(halves && t.fill && t.residual.is_null()) || t.first_lane > 0 {
            return finish_any::<V, M, N>(t, acc);
        }
        let upper = t.clamp && t.hi < V::Element::INFINITY;
        match (added, upper) {
            (None, _) if halves && partial => finish_full::<V, M, N, false, true, true>(t, acc, (t.c, t.c_rows, 0)),
            (Some(added), _) if halves && partial => finish_full::<V, M, N, true, true, true>(t, acc, added),
            (None, false) => finish_full::<V, M, N, false, false, false>(t, acc, (t.c, t.c_rows, 0)),
            (None, true) => finish_full::<V, M, N, false, true, false>(t, acc, (t.c, t.c_rows, 0)),
            (Some(added), false) => finish_full::<V, M, N, true, false, false>(t, acc, added),
            (Some(added), true) => finish_full::<V, M, N, true, true, false>(t, acc, added),
        }
    }
}

/// Whole vectors, or with zeros in the lanes that do not exist (`FILLS`), at most one operand to add: its address, rows and
/// distance of vectors.
#[inline(always)]
unsafe fn finish_full<
    V: Lanes,
    const M: usize,
    const N: usize,
    const ADDS: bool,
    const UPPER: bool,
    const FILLS: bool,
>(
    t: &Tile<V::Element>,
    acc: &[[V; N]; M],
    (added, added_rows, added_vector): (*const V::Element, *const usize, usize),
) {
    unsafe {
        let lo = V::splat(if t.clamp { t.lo } else { V::Element::NEG_INFINITY });
        let hi = V::splat(if t.clamp || !FILLS { t.hi } else { V::Element::INFINITY });
        let exist = V::range(0, if FILLS { t.last_lanes } else { V::LANES });
        let c_vector = t.c_vector;
        unroll!(J < M, {
            let row = t.c.add(*t.c_rows.add(J));
            let other = if ADDS { added.add(*added_rows.add(J)) } else { added };
            unroll!(I < N, max 2, {
                let mut v = acc[J][I];
                if ADDS {
                    v = v.add(V::load(other.add(I * added_vector)));
                }
                v = lo.max(v);
                if UPPER {
                    v = hi.min(v);
                }
                if FILLS && I == N - 1 {
                    v = V::select(exist, v, V::zero());
                }
                v.store(row.add(I * c_vector));
            });
        });
    }
}

/// Every epilogue, decided at each vector.
#[inline(always)]
unsafe fn finish_any<V: Lanes, const M: usize, const N: usize>(t: &Tile<V::Element>, acc: &[[V; N]; M]) {
    unsafe {
        let (shared, partial) = (t.first_lane > 0, t.last_lanes < V::LANES);
        let (lo, hi) = (V::splat(t.lo), V::splat(t.hi));
        // A copy, so that only this path has the accumulators in memory.
        let sums = *acc;
        for (j, sums) in sums.iter().enumerate() {
            let row = t.c.add(*t.c_rows.add(j));
            for (i, sum) in sums.iter().enumerate() {
                let mut v = *sum;
                let at = row.add(i * t.c_vector);
                let (shared, partial) = (shared && i == 0, partial && i == N - 1);
                let masked = shared || partial;
                let from = if shared { t.first_lane } else { 0 };
                let mask = V::range(from, if partial { t.last_lanes } else { V::LANES });
                if !t.partial.is_null() {
                    let r = t.partial.add(*t.partial_rows.add(j) + i * t.partial_vector);
                    v = v.add(if masked { V::load_masked(r, mask) } else { V::load(r) });
                }
                if !t.residual.is_null() {
                    let r = t.residual.add(*t.residual_rows.add(j) + i * t.residual_vector);
                    v = v.add(if masked { V::load_masked(r, mask) } else { V::load(r) });
                }
                if t.clamp {
                    v = hi.min(lo.max(v));
                }
                if !masked {
                    v.store(at);
                } else if t.fill && partial {
                    V::select(mask, v, V::zero()).store_masked(at, V::range(from, V::LANES));
                } else {
                    v.store_masked(at, mask);
                }
            }
        }
    }
}
