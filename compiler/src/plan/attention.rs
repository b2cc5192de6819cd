//! Attention and its gradient on their drivers.

use egret_ir::ops::{Attention, Labels};
use egret_ir::{DType, Diagnostic, Dim, ExprKind, NodeId, Op, ScalarExpr, ScalarFn, Shape, TensorType};
use egret_program::driver::{
    AttentionGradProblem, AttentionOperand, AttentionProblem, AttentionSchedule, Driver, Mask, Score,
};
use egret_program::{Arg, BufferId, DeviceDescription, Place, Step};
use smallvec::SmallVec;

use super::frame::Frame;
use super::gemm::compact;
use super::{DriverLaunch, Operand, Planner};
use crate::schedule::attention::Roles;
use crate::schedule::cuda;
use crate::schedule::epilogue::{self, Extra};

/// Whether the device has a kernel for an attention of these queries, keys and values, or also for its gradient.
pub fn has_driver(
    attention: &Attention,
    [q, k, v]: [&TensorType; 3],
    gradient: bool,
    device: &DeviceDescription,
) -> bool {
    let Some(roles) = Roles::new(attention).filter(|roles| !gradient || roles.has_gradient(attention)) else {
        return false;
    };
    if device.is_cpu() {
        return q.dtype == DType::F32;
    }
    cuda::attention::fits(attention, &roles, [q, k, v])
}

/// `scale · p0 + p_mask`, and −∞ where `p_truth` is false.
struct Plain {
    scale: f64,
    mask: Option<usize>,
    truth: Option<usize>,
}

/// The program as [`Plain`], if it is that and its masks are of the element types that the driver knows.
fn plain_score(program: &ScalarExpr, extras: &[DType]) -> Option<Plain> {
    let of = |e: &ScalarExpr, dtype: DType| match e.kind() {
        ExprKind::Arg(i) if *i > 0 && extras.get(usize::from(*i) - 1) == Some(&dtype) => Some(usize::from(*i)),
        _ => None,
    };
    let (mut program, mut plain) = (program, Plain { scale: 1.0, mask: None, truth: None });
    if let Some([condition, kept, never]) = program.operands_of(ScalarFn::Select) {
        plain.truth = Some(of(condition, DType::Bool)?);
        never.as_const().filter(|c| c.as_f64() == f64::NEG_INFINITY)?;
        program = kept;
    }
    if let Some([a, b]) = program.operands_of(ScalarFn::Add) {
        let (mask, rest) = match (of(a, DType::F32), of(b, DType::F32)) {
            (Some(mask), None) => (mask, b),
            (None, Some(mask)) => (mask, a),
            _ => return None,
        };
        (plain.mask, program) = (Some(mask), rest);
    }
    plain.scale = scaled(program)?;
    Some(plain)
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

/// Joins outer axes that one stride an operand describes, and leaves out those of extent 1: equal attentions have equal
/// texts, however their axes are cut. The last `shared` axes stay apart from the others.
fn collapse(outer: &mut Vec<Dim>, shared: &mut usize, strides: &mut [&mut Vec<Dim>]) {
    for axis in (0..outer.len()).rev() {
        let last = axis + 1 == outer.len();
        let joins = !last
            && axis + 1 != outer.len() - *shared
            && strides.iter().all(|s| s[axis] == s[axis + 1].clone() * outer[axis + 1].clone());
        let gone = if outer[axis].is(1) {
            axis
        } else if joins {
            outer[axis] = outer[axis].clone() * outer[axis + 1].clone();
            strides.iter_mut().for_each(|s| s.swap(axis, axis + 1));
            axis + 1
        } else {
            continue;
        };
        *shared -= usize::from(gone >= outer.len() - *shared);
        outer.remove(gone);
        strides.iter_mut().for_each(|s| drop(s.remove(gone)));
    }
}

fn collapse_forward(problem: &mut AttentionProblem<Dim>, gradients: &mut [&mut AttentionOperand<Dim>]) {
    let AttentionProblem { outer, shared, q, k, v, o, lse, score, .. } = problem;
    let mut lists: Vec<&mut Vec<Dim>> = [q, k, v, o].into_iter().chain(lse.as_mut()).map(|x| &mut x.outer).collect();
    match score {
        Score::Plain { mask, truth, .. } => lists.extend(mask.iter_mut().chain(truth).map(|m| &mut m.outer)),
        Score::Hook { extras, .. } => lists.extend(extras.iter_mut().map(|m| &mut m.outer)),
    }
    lists.extend(gradients.iter_mut().map(|x| &mut x.outer));
    collapse(outer, shared, &mut lists);
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
        let mut prepared = self.forward(frame, id, attention, &node.operands[..3], &node.operands[3..], steps)?;
        collapse_forward(&mut prepared.problem, &mut []);
        let [o, lse] = [0, 1].map(|part| {
            let direct = frame.direct.get(&(id, part)).copied();
            self.result(frame, (id, part), place, direct)
        });
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
        let roles =
            Roles::new(attention).filter(|r| r.has_gradient(attention)).ok_or_else(|| unsupported(frame, id))?;
        let o = self.read(frame, node.operands[3], &attention.o, &roles, roles.query, roles.value, steps)?;
        let grad_o = self.read(frame, node.operands[5], &attention.o, &roles, roles.query, roles.value, steps)?;
        let lse = self.row_major(frame, node.operands[4], steps)?;
        let mut problem = prepared.problem;
        problem.o = o.strides.clone();
        let own = |frame: &Frame, i: usize, labels: &Labels, row: Option<u8>| {
            let shape = &frame.graph.ty(id).parts()[i].shape;
            by_role(labels, &crate::schedule::view::row_major(shape), &roles, row)
        };
        let mut grad_o_strides = grad_o.strides;
        let mut grad_q = own(frame, 0, &attention.q, roles.query);
        let mut grad_k = own(frame, 1, &attention.k, Some(roles.key));
        let mut grad_v = own(frame, 2, &attention.v, Some(roles.key));
        collapse_forward(&mut problem, &mut [&mut grad_o_strides, &mut grad_q, &mut grad_k, &mut grad_v]);
        let results = [0, 1, 2].map(|part| {
            let direct = frame.direct.get(&(id, part)).copied();
            self.result(frame, (id, part), place, direct)
        });
        let mut args: Vec<Arg> = prepared.reads.iter().map(|r| r.operand.arg(false)).collect();
        args.push(o.operand.arg(false));
        args.push(lse.arg(false));
        args.push(grad_o.operand.arg(false));
        args.extend(results.iter().map(|buffer| Arg::write(*buffer)));
        args.extend(prepared.extras.iter().map(|e| e.arg(false)));
        let driver = Driver::AttentionGrad(
            AttentionGradProblem { forward: problem, grad_o: grad_o_strides, grad_q, grad_k, grad_v },
            AttentionSchedule::choose(self.lanes as usize),
        );
        let launch = DriverLaunch {
            driver,
            hook: prepared.hook,
            finisher: prepared.slope,
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
        labels: &Labels,
        roles: &Roles,
        row: Option<u8>,
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
        labels: &Labels,
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
        let Some(roles) = Roles::new(attention).filter(|_| f32s) else { return Err(unsupported(frame, id)) };
        let shape = |frame: &Frame, i: usize| frame.graph.tensor_type(qkv[i]).shape.clone();
        let extent = |frame: &Frame, label: u8| {
            let own = [&attention.q, &attention.k, &attention.v].into_iter().enumerate();
            own.filter_map(|(i, labels)| Some(shape(frame, i)[labels.axis(label)?].clone())).next().unwrap_or(Dim::ONE)
        };
        let reads = vec![
            self.read(frame, qkv[0], &attention.q, &roles, roles.query, roles.channel, steps)?,
            self.read(frame, qkv[1], &attention.k, &roles, Some(roles.key), roles.channel, steps)?,
            self.read(frame, qkv[2], &attention.v, &roles, Some(roles.key), roles.value, steps)?,
        ];
        let o_shape: Shape = attention.o.0.iter().map(|l| extent(frame, *l)).collect();
        let o_strides = crate::schedule::view::row_major(&o_shape);
        let row_labels = Labels(attention.scores.0[..attention.scores.0.len() - 1].iter().copied().collect());
        let rows: Shape = row_labels.0.iter().map(|l| extent(frame, *l)).collect();
        let lse = by_role(&row_labels, &crate::schedule::view::row_major(&rows), &roles, roles.query);
        let mut masks = Vec::new();
        let mut operands = Vec::new();
        for extra in extras {
            let (operand, mask) = self.mask(frame, *extra, &attention.scores, &roles, steps)?;
            operands.push(operand);
            masks.push(mask);
        }
        let types: Vec<DType> = extras.iter().map(|e| frame.graph.tensor_type(*e).dtype).collect();
        let (mut hook, mut slope) = (None, None);
        let (score, used): (Score<Dim>, Vec<usize>) = match plain_score(&attention.score, &types) {
            Some(Plain { scale, mask, truth }) => {
                let of = |arg: Option<usize>| arg.map(|arg| masks[arg - 1].clone());
                let score = Score::Plain { scale: scale as f32, mask: of(mask), truth: of(truth) };
                (score, mask.into_iter().chain(truth).map(|arg| arg - 1).collect())
            }
            None => {
                let scored: Vec<DType> = std::iter::once(DType::F32).chain(types.iter().copied()).collect();
                let rate = attention.score.derivative(0, &scored);
                let rate = rate.unwrap_or_else(|| ScalarExpr::float(0.0, DType::F32));
                let (used, programs) = compact(&[&attention.score, &rate]);
                let mut hook_extras: Vec<Extra> =
                    used.iter().map(|i| Extra { dtype: types[*i], by_column: !masks[*i].key.is(0) }).collect();
                let fail = |findings: Vec<crate::kernel::Finding>| {
                    let error = Diagnostic::new("E0461", "no hook can be made for a score program");
                    findings.into_iter().fold(error, |error, finding| error.note(finding.to_string()))
                };
                hook = Some(
                    epilogue::hook(&programs[0], &[], &hook_extras, (DType::F32, DType::F32), self.exact)
                        .map_err(fail)?,
                );
                if matches!(frame.graph.node(id).op, Op::AttentionGrad(_)) {
                    // by the chain rule: the slope times the gradient of the logit
                    hook_extras.push(Extra { dtype: DType::F32, by_column: true });
                    let logit = ScalarExpr::arg(hook_extras.len());
                    let chained = ScalarExpr::apply(ScalarFn::Mul, [programs[1].clone(), logit], DType::F32);
                    slope = Some(
                        epilogue::hook(&chained, &[], &hook_extras, (DType::F32, DType::F32), self.exact)
                            .map_err(fail)?,
                    );
                }
                let score = Score::Hook {
                    extras: used.iter().map(|i| masks[*i].clone()).collect(),
                    element_bytes: used.iter().map(|i| types[*i].size() as u8).collect(),
                };
                (score, used)
            }
        };
        let problem = AttentionProblem {
            outer: roles.outer.iter().map(|l| extent(frame, *l)).collect(),
            shared: roles.shared,
            q_len: roles.query.map_or(Dim::ONE, |l| extent(frame, l)),
            k_len: extent(frame, roles.key),
            head_dim: extent(frame, roles.channel),
            value_dim: extent(frame, roles.value),
            q: reads[0].strides.clone(),
            k: reads[1].strides.clone(),
            v: reads[2].strides.clone(),
            o: by_role(&attention.o, &o_strides, &roles, roles.query),
            lse: Some(lse),
            score,
            causal: attention.causal.clone(),
            empty_is_zero: attention.empty_is_zero,
        };
        let extras = used.into_iter().map(|i| operands[i].clone()).collect();
        Ok(Forward { problem, reads, extras, hook, slope })
    }

    /// An operand of the score program with its strides over the scores.
    fn mask(
        &mut self,
        frame: &mut Frame,
        extra: NodeId,
        scores: &Labels,
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
            outer: roles.outer.iter().map(|l| stride(Some(*l))).collect(),
            query: stride(roles.query),
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
    /// The hook of the score's slope, for a gradient.
    slope: Option<crate::kernel::Kernel>,
}

fn by_role(labels: &Labels, strides: &[Dim], roles: &Roles, row: Option<u8>) -> AttentionOperand<Dim> {
    let stride = |label: u8| labels.axis(label).map_or(Dim::ZERO, |axis| strides[axis].clone());
    AttentionOperand { outer: roles.outer.iter().map(|l| stride(*l)).collect(), row: row.map_or(Dim::ZERO, stride) }
}

fn unsupported(frame: &Frame, id: NodeId) -> Diagnostic {
    let node = frame.graph.node(id);
    let mut error = Diagnostic::new("E0465", "this form of attention has no kernel on the CPU yet");
    error.origin = frame.graph.origins(id).iter().map(|o| (**o).clone()).collect();
    error.note(format!("{:?}", node.op)).help("compile with `--rewrite none`")
}
