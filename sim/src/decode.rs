//! Opcodes with their modifiers and operands to [`Op`]s. Errors are messages; the parser adds the line.

use crate::inst::*;
use crate::parse::Literal;
use crate::types::Type;

mod data;
mod matrix;
mod warp;

/// An operand as the text has it.
#[derive(Clone, Debug)]
pub(crate) enum Operand<'a> {
    Value(Value),
    Literal(Literal),
    Not(Value),
    Vector(Vec<Operand<'a>>),
    Address(Address),
    Pair(Box<(Operand<'a>, Operand<'a>)>),
    /// `_`: a result that nobody wants.
    Sink,
    /// A label, or a name that is not known.
    Name(&'a str),
}

/// Result of decoding.
type Decoded<T = Op> = Result<T, String>;

/// The instruction of an opcode such as `ld.global.v4.f32`.
pub(crate) fn instruction(opcode: &str, operands: &[Operand<'_>]) -> Decoded {
    let mut parts = opcode.split('.');
    let name = parts.next().unwrap_or("");
    let mut cx = Cx { mods: parts.collect(), operands };
    let op = match name {
        "mov" | "ld" | "ldu" | "st" | "cvt" | "cvta" | "isspacep" | "prefetch" | "atom" | "red" | "mbarrier"
        | "stmatrix" => data::decode(name, &mut cx)?,
        "bra" | "ret" | "exit" | "trap" | "bar" | "barrier" | "shfl" | "vote" | "activemask" | "membar" | "fence"
        | "nanosleep" | "wgmma" => warp::decode(name, &mut cx)?,
        "cp" | "ldmatrix" | "mma" => matrix::decode(name, &mut cx)?,
        _ => cx.arithmetic(name)?,
    };
    match cx.mods.first() {
        Some(left) => Err(format!("modifier `.{left}` of `{name}` is not supported")),
        None => Ok(op),
    }
}

fn unsupported(name: &str) -> String {
    format!("opcode `{name}` is not supported")
}

/// The modifiers still to be understood, and the operands.
struct Cx<'t, 'a> {
    mods: Vec<&'t str>,
    operands: &'t [Operand<'a>],
}

impl Cx<'_, '_> {
    /// Takes a modifier, if it is there.
    fn take(&mut self, name: &str) -> bool {
        let found = self.mods.iter().position(|&m| m == name);
        found.map(|at| self.mods.remove(at)).is_some()
    }

    /// Takes all modifiers that change nothing here.
    fn ignore(&mut self, names: &[&str]) {
        self.mods.retain(|m| !names.contains(m));
    }

    /// Takes the first modifier that a function knows.
    fn pick<T>(&mut self, known: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (at, value) = self.mods.iter().enumerate().find_map(|(at, m)| known(m).map(|value| (at, value)))?;
        self.mods.remove(at);
        Some(value)
    }

    /// Takes the first type.
    fn ty(&mut self) -> Decoded<Type> {
        if self.mods.iter().any(|m| matches!(*m, "f16x2" | "bf16x2")) {
            return Err("packed arithmetic is not supported".into());
        }
        self.pick(Type::parse).ok_or_else(|| "a type is missing".into())
    }

    fn count(&self, counts: std::ops::RangeInclusive<usize>) -> Decoded<()> {
        if counts.contains(&self.operands.len()) { Ok(()) } else { Err("wrong number of operands".into()) }
    }

    fn flags(&mut self) -> Flags {
        let round = self.pick(|name| {
            Some(match name {
                "rz" => Direction::Zero,
                "rm" => Direction::Down,
                "rp" => Direction::Up,
                _ => return None,
            })
        });
        Flags { ftz: self.take("ftz"), sat: self.take("sat"), round: round.unwrap_or_default() }
    }

    fn operand(&self, at: usize) -> Decoded<&Operand<'_>> {
        self.operands.get(at).ok_or_else(|| "an operand is missing".into())
    }

    fn dst(&self, at: usize) -> Decoded<Reg> {
        match self.operand(at)? {
            Operand::Value(Value::Reg(reg)) => Ok(*reg),
            _ => Err(format!("operand {} is no register", at + 1)),
        }
    }

    fn value(&self, at: usize, ty: Type) -> Decoded<Value> {
        self.as_value(self.operand(at)?, ty)
    }

    fn as_value(&self, operand: &Operand<'_>, ty: Type) -> Decoded<Value> {
        match operand {
            Operand::Value(value) => Ok(*value),
            Operand::Literal(literal) => Ok(Value::Imm(literal.bits(ty))),
            Operand::Name(name) => Err(format!("nothing is called `{name}`")),
            _ => Err("an operand of a kind that does not fit".into()),
        }
    }

    fn address(&self, at: usize) -> Decoded<Address> {
        match self.operand(at)? {
            Operand::Address(address) => Ok(*address),
            _ => Err(format!("operand {} is no address", at + 1)),
        }
    }

    /// A predicate and whether it is negated.
    fn predicate(&self, at: usize) -> Decoded<(Value, bool)> {
        match self.operand(at)? {
            Operand::Not(value) => Ok((*value, true)),
            Operand::Literal(literal) => Ok((Value::Imm(literal.bits(Type::B32).min(1)), false)),
            operand => Ok((self.as_value(operand, Type::Pred)?, false)),
        }
    }

    /// A destination that may be `_`, or a pair of them.
    fn results(&self, at: usize) -> Decoded<(Option<Reg>, Option<Reg>)> {
        let one = |operand: &Operand<'_>| match operand {
            Operand::Value(Value::Reg(reg)) => Ok(Some(*reg)),
            Operand::Sink => Ok(None),
            _ => Err(format!("operand {} is no register", at + 1)),
        };
        match self.operand(at)? {
            Operand::Pair(pair) => Ok((one(&pair.0)?, one(&pair.1)?)),
            operand => Ok((one(operand)?, None)),
        }
    }

    fn arithmetic(&mut self, name: &str) -> Decoded {
        match name {
            "setp" => return self.setp(),
            "set" => return self.set(),
            "selp" => {
                let ty = self.ty()?;
                let (pred, negated) = self.predicate(3)?;
                let (a, b) = if negated { (2, 1) } else { (1, 2) };
                return Ok(Op::Selp { dst: self.dst(0)?, a: self.value(a, ty)?, b: self.value(b, ty)?, pred });
            }
            "dp2a" | "dp4a" => {
                let halves = name == "dp2a";
                let high = self.take("hi");
                self.take("lo");
                let (a, b) = (self.ty()?, self.ty()?);
                if ![a, b].iter().all(|ty| matches!(ty, Type::U32 | Type::S32)) {
                    return Err(format!("`{name}` of a type that it does not have"));
                }
                let op = Ternary::Dot { halves, high, signed: [a.is_signed(), b.is_signed()] };
                let (x, y, z) = (self.value(1, a)?, self.value(2, b)?, self.value(3, Type::U32)?);
                return Ok(Op::Ternary {
                    op,
                    ty: Type::U32,
                    flags: Flags::default(),
                    dst: self.dst(0)?,
                    a: x,
                    b: y,
                    c: z,
                });
            }
            "slct" => {
                self.take("ftz");
                let (ty, by) = (self.ty()?, self.ty()?);
                let (a, b, c) = (self.value(1, ty)?, self.value(2, ty)?, self.value(3, by)?);
                return Ok(Op::Slct { dst: self.dst(0)?, a, b, by, c });
            }
            "bfi" => {
                let ty = self.ty()?;
                let (a, b) = (self.value(1, ty)?, self.value(2, ty)?);
                let (pos, len) = (self.value(3, Type::U32)?, self.value(4, Type::U32)?);
                return Ok(Op::Bfi { ty, dst: self.dst(0)?, a, b, pos, len });
            }
            _ => {}
        }
        let unary = match name {
            "neg" => Some(Unary::Neg),
            "abs" => Some(Unary::Abs),
            "not" => Some(Unary::Not),
            "cnot" => Some(Unary::CNot),
            "ex2" => Some(Unary::Ex2),
            "lg2" => Some(Unary::Lg2),
            "rcp" => Some(Unary::Rcp),
            "rsqrt" => Some(Unary::Rsqrt),
            "sqrt" => Some(Unary::Sqrt),
            "sin" => Some(Unary::Sin),
            "cos" => Some(Unary::Cos),
            "tanh" => Some(Unary::Tanh),
            "popc" => Some(Unary::Popc),
            "clz" => Some(Unary::Clz),
            "brev" => Some(Unary::Brev),
            _ => None,
        };
        if let Some(op) = unary {
            self.count(2..=2)?;
            self.ignore(&["approx", "rn"]);
            let flags = self.flags();
            let ty = self.ty()?;
            if flags.round != Direction::Nearest {
                return Err(format!("`{name}` with that rounding"));
            }
            let float_only = !matches!(
                op,
                Unary::Neg | Unary::Abs | Unary::Not | Unary::CNot | Unary::Popc | Unary::Clz | Unary::Brev
            );
            if float_only && !ty.is_float() {
                return Err(format!("`{name}` of a type that is no float"));
            }
            return Ok(Op::Unary { op, ty, flags, dst: self.dst(0)?, a: self.value(1, ty)? });
        }
        if let Some(op) = self.ternary(name)? {
            self.count(4..=5)?;
            self.ignore(&["rn", "lo"]);
            let flags = self.flags();
            let ty = self.ty()?;
            if flags.round != Direction::Nearest && (op != Ternary::Fma || ty != Type::F32) {
                return Err(format!("`{name}` with that rounding"));
            }
            if (op == Ternary::Fma) != ty.is_float() {
                return Err(format!("`{name}` of a type that it does not have"));
            }
            let wide = if op == Ternary::MadWide { self.wide(ty)? } else { ty };
            let (a, b, c) = match op {
                Ternary::Bfe => (self.value(1, ty)?, self.value(2, Type::U32)?, self.value(3, Type::U32)?),
                _ => (self.value(1, ty)?, self.value(2, ty)?, self.value(3, wide)?),
            };
            return Ok(Op::Ternary { op, ty, flags, dst: self.dst(0)?, a, b, c });
        }
        let Some(op) = self.binary(name) else { return Err(unsupported(name)) };
        self.count(3..=3)?;
        self.ignore(&["rn", "lo", "full", "approx"]);
        let flags = self.flags();
        let ty = self.ty()?;
        let exact = matches!(op, Binary::Add | Binary::Sub | Binary::Mul);
        if flags.round != Direction::Nearest && (!exact || ty != Type::F32) {
            return Err(format!("`{name}` with that rounding"));
        }
        let float_ops = matches!(op, Binary::CopySign);
        let integer_ops = matches!(op, Binary::MulHi | Binary::MulWide | Binary::Rem | Binary::Shl | Binary::Shr)
            || matches!(op, Binary::And | Binary::Or | Binary::Xor);
        if (float_ops && !ty.is_float()) || (integer_ops && ty.is_float()) {
            return Err(format!("`{name}` of a type that it does not have"));
        }
        if ty == Type::Pred && !matches!(op, Binary::And | Binary::Or | Binary::Xor) {
            return Err(format!("`{name}` of predicates"));
        }
        if op == Binary::MulWide {
            self.wide(ty)?;
        }
        let shift = matches!(op, Binary::Shl | Binary::Shr);
        let (mut a, mut b) = (self.value(1, ty)?, self.value(2, if shift { Type::U32 } else { ty })?);
        if op == Binary::CopySign {
            // PTX takes the sign of its first operand; ours is the magnitude.
            std::mem::swap(&mut a, &mut b);
        }
        Ok(Op::Binary { op, ty, flags, dst: self.dst(0)?, a, b })
    }

    /// The type twice as wide.
    fn wide(&self, ty: Type) -> Decoded<Type> {
        match ty {
            Type::U16 => Ok(Type::U32),
            Type::S16 => Ok(Type::S32),
            Type::U32 => Ok(Type::U64),
            Type::S32 => Ok(Type::S64),
            _ => Err("a wide product of a type that has none".into()),
        }
    }

    fn binary(&mut self, name: &str) -> Option<Binary> {
        Some(match name {
            "add" => Binary::Add,
            "sub" => Binary::Sub,
            "mul" if self.take("hi") => Binary::MulHi,
            "mul" if self.take("wide") => Binary::MulWide,
            "mul" => Binary::Mul,
            "div" => Binary::Div,
            "rem" => Binary::Rem,
            "min" => Binary::Min { nan: self.take("NaN") },
            "max" => Binary::Max { nan: self.take("NaN") },
            "and" => Binary::And,
            "or" => Binary::Or,
            "xor" => Binary::Xor,
            "shl" => Binary::Shl,
            "shr" => Binary::Shr,
            "copysign" => Binary::CopySign,
            _ => return None,
        })
    }

    fn ternary(&mut self, name: &str) -> Decoded<Option<Ternary>> {
        let float = self.mods.iter().any(|m| Type::parse(m).is_some_and(Type::is_float));
        Ok(Some(match name {
            "fma" => Ternary::Fma,
            "mad" if float => Ternary::Fma,
            "mad" if self.take("hi") => Ternary::MadHi,
            "mad" if self.take("wide") => Ternary::MadWide,
            "mad" => Ternary::Mad,
            "bfe" => Ternary::Bfe,
            "prmt" => Ternary::Prmt,
            "lop3" => match self.operands.get(4) {
                Some(Operand::Literal(table)) => Ternary::Lop3(table.bits(Type::U8) as u8),
                _ => return Err("`lop3` needs a table that is a number".into()),
            },
            "shf" => {
                let left = self.take("l");
                if !left && !self.take("r") {
                    return Err("`shf` needs a direction".into());
                }
                let wrap = self.take("wrap");
                self.take("clamp");
                Ternary::Shf { left, wrap }
            }
            _ => return Ok(None),
        }))
    }

    fn compare(&mut self) -> Decoded<(Compare, bool)> {
        let found = self.pick(|name| {
            Some(match name {
                "eq" => (Compare::Eq, false),
                "ne" => (Compare::Ne, false),
                "lt" | "lo" => (Compare::Lt, false),
                "le" | "ls" => (Compare::Le, false),
                "gt" | "hi" => (Compare::Gt, false),
                "ge" | "hs" => (Compare::Ge, false),
                "equ" => (Compare::Eq, true),
                "neu" => (Compare::Ne, true),
                "ltu" => (Compare::Lt, true),
                "leu" => (Compare::Le, true),
                "gtu" => (Compare::Gt, true),
                "geu" => (Compare::Ge, true),
                "num" => (Compare::Num, false),
                "nan" => (Compare::Nan, false),
                _ => return None,
            })
        });
        found.ok_or_else(|| "a comparison is missing".into())
    }

    fn setp(&mut self) -> Decoded {
        let (compare, unordered) = self.compare()?;
        let combine = self.pick(|name| match name {
            "and" => Some(Combine::And),
            "or" => Some(Combine::Or),
            "xor" => Some(Combine::Xor),
            _ => None,
        });
        let ftz = self.take("ftz");
        let ty = self.ty()?;
        let (dst, other) = self.results(0)?;
        let with = match combine {
            Some(combine) => {
                let (value, negated) = self.predicate(3)?;
                Some((combine, value, negated))
            }
            None => None,
        };
        self.count(if with.is_some() { 4..=4 } else { 3..=3 })?;
        Ok(Op::Setp { ty, compare, unordered, ftz, dst, other, a: self.value(1, ty)?, b: self.value(2, ty)?, with })
    }

    fn set(&mut self) -> Decoded {
        let (compare, unordered) = self.compare()?;
        self.take("ftz");
        let (to, ty) = (self.ty()?, self.ty()?);
        self.count(3..=3)?;
        let one = if to.is_float() { to.nearest(1.0) } else { to.mask() };
        Ok(Op::Set { ty, compare, unordered, dst: self.dst(0)?, one, a: self.value(1, ty)?, b: self.value(2, ty)? })
    }
}

/// The special register of a name.
pub(crate) fn special(name: &str) -> Option<Special> {
    let axis = |name: &str| match name {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((base, part)) = name.split_once('.') {
        let axis = axis(part)?;
        return Some(match base {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::NTid(axis),
            "%ctaid" => Special::CtaId(axis),
            "%nctaid" => Special::NCtaId(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NWarpId,
        "%lanemask_eq" => Special::MaskEq,
        "%lanemask_lt" => Special::MaskLt,
        "%lanemask_le" => Special::MaskLe,
        "%lanemask_gt" => Special::MaskGt,
        "%lanemask_ge" => Special::MaskGe,
        "%clock" | "%clock64" | "%globaltimer" => Special::Clock,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%smid" | "%gridid" => Special::Zero,
        _ => return None,
    })
}
