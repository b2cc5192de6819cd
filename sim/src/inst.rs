//! Instructions as the interpreter runs them.
//!
//! A family of instructions is one variant of [`Op`], decoded in `decode/` and run in `warp/`. Bulk copies
//! with `mbarrier`, and `wgmma`, become variants of their own, each with a module of its name in both folders.

use crate::types::Type;

/// A register: its index in the entry's register file.
pub(crate) type Reg = u32;

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
    Const,
}

impl Space {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::Global => "global",
            Self::Shared => "shared",
            Self::Local => "local",
            Self::Param => "param",
            Self::Const => "const",
        }
    }
}

/// A register that the hardware provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(usize),
    NTid(usize),
    CtaId(usize),
    NCtaId(usize),
    LaneId,
    WarpId,
    NWarpId,
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    Clock,
    DynamicShared,
    TotalShared,
    Zero,
}

/// What an instruction reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    Reg(Reg),
    Imm(u64),
    Special(Special),
    /// The address of a variable: an index into the entry's symbols.
    Symbol(u32),
}

/// Base and offset of an access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub base: Value,
    pub offset: i64,
}

/// The predicate that lets a lane run an instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub reg: Reg,
    pub negated: bool,
}

/// One operand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    Neg,
    Abs,
    Not,
    CNot,
    Ex2,
    Lg2,
    Rcp,
    Rsqrt,
    Sqrt,
    Sin,
    Cos,
    Tanh,
    Popc,
    Clz,
    Brev,
    /// An `f32` to the nearest with 10 bits of fraction, ties away from zero.
    Tf32,
}

/// Two operands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    MulHi,
    MulWide,
    Div,
    Rem,
    Min { nan: bool },
    Max { nan: bool },
    And,
    Or,
    Xor,
    Shl,
    Shr,
    CopySign,
}

/// Three operands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ternary {
    Mad,
    MadHi,
    MadWide,
    Fma,
    Bfe,
    Prmt,
    Lop3(u8),
    Shf {
        left: bool,
        wrap: bool,
    },
    /// The sum of products of parts of two words and a third one: two halves by bytes, or four bytes by bytes.
    Dot {
        halves: bool,
        high: bool,
        signed: [bool; 2],
    },
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Both numbers.
    Num,
    /// One not a number.
    Nan,
}

/// How a predicate is combined with a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Combine {
    And,
    Or,
    Xor,
}

/// How a conversion rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// To the nearest value of the target, ties to even.
    Nearest,
    /// To an integer: nearest, toward zero, down, up.
    Int(Direction),
    /// To a float: toward zero.
    FloatToZero,
}

/// Which way an integer rounding goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Direction {
    #[default]
    Nearest,
    Zero,
    Down,
    Up,
}

/// What an atomic operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Atomic {
    Exch,
    Cas,
    Inc,
    Dec,
    Apply(Binary),
}

/// How a shuffle finds its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// What a vote gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// Element types of a product of matrices: 16 rows, 8 columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MatrixKind {
    /// Sums of 16 halves in `f32`.
    Half(Type),
    /// Sums of 8 `f32` of which the products see 10 bits of fraction.
    Tf32,
    /// Sums of 32 bytes in `i32`: the types of the left and the right side.
    Bytes([Type; 2]),
}

/// Flushing of subnormals, clamping to [0, 1], and rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub ftz: bool,
    pub sat: bool,
    /// How sums and products are rounded.
    pub round: Direction,
}

/// What an instruction does.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Mov {
        dst: Reg,
        src: Value,
    },
    /// Vector of parts to one register, the first part lowest.
    Pack {
        dst: Reg,
        parts: Vec<Value>,
        bits: u32,
    },
    /// One register to a vector of parts; `None` drops a part.
    Unpack {
        dst: Vec<Option<Reg>>,
        src: Value,
        bits: u32,
    },
    Unary {
        op: Unary,
        ty: Type,
        flags: Flags,
        dst: Reg,
        a: Value,
    },
    Binary {
        op: Binary,
        ty: Type,
        flags: Flags,
        dst: Reg,
        a: Value,
        b: Value,
    },
    Ternary {
        op: Ternary,
        ty: Type,
        flags: Flags,
        dst: Reg,
        a: Value,
        b: Value,
        c: Value,
    },
    Bfi {
        ty: Type,
        dst: Reg,
        a: Value,
        b: Value,
        pos: Value,
        len: Value,
    },
    Selp {
        dst: Reg,
        a: Value,
        b: Value,
        pred: Value,
    },
    Slct {
        dst: Reg,
        a: Value,
        b: Value,
        by: Type,
        c: Value,
    },
    Setp {
        ty: Type,
        compare: Compare,
        unordered: bool,
        ftz: bool,
        dst: Option<Reg>,
        other: Option<Reg>,
        a: Value,
        b: Value,
        with: Option<(Combine, Value, bool)>,
    },
    /// A comparison into an ordinary register: `one` where it holds.
    Set {
        ty: Type,
        compare: Compare,
        unordered: bool,
        dst: Reg,
        one: u64,
        a: Value,
        b: Value,
    },
    Cvt {
        to: Type,
        from: Type,
        round: Round,
        flags: Flags,
        relu: bool,
        dst: Reg,
        a: Value,
    },
    /// Two floats to a packed pair, `a` in the upper half.
    CvtPack {
        to: Type,
        from: Type,
        relu: bool,
        dst: Reg,
        a: Value,
        b: Value,
    },
    /// An address of a space to a generic one, or back.
    Cvta {
        space: Space,
        to_space: bool,
        dst: Reg,
        a: Value,
    },
    Ld {
        space: Space,
        ty: Type,
        dst: Vec<Option<Reg>>,
        address: Address,
    },
    St {
        space: Space,
        ty: Type,
        src: Vec<Value>,
        address: Address,
    },
    Atom {
        space: Space,
        op: Atomic,
        ty: Type,
        dst: Option<Reg>,
        address: Address,
        b: Value,
        c: Value,
    },
    /// A copy from global to shared memory that is done when its group has been waited for. Bytes beyond `read` are zero.
    CopyAsync {
        to: Address,
        from: Address,
        bytes: usize,
        read: Option<Value>,
    },
    /// The copies since the last group are a group.
    CommitGroup,
    /// Waits until at most so many of the latest groups are not done.
    WaitGroup {
        pending: Value,
    },
    /// Matrices of 8 × 8 halves from shared memory: eight lanes name the rows of one.
    LoadMatrix {
        dst: Vec<Reg>,
        address: Address,
        transpose: bool,
    },
    /// `d = a · b + c` of matrices that the warp's registers hold.
    Multiply {
        kind: MatrixKind,
        d: Vec<Reg>,
        a: Vec<Reg>,
        b: Vec<Reg>,
        c: Vec<Reg>,
    },
    Shfl {
        mode: Shuffle,
        dst: Option<Reg>,
        valid: Option<Reg>,
        a: Value,
        b: Value,
        c: Value,
        mask: Value,
    },
    Vote {
        mode: Vote,
        dst: Reg,
        a: Value,
        negated: bool,
        mask: Value,
    },
    ActiveMask {
        dst: Reg,
    },
    WarpSync {
        mask: Value,
    },
    /// A barrier of the block; `wait` is false for an arrival alone.
    Bar {
        id: Value,
        count: Option<Value>,
        wait: bool,
    },
    Bra {
        target: usize,
    },
    Exit,
    Trap,
    Nop,
}

/// An instruction and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub line: u32,
    /// File and line of the source, from `.loc`.
    pub source: Option<(u32, u32)>,
    pub guard: Option<Guard>,
    pub op: Op,
}

impl Op {
    /// Calls `f` on the operands of an operation that each lane runs by itself.
    pub fn reads(&self, f: &mut dyn FnMut(Value)) {
        match self {
            Self::Mov { src, .. } | Self::Unpack { src, .. } => f(*src),
            Self::Pack { parts, .. } => parts.iter().for_each(|part| f(*part)),
            Self::Unary { a, .. } | Self::Cvt { a, .. } | Self::Cvta { a, .. } => f(*a),
            Self::Binary { a, b, .. } | Self::Set { a, b, .. } | Self::CvtPack { a, b, .. } => {
                [a, b].into_iter().for_each(|value| f(*value));
            }
            Self::Ternary { a, b, c, .. } | Self::Slct { a, b, c, .. } => {
                [a, b, c].into_iter().for_each(|value| f(*value));
            }
            Self::Bfi { a, b, pos, len, .. } => [a, b, pos, len].into_iter().for_each(|value| f(*value)),
            Self::Selp { a, b, pred, .. } => [a, b, pred].into_iter().for_each(|value| f(*value)),
            Self::Setp { a, b, with, .. } => {
                [*a, *b].into_iter().chain(with.map(|(_, value, _)| value)).for_each(f);
            }
            _ => {}
        }
    }

    /// Calls `f` on the operands of any operation.
    pub fn operands(&self, f: &mut dyn FnMut(Value)) {
        match self {
            Self::Ld { address, .. } | Self::LoadMatrix { address, .. } => f(address.base),
            Self::St { src, address, .. } => {
                f(address.base);
                src.iter().for_each(|value| f(*value));
            }
            Self::Atom { address, b, c, .. } => [address.base, *b, *c].into_iter().for_each(f),
            Self::CopyAsync { to, from, read, .. } => [to.base, from.base].into_iter().chain(*read).for_each(f),
            Self::WaitGroup { pending } => f(*pending),
            Self::Multiply { a, b, c, .. } => [a, b, c].into_iter().flatten().for_each(|reg| f(Value::Reg(*reg))),
            Self::Shfl { a, b, c, mask, .. } => [a, b, c, mask].into_iter().for_each(|value| f(*value)),
            Self::Vote { a, mask, .. } => [a, mask].into_iter().for_each(|value| f(*value)),
            Self::WarpSync { mask } => f(*mask),
            Self::Bar { id, count, .. } => std::iter::once(*id).chain(*count).for_each(f),
            _ => self.reads(f),
        }
    }

    /// Calls `f` on the results of an operation that each lane runs by itself.
    pub fn writes(&self, f: &mut dyn FnMut(Reg)) {
        match self {
            Self::Mov { dst, .. }
            | Self::Pack { dst, .. }
            | Self::Unary { dst, .. }
            | Self::Binary { dst, .. }
            | Self::Ternary { dst, .. }
            | Self::Bfi { dst, .. }
            | Self::Selp { dst, .. }
            | Self::Slct { dst, .. }
            | Self::Set { dst, .. }
            | Self::Cvt { dst, .. }
            | Self::CvtPack { dst, .. }
            | Self::Cvta { dst, .. } => f(*dst),
            Self::Unpack { dst, .. } => dst.iter().flatten().for_each(|reg| f(*reg)),
            Self::Setp { dst, other, .. } => dst.iter().chain(other).for_each(|reg| f(*reg)),
            _ => {}
        }
    }
}
