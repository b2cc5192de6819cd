//! Arithmetic of integers and Booleans, and casts.

use egret_compiler::kernel::{Access, BinaryOp, KernelBuilder, LoopKind};
use egret_ir::DType::{self, *};

use super::maps::{BLOCK, SIZES, map, run_map};
use super::support::values;

#[test]
fn integers_wrap_and_never_trap() {
    let interesting = [0i64, 1, -1, 7, -7, 3, i64::MIN, i64::MAX, 2, -2, 1 << 40];
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for x in interesting {
        for y in interesting {
            a.push(x);
            b.push(y);
        }
    }
    let n = a.len();
    type Op = fn(i64, i64) -> i64;
    let table: [(BinaryOp, Op); 12] = [
        (BinaryOp::Add, i64::wrapping_add),
        (BinaryOp::Sub, i64::wrapping_sub),
        (BinaryOp::Mul, i64::wrapping_mul),
        (BinaryOp::Div, |a, b| if b == 0 { 0 } else { a.wrapping_div(b) }),
        (BinaryOp::Rem, |a, b| if b == 0 { 0 } else { a.wrapping_rem(b) }),
        (BinaryOp::Max, i64::max),
        (BinaryOp::Min, i64::min),
        (BinaryOp::And, |a, b| a & b),
        (BinaryOp::Or, |a, b| a | b),
        (BinaryOp::Xor, |a, b| a ^ b),
        (BinaryOp::Shl, |a, b| a.wrapping_shl(b as u32)),
        (BinaryOp::Shr, |a, b| a.wrapping_shr(b as u32)),
    ];
    for (op, f) in table {
        let kernel = map(&[I64, I64], I64, |x, _| x[0].clone().binary(op, &x[1]));
        let y: Vec<i64> = run_map(&kernel, &[&a, &b], n, 1);
        let expected: Vec<i64> = a.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect();
        assert_eq!(y, expected, "i64 {}", op.name());
        // Narrow: same results modulo the width, from wrapped operands.
        let narrow = |v: &[i64]| v.iter().map(|&v| v as i32).collect::<Vec<_>>();
        if !matches!(op, BinaryOp::Shl | BinaryOp::Shr) {
            let kernel = map(&[I32, I32], I32, |x, _| x[0].clone().binary(op, &x[1]));
            let y: Vec<i32> = run_map(&kernel, &[&narrow(&a), &narrow(&b)], n, 1);
            let expected: Vec<i32> = narrow(&a)
                .iter()
                .zip(narrow(&b))
                .map(|(&a, b)| match op {
                    BinaryOp::Div if a == i32::MIN && b == -1 => a,
                    _ => f(a.into(), b.into()) as i32,
                })
                .collect();
            assert_eq!(y, expected, "i32 {}", op.name());
            let bytes = |v: &[i64]| v.iter().map(|&v| v as u8).collect::<Vec<_>>();
            let kernel = map(&[U8, U8], U8, |x, _| x[0].clone().binary(op, &x[1]));
            let y: Vec<u8> = run_map(&kernel, &[&bytes(&a), &bytes(&b)], n, 1);
            let expected: Vec<u8> =
                bytes(&a).iter().zip(bytes(&b)).map(|(&a, b)| f(a.into(), b.into()) as u8).collect();
            assert_eq!(y, expected, "u8 {}", op.name());
        }
    }
    let by_seven = map(&[I64], I64, |x, _| &x[0] / 7 + &x[0] % -3);
    let y: Vec<i64> = run_map(&by_seven, &[&a], n, 1);
    assert_eq!(y, a.iter().map(|a| (a / 7).wrapping_add(a % -3)).collect::<Vec<_>>());
}

#[test]
fn integer_powers_wrap() {
    let bases = [0i8, 1, -1, 2, -3, 7, -128, 127, 5];
    let exponents = [0i8, 1, 2, 3, 7, 31, -1, -2, 127];
    let (a, b): (Vec<i8>, Vec<i8>) = bases.iter().flat_map(|a| exponents.iter().map(move |b| (*a, *b))).unzip();
    let kernel = map(&[I8, I8], I8, |x, _| x[0].pow(&x[1]));
    let y: Vec<i8> = run_map(&kernel, &[&a, &b], a.len(), 1);
    let power = |a: i8, b: i8| match u32::try_from(b) {
        Ok(b) => a.wrapping_pow(b),
        Err(_) => i8::from(a == 1),
    };
    assert_eq!(y, a.iter().zip(&b).map(|(a, b)| power(*a, *b)).collect::<Vec<_>>());
    let (a, b): (Vec<u64>, Vec<u64>) = (vec![3, u64::MAX, 10, 2], vec![41, 3, 30, u64::MAX]);
    let kernel = map(&[U64, U64], U64, |x, _| x[0].pow(&x[1]));
    let y: Vec<u64> = run_map(&kernel, &[&a, &b], a.len(), 1);
    assert_eq!(y, [3u64.wrapping_pow(41), u64::MAX, 10u64.wrapping_pow(30), 0]);
}

#[test]
fn bools_load_store_and_select() {
    for n in SIZES {
        let mask: Vec<u8> = (0..n).map(|i| (i * 7 % 3 == 0) as u8).collect();
        let kernel = map(&[Bool], F32, |x, i| x[0].clone().select(i.clone().cast(F32), -1.0f32));
        let y: Vec<f32> = run_map(&kernel, &[&mask], n, 2);
        assert_eq!(y, (0..n).map(|i| if mask[i] == 1 { i as f32 } else { -1.0 }).collect::<Vec<_>>());
        let kernel = map(&[Bool], Bool, |x, i| (!x[0].clone()).or(i.less(5)));
        let y: Vec<u8> = run_map(&kernel, &[&mask], n, 2);
        assert_eq!(y, (0..n).map(|i| (mask[i] == 0 || i < 5) as u8).collect::<Vec<_>>());
        let a = values(n, 5);
        let kernel = map(&[F32], Bool, |x, _| x[0].greater(0.0f32).and(x[0].less(2.0f32)));
        let y: Vec<u8> = run_map(&kernel, &[&a], n, 2);
        assert_eq!(y, a.iter().map(|&a| (a > 0.0 && a < 2.0) as u8).collect::<Vec<_>>());
        let kernel = map(&[Bool], I64, |x, i| x[0].clone().cast(I64) + i * 2);
        let y: Vec<i64> = run_map(&kernel, &[&mask], n, 2);
        assert_eq!(y, (0..n).map(|i| i64::from(mask[i]) + 2 * i as i64).collect::<Vec<_>>());
        let a: Vec<f64> = a.into_iter().map(f64::from).collect();
        let kernel = map(&[F64], Bool, |x, _| x[0].greater(0.5f64));
        let y: Vec<u8> = run_map(&kernel, &[&a], n, 2);
        assert_eq!(y, a.iter().map(|&a| (a > 0.5) as u8).collect::<Vec<_>>());
    }
}

#[test]
fn casts_saturate() {
    let x = vec![0.0f32, -0.5, 1.5, -1.5, 300.0, -300.0, 3e9, -3e9, 1e20, -1e20, f32::NAN, f32::INFINITY, 2.5];
    let n = x.len();
    macro_rules! check {
        ($($dtype:ident $rust:ty),*) => { $(
            let kernel = map(&[F32], $dtype, |x, _| x[0].clone().cast($dtype));
            let y: Vec<$rust> = run_map(&kernel, &[&x], n, 1);
            assert_eq!(y, x.iter().map(|&x| x as $rust).collect::<Vec<_>>());
            let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let kernel = map(&[F64], $dtype, |x, _| x[0].clone().cast($dtype));
            let y: Vec<$rust> = run_map(&kernel, &[&wide], n, 1);
            assert_eq!(y, x.iter().map(|&x| x as $rust).collect::<Vec<_>>());
            let ints: Vec<$rust> = y.clone();
            let kernel = map(&[$dtype], F32, |x, _| x[0].clone().cast(F32));
            let z: Vec<f32> = run_map(&kernel, &[&ints], n, 1);
            assert_eq!(z, ints.iter().map(|&x| x as f32).collect::<Vec<_>>());
            let kernel = map(&[$dtype], I64, |x, _| x[0].clone().cast(I64));
            let z: Vec<i64> = run_map(&kernel, &[&ints], n, 1);
            assert_eq!(z, ints.iter().map(|&x| x as i64).collect::<Vec<_>>());
        )* };
    }
    check!(I32 i32, I64 i64, U8 u8, I8 i8, I16 i16, U16 u16, U32 u32, U64 u64);
    let kernel = map(&[F32], F64, |x, _| x[0].clone().cast(F64));
    let y: Vec<f64> = run_map(&kernel, &[&x], n, 1);
    assert!(y.iter().zip(&x).all(|(y, x)| y.is_nan() && x.is_nan() || *y == f64::from(*x)));
}

/// A clamp by constants before a cast, whose bounds it may rely on; NaN is zero after it too.
#[test]
fn casts_after_clamps() {
    let x: Vec<f32> = (-70..70).flat_map(|i| [i as f32 * 7.3, f32::NAN, f32::INFINITY, -1e20, 3e9]).collect();
    let n = x.len();
    macro_rules! check {
        ($($dtype:ident $rust:ty, $low:literal to $high:literal;)*) => { $(
            for order in [false, true] {
                let kernel = map(&[F32], $dtype, |x, _| match order {
                    false => x[0].clone().max($low as f32).min($high as f32).cast($dtype),
                    true => x[0].clone().min($high as f32).max($low as f32).cast($dtype),
                });
                let y: Vec<$rust> = run_map(&kernel, &[&x], n, 1);
                let clamped = x.iter().map(|x| if x.is_nan() { 0 } else { x.clamp($low as f32, $high as f32) as $rust });
                assert_eq!(y, clamped.collect::<Vec<_>>(), "{} of {} to {}", $dtype, $low, $high);
            }
        )* };
    }
    check! {
        U8 u8, 0.0 to 255.0; U8 u8, 3.0 to 200.0; U8 u8, -1.0 to 255.0; I8 i8, -128.0 to 127.0; I8 i8, -129.0 to 127.0;
        U16 u16, 0.0 to 65535.0; I16 i16, -300.0 to 300.0; I32 i32, -1000.0 to 1000.0; I32 i32, -2147483648.0 to 2147483520.0;
        I32 i32, -2147483648.0 to 2147483648.0; I64 i64, -5.0 to 5.0;
    }
}

/// `y[i] = x[i]` as another type, by vectors and by scalars.
fn converts<A: Copy, B: Copy + Default>(from: DType, to: DType, x: &[A]) -> [Vec<B>; 2] {
    let by_vectors = map(&[from], to, |x, _| x[0].clone().cast(to));
    let mut k = KernelBuilder::new();
    let (input, output) = (k.buffer(from, Access::Read), k.buffer(to, Access::Write));
    let n = k.dim();
    let block = k.grid(n.ceil_div(BLOCK));
    let first = k.bind(block * BLOCK);
    let last = k.bind((&first + BLOCK).min(n));
    k.for_(first, last, LoopKind::Serial, |k, i| k.store(output, &i, input.load(&i).cast(to)));
    let by_scalars = k.finish().unwrap();
    [by_vectors, by_scalars].map(|kernel| run_map(&kernel, &[x], x.len(), 1000))
}

#[test]
fn halves_convert_as_the_reference_does() {
    use half::{bf16, f16};
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for wide in converts::<u16, f32>(F16, F32, &all) {
        assert!(wide.iter().zip(&all).all(|(y, x)| same(*y, f16::from_bits(*x).to_f32())));
    }
    for wide in converts::<u16, f32>(BF16, F32, &all) {
        assert!(wide.iter().zip(&all).all(|(y, x)| same(*y, bf16::from_bits(*x).to_f32())));
    }
    // all exponents; and around every half and every middle of two, where rounding turns
    let mut x: Vec<f32> = (0..u32::MAX).step_by(9973).map(f32::from_bits).collect();
    for bits in 0..=u16::MAX {
        let (a, b) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits.wrapping_add(1)).to_f32());
        for middle in [a, (a + b) / 2.0, f32::from_bits((u32::from(bits) << 16) + 0x8000)] {
            let bits = middle.to_bits();
            x.extend([bits.wrapping_sub(1), bits, bits.wrapping_add(1)].map(f32::from_bits));
        }
    }
    for narrow in converts::<f32, u16>(F32, F16, &x) {
        for (y, x) in narrow.iter().zip(&x) {
            let (y, e) = (f16::from_bits(*y), f16::from_f32_const(*x));
            assert!(y.to_bits() == e.to_bits() || y.is_nan() && e.is_nan(), "{x:e}: {y:e} {e:e}");
        }
    }
    for narrow in converts::<f32, u16>(F32, BF16, &x) {
        for (y, x) in narrow.iter().zip(&x) {
            let (y, e) = (bf16::from_bits(*y), bf16::from_f32(*x));
            assert!(y.to_bits() == e.to_bits() || y.is_nan() && e.is_nan(), "{x:e}: {y:e} {e:e}");
        }
    }
}
