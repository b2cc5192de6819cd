use super::*;
use crate::cpu::drivers::testing::{assert_close, buffer, isas, values};
use crate::cpu::drivers::{DriverError, ScratchPool};
use crate::cpu::memory::Buffer;
use crate::cpu::team::Team;
use egret_program::driver::hook::View2;
use egret_program::driver::{AttentionGradProblem, AttentionOperand, AttentionProblem, AttentionSchedule, Mask, Score};
use egret_simd::Isa;

/// Operands `[batch][rows][heads][channels]` (as they come from one product) for q and o, head-major for k and v. The
/// outer axes are batch, key-value heads, and the query heads of each.
fn problem(
    (batch, heads, kv_heads): (usize, usize, usize),
    (q_len, k_len): (usize, usize),
    (d, dv): (usize, usize),
    score: Score,
) -> AttentionProblem {
    let group = heads / kv_heads;
    let by_row =
        |rows: usize, c: usize| AttentionOperand { outer: vec![rows * heads * c, group * c, c], row: heads * c };
    let shared = |rows: usize, c: usize| AttentionOperand { outer: vec![rows * kv_heads * c, rows * c, 0], row: c };
    AttentionProblem {
        outer: vec![batch, kv_heads, group],
        shared: 1,
        q_len,
        k_len,
        head_dim: d,
        value_dim: dv,
        q: by_row(q_len, d),
        k: shared(k_len, d),
        v: shared(k_len, dv),
        o: by_row(q_len, dv),
        lse: Some(AttentionOperand { outer: vec![heads * q_len, group * q_len, q_len], row: 1 }),
        score,
        causal: None,
        empty_is_zero: false,
    }
}

fn causal(problem: AttentionProblem, offset: usize) -> AttentionProblem {
    AttentionProblem { causal: Some(offset), ..problem }
}

/// A mask by its strides over batch, heads, queries and keys; there are as many key-value heads as `p` has.
fn mask(p: &AttentionProblem, batch: usize, head: usize, query: usize, key: usize) -> Mask {
    Mask { outer: vec![batch, head * p.outer[2], head], query, key }
}

fn plain(scale: f32, mask: Option<Mask>) -> Score {
    Score::Plain { scale, mask, truth: None }
}

fn problems() -> Vec<AttentionProblem> {
    let mut all = vec![
        problem((1, 1, 1), (1, 1), (1, 1), plain(1.0, None)),
        problem((2, 3, 3), (40, 150), (17, 9), plain(0.25, None)),
        causal(problem((1, 4, 2), (33, 70), (16, 24), plain(0.3, None)), 37),
        causal(problem((2, 3, 1), (35, 35), (8, 5), plain(0.5, None)), 0),
        // so many heads that the gradient takes each of them as a whole
        problem((4, 8, 4), (40, 70), (48, 9), plain(0.25, None)),
        causal(problem((8, 2, 2), (33, 35), (16, 16), plain(0.5, None)), 3),
    ];
    let mut with = |shape, lens, dims, scale: f32, strides: [usize; 4], offset: Option<usize>, both: bool| {
        let mut p = problem(shape, lens, dims, plain(scale, None));
        let m = mask(&p, strides[0], strides[1], strides[2], strides[3]);
        let truth = both.then(|| m.clone());
        (p.score, p.causal) = (Score::Plain { scale, mask: Some(m), truth }, offset);
        all.push(p);
    };
    with((2, 3, 3), (20, 45), (8, 8), 0.4, [3 * 900, 900, 45, 1], None, false);
    with((2, 4, 2), (20, 45), (8, 8), 0.4, [4 * 900, 900, 45, 1], None, true);
    // A mask over keys alone, and one with queries contiguous.
    with((2, 2, 2), (18, 140), (8, 8), 0.4, [140, 0, 0, 1], None, true);
    with((1, 2, 2), (20, 30), (8, 8), 0.4, [0, 600, 1, 20], Some(10), true);
    all.push(problem((1, 2, 2), (1, 300), (64, 64), plain(0.125, None)));
    all
}

struct Data {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mask: Vec<f32>,
    truth: Vec<u8>,
}

fn data(p: &AttentionProblem) -> Data {
    let count = p.units() * p.q_len * p.k_len + 64;
    Data {
        q: values(p.outer[0] * p.q.outer[0], 1),
        k: values(p.outer[0] * p.k.outer[0], 2),
        v: values(p.outer[0] * p.v.outer[0], 3),
        mask: values(count, 4),
        // no row of the problems is empty
        truth: (0..count).map(|i| u8::from(i * 7 % 11 != 0)).collect(),
    }
}

fn units(p: &AttentionProblem) -> impl Iterator<Item = [usize; 3]> {
    let [a, b, c] = [p.outer[0], p.outer[1], p.outer[2]];
    (0..a * b * c).map(move |n| [n / (b * c), n / c % b, n % c])
}

fn at(o: &AttentionOperand, unit: [usize; 3], row: usize) -> usize {
    unit.iter().zip(&o.outer).map(|(i, stride)| i * stride).sum::<usize>() + row * o.row
}

/// Scores of one row in f64.
fn scores(p: &AttentionProblem, x: &Data, unit: [usize; 3], row: usize) -> Vec<f64> {
    let Score::Plain { scale, mask, truth } = &p.score else { panic!("plain scores only") };
    (0..p.k_len)
        .map(|key| {
            let (q, k) = (&x.q[at(&p.q, unit, row)..], &x.k[at(&p.k, unit, key)..]);
            let dot: f64 = (0..p.head_dim).map(|c| q[c] as f64 * k[c] as f64).sum();
            let mut s = dot * *scale as f64;
            let place =
                |m: &Mask| unit.iter().zip(&m.outer).map(|(i, s)| i * s).sum::<usize>() + row * m.query + key * m.key;
            if let Some(m) = mask {
                s += x.mask[place(m)] as f64;
            }
            let out = truth.as_ref().is_some_and(|m| x.truth[place(m)] == 0);
            if out || p.causal.is_some_and(|c| key > row + c) { f64::NEG_INFINITY } else { s }
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
    let truth = x.truth.as_ptr().cast_mut();
    let mut results: Vec<(Vec<f32>, Vec<f32>)> = vec![];
    for threads in [1, 2, 3] {
        let mut schedule = AttentionSchedule::choose(isa.lanes_f32());
        schedule.key_block = 64;
        let plan = AttentionPlan::new(p, &schedule, isa).unwrap();
        let team = Team::new(threads);
        let scratch = ScratchPool::new(team.size(), plan.scratch()).unwrap();
        let o = Buffer::floats(p.outer[0] * p.o.outer[0]).unwrap();
        let lse = Buffer::floats(p.units() * p.q_len).unwrap();
        let args = AttentionArgs {
            q: q.as_ptr(),
            k: k.as_ptr(),
            v: v.as_ptr(),
            o: o.as_ptr(),
            lse: lse.as_ptr(),
            extras: &[mask.as_ptr::<u8>(), truth],
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
    for unit in units(p) {
        for row in 0..p.q_len {
            let (weights, lse) = softmax(&scores(p, x, unit, row));
            let what = format!("{isa} {p}");
            let g = got.1[at(p.lse.as_ref().unwrap(), unit, row)];
            assert_close(g, lse, p.head_dim + 8, 4.0, &what);
            for c in 0..p.value_dim {
                let want: f64 =
                    weights.iter().enumerate().map(|(key, w)| w * x.v[at(&p.v, unit, key) + c] as f64).sum();
                let g = got.0[at(&p.o, unit, row) + c];
                assert_close(g, want, p.head_dim + p.k_len, 1.0, &what);
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

/// A problem whose hook makes the scores of a plain one, and that one.
fn hooked() -> (AttentionProblem, AttentionProblem) {
    let (q, k) = (37, 150);
    let mut like = problem((2, 6, 3), (q, k), (16, 8), plain(0.25, None));
    let mask = mask(&like, 0, q * k, k, 1);
    like.score = plain(0.25, Some(mask.clone()));
    like.causal = Some(120);
    let score = Score::Hook { extras: vec![mask], element_bytes: vec![4] };
    (AttentionProblem { score, ..like.clone() }, like)
}

#[test]
fn hooked_scores() {
    for isa in isas() {
        let (p, like) = hooked();
        let x = data(&like);
        check_forward(&like, isa, &x, &run(&p, isa, &x, Some(hook)));
    }
}

/// extras[1] * 0.25
unsafe extern "C" fn slope(_: *const View2, rows: i64, cols: i64, extras: *const View2, outs: *const View2) {
    unsafe {
        let at =
            |v: *const View2, i: i64, j: i64| (*v).ptr.cast::<f32>().offset((i * (*v).row + j * (*v).col) as isize);
        for i in 0..rows {
            for j in 0..cols {
                *at(outs, i, j) = *at(extras.add(1), i, j) * 0.25;
            }
        }
    }
}

#[test]
fn empty_rows() {
    for isa in isas() {
        let (q, k) = (5, 70);
        let mut p = problem((1, 1, 1), (q, k), (8, 8), plain(1.0, None));
        p.score = plain(1.0, Some(mask(&p, 0, 0, k, 1)));
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

fn gradient_of(p: &AttentionProblem) -> AttentionGradProblem {
    AttentionGradProblem {
        grad_o: p.o.clone(),
        grad_q: p.q.clone(),
        grad_k: p.k.clone(),
        grad_v: p.v.clone(),
        forward: p.clone(),
    }
}

#[test]
fn gradient() {
    for isa in isas() {
        let plain = problems().into_iter().map(|p| (p.clone(), p, None));
        let (p, like) = hooked();
        for (p, like, hooks) in plain.chain([(p, like, Some((hook as ScoreFn, slope as ScoreFn)))]) {
            let x = data(&like);
            let (o, lse) = run(&p, isa, &x, hooks.map(|h| h.0));
            let grad_o = values(o.len(), 9);
            let got = run_gradient(&gradient_of(&p), isa, &x, [&o, &lse, &grad_o], hooks);
            let want = exact_gradient(&like, &x, &grad_o);
            let steps = 4 * (p.k_len + p.q_len) * p.sharing() + 4 * p.head_dim;
            for (got, want) in got.iter().zip(&want) {
                for (g, w) in got.iter().zip(want) {
                    assert_close(*g, *w, steps, 2.0, &format_args!("{isa} {p}"));
                }
            }
        }
    }
}

fn run_gradient(
    g: &AttentionGradProblem,
    isa: Isa,
    x: &Data,
    [o, lse, grad_o]: [&[f32]; 3],
    hooks: Option<(ScoreFn, ScoreFn)>,
) -> [Vec<f32>; 3] {
    let mut schedule = AttentionSchedule::choose(isa.lanes_f32());
    schedule.key_block = 64;
    let plan = AttentionGradPlan::new(g, &schedule, isa).unwrap();
    let mut results: Vec<[Vec<f32>; 3]> = vec![];
    for threads in [1, 2, 3] {
        let team = Team::new(threads);
        let scratch = ScratchPool::new(team.size(), plan.scratch()).unwrap();
        let inputs: Vec<Buffer> = [&x.q[..], &x.k, &x.v, o, lse, &x.mask, grad_o].map(buffer).into_iter().collect();
        let outs = [&x.q, &x.k, &x.v].map(|v| Buffer::floats(v.len()).unwrap());
        let extras = [inputs[5].as_ptr::<u8>(), x.truth.as_ptr().cast_mut()];
        let operands = if hooks.is_some() { &extras[..1] } else { &extras[..] };
        let args = AttentionGradArgs {
            q: inputs[0].as_ptr(),
            k: inputs[1].as_ptr(),
            v: inputs[2].as_ptr(),
            o: inputs[3].as_ptr(),
            lse: inputs[4].as_ptr(),
            extras: operands,
            hook: hooks.map(|h| h.0),
            slope: hooks.map(|h| h.1),
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
    for unit in units(p) {
        for row in 0..p.q_len {
            let (weights, _) = softmax(&scores(p, x, unit, row));
            let g = &grad_o[at(&p.o, unit, row)..];
            let dp: Vec<f64> = (0..p.k_len)
                .map(|key| {
                    let v = &x.v[at(&p.v, unit, key)..];
                    (0..p.value_dim).map(|c| g[c] as f64 * v[c] as f64).sum()
                })
                .collect();
            let delta: f64 = weights.iter().zip(&dp).map(|(w, d)| w * d).sum();
            for key in 0..p.k_len {
                let ds = weights[key] * (dp[key] - delta) * scale as f64;
                let (q, k) = (at(&p.q, unit, row), at(&p.k, unit, key));
                for c in 0..p.head_dim {
                    out[0][q + c] += ds * x.k[k + c] as f64;
                    out[1][k + c] += ds * x.q[q + c] as f64;
                }
                for c in 0..p.value_dim {
                    out[2][at(&p.v, unit, key) + c] += weights[key] * g[c] as f64;
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
    let mut p = problem((1, 2, 2), (4, 4), (8, 8), plain(1.0, None));
    p.shared = 4;
    assert!(matches!(AttentionPlan::new(&p, &schedule, isa), Err(DriverError::Problem(_))));
    let mut p = problem((1, 2, 2), (4, 4), (8, 8), plain(1.0, None));
    p.k.outer.pop();
    assert!(matches!(AttentionPlan::new(&p, &schedule, isa), Err(DriverError::Problem(_))));
    let mut p = problem((1, 2, 2), (4, 4), (8, 8), plain(1.0, None));
    p.score = Score::Hook { extras: vec![mask(&p, 0, 0, 0, 2)], element_bytes: vec![4] };
    assert!(matches!(AttentionGradPlan::new(&gradient_of(&p), &schedule, isa), Err(DriverError::Unsupported(_))));
    let mut p = problem((1, 2, 2), (4, 4), (8, 8), plain(1.0, None));
    p.lse = None;
    assert!(matches!(AttentionGradPlan::new(&gradient_of(&p), &schedule, isa), Err(DriverError::Problem(_))));
}
