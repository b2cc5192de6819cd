//! Contractions that share their first operand and have equal epilogues become one, read through slices.
//!
//! Merged before epilogues are absorbed, no merge is ever chosen: a bias cannot pass a slice.

use egg::Id;
use egret_ir::ops::{Concat, Slice};
use egret_ir::{Dim, Op};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::journal::{How, Journal, Step};
use super::term::{BindingTime, Graph, Kind, OpId, Term, add, tensor_type};

/// A contraction that may be merged: its class, its node and its number of columns.
type Member = (Id, Term);

fn mergeable(egraph: &Graph, class: Id, term: &Term) -> bool {
    let op = egraph.analysis.op(term.op);
    let dot = match op {
        Op::DotGeneral(dot) => dot,
        Op::Fused(fused) if fused.rows.is_none() && fused.taps.is_empty() => match &*fused.anchor {
            Op::DotGeneral(dot) => dot,
            _ => return false,
        },
        _ => return false,
    };
    let Some(columns) = dot.out.0.last() else { return false };
    let known = |id: Id| egraph[id].data.time < BindingTime::Run;
    let Some(out) = tensor_type(egraph, class) else { return false };
    let Some(extent) = out.shape.last() else { return false };
    let extras_fit = term.operands[2..].iter().all(|extra| {
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

/// Groups of contractions that may become one, in class order.
fn groups(egraph: &Graph) -> Vec<Vec<Member>> {
    let mut groups: Vec<Vec<Member>> = Vec::new();
    let mut places: FxHashMap<(Id, OpId, usize), usize> = FxHashMap::default();
    let mut classes: Vec<Id> =
        egraph.classes_for_op(&Kind::named("dot_general")).map(Iterator::collect).unwrap_or_default();
    classes.sort();
    for class in classes {
        for term in egraph[class].nodes.iter().filter(|t| t.kind == Kind::named("dot_general")) {
            if !mergeable(egraph, class, term) {
                continue;
            }
            let key = (egraph.find(term.operands[0]), term.op, term.operands.len());
            let place = *places.entry(key).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            if groups[place].iter().all(|(have, _)| *have != class) {
                groups[place].push((class, term.clone()));
            }
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
}

/// Adds the merged form of every group. Returns the number of groups.
pub fn merge(egraph: &mut Graph, journal: &mut Journal) -> usize {
    let groups = groups(egraph);
    let mut merged = 0;
    for members in groups {
        let before = egraph.total_number_of_nodes();
        let Some((added, unions)) = build(egraph, &members) else { continue };
        let matched: Vec<Term> = members.iter().map(|(_, term)| term.clone()).collect();
        let step = Step {
            rule: "merge-dots",
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

/// Adds one group's merged contraction and slices.
pub fn build(egraph: &mut Graph, members: &[Member]) -> Option<Built> {
    let mut added: Vec<(Term, Id)> = Vec::new();
    let mut put = |egraph: &mut Graph, op: Op, operands: &[Id]| -> Option<Id> {
        let id = add(egraph, &op, operands)?;
        added.push((Term { kind: Kind::of(&op), op: egraph.analysis.op_id(&op), operands: operands.into() }, id));
        Some(id)
    };
    let first = &members[0].1;
    let op = egraph.analysis.op(first.op).clone();
    let dot = match &op {
        Op::DotGeneral(dot) => dot.clone(),
        Op::Fused(fused) => match &*fused.anchor {
            Op::DotGeneral(dot) => dot.clone(),
            _ => return None,
        },
        _ => return None,
    };
    let axis = dot.rhs.axis(*dot.out.0.last()?)?;
    let mut operands: SmallVec<[Id; 4]> = SmallVec::from_slice(&[first.operands[0]]);
    for slot in 1..first.operands.len() {
        let parts: SmallVec<[Id; 4]> = members.iter().map(|(_, term)| term.operands[slot]).collect();
        let axis = if slot == 1 { axis } else { 0 };
        operands.push(put(egraph, Concat { axis }.into(), &parts)?);
    }
    let whole = put(egraph, op, &operands)?;
    let mut unions = Vec::new();
    let mut offset = Dim::ZERO;
    for (class, _) in members {
        let shape = tensor_type(egraph, *class)?.shape.clone();
        let last = shape.rank() - 1;
        let end = offset.clone() + shape[last].clone();
        let mut start: SmallVec<[Dim; 4]> = smallvec::smallvec![Dim::ZERO; shape.rank()];
        let mut limit: SmallVec<[Dim; 4]> = shape.iter().cloned().collect();
        start[last] = offset;
        limit[last] = end.clone();
        let slice = Slice { start, limit, step: smallvec::smallvec![1; shape.rank()] };
        unions.push((*class, put(egraph, slice.into(), &[whole])?));
        offset = end;
    }
    Some((added, unions))
}
