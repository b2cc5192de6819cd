use super::*;
use crate::cpu::drivers::testing::{assert_close, buffer, isas, values};
use crate::cpu::drivers::{DriverError, ScratchPool};
use crate::cpu::memory::Buffer;
use crate::cpu::team::Team;
use egret_program::driver::hook::View2;
use egret_program::driver::{AttentionGradProblem, AttentionOperand, AttentionProblem, AttentionSchedule, Mask, Score};
use egret_simd::Isa;

/// Operands `[batch][rows][heads][channels]` (as they come from one product) for q and o, head-major for k and v.
fn problem(
    (batch, heads, kv_heads): (usize, usize, usize),
    (q_len, k_len): (usize, usize),
    (d, dv): (usize, usize),
    score: Score,
) -> AttentionProblem {
    let by_row =
        |heads: usize, rows: usize, c: usize| AttentionOperand { batch: rows * heads * c, head: c, row: heads * c };
    let by_head =
        |heads: usize, rows: usize, c: usize| AttentionOperand { batch: rows * heads * c, head: rows * c, row: c };
    AttentionProblem {
        batch,
        heads,
        kv_heads,
        q_len,
        k_len,
        head_dim: d,
        value_dim: dv,
        q: by_row(heads, q_len, d),
        k: by_head(kv_heads, k_len, d),
        v: by_head(kv_heads, k_len, dv),
        o: by_row(heads, q_len, dv),
        lse: Some(by_head(heads, q_len, 1)),
        score,
        empty_is_zero: false,
    }
}

fn plain(scale: f32, mask: Option<Mask>, causal: Option<usize>) -> Score {
    Score::Plain { scale, mask, causal }
}

fn problems() -> Vec<AttentionProblem> {
    let full = |q: usize, k: usize| Mask { batch: 3 * q * k, head: q * k, query: k, key: 1 };
    let mut all = vec![
        problem((1, 1, 1), (1, 1), (1, 1), plain(1.0, None, None)),
        problem((2, 3, 3), (40, 150), (17, 9), plain(0.25, None, None)),
        problem((1, 4, 2), (33, 70), (16, 24), plain(0.3, None, Some(37))),
        problem((2, 3, 1), (35, 35), (8, 5), plain(0.5, None, Some(0))),
        problem((2, 3, 3), (20, 45), (8, 8), plain(0.4, Some(full(20, 45)), None)),
        problem((2, 2, 2), (18, 140), (8, 8), plain(0.4, None, None)),
        problem((1, 2, 2), (1, 300), (64, 64), plain(0.125, None, None)),
    ];
    // A mask over keys alone, and one with queries contiguous.
    all[5].score = plain(0.4, Some(Mask { batch: 140, head: 0, query: 0, key: 1 }), None);
    let mut other = problem((1, 2, 2), (20, 30), (8, 8), plain(0.4, None, Some(10)));
    other.score = plain(0.4, Some(Mask { batch: 0, head: 600, query: 1, key: 20 }), Some(10));
    all.push(other);
    all
}

struct Data {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mask: Vec<f32>,
}

fn data(p: &AttentionProblem) -> Data {
    Data {
        q: values(p.batch * p.q.batch, 1),
        k: values(p.batch * p.k.batch, 2),
        v: values(p.batch * p.v.batch, 3),
        mask: values(p.batch * 3 * p.q_len * p.k_len + 64, 4),
    }
}

fn at(o: &AttentionOperand, item: usize, head: usize, row: usize) -> usize {
    item * o.batch + head * o.head + row * o.row
}

/// Scores of one row in f64.
fn scores(p: &AttentionProblem, x: &Data, item: usize, head: usize, row: usize) -> Vec<f64> {
    let kv = head / (p.heads / p.kv_heads);
    let Score::Plain { scale, mask, causal } = &p.score else { panic!("plain scores only") };
    (0..p.k_len)
        .map(|key| {
            let (q, k) = (&x.q[at(&p.q, item, head, row)..], &x.k[at(&p.k, item, kv, key)..]);
            let dot: f64 = (0..p.head_dim).map(|c| q[c] as f64 * k[c] as f64).sum();
            let mut s = dot * *scale as f64;
            if let Some(m) = mask {
                let at = item * m.batch + head * m.head + row * m.query + key * m.key;
                s += x.mask[at] as f64;
            }
            if causal.is_some_and(|c| key > row + c) { f64::NEG_INFINITY } else { s }
        })
        .collect()
}

/// Probabilities and log-sum-exp of one row.
fn softmax(s: &[f64]) -> (Vec<f64>, f64) {
    let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = s.iter().map(|v| (v - max).exp()).sum();
    (s.iter().map(|v| (v - max).exp() / sum).collect(), max + sum.ln())
}

fn run(p: &AttentionProblem, isa: Isa, x: &Data, hook: Option<ScoreFn>) -> (Vec<f32>, Vec<f32>) {
    let (q, k, v, mask) = (buffer(&x.q), buffer(&x.k), buffer(&x.v), buffer(&x.mask));
    let mut results: Vec<(Vec<f32>, Vec<f32>)> = vec![];
    for threads in [1, 2, 3] {
        let mut schedule = AttentionSchedule::choose(isa.lanes_f32());
        schedule.key_block = 64;
        let plan = AttentionPlan::new(p, &schedule, isa).unwrap();
        let team = Team::new(threads);
        let scratch = ScratchPool::new(team.size(), plan.scratch()).unwrap();
        let o = Buffer::floats(p.batch * p.o.batch).unwrap();
        let lse = Buffer::floats(p.batch * p.heads * p.q_len).unwrap();
        let args = AttentionArgs {
            q: q.as_ptr(),
            k: k.as_ptr(),
            v: v.as_ptr(),
            o: o.as_ptr(),
            lse: lse.as_ptr(),
            extras: &[mask.as_ptr()],
            hook,
        };
        unsafe { plan.run(&args, &team, &scratch) };
        results.push((o.as_f32().to_vec(), lse.as_f32().to_vec()));
    }
    let bits = |r: &[f32]| r.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(results.iter().all(|r| bits(&r.0) == bits(&results[0].0)));
    results.swap_remove(0)
}

fn check_forward(p: &AttentionProblem, isa: Isa, x: &Data, got: &(Vec<f32>, Vec<f32>)) {
    for item in 0..p.batch {
        for head in 0..p.heads {
            for row in 0..p.q_len {
                let (weights, lse) = softmax(&scores(p, x, item, head, row));
                let kv = head / (p.heads / p.kv_heads);
                let what = format!("{isa} {p}");
                let g = got.1[(item * p.heads + head) * p.q_len + row];
                assert_close(g, lse, p.head_dim + 8, 4.0, &what);
                for c in 0..p.value_dim {
                    let want: f64 =
                        weights.iter().enumerate().map(|(key, w)| w * x.v[at(&p.v, item, kv, key) + c] as f64).sum();
                    let g = got.0[at(&p.o, item, head, row) + c];
                    assert_close(g, want, p.head_dim + p.k_len, 1.0, &what);
                }
            }
        }
    }
}

#[test]
fn forward() {
    for isa in isas() {
        for p in problems() {
            let x = data(&p);
            check_forward(&p, isa, &x, &run(&p, isa, &x, None));
        }
    }
}

/// score = 0.25 * acc + extras[0]
unsafe extern "C" fn hook(acc: *const View2, rows: i64, cols: i64, extras: *const View2, outs: *const View2) {
    unsafe {
        let at =
            |v: *const View2, i: i64, j: i64| (*v).ptr.cast::<f32>().offset((i * (*v).row + j * (*v).col) as isize);
        for i in 0..rows {
            for j in 0..cols {
                *at(outs, i, j) = *at(acc, i, j) * 0.25 + *at(extras, i, j);
            }
        }
    }
}

#[test]
fn hooked_scores() {
    for isa in isas() {
        let (q, k) = (37, 150);
        let mask = Mask { batch: 0, head: q * k, query: k, key: 1 };
        let score = plain(0.25, Some(mask.clone()), None);
        let like = problem((2, 3, 3), (q, k), (16, 8), score);
        let x = data(&like);
        let mut p = like.clone();
        p.score = Score::Hook { extras: vec![mask], element_bytes: vec![4] };
        check_forward(&like, isa, &x, &run(&p, isa, &x, Some(hook)));
    }
}

#[test]
fn empty_rows() {
    for isa in isas() {
        let (q, k) = (5, 70);
        let mask = Mask { batch: 0, head: 0, query: k, key: 1 };
        let mut p = problem((1, 1, 1), (q, k), (8, 8), plain(1.0, Some(mask), None));
        let mut x = data(&p);
        x.mask[2 * k..3 * k].fill(f32::NEG_INFINITY);
        // The first block of row 3 alone is empty.
        x.mask[3 * k..3 * k + 65].fill(f32::NEG_INFINITY);
        let (o, lse) = run(&p, isa, &x, None);
        assert!(o[16..24].iter().all(|v| v.is_nan()));
        assert!(o[24..32].iter().all(|v| v.is_finite()));
        assert_eq!(lse[2], f32::NEG_INFINITY);
        p.empty_is_zero = true;
        let (o, _) = run(&p, isa, &x, None);
        assert!(o[16..24].iter().all(|v| *v == 0.0));
        assert!(o.iter().all(|v| v.is_finite()));
    }
}

#[test]
fn gradient() {
    for isa in isas() {
        for p in problems() {
            let x = data(&p);
            let (o, lse) = run(&p, isa, &x, None);
            let grad_o = values(o.len(), 9);
            let g = AttentionGradProblem {
                grad_o: p.o.clone(),
                grad_q: p.q.clone(),
                grad_k: p.k.clone(),
                grad_v: p.v.clone(),
                forward: p.clone(),
            };
            let got = run_gradient(&g, isa, &x, &o, &lse, &grad_o);
            let want = exact_gradient(&p, &x, &grad_o);
            let steps = 4 * (p.k_len + p.q_len) * (p.heads / p.kv_heads) + 4 * p.head_dim;
            for (got, want) in got.iter().zip(&want) {
                for (g, w) in got.iter().zip(want) {
                    assert_close(*g, *w, steps, 2.0, &format_args!("{isa} {p}"));
                }
            }
        }
    }
}

fn run_gradient(g: &AttentionGradProblem, isa: Isa, x: &Data, o: &[f32], lse: &[f32], grad_o: &[f32]) -> [Vec<f32>; 3] {
    let schedule = AttentionSchedule::choose(isa.lanes_f32());
    let plan = AttentionGradPlan::new(g, &schedule, isa).unwrap();
    let mut results: Vec<[Vec<f32>; 3]> = vec![];
    for threads in [1, 2, 3] {
        let team = Team::new(threads);
        let scratch = ScratchPool::new(team.size(), plan.scratch()).unwrap();
        let inputs: Vec<Buffer> = [&x.q[..], &x.k, &x.v, o, lse, &x.mask, grad_o].map(buffer).into_iter().collect();
        let outs = [&x.q, &x.k, &x.v].map(|v| Buffer::floats(v.len()).unwrap());
        let args = AttentionGradArgs {
            q: inputs[0].as_ptr(),
            k: inputs[1].as_ptr(),
            v: inputs[2].as_ptr(),
            o: inputs[3].as_ptr(),
            lse: inputs[4].as_ptr(),
            mask: inputs[5].as_ptr(),
            grad_o: inputs[6].as_ptr(),
            grad_q: outs[0].as_ptr(),
            grad_k: outs[1].as_ptr(),
            grad_v: outs[2].as_ptr(),
        };
        unsafe { plan.run(&args, &team, &scratch) };
        results.push(outs.map(|b| b.as_f32().to_vec()));
    }
    assert!(results.iter().all(|r| *r == results[0]));
    results.swap_remove(0)
}

fn exact_gradient(p: &AttentionProblem, x: &Data, grad_o: &[f32]) -> [Vec<f64>; 3] {
    let Score::Plain { scale, .. } = p.score else { panic!("plain scores only") };
    let mut out = [&x.q, &x.k, &x.v].map(|v| vec![0f64; v.len()]);
    for item in 0..p.batch {
        for head in 0..p.heads {
            let kv = head / (p.heads / p.kv_heads);
            for row in 0..p.q_len {
                let (weights, _) = softmax(&scores(p, x, item, head, row));
                let g = &grad_o[at(&p.o, item, head, row)..];
                let dp: Vec<f64> = (0..p.k_len)
                    .map(|key| {
                        let v = &x.v[at(&p.v, item, kv, key)..];
                        (0..p.value_dim).map(|c| g[c] as f64 * v[c] as f64).sum()
                    })
                    .collect();
                let delta: f64 = weights.iter().zip(&dp).map(|(w, d)| w * d).sum();
                for key in 0..p.k_len {
                    let ds = weights[key] * (dp[key] - delta) * scale as f64;
                    let (q, k) = (at(&p.q, item, head, row), at(&p.k, item, kv, key));
                    for c in 0..p.head_dim {
                        out[0][q + c] += ds * x.k[k + c] as f64;
                        out[1][k + c] += ds * x.q[q + c] as f64;
                    }
                    for c in 0..p.value_dim {
                        out[2][at(&p.v, item, kv, key) + c] += weights[key] * g[c] as f64;
                    }
                }
            }
        }
    }
    out
}

#[test]
fn what_cannot_be_is_an_error() {
    let isa = Isa::Portable;
    let schedule = AttentionSchedule::choose(8);
    let p = problem((1, 3, 2), (4, 4), (8, 8), plain(1.0, None, None));
    assert!(matches!(AttentionPlan::new(&p, &schedule, isa), Err(DriverError::Problem(_))));
    let mut p = problem((1, 2, 2), (4, 4), (8, 8), plain(1.0, None, None));
    p.score = Score::Hook { extras: vec![], element_bytes: vec![] };
    let g = AttentionGradProblem {
        grad_o: p.o.clone(),
        grad_q: p.q.clone(),
        grad_k: p.k.clone(),
        grad_v: p.v.clone(),
        forward: p,
    };
    assert!(matches!(AttentionGradPlan::new(&g, &schedule, isa), Err(DriverError::Unsupported(_))));
}
