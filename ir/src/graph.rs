//! The graph: nodes in topological order by construction.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use crate::diagnostic::{Diagnostic, Origin};
use crate::ops::{Equality, InferCx, Op};
use crate::types::{TensorType, Type};
use crate::weights::Weights;

/// A node, and the value it computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// The place of the node in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// The id of the node at `index`.
    pub fn new(index: usize) -> NodeId {
        NodeId(index as u32)
    }
}

/// An operator applied to operands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// The operator with its attributes.
    pub op: Op,
    /// Operands, all earlier in the graph.
    pub operands: SmallVec<[NodeId; 4]>,
    /// The type of the value.
    pub ty: Type,
}

/// An equality of dims that a node needs; checked when symbols are bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Assumption {
    /// The node.
    pub node: NodeId,
    /// What must hold.
    pub equality: Equality,
}

/// A program of nodes. Equality, order and hash are of the structure; origins and weights do not count.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    inputs: Vec<NodeId>,
    outputs: Vec<(String, NodeId)>,
    updates: Vec<(String, NodeId)>,
    assumptions: Vec<Assumption>,
    origins: Vec<SmallVec<[Arc<Origin>; 1]>>,
    /// Users by node, made when first asked for.
    users: OnceLock<Vec<SmallVec<[NodeId; 4]>>>,
    /// Values of params and states.
    pub weights: Arc<Weights>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Graph {
        Graph::default()
    }

    /// An empty graph with weights.
    pub(crate) fn of_weights(weights: Arc<Weights>) -> Graph {
        Graph {
            nodes: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            updates: Vec::new(),
            assumptions: Vec::new(),
            origins: Vec::new(),
            users: OnceLock::new(),
            weights,
        }
    }

    /// An empty graph with the weights of `like`, and room for as many nodes.
    pub fn like(like: &Graph) -> Graph {
        let n = like.nodes.len();
        let (nodes, origins) = (Vec::with_capacity(n), Vec::with_capacity(n));
        Graph { nodes, origins, ..Graph::of_weights(like.weights.clone()) }
    }

    /// Appends a node and infers its type.
    ///
    /// # Errors
    /// `E0101` when the operands do not fit the operator.
    pub fn add(&mut self, op: impl Into<Op>, operands: &[NodeId]) -> Result<NodeId, Diagnostic> {
        self.add_from(op, operands, SmallVec::new())
    }

    /// Appends a node that comes from `origins`.
    ///
    /// # Errors
    /// `E0101` when the operands do not fit the operator; the diagnostic names the origins.
    pub fn add_from(
        &mut self,
        op: impl Into<Op>,
        operands: &[NodeId],
        origins: SmallVec<[Arc<Origin>; 1]>,
    ) -> Result<NodeId, Diagnostic> {
        let op = op.into();
        let mut cx = InferCx::default();
        let types: SmallVec<[Type; 4]> = operands.iter().map(|id| self.ty(*id).clone()).collect();
        let ty = op.home().infer(&types, &mut cx).map_err(|why| {
            let mut error = Diagnostic::new("E0101", format!("{}: {why}", op.home().name()));
            error.origin = origins.iter().map(|o| (**o).clone()).collect();
            error.note(format!("operands: {types:?}"))
        })?;
        let node = NodeId::new(self.nodes.len());
        self.assumptions.extend(cx.assumptions.into_iter().map(|equality| Assumption { node, equality }));
        Ok(self.push(Node { op, operands: SmallVec::from_slice(operands), ty }, origins))
    }

    /// Appends a node whose operator fits its operands and gives its type: one of another graph whose operands have
    /// their types here. What its type rule assumes is not recorded again.
    pub fn add_typed(&mut self, node: Node, origins: SmallVec<[Arc<Origin>; 1]>) -> NodeId {
        debug_assert!(
            {
                let types: SmallVec<[Type; 4]> = node.operands.iter().map(|id| self.ty(*id).clone()).collect();
                let same = |ty: Type| ty.parts().len() == node.ty.parts().len();
                node.op.home().infer(&types, &mut InferCx::default()).is_ok_and(same)
            },
            "{} does not fit its operands",
            node.op.home().name()
        );
        self.push(node, origins)
    }

    fn push(&mut self, node: Node, origins: SmallVec<[Arc<Origin>; 1]>) -> NodeId {
        let id = NodeId::new(self.nodes.len());
        if matches!(node.op, Op::Input(_)) {
            self.inputs.push(id);
        }
        self.users = OnceLock::new();
        self.nodes.push(node);
        self.origins.push(origins);
        id
    }

    /// Lets what reads `from` read `to`, an earlier value of the same type.
    pub(crate) fn redirect(&mut self, from: NodeId, to: NodeId) {
        let operands = self.nodes.iter_mut().flat_map(|node| &mut node.operands);
        let roots = self.outputs.iter_mut().chain(&mut self.updates).map(|(_, id)| id);
        operands.chain(roots).filter(|id| **id == from).for_each(|id| *id = to);
        self.users = OnceLock::new();
    }

    /// Names `value` as a result.
    pub fn add_output(&mut self, name: impl Into<String>, value: NodeId) {
        self.outputs.push((name.into(), value));
    }

    /// Sets the state `name` to `value` at the end of each run. A later update of one name replaces the earlier.
    pub fn add_update(&mut self, name: impl Into<String>, value: NodeId) {
        let name = name.into();
        self.updates.retain(|(have, _)| *have != name);
        self.updates.push((name, value));
    }

    /// Adds assumptions of a graph that this one was made from.
    pub fn assume(&mut self, assumption: Assumption) {
        if !self.assumptions.contains(&assumption) {
            self.assumptions.push(assumption);
        }
    }

    /// Takes over the results and updates of a graph that this one was made from; `new` tells where its nodes went.
    pub fn take_roots_of(&mut self, from: &Graph, new: impl Fn(NodeId) -> Option<NodeId>) {
        let named = |list: &[(String, NodeId)]| -> Vec<(String, NodeId)> {
            list.iter().filter_map(|(name, id)| Some((name.clone(), new(*id)?))).collect()
        };
        self.outputs = named(&from.outputs);
        self.updates = named(&from.updates);
    }

    /// All nodes, operands before users.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All nodes with their ids.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, node)| (NodeId::new(i), node))
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The type of a value.
    pub fn ty(&self, id: NodeId) -> &Type {
        &self.nodes[id.index()].ty
    }

    /// The tensor type of a value that is not a tuple; of a tuple, that of its first part.
    pub fn tensor_type(&self, id: NodeId) -> &TensorType {
        &self.ty(id).parts()[0]
    }

    /// The inputs, in order of creation.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// The results by name, in order.
    pub fn outputs(&self) -> &[(String, NodeId)] {
        &self.outputs
    }

    /// New values of states by name.
    pub fn updates(&self) -> &[(String, NodeId)] {
        &self.updates
    }

    /// What must hold of symbols.
    pub fn assumptions(&self) -> &[Assumption] {
        &self.assumptions
    }

    /// Where a node came from.
    pub fn origins(&self, id: NodeId) -> &SmallVec<[Arc<Origin>; 1]> {
        &self.origins[id.index()]
    }

    /// Adds origins to a node.
    pub fn add_origins(&mut self, id: NodeId, origins: &[Arc<Origin>]) {
        let have = &mut self.origins[id.index()];
        for origin in origins {
            if !have.contains(origin) {
                have.push(origin.clone());
            }
        }
    }

    /// Values that leave the graph: outputs, then updates.
    pub fn roots(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.outputs.iter().chain(&self.updates).map(|(_, id)| *id)
    }

    /// By node, the nodes that read it, ascending, once each.
    pub fn users(&self) -> Vec<SmallVec<[NodeId; 4]>> {
        let mut users: Vec<SmallVec<[NodeId; 4]>> = vec![SmallVec::new(); self.nodes.len()];
        for (id, node) in self.iter() {
            for operand in &node.operands {
                if users[operand.index()].last() != Some(&id) {
                    users[operand.index()].push(id);
                }
            }
        }
        users
    }

    /// [`Graph::users`], computed once.
    pub(crate) fn users_once(&self) -> &[SmallVec<[NodeId; 4]>] {
        self.users.get_or_init(|| self.users())
    }

    /// By node, whether a root reads it, directly or through others. Inputs count as live.
    pub fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.nodes.len()];
        for root in self.roots().chain(self.inputs.iter().copied()) {
            live[root.index()] = true;
        }
        for (id, node) in self.iter().rev() {
            if live[id.index()] {
                node.operands.iter().for_each(|o| live[o.index()] = true);
            }
        }
        live
    }

    /// The graph of the nodes that `live` names, which reads nothing else, and where each node went. Types stay as they are;
    /// what dropped nodes assumed of symbols is kept, because it still holds.
    pub fn restricted(mut self, live: &[bool]) -> (Graph, Vec<Option<NodeId>>) {
        let mut next = 0;
        let mut place = |live: &bool| {
            let at = live.then(|| NodeId::new(next));
            next += usize::from(*live);
            at
        };
        let new: Vec<Option<NodeId>> = live.iter().map(&mut place).collect();
        if next == self.nodes.len() {
            return (self, new);
        }
        let mut at = 0..;
        self.nodes.retain_mut(|node| {
            // a live node reads live ones alone
            let kept = at.next().is_some_and(|i| live[i]);
            if kept {
                node.operands.iter_mut().for_each(|o| *o = new[o.index()].unwrap_or(*o));
            }
            kept
        });
        let mut at = 0..;
        self.origins.retain(|_| at.next().is_some_and(|i| live[i]));
        self.users = OnceLock::new();
        self.inputs = self.inputs.iter().filter_map(|id| new[id.index()]).collect();
        for roots in [&mut self.outputs, &mut self.updates] {
            roots.retain_mut(|(_, id)| new[id.index()].map(|at| *id = at).is_some());
        }
        for assumption in std::mem::take(&mut self.assumptions) {
            let node = new[assumption.node.index()].unwrap_or(NodeId::new(0));
            self.assume(Assumption { node, ..assumption });
        }
        (self, new)
    }

    /// The graph with each region of its nodes replaced by what `f` makes of it, given the node and the place of the region
    /// among its regions; `None` where no node has any. Nodes keep their ids and types.
    ///
    /// # Errors
    /// Those of `f`; `E0108` when it gives a region other inputs or results: a defect.
    pub fn with_regions(
        &self,
        f: &mut dyn FnMut(&Node, usize, &Graph) -> Result<Graph, Diagnostic>,
    ) -> Result<Option<Graph>, Diagnostic> {
        let mut out: Option<Graph> = None;
        for (i, node) in self.nodes.iter().enumerate() {
            let regions = node.op.home().regions();
            if regions.is_empty() {
                continue;
            }
            let changed = regions.iter().enumerate().map(|(place, region)| {
                let made = f(node, place, region)?;
                match region.signature() == made.signature() {
                    true => Ok(Arc::new(made)),
                    false => Err(Diagnostic::new(
                        "E0108",
                        format!("a pass changed what a `{}` takes or gives", node.op.home().name()),
                    )),
                }
            });
            let changed = changed.collect::<Result<SmallVec<[Arc<Graph>; 2]>, Diagnostic>>()?;
            let op = &mut out.get_or_insert_with(|| self.clone()).nodes[i].op;
            op.regions_mut().into_iter().zip(changed).for_each(|(region, made)| *region = made);
        }
        Ok(out)
    }

    /// Types of inputs and outputs, in order.
    fn signature(&self) -> (Vec<&Type>, Vec<&Type>) {
        let inputs = self.inputs.iter().map(|id| self.ty(*id)).collect();
        (inputs, self.outputs.iter().map(|(_, id)| self.ty(*id)).collect())
    }

    /// The graph in which what reads a node that `through` names reads its operand instead; those nodes go.
    pub fn bypassing(&self, through: &dyn Fn(&Op) -> bool) -> Graph {
        let mut kept = Graph::of_weights(self.weights.clone());
        let mut new: Vec<NodeId> = Vec::with_capacity(self.nodes.len());
        for (id, node) in self.iter() {
            if let (true, Some(operand)) = (through(&node.op), node.operands.first()) {
                new.push(new[operand.index()]);
                continue;
            }
            let at = NodeId::new(kept.nodes.len());
            if matches!(node.op, Op::Input(_)) {
                kept.inputs.push(at);
            }
            let operands = node.operands.iter().map(|o| new[o.index()]).collect();
            kept.nodes.push(Node { op: node.op.clone(), operands, ty: node.ty.clone() });
            kept.origins.push(self.origins[id.index()].clone());
            new.push(at);
        }
        let named = |list: &[(String, NodeId)]| -> Vec<(String, NodeId)> {
            list.iter().map(|(name, id)| (name.clone(), new[id.index()])).collect()
        };
        (kept.outputs, kept.updates) = (named(&self.outputs), named(&self.updates));
        for assumption in &self.assumptions {
            kept.assume(Assumption { node: new[assumption.node.index()], equality: assumption.equality.clone() });
        }
        kept
    }

    /// The least number above those of all data-dependent sizes here and in regions.
    pub fn next_size(&self) -> u32 {
        let mut next = 0;
        let mut open = vec![self];
        while let Some(graph) = open.pop() {
            for node in &graph.nodes {
                node.ty.fresh_sizes(&mut |id, _| next = next.max(id.saturating_add(1)));
                open.extend(node.op.home().regions().into_iter().map(|region| &**region));
            }
        }
        next
    }

    fn key(&self) -> (&[Node], &[(String, NodeId)], &[(String, NodeId)]) {
        (&self.nodes, &self.outputs, &self.updates)
    }
}

impl PartialEq for Graph {
    fn eq(&self, other: &Graph) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Graph {}

impl PartialOrd for Graph {
    fn partial_cmp(&self, other: &Graph) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Graph {
    fn cmp(&self, other: &Graph) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl Hash for Graph {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}
