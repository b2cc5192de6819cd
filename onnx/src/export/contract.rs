//! Products and convolutions.

use egret_ir::ops::{Conv, ConvForm, DotGeneral, Labels};
use egret_ir::{DType, Diagnostic, Dim, TensorType};

use super::{Arg, Export};
use crate::export::writer::{flag, int, ints, text};

/// A contraction as a product of matrices: both operands and the result with axes in the order that `MatMul` has.
struct Product {
    lhs: Labels,
    rhs: Labels,
    out: Labels,
}

/// The matrix product that a contraction is, of one contracted axis and one axis of columns, if it is one.
fn product(dot: &DotGeneral) -> Option<Product> {
    let once = |labels: &Labels| (0..labels.0.len()).all(|axis| labels.axis(labels.0[axis]) == Some(axis));
    if !once(&dot.lhs) || !once(&dot.rhs) {
        return None;
    }
    let of_out = |left: bool, right: bool| -> Vec<u8> {
        let kept = |l: &u8| dot.lhs.has(*l) == left && dot.rhs.has(*l) == right;
        dot.out.0.iter().copied().filter(kept).collect()
    };
    let (batch, rows, columns) = (of_out(true, true), of_out(true, false), of_out(false, true));
    let inner: Vec<u8> = dot.contracted().collect();
    let alone = dot.rhs.0.iter().any(|l| !dot.lhs.has(*l) && !dot.out.has(*l));
    let [k] = inner.as_slice() else { return None };
    let several = rows.len() > 1 && !batch.is_empty();
    if alone || !dot.rhs.has(*k) || columns.len() != 1 || rows.is_empty() || several {
        return None;
    }
    let labels = |parts: [&[u8]; 3]| Labels(parts.concat().into_iter().collect());
    let lhs = labels([&batch, &rows, &[*k]]);
    let rhs = labels([&batch, &[*k], &columns]);
    Some(Product { lhs, rhs, out: labels([&batch, &rows, &columns]) })
}

/// By axis of `to`, its place in `from`.
fn turned(from: &Labels, to: &Labels) -> Vec<usize> {
    to.0.iter().filter_map(|label| from.axis(*label)).collect()
}

impl Export<'_> {
    pub(super) fn dot(&mut self, dot: &DotGeneral, x: &[Arg]) -> String {
        if dot.wide {
            let [a, b] = [0, 1].map(|i| self.w.cast(x[i].name, DType::I32));
            return self.contract((&a, &dot.lhs), (&b, &dot.rhs), &dot.out, false);
        }
        self.contract((x[0].name, &dot.lhs), (x[1].name, &dot.rhs), &dot.out, x[0].ty.dtype.is_float())
    }

    /// A contraction, as the operator of ONNX that says it most directly.
    pub(super) fn contract(
        &mut self,
        (a, lhs): (&str, &Labels),
        (b, rhs): (&str, &Labels),
        out: &Labels,
        float: bool,
    ) -> String {
        let dot = DotGeneral { lhs: lhs.clone(), rhs: rhs.clone(), out: out.clone(), wide: false };
        let Some(product) = product(&dot) else {
            let equation = format!("{lhs},{rhs}->{out}");
            return self.w.op_with("Einsum", &[a, b], vec![text("equation", &equation)]);
        };
        let (left, right) = (turned(lhs, &product.lhs), turned(rhs, &product.rhs));
        let back = turned(&product.out, out);
        let straight = left.is_sorted() && right.is_sorted();
        if float && !straight && back.is_sorted() && left.len() == 2 && right.len() == 2 {
            let turns = vec![flag("transA", !left.is_sorted()), flag("transB", !right.is_sorted())];
            return self.w.op_with("Gemm", &[a, b], turns);
        }
        let (a, b) = (self.w.transpose(a, &left), self.w.transpose(b, &right));
        let y = self.w.op("MatMul", &[&a, &b]);
        self.w.transpose(&y, &back)
    }

    pub(super) fn conv(&mut self, conv: &Conv, x: &[Arg], y: &TensorType) -> Result<String, Diagnostic> {
        if conv.pad_low.iter().chain(&conv.pad_high).any(|pad| *pad < 0) {
            return Err(self.refuse("its padding is negative"));
        }
        let mut attributes = vec![
            int("group", conv.groups),
            ints("strides", conv.stride.to_vec()),
            ints("dilations", conv.dilation.to_vec()),
            ints("pads", conv.pad_low.iter().chain(&conv.pad_high).copied().collect()),
        ];
        let names = [x[0].name, x[1].name];
        match conv.form {
            ConvForm::Forward if conv.wide => Ok(self.w.op_with("ConvInteger", &names, attributes)),
            _ if conv.wide => Err(self.refuse("it sums integers of 8 bits backwards")),
            ConvForm::Forward => Ok(self.w.op_with("Conv", &names, attributes)),
            ConvForm::InputGrad => {
                attributes.push(ints("output_padding", self.output_padding(conv, x, y)?));
                Ok(self.w.op_with("ConvTranspose", &names, attributes))
            }
            ConvForm::WeightGrad => Err(self.refuse("it is a gradient").help("export the graph of evaluation")),
        }
    }

    /// How far the result of a transposed convolution reaches past what its windows cover.
    fn output_padding(&self, conv: &Conv, x: &[Arg], y: &TensorType) -> Result<Vec<i64>, Diagnostic> {
        let extra = |i: usize| {
            let windows = (x[0].ty.shape[2 + i].clone() - Dim::ONE) * Dim::from(conv.stride[i]);
            let reach = (x[1].ty.shape[2 + i].clone() - Dim::ONE) * Dim::from(conv.dilation[i]) + Dim::ONE;
            let covered = windows + reach - Dim::from(conv.pad_low[i] + conv.pad_high[i]);
            (y.shape[2 + i].clone() - covered).as_const().filter(|extra| (0..conv.stride[i]).contains(extra))
        };
        let extra: Option<Vec<i64>> = (0..conv.spatial()).map(extra).collect();
        extra.ok_or_else(|| self.refuse(&format!("the extents of {y} do not follow from those of {}", x[0].ty)))
    }
}
