//! The text form of kernels.

use std::fmt::{self, Write};

use egret_ir::DType;

use super::expr::{BinaryOp, Expr, Literal, Memory};
use super::ir::{Abi, Access, Kernel, ReduceOp, Space, Stmt, Strip, Var};

impl Kernel {
    /// The text form: deterministic, one statement a line.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` does not fail.
        let _ = self.print(&mut text);
        text
    }

    fn print(&self, w: &mut String) -> fmt::Result {
        match self.abi {
            Abi::Kernel => write!(w, "kernel")?,
            Abi::Hook { extras, outs } => write!(w, "hook(extras {extras}, outs {outs})")?,
        }
        writeln!(w, "{}", if self.exact { " exact" } else { "" })?;
        for (i, b) in self.buffers.iter().enumerate() {
            let access = match b.access {
                Access::Read => "read",
                Access::ReadInPlace => "read in place",
                Access::Write => "write",
                Access::ReadWrite => "read write",
            };
            write!(w, "  b{i}: {access} {}", b.dtype)?;
            writeln!(w, "{}", if b.align == 0 { String::new() } else { format!(" align {}", b.align) })?;
        }
        writeln!(w, "  dims {}", self.dims)?;
        for (i, s) in self.scratch.iter().enumerate() {
            let space = match s.space {
                Space::Local => "local",
                Space::Shared => "shared",
                Space::Register => "register",
            };
            let over = s.over.map(|over| format!(" over s{over}")).unwrap_or_default();
            writeln!(w, "  s{i}: {space} {}[{}]{over}", s.dtype, s.len)?;
        }
        for (i, extent) in self.grid.iter().enumerate() {
            writeln!(w, "  grid v{i} < {extent}")?;
        }
        let [x, y, z] = self.threads;
        writeln!(w, "  threads {x} {y} {z}")?;
        self.block(w, &self.body, 1)
    }

    fn block(&self, w: &mut String, body: &[Stmt], depth: usize) -> fmt::Result {
        let typed = |v: Var| self.var(v).map_or("?", DType::name);
        for s in body {
            write!(w, "{:1$}", "", depth * 2)?;
            match s {
                Stmt::Let { var, value } => writeln!(w, "let {var}: {} = {value}", typed(*var))?,
                Stmt::Mut { var, value } => writeln!(w, "mut {var}: {} = {value}", typed(*var))?,
                Stmt::Assign { var, value } => writeln!(w, "{var} = {value}")?,
                Stmt::Accumulate { var, op, value } => writeln!(w, "{var} {}= {value}", op.name())?,
                Stmt::Store { memory, index, value } => writeln!(w, "{memory}[{index}] = {value}")?,
                Stmt::For { var, start, end, step, kind, body } => {
                    write!(w, "for {var} in {start} .. {end}")?;
                    if *step != 1 {
                        write!(w, " step {step}")?;
                    }
                    writeln!(w, " {}", kind.name())?;
                    self.block(w, body, depth + 1)?;
                }
                Stmt::If { condition, then, otherwise } => {
                    writeln!(w, "if {condition}")?;
                    self.block(w, then, depth + 1)?;
                    if !otherwise.is_empty() {
                        writeln!(w, "{:1$}else", "", depth * 2)?;
                        self.block(w, otherwise, depth + 1)?;
                    }
                }
                Stmt::Call { function, dst, src, len } => {
                    writeln!(w, "call {} {dst}, {src}, {len}", function.name())?;
                }
                Stmt::Tile(tile) => writeln!(w, "{tile}")?,
                Stmt::Barrier => writeln!(w, "barrier")?,
                Stmt::WarpReduce { var, op, lanes: 32 } => writeln!(w, "warp {} {var}", op.name())?,
                Stmt::WarpReduce { var, op, lanes } => writeln!(w, "lanes {lanes} {} {var}", op.name())?,
                Stmt::BlockReduce { var, op } => writeln!(w, "block {} {var}", op.name())?,
                Stmt::Status { condition, code } => writeln!(w, "status {code} if {condition}")?,
            }
        }
        Ok(())
    }
}

impl ReduceOp {
    /// Its spelling in text.
    pub fn name(self) -> &'static str {
        match self {
            ReduceOp::Sum => "+",
            ReduceOp::Max => "max",
            ReduceOp::Min => "min",
            ReduceOp::Prod => "*",
        }
    }
}

impl fmt::Display for Var {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Memory::Buffer(b) => write!(f, "b{b}"),
            Memory::Scratch(s) => write!(f, "s{s}"),
        }
    }
}

impl fmt::Display for Strip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}[{}]", self.scratch, self.index)
    }
}

impl fmt::Display for Literal {
    /// `i64` and `f32` are plain (`3`, `3.0`), other types have a suffix; NaN is one NaN.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Literal::Bool(b) => write!(f, "{b}"),
            Literal::Int(DType::I64, v) => write!(f, "{v}"),
            Literal::Int(t, v) => write!(f, "{v}{t}"),
            Literal::Float(DType::F32, bits) => write!(f, "{:?}", f64::from_bits(*bits) as f32),
            Literal::Float(t, bits) => write!(f, "{:?}{t}", f64::from_bits(*bits)),
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Var(v) => write!(f, "{v}"),
            Expr::Literal(l) => write!(f, "{l}"),
            Expr::Dim(d) => write!(f, "d{d}"),
            Expr::Load { memory, index, mask: None } => write!(f, "{memory}[{index}]"),
            Expr::Load { memory, index, mask: Some(mask) } => write!(f, "{memory}[{index} if {mask}]"),
            Expr::Unary(op, a) => write!(f, "{}({a})", op.name()),
            Expr::Binary(op @ (BinaryOp::Max | BinaryOp::Min | BinaryOp::Pow), a, b) => {
                write!(f, "{}({a}, {b})", op.name())
            }
            Expr::Binary(op, a, b) => write!(f, "{} {} {}", Atom(a), op.name(), Atom(b)),
            Expr::Compare(op, a, b) => write!(f, "{} {} {}", Atom(a), op.name(), Atom(b)),
            Expr::Select(c, a, b) => write!(f, "select({c}, {a}, {b})"),
            Expr::Cast(t, a) => write!(f, "{t}({a})"),
        }
    }
}

/// An operand of an infix operator: in parentheses if it is infix itself.
struct Atom<'a>(&'a Expr);

impl fmt::Display for Atom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Expr::Binary(BinaryOp::Max | BinaryOp::Min | BinaryOp::Pow, ..) => {
                write!(f, "{}", self.0)
            }
            Expr::Binary(..) | Expr::Compare(..) => write!(f, "({})", self.0),
            other => write!(f, "{other}"),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}
