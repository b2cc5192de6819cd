//! Sampling of images at places that data tell.

use egret_ir::ops::{InnerKind, Outside};
use egret_ir::tracer::{Generator, Scalar};
use egret_ir::{DType, Diagnostic, Dim, Literal, ScalarFn, Shape, TensorType, Var};

use super::Results;
use super::conv::{pads, spatial, spatial_rank};
use crate::cx::Cx;
use crate::graph::single;

/// More axes have too many taps to be written out.
const MOST_AXES: usize = 4;

/// What stands beyond the border of an image.
#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Zeros,
    Border,
    /// Mirrored at the border; whether the border is the centre of its pixels.
    Reflection(bool),
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

fn number(value: f64, like: &Scalar) -> Scalar {
    Scalar::literal(Literal::float(value, like.dtype()))
}

fn round(x: &Scalar) -> Scalar {
    x.map(ScalarFn::Round, &[])
}

/// A place mirrored at the borders until it lies between them.
fn reflected(g: &mut Generator, x: &Scalar, extent: &Scalar, centred: bool) -> Scalar {
    let extent = extent.cast(x.dtype());
    let (low, high) = match centred {
        true => (number(0.0, x), extent - 1.0),
        false => (number(-0.5, x), extent - 0.5),
    };
    let range = g.bind((high - low.clone()).maximum(0.0));
    // the way back and forth is twice the range
    let period = g.bind((range.clone() * 2.0).maximum(f64::MIN_POSITIVE.sqrt()));
    let along = g.bind((x.clone() - low.clone()).modulo(period.clone()));
    let folded = along.less_equal(range).select(along.clone(), period - along.clone());
    g.bind(folded + low)
}

/// Reads elements of an image by place, with what stands beyond its border.
struct Image<'a> {
    operand: usize,
    /// Indices of the axes before the spatial ones.
    lead: Vec<Scalar>,
    extents: &'a [Dim],
    padding: Padding,
    dtype: DType,
}

impl Image<'_> {
    fn outside(&self) -> Outside {
        match self.padding {
            Padding::Zeros => Outside::Fill(Literal::float(0.0, self.dtype)),
            _ => Outside::Clamp,
        }
    }

    /// The element at whole places, in the type that places have.
    fn pixel(&self, g: &mut Generator, at: &[Scalar], wide: DType) -> Scalar {
        let mut index = self.lead.clone();
        for (place, extent) in at.iter().zip(self.extents) {
            let place = match self.padding {
                Padding::Reflection(centred) => {
                    let extent = g.dim(extent);
                    let mirrored = reflected(g, &place.cast(wide), &extent, centred);
                    // between pixels is what rounding towards zero says
                    mirrored.cast(DType::I64)
                }
                _ => place.clone(),
            };
            index.push(place);
        }
        g.load(self.operand, &index, self.outside()).cast(wide)
    }

    /// The value at places between elements.
    fn sample(&self, g: &mut Generator, at: &[Scalar], mode: Mode) -> Scalar {
        let wide = at.first().map_or(DType::F32, Scalar::dtype);
        if mode == Mode::Nearest {
            let whole: Vec<Scalar> = at.iter().map(|x| g.bind(round(x).cast(DType::I64))).collect();
            return self.pixel(g, &whole, wide);
        }
        let mut first = Vec::with_capacity(at.len());
        for x in at {
            let below = x.floor().cast(DType::I64);
            first.push(g.bind(if mode == Mode::Cubic { below - 1i64 } else { below }));
        }
        self.taps(g, at, &first, mode, &mut Vec::new(), None)
    }

    /// The sum over the taps of the axes that have no place yet, each a loop, so that the program stays short.
    fn taps(
        &self,
        g: &mut Generator,
        at: &[Scalar],
        first: &[Scalar],
        mode: Mode,
        place: &mut Vec<Scalar>,
        weight: Option<Scalar>,
    ) -> Scalar {
        let wide = at.first().map_or(DType::F32, Scalar::dtype);
        let axis = place.len();
        let Some(x) = at.get(axis) else {
            let value = self.pixel(g, place, wide);
            return weight.map_or(value.clone(), |weight| value * weight);
        };
        let count = if mode == Mode::Cubic { 4i64 } else { 2 };
        g.sum(count, |g, tap| {
            let index = g.bind(first[axis].clone() + tap);
            let distance = g.bind((x.clone() - index.cast(wide)).map(ScalarFn::Abs, &[]));
            let own = match mode {
                Mode::Cubic => keys(&distance),
                _ => (number(1.0, &distance) - distance).maximum(0.0),
            };
            let weight = g.bind(weight.map_or(own.clone(), |weight| weight * own));
            place.push(index);
            let sum = self.taps(g, at, first, mode, place, Some(weight));
            place.pop();
            sum
        })
    }
}

/// Keys' cubic kernel with a = −3/4 ("Cubic convolution interpolation for digital image processing", 1981).
fn keys(d: &Scalar) -> Scalar {
    let a = -0.75;
    let near = ((d.clone() * (a + 2.0) - (a + 3.0)) * d.clone()) * d.clone() + 1.0;
    let far = ((d.clone() * a - 5.0 * a) * d.clone() + 8.0 * a) * d.clone() - 4.0 * a;
    d.less_equal(1.0).select(near, d.less(2.0).select(far, 0.0))
}

/// Values of images at places in −1..1 that a grid holds, its last axis in reverse order of the image's.
pub(super) fn grid_sample<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, grid) = (cx.var(0)?, cx.var(1)?);
    let (own, places) = (x.shape(), grid.shape());
    let n = spatial_rank(cx, x.ty())?;
    if n == 0 || n > MOST_AXES || places.rank() != n + 2 || !places[n + 1].is(n as i64) {
        return Err(cx.error(format!("a grid {} does not fit {}", grid.ty(), x.ty())));
    }
    let mode = match cx.text("mode", "linear").as_str() {
        "nearest" => Mode::Nearest,
        "linear" | "bilinear" => Mode::Linear,
        "cubic" | "bicubic" => Mode::Cubic,
        other => return Err(cx.error(format!("there is no mode `{other}`"))),
    };
    let centred = cx.int("align_corners", 0) != 0;
    let padding = match cx.text("padding_mode", "zeros").as_str() {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection(centred),
        other => return Err(cx.error(format!("there is no padding `{other}`"))),
    };
    let shape: Shape = own[..2].iter().chain(&places[1..=n]).cloned().collect();
    let wide = if grid.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let dtype = x.dtype();
    let ty = TensorType { dtype, shape };
    let extents = own[2..].to_vec();
    single(cx.t.generate(ty, &[x, grid], |g, i| {
        let mut at = Vec::with_capacity(n);
        for (axis, extent) in extents.iter().enumerate() {
            let mut index = vec![i[0].clone()];
            index.extend_from_slice(&i[2..]);
            index.push(Scalar::int((n - 1 - axis) as i64));
            let place = g.load(1, &index, Outside::Fault).cast(wide);
            let extent = g.dim(extent);
            let size = extent.cast(wide);
            let place = match centred {
                true => (place + 1.0) * 0.5 * (size - 1.0),
                false => ((place + 1.0) * size - 1.0) * 0.5,
            };
            let place = if mode == Mode::Nearest { round(&place) } else { place };
            let place = g.bind(place);
            let place = match padding {
                Padding::Zeros => place,
                // NaN is no place; the comparison takes it to the first element
                Padding::Border => {
                    let last = g.bind(extent.cast(wide) - 1.0);
                    let low = number(-0.5, &place);
                    let limits = if centred { (number(0.0, &place), last.clone()) } else { (low, last.clone() + 0.5) };
                    let outside = place.less(limits.0).or(place.greater(limits.1));
                    let clamped = place.maximum(0.0).minimum(last);
                    g.bind(outside.select(clamped, place))
                }
                Padding::Reflection(_) => reflected(g, &place, &extent, centred),
            };
            at.push(place);
        }
        let image = Image { operand: 0, lead: i[..2].to_vec(), extents: &extents, padding, dtype };
        image.sample(g, &at, mode).cast(dtype)
    }))
}

/// Coordinates in −1..1 of each place of an image, turned by a matrix for each batch entry.
pub(super) fn affine_grid<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let theta = cx.var(0)?;
    let size = cx.dims(1)?;
    let n = size.len().saturating_sub(2);
    if !(1..=MOST_AXES).contains(&n) || theta.rank() != 3 {
        return Err(cx.error(format!("a size of {} extents with {}", size.len(), theta.ty())));
    }
    let centred = cx.int("align_corners", 0) != 0;
    let dtype = theta.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let mut shape = vec![size[0].clone()];
    shape.extend(size[2..].iter().cloned());
    shape.push(Dim::from(n));
    let ty = TensorType { dtype, shape: Shape::from(shape.as_slice()) };
    single(cx.t.generate(ty, &[theta], |g, i| {
        let row = i[n + 1].clone();
        let entry = |g: &mut Generator, column: usize| {
            let index = [i[0].clone(), row.clone(), Scalar::int(column as i64)];
            g.load(0, &index, Outside::Fault).cast(wide)
        };
        let mut sum = entry(g, n);
        // x is the last axis of the image
        for column in 0..n {
            let axis = n - 1 - column;
            let extent = g.dim(&size[2 + axis]);
            let (at, extent) = (i[1 + axis].cast(wide), extent.cast(wide));
            let place = match centred {
                true => {
                    let last = g.bind(extent - 1.0);
                    // a single element lies at the first corner
                    at * 2.0 / last.maximum(1.0) - 1.0
                }
                false => (at * 2.0 + 1.0) / extent - 1.0,
            };
            let part = entry(g, column) * place;
            sum = g.bind(sum + part);
        }
        sum.cast(dtype)
    }))
}

/// The mean, or the maximum, of samples in each bin of a region.
pub(super) fn roi_align<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, rois, batch) = (cx.var(0)?, cx.var(1)?, cx.var(2)?.cast(DType::I64));
    let own = x.shape();
    if own.rank() != 4 || rois.rank() != 2 || batch.rank() != 1 {
        return Err(cx.error(format!("regions {} in {} do not fit {}", rois.ty(), batch.ty(), x.ty())));
    }
    let old = cx.opset < 16;
    let half = cx.text("coordinate_transformation_mode", if old { "output_half_pixel" } else { "half_pixel" });
    let half = half == "half_pixel";
    let max = match cx.text("mode", "avg").as_str() {
        "avg" => false,
        "max" => true,
        other => return Err(cx.error(format!("there is no mode `{other}`"))),
    };
    let bins = [cx.int("output_height", 1), cx.int("output_width", 1)];
    let ratio = cx.int("sampling_ratio", 0);
    let scale = cx.float("spatial_scale", 1.0);
    if bins.iter().any(|n| !(1..=super::conv::LARGEST).contains(n)) || ratio < 0 {
        return Err(cx.error(format!("{bins:?} bins of {ratio} samples")));
    }
    let dtype = x.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let shape = Shape::from([rois.shape()[0].clone(), own[1].clone(), Dim::from(bins[0]), Dim::from(bins[1])]);
    let extents = own[2..].to_vec();
    let ty = TensorType { dtype, shape };
    single(cx.t.generate(ty, &[x, rois, batch], |g, i| {
        let region = i[0].clone();
        let image = g.load(2, std::slice::from_ref(&region), Outside::Fault);
        // first corner, width of a bin, and number of samples, by axis
        let mut axes: Vec<[Scalar; 3]> = Vec::with_capacity(2);
        for (axis, bins) in bins.iter().enumerate() {
            let corner = |g: &mut Generator, column: usize| {
                let index = [region.clone(), Scalar::int((column * 2 + 1 - axis) as i64)];
                g.load(1, &index, Outside::Fault).cast(wide) * scale - if half { 0.5 } else { 0.0 }
            };
            let (start, end) = (corner(g, 0), corner(g, 1));
            let start = g.bind(start);
            let length = end - start.clone();
            let length = g.bind(if half { length } else { length.maximum(1.0) });
            let size = g.bind(length.clone() / *bins as f64);
            let samples = match ratio {
                0 => size.map(ScalarFn::Ceil, &[]).cast(DType::I64),
                n => Scalar::int(n),
            };
            axes.push([start, size, g.bind(samples)]);
        }
        // regions may be larger than the image; one of several times its size is an error of the run
        let most = |axis: usize| match ratio {
            0 => extents[axis].clone() * Dim::from(4) + Dim::from(16),
            n => Dim::from(n),
        };
        let kind = if max { InnerKind::Max } else { InnerKind::Sum };
        let place = |g: &mut Generator, axis: usize, sample: Scalar| {
            let [start, size, samples] = &axes[axis];
            let at = start.clone() + i[2 + axis].cast(wide) * size.clone();
            g.bind(at + (sample.cast(wide) + 0.5) * size.clone() / samples.cast(wide))
        };
        let total = g.reduce(kind, most(0), Some(axes[0][2].clone()), |g, row| {
            let y = place(g, 0, row);
            g.reduce(kind, most(1), Some(axes[1][2].clone()), |g, column| {
                let x = place(g, 1, column);
                let lead = [image.clone(), i[1].clone()];
                bilinear(g, &lead, &[y, x], &extents, max)
            })
        });
        let result = if max {
            total
        } else {
            let count = axes[0][2].clone() * axes[1][2].clone();
            total / count.maximum(1i64).cast(wide)
        };
        result.cast(dtype)
    }))
}

/// The value between four elements, 0 further than one element outside; or the greatest of their weighted values.
fn bilinear(g: &mut Generator, lead: &[Scalar], at: &[Scalar; 2], extents: &[Dim], max: bool) -> Scalar {
    let wide = at[0].dtype();
    let mut taps: Vec<[(Scalar, Scalar); 2]> = Vec::with_capacity(2);
    let mut outside: Option<Scalar> = None;
    for (x, extent) in at.iter().zip(extents) {
        let extent = g.dim(extent);
        let size = extent.cast(wide);
        let here = x.less(-1.0).or(x.greater(size));
        outside = Some(outside.map_or(here.clone(), |other| other.or(here)));
        let x = g.bind(x.maximum(0.0));
        let last = extent - 1i64;
        let low = g.bind(x.cast(DType::I64).minimum(last.clone()));
        let high = g.bind((low.clone() + 1i64).minimum(last.clone()));
        let ends = low.greater_equal(last);
        let rest = g.bind(ends.select(0.0, x - low.cast(wide)));
        taps.push([(low, g.bind(number(1.0, &rest) - rest.clone())), (high, rest)]);
    }
    let mut joined: Option<Scalar> = None;
    for tap in 0..4 {
        let ((row, a), (column, b)) = (&taps[0][tap / 2], &taps[1][tap % 2]);
        let index = [lead[0].clone(), lead[1].clone(), row.clone(), column.clone()];
        // the batch entry is checked by the first load of any sample
        let value = g.load(0, &index, Outside::Fault).cast(wide) * (a.clone() * b);
        joined = Some(match joined {
            None => value,
            Some(other) if max => g.bind(other.maximum(value)),
            Some(other) => g.bind(other + value),
        });
    }
    let nothing = Scalar::literal(Literal::float(0.0, wide));
    match (outside, joined) {
        (Some(outside), Some(joined)) => outside.select(0.0, joined),
        _ => nothing,
    }
}

/// The maximum of each bin of a region whose bounds are rounded to elements; 0 of an empty bin.
pub(super) fn max_roi_pool<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, rois) = (cx.var(0)?, cx.var(1)?);
    let own = x.shape();
    let bins = cx.int_list("pooled_shape").unwrap_or_default();
    let scale = cx.float("spatial_scale", 1.0);
    let legal = bins.len() == 2 && bins.iter().all(|n| (1..=super::conv::LARGEST).contains(n));
    if own.rank() != 4 || rois.rank() != 2 || !legal {
        return Err(cx.error(format!("{bins:?} bins of regions {} do not fit {}", rois.ty(), x.ty())));
    }
    let dtype = x.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let shape = Shape::from([rois.shape()[0].clone(), own[1].clone(), Dim::from(bins[0]), Dim::from(bins[1])]);
    let extents = own[2..].to_vec();
    single(cx.t.generate(TensorType { dtype, shape }, &[x, rois], |g, i| {
        let number = |g: &mut Generator, column: usize| {
            let index = [i[0].clone(), Scalar::int(column as i64)];
            g.load(1, &index, Outside::Fault).cast(wide)
        };
        let image = number(g, 0);
        let image = g.bind(image.cast(DType::I64));
        let mut spans: Vec<[Scalar; 2]> = Vec::with_capacity(2);
        for axis in 0..2 {
            let bound = |v: Scalar| (v * scale + 0.5).floor().cast(DType::I64);
            let (start, end) = (number(g, 2 - axis), number(g, 4 - axis));
            let (start, end) = (g.bind(bound(start)), g.bind(bound(end)));
            let length = (end - start.clone() + 1i64).maximum(1i64);
            let size = g.bind(length.cast(wide) / bins[axis] as f64);
            let bin = i[2 + axis].cast(wide);
            let low = (bin.clone() * size.clone()).floor().cast(DType::I64) + start.clone();
            let high = ((bin + 1.0) * size).map(ScalarFn::Ceil, &[]).cast(DType::I64) + start;
            let extent = g.dim(&extents[axis]);
            let low = g.bind(low.maximum(0i64).minimum(extent.clone()));
            let high = g.bind(high.maximum(0i64).minimum(extent));
            spans.push([low.clone(), g.bind(high - low)]);
        }
        let empty = spans[0][1].less_equal(0i64).or(spans[1][1].less_equal(0i64));
        let most = g.reduce(InnerKind::Max, extents[0].clone(), Some(spans[0][1].clone()), |g, row| {
            g.reduce(InnerKind::Max, extents[1].clone(), Some(spans[1][1].clone()), |g, column| {
                let (row, column) = (spans[0][0].clone() + row, spans[1][0].clone() + column);
                g.load(0, &[image.clone(), i[1].clone(), row, column], Outside::Fault)
            })
        });
        empty.select(0.0, most)
    }))
}

/// A convolution whose taps are moved by offsets and weighted by a mask.
pub(super) fn deform_conv<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (x, w, offset) = (cx.var(0)?, cx.var(1)?, cx.var(2)?);
    let (bias, mask) = (cx.optional(3)?, cx.optional(4)?);
    let n = spatial_rank(cx, x.ty())?;
    let (own, filter, moved) = (x.shape(), w.shape(), offset.shape());
    let fits = filter.rank() == n + 2 && moved.rank() == n + 2 && (1..=MOST_AXES).contains(&n);
    if !fits || mask.is_some_and(|m| m.rank() != n + 2) {
        return Err(cx.error(format!("{} with offsets {} does not fit {}", w.ty(), offset.ty(), x.ty())));
    }
    let kernel = cx.extents(&filter[2..])?;
    let (stride, dilation) = (spatial(cx, "strides", n)?, spatial(cx, "dilations", n)?);
    let reach: Vec<i64> = kernel.iter().zip(&dilation).map(|(k, d)| (k - 1) * d + 1).collect();
    let (low, _) = pads(cx, &own[2..], &reach, &stride)?;
    let (groups, offset_groups) = (cx.int("group", 1).max(1), cx.int("offset_group", 1).max(1));
    let (channels, results) = (own[1].clone(), filter[0].clone());
    let each = filter[1].clone();
    let divides = channels.exact_div(&Dim::from(offset_groups)).is_some()
        && results.exact_div(&Dim::from(groups)).is_some()
        && channels == each.clone() * Dim::from(groups);
    if !divides {
        return Err(cx.error(format!("{groups} and {offset_groups} groups do not divide {} by {}", x.ty(), w.ty())));
    }
    let taps: i64 = kernel.iter().product();
    let dtype = x.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let shape: Shape = [own[0].clone(), results.clone()].into_iter().chain(moved[2..].iter().cloned()).collect();
    let extents = own[2..].to_vec();
    let mut operands = vec![x, w, offset];
    operands.extend(mask);
    let y = cx.t.generate(TensorType { dtype, shape }, &operands, |g, i| {
        let (out, each_out) = (i[1].clone(), results.floor_div(&Dim::from(groups)));
        let each_out = g.dim(&each_out);
        let each_in = g.dim(&each);
        let first = g.bind(out.clone() / each_out * each_in);
        let per_offset = g.dim(&channels.floor_div(&Dim::from(offset_groups)));
        let total = g.sum(each.clone(), |g, channel| {
            let from = g.bind(first + channel.clone());
            let group = g.bind(from.clone() / per_offset);
            g.sum(Dim::from(taps), |g, tap| {
                // the place of the tap in the kernel, axis by axis
                let mut steps = vec![tap.clone(); n];
                let mut rest = tap.clone();
                for axis in (0..n).rev() {
                    steps[axis] = g.bind(rest.clone() % kernel[axis]);
                    rest = g.bind(rest / kernel[axis]);
                }
                let number = g.bind(group.clone() * taps + tap);
                let mut at = Vec::with_capacity(n);
                for axis in 0..n {
                    let mut index = vec![i[0].clone(), number.clone() * n as i64 + axis as i64];
                    index.extend_from_slice(&i[2..]);
                    let moved = g.load(2, &index, Outside::Fault).cast(wide);
                    let place = i[2 + axis].clone() * stride[axis] + steps[axis].clone() * dilation[axis] - low[axis];
                    at.push(g.bind(place.cast(wide) + moved));
                }
                let lead = vec![i[0].clone(), from.clone()];
                let image = Image { operand: 0, lead, extents: &extents, padding: Padding::Zeros, dtype };
                let value = image.sample(g, &at, Mode::Linear);
                let mut index = vec![out.clone(), channel.clone()];
                index.extend(steps);
                let mut part = value * g.load(1, &index, Outside::Fault).cast(wide);
                if mask.is_some() {
                    let mut index = vec![i[0].clone(), number];
                    index.extend_from_slice(&i[2..]);
                    part = part * g.load(3, &index, Outside::Fault).cast(wide);
                }
                part
            })
        });
        total.cast(dtype)
    });
    let Some(bias) = bias else { return single(y) };
    let shape: Shape = bias.shape().iter().cloned().chain(vec![Dim::ONE; n]).collect();
    single(y + bias.reshape(shape))
}

/// Padding along one axis by a place of the operand for each place of the result, whatever the extents.
pub(super) fn padded<'t>(
    cx: &Cx<'_, 't>,
    x: Var<'t>,
    axis: usize,
    low: &Dim,
    total: Dim,
    mode: &str,
) -> Result<Var<'t>, Diagnostic> {
    let mut ty = x.ty();
    let extent = ty.shape[axis].clone();
    ty.shape = ty.shape.iter().enumerate().map(|(i, d)| if i == axis { total.clone() } else { d.clone() }).collect();
    let known = matches!(mode, "edge" | "wrap" | "reflect");
    if !known {
        return Err(cx.error(format!("there is no mode `{mode}`")));
    }
    Ok(cx.t.generate(ty, &[x], |g, i| {
        let (low, extent) = (g.dim(low), g.dim(&extent));
        let at = g.bind(i[axis].clone() - low);
        let place = match mode {
            "edge" => at,
            "wrap" => at.modulo(extent),
            _ => {
                let period = g.bind(((extent.clone() - 1i64) * 2i64).maximum(1i64));
                let at = g.bind(at.modulo(period.clone()));
                at.less(extent).select(at.clone(), period - at)
            }
        };
        let mut index = i.to_vec();
        index[axis] = place;
        g.load(0, &index, Outside::Clamp)
    }))
}
