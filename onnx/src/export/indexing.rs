//! Look-ups by index, and results whose size data decide.

use egret_ir::ops::{NonMaxSuppression, Places, Scatter, ScatterKind, Unique};
use egret_ir::{DType, Diagnostic, Dim, Shape, TensorType};

use super::{Arg, Export};
use crate::export::writer::{flag, int, text};

impl Export<'_> {
    /// Indices of an element type that ONNX takes.
    fn places(&mut self, x: &Arg) -> String {
        if x.ty.dtype == DType::I32 { x.name.to_string() } else { self.as_i64(x) }
    }

    pub(super) fn gather(&mut self, places: Places, x: &[Arg]) -> String {
        match places {
            Places::Rows { axis } => {
                let index = self.places(&x[1]);
                self.w.op_with("Gather", &[x[0].name, &index], vec![int("axis", axis as i64)])
            }
            Places::Elements { axis } => {
                let index = self.places(&x[1]);
                self.w.op_with("GatherElements", &[x[0].name, &index], vec![int("axis", axis as i64)])
            }
            Places::Tuples { batch } => {
                let index = self.as_i64(&x[1]);
                self.w.op_with("GatherND", &[x[0].name, &index], vec![int("batch_dims", batch as i64)])
            }
        }
    }

    pub(super) fn scatter(&mut self, scatter: &Scatter, x: &[Arg], y: &TensorType) -> Result<String, Diagnostic> {
        let joined = text("reduction", if scatter.kind == ScatterKind::Set { "none" } else { scatter.kind.name() });
        // many updates of one place are joined before they are rounded
        let half =
            matches!(y.dtype, DType::F16 | DType::BF16) && matches!(scatter.kind, ScatterKind::Add | ScatterKind::Mul);
        let (mut target, mut updates) = (x[0].name.to_string(), x[2].name.to_string());
        if half {
            (target, updates) = (self.w.cast(&target, DType::F32), self.w.cast(&updates, DType::F32));
        }
        let result = match scatter.places {
            Places::Elements { axis } => {
                let index = self.places(&x[1]);
                self.w.op_with("ScatterElements", &[&target, &index, &updates], vec![int("axis", axis as i64), joined])
            }
            Places::Tuples { batch } => {
                let index = self.batched(&x[1], batch)?;
                self.w.op_with("ScatterND", &[&target, &index, &updates], vec![joined])
            }
            Places::Rows { axis } => {
                // the axis that is indexed comes first, and each index is a tuple of one
                let (rank, width) = (x[0].ty.shape.rank(), x[1].ty.shape.rank());
                let first: Vec<usize> = std::iter::once(axis).chain((0..rank).filter(|a| *a != axis)).collect();
                let mut back = vec![0; rank];
                first.iter().enumerate().for_each(|(i, axis)| back[*axis] = i);
                let rows: Vec<usize> =
                    (axis..axis + width).chain(0..axis).chain(axis + width..rank - 1 + width).collect();
                let (target, updates) = (self.w.transpose(&target, &first), self.w.transpose(&updates, &rows));
                let (index, last) = (self.as_i64(&x[1]), self.w.ints(&[-1]));
                let index = self.w.op("Unsqueeze", &[&index, &last]);
                let turned = self.w.op_with("ScatterND", &[&target, &index, &updates], vec![joined]);
                self.w.transpose(&turned, &back)
            }
        };
        Ok(if half { self.w.cast(&result, y.dtype) } else { result })
    }

    /// Tuples of indices with the places on the axes that they share with their operand before them.
    fn batched(&mut self, x: &Arg, batch: usize) -> Result<String, Diagnostic> {
        let index = self.as_i64(x);
        if batch == 0 {
            return Ok(index);
        }
        let rank = x.ty.shape.rank();
        let one: Shape = x.ty.shape[..rank - 1].iter().cloned().chain([Dim::ONE]).collect();
        let mut parts = Vec::with_capacity(batch + 1);
        for axis in 0..batch {
            let counter = self.counter(&x.ty.shape[axis], rank - 1 - axis)?;
            parts.push(self.expand(&counter, &one)?);
        }
        parts.push(index);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Ok(self.w.op_with("Concat", &parts, vec![int("axis", -1)]))
    }

    pub(super) fn unique(&mut self, op: &Unique, x: &str) -> Vec<String> {
        let axis = op.axis.map(|axis| int("axis", axis as i64));
        let attributes = std::iter::once(flag("sorted", op.sorted)).chain(axis).collect();
        self.w.ops("Unique", &[x], attributes, 4)
    }

    pub(super) fn suppression(&mut self, op: &NonMaxSuppression, x: &[Arg]) -> String {
        let single = |e: &mut Self, arg: &Arg, dtype: DType| match arg.ty.dtype {
            have if have == dtype => arg.name.to_string(),
            _ => e.w.cast(arg.name, dtype),
        };
        let types = [DType::F32, DType::F32, DType::I64, DType::F32, DType::F32];
        let names: Vec<String> = x.iter().zip(types).map(|(arg, dtype)| single(self, arg, dtype)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.w.op_with("NonMaxSuppression", &names, vec![flag("center_point_box", op.center)])
    }
}
