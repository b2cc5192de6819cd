//! Resampling, one axis after the other, by look-ups with indices and weights that are known now.

use egret_ir::{Diagnostic, Dim, ScalarValue, Shape, Tensor, Var};

use super::Results;
use crate::cx::Cx;
use crate::import::single;

/// How places of the result map to places of the operand.
struct Mapping<'a> {
    transform: &'a str,
    scale: f64,
    input: f64,
    output: f64,
}

impl Mapping<'_> {
    fn place(&self, i: usize) -> f64 {
        let (x, scale) = (i as f64, self.scale);
        match self.transform {
            "asymmetric" => x / scale,
            "align_corners" if self.output <= 1.0 => 0.0,
            "align_corners" => x * (self.input - 1.0) / (self.output - 1.0),
            "pytorch_half_pixel" if self.output <= 1.0 => 0.0,
            "tf_half_pixel_for_nn" => (x + 0.5) / scale,
            "half_pixel_symmetric" => {
                let adjustment = self.output / (scale * self.input);
                let centre = self.input / 2.0;
                centre * (1.0 - adjustment) + (x + 0.5) / scale - 0.5
            }
            _ => (x + 0.5) / scale - 0.5,
        }
    }
}

/// The taps of one place: indices relative to the element below it, and weights.
fn taps(mode: &str, nearest: &str, cubic: f64, at: f64) -> Vec<(i64, f64)> {
    let below = at.floor();
    let rest = at - below;
    match mode {
        "linear" => vec![(below as i64, 1.0 - rest), (below as i64 + 1, rest)],
        "cubic" => {
            let near = |d: f64| ((cubic + 2.0) * d - (cubic + 3.0)) * d * d + 1.0;
            let far = |d: f64| ((cubic * d - 5.0 * cubic) * d + 8.0 * cubic) * d - 4.0 * cubic;
            let weights = [far(rest + 1.0), near(rest), near(1.0 - rest), far(2.0 - rest)];
            weights.iter().enumerate().map(|(i, w)| (below as i64 - 1 + i as i64, *w)).collect()
        }
        _ => {
            let index = match nearest {
                "floor" => below,
                "ceil" => at.ceil(),
                "round_prefer_ceil" => (at + 0.5).floor(),
                // halves go down
                _ => (at - 0.5).ceil(),
            };
            vec![(index as i64, 1.0)]
        }
    }
}

/// How often each element is repeated, if that is all that happens.
fn repeats(cx: &Cx, scale: f64) -> Option<i64> {
    let old = cx.opset < 11;
    let transform = cx.text("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" });
    let nearest = cx.text("nearest_mode", if old { "floor" } else { "round_prefer_floor" });
    let whole = scale.fract() == 0.0 && (1.0..64.0).contains(&scale);
    if cx.text("mode", "nearest") != "nearest"
        || !whole
        || transform == "align_corners"
        || transform.starts_with("tf_crop")
    {
        return None;
    }
    // far from both ends, whatever the extent
    let (input, period) = (64.0, scale as usize);
    let mapping = Mapping { transform: &transform, scale, input, output: input * scale };
    let plain =
        (0..period * 4).all(|i| taps("nearest", &nearest, 0.0, mapping.place(i))[0].0.max(0) == (i / period) as i64);
    plain.then_some(period as i64)
}

/// The axis resampled to `output` elements.
fn axis<'t>(cx: &Cx<'_, 't>, x: Var<'t>, axis: usize, output: usize, scale: f64) -> Result<Var<'t>, Diagnostic> {
    let extent = x.shape()[axis].as_const().filter(|n| *n > 0);
    let Some(extent) = extent else {
        return Err(cx.error(format!("axis {axis} of {} must have a fixed extent", x.ty())));
    };
    let old = cx.opset < 11;
    let default = if old { "asymmetric" } else { "half_pixel" };
    let transform = cx.text("coordinate_transformation_mode", default);
    let nearest = cx.text("nearest_mode", if old { "floor" } else { "round_prefer_floor" });
    let mode = cx.text("mode", "nearest");
    let cubic = cx.float("cubic_coeff_a", -0.75);
    if transform == "tf_crop_and_resize" || cx.int("antialias", 0) != 0 {
        return Err(cx.error("regions and antialiasing are not supported"));
    }
    let exclude = cx.int("exclude_outside", 0) != 0;
    let mapping = Mapping { transform: &transform, scale, input: extent as f64, output: output as f64 };
    let mut rows: Vec<Vec<(i64, f64)>> = Vec::with_capacity(output);
    for i in 0..output {
        let mut row = taps(mode.trim_start_matches("bi"), &nearest, cubic, mapping.place(i));
        if exclude {
            row.iter_mut().filter(|(i, _)| *i < 0 || *i >= extent).for_each(|(_, w)| *w = 0.0);
            let total: f64 = row.iter().map(|(_, w)| w).sum();
            row.iter_mut().for_each(|(_, w)| *w /= total);
        }
        row.iter_mut().for_each(|(i, _)| *i = (*i).clamp(0, extent - 1));
        rows.push(row);
    }
    let count = rows.first().map_or(1, Vec::len);
    let mut sum: Option<Var> = None;
    for tap in 0..count {
        let index: Vec<i64> = rows.iter().map(|row| row[tap].0).collect();
        let Some(index) = Tensor::new(&[output], &index) else { return Err(cx.error("too many elements")) };
        let part = x.gather(cx.t.constant(index), axis as isize);
        if count == 1 {
            return Ok(part);
        }
        let mut weights = Tensor::zeros(x.dtype(), &[output]);
        rows.iter().enumerate().for_each(|(i, row)| weights.set(i, ScalarValue::Float(row[tap].1)));
        let mut shape = vec![1i64; x.rank() - axis];
        shape[0] = output as i64;
        let part = part * cx.t.constant(weights).reshape(Shape::from(shape.as_slice()));
        sum = Some(sum.map_or(part, |sum| sum + part));
    }
    sum.ok_or_else(|| cx.error("has no taps"))
}

fn resampled<'t>(
    cx: &Cx<'_, 't>,
    mut x: Var<'t>,
    scales: &[f64],
    sizes: Option<&[i64]>,
    axes: &[usize],
) -> Results<'t> {
    for (i, place) in axes.iter().enumerate() {
        let extent = x.shape()[*place].clone();
        let known = extent.as_const();
        let output = match (sizes, known) {
            (Some(sizes), _) => Some(sizes[i]),
            (None, Some(extent)) => Some((extent as f64 * scales[i]).floor() as i64),
            (None, None) => None,
        };
        let scale = match (sizes, known) {
            (Some(sizes), Some(extent)) => sizes[i] as f64 / extent as f64,
            _ => scales.get(i).copied().unwrap_or(1.0),
        };
        if scale == 1.0 && (output == known || sizes.is_none()) {
            continue;
        }
        if let Some(n) = repeats(cx, scale)
            .filter(|_| known.is_none() || known.map(|k| k as f64 * scale) == output.map(|o| o as f64))
        {
            let shape = x.shape();
            let mut wide: Vec<Dim> = shape.to_vec();
            wide.insert(place + 1, n.into());
            let whole: Shape = shape
                .iter()
                .enumerate()
                .map(|(i, d)| if i == *place { d.clone() * Dim::from(n) } else { d.clone() })
                .collect();
            x = x.unsqueeze(&[*place as isize + 1]).broadcast(wide.as_slice()).reshape(whole);
            continue;
        }
        let output = output.and_then(|n| usize::try_from(n).ok()).filter(|n| *n < 1 << 24);
        let Some(output) = output else {
            return Err(cx.error(format!("axis {place} of {} must have a fixed extent", x.ty())));
        };
        x = axis(cx, x, *place, output, scale)?;
    }
    single(x)
}

fn floats(cx: &Cx, i: usize) -> Result<Option<Vec<f64>>, Diagnostic> {
    if !cx.has(i) {
        return Ok(None);
    }
    match cx.tensor(i) {
        Some(tensor) if tensor.elements() == 0 => Ok(None),
        Some(tensor) => Ok(Some(tensor.values().map(|v| v.as_f64()).collect())),
        None => Err(cx.error("the scales must not depend on data")),
    }
}

pub(super) fn resize<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let at = if cx.opset < 11 { 1 } else { 2 };
    let scales = floats(cx, at)?.unwrap_or_default();
    let sizes = cx.ints(3)?.filter(|sizes| !sizes.is_empty());
    let axes = match cx.int_list("axes") {
        Some(list) => cx.axes(&list, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    if cx.text("keep_aspect_ratio_policy", "stretch") != "stretch" {
        return Err(cx.error("only the policy `stretch` is supported"));
    }
    if sizes.as_ref().map_or(scales.len(), Vec::len) != axes.len() {
        return Err(cx.error(format!("scales or sizes are not {}", axes.len())));
    }
    resampled(cx, x, &scales, sizes.as_deref(), &axes)
}

pub(super) fn upsample<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let scales = match cx.float_list("scales") {
        Some(list) => list.into_iter().map(f64::from).collect(),
        None => floats(cx, 1)?.unwrap_or_default(),
    };
    if scales.len() != x.rank() {
        return Err(cx.error(format!("{} scales for {}", scales.len(), x.ty())));
    }
    resampled(cx, x, &scales, None, &(0..x.rank()).collect::<Vec<usize>>())
}
