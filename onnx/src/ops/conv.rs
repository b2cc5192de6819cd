//! Convolutions.

use egret_ir::ops::{Conv, ConvForm};
use egret_ir::{Diagnostic, Dim, Shape, TensorType, Var};

use super::Results;
use crate::cx::Cx;
use crate::graph::single;

/// Numbers up to this one cannot overflow when a few are added and multiplied.
pub(super) const LARGEST: i64 = 1 << 30;

/// Padding before and after by spatial axis.
pub(super) type Pads = (Vec<i64>, Vec<i64>);

/// Strides, dilations or kernel extents: `n` entries, 1 where absent.
pub(super) fn spatial(cx: &Cx, name: &str, n: usize) -> Result<Vec<i64>, Diagnostic> {
    let list = cx.int_list(name).filter(|list| !list.is_empty()).unwrap_or(vec![1; n]);
    if list.len() != n || list.iter().any(|v| *v < 1 || *v > LARGEST) {
        return Err(cx.error(format!("{name} {list:?} must be {n} positive numbers")));
    }
    Ok(list)
}

/// The padding of a window of `reach` elements, explicit or by `auto_pad`.
pub(super) fn pads(cx: &Cx, input: &[Dim], reach: &[i64], stride: &[i64]) -> Result<Pads, Diagnostic> {
    let n = input.len();
    let auto = cx.text("auto_pad", "NOTSET");
    if auto == "VALID" {
        return Ok((vec![0; n], vec![0; n]));
    }
    if auto != "SAME_UPPER" && auto != "SAME_LOWER" {
        let all = cx.int_list("pads").filter(|list| !list.is_empty()).unwrap_or(vec![0; 2 * n]);
        if all.len() != 2 * n || all.iter().any(|v| v.unsigned_abs() > LARGEST as u64) {
            return Err(cx.error(format!("pads {all:?} must have {} entries", 2 * n)));
        }
        return Ok((all[..n].to_vec(), all[n..].to_vec()));
    }
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for i in 0..n {
        let total = match (input[i].as_const(), stride[i]) {
            (_, 1) => reach[i] - 1,
            (Some(extent), step) => ((extent + step - 1) / step - 1) * step + reach[i] - extent,
            (None, _) => {
                return Err(
                    cx.open_extent(format!("{auto} with a stride needs an extent that is a number, not {}", input[i]))
                );
            }
        }
        .max(0);
        let (less, more) = (total / 2, total - total / 2);
        low.push(if auto == "SAME_UPPER" { less } else { more });
        high.push(if auto == "SAME_UPPER" { more } else { less });
    }
    Ok((low, high))
}

/// The spatial extents of the kernel; they must be known.
fn kernel(cx: &Cx, w: Var, n: usize) -> Result<Vec<i64>, Diagnostic> {
    let shape = w.shape();
    if shape.rank() != n + 2 {
        return Err(cx.error(format!("the kernel {shape} must have rank {}", n + 2)));
    }
    cx.extents(&shape[2..])
}

fn biased<'t>(y: Var<'t>, bias: Option<Var<'t>>, n: usize) -> Var<'t> {
    let Some(bias) = bias else { return y };
    let shape = bias.shape();
    y + bias.reshape(shape.iter().cloned().chain(vec![Dim::ONE; n]).collect::<Shape>())
}

/// Number of spatial axes of `[n, c, …]`.
pub(super) fn spatial_rank(cx: &Cx, x: TensorType) -> Result<usize, Diagnostic> {
    x.shape.rank().checked_sub(2).ok_or_else(|| cx.error(format!("the operand {x} must have at least two axes")))
}

/// The convolution by the node's attributes, without a bias.
pub(super) fn convolution<'t>(cx: &Cx<'_, 't>, x: Var<'t>, w: Var<'t>) -> Result<Var<'t>, Diagnostic> {
    let n = spatial_rank(cx, x.ty())?;
    let (stride, dilation) = (spatial(cx, "strides", n)?, spatial(cx, "dilations", n)?);
    let reach: Vec<i64> = kernel(cx, w, n)?.iter().zip(&dilation).map(|(k, d)| (k - 1) * d + 1).collect();
    let (low, high) = pads(cx, &x.shape()[2..], &reach, &stride)?;
    Ok(x.conv(w, Conv::forward(&stride, &low, &high, &dilation, cx.int("group", 1))))
}

pub(super) fn conv<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, w) = (cx.var(0)?, cx.var(1)?);
    let y = convolution(cx, x, w)?;
    let bias = cx.optional(2)?;
    single(biased(y, bias, x.rank().saturating_sub(2)))
}

/// The input gradient of a convolution; weights are `[C, O/groups, k…]`, which is that convolution's own layout.
pub(super) fn conv_transpose<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, w) = (cx.var(0)?, cx.var(1)?);
    let n = spatial_rank(cx, x.ty())?;
    let (stride, dilation) = (spatial(cx, "strides", n)?, spatial(cx, "dilations", n)?);
    let reach: Vec<i64> = kernel(cx, w, n)?.iter().zip(&dilation).map(|(k, d)| (k - 1) * d + 1).collect();
    let extra = cx
        .int_list("output_padding")
        .filter(|l| l.len() == n && l.iter().all(|v| (0..LARGEST).contains(v)))
        .unwrap_or(vec![0; n]);
    let input = x.shape();
    let full = |i: usize| (input[2 + i].clone() - Dim::ONE) * Dim::from(stride[i]) + Dim::from(reach[i] + extra[i]);
    let auto = cx.text("auto_pad", "NOTSET");
    let wanted = match cx.int_list("output_shape") {
        Some(shape) if shape.len() >= n => Some(shape[shape.len() - n..].iter().map(|d| Dim::from(*d)).collect()),
        _ if auto.starts_with("SAME") => {
            Some((0..n).map(|i| input[2 + i].clone() * Dim::from(stride[i])).collect::<Vec<Dim>>())
        }
        _ => None,
    };
    let (mut low, mut high) = (vec![0; n], vec![0; n]);
    let mut extent = Shape::default();
    match wanted {
        Some(wanted) => {
            for (i, want) in wanted.iter().enumerate() {
                let total = (full(i) - want.clone()).as_const();
                let total =
                    total.ok_or_else(|| cx.open_extent(format!("the output extent {want} needs varying padding")))?;
                let total = total.max(0);
                let (less, more) = (total / 2, total - total / 2);
                (low[i], high[i]) = if auto == "SAME_UPPER" { (less, more) } else { (more, less) };
                extent.push(want.clone());
            }
        }
        None => {
            (low, high) = pads(cx, &input[2..], &reach, &stride)?;
            (0..n).for_each(|i| extent.push(full(i) - Dim::from(low[i] + high[i])));
        }
    }
    let forward = Conv::forward(&stride, &low, &high, &dilation, cx.int("group", 1));
    let y = x.conv(w, Conv { form: ConvForm::InputGrad, extent, ..forward });
    let bias = cx.optional(2)?;
    single(biased(y, bias, n))
}
