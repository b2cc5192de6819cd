use super::*;
use crate::cpu::drivers::testing::{assert_close, buffer, integer, integers, rounded, values};
use crate::cpu::drivers::{DriverError, PackPlan};
use crate::cpu::memory::Buffer;
use egret_program::driver::{
    Activation, Bias, Epilogue, GemmProblem, GemmSchedule, MatrixForm, Operand, PackForm, PackProblem, Products, Words,
};
use egret_simd::Isa;
use egret_simd::words::WordUnit;

const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (1, 100, 37), (3, 33, 70), (33, 257, 130), (64, 32, 64), (29, 65, 33), (100, 70, 300)];

/// `k x n` of these strides, packed.
fn packed(words: Words, b: &[f32], (k, n): (usize, usize), (row, col): (usize, usize)) -> Buffer {
    let form = PackForm::Columns { products: Products::Words(words), count: 1, matrix_stride: 0, k, n, row, col };
    let pack = PackPlan::new(&PackProblem { lanes: 16, form }, Isa::Avx512).unwrap();
    let to = Buffer::floats(pack.packed_len()).unwrap();
    let from = buffer(b);
    // SAFETY: the extents are those of the problem.
    unsafe { pack.run(from.as_ptr(), to.as_ptr(), &Team::new(2)) };
    to
}

fn run(words: Words, problem: &GemmProblem, (a, b): (&Buffer, &Buffer), extras: &[*mut u8], c_len: usize) -> Vec<f32> {
    let mut results: Vec<Vec<f32>> = vec![];
    for threads in [1, 2, 3] {
        let mut schedule = GemmSchedule::words(problem, words, 16);
        if threads == 3 {
            schedule.m_block = 7;
        }
        let plan = GemmPlan::new(problem, &schedule, Isa::Avx512).unwrap();
        let team = Team::new(threads);
        let scratch = ScratchPool::new(team.size(), plan.scratch()).unwrap();
        let mut c = Buffer::floats(c_len).unwrap();
        c.as_f32_mut().fill(7.0);
        let outs = [c.as_ptr()];
        let args = GemmArgs {
            a: a.as_ptr(),
            b: b.as_ptr(),
            c: c.as_ptr(),
            extras,
            outs: &outs,
            hook: None,
            finisher: None,
            finisher_extras: &[],
        };
        // SAFETY: the buffers have the extents of the problem.
        unsafe { plan.run(&args, &team, &scratch) };
        results.push(c.as_f32().to_vec());
    }
    let bits = |r: &Vec<f32>| r.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    assert!(results.iter().all(|r| bits(r) == bits(&results[0])), "equal bits for any team");
    results.swap_remove(0)
}

/// Against exact sums over rounded operands: row-major and transposed A, B and C, with bias, residual and activation.
#[test]
fn products() {
    if WordUnit::bf16().is_none() {
        return println!("skipped: this processor has no products of bf16");
    }
    for (m, n, k) in SHAPES {
        let (a, b) = (rounded(&values(m * k, 1)), rounded(&values(k * n, 2)));
        let (bias, residual) = (values(n, 3), values(m * n, 4));
        for (transposed_a, transposed_b, transposed_c) in
            [(false, false, false), (true, false, false), (false, true, false), (false, false, true)]
        {
            let mut p = GemmProblem { b: MatrixForm::Packed, ..GemmProblem::plain(m, n, k) };
            if transposed_a {
                (p.a_row, p.a_col) = (1, m);
            }
            if transposed_c {
                (p.c_row, p.c_col) = (1, m);
            } else {
                p.epilogue = Epilogue::Direct {
                    bias: Some(Bias::PerColumn),
                    residual: Some(Operand::Full { halo: vec![], batch_stride: 0 }),
                    activation: Activation::Relu,
                };
            }
            let strides = if transposed_b { (1, k) } else { (n, 1) };
            let weights = packed(Words::Bf16, &b, (k, n), strides);
            let (a_buffer, bias_buffer, residual_buffer) = (buffer(&a), buffer(&bias), buffer(&residual));
            let extras = [bias_buffer.as_ptr(), residual_buffer.as_ptr()];
            let extras: &[*mut u8] = if transposed_c { &[] } else { &extras };
            let got = run(Words::Bf16, &p, (&a_buffer, &weights), extras, m * n);
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let product =
                    |l: usize| f64::from(a[i * p.a_row + l * p.a_col]) * f64::from(b[l * strides.0 + j * strides.1]);
                let (sum, size) = (0..k).fold((0.0, 0.0), |(s, t), l| (s + product(l), t + product(l).abs()));
                let added = f64::from(bias[j]) + f64::from(residual[i * n + j]);
                let want = if transposed_c { sum } else { (sum + added).max(0.0) };
                assert_close(got[i * p.c_row + j * p.c_col], want, k, size + 3.0, &p);
            }
        }
    }
}

/// Exact sums of bytes from three least numbers, the extremes too, which a bias may wrap.
#[test]
fn products_of_bytes() {
    if WordUnit::bytes().is_none() {
        return println!("skipped: this processor has no products of bytes");
    }
    for ((m, n, k), low) in SHAPES.into_iter().flat_map(|shape| [-128, 0, -37].map(|low| (shape, low))) {
        let (mut a, mut b) = (integers(m * k, 1, (low, low + 255)), integers(k * n, 2, (-128, 127)));
        a[0] = f32::from_bits((low + 255) as u32);
        b[0] = f32::from_bits(-128i32 as u32);
        let (bias, residual) = (integers(n, 3, (i32::MAX - 9, i32::MAX - 1)), integers(m * n, 4, (-99, 99)));
        for (transposed_a, transposed_b) in [(false, false), (true, false), (false, true)] {
            let mut p = GemmProblem { b: MatrixForm::Packed, ..GemmProblem::plain(m, n, k) };
            if transposed_a {
                (p.a_row, p.a_col) = (1, m);
            }
            p.epilogue = Epilogue::Direct {
                bias: Some(Bias::PerColumn),
                residual: Some(Operand::Full { halo: vec![], batch_stride: 0 }),
                activation: Activation::None,
            };
            let strides = if transposed_b { (1, k) } else { (n, 1) };
            let words = Words::Bytes { low };
            let weights = packed(words, &b, (k, n), strides);
            let (a_buffer, bias_buffer, residual_buffer) = (buffer(&a), buffer(&bias), buffer(&residual));
            let extras = [bias_buffer.as_ptr(), residual_buffer.as_ptr()];
            let got = run(words, &p, (&a_buffer, &weights), &extras, m * n);
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let product =
                    |l: usize| integer(a[i * p.a_row + l * p.a_col]) * integer(b[l * strides.0 + j * strides.1]);
                let added = integer(bias[j]).wrapping_add(integer(residual[i * n + j]));
                let want = (0..k).map(product).fold(added, i32::wrapping_add);
                assert_eq!(integer(got[i * n + j]), want, "{p} from {low}: {i} {j}");
            }
        }
    }
}

#[test]
fn what_cannot_be_is_an_error() {
    let p = GemmProblem::plain(4, 4, 4);
    let schedule = GemmSchedule::words(&p, Words::Bf16, Isa::detect().lanes_f32());
    let error = GemmPlan::new(&p, &schedule, Isa::detect()).unwrap_err();
    assert!(matches!(error, DriverError::Unsupported(_)), "{error}");
    if WordUnit::bytes().is_some() {
        let epilogue = Epilogue::Direct { bias: None, residual: None, activation: Activation::Relu };
        let clamped = GemmProblem { b: MatrixForm::Packed, epilogue, ..p };
        let schedule = GemmSchedule::words(&clamped, Words::Bytes { low: 0 }, 16);
        let error = GemmPlan::new(&clamped, &schedule, Isa::Avx512).unwrap_err();
        assert!(matches!(error, DriverError::Unsupported(_)), "{error}");
    }
}
