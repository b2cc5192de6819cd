//! Attention: a contraction of a softmax over keys of any elementwise program of a contraction.

use egret_ir::ops::{Attention, DotGeneral, Labels, Pointwise, Reduce, ReduceKind};
use egret_ir::{Dim, NodeId, Op, ScalarExpr, ScalarFn, Shape};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::cone::cone;
use super::labels::{self, Form};
use super::score::{self, Masks};
use super::view;
use crate::rewrite::direct::Builder;

/// Steps of the longest way from logits to the product.
const LIMIT: u32 = 192;

/// What was found on the way, for what reads it later.
#[derive(Default)]
pub struct Found {
    /// By result of an attention, its logits and what masks them.
    attentions: FxHashMap<NodeId, (NodeId, Masks)>,
}

impl Found {
    /// The attention that a node ends, or a simpler equal of one.
    pub fn raise(&mut self, builder: &mut Builder, id: NodeId) -> Option<(NodeId, &'static str)> {
        match &builder.graph().node(id).op {
            Op::DotGeneral(_) => self.attention(builder, id),
            Op::Pointwise(Pointwise { f: ScalarFn::Select }) => self.guard(builder, id),
            Op::Proj(_) | Op::Transpose(_) => labels::raise(builder, id),
            _ => None,
        }
    }

    fn attention(&mut self, builder: &mut Builder, id: NodeId) -> Option<(NodeId, &'static str)> {
        let node = builder.graph().node(id).clone();
        let Op::DotGeneral(outer) = &node.op else { return None };
        // the probabilities may be either operand
        let (outer, shares, probabilities, values) = match shares(builder, node.operands[0], &outer.lhs) {
            Some(shares) => ((**outer).clone(), shares, node.operands[0], node.operands[1]),
            None => {
                let shares = shares(builder, node.operands[1], &outer.rhs)?;
                let (lhs, rhs) = (outer.rhs.clone(), outer.lhs.clone());
                let swapped = DotGeneral { lhs, rhs, ..(**outer).clone() };
                (swapped, shares, node.operands[1], node.operands[0])
            }
        };
        let logits = shares.logits;
        let scores_type = builder.graph().tensor_type(logits).clone();
        let whole = cone(builder, logits, LIMIT, &|n| matches!(builder.graph().node(n).op, Op::DotGeneral(_)))?;
        let mut leaves = whole.leaves.iter().copied();
        let (raw, mut product) = leaves.find_map(|leaf| {
            let fits = builder.graph().tensor_type(leaf).shape == scores_type.shape;
            Some((leaf, fits.then(|| Product::of(builder, leaf)).flatten()?))
        })?;
        product.keys_last()?;
        let mut outer = Product { dot: outer, operands: [probabilities, values], factor: 1.0 };
        if let Some(fine) = &shares.fine {
            let coarse = builder.graph().tensor_type(probabilities).shape.clone();
            outer.split(builder, 0, fine, &coarse)?;
        }
        let Product { dot: inner, operands: [q, k], factor } = product;
        let values = outer.operands[1];
        let op = join_labels(&inner, &outer.dot)?;
        let dtype = builder.graph().tensor_type(q).dtype;
        let value_type = builder.graph().tensor_type(id).clone();
        (builder.graph().tensor_type(values).dtype == dtype && value_type.dtype == dtype).then_some(())?;

        let mut score = score::score(builder, logits, raw)?;
        let mut channels = inner.lhs.0.iter().enumerate().filter(|(_, l)| !inner.out.has(**l));
        let head = channels.next().filter(|_| channels.next().is_none());
        let head = head.and_then(|(axis, _)| builder.graph().tensor_type(q).shape[axis].as_const());
        score.times(factor, dtype, head);
        let (program, extras) = score.program(builder, dtype, head);
        for extra in &extras {
            let shape = &builder.graph().tensor_type(*extra).shape;
            // a shape that needs more axes or an assumption would make another result
            let fits = shape.rank() <= scores_type.shape.rank() && broadcasts(shape, &scores_type.shape);
            fits.then_some(())?;
        }
        let causal = score.masks.causal.clone();
        let op = Attention { score: program, causal, empty_is_zero: shares.guarded, ..op };
        let mut operands: SmallVec<[NodeId; 8]> = SmallVec::from_slice(&[q, k, values]);
        operands.extend(extras);
        builder.take_origins(&[&[raw][..], &whole.nodes, &shares.nodes, &[id]].concat());
        let mut form = Form { op, operands };
        // factors of queries and keys scale the scores; movement may hide them
        let mut by = 1.0;
        loop {
            form.settle(builder);
            let before = by;
            for operand in &mut form.operands[..2] {
                let (plain, factor) = score::unscaled(builder, *operand)?;
                (*operand, by) = (plain, by * factor);
            }
            if by == before {
                break;
            }
        }
        if by != 1.0 {
            score.times(by, dtype, head);
            form.op.score = score.program(builder, dtype, head).0;
        }
        let new = form.build(builder, 0, &value_type.shape)?;
        self.attentions.insert(new, (logits, score.masks));
        Some((new, "attention"))
    }

    /// `select(no key is left, 0, attention)`: a row without keys is 0.
    fn guard(&mut self, builder: &mut Builder, id: NodeId) -> Option<(NodeId, &'static str)> {
        let node = builder.graph().node(id).clone();
        let zero = builder.splat_of_node(node.operands[1])?.as_f64() == 0.0;
        let value = node.operands[2];
        let (logits, masks) = self.attentions.get(&value)?.clone();
        (zero && empty(builder, node.operands[0], logits, Some(&masks))).then_some(())?;
        let shape = builder.graph().tensor_type(value).shape.clone();
        let inner = builder.graph().node(value).clone();
        let part = if matches!(inner.op, Op::Reshape(_)) { inner.operands[0] } else { value };
        let (mut form, 0) = labels::part_of(builder, part)? else { return None };
        form.op.empty_is_zero = true;
        Some((form.build(builder, 0, &shape)?, "attention-empty-rows"))
    }
}

/// A contraction, times a number.
struct Product {
    dot: DotGeneral,
    operands: [NodeId; 2],
    factor: f64,
}

impl Product {
    /// The contraction that a value is, also when it was scaled and its first axes were cut apart.
    fn of(builder: &mut Builder, id: NodeId) -> Option<Product> {
        let (at, factor) = match builder.graph().node(id).op {
            Op::Reshape(_) => score::unscaled(builder, id)?,
            _ => (id, 1.0),
        };
        let node = builder.graph().node(at).clone();
        let (raw, apart) = if matches!(node.op, Op::Reshape(_)) { (node.operands[0], true) } else { (at, false) };
        let inner = builder.graph().node(raw).clone();
        let Op::DotGeneral(dot) = &inner.op else { return None };
        let mut product = Product { dot: (**dot).clone(), operands: [inner.operands[0], inner.operands[1]], factor };
        if apart {
            let shape = |id: NodeId| builder.graph().tensor_type(id).shape.clone();
            let (fine, coarse) = (shape(at), shape(raw));
            let (axis, parts) = apart_axis(&fine, &coarse)?;
            product.split_label(builder, product.dot.out.0[axis], &parts)?;
        }
        Some(product)
    }

    /// Puts the operand with the result's last label second.
    fn keys_last(&mut self) -> Option<()> {
        let key = *self.dot.out.0.last()?;
        if self.dot.lhs.has(key) {
            std::mem::swap(&mut self.dot.lhs, &mut self.dot.rhs);
            self.operands.swap(0, 1);
        }
        Some(())
    }

    /// Cuts the axis of an operand apart that a reshape from `fine` to `coarse` merged.
    fn split(&mut self, builder: &mut Builder, operand: usize, fine: &Shape, coarse: &Shape) -> Option<()> {
        let (axis, parts) = apart_axis(fine, coarse)?;
        let label = [&self.dot.lhs, &self.dot.rhs][operand].0[axis];
        self.split_label(builder, label, &parts)
    }

    /// Replaces a label that both operands and the result have by one for each part.
    fn split_label(&mut self, builder: &mut Builder, label: u8, parts: &[Dim]) -> Option<()> {
        let DotGeneral { lhs, rhs, out, wide } = &self.dot;
        (lhs.has(label) && rhs.has(label) && out.has(label)).then_some(())?;
        let used = |l: &u8| lhs.has(*l) || rhs.has(*l) || out.has(*l);
        let fresh: SmallVec<[u8; 4]> = (b'a'..=b'z').filter(|l| !used(l)).take(parts.len()).collect();
        (fresh.len() == parts.len()).then_some(())?;
        for (labels, operand) in [lhs, rhs].into_iter().zip(&mut self.operands) {
            let axis = labels.axis(label)?;
            let shape = builder.graph().tensor_type(*operand).shape.clone();
            let cut: Shape = shape[..axis].iter().chain(parts).chain(&shape[axis + 1..]).cloned().collect();
            *operand = view::reshape(builder, *operand, cut)?;
        }
        let replaced = |labels: &Labels| {
            let axes = labels.0.iter().flat_map(|l| if *l == label { fresh.clone() } else { smallvec::smallvec![*l] });
            Labels(axes.collect())
        };
        self.dot = DotGeneral { lhs: replaced(lhs), rhs: replaced(rhs), out: replaced(out), wide: *wide };
        Some(())
    }
}

/// The one axis of `coarse` before its last two that merges several of `fine`, and what it merges.
fn apart_axis(fine: &Shape, coarse: &Shape) -> Option<(usize, SmallVec<[Dim; 4]>)> {
    let groups = view::merges(fine, coarse)?;
    let mut wide = groups.iter().enumerate().filter(|(_, group)| group.len() > 1);
    let (axis, group) = wide.next()?;
    (wide.next().is_none() && axis + 2 < coarse.rank()).then(|| (axis, fine[group.clone()].iter().cloned().collect()))
}

/// A softmax over keys.
struct Shares {
    logits: NodeId,
    /// The shape of the logits, if their first axes were merged since.
    fine: Option<Shape>,
    /// Whether rows without keys are 0.
    guarded: bool,
    nodes: Vec<NodeId>,
}

/// Finds the softmax over the last axis that `id` is but for casts and a guard, when that axis is contracted.
fn shares(builder: &mut Builder, id: NodeId, labels: &Labels) -> Option<Shares> {
    let graph = builder.graph();
    let (mut at, mut condition, mut nodes) = (id, None, Vec::new());
    let mut fine: Option<Shape> = None;
    let shape = |id: NodeId| &graph.tensor_type(id).shape;
    let merged = |at: NodeId| apart_axis(shape(graph.node(at).operands[0]), shape(at)).is_some();
    (graph.tensor_type(id).shape.rank() == labels.0.len()).then_some(())?;
    loop {
        let node = graph.node(at);
        nodes.push(at);
        match &node.op {
            Op::Softmax(softmax) if !softmax.log && softmax.axis + 1 == shape(at).rank() => break,
            Op::Reshape(_) if fine.is_none() && merged(at) => {
                at = node.operands[0];
                fine = Some(shape(at).clone());
            }
            Op::Cast(cast) if cast.dtype.is_float() && graph.tensor_type(node.operands[0]).dtype.is_float() => {
                at = node.operands[0];
            }
            Op::Pointwise(Pointwise { f: ScalarFn::Select }) if condition.is_none() => {
                (builder.splat_of_node(node.operands[1])?.as_f64() == 0.0).then_some(())?;
                condition = Some((node.operands[0], node.operands[2]));
                at = node.operands[2];
            }
            _ => return None,
        }
    }
    let mut logits = graph.node(at).operands[0];
    if fine.is_none() && matches!(graph.node(logits).op, Op::Reshape(_)) && merged(logits) {
        logits = graph.node(logits).operands[0];
        fine = Some(shape(logits).clone());
    }
    if let Some((condition, shares)) = condition {
        let nan = builder.graph().node(condition);
        let is_nan = matches!(nan.op, Op::Pointwise(Pointwise { f: ScalarFn::IsNan })) && nan.operands[0] == shares;
        (is_nan || empty(builder, condition, logits, None)).then_some(())?;
    }
    Some(Shares { logits, fine, guarded: condition.is_some(), nodes })
}

/// Whether a condition says that the greatest logit of a row, or of what masks it, is −∞.
fn empty(builder: &mut Builder, condition: NodeId, logits: NodeId, masks: Option<&Masks>) -> bool {
    let graph = builder.graph();
    let node = graph.node(condition);
    if !matches!(node.op, Op::Pointwise(Pointwise { f: ScalarFn::Eq })) {
        return false;
    }
    let low = |i: usize| builder.splat_of_node(node.operands[i]).is_some_and(|l| l.as_f64() == f64::NEG_INFINITY);
    let top = match (low(0), low(1)) {
        (false, true) => node.operands[0],
        (true, false) => node.operands[1],
        _ => return false,
    };
    let top = graph.node(top);
    let Op::Reduce(reduce) = &top.op else { return false };
    let Reduce { kind: ReduceKind::Max, axes, keep: true } = &**reduce else { return false };
    let over = top.operands[0];
    if axes.as_slice() != [graph.tensor_type(over).shape.rank().saturating_sub(1)] {
        return false;
    }
    over == logits || masks.is_some_and(|masks| Masks::of(builder, over).is_some_and(|found| found == *masks))
}

fn broadcasts(shape: &egret_ir::Shape, to: &egret_ir::Shape) -> bool {
    let mut cx = egret_ir::InferCx::default();
    cx.broadcast([shape, to]).is_ok_and(|whole| whole == *to) && cx.assumptions.is_empty()
}

/// One set of labels for both contractions: `outer` contracts the key axis of `inner`'s result with the values.
fn join_labels(inner: &DotGeneral, outer: &DotGeneral) -> Option<Attention> {
    let scores = &inner.out;
    let (key, query) = (*scores.0.last()?, scores.0.len().checked_sub(2).map(|i| scores.0[i])?);
    let fits = inner.rhs.has(key) && !inner.lhs.has(key) && inner.lhs.has(query) && !inner.rhs.has(query);
    let outer_key = *outer.lhs.0.last()?;
    if !fits || outer.lhs.0.len() != scores.0.len() || outer.out.has(outer_key) || !outer.rhs.has(outer_key) {
        return None;
    }
    let mut next = inner.lhs.0.iter().chain(&inner.rhs.0).max()? + 1;
    let mut map: SmallVec<[(u8, u8); 8]> = outer.lhs.0.iter().copied().zip(scores.0.iter().copied()).collect();
    let mut rename = |labels: &Labels| {
        let mapped = labels.0.iter().map(|l| {
            map.iter().find(|(from, _)| from == l).map(|(_, to)| *to).unwrap_or_else(|| {
                map.push((*l, next));
                next += 1;
                next - 1
            })
        });
        Labels(mapped.collect())
    };
    let (v, o) = (rename(&outer.rhs), rename(&outer.out));
    let labels = [inner.lhs.clone(), inner.rhs.clone(), v, o, scores.clone()];
    Some(Attention::new(labels, ScalarExpr::arg(0)))
}
