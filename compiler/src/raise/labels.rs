//! Labels of attention: movement of its operands and of its result becomes labels.
//!
//! A transpose permutes labels; an axis that merges batch and heads is split into its parts; an axis along which keys and
//! values repeat (grouped heads) is no axis of theirs. So every spelling of one attention has the same labels.

use egret_ir::ops::{Attention, Labels, Places, Proj};
use egret_ir::{Dim, NodeId, Op, Shape};
use smallvec::SmallVec;

use super::view;
use crate::rewrite::direct::Builder;

/// Copies of a value along one of its axes.
struct Copies {
    source: NodeId,
    axis: usize,
    times: i64,
    /// Whole copies one after another; else copies of each index.
    outside: bool,
}

fn copies(builder: &Builder, id: NodeId) -> Option<Copies> {
    let node = builder.graph().node(id);
    let source = *node.operands.first()?;
    match &node.op {
        Op::Concat(concat) => {
            let times = node.operands.len();
            let equal = times > 1 && node.operands.iter().all(|o| *o == source);
            equal.then_some(Copies { source, axis: concat.axis, times: times as i64, outside: true })
        }
        Op::Gather(gather) => {
            let Places::Rows { axis } = gather.places else { return None };
            let times = repeats(builder, node.operands[1], builder.graph().tensor_type(source).shape.get(axis)?)?;
            Some(Copies { source, axis, times, outside: false })
        }
        _ => None,
    }
}

/// How often each index occurs, if constant indices are all indices of an axis in order, each as often.
fn repeats(builder: &Builder, indices: NodeId, extent: &Dim) -> Option<i64> {
    let Op::Const(constant) = &builder.graph().node(indices).op else { return None };
    let (count, extent) = (constant.value.elements(), usize::try_from(extent.as_const()?).ok()?);
    let each = count.checked_div(extent).filter(|each| *each > 1 && each * extent == count)?;
    let fits = constant.value.shape().len() == 1 && constant.value.dtype().is_int();
    let in_order = || constant.value.values().enumerate().all(|(i, v)| v.as_int() == (i / each) as i128);
    (fits && in_order()).then_some(each as i64)
}

/// Attention with its operands: q, k, v, extras.
#[derive(Clone)]
pub struct Form {
    /// The operator.
    pub op: Attention,
    /// Its operands.
    pub operands: SmallVec<[NodeId; 8]>,
}

/// Most rounds of absorption: each takes one movement away.
const ROUNDS: usize = 24;

impl Form {
    /// Absorbs what moves the operands; whether anything did.
    pub fn settle(&mut self, builder: &mut Builder) -> bool {
        let mut changed = false;
        for _ in 0..ROUNDS {
            // transposes first: a split of an operand that is transposed would hide what it was made of
            let moved = (0..3).any(|i| self.untranspose(builder, i).is_some());
            if !moved && !(0..3).any(|i| self.absorb(builder, i).is_some()) {
                break;
            }
            changed = true;
        }
        changed
    }

    fn labels(&self, operand: usize) -> &Labels {
        [&self.op.q, &self.op.k, &self.op.v][operand]
    }

    fn labels_mut(&mut self, operand: usize) -> &mut Labels {
        match operand {
            0 => &mut self.op.q,
            1 => &mut self.op.k,
            _ => &mut self.op.v,
        }
    }

    /// Takes a transpose of an operand into its labels.
    fn untranspose(&mut self, builder: &Builder, i: usize) -> Option<()> {
        let node = builder.graph().node(self.operands[i]);
        let permutation = view::permutation(&node.op)?;
        let mut inner = self.labels(i).clone();
        for (to, from) in permutation.iter().enumerate() {
            inner.0[*from] = self.labels(i).0[to];
        }
        *self.labels_mut(i) = inner;
        self.operands[i] = node.operands[0];
        Some(())
    }

    /// Takes one merge or repetition of an operand's axes into the labels.
    fn absorb(&mut self, builder: &mut Builder, i: usize) -> Option<()> {
        let node = builder.graph().node(self.operands[i]).clone();
        match &node.op {
            Op::Reshape(reshape) => {
                let shape = &reshape.shape;
                let from = builder.graph().tensor_type(node.operands[0]).shape.clone();
                let Some(groups) = view::merges(&from, shape) else {
                    return self.cut_copies(builder, i, shape, node.operands[0]);
                };
                let wide = |group: &std::ops::Range<usize>| from[group.clone()].iter().filter(|d| !d.is(1)).count() > 1;
                let axis = groups.iter().position(wide)?;
                let parts: SmallVec<[Dim; 4]> =
                    from[groups[axis].clone()].iter().filter(|d| !d.is(1)).cloned().collect();
                self.split(builder, self.labels(i).0[axis], &parts)
            }
            Op::Broadcast(_) => {
                let source = node.operands[0];
                let (from, to) = (
                    builder.graph().tensor_type(source).shape.clone(),
                    builder.graph().tensor_type(self.operands[i]).shape.clone(),
                );
                let lead = to.rank() - from.rank();
                let repeats = |axis: usize| axis < lead || from[axis - lead].is(1) && !to[axis].is(1);
                let free = |axis: usize| self.is_free(i, self.labels(i).0[axis]);
                if !(0..to.rank()).all(|axis| !repeats(axis) || free(axis)) {
                    return None;
                }
                let kept: SmallVec<[usize; 6]> = (0..to.rank()).filter(|axis| !repeats(*axis)).collect();
                let shape: Shape = kept.iter().map(|axis| to[*axis].clone()).collect();
                self.operands[i] = view::reshape(builder, source, shape)?;
                *self.labels_mut(i) = self.labels(i).permuted(&kept);
                Some(())
            }
            _ => {
                let Copies { source, axis, times, outside } = copies(builder, self.operands[i])?;
                self.unrepeat(builder, i, axis, source, times, outside)
            }
        }
    }

    /// Takes copies out of an operand whose axis of copies a reshape has cut already.
    fn cut_copies(&mut self, builder: &Builder, i: usize, shape: &Shape, inner: NodeId) -> Option<()> {
        let Copies { source, axis, times, outside } = copies(builder, inner)?;
        let groups = view::merges(shape, &builder.graph().tensor_type(inner).shape)?;
        let at = groups[axis].start + usize::from(!outside);
        let apart = groups.iter().enumerate().all(|(j, g)| g.len() == 1 + usize::from(j == axis));
        (apart && shape[at].is(times) && self.is_free(i, self.labels(i).0[at])).then_some(())?;
        let kept: SmallVec<[usize; 6]> = (0..shape.rank()).filter(|axis| *axis != at).collect();
        *self.labels_mut(i) = self.labels(i).permuted(&kept);
        self.operands[i] = source;
        Some(())
    }

    /// Takes the repetition of `source` along an axis out of an operand: the axis is cut into copies and what is copied.
    fn unrepeat(
        &mut self,
        builder: &mut Builder,
        i: usize,
        axis: usize,
        source: NodeId,
        times: i64,
        outside: bool,
    ) -> Option<()> {
        let label = self.labels(i).0[axis];
        self.is_free(i, label).then_some(())?;
        let shape = builder.graph().tensor_type(source).shape.clone();
        let own = shape[axis].clone();
        if own.is(1) {
            // nothing but copies
            let kept: SmallVec<[usize; 6]> = (0..shape.rank()).filter(|at| *at != axis).collect();
            self.operands[i] = view::reshape(builder, source, kept.iter().map(|at| shape[*at].clone()).collect())?;
            *self.labels_mut(i) = self.labels(i).permuted(&kept);
            return Some(());
        }
        let parts = if outside { [Dim::from(times), own] } else { [own, Dim::from(times)] };
        self.split(builder, label, &parts)?;
        let copies = axis + usize::from(!outside);
        let kept: SmallVec<[usize; 6]> = (0..self.labels(i).0.len()).filter(|at| *at != copies).collect();
        *self.labels_mut(i) = self.labels(i).permuted(&kept);
        self.operands[i] = source;
        Some(())
    }

    /// Whether an operand may lack a label: the others tell the extent of the outer axis.
    fn is_free(&self, operand: usize, label: u8) -> bool {
        let outer = self.op.scores.0.len().saturating_sub(2);
        let others = match operand {
            0 => self.op.k.has(label),
            1 => self.op.q.has(label),
            _ => self.op.q.has(label) || self.op.k.has(label),
        };
        others && self.op.scores.0[..outer].contains(&label)
    }

    /// Replaces an outer label by one for each of `parts`, everywhere.
    fn split(&mut self, builder: &mut Builder, label: u8, parts: &[Dim]) -> Option<()> {
        let place = self.op.scores.axis(label)?;
        // queries and keys stay one axis each
        if place + 2 >= self.op.scores.0.len() {
            return None;
        }
        let lists = [&self.op.q, &self.op.k, &self.op.v, &self.op.o, &self.op.scores];
        let used = |l: u8| lists.iter().any(|list| list.has(l));
        let fresh: SmallVec<[u8; 4]> = (b'a'..=b'z').filter(|l| !used(*l)).take(parts.len()).collect();
        (fresh.len() == parts.len()).then_some(())?;
        let rank = self.op.scores.0.len();
        let mut operands = self.operands.clone();
        for (i, operand) in operands.iter_mut().enumerate() {
            let shape = builder.graph().tensor_type(*operand).shape.clone();
            let axis = match i {
                0..3 => self.labels(i).axis(label),
                // extras broadcast to the scores, axes aligned at the last
                _ => (place + shape.rank()).checked_sub(rank),
            };
            let Some(axis) = axis else { continue };
            let one = [Dim::ONE];
            let cut = shape[axis].is(1) && i >= 3;
            let middle = parts.iter().map(|part| if cut { &one[0] } else { part });
            let apart: Shape = shape[..axis].iter().chain(middle).chain(&shape[axis + 1..]).cloned().collect();
            *operand = view::reshape(builder, *operand, apart)?;
        }
        let replaced = |list: &Labels| {
            let axes = list.0.iter().flat_map(|l| if *l == label { fresh.clone() } else { smallvec::smallvec![*l] });
            Labels(axes.collect())
        };
        let op = &self.op;
        let [q, k, v, o, scores] = [&op.q, &op.k, &op.v, &op.o, &op.scores].map(replaced);
        self.op = Attention { q, k, v, o, scores, ..op.clone() };
        self.operands = operands;
        Some(())
    }

    /// Adds the operator and takes a part of it, in a shape.
    pub fn build(&self, builder: &mut Builder, part: usize, shape: &Shape) -> Option<NodeId> {
        let tuple = builder.add(&self.op.clone().canonical().into(), &self.operands).ok()?;
        let value = builder.add(&Proj { index: part }.into(), &[tuple]).ok()?;
        view::reshape(builder, value, shape.clone())
    }
}

/// The attention of which a value is part `part`, and the value's own shape.
pub fn part_of(builder: &Builder, id: NodeId) -> Option<(Form, usize)> {
    let graph = builder.graph();
    let Op::Proj(Proj { index }) = &graph.node(id).op else { return None };
    let tuple = graph.node(graph.node(id).operands[0]).clone();
    let Op::Attention(op) = &tuple.op else { return None };
    Some((Form { op: (**op).clone(), operands: tuple.operands.iter().copied().collect() }, *index))
}

/// A simpler equal of a part of an attention, or of the transpose of its result.
pub fn raise(builder: &mut Builder, id: NodeId) -> Option<(NodeId, &'static str)> {
    let shape = builder.graph().ty(id).tensor()?.shape.clone();
    if let Some((mut form, part)) = part_of(builder, id) {
        form.settle(builder).then_some(())?;
        builder.take_origins(&[builder.graph().node(id).operands[0]]);
        return Some((form.build(builder, part, &shape)?, "attention-labels"));
    }
    let node = builder.graph().node(id).clone();
    let permutation = view::permutation(&node.op)?;
    let moved = node.operands[0];
    // through a reshape that merges labels that were split
    let (result, groups) = match &builder.graph().node(moved).op {
        Op::Reshape(reshape) => {
            let inner = builder.graph().node(moved).operands[0];
            let from = builder.graph().ty(inner).tensor()?.shape.clone();
            (inner, view::merges(&from, &reshape.shape)?)
        }
        _ => (moved, (0..permutation.len()).map(|axis| axis..axis + 1).collect()),
    };
    let (mut form, 0) = part_of(builder, result)? else { return None };
    let axes: SmallVec<[usize; 6]> = permutation.iter().flat_map(|axis| groups[*axis].clone()).collect();
    form.op.o = form.op.o.permuted(&axes);
    builder.take_origins(&[builder.graph().node(result).operands[0], result]);
    Some((form.build(builder, 0, &shape)?, "attention-transpose"))
}
