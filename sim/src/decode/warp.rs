//! Control flow, barriers and operations of a whole warp. Matrix operations belong here too.

use super::{Cx, Decoded, unsupported};
use crate::inst::*;
use crate::types::Type;

pub(super) fn decode(name: &str, cx: &mut Cx<'_, '_>) -> Decoded {
    match name {
        "bra" => {
            cx.take("uni");
            cx.count(1..=1)?;
            Ok(Op::Bra { target: 0 })
        }
        "ret" | "exit" => {
            cx.take("uni");
            cx.count(0..=0)?;
            Ok(Op::Exit)
        }
        "trap" => Ok(Op::Trap),
        "bar" | "barrier" => barrier(cx),
        "shfl" => shuffle(cx),
        "vote" => vote(cx),
        "activemask" => {
            cx.ty()?;
            Ok(Op::ActiveMask { dst: cx.dst(0)? })
        }
        "membar" | "fence" | "nanosleep" => {
            cx.mods.clear();
            Ok(Op::Nop)
        }
        _ => Err(unsupported(&format!("{name}.{}", cx.mods.join(".")))),
    }
}

fn barrier(cx: &mut Cx<'_, '_>) -> Decoded {
    if cx.take("warp") {
        cx.take("sync");
        cx.count(1..=1)?;
        return Ok(Op::WarpSync { mask: cx.value(0, Type::U32)? });
    }
    cx.ignore(&["cta", "aligned"]);
    let wait = cx.take("sync");
    if !wait && !cx.take("arrive") {
        return Err("a barrier that is not supported".into());
    }
    cx.count(1..=2)?;
    let count = if cx.operands.len() == 2 { Some(cx.value(1, Type::U32)?) } else { None };
    if !wait && count.is_none() {
        return Err("an arrival without a thread count".into());
    }
    Ok(Op::Bar { id: cx.value(0, Type::U32)?, count, wait })
}

fn shuffle(cx: &mut Cx<'_, '_>) -> Decoded {
    if !cx.take("sync") {
        return Err("a shuffle without `.sync`".into());
    }
    let mode = cx.pick(|name| {
        Some(match name {
            "up" => Shuffle::Up,
            "down" => Shuffle::Down,
            "bfly" => Shuffle::Bfly,
            "idx" => Shuffle::Idx,
            _ => return None,
        })
    });
    let mode = mode.ok_or("a shuffle without a mode")?;
    let ty = cx.ty()?;
    cx.count(5..=5)?;
    if ty.bits() != 32 {
        return Err("a shuffle of another width than 32 bits".into());
    }
    let (dst, valid) = cx.results(0)?;
    let (a, b, c) = (cx.value(1, ty)?, cx.value(2, Type::U32)?, cx.value(3, Type::U32)?);
    Ok(Op::Shfl { mode, dst, valid, a, b, c, mask: cx.value(4, Type::U32)? })
}

fn vote(cx: &mut Cx<'_, '_>) -> Decoded {
    if !cx.take("sync") {
        return Err("a vote without `.sync`".into());
    }
    let mode = cx.pick(|name| {
        Some(match name {
            "all" => Vote::All,
            "any" => Vote::Any,
            "uni" => Vote::Uni,
            "ballot" => Vote::Ballot,
            _ => return None,
        })
    });
    let mode = mode.ok_or("a vote without a mode")?;
    cx.ty()?;
    cx.count(3..=3)?;
    let (a, negated) = cx.predicate(1)?;
    Ok(Op::Vote { mode, dst: cx.dst(0)?, a, negated, mask: cx.value(2, Type::U32)? })
}
