//! Regions of images in channels-last memory, for GPUs.
//!
//! A convolution by tensor cores copies neighbouring channels of a pixel; row-major, neighbours are pixels, which padding and
//! taps shift by less than what is copied at once. What computes images from images keeps them as they are. Everything
//! else reads an element at a time from sectors that hold other channels, which is what a region costs.

use egret_ir::ops::ConvForm;
use egret_ir::{DType, Dim, Graph, NodeId, Op};
use egret_program::DeviceDescription;
use smallvec::SmallVec;

use super::{Layout, Layouts, conv_of, reads_blocked, same_axes};
use crate::cost::{self, SYMBOL_HINT};
use crate::partition::{Family, Partition};
use crate::schedule::cuda::F32Products;

/// Bytes that memory gives at least.
const SECTOR: f64 = 32.0;
/// An image of a multiple of so many channels is copied where it enters a region: as many as go at once.
pub const COPIED_CHANNELS: i64 = 8;
/// What an engine of multiply-adds gains where it reads neighbours: a share of its time.
const COALESCED: f64 = 0.1;

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
    region.price(&candidate, device, products);
    for i in (0..candidate.len()).filter(|i| candidate[*i]) {
        if region.gain[region.root(i)] > 0.0 {
            layouts.of[i] = Layout::ChannelsLast;
        }
    }
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

    fn price(&mut self, candidate: &[bool], device: &DeviceDescription, products: F32Products) {
        let graph = self.graph;
        let fma = device.core_gflops * f64::from(device.cores);
        let matrix = device.block_limits().2 * f64::from(device.cores);
        let bytes = |id: NodeId| graph.tensor_type(id).bytes().hint(SYMBOL_HINT) as f64;
        let copy = |id: NodeId| 2.0 * bytes(id) / device.memory_gbps;
        // what wastes parts of sectors wastes the second cache's bandwidth: neighbours in memory are read soon after
        let wasted = |id: NodeId| {
            let share = SECTOR / graph.tensor_type(id).dtype.size() as f64 - 1.0;
            share * bytes(id) / device.cache_gbps
        };
        for group in &self.partition.groups {
            let id = group.root;
            let node = graph.node(id);
            let Some(conv) = conv_of(&node.op) else { continue };
            let images = [id, node.operands[0], node.operands[1]];
            let Some(of) = images.into_iter().find(|id| candidate[id.index()]) else { continue };
            let types: SmallVec<[_; 4]> = node.operands.iter().map(|o| graph.ty(*o)).collect();
            let flops = cost::sketch(&node.op, &types, &node.ty, &|_| false).flops;
            let mut gain = match (graph.tensor_type(node.operands[0]).dtype, products) {
                (DType::F32, F32Products::Fma) => COALESCED * flops / fma,
                (DType::I8 | DType::U8, _) if conv.wide => flops / fma - 0.5 * flops / matrix,
                (DType::I8 | DType::U8 | DType::I32, _) => COALESCED * flops / fma,
                (DType::F32, F32Products::Tf32) => flops / fma - 2.0 * flops / matrix,
                (DType::F32, F32Products::Tf32x3) => flops / fma - 6.0 * flops / matrix,
                _ => flops / fma - flops / matrix,
            };
            // images that enter are copied, if their channels are worth it; one that leaves is written pixel by pixel
            let entering = if conv.form == ConvForm::WeightGrad { 2 } else { 1 };
            for read in node.operands[..entering].iter().filter(|read| !candidate[read.index()]) {
                let few = graph.tensor_type(*read).shape[1].as_const().is_none_or(|n| n % COPIED_CHANNELS != 0);
                gain -= if few { 0.0 } else { copy(*read) };
            }
            if conv.form != ConvForm::WeightGrad && !candidate[id.index()] {
                gain -= wasted(id);
            }
            let root = self.root(of.index());
            self.gain[root] += gain;
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
            self.gain[root] -= lost + if copied { copy(id) + 1e3 * device.launch_us } else { 0.0 };
        }
    }
}
