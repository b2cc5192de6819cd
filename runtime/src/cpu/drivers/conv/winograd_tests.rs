use super::tests::{blocked, expected, problem, run_scheduled, sizes};
use super::*;
use crate::cpu::drivers::testing::{buffer, isas, values};
use egret_program::driver::hook::View2;
use egret_program::driver::{Activation, Bias, Epilogue, Operand, Split, Words};
use egret_simd::winograd::{Matrices, matrices};
use egret_simd::words::WordUnit;

/// Odd and even extents, no padding, padding on one side, tails of channels, several batch items; every extent leaves
/// tiles that reach beyond the image.
fn problems(l: usize) -> Vec<ConvProblem> {
    let conv = |batch, channels, spatial: [usize; 2], begin: [usize; 2], end: [usize; 2]| {
        let (one, kernel) = ([1, 1], [3, 3]);
        problem(ConvForm::Forward, batch, channels, 1, &spatial, &kernel, &one, &one, (&begin, &end), l)
    };
    vec![
        conv(1, (l, 2 * l), [8, 8], [1, 1], [1, 1]),
        conv(2, (5, 19), [9, 10], [1, 1], [1, 1]),
        conv(1, (2 * l + 1, 3 * l), [7, 13], [0, 0], [0, 0]),
        conv(3, (l + 2, 7), [5, 4], [1, 0], [0, 1]),
        conv(1, (3, 4), [3, 3], [0, 0], [0, 0]),
        conv(2, (l, l), [3, 37], [2, 1], [0, 2]),
    ]
}

/// Blocks of all tiles, of one, of few; every division of the work.
fn schedules(p: &ConvProblem, outputs: usize, words: Option<Words>, lanes: usize) -> Vec<(usize, ConvSchedule)> {
    let with = |tile_rows, tile_columns, block, split| ConvSchedule {
        engine: ConvEngine::Winograd { outputs, tile_rows, tile_columns, words },
        block,
        split,
        ..ConvSchedule::winograd(p, outputs, words, lanes)
    };
    vec![
        (1, ConvSchedule::winograd(p, outputs, words, lanes)),
        (2, with(1, 1, 1, Split::Rows)),
        (3, with(2, 3, 2, Split::Rows)),
        (2, with(99, 99, 1, Split::Panels)),
        (3, with(3, 2, 9, Split::Panels)),
    ]
}

/// For each output the absolute terms that its rounding errors are relative to, `Σ |Aᵀ|(|G||g||Gᵀ| ⊙ |Bᵀ||d||B|)|A|`, computed from the
/// matrices, and the roundings on the way from an element of a patch to the output: of the input's transform (one a dim
/// for m = 2, at most three for m = 4), the filter's one, a product and a sum for each channel, of the output's transform
/// (two a dim, three).
fn terms(p: &ConvProblem, m: &Matrices, x: &[f32], w: &[f32]) -> (Vec<f64>, usize) {
    let (n, o) = (m.points(), m.outputs);
    let absolute = |left: &[f64], columns: usize, at: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        let rows = left.len() / columns;
        let of = |i: usize, j: usize| -> f64 {
            let pairs = (0..columns).flat_map(|k| (0..columns).map(move |l| (k, l)));
            pairs.map(|(k, l)| (left[i * columns + k] * left[j * columns + l]).abs() * at(k, l)).sum()
        };
        (0..rows * rows).map(|e| of(e / rows, e % rows)).collect()
    };
    let ([h, wd], [oh, ow]) = ([p.in_spatial[0], p.in_spatial[1]], [p.out_spatial[0], p.out_spatial[1]]);
    let mut terms = vec![0.0; p.batch * p.out_channels * oh * ow];
    let filters: Vec<Vec<f64>> =
        w.chunks_exact(9).map(|g| absolute(m.weights, 3, &|k, l| f64::from(g[3 * k + l]).abs())).collect();
    for (item, ty, tx) in (0..p.batch)
        .flat_map(|n| (0..oh).step_by(o).map(move |y| (n, y)))
        .flat_map(|(n, y)| (0..ow).step_by(o).map(move |x| (n, y, x)))
    {
        let patches: Vec<Vec<f64>> = (0..p.in_channels)
            .map(|channel| {
                absolute(m.input, n, &|r, s| {
                    let y = (ty + r).checked_sub(p.pad_begin[0]).filter(|y| *y < h);
                    let x_at = (tx + s).checked_sub(p.pad_begin[1]).filter(|x| *x < wd);
                    let (Some(y), Some(x_at)) = (y, x_at) else { return 0.0 };
                    f64::from(x[((item * p.in_channels + channel) * h + y) * wd + x_at]).abs()
                })
            })
            .collect();
        for output in 0..p.out_channels {
            let mut sums = vec![0.0; n * n];
            for (channel, patch) in patches.iter().enumerate() {
                let filter = &filters[output * p.in_channels + channel];
                sums.iter_mut().zip(patch.iter().zip(filter)).for_each(|(sum, (d, g))| *sum += d * g);
            }
            let of_tile = absolute(m.output, n, &|r, s| sums[r * n + s]);
            for (r, s) in (0..o.min(oh - ty)).flat_map(|r| (0..o.min(ow - tx)).map(move |s| (r, s))) {
                terms[((item * p.out_channels + output) * oh + ty + r) * ow + tx + s] = of_tile[r * o + s];
            }
        }
    }
    let transforms = if o == 2 { 2 + 1 + 4 } else { 6 + 1 + 6 };
    (terms, p.in_channels + 1 + transforms)
}

/// Asserts that `got` is `want` but for `steps` roundings relative to `size`, and where factors are narrowed one of each.
#[track_caller]
fn assert_within(got: f32, want: f64, steps: usize, size: f64, words: Option<Words>, what: &dyn std::fmt::Display) {
    let unit = f64::from(f32::EPSILON) / 2.0;
    let narrowed = if words.is_some() { 2.0 * 2f64.powi(-8) + 2f64.powi(-16) } else { 0.0 };
    let bound = (steps as f64 * unit / (1.0 - steps as f64 * unit) + narrowed) * size;
    assert!((f64::from(got) - want).abs() <= bound, "{what}: got {got}, want {want} ± {bound:e}");
}

fn check(transform: impl Fn(&mut ConvProblem, Isa) -> Made) {
    for isa in isas() {
        let pairs = (isa == Isa::Avx512 && WordUnit::bf16().is_some()).then_some((2, Some(Words::Bf16)));
        for (m, words) in [(2, None), (4, None)].into_iter().chain(pairs) {
            let m = matrices(m).expect("there are such");
            for mut p in problems(isa.lanes_f32()) {
                let made = transform(&mut p, isa);
                let (x, w, y) = sizes(&p);
                let (x, w) = (values(x, 1), values(w, 2));
                let want = expected(&p, &x, &w, y);
                let (terms, steps) = terms(&p, m, &x, &w);
                let schedules = schedules(&p, m.outputs, words, isa.lanes_f32());
                let extras: Vec<*mut u8> = made.extras.iter().map(|b| b.as_ptr()).collect();
                let got = run_scheduled(&p, isa, &schedules, &x, &w, (&extras, made.hook), (&[], None));
                for (i, got) in got.iter().enumerate() {
                    let (value, scale) = (made.finish)(i, want[i].0);
                    let what = format!("{isa} F({}) {words:?} {p}", m.outputs);
                    assert_within(*got, value, steps + 4, (terms[i] + 3.0) * scale, words, &what);
                }
            }
        }
    }
}

/// What an epilogue reads, and what it makes of an exact sum: the value, and by how much it magnifies errors.
struct Made {
    extras: Vec<crate::cpu::memory::Buffer>,
    hook: Option<EpilogueFn>,
    finish: Box<dyn Fn(usize, f64) -> (f64, f64)>,
}

#[test]
fn sums() {
    check(|_, _| Made { extras: vec![], hook: None, finish: Box::new(|_, sum| (sum, 1.0)) });
}

#[test]
fn direct_epilogue() {
    check(|p, isa| {
        let (_, _, y) = sizes(p);
        let (bias, residual) = (values(p.out_channels, 3), values(y, 4));
        // The residual has a halo of its own.
        let mut like = p.clone();
        like.out_halo = vec![2, 2];
        like.out_batch_stride =
            ConvProblem::blocked_len(p.out_channels, &p.out_spatial, &like.out_halo, isa.lanes_f32());
        let extras = vec![buffer(&bias), blocked(&like, false, &residual, isa)];
        p.epilogue = Epilogue::Direct {
            bias: Some(Bias::PerColumn),
            residual: Some(Operand::Full { halo: like.out_halo, batch_stride: like.out_batch_stride }),
            activation: Activation::Clamp(-0.25, 1.0),
        };
        let (channels, pixels) = (p.out_channels, p.out_spatial.iter().product::<usize>());
        let finish = move |i: usize, sum: f64| {
            let added = sum + f64::from(bias[i / pixels % channels]) + f64::from(residual[i]);
            (added.clamp(-0.25, 1.0), 1.0)
        };
        Made { extras, hook: None, finish: Box::new(finish) }
    });
}

/// out = acc * channel scale + full
unsafe extern "C" fn hook(acc: *const View2, rows: i64, cols: i64, extras: *const View2, outs: *const View2) {
    // SAFETY: the driver's views.
    unsafe {
        let at = |v: &View2, i: i64, j: i64| v.ptr.cast::<f32>().offset((i * v.row + j * v.col) as isize);
        let (acc, extras, out) = (&*acc, std::slice::from_raw_parts(extras, 2), &*outs);
        for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
            *at(out, i, j) = *at(acc, i, j) * *at(&extras[0], i, j) + *at(&extras[1], i, j);
        }
    }
}

#[test]
fn hooked_epilogue() {
    check(|p, isa| {
        let (_, _, y) = sizes(p);
        let (scale, full) = (values(p.out_channels, 3), values(y, 4));
        let extras = vec![buffer(&scale), blocked(p, false, &full, isa)];
        let operand = Operand::Full { halo: p.out_halo.clone(), batch_stride: p.out_batch_stride };
        p.epilogue = Epilogue::Hook {
            extras: vec![Operand::PerColumn, operand.clone()],
            outs: vec![operand],
            element_bytes: vec![4; 3],
        };
        let (channels, pixels) = (p.out_channels, p.out_spatial.iter().product::<usize>());
        let finish =
            move |i: usize, sum: f64| (sum * f64::from(scale[i / pixels % channels]) + f64::from(full[i]), 1.0);
        Made { extras, hook: Some(hook), finish: Box::new(finish) }
    });
}

/// The mean error, on channels as wide as networks have them: F(2×2) has less than the direct sum, whose chains are longer.
#[test]
fn f2_is_more_exact_than_the_direct_sum() {
    let isa = Isa::detect();
    let (one, kernel) = ([1, 1], [3, 3]);
    let p = problem(ConvForm::Forward, 1, (64, 32), 1, &[12, 12], &kernel, &one, &one, (&one, &one), isa.lanes_f32());
    let (x, w, y) = sizes(&p);
    let (x, w) = (values(x, 1), values(w, 2));
    let want = expected(&p, &x, &w, y);
    let error = |schedule: ConvSchedule| {
        let got = run_scheduled(&p, isa, &[(1, schedule)], &x, &w, (&[], None), (&[], None));
        let squares: f64 = got.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want.0).powi(2)).sum();
        (squares / y as f64).sqrt()
    };
    let direct = error(ConvSchedule::choose(&p, isa.lanes_f32()));
    let [f2, f4] = [2, 4].map(|m| error(ConvSchedule::winograd(&p, m, None, isa.lanes_f32())));
    assert!(f2 < direct, "{f2:e}, direct {direct:e}");
    // measured 3 to 5 times
    assert!(f4 < 8.0 * direct, "{f4:e}, direct {direct:e}");
}

#[test]
fn what_cannot_be_is_an_error() {
    let isa = Isa::Portable;
    let (one, two, kernel) = ([1, 1], [2, 2], [3, 3]);
    let good = problem(ConvForm::Forward, 1, (8, 8), 1, &[6, 6], &kernel, &one, &one, (&one, &one), 8);
    let strided = problem(ConvForm::Forward, 1, (8, 8), 1, &[6, 6], &kernel, &two, &one, (&one, &one), 8);
    let schedule = ConvSchedule::winograd(&good, 2, None, 8);
    assert!(ConvPlan::new(&good, &schedule, isa).is_ok());
    assert!(matches!(ConvPlan::new(&strided, &schedule, isa), Err(DriverError::Unsupported(_))));
    // pairs of bf16 are for AVX-512
    for (outputs, words) in [(3, None), (2, Some(Words::Bf16))] {
        let engine = ConvEngine::Winograd { outputs, tile_rows: 1, tile_columns: 1, words };
        let other = ConvSchedule { engine, ..schedule.clone() };
        assert!(matches!(ConvPlan::new(&good, &other, isa), Err(DriverError::Unsupported(_))));
    }
}
