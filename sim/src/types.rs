//! Types of PTX operands.

/// A type that an instruction, a register or a variable has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are PTX's own")]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    BF16,
    F32,
    F64,
}

impl Type {
    /// The type a modifier names, without its dot.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" | "f16x2" | "bf16x2" => Self::B32,
            "b64" => Self::B64,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "bf16" => Self::BF16,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    /// Width in bits; a predicate has one.
    pub fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::B8 | Self::U8 | Self::S8 => 8,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::BF16 => 16,
            Self::B32 | Self::U32 | Self::S32 | Self::F32 => 32,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 64,
        }
    }

    /// Bytes in memory.
    pub fn bytes(self) -> usize {
        self.bits().div_ceil(8) as usize
    }

    /// The bits a value of this type may have set.
    pub fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }

    /// Whether it is a signed integer.
    pub fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    /// The integer that bits of this type stand for.
    pub fn integer(self, bits: u64) -> i128 {
        let bits = bits & self.mask();
        let shift = 64 - self.bits();
        if self.is_signed() { (((bits << shift) as i64) >> shift).into() } else { bits.into() }
    }

    /// The real number that bits of this floating-point type stand for; of other types, their integer.
    pub fn real(self, bits: u64) -> f64 {
        match self {
            Self::F64 => f64::from_bits(bits),
            Self::F32 => f32::from_bits(bits as u32).into(),
            Self::BF16 => f32::from_bits((bits as u32) << 16).into(),
            Self::F16 => half_to_f64(bits as u16),
            _ => self.integer(bits) as f64,
        }
    }

    /// Bits of the nearest value of this floating-point type (ties to even); of other types, the integer part.
    pub fn nearest(self, value: f64) -> u64 {
        match self {
            Self::F64 => value.to_bits(),
            Self::F32 => (value as f32).to_bits().into(),
            Self::BF16 => round_small(value, 8, 7),
            Self::F16 => round_small(value, 5, 10),
            _ if self.is_signed() => (value as i64) as u64 & self.mask(),
            _ => value as u64 & self.mask(),
        }
    }
}

fn half_to_f64(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 31);
    let fraction = f64::from(bits & 1023);
    sign * match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    }
}

/// Rounds to a sign, `exponent` and `fraction` bits, ties to even, overflow to infinity.
fn round_small(value: f64, exponent: u32, fraction: u32) -> u64 {
    let sign = u64::from(value.is_sign_negative()) << (exponent + fraction);
    let infinity = ((1u64 << exponent) - 1) << fraction;
    if value.is_nan() {
        return infinity | ((1 << fraction) - 1);
    }
    let magnitude = value.abs();
    let bias = (1i32 << (exponent - 1)) - 1;
    let power = ((magnitude.to_bits() >> 52) as i32 - 1023).max(1 - bias);
    // In units of the last place at this power; exact, because it only changes the exponent.
    let units = magnitude * 2f64.powi(fraction as i32 - power);
    let units = units.round_ties_even();
    if units >= 2f64.powi(fraction as i32 + 2) {
        return sign | infinity;
    }
    // A carry out of the fraction raises the exponent by itself.
    let bits = ((power + bias - 1) as u64) << fraction;
    sign | (bits + units as u64).min(infinity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_a_round_trip() {
        for bits in 0..=u16::MAX {
            for ty in [Type::F16, Type::BF16] {
                let value = ty.real(bits.into());
                if !value.is_nan() {
                    assert_eq!(ty.nearest(value), u64::from(bits), "{ty:?} {value}");
                }
            }
        }
    }

    #[test]
    fn small_floats_round_to_even_and_overflow_to_infinity() {
        assert_eq!(Type::F16.nearest(2049.0), 0x6800);
        assert_eq!(Type::F16.nearest(2051.0), 0x6802);
        assert_eq!(Type::F16.nearest(65519.0), 0x7bff);
        assert_eq!(Type::F16.nearest(65520.0), 0x7c00);
        assert_eq!(Type::BF16.nearest(1e39), 0x7f80);
        assert_eq!(Type::F16.nearest(1e300), 0x7c00);
        assert_eq!(Type::F16.nearest(2f64.powi(-25)), 0);
    }

    #[test]
    fn integers_are_read_with_their_sign() {
        assert_eq!(Type::S8.integer(0x1ff), -1);
        assert_eq!(Type::U8.integer(0x1ff), 255);
        assert_eq!(Type::S64.integer(u64::MAX), -1);
    }
}
