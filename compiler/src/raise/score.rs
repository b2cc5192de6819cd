//! From raw products of queries and keys to logits: a scale, additive masks, boolean masks and a frontier, taken apart so
//! that every spelling of them gives one program.

use egret_ir::ops::Pointwise;
use egret_ir::{DType, Dim, Literal, NodeId, Op, ScalarExpr, ScalarFn};
use smallvec::SmallVec;

use super::cone::{Cone, cone};
use super::frontier::{self, Frontier, never};
use super::view;
use crate::rewrite::direct::Builder;

/// Steps of the longest score program.
const LIMIT: u32 = 48;

/// What hides keys from queries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Masks {
    /// Added to the logits.
    pub added: SmallVec<[NodeId; 2]>,
    /// Truth values that must hold.
    pub truths: SmallVec<[NodeId; 2]>,
    /// How far after its query the last key is.
    pub causal: Option<Dim>,
}

impl Masks {
    /// What a term of the logits hides.
    pub fn of(builder: &mut Builder, term: NodeId) -> Option<Masks> {
        let mut masks = Masks::default();
        masks.add(builder, term, 1.0)?;
        masks.sort();
        Some(masks)
    }

    fn sort(&mut self) {
        self.added.sort();
        self.truths.sort();
    }

    /// Adds a truth value that must hold, or must not.
    fn require(&mut self, builder: &mut Builder, condition: NodeId, holds: bool) -> Option<()> {
        let node = builder.graph().node(condition).clone();
        if let Op::Pointwise(Pointwise { f }) = node.op {
            match f {
                ScalarFn::Not => return self.require(builder, node.operands[0], !holds),
                ScalarFn::And if holds => {
                    self.require(builder, node.operands[0], true)?;
                    return self.require(builder, node.operands[1], true);
                }
                ScalarFn::Or if !holds => {
                    self.require(builder, node.operands[0], false)?;
                    return self.require(builder, node.operands[1], false);
                }
                _ => {}
            }
        }
        if let Some(Frontier { offset, negated }) = frontier::frontier(builder, condition)
            && negated != holds
        {
            self.causal = Some(self.causal.as_ref().map_or(offset.clone(), |have| have.minimum(&offset)));
            return Some(());
        }
        let truth =
            if holds { condition } else { builder.add(&Pointwise { f: ScalarFn::Not }.into(), &[condition]).ok()? };
        if !self.truths.contains(&truth) {
            self.truths.push(truth);
        }
        Some(())
    }

    /// Adds a term of the logits, times `scale`.
    pub fn add(&mut self, builder: &mut Builder, term: NodeId, scale: f64) -> Option<()> {
        if !self.hides(builder, term, scale)? {
            let added = if scale == 1.0 { term } else { scaled(builder, term, scale)? };
            self.added.push(added);
        }
        Some(())
    }

    /// Takes a term that is 0 or −∞ by a truth value, or a sum of which one side is that.
    fn hides(&mut self, builder: &mut Builder, term: NodeId, scale: f64) -> Option<bool> {
        let zero = |l: Literal| l.as_f64() == 0.0;
        if builder.splat_of_node(term).is_some_and(zero) {
            return Some(true);
        }
        if scale > 0.0
            && let Some(offset) = frontier::additive(builder, term)
        {
            self.causal = Some(self.causal.as_ref().map_or(offset.clone(), |have| have.minimum(&offset)));
            return Some(true);
        }
        let (steps, source) = view::path(builder, term);
        let node = builder.graph().node(source).clone();
        let Op::Pointwise(Pointwise { f }) = node.op else { return Some(false) };
        let splat = |i: usize| builder.splat_of_node(node.operands[i]);
        let low = |l: Literal| l.as_f64() == f64::NEG_INFINITY;
        match f {
            ScalarFn::Select if scale > 0.0 => {
                let (yes, no) = (splat(1), splat(2));
                let holds = match (yes, no) {
                    (Some(yes), Some(no)) if zero(yes) && low(no) => true,
                    (Some(yes), Some(no)) if low(yes) && zero(no) => false,
                    // of a frontier, each row of which has a key, any number so low will do
                    (Some(yes), Some(no)) if zero(yes) && never(no.as_f64()) => {
                        return self.beyond(builder, node.operands[0], false);
                    }
                    (Some(yes), Some(no)) if zero(no) && never(yes.as_f64()) => {
                        return self.beyond(builder, node.operands[0], true);
                    }
                    _ => return Some(false),
                };
                let condition = view::along(builder, &steps, node.operands[0])?;
                self.require(builder, condition, holds)?;
                Some(true)
            }
            ScalarFn::Add if steps.is_empty() => {
                let mut apart = self.clone();
                let first = apart.hides(builder, node.operands[0], scale)?;
                let second = apart.hides(builder, node.operands[1], scale)?;
                if !first && !second {
                    return Some(false);
                }
                for (operand, hidden) in node.operands.iter().zip([first, second]) {
                    if !hidden {
                        apart.add(builder, *operand, scale)?;
                    }
                }
                *self = apart;
                Some(true)
            }
            _ => Some(false),
        }
    }

    /// Takes a condition if it is a frontier.
    fn beyond(&mut self, builder: &mut Builder, condition: NodeId, negated: bool) -> Option<bool> {
        let fits = frontier::frontier(builder, condition).is_some_and(|f| f.negated == negated);
        if fits {
            self.require(builder, condition, !negated)?;
        }
        Some(fits)
    }
}

/// Logits taken apart: `scale · inner(raw, leaves…)`, and masks.
pub struct Score {
    /// Argument 0 is the raw product, the others `leaves`.
    inner: ScalarExpr,
    leaves: SmallVec<[NodeId; 4]>,
    /// The product.
    pub scale: f64,
    /// Masks.
    pub masks: Masks,
}

/// What makes `logits` of the product `raw`.
pub fn score(builder: &mut Builder, logits: NodeId, raw: NodeId) -> Option<Score> {
    let whole = cone(builder, logits, 4 * LIMIT, &|n| n == raw)?;
    let from_raw = dependents(builder, &whole, raw);
    let depends = |n: &NodeId| *n == raw || from_raw.contains(n);
    let (mut masks, mut scale, mut at) = (Masks::default(), 1.0, logits);
    while at != raw {
        let node = builder.graph().node(at).clone();
        let number = |i: usize| builder.splat_of_node(node.operands[i]).map(|l| l.as_f64());
        let own = node.operands.iter().filter(|o| depends(o)).count();
        let side = node.operands.iter().position(&depends)?;
        let before = at;
        match &node.op {
            Op::Cast(_) if widens(builder, at) => at = node.operands[0],
            Op::Pointwise(Pointwise { f }) if own == 1 => match f {
                ScalarFn::Add => {
                    masks.add(builder, node.operands[1 - side], scale)?;
                    at = node.operands[side];
                }
                ScalarFn::Sub if side == 0 => {
                    let minus = builder.graph().node(node.operands[1]).clone();
                    let negated = match minus.op {
                        Op::Pointwise(Pointwise { f: ScalarFn::Neg }) => minus.operands[0],
                        _ => builder.add(&Pointwise { f: ScalarFn::Neg }.into(), &[node.operands[1]]).ok()?,
                    };
                    masks.add(builder, negated, scale)?;
                    at = node.operands[0];
                }
                ScalarFn::Mul if number(1 - side).is_some_and(|c| c > 0.0) => {
                    scale *= number(1 - side)?;
                    at = node.operands[side];
                }
                ScalarFn::Div if side == 0 && number(1).is_some_and(|c| c > 0.0) => {
                    scale /= number(1)?;
                    at = node.operands[0];
                }
                ScalarFn::Select if side > 0 => {
                    let hidden = number(3 - side);
                    let holds = side == 1;
                    let taken = match hidden {
                        Some(low) if low == f64::NEG_INFINITY => {
                            masks.require(builder, node.operands[0], holds)?;
                            true
                        }
                        Some(low) if never(low) => masks.beyond(builder, node.operands[0], !holds)?,
                        _ => false,
                    };
                    if taken {
                        at = node.operands[side];
                    }
                }
                _ => {}
            },
            _ => {}
        }
        if at == before {
            break;
        }
    }
    let rest = cone(builder, at, LIMIT, &|n| n == raw || !depends(&n))?;
    // the raw product first
    let leaves: SmallVec<[NodeId; 4]> = rest.leaves.iter().copied().filter(|leaf| *leaf != raw).collect();
    let inner = rest.program.substitute(&mut |arg| {
        let leaf = rest.leaves[arg];
        ScalarExpr::arg(leaves.iter().position(|l| *l == leaf).map_or(0, |i| i + 1))
    });
    masks.sort();
    Some(Score { inner, leaves, scale, masks })
}

impl Score {
    /// The program over the raw product and extras, in the element type in which scores are computed, and the extras.
    pub fn program(&self, builder: &Builder, scores: DType, head: Option<i64>) -> (ScalarExpr, SmallVec<[NodeId; 4]>) {
        let wide = if matches!(scores, DType::F16 | DType::BF16) { DType::F32 } else { scores };
        let dtype_of = |id: NodeId| builder.graph().tensor_type(id).dtype;
        let widened = |e: ScalarExpr, dtype: DType| if dtype == wide { e } else { e.cast(wide) };
        let mut extras = self.leaves.clone();
        let mut types: SmallVec<[DType; 8]> = smallvec::smallvec![scores];
        types.extend(extras.iter().map(|e| dtype_of(*e)));
        let mut e = widened(self.inner.clone(), self.inner.dtype(&types));
        let scale = near_root(self.scale, scores, head);
        if scale != 1.0 {
            e = ScalarExpr::apply(ScalarFn::Mul, [e, ScalarExpr::float(scale, wide)], wide);
        }
        let mut place = |id: NodeId| {
            let at = extras.iter().position(|have| *have == id).unwrap_or_else(|| {
                extras.push(id);
                extras.len() - 1
            });
            ScalarExpr::arg(at + 1)
        };
        for mask in &self.masks.added {
            e = ScalarExpr::apply(ScalarFn::Add, [e, widened(place(*mask), dtype_of(*mask))], wide);
        }
        let truths = self.masks.truths.iter().map(|t| place(*t));
        let truth = truths.reduce(|a, b| ScalarExpr::apply(ScalarFn::And, [a, b], DType::Bool));
        if let Some(truth) = truth {
            let low = ScalarExpr::float(f64::NEG_INFINITY, wide);
            e = ScalarExpr::apply(ScalarFn::Select, [truth, e, low], wide);
        }
        (e, extras)
    }

    /// The product is `factor` times what was taken for it, in the element type `dtype`.
    pub fn times(&mut self, factor: f64, dtype: DType, head: Option<i64>) {
        if self.inner.is_arg(0) {
            self.scale *= factor;
        } else if factor != 1.0 {
            let factor = ScalarExpr::float(near_root(factor, dtype, head), dtype);
            self.inner = self.inner.substitute(&mut |arg| match arg {
                0 => ScalarExpr::apply(ScalarFn::Mul, [ScalarExpr::arg(0), factor.clone()], dtype),
                other => ScalarExpr::arg(other),
            });
        }
    }
}

/// `1/√head` if the scale is that but for the roundings of how it was spelled.
fn near_root(scale: f64, dtype: DType, head: Option<i64>) -> f64 {
    // a few roundings, each of at most half a unit in the last place
    let tolerance = match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        DType::F32 => 2f64.powi(-21),
        _ => 2f64.powi(-50),
    };
    match head.map(|head| 1.0 / (head as f64).sqrt()) {
        Some(root) if (scale - root).abs() <= tolerance * root => root,
        _ => scale,
    }
}

/// A value without the factors that it was scaled by, and their product. Factors are looked for before movement.
pub fn unscaled(builder: &mut Builder, id: NodeId) -> Option<(NodeId, f64)> {
    let (mut at, mut factor) = (id, 1.0);
    loop {
        let (steps, source) = view::path(builder, at);
        let node = builder.graph().node(source).clone();
        let Op::Pointwise(Pointwise { f }) = node.op else { break };
        let number = |i: usize| builder.splat_of_node(node.operands[i]).map(|l| l.as_f64()).filter(|c| *c > 0.0);
        let (rest, by) = match f {
            ScalarFn::Mul => match (number(0), number(1)) {
                (_, Some(c)) => (node.operands[0], c),
                (Some(c), _) => (node.operands[1], c),
                _ => break,
            },
            ScalarFn::Div => match number(1) {
                Some(c) => (node.operands[0], 1.0 / c),
                None => break,
            },
            _ => break,
        };
        if builder.graph().ty(rest) != builder.graph().ty(source) {
            break;
        }
        let Some(moved) = view::along(builder, &steps, rest) else { break };
        (at, factor) = (moved, factor * by);
    }
    Some((at, factor))
}

fn scaled(builder: &mut Builder, id: NodeId, by: f64) -> Option<NodeId> {
    let dtype = builder.graph().tensor_type(id).dtype;
    let factor = builder.scalar(Literal::float(by, dtype)).ok()?;
    builder.add(&Pointwise { f: ScalarFn::Mul }.into(), &[id, factor]).ok()
}

/// Whether a cast takes floats to `f32`, in which scores are computed anyhow, or to what they are.
fn widens(builder: &Builder, id: NodeId) -> bool {
    let graph = builder.graph();
    let (from, to) = (graph.tensor_type(graph.node(id).operands[0]).dtype, graph.tensor_type(id).dtype);
    from == to || matches!(from, DType::F16 | DType::BF16) && to == DType::F32
}

/// Nodes of a cone that read the product.
fn dependents(builder: &Builder, whole: &Cone, raw: NodeId) -> Vec<NodeId> {
    let mut found: Vec<NodeId> = Vec::new();
    for id in &whole.nodes {
        if builder.graph().node(*id).operands.iter().any(|o| *o == raw || found.contains(o)) {
            found.push(*id);
        }
    }
    found
}
