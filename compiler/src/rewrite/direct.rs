//! Rules applied directly to a graph, bottom up, without search: canonicalisation and raise.

use std::cell::RefCell;
use std::hash::BuildHasher;
use std::sync::Arc;

use egg::Id;
use egret_ir::ops::Const;
use egret_ir::{DType, Diagnostic, Graph, Literal, Node, NodeId, Op, Origin, Tensor, Type};
use hashbrown::HashTable;
use rustc_hash::{FxBuildHasher, FxHashMap};
use smallvec::SmallVec;

use super::facts::GraphFacts;
use super::pattern::{Bindings, Rule, View};
use super::term::{BindingTime, Kind};

/// Most rule applications at one node: a directed set needs few, so that more is a defect of the set.
const MAX_CHAIN: usize = 32;

/// A graph under construction in which equal nodes are one.
pub struct Builder {
    graph: Graph,
    /// Nodes by operator and operands; each input is its own.
    known: HashTable<NodeId>,
    facts: GraphFacts,
    origins: SmallVec<[Arc<Origin>; 1]>,
}

fn node(id: Id) -> NodeId {
    NodeId::new(usize::from(id))
}

fn class(id: NodeId) -> Id {
    Id::from(id.index())
}

/// Hash of an operator, by which [`Builder`] finds nodes.
#[derive(Clone, Copy, Hash)]
pub(super) struct OpHash(u64);

impl OpHash {
    pub(super) fn of(op: &Op) -> OpHash {
        OpHash(FxBuildHasher.hash_one(op))
    }

    fn with(self, operands: &[NodeId]) -> u64 {
        FxBuildHasher.hash_one((self, operands))
    }
}

/// Whether two types are equal; those of tuples are most often one in memory, which each of their projections would compare.
fn same_type(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Tuple(a), Type::Tuple(b)) => Arc::ptr_eq(a, b) || a == b,
        (a, b) => a == b,
    }
}

fn hash_of(op: &Op, operands: &[NodeId]) -> u64 {
    OpHash::of(op).with(operands)
}

impl Builder {
    /// An empty graph with the weights of `like`.
    pub fn new(like: &Graph) -> Builder {
        let known = HashTable::with_capacity(like.nodes().len());
        Builder { graph: Graph::like(like), known, facts: GraphFacts::default(), origins: SmallVec::new() }
    }

    /// The graph so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The finished graph.
    pub fn finish(self) -> Graph {
        self.graph
    }

    /// Nodes added from now on come from `origins`.
    pub fn set_origins(&mut self, origins: &[Arc<Origin>]) {
        self.origins = origins.iter().cloned().collect();
    }

    /// Nodes added from now on come from `origins`, each taken once.
    pub(super) fn set_origins_once<'o>(&mut self, origins: impl Iterator<Item = &'o Arc<Origin>>) {
        self.origins.clear();
        for origin in origins {
            if !self.origins.contains(origin) {
                self.origins.push(origin.clone());
            }
        }
    }

    /// A node comes from `origins` too.
    pub fn add_origins(&mut self, id: NodeId, origins: &[Arc<Origin>]) {
        self.graph.add_origins(id, origins);
    }

    /// Nodes added from now on come from what `ids` come from too.
    pub fn take_origins(&mut self, ids: &[NodeId]) {
        for origin in ids.iter().flat_map(|id| self.graph.origins(*id)) {
            if !self.origins.contains(origin) {
                self.origins.push(origin.clone());
            }
        }
    }

    /// Adds a node unless an equal one is there; folds it when it is small and its operands are constants.
    ///
    /// # Errors
    /// When the operands do not fit the operator.
    pub fn add(&mut self, op: &Op, operands: &[NodeId]) -> Result<NodeId, Diagnostic> {
        let hash = hash_of(op, operands);
        if let Some(id) = self.find(hash, op, operands) {
            self.add_own_origins(id);
            return Ok(id);
        }
        let id = self.graph.add_from(op.clone(), operands, self.origins.clone())?;
        self.learn(hash, id);
        Ok(id)
    }

    /// [`Builder::add`] of a node of another graph, whose operands have these values here.
    ///
    /// # Errors
    /// When the operands do not fit the operator.
    pub fn add_again(&mut self, node: &Node, types_of: &Graph, operands: &[NodeId]) -> Result<NodeId, Diagnostic> {
        let same = node.operands.len() == operands.len()
            && node.operands.iter().zip(operands).all(|(old, new)| same_type(types_of.ty(*old), self.graph.ty(*new)));
        if same { Ok(self.add_typed(&node.op, operands, &node.ty)) } else { self.add(&node.op, operands) }
    }

    /// [`Builder::add`] of a node that fits its operands, as in the graph that it is taken from.
    pub fn add_typed(&mut self, op: &Op, operands: &[NodeId], ty: &Type) -> NodeId {
        self.add_hashed(op, OpHash::of(op), operands, ty)
    }

    /// [`Builder::add_typed`] of an operator of known hash.
    pub(super) fn add_hashed(&mut self, op: &Op, hash: OpHash, operands: &[NodeId], ty: &Type) -> NodeId {
        let hash = hash.with(operands);
        if let Some(id) = self.find(hash, op, operands) {
            self.add_own_origins(id);
            return id;
        }
        let node = Node { op: op.clone(), operands: SmallVec::from_slice(operands), ty: ty.clone() };
        let id = self.graph.add_typed(node, self.origins.clone());
        self.learn(hash, id);
        id
    }

    /// A node comes from the present origins too; a number does not, which is that of all who use it.
    fn add_own_origins(&mut self, id: NodeId) {
        if !matches!(self.graph.node(id).op, Op::Const(_)) {
            self.graph.add_origins(id, &self.origins);
        }
    }

    /// The node of that operator on these operands, if there is one.
    fn find(&self, hash: u64, op: &Op, operands: &[NodeId]) -> Option<NodeId> {
        let is = |id: &NodeId| {
            let node = self.graph.node(*id);
            node.operands.as_slice() == operands && node.op == *op
        };
        self.known.find(hash, is).copied()
    }

    fn learn(&mut self, hash: u64, id: NodeId) {
        let node = self.graph.node(id);
        self.facts.learn(node);
        if !matches!(node.op, Op::Input(_)) {
            let nodes = self.graph.nodes();
            let rehash = |id: &NodeId| hash_of(&nodes[id.index()].op, &nodes[id.index()].operands);
            self.known.insert_unique(hash, id, rehash);
        }
    }

    /// A scalar constant.
    ///
    /// # Errors
    /// Never; constants always fit.
    pub fn scalar(&mut self, value: Literal) -> Result<NodeId, Diagnostic> {
        self.add(&Const { value: Tensor::scalar(value) }.into(), &[])
    }

    /// Adds a rule's right side, numbers in `dtype`; `None` when it does not fit its operands.
    pub(super) fn instantiate(&mut self, rule: &Rule, bindings: &Bindings, dtype: DType) -> Option<NodeId> {
        let cell = RefCell::new(self);
        let mut add = |op: &Op, ids: &[Id]| {
            let ids: SmallVec<[NodeId; 4]> = ids.iter().map(|i| node(*i)).collect();
            cell.borrow_mut().add(op, &ids).ok().map(class)
        };
        let mut number = |value: f64| cell.borrow_mut().scalar(Literal::float(value, dtype)).ok().map(class);
        rule.build(bindings, &mut add, &mut number).map(node)
    }

    /// When a value is known.
    pub fn time(&self, id: NodeId) -> BindingTime {
        self.facts.times[id.index()]
    }

    /// The element of a value, if all are one known number.
    pub fn splat_of_node(&self, id: NodeId) -> Option<Literal> {
        self.facts.splats[id.index()]
    }
}

/// The builder as rules see it.
pub(super) struct BuilderView<'a>(pub(super) &'a Builder);

impl View for BuilderView<'_> {
    fn nodes(&self, class: Id, kind: Kind, f: &mut dyn FnMut(&Op, &[Id]) -> bool) -> bool {
        let node = self.0.graph.node(node(class));
        if Kind::of(&node.op) != kind {
            return false;
        }
        // most have no more: nothing is allocated for these
        let mut few = [Id::from(0); 4];
        match few.get_mut(..node.operands.len()) {
            Some(ids) => {
                ids.iter_mut().zip(&node.operands).for_each(|(id, operand)| *id = self::class(*operand));
                f(&node.op, ids)
            }
            None => f(&node.op, &node.operands.iter().map(|operand| self::class(*operand)).collect::<Vec<Id>>()),
        }
    }

    fn ty(&self, class: Id) -> &Type {
        self.0.graph.ty(node(class))
    }

    fn splat(&self, class: Id) -> Option<Literal> {
        self.0.facts.splats[usize::from(class)]
    }

    fn time(&self, class: Id) -> BindingTime {
        self.0.facts.times[usize::from(class)]
    }

    fn find(&self, class: Id) -> Id {
        class
    }
}

/// What a pass does at each node after the rules: an equal value to use instead.
pub type Hook<'h> = &'h mut dyn FnMut(&mut Builder, NodeId) -> Option<(NodeId, &'static str)>;

/// A graph to which rules were applied.
pub struct Direct {
    /// The new graph.
    pub graph: Graph,
    /// Where rules applied.
    pub applied: Vec<Applied>,
    /// By node of the old graph, the node of the new one that has its value; `None` of what is not computed any more.
    pub map: Vec<Option<NodeId>>,
}

/// One application of a rule, for the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The rule.
    pub rule: &'static str,
    /// The node of the new graph that it gave, or the one that a later rule made of it.
    pub node: NodeId,
}

/// A rule that applied while the graph was built.
struct Step {
    rule: &'static str,
    old: NodeId,
    new: NodeId,
}

/// Levels of nodes that [`Rules`] tells apart.
const LEVELS: usize = 2;

/// Rules by what a node and its operands are: equal cones, as equal layers have them, are looked at once.
struct Rules<'r> {
    by_root: FxHashMap<Kind, Vec<&'r Rule>>,
    /// Numbers of kinds with their one element.
    heads: FxHashMap<(Kind, Option<Literal>), u32>,
    /// Numbers of heads with those of the operands.
    shapes: FxHashMap<Seen, u32>,
    /// By node of the graph, its head and its shape, as far as they were asked for.
    nodes: Vec<(Option<u32>, Option<u32>)>,
    /// By a node's head and its operands' shapes, the rules that may match.
    fitting: FxHashMap<Seen, Arc<[&'r Rule]>>,
    none: Arc<[&'r Rule]>,
}

/// A number, and one of each operand.
type Seen = (u32, SmallVec<[u32; 4]>);

impl<'r> Rules<'r> {
    fn new(rules: &'r [Arc<Rule>]) -> Rules<'r> {
        let mut by_root: FxHashMap<Kind, Vec<&Rule>> = FxHashMap::default();
        for rule in rules {
            if let Some(root) = rule.root() {
                by_root.entry(root).or_default().push(rule);
            }
        }
        let (heads, shapes, fitting, none) = Default::default();
        Rules { by_root, heads, shapes, nodes: Vec::new(), fitting, none }
    }

    fn head(&mut self, builder: &Builder, id: NodeId) -> u32 {
        if let Some(head) = self.nodes[id.index()].0 {
            return head;
        }
        let key = (Kind::of(&builder.graph.node(id).op), builder.facts.splats[id.index()]);
        let number = self.heads.len() as u32;
        let head = *self.heads.entry(key).or_insert(number);
        self.nodes[id.index()].0 = Some(head);
        head
    }

    fn shape(&mut self, builder: &Builder, id: NodeId) -> u32 {
        if let Some(shape) = self.nodes[id.index()].1 {
            return shape;
        }
        let operands = builder.graph.node(id).operands.iter().map(|o| self.head(builder, *o)).collect();
        let key = (self.head(builder, id), operands);
        let number = self.shapes.len() as u32;
        let shape = *self.shapes.entry(key).or_insert(number);
        self.nodes[id.index()].1 = Some(shape);
        shape
    }

    /// The rules that may match a node, in order.
    fn at(&mut self, builder: &Builder, id: NodeId) -> Arc<[&'r Rule]> {
        let node = builder.graph.node(id);
        if !self.by_root.contains_key(&Kind::of(&node.op)) {
            return self.none.clone();
        }
        self.nodes.resize(builder.graph.nodes().len(), (None, None));
        let operands = node.operands.iter().map(|o| self.shape(builder, *o)).collect();
        let key = (self.head(builder, id), operands);
        let of_root = self.by_root.get(&Kind::of(&node.op)).map(Vec::as_slice).unwrap_or_default();
        let fits = |rule: &&&Rule| rule.may_match_within(&BuilderView(builder), class(id), LEVELS);
        let found = self.fitting.entry(key);
        found.or_insert_with(|| of_root.iter().filter(fits).copied().collect()).clone()
    }
}

/// Rebuilds `graph` with `rules` and `hook` applied at every node until none fits, operands first. Dead nodes go. Nothing fits
/// at nodes that are `settled` over settled operands.
///
/// # Errors
/// When a node of the graph does not fit its operands any more: a defect of a rule.
pub fn apply(graph: &Graph, rules: &[Arc<Rule>], mut settled: Vec<bool>, hook: Hook) -> Result<Direct, Diagnostic> {
    let mut rules = Rules::new(rules);
    settled.resize(graph.nodes().len(), false);
    let live = graph.live();
    let mut builder = Builder::new(graph);
    let mut applied = Vec::new();
    let mut new: Vec<Option<NodeId>> = vec![None; graph.nodes().len()];
    for (id, old) in graph.iter() {
        if !live[id.index()] {
            continue;
        }
        let operands: SmallVec<[NodeId; 4]> = old.operands.iter().filter_map(|o| new[o.index()]).collect();
        builder.set_origins(graph.origins(id));
        let mut at = builder.add_again(old, graph, &operands)?;
        settled[id.index()] &= old.operands.iter().all(|operand| settled[operand.index()]);
        let chain = if settled[id.index()] { 0 } else { MAX_CHAIN };
        for _ in 0..chain {
            let Some((next, rule)) = improve(&mut builder, at, &mut rules, hook) else { break };
            applied.push(Step { rule, old: at, new: next });
            builder.graph.add_origins(next, graph.origins(id));
            at = next;
        }
        new[id.index()] = Some(at);
    }
    finish(graph, builder, &new, applied)
}

fn improve(builder: &mut Builder, at: NodeId, rules: &mut Rules, hook: Hook) -> Option<(NodeId, &'static str)> {
    for rule in rules.at(builder, at).iter() {
        let Some(bindings) = rule.first(&BuilderView(builder), class(at)) else { continue };
        // what the left side took lives on in the right side; the first of it is the node itself
        let taken: SmallVec<[NodeId; 8]> = bindings.matched.iter().map(|m| node(m.class)).collect();
        builder.take_origins(&taken);
        let dtype = builder.graph.tensor_type(at).dtype;
        let built = builder.instantiate(rule, &bindings, dtype);
        match built {
            Some(next) if next != at && builder.graph.ty(next) == builder.graph.ty(at) => {
                return Some((next, rule.name));
            }
            _ => {}
        }
    }
    hook(builder, at).filter(|(next, _)| *next != at && builder.graph.ty(*next) == builder.graph.ty(at))
}

/// A graph that was rebuilt node by node: `new` tells where each of `graph` went.
///
/// # Errors
/// Never.
pub(crate) fn moved(graph: &Graph, builder: Builder, new: &[Option<NodeId>]) -> Result<Direct, Diagnostic> {
    finish(graph, builder, new, Vec::new())
}

/// Maps outputs, updates and assumptions, and drops dead nodes.
fn finish(
    graph: &Graph,
    mut builder: Builder,
    new: &[Option<NodeId>],
    applied: Vec<Step>,
) -> Result<Direct, Diagnostic> {
    builder.graph.take_roots_of(graph, |id| new[id.index()]);
    for assumption in graph.assumptions() {
        if let Some(node) = new[assumption.node.index()] {
            builder.graph.assume(egret_ir::Assumption { node, equality: assumption.equality.clone() });
        }
    }
    let built = builder.finish();
    let live = built.live();
    let into = taken(&built, &applied, &live);
    let (pruned, map) = built.restricted(&live);
    let survivor = |mut node: NodeId| {
        while map[node.index()].is_none() {
            node = into[node.index()]?;
        }
        map[node.index()]
    };
    let applied =
        applied.iter().filter_map(|step| Some(Applied { rule: step.rule, node: survivor(step.new)? })).collect();
    let map = new.iter().map(|id| id.and_then(survivor)).collect();
    Ok(Direct { graph: pruned, applied, map })
}

/// By dead node, the node that a rule put in the place of it and of what reads it.
fn taken(built: &Graph, applied: &[Step], live: &[bool]) -> Vec<Option<NodeId>> {
    let mut into: Vec<Option<NodeId>> = vec![None; built.nodes().len()];
    for step in applied {
        let mut todo = vec![step.old];
        while let Some(id) = todo.pop() {
            // a rule that gives back a part of its left side leaves that part alone
            let free = !live[id.index()] && into[id.index()].is_none() && id < step.new;
            if free {
                into[id.index()] = Some(step.new);
                todo.extend(&built.node(id).operands);
            }
        }
    }
    into
}

/// The dtype in which constants of a node's rules are made.
pub fn float_dtype(ty: &Type) -> DType {
    ty.parts().first().map_or(DType::F32, |part| part.dtype)
}
