//! Elementwise nodes go through a concatenation to its parts, of which the kernels that make them can take them.

use egg::Id;
use egret_ir::{Dim, Op};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use super::epilogue::{carries, elementwise_kinds, is_elementwise};
use super::journal::{How, Journal, Step};
use super::term::{BindingTime, Graph, Kind, Term, add, tensor_type};

/// The rule of this file.
pub const RULE: &str = "concat-elementwise";

/// Most parts: each part whose kernel does not take its map is a kernel more.
const MAX_PARTS: usize = 8;

/// Nodes that went through a concatenation, or could not: they are not tried again.
#[derive(Default)]
pub struct Tried(FxHashSet<(Term, SmallVec<[usize; 2]>)>);

/// By operand of an elementwise node: the concatenation that it is, or none if all parts read the same.
pub type Split = SmallVec<[Option<Term>; 2]>;

/// One pass in class order. Returns the unions made.
pub fn distribute(egraph: &mut Graph, journal: &mut Journal, tried: &mut Tried) -> usize {
    let mut list: Vec<(Id, Term)> = Vec::new();
    for kind in elementwise_kinds() {
        for class in egraph.classes_for_op(&kind).into_iter().flatten() {
            if egraph[class].data.time == BindingTime::Run {
                list.extend(egraph[class].nodes.iter().filter(|n| n.kind == kind).map(|n| (class, n.clone())));
            }
        }
    }
    list.sort();
    let mut unions = 0;
    for (class, node) in list {
        let sizes = node.operands.iter().map(|id| egraph[*id].nodes.len()).collect();
        if !tried.0.insert((node.clone(), sizes)) {
            continue;
        }
        if let Some(split) = split(egraph, class, &node) {
            unions += usize::from(unite(egraph, journal, class, node, split));
        }
    }
    unions
}

/// How a node's operands are split, if it goes to parts, of which at least one is made by a kernel that takes it.
fn split(egraph: &Graph, class: Id, node: &Term) -> Option<Split> {
    if !is_elementwise(egraph.analysis.op(node.op)) {
        return None;
    }
    let rank = tensor_type(egraph, class)?.shape.rank();
    let of_rank = |id: &Id| tensor_type(egraph, *id).is_some_and(|ty| ty.shape.rank() == rank);
    let concats = |id: Id| egraph[id].nodes.iter().filter(|n| n.kind == Kind::named("concat"));
    let takes = |part: &Id| egraph[*part].nodes.iter().any(|n| carries(egraph.analysis.op(n.op)));
    let mut firsts = node.operands.iter().filter(|id| of_rank(id)).flat_map(|id| concats(*id));
    firsts.find_map(|first| {
        if first.operands.len() > MAX_PARTS || !first.operands.iter().any(takes) {
            return None;
        }
        let axis = axis(egraph, first)?;
        let extents = extents(egraph, first, axis)?;
        let of_operand = |id: &Id| {
            let shape = &tensor_type(egraph, *id)?.shape;
            // axes are counted from the last one
            if (axis + shape.rank()).checked_sub(rank).is_none_or(|own| shape[own].is(1)) {
                return Some(None);
            }
            let fits = |term: &&Term| {
                self::axis(egraph, term) == Some(axis) && self::extents(egraph, term, axis).as_ref() == Some(&extents)
            };
            concats(*id).filter(|_| of_rank(id)).find(fits).cloned().map(Some)
        };
        node.operands.iter().map(of_operand).collect()
    })
}

fn axis(egraph: &Graph, concat: &Term) -> Option<usize> {
    match egraph.analysis.op(concat.op) {
        Op::Concat(concat) => Some(concat.axis),
        _ => None,
    }
}

/// What the parts have along an axis.
fn extents(egraph: &Graph, concat: &Term, axis: usize) -> Option<SmallVec<[Dim; 4]>> {
    concat.operands.iter().map(|part| Some(tensor_type(egraph, *part)?.shape[axis].clone())).collect()
}

/// Adds the node on each part, and their concatenation: what was added, the concatenation last.
pub fn build(egraph: &mut Graph, node: &Term, split: &Split) -> Option<Vec<(Term, Id)>> {
    let mut added: Vec<(Term, Id)> = Vec::new();
    let mut put = |egraph: &mut Graph, op: &Op, operands: &[Id]| -> Option<Id> {
        let id = add(egraph, op, operands)?;
        added.push((Term { kind: Kind::of(op), op: egraph.analysis.op_id(op), operands: operands.into() }, id));
        Some(id)
    };
    let first = split.iter().flatten().next()?;
    let (op, concat) = (egraph.analysis.op(node.op).clone(), egraph.analysis.op(first.op).clone());
    let mut parts: SmallVec<[Id; 4]> = SmallVec::new();
    for i in 0..first.operands.len() {
        let of_part = |(id, concat): (&Id, &Option<Term>)| concat.as_ref().map_or(*id, |concat| concat.operands[i]);
        let operands: SmallVec<[Id; 4]> = node.operands.iter().zip(split).map(of_part).collect();
        parts.push(put(egraph, &op, &operands)?);
    }
    put(egraph, &concat, &parts)?;
    Some(added)
}

fn unite(egraph: &mut Graph, journal: &mut Journal, class: Id, node: Term, split: Split) -> bool {
    let before = egraph.total_number_of_nodes();
    let Some(added) = build(egraph, &node, &split) else { return false };
    let Some((_, new)) = added.last().cloned() else { return false };
    if egraph[new].data.ty != egraph[class].data.ty || egraph.find(new) == egraph.find(class) {
        return false;
    }
    let matched: Vec<Term> = std::iter::once(&node).chain(split.iter().flatten()).cloned().collect();
    let step = Step {
        rule: RULE,
        how: How::Distribute { node, split },
        unions: SmallVec::from_slice(&[(class, new)]),
        added,
        needs: SmallVec::new(),
        origins: SmallVec::new(),
        joined: egraph.total_number_of_nodes() == before,
    };
    journal.record(egraph, step, &matched);
    egraph.union(class, new)
}
