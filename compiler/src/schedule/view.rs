//! Strided views: values that are other values read with other strides.

use egret_ir::{Dim, Graph, NodeId, Op, Shape};
use smallvec::SmallVec;

/// A value as a strided view of a row-major stored value.
#[derive(Clone, Debug, PartialEq)]
pub struct StridedView {
    /// The stored value.
    pub source: NodeId,
    /// Elements from its start.
    pub offset: Dim,
    /// Elements from an index to the next, by axis; 0 where it repeats.
    pub strides: SmallVec<[Dim; 6]>,
}

/// The value as a view of what `stored` says is in memory, row-major; `None` when no strides describe it.
pub fn strided(graph: &Graph, id: NodeId, stored: &dyn Fn(NodeId) -> bool) -> Option<StridedView> {
    // walk down to the stored value, then rebuild upwards
    let mut path: SmallVec<[NodeId; 8]> = SmallVec::new();
    let mut at = id;
    while !stored(at) {
        let node = graph.node(at);
        match node.op {
            Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Slice(_)
            | Op::StopGradient(_)
            | Op::Recompute(_) => {
                path.push(at);
                at = node.operands[0];
            }
            _ => return None,
        }
    }
    let mut view = StridedView { source: at, offset: Dim::ZERO, strides: row_major(&graph.tensor_type(at).shape) };
    let mut shape = graph.tensor_type(at).shape.clone();
    for step in path.iter().rev() {
        let node = graph.node(*step);
        let result = &graph.tensor_type(*step).shape;
        match &node.op {
            Op::Transpose(transpose) => {
                view.strides = transpose.permutation.iter().map(|axis| view.strides[*axis].clone()).collect();
            }
            Op::Broadcast(_) => {
                let lead = result.rank() - shape.rank();
                let strides = (0..result.rank()).map(|axis| match axis.checked_sub(lead) {
                    Some(inner) if !shape[inner].is(1) || result[axis].is(1) => view.strides[inner].clone(),
                    _ => Dim::ZERO,
                });
                view.strides = strides.collect();
            }
            Op::Slice(slice) => {
                for axis in 0..result.rank() {
                    let stride = view.strides[axis].clone();
                    view.offset = view.offset + slice.start[axis].clone() * stride.clone();
                    view.strides[axis] = stride * Dim::from(slice.step[axis]);
                }
            }
            Op::Reshape(_) => view.strides = reshaped(&shape, &view.strides, result)?,
            _ => {}
        }
        shape = result.clone();
    }
    Some(view)
}

/// Whether [`strided`] finds a view.
pub fn resolves(graph: &Graph, id: NodeId, stored: &dyn Fn(NodeId) -> bool) -> bool {
    strided(graph, id, stored).is_some()
}

/// Row-major strides.
pub fn row_major(shape: &Shape) -> SmallVec<[Dim; 6]> {
    shape.strides().into_iter().collect()
}

/// Runs of axes of two shapes with equal products: `(from, to)` ranges, in order. `None` when products cannot be
/// compared.
pub fn matching_runs(from: &[Dim], to: &[Dim]) -> Option<Vec<(std::ops::Range<usize>, std::ops::Range<usize>)>> {
    let mut runs = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() || j < to.len() {
        let (start_i, start_j) = (i, j);
        let (mut a, mut b) = (Dim::ONE, Dim::ONE);
        if i < from.len() {
            a = from[i].clone();
            i += 1;
        }
        if j < to.len() {
            b = to[j].clone();
            j += 1;
        }
        while a != b {
            // extend the side whose product divides the other's
            let extend_to = match (a.exact_div(&b), b.exact_div(&a)) {
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some(_), Some(_)) => break,
                (None, None) => (b.clone() - a.clone()).range().1 <= 0,
            };
            if extend_to {
                b = b * to.get(j)?.clone();
                j += 1;
            } else {
                a = a * from.get(i)?.clone();
                i += 1;
            }
        }
        runs.push((start_i..i, start_j..j));
    }
    Some(runs)
}

/// Strides of a reshape of a strided value, if strides describe it.
fn reshaped(from: &Shape, strides: &[Dim], to: &Shape) -> Option<SmallVec<[Dim; 6]>> {
    let mut result: SmallVec<[Dim; 6]> = smallvec::smallvec![Dim::ZERO; to.rank()];
    for (source, target) in matching_runs(from, to)? {
        // axes of extent 1 do not count
        let inner: SmallVec<[usize; 4]> = source.filter(|axis| !from[*axis].is(1)).collect();
        // the run must be one axis cut up: each stride is the next one times its extent
        for pair in inner.windows(2) {
            if strides[pair[0]] != strides[pair[1]].clone() * from[pair[1]].clone() {
                return None;
            }
        }
        let mut stride = inner.last().map_or(Dim::ONE, |axis| strides[*axis].clone());
        for axis in target.rev() {
            result[axis] = if to[axis].is(1) { Dim::ZERO } else { stride.clone() };
            stride = stride * to[axis].clone();
        }
    }
    Some(result)
}
