//! Products and attention through the drivers, beside the multiply-add peak of the same minute; best of several rounds. Usage:
//! `products [THREADS] [ISA] [M]`, M leaving only products of so many rows. Products of `f64` are beside half of the peak.

use egret_program::driver::{
    AttentionOperand, AttentionProblem, AttentionSchedule, GemmProblem, GemmSchedule, MatrixForm, PackForm,
    PackProblem, Products, Score, Words,
};
use egret_runtime::cpu::drivers::{AttentionArgs, AttentionPlan, GemmArgs, GemmPlan, PackPlan, ScratchPool};
use egret_runtime::cpu::memory::Buffer;
use egret_runtime::cpu::team::Team;
use egret_simd::words::WordUnit;
use egret_simd::{Isa, peak};
use std::time::{Duration, Instant};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let threads = arguments.get(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    let isa = arguments.get(2).and_then(|n| Isa::from_name(n)).unwrap_or_else(Isa::detect);
    let team = Team::new(threads);
    let shapes = [
        (128, 128, 128),
        (256, 256, 256),
        (512, 512, 512),
        (1024, 1024, 1024),
        (2048, 2048, 2048),
        (1, 4096, 4096),
        (8, 4096, 4096),
        (128, 768, 3072),
        (3136, 64, 576),
        (196, 256, 2304),
    ];
    let only = arguments.get(3).and_then(|n| n.parse().ok()).unwrap_or(shapes.len());
    for (m, n, k) in shapes.into_iter().filter(|s| only == shapes.len() || s.0 == only) {
        let of_words = [(Words::Bf16, WordUnit::bf16()), (Words::Bytes { low: 0 }, WordUnit::bytes())];
        let there = of_words.into_iter().filter(|(_, unit)| isa == Isa::Avx512 && unit.is_some());
        let strided = [Products::F32, Products::F64].map(|products| (products, MatrixForm::Strided));
        let packed = [Products::F32, Products::F64, Products::Shorts].into_iter();
        let packed = packed.chain(there.map(|(words, _)| Products::Words(words)));
        for (products, form) in strided.into_iter().chain(packed.map(|products| (products, MatrixForm::Packed))) {
            let flops = 2.0 * (m * n * k) as f64;
            let time = product((m, n, k), products, form, isa, &team);
            let packed = if form == MatrixForm::Packed { ", B packed at load" } else { "" };
            let of = match products {
                Products::F32 => String::new(),
                Products::F64 => ", f64".into(),
                Products::Words(words) => format!(", {words}"),
                Products::Shorts => ", integers".into(),
            };
            let what = format!("{m} x {n} x {k}{packed}{of}");
            let share = 4.0 / products.element_bytes() as f64;
            report(&what, flops, time, share, isa, &team);
        }
    }
    for (rows, causal) in [(128, false), (1024, false), (1024, true)] {
        let (flops, time) = attention(rows, causal, isa, &team);
        let what = format!("attention 12 x {rows} x 64{}", if causal { ", causal" } else { "" });
        report(&what, flops, time, 1.0, isa, &team);
    }
}

/// `share`: the part of the peak of `f32` that the element type's is.
fn report(what: &str, flops: f64, time: f64, share: f64, isa: Isa, team: &Team) {
    let ceiling = peak(isa, Duration::from_millis(20)).expect("supported") * team.size() as f64 * share;
    let rate = flops / time / 1e9;
    let share = rate / ceiling * 100.0;
    println!("{what:44} {:9.1} us {rate:7.1} GFLOP/s {share:4.0} %", time * 1e6);
}

fn best(team: &Team, mut f: impl FnMut()) -> f64 {
    let _awake = team.awake();
    let mut times = vec![];
    let begin = Instant::now();
    while times.len() < 5 || begin.elapsed().as_secs_f64() < 0.3 {
        let start = (Instant::now(), thread_seconds());
        f();
        let wall = start.0.elapsed().as_secs_f64();
        // Alone, the thread's own time: on a shared machine no long run escapes others.
        times.push(if team.size() == 1 { thread_seconds() - start.1 } else { wall });
    }
    times.into_iter().fold(f64::INFINITY, f64::min)
}

fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the structure.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn filled(n: usize) -> Buffer {
    let mut b = Buffer::floats(n).expect("memory");
    b.as_f32_mut().iter_mut().enumerate().for_each(|(i, x)| *x = (i % 17) as f32 * 0.1 - 0.8);
    b
}

/// A buffer of numbers of the products' type.
fn operand(products: Products, n: usize) -> Buffer {
    if products.element_bytes() == 4 {
        return filled(n);
    }
    let b = Buffer::new(n * 8).expect("memory");
    // SAFETY: as long, and aligned to a page.
    let all = unsafe { std::slice::from_raw_parts_mut(b.as_ptr::<f64>(), n) };
    all.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 17) as f64 * 0.1 - 0.8);
    b
}

fn product((m, n, k): (usize, usize, usize), products: Products, form: MatrixForm, isa: Isa, team: &Team) -> f64 {
    let mut problem = GemmProblem::plain(m, n, k);
    let (a, mut b, c) = (operand(products, m * k), operand(products, k * n), operand(products, m * n));
    problem.b = form;
    if form == MatrixForm::Packed {
        let lanes = products.lanes(isa.lanes_f32());
        let form = PackForm::Columns { products, count: 1, matrix_stride: 0, k, n, row: n, col: 1 };
        let pack = PackPlan::new(&PackProblem { lanes, form }, isa).expect("a plan");
        let to = operand(products, pack.packed_len());
        // SAFETY: as long as the problem says.
        unsafe { pack.run(b.as_ptr(), to.as_ptr(), team) };
        b = to;
    }
    let schedule = match products {
        Products::Words(words) => GemmSchedule::words(&problem, words, isa.lanes_f32()),
        _ => GemmSchedule::choose(&problem, products, isa.lanes_f32()),
    };
    let plan = GemmPlan::new(&problem, &schedule, isa).expect("a plan");
    let scratch = ScratchPool::new(team.size(), plan.scratch()).expect("memory");
    let args = GemmArgs {
        a: a.as_ptr(),
        b: b.as_ptr(),
        c: c.as_ptr(),
        extras: &[],
        outs: &[],
        hook: None,
        finisher: None,
        finisher_extras: &[],
    };
    // SAFETY: as long as the problem says.
    best(team, || unsafe { plan.run(&args, team, &scratch) })
}

fn attention(rows: usize, causal: bool, isa: Isa, team: &Team) -> (f64, f64) {
    let operand = AttentionOperand { outer: vec![rows * 64], row: 64 };
    let problem = AttentionProblem {
        outer: vec![12],
        shared: 0,
        q_len: rows,
        k_len: rows,
        head_dim: 64,
        value_dim: 64,
        q: operand.clone(),
        k: operand.clone(),
        v: operand.clone(),
        o: operand,
        lse: None,
        score: Score::Plain { scale: 0.125, mask: None, truth: None },
        causal: causal.then_some(0),
        empty_is_zero: false,
    };
    let schedule = AttentionSchedule::choose(isa.lanes_f32());
    let plan = AttentionPlan::new(&problem, &schedule, isa).expect("a plan");
    let scratch = ScratchPool::new(team.size(), plan.scratch()).expect("memory");
    let [q, k, v, o] = [(); 4].map(|()| filled(12 * rows * 64));
    let args = AttentionArgs {
        q: q.as_ptr(),
        k: k.as_ptr(),
        v: v.as_ptr(),
        o: o.as_ptr(),
        lse: std::ptr::null_mut(),
        extras: &[],
        hook: None,
    };
    // SAFETY: as long as the problem says.
    let time = best(team, || unsafe { plan.run(&args, team, &scratch) });
    let flops = problem.flops() * if causal { 0.5 } else { 1.0 };
    (flops, time)
}
