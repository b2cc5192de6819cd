//! Contractions that share their first operand and have equal epilogues become one, read through slices; so do convolutions
//! whose windows are equal too.
//!
//! Merged before epilogues are absorbed, no merge is ever chosen: a bias cannot pass a slice.

use egg::Id;
use egret_ir::ops::{Concat, Conv, ConvForm, DotGeneral, Fused, Slice};
use egret_ir::{Dim, Op, Shape};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::RewriteSet;
use super::journal::{How, Journal, Step};
use super::term::{BindingTime, Graph, Kind, OpId, Term, add, tensor_type};

/// The rule for contractions.
pub const DOTS: &str = "merge-dots";
/// The rule for convolutions.
pub const CONVOLUTIONS: &str = "merge-convolutions";

/// Each part of a merged convolution but the last has a multiple of so many channels: it begins with a vector of blocked
/// channels, so that its slice is a view.
const CHANNELS: i64 = 16;

/// A contraction that may be merged: its class and its node.
type Member = (Id, Term);

/// The anchor of a node that may be merged.
enum Anchor<'o> {
    Dot(&'o DotGeneral),
    Conv(&'o Conv),
}

/// The anchor of an operator, and what it has absorbed.
fn anchor(op: &Op) -> Option<(Anchor<'_>, Option<&Fused>)> {
    fn plain(op: &Op) -> Option<Anchor<'_>> {
        match op {
            Op::DotGeneral(dot) => Some(Anchor::Dot(dot)),
            Op::Conv(conv) => Some(Anchor::Conv(conv)),
            _ => None,
        }
    }
    match op {
        Op::Fused(fused) if fused.rows.is_none() && fused.taps.is_empty() => Some((plain(&fused.anchor)?, Some(fused))),
        op => Some((plain(op)?, None)),
    }
}

/// A node's operands as the anchor's, the extras and those of a prologue.
fn split<'o>(fused: Option<&Fused>, operands: &'o [Id]) -> (&'o [Id], &'o [Id], &'o [Id]) {
    fused.map_or((operands, &[], &[]), |fused| fused.split(operands))
}

fn is_known(egraph: &Graph, id: Id) -> bool {
    egraph[id].data.time < BindingTime::Run
}

/// Whether a contraction's columns, and its extras', may stand beside others.
fn mergeable_dot(egraph: &Graph, class: Id, term: &Term) -> bool {
    let Some((Anchor::Dot(dot), fused)) = anchor(egraph.analysis.op(term.op)) else { return false };
    let Some(columns) = dot.out.0.last() else { return false };
    let known = |id: Id| is_known(egraph, id);
    let Some(out) = tensor_type(egraph, class) else { return false };
    let Some(extent) = out.shape.last() else { return false };
    let extras_fit = split(fused, &term.operands).1.iter().all(|extra| {
        let vector = tensor_type(egraph, *extra).is_some_and(|ty| ty.shape.rank() == 1 && ty.shape[0] == *extent);
        known(*extra) && vector
    });
    extent.as_const().is_some()
        && dot.rhs.has(*columns)
        && !dot.lhs.has(*columns)
        && known(term.operands[1])
        && !known(term.operands[0])
        && extras_fit
}

/// The axis of an extra's only extent, if that is as many as there are channels.
fn channel_axis(shape: &Shape, rank: usize, channels: &Dim) -> Option<usize> {
    let axis = (1 + shape.rank()).checked_sub(rank)?;
    let only = shape.iter().enumerate().all(|(i, dim)| if i == axis { dim == channels } else { dim.is(1) });
    only.then_some(axis).filter(|axis| *axis < shape.rank())
}

/// The window of a convolution whose channels, and its extras', may stand beside others: input channels and extents.
fn mergeable_window(egraph: &Graph, class: Id, term: &Term) -> Option<SmallVec<[Dim; 4]>> {
    let (Anchor::Conv(conv), fused) = anchor(egraph.analysis.op(term.op))? else { return None };
    let (out, weights) = (tensor_type(egraph, class)?, tensor_type(egraph, term.operands[1])?);
    let (rank, channels) = (out.shape.rank(), &out.shape[1]);
    let extras_fit = split(fused, &term.operands).1.iter().all(|extra| {
        let shape = tensor_type(egraph, *extra).map(|ty| &ty.shape);
        is_known(egraph, *extra) && shape.is_some_and(|shape| channel_axis(shape, rank, channels).is_some())
    });
    let fits = conv.form == ConvForm::Forward
        && conv.groups == 1
        && channels.as_const().is_some()
        && is_known(egraph, term.operands[1])
        && !is_known(egraph, term.operands[0])
        && extras_fit;
    fits.then(|| weights.shape[1..].iter().cloned().collect())
}

/// What members of a group share: the first operand, the operator, how many operands there are, the window, and the operands
/// of the prologue.
type Key = (Id, OpId, usize, SmallVec<[Dim; 4]>, SmallVec<[Id; 4]>);

/// Groups of anchors that may become one, in class order.
struct Groups {
    groups: Vec<Vec<Member>>,
    places: FxHashMap<Key, usize>,
}

impl Groups {
    fn put(&mut self, egraph: &Graph, class: Id, term: &Term, window: SmallVec<[Dim; 4]>) {
        let fused = anchor(egraph.analysis.op(term.op)).and_then(|(_, fused)| fused);
        let own = split(fused, &term.operands).2.iter().map(|id| egraph.find(*id)).collect();
        let key = (egraph.find(term.operands[0]), term.op, term.operands.len(), window, own);
        let place = *self.places.entry(key).or_insert_with(|| {
            self.groups.push(Vec::new());
            self.groups.len() - 1
        });
        if self.groups[place].iter().all(|(have, _)| *have != class) {
            self.groups[place].push((class, term.clone()));
        }
    }
}

fn nodes_of(egraph: &Graph, kind: Kind) -> Vec<Member> {
    let mut classes: Vec<Id> = egraph.classes_for_op(&kind).map(Iterator::collect).unwrap_or_default();
    classes.sort();
    let nodes = |class: Id| egraph[class].nodes.iter().filter(|t| t.kind == kind).map(move |t| (class, t.clone()));
    classes.into_iter().flat_map(nodes).collect()
}

fn groups(egraph: &Graph, used: Used) -> Vec<Vec<Member>> {
    let mut all = Groups { groups: Vec::new(), places: FxHashMap::default() };
    if used.dots {
        for (class, term) in nodes_of(egraph, Kind::named("dot_general")) {
            if mergeable_dot(egraph, class, &term) {
                all.put(egraph, class, &term, SmallVec::new());
            }
        }
    }
    if used.convolutions {
        // their kernels write their parts of a concatenation in place: a slice would be copied there
        let concats = nodes_of(egraph, Kind::named("concat"));
        let in_place: FxHashSet<Id> =
            concats.iter().flat_map(|(_, term)| &term.operands).map(|id| egraph.find(*id)).collect();
        for (class, term) in nodes_of(egraph, Kind::named("conv")) {
            let window = mergeable_window(egraph, class, &term).filter(|_| !in_place.contains(&class));
            if let Some(window) = window {
                all.put(egraph, class, &term, window);
            }
        }
    }
    for group in &mut all.groups {
        let conv = |(_, term): &Member| matches!(anchor(egraph.analysis.op(term.op)), Some((Anchor::Conv(_), _)));
        if group.iter().all(conv) {
            order_channels(egraph, group);
        }
    }
    all.groups.retain(|group| group.len() > 1);
    all.groups
}

/// Puts one part whose channels end within a vector last, and leaves the other such parts out.
fn order_channels(egraph: &Graph, group: &mut Vec<Member>) {
    let whole = |(class, _): &Member| {
        tensor_type(egraph, *class).and_then(|ty| ty.shape[1].as_const()).is_some_and(|n| n % CHANNELS == 0)
    };
    let ragged = group.iter().find(|member| !whole(member)).cloned();
    group.retain(|member| whole(member));
    group.extend(ragged);
}

/// Which of the rules of this file are used.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    dots: bool,
    convolutions: bool,
}

impl Used {
    /// Those that a set has.
    pub fn of(set: &RewriteSet) -> Used {
        Used { dots: set.has(DOTS), convolutions: set.has(CONVOLUTIONS) }
    }
}

/// Adds the merged form of every group. Returns the number of groups.
pub fn merge(egraph: &mut Graph, journal: &mut Journal, used: Used) -> usize {
    let groups = groups(egraph, used);
    let mut merged = 0;
    for members in groups {
        let before = egraph.total_number_of_nodes();
        let Some((added, unions)) = build(egraph, &members) else { continue };
        let matched: Vec<Term> = members.iter().map(|(_, term)| term.clone()).collect();
        let is_dot = matched.first().is_some_and(|term| term.kind == Kind::named("dot_general"));
        let step = Step {
            rule: if is_dot { DOTS } else { CONVOLUTIONS },
            how: How::Merge { members },
            unions: unions.iter().copied().collect(),
            added,
            needs: SmallVec::new(),
            origins: SmallVec::new(),
            joined: egraph.total_number_of_nodes() == before,
        };
        journal.record(egraph, step, &matched);
        for (old, new) in unions {
            egraph.union(old, new);
        }
        merged += 1;
    }
    merged
}

type Built = (Vec<(Term, Id)>, Vec<(Id, Id)>);

/// Adds one group's merged anchor and slices.
pub fn build(egraph: &mut Graph, members: &[Member]) -> Option<Built> {
    let mut added: Vec<(Term, Id)> = Vec::new();
    let mut put = |egraph: &mut Graph, op: Op, operands: &[Id]| -> Option<Id> {
        let id = add(egraph, &op, operands)?;
        added.push((Term { kind: Kind::of(&op), op: egraph.analysis.op_id(&op), operands: operands.into() }, id));
        Some(id)
    };
    let (class, first) = members.first()?;
    let op = egraph.analysis.op(first.op).clone();
    let (anchor, fused) = anchor(&op)?;
    let result = tensor_type(egraph, *class)?.shape.clone();
    // the axis of the result along which parts lie, that of the weights, and that of an extra
    let (axis, of_weights) = match anchor {
        Anchor::Dot(dot) => (result.rank() - 1, dot.rhs.axis(*dot.out.0.last()?)?),
        Anchor::Conv(_) => (1, 0),
    };
    let of_extra = |egraph: &Graph, id: Id| match anchor {
        Anchor::Dot(_) => Some(0),
        Anchor::Conv(_) => channel_axis(&tensor_type(egraph, id)?.shape, result.rank(), &result[1]),
    };
    let (_, extras, own) = split(fused, &first.operands);
    let mut operands: SmallVec<[Id; 4]> = SmallVec::from_slice(&[first.operands[0]]);
    for slot in 1..2 + extras.len() {
        let parts: SmallVec<[Id; 4]> = members.iter().map(|(_, term)| term.operands[slot]).collect();
        let axis = if slot == 1 { of_weights } else { of_extra(egraph, first.operands[slot])? };
        operands.push(put(egraph, Concat { axis }.into(), &parts)?);
    }
    operands.extend(own.iter().copied());
    let whole = put(egraph, op.clone(), &operands)?;
    let mut unions = Vec::new();
    let mut offset = Dim::ZERO;
    for (class, _) in members {
        let shape = tensor_type(egraph, *class)?.shape.clone();
        let end = offset.clone() + shape[axis].clone();
        let mut start: SmallVec<[Dim; 4]> = smallvec::smallvec![Dim::ZERO; shape.rank()];
        let mut limit: SmallVec<[Dim; 4]> = shape.iter().cloned().collect();
        start[axis] = offset;
        limit[axis] = end.clone();
        let slice = Slice { start, limit, step: smallvec::smallvec![1; shape.rank()] };
        unions.push((*class, put(egraph, slice.into(), &[whole])?));
        offset = end;
    }
    Some((added, unions))
}
