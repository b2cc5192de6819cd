//! Convolutions on the direct driver, and changes of layout around it.

use egret_ir::ops::{ConvForm as Form, Fused};
use egret_ir::{DType, Diagnostic, Dim, NodeId, Op, Shape};
use egret_program::driver::{
    Bias, ConvForm, ConvInput, ConvProblem, ConvSchedule, Direction, Driver, Epilogue, Operand as Addressing,
    PackProblem, Prologue, RelayoutProblem,
};
use egret_program::{Arg, BufferId, Place, Step};
use smallvec::SmallVec;

use super::engine::family;
use super::frame::Frame;
use super::gemm::compact;
use super::{DriverLaunch, Operand, Planner};
use crate::kernel::Finding;
use crate::layout::{self, Layout, has_prologue};
use crate::rewrite::term::BindingTime;
use crate::schedule::epilogue::{self, Extra};
use crate::schedule::scope::{Value, value_of};

pub(super) fn dims(values: &[i64]) -> Vec<Dim> {
    values.iter().map(|v| Dim::from(*v)).collect()
}

/// Bytes of an element that the drivers of images compute with.
const WORD: usize = 4;

/// Whether the driver that changes layouts moves elements of a type; a kernel moves others.
pub(super) fn has_relayout(dtype: DType) -> bool {
    dtype.size() == WORD
}

/// The error of a hook that the verifier refuses.
fn unmade(findings: Vec<Finding>) -> Diagnostic {
    let error = Diagnostic::new("E0461", "no hook can be made for a program");
    findings.into_iter().fold(error, |error, finding| error.note(finding.to_string()))
}

/// A tensor that a driver reads in blocked channels.
pub(super) struct Blocked {
    buffer: BufferId,
    /// Elements before its first channel, of a slice of another.
    offset: Dim,
    pub(super) halo: SmallVec<[i64; 3]>,
    /// Elements from a batch item to the next.
    pub(super) item: Dim,
}

impl Blocked {
    /// What a kernel is given of it.
    pub(super) fn read(&self) -> Arg {
        Arg { offset: self.offset.clone() * Dim::from(WORD), ..Arg::read(self.buffer) }
    }
}

impl Planner<'_> {
    /// Plans a convolution.
    pub(super) fn conv(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        direct: Option<BufferId>,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let node = frame.graph.node(id).clone();
        let Some(conv) = layout::conv_of(&node.op).cloned() else {
            return Err(Diagnostic::new("E0464", "a convolution's group has no convolution"));
        };
        let needed = layout::read_halo(&frame.graph, &conv, id);
        let shape = |id: NodeId| frame.graph.tensor_type(id).shape.clone();
        let (x_shape, w_shape, y_shape) = match conv.form {
            Form::Forward => (shape(node.operands[0]), shape(node.operands[1]), shape(id)),
            Form::InputGrad => (shape(id), shape(node.operands[1]), shape(node.operands[0])),
            Form::WeightGrad => (shape(node.operands[0]), shape(id), shape(node.operands[1])),
        };
        let no_halo: SmallVec<[i64; 3]> = SmallVec::from_elem(0, conv.spatial());
        let unpadded = conv.form == Form::WeightGrad && needed.iter().all(|halo| *halo == 0);
        let image = (conv.form == Form::Forward || unpadded)
            && !has_prologue(&node.op)
            && conv.groups == 1
            && conv.spatial() <= 2
            && x_shape[1].as_const().is_some_and(|channels| 2 * channels < self.lanes)
            && frame.is_row_major(node.operands[0])
            && !matches!(frame.layouts.get(&value_of(&frame.graph, node.operands[0])), Some(Layout::Blocked { .. }));
        let shuffled = self.shuffled(frame, id, &needed);
        let image_of = |first: &Shape| first[1..].iter().fold(Dim::ONE, |n, d| n * d.clone());
        let (input, first) = if image {
            let operand = self.row_major(frame, node.operands[0], steps)?;
            let (buffer, item) = (operand.buffer, image_of(&x_shape));
            (ConvInput::Image, Blocked { buffer, offset: operand.offset, halo: no_halo.clone(), item })
        } else if let Some((source, _)) = &shuffled {
            (ConvInput::Blocked, self.blocked(frame, *source, &no_halo, steps)?)
        } else {
            (ConvInput::Blocked, self.blocked(frame, node.operands[0], &needed, steps)?)
        };
        let weight_gradient = conv.form == Form::WeightGrad;
        let second = match weight_gradient {
            true => Some(self.blocked(frame, node.operands[1], &no_halo, steps)?),
            false => None,
        };
        // the result's own halo was chosen with its layout
        let result_halo = match frame.layouts.get(&(id, 0)) {
            Some(Layout::Blocked { halo }) => halo.clone(),
            _ if weight_gradient => no_halo.clone(),
            _ => {
                frame.layouts.insert((id, 0), Layout::Blocked { halo: no_halo.clone() });
                no_halo.clone()
            }
        };
        let result = self.result(frame, (id, 0), place, direct.filter(|_| weight_gradient));
        let written = (result_halo.clone(), self.item(&frame.graph.tensor_type(id).shape, &result_halo));
        let read = |of: &Blocked| (of.halo.clone(), of.item.clone());
        let ((x_halo, x_item), (y_halo, y_item)) = match (conv.form, &second) {
            (Form::Forward, _) => (read(&first), written),
            (Form::InputGrad, _) => (written, read(&first)),
            (Form::WeightGrad, second) => (read(&first), second.as_ref().map_or(written, read)),
        };
        let mut problem = ConvProblem {
            form: match conv.form {
                Form::Forward => ConvForm::Forward,
                Form::InputGrad => ConvForm::InputGradient,
                Form::WeightGrad => ConvForm::WeightGradient,
            },
            input,
            batch: x_shape[0].clone(),
            in_channels: x_shape[1].clone(),
            out_channels: y_shape[1].clone(),
            groups: Dim::from(conv.groups),
            in_spatial: x_shape[2..].to_vec(),
            out_spatial: y_shape[2..].to_vec(),
            kernel: w_shape[2..].to_vec(),
            stride: dims(&conv.stride),
            dilation: dims(&conv.dilation),
            pad_begin: dims(&conv.pad_low),
            in_halo: dims(&x_halo),
            out_halo: dims(&y_halo),
            in_batch_stride: x_item,
            out_batch_stride: y_item,
            prologue: shuffled.map(|(_, taken)| taken),
            epilogue: Epilogue::none(),
        };
        let out = Arg::write(result);
        // a prologue tells how many rows a block has, so that it comes before the schedule
        let (mut own, mut prologue) = (Vec::new(), None);
        if let Op::Fused(fused) = &node.op
            && fused.prologue.is_some()
        {
            (problem.prologue, prologue) = self.prologue(frame, id, fused, &mut own, steps)?;
        }
        let schedule = self.conv_schedule(frame, [node.operands[0], node.operands[1]], &problem);
        let mut args = match &second {
            Some(second) => vec![first.read(), second.read(), out.clone()],
            None => {
                let weights = self.weights(frame, node.operands[1], &problem, &schedule, steps)?;
                vec![first.read(), Arg::read(weights), out.clone()]
            }
        };
        let mut hook = None;
        if let Op::Fused(fused) = &node.op {
            (problem.epilogue, hook) = self.image_epilogue(frame, id, fused, &result_halo, true, &mut args, steps)?;
            if hook.is_some() {
                args.push(out);
            }
            args.extend(own);
        }
        let family = family(&schedule);
        let clear = if weight_gradient { Vec::new() } else { self.halos(frame, id) };
        let driver = Driver::Conv(problem, schedule);
        self.drive(frame, id, DriverLaunch { driver, hook, finisher: prologue, args, clear, family }, steps);
        Ok(())
    }

    /// The image that a depthwise convolution takes its channels from by itself, and which: one in blocked channels, unless
    /// they were put in place before.
    fn shuffled(&self, frame: &Frame, id: NodeId, halo: &SmallVec<[i64; 3]>) -> Option<(NodeId, Prologue)> {
        let read = frame.graph.node(id).operands[0];
        let value = value_of(&frame.graph, read);
        if !layout::takes_channels(&frame.graph, id) || frame.blocked.contains_key(&(value, halo.clone())) {
            return None;
        }
        let taken = self.channels_of(frame, read)?;
        let (source, _) = *taken.first()?;
        let of = u32::try_from(frame.graph.tensor_type(source).shape[1].as_const()?).ok()?;
        let channels = taken.iter().all(|(image, _)| *image == source);
        channels
            .then(|| (source, Prologue::Taken { of, channels: taken.iter().map(|(_, channel)| *channel).collect() }))
    }

    /// The prologue of a convolution; its operands are added to the arguments.
    fn prologue(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        fused: &Fused,
        args: &mut Vec<Arg>,
        steps: &mut Vec<Step>,
    ) -> Result<(Option<Prologue>, Option<crate::kernel::Kernel>), Diagnostic> {
        let Some(prologue) = &fused.prologue else { return Ok((None, None)) };
        let node = frame.graph.node(id).clone();
        let types: Vec<_> = fused.split(&node.operands).2.iter().map(|o| frame.graph.tensor_type(*o).clone()).collect();
        let by_channel = |i: usize| types[i].shape.iter().any(|dim| !dim.is(1));
        let mut operands = Vec::new();
        for operand in fused.split(&node.operands).2 {
            operands.push(self.row_major(frame, *operand, steps)?);
        }
        let is_vector = |arg: usize| by_channel(arg - 1) && types[arg - 1].dtype == DType::F32;
        if let Some(affine) = epilogue::affine(&prologue.program, &is_vector) {
            let order = affine.scale.into_iter().chain(affine.shift);
            args.extend(order.map(|arg| operands[arg - 1].arg(false)));
            let (scale, shift) = (affine.scale.is_some(), affine.shift.is_some());
            return Ok((Some(Prologue::Affine { scale, shift, activation: affine.activation }), None));
        }
        let extras: Vec<Extra> =
            types.iter().enumerate().map(|(i, ty)| Extra { dtype: ty.dtype, by_column: by_channel(i) }).collect();
        let hook =
            epilogue::hook(&prologue.program, &[], &extras, (DType::F32, DType::F32), self.exact).map_err(unmade)?;
        args.extend(operands.iter().map(|operand| operand.arg(false)));
        let made = Prologue::Hook {
            by_channel: (0..types.len()).map(by_channel).collect(),
            element_bytes: types.iter().map(|ty| ty.dtype.size() as u8).collect(),
        };
        Ok((Some(made), Some(hook)))
    }

    /// The epilogue of a driver over a tensor in blocked channels; its extra operands are added to the arguments.
    pub(super) fn image_epilogue(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        fused: &Fused,
        result_halo: &[i64],
        in_registers: bool,
        args: &mut Vec<Arg>,
        steps: &mut Vec<Step>,
    ) -> Result<(Epilogue<Dim>, Option<crate::kernel::Kernel>), Diagnostic> {
        let node = frame.graph.node(id);
        let acc = frame.graph.tensor_type(node.operands[0]).dtype;
        let extras: SmallVec<[NodeId; 8]> = fused.split(&node.operands).1.into();
        let result_shape = frame.graph.tensor_type(id).shape.clone();
        let (mut addressing, mut operands, mut types) = (Vec::new(), Vec::new(), Vec::new());
        for extra in extras {
            types.push(frame.graph.tensor_type(extra).dtype);
            let (how, operand) = self.conv_extra(frame, extra, &result_shape, steps)?;
            addressing.push(how);
            operands.push(operand);
        }
        let is_vector = |arg: usize| addressing[arg - 1] == Addressing::PerColumn && types[arg - 1] == DType::F32;
        let is_full =
            |arg: usize| matches!(addressing[arg - 1], Addressing::Full { .. }) && types[arg - 1] == DType::F32;
        let direct = epilogue::direct(&fused.epilogue, &is_vector, &is_full);
        let direct = direct.filter(|_| in_registers && acc == DType::F32);
        if let Some(direct) = direct {
            let order = direct.bias.into_iter().chain(direct.residual);
            args.extend(order.map(|arg| operands[arg - 1].arg(false)));
            let epilogue = Epilogue::Direct {
                bias: direct.bias.map(|_| Bias::PerColumn),
                residual: direct.residual.map(|arg| addressing[arg - 1].clone()),
                activation: direct.activation,
            };
            return Ok((epilogue, None));
        }
        let (used, programs) = compact(&[&fused.epilogue]);
        let by_column = |i: &usize| addressing[*i] != Addressing::Scalar;
        let hook_extras: Vec<Extra> =
            used.iter().map(|i| Extra { dtype: types[*i], by_column: by_column(i) }).collect();
        let hook = epilogue::hook(&programs[0], &[], &hook_extras, (acc, fused.dtype), self.exact).map_err(unmade)?;
        let batch_stride = self.item(&result_shape, result_halo);
        let epilogue = Epilogue::Hook {
            extras: used.iter().map(|i| addressing[*i].clone()).collect(),
            outs: vec![Addressing::Full { halo: dims(result_halo), batch_stride }],
            element_bytes: used.iter().map(|i| types[*i]).chain([fused.dtype]).map(|t| t.size() as u8).collect(),
        };
        args.extend(used.iter().map(|i| operands[*i].arg(false)));
        Ok((epilogue, Some(hook)))
    }

    /// Elements from a batch item to the next of a blocked tensor.
    pub(super) fn item(&self, shape: &Shape, halo: &[i64]) -> Dim {
        let lanes = Dim::from(self.lanes);
        let pixels = shape[2..].iter().zip(halo).fold(Dim::ONE, |n, (s, h)| n * (s.clone() + Dim::from(2 * h)));
        shape[1].ceil_div(&lanes) * lanes * pixels
    }

    /// Weights as the driver reads them, packed at load when they are known then.
    fn weights(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        problem: &ConvProblem<Dim>,
        schedule: &ConvSchedule,
        steps: &mut Vec<Step>,
    ) -> Result<BufferId, Diagnostic> {
        let operand = self.row_major(frame, id, steps)?;
        let pack = PackProblem::for_conv(problem, schedule);
        let elements = pack.map(&mut |d| d.as_const().unwrap_or(0).max(0) as usize).packed_len();
        let at_load = frame.time(id) < BindingTime::Run;
        Ok(self.packed(frame, id, &operand, pack, Dim::from(elements), at_load, steps))
    }

    /// A value in blocked channels with at least that halo: where it is, or a copy made now.
    pub(super) fn blocked(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        halo: &SmallVec<[i64; 3]>,
        steps: &mut Vec<Step>,
    ) -> Result<Blocked, Diagnostic> {
        let (shown, first) = layout::whole_channels(&frame.graph, id, self.lanes);
        if let Some(Layout::Blocked { halo: have }) = frame.layouts.get(&value_of(&frame.graph, shown))
            && have.iter().zip(halo).all(|(have, need)| have >= need)
        {
            let shape = &frame.graph.tensor_type(shown).shape;
            let pixels = shape[2..].iter().zip(have).fold(Dim::ONE, |n, (s, h)| n * (s.clone() + Dim::from(2 * h)));
            return Ok(Blocked {
                buffer: frame.buffers[&value_of(&frame.graph, shown)],
                offset: pixels * Dim::from(first),
                halo: have.clone(),
                item: self.item(shape, have),
            });
        }
        let value = value_of(&frame.graph, id);
        let item = self.item(&frame.graph.tensor_type(id).shape, halo);
        if let Some(buffer) = frame.blocked.get(&(value, halo.clone())) {
            return Ok(Blocked { buffer: *buffer, offset: Dim::ZERO, halo: halo.clone(), item });
        }
        let ty = frame.graph.tensor_type(id).clone();
        let bytes = ty.shape[0].clone() * item.clone() * Dim::from(WORD);
        let buffer = if let Some(taken) = self.channels_of(frame, id) {
            let buffer = self.buffer(Place::Arena, ty.dtype, bytes, ty.bytes());
            self.take_channels(frame, id, &taken, buffer, halo, steps);
            buffer
        } else {
            let source = self.row_major(frame, id, steps)?;
            if has_relayout(ty.dtype) {
                let buffer = self.buffer(Place::Arena, ty.dtype, bytes, ty.bytes());
                self.relayout(frame, id, Direction::ToBlocked, source.arg(false), buffer, halo, steps);
                buffer
            } else {
                self.relaid(frame, id, Layout::Blocked { halo: halo.clone() }, steps)?
            }
        };
        frame.blocked.insert((value, halo.clone()), buffer);
        Ok(Blocked { buffer, offset: Dim::ZERO, halo: halo.clone(), item })
    }

    /// A row-major copy of a blocked value.
    pub(super) fn unblock(
        &mut self,
        frame: &mut Frame,
        value: Value,
        steps: &mut Vec<Step>,
    ) -> Result<BufferId, Diagnostic> {
        if let Some(buffer) = frame.row_major.get(&value) {
            return Ok(*buffer);
        }
        let dtype = frame.graph.ty(value.0).parts()[value.1].dtype;
        if frame.layouts.get(&value) == Some(&Layout::ChannelsLast) || !has_relayout(dtype) {
            let buffer = self.relaid(frame, value.0, Layout::RowMajor, steps)?;
            frame.row_major.insert(value, buffer);
            return Ok(buffer);
        }
        let Some(Layout::Blocked { halo }) = frame.layouts.get(&value).cloned() else {
            return Err(Diagnostic::new("E0464", "a value that is not blocked needs no row-major copy"));
        };
        let ty = frame.graph.ty(value.0).parts()[value.1].clone();
        let buffer = self.row_major_buffer(Place::Arena, &ty);
        let source = Arg::read(frame.buffers[&value]);
        self.relayout(frame, value.0, Direction::ToRowMajor, source, buffer, &halo, steps);
        frame.row_major.insert(value, buffer);
        Ok(buffer)
    }

    fn relayout(
        &mut self,
        frame: &Frame,
        id: NodeId,
        direction: Direction,
        source: Arg,
        target: BufferId,
        halo: &[i64],
        steps: &mut Vec<Step>,
    ) {
        let shape = frame.graph.tensor_type(id).shape.clone();
        let problem = RelayoutProblem {
            direction,
            lanes: self.lanes as usize,
            batch: shape[0].clone(),
            channels: shape[1].clone(),
            spatial: shape[2..].to_vec(),
            halo: dims(halo),
            blocked_batch_stride: self.item(&shape, halo),
            row_major_batch_stride: shape[1..].iter().fold(Dim::ONE, |n, d| n * d.clone()),
        };
        let args = vec![source, Arg::write(target)];
        let driver = Driver::Relayout(problem);
        let launch = DriverLaunch { driver, hook: None, finisher: None, args, clear: Vec::new(), family: "relayout" };
        self.drive(frame, id, launch, steps);
    }

    /// How a convolution's epilogue reads an extra operand.
    fn conv_extra(
        &mut self,
        frame: &mut Frame,
        extra: NodeId,
        result: &Shape,
        steps: &mut Vec<Step>,
    ) -> Result<(Addressing<Dim>, Operand), Diagnostic> {
        let shape = frame.graph.tensor_type(extra).shape.clone();
        let element = frame.graph.tensor_type(extra).dtype.size();
        let lead = result.rank() - shape.rank();
        let wide: SmallVec<[usize; 4]> = (0..shape.rank()).filter(|i| !shape[*i].is(1)).map(|i| i + lead).collect();
        if wide.is_empty() {
            return Ok((Addressing::Scalar, self.row_major(frame, extra, steps)?));
        }
        if wide.as_slice() == [1] {
            return Ok((Addressing::PerColumn, self.row_major(frame, extra, steps)?));
        }
        let full = if shape == *result {
            extra
        } else {
            frame.add(egret_ir::ops::Broadcast { shape: result.clone() }, &[extra])?
        };
        let no_halo: SmallVec<[i64; 3]> = SmallVec::from_elem(0, result.rank() - 2);
        let blocked = self.blocked(frame, full, &no_halo, steps)?;
        let how = Addressing::Full { halo: dims(&blocked.halo), batch_stride: blocked.item };
        Ok((how, Operand { buffer: blocked.buffer, offset: blocked.offset, element }))
    }
}
