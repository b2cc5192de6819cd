//! Contractions and convolutions as products: rows × sums times sums × columns, by index arithmetic.

use egret_ir::ops::{Conv, ConvForm, DotGeneral, Labels};
use egret_ir::{DType, Dim, NodeId, Op, Shape};
use smallvec::SmallVec;

use super::contract::both;
use crate::kernel::{Expr, Memory};
use crate::layout::{Layout, has_prologue};
use crate::schedule::row::{anchor, first_operand};
use crate::schedule::scope::{Scope, Stored, value_of};
use crate::schedule::view::strided;

/// Indices, one an axis of a part of the problem.
pub type Index = SmallVec<[Expr; 6]>;

/// A side of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// It has the rows.
    Left,
    /// It has the columns.
    Right,
}

/// A product whose element is a sum over `sums` of left × right.
pub struct Problem {
    /// The node, fused or not.
    pub id: NodeId,
    /// Extents shared by left, right and result.
    pub batch: Vec<Dim>,
    /// Extents of the result that the left side has.
    pub rows: Vec<Dim>,
    /// Extents of the result that the right side has.
    pub columns: Vec<Dim>,
    /// Extents of the sum.
    pub sums: Vec<Dim>,
    /// Whether neighbours in memory of the left side are rows, not terms of the sum.
    pub left_by_row: bool,
    /// Whether neighbours in memory of the right side are columns.
    pub right_by_column: bool,
    form: Form,
}

enum Form {
    Dot(Box<Dot>),
    Conv(Box<Image>),
}

struct Dot {
    left: NodeId,
    right: NodeId,
    left_labels: Labels,
    right_labels: Labels,
    out: Labels,
    batch: Vec<u8>,
    rows: Vec<u8>,
    columns: Vec<u8>,
    sums: Vec<u8>,
}

struct Image {
    conv: Conv,
    /// The first and second operand.
    operands: [NodeId; 2],
    /// The node, if it maps the first.
    prologue: Option<NodeId>,
    /// Channels of a group: of the image, of the result.
    inner: Expr,
    outer: Expr,
    /// Spatial extents of what is read through taps.
    extents: Index,
    /// Whether channels are columns and the innermost terms, so that they are neighbours as in memory; else pixels are.
    channels_last: bool,
    /// Channels of a group.
    groups: [Dim; 2],
}

impl Problem {
    /// The problem of a node; `None` of other operators.
    pub fn new(scope: &mut Scope, id: NodeId) -> Option<Problem> {
        let graph = scope.graph;
        let node = graph.node(id);
        let (a, b) = (*node.operands.first()?, *node.operands.get(1)?);
        match anchor(&node.op) {
            Op::DotGeneral(dot) => Problem::dot(scope, id, dot, a, b),
            Op::Conv(conv) => Some(Problem::conv(scope, id, conv, a, b)),
            _ => None,
        }
    }

    fn dot(scope: &Scope, id: NodeId, dot: &DotGeneral, a: NodeId, b: NodeId) -> Option<Problem> {
        // columns hold the result's innermost axis: the operands change places if need be
        let last = dot.out.0.last().copied();
        let swap = last.is_some_and(|l| !dot.rhs.has(l));
        let (left, right) = if swap { (b, a) } else { (a, b) };
        let (left_labels, right_labels) = if swap { (&dot.rhs, &dot.lhs) } else { (&dot.lhs, &dot.rhs) };
        let extent = |label: u8| {
            let find = |labels: &Labels, id: NodeId| {
                labels.axis(label).map(|axis| scope.graph.tensor_type(id).shape[axis].clone())
            };
            find(left_labels, left).or_else(|| find(right_labels, right)).unwrap_or(Dim::ONE)
        };
        let has_rows = matches!(&scope.graph.node(id).op, Op::Fused(fused) if fused.rows.is_some());
        let mut dot = Dot {
            left,
            right,
            left_labels: left_labels.clone(),
            right_labels: right_labels.clone(),
            out: dot.out.clone(),
            batch: Vec::new(),
            rows: Vec::new(),
            columns: Vec::new(),
            sums: Vec::new(),
        };
        for label in dot.out.0.iter().copied() {
            match (left_labels.has(label), right_labels.has(label)) {
                (true, false) => dot.rows.push(label),
                // whole rows end at the last axis: other axes of the right side are batches
                (false, true) if !has_rows || Some(label) == last => dot.columns.push(label),
                _ => dot.batch.push(label),
            }
        }
        for label in left_labels.0.iter().chain(&right_labels.0).copied() {
            if !dot.out.has(label) && !dot.sums.contains(&label) {
                dot.sums.push(label);
            }
        }
        if has_rows && dot.columns.len() != 1 {
            return None;
        }
        // neighbours in memory are neighbours in the product
        let left_rows = [(left, left_labels)];
        innermost(scope, &mut dot.rows, &left_rows);
        innermost(scope, &mut dot.sums, &[(left, left_labels), (right, right_labels)]);
        let dims = |labels: &[u8]| labels.iter().map(|l| extent(*l)).collect::<Vec<_>>();
        Some(Problem {
            id,
            batch: dims(&dot.batch),
            rows: dims(&dot.rows),
            columns: dims(&dot.columns),
            sums: dims(&dot.sums),
            left_by_row: by_other(scope, left, left_labels, dot.rows.last(), dot.sums.last()),
            right_by_column: by_other(scope, right, right_labels, dot.columns.last(), dot.sums.last()),
            form: Form::Dot(Box::new(dot)),
        })
    }

    fn conv(scope: &mut Scope, id: NodeId, conv: &Conv, a: NodeId, b: NodeId) -> Problem {
        let graph = scope.graph;
        let shape = |id: NodeId| graph.tensor_type(id).shape.clone();
        let (x, w, y) = match conv.form {
            ConvForm::Forward => (shape(a), shape(b), shape(id)),
            ConvForm::InputGrad => (shape(id), shape(b), shape(a)),
            ConvForm::WeightGrad => (shape(a), shape(id), shape(b)),
        };
        let groups = Dim::from(conv.groups);
        let (inner, outer) = (w[1].clone(), w[0].floor_div(&groups));
        let with = |first: &Dim, rest: &Shape| -> Vec<Dim> {
            std::iter::once(first.clone()).chain(rest[2..].iter().cloned()).collect()
        };
        let stored: &dyn Stored = scope.stored;
        let is_last = |id: NodeId| stored.layout(value_of(graph, id)) == Some(&Layout::ChannelsLast);
        let channels_last = [id, a, b].into_iter().any(is_last);
        let then = |rest: &Shape, last: &Dim| -> Vec<Dim> {
            rest[2..].iter().cloned().chain(std::iter::once(last.clone())).collect()
        };
        let read = if conv.form == ConvForm::InputGrad { &y } else { &x };
        let image = Image {
            conv: conv.clone(),
            operands: [a, b],
            prologue: has_prologue(&graph.node(id).op).then_some(id),
            inner: scope.dim(&inner),
            outer: scope.dim(&outer),
            extents: read[2..].iter().map(|d| scope.dim(d)).collect(),
            channels_last,
            groups: [inner.clone(), outer.clone()],
        };
        if channels_last {
            let (rows, columns, sums) = match conv.form {
                ConvForm::Forward => (with(&y[0], &y), vec![outer.clone()], then(&w, &inner)),
                ConvForm::InputGrad => (with(&x[0], &x), vec![inner.clone()], then(&w, &outer)),
                ConvForm::WeightGrad => (vec![outer.clone()], then(&w, &inner), with(&y[0], &y)),
            };
            return Problem {
                id,
                batch: vec![groups],
                rows,
                columns,
                sums,
                left_by_row: conv.form == ConvForm::WeightGrad || !is_last(a),
                right_by_column: conv.form != ConvForm::Forward,
                form: Form::Conv(Box::new(image)),
            };
        }
        let (rows, columns, sums) = match conv.form {
            ConvForm::Forward => (&outer, with(&y[0], &y), with(&inner, &w)),
            ConvForm::InputGrad => (&inner, with(&x[0], &x), with(&outer, &w)),
            ConvForm::WeightGrad => (&outer, with(&inner, &w), with(&y[0], &y)),
        };
        let one_tap = w[2..].iter().all(|d| d.is(1));
        Problem {
            id,
            batch: vec![groups],
            rows: vec![rows.clone()],
            columns,
            sums,
            left_by_row: conv.form == ConvForm::InputGrad && one_tap,
            right_by_column: conv.form != ConvForm::WeightGrad,
            form: Form::Conv(Box::new(image)),
        }
    }

    /// Whether neighbours of the product lie side by side in memory: of a convolution, where channels come last.
    pub fn has_neighbours(&self) -> bool {
        match &self.form {
            Form::Dot(_) => true,
            Form::Conv(image) => image.channels_last,
        }
    }

    /// Along which index a side's elements lie side by side, and how many of them may be moved at once, up to `limit`:
    /// true where it is the last one of the sum, false for the last row or column.
    pub fn neighbours(&self, scope: &Scope, which: Which, limit: i64) -> (bool, i64) {
        let along_terms = match which {
            Which::Left => !self.left_by_row,
            Which::Right => !self.right_by_column,
        };
        let dot = match &self.form {
            Form::Dot(dot) => dot,
            Form::Conv(image) => return (along_terms, image.neighbours(scope, which, limit)),
        };
        let (id, labels, free) = dot.side(which);
        let width = |label: Option<&u8>| match label.and_then(|label| labels.axis(*label)) {
            Some(axis) => scope.neighbours(id, axis, limit),
            None => 1,
        };
        let (terms, others) = (width(dot.sums.last()), width(free.last()));
        if terms == others { (along_terms, terms) } else { (terms > others, terms.max(others)) }
    }

    /// The buffer of a side, the place there of an element, and where there is one, unless there always is; `None` where
    /// elements are computed.
    pub fn source(
        &self,
        scope: &mut Scope,
        which: Which,
        batch: &[Expr],
        at: &[Expr],
        sum: &[Expr],
    ) -> Option<(Memory, Expr, Option<Expr>)> {
        let (id, index, inside) = match &self.form {
            Form::Dot(dot) => {
                let (id, labels, free) = dot.side(which);
                (id, dot.index(labels, &[(&dot.batch, batch), (free, at), (&dot.sums, sum)]), None)
            }
            Form::Conv(image) if image.channels_last && !image.maps(which) => {
                image.side(scope, which, &batch[0], at, sum)
            }
            Form::Conv(_) => return None,
        };
        let (memory, from) = scope.place(id, &index)?;
        Some((memory, from, inside))
    }

    /// An element of a side; zero where `inside` does not hold.
    pub fn element(
        &self,
        scope: &mut Scope,
        which: Which,
        batch: &[Expr],
        at: &[Expr],
        sum: &[Expr],
        inside: Option<Expr>,
    ) -> Expr {
        match which {
            Which::Left => self.left(scope, batch, at, sum, inside),
            Which::Right => self.right(scope, batch, sum, at, inside),
        }
    }

    /// The axis of the result that the last column is along.
    pub fn column_axis(&self, scope: &Scope) -> Option<usize> {
        match &self.form {
            Form::Dot(dot) => dot.columns.last().and_then(|label| dot.out.axis(*label)),
            Form::Conv(image) if image.channels_last => Some(1),
            Form::Conv(_) => Some(scope.graph.tensor_type(self.id).shape.rank() - 1),
        }
    }

    /// Element type of the operands; of 8-bit integers that are summed in `i32`, of one of them.
    pub fn dtype(&self, scope: &Scope) -> DType {
        scope.graph.tensor_type(scope.graph.node(self.id).operands[0]).dtype
    }

    /// Element type of a side.
    pub fn side_dtype(&self, scope: &Scope, which: Which) -> DType {
        let operand = match &self.form {
            Form::Dot(dot) => dot.side(which).0,
            Form::Conv(image) => image.operands[image.operand(which)],
        };
        scope.graph.tensor_type(operand).dtype
    }

    /// Whether 8-bit integers are summed in `i32`.
    pub fn is_wide(&self, scope: &Scope) -> bool {
        match anchor(&scope.graph.node(self.id).op) {
            Op::DotGeneral(dot) => dot.wide,
            Op::Conv(conv) => conv.wide,
            _ => false,
        }
    }

    /// Element type of the sums before an epilogue; halves are summed in `f32`.
    pub fn sum_dtype(&self, scope: &Scope) -> DType {
        if self.is_wide(scope) { DType::I32 } else { self.dtype(scope) }
    }

    /// An element of the left side; zero where `inside` does not hold.
    pub fn left(&self, scope: &mut Scope, batch: &[Expr], row: &[Expr], sum: &[Expr], inside: Option<Expr>) -> Expr {
        match &self.form {
            Form::Dot(dot) => {
                let index = dot.index(&dot.left_labels, &[(&dot.batch, batch), (&dot.rows, row), (&dot.sums, sum)]);
                element(scope, dot.left, &index, inside)
            }
            Form::Conv(image) if image.channels_last => {
                let (id, index, place) = image.side(scope, Which::Left, &batch[0], row, sum);
                let inside = both(inside, place);
                if image.maps(Which::Left) {
                    image.mapped(scope, &index, inside)
                } else {
                    element(scope, id, &index, inside)
                }
            }
            Form::Conv(image) => {
                let group = &batch[0];
                let index: Index = match image.conv.form {
                    ConvForm::Forward => {
                        [image.output(group, &row[0])].into_iter().chain(sum.iter().cloned()).collect()
                    }
                    ConvForm::InputGrad => {
                        let output = image.output(group, &sum[0]);
                        [output, row[0].clone()].into_iter().chain(sum[1..].iter().cloned()).collect()
                    }
                    ConvForm::WeightGrad => {
                        let output = image.output(group, &row[0]);
                        [sum[0].clone(), output].into_iter().chain(sum[1..].iter().cloned()).collect()
                    }
                };
                element(scope, image.operands[1], &index, inside)
            }
        }
    }

    /// An element of the right side; zero where `inside` does not hold.
    pub fn right(
        &self,
        scope: &mut Scope,
        batch: &[Expr],
        sum: &[Expr],
        column: &[Expr],
        inside: Option<Expr>,
    ) -> Expr {
        match &self.form {
            Form::Dot(dot) => {
                let parts = [(&dot.batch, batch), (&dot.sums, sum), (&dot.columns, column)];
                let index = dot.index(&dot.right_labels, &parts);
                element(scope, dot.right, &index, inside)
            }
            Form::Conv(image) if image.channels_last => {
                let (id, index, place) = image.side(scope, Which::Right, &batch[0], column, sum);
                element(scope, id, &index, both(inside, place))
            }
            Form::Conv(image) => image.right(scope, &batch[0], sum, column, inside),
        }
    }

    /// Indices of the result.
    pub fn result(&self, batch: &[Expr], row: &[Expr], column: &[Expr]) -> Index {
        match &self.form {
            Form::Dot(dot) => dot.index(&dot.out, &[(&dot.batch, batch), (&dot.rows, row), (&dot.columns, column)]),
            Form::Conv(image) => {
                let group = &batch[0];
                if image.channels_last {
                    return image.result(group, row, column);
                }
                let (first, second) = match image.conv.form {
                    ConvForm::Forward => (column[0].clone(), image.output(group, &row[0])),
                    ConvForm::InputGrad => (column[0].clone(), image.input(group, &row[0])),
                    ConvForm::WeightGrad => (image.output(group, &row[0]), column[0].clone()),
                };
                [first, second].into_iter().chain(column[1..].iter().cloned()).collect()
            }
        }
    }
}

impl Dot {
    /// The operand of a side, its labels, and those of them that are rows or columns.
    fn side(&self, which: Which) -> (NodeId, &Labels, &Vec<u8>) {
        match which {
            Which::Left => (self.left, &self.left_labels, &self.rows),
            Which::Right => (self.right, &self.right_labels, &self.columns),
        }
    }

    fn index(&self, labels: &Labels, parts: &[(&Vec<u8>, &[Expr])]) -> Index {
        let at = |label: &u8| {
            let find = |(have, index): &(&Vec<u8>, &[Expr])| {
                have.iter().position(|l| l == label).and_then(|i| index.get(i)).cloned()
            };
            parts.iter().find_map(find).unwrap_or(Expr::int(0))
        };
        labels.0.iter().map(at).collect()
    }
}

impl Image {
    /// The image's channel of a group.
    fn input(&self, group: &Expr, channel: &Expr) -> Expr {
        if self.conv.groups == 1 { channel.clone() } else { group * &self.inner + channel }
    }

    /// The result's channel of a group.
    fn output(&self, group: &Expr, channel: &Expr) -> Expr {
        if self.conv.groups == 1 { channel.clone() } else { group * &self.outer + channel }
    }

    /// What is read through taps: the image, or in the gradient of the image the result's gradient.
    fn right(&self, scope: &mut Scope, group: &Expr, sum: &[Expr], column: &[Expr], inside: Option<Expr>) -> Expr {
        // in the weight's gradient taps are columns and outputs are summed over
        let (image, channel, out, tap) = match self.conv.form {
            ConvForm::Forward => (&column[0], self.input(group, &sum[0]), &column[1..], &sum[1..]),
            ConvForm::InputGrad => (&column[0], self.output(group, &sum[0]), &column[1..], &sum[1..]),
            ConvForm::WeightGrad => (&sum[0], self.input(group, &column[0]), &sum[1..], &column[1..]),
        };
        let (index, place) = self.through(scope, image, channel, out, tap);
        let inside = both(inside, place);
        if self.prologue.is_some() {
            return self.mapped(scope, &index, inside);
        }
        element(scope, self.operands[0], &index, inside)
    }

    /// Which operand a side is, by number.
    fn operand(&self, which: Which) -> usize {
        let left = match (self.channels_last, self.conv.form) {
            (true, ConvForm::WeightGrad) | (false, _) => 1,
            (true, _) => 0,
        };
        if which == Which::Left { left } else { 1 - left }
    }

    /// Whether a prologue maps what a side reads, of channels-last images.
    fn maps(&self, which: Which) -> bool {
        self.prologue.is_some() && which == Which::Left
    }

    /// An element of the image as a prologue leaves it, zero where a condition does not hold: padding is not mapped.
    fn mapped(&self, scope: &mut Scope, index: &[Expr], inside: Option<Expr>) -> Expr {
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

    /// Of channels-last images: the operand of a side, the index there of an element, and where there is one. Left is what
    /// has the results' pixels, or of the weight's gradient their channels.
    fn side(
        &self,
        scope: &mut Scope,
        which: Which,
        group: &Expr,
        at: &[Expr],
        sum: &[Expr],
    ) -> (NodeId, Index, Option<Expr>) {
        let taps = self.conv.spatial();
        let [first, second] = self.operands;
        match (self.conv.form, which) {
            (ConvForm::WeightGrad, Which::Left) => {
                let index = [sum[0].clone(), self.output(group, &at[0])].into_iter().chain(sum[1..].iter().cloned());
                (second, index.collect(), None)
            }
            (ConvForm::WeightGrad, Which::Right) => {
                let channel = self.input(group, &at[taps]);
                let (index, inside) = self.through(scope, &sum[0], channel, &sum[1..], &at[..taps]);
                (first, index, inside)
            }
            (form, Which::Left) => {
                let channel = match form {
                    ConvForm::InputGrad => self.output(group, &sum[taps]),
                    _ => self.input(group, &sum[taps]),
                };
                let (index, inside) = self.through(scope, &at[0], channel, &at[1..], &sum[..taps]);
                (first, index, inside)
            }
            (form, Which::Right) => {
                let (output, input) = match form {
                    ConvForm::InputGrad => (&sum[taps], &at[0]),
                    _ => (&at[0], &sum[taps]),
                };
                let index = [self.output(group, output), input.clone()].into_iter().chain(sum[..taps].iter().cloned());
                (second, index.collect(), None)
            }
        }
    }

    /// Of channels-last images: the indices of a result.
    fn result(&self, group: &Expr, row: &[Expr], column: &[Expr]) -> Index {
        let taps = self.conv.spatial();
        let (first, second, rest) = match self.conv.form {
            ConvForm::Forward => (row[0].clone(), self.output(group, &column[0]), &row[1..]),
            ConvForm::InputGrad => (row[0].clone(), self.input(group, &column[0]), &row[1..]),
            ConvForm::WeightGrad => (self.output(group, &row[0]), column[taps].clone(), &column[..taps]),
        };
        [first, second].into_iter().chain(rest.iter().cloned()).collect()
    }

    /// How many channels of a side lie side by side within a group.
    fn neighbours(&self, scope: &Scope, which: Which, limit: i64) -> i64 {
        // what is mapped is computed one by one
        if !self.channels_last || self.maps(which) {
            return 1;
        }
        let weights = self.conv.form != ConvForm::WeightGrad && which == Which::Right;
        let image = (self.conv.form == ConvForm::WeightGrad) == (which == Which::Right);
        let id = self.operands[usize::from(!image)];
        let outputs = match self.conv.form {
            ConvForm::Forward => false,
            ConvForm::InputGrad => !weights,
            ConvForm::WeightGrad => which == Which::Left,
        };
        let mut width = scope.neighbours(id, 1, limit);
        while width > 1 && !self.groups[usize::from(outputs)].modulo(&Dim::from(width)).is(0) {
            width /= 2;
        }
        width
    }
}

/// An element, zero where a condition does not hold.
fn element(scope: &mut Scope, id: NodeId, index: &[Expr], inside: Option<Expr>) -> Expr {
    let Some(inside) = inside else { return scope.element(id, index) };
    let inside = scope.k.bind(inside);
    let value = scope.masked(inside.clone(), |scope| scope.element(id, index));
    if matches!(&value, Expr::Load { mask: Some(mask), .. } if **mask == inside) {
        return value;
    }
    let dtype = scope.graph.tensor_type(id).dtype;
    inside.select(value, Expr::constant(dtype, 0.0))
}

/// Puts the label last whose neighbours lie side by side in the first operand that has such.
fn innermost(scope: &Scope, labels: &mut Vec<u8>, operands: &[(NodeId, &Labels)]) {
    for (id, of) in operands {
        let side_by_side = |label: &u8| of.axis(*label).is_some_and(|axis| scope.neighbours(*id, axis, 2) > 1);
        if let Some(at) = labels.iter().position(side_by_side) {
            let label = labels.remove(at);
            return labels.push(label);
        }
    }
}

/// Whether, of two labels of a value, the first is the one whose neighbours are nearer in memory.
fn by_other(scope: &Scope, id: NodeId, labels: &Labels, first: Option<&u8>, second: Option<&u8>) -> bool {
    let axis = |label: Option<&u8>| label.and_then(|l| labels.axis(*l));
    let (Some(first), Some(second)) = (axis(first), axis(second)) else { return axis(first).is_some() };
    let stored: &dyn Stored = scope.stored;
    let graph = scope.graph;
    match strided(graph, id, &|source| stored.layout(value_of(graph, source)).is_some()) {
        Some(view) => view.strides[first].is(1) || !view.strides[second].is(1) && first > second,
        None => first > second,
    }
}
