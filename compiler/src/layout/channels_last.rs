//! Regions of images in channels-last memory, for GPUs.
//!
//! A convolution by tensor cores copies neighbouring channels of a pixel; row-major, neighbours are pixels, which padding and
//! taps shift by less than what is copied at once, so that elements come one by one ([`Convolution`]). What computes images
//! from images keeps them as they are. Everything else reads an element at a time from sectors that hold other channels,
//! which is what a region costs. Outside of regions an operand is copied where its convolution gains more.

use egret_ir::ops::ConvForm;
use egret_ir::{DType, Dim, Graph, NodeId, Op};
use egret_program::DeviceDescription;
use smallvec::SmallVec;

use super::convolution::Convolution;
use super::{Layout, Layouts, conv_of, reads_blocked, same_axes};
use crate::cost::SYMBOL_HINT;
use crate::partition::{Family, Partition, is_movement};
use crate::schedule::cuda::F32Products;

/// Bytes that memory gives at least.
const SECTOR: f64 = 32.0;

/// Row-major strides of memory in which the second axis comes last.
pub fn strides(shape: &[Dim]) -> SmallVec<[Dim; 6]> {
    let mut strides: SmallVec<[Dim; 6]> = SmallVec::from_elem(Dim::ONE, shape.len());
    let mut stride = Dim::ONE;
    for axis in order(shape.len()).into_iter().rev() {
        strides[axis] = stride.clone();
        stride = stride * shape[axis].clone();
    }
    strides
}

/// Axes from the outermost in memory to the innermost.
pub fn order(rank: usize) -> SmallVec<[usize; 6]> {
    (0..rank).filter(|axis| *axis != 1).chain((rank > 1).then_some(1)).collect()
}

/// Lays regions out, each if its convolutions gain more than what else reads it loses.
pub(super) fn choose(
    graph: &Graph,
    partition: &Partition,
    device: &DeviceDescription,
    products: F32Products,
    row_major: &[bool],
    known: &Known,
    layouts: &mut Layouts,
) {
    let users = graph.users();
    let mut region = Regions { graph, partition, users: &users, parent: Vec::new(), gain: Vec::new() };
    let mut candidate = vec![false; graph.nodes().len()];
    for group in &partition.groups {
        let id = group.root;
        let node = graph.node(id);
        let Some(ty) = node.ty.tensor() else { continue };
        let image = matches!(ty.dtype, DType::F16 | DType::BF16 | DType::F32 | DType::I8 | DType::U8 | DType::I32)
            && (3..=5).contains(&ty.shape.rank())
            && ty.shape[1..].iter().all(|d| d.as_const().is_some())
            && ty.shape[2..].iter().any(|d| !d.is(1));
        let keeps = match group.family {
            Family::Conv => conv_of(&node.op).is_some_and(|conv| conv.form != ConvForm::WeightGrad),
            Family::Window => windowed(&node.op) + 2 == ty.shape.rank() && reads_blocked(graph, &candidate, id),
            Family::Map | Family::Concat => {
                group.siblings.is_empty() && reads_blocked(graph, &candidate, id) && same_axes(graph, &candidate, id)
            }
            _ => false,
        };
        candidate[id.index()] = image && keeps && !row_major[id.index()] && region.is_readable(id);
    }
    region.parent = (0..graph.nodes().len()).collect();
    region.gain = vec![0.0; graph.nodes().len()];
    region.join(&candidate);
    region.price(&candidate, device, products, known);
    for i in (0..candidate.len()).filter(|i| candidate[*i]) {
        if region.gain[region.root(i)] > 0.0 {
            layouts.of[i] = Layout::ChannelsLast;
        }
    }
    copies(graph, partition, device, products, known, layouts);
}

fn windowed(op: &Op) -> usize {
    match super::anchor(op) {
        Op::ReduceWindow(op) => op.window.size.len(),
        Op::ReduceWindowGrad(op) => op.window.size.len(),
        _ => 0,
    }
}

/// Candidates that touch, as trees.
struct Regions<'g> {
    graph: &'g Graph,
    partition: &'g Partition,
    users: &'g [SmallVec<[NodeId; 4]>],
    parent: Vec<usize>,
    /// Nanoseconds, at the trees' roots.
    gain: Vec<f64>,
}

impl Regions<'_> {
    fn root(&self, mut at: usize) -> usize {
        while self.parent[at] != at {
            at = self.parent[at];
        }
        at
    }

    /// The groups that read a value, through what is computed where it is read.
    fn readers(&self, id: NodeId) -> SmallVec<[usize; 8]> {
        let mut found: SmallVec<[usize; 8]> = SmallVec::new();
        let mut seen: SmallVec<[NodeId; 16]> = SmallVec::new();
        let mut todo: SmallVec<[NodeId; 8]> = self.users[id.index()].iter().copied().collect();
        while let Some(user) = todo.pop() {
            if seen.contains(&user) {
                continue;
            }
            seen.push(user);
            match self.partition.written_by[user.index()] {
                Some(group) if !found.contains(&group) => found.push(group),
                Some(_) => {}
                None => todo.extend(self.users[user.index()].iter().copied()),
            }
        }
        found
    }

    /// Whether every kernel that reads a value finds its elements wherever they are.
    fn is_readable(&self, id: NodeId) -> bool {
        self.readers(id).iter().all(|group| {
            matches!(
                self.partition.groups[*group].family,
                Family::Map | Family::Concat | Family::Conv | Family::Window | Family::Reduce | Family::Dot
            )
        })
    }

    fn join(&mut self, candidate: &[bool]) {
        for i in (0..candidate.len()).filter(|i| candidate[*i]) {
            for group in self.readers(NodeId::new(i)) {
                let reader = self.partition.groups[group].root.index();
                if candidate[reader] {
                    let (a, b) = (self.root(i), self.root(reader));
                    // the earlier one is the root: trees stay shallow in topological order
                    self.parent[a.max(b)] = a.min(b);
                }
            }
        }
    }

    fn price(&mut self, candidate: &[bool], device: &DeviceDescription, products: F32Products, known: &Known) {
        let graph = self.graph;
        let bytes = |id: NodeId| graph.tensor_type(id).bytes().hint(SYMBOL_HINT) as f64;
        // what wastes parts of sectors wastes the second cache's bandwidth: neighbours in memory are read soon after
        let wasted = |id: NodeId| {
            let share = SECTOR / graph.tensor_type(id).dtype.size() as f64 - 1.0;
            share * bytes(id) / device.cache_gbps
        };
        for group in &self.partition.groups {
            let id = group.root;
            let Some(convolution) = Convolution::new(graph, id, device, products) else { continue };
            let operands = [graph.node(id).operands[0], graph.node(id).operands[1]];
            let images = [id, operands[0], operands[1]];
            let Some(of) = images.into_iter().find(|id| candidate[id.index()]) else { continue };
            let apart = Operands { graph, partition: self.partition, ids: operands, known, device };
            let (_, outside) = apart.best(&convolution, [false; 2], false);
            let (_, inside) = apart.best(&convolution, operands.map(|id| candidate[id.index()]), candidate[id.index()]);
            let root = self.root(of.index());
            self.gain[root] += outside - inside;
        }
        for i in (0..candidate.len()).filter(|i| candidate[*i]) {
            let id = NodeId::new(i);
            let others = self.readers(id).into_iter().filter(|group| {
                let group = &self.partition.groups[*group];
                group.family != Family::Conv && !candidate[group.root.index()]
            });
            let lost = others.count() as f64 * wasted(id);
            // row-major, the channels of one image lie one after the other, and are written there
            let joins = matches!(&graph.node(id).op, Op::Concat(op) if op.axis == 1);
            let copied = joins && graph.tensor_type(id).shape[0].is(1);
            let root = self.root(i);
            self.gain[root] -= lost + if copied { copy(graph, id, device) } else { 0.0 };
        }
    }
}

/// Nanoseconds of a copy in another layout.
fn copy(graph: &Graph, id: NodeId, device: &DeviceDescription) -> f64 {
    let bytes = graph.tensor_type(id).bytes().hint(SYMBOL_HINT) as f64;
    2.0 * bytes / device.memory_gbps + 1e3 * device.launch_us
}

/// What is copied for nothing: known when it is loaded, or copied already.
type Known<'k> = dyn Fn(NodeId) -> bool + 'k;

/// The operands of a convolution.
struct Operands<'g> {
    graph: &'g Graph,
    partition: &'g Partition,
    ids: [NodeId; 2],
    known: &'g Known<'g>,
    device: &'g DeviceDescription,
}

impl Operands<'_> {
    /// Whether a copy with channels last of an operand is another one.
    fn differs(&self, operand: usize) -> bool {
        let shape = &self.graph.tensor_type(self.ids[operand]).shape;
        let same = shape[1].is(1) || shape[2..].iter().all(|d| d.is(1));
        let (node, at) = (self.graph.node(self.ids[operand]), self.ids[operand].index());
        // views and what is computed where it is read have no memory
        let stored = self.partition.written_by[at].is_some() || node.operands.is_empty();
        !same && (stored || !is_movement(&node.op) && (self.known)(self.ids[operand]))
    }

    /// Which operands to copy, of those that do not lie with channels last, and the nanoseconds of that and the convolution.
    fn best(&self, convolution: &Convolution, last: [bool; 2], result: bool) -> ([bool; 2], f64) {
        // multiply-adds gain little, and that within regions
        if !convolution.is_matrix() && !result && !last[0] {
            return ([false; 2], convolution.time(last, result));
        }
        let mut best: Option<([bool; 2], f64)> = None;
        let free = self.ids.map(|id| (self.known)(id));
        // the first of equal ones copies what is copied for nothing, and nothing else
        for number in 0..4 {
            let copies = [0, 1].map(|i| free[i] != (number >> i & 1 == 1));
            let lies = [0, 1].map(|i| last[i] || copies[i]);
            if (0..2).any(|i| copies[i] && (last[i] || !self.differs(i) || !convolution.gains(i, lies))) {
                continue;
            }
            let paid = (0..2).filter(|i| copies[*i] && !free[*i]);
            let price: f64 = paid.map(|i| copy(self.graph, self.ids[i], self.device)).sum();
            let time = convolution.time(lies, result) + price;
            if best.is_none_or(|(_, least)| time < least) {
                best = Some((copies, time));
            }
        }
        best.unwrap_or(([false; 2], f64::INFINITY))
    }
}

/// Decides for each convolution which of its operands that lie row-major are copied with channels last.
fn copies(
    graph: &Graph,
    partition: &Partition,
    device: &DeviceDescription,
    products: F32Products,
    known: &Known,
    layouts: &mut Layouts,
) {
    let mut made: Vec<bool> = vec![false; graph.nodes().len()];
    for group in &partition.groups {
        let id = group.root;
        let Some(convolution) = Convolution::new(graph, id, device, products) else { continue };
        let ids = [graph.node(id).operands[0], graph.node(id).operands[1]];
        let is_last = |id: NodeId| layouts.of[id.index()] == Layout::ChannelsLast;
        let (last, result) = (ids.map(is_last), is_last(id));
        let known = |id: NodeId| known(id) || made[id.index()];
        let operands = Operands { graph, partition, ids, known: &known, device };
        let copied = operands.best(&convolution, last, result).0;
        for (copied, id) in copied.into_iter().zip(ids) {
            made[id.index()] |= copied;
        }
        layouts.copied.insert(id, copied);
    }
}
