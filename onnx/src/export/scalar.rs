//! Elementwise operators, and scalar programs as such.

use std::collections::HashMap;

use egret_ir::scalar::Meaning;
use egret_ir::{DType, Diagnostic, ExprKind, ScalarExpr, ScalarFn};

use super::{Arg, Export};
use crate::export::writer::{int, text};

/// A value of a program, which broadcasts to the result.
#[derive(Clone)]
pub(super) struct Term {
    pub name: String,
    pub dtype: DType,
    /// The axes that it varies along, one bit each.
    pub axes: u64,
}

/// What programs have been written as.
pub(super) type Known = HashMap<ScalarExpr, Term>;

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

impl Export<'_> {
    /// A scalar function; `dtype` is the element type of its last operand.
    pub(super) fn pointwise(&mut self, f: ScalarFn, x: &[&str], dtype: DType) -> Result<String, Diagnostic> {
        use ScalarFn::*;
        let direct = match f {
            Max => "Max",
            Min => "Min",
            Silu | Relu if !dtype.is_float() => "",
            // a name of a later set of operators
            Silu => "",
            Neg if dtype.is_unsigned() => "",
            other => other.onnx(),
        };
        Ok(match f {
            Pow if dtype.is_int() && !matches!(dtype, DType::I32 | DType::I64) => {
                let (a, b) = (self.w.cast(x[0], DType::I64), self.w.cast(x[1], DType::I64));
                let power = self.w.op("Pow", &[&a, &b]);
                self.w.cast(&power, dtype)
            }
            _ if !direct.is_empty() => self.w.op(direct, x),
            Neg => {
                let zero = self.w.literal(egret_ir::Literal::int(0, dtype));
                self.w.op("Sub", &[&zero, x[0]])
            }
            Ne => {
                let equal = self.w.op("Equal", x);
                self.w.op("Not", &[&equal])
            }
            IsInf => self.w.op("IsInf", x),
            Shl => self.w.op_with("BitShift", x, vec![text("direction", "LEFT")]),
            Shr => self.w.op_with("BitShift", x, vec![text("direction", "RIGHT")]),
            Rem => self.w.op_with("Mod", x, vec![int("fmod", 1)]),
            Mod if !dtype.is_float() => self.w.op("Mod", x),
            Gelu => self.w.op("Gelu", x),
            GeluTanh => self.w.op_with("Gelu", x, vec![text("approximate", "tanh")]),
            // what is spelled in several steps rounds once, as the one function does
            _ if is_half(dtype) => {
                let wide: Vec<String> = x.iter().map(|name| self.w.cast(name, DType::F32)).collect();
                let wide: Vec<&str> = wide.iter().map(String::as_str).collect();
                let value = self.pointwise(f, &wide, DType::F32)?;
                self.w.cast(&value, dtype)
            }
            Silu => {
                let gate = self.w.op("Sigmoid", x);
                self.w.op("Mul", &[x[0], &gate])
            }
            Rsqrt => {
                let root = self.w.op("Sqrt", x);
                self.w.op("Reciprocal", &[&root])
            }
            Expm1 => self.expm1(x[0], dtype),
            Log1p => self.log1p(x[0], dtype),
            other => match other.meaning() {
                Meaning::Defined(define) => {
                    let args: Vec<ScalarExpr> = (0..x.len()).map(ScalarExpr::arg).collect();
                    let term = |name: &&str| Term { name: name.to_string(), dtype, axes: 0 };
                    let terms: Vec<Term> = x.iter().map(term).collect();
                    self.program(&define(&args, dtype), &terms, &mut Known::new())?.name
                }
                Meaning::Primitive(_) => return Err(self.refuse("there is no such operator")),
            },
        })
    }

    /// eˣ − 1 as tanh(x/2)·(eˣ + 1): nothing cancels near 0.
    fn expm1(&mut self, x: &str, dtype: DType) -> String {
        let (half, one) = (self.w.float(0.5, dtype), self.w.float(1.0, dtype));
        let near = self.w.op("Mul", &[x, &half]);
        let near = self.w.op("Tanh", &[&near]);
        let power = self.w.op("Exp", &[x]);
        let sum = self.w.op("Add", &[&power, &one]);
        self.w.op("Mul", &[&near, &sum])
    }

    /// log(1 + x) as x·log u/(u − 1) of u = 1 + x rounded, which makes up for the rounding (Kahan); x where u is 1, and
    /// log u where that is not finite.
    fn log1p(&mut self, x: &str, dtype: DType) -> String {
        let one = self.w.float(1.0, dtype);
        let u = self.w.op("Add", &[x, &one]);
        let log = self.w.op("Log", &[&u]);
        let shifted = self.w.op("Sub", &[&u, &one]);
        let product = self.w.op("Mul", &[x, &log]);
        let quotient = self.w.op("Div", &[&product, &shifted]);
        let far = self.w.op("IsInf", &[&log]);
        let finite = self.w.op("Where", &[&far, &log, &quotient]);
        let near = self.w.op("Equal", &[&u, &one]);
        self.w.op("Where", &[&near, x, &finite])
    }

    /// Bits as another element type; integers convert by wrapping, which keeps their bits.
    pub(super) fn bitcast(&mut self, x: &Arg, dtype: DType) -> Result<String, Diagnostic> {
        match (x.ty.dtype, dtype) {
            (from, to) if from == to => Ok(self.w.op("Identity", &[x.name])),
            (from, to) if from.is_int() && to.is_int() => Ok(self.w.cast(x.name, to)),
            _ => Err(self.refuse("bits of floats are those of no other number")),
        }
    }

    /// A scalar program of arguments.
    pub(super) fn program(&mut self, e: &ScalarExpr, args: &[Term], known: &mut Known) -> Result<Term, Diagnostic> {
        if let Some(term) = known.get(e) {
            return Ok(term.clone());
        }
        let term = match e.kind() {
            ExprKind::Arg(i) => {
                let term = args.get(usize::from(*i)).cloned();
                return term.ok_or_else(|| self.refuse("its program reads a value that is not there"));
            }
            ExprKind::Const(literal) => {
                return Ok(Term { name: self.w.literal(*literal), dtype: literal.dtype, axes: 0 });
            }
            ExprKind::Cast(dtype, inner) => {
                let inner = self.program(inner, args, known)?;
                Term { name: self.w.cast(&inner.name, *dtype), dtype: *dtype, axes: inner.axes }
            }
            ExprKind::Apply(f, inner) => {
                let inner: Vec<Term> = inner.iter().map(|e| self.program(e, args, known)).collect::<Result<_, _>>()?;
                let names: Vec<&str> = inner.iter().map(|term| term.name.as_str()).collect();
                let operand = inner.last().map_or(DType::F32, |term| term.dtype);
                let name = self.pointwise(*f, &names, operand)?;
                let dtype = if f.is_predicate() { DType::Bool } else { operand };
                Term { name, dtype, axes: inner.iter().fold(0, |axes, term| axes | term.axes) }
            }
        };
        known.insert(e.clone(), term.clone());
        Ok(term)
    }
}
