//! Concatenation without copies: operands that are written where they belong.

use egret_ir::{Dim, Graph, NodeId, Op};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::{Layout, Layouts, whole_blocks, whole_channels};
use crate::partition::{Family, Partition, is_movement};

/// Kernels may rely on buffers that begin at a multiple of so many bytes.
const ALIGNMENT: i64 = 64;

/// Where an operand of a concatenation lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The concatenation.
    pub concat: NodeId,
    /// Bytes from its start.
    pub offset: Dim,
}

/// Values that lie in the buffer of a concatenation.
#[derive(Clone, Debug, Default)]
pub struct InPlace {
    /// Operands that their kernels write there, and concatenations that are the beginning of another, by node.
    pub parts: FxHashMap<NodeId, Part>,
    /// By concatenation, how many of its operands an earlier one holds that is its beginning.
    pub begun: FxHashMap<NodeId, usize>,
}

impl InPlace {
    /// Whether nothing needs to copy an operand of a concatenation.
    pub fn holds(&self, graph: &Graph, concat: NodeId, operand: usize) -> bool {
        let part = graph.node(concat).operands[operand];
        self.begun.get(&concat).is_some_and(|count| operand < *count)
            || self.parts.get(&part).is_some_and(|part| part.concat == concat)
    }
}

/// Finds operands that can be written into the buffer of a concatenation. Such an operand is one contiguous part of it
/// (nothing but 1 comes before the axis), lies as it does, and has no other place: it is no result of the graph, and in no
/// other concatenation, unless that is the beginning of this one. A concatenation may itself be an operand. Halos of all
/// that share a buffer become equal.
pub fn in_place(graph: &Graph, partition: &Partition, layouts: &mut Layouts, leaves: &[bool]) -> InPlace {
    let mut found = InPlace::default();
    let mut order: Vec<(NodeId, NodeId)> = Vec::new();
    let mut known: FxHashMap<(usize, &[NodeId]), NodeId> = FxHashMap::default();
    for group in partition.groups.iter().filter(|group| group.family == Family::Concat) {
        let concat = group.root;
        let Op::Concat(op) = &graph.node(concat).op else { continue };
        let shape = &graph.tensor_type(concat).shape;
        let contiguous = shape[..op.axis].iter().all(|extent| extent.is(1));
        let blocked = is_blocked(layouts, concat);
        let whole = !blocked || op.axis == 1 && whole_blocks(graph, concat, layouts.lanes);
        if leaves[concat.index()] || !contiguous || !whole || is_channels_last(layouts, concat) {
            continue;
        }
        let operands: &[NodeId] = &graph.node(concat).operands;
        let lies_alike = |part: NodeId| is_blocked(layouts, part) == blocked && !is_channels_last(layouts, part);
        let beginning = (2..operands.len()).rev().find_map(|count| {
            let other = *known.get(&(op.axis, &operands[..count]))?;
            (lies_alike(other) && !found.parts.contains_key(&other)).then_some((other, count))
        });
        let begun = beginning.map_or(0, |(_, count)| count);
        let mut seen: FxHashSet<NodeId> = FxHashSet::default();
        let twice: SmallVec<[NodeId; 2]> = operands.iter().copied().filter(|part| !seen.insert(*part)).collect();
        let fits = |part: NodeId| {
            !leaves[part.index()]
                && !found.parts.contains_key(&part)
                && !twice.contains(&part)
                && lies_alike(part)
                && is_written(graph, partition, part)
        };
        let mut parts: Vec<(NodeId, Part)> =
            beginning.iter().map(|(other, _)| (*other, Part { concat, offset: Dim::ZERO })).collect();
        let mut offset = Dim::ZERO;
        for (i, part) in operands.iter().enumerate() {
            let aligned = offset.modulo(&Dim::from(ALIGNMENT)).is(0);
            if i >= begun && (blocked || aligned) && fits(*part) {
                parts.push((*part, Part { concat, offset: offset.clone() }));
            }
            offset = offset + graph.tensor_type(*part).bytes();
        }
        let fills = |part: &NodeId| graph.tensor_type(*part).shape[op.axis].modulo(&Dim::from(layouts.lanes)).is(0);
        let copied = operands.len() - begun - (parts.len() - beginning.iter().len());
        // the kernel that copies the rest moves whole blocks, of images as they are
        let shown = |part: &NodeId| whole_channels(graph, *part, layouts.lanes).0 != *part;
        let moved = |part: &NodeId| is_movement(&graph.node(*part).op) && !is_blocked(layouts, *part) && !shown(part);
        if parts.is_empty() || blocked && copied > 0 && (!operands.iter().all(fills) || operands.iter().any(moved)) {
            continue;
        }
        known.insert((op.axis, operands), concat);
        order.extend(parts.iter().map(|(part, _)| (*part, concat)));
        found.parts.extend(parts);
        if begun > 0 {
            found.begun.insert(concat, begun);
        }
    }
    equalise(layouts, &order);
    place_blocks(graph, layouts, &mut found);
    found
}

fn is_blocked(layouts: &Layouts, id: NodeId) -> bool {
    matches!(layouts.of[id.index()], Layout::Blocked { .. })
}

fn is_channels_last(layouts: &Layouts, id: NodeId) -> bool {
    layouts.of[id.index()] == Layout::ChannelsLast
}

/// Whether a kernel of its own writes a value, and may do so anywhere.
fn is_written(graph: &Graph, partition: &Partition, id: NodeId) -> bool {
    // these may be the memory of their operand
    if matches!(
        graph.node(id).op,
        Op::Reshape(_) | Op::StopGradient(_) | Op::Recompute(_) | Op::Bitcast(_) | Op::Proj(_)
    ) {
        return false;
    }
    let family = partition.written_by[id.index()].map(|group| partition.groups[group].family);
    matches!(
        family,
        Some(Family::Map | Family::Concat | Family::Conv | Family::Window | Family::Dot | Family::Row | Family::Reduce)
    )
}

/// Gives all that share a buffer the widest halo among them.
fn equalise(layouts: &mut Layouts, pairs: &[(NodeId, NodeId)]) {
    let halo = |layouts: &Layouts, id: NodeId| match &layouts.of[id.index()] {
        Layout::Blocked { halo } => halo.clone(),
        Layout::RowMajor | Layout::ChannelsLast => SmallVec::new(),
    };
    // operands come before concatenations: once up, once down
    for (part, concat) in pairs.iter().chain(pairs.iter().rev()) {
        let (a, b) = (halo(layouts, *part), halo(layouts, *concat));
        let widest: SmallVec<[i64; 3]> = a.iter().zip(&b).map(|(a, b)| *a.max(b)).collect();
        for id in [part, concat] {
            if let Layout::Blocked { halo } = &mut layouts.of[id.index()] {
                halo.clone_from(&widest);
            }
        }
    }
}

/// Offsets of blocked operands, halos and lanes counted.
fn place_blocks(graph: &Graph, layouts: &Layouts, found: &mut InPlace) {
    let concats: FxHashSet<NodeId> = found.parts.values().map(|part| part.concat).collect();
    for concat in concats {
        let layout = &layouts.of[concat.index()];
        if *layout == Layout::RowMajor {
            continue;
        }
        let mut offset = Dim::ZERO;
        for id in &graph.node(concat).operands {
            let ty = graph.tensor_type(*id);
            if let Some(part) = found.parts.get_mut(id).filter(|part| part.concat == concat) {
                part.offset = offset.clone();
            }
            offset = offset + layouts.elements_of(&ty.shape, layout) * Dim::from(ty.dtype.size());
        }
    }
}
