//! The element of a value at indices: maps and movement become arithmetic, stored values become loads.

use egret_ir::ops::Places;
use egret_ir::{DType, Dim, NodeId, Op, ScalarExpr};
use smallvec::SmallVec;

use super::scalar;
use super::scope::{Scope, value_of};
use super::view::matching_runs;
use crate::kernel::Expr;

impl Scope<'_> {
    /// The element of `id` at `index`, one expression an axis.
    pub fn element(&mut self, id: NodeId, index: &[Expr]) -> Expr {
        if let Some(known) = self.remembered(id, index) {
            return known;
        }
        let value = value_of(self.graph, id);
        let in_memory = self.stored.layout(value).is_some() && !self.own.contains(&id);
        let result = if in_memory { self.load(value, index) } else { self.computed(id, index) };
        let trivial = matches!(result, Expr::Var(_) | Expr::Literal(_) | Expr::Dim(_));
        let result = if !trivial && self.uses(id) > 1 { self.k.bind(result) } else { result };
        self.remember(id, index, &result);
        result
    }

    /// The element of a value that the kernel under construction writes: computed, though it is stored.
    pub fn element_of_root(&mut self, id: NodeId, index: &[Expr]) -> Expr {
        match self.remembered(id, index) {
            Some(known) => known,
            None => self.computed(id, index),
        }
    }

    /// Indices of an operand that broadcasts to a result with these indices.
    pub fn broadcast_index(&self, operand: NodeId, index: &[Expr]) -> SmallVec<[Expr; 6]> {
        let shape = &self.graph.tensor_type(operand).shape;
        let lead = index.len() - shape.rank();
        let at = |(axis, dim): (usize, &Dim)| if dim.is(1) { Expr::int(0) } else { index[lead + axis].clone() };
        shape.iter().enumerate().map(at).collect()
    }

    fn computed(&mut self, id: NodeId, index: &[Expr]) -> Expr {
        let graph = self.graph;
        let node = graph.node(id);
        let ty = graph.tensor_type(id);
        match &node.op {
            Op::Const(constant) => scalar::literal(egret_ir::Literal::new(constant.value.get(0), ty.dtype)),
            Op::Iota(iota) => index[iota.axis].clone().cast(ty.dtype),
            Op::Pointwise(pointwise) => {
                let args: SmallVec<[Expr; 3]> = node
                    .operands
                    .iter()
                    .map(|operand| {
                        let index = self.broadcast_index(*operand, index);
                        self.element(*operand, &index)
                    })
                    .collect();
                let dtypes: SmallVec<[DType; 3]> = node.operands.iter().map(|o| graph.tensor_type(*o).dtype).collect();
                let program = ScalarExpr::apply(pointwise.f, (0..args.len()).map(ScalarExpr::arg), ty.dtype);
                self.program(&program, &args, &dtypes)
            }
            Op::Cast(cast) => self.element(node.operands[0], index).cast(cast.dtype),
            Op::StopGradient(_) | Op::Recompute(_) => self.element(node.operands[0], index),
            Op::Broadcast(_) => {
                let index = self.broadcast_index(node.operands[0], index);
                self.element(node.operands[0], &index)
            }
            Op::Transpose(transpose) => {
                let mut inner: SmallVec<[Expr; 6]> = SmallVec::from_elem(Expr::int(0), index.len());
                for (axis, source) in transpose.permutation.iter().enumerate() {
                    inner[*source] = index[axis].clone();
                }
                self.element(node.operands[0], &inner)
            }
            Op::Slice(slice) => {
                let mut inner: SmallVec<[Expr; 6]> = SmallVec::new();
                for (axis, at) in index.iter().enumerate() {
                    let start = self.dim(&slice.start[axis]);
                    let step = slice.step[axis];
                    let scaled = if step == 1 { at.clone() } else { at.clone() * Expr::int(step) };
                    inner.push(if start.as_int() == Some(0) { scaled } else { scaled + start });
                }
                self.element(node.operands[0], &inner)
            }
            Op::Reverse(reverse) => {
                let mut inner: SmallVec<[Expr; 6]> = index.iter().cloned().collect();
                for axis in &reverse.axes {
                    let last = self.dim(&(ty.shape[*axis].clone() - Dim::ONE));
                    inner[*axis] = last - index[*axis].clone();
                }
                self.element(node.operands[0], &inner)
            }
            Op::Reshape(_) => {
                let inner = self.reshaped_index(node.operands[0], id, index);
                self.element(node.operands[0], &inner)
            }
            Op::Pad(pad) => self.padded(id, pad, index),
            Op::Concat(concat) => self.concatenated(id, concat.axis, index),
            Op::Gather(gather) => self.gathered(id, gather.places, index),
            Op::Generate(generate) => self.generated(id, generate, index),
            other => {
                // partition stores every other operator
                debug_assert!(false, "{} is not computed in place", other.home().name());
                Expr::constant(ty.dtype, 0.0)
            }
        }
    }

    /// A scalar program of kernel expressions.
    pub fn program(&mut self, program: &ScalarExpr, args: &[Expr], dtypes: &[DType]) -> Expr {
        let program = program.expand(dtypes);
        scalar::program(self, &program, args, dtypes)
    }

    fn reshaped_index(&mut self, from: NodeId, to: NodeId, index: &[Expr]) -> SmallVec<[Expr; 6]> {
        let graph = self.graph;
        let (source, target) = (&graph.tensor_type(from).shape, &graph.tensor_type(to).shape);
        let Some(runs) = matching_runs(source, target) else {
            // products that cannot be compared: through the flat index
            let flat = self.flatten(index, target);
            return self.unflatten(flat, source);
        };
        let mut inner: SmallVec<[Expr; 6]> = SmallVec::from_elem(Expr::int(0), source.rank());
        for (axes, targets) in runs {
            let extents: SmallVec<[Dim; 6]> = source[axes.clone()].iter().cloned().collect();
            let wide: SmallVec<[usize; 6]> = axes.clone().filter(|a| !source[*a].is(1)).collect();
            let flat = self.flatten(&index[targets.clone()], &target[targets]);
            if let [only] = wide.as_slice() {
                inner[*only] = flat;
            } else if !wide.is_empty() {
                let flat = self.k.bind(flat);
                for (axis, at) in axes.zip(self.unflatten(flat, &extents)) {
                    inner[axis] = at;
                }
            }
        }
        inner
    }

    fn flatten(&mut self, index: &[Expr], extents: &[Dim]) -> Expr {
        let mut flat: Option<Expr> = None;
        for (at, extent) in index.iter().zip(extents) {
            if extent.is(1) {
                continue;
            }
            flat = Some(match flat {
                None => at.clone(),
                Some(outer) => {
                    let extent = self.dim(extent);
                    outer * extent + at.clone()
                }
            });
        }
        flat.unwrap_or(Expr::int(0))
    }

    fn padded(&mut self, id: NodeId, pad: &egret_ir::ops::Pad, index: &[Expr]) -> Expr {
        let graph = self.graph;
        let operand = graph.node(id).operands[0];
        let shape = graph.tensor_type(operand).shape.clone();
        let mut inside: Option<Expr> = None;
        let mut also = |condition: Expr| {
            inside = Some(match inside.take() {
                Some(all) => all.and(condition),
                None => condition,
            });
        };
        let mut inner: SmallVec<[Expr; 6]> = SmallVec::new();
        for (axis, at) in index.iter().enumerate() {
            let gap = pad.interior[axis] + 1;
            if pad.low[axis].is(0) && pad.high[axis].is(0) && gap == 1 {
                inner.push(at.clone());
                continue;
            }
            let low = self.dim(&pad.low[axis]);
            let extent = self.dim(&shape[axis]);
            let shifted = self.k.bind(at.clone() - low);
            let source = if gap == 1 { shifted.clone() } else { self.k.bind(shifted.clone() / Expr::int(gap)) };
            also(shifted.greater_equal(Expr::int(0)));
            also(source.less(extent));
            if gap > 1 {
                also((shifted % Expr::int(gap)).equal(Expr::int(0)));
            }
            inner.push(source);
        }
        let value = scalar::literal(pad.value);
        match inside {
            None => self.element(operand, &inner),
            Some(condition) => {
                let condition = self.k.bind(condition);
                let inside = self.masked(condition.clone(), |s| s.element(operand, &inner));
                condition.select(inside, value)
            }
        }
    }

    fn concatenated(&mut self, id: NodeId, axis: usize, index: &[Expr]) -> Expr {
        if axis == 1
            && let Some(value) = self.block_of_channels(id, index)
        {
            return value;
        }
        let operands = self.graph.node(id).operands.clone();
        let mut offset = Dim::ZERO;
        let mut parts: Vec<(Expr, Expr)> = Vec::new();
        for operand in &operands {
            let extent = self.graph.tensor_type(*operand).shape[axis].clone();
            let start = self.dim(&offset);
            offset = offset + extent;
            let end = self.dim(&offset);
            let at = self.k.bind(index[axis].clone() - start.clone());
            let condition = index[axis].greater_equal(start).and(index[axis].less(end));
            let condition = self.k.bind(condition);
            let mut inner: SmallVec<[Expr; 6]> = index.iter().cloned().collect();
            inner[axis] = at;
            let value = self.masked(condition.clone(), |s| s.element(*operand, &inner));
            parts.push((condition, value));
        }
        let dtype = self.graph.tensor_type(id).dtype;
        parts
            .into_iter()
            .rev()
            .fold(Expr::constant(dtype, 0.0), |rest, (condition, value)| condition.select(value, rest))
    }

    /// An element of a concatenation of channels where a loop runs over the lanes of a block, and every part begins with a
    /// block: all lanes are of one part, and only that is read.
    fn block_of_channels(&mut self, id: NodeId, index: &[Expr]) -> Option<Expr> {
        let (block, lane) = self.noted_split(&index[1])?;
        let (lanes, graph) = (self.stored.lanes(), self.graph);
        let mut bounds: SmallVec<[i64; 8]> = smallvec::smallvec![0];
        for operand in &graph.node(id).operands {
            let extent = graph.tensor_type(*operand).shape[1].as_const()?;
            bounds.push(bounds.last()? + extent);
        }
        let begins = &bounds[..bounds.len() - 1];
        if begins.iter().any(|begin| begin % lanes != 0) {
            return None;
        }
        let total = self.k.variable(Expr::constant(graph.tensor_type(id).dtype, 0.0));
        for (operand, bound) in graph.node(id).operands.iter().zip(bounds.windows(2)) {
            let (first, end) = (bound[0] / lanes, (bound[1] + lanes - 1) / lanes);
            let inside = block.greater_equal(Expr::int(first)).and(block.less(Expr::int(end)));
            let own = block.clone() - Expr::int(first);
            let mut inner: SmallVec<[Expr; 6]> = index.iter().cloned().collect();
            inner[1] = own.clone() * Expr::int(lanes) + lane.clone();
            self.note_split(inner[1].clone(), own, lane.clone());
            self.if_(inside, |scope| {
                let value = scope.element(*operand, &inner);
                scope.k.assign(total, value);
            });
        }
        Some(Expr::Var(total))
    }

    fn gathered(&mut self, id: NodeId, places: Places, index: &[Expr]) -> Expr {
        let graph = self.graph;
        let (x, indices) = (graph.node(id).operands[0], graph.node(id).operands[1]);
        let rank = graph.tensor_type(indices).shape.rank();
        let mut inner: SmallVec<[Expr; 6]> = SmallVec::new();
        match places {
            Places::Rows { axis } => {
                inner.extend(index[..axis].iter().cloned());
                inner.push(self.chosen(x, indices, &index[axis..axis + rank], axis));
                inner.extend(index[axis + rank..].iter().cloned());
            }
            Places::Elements { axis } => {
                inner.extend(index.iter().cloned());
                inner[axis] = self.chosen(x, indices, index, axis);
            }
            Places::Tuples { batch } => {
                let width = Places::width(graph.tensor_type(indices)).unwrap_or(0);
                inner.extend(index[..batch].iter().cloned());
                for i in 0..width {
                    let mut at: SmallVec<[Expr; 6]> = index[..rank - 1].iter().cloned().collect();
                    at.push(Expr::int(i as i64));
                    inner.push(self.chosen(x, indices, &at, batch + i));
                }
                inner.extend(index[rank - 1..].iter().cloned());
            }
        }
        self.checked_element(x, &inner)
    }

    /// The place on `axis` of `x` that an index names; a place outside is reported, and the nearest one taken.
    fn chosen(&mut self, x: NodeId, indices: NodeId, at: &[Expr], axis: usize) -> Expr {
        let chosen = self.element(indices, at).cast(DType::I64);
        let chosen = self.k.bind(chosen);
        let extent = self.graph.tensor_type(x).shape[axis].clone();
        let end = self.dim(&extent);
        let outside = chosen.less(Expr::int(0)).or(chosen.greater_equal(end));
        self.fault_if(outside, format!("an index along axis {axis} is outside 0..{extent}"));
        self.within(chosen, &extent)
    }
}
