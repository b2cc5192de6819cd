//! Halves are storage: arithmetic in `f16` and `bf16` becomes arithmetic in `f32`.

use egret_ir::DType;

use super::expr::{Expr, Literal, Memory};
use super::ir::{Kernel, Stmt};

fn is_half(dtype: Option<DType>) -> bool {
    matches!(dtype, Some(DType::F16 | DType::BF16))
}

fn wide(dtype: DType) -> DType {
    if is_half(Some(dtype)) { DType::F32 } else { dtype }
}

impl Kernel {
    /// The kernel with variables, scratch and arithmetic of `f16` and `bf16` in `f32`; values are rounded where they are
    /// stored to a buffer and at casts, except casts of extents. Kernels without halves stay as they are.
    pub fn with_wide_halves(mut self) -> Kernel {
        let halves = self.buffers.iter().map(|b| b.dtype).chain(self.vars.iter().copied()).any(|t| is_half(Some(t)));
        let scratch = self.scratch.iter().any(|s| is_half(Some(s.dtype)));
        if !halves && !scratch {
            return self;
        }
        let mut body = std::mem::take(&mut self.body);
        self.widen_block(&mut body);
        self.body = body;
        self.vars.iter_mut().for_each(|t| *t = wide(*t));
        self.scratch.iter_mut().for_each(|s| s.dtype = wide(s.dtype));
        self
    }

    fn widen_block(&self, body: &mut [Stmt]) {
        for s in body {
            let into = match s {
                Stmt::Store { memory: Memory::Buffer(_), value, .. } => value.dtype(self).filter(|t| is_half(Some(*t))),
                _ => None,
            };
            s.expressions_mut(|e| *e = self.widen(e));
            match s {
                Stmt::Store { value, .. } => {
                    if let Some(dtype) = into {
                        *value = value.clone().cast(dtype);
                    }
                }
                Stmt::For { body, .. } => self.widen_block(body),
                Stmt::If { then, otherwise, .. } => {
                    self.widen_block(then);
                    self.widen_block(otherwise);
                }
                _ => {}
            }
        }
    }

    fn widen(&self, e: &Expr) -> Expr {
        match e {
            Expr::Literal(Literal::Float(t, bits)) => Expr::Literal(Literal::Float(wide(*t), *bits)),
            Expr::Cast(to, a) if is_half(Some(*to)) => {
                let value = self.widen(a);
                if a.dtype(self) == Some(*to) {
                    return value;
                }
                let from = if is_half(a.dtype(self)) || a.dtype(self) == Some(DType::F32) {
                    value
                } else {
                    value.cast(DType::F32)
                };
                let extent = !a.any(&mut |e| matches!(e, Expr::Var(_) | Expr::Load { .. }));
                if extent { from } else { from.cast(*to).cast(DType::F32) }
            }
            Expr::Cast(DType::F32, a) if is_half(a.dtype(self)) => self.widen(a),
            other => {
                let mut copy = other.clone();
                copy.operands_mut(|e| *e = self.widen(e));
                match other {
                    Expr::Load { memory: memory @ Memory::Buffer(_), .. } if is_half(self.memory(*memory)) => {
                        copy.cast(DType::F32)
                    }
                    _ => copy,
                }
            }
        }
    }
}
