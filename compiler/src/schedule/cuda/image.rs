//! Convolutions as products: which element of an image or of weights a place of a side is.
//!
//! Pixels of a result (or of an image's gradient) are one side's, channels the other's: rows and columns so that neighbours
//! of the result are columns. Sums run over channels and taps, whichever lie side by side in memory innermost. In the
//! weights' gradient left is the result's gradient, right the image; its columns are channels and taps, and pixels are summed.

use egret_ir::ops::{Conv, ConvForm};
use egret_ir::{Dim, NodeId, Shape};
use smallvec::SmallVec;

use super::contract::both;
use super::problem::{Index, Which};
use crate::kernel::Expr;
use crate::layout::{Layout, has_prologue};
use crate::schedule::row::first_operand;
use crate::schedule::scope::{Scope, Stored, value_of};

/// A convolution whose elements are a product's.
pub struct Image {
    conv: Conv,
    /// The first and second operand.
    operands: [NodeId; 2],
    /// Those that lie with channels last.
    last: [bool; 2],
    /// The node, if it maps the first.
    prologue: Option<NodeId>,
    /// `groups` as expressions.
    inner: Expr,
    outer: Expr,
    /// Spatial extents of what is read through taps.
    extents: Index,
    /// The side of the first operand, which is read through taps: it has the pixels, unless these are summed.
    pixels: Which,
    /// Whether channels are the innermost terms, or columns of the weights' gradient; else taps are.
    taps_first: bool,
    has_one_tap: bool,
    /// By spatial axis, whether each pixel reads the one in its own place alone.
    own: SmallVec<[bool; 3]>,
    /// Channels of a group: of the image, of the result.
    groups: [Dim; 2],
}

/// Extents of a product.
pub struct Extents {
    /// Its rows.
    pub rows: Vec<Dim>,
    /// Its columns.
    pub columns: Vec<Dim>,
    /// Its terms.
    pub sums: Vec<Dim>,
}

impl Image {
    /// The convolution of a node, and its extents as a product.
    pub fn new(scope: &mut Scope, id: NodeId, conv: &Conv, operands: [NodeId; 2]) -> (Image, Extents) {
        let graph = scope.graph;
        let shape = |id: NodeId| graph.tensor_type(id).shape.clone();
        let [a, b] = operands;
        let (x, w, y) = match conv.form {
            ConvForm::Forward => (shape(a), shape(b), shape(id)),
            ConvForm::InputGrad => (shape(id), shape(b), shape(a)),
            ConvForm::WeightGrad => (shape(a), shape(id), shape(b)),
        };
        let stored: &dyn Stored = scope.stored;
        let is_last = |id: NodeId| stored.layout(value_of(graph, id)) == Some(&Layout::ChannelsLast);
        let last = operands.map(is_last);
        let weights_last = conv.form != ConvForm::WeightGrad && last[1];
        let has_one_tap = w[2..].iter().all(|tap| tap.is(1));
        let taps_first = last[0] || weights_last || has_one_tap;
        let pixels = if is_last(id) && conv.form != ConvForm::WeightGrad { Which::Left } else { Which::Right };
        let (inner, outer) = (w[1].clone(), w[0].floor_div(&Dim::from(conv.groups)));
        let join = |first: &[Dim], then: &[Dim]| -> Vec<Dim> { first.iter().chain(then).cloned().collect() };
        let through_taps = |channels: &Dim| {
            let channels = std::slice::from_ref(channels);
            if taps_first { join(&w[2..], channels) } else { join(channels, &w[2..]) }
        };
        let all = |of: &Shape| join(&of[..1], &of[2..]);
        let extents = match conv.form {
            ConvForm::WeightGrad => Extents { rows: vec![outer.clone()], columns: through_taps(&inner), sums: all(&y) },
            form => {
                let (result, channels, sums) = match form {
                    ConvForm::InputGrad => (&x, &inner, through_taps(&outer)),
                    _ => (&y, &outer, through_taps(&inner)),
                };
                let (pixel, channel) = (all(result), vec![channels.clone()]);
                let (rows, columns) = if pixels == Which::Left { (pixel, channel) } else { (channel, pixel) };
                Extents { rows, columns, sums }
            }
        };
        let is_own = |axis: usize| {
            let padded = conv.pad_low[axis] != 0 || conv.pad_high[axis] != 0;
            w[2 + axis].is(1) && conv.stride[axis] == 1 && !padded
        };
        let read = if conv.form == ConvForm::InputGrad { &y } else { &x };
        let image = Image {
            conv: conv.clone(),
            operands,
            last,
            prologue: has_prologue(&graph.node(id).op).then_some(id),
            inner: scope.dim(&inner),
            outer: scope.dim(&outer),
            extents: read[2..].iter().map(|d| scope.dim(d)).collect(),
            pixels,
            taps_first,
            has_one_tap,
            own: (0..conv.spatial()).map(is_own).collect(),
            groups: [inner, outer],
        };
        (image, extents)
    }

    /// Whether neighbours in memory of the left side are rows, and of the right one columns, not terms.
    pub fn by_other(&self) -> (bool, bool) {
        let image = !self.last[0];
        let weights = self.conv.form == ConvForm::InputGrad && self.taps_first;
        match (self.conv.form, self.pixels) {
            (ConvForm::WeightGrad, _) => (self.last[1], self.last[0]),
            (_, Which::Left) => (image, weights),
            (_, Which::Right) => (weights, image),
        }
    }

    /// The operand of a side.
    pub fn operand(&self, which: Which) -> NodeId {
        self.operands[self.number(which)]
    }

    fn number(&self, which: Which) -> usize {
        usize::from(which != self.pixels)
    }

    /// The axis of the result that the last column is along.
    pub fn column_axis(&self, rank: usize) -> usize {
        match (self.conv.form, self.pixels) {
            (ConvForm::WeightGrad, _) if self.taps_first => 1,
            (ConvForm::WeightGrad, _) | (_, Which::Right) => rank - 1,
            (_, Which::Left) => 1,
        }
    }

    /// Whether a prologue maps what a side reads.
    pub fn maps(&self, which: Which) -> bool {
        self.prologue.is_some() && self.number(which) == 0
    }

    /// The image's channel of a group.
    fn input(&self, group: &Expr, channel: &Expr) -> Expr {
        if self.conv.groups == 1 { channel.clone() } else { group * &self.inner + channel }
    }

    /// The result's channel of a group.
    fn output(&self, group: &Expr, channel: &Expr) -> Expr {
        if self.conv.groups == 1 { channel.clone() } else { group * &self.outer + channel }
    }

    /// The channel and the taps of a term, or of a column of the weights' gradient.
    fn parted<'i>(&self, index: &'i [Expr]) -> (&'i Expr, &'i [Expr]) {
        let taps = self.conv.spatial();
        if self.taps_first { (&index[taps], &index[..taps]) } else { (&index[0], &index[1..]) }
    }

    /// An element of the image as a prologue leaves it, zero where a condition does not hold: padding is not mapped.
    pub fn mapped(&self, scope: &mut Scope, index: &[Expr], inside: Option<Expr>) -> Expr {
        let id = self.prologue.unwrap_or(self.operands[0]);
        let Some(inside) = inside else { return first_operand(scope, id, index) };
        let inside = scope.k.bind(inside);
        let value = scope.masked(inside.clone(), |scope| first_operand(scope, id, index));
        inside.select(value, Expr::constant(scope.graph.tensor_type(self.operands[0]).dtype, 0.0))
    }

    /// The place that a tap of a result reads, and where there is one, unless there always is.
    fn through(
        &self,
        scope: &mut Scope,
        image: &Expr,
        channel: Expr,
        out: &[Expr],
        tap: &[Expr],
    ) -> (Index, Option<Expr>) {
        let conv = &self.conv;
        let backward = conv.form == ConvForm::InputGrad;
        let mut index: Index = smallvec::smallvec![image.clone(), channel];
        let mut inside: Option<Expr> = None;
        for axis in 0..conv.spatial() {
            let (stride, dilation, low) = (conv.stride[axis], conv.dilation[axis], conv.pad_low[axis]);
            if self.own[axis] {
                index.push(out[axis].clone());
                continue;
            }
            let extent = self.extents[axis].clone();
            let reach = &tap[axis] * dilation;
            let mut also = |condition: Expr| inside = both(inside.take(), Some(condition));
            let place = if backward {
                let scaled = scope.k.bind(&out[axis] + low - reach);
                also(scaled.greater_equal(0));
                if stride > 1 {
                    also((&scaled % stride).equal(0));
                }
                if stride > 1 { scope.k.bind(scaled / stride) } else { scaled }
            } else {
                let place = scope.k.bind(&out[axis] * stride + reach - low);
                if low > 0 {
                    also(place.greater_equal(0));
                }
                place
            };
            if backward || low > 0 || conv.pad_high[axis] > 0 {
                also(place.less(extent));
            }
            index.push(place);
        }
        (index, inside)
    }

    /// The operand of a side, the index there of an element, and where there is one.
    pub fn side(
        &self,
        scope: &mut Scope,
        which: Which,
        group: &Expr,
        at: &[Expr],
        sum: &[Expr],
    ) -> (NodeId, Index, Option<Expr>) {
        let operand = self.operand(which);
        match (self.conv.form, which) {
            (ConvForm::WeightGrad, Which::Left) => {
                let index = [sum[0].clone(), self.output(group, &at[0])].into_iter().chain(sum[1..].iter().cloned());
                (operand, index.collect(), None)
            }
            (ConvForm::WeightGrad, Which::Right) => {
                let (channel, taps) = self.parted(at);
                let (index, inside) = self.through(scope, &sum[0], self.input(group, channel), &sum[1..], taps);
                (operand, index, inside)
            }
            (form, which) => {
                let (channel, taps) = self.parted(sum);
                if which == self.pixels {
                    let channel = match form {
                        ConvForm::InputGrad => self.output(group, channel),
                        _ => self.input(group, channel),
                    };
                    let (index, inside) = self.through(scope, &at[0], channel, &at[1..], taps);
                    return (operand, index, inside);
                }
                let (output, input) = if form == ConvForm::InputGrad { (channel, &at[0]) } else { (&at[0], channel) };
                let index = [self.output(group, output), input.clone()].into_iter().chain(taps.iter().cloned());
                (operand, index.collect(), None)
            }
        }
    }

    /// The indices of a result.
    pub fn result(&self, group: &Expr, row: &[Expr], column: &[Expr]) -> Index {
        let (first, second, rest) = match (self.conv.form, self.pixels) {
            (ConvForm::WeightGrad, _) => {
                let (channel, taps) = self.parted(column);
                (self.output(group, &row[0]), channel.clone(), taps)
            }
            (form, pixels) => {
                let (pixel, channel) = if pixels == Which::Left { (row, column) } else { (column, row) };
                let channel = match form {
                    ConvForm::InputGrad => self.input(group, &channel[0]),
                    _ => self.output(group, &channel[0]),
                };
                (pixel[0].clone(), channel, &pixel[1..])
            }
        };
        [first, second].into_iter().chain(rest.iter().cloned()).collect()
    }

    /// Whether a side is read through taps in an order in which a stage of so many terms may have several.
    pub fn is_divided(&self, which: Which, step: i64) -> bool {
        let [inner, outer] = &self.groups;
        let channels = if self.conv.form == ConvForm::InputGrad { outer } else { inner };
        let one_by_one = self.conv.form == ConvForm::WeightGrad || !self.taps_first;
        let taps = !self.has_one_tap && (one_by_one || !channels.modulo(&step.into()).is(0));
        self.number(which) == 0 && taps && !self.last[0]
    }

    /// How many elements of a side lie side by side along its terms, and along its rows or columns: powers of two up to
    /// `limit`.
    pub fn neighbours(&self, scope: &Scope, which: Which, limit: i64) -> (i64, i64) {
        // what is mapped is computed one by one
        if self.maps(which) {
            return (1, 1);
        }
        let (number, id) = (self.number(which), self.operand(which));
        let channels = |of: &Dim| {
            let mut width = scope.neighbours(id, 1, limit);
            // the others may be another group's
            while width > 1 && !of.modulo(&Dim::from(width)).is(0) {
                width /= 2;
            }
            width
        };
        let innermost = |width: i64| if self.taps_first { width } else { 1 };
        let own = |width: i64| if self.own.iter().all(|own| *own) { width } else { 1 };
        let [inner, outer] = &self.groups;
        match (self.conv.form, number) {
            (ConvForm::Forward, 0) => (innermost(channels(inner)), own(scope.run(id, 2, limit))),
            (ConvForm::InputGrad, 0) => (innermost(channels(outer)), own(scope.run(id, 2, limit))),
            (ConvForm::WeightGrad, 0) => (own(scope.run(id, 2, limit)), innermost(channels(inner))),
            (ConvForm::WeightGrad, _) => (scope.run(id, 2, limit), channels(outer)),
            (ConvForm::Forward, _) if !self.taps_first => (scope.run(id, 1, limit), 1),
            (ConvForm::Forward, _) => (channels(inner), 1),
            (ConvForm::InputGrad, _) if !self.taps_first => (scope.run(id, 2, limit), channels(inner)),
            (ConvForm::InputGrad, _) => (1, channels(inner)),
        }
    }
}
