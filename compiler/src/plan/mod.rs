//! The plan: from a rewritten graph to a program.
//!
//! What is known at load becomes the preparation program; the rest becomes steps. Each group of the partition gets a
//! kernel and a launch; layouts that differ between a writer and a driver that reads get a relayout.

mod attention;
mod channels;
mod channels_last;
pub(crate) mod choice;
mod control;
mod conv;
mod emit;
mod engine;
pub(crate) mod frame;
mod gemm;
mod launch;
mod operands;
mod pool;
mod scan;
mod select;
mod updates;

use egret_ir::{Diagnostic, Dim, Graph, NodeId, Op, TensorType};
use egret_program::driver::Driver;
use egret_program::{Arg, Buffer, BufferId, Check, DeviceDescription, Halo, KernelId, Place, Port, Program, Step};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use crate::cost::engine::Winograd;
use crate::layout::{self, Layout, Part};
use crate::partition::{self, Family, Group, Maps, is_inline, is_movement};
use crate::rewrite::term::BindingTime;
use crate::schedule::choice::Schedules;
use crate::schedule::cuda::F32Products;
use crate::schedule::scope::{Value, value_of};
use crate::{kernel, rematerialise};
pub(crate) use attention::has_driver as attention_has_driver;
use choice::{Record, Site};
pub use emit::Listing;
pub(crate) use emit::emit;
use frame::Frame;

/// What planning may do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// No FMA contraction.
    pub exact: bool,
    /// How `f32` is multiplied: TF32 on a GPU, bf16 on a CPU that has it.
    pub products: F32Products,
    /// Which tiles of Winograd's minimal filtering a CPU may use.
    pub winograd: Winograd,
    /// Each operator is a kernel of its own: level `none`.
    pub unfused: bool,
    /// Schedules that were chosen elsewhere.
    pub schedules: Schedules,
}

/// A value of a tensor: where it starts.
#[derive(Clone, Debug)]
struct Operand {
    buffer: BufferId,
    /// Elements.
    offset: Dim,
    element: usize,
}

impl Operand {
    fn arg(&self, writes: bool) -> Arg {
        Arg { buffer: self.buffer, offset: self.offset.clone() * Dim::from(self.element), writes }
    }
}

/// A launch of a driver, to be.
struct DriverLaunch {
    driver: Driver<Dim>,
    hook: Option<kernel::Kernel>,
    finisher: Option<kernel::Kernel>,
    args: Vec<Arg>,
    clear: Vec<Halo>,
    family: &'static str,
}

/// Where steps go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Prepare,
    Run,
}

struct Planner<'d> {
    device: &'d DeviceDescription,
    lanes: i64,
    exact: bool,
    products: F32Products,
    winograd: Winograd,
    unfused: bool,
    schedules: Schedules,
    /// What is kept of problems that have a choice of schedule, and those.
    recorded: Record,
    sites: Vec<Site>,
    program: Program,
    known: FxHashMap<String, KernelId>,
    generated: Vec<(KernelId, kernel::Kernel)>,
    packs: FxHashMap<String, BufferId>,
    /// Data-dependent sizes that a step so far tells.
    told: FxHashSet<u32>,
    /// Equalities that wait for such sizes.
    awaited: Vec<Check>,
}

/// Makes the program of a graph that has been canonicalised, raised, differentiated and rewritten.
///
/// # Errors
/// `E0461` when a kernel is beyond the bounds of the kernel IR, `E0462` when code cannot be made, `E0465` for a form that
/// the device has no kernel for, `E0466` for products that it has not.
pub fn plan(graph: &Graph, device: &DeviceDescription, options: &Options) -> Result<Program, Diagnostic> {
    let mut planner = planned(graph, device, options, Record::Nothing)?;
    emit::emit(&mut planner.program, planner.generated, device)?;
    Ok(planner.program)
}

/// The program without its code, and the kernels that its code is made from.
///
/// # Errors
/// Those of [`plan`].
pub fn kernels(
    graph: &Graph,
    device: &DeviceDescription,
    options: &Options,
) -> Result<(Program, Vec<(KernelId, kernel::Kernel)>), Diagnostic> {
    let planner = planned(graph, device, options, Record::Nothing)?;
    Ok((planner.program, planner.generated))
}

/// A program without its code, with what its code is made from and the problems that have a choice of schedule.
pub(crate) struct Recorded {
    /// The program.
    pub program: Program,
    /// The kernels that its code is made from.
    pub generated: Vec<(KernelId, kernel::Kernel)>,
    /// Each problem once.
    pub sites: Vec<Site>,
}

/// [`kernels`], and the problems that have a choice of schedule.
pub(crate) fn recorded(
    graph: &Graph,
    device: &DeviceDescription,
    options: &Options,
    record: Record,
) -> Result<Recorded, Diagnostic> {
    let planner = planned(graph, device, options, record)?;
    Ok(Recorded { program: planner.program, generated: planner.generated, sites: planner.sites })
}

/// Each generated kernel and hook of the program that [`plan`] makes as text, for dumps.
///
/// # Errors
/// Those of [`plan`].
pub fn list(
    graph: &Graph,
    device: &DeviceDescription,
    options: &Options,
    listing: Listing,
) -> Result<Vec<(KernelId, String)>, Diagnostic> {
    emit::list(&planned(graph, device, options, Record::Nothing)?.generated, device, listing)
}

/// The program without machine code, and the kernels that it is made from.
fn planned<'d>(
    graph: &Graph,
    device: &'d DeviceDescription,
    options: &Options,
    record: Record,
) -> Result<Planner<'d>, Diagnostic> {
    engine::check(device, options)?;
    let graph = rematerialise::opened(graph);
    let mut planner = Planner {
        device,
        lanes: device.lanes(),
        exact: options.exact,
        products: options.products,
        winograd: options.winograd,
        unfused: options.unfused,
        schedules: options.schedules.clone(),
        recorded: record,
        sites: Vec::new(),
        program: Program::empty(&device.name, device.lanes() as usize),
        known: FxHashMap::default(),
        generated: Vec::new(),
        packs: FxHashMap::default(),
        told: FxHashSet::default(),
        awaited: Vec::new(),
    };
    planner.checks(&graph);
    let mut frame = Frame::new(graph, planner.lanes, &|_| false);
    planner.leaves(&mut frame);
    let mut steps = Vec::new();
    frame.direct = planner.outputs(&frame);
    planner.lower(&mut frame, &mut steps)?;
    planner.leave(&mut frame, &mut steps)?;
    planner.program.steps = steps;
    Ok(planner)
}

impl Planner<'_> {
    fn checks(&mut self, graph: &Graph) {
        let (late, known) = checks_of(graph)
            .into_iter()
            .partition(|check| check.left.is_data_dependent() || check.right.is_data_dependent());
        (self.awaited, self.program.checks) = (late, known);
    }

    fn buffer(&mut self, place: Place, dtype: egret_ir::DType, bytes: Dim, logical_bytes: Dim) -> BufferId {
        self.program.buffers.push(Buffer { place, dtype, bytes, logical_bytes });
        BufferId(self.program.buffers.len() as u32 - 1)
    }

    fn row_major_buffer(&mut self, place: Place, ty: &TensorType) -> BufferId {
        self.buffer(place, ty.dtype, ty.bytes(), ty.bytes())
    }

    /// Buffers of leaves.
    fn leaves(&mut self, frame: &mut Frame) {
        let graph = frame.graph.clone();
        for (id, node) in graph.iter() {
            let port = |name: &str, ty: &TensorType, buffer| Port { name: name.into(), ty: ty.clone(), buffer };
            let buffer = match &node.op {
                Op::Input(input) => {
                    let place = Place::Input(self.program.inputs.len() as u32);
                    let buffer = self.row_major_buffer(place, &input.ty);
                    self.program.inputs.push(port(&input.name, &input.ty, buffer));
                    buffer
                }
                Op::Param(param) => {
                    let place = Place::Param(self.program.params.len() as u32);
                    let buffer = self.row_major_buffer(place, &param.ty);
                    self.program.params.push(port(&param.name, &param.ty, buffer));
                    buffer
                }
                Op::State(state) => {
                    let place = Place::State(self.program.states.len() as u32);
                    let buffer = self.row_major_buffer(place, &state.ty);
                    self.program.states.push(port(&state.name, &state.ty, buffer));
                    buffer
                }
                Op::Const(constant) if !is_inline(&node.op) => self.constant(&constant.value, graph.tensor_type(id)),
                _ => continue,
            };
            frame.store((id, 0), buffer, Layout::RowMajor);
        }
    }

    fn constant(&mut self, value: &egret_ir::Tensor, ty: &TensorType) -> BufferId {
        let place = Place::Constant(self.program.constants.len() as u32);
        self.program.constants.push(value.bytes().to_vec());
        self.row_major_buffer(place, ty)
    }

    /// Buffers of results, by value: each value may be written to one of them directly, also when a result is a reshape of
    /// it.
    fn outputs(&mut self, frame: &Frame) -> FxHashMap<Value, BufferId> {
        let mut direct = FxHashMap::default();
        let graph = &frame.graph;
        for (i, (name, id)) in graph.outputs().iter().enumerate() {
            let ty = graph.tensor_type(*id).clone();
            let buffer = self.row_major_buffer(Place::Output(i as u32), &ty);
            self.program.outputs.push(Port { name: name.clone(), ty, buffer });
            direct.entry((*id, 0)).or_insert(buffer);
        }
        for (_, id) in graph.outputs() {
            let (buffer, source) = (direct[&(*id, 0)], reshaped(graph, *id));
            match &graph.node(source).op {
                // a part of a tuple, such as attention's result
                Op::Proj(_) if frame.time(source) == BindingTime::Run => {
                    direct.entry(value_of(graph, source)).or_insert(buffer);
                }
                // other movement is done by the reshape's own kernel
                op if is_movement(op) => {}
                _ => {
                    let mut at = *id;
                    while at != source {
                        at = graph.node(at).operands[0];
                        direct.entry((at, 0)).or_insert(buffer);
                    }
                }
            }
        }
        direct
    }

    /// Plans a frame's graph: what is known at load goes to the preparation program, the rest to `steps`.
    fn lower(&mut self, frame: &mut Frame, steps: &mut Vec<Step>) -> Result<(), Diagnostic> {
        let graph = frame.graph.clone();
        let n = graph.nodes().len();
        let live = graph.live();
        let is_load = |id: NodeId| frame.times[id.index()] < BindingTime::Run;
        let mut leaves_at_load = vec![false; n];
        let mut leaves_run = vec![false; n];
        let tensors = frame.direct.keys().map(|(id, _)| *id).filter(|id| graph.ty(*id).tensor().is_some());
        for id in graph.roots().chain(tensors) {
            if is_load(id) { leaves_at_load[id.index()] = true } else { leaves_run[id.index()] = true }
        }
        for (id, node) in graph.iter().filter(|(id, _)| live[id.index()] && !is_load(*id)) {
            let _ = id;
            for operand in node.operands.iter().filter(|o| is_load(**o)) {
                leaves_at_load[operand.index()] = true;
            }
        }
        // a view that a run reads keeps what it is a view of, and a part of a tuple the tuple
        let mut kept = leaves_at_load.clone();
        for (id, node) in graph.iter().rev() {
            if kept[id.index()] && (is_movement(&node.op) || matches!(node.op, Op::Proj(_))) {
                node.operands.iter().for_each(|operand| kept[operand.index()] = true);
            }
        }
        let live_at_load: Vec<bool> = (0..n).map(|i| live[i] && is_load(NodeId::new(i))).collect();
        let live_run: Vec<bool> = (0..n).map(|i| live[i] && !is_load(NodeId::new(i))).collect();

        let stored = |id: NodeId| frame.is_stored(id);
        let at_load = partition::partition(&graph, &live_at_load, &leaves_at_load, &stored, Maps::Joined);
        let mut prepare = std::mem::take(&mut self.program.prepare);
        // only a run writes results
        let direct = std::mem::take(&mut frame.direct);
        for group in &at_load.groups {
            let kept = group.outputs().any(|id| kept[id.index()]);
            let place = if kept { Place::Prepared } else { Place::Arena };
            self.group(frame, group, place, None, Phase::Prepare, &mut prepare)?;
        }
        frame.direct = direct;
        // what regions prepare rests on constants alone
        self.program.prepare.append(&mut prepare);

        let stored = |id: NodeId| frame.is_stored(id) || frame.times[id.index()] < BindingTime::Run;
        let maps = if self.unfused { Maps::Alone } else { Maps::Joined };
        let mut partition = partition::partition(&graph, &live_run, &leaves_run, &stored, maps);
        updates::order(&graph, &mut partition);
        let products = if self.exact { F32Products::Fma } else { self.products };
        let known = |id: NodeId| frame.times[id.index()] < BindingTime::Run;
        let mut layouts = layout::layout(&graph, &partition, self.device, products, &leaves_run, &known);
        partition.leave_out(&layouts.taken);
        frame.copied = std::mem::take(&mut layouts.copied);
        if !self.unfused {
            updates::join(frame, &mut partition, &layouts);
            frame.in_place = layout::in_place(&graph, &partition, &mut layouts, &leaves_run);
        }
        for concat in frame.in_place.parts.values().map(|part| part.concat) {
            frame.hosts.insert(concat, None);
            frame.layouts.insert((concat, 0), layouts.of[concat.index()].clone());
        }
        // a part of a concatenation lies there, unless it is itself a result
        let (parts, hosts) = (&frame.in_place.parts, &frame.hosts);
        let free = |id: &NodeId| leaves_run[id.index()] || !parts.contains_key(id) && !hosts.contains_key(id);
        frame.direct.retain(|(id, _), _| free(id));
        frame.updated = updates::in_place(frame, &partition);
        for group in &partition.groups {
            for id in group.outputs() {
                frame.layouts.insert((id, 0), layouts.of[id.index()].clone());
            }
            let direct = frame.destination(group.root);
            self.group(frame, group, Place::Arena, direct, Phase::Run, steps)?;
        }
        Ok(())
    }

    /// Copies of results and states that no kernel wrote in place.
    fn leave(&mut self, frame: &mut Frame, steps: &mut Vec<Step>) -> Result<(), Diagnostic> {
        let outputs: Vec<(NodeId, BufferId)> =
            frame.graph.outputs().iter().zip(&self.program.outputs).map(|((_, id), port)| (*id, port.buffer)).collect();
        for (id, buffer) in outputs {
            self.copy_to(frame, id, buffer, steps)?;
        }
        for (name, id) in frame.graph.updates().to_vec() {
            let Some(port) = self.program.states.iter().find(|port| port.name == name) else {
                return Err(Diagnostic::new("E0463", format!("the update of `{name}` has no state of that name")));
            };
            let buffer = port.buffer;
            self.copy_to(frame, id, buffer, steps)?;
        }
        Ok(())
    }

    fn copy_to(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        buffer: BufferId,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let source = self.row_major(frame, id, steps)?;
        if source.buffer != buffer {
            let bytes = frame.graph.tensor_type(id).bytes();
            let destination = Arg::write(buffer);
            steps.push(Step::Copy { source: source.arg(false), destination, bytes });
        }
        Ok(())
    }

    /// Plans one group.
    fn group(
        &mut self,
        frame: &mut Frame,
        group: &Group,
        place: Place,
        direct: Option<BufferId>,
        phase: Phase,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let id = group.root;
        let written = frame.graph.node(id).operands.first().and_then(|operand| frame.row_major_buffer(*operand));
        if (direct.is_none() || direct == written) && self.alias(frame, id) {
            return Ok(());
        }
        // what a result is a reshape of may have been written there
        if let Some(buffer) = direct
            && frame.row_major_buffer(reshaped(&frame.graph, id)) == Some(buffer)
        {
            frame.store((id, 0), buffer, Layout::RowMajor);
            return Ok(());
        }
        match group.family {
            Family::Scan => return self.scan(frame, id, &place, phase, steps),
            Family::Branch => return self.branch(frame, id, &place, phase, steps),
            Family::While => return self.while_loop(frame, id, &place, phase, steps),
            Family::Bits => return self.bits(frame, id, &place, phase, steps),
            Family::Concat if frame.is_whole(id) => {
                self.result(frame, (id, 0), &place, direct);
                return Ok(());
            }
            // no loop nests of a runtime's own on a GPU
            _ if !self.device.is_cpu() => return self.generated(frame, group, place, direct, steps),
            Family::Map | Family::Concat if phase == Phase::Run && self.channels(frame, id, &place, steps)? => {
                return Ok(());
            }
            Family::Select => return self.select(frame, id, &place, steps),
            Family::Attention => return self.attention(frame, id, &place, steps),
            Family::AttentionGrad => return self.attention_grad(frame, id, &place, steps),
            Family::Dot if self.gemm(frame, id, &place, direct, phase, steps)? => return Ok(()),
            Family::Window if phase == Phase::Run && self.pool(frame, id, &place, direct, steps)? => return Ok(()),
            Family::Conv if layout::has_driver(&frame.graph, id, self.lanes) && phase == Phase::Run => {
                return self.conv(frame, id, &place, direct, steps);
            }
            _ => {}
        }
        self.generated(frame, group, place, direct, steps)
    }

    /// The bits of a value as another type: the same memory, or a copy that outlives preparation.
    fn bits(
        &mut self,
        frame: &mut Frame,
        id: NodeId,
        place: &Place,
        phase: Phase,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        let operand = frame.graph.node(id).operands[0];
        let source = self.row_major(frame, operand, steps)?;
        if phase == Phase::Run {
            frame.store((id, 0), source.buffer, Layout::RowMajor);
            return Ok(());
        }
        let bytes = frame.graph.tensor_type(id).bytes();
        let buffer = self.result(frame, (id, 0), place, None);
        let destination = Arg::write(buffer);
        steps.push(Step::Copy { source: source.arg(false), destination, bytes });
        Ok(())
    }

    /// A reshape of something row-major is the same memory.
    fn alias(&mut self, frame: &mut Frame, id: NodeId) -> bool {
        let node = frame.graph.node(id);
        if !matches!(node.op, Op::Reshape(_) | Op::StopGradient(_) | Op::Recompute(_)) {
            return false;
        }
        let source = node.operands[0];
        if frame.layouts.get(&value_of(&frame.graph, source)) != Some(&Layout::RowMajor) {
            return false;
        }
        match frame.row_major_buffer(source) {
            Some(buffer) => {
                frame.store((id, 0), buffer, Layout::RowMajor);
                true
            }
            None => false,
        }
    }

    /// Makes the buffer of a value that is about to be written.
    fn result(&mut self, frame: &mut Frame, value: Value, place: &Place, direct: Option<BufferId>) -> BufferId {
        let layout = frame.layouts.get(&value).cloned().unwrap_or(Layout::RowMajor);
        let buffer = direct.unwrap_or_else(|| self.reserve(frame, value, place));
        frame.store(value, buffer, layout);
        buffer
    }

    /// Memory for a value: its own, or its part of that of a concatenation, which comes later and may be a part itself.
    fn reserve(&mut self, frame: &mut Frame, value: Value, place: &Place) -> BufferId {
        let mut around: SmallVec<[(NodeId, Part); 4]> = SmallVec::new();
        let mut at = value.0;
        while let Some(part) = frame.in_place.parts.get(&at).filter(|_| value.1 == 0) {
            at = part.concat;
            around.push((at, part.clone()));
        }
        let mut offset = None;
        let mut outer: Option<BufferId> = None;
        for (concat, part) in around.into_iter().rev() {
            let buffer = match frame.hosts.get(&concat).copied().flatten() {
                Some(buffer) => buffer,
                None => self.set_aside(frame, (concat, 0), within(outer, offset.take(), place)),
            };
            frame.hosts.insert(concat, Some(buffer));
            (outer, offset) = (Some(buffer), Some(part.offset));
        }
        let reserved = frame.hosts.get(&value.0).copied().flatten().filter(|_| value.1 == 0);
        let buffer = reserved.unwrap_or_else(|| self.set_aside(frame, value, within(outer, offset, place)));
        if let Some(host) = frame.hosts.get_mut(&value.0) {
            *host = Some(buffer);
        }
        buffer
    }

    /// A new buffer for a value as it lies.
    fn set_aside(&mut self, frame: &Frame, value: Value, place: Place) -> BufferId {
        let ty = &frame.graph.ty(value.0).parts()[value.1];
        let layout = frame.layouts.get(&value).unwrap_or(&Layout::RowMajor);
        let layouts =
            layout::Layouts { of: Vec::new(), lanes: self.lanes, taken: Vec::new(), copied: FxHashMap::default() };
        let bytes = layouts.elements_of(&ty.shape, layout) * Dim::from(ty.dtype.size());
        self.buffer(place, ty.dtype, bytes, ty.bytes())
    }
}

/// The place of a part of `outer`, or one of its own.
fn within(outer: Option<BufferId>, offset: Option<Dim>, place: &Place) -> Place {
    match (outer, offset) {
        (Some(of), Some(offset)) => Place::Part { of, offset },
        _ => place.clone(),
    }
}

/// The value that a chain of reshapes begins with.
fn reshaped(graph: &Graph, id: NodeId) -> NodeId {
    let mut source = id;
    while let Op::Reshape(_) | Op::StopGradient(_) | Op::Recompute(_) = &graph.node(source).op {
        source = graph.node(source).operands[0];
    }
    source
}

/// What a graph assumes of its sizes, each equality once.
fn checks_of(graph: &Graph) -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    for assumption in graph.assumptions() {
        let origin = graph.origins(assumption.node).iter().map(|o| o.to_string()).collect::<Vec<_>>().join(", ");
        let (left, right) = (assumption.equality.left.clone(), assumption.equality.right.clone());
        if !checks.iter().any(|c| c.left == left && c.right == right) {
            checks.push(Check { left, right, what: assumption.equality.what.to_string(), origin });
        }
    }
    checks
}
