//! Pooling.

use egret_ir::ops::{ReduceKind, Window, WindowKind};
use egret_ir::{Diagnostic, Var};

use super::Results;
use super::conv::{pads, spatial};
use crate::cx::Cx;
use crate::import::single;

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
                return Err(cx.error(format!("ceil_mode needs a fixed extent, not {}", spatial_extents[i])));
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
    if cx.wants(1) {
        return Err(cx.error("the indices of maxima are not supported"));
    }
    let x = cx.var(0)?;
    let (window, past) = window(cx, x)?;
    single(x.reduce_window(WindowKind::Max, reaching(window, &past)))
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
