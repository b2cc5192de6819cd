use super::*;
use crate::cpu::drivers::testing::{assert_close, buffer, isas, values};
use crate::cpu::drivers::{PackPlan, RelayoutPlan};
use crate::cpu::memory::Buffer;
use egret_program::driver::{Direction, Epilogue, PackProblem, Prologue, RelayoutProblem};

/// A convolution by its numbers, two spatial dims or as many as the lists have.
pub(super) fn problem(
    form: ConvForm,
    batch: usize,
    channels: (usize, usize),
    groups: usize,
    spatial: &[usize],
    kernel: &[usize],
    stride: &[usize],
    dilation: &[usize],
    pads: (&[usize], &[usize]),
    lanes: usize,
) -> ConvProblem {
    let out: Vec<usize> = (0..spatial.len())
        .map(|d| {
            let padded = spatial[d] + pads.0[d] + pads.1[d];
            (padded - (kernel[d] - 1) * dilation[d] - 1) / stride[d] + 1
        })
        .collect();
    let mut p = ConvProblem {
        form,
        input: ConvInput::Blocked,
        batch,
        in_channels: channels.0,
        out_channels: channels.1,
        groups,
        in_spatial: spatial.to_vec(),
        out_spatial: out,
        kernel: kernel.to_vec(),
        stride: stride.to_vec(),
        dilation: dilation.to_vec(),
        pad_begin: pads.0.to_vec(),
        in_halo: vec![0; spatial.len()],
        out_halo: vec![0; spatial.len()],
        in_batch_stride: 0,
        out_batch_stride: 0,
        prologue: None,
        epilogue: Epilogue::none(),
    };
    // More than needed where it is read, something where it is not.
    let halo: Vec<usize> = p.read_halo().iter().enumerate().map(|(d, h)| h + d % 2).collect();
    if form == ConvForm::InputGradient {
        (p.out_halo, p.in_halo) = (halo, vec![1; spatial.len()]);
    } else {
        (p.in_halo, p.out_halo) = (halo, vec![1; spatial.len()]);
    }
    p.in_batch_stride = ConvProblem::blocked_len(channels.0, spatial, &p.in_halo, lanes);
    p.out_batch_stride = ConvProblem::blocked_len(channels.1, &p.out_spatial, &p.out_halo, lanes);
    p
}

pub(super) fn forms(form: ConvForm, l: usize) -> Vec<ConvProblem> {
    let one = |n: usize| vec![1; n];
    vec![
        problem(form, 2, (5, 19), 1, &[9, 10], &[3, 3], &[1, 1], &[1, 1], (&[1, 1], &[1, 1]), l),
        problem(form, 1, (33, 40), 1, &[7, 7], &[3, 3], &[1, 1], &[1, 1], (&[1, 1], &[1, 1]), l),
        problem(form, 1, (16, 70), 1, &[13, 29], &[1, 1], &[1, 1], &[1, 1], (&[0, 0], &[0, 0]), l),
        problem(form, 3, (17, 3), 1, &[8, 15], &[3, 2], &[2, 3], &[1, 1], (&[1, 0], &[0, 1]), l),
        problem(form, 1, (8, 8), 1, &[12, 11], &[3, 3], &[2, 2], &[2, 3], (&[2, 1], &[3, 0]), l),
        problem(form, 2, (7, 9), 1, &[6, 6], &[1, 1], &[2, 2], &[1, 1], (&[0, 0], &[0, 0]), l),
        problem(form, 1, (4, 6), 1, &[31], &[5], &[2], &[1], (&[2], &[1]), l),
        problem(form, 1, (3, 5), 1, &[4, 5, 6], &[2, 3, 3], &[1, 2, 1], &one(3), (&[0, 1, 1], &[1, 1, 0]), l),
        problem(form, 2, (2 * l, 4 * l), 2, &[7, 9], &[3, 3], &[1, 1], &[1, 1], (&[1, 1], &[1, 1]), l),
        problem(form, 2, (3 * l, 4 * l + 4), 4, &[9, 10], &[3, 3], &[1, 1], &[1, 1], (&[1, 1], &[1, 1]), l),
        problem(form, 1, (6 * l - 6, 3 * l - 3), 3, &[8, 15], &[3, 2], &[2, 3], &[1, 1], (&[1, 0], &[0, 1]), l),
        problem(form, 1, (l + 3, 2 * l + 6), l + 3, &[7, 6], &[3, 3], &[1, 1], &[1, 1], (&[1, 1], &[1, 1]), l),
        problem(form, 2, (l + 3, l + 3), l + 3, &[9, 16], &[3, 3], &[1, 1], &[1, 1], (&[1, 1], &[1, 1]), l),
        problem(form, 1, (l + 3, l + 3), l + 3, &[11, 8], &[3, 5], &[2, 2], &[1, 1], (&[1, 2], &[1, 2]), l),
    ]
}

fn index(position: &[usize], extents: &[usize]) -> usize {
    position.iter().zip(extents).fold(0, |i, (p, e)| i * e + p)
}

fn positions(extents: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for &e in extents {
        all = all.into_iter().flat_map(|p| (0..e).map(move |i| [p.clone(), vec![i]].concat())).collect();
    }
    all
}

/// Calls `f(x index, w index, y index)` for every product of the convolution, row-major without halos.
fn products(p: &ConvProblem, mut f: impl FnMut(usize, usize, usize)) {
    let (ig, og) = (p.in_channels / p.groups, p.out_channels / p.groups);
    let (xs, ys): (usize, usize) = (p.in_spatial.iter().product(), p.out_spatial.iter().product());
    let taps = positions(&p.kernel);
    for n in 0..p.batch {
        for o in 0..p.out_channels {
            for (yi, y) in positions(&p.out_spatial).iter().enumerate() {
                for (ti, tap) in taps.iter().enumerate() {
                    let x: Vec<isize> = (0..y.len())
                        .map(|d| (y[d] * p.stride[d] + tap[d] * p.dilation[d]) as isize - p.pad_begin[d] as isize)
                        .collect();
                    if (0..y.len()).any(|d| x[d] < 0 || x[d] >= p.in_spatial[d] as isize) {
                        continue;
                    }
                    let x: Vec<usize> = x.iter().map(|&v| v as usize).collect();
                    for i in 0..ig {
                        let channel = o / og * ig + i;
                        let xi = (n * p.in_channels + channel) * xs + index(&x, &p.in_spatial);
                        let wi = (o * ig + i) * taps.len() + ti;
                        f(xi, wi, (n * p.out_channels + o) * ys + yi);
                    }
                }
            }
        }
    }
}

fn relayout(p: &ConvProblem, of_x: bool, direction: Direction, lanes: usize) -> RelayoutProblem {
    let (channels, spatial, halo, stride) = if of_x {
        let channels = match &p.prologue {
            Some(Prologue::Taken { of, .. }) => *of as usize,
            _ => p.in_channels,
        };
        (channels, &p.in_spatial, &p.in_halo, p.in_batch_stride)
    } else {
        (p.out_channels, &p.out_spatial, &p.out_halo, p.out_batch_stride)
    };
    RelayoutProblem {
        direction,
        lanes,
        batch: p.batch,
        channels,
        spatial: spatial.clone(),
        halo: halo.clone(),
        blocked_batch_stride: stride,
        row_major_batch_stride: channels * spatial.iter().product::<usize>(),
    }
}

pub(super) fn blocked(p: &ConvProblem, of_x: bool, src: &[f32], isa: Isa) -> Buffer {
    let r = relayout(p, of_x, Direction::ToBlocked, isa.lanes_f32());
    let dst = Buffer::floats(p.batch * r.blocked_batch_stride).unwrap();
    let src = buffer(src);
    unsafe {
        RelayoutPlan::new(&r, isa).unwrap().run(src.as_ptr(), dst.as_ptr(), &Team::new(1));
    }
    dst
}

/// Runs and gives the result row-major, after checking that all threads give the same bits and absent lanes are zero.
pub(super) fn run(
    p: &ConvProblem,
    isa: Isa,
    x: &[f32],
    w: &[f32],
    extras: &[*mut u8],
    hook: Option<EpilogueFn>,
) -> Vec<f32> {
    run_mapped(p, isa, x, w, (extras, hook), (&[], None))
}

/// [`run`] with the operands and the hook of a prologue.
pub(super) fn run_mapped(
    p: &ConvProblem,
    isa: Isa,
    x: &[f32],
    w: &[f32],
    epilogue: (&[*mut u8], Option<EpilogueFn>),
    prologue: (&[*mut u8], Option<EpilogueFn>),
) -> Vec<f32> {
    let schedules = [(1, 0), (2, 1), (3, 2), (2, 3)].map(|(threads, split)| {
        let mut schedule = ConvSchedule::choose(p, isa.lanes_f32());
        if split > 0 {
            schedule.block = split;
        }
        if split == 3 {
            schedule.split = egret_program::driver::Split::Panels;
        }
        (threads, schedule)
    });
    run_scheduled(p, isa, &schedules, x, w, epilogue, prologue)
}

/// [`run_mapped`] with the threads and schedules that are given.
pub(super) fn run_scheduled(
    p: &ConvProblem,
    isa: Isa,
    schedules: &[(usize, ConvSchedule)],
    x: &[f32],
    w: &[f32],
    (extras, hook): (&[*mut u8], Option<EpilogueFn>),
    prologue: (&[*mut u8], Option<EpilogueFn>),
) -> Vec<f32> {
    let lanes = isa.lanes_f32();
    let of_x = p.form == ConvForm::InputGradient;
    let mut results: Vec<Vec<f32>> = vec![];
    for (threads, schedule) in schedules.iter().cloned() {
        let plan = ConvPlan::new(p, &schedule, isa).unwrap();
        let team = Team::new(threads);
        let scratch = ScratchPool::new(team.size(), plan.scratch()).unwrap();
        let pack = PackPlan::new(&PackProblem::for_conv(p, &schedule), isa).unwrap();
        let packed = Buffer::floats(pack.packed_len()).unwrap();
        let weights = buffer(w);
        unsafe { pack.run(weights.as_ptr(), packed.as_ptr(), &team) };
        let input = if p.input == ConvInput::Image { buffer(x) } else { blocked(p, !of_x, x, isa) };
        let stride = if of_x { p.in_batch_stride } else { p.out_batch_stride };
        let mut out = Buffer::floats(p.batch * stride).unwrap();
        out.as_f32_mut().fill(7.0);
        let args = ConvArgs {
            input: input.as_ptr(),
            weights: packed.as_ptr(),
            output: out.as_ptr(),
            extras,
            outs: &[out.as_ptr()],
            hook,
            prologue_extras: prologue.0,
            prologue: prologue.1,
        };
        unsafe { plan.run(&args, &team, &scratch) };
        let back = relayout(p, of_x, Direction::ToRowMajor, lanes);
        let result = Buffer::floats(p.batch * back.row_major_batch_stride).unwrap();
        unsafe {
            RelayoutPlan::new(&back, isa).unwrap().run(out.as_ptr(), result.as_ptr(), &team);
        }
        check_absent_lanes(&back, out.as_f32());
        results.push(result.as_f32().to_vec());
    }
    for r in &results[1..] {
        assert!(r.iter().zip(&results[0]).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa} {p}");
    }
    results.swap_remove(0)
}

/// Inside the halo, lanes beyond the channels are zero; the halo itself was not touched.
fn check_absent_lanes(r: &RelayoutProblem, data: &[f32]) {
    let extents: Vec<usize> = r.spatial.iter().zip(&r.halo).map(|(s, h)| s + 2 * h).collect();
    let area: usize = extents.iter().product();
    for (i, x) in data.iter().enumerate() {
        let (block, rest) = (i % r.blocked_batch_stride / (area * r.lanes), i % (area * r.lanes));
        let (pixel, lane) = (rest / r.lanes, rest % r.lanes);
        let mut pixel = pixel;
        let mut inside = true;
        for d in (0..extents.len()).rev() {
            let at = pixel % extents[d];
            pixel /= extents[d];
            inside &= at >= r.halo[d] && at < r.halo[d] + r.spatial[d];
        }
        if !inside {
            assert_eq!(*x, 7.0, "halo written");
        } else if block * r.lanes + lane >= r.channels {
            assert_eq!(*x, 0.0, "absent lane");
        }
    }
}

/// Exact sums and the sums of absolute values.
pub(super) fn expected(p: &ConvProblem, a: &[f32], b: &[f32], n: usize) -> Vec<(f64, f64)> {
    let mut sums = vec![(0.0, 0.0); n];
    products(p, |x, w, y| {
        let (to, v) = match p.form {
            ConvForm::Forward => (y, a[x] as f64 * b[w] as f64),
            ConvForm::InputGradient => (x, a[y] as f64 * b[w] as f64),
            ConvForm::WeightGradient => (w, a[x] as f64 * b[y] as f64),
        };
        sums[to].0 += v;
        sums[to].1 += v.abs();
    });
    sums
}

pub(super) fn sizes(p: &ConvProblem) -> (usize, usize, usize) {
    let (xs, ys): (usize, usize) = (p.in_spatial.iter().product(), p.out_spatial.iter().product());
    let taps: usize = p.kernel.iter().product();
    (p.batch * p.in_channels * xs, p.out_channels * (p.in_channels / p.groups) * taps, p.batch * p.out_channels * ys)
}

/// Whether no two groups share a vector, or each channel is a group.
fn whole_groups(p: &ConvProblem, lanes: usize) -> bool {
    let of_group = |channels: usize| (channels / p.groups).is_multiple_of(lanes);
    p.groups == 1 || p.is_depthwise() || of_group(p.in_channels) && of_group(p.out_channels)
}

fn check_form(form: ConvForm) {
    for isa in isas() {
        let lanes = isa.lanes_f32();
        let driven = |p: &ConvProblem| form != ConvForm::WeightGradient || whole_groups(p, lanes);
        for p in forms(form, lanes).into_iter().filter(driven) {
            let (x, w, y) = sizes(&p);
            let (a, b, n) = match form {
                ConvForm::Forward => (x, w, y),
                ConvForm::InputGradient => (y, w, x),
                ConvForm::WeightGradient => (x, y, w),
            };
            let (a, b) = (values(a, 1), values(b, 2));
            let want = expected(&p, &a, &b, n);
            // For the weight gradient `run` takes the gradient of y where the others take weights.
            let got = if form == ConvForm::WeightGradient {
                run_weight_gradient(&p, isa, &a, &b, n)
            } else {
                run(&p, isa, &a, &b, &[], None)
            };
            for (g, (sum, size)) in got.iter().zip(&want) {
                assert_close(*g, *sum, 2000, *size, &format_args!("{isa} {p}"));
            }
        }
    }
}

fn run_weight_gradient(p: &ConvProblem, isa: Isa, x: &[f32], dy: &[f32], n: usize) -> Vec<f32> {
    let mut results: Vec<Vec<f32>> = vec![];
    for threads in [1, 2, 3] {
        let schedule = ConvSchedule::choose(p, isa.lanes_f32());
        let plan = ConvPlan::new(p, &schedule, isa).unwrap();
        let team = Team::new(threads);
        let scratch = ScratchPool::new(team.size(), plan.scratch()).unwrap();
        let out = Buffer::floats(n).unwrap();
        let x = if p.input == ConvInput::Image { buffer(x) } else { blocked(p, true, x, isa) };
        let dy = blocked(p, false, dy, isa);
        let args = ConvArgs {
            input: x.as_ptr(),
            weights: dy.as_ptr(),
            output: out.as_ptr(),
            extras: &[],
            outs: &[],
            hook: None,
            prologue_extras: &[],
            prologue: None,
        };
        unsafe { plan.run(&args, &team, &scratch) };
        results.push(out.as_f32().to_vec());
    }
    assert!(results.iter().all(|r| *r == results[0]));
    results.swap_remove(0)
}

#[test]
fn forward() {
    check_form(ConvForm::Forward);
}

#[test]
fn input_gradient() {
    check_form(ConvForm::InputGradient);
}

#[test]
fn weight_gradient() {
    check_form(ConvForm::WeightGradient);
}

#[test]
fn image() {
    for isa in isas() {
        let l = isa.lanes_f32();
        for mut p in [
            problem(ConvForm::Forward, 2, (3, 40), 1, &[23, 19], &[7, 7], &[2, 2], &[1, 1], (&[3, 3], &[3, 3]), l),
            problem(ConvForm::Forward, 1, (1, 6), 1, &[28, 28], &[5, 5], &[1, 1], &[1, 1], (&[2, 0], &[1, 3]), l),
            problem(ConvForm::Forward, 1, (3, 8), 1, &[40], &[3], &[1], &[2], (&[1], &[5]), l),
        ] {
            p.input = ConvInput::Image;
            p.in_halo.fill(0);
            p.in_batch_stride = p.in_channels * p.in_spatial.iter().product::<usize>();
            let (x, w, y) = sizes(&p);
            let (x, w) = (values(x, 1), values(w, 2));
            let want = expected(&p, &x, &w, y);
            for (g, (sum, size)) in run(&p, isa, &x, &w, &[], None).iter().zip(&want) {
                assert_close(*g, *sum, 200, *size, &format_args!("{isa} {p}"));
            }
        }
    }
}

/// Weight gradients of images that no padding surrounds: one run of neighbours a row of taps, of several lengths.
#[test]
fn weight_gradient_of_an_image() {
    let form = ConvForm::WeightGradient;
    for isa in isas() {
        let l = isa.lanes_f32();
        for mut p in [
            problem(form, 3, (3, 6), 1, &[12, 13], &[5, 5], &[1, 1], &[1, 1], (&[0, 0], &[0, 0]), l),
            problem(form, 2, (1, 40), 1, &[9, 11], &[3, 3], &[1, 1], &[1, 1], (&[0, 0], &[0, 0]), l),
            problem(form, 2, (2, 19), 1, &[17, 16], &[7, 7], &[2, 3], &[1, 1], (&[0, 0], &[0, 0]), l),
            problem(form, 1, (3, 8), 1, &[14, 15], &[3, 5], &[1, 1], &[2, 2], (&[0, 0], &[0, 0]), l),
            problem(form, 2, (2, 4), 1, &[6, 40], &[2, 17], &[1, 1], &[1, 1], (&[0, 0], &[0, 0]), l),
            problem(form, 2, (3, 5), 1, &[40], &[6], &[1], &[1], (&[0], &[0]), l),
        ] {
            p.input = ConvInput::Image;
            p.in_halo.fill(0);
            p.in_batch_stride = p.in_channels * p.in_spatial.iter().product::<usize>();
            let (x, w, y) = sizes(&p);
            let (x, dy) = (values(x, 1), values(y, 2));
            let want = expected(&p, &x, &dy, w);
            for (g, (sum, size)) in run_weight_gradient(&p, isa, &x, &dy, w).iter().zip(&want) {
                assert_close(*g, *sum, 2000, *size, &format_args!("{isa} {p}"));
            }
            (p.pad_begin, p.in_spatial) = (vec![1; p.in_spatial.len()], p.in_spatial.iter().map(|n| n - 1).collect());
            let error = ConvPlan::new(&p, &ConvSchedule::choose(&p, l), isa).unwrap_err();
            assert!(matches!(error, DriverError::Unsupported(_)), "{error:?}");
        }
    }
}

/// Rows above and below all that exists are not multiplied: not even NaN in them matters.
#[test]
fn rows_outside_are_left_out() {
    for isa in isas() {
        let l = isa.lanes_f32();
        for form in [ConvForm::Forward, ConvForm::InputGradient] {
            for p in [
                problem(form, 2, (l + 2, 5), 1, &[6, 15], &[3, 3], &[1, 1], &[1, 1], (&[1, 1], &[1, 1]), l),
                problem(form, 1, (2 * l + 2, 2 * l + 2), 1, &[9, 16], &[5, 1], &[2, 1], &[1, 1], (&[2, 0], &[2, 0]), l),
                problem(form, 2, (2, 2), 2, &[5, 15], &[3, 3], &[1, 1], &[1, 1], (&[1, 1], &[1, 1]), l),
            ] {
                let of_x = form == ConvForm::Forward;
                let (x, w, y) = sizes(&p);
                let (read, written) = if of_x { (x, y) } else { (y, x) };
                let (a, w) = (values(read, 1), values(w, 2));
                let want = expected(&p, &a, &w, written);
                let schedule = ConvSchedule::choose(&p, l);
                let plan = ConvPlan::new(&p, &schedule, isa).unwrap();
                let pack = PackPlan::new(&PackProblem::for_conv(&p, &schedule), isa).unwrap();
                let (packed, weights) = (Buffer::floats(pack.packed_len()).unwrap(), buffer(&w));
                let team = Team::new(1);
                unsafe { pack.run(weights.as_ptr(), packed.as_ptr(), &team) };
                let mut input = blocked(&p, of_x, &a, isa);
                let r = relayout(&p, of_x, Direction::ToBlocked, l);
                let (rows, columns) = (r.spatial[0] + 2 * r.halo[0], r.spatial[1] + 2 * r.halo[1]);
                for (i, row) in input.as_f32_mut().chunks_mut(columns * l).enumerate() {
                    if !(r.halo[0]..r.halo[0] + r.spatial[0]).contains(&(i % rows)) {
                        row.fill(f32::NAN);
                    }
                }
                let back = relayout(&p, !of_x, Direction::ToRowMajor, l);
                let out = Buffer::floats(p.batch * back.blocked_batch_stride).unwrap();
                let args = ConvArgs {
                    input: input.as_ptr(),
                    weights: packed.as_ptr(),
                    output: out.as_ptr(),
                    extras: &[],
                    outs: &[],
                    hook: None,
                    prologue_extras: &[],
                    prologue: None,
                };
                let scratch = ScratchPool::new(1, plan.scratch()).unwrap();
                unsafe { plan.run(&args, &team, &scratch) };
                let result = Buffer::floats(written).unwrap();
                unsafe { RelayoutPlan::new(&back, isa).unwrap().run(out.as_ptr(), result.as_ptr(), &team) };
                for (g, (sum, size)) in result.as_f32().iter().zip(&want) {
                    assert_close(*g, *sum, 2000, *size, &format_args!("{isa} {p}"));
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_is_an_error() {
    let isa = Isa::Portable;
    let good = problem(ConvForm::Forward, 1, (8, 8), 1, &[6, 6], &[3, 3], &[1, 1], &[1, 1], (&[1, 1], &[1, 1]), 8);
    let schedule = ConvSchedule::choose(&good, 8);
    let error = |p: &ConvProblem| ConvPlan::new(p, &schedule, isa).unwrap_err();
    let mut p = good.clone();
    p.in_halo = vec![0, 1];
    assert_eq!(error(&p), DriverError::Halo { dim: 0, needed: 1, actual: 0 });
    let mut p = good.clone();
    (p.groups, p.form) = (2, ConvForm::WeightGradient);
    assert!(matches!(error(&p), DriverError::Unsupported(_)));
    let mut p = good.clone();
    p.groups = 3;
    assert!(matches!(error(&p), DriverError::Problem(_)));
    let mut p = good.clone();
    p.stride = vec![0, 1];
    assert!(matches!(error(&p), DriverError::Problem(_)));
    let mut wide = schedule.clone();
    wide.lanes = 16;
    assert!(matches!(ConvPlan::new(&good, &wide, isa), Err(DriverError::Isa { .. })));
}
