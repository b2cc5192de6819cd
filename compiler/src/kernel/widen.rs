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

#[cfg(test)]
mod tests {
    use egret_ir::DType::{BF16, F32, I64};

    use super::super::{Access, Kernel, KernelBuilder, LoopKind};
    use super::*;

    fn kernel(dtype: DType) -> Kernel {
        let mut k = KernelBuilder::new();
        let (x, y) = (k.buffer(dtype, Access::Read), k.buffer(dtype, Access::Write));
        let n = k.dim();
        let total = k.variable(Expr::constant(dtype, 0.0));
        k.for_(0, n.clone(), LoopKind::Serial, |k, i| {
            k.assign(total, Expr::from(total) + x.load(i).cast(F32).cast(dtype));
        });
        k.store(y, 0, Expr::from(total) / n.cast(dtype));
        k.finish().unwrap()
    }

    #[test]
    fn arithmetic_is_wide_and_storage_is_not() {
        let wide = kernel(BF16).with_wide_halves();
        wide.verify().unwrap();
        assert_eq!(wide.vars, [F32, I64]);
        let text = wide.text();
        // the loaded element rounds at the cast, the extent does not, the result rounds at its store
        assert!(text.contains("v0 = v0 + f32(bf16(f32(b0[v1])))"), "{text}");
        assert!(text.contains("b1[0] = bf16(v0 / f32(d0))"), "{text}");
    }

    #[test]
    fn kernels_without_halves_stay() {
        assert_eq!(kernel(F32), kernel(F32).with_wide_halves());
    }
}
