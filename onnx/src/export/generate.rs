//! `generate`: the program of an element, as arithmetic on whole tensors.
//!
//! Each value of the program is a tensor that varies along the axes that it depends on and is 1 along the others. An
//! index of the result varies along its own axis; the counter of an inner loop along one more, before all others, which
//! the loop's reduction removes. A load is a look-up at a tensor of places.

use std::collections::HashMap;

use egret_ir::ops::{Block, Generate, InnerKind, Outside, ReduceKind, Step};
use egret_ir::{DType, Diagnostic, Dim, ExprKind, Literal, ScalarExpr, Shape};

use super::reduce::{greatest, least};
use super::scalar::{Known, Term};
use super::{Arg, Export};
use crate::export::writer::int;

/// A program while it is written.
struct Element<'a, 'b, 'g> {
    e: &'a mut Export<'g>,
    operands: &'a [Arg<'b>],
    shape: &'a Shape,
    /// Values by number.
    terms: Vec<Term>,
    /// Bounds of indices and counters, by number.
    extents: HashMap<usize, Dim>,
    known: Known,
    /// Loops around the step that is written.
    depth: usize,
    /// Where the loops around it have not yet ended, as far as values tell that.
    active: Option<Term>,
}

impl Export<'_> {
    pub(super) fn generate(&mut self, op: &Generate, x: &[Arg]) -> Result<String, Diagnostic> {
        self.element_program(&op.body, &op.ty.shape, x)
    }

    /// The tensor of that shape whose elements a program makes.
    pub(super) fn element_program(&mut self, body: &Block, shape: &Shape, x: &[Arg]) -> Result<String, Diagnostic> {
        let rank = shape.rank();
        let mut terms = Vec::with_capacity(rank);
        for (axis, dim) in shape.iter().enumerate() {
            let name = self.counter(dim, rank - 1 - axis)?;
            terms.push(Term { name, dtype: DType::I64, axes: 1 << axis });
        }
        let extents = shape.iter().cloned().enumerate().collect();
        let (known, depth, active) = (Known::new(), 0, None);
        let mut element = Element { e: self, operands: x, shape, terms, extents, known, depth, active };
        let result = element.block(body)?;
        let every = (1u64 << rank) - 1;
        if result.axes & every == every { Ok(result.name) } else { self.expand(&result.name, shape) }
    }
}

impl Element<'_, '_, '_> {
    fn block(&mut self, block: &Block) -> Result<Term, Diagnostic> {
        for step in block.steps.iter() {
            let term = match step {
                Step::Dim(dim) => Term { name: self.e.scalar_size(dim)?, dtype: DType::I64, axes: 0 },
                Step::Let(e) => self.value(e)?,
                Step::Load { operand, index, outside } => self.load(*operand, index, *outside)?,
                Step::Reduce { kind, extent, count, body } => self.inner(*kind, extent, count.as_ref(), body)?,
            };
            self.terms.push(term);
        }
        self.value(&block.result)
    }

    fn value(&mut self, e: &ScalarExpr) -> Result<Term, Diagnostic> {
        self.e.program(e, &self.terms, &mut self.known)
    }

    /// An operator on values.
    fn op(&mut self, op: &str, terms: &[&Term], dtype: DType) -> Term {
        let names: Vec<&str> = terms.iter().map(|term| term.name.as_str()).collect();
        let axes = terms.iter().fold(0, |axes, term| axes | term.axes);
        Term { name: self.e.w.op(op, &names), dtype, axes }
    }

    fn literal(&mut self, value: Literal) -> Term {
        Term { name: self.e.w.literal(value), dtype: value.dtype, axes: 0 }
    }

    fn size(&mut self, dim: &Dim) -> Result<Term, Diagnostic> {
        Ok(Term { name: self.e.scalar_size(dim)?, dtype: DType::I64, axes: 0 })
    }

    fn both(&mut self, a: Option<Term>, b: Term) -> Term {
        match a {
            Some(a) => self.op("And", &[&a, &b], DType::Bool),
            None => b,
        }
    }

    fn inner(
        &mut self,
        kind: InnerKind,
        extent: &Dim,
        count: Option<&ScalarExpr>,
        body: &Block,
    ) -> Result<Term, Diagnostic> {
        let (rank, depth) = (self.shape.rank(), self.depth);
        if rank + depth >= 63 {
            return Err(self.e.refuse("it has too many axes"));
        }
        let axis = 1 << (rank + depth);
        let trips = match count {
            Some(count) => Some(self.value(count)?),
            None => None,
        };
        let name = self.e.counter(extent, rank + depth)?;
        let counter = Term { name, dtype: DType::I64, axes: axis };
        self.extents.insert(self.terms.len(), extent.clone());
        self.terms.push(counter.clone());
        let around = self.active.clone();
        let runs = trips.map(|trips| self.op("Less", &[&counter, &trips], DType::Bool));
        if let Some(runs) = runs.clone() {
            self.active = Some(self.both(around.clone(), runs));
        }
        self.depth = depth + 1;
        let mut value = self.block(body)?;
        self.depth = depth;
        self.active = around;
        let dtype = value.dtype;
        let (reduction, nothing) = match kind {
            InnerKind::Sum => (ReduceKind::Sum, egret_ir::ScalarValue::Int(0)),
            InnerKind::Max => (ReduceKind::Max, least(dtype)),
            InnerKind::Min => (ReduceKind::Min, greatest(dtype)),
        };
        if let Some(runs) = runs {
            let nothing = self.literal(Literal::new(nothing, dtype));
            value = self.op("Where", &[&runs, &value, &nothing], dtype);
        }
        // the axis of the counter comes first, whatever the value depends on
        let full: Shape = std::iter::once(extent.clone()).chain(vec![Dim::ONE; rank + depth]).collect();
        let wide = self.e.expand(&value.name, &full)?;
        let name = self.e.reduce(reduction, &wide, dtype, &[0], false);
        Ok(Term { name, dtype, axes: value.axes & !axis })
    }

    /// Whether an index is one of the result, or a counter, that ends where an axis does.
    fn is_inside(&self, e: &ScalarExpr, extent: &Dim) -> bool {
        match e.kind() {
            ExprKind::Arg(i) => self.extents.get(&usize::from(*i)) == Some(extent),
            ExprKind::Const(literal) => {
                let at = literal.value().as_int();
                at >= 0 && at < i128::from(extent.range().0)
            }
            _ => false,
        }
    }

    fn load(&mut self, operand: usize, index: &[ScalarExpr], outside: Outside) -> Result<Term, Diagnostic> {
        let operands = self.operands;
        let Some(x) = operands.get(operand) else { return Err(self.e.refuse("it loads no operand")) };
        let (dtype, shape) = (x.ty.dtype, &x.ty.shape);
        let whole = |name: &str, axes| Term { name: name.to_string(), dtype, axes };
        if index.is_empty() {
            return Ok(whole(x.name, 0));
        }
        let zero = self.literal(Literal::int(0, DType::I64));
        let mut inside: Option<Term> = None;
        let mut places = Vec::with_capacity(index.len());
        for (e, extent) in index.iter().zip(shape.iter()) {
            let mut at = self.value(e)?;
            if !self.is_inside(e, extent) {
                let size = self.size(extent)?;
                if outside == Outside::Clamp {
                    let last = self.size(&(extent.clone() - Dim::ONE))?;
                    at = self.op("Max", &[&at, &zero], DType::I64);
                    at = self.op("Min", &[&at, &last], DType::I64);
                } else {
                    let above = self.op("GreaterOrEqual", &[&at, &zero], DType::Bool);
                    let below = self.op("Less", &[&at, &size], DType::Bool);
                    let here = self.op("And", &[&above, &below], DType::Bool);
                    at = self.op("Where", &[&here, &at, &zero], DType::I64);
                    inside = Some(self.both(inside, here));
                }
            }
            places.push(at);
        }
        let fails = outside == Outside::Fault && inside.is_some();
        let aligned =
            index.len() == self.shape.rank() && places.iter().enumerate().all(|(axis, at)| at.axes & !(1 << axis) == 0);
        let mut value = match aligned && !fails {
            true => self.along_axes(x, index, &places),
            false => {
                let fault = inside.clone().filter(|_| fails);
                self.at_offsets(x, places, fault)?
            }
        };
        if let (Outside::Fill(fill), Some(inside)) = (outside, inside) {
            let fill = self.literal(fill);
            value = self.op("Where", &[&inside, &value, &fill], dtype);
        }
        Ok(value)
    }

    /// Elements at places that vary along their own axes: one look-up an axis.
    fn along_axes(&mut self, x: &Arg, index: &[ScalarExpr], places: &[Term]) -> Term {
        let mut name = x.name.to_string();
        let mut axes = 0;
        for (axis, (e, at)) in index.iter().zip(places).enumerate() {
            axes |= at.axes;
            if e.is_arg(axis) && self.shape[axis] == x.ty.shape[axis] {
                continue;
            }
            let line = self.e.w.ints(&[-1]);
            let line = self.e.w.op("Reshape", &[&at.name, &line]);
            name = self.e.w.op_with("Gather", &[&name, &line], vec![int("axis", axis as i64)]);
        }
        Term { name, dtype: x.ty.dtype, axes }
    }

    /// Elements at any places: one look-up by offset. Where `inside` is false the offset is past the end, so that the run
    /// fails there, but not for trips of a loop that has ended.
    fn at_offsets(&mut self, x: &Arg, places: Vec<Term>, inside: Option<Term>) -> Result<Term, Diagnostic> {
        let mut offset: Option<Term> = None;
        for (at, stride) in places.into_iter().zip(x.ty.shape.strides()) {
            let part = match stride.is(1) {
                true => at,
                false => {
                    let stride = self.size(&stride)?;
                    self.op("Mul", &[&at, &stride], DType::I64)
                }
            };
            offset = Some(match offset {
                Some(offset) => self.op("Add", &[&offset, &part], DType::I64),
                None => part,
            });
        }
        let Some(mut offset) = offset else { return Err(self.e.refuse("it loads no place")) };
        if let Some(inside) = inside {
            let mut end = self.size(&x.ty.shape.elements())?;
            if let Some(active) = self.active.clone() {
                let zero = self.literal(Literal::int(0, DType::I64));
                end = self.op("Where", &[&active, &end, &zero], DType::I64);
            }
            offset = self.op("Where", &[&inside, &offset, &end], DType::I64);
        }
        let line = self.e.w.ints(&[-1]);
        let flat = self.e.w.op("Reshape", &[x.name, &line]);
        let name = self.e.w.op_with("Gather", &[&flat, &offset.name], vec![int("axis", 0)]);
        Ok(Term { name, dtype: x.ty.dtype, axes: offset.axes })
    }
}
