//! What arithmetic instructions compute, one lane at a time, on raw bits.

use crate::inst::*;
use crate::types::Type;

/// A subnormal f32 as a zero of its sign, where the instruction says so.
fn flush(ty: Type, flags: Flags, bits: u64) -> u64 {
    let subnormal = ty == Type::F32 && bits & 0x7f80_0000 == 0;
    if flags.ftz && subnormal { bits & 0x8000_0000 } else { bits }
}

/// Applies the flags to a result.
fn finish(ty: Type, flags: Flags, bits: u64) -> u64 {
    if !ty.is_float() {
        return bits & ty.mask();
    }
    if flags.sat {
        // PTX turns NaN into zero here.
        let value = ty.real(bits);
        return ty.nearest(if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) });
    }
    flush(ty, flags, bits)
}

/// `ex2.approx` and its like are computed in f64 and rounded once: nearer than the hardware, within its bound.
pub(crate) fn unary(op: Unary, ty: Type, flags: Flags, a: u64) -> u64 {
    let a = flush(ty, flags, a & ty.mask());
    let bits = ty.bits();
    let float = |f: fn(f64) -> f64| ty.nearest(f(ty.real(a)));
    let out = match op {
        Unary::Neg if ty.is_float() => a ^ (1 << (bits - 1)),
        Unary::Abs if ty.is_float() => a & !(1 << (bits - 1)),
        Unary::Neg => a.wrapping_neg(),
        Unary::Abs => ty.integer(a).unsigned_abs() as u64,
        Unary::Not => !a,
        Unary::CNot => u64::from(a == 0),
        Unary::Ex2 => float(f64::exp2),
        Unary::Lg2 => float(f64::log2),
        Unary::Rcp if ty == Type::F32 => (1.0 / f32::from_bits(a as u32)).to_bits().into(),
        Unary::Rcp => float(f64::recip),
        Unary::Sqrt if ty == Type::F32 => f32::from_bits(a as u32).sqrt().to_bits().into(),
        Unary::Sqrt => float(f64::sqrt),
        Unary::Rsqrt => float(|x| 1.0 / x.sqrt()),
        Unary::Sin => float(f64::sin),
        Unary::Cos => float(f64::cos),
        Unary::Tanh => float(f64::tanh),
        Unary::Popc => a.count_ones().into(),
        Unary::Clz => u64::from(a.leading_zeros() + bits).saturating_sub(64),
        Unary::Brev => a.reverse_bits() >> (64 - bits),
        // NaN is one NaN; what is rounded beyond the greatest is infinite
        Unary::Tf32 if f32::from_bits(a as u32).is_nan() => 0x7fff_ffff,
        Unary::Tf32 if f32::from_bits(a as u32).is_infinite() => a,
        Unary::Tf32 => (a + 0x1000) & 0xffff_e000,
    };
    finish(ty, flags, out)
}

pub(crate) fn binary(op: Binary, ty: Type, flags: Flags, a: u64, b: u64) -> u64 {
    if ty.is_float() {
        let (a, b) = (flush(ty, flags, a & ty.mask()), flush(ty, flags, b & ty.mask()));
        if flags.round != Direction::Nearest {
            let (x, y) = (f32::from_bits(a as u32), f32::from_bits(b as u32));
            let value = match op {
                Binary::Sub => fma(y, -1.0, x, flags.round),
                Binary::Mul => fma(x, y, 0.0, flags.round),
                _ => fma(x, 1.0, y, flags.round),
            };
            return finish(ty, flags, value.to_bits().into());
        }
        return finish(ty, flags, float_binary(op, ty, a, b));
    }
    let (x, y) = (ty.integer(a), ty.integer(b));
    let out = match op {
        Binary::Add if flags.sat => (x + y).clamp(lowest(ty), highest(ty)),
        Binary::Sub if flags.sat => (x - y).clamp(lowest(ty), highest(ty)),
        Binary::Add => x + y,
        Binary::Sub => x - y,
        // Two unsigned 64-bit factors need all of u128.
        Binary::Mul | Binary::MulWide => x.wrapping_mul(y),
        Binary::MulHi if ty.is_signed() => (x * y) >> ty.bits(),
        Binary::MulHi => ((x as u128 * y as u128) >> ty.bits()) as i128,
        // PTX leaves division by zero open; the hardware gives all ones.
        Binary::Div => x.checked_div(y).unwrap_or(-1),
        Binary::Rem => x.checked_rem(y).unwrap_or(-1),
        Binary::Min { .. } => x.min(y),
        Binary::Max { .. } => x.max(y),
        Binary::And => x & y,
        Binary::Or => x | y,
        Binary::Xor => x ^ y,
        // Shift counts are unsigned 32 bits, clamped to the width.
        Binary::Shl => x.wrapping_shl((b as u32).min(64)) & if b as u32 >= ty.bits() { 0 } else { -1 },
        Binary::Shr => x >> (b as u32).min(ty.bits()),
        Binary::CopySign => x,
    };
    let mask = if op == Binary::MulWide { u64::MAX >> (64 - 2 * ty.bits().min(32)) } else { ty.mask() };
    out as u64 & mask
}

fn lowest(ty: Type) -> i128 {
    if ty.is_signed() { -(1 << (ty.bits() - 1)) } else { 0 }
}

fn highest(ty: Type) -> i128 {
    if ty.is_signed() { (1 << (ty.bits() - 1)) - 1 } else { (1 << ty.bits()) - 1 }
}

fn float_binary(op: Binary, ty: Type, a: u64, b: u64) -> u64 {
    if ty == Type::F32 {
        let (x, y) = (f32::from_bits(a as u32), f32::from_bits(b as u32));
        let direct = match op {
            Binary::Add => Some(x + y),
            Binary::Sub => Some(x - y),
            Binary::Mul => Some(x * y),
            Binary::Div => Some(x / y),
            _ => None,
        };
        if let Some(value) = direct {
            return value.to_bits().into();
        }
    }
    // For f16 and bf16 the f64 result has more than twice the bits, so that rounding it again changes nothing.
    let (x, y) = (ty.real(a), ty.real(b));
    let sign = 1u64 << (ty.bits() - 1);
    match op {
        Binary::Add => ty.nearest(x + y),
        Binary::Sub => ty.nearest(x - y),
        Binary::Mul => ty.nearest(x * y),
        Binary::Div => ty.nearest(x / y),
        Binary::CopySign => (a & !sign) | (b & sign),
        Binary::Min { nan } | Binary::Max { nan } => {
            let max = matches!(op, Binary::Max { .. });
            if x.is_nan() || y.is_nan() {
                let number = if x.is_nan() { b } else { a };
                return if nan || (x.is_nan() && y.is_nan()) { ty.nearest(f64::NAN) } else { number };
            }
            let first = if x == y { (a & sign == 0) == max } else { (x > y) == max };
            if first { a } else { b }
        }
        _ => a,
    }
}

/// `x · y + z`, rounded once.
fn fma(x: f32, y: f32, z: f32, round: Direction) -> f32 {
    let nearest = x.mul_add(y, z);
    if round == Direction::Nearest || !nearest.is_finite() {
        return nearest;
    }
    // the product is exact in f64, and so are sum and error (Knuth's two-sum)
    let (p, z) = (f64::from(x) * f64::from(y), f64::from(z));
    let sum = p + z;
    let part = sum - p;
    let error = (p - (sum - part)) + (z - part);
    let beyond = (sum - f64::from(nearest)) + error;
    let down = match round {
        Direction::Down => true,
        Direction::Up => false,
        _ => nearest > 0.0,
    };
    match (down, beyond) {
        (true, b) if b < 0.0 => nearest.next_down(),
        (false, b) if b > 0.0 => nearest.next_up(),
        _ => nearest,
    }
}

pub(crate) fn ternary(op: Ternary, ty: Type, flags: Flags, a: u64, b: u64, c: u64) -> u64 {
    let mul = |op| binary(op, ty, Flags::default(), a, b);
    match op {
        Ternary::Fma => {
            let [a, b, c] = [a, b, c].map(|bits| flush(ty, flags, bits & ty.mask()));
            let out = if ty == Type::F32 {
                let [x, y, z] = [a, b, c].map(|bits| f32::from_bits(bits as u32));
                fma(x, y, z, flags.round).to_bits().into()
            } else {
                ty.nearest(ty.real(a).mul_add(ty.real(b), ty.real(c)))
            };
            finish(ty, flags, out)
        }
        Ternary::Dot { halves, high, signed } => {
            let part = |word: u64, i: u32, bits: u32, signed: bool| {
                let field = (word as u32) >> (i * bits) << (32 - bits);
                if signed { (field as i32) >> (32 - bits) } else { (field >> (32 - bits)) as i32 }
            };
            let terms = if halves { 2 } else { 4 };
            let sum = (0..terms).fold(c as u32 as i32, |sum, i| {
                let x = part(a, i, if halves { 16 } else { 8 }, signed[0]);
                let y = part(b, if halves && high { i + 2 } else { i }, 8, signed[1]);
                sum.wrapping_add(x.wrapping_mul(y))
            });
            u64::from(sum as u32)
        }
        Ternary::Mad => mul(Binary::Mul).wrapping_add(c) & ty.mask(),
        Ternary::MadHi => mul(Binary::MulHi).wrapping_add(c) & ty.mask(),
        Ternary::MadWide => mul(Binary::MulWide).wrapping_add(c) & (u64::MAX >> (64 - 2 * ty.bits().min(32))),
        Ternary::Bfe => {
            let (pos, len) = (b as u32 & 255, c as u32 & 255);
            let x = ty.integer(a) >> pos.min(ty.bits());
            let len = len.min(ty.bits());
            if len == 0 {
                return 0;
            }
            let field = (x as u64) & (u64::MAX >> (64 - len));
            let extend = ty.is_signed() && field >> (len - 1) == 1;
            (if extend && len < 64 { field | (u64::MAX << len) } else { field }) & ty.mask()
        }
        Ternary::Prmt => {
            let bytes = (a & 0xffff_ffff) | (b << 32);
            (0..4).fold(0, |out, at| {
                let selector = c >> (4 * at);
                let byte = bytes >> (8 * (selector & 7)) & 255;
                let byte = if selector & 8 != 0 { (byte >> 7) * 255 } else { byte };
                out | byte << (8 * at)
            })
        }
        Ternary::Lop3(table) => {
            (0..8u64).filter(|at| table >> at & 1 == 1).fold(0, |out, at| {
                let side = |value: u64, bit: u64| if at >> bit & 1 == 1 { value } else { !value };
                out | side(a, 2) & side(b, 1) & side(c, 0)
            }) & ty.mask()
        }
        Ternary::Shf { left, wrap } => {
            let count = if wrap { c as u32 & 31 } else { (c as u32).min(32) };
            let both = (b << 32) | (a & 0xffff_ffff);
            let out = if left { (both as u128) << count >> 32 } else { (both >> count).into() };
            out as u64 & 0xffff_ffff
        }
    }
}

pub(crate) fn bfi(ty: Type, a: u64, b: u64, pos: u64, len: u64) -> u64 {
    let (pos, len) = ((pos & 255) as u32, ((len & 255) as u32).min(64));
    if pos >= ty.bits() || len == 0 {
        return b & ty.mask();
    }
    let field = (u64::MAX >> (64 - len)) << pos;
    ((b & !field) | ((a << pos) & field)) & ty.mask()
}

pub(crate) fn compare(ty: Type, how: Compare, unordered: bool, ftz: bool, a: u64, b: u64) -> bool {
    use std::cmp::Ordering;
    let order = if ty.is_float() {
        let flags = Flags { ftz, ..Flags::default() };
        ty.real(flush(ty, flags, a & ty.mask())).partial_cmp(&ty.real(flush(ty, flags, b & ty.mask())))
    } else {
        Some(ty.integer(a).cmp(&ty.integer(b)))
    };
    let Some(order) = order else { return unordered || how == Compare::Nan };
    match how {
        Compare::Eq => order == Ordering::Equal,
        Compare::Ne => order != Ordering::Equal,
        Compare::Lt => order == Ordering::Less,
        Compare::Le => order != Ordering::Greater,
        Compare::Gt => order == Ordering::Greater,
        Compare::Ge => order != Ordering::Less,
        Compare::Num => true,
        Compare::Nan => false,
    }
}

fn direct(value: f64, to: Direction) -> f64 {
    match to {
        Direction::Nearest => value.round_ties_even(),
        Direction::Zero => value.trunc(),
        Direction::Down => value.floor(),
        Direction::Up => value.ceil(),
    }
}

pub(crate) fn convert(to: Type, from: Type, round: Round, flags: Flags, relu: bool, a: u64) -> u64 {
    let a = flush(from, flags, a & from.mask());
    if !from.is_float() {
        let x = from.integer(a);
        return match to {
            // Straight from the integer: through f64 it would round twice.
            Type::F32 => finish(to, flags, (x as f32).to_bits().into()),
            Type::F64 => (x as f64).to_bits(),
            _ if to.is_float() => finish(to, flags, to.nearest(x as f64)),
            _ if flags.sat => x.clamp(lowest(to), highest(to)) as u64 & to.mask(),
            _ => x as u64 & to.mask(),
        };
    }
    let value = from.real(a);
    if !to.is_float() {
        let Round::Int(direction) = round else { return 0 };
        // NaN becomes zero, and what does not fit the nearest end.
        return (direct(value, direction) as i128).clamp(lowest(to), highest(to)) as u64 & to.mask();
    }
    let value = match round {
        Round::Int(direction) => direct(value, direction),
        _ => value,
    };
    let value = if relu && value < 0.0 { 0.0 } else { value };
    let mut out = to.nearest(value);
    // One step back where the nearest value is farther from zero; the bits of a float count its magnitude.
    if round == Round::FloatToZero && to.real(out).abs() > value.abs() {
        out -= 1;
    }
    finish(to, flags, out)
}

/// Two floats to a packed pair, `a` in the upper half.
pub(crate) fn pack(to: Type, from: Type, relu: bool, a: u64, b: u64) -> u64 {
    let half = |x| convert(to, from, Round::Nearest, Flags::default(), relu, x);
    half(a) << 16 | half(b)
}

/// What an atomic operation leaves in memory.
pub(crate) fn atomic(op: Atomic, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    let (b, c) = (b & ty.mask(), c & ty.mask());
    match op {
        Atomic::Exch => b,
        Atomic::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        Atomic::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        Atomic::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        Atomic::Apply(op) => binary(op, ty, Flags::default(), old, b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_parts() {
        let dot = |halves, high, signed, a: u32, b: u32, c: u32| {
            let op = Ternary::Dot { halves, high, signed };
            ternary(op, Type::U32, Flags::default(), a.into(), b.into(), c.into()) as u32
        };
        assert_eq!(dot(true, false, [false; 2], 0x0003_0002, 0xff05_0704, 10), 2 * 4 + 3 * 7 + 10);
        assert_eq!(dot(true, true, [false; 2], 0x0003_0002, 0xff05_0704, 10), 2 * 5 + 3 * 255 + 10);
        assert_eq!(dot(false, false, [true; 2], 0xff02_0304, 0x0102_ff05, 0) as i32, 20 - 3 + 4 - 1);
    }

    #[test]
    fn sums_are_rounded_as_asked() {
        let tiny = 2f32.powi(-30);
        for (z, down, up, zero) in
            [(1.0f32, 1.0f32, 1.0f32.next_up(), 1.0f32), (-1.0, -1.0, (-1.0f32).next_up(), (-1.0f32).next_up())]
        {
            let by = |round| fma(tiny, 1.0, z, round);
            assert_eq!((by(Direction::Nearest), by(Direction::Down)), (z, down));
            assert_eq!((by(Direction::Up), by(Direction::Zero)), (up, zero));
            // what is exact stays
            assert_eq!(fma(2.0, 3.0, z, Direction::Down), 6.0 + z);
        }
        // the trick that takes an integer part: to the grid of 12582912
        assert_eq!(fma(0.75, 1.0, 12_582_912.0, Direction::Down), 12_582_912.0);
    }
}
