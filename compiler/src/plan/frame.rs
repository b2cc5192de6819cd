//! A graph while it is planned: which values are in which buffers, and how they lie.

use egret_ir::{Graph, NodeId, Op};
use egret_program::{BufferId, Step};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::layout::{InPlace, Layout};
use crate::rewrite::term::BindingTime;
use crate::rewrite::time_of;
use crate::schedule::scope::{Stored, Value, value_of};
use crate::schedule::view::{StridedView, strided};

/// A graph while it is planned. The graph is owned, because broadcasts of extra operands are added to it.
pub struct Frame {
    /// The graph.
    pub graph: Graph,
    /// Buffers of stored values.
    pub buffers: FxHashMap<Value, BufferId>,
    /// Layouts of stored values.
    pub layouts: FxHashMap<Value, Layout>,
    /// When each node is known.
    pub times: Vec<BindingTime>,
    /// Row-major copies of blocked values.
    pub row_major: FxHashMap<Value, BufferId>,
    /// Channels-last copies of row-major values.
    pub channels_last: FxHashMap<Value, BufferId>,
    /// Of convolutions of GPUs, which of the first two operands are copied there.
    pub copied: FxHashMap<NodeId, [bool; 2]>,
    /// Blocked copies of row-major values, by halo.
    pub blocked: FxHashMap<(Value, SmallVec<[i64; 3]>), BufferId>,
    /// Values that lie in the buffer of a concatenation.
    pub in_place: InPlace,
    /// Those concatenations, and their buffers once the first operand needs it.
    pub hosts: FxHashMap<NodeId, Option<BufferId>>,
    /// Values that are written straight into results.
    pub direct: FxHashMap<Value, BufferId>,
    /// States that are written where they are, by the value that updates them.
    pub updated: FxHashMap<NodeId, BufferId>,
    /// Inputs of a loop's body that are the same in every step.
    pub invariant: Vec<NodeId>,
    /// What is done with these once, before the loop.
    pub before: Vec<Step>,
    lanes: i64,
}

impl Stored for Frame {
    fn layout(&self, value: Value) -> Option<&Layout> {
        self.layouts.get(&value)
    }

    fn lanes(&self) -> i64 {
        self.lanes
    }

    fn is_in_place(&self, concat: NodeId, operand: usize) -> bool {
        self.in_place.holds(&self.graph, concat, operand)
    }
}

/// A frame as a kernel sees it that reads the row-major or channels-last copy of a value that has one.
pub struct Copies<'f>(pub &'f Frame, pub Layout);

impl Stored for Copies<'_> {
    fn layout(&self, value: Value) -> Option<&Layout> {
        match self.copy(value) {
            Some(_) => Some(&self.1),
            None => self.0.layouts.get(&value),
        }
    }

    fn lanes(&self) -> i64 {
        self.0.lanes
    }

    fn is_in_place(&self, concat: NodeId, operand: usize) -> bool {
        self.0.is_in_place(concat, operand)
    }
}

impl Copies<'_> {
    /// The copy that the kernel reads.
    pub fn copy(&self, value: Value) -> Option<BufferId> {
        let copies = if self.1 == Layout::ChannelsLast { &self.0.channels_last } else { &self.0.row_major };
        copies.get(&value).copied()
    }

    /// Where the kernel finds a value.
    pub fn buffer(&self, value: Value) -> BufferId {
        self.copy(value).unwrap_or_else(|| self.0.buffers[&value])
    }
}

impl Frame {
    /// A frame in which nothing is stored. `loaded` tells inputs that are known at load.
    pub fn new(graph: Graph, lanes: i64, loaded: &dyn Fn(NodeId) -> bool) -> Frame {
        let mut frame = Frame {
            graph,
            buffers: FxHashMap::default(),
            layouts: FxHashMap::default(),
            times: Vec::new(),
            row_major: FxHashMap::default(),
            channels_last: FxHashMap::default(),
            copied: FxHashMap::default(),
            blocked: FxHashMap::default(),
            in_place: InPlace::default(),
            hosts: FxHashMap::default(),
            direct: FxHashMap::default(),
            updated: FxHashMap::default(),
            invariant: Vec::new(),
            before: Vec::new(),
            lanes,
        };
        for i in 0..frame.graph.nodes().len() {
            frame.time_node(NodeId::new(i), loaded);
        }
        frame
    }

    fn time_node(&mut self, id: NodeId, loaded: &dyn Fn(NodeId) -> bool) {
        let node = self.graph.node(id);
        let given = matches!(node.op, Op::Input(_)) && loaded(id) && node.ty.parts()[0].shape.is_constant();
        self.times.push(if given { BindingTime::Load } else { time_of(node, &self.times) });
    }

    /// Adds a node.
    ///
    /// # Errors
    /// When the operands do not fit.
    pub fn add(&mut self, op: impl Into<Op>, operands: &[NodeId]) -> Result<NodeId, egret_ir::Diagnostic> {
        let id = self.graph.add(op, operands)?;
        self.time_node(id, &|_| false);
        Ok(id)
    }

    /// The state or result into which a row-major value is written at once.
    pub fn destination(&self, id: NodeId) -> Option<BufferId> {
        let buffer = self.updated.get(&id).or_else(|| self.direct.get(&(id, 0))).copied();
        buffer.filter(|_| self.layouts.get(&(id, 0)).is_none_or(|layout| *layout == Layout::RowMajor))
    }

    /// Puts a value into a buffer.
    pub fn store(&mut self, value: Value, buffer: BufferId, layout: Layout) {
        self.buffers.insert(value, buffer);
        self.layouts.insert(value, layout);
    }

    /// Images in blocked channels that a value is computed from, through values that are not stored.
    pub fn blocked_sources(&self, id: NodeId) -> SmallVec<[Value; 4]> {
        let mut found: SmallVec<[Value; 4]> = SmallVec::new();
        let mut seen: rustc_hash::FxHashSet<NodeId> = rustc_hash::FxHashSet::default();
        let mut todo: SmallVec<[NodeId; 8]> = self.graph.node(id).operands.iter().copied().collect();
        while let Some(at) = todo.pop() {
            if !seen.insert(at) {
                continue;
            }
            let value = value_of(&self.graph, at);
            match self.layouts.get(&value).filter(|_| self.buffers.contains_key(&value)) {
                Some(Layout::Blocked { .. }) if self.is_image(value) => {
                    if !found.contains(&value) {
                        found.push(value);
                    }
                }
                Some(_) => {}
                None => todo.extend(self.graph.node(at).operands.iter().copied()),
            }
        }
        found
    }

    /// Whether a blocked value has more than one pixel: else its lanes lie as a row-major vector does.
    fn is_image(&self, value: Value) -> bool {
        self.graph.ty(value.0).parts()[value.1].shape[2..].iter().any(|d| !d.is(1))
    }

    /// Whether a node's value is in memory.
    pub fn is_stored(&self, id: NodeId) -> bool {
        self.buffers.contains_key(&value_of(&self.graph, id))
    }

    /// Whether a node's value is in memory row-major, as such or as a copy.
    pub fn is_row_major(&self, id: NodeId) -> bool {
        let value = value_of(&self.graph, id);
        self.row_major.contains_key(&value) || self.layouts.get(&value) == Some(&Layout::RowMajor)
    }

    /// The row-major buffer of a stored value.
    pub fn row_major_buffer(&self, id: NodeId) -> Option<BufferId> {
        let value = value_of(&self.graph, id);
        if self.layouts.get(&value) == Some(&Layout::RowMajor) {
            return self.buffers.get(&value).copied();
        }
        self.row_major.get(&value).copied()
    }

    /// A value as a strided view of something row-major in memory.
    pub fn view(&self, id: NodeId) -> Option<StridedView> {
        strided(&self.graph, id, &|source| self.is_row_major(source))
    }

    /// Whether all operands of a concatenation are written where they belong.
    pub fn is_whole(&self, concat: NodeId) -> bool {
        self.hosts.contains_key(&concat)
            && (0..self.graph.node(concat).operands.len()).all(|operand| self.is_in_place(concat, operand))
    }

    /// When a node is known.
    pub fn time(&self, id: NodeId) -> BindingTime {
        self.times[id.index()]
    }

    /// The stored value below a chain of movement.
    pub fn source(&self, id: NodeId) -> NodeId {
        let mut at = id;
        while !self.is_stored(at) && crate::partition::is_movement(&self.graph.node(at).op) {
            match self.graph.node(at).operands.first() {
                Some(operand) => at = *operand,
                None => break,
            }
        }
        at
    }
}
