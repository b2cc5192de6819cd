//! Elementwise kernels, and concatenation.

use egret_ir::{Dim, Graph, NodeId, Op};
use smallvec::SmallVec;

use super::cuda;
use super::scope::{Scope, Stored, value_of};
use crate::kernel::{Expr, LoopKind, Memory};
use crate::layout::Layout;
use crate::partition::is_inline;

/// Elements that one grid point of a flat map computes.
const CHUNK: i64 = 4096;

/// Builds a map: every value of `outputs` has the shape of the first, and may be read by those after it.
pub fn build(scope: &mut Scope, outputs: &[NodeId]) {
    scope.own = SmallVec::from_slice(&outputs[..outputs.len() - 1]);
    let memories: Vec<Memory> = outputs.iter().map(|id| scope.write((*id, 0))).collect();
    let root = outputs[0];
    let blocked = matches!(scope.stored.layout((root, 0)), Some(Layout::Blocked { .. }));
    if blocked {
        return blocked_loops(scope, root, |scope, index, live| store(scope, outputs, &memories, index, live));
    }
    match flat_axis(scope.graph, scope.stored, outputs) {
        Some((axis, leaves)) if scope.is_gpu() => {
            let total = scope.graph.tensor_type(root).shape.elements();
            let outputs: Vec<_> = outputs.iter().copied().zip(memories).collect();
            cuda::map::vectors(scope, &total, axis, &outputs, &leaves);
        }
        Some((axis, _)) => {
            let total = scope.graph.tensor_type(root).shape.elements();
            let rank = scope.graph.tensor_type(root).shape.rank();
            flat_loop(scope, &total, |scope, at| {
                let mut index: SmallVec<[Expr; 6]> = SmallVec::from_elem(Expr::int(0), rank);
                if rank > 0 {
                    index[axis] = at;
                }
                store(scope, outputs, &memories, &index, None);
            });
        }
        None => row_loops(scope, root, |scope, index| store(scope, outputs, &memories, index, None)),
    }
}

/// Builds a kernel of one map or several, each over elements of its own and with its own part of the grid. Several are
/// [flat](is_flat) and of constant extents.
pub fn build_all(scope: &mut Scope, maps: &[SmallVec<[NodeId; 4]>]) {
    if let [only] = maps {
        return build(scope, only);
    }
    scope.own = maps.iter().flat_map(|outputs| &outputs[..outputs.len() - 1]).copied().collect();
    let memories: Vec<Vec<Memory>> =
        maps.iter().map(|outputs| outputs.iter().map(|id| scope.write((*id, 0))).collect()).collect();
    let width = if scope.is_gpu() { cuda::map::CHUNK } else { CHUNK };
    let totals: Vec<Dim> = maps.iter().map(|outputs| scope.graph.tensor_type(outputs[0]).shape.elements()).collect();
    let chunks = |total: &Dim| total.ceil_div(&Dim::from(width));
    let all = scope.dim(&totals.iter().fold(Dim::ZERO, |n, total| n + chunks(total)));
    let at = scope.k.grid(all);
    let mut end = Dim::ZERO;
    for ((outputs, memories), total) in maps.iter().zip(memories).zip(&totals) {
        let first = scope.dim(&end);
        end = end + chunks(total);
        let last = scope.dim(&end);
        let Some((axis, _)) = flat_axis(scope.graph, scope.stored, outputs) else { continue };
        scope.if_(at.greater_equal(&first).and(at.less(&last)), |scope| {
            let chunk = scope.k.bind(&at - &first);
            let rank = scope.graph.tensor_type(outputs[0]).shape.rank();
            let body = |scope: &mut Scope, at: Expr| {
                let mut index: SmallVec<[Expr; 6]> = SmallVec::from_elem(Expr::int(0), rank);
                if rank > 0 {
                    index[axis] = at;
                }
                store(scope, outputs, &memories, &index, None);
            };
            if scope.is_gpu() {
                return cuda::map::stretch(scope, &chunk, total, body);
            }
            let stop = scope.dim(total);
            let start = scope.k.bind(chunk * Expr::int(CHUNK));
            let stop = scope.k.bind((&start + CHUNK).min(stop));
            scope.for_(start, stop, LoopKind::Vector, body);
        });
    }
}

/// Whether a map may run over a flat index: everything that it reads lies row-major as its results do, or is one element.
pub fn is_flat(graph: &Graph, stored: &dyn Stored, outputs: &[NodeId]) -> bool {
    flat_axis(graph, stored, outputs).is_some()
}

/// Stores each output's element; where `live` is false, zero (lanes beyond the channels).
fn store(scope: &mut Scope, outputs: &[NodeId], memories: &[Memory], index: &[Expr], live: Option<Expr>) {
    let mut values: SmallVec<[Expr; 4]> = SmallVec::new();
    for id in outputs {
        let value = match &live {
            None => compute(scope, *id, index),
            Some(live) => {
                let value = scope.live(live.clone(), |s| compute(s, *id, index));
                let dtype = scope.graph.tensor_type(*id).dtype;
                live.clone().select(value, Expr::constant(dtype, 0.0))
            }
        };
        // what a later output of the same kernel reads is this element, not memory
        let value = if outputs.len() > 1 { scope.k.bind(value) } else { value };
        scope.remember(*id, index, &value);
        values.push(value);
    }
    // what is written in place may have been read for another result
    for ((id, memory), value) in outputs.iter().zip(memories).zip(values) {
        let address = scope.address((*id, 0), index);
        scope.k.store(*memory, address, value);
    }
}

/// The element of a value that this kernel itself writes.
fn compute(scope: &mut Scope, id: NodeId, index: &[Expr]) -> Expr {
    scope.element_of_root(id, index)
}

/// One loop over all elements of a chunk.
pub fn flat_loop(scope: &mut Scope, total: &Dim, body: impl FnOnce(&mut Scope, Expr)) {
    if scope.is_gpu() {
        return cuda::map::flat(scope, total, body);
    }
    let end = scope.dim(total);
    let small = total.range().1 <= CHUNK;
    if small {
        scope.k.grid(Expr::int(1));
        return scope.for_(Expr::int(0), end, LoopKind::Vector, body);
    }
    let chunks = scope.dim(&total.ceil_div(&Dim::from(CHUNK)));
    let chunk = scope.k.grid(chunks);
    let start = scope.k.bind(chunk * Expr::int(CHUNK));
    let stop = scope.k.bind((start.clone() + Expr::int(CHUNK)).min(end));
    scope.for_(start, stop, LoopKind::Vector, body);
}

/// A grid over all axes but the last one that is not 1, and a vector loop over that. On CUDA, a flat loop.
pub fn row_loops(scope: &mut Scope, root: NodeId, body: impl FnOnce(&mut Scope, &[Expr])) {
    let shape = scope.graph.tensor_type(root).shape.clone();
    if scope.is_gpu() {
        return cuda::map::elements_of(scope, (root, 0), &shape, body);
    }
    let inner = shape.iter().rposition(|dim| !dim.is(1)).unwrap_or(0);
    let index = grid_over(scope, &shape[..inner.min(shape.rank())]);
    let mut index: SmallVec<[Expr; 6]> = index;
    if shape.rank() == 0 {
        return body(scope, &index);
    }
    let end = scope.dim(&shape[inner]);
    let rest = shape.rank() - inner - 1;
    scope.for_(Expr::int(0), end, LoopKind::Vector, |scope, at| {
        index.push(at);
        index.extend(std::iter::repeat_n(Expr::int(0), rest));
        body(scope, &index);
    });
}

/// Grid axes for `extents`; one index each. Beyond three, leading extents share an axis.
pub fn grid_over(scope: &mut Scope, extents: &[Dim]) -> SmallVec<[Expr; 6]> {
    let wide: SmallVec<[usize; 6]> = (0..extents.len()).filter(|i| !extents[*i].is(1)).collect();
    let mut index: SmallVec<[Expr; 6]> = SmallVec::from_elem(Expr::int(0), extents.len());
    if wide.is_empty() {
        scope.k.grid(Expr::int(1));
        return index;
    }
    let merged = wide.len().saturating_sub(2).max(1);
    let leading: SmallVec<[Dim; 6]> = wide[..merged].iter().map(|i| extents[*i].clone()).collect();
    let product = leading.iter().fold(Dim::ONE, |n, d| n * d.clone());
    // every axis of the grid before any other variable
    let first_extent = scope.dim(&product);
    let first = scope.k.grid(first_extent);
    for i in &wide[merged..] {
        let extent = scope.dim(&extents[*i]);
        index[*i] = scope.k.grid(extent);
    }
    for (i, at) in wide[..merged].iter().zip(scope.unflatten(first, &leading)) {
        index[*i] = at;
    }
    index
}

/// A grid over batch, rows and blocks of a blocked value, a loop over pixels and a vector loop over lanes: rows come first, as
/// convolutions write them, so that a thread finds what it reads in its own cache. The body gets
/// the condition that a lane is a channel in loops of their own over the last block, when not every lane of it is.
pub fn blocked_loops(scope: &mut Scope, root: NodeId, body: impl Fn(&mut Scope, &[Expr], Option<Expr>)) {
    let shape = scope.graph.tensor_type(root).shape.clone();
    let lanes = scope.stored.lanes();
    let (blocks, whole) = (shape[1].ceil_div(&Dim::from(lanes)), shape[1].floor_div(&Dim::from(lanes)));
    let last = shape.rank() - 1;
    let mut extents: SmallVec<[Dim; 6]> = smallvec::smallvec![shape[0].clone()];
    extents.extend(shape[2..last].iter().cloned());
    extents.push(blocks.clone());
    let outer = grid_over(scope, &extents);
    let block = outer[last - 1].clone();
    let pixels = scope.dim(&shape[last]);
    let channels = scope.dim(&shape[1]);
    let loops = |scope: &mut Scope, whole: bool| {
        scope.for_(Expr::int(0), pixels.clone(), LoopKind::Serial, |scope, pixel| {
            scope.for_(Expr::int(0), Expr::int(lanes), LoopKind::Vector, |scope, lane| {
                let channel = block.clone() * Expr::int(lanes) + lane.clone();
                scope.note_split(channel.clone(), block.clone(), lane);
                let live = (!whole).then(|| scope.k.bind(channel.less(channels.clone())));
                let mut index: SmallVec<[Expr; 6]> = smallvec::smallvec![outer[0].clone(), channel];
                index.extend(outer[1..last - 1].iter().cloned());
                index.push(pixel);
                body(scope, &index, live);
            });
        });
    };
    if blocks == whole || whole.is(0) {
        return loops(scope, blocks == whole);
    }
    let whole = scope.dim(&whole);
    scope.if_(block.less(whole.clone()), |scope| loops(scope, true));
    scope.if_(block.greater_equal(whole), |scope| loops(scope, false));
}

/// The axis along which a flat index may run, when everything that is read has the result's shape row-major, or is one
/// element; and what is read element by element.
fn flat_axis(graph: &Graph, memory: &dyn Stored, outputs: &[NodeId]) -> Option<(usize, Vec<NodeId>)> {
    let shape = &graph.tensor_type(outputs[0]).shape;
    let lies = memory.layout((outputs[0], 0)).unwrap_or(&Layout::RowMajor);
    if matches!(lies, Layout::Blocked { .. }) {
        return None;
    }
    let mut seen: SmallVec<[NodeId; 16]> = SmallVec::new();
    let mut todo: SmallVec<[NodeId; 16]> = SmallVec::new();
    let mut leaves = Vec::new();
    let expand = |id: NodeId, todo: &mut SmallVec<[NodeId; 16]>| match graph.node(id).op {
        Op::Pointwise(_) | Op::Cast(_) | Op::StopGradient(_) | Op::Recompute(_) => {
            todo.extend(graph.node(id).operands.iter().copied());
            true
        }
        _ => false,
    };
    for id in outputs {
        if !expand(*id, &mut todo) {
            return None;
        }
    }
    while let Some(id) = todo.pop() {
        if seen.contains(&id) || outputs.contains(&id) {
            continue;
        }
        seen.push(id);
        let ty = graph.tensor_type(id);
        let one = ty.shape.iter().all(|d| d.is(1));
        let fits = one || ty.shape == *shape;
        let stored = memory.layout(value_of(graph, id));
        if stored.is_some() && !one {
            leaves.push(id);
        }
        let ok = match stored {
            Some(layout) => fits && (one || layout == lies),
            None => match &graph.node(id).op {
                op @ Op::Const(_) => is_inline(op),
                Op::Pointwise(_) | Op::Cast(_) | Op::StopGradient(_) | Op::Recompute(_) => {
                    fits && expand(id, &mut todo)
                }
                _ => false,
            },
        };
        if !ok {
            return None;
        }
    }
    leaves.sort_unstable();
    let innermost = match lies {
        Layout::ChannelsLast if !shape[1].is(1) => Some(1),
        _ => shape.iter().rposition(|dim| !dim.is(1)),
    };
    Some((innermost.unwrap_or(0), leaves))
}

/// Builds a concatenation: each grid point copies its stretch of every part.
pub fn build_concat(scope: &mut Scope, id: NodeId, axis: usize) {
    let graph = scope.graph;
    let shape = graph.tensor_type(id).shape.clone();
    let lanes = Dim::from(scope.stored.lanes());
    let operands = graph.node(id).operands.clone();
    let blocked = matches!(scope.stored.layout((id, 0)), Some(Layout::Blocked { .. }));
    let whole_blocks =
        operands.iter().all(|o| graph.tensor_type(*o).shape[1.min(shape.rank() - 1)].modulo(&lanes).is(0));
    if scope.is_gpu() || blocked && !(axis == 1 && whole_blocks) {
        return build(scope, &[id]);
    }
    let out = scope.write((id, 0));
    if blocked {
        return blocked_concat(scope, id, out);
    }
    let outer = grid_over(scope, &shape[..axis]);
    let mut offset = Dim::ZERO;
    for (i, part) in operands.iter().enumerate() {
        let extents: Vec<Dim> = graph.tensor_type(*part).shape[axis..].to_vec();
        let start = scope.dim(&offset);
        offset = offset + extents[0].clone();
        if scope.stored.is_in_place(id, i) {
            continue;
        }
        nest(scope, &extents, SmallVec::new(), &mut |scope, inner| {
            let mut from = outer.clone();
            from.extend(inner.iter().cloned());
            let mut to = from.clone();
            to[axis] = from[axis].clone() + start.clone();
            let value = scope.element(*part, &from);
            let address = scope.address((id, 0), &to);
            scope.k.store(out, address, value);
        });
    }
}

/// Nested loops over extents, the last one that is not 1 by vectors.
pub fn nest(scope: &mut Scope, extents: &[Dim], index: SmallVec<[Expr; 6]>, body: &mut dyn FnMut(&mut Scope, &[Expr])) {
    let axis = index.len();
    let Some(extent) = extents.get(axis) else { return body(scope, &index) };
    if extent.is(1) {
        let mut index = index;
        index.push(Expr::int(0));
        return nest(scope, extents, index, body);
    }
    let innermost = extents[axis + 1..].iter().all(|d| d.is(1));
    let kind = if innermost { LoopKind::Vector } else { LoopKind::Serial };
    let end = scope.dim(extent);
    scope.for_(Expr::int(0), end, kind, |scope, at| {
        let mut index = index;
        index.push(at);
        nest(scope, extents, index, body);
    });
}

fn blocked_concat(scope: &mut Scope, id: NodeId, out: Memory) {
    let graph = scope.graph;
    let shape = graph.tensor_type(id).shape.clone();
    let lanes = scope.stored.lanes();
    let last = shape.rank() - 1;
    let mut extents: SmallVec<[Dim; 6]> = smallvec::smallvec![shape[0].clone()];
    extents.extend(shape[2..last].iter().cloned());
    let outer = grid_over(scope, &extents);
    let pixels = scope.dim(&shape[last]);
    let mut first_block = Dim::ZERO;
    for (i, part) in graph.node(id).operands.iter().enumerate() {
        let part_blocks = graph.tensor_type(*part).shape[1].floor_div(&Dim::from(lanes));
        let start = scope.dim(&first_block);
        first_block = first_block + part_blocks.clone();
        if scope.stored.is_in_place(id, i) {
            continue;
        }
        let end = scope.dim(&part_blocks);
        let outer = outer.clone();
        let pixels = pixels.clone();
        scope.for_(Expr::int(0), end, LoopKind::Serial, |scope, block| {
            scope.for_(Expr::int(0), pixels, LoopKind::Serial, |scope, pixel| {
                scope.for_(Expr::int(0), Expr::int(lanes), LoopKind::Vector, |scope, lane| {
                    let target = block.clone() + start;
                    let from = block.clone() * Expr::int(lanes) + lane.clone();
                    let to = target.clone() * Expr::int(lanes) + lane.clone();
                    scope.note_split(from.clone(), block, lane.clone());
                    scope.note_split(to.clone(), target, lane);
                    let index = |channel: Expr| -> SmallVec<[Expr; 6]> {
                        let mut index = smallvec::smallvec![outer[0].clone(), channel];
                        index.extend(outer[1..].iter().cloned());
                        index.push(pixel.clone());
                        index
                    };
                    let value = scope.element(*part, &index(from));
                    let address = scope.address((id, 0), &index(to));
                    scope.k.store(out, address, value);
                });
            });
        });
    }
}
