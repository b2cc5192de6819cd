//! Taps: maps of a product's result that several kernels read, and the softmax or norm of its rows beside the result itself,
//! become further results of the product's kernel.
//!
//! The e-graph absorbs what one reader needs. What is left here has several: a residual stream that goes on and is normed,
//! a value beside its activation. The kernels that partition would make tell which maps these are; each that joins is one
//! that is neither launched nor reads the product again. Only values from before the product are read, so that nothing moves.

use egret_ir::ops::{DotGeneral, Fused, Pointwise, Proj};
use egret_ir::{DType, Graph, NodeId, Op, ScalarExpr, Type};
use egret_program::DeviceDescription;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::direct::{self, Builder};
use super::facts::GraphFacts;
use super::term::BindingTime;
use crate::cost;
use crate::partition::{self, Family, Maps, Partition, is_movement};

/// The rule that joins maps.
pub const MAPS: &str = "tap-maps";
/// The rule that joins a row operator whose operand is needed besides.
pub const ROWS: &str = "tap-rows";

/// Most results of a kernel.
const MAX_RESULTS: usize = 4;
/// Most operands beside those of the product.
const MAX_EXTRAS: usize = 12;
/// Steps of the longest program.
const MAX_STEPS: u32 = 64;

/// Which of the rules are used.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// [`MAPS`].
    pub maps: bool,
    /// [`ROWS`].
    pub rows: bool,
}

/// A graph with taps.
pub(super) struct Tapped {
    pub(super) graph: Graph,
    /// By node before, the node that has its value.
    pub(super) map: Vec<Option<NodeId>>,
    /// Products, the nodes that they were, and the rule that made each.
    pub(super) taps: Vec<(NodeId, NodeId, &'static str)>,
}

/// The product in an operator, fused or not.
fn dot(op: &Op) -> Option<&DotGeneral> {
    match op {
        Op::DotGeneral(dot) => Some(dot),
        Op::Fused(fused) => match &*fused.anchor {
            Op::DotGeneral(dot) => Some(dot),
            _ => None,
        },
        _ => None,
    }
}

/// What joins a product.
struct Join {
    op: Fused,
    operands: SmallVec<[NodeId; 8]>,
    /// Values of the graph by result.
    results: Vec<NodeId>,
    rule: &'static str,
}

/// The graph with taps, where each node went, and the products with the rules that made them; `None` when there are none.
pub(super) fn join(graph: &Graph, device: &DeviceDescription, used: Used) -> Option<Tapped> {
    // kernels of GPUs leave several results of a tile, but not of whole rows
    let used = Used { rows: used.rows && device.is_cpu(), ..used };
    // equal products, with whatever each has absorbed
    let mut equal: FxHashMap<(&DotGeneral, &[NodeId]), SmallVec<[NodeId; 2]>> = FxHashMap::default();
    for (id, node) in graph.iter() {
        if let Some(dot) = dot(&node.op) {
            equal.entry((dot, &node.operands[..2])).or_default().push(id);
        }
    }
    let mut read = vec![0; graph.nodes().len()];
    let operands = graph.nodes().iter().flat_map(|node| node.operands.iter().copied());
    operands.chain(graph.roots()).for_each(|id| read[id.index()] += 1);
    if !equal.values().any(|products| products.len() > 1 || read[products[0].index()] > 1) {
        return None;
    }
    let kernels = Kernels::of(graph);
    let mut joined: FxHashSet<usize> = FxHashSet::default();
    let mut joins: FxHashMap<NodeId, Join> = FxHashMap::default();
    for (id, node) in graph.iter() {
        let Some(dot) = dot(&node.op) else { continue };
        let first = &equal[&(dot, &node.operands[..2])];
        if first[0] == id
            && let Some(product) = Product::of(&kernels, id, device)
            && (device.is_cpu() || product.rows.is_none())
            && let Some((join, groups)) = product.join(&first[1..], device, &joined, used)
        {
            joined.extend(groups);
            joins.insert(id, join);
        }
    }
    if joins.is_empty() { None } else { rebuild(graph, &joins) }
}

fn rebuild(graph: &Graph, joins: &FxHashMap<NodeId, Join>) -> Option<Tapped> {
    let mut builder = Builder::new(graph);
    let mut new: Vec<Option<NodeId>> = vec![None; graph.nodes().len()];
    let mut applied = Vec::new();
    for (id, node) in graph.iter() {
        if new[id.index()].is_some() {
            continue;
        }
        builder.set_origins(graph.origins(id));
        let Some(join) = joins.get(&id) else {
            let operands: SmallVec<[NodeId; 4]> = node.operands.iter().filter_map(|o| new[o.index()]).collect();
            new[id.index()] = Some(builder.add_again(node, graph, &operands).ok()?);
            continue;
        };
        let operands: SmallVec<[NodeId; 8]> = join.operands.iter().filter_map(|o| new[o.index()]).collect();
        let made = builder.add(&join.op.clone().into(), &operands).ok()?;
        join.results.iter().for_each(|value| builder.add_origins(made, graph.origins(*value)));
        for (index, value) in join.results.iter().enumerate() {
            let several = join.results.len() > 1;
            let result = if several { builder.add(&Proj { index }.into(), &[made]).ok()? } else { made };
            new[value.index()] = Some(result);
        }
        applied.push((id, join.rule));
    }
    let moved = direct::moved(graph, builder, &new).ok()?;
    let product = |id: NodeId| {
        let value = moved.map[id.index()]?;
        let node = moved.graph.node(value);
        Some(if matches!(node.op, Op::Proj(_)) { node.operands[0] } else { value })
    };
    let taps = applied.iter().filter_map(|(id, rule)| Some((product(joins[id].results[0])?, *id, *rule))).collect();
    Some(Tapped { graph: moved.graph, map: moved.map, taps })
}

/// The kernels that partition would make.
struct Kernels<'g> {
    graph: &'g Graph,
    facts: GraphFacts,
    partition: Partition,
    /// By stored value, the groups that read it, ascending.
    readers: Vec<SmallVec<[usize; 2]>>,
    /// By node, whether it is a result or an update of the graph.
    root: Vec<bool>,
    updated: Vec<bool>,
}

impl<'g> Kernels<'g> {
    fn of(graph: &'g Graph) -> Kernels<'g> {
        let n = graph.nodes().len();
        let facts = GraphFacts::of(graph);
        let leaf = |id: NodeId| {
            let op = &graph.node(id).op;
            matches!(op, Op::Input(_) | Op::State(_)) || facts.times[id.index()] < BindingTime::Run
        };
        let live = graph.live();
        let runs: Vec<bool> = (0..n).map(|i| live[i] && !leaf(NodeId::new(i))).collect();
        let mut root = vec![false; n];
        graph.roots().for_each(|id| root[id.index()] = true);
        let mut updated = vec![false; n];
        graph.updates().iter().for_each(|(_, id)| updated[id.index()] = true);
        let partition = partition::partition(graph, &runs, &root, &leaf, Maps::Joined);
        let mut readers: Vec<SmallVec<[usize; 2]>> = vec![SmallVec::new(); n];
        // by node, the last group that came by it
        let mut seen: Vec<Option<usize>> = vec![None; n];
        let mut todo: Vec<NodeId> = Vec::new();
        for (i, group) in partition.groups.iter().enumerate() {
            todo.extend(group.outputs().flat_map(|id| graph.node(id).operands.iter().copied()));
            while let Some(id) = todo.pop() {
                if seen[id.index()].replace(i) == Some(i) || leaf(id) {
                    continue;
                }
                match partition.written_by[id.index()] {
                    Some(writer) if writer != i => readers[id.index()].push(i),
                    _ => todo.extend(graph.node(id).operands.iter().copied()),
                }
            }
        }
        Kernels { graph, facts, partition, readers, root, updated }
    }

    fn readers(&self, id: NodeId) -> &[usize] {
        &self.readers[id.index()]
    }
}

/// A product and what may join it.
struct Product<'k, 'g> {
    kernels: &'k Kernels<'g>,
    id: NodeId,
    dot: DotGeneral,
    bases: SmallVec<[NodeId; 2]>,
    extras: SmallVec<[NodeId; 8]>,
    /// Programs of the values that the kernel computes.
    programs: FxHashMap<NodeId, ScalarExpr>,
    /// What it computes by rows.
    rows: Option<Rows>,
}

impl<'k, 'g> Product<'k, 'g> {
    fn of(kernels: &'k Kernels<'g>, id: NodeId, device: &DeviceDescription) -> Option<Product<'k, 'g>> {
        let graph = kernels.graph;
        let node = graph.node(id);
        let group = kernels.partition.written_by[id.index()]?;
        let dtype = graph.ty(id).tensor()?.dtype;
        let float = dtype == DType::F32 || !device.is_cpu() && matches!(dtype, DType::F16 | DType::BF16);
        let alike = |id: NodeId| graph.ty(id).tensor().is_some_and(|ty| ty.dtype == dtype);
        let plain = kernels.partition.groups[group].family == Family::Dot && float;
        if !plain || !node.operands.iter().all(|o| alike(*o)) || kernels.updated[id.index()] {
            return None;
        }
        let (dot, bases) = (dot(&node.op)?.clone(), node.operands[..2].into());
        let (extras, programs) = (SmallVec::new(), FxHashMap::default());
        let mut product = Product { kernels, id, dot, bases, extras, programs, rows: None };
        node.operands[2..].iter().try_for_each(|extra| product.extra(*extra).map(|_| ()))?;
        product.take(id)?;
        Some(product)
    }

    /// Takes up what an equal product computes, or this one.
    fn take(&mut self, id: NodeId) -> Option<()> {
        let graph = self.kernels.graph;
        let node = graph.node(id);
        let Op::Fused(fused) = &node.op else {
            self.programs.insert(id, ScalarExpr::arg(0));
            return Some(());
        };
        let before = self.extras.len();
        let arguments: Option<SmallVec<[usize; 8]>> = node.operands[2..].iter().map(|o| self.extra(*o)).collect();
        let fits = fused.taps.is_empty() && (fused.rows.is_none() || self.rows.is_none());
        let Some(arguments) = arguments.filter(|_| fits && self.extras.len() <= MAX_EXTRAS) else {
            self.extras.truncate(before);
            return None;
        };
        let renamed = |program: &ScalarExpr| {
            program.substitute(&mut |arg| ScalarExpr::arg(if arg == 0 { 0 } else { arguments[arg - 1] }))
        };
        let first = renamed(&fused.epilogue);
        match &fused.rows {
            Some((row, finish)) => {
                self.rows = Some(Rows { value: id, first, row: (**row).clone(), finish: renamed(finish) });
            }
            None => {
                self.programs.insert(id, first);
            }
        }
        Some(())
    }

    /// What joins, and the groups that do; `equal` are other products of the same operands.
    fn join(
        mut self,
        equal: &[NodeId],
        device: &DeviceDescription,
        taken: &FxHashSet<usize>,
        used: Used,
    ) -> Option<(Join, Vec<usize>)> {
        let mut groups: Vec<usize> = Vec::new();
        let mut values: Vec<NodeId> = if self.rows.is_none() { vec![self.id] } else { Vec::new() };
        for other in equal.iter().copied().filter(|_| used.rows) {
            if self.is_alike(other)
                && let Some(group) = self.kernels.partition.written_by[other.index()]
                && self.take(other).is_some()
            {
                groups.push(group);
                values.extend(self.programs.contains_key(&other).then_some(other));
            }
        }
        let mut next = 0;
        while let Some(value) = values.get(next).copied().filter(|_| used.maps) {
            next += 1;
            for group in self.kernels.readers(value).iter().copied() {
                if !taken.contains(&group)
                    && !groups.contains(&group)
                    && let Some(outputs) = self.map(group)
                {
                    values.extend(outputs);
                    groups.push(group);
                }
            }
        }
        if self.rows.is_none() && used.rows {
            for value in values.clone() {
                for group in self.kernels.readers(value).iter().copied() {
                    if self.rows.is_none() && !taken.contains(&group) && !groups.contains(&group) {
                        self.rows = self.rows(group);
                        groups.extend(self.rows.is_some().then_some(group));
                    }
                }
            }
        }
        if groups.is_empty() {
            return None;
        }
        // what nothing else reads is not written
        let needed = |value: &NodeId| {
            self.kernels.root[value.index()] || self.kernels.readers(*value).iter().any(|group| !groups.contains(group))
        };
        let mut results: Vec<NodeId> = values.into_iter().filter(needed).collect();
        let rows = self.rows.take();
        let rule = if rows.is_some() { ROWS } else { MAPS };
        let dtype = self.kernels.graph.tensor_type(self.id).dtype;
        let mut op = Fused::epilogue(self.dot.clone().into(), 2, ScalarExpr::arg(0), dtype);
        match rows {
            Some(Rows { value, first, row, finish }) => {
                op.taps = results.iter().map(|value| self.programs[value].clone()).collect();
                (op.epilogue, op.rows) = (first, Some((Box::new(row), finish)));
                results.insert(0, value);
            }
            None => {
                let mut programs = results.iter().map(|value| self.programs[value].clone());
                op.epilogue = programs.next()?;
                op.taps = programs.collect();
            }
        }
        let operands: SmallVec<[NodeId; 8]> = self.bases.iter().chain(&self.extras).copied().collect();
        if operands.len() > MAX_EXTRAS || results.len() > MAX_RESULTS {
            return None;
        }
        self.pays(&op, &operands, &groups, results.len(), device)
            .then_some((Join { op, operands, results, rule }, groups))
    }

    /// The programs of a map's results, if it reads of this product elements alone and else only what was there before it.
    fn map(&mut self, group: usize) -> Option<SmallVec<[NodeId; 3]>> {
        let kernels = self.kernels;
        let of = &kernels.partition.groups[group];
        let graph = kernels.graph;
        let outputs: SmallVec<[NodeId; 3]> = of.outputs().collect();
        let elementwise = |id: &NodeId| matches!(graph.node(*id).op, Op::Pointwise(_) | Op::Cast(_));
        let fits = |id: &NodeId| elementwise(id) && self.is_alike(*id);
        if of.family != Family::Map || !outputs.iter().all(fits) {
            return None;
        }
        let (extras, programs) = (self.extras.clone(), self.programs.clone());
        for output in &outputs {
            let program = self.program(*output, group).filter(|program| program.size() <= MAX_STEPS);
            let Some(program) = program.filter(|_| self.extras.len() <= MAX_EXTRAS) else {
                (self.extras, self.programs) = (extras, programs);
                return None;
            };
            self.programs.insert(*output, program);
        }
        Some(outputs)
    }

    /// Whether a value has the product's type, and leaves the graph as no state.
    fn is_alike(&self, id: NodeId) -> bool {
        self.kernels.graph.ty(id) == self.kernels.graph.ty(self.id) && !self.kernels.updated[id.index()]
    }

    /// A value that `group` computes, as a program over the product's element and the extras, which may become more.
    fn program(&mut self, id: NodeId, group: usize) -> Option<ScalarExpr> {
        // operands before users, by an explicit stack
        let graph = self.kernels.graph;
        let mut done: FxHashMap<NodeId, ScalarExpr> = FxHashMap::default();
        let mut stack = vec![(id, false)];
        while let Some((at, ready)) = stack.pop() {
            if done.contains_key(&at) {
                continue;
            }
            if let Some(program) = self.programs.get(&at) {
                done.insert(at, program.clone());
                continue;
            }
            if let Some(literal) = self.kernels.facts.splats[at.index()] {
                done.insert(at, ScalarExpr::constant(literal));
                continue;
            }
            let node = graph.node(at);
            let here = self.kernels.partition.written_by[at.index()].is_none_or(|writer| writer == group)
                && self.kernels.facts.times[at.index()] == BindingTime::Run;
            if !here || !matches!(node.op, Op::Pointwise(_) | Op::Cast(_)) {
                let argument = self.extra(at)?;
                done.insert(at, ScalarExpr::arg(argument));
                continue;
            }
            if !ready {
                stack.push((at, true));
                stack.extend(node.operands.iter().rev().map(|o| (*o, false)));
                continue;
            }
            let dtype = graph.tensor_type(at).dtype;
            let args: Option<SmallVec<[ScalarExpr; 3]>> = node.operands.iter().map(|o| done.get(o).cloned()).collect();
            let program = match &node.op {
                Op::Cast(cast) => args?.swap_remove(0).cast(cast.dtype),
                Op::Pointwise(Pointwise { f }) => ScalarExpr::apply(*f, args?, dtype),
                _ => return None,
            };
            if program.size() > MAX_STEPS {
                return None;
            }
            done.insert(at, program);
        }
        done.remove(&id)
    }

    /// The argument that reads a value from before the product.
    fn extra(&mut self, id: NodeId) -> Option<usize> {
        let graph = self.kernels.graph;
        let (shape, whole) = (&graph.ty(id).tensor()?.shape, &graph.tensor_type(self.id).shape);
        let aligned = shape.iter().rev().zip(whole.iter().rev());
        let broadcasts = shape.rank() <= whole.rank() && aligned.clone().all(|(a, b)| a.is(1) || a == b);
        // a view is read through; anything else that is not stored would be computed before its operands were
        let stored = self.kernels.partition.written_by[id.index()].is_some()
            || is_movement(&graph.node(id).op)
            || self.kernels.facts.times[id.index()] < BindingTime::Run
            || matches!(graph.node(id).op, Op::Input(_) | Op::State(_));
        if id >= self.id || !broadcasts || !stored {
            return None;
        }
        let at = self.extras.iter().position(|extra| *extra == id).unwrap_or_else(|| {
            self.extras.push(id);
            self.extras.len() - 1
        });
        Some(at + 1)
    }

    /// A softmax or norm over the columns of the product, and what follows it.
    fn rows(&mut self, group: usize) -> Option<Rows> {
        let graph = self.kernels.graph;
        let of = &self.kernels.partition.groups[group];
        let value = of.root;
        let node = graph.node(value);
        let (row, finish, bases) = match &node.op {
            Op::Fused(fused) if fused.rows.is_none() && fused.taps.is_empty() && fused.dtype == DType::F32 => {
                ((*fused.anchor).clone(), Some(fused.epilogue.clone()), fused.bases)
            }
            op => (op.clone(), None, node.operands.len()),
        };
        let axis = match &row {
            Op::Softmax(softmax) => softmax.axis,
            Op::Norm(norm) => norm.axis,
            _ => return None,
        };
        let last = *self.dot.out.0.last()?;
        let by_column = self.dot.rhs.has(last) && !self.dot.lhs.has(last);
        let whole = of.family == Family::Row && of.siblings.is_empty() && bases == 1 && self.is_alike(value);
        if !whole || !by_column || axis + 1 != self.dot.out.0.len() {
            return None;
        }
        let extras = self.extras.clone();
        let found = (|| {
            let first = self.program(node.operands[0], group)?;
            let mut arguments: SmallVec<[usize; 4]> = SmallVec::new();
            for extra in &node.operands[bases..] {
                arguments.push(self.extra(*extra)?);
            }
            let place = &mut |arg: usize| ScalarExpr::arg(if arg == 0 { 0 } else { arguments[arg - 1] });
            let finish = finish.map_or(ScalarExpr::arg(0), |finish| finish.substitute(place));
            (first.args().contains(&0) && self.extras.len() <= MAX_EXTRAS).then_some((first, finish))
        })();
        let Some((first, finish)) = found else {
            self.extras = extras;
            return None;
        };
        Some(Rows { value, first, row, finish })
    }

    /// Whether the kernel takes less time than the product and the groups that join it.
    fn pays(
        &self,
        op: &Fused,
        operands: &[NodeId],
        groups: &[usize],
        results: usize,
        device: &DeviceDescription,
    ) -> bool {
        let graph = self.kernels.graph;
        let known = |id: NodeId| self.kernels.facts.splats[id.index()].is_some();
        let price = |op: &Op, operands: &[NodeId], result: &Type| {
            let types: SmallVec<[&Type; 8]> = operands.iter().map(|o| graph.ty(*o)).collect();
            cost::kernel(&cost::sketch(op, &types, result, &|i| known(operands[i])), device)
        };
        let before: f64 = groups
            .iter()
            .flat_map(|group| self.kernels.partition.groups[*group].outputs())
            .chain([self.id])
            .map(|id| price(&graph.node(id).op, &graph.node(id).operands, graph.ty(id)))
            .sum();
        let one = graph.tensor_type(self.id).clone();
        let result = if results > 1 { Type::Tuple(vec![one; results].into()) } else { one.into() };
        price(&op.clone().into(), operands, &result) < before
    }
}

/// A row operator that joins a product.
struct Rows {
    value: NodeId,
    first: ScalarExpr,
    row: Op,
    finish: ScalarExpr,
}
