//! Attention and its gradient on their drivers.

use egret_ir::ops::Attention;
use egret_ir::{DType, Diagnostic, Dim, ExprKind, NodeId, Op, ScalarExpr, ScalarFn};
use egret_program::driver::{
    AttentionGradProblem, AttentionOperand, AttentionProblem, AttentionSchedule, Driver, Mask, Score,
};
use egret_program::{Arg, BufferId, DeviceDescription, Place, Step};
use smallvec::SmallVec;

use super::frame::Frame;
use super::gemm::compact;
use super::{DriverLaunch, Operand, Planner};
use crate::schedule::epilogue::{self, Extra};

/// Labels of an attention in the driver's terms.
struct Roles {
    batch: Option<u8>,
    head: Option<u8>,
    query: u8,
    key: u8,
    channel: u8,
    value: u8,
}

fn roles(attention: &Attention) -> Option<Roles> {
    let scores = &attention.scores.0;
    let (key, query) = (*scores.last()?, *scores.get(scores.len().checked_sub(2)?)?);
    let outer: SmallVec<[u8; 4]> = scores[..scores.len() - 2].iter().copied().collect();
    let (batch, head) = match outer.as_slice() {
        [] => (None, None),
        [head] => (None, Some(*head)),
        [batch, head] => (Some(*batch), Some(*head)),
        _ => return None,
    };
    let shared =
        outer.iter().all(|l| attention.q.has(*l) && attention.k.has(*l) && attention.v.has(*l) && attention.o.has(*l));
    let mut channels = attention.q.0.iter().copied().filter(|l| !scores.contains(l));
    let mut values = attention.v.0.iter().copied().filter(|l| !scores.contains(l));
    let (channel, value) = (channels.next()?, values.next()?);
    let single =
        channels.next().is_none() && values.next().is_none() && attention.k.has(channel) && attention.o.has(value);
    let ranks = [&attention.q, &attention.k, &attention.v, &attention.o].iter().all(|l| l.0.len() == outer.len() + 2);
    (shared && single && ranks).then_some(Roles { batch, head, query, key, channel, value })
}

/// Whether the driver runs an attention of a type, or its gradient if the types of its extras are given: that driver
/// knows the slope of `scale · score + mask` alone.
pub fn has_driver(
    attention: &Attention,
    dtype: DType,
    gradient_with: Option<&[DType]>,
    device: &DeviceDescription,
) -> bool {
    let plain = |extras: &[DType]| match plain_score(&attention.score) {
        Some((_, None)) => true,
        Some((_, Some(mask))) => extras.get(mask - 1) == Some(&DType::F32),
        None => false,
    };
    device.is_cpu() && dtype == DType::F32 && roles(attention).is_some() && gradient_with.is_none_or(plain)
}

/// `scale · p0 + p_mask`, if the program is that.
fn plain_score(program: &ScalarExpr) -> Option<(f64, Option<usize>)> {
    if program.is_arg(0) {
        return Some((1.0, None));
    }
    if let Some([a, b]) = program.operands_of(ScalarFn::Add) {
        let arg = |e: &ScalarExpr| match e.kind() {
            ExprKind::Arg(i) if *i > 0 => Some(usize::from(*i)),
            _ => None,
        };
        return match (arg(a), arg(b)) {
            (Some(mask), None) => scaled(b).map(|scale| (scale, Some(mask))),
            (None, Some(mask)) => scaled(a).map(|scale| (scale, Some(mask))),
            _ => None,
        };
    }
    scaled(program).map(|scale| (scale, None))
}

fn scaled(program: &ScalarExpr) -> Option<f64> {
    if program.is_arg(0) {
        return Some(1.0);
    }
    if let Some([a, b]) = program.operands_of(ScalarFn::Mul) {
        return match (a.as_const(), b.as_const()) {
            (Some(c), None) => scaled(b).map(|s| s * c.as_f64()),
            (None, Some(c)) => scaled(a).map(|s| s * c.as_f64()),
            _ => None,
        };
    }
    let [a, b] = program.operands_of(ScalarFn::Div)? else { return None };
    Some(scaled(a)? / b.as_const()?.as_f64())
}

/// An operand with its strides by role.
struct Read {
    operand: Operand,
    strides: AttentionOperand<Dim>,
}

impl Planner<'_> {
    /// Plans attention.
    pub(super) fn attention(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let node = frame.graph.node(id).clone();
        let Op::Attention(attention) = &node.op else {
            return Err(Diagnostic::new("E0464", "an attention's group has no attention"));
        };
        let prepared = self.forward(frame, id, attention, &node.operands[..3], &node.operands[3..], steps)?;
        let (o, lse) = (self.result(frame, (id, 0), place, None), self.result(frame, (id, 1), place, None));
        let mut args: Vec<Arg> = prepared.reads.iter().map(|r| r.operand.arg(false)).collect();
        args.push(Arg::write(o));
        args.push(Arg::write(lse));
        args.extend(prepared.extras.iter().map(|e| e.arg(false)));
        let schedule = AttentionSchedule::choose(self.lanes as usize);
        let driver = Driver::Attention(prepared.problem, schedule);
        let launch =
            DriverLaunch { driver, hook: prepared.hook, finisher: None, args, clear: Vec::new(), family: "attention" };
        self.drive(frame, id, launch, steps);
        Ok(())
    }

    /// Plans the gradient of attention.
    pub(super) fn attention_grad(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let node = frame.graph.node(id).clone();
        let Op::AttentionGrad(grad) = &node.op else {
            return Err(Diagnostic::new("E0464", "an attention gradient's group has none"));
        };
        let attention = &grad.of;
        let prepared = self.forward(frame, id, attention, &node.operands[..3], &node.operands[6..], steps)?;
        let roles = roles(attention).ok_or_else(|| unsupported(frame, id))?;
        let o = self.read(frame, node.operands[3], &attention.o, &roles, roles.query, roles.value, steps)?;
        let grad_o = self.read(frame, node.operands[5], &attention.o, &roles, roles.query, roles.value, steps)?;
        let lse = self.row_major(frame, node.operands[4], steps)?;
        let mut problem = prepared.problem;
        problem.o = o.strides.clone();
        let own = |frame: &Frame, i: usize, labels: &egret_ir::ops::Labels, row: u8| {
            let shape = &frame.graph.ty(id).parts()[i].shape;
            by_role(labels, &crate::schedule::view::row_major(shape), &roles, row)
        };
        let grad_q = own(frame, 0, &attention.q, roles.query);
        let grad_k = own(frame, 1, &attention.k, roles.key);
        let grad_v = own(frame, 2, &attention.v, roles.key);
        let results: Vec<BufferId> = (0..3).map(|i| self.result(frame, (id, i), place, None)).collect();
        let mut args: Vec<Arg> = prepared.reads.iter().map(|r| r.operand.arg(false)).collect();
        args.push(o.operand.arg(false));
        args.push(lse.arg(false));
        args.push(grad_o.operand.arg(false));
        args.extend(results.iter().map(|buffer| Arg::write(*buffer)));
        args.extend(prepared.extras.iter().map(|e| e.arg(false)));
        let driver = Driver::AttentionGrad(
            AttentionGradProblem { forward: problem, grad_o: grad_o.strides, grad_q, grad_k, grad_v },
            AttentionSchedule::choose(self.lanes as usize),
        );
        let launch = DriverLaunch {
            driver,
            hook: prepared.hook,
            finisher: None,
            args,
            clear: Vec::new(),
            family: "attention_grad",
        };
        self.drive(frame, id, launch, steps);
        Ok(())
    }

    fn read(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        labels: &egret_ir::ops::Labels,
        roles: &Roles,
        row: u8,
        channel: u8,
        steps: &mut Vec<Step>,
    ) -> Result<Read, Diagnostic> {
        let (mut operand, mut strides, _) = self.strided(frame, id, steps)?;
        let contiguous = labels
            .axis(channel)
            .is_some_and(|axis| strides[axis].is(1) || frame.graph.tensor_type(id).shape[axis].is(1));
        if !contiguous {
            // channels must lie side by side: a copy in the operand's own order makes them so if they are its last axis
            let last = labels.0.len() - 1;
            let copied =
                if labels.axis(channel) == Some(last) { id } else { self.channels_last(frame, id, labels, channel)? };
            let buffer = self.copied(frame, copied, steps)?;
            operand = Operand { buffer, offset: Dim::ZERO, element: operand.element };
            let row_major = crate::schedule::view::row_major(&frame.graph.tensor_type(copied).shape);
            strides = if copied == id {
                row_major
            } else {
                // the copy's axes are the operand's, the channels moved to the end
                let axis = labels.axis(channel).unwrap_or(last);
                let mut back: SmallVec<[Dim; 6]> = row_major.clone();
                let channels = back.pop().unwrap_or(Dim::ONE);
                back.insert(axis, channels);
                back
            };
        }
        Ok(Read { operand, strides: by_role(labels, &strides, roles, row) })
    }

    fn channels_last(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        labels: &egret_ir::ops::Labels,
        channel: u8,
    ) -> Result<NodeId, Diagnostic> {
        let axis = labels.axis(channel).unwrap_or(0);
        let permutation = (0..labels.0.len()).filter(|a| *a != axis).chain([axis]).collect();
        frame.add(egret_ir::ops::Transpose { permutation }, &[id])
    }

    fn copied(&mut self, frame: &mut Frame, id: NodeId, steps: &mut Vec<Step>) -> Result<BufferId, Diagnostic> {
        // a transpose node of its own is stored by a map
        self.materialise(frame, id, steps)
    }

    /// The forward problem, whose result is row-major.
    fn forward(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        attention: &Attention,
        qkv: &[NodeId],
        extras: &[NodeId],
        steps: &mut Vec<Step>,
    ) -> Result<Forward, Diagnostic> {
        let f32s = qkv.iter().all(|n| frame.graph.tensor_type(*n).dtype == DType::F32);
        let Some(roles) = roles(attention).filter(|_| f32s) else { return Err(unsupported(frame, id)) };
        let shape = |frame: &Frame, i: usize| frame.graph.tensor_type(qkv[i]).shape.clone();
        let extent = |frame: &Frame, i: usize, labels: &egret_ir::ops::Labels, label: Option<u8>| {
            label.and_then(|l| labels.axis(l)).map_or(Dim::ONE, |axis| shape(frame, i)[axis].clone())
        };
        let heads = extent(frame, 0, &attention.q, roles.head);
        let reads = vec![
            self.read(frame, qkv[0], &attention.q, &roles, roles.query, roles.channel, steps)?,
            self.read(frame, qkv[1], &attention.k, &roles, roles.key, roles.channel, steps)?,
            self.read(frame, qkv[2], &attention.v, &roles, roles.key, roles.value, steps)?,
        ];
        let o_shape: SmallVec<[Dim; 6]> = attention
            .o
            .0
            .iter()
            .map(|l| match *l {
                l if l == roles.query => extent(frame, 0, &attention.q, Some(l)),
                l if l == roles.value => extent(frame, 2, &attention.v, Some(l)),
                l => extent(frame, 0, &attention.q, Some(l)),
            })
            .collect();
        let o_strides = crate::schedule::view::row_major(&o_shape.iter().cloned().collect());
        let scores: Vec<Dim> = attention
            .scores
            .0
            .iter()
            .map(|l| match *l {
                l if l == roles.key => extent(frame, 1, &attention.k, Some(l)),
                l => extent(frame, 0, &attention.q, Some(l)),
            })
            .collect();
        let rows: egret_ir::Shape = scores[..scores.len() - 1].iter().cloned().collect();
        let row_labels = egret_ir::ops::Labels(attention.scores.0[..scores.len() - 1].iter().copied().collect());
        let lse = by_role(&row_labels, &crate::schedule::view::row_major(&rows), &roles, roles.query);
        let mut masks = Vec::new();
        let mut operands = Vec::new();
        for extra in extras {
            let (operand, mask) = self.mask(frame, *extra, &attention.scores, &roles, steps)?;
            operands.push(operand);
            masks.push(mask);
        }
        let types: Vec<DType> = extras.iter().map(|e| frame.graph.tensor_type(*e).dtype).collect();
        let mut hook = None;
        let (score, used): (Score<Dim>, Vec<usize>) = match plain_score(&attention.score) {
            Some((scale, None)) => (Score::Plain { scale: scale as f32, mask: None, causal: None }, Vec::new()),
            Some((scale, Some(arg))) if types[arg - 1] == DType::F32 => {
                (Score::Plain { scale: scale as f32, mask: Some(masks[arg - 1].clone()), causal: None }, vec![arg - 1])
            }
            _ => {
                let (used, programs) = compact(&[&attention.score]);
                let hook_extras: Vec<Extra> =
                    used.iter().map(|i| Extra { dtype: types[*i], by_column: !masks[*i].key.is(0) }).collect();
                let made = epilogue::hook(&programs[0], &hook_extras, DType::F32, self.exact).map_err(|findings| {
                    let error = Diagnostic::new("E0461", "no hook can be made for a score program");
                    findings.into_iter().fold(error, |error, finding| error.note(finding.to_string()))
                })?;
                hook = Some(made);
                let score = Score::Hook {
                    extras: used.iter().map(|i| masks[*i].clone()).collect(),
                    element_bytes: used.iter().map(|i| types[*i].size() as u8).collect(),
                };
                (score, used)
            }
        };
        let problem = AttentionProblem {
            batch: extent(frame, 0, &attention.q, roles.batch),
            heads: heads.clone(),
            kv_heads: heads,
            q_len: extent(frame, 0, &attention.q, Some(roles.query)),
            k_len: extent(frame, 1, &attention.k, Some(roles.key)),
            head_dim: extent(frame, 0, &attention.q, Some(roles.channel)),
            value_dim: extent(frame, 2, &attention.v, Some(roles.value)),
            q: reads[0].strides.clone(),
            k: reads[1].strides.clone(),
            v: reads[2].strides.clone(),
            o: by_role(&attention.o, &o_strides, &roles, roles.query),
            lse: Some(lse),
            score,
            empty_is_zero: false,
        };
        let extras = used.into_iter().map(|i| operands[i].clone()).collect();
        Ok(Forward { problem, reads, extras, hook })
    }

    /// An operand of the score program with its strides over the scores.
    fn mask(
        &mut self,
        frame: &mut Frame,
        extra: NodeId,
        scores: &egret_ir::ops::Labels,
        roles: &Roles,
        steps: &mut Vec<Step>,
    ) -> Result<(Operand, Mask<Dim>), Diagnostic> {
        let own = frame.graph.tensor_type(extra).shape.clone();
        let (mut operand, mut strides, _) = self.strided(frame, extra, steps)?;
        let unit =
            |strides: &[Dim]| own.last().is_none_or(|d| d.is(1)) || strides.last().is_none_or(|s| s.is(1) || s.is(0));
        if !unit(&strides) {
            let buffer = self.materialise(frame, extra, steps)?;
            operand = Operand { buffer, offset: Dim::ZERO, element: operand.element };
            strides = crate::schedule::view::row_major(&own);
        }
        let lead = scores.0.len() - own.rank();
        let stride = |label: Option<u8>| {
            let axis = label.and_then(|l| scores.axis(l)).and_then(|axis| axis.checked_sub(lead));
            axis.filter(|axis| !own[*axis].is(1)).map_or(Dim::ZERO, |axis| strides[axis].clone())
        };
        let mask = Mask {
            batch: stride(roles.batch),
            head: stride(roles.head),
            query: stride(Some(roles.query)),
            key: stride(Some(roles.key)),
        };
        Ok((operand, mask))
    }
}

struct Forward {
    problem: AttentionProblem<Dim>,
    reads: Vec<Read>,
    extras: Vec<Operand>,
    hook: Option<crate::kernel::Kernel>,
}

fn by_role(labels: &egret_ir::ops::Labels, strides: &[Dim], roles: &Roles, row: u8) -> AttentionOperand<Dim> {
    let stride = |label: Option<u8>| label.and_then(|l| labels.axis(l)).map_or(Dim::ZERO, |axis| strides[axis].clone());
    AttentionOperand { batch: stride(roles.batch), head: stride(roles.head), row: stride(Some(row)) }
}

fn unsupported(frame: &Frame, id: NodeId) -> Diagnostic {
    let node = frame.graph.node(id);
    let mut error = Diagnostic::new("E0465", "this form of attention has no kernel on the CPU yet");
    error.origin = frame.graph.origins(id).iter().map(|o| (**o).clone()).collect();
    error.note(format!("{:?}", node.op)).help("compile with `--rewrite none`")
}
