//! Contractions and convolutions as products: rows × sums times sums × columns, by index arithmetic.

use egret_ir::ops::{Conv, DotGeneral, Labels};
use egret_ir::{DType, Dim, NodeId, Op};
use smallvec::SmallVec;

use super::contract::both;
use super::image::Image;
use crate::kernel::{Expr, Memory};
use crate::schedule::row::anchor;
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
        let (image, extents) = Image::new(scope, id, conv, [a, b]);
        let (left_by_row, right_by_column) = image.by_other();
        Problem {
            id,
            batch: vec![Dim::from(conv.groups)],
            rows: extents.rows,
            columns: extents.columns,
            sums: extents.sums,
            left_by_row,
            right_by_column,
            form: Form::Conv(Box::new(image)),
        }
    }

    /// Along which index a side's elements lie side by side, and how many of them may be moved at once, up to `limit`:
    /// true where it is the last one of the sum, false for the last row or column.
    pub fn neighbours(&self, scope: &Scope, which: Which, limit: i64) -> (bool, i64) {
        let along_terms = match which {
            Which::Left => !self.left_by_row,
            Which::Right => !self.right_by_column,
        };
        let (terms, others) = match &self.form {
            Form::Dot(dot) => {
                let (id, labels, free) = dot.side(which);
                let width = |label: Option<&u8>| match label.and_then(|label| labels.axis(*label)) {
                    Some(axis) => scope.neighbours(id, axis, limit),
                    None => 1,
                };
                (width(dot.sums.last()), width(free.last()))
            }
            Form::Conv(image) => image.neighbours(scope, which, limit),
        };
        if terms == others { (along_terms, terms) } else { (terms > others, terms.max(others)) }
    }

    /// Whether a side brings elements one by one, for each of which a term or a column is divided into channel and taps, in
    /// stages of so many terms.
    pub fn is_divided(&self, which: Which, step: i64) -> bool {
        matches!(&self.form, Form::Conv(image) if image.is_divided(which, step))
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
            Form::Conv(image) if image.maps(which) => return None,
            Form::Conv(image) => image.side(scope, which, &batch[0], at, sum),
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
        let (id, index, inside) = match &self.form {
            Form::Dot(dot) => {
                let (id, labels, free) = dot.side(which);
                (id, dot.index(labels, &[(&dot.batch, batch), (free, at), (&dot.sums, sum)]), inside)
            }
            Form::Conv(image) => {
                let (id, index, place) = image.side(scope, which, &batch[0], at, sum);
                let inside = both(inside, place);
                if image.maps(which) {
                    return image.mapped(scope, &index, inside);
                }
                (id, index, inside)
            }
        };
        element(scope, id, &index, inside)
    }

    /// The axis of the result that the last column is along.
    pub fn column_axis(&self, scope: &Scope) -> Option<usize> {
        match &self.form {
            Form::Dot(dot) => dot.columns.last().and_then(|label| dot.out.axis(*label)),
            Form::Conv(image) => Some(image.column_axis(scope.graph.tensor_type(self.id).shape.rank())),
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
            Form::Conv(image) => image.operand(which),
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

    /// Indices of the result.
    pub fn result(&self, batch: &[Expr], row: &[Expr], column: &[Expr]) -> Index {
        match &self.form {
            Form::Dot(dot) => dot.index(&dot.out, &[(&dot.batch, batch), (&dot.rows, row), (&dot.columns, column)]),
            Form::Conv(image) => image.result(&batch[0], row, column),
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
