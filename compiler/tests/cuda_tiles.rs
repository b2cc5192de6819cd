//! Statements on tiles, on the simulator: what each does to the registers of a warp.

#[path = "support/nvrtc.rs"]
mod nvrtc;
#[path = "support/simulate.rs"]
mod simulate;

use egret_compiler::emit::cuda;
use egret_compiler::kernel::{Access, Expr, Kernel, KernelBuilder, LoopKind, MatrixKind, Memory, Space, Turn};
use egret_ir::{DType, ScalarValue, Tensor};
use simulate::{Launch, everywhere};

/// Words of a row: two rows of 16 bytes.
const WORDS: i64 = 8;

/// Copies a matrix of rows of 32 bytes to shared memory, 16 bytes a thread; rows beyond `rows` are zeros.
fn bring(k: &mut KernelBuilder, thread: &Expr, from: Memory, to: Memory, chunk: i64, rows: i64) {
    let mask = (thread / 2).less(rows);
    k.copy_async((to, thread * chunk), (from, thread * chunk), chunk as u32, Some(mask));
}

/// `c[16, 8] = a · b`: `a` is 16 rows, `b` 8 columns of as many terms as eight words have. The right matrix, and of
/// halves on demand the left one, lies the other way round: terms by rows or columns.
fn product(dtype: DType, kind: MatrixKind, transpose: bool) -> Kernel {
    let mut k = KernelBuilder::with_threads([32, 1, 1]);
    let (a, b) = (k.buffer(dtype, Access::Read), k.buffer(dtype, Access::Read));
    let c = k.buffer(kind.sum(), Access::Write);
    [a, b, c].into_iter().for_each(|buffer| k.align_buffer(buffer, 16));
    let chunk = 16 / dtype.size() as i64;
    let (left, right) = (k.scratch(dtype, 32 * chunk as usize, Space::Shared), {
        k.scratch(dtype, 32 * chunk as usize, Space::Shared)
    });
    let (rows, columns) = (k.scratch(kind.word(), 4, Space::Register), k.scratch(kind.word(), 4, Space::Register));
    let sums = k.scratch(kind.sum(), 4, Space::Register);
    k.for_(0, 32, LoopKind::Thread(0), |k, lane| {
        bring(k, &lane, a, left, chunk, 16);
        bring(k, &lane, b, right, chunk, if transpose { 16 } else { 8 });
        k.commit_copies();
        k.for_(0, 4, LoopKind::Unroll, |k, i| k.store(sums, i, Expr::constant(kind.sum(), 0.0)));
        k.wait_copies(0);
        k.barrier();
        let (row, matrix) = (k.bind(&lane % 8), k.bind(&lane / 8));
        let place = |row: Expr, half: Expr| row * (2 * chunk) + half * chunk;
        let (one, other) = (&matrix % 2, &matrix / 2);
        if transpose {
            // rows of memory are terms
            k.load_matrices((rows, 0), (left, place(&other * 8 + &row, one.clone())), Turn::Halves);
            k.load_matrices((columns, 0), (right, place(&one * 8 + &row, other)), Turn::Halves);
        } else {
            k.load_matrices((rows, 0), (left, place(&one * 8 + &row, other)), Turn::None);
            k.load_matrices((columns, 0), (right, place(row, one)), Turn::None);
        }
        k.multiply(kind, (sums, 0), (rows, 0), (columns, 0));
        for half in 0..2 {
            let at = (&lane / 4 + 8 * half) * 8 + &lane % 4 * 2;
            k.store_vector(c, at, (sums, 2 * half), 2);
        }
    });
    k.finish().unwrap().with_wide_halves()
}

fn bytes(dtype: DType, values: &[f64]) -> Vec<u8> {
    let mut tensor = Tensor::zeros(dtype, &[values.len()]);
    for (i, value) in values.iter().enumerate() {
        let float = ScalarValue::Float(*value);
        tensor.set(i, if dtype.is_float() { float } else { ScalarValue::Int(*value as i128) });
    }
    tensor.bytes().to_vec()
}

#[test]
fn products_of_matrices_are_products() {
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let value = |i: usize| ((i * 7 + i / 5) % 9) as f64 - 4.0;
    let cases = [
        (DType::BF16, MatrixKind::BF16, false),
        (DType::BF16, MatrixKind::BF16, true),
        (DType::F16, MatrixKind::F16, false),
        (DType::F16, MatrixKind::F16, true),
        (DType::I8, MatrixKind::Int8 { signed: [true, true] }, false),
        (DType::F32, MatrixKind::Tf32, false),
        (DType::F32, MatrixKind::Tf32x3, false),
    ];
    for (dtype, kind, transpose) in cases {
        let kernel = product(dtype, kind, transpose);
        let depth = WORDS as usize * 4 / dtype.size();
        let left = |m: usize, t: usize| value(m * depth + t);
        let right = |t: usize, n: usize| value(n * depth + t + 3);
        let a: Vec<f64> = (0..16 * depth)
            .map(|i| if transpose { left(i % 16, i / 16) } else { left(i / depth, i % depth) })
            .collect();
        // a row of memory has 32 bytes: of the transposed right matrix half is not read
        let b: Vec<f64> = (0..16 * depth)
            .map(|i| match transpose {
                true if i % 16 < 8 => right(i / 16, i % 16),
                false if i < 8 * depth => right(i % depth, i / depth),
                _ => 0.0,
            })
            .collect();
        let want: Vec<f64> = (0..128).map(|i| (0..depth).map(|t| left(i / 8, t) * right(t, i % 8)).sum()).collect();
        let source = cuda::emit(&kernel, &[]).unwrap();
        let module = simulate::module(nvrtc, &source);
        let buffers = [bytes(dtype, &a), bytes(dtype, &b), bytes(kind.sum(), &[0.0; 128])];
        let launch = Launch { buffers: &buffers, dims: &[], blocks: 1, sampled: None };
        for order in everywhere() {
            let (after, _) =
                simulate::run(&module, &source, &launch, order).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
            assert_eq!(after[2], bytes(kind.sum(), &want), "{kind:?} {transpose}");
        }
    }
}

/// Sums of eight products of one value each, as TF32 sees them.
fn spread(kind: MatrixKind, x: f32, y: f32) -> Option<f32> {
    let nvrtc = nvrtc::nvrtc()?;
    let source = cuda::emit(&product(DType::F32, kind, false), &[]).unwrap();
    let words = |x: f32| (0..128).flat_map(|i| if i % 8 == 0 { x } else { 0.0 }.to_le_bytes()).collect::<Vec<u8>>();
    let buffers = [words(x), words(y), vec![0; 512]];
    let launch = Launch { buffers: &buffers, dims: &[], blocks: 1, sampled: None };
    let order = everywhere().next()?;
    let (after, _) = simulate::run(&simulate::module(nvrtc, &source), &source, &launch, order).unwrap();
    Some(f32::from_le_bytes(after[2][..4].try_into().unwrap()))
}

#[test]
fn tf32_has_ten_bits_of_fraction_and_three_products_have_twice_as_many() {
    let (x, y) = (1.0 + 5.0f32 * 2f32.powi(-13), 3.0 + 2f32.powi(-20));
    let Some(once) = spread(MatrixKind::Tf32, x, y) else { return };
    assert_eq!(once, (1.0 + 2f32.powi(-10)) * 3.0);
    let thrice = spread(MatrixKind::Tf32x3, x, y).unwrap();
    let exact = f64::from(x) * f64::from(y);
    assert!((f64::from(thrice) - exact).abs() <= exact * 2f64.powi(-22), "{thrice} {exact}");
    for kind in [MatrixKind::Tf32, MatrixKind::Tf32x3] {
        // infinities pass, with the sign of the product, also by numbers that have no lower part, or a negative one
        for y in [2.0, 1.0 - 2f32.powi(-20), 1.0 + 2f32.powi(-20)] {
            assert_eq!(spread(kind, f32::INFINITY, y), Some(f32::INFINITY), "{kind:?} {y}");
            assert_eq!(spread(kind, -y, f32::INFINITY), Some(f32::NEG_INFINITY), "{kind:?} {y}");
        }
        assert!(spread(kind, f32::NAN, 1.0).unwrap().is_nan());
        assert!(spread(kind, f32::INFINITY, 0.0).unwrap().is_nan());
    }
    // the greatest number is not rounded to an infinity
    let great = f64::from(spread(MatrixKind::Tf32x3, f32::MAX, 0.5).unwrap());
    assert!((great / f64::from(f32::MAX) - 0.5).abs() <= 2f64.powi(-22), "{great}");
}

/// Halves to `f32` and back, and packed.
fn halves(dtype: DType) -> Kernel {
    let mut k = KernelBuilder::with_threads([32, 1, 1]);
    let x = k.buffer(dtype, Access::Read);
    let (y, words) = (k.buffer(dtype, Access::Write), k.buffer(DType::U32, Access::Write));
    [x, y, words].into_iter().for_each(|buffer| k.align_buffer(buffer, 16));
    let own = k.scratch(dtype, 8, Space::Register);
    let packed = k.scratch(DType::U32, 4, Space::Register);
    k.for_(0, 32, LoopKind::Thread(0), |k, t| {
        k.load_vector((own, 0), x, &t * 8, 8);
        for i in 0..4 {
            let pair = [2 * i, 2 * i + 1].map(|i| own.load(i).cast(DType::F32) * 2.0f32);
            k.pack((packed, i), dtype, pair);
        }
        k.for_(0, 8, LoopKind::Unroll, |k, i| k.store(own, &i, own.load(&i) + own.load(&i)));
        k.store_vector(y, &t * 8, (own, 0), 8);
        k.store_vector(words, t * 4, (packed, 0), 4);
    });
    k.finish().unwrap().with_wide_halves()
}

#[test]
fn halves_move_by_sixteen_bytes() {
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    for dtype in [DType::F16, DType::BF16] {
        let source = cuda::emit(&halves(dtype), &[]).unwrap();
        let value = |i: usize| i as f64 / 8.0 - 9.0;
        let x: Vec<f64> = (0..256).map(value).collect();
        let want = bytes(dtype, &x.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        let buffers = [bytes(dtype, &x), vec![0; 512], vec![0; 512]];
        let launch = Launch { buffers: &buffers, dims: &[], blocks: 1, sampled: None };
        let order = everywhere().next().unwrap();
        let (after, report) = simulate::run(&simulate::module(nvrtc, &source), &source, &launch, order).unwrap();
        assert_eq!((&after[1], &after[2]), (&want, &want), "{dtype}");
        for line in report.lines.iter().filter(|line| line.global_requests > 0) {
            assert_eq!((line.sectors, line.least_sectors), (16, 16), "{dtype} line {}", line.line);
        }
    }
}
