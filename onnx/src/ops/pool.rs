//! Pooling.

use egret_ir::ops::{Pad, Places, ReduceKind, ScatterKind, Window, WindowKind};
use egret_ir::{DType, Diagnostic, Dim, Literal, Shape, TensorType, Var};

use super::Results;
use super::conv::{LARGEST, pads, spatial};
use super::indexing::size;
use crate::cx::Cx;
use crate::graph::single;

/// The window, and how far `ceil_mode` reaches past the padding by axis.
fn window(cx: &Cx, x: Var) -> Result<(Window, Vec<i64>), Diagnostic> {
    let input = x.shape();
    let n = input.rank().saturating_sub(2);
    let size = spatial(cx, "kernel_shape", n)?;
    let (stride, dilation) = (spatial(cx, "strides", n)?, spatial(cx, "dilations", n)?);
    let reach: Vec<i64> = size.iter().zip(&dilation).map(|(k, d)| (k - 1) * d + 1).collect();
    let spatial_extents = input.get(2..).unwrap_or_default();
    let (low, high) = pads(cx, spatial_extents, &reach, &stride)?;
    let mut past = vec![0; n];
    if cx.int("ceil_mode", 0) != 0 {
        for i in 0..n {
            if stride[i] == 1 {
                continue;
            }
            let Some(extent) = spatial_extents[i].as_const() else {
                return Err(
                    cx.open_extent(format!("ceil_mode needs an extent that is a number, not {}", spatial_extents[i]))
                );
            };
            let room = extent + low[i] + high[i] - reach[i];
            let mut last = (room + stride[i] - 1).div_euclid(stride[i]);
            // a window that would start in the padding after the elements does not exist
            if last * stride[i] >= extent + low[i] {
                last -= 1;
            }
            past[i] = (last * stride[i] - room).max(0);
        }
    }
    let list = |v: &[i64]| v.iter().copied().collect();
    let window = Window {
        size: list(&size),
        stride: list(&stride),
        pad_low: list(&low),
        pad_high: list(&high),
        dilation: list(&dilation),
    };
    Ok((window, past))
}

fn reaching(mut window: Window, past: &[i64]) -> Window {
    window.pad_high.iter_mut().zip(past).for_each(|(pad, past)| *pad += past);
    window
}

pub(super) fn max_pool<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let (window, past) = window(cx, x)?;
    let window = reaching(window, &past);
    let y = x.reduce_window(WindowKind::Max, window.clone());
    if !cx.wants(1) {
        return single(y);
    }
    Ok(vec![y, places(cx, x, cx.made(y)?, &window)?])
}

/// A window of more elements has no indices of maxima, since each is written out.
const LARGEST_WINDOW: i64 = 1024;

/// The index in all of `x` of the first element of each window that is its maximum.
fn places<'t>(cx: &Cx<'_, 't>, x: Var<'t>, y: Var<'t>, window: &Window) -> Result<Var<'t>, Diagnostic> {
    let (n, rank) = (window.size.len(), x.rank());
    let taps = window.size.iter().try_fold(1i64, |n, k| n.checked_mul(*k)).filter(|taps| *taps <= LARGEST_WINDOW);
    let taps =
        taps.ok_or_else(|| cx.unsupported(format!("indices of maxima of more than {LARGEST_WINDOW} elements")))?;
    let (input, output) = (x.shape(), y.shape());
    let (input, extents) = (input.clone(), cx.extents(&input[rank - n..])?);
    let mut strides = input.strides();
    if cx.int("storage_order", 0) != 0 {
        let mut stride = Dim::ONE;
        for axis in rank - n..rank {
            strides[axis] = stride.clone();
            stride = stride * input[axis].clone();
        }
    }
    let lowest = if x.dtype().is_float() { f64::NEG_INFINITY } else { f64::from(i32::MIN) };
    let with = |pads: &[i64]| vec![0; rank - n].iter().chain(pads).copied().collect::<Vec<i64>>();
    let padded = x.pad(&with(&window.pad_low), &with(&window.pad_high), lowest);
    let counter = |axis| cx.t.iota(TensorType { dtype: DType::I64, shape: output.clone() }, axis);
    let mut base = cx.t.scalar(Literal::int(0, DType::I64));
    for (axis, stride) in strides.iter().enumerate().take(rank - n) {
        base = base + counter(axis) * size(cx, stride, DType::I64)?;
    }
    let mut found: Option<Var> = None;
    // from the last tap to the first, so that the first of equals stays
    for tap in (0..taps).rev() {
        let (mut rest, mut part, mut index, mut inside) = (tap, padded, base, None::<Var>);
        for axis in (rank - n..rank).rev() {
            let i = axis + n - rank;
            let at = rest % window.size[i] * window.dilation[i];
            rest /= window.size[i];
            let last = (output[axis].clone() - Dim::ONE) * Dim::from(window.stride[i]) + Dim::from(at + 1);
            part = part.slice(axis as isize, at, last, window.stride[i]);
            let place = counter(axis) * window.stride[i] + (at - window.pad_low[i]);
            index = index + place * size(cx, &strides[axis], DType::I64)?;
            if window.pad_low[i] != 0 || window.pad_high[i] != 0 {
                let here = place.greater_equal(0).logical_and(place.less(extents[i]));
                inside = Some(inside.map_or(here, |all| all.logical_and(here)));
            }
        }
        let mut wins = part.equal(y);
        if x.dtype().is_float() {
            wins = wins.logical_or(part.is_nan());
        }
        let wins = inside.map_or(wins, |inside| wins.logical_and(inside));
        found = Some(found.map_or(index, |other| wins.select(index, other)));
    }
    found.ok_or_else(|| cx.error("the window is empty"))
}

/// (Σ |x|ᵖ)^(1/p) of each window.
pub(super) fn lp_pool<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let (window, past) = window(cx, x)?;
    let sum = powers(cx, x).reduce_window(WindowKind::Sum, reaching(window, &past));
    single(root(cx, sum))
}

fn powers<'t>(cx: &Cx<'_, 't>, x: Var<'t>) -> Var<'t> {
    match norm_order(cx) {
        1.0 => x.abs(),
        2.0 => x * x,
        p => x.abs().pow(p),
    }
}

fn root<'t>(cx: &Cx<'_, 't>, sum: Var<'t>) -> Var<'t> {
    match norm_order(cx) {
        1.0 => sum,
        2.0 => sum.sqrt(),
        p => sum.pow(1.0 / p),
    }
}

/// The order of a norm; a float in opset 1.
fn norm_order(cx: &Cx) -> f64 {
    if cx.opset < 2 { cx.float("p", 2.0) } else { cx.int("p", 2) as f64 }
}

pub(super) fn global_lp_pool<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let axes: Vec<isize> = (2..x.rank() as isize).collect();
    single(root(cx, powers(cx, x).reduce_sum(&axes, true)))
}

/// Columns of blocks added up in the image that they were taken from: each element of a block is a sparse image of its
/// own, and their sum is cut to the image.
pub(super) fn col2im<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let (image, block) = (cx.dims(1)?, cx.dims(2)?);
    let n = image.len();
    let (image, block) = (cx.extents(&image)?, cx.extents(&block)?);
    let shape = x.shape();
    let (strides, dilations) = (spatial(cx, "strides", n)?, spatial(cx, "dilations", n)?);
    let pads = cx.int_list("pads").filter(|l| !l.is_empty()).unwrap_or(vec![0; 2 * n]);
    let taps = block.iter().try_fold(1i64, |n, k| n.checked_mul(*k)).filter(|n| (1..=LARGEST_WINDOW).contains(n));
    let legal = |v: &i64| (0..=LARGEST).contains(v);
    let (Some(taps), true) = (taps, shape.rank() == 3 && n > 0 && block.len() == n && pads.len() == 2 * n) else {
        return Err(cx.error(format!("blocks {block:?} of {image:?} do not fit {}", x.ty())));
    };
    if !pads.iter().chain(&image).all(legal) {
        return Err(cx.error(format!("pads {pads:?} of {image:?}")));
    }
    // the number of blocks along each axis, as in the convolution that takes them
    let counts: Option<Vec<i64>> = (0..n)
        .map(|i| {
            let room = image[i] + pads[i] + pads[n + i] - (block[i] - 1) * dilations[i] - 1;
            (room >= 0).then(|| room / strides[i] + 1)
        })
        .collect();
    let counts = counts.ok_or_else(|| cx.error(format!("blocks {block:?} are larger than {image:?}")))?;
    let channels = shape[1].floor_div(&Dim::from(taps));
    let apart: Shape =
        [shape[0].clone(), channels, Dim::from(taps)].into_iter().chain(counts.iter().map(|c| Dim::from(*c))).collect();
    let blocks = x.reshape(apart);
    let zero = Literal::new(egret_ir::ScalarValue::Int(0), x.dtype());
    let mut sum: Option<Var> = None;
    for tap in 0..taps {
        let mut rest = tap;
        let mut at = vec![0; n];
        for i in (0..n).rev() {
            at[i] = rest % block[i] * dilations[i];
            rest /= block[i];
        }
        let part = blocks.narrow(2, tap, 1).squeeze(&[2]);
        let with = |f: &dyn Fn(usize) -> i64| [0, 0].into_iter().chain((0..n).map(f)).map(Dim::from).collect();
        let padded = Pad {
            low: with(&|i| at[i]),
            high: with(&|i| image[i] + pads[i] + pads[n + i] - at[i] - ((counts[i] - 1) * strides[i] + 1)),
            interior: [0, 0].into_iter().chain(strides.iter().map(|s| s - 1)).collect(),
            value: zero,
        };
        let part = part.then(padded, &[]);
        sum = Some(sum.map_or(part, |sum| sum + part));
    }
    let mut y = sum.ok_or_else(|| cx.error("the blocks are empty"))?;
    for i in 0..n {
        y = y.narrow(i as isize + 2, pads[i], image[i]);
    }
    single(y)
}

/// Elements back at the places that they had before pooling, zeros elsewhere; around that, if the result is larger.
pub(super) fn max_unpool<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, index) = (cx.var(0)?, cx.var(1)?);
    let shape = x.shape();
    let n = shape.rank().saturating_sub(2);
    let (size, stride) = (spatial(cx, "kernel_shape", n)?, spatial(cx, "strides", n)?);
    let pads = cx.int_list("pads").filter(|l| !l.is_empty()).unwrap_or(vec![0; 2 * n]);
    if n == 0 || pads.len() != 2 * n || pads.iter().any(|p| !(0..=LARGEST).contains(p)) {
        return Err(cx.error(format!("pads {pads:?} of {}", x.ty())));
    }
    let grown = |i: usize| {
        let extent = (shape[2 + i].clone() - Dim::ONE) * Dim::from(stride[i]);
        extent + Dim::from(size[i] - pads[i] - pads[n + i])
    };
    let image: Shape = shape[..2].iter().cloned().chain((0..n).map(grown)).collect();
    let total = image.elements();
    if total.range().1 < 0 {
        return Err(cx.error(format!("an image of {image}")));
    }
    let zeros = cx.like(x, 0.0).broadcast(Shape::from([total]));
    let flat = |v: Var<'t>| v.reshape(Shape::from([shape.elements()]));
    let mut y = zeros.scatter(Places::Rows { axis: 0 }, ScatterKind::Set, flat(index), flat(x)).reshape(image.clone());
    if cx.has(2) {
        let wanted = cx.dims(2)?;
        if wanted.len() != image.rank() {
            return Err(cx.error(format!("a result of rank {}", wanted.len())));
        }
        let extents = cx.extents(&image)?;
        let wanted = cx.extents(&wanted)?;
        let high: Vec<i64> = wanted.iter().zip(&extents).map(|(want, have)| want - have).collect();
        if high.iter().any(|p| !(0..=LARGEST).contains(p)) {
            return Err(cx.error(format!("{image} does not fit into {wanted:?}")));
        }
        y = y.pad(&vec![0; high.len()], &high, 0.0);
    }
    single(y)
}

pub(super) fn average_pool<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let (mut window, past) = window(cx, x)?;
    let reaches = past.iter().any(|p| *p != 0);
    if cx.int("count_include_pad", 0) == 0 {
        return single(x.reduce_window(WindowKind::MeanValid, reaching(window, &past)));
    }
    if !reaches {
        return single(x.reduce_window(WindowKind::MeanAll, window));
    }
    // padding counts, what ceil_mode adds does not: zeros become elements
    let with = |pads: &[i64]| [0, 0].iter().chain(pads).copied().collect::<Vec<i64>>();
    let padded = x.pad(&with(&window.pad_low), &with(&window.pad_high), 0.0);
    window.pad_low.fill(0);
    window.pad_high.fill(0);
    single(padded.reduce_window(WindowKind::MeanValid, reaching(window, &past)))
}

fn global<'t>(cx: &mut Cx<'_, 't>, kind: ReduceKind) -> Results<'t> {
    let x = cx.var(0)?;
    let axes: Vec<isize> = (2..x.rank() as isize).collect();
    single(x.reduce(kind, &axes, true))
}

pub(super) fn global_average_pool<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    global(cx, ReduceKind::Mean)
}

pub(super) fn global_max_pool<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    global(cx, ReduceKind::Max)
}
