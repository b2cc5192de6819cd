//! Resampling, one axis after the other: by look-ups with indices and weights that are known now, or where extents are
//! open by a program of the place.

use egret_ir::ops::Outside;
use egret_ir::{DType, Diagnostic, Dim, Generator, Literal, Scalar, ScalarFn, ScalarValue, Shape, Tensor, Var};

use super::Results;
use crate::cx::Cx;
use crate::graph::single;

/// No axis is resampled to more elements.
const LARGEST: i64 = 1 << 20;

/// No matrix of weights has more elements.
const MATRIX: usize = 1 << 24;

/// Rows of more taps than this are one product with a matrix of weights, which is a kernel of its own: the steps of two
/// axes in one kernel multiply.
const TAPS: usize = 6;

/// The interpolation, by the node's attributes.
struct Filter {
    mode: String,
    nearest: String,
    cubic: f64,
    antialias: bool,
    exclude_outside: bool,
    transform: String,
    /// Stands for elements outside the operand when a region of it is resampled.
    extrapolation: f64,
}

impl Filter {
    fn of(cx: &Cx) -> Filter {
        let old = cx.opset < 11;
        Filter {
            mode: cx.text("mode", "nearest").trim_start_matches("bi").to_string(),
            nearest: cx.text("nearest_mode", if old { "floor" } else { "round_prefer_floor" }),
            cubic: cx.float("cubic_coeff_a", -0.75),
            antialias: cx.int("antialias", 0) != 0,
            exclude_outside: cx.int("exclude_outside", 0) != 0,
            transform: cx.text("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" }),
            extrapolation: cx.float("extrapolation_value", 0.0),
        }
    }

    fn crops(&self) -> bool {
        self.transform == "tf_crop_and_resize"
    }
}

/// One axis: how places of the result map to places of the operand.
#[derive(Clone, Copy)]
struct Axis {
    scale: f64,
    input: f64,
    /// The extent of the result before it is rounded, and after.
    exact: f64,
    output: f64,
    /// The region that is resampled, as shares of the operand.
    region: (f64, f64),
}

impl Axis {
    fn place(&self, transform: &str, i: usize) -> f64 {
        let (x, scale) = (i as f64, self.scale);
        match transform {
            "asymmetric" => x / scale,
            "align_corners" if self.output <= 1.0 => 0.0,
            "align_corners" => x * (self.input - 1.0) / (self.exact - 1.0),
            "pytorch_half_pixel" if self.output <= 1.0 => 0.0,
            "tf_half_pixel_for_nn" => (x + 0.5) / scale,
            "half_pixel_symmetric" => {
                let centre = self.input / 2.0;
                centre * (1.0 - self.output / self.exact) + (x + 0.5) / scale - 0.5
            }
            "tf_crop_and_resize" => {
                let (start, end) = self.region;
                let last = self.input - 1.0;
                match self.output > 1.0 {
                    true => start * last + x * (end - start) * last / (self.output - 1.0),
                    false => 0.5 * (start + end) * last,
                }
            }
            _ => (x + 0.5) / scale - 0.5,
        }
    }
}

/// The taps of one place: indices, and weights.
fn taps(filter: &Filter, at: f64, scale: f64) -> Vec<(i64, f64)> {
    let below = at.floor();
    let rest = at - below;
    // the kernel is stretched by what is lost in shrinking
    let stretch = if filter.antialias { scale.min(1.0) } else { 1.0 };
    let cubic = |d: f64| {
        let (a, d) = (filter.cubic, d.abs());
        match d {
            d if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
            d if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
            _ => 0.0,
        }
    };
    let linear = |d: f64| (1.0 - d.abs()).max(0.0);
    let spread = |reach: f64, kernel: &dyn Fn(f64) -> f64| -> Vec<(i64, f64)> {
        let reach = reach / stretch;
        let (first, last) = ((at - reach).floor() as i64 + 1, (at + reach).ceil() as i64 - 1);
        let weights: Vec<(i64, f64)> = (first..=last).map(|i| (i, kernel((i as f64 - at) * stretch))).collect();
        let total: f64 = weights.iter().map(|(_, w)| w).sum();
        weights.into_iter().map(|(i, w)| (i, w / total)).collect()
    };
    match (filter.mode.as_str(), stretch < 1.0) {
        ("linear", true) => spread(1.0, &linear),
        ("cubic", true) => spread(2.0, &cubic),
        ("linear", false) => vec![(below as i64, 1.0 - rest), (below as i64 + 1, rest)],
        ("cubic", false) => (-1..=2).map(|i| (below as i64 + i, cubic(i as f64 - rest))).collect(),
        _ => {
            let index = match filter.nearest.as_str() {
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
fn repeats(filter: &Filter, scale: f64) -> Option<i64> {
    let whole = scale.fract() == 0.0 && (1.0..64.0).contains(&scale);
    if filter.mode != "nearest" || !whole || filter.transform == "align_corners" || filter.crops() {
        return None;
    }
    // far from both ends, whatever the extent
    let (input, period) = (64.0, scale as usize);
    let axis = Axis { scale, input, exact: input * scale, output: input * scale, region: (0.0, 1.0) };
    let index = |i: usize| taps(filter, axis.place(&filter.transform, i), scale)[0].0.max(0);
    (0..period * 4).all(|i| index(i) == (i / period) as i64).then_some(period as i64)
}

/// An axis resampled by its taps.
fn resampled<'t>(cx: &Cx<'_, 't>, filter: &Filter, x: Var<'t>, at: usize, axis: Axis) -> Result<Var<'t>, Diagnostic> {
    let (extent, output) = (axis.input as i64, axis.output as usize);
    let mut rows: Vec<Vec<(i64, f64)>> = Vec::with_capacity(output);
    let mut outside = Vec::with_capacity(output);
    for i in 0..output {
        let place = axis.place(&filter.transform, i);
        outside.push(filter.crops() && !(0.0..=axis.input - 1.0).contains(&place));
        let mut row = taps(filter, place, axis.scale);
        if filter.exclude_outside {
            row.iter_mut().filter(|(i, _)| *i < 0 || *i >= extent).for_each(|(_, w)| *w = 0.0);
            let total: f64 = row.iter().map(|(_, w)| w).sum();
            row.iter_mut().for_each(|(_, w)| *w /= total);
        }
        row.iter_mut().for_each(|(i, _)| *i = (*i).clamp(0, extent - 1));
        rows.push(row);
    }
    let count = rows.iter().map(Vec::len).max().unwrap_or(1);
    let y = match count {
        _ if count > TAPS => product(cx, x, at, &rows)?,
        _ => by_taps(cx, x, at, &rows, count)?,
    };
    if !outside.contains(&true) {
        return Ok(y);
    }
    let mut mask = Tensor::zeros(DType::Bool, &[output]);
    outside.iter().enumerate().for_each(|(i, out)| mask.set(i, ScalarValue::Bool(*out)));
    let mask = along(cx, mask, at, x.rank());
    Ok(mask.select(cx.t.scalar(Literal::float(filter.extrapolation, x.dtype())), y))
}

/// A vector along an axis of a value of some rank.
fn along<'t>(cx: &Cx<'_, 't>, v: Tensor, axis: usize, rank: usize) -> Var<'t> {
    let mut shape = vec![1i64; rank - axis];
    shape[0] = v.elements() as i64;
    cx.t.constant(v).reshape(Shape::from(shape.as_slice()))
}

fn by_taps<'t>(
    cx: &Cx<'_, 't>,
    x: Var<'t>,
    axis: usize,
    rows: &[Vec<(i64, f64)>],
    count: usize,
) -> Result<Var<'t>, Diagnostic> {
    let mut sum: Option<Var> = None;
    for tap in 0..count {
        // rows with fewer taps repeat one with no weight
        let at = |row: &Vec<(i64, f64)>| row.get(tap).copied().unwrap_or((row[0].0, 0.0));
        let index: Vec<i64> = rows.iter().map(|row| at(row).0).collect();
        let Some(index) = Tensor::new(&[rows.len()], &index) else { return Err(cx.error("too many elements")) };
        let part = x.gather(cx.t.constant(index), axis as isize);
        if count == 1 {
            return Ok(part);
        }
        let mut weights = Tensor::zeros(x.dtype(), &[rows.len()]);
        rows.iter().enumerate().for_each(|(i, row)| weights.set(i, ScalarValue::Float(at(row).1)));
        let part = part * along(cx, weights, axis, x.rank());
        sum = Some(sum.map_or(part, |sum| sum + part));
    }
    sum.ok_or_else(|| cx.error("has no taps"))
}

/// The axis contracted with a matrix of weights.
fn product<'t>(cx: &Cx<'_, 't>, x: Var<'t>, axis: usize, rows: &[Vec<(i64, f64)>]) -> Result<Var<'t>, Diagnostic> {
    let extent = cx.extents(&x.shape()[axis..=axis])?[0] as usize;
    let elements = extent.checked_mul(rows.len()).filter(|n| *n <= MATRIX);
    let elements = elements.ok_or_else(|| cx.unsupported("an antialiased axis this long"))?;
    let mut weights = vec![0f64; elements];
    for (i, row) in rows.iter().enumerate() {
        row.iter().for_each(|(j, w)| weights[i * extent + *j as usize] += w);
    }
    let mut matrix = Tensor::zeros(x.dtype(), &[rows.len(), extent]);
    weights.iter().enumerate().for_each(|(i, w)| matrix.set(i, ScalarValue::Float(*w)));
    // one letter an axis, `z` for the new one
    let own: String = (0..x.rank()).map(|i| char::from(b'a' + i as u8)).collect();
    let letter = char::from(b'a' + axis as u8);
    let name = cx.region.model.param_name(&format!("{}.weights", cx.node.name));
    let weights = cx.region.root.param(&name, egret_ir::Weight::Tensor(matrix));
    Ok(x.dot_general(weights, &format!("{own},z{letter}->{}", own.replace(letter, "z"))))
}

/// What an axis becomes.
struct Target {
    axis: usize,
    size: Option<Dim>,
    scale: Option<f64>,
    region: (f64, f64),
}

/// An extent times a scale, rounded down, if the scale is a fraction with a small denominator.
fn scaled(extent: &Dim, scale: f64) -> Option<Dim> {
    (1..=64i64).find_map(|q| {
        let p = scale * q as f64;
        // scales are numbers of f32
        let near = p.round();
        let exact = (p - near).abs() <= near.abs() * f64::from(f32::EPSILON) && (1.0..1e6).contains(&near);
        exact.then(|| (extent.clone() * Dim::from(near as i64)).floor_div(&Dim::from(q)))
    })
}

/// An axis whose extent is open, by a program of the place: one tap or two.
fn open_axis<'t>(
    cx: &Cx<'_, 't>,
    filter: &Filter,
    x: Var<'t>,
    at: usize,
    output: Dim,
    scale: Option<f64>,
) -> Result<Var<'t>, Diagnostic> {
    let input = x.shape()[at].clone();
    let plain = !filter.antialias && !filter.exclude_outside && !filter.crops();
    if !plain || !matches!(filter.mode.as_str(), "nearest" | "linear") {
        return Err(cx.open_extent(format!("axis {at} of {} must have an extent that is a number", x.ty())));
    }
    let mut ty = x.ty();
    ty.shape = ty.shape.iter().enumerate().map(|(i, d)| if i == at { output.clone() } else { d.clone() }).collect();
    let (dtype, wide) = (x.dtype(), DType::F64);
    let float = |value: f64| Scalar::literal(Literal::float(value, wide));
    Ok(cx.t.generate(ty, &[x], |g, i| {
        let (input, output) = (g.dim(&input).cast(wide), g.dim(&output).cast(wide));
        let (input, output) = (g.bind(input), g.bind(output));
        let ratio = match scale {
            Some(scale) => float(scale),
            None => g.bind(output.clone() / input.clone()),
        };
        let exact = scale.map_or(output.clone(), |scale| input.clone() * scale);
        let place = i[at].cast(wide);
        let half = (place.clone() + 0.5) / ratio.clone() - 0.5;
        let place = match filter.transform.as_str() {
            "asymmetric" => place / ratio,
            "align_corners" => {
                let last = (exact - 1.0).maximum(1.0);
                place * (input.clone() - 1.0) / last
            }
            "pytorch_half_pixel" => output.less_equal(1.0).select(0.0, half),
            "tf_half_pixel_for_nn" => (place + 0.5) / ratio,
            "half_pixel_symmetric" => half + input.clone() * 0.5 * (float(1.0) - output / exact),
            _ => half,
        };
        let place = g.bind(place);
        let load = |g: &mut Generator, index: Scalar| {
            let mut all = i.to_vec();
            all[at] = index.cast(DType::I64);
            g.load(0, &all, Outside::Clamp)
        };
        let ceil = |x: Scalar| x.map(ScalarFn::Ceil, &[]);
        if filter.mode == "nearest" {
            let index = match filter.nearest.as_str() {
                "floor" => place.floor(),
                "ceil" => ceil(place),
                "round_prefer_ceil" => (place + 0.5).floor(),
                _ => ceil(place - 0.5),
            };
            return load(g, index);
        }
        let below = g.bind(place.floor());
        let rest = g.bind((place - below.clone()).cast(dtype));
        let (a, b) = (load(g, below.clone()), load(g, below + 1.0));
        a * (Scalar::literal(Literal::float(1.0, dtype)) - rest.clone()) + b * rest
    }))
}

fn each<'t>(cx: &Cx<'_, 't>, mut x: Var<'t>, targets: &[Target]) -> Results<'t> {
    let filter = Filter::of(cx);
    for target in targets {
        let place = target.axis;
        let extent = cx.made(x)?.shape()[place].clone();
        if target.size.is_none() && target.scale == Some(1.0) && !filter.crops() {
            continue;
        }
        if let (None, Some(n)) = (&target.size, target.scale.and_then(|scale| repeats(&filter, scale))) {
            let shape = x.shape();
            let mut wide: Vec<Dim> = shape.to_vec();
            wide.insert(place + 1, n.into());
            let mut whole = shape.to_vec();
            whole[place] = extent * Dim::from(n);
            x = x.unsqueeze(&[place as isize + 1]).broadcast(wide.as_slice()).reshape(whole.as_slice());
            continue;
        }
        let open = extent.as_const().is_none() || target.size.as_ref().is_some_and(|size| size.as_const().is_none());
        if open {
            let output = match (&target.size, target.scale) {
                (Some(size), _) => Some(size.clone()),
                (None, Some(scale)) => scaled(&extent, scale),
                (None, None) => None,
            };
            let Some(output) = output else {
                return Err(cx.open_extent(format!("axis {place} of {} must have an extent that is a number", x.ty())));
            };
            x = open_axis(cx, &filter, x, place, output, target.scale)?;
            continue;
        }
        let input = cx.extents(&[extent])?[0];
        let size = match &target.size {
            Some(size) => Some(cx.extents(std::slice::from_ref(size))?[0]),
            None => None,
        };
        let region = if filter.crops() { target.region } else { (0.0, 1.0) };
        let part = region.1 - region.0;
        let (scale, exact, output) = match (size, target.scale) {
            (Some(size), _) => (size as f64 / (input as f64 * part), size as f64, size),
            (None, Some(scale)) => {
                let exact = input as f64 * part * scale;
                (scale, exact, exact.floor() as i64)
            }
            (None, None) => return Err(cx.error("has neither scales nor sizes")),
        };
        if !(0..=LARGEST).contains(&output) || (input == 0 && output > 0) || !(scale > 0.0 || output == 0) {
            return Err(cx.error(format!("axis {place} of {} cannot be resampled to {output}", x.ty())));
        }
        let exact = if size.is_some() { output as f64 } else { exact };
        if output == input && scale == 1.0 && !filter.crops() {
            continue;
        }
        x = match output {
            0 => x.narrow(place as isize, 0, 0),
            _ => {
                let axis = Axis { scale, input: input as f64, exact, output: output as f64, region };
                resampled(cx, &filter, x, place, axis)?
            }
        };
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
        None => Err(cx.data_dependent(i)),
    }
}

pub(super) fn resize<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let scales = floats(cx, if cx.opset < 11 { 1 } else { 2 })?;
    let mut sizes = if cx.has(3) { Some(cx.dims(3)?).filter(|sizes| !sizes.is_empty()) } else { None };
    let axes = match cx.int_list("axes") {
        Some(list) => cx.axes(&list, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    let given = sizes.as_ref().map(Vec::len).or(scales.as_ref().map(Vec::len)).unwrap_or(0);
    if given != axes.len() {
        return Err(cx.error(format!("{given} scales or sizes for {} axes", axes.len())));
    }
    if x.rank() > 25 || scales.iter().flatten().any(|s| !(*s > 0.0 && s.is_finite())) {
        return Err(cx.error(format!("{} cannot be resampled by {scales:?}", x.ty())));
    }
    // an extent that stays, whatever it is
    if let Some(sizes) = &mut sizes {
        let stays: Vec<bool> = axes.iter().zip(&*sizes).map(|(axis, size)| x.shape()[*axis] == *size).collect();
        if stays.iter().all(|stays| *stays) && cx.text("coordinate_transformation_mode", "") != "tf_crop_and_resize" {
            return single(x);
        }
    }
    let roi = if Filter::of(cx).crops() { floats(cx, 1)? } else { None };
    if roi.as_ref().is_some_and(|roi| roi.len() != 2 * axes.len()) {
        return Err(cx.error(format!("a region {roi:?} for {} axes", axes.len())));
    }
    let mut targets: Vec<Target> = Vec::new();
    for (i, axis) in axes.iter().enumerate() {
        let size = match &sizes {
            Some(sizes) if x.shape()[*axis] == sizes[i] => None,
            Some(sizes) => Some(sizes[i].clone()),
            None => None,
        };
        let scale = match (&sizes, &scales) {
            (None, Some(scales)) => Some(scales[i]),
            // it stays
            _ => size.is_none().then_some(1.0),
        };
        let region = roi.as_ref().map_or((0.0, 1.0), |roi| (roi[i], roi[axes.len() + i]));
        targets.push(Target { axis: *axis, size, scale, region });
    }
    if Filter::of(cx).crops() {
        // a region changes even an extent that stays
        for (i, target) in targets.iter_mut().enumerate() {
            if let Some(sizes) = &sizes {
                target.size = Some(sizes[i].clone());
                target.scale = None;
            }
        }
    }
    keep_aspect(cx, x, sizes.is_some(), &mut targets)?;
    each(cx, x, &targets)
}

/// Sizes that keep the ratio of extents: one scale for all, the least or the greatest.
fn keep_aspect<'t>(cx: &Cx<'_, 't>, x: Var<'t>, sized: bool, targets: &mut [Target]) -> Result<(), Diagnostic> {
    let policy = cx.text("keep_aspect_ratio_policy", "stretch");
    if policy == "stretch" || !sized {
        return Ok(());
    }
    let mut ratios = Vec::with_capacity(targets.len());
    for target in &*targets {
        let input = cx.extents(&x.shape()[target.axis..=target.axis])?[0];
        let size = target.size.clone().unwrap_or(Dim::from(input));
        let size = cx.extents(&[size])?[0];
        ratios.push((input as f64, size as f64 / input as f64));
    }
    let all = ratios.iter().map(|(_, ratio)| *ratio);
    let scale = match policy.as_str() {
        "not_larger" => all.fold(f64::INFINITY, f64::min),
        "not_smaller" => all.fold(0.0, f64::max),
        _ => return Err(cx.error(format!("there is no policy `{policy}`"))),
    };
    for (target, (input, _)) in targets.iter_mut().zip(ratios) {
        // halves go up
        target.size = Some(Dim::from((input * scale + 0.5).floor() as i64));
        target.scale = None;
    }
    Ok(())
}

pub(super) fn upsample<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let scales = match cx.float_list("scales") {
        Some(list) => list.into_iter().map(f64::from).collect(),
        None => floats(cx, 1)?.unwrap_or_default(),
    };
    if scales.len() != x.rank() || scales.iter().any(|s| !(*s > 0.0 && s.is_finite())) {
        return Err(cx.error(format!("scales {scales:?} for {}", x.ty())));
    }
    let target = |(axis, scale)| Target { axis, size: None, scale: Some(scale), region: (0.0, 1.0) };
    each(cx, x, &scales.into_iter().enumerate().map(target).collect::<Vec<Target>>())
}
