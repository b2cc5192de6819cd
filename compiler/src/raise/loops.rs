//! Loop motion: contractions that need not run step by step leave `scan`.
//!
//! - One of scanned slices and captured values is one contraction before the loop, of all steps at once.
//! - One that only a stacked result reads is one contraction after it, of what the loop stacks instead.
//! - A carried sum of contractions is one contraction after it that sums over the steps too (class *real*).

use std::sync::Arc;

use egret_ir::ops::{
    Broadcast, Concat, DotGeneral, Input, Labels, Norm, Pointwise, Proj, Reduce, ReduceKind, Reshape, Scan, Slice,
    Softmax, Transpose,
};
use egret_ir::{Diagnostic, Dim, Graph, NodeId, Op, ScalarFn, Shape};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::rewrite::direct::{self, Builder, Direct};
use crate::rewrite::rules::LOOP_MOTION;

/// The graph with its loops' contractions moved, or `None` of one without loops; sums over steps are not reassociated if
/// `exact`.
///
/// # Errors
/// When what is put in does not fit: a defect.
pub fn move_contractions(graph: &Graph, exact: bool) -> Result<Option<Direct>, Diagnostic> {
    if !graph.nodes().iter().any(|node| matches!(node.op, Op::Scan(_))) {
        return Ok(None);
    }
    let mut known: FxHashMap<NodeId, Option<Vec<NodeId>>> = FxHashMap::default();
    let mut hook = |builder: &mut Builder, id: NodeId| {
        let Op::Proj(Proj { index }) = builder.graph().node(id).op else { return None };
        let tuple = builder.graph().node(id).operands[0];
        let Op::Scan(scan) = builder.graph().node(tuple).op.clone() else { return None };
        let operands: Vec<NodeId> = builder.graph().node(tuple).operands.to_vec();
        let parts = known.entry(tuple).or_insert_with(|| Loop::new(builder, &scan, operands).ok()?.moved(exact));
        Some((*parts.as_ref()?.get(index)?, LOOP_MOTION))
    };
    direct::apply(graph, &[], Vec::new(), &mut hook).map(Some)
}

/// What a value of the body depends on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Depends {
    /// Captured values alone.
    Captured,
    /// The step's slices too.
    Slices,
    /// What the step before made.
    Carried,
}

/// A value outside the loop: of all steps, with a leading axis for them, or the same in each.
#[derive(Clone, Copy)]
struct Outside {
    id: NodeId,
    stacked: bool,
}

struct Loop<'b> {
    builder: &'b mut Builder,
    scan: Scan,
    body: Graph,
    operands: Vec<NodeId>,
    depends: Vec<Depends>,
    users: Vec<SmallVec<[NodeId; 4]>>,
    outside: FxHashMap<NodeId, Outside>,
}

/// What leaves a loop.
#[derive(Default)]
struct Plan {
    /// Contractions before the loop.
    before: Vec<NodeId>,
    /// Values after it, in order of the body.
    after: Vec<NodeId>,
    /// By carried value, the contractions that it sums.
    sums: FxHashMap<usize, Sum>,
}

struct Sum {
    products: Vec<NodeId>,
    /// Other terms that the loop goes on to add.
    rest: Vec<NodeId>,
    /// The additions.
    adds: Vec<NodeId>,
}

impl<'b> Loop<'b> {
    fn new(builder: &'b mut Builder, scan: &Scan, operands: Vec<NodeId>) -> Result<Loop<'b>, Diagnostic> {
        let body = super::canonicalise(&scan.body)?;
        let mut depends: Vec<Depends> = Vec::new();
        for (id, node) in body.iter() {
            let place = body.inputs().iter().position(|input| *input == id);
            depends.push(match place {
                Some(i) if i < scan.carried => Depends::Carried,
                Some(i) if i < scan.carried + scan.scanned => Depends::Slices,
                _ => node.operands.iter().map(|o| depends[o.index()]).max().unwrap_or(Depends::Captured),
            });
        }
        let users = body.users();
        Ok(Loop { builder, scan: scan.clone(), body, operands, depends, users, outside: FxHashMap::default() })
    }

    fn is_product(&self, id: NodeId) -> bool {
        matches!(self.body.node(id).op, Op::DotGeneral(_))
    }

    fn outputs_of(&self, id: NodeId) -> impl Iterator<Item = usize> + '_ {
        self.body.outputs().iter().enumerate().filter(move |(_, (_, output))| *output == id).map(|(i, _)| i)
    }

    /// By part of the loop's result, the value that it is when contractions have left; `None` when none can.
    fn moved(mut self, exact: bool) -> Option<Vec<NodeId>> {
        let mut plan = Plan::default();
        if !exact {
            for i in 0..self.scan.carried {
                if let Some(sum) = self.sum(i) {
                    plan.sums.insert(i, sum);
                }
            }
        }
        self.after(&mut plan);
        self.before(&mut plan);
        let gains =
            !plan.before.is_empty() || !plan.sums.is_empty() || plan.after.iter().any(|id| self.is_product(*id));
        gains.then_some(())?;
        self.rebuild(&plan)
    }

    /// The terms of a carried sum, if contractions are among them and nothing else reads it in the body.
    fn sum(&self, carried: usize) -> Option<Sum> {
        let input = self.body.inputs()[carried];
        let root = self.body.outputs()[carried].1;
        let is_add = |id: NodeId| matches!(self.body.node(id).op, Op::Pointwise(Pointwise { f: ScalarFn::Add }));
        (is_add(root) && self.outputs_of(root).count() == 1 && self.users[root.index()].is_empty()).then_some(())?;
        (self.users[input.index()].len() == 1 && self.outputs_of(input).next().is_none()).then_some(())?;
        let (mut found, mut todo, mut inputs) =
            (Sum { products: Vec::new(), rest: Vec::new(), adds: Vec::new() }, vec![root], 0);
        let shape = self.body.ty(root).clone();
        while let Some(id) = todo.pop() {
            let alone = self.users[id.index()].len() == 1 && self.outputs_of(id).next().is_none();
            if id == input {
                inputs += 1;
            } else if is_add(id) && (id == root || alone) {
                found.adds.push(id);
                todo.extend(&self.body.node(id).operands);
            } else if self.is_product(id)
                && alone
                && *self.body.ty(id) == shape
                && self.depends[id.index()] > Depends::Captured
            {
                found.products.push(id);
            } else {
                found.rest.push(id);
            }
        }
        (inputs == 1 && !found.products.is_empty()).then_some(found)
    }

    /// Contractions that no next step waits for, and what follows them.
    fn after(&self, plan: &mut Plan) {
        let carried = self.body.outputs()[..self.scan.carried].iter().map(|(_, id)| *id);
        let mut waited = vec![false; self.body.nodes().len()];
        let summed = |id: &NodeId| plan.sums.values().any(|sum| sum.adds.contains(id) || sum.products.contains(id));
        carried.filter(|id| !summed(id)).for_each(|id| waited[id.index()] = true);
        plan.sums.values().flat_map(|sum| &sum.rest).for_each(|id| waited[id.index()] = true);
        for (id, node) in self.body.iter().rev() {
            if waited[id.index()] {
                node.operands.iter().for_each(|o| waited[o.index()] = true);
            }
        }
        let mut moves = vec![false; self.body.nodes().len()];
        for (id, node) in self.body.iter() {
            let follows = self.is_product(id) || node.operands.iter().any(|o| moves[o.index()]);
            let free = !waited[id.index()] && !summed(&id) && self.depends[id.index()] == Depends::Carried;
            moves[id.index()] = follows && free && spreads(&node.op);
        }
        // what stays reads nothing that has left
        for (id, node) in self.body.iter().rev() {
            if !moves[id.index()] {
                node.operands.iter().for_each(|o| moves[o.index()] = false);
            }
        }
        plan.after = self.body.iter().map(|(id, _)| id).filter(|id| moves[id.index()]).collect();
    }

    /// Contractions of slices and captured values that stay in the loop.
    fn before(&mut self, plan: &mut Plan) {
        let ids: Vec<NodeId> = self.body.iter().map(|(id, _)| id).collect();
        for id in ids {
            let summed = plan.sums.values().any(|sum| sum.products.contains(&id));
            let early = self.is_product(id) && self.depends[id.index()] < Depends::Carried && !summed;
            if early && self.spread(id).is_some() {
                plan.before.push(id);
            }
        }
    }

    /// A value that depends on no carried one, outside the loop.
    fn spread(&mut self, root: NodeId) -> Option<Outside> {
        let mut stack = vec![root];
        while let Some(id) = stack.pop() {
            if self.outside.contains_key(&id) {
                continue;
            }
            (self.depends[id.index()] < Depends::Carried).then_some(())?;
            if let Some(place) = self.body.inputs().iter().position(|input| *input == id) {
                let stacked = place < self.scan.carried + self.scan.scanned;
                self.outside.insert(id, Outside { id: self.operands[place], stacked });
                continue;
            }
            let node = self.body.node(id).clone();
            let open: Vec<NodeId> = node.operands.iter().copied().filter(|o| !self.outside.contains_key(o)).collect();
            if !open.is_empty() {
                stack.push(id);
                stack.extend(open);
                continue;
            }
            let made = self.apply(id)?;
            self.outside.insert(id, made);
        }
        self.outside.get(&root).copied()
    }

    /// A node of the body on all steps at once; its operands are outside already.
    fn apply(&mut self, id: NodeId) -> Option<Outside> {
        let node = self.body.node(id).clone();
        let given: Option<SmallVec<[Outside; 4]>> =
            node.operands.iter().map(|o| self.outside.get(o).copied()).collect();
        let given = given?;
        let plain: SmallVec<[NodeId; 4]> = given.iter().map(|g| g.id).collect();
        if given.iter().all(|g| !g.stacked) {
            let pure = spreads(&node.op) || matches!(node.op, Op::Const(_) | Op::Iota(_));
            let id = pure.then(|| self.builder.add(&node.op, &plain).ok()).flatten()?;
            return Some(Outside { id, stacked: false });
        }
        let length = self.scan.length.clone();
        let whole = |shape: &Shape| -> Shape { std::iter::once(&length).chain(shape.iter()).cloned().collect() };
        let shape = self.body.tensor_type(id).shape.clone();
        let rank = shape.rank();
        let body_shape = |i: usize| self.body.tensor_type(node.operands[i]).shape.clone();
        let op: Op = match &node.op {
            Op::Pointwise(_) | Op::Cast(_) | Op::StopGradient(_) | Op::Broadcast(_) => {
                // the steps' axis stands before axes that only others have
                let mut aligned = plain.clone();
                for (i, operand) in given.iter().enumerate().filter(|(_, g)| g.stacked) {
                    let own = body_shape(i);
                    let ones = std::iter::repeat_n(Dim::ONE, rank - own.rank());
                    let padded = std::iter::once(length.clone()).chain(ones).chain(own.iter().cloned()).collect();
                    aligned[i] = super::view::reshape(self.builder, operand.id, padded)?;
                }
                let op = match &node.op {
                    Op::Broadcast(_) => Broadcast { shape: whole(&shape) }.into(),
                    other => other.clone(),
                };
                let id = self.builder.add(&op, &aligned).ok()?;
                return Some(Outside { id, stacked: true });
            }
            Op::Transpose(t) => {
                let permutation = std::iter::once(0).chain(t.permutation.iter().map(|axis| axis + 1)).collect();
                Transpose { permutation }.into()
            }
            Op::Reshape(_) => Reshape { shape: whole(&shape) }.into(),
            Op::Slice(slice) => Slice {
                start: std::iter::once(Dim::ZERO).chain(slice.start.iter().cloned()).collect(),
                limit: std::iter::once(length).chain(slice.limit.iter().cloned()).collect(),
                step: std::iter::once(1).chain(slice.step.iter().copied()).collect(),
            }
            .into(),
            Op::Concat(concat) => {
                let mut all = plain.clone();
                for (i, operand) in given.iter().enumerate().filter(|(_, g)| !g.stacked) {
                    let shape = whole(&body_shape(i));
                    all[i] = self.builder.add(&Broadcast { shape }.into(), &[operand.id]).ok()?;
                }
                let id = self.builder.add(&Concat { axis: concat.axis + 1 }.into(), &all).ok()?;
                return Some(Outside { id, stacked: true });
            }
            Op::Reduce(reduce) => {
                Reduce { axes: reduce.axes.iter().map(|axis| axis + 1).collect(), ..(**reduce).clone() }.into()
            }
            Op::Softmax(softmax) => Softmax { axis: softmax.axis + 1, ..softmax.clone() }.into(),
            Op::Norm(norm) => Norm { axis: norm.axis + 1, ..(**norm).clone() }.into(),
            Op::DotGeneral(dot) => {
                let step = fresh(dot)?;
                let with = |labels: &Labels, stacked: bool| {
                    Labels(stacked.then_some(step).into_iter().chain(labels.0.iter().copied()).collect())
                };
                let (lhs, rhs) = (with(&dot.lhs, given[0].stacked), with(&dot.rhs, given[1].stacked));
                dot.relabelled(lhs, rhs, with(&dot.out, true)).into()
            }
            _ => return None,
        };
        let id = self.builder.add(&op, &plain).ok()?;
        Some(Outside { id, stacked: true })
    }

    /// The loop without what leaves it, and the parts of its result.
    fn rebuild(mut self, plan: &Plan) -> Option<Vec<NodeId>> {
        let (carried, scanned) = (self.scan.carried, self.scan.scanned);
        let gone = |i: usize| plan.sums.get(&i).is_some_and(|sum| sum.rest.is_empty());
        // values that the loop stacks for those after it
        let products = plan.sums.values().flat_map(|sum| &sum.products);
        let readers: Vec<NodeId> = plan.after.iter().chain(products).copied().collect();
        let mut stacks: Vec<NodeId> = Vec::new();
        let read: Vec<NodeId> = readers.iter().flat_map(|id| self.body.node(*id).operands.clone()).collect();
        for operand in read {
            let stays = !plan.after.contains(&operand) && !stacks.contains(&operand);
            if stays && (self.depends[operand.index()] == Depends::Carried || self.spread(operand).is_none()) {
                stacks.push(operand);
            }
        }
        stacks.sort();
        let kept_carries: Vec<usize> = (0..carried).filter(|i| !gone(*i)).collect();
        let kept_stacks: Vec<usize> =
            (carried..self.body.outputs().len()).filter(|i| !plan.after.contains(&self.body.outputs()[*i].1)).collect();

        // what the body still computes
        let mut live = vec![false; self.body.nodes().len()];
        let roots = kept_carries.iter().filter(|i| !plan.sums.contains_key(i)).chain(&kept_stacks);
        roots.map(|i| self.body.outputs()[*i].1).chain(stacks.iter().copied()).for_each(|id| live[id.index()] = true);
        let rests = plan.sums.values().flat_map(|sum| &sum.rest);
        rests.for_each(|id| live[id.index()] = true);
        for (id, node) in self.body.iter().rev() {
            if live[id.index()] && !plan.before.contains(&id) {
                node.operands.iter().for_each(|o| live[o.index()] = true);
            }
        }

        let mut body = Graph::new();
        body.weights = self.body.weights.clone();
        let mut new: FxHashMap<NodeId, NodeId> = FxHashMap::default();
        let mut operands: Vec<NodeId> = Vec::new();
        let inputs = self.body.inputs().to_vec();
        let early: Vec<(NodeId, Outside)> = plan.before.iter().map(|id| (*id, self.outside[id])).collect();
        let early = early.into_iter().filter(|(id, _)| live[id.index()]);
        let (sliced, captured): (Vec<_>, Vec<_>) = early.partition(|(_, outside)| outside.stacked);
        let mut add = |id: NodeId, operand: NodeId, old: &Graph| -> Option<()> {
            let name = format!("v{}", operands.len());
            let made = body.add(Input { name, ty: old.tensor_type(id).clone() }, &[]).ok()?;
            new.insert(id, made);
            operands.push(operand);
            Some(())
        };
        kept_carries.iter().try_for_each(|i| add(inputs[*i], self.operands[*i], &self.body))?;
        let used = |i: &usize| live[inputs[*i].index()];
        let slices: Vec<usize> = (carried..carried + scanned).filter(used).collect();
        slices.iter().try_for_each(|i| add(inputs[*i], self.operands[*i], &self.body))?;
        sliced.iter().try_for_each(|(id, outside)| add(*id, outside.id, &self.body))?;
        let rest = (carried + scanned..inputs.len()).filter(used);
        rest.into_iter().try_for_each(|i| add(inputs[i], self.operands[i], &self.body))?;
        captured.iter().try_for_each(|(id, outside)| add(*id, outside.id, &self.body))?;
        for (id, node) in self.body.iter().filter(|(id, _)| live[id.index()]) {
            if !new.contains_key(&id) && !matches!(node.op, Op::Input(_)) {
                let ids: Option<SmallVec<[NodeId; 4]>> = node.operands.iter().map(|o| new.get(o).copied()).collect();
                new.insert(id, body.add_from(node.op.clone(), &ids?, self.body.origins(id).clone()).ok()?);
            }
        }
        for i in &kept_carries {
            let value = match plan.sums.get(i) {
                None => new[&self.body.outputs()[*i].1],
                Some(sum) => {
                    let mut total = new[&inputs[*i]];
                    for term in &sum.rest {
                        total = body.add(Pointwise { f: ScalarFn::Add }, &[total, new[term]]).ok()?;
                    }
                    total
                }
            };
            body.add_output(self.body.outputs()[*i].0.clone(), value);
        }
        kept_stacks
            .iter()
            .for_each(|i| body.add_output(self.body.outputs()[*i].0.clone(), new[&self.body.outputs()[*i].1]));
        stacks.iter().enumerate().for_each(|(i, id)| body.add_output(format!("s{i}"), new[id]));
        for assumption in self.scan.body.assumptions() {
            let node = NodeId::new(0);
            body.assume(egret_ir::Assumption { node, equality: assumption.equality.clone() });
        }
        let scan = Scan {
            body: Arc::new(body),
            carried: kept_carries.len(),
            scanned: slices.len() + sliced.len(),
            ..self.scan.clone()
        };
        let tuple = self.builder.add(&scan.into(), &operands).ok()?;
        let part = |builder: &mut Builder, i: usize| builder.add(&Proj { index: i }.into(), &[tuple]).ok();
        let first_stack = kept_carries.len() + kept_stacks.len();
        for (i, id) in stacks.iter().enumerate() {
            let value = part(self.builder, first_stack + i)?;
            self.outside.insert(*id, Outside { id: value, stacked: true });
        }
        for id in &plan.after {
            let made = self.apply(*id)?;
            self.outside.insert(*id, made);
        }
        let mut results = Vec::new();
        for i in 0..carried {
            let mut value = match kept_carries.iter().position(|k| *k == i) {
                Some(at) => part(self.builder, at)?,
                None => self.operands[i],
            };
            for product in plan.sums.get(&i).into_iter().flat_map(|sum| &sum.products) {
                let total = self.total(*product)?;
                let zero = self.builder.splat_of_node(value).is_some_and(|l| l.as_f64() == 0.0);
                let add = Pointwise { f: ScalarFn::Add }.into();
                value = if zero { total } else { self.builder.add(&add, &[value, total]).ok()? };
            }
            results.push(value);
        }
        for i in carried..self.body.outputs().len() {
            let id = self.body.outputs()[i].1;
            results.push(match kept_stacks.iter().position(|k| *k == i) {
                Some(at) => part(self.builder, kept_carries.len() + at)?,
                None => self.outside.get(&id)?.id,
            });
        }
        Some(results)
    }

    /// The sum of a contraction over all steps.
    fn total(&mut self, product: NodeId) -> Option<NodeId> {
        let node = self.body.node(product).clone();
        let Op::DotGeneral(dot) = &node.op else { return None };
        let mut given = [self.outside.get(&node.operands[0]).copied()?, self.outside.get(&node.operands[1]).copied()?];
        let both = given.iter().all(|g| g.stacked);
        if !both {
            // the other operand is the same in every step: only one is summed
            let one = given.iter_mut().find(|g| g.stacked)?;
            let sum = Reduce { kind: ReduceKind::Sum, axes: smallvec::smallvec![0], keep: false };
            one.id = self.builder.add(&sum.into(), &[one.id]).ok()?;
        }
        let step = fresh(dot)?;
        let with = |labels: &Labels| Labels(both.then_some(step).into_iter().chain(labels.0.iter().copied()).collect());
        let whole = dot.relabelled(with(&dot.lhs), with(&dot.rhs), dot.out.clone());
        self.builder.add(&whole.into(), &[given[0].id, given[1].id]).ok()
    }
}

/// A label that a contraction lacks.
fn fresh(dot: &DotGeneral) -> Option<u8> {
    (b'a'..=b'z').find(|l| !dot.lhs.has(*l) && !dot.rhs.has(*l) && !dot.out.has(*l))
}

/// Whether an operator on all steps at once is the same operator with an axis more.
fn spreads(op: &Op) -> bool {
    use Op::*;
    matches!(
        op,
        Pointwise(_)
            | Cast(_)
            | StopGradient(_)
            | Broadcast(_)
            | Transpose(_)
            | Reshape(_)
            | Slice(_)
            | Concat(_)
            | Reduce(_)
            | Softmax(_)
            | Norm(_)
            | DotGeneral(_)
    )
}
