//! Integers of 8 and 16 bits in vector loops, against plain Rust.

#[path = "support/maps.rs"]
mod maps;
mod support;

use egret_compiler::kernel::{Access, BinaryOp, Expr, KernelBuilder, LoopKind, ReduceOp, UnaryOp};
use egret_ir::DType::*;
use maps::{SIZES, map, pointer, run_map};
use support::{clif, run, values};

/// Numbers of every size, with the ends of the range.
macro_rules! drawn {
    ($rust:ty, $n:expr, $seed:expr) => {
        (0..$n)
            .map(|i| match i % 11 {
                0 => <$rust>::MIN,
                1 => <$rust>::MAX,
                _ => (i as u64 + $seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) as $rust,
            })
            .collect::<Vec<$rust>>()
    };
}

macro_rules! for_narrow_types {
    ($check:ident) => {
        $check!(U8 u8);
        $check!(I8 i8);
        $check!(U16 u16);
        $check!(I16 i16);
    };
}

/// What quantised networks do between products: to the type and back, with a scale and a zero point.
#[test]
fn values_are_quantised_and_back() {
    macro_rules! check {
        ($dtype:ident $rust:ty) => {{
            let (scale, zero) = (0.037f32, 3 as $rust);
            let (low, high) = (<$rust>::MIN as f32, <$rust>::MAX as f32);
            let kernel = map(&[F32], F32, |x, _| {
                let q = (&x[0] / scale).unary(UnaryOp::Round) + f32::from(zero);
                let q = q.max(low).min(high).cast($dtype);
                (q.cast(I32) - Expr::constant(I32, f64::from(zero))).cast(F32) * scale
            });
            for n in SIZES {
                let x: Vec<f32> = values(n, 3).iter().map(|x| x * 9.0).collect();
                let y: Vec<f32> = run_map(&kernel, &[&x], n, 2);
                let quantised = |x: f32| ((x / scale).round_ties_even() + f32::from(zero)).clamp(low, high) as $rust;
                let back = |q: $rust| (i32::from(q) - i32::from(zero)) as f32 * scale;
                assert_eq!(y, x.iter().map(|x| back(quantised(*x))).collect::<Vec<_>>(), "{}", $dtype);
            }
            // after a clamp nothing saturates
            let vectors = ["fcvt_to_sint_sat.i32x4", "x86_cvtt2dq.i32x4"];
            assert!(vectors.iter().any(|op| clif(&kernel).contains(op)), "{} is converted lane by lane", $dtype);
        }};
    }
    for_narrow_types!(check);
}

#[test]
fn arithmetic_wraps() {
    macro_rules! check {
        ($dtype:ident $rust:ty) => {{
            let table: [(BinaryOp, fn($rust, $rust) -> $rust); 8] = [
                (BinaryOp::Add, <$rust>::wrapping_add),
                (BinaryOp::Sub, <$rust>::wrapping_sub),
                (BinaryOp::Mul, <$rust>::wrapping_mul),
                (BinaryOp::Max, <$rust>::max),
                (BinaryOp::Min, <$rust>::min),
                (BinaryOp::And, |a, b| a & b),
                (BinaryOp::Or, |a, b| a | b),
                (BinaryOp::Xor, |a, b| a ^ b),
            ];
            for n in SIZES {
                let (a, b) = (drawn!($rust, n, 1), drawn!($rust, n, 2));
                for (op, f) in table {
                    let kernel = map(&[$dtype, $dtype], $dtype, |x, _| x[0].clone().binary(op, &x[1]));
                    let y: Vec<$rust> = run_map(&kernel, &[&a, &b], n, 1);
                    let expected: Vec<$rust> = a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect();
                    assert_eq!(y, expected, "{} {}", $dtype, op.name());
                }
                // what wrapped is right as an operand too
                let kernel = map(&[$dtype, $dtype], F32, |x, _| {
                    let less = (&x[0] + &x[1]).less(-x[1].clone());
                    less.select((&x[0] * &x[1]).cast(F32), (&x[0] - &x[1]).cast(F32))
                });
                let y: Vec<f32> = run_map(&kernel, &[&a, &b], n, 1);
                let one = |a: $rust, b: $rust| match a.wrapping_add(b) < b.wrapping_neg() {
                    true => f32::from(a.wrapping_mul(b)),
                    false => f32::from(a.wrapping_sub(b)),
                };
                assert_eq!(y, a.iter().zip(&b).map(|(a, b)| one(*a, *b)).collect::<Vec<_>>(), "{}", $dtype);
            }
        }};
    }
    for_narrow_types!(check);
}

#[test]
fn every_pair_of_types_converts() {
    macro_rules! check {
        ($dtype:ident $rust:ty) => {{
            let n = 101;
            let a = drawn!($rust, n, 5);
            macro_rules! to {
                ($to:ident $other:ty) => {{
                    let kernel = map(&[$dtype], $to, |x, _| x[0].clone().cast($to));
                    let y: Vec<$other> = run_map(&kernel, &[&a], n, 1);
                    assert_eq!(y, a.iter().map(|a| *a as $other).collect::<Vec<_>>(), "{} to {}", $dtype, $to);
                    let kernel = map(&[$to], $dtype, |x, _| x[0].clone().cast($dtype));
                    let back: Vec<$rust> = run_map(&kernel, &[&y], n, 1);
                    assert_eq!(back, y.iter().map(|y| *y as $rust).collect::<Vec<_>>(), "{} to {}", $to, $dtype);
                }};
            }
            for_narrow_types!(to);
            to!(I32 i32);
            to!(U32 u32);
            to!(I64 i64);
            to!(F32 f32);
            to!(F64 f64);
            let kernel = map(&[$dtype], Bool, |x, _| x[0].clone().cast(Bool));
            let truth: Vec<u8> = run_map(&kernel, &[&a], n, 1);
            assert_eq!(truth, a.iter().map(|a| u8::from(*a != 0)).collect::<Vec<_>>());
            let kernel = map(&[Bool], $dtype, |x, _| x[0].clone().cast($dtype));
            let y: Vec<$rust> = run_map(&kernel, &[&truth], n, 1);
            assert_eq!(y, truth.iter().map(|t| *t as $rust).collect::<Vec<_>>());
        }};
    }
    for_narrow_types!(check);
}

#[test]
fn reductions_of_every_length() {
    macro_rules! check {
        ($dtype:ident $rust:ty) => {{
            let table: [(ReduceOp, $rust, fn($rust, $rust) -> $rust); 4] = [
                (ReduceOp::Sum, 0, <$rust>::wrapping_add),
                (ReduceOp::Prod, 1, <$rust>::wrapping_mul),
                (ReduceOp::Max, <$rust>::MIN, <$rust>::max),
                (ReduceOp::Min, <$rust>::MAX, <$rust>::min),
            ];
            for (op, first, f) in table {
                let mut k = KernelBuilder::new();
                let (x, y) = (k.buffer($dtype, Access::Read), k.buffer($dtype, Access::Write));
                let n = k.dim();
                let total = k.variable(Expr::constant($dtype, first as f64));
                k.for_(0, n, LoopKind::Vector, |k, i| k.accumulate(total, op, x.load(i)));
                k.store(y, 0, total);
                let kernel = k.finish().unwrap();
                for n in SIZES {
                    let odd = |x: $rust| if op == ReduceOp::Prod { x | 1 } else { x };
                    let mut x: Vec<$rust> = drawn!($rust, n, 7).into_iter().map(odd).collect();
                    x.reserve(1);
                    let mut y: Vec<$rust> = vec![0];
                    run(&kernel, &[pointer(&mut x), pointer(&mut y)], &[n as i64], 1, 1);
                    assert_eq!(y[0], x.iter().fold(first, |a, b| f(a, *b)), "{} {op:?} of {n}", $dtype);
                }
            }
        }};
    }
    for_narrow_types!(check);
}
