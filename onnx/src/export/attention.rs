//! Attention, spelled as products around a softmax: no operator of ONNX takes a score program.

use egret_ir::ops::{Attention, ReduceKind};
use egret_ir::{DType, Diagnostic, Shape, TensorType};

use super::scalar::{Known, Term};
use super::{Arg, Export};
use crate::export::writer::flag;

impl<'g> Export<'g> {
    /// The result, and the log-sum-exp of each row of logits.
    pub(super) fn attention(&mut self, op: &'g Attention, x: &[Arg]) -> Result<Vec<String>, Diagnostic> {
        let dtype = x[0].ty.dtype;
        let raw = self.contract((x[0].name, &op.q), (x[1].name, &op.k), &op.scores, true);
        let extent = |label: &u8| {
            let of = |labels: &egret_ir::ops::Labels, arg: &Arg| labels.axis(*label).map(|i| arg.ty.shape[i].clone());
            of(&op.q, &x[0]).or_else(|| of(&op.k, &x[1]))
        };
        let shape: Option<Shape> = op.scores.0.iter().map(extent).collect();
        let shape = shape.ok_or_else(|| self.refuse("its scores have an extent that neither queries nor keys have"))?;
        let last = shape.rank() - 1;
        let term = |name: &str, dtype| Term { name: name.to_string(), dtype, axes: 0 };
        let args: Vec<Term> = std::iter::once(term(&raw, dtype))
            .chain(x[3..].iter().map(|extra| term(extra.name, extra.ty.dtype)))
            .collect();
        let mut logits = self.program(&op.score, &args, &mut Known::new())?.name;
        if let Some(seen) = op.seen(&shape) {
            let seen = self.causal(&seen)?;
            let hidden = self.w.float(f64::NEG_INFINITY, dtype);
            logits = self.w.op("Where", &[&seen, &logits, &hidden]);
        }
        if !op.score.args().contains(&0) {
            logits = self.expand(&logits, &shape)?;
        }
        let p = if op.empty_is_zero {
            let top = self.reduce(ReduceKind::Max, &logits, dtype, &[last], true);
            let (none, zero) = (self.w.float(f64::NEG_INFINITY, dtype), self.w.float(0.0, dtype));
            let empty = self.w.op("Equal", &[&top, &none]);
            let safe = self.w.op("Where", &[&empty, &zero, &logits]);
            let shares = self.softmax(&safe, last, false);
            self.w.op("Where", &[&empty, &zero, &shares])
        } else {
            self.softmax(&logits, last, false)
        };
        let o = self.contract((&p, &op.scores), (x[2].name, &op.v), &op.o, true);
        let wide = if dtype == DType::F64 { logits } else { self.w.cast(&logits, DType::F32) };
        let axes = self.w.ints(&[last as i64]);
        let sums = self.w.op_with("ReduceLogSumExp", &[&wide, &axes], vec![flag("keepdims", false)]);
        let sums = if dtype == DType::F64 { self.w.cast(&sums, DType::F32) } else { sums };
        Ok(vec![o, sums])
    }

    /// Which keys a query sees.
    fn causal(&mut self, seen: &egret_ir::ops::Generate) -> Result<String, Diagnostic> {
        let TensorType { shape, .. } = &seen.ty;
        self.element_program(&seen.body, shape, &[])
    }
}
