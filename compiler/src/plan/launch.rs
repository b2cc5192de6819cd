//! Launches: generated kernels and drivers as steps, each kernel text once.

use egret_ir::{DType, Diagnostic, Dim, NodeId, Op};
use egret_program::driver::Driver;
use egret_program::{Arg, BufferId, Halo, Kernel, KernelBody, KernelId, Launch, Place, SizeValue, Step};
use smallvec::SmallVec;

use super::choice::Decision;
use super::conv::has_relayout;
use super::frame::{Copies, Frame};
use super::{DriverLaunch, Planner};
use crate::layout::Layout;
use crate::partition::{Family, Group};
use crate::schedule::choice::Schedule;
use crate::schedule::cuda::Target;
use crate::schedule::scope::{Stored, Value};
use crate::schedule::{Generated, Passes, Temporary};
use crate::{cost, kernel, schedule};

impl Planner<'_> {
    /// Plans a generated kernel.
    pub(super) fn generated(
        &mut self,
        frame: &mut Frame,
        group: &Group,
        place: Place,
        direct: Option<BufferId>,
        steps: &mut Vec<Step>,
    ) -> Result<(), Diagnostic> {
        for id in group.outputs() {
            let direct = if id == group.root { direct } else { frame.destination(id) };
            self.result(frame, (id, 0), &place, direct);
        }
        for part in 1..frame.graph.ty(group.root).parts().len() {
            let direct = frame.direct.get(&(group.root, part)).copied();
            self.result(frame, (group.root, part), &place, direct);
        }
        // pixels that lie a vector apart are read one by one: the driver that moves them is faster
        let rows = matches!(group.family, Family::Map | Family::Concat | Family::Window | Family::Row);
        let copies = rows && !matches!(frame.layouts.get(&(group.root, 0)), Some(Layout::Blocked { .. }));
        if copies {
            for root in group.outputs() {
                for value in frame.blocked_sources(root) {
                    if has_relayout(frame.graph.ty(value.0).parts()[value.1].dtype) {
                        self.unblock(frame, value, steps)?;
                    }
                }
            }
        }
        if group.family == Family::Conv && !self.device.is_cpu() {
            self.channels_last_operands(frame, group.root, steps)?;
        }
        let copies = match group.family {
            Family::Conv if !self.device.is_cpu() => Some(Layout::ChannelsLast),
            _ => copies.then_some(Layout::RowMajor),
        };
        let view = copies.clone().map(|layout| Copies(&*frame, layout));
        let stored: &dyn Stored = match &view {
            Some(view) => view,
            None => &*frame,
        };
        let mut decision = None;
        let passes: Passes = if self.device.is_cpu() {
            let made = schedule::generate(&frame.graph, stored, group, self.exact).map_err(|findings| {
                let node = frame.graph.node(group.root);
                let message = format!("no kernel can be made for {}", node.op.home().name());
                let mut error = Diagnostic::new("E0461", message);
                error.origin = frame.graph.origins(group.root).iter().map(|o| (**o).clone()).collect();
                findings.into_iter().fold(error, |error, finding| error.note(finding.to_string()))
            })?;
            made.into()
        } else {
            let target = Target { device: self.device, exact: self.exact, products: self.products, schedule: None };
            let copy = |value: Value| view.as_ref().and_then(|view| view.copy(value));
            let aligned = |value: Value| match copy(value).or(frame.buffers.get(&value).copied()) {
                Some(buffer) => self.starts_at(buffer, 16),
                None => true,
            };
            let stored = &Aligned { stored, aligned: &aligned };
            let mut passes = schedule::cuda::generate(&frame.graph, stored, group, &target)?;
            decision =
                self.decide(|| text_of(&passes), || schedule::cuda::candidates(&frame.graph, stored, group, &target));
            if let Some(decision) = &mut decision
                && let Some(schedule) = decision.other()
            {
                let target = Target { schedule: Some(schedule), ..target };
                match schedule::cuda::generate(&frame.graph, stored, group, &target) {
                    Ok(other) => passes = other,
                    Err(error) => {
                        tracing::warn!(problem = %decision.key, %schedule, %error, "a schedule makes no kernel");
                        decision.chosen = 0;
                    }
                }
            }
            passes
        };
        let parts = frame.graph.ty(group.root).parts().len();
        let mut left = Dim::ZERO;
        for (i, Temporary { dtype, elements }) in passes.temporaries.into_iter().enumerate() {
            let bytes = elements * Dim::from(dtype.size());
            left = left + bytes.clone();
            let buffer = self.buffer(Place::Arena, dtype, bytes.clone(), bytes);
            frame.store((group.root, parts + i), buffer, Layout::RowMajor);
        }
        let (mut told, mut names, first) = (passes.told, Vec::new(), steps.len());
        for (i, made) in passes.kernels.into_iter().enumerate() {
            if let Some(told) = told.take_if(|told| told.after == i) {
                let buffer = frame.buffers[&(group.root, parts + told.temporary)];
                let count = Arg { buffer, offset: told.at * Dim::from(DType::I64.size()), writes: false };
                self.tell(frame, group.root, &told.size, SizeValue::Read(count), steps);
            }
            let own = |value: &Value| value.0 != group.root || value.1 < parts;
            let values: Vec<Value> = made.args.iter().map(|(value, _)| *value).collect();
            let mut launch = self.pass(frame, group, made, &copies);
            let named = values.iter().zip(&launch.args).filter(|(value, _)| own(value));
            names.extend(named.map(|((id, part), arg)| (arg.buffer, format!("{}.{part}", id.index()))));
            if i > 0 {
                // the work is counted with the first
                (launch.flops, launch.bytes) = (Dim::ZERO, left.clone());
            }
            steps.push(Step::Launch(launch));
        }
        if let Some(decision) = decision {
            let launch = |step: &Step| if let Step::Launch(launch) = step { Some(launch.clone()) } else { None };
            let launches: Vec<Launch> = steps[first..].iter().filter_map(launch).collect();
            self.record(frame, group.root, decision, &launches, names);
        }
        Ok(())
    }

    /// One kernel of a group.
    fn pass(&mut self, frame: &Frame, group: &Group, mut made: Generated, copies: &Option<Layout>) -> Launch {
        let grid = made.kernel.grid.iter().fold(Dim::ONE, |n, extent| n * dim_of(extent, &made.dims));
        let args = made.args.iter().map(|(value, writes)| Arg {
            buffer: match copies {
                Some(layout) if !*writes => Copies(frame, layout.clone()).buffer(*value),
                _ => frame.buffers[value],
            },
            offset: Dim::ZERO,
            writes: *writes,
        });
        let args: Vec<Arg> = args.collect();
        for (i, arg) in args.iter().enumerate().filter(|(_, arg)| !arg.writes) {
            if args.iter().any(|other| other.writes && other.buffer == arg.buffer) {
                made.kernel.buffers[i].access = kernel::Access::ReadInPlace;
            }
        }
        for (param, arg) in made.kernel.buffers.iter_mut().zip(&args) {
            if param.align > 0 && !self.starts_at(arg.buffer, i64::from(param.align)) {
                param.align = 0;
            }
        }
        let clear = self.halos(frame, group.root);
        let family = match group.family {
            Family::Map => "map",
            Family::Concat => "concat",
            Family::Reduce => "reduce",
            Family::Row => "row",
            Family::Window => "window",
            Family::Scatter => "scatter",
            Family::Cumulative => "cumulative",
            Family::Rng => "rng",
            Family::Select => match &frame.graph.node(group.root).op {
                Op::NonZero(_) => "non_zero",
                Op::NonMaxSuppression(_) => "suppression",
                _ => "top_k",
            },
            Family::Attention => "attention",
            Family::AttentionGrad => "attention_grad",
            _ => "contract",
        };
        let faults =
            made.faults.iter().map(|f| egret_program::Fault { code: f.code, message: f.message.clone() }).collect();
        let points = grid.hint(cost::SYMBOL_HINT).max(1);
        let kernel = self.code(made.kernel, family);
        let mut launch = self.launch(frame, group.root, kernel, args, clear);
        for id in group.outputs().filter(|id| *id != group.root) {
            let other = self.launch(frame, id, kernel, Vec::new(), Vec::new());
            launch.flops = launch.flops + other.flops;
            launch.bytes = launch.bytes + other.bytes;
            if !launch.origin.contains(&other.origin) {
                launch.origin = format!("{}, {}", launch.origin, other.origin);
            }
        }
        // 64 KB take a few microseconds, many times what a fork and join does
        let work = launch.flops.hint(cost::SYMBOL_HINT).max(launch.bytes.hint(cost::SYMBOL_HINT) / 4);
        launch.grain = (points * 16_384 / work.max(1)).max(1);
        launch.dims = made.dims;
        launch.grid = grid;
        launch.faults = faults;
        launch
    }

    /// Whether a buffer always starts at a multiple of so many bytes: allocations do, slices as far as their strides do.
    fn starts_at(&self, buffer: BufferId, bytes: i64) -> bool {
        match &self.program.buffer(buffer).place {
            Place::Slice { of, stride } => stride.modulo(&Dim::from(bytes)).is(0) && self.starts_at(*of, bytes),
            Place::Part { of, offset } => offset.modulo(&Dim::from(bytes)).is(0) && self.starts_at(*of, bytes),
            _ => true,
        }
    }

    /// A generated kernel, each text once.
    pub(super) fn code(&mut self, ir: kernel::Kernel, family: &str) -> KernelId {
        let text = ir.text();
        if let Some(id) = self.known.get(&text) {
            return *id;
        }
        let id = KernelId(self.program.kernels.len() as u32);
        let code = egret_program::Code { bytes: Vec::new(), relocations: Vec::new(), entry: 0, scratch_bytes: 0 };
        let body = match ir.abi {
            kernel::Abi::Kernel => match self.device.arch() {
                None => KernelBody::Code(code),
                Some(arch) => KernelBody::Cuda(egret_program::CudaCode {
                    source: String::new(),
                    prelude: Vec::new(),
                    arch: arch.into(),
                    threads: ir.threads,
                    shared_bytes: 0,
                }),
            },
            kernel::Abi::Hook { .. } => KernelBody::Hook(code),
        };
        self.program.kernels.push(Kernel { name: ir.name(), family: family.into(), text: text.clone(), body });
        self.known.insert(text, id);
        self.generated.push((id, ir));
        id
    }

    pub(super) fn launch(
        &self,
        frame: &Frame,
        id: NodeId,
        kernel: KernelId,
        args: Vec<Arg>,
        clear: Vec<Halo>,
    ) -> Launch {
        let graph = &frame.graph;
        let node = graph.node(id);
        let types: SmallVec<[&egret_ir::Type; 4]> = node.operands.iter().map(|o| graph.ty(*o)).collect();
        let sketch = cost::sketch(&node.op, &types, &node.ty, &|_| false);
        let origin = graph.origins(id).iter().map(|o| o.to_string()).collect::<Vec<_>>().join(", ");
        Launch {
            kernel,
            args,
            dims: Vec::new(),
            grid: Dim::ONE,
            grain: 1,
            clear,
            faults: Vec::new(),
            origin,
            flops: Dim::from(sketch.flops as i64),
            bytes: Dim::from(sketch.bytes as i64),
        }
    }

    pub(super) fn drive(&mut self, frame: &Frame, id: NodeId, launch: DriverLaunch, steps: &mut Vec<Step>) {
        let DriverLaunch { driver, hook, finisher, args, clear, family } = launch;
        let [hook, finisher] = [hook, finisher].map(|ir| ir.map(|ir| self.code(ir, "hook")));
        let hooks = [hook, finisher].into_iter().flatten().map(|id| &self.program.kernel(id).text);
        let hooks: String = hooks.flat_map(|text| ["\n\n", text.as_str()]).collect();
        let decision = self.decide(|| format!("{driver}{hooks}"), || schedules_of(&driver));
        let driver = match decision.as_ref().and_then(Decision::other) {
            Some(Schedule::Driver(schedule)) => driver.with_schedule(schedule),
            _ => driver,
        };
        let text = format!("{driver}{hooks}");
        let kernel = match self.known.get(&text) {
            Some(id) => *id,
            None => {
                let id = KernelId(self.program.kernels.len() as u32);
                let name = format!("{family}_{:08x}", fnv(&text));
                let body = KernelBody::Driver { driver, hook, finisher };
                self.program.kernels.push(Kernel { name, family: family.into(), text: text.clone(), body });
                self.known.insert(text, id);
                id
            }
        };
        let launch = self.launch(frame, id, kernel, args, clear);
        if let Some(decision) = decision {
            let name = |(i, arg): (usize, &Arg)| (arg.buffer, i.to_string());
            let names = launch.args.iter().enumerate().map(name).collect();
            self.record(frame, id, decision, std::slice::from_ref(&launch), names);
        }
        steps.push(Step::Launch(launch));
    }

    /// The halo of a blocked value, which its writer leaves alone.
    pub(super) fn halos(&self, frame: &Frame, id: NodeId) -> Vec<Halo> {
        let value = (id, 0);
        let (Some(Layout::Blocked { halo }), Some(buffer)) = (frame.layouts.get(&value), frame.buffers.get(&value))
        else {
            return Vec::new();
        };
        self.halo(&frame.graph.tensor_type(id).shape, halo, *buffer)
    }

    pub(super) fn halo(&self, shape: &egret_ir::Shape, halo: &[i64], buffer: BufferId) -> Vec<Halo> {
        if halo.iter().all(|h| *h == 0) {
            return Vec::new();
        }
        vec![Halo {
            arg: Arg::write(buffer),
            outer: shape[0].clone() * shape[1].ceil_div(&Dim::from(self.lanes)),
            spatial: shape[2..].to_vec(),
            halo: halo.iter().map(|h| Dim::from(*h)).collect(),
        }]
    }
}

/// What is stored, and whether it begins at multiples of 16 bytes.
struct Aligned<'s> {
    stored: &'s dyn Stored,
    aligned: &'s dyn Fn(Value) -> bool,
}

impl Stored for Aligned<'_> {
    fn layout(&self, value: Value) -> Option<&Layout> {
        self.stored.layout(value)
    }

    fn lanes(&self) -> i64 {
        self.stored.lanes()
    }

    fn is_in_place(&self, concat: NodeId, operand: usize) -> bool {
        self.stored.is_in_place(concat, operand)
    }

    fn is_aligned(&self, value: Value) -> bool {
        (self.aligned)(value)
    }
}

/// The schedules that a driver may have for extents as they are expected.
fn schedules_of(driver: &Driver<Dim>) -> Vec<Schedule> {
    let numbers = driver.map(&mut |dim| dim.hint(cost::SYMBOL_HINT).max(0) as usize);
    numbers.candidates().into_iter().map(Schedule::Driver).collect()
}

/// The text of the kernels of a group, and of what they are launched on.
fn text_of(passes: &Passes) -> String {
    let kernel = |made: &Generated| {
        let dims: Vec<String> = made.dims.iter().map(Dim::to_string).collect();
        format!("{}\non {}\n", made.kernel.text(), dims.join(", "))
    };
    passes.kernels.iter().map(kernel).collect()
}

/// A grid extent as a dim: a constant or a parameter.
fn dim_of(extent: &kernel::Expr, dims: &[Dim]) -> Dim {
    match extent {
        kernel::Expr::Dim(i) => dims[*i as usize].clone(),
        other => Dim::from(other.as_int().unwrap_or(1)),
    }
}

fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
