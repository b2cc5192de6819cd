//! Halves are storage: arithmetic in `f16` and `bf16` becomes arithmetic in `f32`.

use egret_ir::DType;

use super::expr::{Expr, Literal, Memory};
use super::ir::{Kernel, Space, Stmt};
use super::tile::TileStmt;

fn is_half(dtype: Option<DType>) -> bool {
    matches!(dtype, Some(DType::F16 | DType::BF16))
}

fn wide(dtype: DType) -> DType {
    if is_half(Some(dtype)) { DType::F32 } else { dtype }
}

impl Kernel {
    /// The kernel with variables, scratch and arithmetic of `f16` and `bf16` in `f32`; values are rounded where they are
    /// stored to a buffer and at casts, except casts of extents. Kernels without halves stay as they are, and so do tiles
    /// that asynchronous copies fill or matrices are loaded from: those are storage, as buffers are.
    pub fn with_wide_halves(mut self) -> Kernel {
        if !self.has_halves() {
            return self;
        }
        let mut body = std::mem::take(&mut self.body);
        let mut tiles = vec![false; self.scratch.len()];
        for s in &body {
            s.any(&mut |s| {
                if let Stmt::Tile(TileStmt::CopyAsync { dst: tile, .. } | TileStmt::LoadMatrices { src: tile, .. }) = s
                    && let Some(tile) = tiles.get_mut(tile.scratch as usize)
                {
                    *tile = true;
                }
                false
            });
        }
        Widening { kernel: &self, tiles: &tiles }.block(&mut body);
        self.body = body;
        self.vars.iter_mut().for_each(|t| *t = wide(*t));
        for (s, _) in self.scratch.iter_mut().zip(tiles).filter(|(s, tile)| !tile || s.space != Space::Shared) {
            s.dtype = wide(s.dtype);
        }
        self
    }

    /// Whether anything is of a half type: a buffer, a variable, scratch, or a cast or literal within an expression.
    fn has_halves(&self) -> bool {
        let memories = self.buffers.iter().map(|b| b.dtype).chain(self.scratch.iter().map(|s| s.dtype));
        let made = |e: &Expr| match e {
            Expr::Cast(t, _) | Expr::Literal(Literal::Float(t, _)) => is_half(Some(*t)),
            _ => false,
        };
        let computed = |s: &Stmt| {
            let mut found = false;
            s.expressions(|e| found = found || e.any(&mut |e| made(e)));
            found
        };
        memories.chain(self.vars.iter().copied()).any(|t| is_half(Some(t)))
            || self.body.iter().any(|s| s.any(&mut |s| computed(s)))
    }
}

struct Widening<'k> {
    kernel: &'k Kernel,
    /// Scratch memories that hold halves as halves.
    tiles: &'k [bool],
}

impl Widening<'_> {
    fn dtype(&self, e: &Expr) -> Option<DType> {
        e.dtype(self.kernel)
    }

    /// Whether halves in a memory stay halves.
    fn holds_halves(&self, memory: Memory) -> bool {
        match memory {
            Memory::Buffer(_) => true,
            Memory::Scratch(s) => self.tiles.get(s as usize).copied().unwrap_or(false),
        }
    }

    fn block(&self, body: &mut [Stmt]) {
        for s in body {
            let into = match s {
                // what is only moved is not converted on the way
                Stmt::Store { memory, index, value: Expr::Load { memory: from, index: at, mask } }
                    if self.holds_halves(*memory) && self.holds_halves(*from) =>
                {
                    for e in [index, &mut **at].into_iter().chain(mask.as_deref_mut()) {
                        *e = self.widen(e);
                    }
                    continue;
                }
                Stmt::Store { memory, value, .. } if self.holds_halves(*memory) => {
                    self.dtype(value).filter(|t| is_half(Some(*t)))
                }
                _ => None,
            };
            s.expressions_mut(|e| *e = self.widen(e));
            match s {
                Stmt::Store { value, .. } => {
                    if let Some(dtype) = into {
                        *value = value.clone().cast(dtype);
                    }
                }
                Stmt::For { body, .. } => self.block(body),
                Stmt::If { then, otherwise, .. } => {
                    self.block(then);
                    self.block(otherwise);
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
                if self.dtype(a) == Some(*to) {
                    return value;
                }
                let from = if is_half(self.dtype(a)) || self.dtype(a) == Some(DType::F32) {
                    value
                } else {
                    value.cast(DType::F32)
                };
                let extent = !a.any(&mut |e| matches!(e, Expr::Var(_) | Expr::Load { .. }));
                if extent { from } else { from.cast(*to).cast(DType::F32) }
            }
            Expr::Cast(DType::F32, a) if is_half(self.dtype(a)) => self.widen(a),
            other => {
                let mut copy = other.clone();
                copy.operands_mut(|e| *e = self.widen(e));
                match other {
                    Expr::Load { memory, .. } if self.holds_halves(*memory) && is_half(self.kernel.memory(*memory)) => {
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
    use egret_ir::DType::{BF16, F16, F32, I64, U16};

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

    /// A half that is only cast to and from is no buffer's or variable's type.
    #[test]
    fn halves_between_casts_round() {
        let mut k = KernelBuilder::new();
        let (x, y) = (k.buffer(U16, Access::Read), k.buffer(U16, Access::Write));
        k.store(y, 0, x.load(0).cast(F16).cast(U16));
        let wide = k.finish().unwrap().with_wide_halves();
        wide.verify().unwrap();
        let text = wide.text();
        assert!(text.contains("b1[0] = u16(f32(f16(f32(b0[0]))))"), "{text}");
    }

    #[test]
    fn kernels_without_halves_stay() {
        assert_eq!(kernel(F32), kernel(F32).with_wide_halves());
    }
}
