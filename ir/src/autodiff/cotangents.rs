//! What has been found of the gradients of a loss, by value.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::dim::Dim;
use crate::graph::NodeId;
use crate::ops::{Op, Pad};
use crate::tracer::{Tracer, Var};

/// Terms of the gradient by each part of each node's result, in the order in which they were found.
#[derive(Default)]
pub(super) struct Cotangents<'t>(FxHashMap<NodeId, SmallVec<[SmallVec<[Var<'t>; 1]>; 1]>>);

impl<'t> Cotangents<'t> {
    /// One more term of the gradient by a part of a node's result.
    pub(super) fn add(&mut self, id: NodeId, part: usize, gradient: Var<'t>) {
        let parts = self.0.entry(id).or_default();
        if parts.len() <= part {
            parts.resize(part + 1, SmallVec::new());
        }
        parts[part].push(gradient);
    }

    /// Whether the loss depends on a node.
    pub(super) fn reaches(&self, id: NodeId) -> bool {
        self.0.contains_key(&id)
    }

    /// The gradients by the parts of a node's result, each the sum of its terms from now on.
    pub(super) fn totals(&mut self, t: &Tracer<'t>, id: NodeId) -> Vec<Option<Var<'t>>> {
        let Some(parts) = self.0.get_mut(&id) else { return Vec::new() };
        for terms in parts.iter_mut().filter(|terms| terms.len() > 1) {
            let total = concatenated(t, terms).or_else(|| terms.iter().copied().reduce(|sum, term| sum + term));
            *terms = total.into_iter().collect();
        }
        parts.iter().map(|terms| terms.first().copied()).collect()
    }
}

/// The sum of gradients by slices that tile an axis: each was padded with zeros where the others are, so that they lie
/// side by side.
fn concatenated<'t>(t: &Tracer<'t>, terms: &[Var<'t>]) -> Option<Var<'t>> {
    let pads: Option<Vec<(Arc<Pad>, NodeId)>> = t.graph(|graph| {
        let pad = |term: &Var<'t>| {
            let node = graph.node(term.id()?);
            match &node.op {
                Op::Pad(pad) => Some((pad.clone(), node.operands[0])),
                _ => None,
            }
        };
        terms.iter().map(pad).collect()
    });
    let pads = pads?;
    let plain = |pad: &Pad| pad.value.as_f64() == 0.0 && pad.interior.iter().all(|gap| *gap == 0);
    let axis = (0..pads[0].0.low.len()).find(|axis| {
        let others = |pad: &Pad| {
            (0..pad.low.len()).filter(|other| other != axis).all(|other| pad.low[other].is(0) && pad.high[other].is(0))
        };
        pads.iter().all(|(pad, _)| plain(pad) && others(pad))
    })?;
    // in order along the axis: each begins where another ends
    let mut end = Dim::ZERO;
    let mut parts = Vec::with_capacity(pads.len());
    for _ in 0..pads.len() {
        let (pad, inner) = pads.iter().find(|(pad, _)| pad.low[axis] == end)?;
        let part = t.var(*inner);
        end = end + part.shape()[axis].clone();
        parts.push(part);
        if parts.len() == pads.len() && !pad.high[axis].is(0) {
            return None;
        }
    }
    (end == terms[0].shape()[axis]).then(|| t.concat(&parts, axis as isize))
}
