//! Products and forward convolutions of 8-bit integers in `i32`, as what multiplies bytes has them: tensor cores of GPUs take
//! the bytes themselves, so that their zero points are taken from the sums; on CPUs this is so for zero points that are known in
//! a run alone, because what is less another number still fits a byte.
//!
//! `Σ (a − p)(b − q) = Σ a·b − p Σ b − q Σ (a − p)`, in integers that wrap. Sums of one side alone are of as many terms as a
//! result is, and those of weights are computed when these are loaded. Of a convolution with padding `Σ b` runs over the taps
//! inside the image: it is the convolution of an image of ones.

use egret_ir::ops::{
    Broadcast, Conv, ConvForm, DotGeneral, Labels, Reduce, ReduceKind, ReduceWindow, Transpose, Window, WindowKind,
};
use egret_ir::{DType, Dim, Literal, NodeId, Op, ScalarFn, Shape};
use smallvec::SmallVec;

use super::Speller;
use crate::range::Range;
use crate::rewrite::term::BindingTime;

/// An operand in `i32`.
struct Side {
    /// It as it is.
    whole: NodeId,
    /// The bytes in `i32`, before a zero point is taken away.
    cast: NodeId,
    /// The bytes.
    bytes: NodeId,
    zero: Option<NodeId>,
}

impl Speller<'_> {
    /// An operand that is bytes, less a zero point, in `i32`.
    fn side(&self, whole: NodeId) -> Option<Side> {
        let graph = self.builder.graph();
        let (cast, zero) = match &graph.node(whole).op {
            Op::Pointwise(map) if map.f == ScalarFn::Sub => {
                let operands = &graph.node(whole).operands;
                // a zero point does not make the operand larger
                let fits = graph.tensor_type(operands[0]) == graph.tensor_type(whole);
                (operands[0], Some(operands[1]).filter(|_| fits))
            }
            _ => (whole, None),
        };
        let node = graph.node(cast);
        let bytes = *node.operands.first()?;
        let is_bytes = matches!(node.op, Op::Cast(_)) && matches!(self.dtype(bytes), DType::I8 | DType::U8);
        (is_bytes && self.dtype(cast) == DType::I32 && (zero.is_some() || cast == whole)).then_some(Side {
            whole,
            cast,
            bytes,
            zero,
        })
    }

    /// A product of two operands that are bytes in `i32`, less zero points that do not change along what is summed.
    pub(super) fn product_of_bytes(&mut self, dot: &DotGeneral, operands: &[NodeId]) -> Option<NodeId> {
        if dot.wide {
            return None;
        }
        let (a, b) = (self.side(operands[0])?, self.side(operands[1])?);
        let mut sum = self.add(dot.clone().wide(), &[a.bytes, b.bytes])?;
        if a.zero.is_none() && b.zero.is_none() {
            return Some(sum);
        }
        if !is_separable(dot) {
            return None;
        }
        if let Some(zero) = a.zero {
            sum = self.less_zero(sum, zero, (a.whole, &dot.lhs), (b.cast, &dot.rhs), dot)?;
        }
        if let Some(zero) = b.zero {
            sum = self.less_zero(sum, zero, (b.whole, &dot.rhs), (a.whole, &dot.lhs), dot)?;
        }
        Some(sum)
    }

    /// A product by weights of bytes less a zero point that is known in a run alone, taken from the sums.
    pub(super) fn product_by_weights(&mut self, dot: &DotGeneral, operands: &[NodeId]) -> Option<NodeId> {
        let at = self.beside_weights(operands)?;
        let side = self.side(operands[at])?;
        let zero = side.zero.filter(|zero| self.builder.time(*zero) == BindingTime::Run)?;
        if dot.wide || !is_separable(dot) || !self.is_byte(operands[1 - at]) {
            return None;
        }
        let labels = [&dot.lhs, &dot.rhs];
        let mut factors = [operands[0], operands[1]];
        factors[at] = side.cast;
        let sum = self.add(dot.clone(), &factors)?;
        self.less_zero(sum, zero, (side.whole, labels[at]), (operands[1 - at], labels[1 - at]), dot)
    }

    /// Whether the elements of a value fit a byte with a sign.
    fn is_byte(&self, id: NodeId) -> bool {
        Range::of(self.builder.graph(), id).is_within(Range::of_type(DType::I8))
    }

    /// Which of two operands is known in a run alone, where the other one is weights.
    fn beside_weights(&self, operands: &[NodeId]) -> Option<usize> {
        let in_run = |at: usize| self.builder.time(operands[at]) == BindingTime::Run;
        (0..2).find(|at| in_run(*at) && !in_run(1 - at))
    }

    /// A sum without the zero point of a factor, which was multiplied by another.
    fn less_zero(
        &mut self,
        sum: NodeId,
        zero: NodeId,
        (of, own): (NodeId, &Labels),
        (other, labels): (NodeId, &Labels),
        dot: &DotGeneral,
    ) -> Option<NodeId> {
        let zero = self.spread_over(zero, of, own, dot)?;
        let axes: SmallVec<[usize; 4]> = (0..labels.0.len()).filter(|i| !dot.out.has(labels.0[*i])).collect();
        let total = self.add(Reduce { kind: ReduceKind::Sum, axes, keep: false }, &[other])?;
        let kept: Labels = Labels(labels.0.iter().copied().filter(|l| dot.out.has(*l)).collect());
        let total = self.placed(total, &kept, &dot.out)?;
        let taken = self.map(ScalarFn::Mul, &[zero, total])?;
        self.map(ScalarFn::Sub, &[sum, taken])
    }

    /// A zero point of an operand with these labels, as it broadcasts to the result; `None` where it changes along what is
    /// summed.
    pub(super) fn spread_over(
        &mut self,
        zero: NodeId,
        of: NodeId,
        labels: &Labels,
        dot: &DotGeneral,
    ) -> Option<NodeId> {
        let shape = self.builder.graph().tensor_type(zero).shape.clone();
        let rank = self.builder.graph().tensor_type(of).shape.rank();
        let mut kept = Labels::default();
        let mut extents = Shape::default();
        for (axis, extent) in shape.iter().enumerate().filter(|(_, extent)| !extent.is(1)) {
            let label = *labels.0.get(axis + rank - shape.rank())?;
            if !dot.out.has(label) {
                return None;
            }
            kept.0.push(label);
            extents.push(extent.clone());
        }
        let zero = self.reshaped(zero, extents)?;
        self.placed(zero, &kept, &dot.out)
    }

    /// A value with its axes where a result has these labels, and others of extent 1.
    fn placed(&mut self, value: NodeId, labels: &Labels, out: &Labels) -> Option<NodeId> {
        let order: SmallVec<[usize; 6]> = out.0.iter().filter_map(|l| labels.axis(*l)).collect();
        let value = if order.is_sorted() {
            value
        } else {
            self.add(Transpose { permutation: order.iter().copied().collect() }, &[value])?
        };
        let shape = self.builder.graph().tensor_type(value).shape.clone();
        let mut extents = shape.iter().cloned();
        let placed: Option<Shape> =
            out.0.iter().map(|l| if labels.has(*l) { extents.next() } else { Some(Dim::ONE) }).collect();
        self.reshaped(value, placed?)
    }

    /// A forward convolution of two operands that are bytes in `i32`; the image's zero point is one number, the weights' one,
    /// or one for each channel of a result without groups.
    pub(super) fn convolution_of_bytes(&mut self, conv: &Conv, operands: &[NodeId]) -> Option<NodeId> {
        if conv.wide || conv.form != ConvForm::Forward {
            return None;
        }
        let (image, weights) = (self.side(operands[0])?, self.side(operands[1])?);
        let mut sum = self.add(Conv { wide: true, ..conv.clone() }, &[image.bytes, weights.bytes])?;
        let rank = conv.spatial() + 2;
        if let Some(zero) = image.zero {
            sum = self.less_image_zero(sum, zero, conv, (image.whole, weights.cast))?;
        }
        if let Some(zero) = weights.zero {
            let shape = self.builder.graph().tensor_type(zero).shape.clone();
            // the first axis of weights is the result's second
            let first = rank.checked_sub(shape.rank());
            let channels = match first {
                Some(0) => shape[0].clone(),
                _ => Dim::ONE,
            };
            let alike = shape.iter().enumerate().all(|(axis, extent)| extent.is(1) || first == Some(0) && axis == 0);
            if !alike || conv.groups != 1 {
                return None;
            }
            let zero = self
                .reshaped(zero, (0..rank).map(|axis| if axis == 1 { channels.clone() } else { Dim::ONE }).collect())?;
            let total = self.window_sums(conv, image.whole, operands[1])?;
            let taken = self.map(ScalarFn::Mul, &[zero, total])?;
            sum = self.map(ScalarFn::Sub, &[sum, taken])?;
        }
        Some(sum)
    }

    /// A forward convolution by weights of bytes less a zero point, one number, that is known in a run alone, taken from the
    /// sums.
    pub(super) fn convolution_by_weights(&mut self, conv: &Conv, operands: &[NodeId]) -> Option<NodeId> {
        if conv.wide
            || conv.form != ConvForm::Forward
            || self.beside_weights(operands) != Some(0)
            || !self.is_byte(operands[1])
        {
            return None;
        }
        let image = self.side(operands[0])?;
        let zero = image.zero.filter(|zero| self.builder.time(*zero) == BindingTime::Run)?;
        let sum = self.add(conv.clone(), &[image.cast, operands[1]])?;
        self.less_image_zero(sum, zero, conv, (image.whole, operands[1]))
    }

    /// A convolution without the zero point of its image.
    fn less_image_zero(
        &mut self,
        sum: NodeId,
        zero: NodeId,
        conv: &Conv,
        (image, weights): (NodeId, NodeId),
    ) -> Option<NodeId> {
        let one = self.builder.graph().tensor_type(zero).shape.iter().all(|extent| extent.is(1));
        let total = self.inside_sums(conv, image, weights).filter(|_| one)?;
        let zero = self.reshaped(zero, std::iter::repeat_n(Dim::ONE, conv.spatial() + 2).collect())?;
        let taken = self.map(ScalarFn::Mul, &[zero, total])?;
        self.map(ScalarFn::Sub, &[sum, taken])
    }

    /// By channel, and place where padding counts, the sum of the weights inside the image.
    fn inside_sums(&mut self, conv: &Conv, image: NodeId, weights: NodeId) -> Option<NodeId> {
        let shape = self.builder.graph().tensor_type(image).shape.clone();
        if conv.pad_low.iter().chain(&conv.pad_high).all(|pad| *pad == 0) {
            let axes = (1..shape.rank()).collect();
            let total = self.add(Reduce { kind: ReduceKind::Sum, axes, keep: false }, &[weights])?;
            let channels = self.builder.graph().tensor_type(total).shape[0].clone();
            let spread = (0..shape.rank()).map(|axis| if axis == 1 { channels.clone() } else { Dim::ONE });
            return self.reshaped(total, spread.collect());
        }
        // worth it once, when weights are loaded
        let known = self.builder.time(weights) < BindingTime::Run
            && shape[1..].iter().all(|extent| extent.as_const().is_some());
        if !known {
            return None;
        }
        let one = self.builder.scalar(Literal::int(1, DType::I32)).ok()?;
        let extents = std::iter::once(Dim::ONE).chain(shape[1..].iter().cloned()).collect();
        let ones = self.add(Broadcast { shape: extents }, &[one])?;
        self.add(conv.clone(), &[ones, weights])
    }

    /// By window, the sum of the image in it.
    fn window_sums(&mut self, conv: &Conv, image: NodeId, weights: NodeId) -> Option<NodeId> {
        let taps = self.builder.graph().tensor_type(weights).shape.clone();
        let size: Option<SmallVec<[i64; 3]>> = taps[2..].iter().map(Dim::as_const).collect();
        let channels =
            self.add(Reduce { kind: ReduceKind::Sum, axes: smallvec::smallvec![1], keep: true }, &[image])?;
        let window = Window {
            size: size?,
            stride: conv.stride.clone(),
            pad_low: conv.pad_low.clone(),
            pad_high: conv.pad_high.clone(),
            dilation: conv.dilation.clone(),
        };
        self.add(ReduceWindow { kind: WindowKind::Sum, window }, &[channels])
    }
}

/// Whether each label of a sum is in both operands, and none twice in one.
pub(super) fn is_separable(dot: &DotGeneral) -> bool {
    let once = |labels: &Labels| (0..labels.0.len()).all(|axis| labels.axis(labels.0[axis]) == Some(axis));
    let shared = |own: &Labels, other: &Labels| own.0.iter().all(|l| other.has(*l) || dot.out.has(*l));
    once(&dot.lhs) && once(&dot.rhs) && shared(&dot.lhs, &dot.rhs) && shared(&dot.rhs, &dot.lhs)
}
