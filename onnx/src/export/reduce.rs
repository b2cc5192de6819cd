//! Reductions, normalisations, running totals and order.

use egret_ir::ops::{Cumulative, CumulativeKind, Norm, NormKind, ReduceKind, TopK};
use egret_ir::{DType, Diagnostic, Dim, Literal, ScalarValue, Shape, Tensor, TensorType};

use super::{Arg, Export};
use crate::export::writer::{flag, float, graph, int, ints, text};

/// A norm of more elements in a row is spelled out: its operator takes a scale for each.
const SCALES: i64 = 1 << 14;

/// The element types of sums, products and means.
fn has_sums(dtype: DType) -> bool {
    dtype.is_float() || matches!(dtype, DType::I32 | DType::I64 | DType::U32 | DType::U64)
}

impl Export<'_> {
    /// A reduction of a value of that element type.
    pub(super) fn reduce(&mut self, kind: ReduceKind, x: &str, dtype: DType, axes: &[usize], keep: bool) -> String {
        let (op, direct) = match kind {
            ReduceKind::Sum => ("ReduceSum", has_sums(dtype)),
            ReduceKind::Prod => ("ReduceProd", has_sums(dtype)),
            ReduceKind::Mean => ("ReduceMean", true),
            ReduceKind::Max => ("ReduceMax", has_sums(dtype) || dtype.size() == 1),
            ReduceKind::Min => ("ReduceMin", has_sums(dtype) || dtype.size() == 1),
        };
        if axes.is_empty() {
            return self.w.op("Identity", &[x]);
        }
        let axes: Vec<i64> = axes.iter().map(|axis| *axis as i64).collect();
        let axes = self.w.ints(&axes);
        // integers that wrap in i64 wrap alike in a narrower type
        let x = if direct { x.to_string() } else { self.w.cast(x, DType::I64) };
        let y = self.w.op_with(op, &[&x, &axes], vec![flag("keepdims", keep)]);
        if direct { y } else { self.w.cast(&y, dtype) }
    }

    pub(super) fn softmax(&mut self, x: &str, axis: usize, log: bool) -> String {
        self.w.op_with(if log { "LogSoftmax" } else { "Softmax" }, &[x], vec![int("axis", axis as i64)])
    }

    pub(super) fn norm(&mut self, norm: &Norm, x: &Arg) -> Result<String, Diagnostic> {
        let (rank, dtype, eps) = (x.ty.shape.rank(), x.ty.dtype, norm.eps.get());
        let extents: Option<Vec<i64>> = x.ty.shape[norm.axis..].iter().map(Dim::as_const).collect();
        let scales = extents.filter(|e| e.iter().try_fold(1i64, |n, k| n.checked_mul(*k)).is_some_and(|n| n <= SCALES));
        // attributes are f32
        let exact = dtype != DType::F64 || f64::from(eps as f32) == eps;
        if let (NormKind::Layer, Some(extents), true) = (norm.kind, scales, exact) {
            let extents: Vec<usize> = extents.into_iter().filter_map(|n| usize::try_from(n).ok()).collect();
            let scale = self.w.constant(&Tensor::splat(Literal::float(1.0, dtype), &extents));
            let attributes = vec![int("axis", norm.axis as i64), float("epsilon", eps as f32)];
            return Ok(self.w.op_with("LayerNormalization", &[x.name, &scale], attributes));
        }
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let mut v = if dtype == wide { x.name.to_string() } else { self.w.cast(x.name, wide) };
        let axes: Vec<usize> = (norm.axis..rank).collect();
        if norm.kind == NormKind::Layer {
            let mean = self.reduce(ReduceKind::Mean, &v, wide, &axes, true);
            v = self.w.op("Sub", &[&v, &mean]);
        }
        let square = self.w.op("Mul", &[&v, &v]);
        let variance = self.reduce(ReduceKind::Mean, &square, wide, &axes, true);
        let eps = self.w.float(eps, wide);
        let sum = self.w.op("Add", &[&variance, &eps]);
        let root = self.w.op("Sqrt", &[&sum]);
        let y = self.w.op("Div", &[&v, &root]);
        Ok(if dtype == wide { y } else { self.w.cast(&y, dtype) })
    }

    /// Rows of logits with one label each.
    pub(super) fn cross_entropy(&mut self, x: &[Arg], y: &TensorType) -> Result<String, Diagnostic> {
        let labels = match x[1].ty.dtype {
            DType::I32 | DType::I64 => x[1].name.to_string(),
            _ => self.w.cast(x[1].name, DType::I64),
        };
        let rows = y.shape.elements();
        let flat = y.shape.rank() == 1;
        let (mut logits, mut classes) = (x[0].name.to_string(), labels);
        if !flat {
            let count = x[0].ty.shape.last().cloned().unwrap_or(Dim::ONE);
            logits = self.reshape(&logits, &Shape::from([rows.clone(), count]))?;
            classes = self.reshape(&classes, &Shape::from([rows]))?;
        }
        let none = vec![text("reduction", "none")];
        let loss = self.w.op_with("SoftmaxCrossEntropyLoss", &[&logits, &classes], none);
        if flat { Ok(loss) } else { self.reshape(&loss, &y.shape) }
    }

    pub(super) fn cumulative(&mut self, op: &Cumulative, x: &Arg) -> Result<String, Diagnostic> {
        let dtype = x.ty.dtype;
        if op.kind == CumulativeKind::Sum {
            let axis = self.w.int(op.axis as i64);
            let v = if has_sums(dtype) { x.name.to_string() } else { self.w.cast(x.name, DType::I64) };
            let ways = vec![flag("exclusive", op.exclusive), flag("reverse", op.reverse)];
            let y = self.w.op_with("CumSum", &[&v, &axis], ways);
            return Ok(if has_sums(dtype) { y } else { self.w.cast(&y, dtype) });
        }
        // there is no such operator in this set: a loop along the axis carries the total
        let (step, none) = match op.kind {
            CumulativeKind::Prod => ("Mul", ScalarValue::Float(1.0)),
            CumulativeKind::Max => ("Max", least(dtype)),
            _ => ("Min", greatest(dtype)),
        };
        // a half is rounded once, at the end
        let wide = if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype };
        let v = if wide == dtype { x.name.to_string() } else { self.w.cast(x.name, wide) };
        let mut slice = x.ty.shape.to_vec();
        slice.remove(op.axis);
        let ty = TensorType { dtype: wide, shape: slice.as_slice().into() };
        let none = self.w.literal(Literal::new(none, wide));
        let start = self.expand(&none, &ty.shape)?;
        self.w.open();
        let (total, element) = (self.w.fresh("total"), self.w.fresh("element"));
        let next = self.w.op(step, &[&total, &element]);
        let result = if op.exclusive { total.clone() } else { next.clone() };
        let formal = [(total, ty.clone()), (element, ty.clone())];
        let body = self.w.close(&formal, &[(next, ty.clone()), (result, ty)]);
        let (axis, way) = (op.axis as i64, i64::from(op.reverse));
        let attributes = vec![
            graph("body", body),
            int("num_scan_inputs", 1),
            ints("scan_input_axes", vec![axis]),
            ints("scan_input_directions", vec![way]),
            ints("scan_output_axes", vec![axis]),
            ints("scan_output_directions", vec![way]),
        ];
        let y = self.w.ops("Scan", &[&start, &v], attributes, 2).swap_remove(1);
        Ok(if wide == dtype { y } else { self.w.cast(&y, dtype) })
    }

    pub(super) fn top_k(&mut self, op: &TopK, x: &Arg) -> Result<Vec<String>, Diagnostic> {
        let k = self.size(&op.k)?;
        let attributes = vec![int("axis", op.axis as i64), flag("largest", op.largest)];
        Ok(self.w.ops("TopK", &[x.name, &k], attributes, 2))
    }
}

/// The least value of an element type.
pub(super) fn least(dtype: DType) -> ScalarValue {
    match dtype {
        _ if dtype.is_float() => ScalarValue::Float(f64::NEG_INFINITY),
        _ if dtype.is_unsigned() => ScalarValue::Int(0),
        _ => ScalarValue::Int(-1 << (8 * dtype.size() - 1)),
    }
}

/// The greatest value of an element type.
pub(super) fn greatest(dtype: DType) -> ScalarValue {
    match least(dtype) {
        ScalarValue::Float(x) => ScalarValue::Float(-x),
        ScalarValue::Int(0) => ScalarValue::Int((1 << (8 * dtype.size())) - 1),
        other => ScalarValue::Int(!other.as_int()),
    }
}
