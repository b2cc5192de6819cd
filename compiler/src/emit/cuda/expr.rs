//! Expressions in CUDA C.

use egret_ir::DType;

use super::{Printer, type_name};
use crate::emit::EmitError;
use crate::kernel::{BinaryOp, Expr, Literal, Memory, UnaryOp};

/// Text and whether it binds tighter than any infix operator.
struct Text {
    text: String,
    atom: bool,
}

fn atom(text: String) -> Text {
    Text { text, atom: true }
}

fn infix(text: String) -> Text {
    Text { text, atom: false }
}

impl Text {
    fn operand(self) -> String {
        if self.atom { self.text } else { format!("({})", self.text) }
    }
}

impl Printer<'_> {
    /// An expression.
    pub(super) fn expr(&self, e: &Expr) -> Result<String, EmitError> {
        Ok(self.text(e)?.text)
    }

    pub(super) fn operand(&self, e: &Expr) -> Result<String, EmitError> {
        Ok(self.text(e)?.operand())
    }

    fn dtype(&self, e: &Expr) -> Result<DType, EmitError> {
        e.dtype(self.kernel).ok_or_else(|| EmitError::Malformed("an expression without a type".into()))
    }

    /// An element of memory.
    pub(super) fn element(&self, memory: Memory, index: &Expr) -> Result<String, EmitError> {
        Ok(format!("{memory}[{}]", self.expr(index)?))
    }

    fn text(&self, e: &Expr) -> Result<Text, EmitError> {
        Ok(match e {
            Expr::Var(v) => atom(v.to_string()),
            Expr::Dim(d) => atom(format!("d{d}")),
            Expr::Literal(l) => atom(literal(*l)?),
            Expr::Load { memory, index, mask } => {
                let element = self.element(*memory, index)?;
                match mask {
                    None => atom(element),
                    Some(mask) => {
                        let dtype = self.dtype(e)?;
                        let mask = self.operand(mask)?;
                        infix(format!("{mask} ? {element} : {}", zero(dtype)))
                    }
                }
            }
            Expr::Unary(op, a) => self.unary(*op, a)?,
            Expr::Binary(op, a, b) => self.binary(*op, a, b)?,
            Expr::Compare(op, a, b) => {
                supported(self.dtype(a)?)?;
                infix(format!("{} {} {}", self.operand(a)?, op.name(), self.operand(b)?))
            }
            Expr::Select(c, a, b) => {
                infix(format!("{} ? {} : {}", self.operand(c)?, self.operand(a)?, self.operand(b)?))
            }
            Expr::Cast(to, a) => self.cast(*to, a)?,
        })
    }

    fn unary(&self, op: UnaryOp, a: &Expr) -> Result<Text, EmitError> {
        let dtype = self.dtype(a)?;
        supported(dtype)?;
        let (ty, x) = (type_name(dtype), self.text(a)?);
        if !dtype.is_float() {
            return Ok(match op {
                UnaryOp::Not if dtype == DType::Bool => atom(format!("!{}", x.operand())),
                UnaryOp::Not => atom(format!("({ty})~{}", x.operand())),
                UnaryOp::Neg => atom(format!("({ty})-{}", x.operand())),
                _ => atom(format!("{}_{ty}({})", op.name(), x.text)),
            });
        }
        let (suffix, one) = if dtype == DType::F32 { ("f", "1.0f") } else { ("", "1.0") };
        Ok(match op {
            UnaryOp::Neg => atom(format!("-{}", x.operand())),
            UnaryOp::Sign | UnaryOp::Sigmoid => atom(format!("{}_{ty}({})", op.name(), x.text)),
            UnaryOp::IsNan => atom(format!("isnan({})", x.text)),
            UnaryOp::Abs => atom(format!("fabs{suffix}({})", x.text)),
            UnaryOp::Round => atom(format!("rint{suffix}({})", x.text)),
            UnaryOp::Recip => infix(format!("{one} / {}", x.operand())),
            UnaryOp::Rsqrt => infix(format!("{one} / sqrt{suffix}({})", x.text)),
            // The names of the table are those of C.
            _ => atom(format!("{}{suffix}({})", op.name(), x.text)),
        })
    }

    fn binary(&self, op: BinaryOp, a: &Expr, b: &Expr) -> Result<Text, EmitError> {
        let dtype = self.dtype(a)?;
        supported(dtype)?;
        let ty = type_name(dtype);
        let call = |name: &str| -> Result<Text, EmitError> {
            Ok(atom(format!("{name}({}, {})", self.expr(a)?, self.expr(b)?)))
        };
        let plain = || -> Result<Text, EmitError> {
            Ok(infix(format!("{} {} {}", self.operand(a)?, op.name(), self.operand(b)?)))
        };
        let suffix = if dtype == DType::F32 { "f" } else { "" };
        match op {
            BinaryOp::Max | BinaryOp::Min => call(&format!("{}_{ty}", op.name())),
            BinaryOp::Pow if !dtype.is_float() => call(&format!("pow_{ty}")),
            BinaryOp::Pow => call(&format!("pow{suffix}")),
            BinaryOp::Rem if dtype.is_float() => call(&format!("fmod{suffix}")),
            BinaryOp::Div | BinaryOp::Rem if !dtype.is_float() => {
                let name = if op == BinaryOp::Div { "div" } else { "rem" };
                if b.as_int().is_some_and(|d| d > 0) { plain() } else { call(&format!("{name}_{ty}")) }
            }
            // These intrinsics are never contracted to FMA.
            BinaryOp::Mul if self.kernel.exact && dtype == DType::F32 => call("__fmul_rn"),
            BinaryOp::Mul if self.kernel.exact && dtype == DType::F64 => call("__dmul_rn"),
            BinaryOp::Shl | BinaryOp::Shr => {
                let bits = 8 * dtype.size() - 1;
                // a literal alone is an `int`
                let wide = if a.as_int().is_some() && dtype == DType::I64 { "(i64)" } else { "" };
                let shifted = format!("{wide}{} {} ({} & {bits})", self.operand(a)?, op.name(), self.operand(b)?);
                Ok(atom(format!("({ty})({shifted})")))
            }
            // Narrow operands are promoted to `int`.
            _ if dtype.size() < 4 && dtype != DType::Bool => Ok(atom(format!("({ty})({})", plain()?.text))),
            _ => plain(),
        }
    }

    fn cast(&self, to: DType, a: &Expr) -> Result<Text, EmitError> {
        let from = self.dtype(a)?;
        let (ty, x) = (type_name(to), self.text(a)?);
        let half = |t| matches!(t, DType::F16 | DType::BF16);
        Ok(match (from, to) {
            _ if from == to => x,
            (_, DType::Bool) if !half(from) => infix(format!("{} != {}", x.operand(), zero(from))),
            // Halves convert through f32 alone.
            (_, DType::F32) if half(from) => atom(format!("f32_from({})", x.text)),
            (DType::F32, _) if half(to) => atom(format!("{ty}_from({})", x.text)),
            _ if half(from) => {
                return Err(EmitError::UnsupportedType { backend: "CUDA", dtype: from });
            }
            _ if half(to) => {
                return Err(EmitError::UnsupportedType { backend: "CUDA", dtype: to });
            }
            _ if from.is_float() && to.is_int() => atom(format!("{ty}_from({})", x.text)),
            _ => atom(format!("({ty}){}", x.operand())),
        })
    }
}

/// Halves are storage: they are loaded, stored and converted, and computed with as f32.
fn supported(dtype: DType) -> Result<(), EmitError> {
    match dtype {
        DType::F16 | DType::BF16 => Err(EmitError::UnsupportedType { backend: "CUDA", dtype }),
        _ => Ok(()),
    }
}

fn zero(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "false",
        DType::F32 => "0.0f",
        DType::F64 => "0.0",
        DType::F16 => "f16{0}",
        DType::BF16 => "bf16{0}",
        _ => "0",
    }
}

fn literal(l: Literal) -> Result<String, EmitError> {
    Ok(match l {
        Literal::Bool(v) => v.to_string(),
        Literal::Int(DType::I64, i64::MIN) => "(-9223372036854775807ll - 1)".into(),
        Literal::Int(DType::I64, v) if v < 0 => format!("({v})"),
        Literal::Int(DType::I64, v) => v.to_string(),
        Literal::Int(t, v) if t.is_unsigned() && t.size() == 8 => format!("(u64){}ull", v as u64),
        Literal::Int(t, v) => format!("({}){v}ll", type_name(t)),
        Literal::Float(t, bits) => {
            supported(t)?;
            let (value, name, suffix) = match t {
                DType::F32 => (f64::from(f64::from_bits(bits) as f32), "F32", "f"),
                _ => (f64::from_bits(bits), "F64", ""),
            };
            let digits = |v: f64| {
                if t == DType::F32 { format!("{:?}", v as f32) } else { format!("{v:?}") }
            };
            if value.is_nan() {
                format!("NAN_{name}")
            } else if value.is_infinite() {
                if value > 0.0 { format!("INF_{name}") } else { format!("(-INF_{name})") }
            } else if value.is_sign_negative() {
                format!("({}{suffix})", digits(value))
            } else {
                format!("{}{suffix}", digits(value))
            }
        }
    })
}
