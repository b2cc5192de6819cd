//! Moves, memory and conversions. Asynchronous copies and matrix loads belong here too.

use super::{Cx, Decoded, Operand, unsupported};
use crate::inst::*;
use crate::types::Type;

pub(super) fn decode(name: &str, cx: &mut Cx<'_, '_>) -> Decoded {
    match name {
        "mov" => mov(cx),
        "ld" | "ldu" => load(cx),
        "st" => store(cx),
        "cvt" => convert(cx),
        "cvta" => {
            let to_space = cx.take("to");
            let space = space(cx);
            cx.ty()?;
            cx.count(2..=2)?;
            Ok(Op::Cvta { space, to_space, dst: cx.dst(0)?, a: cx.value(1, Type::U64)? })
        }
        "atom" | "red" => atomic(cx, name == "atom"),
        "prefetch" => {
            cx.mods.clear();
            Ok(Op::Nop)
        }
        _ => Err(unsupported(&format!("{name}.{}", cx.mods.join(".")))),
    }
}

fn space(cx: &mut Cx<'_, '_>) -> Space {
    let found = cx.pick(|name| {
        Some(match name {
            "global" => Space::Global,
            "shared" | "shared::cta" => Space::Shared,
            "local" => Space::Local,
            "param" | "param::entry" => Space::Param,
            "const" => Space::Const,
            _ => return None,
        })
    });
    found.unwrap_or(Space::Generic)
}

fn mov(cx: &mut Cx<'_, '_>) -> Decoded {
    // `mov` only copies, so a packed type is as good as its bits.
    let ty = cx.pick(Type::parse).ok_or("a type is missing")?;
    cx.count(2..=2)?;
    match (cx.operand(0)?, cx.operand(1)?) {
        (Operand::Vector(parts), _) => {
            let dst = sinks(parts)?;
            let bits = part_bits(ty, parts.len())?;
            Ok(Op::Unpack { dst, src: cx.value(1, ty)?, bits })
        }
        (_, Operand::Vector(parts)) => {
            let bits = part_bits(ty, parts.len())?;
            let part = if bits == 32 { Type::B32 } else { Type::B16 };
            let parts = parts.iter().map(|operand| cx.as_value(operand, part)).collect::<Result<_, _>>()?;
            Ok(Op::Pack { dst: cx.dst(0)?, parts, bits })
        }
        _ => Ok(Op::Mov { dst: cx.dst(0)?, src: cx.value(1, ty)? }),
    }
}

fn part_bits(ty: Type, parts: usize) -> Decoded<u32> {
    match (ty.bits(), parts) {
        (bits, 2) | (bits, 4) if bits / parts as u32 >= 8 => Ok(bits / parts as u32),
        _ => Err("a vector that does not fit its register".into()),
    }
}

fn sinks(parts: &[Operand<'_>]) -> Decoded<Vec<Option<Reg>>> {
    let one = |operand: &Operand<'_>| match operand {
        Operand::Value(Value::Reg(reg)) => Ok(Some(*reg)),
        Operand::Sink => Ok(None),
        _ => Err("a vector of results that are no registers".to_string()),
    };
    parts.iter().map(one).collect()
}

/// Modifiers of loads and stores that order or cache, but move the same bytes.
const CACHING: &[&str] = &[
    "volatile",
    "relaxed",
    "weak",
    "acquire",
    "release",
    "cta",
    "gpu",
    "sys",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
    "L1::evict_normal",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::64B",
    "L2::128B",
    "L2::256B",
];

fn vector(cx: &mut Cx<'_, '_>) -> usize {
    match (cx.take("v2"), cx.take("v4")) {
        (true, _) => 2,
        (_, true) => 4,
        _ => 1,
    }
}

fn access(cx: &mut Cx<'_, '_>) -> Decoded<(Space, usize, Type)> {
    cx.ignore(CACHING);
    cx.count(2..=2)?;
    let (space, width) = (space(cx), vector(cx));
    let ty = cx.ty()?;
    if ty == Type::Pred || ty.bytes() * width > 16 {
        return Err("an access that is wider than 16 bytes, or of a predicate".into());
    }
    Ok((space, width, ty))
}

fn load(cx: &mut Cx<'_, '_>) -> Decoded {
    let (space, width, ty) = access(cx)?;
    let dst = match cx.operand(0)? {
        Operand::Vector(parts) => sinks(parts)?,
        _ => vec![Some(cx.dst(0)?)],
    };
    if dst.len() != width {
        return Err("a vector of another length than its instruction's".into());
    }
    Ok(Op::Ld { space, ty, dst, address: cx.address(1)? })
}

fn store(cx: &mut Cx<'_, '_>) -> Decoded {
    let (space, width, ty) = access(cx)?;
    let src: Vec<_> = match cx.operand(1)? {
        Operand::Vector(parts) => parts.iter().map(|operand| cx.as_value(operand, ty)).collect::<Result<_, _>>()?,
        _ => vec![cx.value(1, ty)?],
    };
    if src.len() != width {
        return Err("a vector of another length than its instruction's".into());
    }
    Ok(Op::St { space, ty, src, address: cx.address(0)? })
}

fn atomic(cx: &mut Cx<'_, '_>, returns: bool) -> Decoded {
    cx.ignore(&["relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys", "noftz"]);
    let space = space(cx);
    let op = cx.pick(|name| {
        Some(match name {
            "exch" => Atomic::Exch,
            "cas" => Atomic::Cas,
            "inc" => Atomic::Inc,
            "dec" => Atomic::Dec,
            "add" => Atomic::Apply(Binary::Add),
            "min" => Atomic::Apply(Binary::Min { nan: false }),
            "max" => Atomic::Apply(Binary::Max { nan: false }),
            "and" => Atomic::Apply(Binary::And),
            "or" => Atomic::Apply(Binary::Or),
            "xor" => Atomic::Apply(Binary::Xor),
            _ => return None,
        })
    });
    let op = op.ok_or("an atomic operation that is not supported")?;
    let ty = cx.ty()?;
    let integer_only = !matches!(
        op,
        Atomic::Exch | Atomic::Cas | Atomic::Apply(Binary::Add | Binary::Min { .. } | Binary::Max { .. })
    );
    if ty == Type::Pred || (ty.is_float() && integer_only) {
        return Err("an atomic operation of a type that it does not have".into());
    }
    let first = usize::from(returns);
    let cas = usize::from(op == Atomic::Cas);
    cx.count(first + 2 + cas..=first + 2 + cas)?;
    let dst = if returns { cx.results(0)?.0 } else { None };
    let b = cx.value(first + 1, ty)?;
    let c = if cas == 1 { cx.value(first + 2, ty)? } else { b };
    Ok(Op::Atom { space, op, ty, dst, address: cx.address(first)?, b, c })
}

fn convert(cx: &mut Cx<'_, '_>) -> Decoded {
    if cx.take("tf32") {
        let ty = cx.ty()?;
        if !cx.take("rna") || ty != Type::F32 {
            return Err("a conversion to tf32 of another kind".into());
        }
        cx.count(2..=2)?;
        return Ok(Op::Unary { op: Unary::Tf32, ty, flags: Flags::default(), dst: cx.dst(0)?, a: cx.value(1, ty)? });
    }
    let round = cx.pick(|name| {
        Some(match name {
            "rn" => Round::Nearest,
            "rni" => Round::Int(Direction::Nearest),
            "rzi" => Round::Int(Direction::Zero),
            "rmi" => Round::Int(Direction::Down),
            "rpi" => Round::Int(Direction::Up),
            "rz" => Round::FloatToZero,
            _ => return None,
        })
    });
    let flags = cx.flags();
    let relu = cx.take("relu");
    let pair = cx.pick(|name| match name {
        "f16x2" => Some(Type::F16),
        "bf16x2" => Some(Type::BF16),
        _ => None,
    });
    if let Some(to) = pair {
        let from = cx.ty()?;
        cx.count(3..=3)?;
        if round != Some(Round::Nearest) {
            return Err("a packed conversion that does not round to nearest".into());
        }
        return Ok(Op::CvtPack { to, from, relu, dst: cx.dst(0)?, a: cx.value(1, from)?, b: cx.value(2, from)? });
    }
    let (to, from) = (cx.ty()?, cx.ty()?);
    cx.count(2..=2)?;
    if to == Type::Pred || from == Type::Pred {
        return Err("a conversion of a predicate".into());
    }
    let integer_rounding = matches!(round, Some(Round::Int(_)));
    if round == Some(Round::FloatToZero) && !(to.is_float() && from.is_float()) {
        return Err("an integer converted with rounding toward zero".into());
    }
    if from.is_float() && !to.is_float() && !integer_rounding {
        return Err("a conversion to an integer without an integer rounding".into());
    }
    let round = round.unwrap_or(Round::Nearest);
    Ok(Op::Cvt { to, from, round, flags, relu, dst: cx.dst(0)?, a: cx.value(1, from)? })
}
