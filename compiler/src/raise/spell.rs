//! Composites that have no kernel on a device, spelled out in operators that have one.
//!
//! Scatters of halves are joined in `f32`, and halves are sorted as `f32`. On GPUs `unique` is sorting and searching; where
//! a device multiplies bytes, zero points may be taken from the sums ([`integer`]). Attention whose labels strides describe has a kernel, on CPUs of `f32`, on GPUs
//! of halves too and up to 256 channels. Halves that have none are attended in `f32` and rounded once, as the operator
//! states; any other form becomes products around a softmax.

mod integer;
pub(crate) mod scaled;
mod unique;

use egret_ir::ops::{
    Attention, AttentionGrad, Broadcast, Cast, DotGeneral, Labels, Pointwise, Proj, Reduce, ReduceKind, Reshape,
    Scatter, ScatterKind, Softmax,
};
use egret_ir::{DType, Diagnostic, ExprKind, Graph, Literal, Node, NodeId, Op, ScalarExpr, ScalarFn, Shape};
use egret_program::DeviceDescription;
use smallvec::SmallVec;

use crate::plan::attention_has_driver;
use crate::rewrite::direct::{self, Builder, Direct};

/// The graph, and those in its loops, with every composite that the device has no kernel for spelled out, and where each
/// node went; `None` when there is none.
///
/// # Errors
/// When what is put in does not fit: a defect.
pub fn spell_out(graph: &Graph, device: &DeviceDescription) -> Result<Option<Direct>, Diagnostic> {
    if !has_spelled(graph, device) {
        return Ok(None);
    }
    let inside = graph.with_regions(&mut |_, _, region| {
        Ok(spell_out(region, device)?.map_or_else(|| region.clone(), |spelled| spelled.graph))
    })?;
    let graph = inside.as_ref().unwrap_or(graph);
    let mut hook = |builder: &mut Builder, id: NodeId| {
        let node = builder.graph().node(id).clone();
        match &node.op {
            Op::Proj(proj) => {
                let of = builder.graph().node(node.operands[0]).clone();
                let mut speller = Speller { builder, device };
                let part = match &of.op {
                    Op::Attention(attention) => speller.attention(attention, &of.operands, proj.index),
                    Op::AttentionGrad(grad) => speller.gradient(&grad.of, &of.operands, proj.index),
                    Op::Unique(unique) if !speller.device.is_cpu() => {
                        speller.unique(unique, of.operands[0], proj.index)
                    }
                    Op::TopK(_) | Op::Unique(_) => speller.selected(&of.op, &of.operands, proj.index),
                    _ => None,
                };
                part.map(|id| (id, "spell-out"))
            }
            // many updates of one place are joined before they are rounded
            Op::Scatter(scatter) if matches!(scatter.kind, ScatterKind::Add | ScatterKind::Mul) => {
                let mut speller = Speller { builder, device };
                speller.scatter(scatter, &node.operands).map(|id| (id, "spell-out"))
            }
            Op::DotGeneral(dot) if is_of_bytes(&node, device) => {
                let mut speller = Speller { builder, device };
                let product = match device.is_cpu() {
                    true => speller.product_by_weights(dot, &node.operands),
                    false => speller.product_of_bytes(dot, &node.operands),
                };
                product.map(|id| (id, "spell-out"))
            }
            Op::Conv(conv) if is_of_bytes(&node, device) => {
                let mut speller = Speller { builder, device };
                let product = match device.is_cpu() {
                    true => speller.convolution_by_weights(conv, &node.operands),
                    false => speller.convolution_of_bytes(conv, &node.operands),
                };
                product.map(|id| (id, "spell-out"))
            }
            _ => None,
        }
    };
    direct::apply(graph, &[], Vec::new(), &mut hook).map(Some)
}

/// Whether a graph, or a region in it, holds what the device has no kernel for.
fn has_spelled(graph: &Graph, device: &DeviceDescription) -> bool {
    let half = |id: NodeId| is_half(graph.tensor_type(id).dtype);
    graph.nodes().iter().any(|node| match &node.op {
        Op::Attention(attention) => !has_driver(graph, device, attention, &node.operands, false),
        Op::AttentionGrad(grad) => !has_driver(graph, device, &grad.of, &node.operands, true),
        Op::Unique(_) => !device.is_cpu() || half(node.operands[0]),
        Op::TopK(_) => half(node.operands[0]),
        Op::DotGeneral(_) | Op::Conv(_) => is_of_bytes(node, device),
        Op::Scatter(scatter) => matches!(scatter.kind, ScatterKind::Add | ScatterKind::Mul) && half(node.operands[0]),
        op => op.home().regions().into_iter().any(|region| has_spelled(region, device)),
    })
}

/// Whether a sum of integers may be one of bytes, which a device multiplies as such.
fn is_of_bytes(node: &Node, device: &DeviceDescription) -> bool {
    (!device.is_cpu() || device.has_bytes()) && node.ty.tensor().is_some_and(|ty| ty.dtype == DType::I32)
}

/// Whether a device has a kernel for an attention of a graph, or its gradient, as it is.
fn has_driver(graph: &Graph, device: &DeviceDescription, of: &Attention, operands: &[NodeId], gradient: bool) -> bool {
    let [q, k, v] = [0, 1, 2].map(|i| graph.tensor_type(operands[i]));
    attention_has_driver(of, [q, k, v], gradient, device)
}

struct Speller<'b> {
    builder: &'b mut Builder,
    device: &'b DeviceDescription,
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// A program of halves as one of `f32`.
pub(crate) fn widened(program: &ScalarExpr) -> ScalarExpr {
    match program.kind() {
        ExprKind::Const(literal) if is_half(literal.dtype) => ScalarExpr::float(literal.as_f64(), DType::F32),
        ExprKind::Arg(_) | ExprKind::Const(_) => program.clone(),
        ExprKind::Cast(dtype, inner) if is_half(*dtype) => widened(inner).cast(*dtype).cast(DType::F32),
        ExprKind::Cast(dtype, inner) => widened(inner).cast(*dtype),
        ExprKind::Apply(f, args) => ScalarExpr::apply(*f, args.iter().map(widened), DType::F32),
    }
}

impl Speller<'_> {
    fn add(&mut self, op: impl Into<Op>, operands: &[NodeId]) -> Option<NodeId> {
        self.builder.add(&op.into(), operands).ok()
    }

    fn dtype(&self, id: NodeId) -> DType {
        self.builder.graph().tensor_type(id).dtype
    }

    /// Whether the device has a kernel for an attention, or its gradient, as it is.
    fn has_driver(&self, attention: &Attention, operands: &[NodeId], gradient: bool) -> bool {
        has_driver(self.builder.graph(), self.device, attention, operands, gradient)
    }

    fn cast(&mut self, id: NodeId, dtype: DType) -> Option<NodeId> {
        if self.dtype(id) == dtype { Some(id) } else { self.add(Cast { dtype }, &[id]) }
    }

    /// The value in another shape, itself if it has that.
    fn reshaped(&mut self, id: NodeId, shape: Shape) -> Option<NodeId> {
        if self.builder.graph().tensor_type(id).shape == shape { Some(id) } else { self.add(Reshape { shape }, &[id]) }
    }

    fn map(&mut self, f: ScalarFn, operands: &[NodeId]) -> Option<NodeId> {
        self.add(Pointwise { f }, operands)
    }

    fn dot(&mut self, (a, la): (NodeId, &Labels), (b, lb): (NodeId, &Labels), out: &Labels) -> Option<NodeId> {
        self.add(DotGeneral::new(la.clone(), lb.clone(), out.clone()), &[a, b])
    }

    /// The values of halves in `f32`; truth values and integers stay.
    fn wide(&mut self, ids: &[NodeId]) -> Option<SmallVec<[NodeId; 8]>> {
        ids.iter().map(|id| if is_half(self.dtype(*id)) { self.cast(*id, DType::F32) } else { Some(*id) }).collect()
    }

    /// A scatter of halves in `f32`.
    fn scatter(&mut self, scatter: &Scatter, operands: &[NodeId]) -> Option<NodeId> {
        let dtype = self.dtype(operands[0]);
        if !is_half(dtype) {
            return None;
        }
        let wide = self.wide(operands)?;
        let sums = self.add(scatter.clone(), &wide)?;
        self.cast(sums, dtype)
    }

    /// A part of what orders halves: their order is that of their `f32` values.
    fn selected(&mut self, op: &Op, operands: &[NodeId], part: usize) -> Option<NodeId> {
        let dtype = self.dtype(operands[0]);
        if !is_half(dtype) {
            return None;
        }
        let wide = self.wide(operands)?;
        let whole = self.add(op.clone(), &wide)?;
        let value = self.add(Proj { index: part }, &[whole])?;
        if part == 0 { self.cast(value, dtype) } else { Some(value) }
    }

    fn attention(&mut self, attention: &Attention, operands: &[NodeId], part: usize) -> Option<NodeId> {
        let dtype = self.dtype(operands[0]);
        if self.has_driver(attention, operands, false) {
            return None;
        }
        if is_half(dtype) {
            let wide = self.wide(operands)?;
            let attention = Attention { score: widened(&attention.score), ..attention.clone() };
            let value = match self.attention(&attention, &wide, part) {
                Some(spelled) => spelled,
                None => {
                    let whole = self.add(attention, &wide)?;
                    self.add(Proj { index: part }, &[whole])?
                }
            };
            // the log-sum-exps are f32 anyhow
            return if part == 0 { self.cast(value, dtype) } else { Some(value) };
        }
        let logits = self.logits(attention, operands[0], operands[1], &operands[3..])?;
        let keys = attention.scores.0.len() - 1;
        if part == 0 {
            let p = self.shares(attention, logits)?;
            return self.dot((p, &attention.scores), (operands[2], &attention.v), &attention.o);
        }
        let (top, _) = self.tops(logits, keys)?;
        let below = self.map(ScalarFn::Sub, &[logits, top])?;
        let exp = self.map(ScalarFn::Exp, &[below])?;
        let sum = self.reduce(ReduceKind::Sum, exp, keys)?;
        let log = self.map(ScalarFn::Log, &[sum])?;
        let lse = self.map(ScalarFn::Add, &[top, log])?;
        let lse = self.cast(lse, DType::F32)?;
        let shape = self.builder.graph().tensor_type(lse).shape[..keys].iter().cloned().collect();
        self.add(Reshape { shape }, &[lse])
    }

    /// With `p` the probabilities: `dv = pᵀ·do`, `dp = do·vᵀ`, `dlogit = p·(dp − Σ p·dp)`, then through the score program.
    fn gradient(&mut self, attention: &Attention, operands: &[NodeId], part: usize) -> Option<NodeId> {
        let dtype = self.dtype(operands[0]);
        if self.has_driver(attention, operands, true) {
            return None;
        }
        if is_half(dtype) {
            let wide = self.wide(operands)?;
            let of = Attention { score: widened(&attention.score), ..attention.clone() };
            let value = match self.gradient(&of, &wide, part) {
                Some(spelled) => spelled,
                None => {
                    let whole = self.add(AttentionGrad { of }, &wide)?;
                    self.add(Proj { index: part }, &[whole])?
                }
            };
            return self.cast(value, dtype);
        }
        let extras = &operands[6..];
        let (q, k, v, d_o) = (operands[0], operands[1], operands[2], operands[5]);
        let keys = attention.scores.0.len() - 1;
        let raw = self.dot((q, &attention.q), (k, &attention.k), &attention.scores)?;
        let logits = self.logits(attention, q, k, extras)?;
        let p = self.shares(attention, logits)?;
        if part == 2 {
            return self.dot((p, &attention.scores), (d_o, &attention.o), &attention.v);
        }
        let dp = self.dot((d_o, &attention.o), (v, &attention.v), &attention.scores)?;
        let product = self.map(ScalarFn::Mul, &[p, dp])?;
        let total = self.reduce(ReduceKind::Sum, product, keys)?;
        let rest = self.map(ScalarFn::Sub, &[dp, total])?;
        let ds = self.map(ScalarFn::Mul, &[p, rest])?;
        let args: SmallVec<[NodeId; 8]> = std::iter::once(raw).chain(extras.iter().copied()).collect();
        let types: SmallVec<[DType; 8]> = args.iter().map(|arg| self.dtype(*arg)).collect();
        let slope = match attention.score.derivative(0, &types) {
            Some(slope) => self.program(&slope, &args)?,
            None => self.builder.scalar(Literal::float(0.0, dtype)).ok()?,
        };
        let ds = self.map(ScalarFn::Mul, &[ds, slope])?;
        match part {
            0 => self.dot((ds, &attention.scores), (k, &attention.k), &attention.q),
            _ => self.dot((ds, &attention.scores), (q, &attention.q), &attention.k),
        }
    }

    fn reduce(&mut self, kind: ReduceKind, x: NodeId, axis: usize) -> Option<NodeId> {
        self.add(Reduce { kind, axes: smallvec::smallvec![axis], keep: true }, &[x])
    }

    fn logits(&mut self, attention: &Attention, q: NodeId, k: NodeId, extras: &[NodeId]) -> Option<NodeId> {
        let raw = self.dot((q, &attention.q), (k, &attention.k), &attention.scores)?;
        let args: SmallVec<[NodeId; 8]> = std::iter::once(raw).chain(extras.iter().copied()).collect();
        let mut logits = self.program(&attention.score, &args)?;
        let shape = self.builder.graph().tensor_type(raw).shape.clone();
        if let Some(seen) = attention.seen(&shape) {
            let seen = self.add(seen, &[])?;
            let never = self.number(f64::NEG_INFINITY, logits)?;
            logits = self.map(ScalarFn::Select, &[seen, logits, never])?;
        }
        if self.builder.graph().tensor_type(logits).shape == shape {
            return Some(logits);
        }
        self.add(Broadcast { shape }, &[logits])
    }

    /// A number of the element type of `like`.
    fn number(&mut self, value: f64, like: NodeId) -> Option<NodeId> {
        let dtype = self.dtype(like);
        self.builder.scalar(Literal::float(value, dtype)).ok()
    }

    /// The highest logit of each row, 0 of a row of −inf, and which rows those are.
    fn tops(&mut self, logits: NodeId, keys: usize) -> Option<(NodeId, NodeId)> {
        let top = self.reduce(ReduceKind::Max, logits, keys)?;
        let (never, zero) = (self.number(f64::NEG_INFINITY, logits)?, self.number(0.0, logits)?);
        let empty = self.map(ScalarFn::Eq, &[top, never])?;
        Some((self.map(ScalarFn::Select, &[empty, zero, top])?, empty))
    }

    /// The softmax of logits.
    fn shares(&mut self, attention: &Attention, logits: NodeId) -> Option<NodeId> {
        let keys = attention.scores.0.len() - 1;
        let shares = self.add(Softmax { axis: keys, log: false }, &[logits])?;
        if !attention.empty_is_zero {
            return Some(shares);
        }
        let (_, empty) = self.tops(logits, keys)?;
        let zero = self.number(0.0, logits)?;
        self.map(ScalarFn::Select, &[empty, zero, shares])
    }

    /// A scalar program as elementwise operators; the builder shares what occurs twice.
    fn program(&mut self, program: &ScalarExpr, args: &[NodeId]) -> Option<NodeId> {
        match program.kind() {
            ExprKind::Arg(i) => args.get(usize::from(*i)).copied(),
            ExprKind::Const(literal) => self.builder.scalar(*literal).ok(),
            ExprKind::Cast(dtype, inner) => {
                let inner = self.program(inner, args)?;
                self.cast(inner, *dtype)
            }
            ExprKind::Apply(f, operands) => {
                let operands: Option<SmallVec<[NodeId; 3]>> =
                    operands.iter().map(|operand| self.program(operand, args)).collect();
                self.map(*f, &operands?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use egret_ir::ScalarValue;

    use super::*;

    #[test]
    fn halves_of_a_program_become_f32() {
        let half = |v| ScalarExpr::float(v, DType::F16);
        let apply = |f, a, b| ScalarExpr::apply(f, [a, b], DType::F16);
        let scaled = apply(ScalarFn::Mul, ScalarExpr::arg(0), half(0.5));
        let program = apply(ScalarFn::Add, scaled, ScalarExpr::arg(1).cast(DType::F16));
        let wide = widened(&program);
        assert_eq!(wide.dtype(&[DType::F32, DType::F32]), DType::F32);
        let value = wide.eval_unrounded(&[ScalarValue::Float(3.0), ScalarValue::Float(0.1)]).as_f64();
        assert!((value - (1.5 + 0.1)).abs() < 1e-3 && value != 1.6, "the cast still rounds: {value}");
    }
}
