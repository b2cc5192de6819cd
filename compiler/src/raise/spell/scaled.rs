//! Integers that were scaled to floats (`DequantizeLinear`), multiplied as integers.
//!
//! `Σ (s·a)(t·b) = s·t·Σ a·b` (class *real*): where a CPU multiplies bytes, the weights are known when they are loaded and all
//! integers fit, the sum is one of integers, exact where `f32` would round, and the scales are applied to it. A cast to a
//! narrow type in the middle of a wider one goes where a clamp says that it changes nothing.

use egret_ir::ops::{Cast, Conv, ConvForm, DotGeneral};
use egret_ir::{DType, Diagnostic, Dim, Graph, NodeId, Op, ScalarFn};
use egret_program::DeviceDescription;
use egret_program::driver::Words;
use smallvec::SmallVec;

use super::Speller;
use super::integer::is_separable;
use crate::range::Range;
use crate::rewrite::direct::{self, Builder, Direct};
use crate::rewrite::rules::SCALED_INTEGERS;
use crate::rewrite::term::BindingTime;

/// The graph with its sums of scaled integers as sums of integers; `None` where the device does not multiply bytes, or the
/// graph has no such sums.
///
/// # Errors
/// When what is put in does not fit: a defect.
pub fn multiply_integers(graph: &Graph, device: &DeviceDescription) -> Result<Option<Direct>, Diagnostic> {
    if !device.has_bytes() || !has_scaled(graph) {
        return Ok(None);
    }
    let inside = graph.with_regions(&mut |_, _, region| {
        Ok(multiply_integers(region, device)?.map_or_else(|| region.clone(), |made| made.graph))
    })?;
    let graph = inside.as_ref().unwrap_or(graph);
    let mut hook = |builder: &mut Builder, id: NodeId| {
        let node = builder.graph().node(id).clone();
        let mut speller = Speller { builder, device };
        let made = match &node.op {
            Op::Cast(cast) => speller.cast_through(cast, node.operands[0]),
            Op::Conv(conv) => speller.conv_of_scaled(conv, &node.operands),
            Op::DotGeneral(dot) => speller.product_of_scaled(dot, &node.operands),
            _ => None,
        };
        made.map(|id| (id, SCALED_INTEGERS))
    };
    direct::apply(graph, &[], Vec::new(), &mut hook).map(Some)
}

/// Whether integers become floats somewhere, beside a sum of products.
fn has_scaled(graph: &Graph) -> bool {
    let made = |node: &egret_ir::Node| node.ty.tensor().is_some_and(|ty| ty.dtype == DType::F32);
    let cast = graph.iter().any(|(_, node)| {
        made(node) && matches!(node.op, Op::Cast(_)) && graph.tensor_type(node.operands[0]).dtype.is_int()
    });
    let sums = graph.nodes().iter().any(|node| made(node) && matches!(node.op, Op::Conv(_) | Op::DotGeneral(_)));
    let inside = || graph.nodes().iter().flat_map(|node| node.op.home().regions()).any(|region| has_scaled(region));
    cast && sums || inside()
}

/// Integers in `i32`, and what they are multiplied by.
struct Scaled {
    integers: NodeId,
    scale: Option<NodeId>,
}

impl Speller<'_> {
    /// `cast(i32, cast(u8, x))` is `cast(i32, x)` where `x` lies in the narrow type; NaN is zero in both.
    fn cast_through(&mut self, cast: &Cast, inner: NodeId) -> Option<NodeId> {
        let graph = self.builder.graph();
        let narrow = self.dtype(inner);
        let Op::Cast(_) = graph.node(inner).op else { return None };
        let wide = graph.node(inner).operands[0];
        let fits = cast.dtype == DType::I32
            && narrow.is_int()
            && narrow.size() < 4
            && Range::of(graph, wide).is_within(Range::of_type(narrow));
        if fits { self.add(cast.clone(), &[wide]) } else { None }
    }

    /// A value that is integers of at most 32 bits, times a scale that broadcasts to them or not.
    fn scaled(&mut self, id: NodeId) -> Option<Scaled> {
        let graph = self.builder.graph();
        let node = graph.node(id);
        let integers = |id: NodeId| {
            let node = graph.node(id);
            let is_cast = matches!(node.op, Op::Cast(_)) && graph.tensor_type(id).dtype == DType::F32;
            let operand = is_cast.then(|| node.operands[0])?;
            let dtype = graph.tensor_type(operand).dtype;
            (dtype == DType::I32 || dtype.is_int() && dtype.size() < 4).then_some(operand)
        };
        let (integers, scale) = match &node.op {
            Op::Pointwise(map) if map.f == ScalarFn::Mul => {
                let whole = |at: &usize| {
                    graph.tensor_type(node.operands[*at]) == graph.tensor_type(id)
                        && integers(node.operands[*at]).is_some()
                };
                let at = (0..2).find(whole)?;
                (integers(node.operands[at])?, Some(node.operands[1 - at]))
            }
            _ => (integers(id)?, None),
        };
        Some(Scaled { integers: self.cast(integers, DType::I32)?, scale })
    }

    /// The integers of an image or rows and of weights, if sums of so many terms of their bytes fit; `along` of them lie in
    /// quads.
    fn bytes_of(&mut self, operands: &[NodeId], along: i64, terms: i64) -> Option<[Scaled; 2]> {
        let depth = Words::Bytes { low: 0 }.depth() as i64;
        // at least half of the quads are filled
        let filled = 2 * along >= (along + depth - 1) / depth * depth;
        if !filled || operands.iter().any(|id| self.dtype(*id) != DType::F32) {
            return None;
        }
        let [rows, weights] = [self.scaled(operands[0])?, self.scaled(operands[1])?];
        let [a, b] = [&rows, &weights].map(|side| Range::of(self.builder.graph(), side.integers));
        let largest = |range: Range| range.low.abs().max(range.high.abs());
        let fits = a.high - a.low <= 255.0
            && b.is_within(Range::of_type(DType::I8))
            && terms as f64 * largest(a) * largest(b) <= Range::of_type(DType::I32).high
            && self.builder.time(weights.integers) < BindingTime::Run
            && self.builder.time(rows.integers) == BindingTime::Run;
        fits.then_some([rows, weights])
    }

    /// A sum of integers as floats, times its scales, which broadcast to it.
    fn rescaled(&mut self, sum: NodeId, scales: [Option<NodeId>; 2]) -> Option<NodeId> {
        let sum = self.cast(sum, DType::F32)?;
        match scales {
            [None, None] => Some(sum),
            [Some(scale), None] | [None, Some(scale)] => self.map(ScalarFn::Mul, &[sum, scale]),
            [Some(a), Some(b)] => {
                let scale = self.map(ScalarFn::Mul, &[a, b])?;
                self.map(ScalarFn::Mul, &[sum, scale])
            }
        }
    }

    fn conv_of_scaled(&mut self, conv: &Conv, operands: &[NodeId]) -> Option<NodeId> {
        let shape = self.builder.graph().tensor_type(operands[1]).shape.clone();
        if conv.wide || conv.form != ConvForm::Forward || conv.groups != 1 || conv.spatial() > 2 {
            return None;
        }
        let extents: Option<SmallVec<[i64; 5]>> = shape[1..].iter().map(Dim::as_const).collect();
        let extents = extents?;
        let [image, weights] = self.bytes_of(operands, extents[0], extents.iter().product())?;
        let rank = shape.rank();
        let own = image.scale.map(|scale| self.one_number(scale, rank));
        let of_weights = weights.scale.map(|scale| self.by_output_channel(scale, rank));
        let (own, of_weights) = (lifted(own)?, lifted(of_weights)?);
        let sum = self.add(conv.clone(), &[image.integers, weights.integers])?;
        self.rescaled(sum, [own, of_weights])
    }

    fn product_of_scaled(&mut self, dot: &DotGeneral, operands: &[NodeId]) -> Option<NodeId> {
        if dot.wide || !is_separable(dot) {
            return None;
        }
        let shape = self.builder.graph().tensor_type(operands[1]).shape.clone();
        let summed = (0..dot.rhs.0.len()).filter(|axis| !dot.out.has(dot.rhs.0[*axis]));
        let terms: Option<i64> = summed.map(|axis| shape[axis].as_const()).product();
        let [rows, weights] = self.bytes_of(operands, terms?, terms?)?;
        let mut scales = [None, None];
        for (at, (side, labels)) in [(rows.scale, &dot.lhs), (weights.scale, &dot.rhs)].into_iter().enumerate() {
            if let Some(scale) = side {
                scales[at] = Some(self.spread_over(scale, operands[at], labels, dot)?);
            }
        }
        let sum = self.add(dot.clone(), &[rows.integers, weights.integers])?;
        self.rescaled(sum, scales)
    }

    /// One number, as it broadcasts to results of a rank.
    fn one_number(&mut self, scale: NodeId, rank: usize) -> Option<NodeId> {
        let one = self.builder.graph().tensor_type(scale).shape.iter().all(|extent| extent.is(1));
        if one { self.reshaped(scale, std::iter::repeat_n(Dim::ONE, rank).collect()) } else { None }
    }

    /// A number for each first axis of weights, or one, as it broadcasts to the channels of a result of the same rank.
    fn by_output_channel(&mut self, scale: NodeId, rank: usize) -> Option<NodeId> {
        let shape = self.builder.graph().tensor_type(scale).shape.clone();
        if shape.rank() < rank || shape[0].is(1) {
            return self.one_number(scale, rank);
        }
        let alike = shape[1..].iter().all(|extent| extent.is(1));
        let channels = (0..rank).map(|axis| if axis == 1 { shape[0].clone() } else { Dim::ONE });
        if alike { self.reshaped(scale, channels.collect()) } else { None }
    }
}

/// `None` where something cannot be; `Some(None)` where it is not there.
fn lifted<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    value.map_or(Some(None), |value| value.map(Some))
}
