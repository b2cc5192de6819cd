//! Asynchronous copies to shared memory, and loads and products of matrices by a warp.

use super::{Cx, Decoded, Operand, unsupported};
use crate::inst::*;
use crate::types::Type;

pub(super) fn decode(name: &str, cx: &mut Cx<'_, '_>) -> Decoded {
    match name {
        "cp" => copy(cx),
        "ldmatrix" => load(cx),
        "mma" => multiply(cx),
        _ => Err(unsupported(&format!("{name}.{}", cx.mods.join(".")))),
    }
}

/// `cp.async`, its groups and waits. Bulk copies are another family.
fn copy(cx: &mut Cx<'_, '_>) -> Decoded {
    if !cx.take("async") {
        return Err(unsupported(&format!("cp.{}", cx.mods.join("."))));
    }
    if cx.take("commit_group") {
        cx.count(0..=0)?;
        return Ok(Op::CommitGroup);
    }
    if cx.take("wait_group") {
        cx.count(1..=1)?;
        return Ok(Op::WaitGroup { pending: cx.value(0, Type::U32)? });
    }
    if cx.take("wait_all") {
        cx.count(0..=0)?;
        return Ok(Op::WaitGroup { pending: Value::Imm(0) });
    }
    let bypass = cx.take("cg");
    if !bypass && !cx.take("ca") {
        return Err("an asynchronous copy of another kind".into());
    }
    cx.ignore(&["L2::64B", "L2::128B", "L2::256B"]);
    if !(cx.take("shared") || cx.take("shared::cta")) || !cx.take("global") {
        return Err("an asynchronous copy that is not from global to shared memory".into());
    }
    cx.count(3..=4)?;
    let bytes = match cx.operand(2)? {
        Operand::Literal(literal) => literal.bits(Type::U32) as usize,
        _ => return Err("the size of an asynchronous copy is a number".into()),
    };
    if !matches!(bytes, 4 | 8 | 16) || bypass && bytes != 16 {
        return Err(format!("an asynchronous copy of {bytes} bytes"));
    }
    let read = if cx.operands.len() == 4 { Some(cx.value(3, Type::U32)?) } else { None };
    Ok(Op::CopyAsync { to: cx.address(0)?, from: cx.address(1)?, bytes, read })
}

fn load(cx: &mut Cx<'_, '_>) -> Decoded {
    cx.ignore(&["sync", "aligned", "shared", "shared::cta"]);
    let count = cx.pick(|name| match name {
        "x1" => Some(1),
        "x2" => Some(2),
        "x4" => Some(4),
        _ => None,
    });
    let transpose = cx.take("trans");
    let (Some(count), true, true) = (count, cx.take("m8n8"), cx.take("b16")) else {
        return Err("a load of matrices that are not 8 × 8 of 16 bits".into());
    };
    cx.count(2..=2)?;
    let dst = registers(cx, 0)?;
    if dst.len() != count {
        return Err("a load of matrices to another number of registers".into());
    }
    Ok(Op::LoadMatrix { dst, address: cx.address(1)?, transpose })
}

fn multiply(cx: &mut Cx<'_, '_>) -> Decoded {
    if !(cx.take("sync") && cx.take("aligned") && cx.take("row") && cx.take("col")) {
        return Err("a product of matrices that lie otherwise than row by column".into());
    }
    let shape = cx.pick(|name| name.starts_with('m').then(|| name.to_string())).unwrap_or_default();
    let types = cx.mods.join(".");
    let kind = match (shape.as_str(), types.as_str()) {
        ("m16n8k16", "f32.bf16.bf16.f32") => MatrixKind::Half(Type::BF16),
        ("m16n8k16", "f32.f16.f16.f32") => MatrixKind::Half(Type::F16),
        ("m16n8k8", "f32.tf32.tf32.f32") => MatrixKind::Tf32,
        ("m16n8k32", "s32.s8.s8.s32") => MatrixKind::Bytes([Type::S8, Type::S8]),
        ("m16n8k32", "s32.u8.u8.s32") => MatrixKind::Bytes([Type::U8, Type::U8]),
        ("m16n8k32", "s32.s8.u8.s32") => MatrixKind::Bytes([Type::S8, Type::U8]),
        ("m16n8k32", "s32.u8.s8.s32") => MatrixKind::Bytes([Type::U8, Type::S8]),
        _ => return Err(unsupported(&format!("mma.{shape}.{types}"))),
    };
    cx.mods.clear();
    cx.count(4..=4)?;
    let [d, a, b, c] = [0, 1, 2, 3].map(|at| registers(cx, at));
    let (d, a, b, c) = (d?, a?, b?, c?);
    if (d.len(), a.len(), b.len(), c.len()) != (4, 4, 2, 4) {
        return Err("a product of matrices in other numbers of registers".into());
    }
    Ok(Op::Multiply { kind, d, a, b, c })
}

fn registers(cx: &Cx<'_, '_>, at: usize) -> Decoded<Vec<Reg>> {
    let one = |operand: &Operand<'_>| match operand {
        Operand::Value(Value::Reg(reg)) => Ok(*reg),
        _ => Err(format!("operand {} is no list of registers", at + 1)),
    };
    match cx.operand(at)? {
        Operand::Vector(parts) => parts.iter().map(one).collect(),
        operand => Ok(vec![one(operand)?]),
    }
}
