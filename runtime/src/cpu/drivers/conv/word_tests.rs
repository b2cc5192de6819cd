use super::tests::{blocked, expected, problem, run_scheduled, sizes};
use super::*;
use crate::cpu::drivers::testing::{assert_close, buffer, integer, integers, rounded, values};
use egret_program::driver::hook::View2;
use egret_program::driver::{Activation, Bias, Epilogue, Operand, Split, Words};
use egret_simd::words::WordUnit;

fn problems() -> Vec<ConvProblem> {
    let conv =
        |batch, channels, spatial: &[usize], kernel: &[usize], stride: &[usize], begin: &[usize], end: &[usize]| {
            let dilation = vec![1; spatial.len()];
            problem(ConvForm::Forward, batch, channels, 1, spatial, kernel, stride, &dilation, (begin, end), 16)
        };
    vec![
        conv(1, (64, 64), &[9, 9], &[1, 1], &[1, 1], &[0, 0], &[0, 0]),
        conv(2, (33, 70), &[7, 7], &[3, 3], &[1, 1], &[1, 1], &[1, 1]),
        conv(1, (16, 48), &[8, 40], &[3, 3], &[1, 1], &[1, 0], &[0, 1]),
        conv(3, (5, 19), &[9, 10], &[3, 2], &[2, 3], &[1, 0], &[0, 1]),
        conv(1, (32, 32), &[13, 70], &[1, 1], &[2, 2], &[0, 0], &[0, 0]),
        conv(1, (4, 6), &[131], &[5], &[1], &[2], &[1]),
        problem(ConvForm::Forward, 1, (40, 8), 1, &[12, 11], &[3, 3], &[1, 1], &[2, 3], (&[2, 1], &[3, 0]), 16),
    ]
}

/// What an epilogue makes of an exact sum.
type Finish = Box<dyn Fn(usize, f64) -> f64>;

/// Against exact sums over rounded operands; products of two bf16 are exact in f32.
fn check(make: impl Fn(&mut ConvProblem) -> (Vec<crate::cpu::memory::Buffer>, Option<EpilogueFn>, Finish)) {
    if WordUnit::bf16().is_none() {
        return println!("skipped: this processor has no products of bf16");
    }
    for mut p in problems() {
        let (extras, hook, finish) = make(&mut p);
        let (x, w, y) = sizes(&p);
        let (x, w) = (rounded(&values(x, 1)), rounded(&values(w, 2)));
        let want = expected(&p, &x, &w, y);
        let with = |block, split| ConvSchedule { block, split, ..ConvSchedule::words(&p, Words::Bf16, 16) };
        let schedules = [
            (1, ConvSchedule::words(&p, Words::Bf16, 16)),
            (2, with(1, Split::Rows)),
            (3, with(4, Split::Rows)),
            (2, with(2, Split::Panels)),
        ];
        let extras: Vec<*mut u8> = extras.iter().map(|b| b.as_ptr()).collect();
        let got = run_scheduled(&p, Isa::Avx512, &schedules, &x, &w, (&extras, hook), (&[], None));
        for (i, got) in got.iter().enumerate() {
            assert_close(*got, finish(i, want[i].0), 2000, want[i].1 + 3.0, &p);
        }
    }
}

#[test]
fn sums() {
    check(|_| (vec![], None, Box::new(|_, sum| sum)));
}

#[test]
fn direct_epilogue() {
    check(|p| {
        let (_, _, y) = sizes(p);
        let (bias, residual) = (values(p.out_channels, 3), values(y, 4));
        let mut like = p.clone();
        like.out_halo = vec![2; p.out_spatial.len()];
        like.out_batch_stride = ConvProblem::blocked_len(p.out_channels, &p.out_spatial, &like.out_halo, 16);
        let extras = vec![buffer(&bias), blocked(&like, false, &residual, Isa::Avx512)];
        p.epilogue = Epilogue::Direct {
            bias: Some(Bias::PerColumn),
            residual: Some(Operand::Full { halo: like.out_halo, batch_stride: like.out_batch_stride }),
            activation: Activation::Clamp(-0.25, 1.0),
        };
        let (channels, pixels) = (p.out_channels, p.out_spatial.iter().product::<usize>());
        let finish = move |i: usize, sum: f64| {
            (sum + f64::from(bias[i / pixels % channels]) + f64::from(residual[i])).clamp(-0.25, 1.0)
        };
        (extras, None, Box::new(finish))
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
    check(|p| {
        let (_, _, y) = sizes(p);
        let (scale, full) = (values(p.out_channels, 3), values(y, 4));
        let extras = vec![buffer(&scale), blocked(p, false, &full, Isa::Avx512)];
        let operand = Operand::Full { halo: p.out_halo.clone(), batch_stride: p.out_batch_stride };
        p.epilogue = Epilogue::Hook {
            extras: vec![Operand::PerColumn, operand.clone()],
            outs: vec![operand],
            element_bytes: vec![4; 3],
        };
        let (channels, pixels) = (p.out_channels, p.out_spatial.iter().product::<usize>());
        let finish = move |i: usize, sum: f64| sum * f64::from(scale[i / pixels % channels]) + f64::from(full[i]);
        (extras, Some(hook), Box::new(finish))
    });
}

/// Exact sums of bytes from two least numbers, with a bias.
#[test]
fn sums_of_bytes() {
    if WordUnit::bytes().is_none() {
        return println!("skipped: this processor has no products of bytes");
    }
    for (mut p, low) in problems().into_iter().flat_map(|p| [(p.clone(), -128), (p, -3)]) {
        let (x, w, y) = sizes(&p);
        let (x, w) = (integers(x, 1, (low, low + 255)), integers(w, 2, (-128, 127)));
        let as_numbers = |bits: &[f32]| bits.iter().map(|x| integer(*x) as f32).collect::<Vec<f32>>();
        let want = expected(&p, &as_numbers(&x), &as_numbers(&w), y);
        let bias = integers(p.out_channels, 3, (-1000, 1000));
        p.epilogue = Epilogue::Direct { bias: Some(Bias::PerColumn), residual: None, activation: Activation::None };
        let words = Words::Bytes { low };
        let with = |block, split| ConvSchedule { block, split, ..ConvSchedule::words(&p, words, 16) };
        let schedules = [
            (1, ConvSchedule::words(&p, words, 16)),
            (2, with(1, Split::Rows)),
            (3, with(4, Split::Rows)),
            (2, with(2, Split::Panels)),
        ];
        let bias_buffer = buffer(&bias);
        let got = run_scheduled(&p, Isa::Avx512, &schedules, &x, &w, (&[bias_buffer.as_ptr()], None), (&[], None));
        let pixels: usize = p.out_spatial.iter().product();
        for (i, got) in got.iter().enumerate() {
            let want = want[i].0 as i32 + integer(bias[i / pixels % p.out_channels]);
            assert_eq!(integer(*got), want, "{p} from {low}: {i}");
        }
    }
}

#[test]
fn what_cannot_be_is_an_error() {
    let (one, kernel) = ([1, 1], [3, 3]);
    let grouped = problem(ConvForm::Forward, 1, (32, 32), 2, &[6, 6], &kernel, &one, &one, (&one, &one), 16);
    let schedule = ConvSchedule::words(&grouped, Words::Bf16, 16);
    if Isa::Avx512.is_supported() {
        assert!(matches!(ConvPlan::new(&grouped, &schedule, Isa::Avx512), Err(DriverError::Unsupported(_))));
    }
    let narrow = problem(ConvForm::Forward, 1, (8, 8), 1, &[6, 6], &kernel, &one, &one, (&one, &one), 8);
    let schedule = ConvSchedule::words(&narrow, Words::Bf16, 8);
    assert!(matches!(ConvPlan::new(&narrow, &schedule, Isa::Portable), Err(DriverError::Unsupported(_))));
}
