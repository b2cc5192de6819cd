//! Operators that move elements.

use egret_ir::ops::{Pad, Slice};
use egret_ir::{Diagnostic, Dim, Shape};

use super::{Arg, Export};
use crate::export::writer::int;

impl Export<'_> {
    pub(super) fn slice(&mut self, slice: &Slice, x: &Arg) -> Result<String, Diagnostic> {
        let whole = |axis: &usize| {
            slice.start[*axis].is(0) && slice.limit[*axis] == x.ty.shape[*axis] && slice.step[*axis] == 1
        };
        let axes: Vec<usize> = (0..x.ty.shape.rank()).filter(|axis| !whole(axis)).collect();
        let of = |dims: &[Dim]| axes.iter().map(|axis| dims[*axis].clone()).collect::<Vec<Dim>>();
        let steps: Vec<i64> = axes.iter().map(|axis| slice.step[*axis]).collect();
        self.cut(x.name, &axes, &of(&slice.start), &of(&slice.limit), &steps)
    }

    /// Elements of some axes.
    fn cut(&mut self, x: &str, axes: &[usize], from: &[Dim], to: &[Dim], by: &[i64]) -> Result<String, Diagnostic> {
        if axes.is_empty() {
            return Ok(x.to_string());
        }
        let (start, end) = (self.sizes(from)?, self.sizes(to)?);
        let axes: Vec<i64> = axes.iter().map(|axis| *axis as i64).collect();
        let (axes, step) = (self.w.ints(&axes), self.w.ints(by));
        Ok(self.w.op("Slice", &[x, &start, &end, &axes, &step]))
    }

    pub(super) fn pad(&mut self, pad: &Pad, x: &Arg) -> Result<String, Diagnostic> {
        let shape = &x.ty.shape;
        let value = self.w.literal(pad.value);
        let mut name = x.name.to_string();
        let spread: Vec<usize> = (0..shape.rank()).filter(|axis| pad.interior[*axis] > 0).collect();
        if !spread.is_empty() {
            // each element in a line of its own that is padded; what follows the last is cut off
            let apart: Shape = shape.iter().flat_map(|dim| [dim.clone(), Dim::ONE]).collect();
            name = self.reshape(&name, &apart)?;
            let after = pad.interior.iter().flat_map(|gap| [0, *gap]);
            let pads: Vec<i64> = std::iter::repeat_n(0, 2 * shape.rank()).chain(after).collect();
            let pads = self.w.ints(&pads);
            name = self.w.op("Pad", &[&name, &pads, &value]);
            let wide = |axis: usize| shape[axis].clone() * Dim::from(pad.interior[axis] + 1);
            name = self.reshape(&name, &(0..shape.rank()).map(wide).collect())?;
            let ends: Vec<Dim> =
                spread.iter().map(|axis| (wide(*axis) - Dim::from(pad.interior[*axis])).maximum(&Dim::ZERO)).collect();
            let ones = vec![1; spread.len()];
            name = self.cut(&name, &spread, &vec![Dim::ZERO; spread.len()], &ends, &ones)?;
        }
        if pad.low.iter().chain(&pad.high).all(|dim| dim.is(0)) {
            return Ok(name);
        }
        let pads: Vec<Dim> = pad.low.iter().chain(&pad.high).cloned().collect();
        let pads = self.sizes(&pads)?;
        Ok(self.w.op("Pad", &[&name, &pads, &value]))
    }

    pub(super) fn concat(&mut self, axis: usize, x: &[Arg]) -> String {
        let parts: Vec<&str> = x.iter().map(|part| part.name).collect();
        self.w.op_with("Concat", &parts, vec![int("axis", axis as i64)])
    }
}
