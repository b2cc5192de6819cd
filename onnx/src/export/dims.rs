//! Sizes as values of the model: arithmetic on the shapes of inputs, which an importer does when it reads the model.

use std::collections::HashMap;

use egret_ir::{AtomKind, DType, Diagnostic, Dim, Shape, TensorType};

use super::{Arg, Export};
use crate::export::writer::{flag, int};

/// Where an extent can be read: `extent = factor·size + offset` of axis `axis` of the value.
#[derive(Clone)]
struct Place {
    value: String,
    axis: usize,
    factor: i64,
    offset: i64,
}

/// Where the sizes of a graph can be read.
pub(super) struct Sizes {
    symbols: HashMap<String, Place>,
    fresh: HashMap<u32, Place>,
}

/// Symbol, factor and offset of an extent that is linear in one symbol.
fn linear(dim: &Dim) -> Option<(String, i64, i64)> {
    let (mut symbol, mut offset) = (None, 0);
    for (coefficient, atoms) in dim.polynomial() {
        match atoms.as_slice() {
            [] => offset = coefficient,
            [AtomKind::Symbol { name, .. }] if symbol.is_none() && coefficient > 0 => {
                symbol = Some((name.to_string(), coefficient));
            }
            _ => return None,
        }
    }
    symbol.map(|(name, factor)| (name, factor, offset))
}

impl Sizes {
    /// The symbols in the extents of these inputs.
    pub(super) fn of(inputs: &[(String, TensorType)]) -> Sizes {
        let mut symbols: HashMap<String, Place> = HashMap::new();
        for (value, ty) in inputs {
            for (axis, dim) in ty.shape.iter().enumerate() {
                let Some((name, factor, offset)) = linear(dim) else { continue };
                let plain = |place: &Place| place.factor == 1 && place.offset == 0;
                let place = Place { value: value.clone(), axis, factor, offset };
                match symbols.get(&name) {
                    Some(have) if plain(have) || !plain(&place) => {}
                    _ => _ = symbols.insert(name, place),
                }
            }
        }
        Sizes { symbols, fresh: HashMap::new() }
    }

    /// Notes the data-dependent sizes that a value shows.
    pub(super) fn found(&mut self, value: &str, ty: &TensorType) {
        for (axis, dim) in ty.shape.iter().enumerate() {
            if let Some((id, _)) = dim.as_fresh() {
                let place = || Place { value: value.to_string(), axis, factor: 1, offset: 0 };
                self.fresh.entry(id).or_insert_with(place);
            }
        }
    }
}

impl Export<'_> {
    /// A size as an i64 vector of one element.
    pub(super) fn size(&mut self, dim: &Dim) -> Result<String, Diagnostic> {
        if let Some(value) = dim.as_const() {
            return Ok(self.w.ints(&[value]));
        }
        if let Some(known) = self.w.known_size(dim) {
            return Ok(known);
        }
        let terms = dim.polynomial();
        let name = match terms.as_slice() {
            [(1, atoms)] if atoms.len() == 1 => self.atom(&atoms[0])?,
            _ => self.sum(&terms)?,
        };
        self.w.note_size(dim, &name);
        Ok(name)
    }

    /// A size as an i64 scalar.
    pub(super) fn scalar_size(&mut self, dim: &Dim) -> Result<String, Diagnostic> {
        if let Some(value) = dim.as_const() {
            return Ok(self.w.int(value));
        }
        let (size, axis) = (self.size(dim)?, self.w.ints(&[0]));
        Ok(self.w.op("Squeeze", &[&size, &axis]))
    }

    /// Sizes as one i64 vector.
    pub(super) fn sizes(&mut self, dims: &[Dim]) -> Result<String, Diagnostic> {
        let known: Option<Vec<i64>> = dims.iter().map(Dim::as_const).collect();
        if let Some(known) = known {
            return Ok(self.w.ints(&known));
        }
        let mut parts = Vec::new();
        let mut rest = dims;
        while let Some(first) = rest.first() {
            let run: Vec<i64> = rest.iter().map_while(Dim::as_const).collect();
            let taken = run.len().max(1);
            parts.push(if run.is_empty() { self.size(first)? } else { self.w.ints(&run) });
            rest = &rest[taken..];
        }
        if let [only] = parts.as_slice() {
            return Ok(only.clone());
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Ok(self.w.op_with("Concat", &parts, vec![int("axis", 0)]))
    }

    /// What is added first, what is subtracted then: no size on the way is below 0 that need not be.
    fn sum(&mut self, terms: &[(i64, Vec<AtomKind>)]) -> Result<String, Diagnostic> {
        let mut total: Option<String> = None;
        for positive in [true, false] {
            for (coefficient, atoms) in terms.iter().filter(|(c, _)| (*c > 0) == positive) {
                let size = coefficient.saturating_abs();
                let mut product = if size == 1 && !atoms.is_empty() { None } else { Some(self.w.ints(&[size])) };
                for atom in atoms {
                    let factor = self.size(&whole(atom))?;
                    product = Some(match product {
                        Some(product) => self.w.op("Mul", &[&product, &factor]),
                        None => factor,
                    });
                }
                let Some(product) = product else { continue };
                total = Some(match total {
                    Some(total) => self.w.op(if positive { "Add" } else { "Sub" }, &[&total, &product]),
                    None if positive => product,
                    None => {
                        let zero = self.w.ints(&[0]);
                        self.w.op("Sub", &[&zero, &product])
                    }
                });
            }
        }
        Ok(total.unwrap_or_else(|| self.w.ints(&[0])))
    }

    fn atom(&mut self, atom: &AtomKind) -> Result<String, Diagnostic> {
        match atom {
            AtomKind::Symbol { name, .. } => {
                let place = self.sizes.symbols.get(&**name).cloned();
                let place = place
                    .ok_or_else(|| self.refuse(&format!("no input has an extent from which `{name}` can be read")))?;
                Ok(self.place(&place))
            }
            AtomKind::Fresh { id, .. } => {
                let place = self.sizes.fresh.get(id).cloned();
                let place = place.ok_or_else(|| self.refuse("it reads a size before it is found"))?;
                Ok(self.place(&place))
            }
            AtomKind::FloorDiv(a, b) => {
                // ONNX truncates: a multiple of the divisor keeps the dividend from being negative
                let (low, _) = a.range();
                let raised = match (b.as_const(), low) {
                    (_, 0..) => 0,
                    (Some(by), i64::MIN..) if by > 0 && low > -(1 << 40) => (-low).div_euclid(by) + 1,
                    _ => return Err(self.refuse(&format!("the size `{}` may be negative", whole(atom)))),
                };
                let by = self.size(b)?;
                let a = self.size(&(a.clone() + b.clone() * Dim::from(raised)))?;
                let quotient = self.w.op("Div", &[&a, &by]);
                if raised == 0 {
                    return Ok(quotient);
                }
                let raised = self.w.ints(&[raised]);
                Ok(self.w.op("Sub", &[&quotient, &raised]))
            }
            AtomKind::Mod(a, b) => self.pair("Mod", a, b),
            AtomKind::Min(a, b) => self.pair("Min", a, b),
            AtomKind::Max(a, b) => self.pair("Max", a, b),
        }
    }

    fn pair(&mut self, op: &str, a: &Dim, b: &Dim) -> Result<String, Diagnostic> {
        let (a, b) = (self.size(a)?, self.size(b)?);
        Ok(self.w.op(op, &[&a, &b]))
    }

    fn place(&mut self, place: &Place) -> String {
        let (start, end) = (int("start", place.axis as i64), int("end", place.axis as i64 + 1));
        let mut size = self.w.op_with("Shape", &[&place.value], vec![start, end]);
        if place.offset != 0 {
            let offset = self.w.ints(&[place.offset]);
            size = self.w.op("Sub", &[&size, &offset]);
        }
        if place.factor != 1 {
            let factor = self.w.ints(&[place.factor]);
            size = self.w.op("Div", &[&size, &factor]);
        }
        size
    }

    /// A value in another shape of as many elements.
    pub(super) fn reshape(&mut self, x: &str, shape: &Shape) -> Result<String, Diagnostic> {
        let open: Vec<usize> = (0..shape.rank()).filter(|axis| shape[*axis].as_const().is_none()).collect();
        let empty = shape.iter().any(|dim| dim.is(0));
        if let ([axis], false) = (open.as_slice(), empty) {
            // the one extent that is open follows from the others
            let extents: Vec<i64> =
                (0..shape.rank()).map(|i| if i == *axis { -1 } else { shape[i].as_const().unwrap_or(1) }).collect();
            let extents = self.w.ints(&extents);
            return Ok(self.w.op("Reshape", &[x, &extents]));
        }
        let extents = self.sizes(shape)?;
        let zero = shape.iter().any(|dim| dim.range().0 <= 0);
        let attributes = if zero { vec![flag("allowzero", true)] } else { Vec::new() };
        Ok(self.w.op_with("Reshape", &[x, &extents], attributes))
    }

    /// A value broadcast to a shape.
    pub(super) fn expand(&mut self, x: &str, shape: &Shape) -> Result<String, Diagnostic> {
        let extents = self.sizes(shape)?;
        Ok(self.w.op("Expand", &[x, &extents]))
    }

    /// `0, 1, …` below a size, as i64 `[size, 1, …]` with `after` extents of 1.
    pub(super) fn counter(&mut self, size: &Dim, after: usize) -> Result<String, Diagnostic> {
        let (zero, end, one) = (self.w.int(0), self.scalar_size(size)?, self.w.int(1));
        let line = self.w.op("Range", &[&zero, &end, &one]);
        if after == 0 {
            return Ok(line);
        }
        let mut extents = vec![-1];
        extents.resize(after + 1, 1);
        let extents = self.w.ints(&extents);
        Ok(self.w.op("Reshape", &[&line, &extents]))
    }

    /// Indices along an axis.
    pub(super) fn iota(&mut self, iota: &egret_ir::ops::Iota, y: &TensorType) -> Result<String, Diagnostic> {
        let rank = y.shape.rank();
        let line = self.counter(&y.shape[iota.axis], rank - 1 - iota.axis)?;
        let line = if y.dtype == DType::I64 { line } else { self.w.cast(&line, y.dtype) };
        if rank == 1 { Ok(line) } else { self.expand(&line, &y.shape) }
    }

    /// An operand as i64.
    pub(super) fn as_i64(&mut self, x: &Arg) -> String {
        if x.ty.dtype == DType::I64 { x.name.to_string() } else { self.w.cast(x.name, DType::I64) }
    }
}

/// The size that an atom is.
fn whole(atom: &AtomKind) -> Dim {
    match atom {
        AtomKind::Symbol { name, min, max } => Dim::symbol_in(name, *min, *max),
        AtomKind::FloorDiv(a, b) => a.floor_div(b),
        AtomKind::Mod(a, b) => a.modulo(b),
        AtomKind::Min(a, b) => a.minimum(b),
        AtomKind::Max(a, b) => a.maximum(b),
        AtomKind::Fresh { id, bound } => Dim::fresh(*id, bound.clone()),
    }
}
