//! Layout: how each stored value lies in memory.
//!
//! On the CPU every connected region of convolutions, pools and maps over their results is in blocked channels
//! `[N][C/L][H + 2 halo][W + 2 halo][L]`; everything else is row-major. The halo is the buffer's: the widest that a
//! convolution reads. On GPUs a region is in channels-last memory where that pays ([`channels_last`]).

mod channels;
pub mod channels_last;
mod convolution;
mod in_place;

use egret_ir::ops::{Conv, ConvForm};
use egret_ir::{DType, Dim, Graph, NodeId, Op};
use egret_program::DeviceDescription;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::partition::{Family, Partition, is_movement};
use crate::range::is_short;
use crate::schedule::cuda::F32Products;

pub use channels::{Channels, channels};
pub use in_place::{InPlace, Part, in_place};

/// How a value lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row-major without gaps.
    RowMajor,
    /// Row-major but for the second axis, which comes last.
    ChannelsLast,
    /// Blocked channels with a halo of zeros on every spatial axis.
    Blocked {
        /// Halo by spatial axis.
        halo: SmallVec<[i64; 3]>,
    },
}

/// Layouts by node; meaningful for nodes that partition stores.
pub struct Layouts {
    /// By node.
    pub of: Vec<Layout>,
    /// f32 lanes of a block.
    pub lanes: i64,
    /// Movement of channels that convolutions do while they read: no kernel writes these.
    pub taken: Vec<NodeId>,
    /// Of convolutions of GPUs, which of the first two operands are copied with channels last.
    pub copied: FxHashMap<NodeId, [bool; 2]>,
}

/// The convolution of a node, fused or not.
pub fn conv_of(op: &Op) -> Option<&Conv> {
    match op {
        Op::Conv(conv) => Some(conv),
        Op::Fused(fused) => conv_of(&fused.anchor),
        _ => None,
    }
}

/// Whether an operator maps what it reads first.
pub fn has_prologue(op: &Op) -> bool {
    matches!(op, Op::Fused(fused) if fused.prologue.is_some())
}

/// Whether the direct driver runs a convolution: of f32, or forward of integers that fit 16 bits; the result f32 or, forward,
/// integers of 8 or 32 bits; a constant number of channels and a window of constant size, one to
/// three spatial axes of any extent; for the gradient of the weights also channels of a group in whole blocks, unless there
/// is one group or each channel has its own; with a prologue one group and at most two spatial axes.
pub fn has_driver(graph: &Graph, id: NodeId, lanes: i64) -> bool {
    let node = graph.node(id);
    let Some(conv) = conv_of(&node.op) else { return false };
    let (x, w, y) = roles(conv, node, id);
    let ty = |id: NodeId| graph.tensor_type(id);
    let f32 = |id: NodeId| ty(id).dtype == DType::F32;
    let forward = conv.form == ConvForm::Forward;
    // an epilogue may quantise
    let result = f32(y) || forward && matches!(ty(y).dtype, DType::I32 | DType::U8 | DType::I8);
    let floats = f32(x) && f32(w);
    let shorts = forward && is_short(graph, x) && is_short(graph, w);
    let fixed = ty(w).shape.is_constant();
    let (Some(c), Some(o)) = (ty(x).shape[1].as_const(), ty(y).shape[1].as_const()) else { return false };
    if !(floats || shorts) || !result || !fixed || conv.spatial() > 3 || conv.spatial() == 0 {
        return false;
    }
    if has_prologue(&node.op) && (conv.groups != 1 || conv.spatial() > 2) {
        return false;
    }
    // the weights of two groups that share a vector have no kernel for their gradient
    let depthwise = conv.groups == c && conv.groups == o;
    let whole = conv.groups == 1 || depthwise || c / conv.groups % lanes == 0 && o / conv.groups % lanes == 0;
    whole || conv.form != ConvForm::WeightGrad
}

/// A convolution's image, weights and result: `y = conv(x, w)`, whichever of them the form computes.
fn roles(conv: &Conv, node: &egret_ir::Node, id: NodeId) -> (NodeId, NodeId, NodeId) {
    match conv.form {
        ConvForm::Forward => (node.operands[0], node.operands[1], id),
        ConvForm::InputGrad => (id, node.operands[1], node.operands[0]),
        ConvForm::WeightGrad => (node.operands[0], id, node.operands[1]),
    }
}

/// Chooses layouts. `known` tells what is known when it is loaded.
pub fn layout(
    graph: &Graph,
    partition: &Partition,
    device: &DeviceDescription,
    products: F32Products,
    must_be_row_major: &[bool],
    known: &dyn Fn(NodeId) -> bool,
) -> Layouts {
    let n = graph.nodes().len();
    let lanes = device.lanes();
    let mut layouts = Layouts { of: vec![Layout::RowMajor; n], lanes, taken: Vec::new(), copied: FxHashMap::default() };
    if !device.is_cpu() {
        channels_last::choose(graph, partition, device, products, must_be_row_major, known, &mut layouts);
        return layouts;
    }
    let users = graph.users();
    let mut blocked = vec![false; n];
    for group in &partition.groups {
        let id = group.root;
        let node = graph.node(id);
        let ty = graph.tensor_type(id);
        let image = (3..=5).contains(&ty.shape.rank()) && ty.shape[1].as_const().is_some();
        let words = matches!(ty.dtype, DType::F32 | DType::I32);
        blocked[id.index()] = image
            && match group.family {
                Family::Conv => {
                    has_driver(graph, id, lanes)
                        && !matches!(conv_of(&node.op), Some(c) if c.form == ConvForm::WeightGrad)
                }
                Family::Window => {
                    let windowed = match anchor(&node.op) {
                        Op::ReduceWindow(op) => op.window.size.len(),
                        Op::ReduceWindowGrad(op) => op.window.size.len(),
                        _ => 0,
                    };
                    let quantised = matches!(node.op, Op::Fused(_))
                        && ty.dtype == DType::I32
                        && graph.tensor_type(node.operands[0]).dtype == DType::F32;
                    windowed + 2 == ty.shape.rank()
                        && (ty.dtype == DType::F32 || quantised)
                        && feeds_image(graph, &users, id)
                        && (reads_blocked(graph, &blocked, id) || feeds_conv(graph, &users, id, lanes))
                }
                Family::Map | Family::Concat => {
                    words
                        && !must_be_row_major[id.index()]
                        && group.siblings.is_empty()
                        && (moves_channels(graph, &users, &blocked, id)
                            || whole_blocks(graph, id, lanes)
                                && reads_blocked(graph, &blocked, id)
                                && same_axes(graph, &blocked, id))
                }
                _ => false,
            };
        // results that leave are written row-major at once, unless a driver writes them
        if must_be_row_major[id.index()] && group.family != Family::Conv {
            blocked[id.index()] = false;
        }
    }
    layouts.taken = partition.groups.iter().map(|group| group.root).collect();
    layouts.taken.retain(|id| blocked[id.index()] && is_taken(graph, &users[id.index()], &blocked, *id, lanes));
    layouts.taken.iter().for_each(|id| blocked[id.index()] = false);
    for group in partition.groups.iter().filter(|g| blocked[g.root.index()]) {
        let rank = graph.tensor_type(group.root).shape.rank();
        layouts.of[group.root.index()] = Layout::Blocked { halo: SmallVec::from_elem(0, rank - 2) };
    }
    widen_halos(graph, partition, &mut layouts);
    layouts
}

fn anchor(op: &Op) -> &Op {
    match op {
        Op::Fused(fused) => &fused.anchor,
        other => other,
    }
}

/// Whether a blocked value of the same rank is among what a group reads.
fn reads_blocked(graph: &Graph, blocked: &[bool], id: NodeId) -> bool {
    sources(graph, blocked, id)
        .iter()
        .any(|s| blocked[s.index()] && graph.tensor_type(*s).shape.rank() == graph.tensor_type(id).shape.rank())
}

/// Whether a concatenation, or movement that an image is computed from, takes channels of blocked images.
fn moves_channels(graph: &Graph, users: &[SmallVec<[NodeId; 4]>], blocked: &[bool], id: NodeId) -> bool {
    let op = &graph.node(id).op;
    let moves = matches!(op, Op::Concat(_)) || is_movement(op) && feeds_image(graph, users, id);
    moves && channels(graph, id, &|image| blocked[image.index()]).is_some()
}

/// Whether movement of channels of one image is for depthwise convolutions alone, whose driver takes channels itself.
fn is_taken(graph: &Graph, users: &[NodeId], blocked: &[bool], id: NodeId, lanes: i64) -> bool {
    let taken =
        if is_movement(&graph.node(id).op) { channels(graph, id, &|image| blocked[image.index()]) } else { None };
    let one = taken.is_some_and(|taken| taken.iter().all(|(image, _)| *image == taken[0].0));
    one && users.iter().all(|user| {
        let node = graph.node(*user);
        let first = node.operands.first() == Some(&id) && !node.operands[1..].contains(&id);
        first && takes_channels(graph, *user) && has_driver(graph, *user, lanes)
    })
}

/// Whether the driver of a convolution takes the channels that it reads out of another image.
pub fn takes_channels(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let extent = |operand: usize, axis: usize| graph.tensor_type(node.operands[operand]).shape[axis].as_const();
    conv_of(&node.op).is_some_and(|conv| {
        let depthwise = extent(0, 1) == Some(conv.groups) && extent(1, 0) == Some(conv.groups) && conv.groups > 1;
        depthwise && conv.form == ConvForm::Forward && conv.spatial() <= 2 && !has_prologue(&node.op)
    })
}

/// Whether the parts of a concatenation of channels begin with a vector each.
fn whole_blocks(graph: &Graph, id: NodeId, lanes: i64) -> bool {
    let node = graph.node(id);
    match &node.op {
        Op::Concat(concat) if concat.axis == 1 => {
            let before_last = &node.operands[..node.operands.len().saturating_sub(1)];
            before_last.iter().all(|part| graph.tensor_type(*part).shape[1].modulo(&Dim::from(lanes)).is(0))
        }
        _ => true,
    }
}

/// Whether a map reads its blocked operands without moving axes, so that lanes stay lanes.
fn same_axes(graph: &Graph, blocked: &[bool], id: NodeId) -> bool {
    let mut todo: SmallVec<[NodeId; 8]> = SmallVec::from_slice(&[id]);
    let mut steps = 0;
    while let Some(at) = todo.pop() {
        steps += 1;
        if steps > 256 {
            return false;
        }
        if at != id && blocked[at.index()] {
            continue;
        }
        let node = graph.node(at);
        match node.op {
            Op::Pointwise(_) | Op::Cast(_) | Op::Concat(_) => todo.extend(node.operands.iter().copied()),
            _ if !is_movement(&node.op) => {}
            _ if sources(graph, blocked, at).iter().any(|s| blocked[s.index()]) => return false,
            _ => {}
        }
    }
    true
}

/// Stored values that a map reads, through maps and movement.
fn sources(graph: &Graph, blocked: &[bool], id: NodeId) -> SmallVec<[NodeId; 8]> {
    let mut found: SmallVec<[NodeId; 8]> = SmallVec::new();
    let mut seen: SmallVec<[NodeId; 16]> = SmallVec::new();
    let mut todo: SmallVec<[NodeId; 8]> = graph.node(id).operands.iter().copied().collect();
    while let Some(at) = todo.pop() {
        if seen.contains(&at) || seen.len() > 256 {
            continue;
        }
        seen.push(at);
        let node = graph.node(at);
        if blocked[at.index()] || !(is_movement(&node.op) || matches!(node.op, Op::Pointwise(_) | Op::Cast(_))) {
            found.push(at);
        } else {
            todo.extend(node.operands.iter().copied());
        }
    }
    found
}

/// Whether something that keeps images as images reads a value; a product reads it row-major.
fn feeds_image(graph: &Graph, users: &[SmallVec<[NodeId; 4]>], id: NodeId) -> bool {
    let image = |op: &Op| {
        let op = anchor(op);
        matches!(
            op,
            Op::Conv(_)
                | Op::ReduceWindow(_)
                | Op::ReduceWindowGrad(_)
                | Op::Pointwise(_)
                | Op::Concat(_)
                | Op::Reduce(_)
        )
    };
    users[id.index()].iter().any(|user| image(&graph.node(*user).op))
}

fn feeds_conv(graph: &Graph, users: &[SmallVec<[NodeId; 4]>], id: NodeId, lanes: i64) -> bool {
    users[id.index()].iter().any(|u| {
        conv_of(&graph.node(*u).op).is_some() && has_driver(graph, *u, lanes) && graph.node(*u).operands[0] == id
    })
}

/// Of a slice of channels that begins with a block, and ends with one or with the last channel: the value that it shows,
/// and the first channel. Any other value is what it is.
pub fn whole_channels(graph: &Graph, id: NodeId, lanes: i64) -> (NodeId, i64) {
    let node = graph.node(id);
    let Op::Slice(slice) = &node.op else { return (id, 0) };
    let of = node.operands[0];
    let shape = &graph.tensor_type(of).shape;
    let all = |axis: usize| slice.start[axis].is(0) && slice.limit[axis] == shape[axis];
    let others = (0..shape.rank()).all(|axis| slice.step[axis] == 1 && (axis == 1 || all(axis)));
    if shape.rank() < 3 || !others {
        return (id, 0);
    }
    let ends = slice.limit[1] == shape[1] || slice.limit[1].as_const().is_some_and(|end| end % lanes == 0);
    match slice.start[1].as_const() {
        Some(first) if first % lanes == 0 && ends => (of, first),
        _ => (id, 0),
    }
}

/// Every convolution widens the halos of the blocked values that it reads through taps.
fn widen_halos(graph: &Graph, partition: &Partition, layouts: &mut Layouts) {
    for group in partition.groups.iter().filter(|g| g.family == Family::Conv) {
        let node = graph.node(group.root);
        let Some(conv) = conv_of(&node.op) else { continue };
        if !has_driver(graph, group.root, layouts.lanes) {
            continue;
        }
        let (read, _) = whole_channels(graph, node.operands[0], layouts.lanes);
        let needed = read_halo(graph, conv, group.root);
        if let Layout::Blocked { halo } = &mut layouts.of[read.index()] {
            for (have, need) in halo.iter_mut().zip(&needed) {
                *have = (*have).max(*need);
            }
        }
    }
}

/// The halo that a convolution reads around its first operand: none where it maps that first; where extents depend on
/// symbols, the most that it may read.
///
/// The extent i of x and o of y are bound by `i + low + high - reach - 1 = (o - 1)·stride + r`, `0 ≤ r < stride`, so that
/// the forward form reads at most `high` beyond x, and the input gradient, which reads y at `(i - 1 + low) / stride` last,
/// at most `(reach - high + r) / stride` beyond y.
pub fn read_halo(graph: &Graph, conv: &Conv, id: NodeId) -> SmallVec<[i64; 3]> {
    if has_prologue(&graph.node(id).op) {
        return SmallVec::from_elem(0, conv.spatial());
    }
    let (x, w, y) = roles(conv, graph.node(id), id);
    let extent = |n: NodeId, axis: usize| graph.tensor_type(n).shape[2 + axis].as_const();
    (0..conv.spatial())
        .map(|axis| {
            let reach = (extent(w, axis).unwrap_or(1) - 1) * conv.dilation[axis];
            let (low, high, stride) = (conv.pad_low[axis], conv.pad_high[axis], conv.stride[axis]);
            let first = (reach - low + stride - 1).max(0) / stride;
            match (conv.form, extent(x, axis), extent(y, axis)) {
                (ConvForm::InputGrad, Some(i), Some(o)) => first.max((i + low - 1).max(0) / stride + 1 - o).max(0),
                (ConvForm::InputGrad, ..) => first.max((reach - high + stride - 1).max(0) / stride),
                (_, Some(i), Some(o)) => low.max((o - 1) * stride + reach + 1 - i - low).max(0),
                _ => low.max(high).max(0),
            }
        })
        .collect()
}

impl Layouts {
    /// Elements of a value as laid out, halo and padding of channels included.
    pub fn elements_of(&self, shape: &egret_ir::Shape, layout: &Layout) -> Dim {
        match layout {
            Layout::RowMajor | Layout::ChannelsLast => shape.elements(),
            Layout::Blocked { halo } => {
                let lanes = Dim::from(self.lanes);
                let blocks = shape[1].ceil_div(&lanes);
                let pixels = shape[2..].iter().zip(halo).fold(Dim::ONE, |n, (s, h)| n * (s.clone() + Dim::from(2 * h)));
                shape[0].clone() * blocks * pixels * lanes
            }
        }
    }
}
