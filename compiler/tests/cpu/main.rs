//! Kernels emitted for the host and run, against plain Rust.

#[path = "../support/maps.rs"]
mod maps;
#[path = "../support/mod.rs"]
mod support;
mod types;

use egret_compiler::kernel::{Access, BinaryOp, Expr, Kernel, KernelBuilder, LoopKind, ReduceOp, Space, UnaryOp};
use egret_ir::DType::{self, *};
use maps::{SIZES, map, pointer, run_map};
use support::{View2, run, run_hook, values};

#[test]
fn relu_of_a_line_in_every_chunking() {
    let kernel = map(&[F32, F32], F32, |x, _| (&x[0] * 2.5f32 + &x[1]).max(0.0f32));
    for n in SIZES {
        let (a, b) = (values(n, 1), values(n, 2));
        let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a.mul_add(2.5, *b).max(0.0)).collect();
        for chunk in [1, 3, 1000] {
            let y: Vec<f32> = run_map(&kernel, &[&a, &b], n, chunk);
            for (y, e) in y.iter().zip(&expected) {
                assert!((y - e).abs() < 1e-5, "{y} {e}");
            }
        }
    }
}

#[test]
fn exact_kernels_round_twice() {
    let mut k = KernelBuilder::new();
    k.exact();
    let (x, y) = (k.buffer(F32, Access::Read), k.buffer(F32, Access::Write));
    k.for_(0, 9, LoopKind::Vector, |k, i| {
        let v = k.bind(x.load(&i));
        k.store(y, i, &v * &v - 1.0f32);
    });
    let kernel = k.finish().unwrap();
    let (mut a, mut b) = (values(9, 3), vec![0f32; 9]);
    run(&kernel, &[pointer(&mut a), pointer(&mut b)], &[], 1, 1);
    let expected: Vec<f32> = a.iter().map(|a| a * a - 1.0).collect();
    assert_eq!(b, expected);
}

#[test]
fn extrema_propagate_nan() {
    let specials = [f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY, -2.0, 0.0];
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for x in specials {
        for y in specials {
            a.push(x);
            b.push(y);
        }
    }
    let n = a.len();
    for (op, plain) in [(BinaryOp::Max, f32::max as fn(f32, f32) -> f32), (BinaryOp::Min, f32::min)] {
        let kernel = map(&[F32, F32], F32, |x, _| x[0].clone().binary(op, &x[1]));
        let y: Vec<f32> = run_map(&kernel, &[&a, &b], n, 1);
        let constant = map(&[F32, F32], F32, |x, _| x[0].clone().binary(op, 0.5f32));
        let z: Vec<f32> = run_map(&constant, &[&a, &b], n, 1);
        for i in 0..n {
            let expected = if a[i].is_nan() || b[i].is_nan() { f32::NAN } else { plain(a[i], b[i]) };
            assert_eq!(y[i].to_bits() & 0x7fff_ffff == 0x7fc0_0000, expected.is_nan());
            assert!(expected.is_nan() || y[i] == expected, "{} {} {}", a[i], b[i], y[i]);
            assert_eq!(z[i].is_nan(), a[i].is_nan());
        }
        // And through a reduction, at any lane.
        for position in [0, 5, 17, 32] {
            let op = if op == BinaryOp::Max { ReduceOp::Max } else { ReduceOp::Min };
            let mut x = values(33, 9);
            assert!(!reduce(op, &mut x).is_nan());
            x[position] = f32::NAN;
            assert!(reduce(op, &mut x).is_nan());
        }
    }
}

fn reduce(op: ReduceOp, x: &mut [f32]) -> f32 {
    let mut k = KernelBuilder::new();
    let (b, y) = (k.buffer(F32, Access::Read), k.buffer(F32, Access::Write));
    let n = k.dim();
    let first = match op {
        ReduceOp::Sum => 0.0,
        ReduceOp::Prod => 1.0,
        ReduceOp::Max => f32::NEG_INFINITY,
        ReduceOp::Min => f32::INFINITY,
    };
    let sum = k.variable(first);
    k.for_(0, n, LoopKind::Vector, |k, i| k.accumulate(sum, op, b.load(i)));
    k.store(y, 0, sum);
    let mut result = [0f32];
    run(&k.finish().unwrap(), &[pointer(x), pointer(&mut result)], &[x.len() as i64], 1, 1);
    result[0]
}

#[test]
fn reductions_of_every_length() {
    for n in SIZES {
        let mut x = values(n, 4);
        let sum: f64 = x.iter().map(|&x| f64::from(x)).sum();
        assert!((f64::from(reduce(ReduceOp::Sum, &mut x)) - sum).abs() < 1e-3);
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(reduce(ReduceOp::Max, &mut x), max);
        let min = x.iter().copied().fold(f32::INFINITY, f32::min);
        assert_eq!(reduce(ReduceOp::Min, &mut x), min);
        let mut y: Vec<f32> = x.iter().map(|x| 1.0 + x / 1000.0).collect();
        let product: f64 = y.iter().map(|&x| f64::from(x)).product();
        assert!((f64::from(reduce(ReduceOp::Prod, &mut y)) / product - 1.0).abs() < 1e-4);
    }
}

#[test]
fn every_function_of_one_argument() {
    let n = 67;
    let x: Vec<f32> = values(n - 4, 6).into_iter().chain([f32::NAN, 0.0, f32::INFINITY, -0.0]).collect();
    for &op in UnaryOp::ALL {
        let f = |x: f64| match op {
            UnaryOp::Neg => -x,
            UnaryOp::Abs => x.abs(),
            UnaryOp::Sign => {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    x
                }
            }
            UnaryOp::Sqrt => x.sqrt(),
            UnaryOp::Rsqrt => 1.0 / x.sqrt(),
            UnaryOp::Recip => 1.0 / x,
            UnaryOp::Floor => x.floor(),
            UnaryOp::Ceil => x.ceil(),
            UnaryOp::Round => x.round_ties_even(),
            UnaryOp::Trunc => x.trunc(),
            UnaryOp::Exp => x.exp(),
            UnaryOp::Expm1 => x.exp_m1(),
            UnaryOp::Log => x.ln(),
            UnaryOp::Log1p => x.ln_1p(),
            UnaryOp::Tanh => x.tanh(),
            UnaryOp::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            UnaryOp::Sin => x.sin(),
            UnaryOp::Cos => x.cos(),
            UnaryOp::Tan => x.tan(),
            UnaryOp::Asin => x.asin(),
            UnaryOp::Acos => x.acos(),
            UnaryOp::Atan => x.atan(),
            // Near zero alone.
            UnaryOp::Erf => std::f64::consts::FRAC_2_SQRT_PI * (x - x * x * x / 3.0),
            UnaryOp::Not | UnaryOp::IsNan => return_zero(),
        };
        if matches!(op, UnaryOp::Not | UnaryOp::IsNan) {
            continue;
        }
        let scale = if op == UnaryOp::Erf { 1e-3 } else { 1.0 };
        let x: Vec<f32> = x.iter().filter(|x| op != UnaryOp::Erf || x.is_finite()).map(|x| x * scale).collect();
        let (kernel, n) = (map(&[F32], F32, |x, _| x[0].clone().unary(op)), x.len());
        let y: Vec<f32> = run_map(&kernel, &[&x], n, 2);
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let kernel = map(&[F64], F64, |x, _| x[0].clone().unary(op));
        let z: Vec<f64> = run_map(&kernel, &[&wide], n, 2);
        for i in 0..n {
            let e = f(wide[i]);
            let near =
                |a: f64, eps: f64| a == e || a.is_nan() && e.is_nan() || (a - e).abs() <= eps * e.abs().max(1e-3);
            assert!(near(y[i].into(), 2e-6), "{}({}) = {} not {e}", op.name(), x[i], y[i]);
            assert!(near(z[i], 1e-5), "{}({}) = {} not {e}", op.name(), x[i], z[i]);
        }
    }
    let kernel = map(&[F32], Bool, |x, _| x[0].clone().unary(UnaryOp::IsNan));
    let y: Vec<u8> = run_map(&kernel, &[&x], n, 2);
    assert_eq!(y, x.iter().map(|x| x.is_nan() as u8).collect::<Vec<_>>());
}

fn return_zero() -> f64 {
    0.0
}

#[test]
fn gathers_strides_and_masked_loads() {
    // y[i] = table[index[i]] + x[2 i] + (i >= 3 ? x[i - 3] : 0)
    let mut k = KernelBuilder::new();
    let (table, index, x) = (k.buffer(F32, Access::Read), k.buffer(I64, Access::Read), k.buffer(F32, Access::Read));
    let y = k.buffer(F32, Access::Write);
    let n = k.dim();
    k.for_(0, n, LoopKind::Vector, |k, i| {
        let at = k.bind(index.load(&i));
        let shifted = k.bind(&i - 3);
        let edge = x.load_if(i.greater_equal(3), shifted);
        k.store(y, &i, table.load(at) + x.load(&i * 2) + edge);
    });
    let kernel = k.finish().unwrap();
    for n in SIZES {
        let mut table = values(10, 7);
        let mut index: Vec<i64> = (0..n as i64).map(|i| i * i % 10).collect();
        let (mut x, mut y) = (values(2 * n + 1, 8), vec![0f32; n + 1]);
        let buffers = [pointer(&mut table), pointer(&mut index), pointer(&mut x), pointer(&mut y)];
        run(&kernel, &buffers, &[n as i64], 1, 1);
        for i in 0..n {
            let edge = if i >= 3 { x[i - 3] } else { 0.0 };
            assert_eq!(y[i], table[index[i] as usize] + x[2 * i] + edge);
        }
    }
}

#[test]
fn in_place_loops_keep_their_order() {
    // x[i] = x[i] + 1, and the old value goes out: the load stays above the store.
    let mut k = KernelBuilder::new();
    let (x, old) = (k.buffer(I64, Access::ReadWrite), k.buffer(F32, Access::Write));
    let n = k.dim();
    k.for_(0, n, LoopKind::Vector, |k, i| {
        let before = k.bind(x.load(&i));
        k.store(x, &i, &before + 1);
        k.store(old, &i, before.cast(F32));
    });
    let kernel = k.finish().unwrap();
    let (mut x, mut old) = ((0..37).collect::<Vec<i64>>(), vec![0f32; 37]);
    run(&kernel, &[pointer(&mut x), pointer(&mut old)], &[37], 1, 1);
    assert!((0..37).all(|i| x[i] == i as i64 + 1 && old[i] == i as f32));
}

#[test]
fn grids_of_three_axes_and_status() {
    let mut k = KernelBuilder::new();
    let y = k.buffer(I64, Access::Write);
    let (a, b, c) = (k.dim(), k.dim(), k.dim());
    let (i, j, l) = (k.grid(a), k.grid(b.clone()), k.grid(c.clone()));
    let at = k.bind((&i * &b + &j) * &c + &l);
    k.status(at.equal(5), 3);
    k.status(at.equal(6), 2);
    k.store(y, &at, i * 100 + j * 10 + l);
    let kernel = k.finish().unwrap();
    for chunk in [1, 5, 100] {
        let mut y = vec![0i64; 24];
        assert_eq!(run(&kernel, &[pointer(&mut y)], &[2, 3, 4], 24, chunk), 3);
        let expected = (0..2).flat_map(|i| (0..3).flat_map(move |j| (0..4).map(move |l| i * 100 + j * 10 + l)));
        assert!(y.iter().copied().eq(expected));
    }
}

#[test]
fn hooks_apply_bias_residual_and_relu_to_a_tile() {
    let (mut k, hook) = KernelBuilder::hook(F32, &[F32, F32], &[F32]);
    let (bias, residual, out) = (&hook.extras[0], &hook.extras[1], &hook.outs[0]);
    let scratch = k.scratch(F32, 64, Space::Local);
    k.for_(0, hook.rows.clone(), LoopKind::Serial, |k, r| {
        let b = k.bind(bias.memory.load(bias.row(&r)));
        k.for_(0, hook.cols.clone(), LoopKind::Vector, |k, c| {
            k.store(scratch, &c, hook.acc.memory.load(hook.acc.at(&r, &c)) + &b);
        });
        k.for_(0, hook.cols.clone(), LoopKind::Vector, |k, c| {
            let v = k.bind(scratch.load(&c) + residual.memory.load(residual.at(&r, &c)));
            k.store(out.memory, out.at(&r, &c), v.max(0.0f32));
        });
    });
    let kernel = k.finish().unwrap();
    let (rows, cols, ld) = (5usize, 19usize, 23usize);
    let (mut acc, mut bias, mut residual) = (values(rows * ld, 1), values(rows, 2), values(rows * ld, 3));
    let mut out = vec![0f32; rows * cols];
    let view = |p: &mut [f32], row: usize, col| View2 { ptr: pointer(p), row: row as i64, col };
    run_hook(
        &kernel,
        view(&mut acc, ld, 1),
        rows as i64,
        cols as i64,
        &[view(&mut bias, 1, 0), view(&mut residual, ld, 1)],
        &[view(&mut out, cols, 1)],
    );
    for r in 0..rows {
        for c in 0..cols {
            let e = (acc[r * ld + c] + bias[r] + residual[r * ld + c]).max(0.0);
            assert!((out[r * cols + c] - e).abs() < 1e-5);
        }
    }
}

#[test]
fn one_kernel_has_one_text_and_one_code() {
    let build = || map(&[F32], F32, |x, _| x[0].clone().unary(UnaryOp::Tanh) * 2.0f32);
    assert_eq!(build().name(), build().name());
    assert_eq!(support::clif(&build()), support::clif(&build()));
    assert_ne!(build().name(), map(&[F32], F32, |x, _| x[0].clone()).name());
}

#[test]
fn strips_of_wide_functions() {
    // y = x * sigmoid(x) + tanh(exp(x / 4)), and the sum of exp(x - 1).
    let mut k = KernelBuilder::new();
    let (x, y, sum) = (k.buffer(F32, Access::Read), k.buffer(F32, Access::Write), k.buffer(F32, Access::Write));
    let n = k.dim();
    let total = k.variable(0.0f32);
    k.for_(0, n, LoopKind::Vector, |k, i| {
        let v = k.bind(x.load(&i) * 1.5f32 + x.load(&i) * x.load(&i));
        let gate = k.bind(&v * v.clone().unary(UnaryOp::Sigmoid));
        k.accumulate(total, ReduceOp::Sum, (&v - 1.0f32).unary(UnaryOp::Exp));
        k.store(y, &i, gate + (v / 4.0f32).unary(UnaryOp::Exp).unary(UnaryOp::Tanh));
    });
    k.store(sum, 0, total);
    let plain = k.finish().unwrap();
    let strips = plain.clone().with_strips();
    strips.verify().unwrap_or_else(|e| panic!("{e:?}\n{strips}"));
    assert_eq!(strips.text().matches("call").count(), 4, "{strips}");
    for n in SIZES {
        let mut x = values(n, 11).iter().map(|x| x / 4.0).collect::<Vec<f32>>();
        let (mut y, mut z) = (vec![0f32; n + 1], vec![0f32; n + 1]);
        let (mut a, mut b) = ([0f32], [0f32]);
        run(&plain, &[pointer(&mut x), pointer(&mut y), pointer(&mut a)], &[n as i64], 1, 1);
        run(&strips, &[pointer(&mut x), pointer(&mut z), pointer(&mut b)], &[n as i64], 1, 1);
        assert!((a[0] - b[0]).abs() <= 1e-4 * a[0].abs(), "{} {}", a[0], b[0]);
        for i in 0..n {
            let v = f64::from(x[i]) * (1.5 + f64::from(x[i]));
            let e = v / (1.0 + (-v).exp()) + (v / 4.0).exp().tanh();
            assert!((f64::from(y[i]) - e).abs() < 1e-5 && (f64::from(z[i]) - e).abs() < 1e-5);
        }
    }
}

#[test]
fn a_softmax_row_in_place() {
    let mut k = KernelBuilder::new();
    let x = k.buffer(F32, Access::ReadWrite);
    let (rows, cols) = (k.dim(), k.dim());
    let row = k.grid(rows);
    let base = k.bind(row * &cols);
    let max = k.variable(f32::NEG_INFINITY);
    k.for_(0, cols.clone(), LoopKind::Vector, |k, c| k.accumulate(max, ReduceOp::Max, x.load(&base + c)));
    let sum = k.variable(0.0f32);
    k.for_(0, cols.clone(), LoopKind::Vector, |k, c| {
        let e = k.bind((x.load(&base + &c) - Expr::from(max)).unary(UnaryOp::Exp));
        k.store(x, &base + &c, &e);
        k.accumulate(sum, ReduceOp::Sum, e);
    });
    let scale = k.bind(Expr::from(sum).unary(UnaryOp::Recip));
    k.for_(0, cols, LoopKind::Vector, |k, c| k.store(x, &base + &c, x.load(&base + &c) * &scale));
    let kernel = k.finish().unwrap().with_strips();
    kernel.verify().unwrap();
    assert_eq!(kernel.text().matches("call exp").count(), 1);
    for cols in [1, 5, 256, 257, 700] {
        let x = values(3 * cols, 12);
        let mut results = Vec::new();
        for chunk in [1, 3] {
            let mut y = x.clone();
            run(&kernel, &[pointer(&mut y)], &[3, cols as i64], 3, chunk);
            for row in y.chunks(cols) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            }
            results.push(y);
        }
        assert_eq!(results[0], results[1]);
    }
}

#[test]
fn other_targets_are_emitted_on_this_host() {
    use egret_compiler::emit::EmitError;
    use egret_compiler::emit::cpu::{CpuEmitter, CpuTarget};
    let target = |triple: &str, features: &[&str]| CpuTarget {
        triple: triple.into(),
        features: features.iter().map(|f| f.to_string()).collect(),
    };
    let targets = [
        target("x86_64-unknown-linux-gnu", &["sse4.2"]),
        target("x86_64-unknown-linux-gnu", &["sse4.2", "avx", "avx2", "fma"]),
        target("aarch64-unknown-linux-gnu", &[]),
    ];
    for target in targets {
        let mut emitter = CpuEmitter::new(&target).unwrap();
        let mut emit = |kernel: Kernel| {
            let code = emitter.emit(&kernel).unwrap_or_else(|e| panic!("{target:?} {e}\n{kernel}"));
            assert_eq!(code, emitter.emit(&kernel).unwrap());
        };
        for &dtype in DType::ALL {
            for &op in BinaryOp::ALL {
                let legal = match op {
                    BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => !dtype.is_float(),
                    BinaryOp::Max | BinaryOp::Min => true,
                    BinaryOp::Shl | BinaryOp::Shr => dtype.is_int(),
                    _ => dtype != Bool,
                };
                if legal {
                    emit(map(&[dtype, dtype], dtype, |x, _| x[0].clone().binary(op, &x[1])).for_cpu());
                }
            }
            emit(map(&[dtype], F32, |x, _| x[0].clone().cast(F32) * 2.0f32 + 1.0f32));
            emit(map(&[F32], dtype, |x, _| x[0].clone().cast(dtype)));
        }
        for &op in UnaryOp::ALL {
            if !matches!(op, UnaryOp::Not | UnaryOp::IsNan) {
                emit(map(&[F32], F32, |x, _| x[0].clone().unary(op)).with_strips());
                emit(map(&[F64], F64, |x, _| x[0].clone().unary(op)));
            }
        }
    }
    assert!(matches!(CpuEmitter::new(&target("x86_64-unknown-linux-gnu", &[])), Err(EmitError::Target { .. })));
    assert!(matches!(CpuEmitter::new(&target("m68k", &[])), Err(EmitError::Target { .. })));
    // halves are storage: `for_cpu` takes their arithmetic to f32
    let mut emitter = CpuEmitter::new(&target("aarch64-unknown-linux-gnu", &[])).unwrap();
    let half = map(&[F16], F16, |x, _| x[0].clone() + &x[0]);
    assert!(matches!(emitter.emit(&half), Err(EmitError::UnsupportedType { dtype: F16, .. })));
}

/// A loop of vectors that holds loops, a mutable variable and a condition, all the same in every lane.
#[test]
fn vector_loops_hold_uniform_control_flow() {
    for dtype in [F32, F64, I32, I64, U8] {
        let mut k = KernelBuilder::new();
        let (x, y) = (k.buffer(dtype, Access::Read), k.buffer(dtype, Access::Write));
        let (n, m) = (k.dim(), k.dim());
        let constant = |v: f64| Expr::constant(dtype, v);
        k.for_(0, &n, LoopKind::Vector, |k, i| {
            let total = k.variable(constant(1.0));
            let steps = k.variable(0i64);
            k.for_(0, &m, LoopKind::Serial, |k, j| {
                let row = k.bind(&j * &n);
                let value = k.bind(x.load(&row + &i));
                k.if_else(
                    (&j % 2).equal(0),
                    |k| k.assign(total, Expr::from(total) + &value),
                    |k| {
                        k.accumulate(total, ReduceOp::Sum, &value * constant(2.0));
                        k.assign(steps, Expr::from(steps) + 1);
                    },
                );
            });
            k.for_(0, 2, LoopKind::Unroll, |k, j| k.assign(total, Expr::from(total) + j.cast(dtype)));
            k.store(y, &i, Expr::from(total) + Expr::from(steps).cast(dtype));
        });
        let kernel = k.finish().unwrap();
        for (n, m) in [(0, 3), (1, 1), (5, 0), (13, 4), (40, 5)] {
            let value = |i: usize| (i * 7 % 11) as i64;
            let expected: Vec<i64> = (0..n)
                .map(|i| {
                    let term = |j: usize| if j.is_multiple_of(2) { value(j * n + i) } else { 2 * value(j * n + i) + 1 };
                    2 + (0..m).map(term).sum::<i64>()
                })
                .collect();
            macro_rules! check {
                ($rust:ty) => {{
                    let mut x: Vec<$rust> = (0..n * m + 1).map(|i| value(i) as $rust).collect();
                    let mut y = vec![0 as $rust; n + 1];
                    run(&kernel, &[pointer(&mut x), pointer(&mut y)], &[n as i64, m as i64], 1, 1);
                    assert_eq!(y[..n].iter().map(|v| *v as i64).collect::<Vec<_>>(), expected, "{dtype} {n} {m}");
                }};
            }
            match dtype {
                F32 => check!(f32),
                F64 => check!(f64),
                I32 => check!(i32),
                I64 => check!(i64),
                _ => check!(u8),
            }
        }
    }
}
