//! Puts numbers in the place of dims, and plans the arena.

use egret_ir::{Bindings, Dim};
use egret_program::{Arg, BufferId, Carried, KernelBody, Launch, Loop, Place, Program, SizeValue, Step, While};
use egret_simd::Isa;

use super::bound::{Address, Bound, BoundSize, Carry, Entry, Item, Moving, Op, Repeat, Span};
use super::chain;
use super::driver_plan::DriverPlan;
use super::drivers::{ScratchNeed, Spread};
use super::halo::Border;
use super::late::{Extent, LateLaunch};
use super::lifetime::Uses;
use super::memory::OutOfMemory;
use crate::RuntimeError;

/// No buffer is larger: sums of sizes do not overflow.
const MOST_BYTES: usize = 1 << 46;

/// What steps are bound with.
pub(crate) struct Binder<'a> {
    pub(crate) program: &'a Program,
    pub(crate) entries: &'a [Entry],
    pub(crate) isa: Isa,
    pub(crate) threads: usize,
    pub(crate) bindings: &'a Bindings,
    /// Inputs that are copied into the arena, by number.
    pub(crate) staged: &'a [bool],
    /// Buffers that are read once all steps are done.
    pub(crate) kept: &'a [BufferId],
}

struct Work<'a> {
    binder: &'a Binder<'a>,
    bound: Bound,
    uses: Uses,
    step: usize,
    /// By buffer: who of the team writes it.
    spreads: Vec<Spread>,
}

/// Binds steps and plans their arena.
pub(crate) fn bind(binder: &Binder<'_>, steps: &[Step]) -> Result<Bound, RuntimeError> {
    let buffers = binder.program.buffers.len();
    let bound = Bound { bytes: vec![0; buffers], offsets: vec![None; buffers], ..Bound::default() };
    let mut work =
        Work { binder, bound, uses: Uses::new(binder.program), step: 0, spreads: vec![Spread::default(); buffers] };
    for (i, buffer) in binder.program.buffers.iter().enumerate() {
        if matches!(buffer.place, Place::Input(k) if binder.staged.get(k as usize) == Some(&true)) {
            work.uses.stage(i);
        }
    }
    for step in steps {
        work.bound.tops.push(work.bound.ops.len());
        work.step(step)?;
    }
    work.bound.tops.push(work.bound.ops.len());
    for id in binder.kept {
        work.uses.keep(id.0 as usize, work.bound.ops.len());
    }
    work.finish()
}

impl Work<'_> {
    fn number(&self, dim: &Dim, what: &dyn Fn() -> String) -> Result<usize, RuntimeError> {
        let value = dim.eval(self.binder.bindings).map_err(|why| RuntimeError::size(what(), &why))?;
        usize::try_from(value)
            .map_err(|_| RuntimeError::Size { what: what(), why: format!("`{dim}` is {value}, below zero") })
    }

    /// The most that an extent may be.
    fn most(&self, dim: &Dim, what: &dyn Fn() -> String) -> Result<usize, RuntimeError> {
        let bound = dim.upper_bound();
        let most = self.number(&bound, what)?;
        if dim.is_data_dependent() && most > MOST_BYTES {
            return Err(RuntimeError::Size { what: what(), why: format!("`{dim}` has no bound that memory can hold") });
        }
        Ok(most)
    }

    /// An extent that is known now, or in the run.
    fn extent(&self, dim: &Dim, what: &dyn Fn() -> String) -> Result<Extent, RuntimeError> {
        if dim.is_data_dependent() {
            return Ok(Extent::Late(dim.clone()));
        }
        self.number(dim, what).map(Extent::Known)
    }

    fn push(&mut self, op: Op) {
        self.bound.ops.push(Item { op, step: self.step, links: 0, cut: None });
    }

    /// The address of an argument that the operation about to be pushed uses.
    fn address(&mut self, arg: &Arg) -> Result<Address, RuntimeError> {
        let offset = self.number(&arg.offset, &|| format!("offset in buffer {}", arg.buffer.0))?;
        self.uses.add(arg.buffer.0 as usize, self.bound.ops.len(), arg.writes);
        Ok(Address { buffer: arg.buffer.0, offset })
    }

    fn step(&mut self, step: &Step) -> Result<(), RuntimeError> {
        self.bound.work.push((0.0, 0.0));
        match step {
            Step::Launch(launch) => self.launch(launch)?,
            Step::Copy { source, destination, bytes } => {
                let most = self.most(bytes, &|| "bytes of a copy".into())?;
                let bytes = self.extent(bytes, &|| "bytes of a copy".into())?;
                let op = Op::Copy { source: self.address(source)?, destination: self.address(destination)?, bytes };
                self.bound.work[self.step].1 = 2.0 * most as f64;
                self.push(op);
            }
            Step::Loop(inner) => return self.repeat(inner),
            Step::While(inner) => return self.repeat_while(inner),
            Step::Branch(branch) => {
                let test = self.address(&branch.condition)?;
                let (unless, step) = (self.bound.ops.len(), self.step);
                self.push(Op::Unless { test, to: 0 });
                self.step += 1;
                branch.then.iter().try_for_each(|step| self.step(step))?;
                let jump = self.bound.ops.len();
                self.bound.ops.push(Item { op: Op::Jump(0), step, links: 0, cut: None });
                let otherwise = self.bound.ops.len();
                branch.otherwise.iter().try_for_each(|step| self.step(step))?;
                self.bound.ops[unless].op = Op::Unless { test, to: otherwise };
                self.bound.ops[jump].op = Op::Jump(self.bound.ops.len());
                return Ok(());
            }
            Step::Size(size) => {
                let read = match &size.value {
                    SizeValue::Read(arg) => Some(self.address(arg)?),
                    SizeValue::Known(_) => None,
                };
                let name = size.name.as_str().into();
                self.bound.sizes.push(BoundSize { name, size: size.clone(), read });
                self.push(Op::Size(self.bound.sizes.len() - 1));
            }
            Step::Check(check) => {
                self.bound.checks.push(check.clone());
                self.push(Op::Check(self.bound.checks.len() - 1));
            }
        }
        self.step += 1;
        Ok(())
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), RuntimeError> {
        if super::late::is_late(launch, self.binder.program) {
            return self.late(launch);
        }
        for halo in &launch.clear {
            let what = || format!("halo of {}", launch.origin);
            let tensor = self.address(&Arg { writes: true, ..halo.arg.clone() })?;
            let outer = self.number(&halo.outer, &what)?;
            let spatial = halo.spatial.iter().map(|d| self.number(d, &what)).collect::<Result<Vec<_>, _>>()?;
            let around = halo.halo.iter().map(|d| self.number(d, &what)).collect::<Result<Vec<_>, _>>()?;
            let border = Border::new(outer, &spatial, &around, self.binder.program.lanes)
                .filter(|border| border.bytes().is_some())
                .ok_or_else(|| RuntimeError::malformed(what()))?;
            self.push(Op::Clear { border, tensor });
        }
        let args = Span { first: self.bound.args.len(), len: launch.args.len() };
        for arg in &launch.args {
            let address = self.address(arg)?;
            self.bound.args.push(address);
        }
        self.bound.most_args = self.bound.most_args.max(args.len);
        // Only a report: a value that is not known is left out.
        let estimate = |dim: &Dim| dim.eval(self.binder.bindings).unwrap_or(0) as f64;
        self.bound.work[self.step] = (estimate(&launch.flops), estimate(&launch.bytes));
        let kernel = self.binder.program.kernel(launch.kernel);
        let op = match (&kernel.body, self.binder.entries[launch.kernel.0 as usize]) {
            (KernelBody::Cuda(_), Entry::Device) => {
                let (dims, grid) = self.shape(launch)?;
                Op::Device { kernel: launch.kernel.0 as usize, args, dims, grid }
            }
            (KernelBody::Code(code), Entry::Kernel(entry)) => {
                let (dims, grid) = self.shape(launch)?;
                let grain = usize::try_from(launch.grain).unwrap_or(1).max(1);
                let wanted = if self.binder.threads == 1 { 1 } else { 4 * self.binder.threads };
                let chunks = (grid / grain).clamp(1, wanted);
                let need = ScratchNeed { per_worker: code.scratch_bytes, shared: 0 };
                self.bound.scratch = self.bound.scratch.max(need);
                Op::Code { entry, args, dims, grid, chunks }
            }
            (KernelBody::Driver { driver, hook, finisher }, _) => {
                let mut failed = None;
                let driver = driver.map(&mut |dim: &Dim| match self.number(dim, &|| launch.origin.clone()) {
                    Ok(value) => value,
                    Err(error) => {
                        failed.get_or_insert(error);
                        0
                    }
                });
                if let Some(error) = failed {
                    return Err(error);
                }
                let entry = |id: &Option<egret_program::KernelId>| match id.map(|id| self.binder.entries[id.0 as usize])
                {
                    Some(Entry::Hook(hook)) => Some(hook),
                    _ => None,
                };
                let plan = DriverPlan::new(&driver, entry(hook), entry(finisher), launch.args.len(), self.binder.isa);
                let plan = plan.map_err(|source| RuntimeError::Driver {
                    kernel: kernel.name.clone(),
                    origin: launch.origin.clone(),
                    source,
                })?;
                let read = launch.args.first().map(|arg| self.spreads[arg.buffer.0 as usize]);
                let plan = plan.reading(read.unwrap_or_default(), self.binder.threads);
                let spread = plan.spread(self.binder.threads);
                for arg in launch.args.iter().filter(|arg| arg.writes) {
                    self.spreads[arg.buffer.0 as usize] = spread;
                }
                self.bound.scratch = self.bound.scratch.max(plan.scratch());
                Op::Driver { plan, args }
            }
            _ => return Err(RuntimeError::malformed(format!("the kernel `{}` is launched, but a hook", kernel.name))),
        };
        self.push(op);
        if let Some(spread) = chain::link(&mut self.bound, &mut self.uses, launch, self.binder.threads) {
            for arg in launch.args.iter().filter(|arg| arg.writes) {
                self.spreads[arg.buffer.0 as usize] = spread;
            }
        }
        Ok(())
    }

    /// Dim parameters and points of the grid of a generated kernel.
    fn shape(&mut self, launch: &Launch) -> Result<(Span, usize), RuntimeError> {
        let dims = Span { first: self.bound.dims.len(), len: launch.dims.len() };
        for dim in &launch.dims {
            let value = dim.eval(self.binder.bindings);
            self.bound.dims.push(value.map_err(|why| RuntimeError::size(launch.origin.clone(), &why))?);
        }
        let grid = self.number(&launch.grid, &|| format!("grid of {}", launch.origin))?;
        Ok((dims, grid))
    }

    /// A launch that is bound anew whenever it runs; memory and scratch are for the most that it may need.
    fn late(&mut self, launch: &Launch) -> Result<(), RuntimeError> {
        let late = LateLaunch::new(launch, self.binder)?;
        for arg in &launch.args {
            self.uses.add(arg.buffer.0 as usize, self.bound.ops.len(), arg.writes);
        }
        for halo in &launch.clear {
            self.uses.add(halo.arg.buffer.0 as usize, self.bound.ops.len(), true);
        }
        self.bound.most_args = self.bound.most_args.max(launch.args.len());
        let need = late.scratch(self.binder, &|dim| self.most(dim, &|| launch.origin.clone()))?;
        self.bound.scratch = self.bound.scratch.max(need);
        self.bound.late.push(late);
        self.push(Op::Late(self.bound.late.len() - 1));
        Ok(())
    }

    fn repeat(&mut self, inner: &Loop) -> Result<(), RuntimeError> {
        let length = self.extent(&inner.length, &|| "iterations of a loop".into())?;
        let (index, carried) = self.begin(Some(length), inner.reverse, &inner.carried)?;
        inner.body.iter().try_for_each(|step| self.step(step))?;
        self.end(index, carried, &inner.carried)
    }

    fn repeat_while(&mut self, inner: &While) -> Result<(), RuntimeError> {
        let what = || "trips of a loop".to_string();
        let length = inner.bound.as_ref().map(|bound| self.extent(bound, &what)).transpose()?;
        let (index, carried) = self.begin(length, false, &inner.carried)?;
        inner.condition.iter().try_for_each(|step| self.step(step))?;
        let test = self.address(&inner.test)?;
        self.push(Op::Test { index, test });
        inner.body.iter().try_for_each(|step| self.step(step))?;
        let trips = self.address(&inner.trips)?;
        self.bound.loops[index].trips = Some(trips);
        self.end(index, carried, &inner.carried)
    }

    fn begin(
        &mut self,
        length: Option<Extent>,
        reverse: bool,
        values: &[Carried],
    ) -> Result<(usize, Vec<(Carry, usize)>), RuntimeError> {
        let index = self.bound.loops.len();
        let begin = self.bound.ops.len();
        let mut carried = Vec::new();
        for value in values {
            let what = || "bytes of a carried value".to_string();
            let (bytes, most) = (self.extent(&value.bytes, &what)?, self.most(&value.bytes, &what)?);
            let first = self.address(&value.first)?;
            self.uses.add(value.current.0 as usize, begin, true);
            carried.push((Carry { first, current: value.current.0, next: first, bytes, stage: None }, most));
        }
        let (end, slices) = (begin, Vec::new());
        self.bound.loops.push(Repeat { length, trips: None, reverse, begin, end, carried: Vec::new(), slices });
        self.push(Op::Begin(index));
        self.step += 1;
        self.uses.enter(index, begin);
        Ok((index, carried))
    }

    fn end(&mut self, index: usize, mut carried: Vec<(Carry, usize)>, values: &[Carried]) -> Result<(), RuntimeError> {
        let end = self.bound.ops.len();
        let crossing = values.iter().any(|a| values.iter().any(|b| a.next.buffer == b.current));
        for ((carry, most), value) in carried.iter_mut().zip(values) {
            carry.next = self.address(&value.next)?;
            self.uses.add(value.current.0 as usize, end, true);
            if crossing {
                carry.stage = Some(self.uses.temporary(*most, end));
            }
        }
        self.uses.leave(end);
        self.push(Op::End(index));
        self.bound.loops[index].end = end;
        self.bound.loops[index].carried = carried.into_iter().map(|(carry, _)| carry).collect();
        Ok(())
    }

    /// Sizes, slices, the arena, and checks that arguments lie within their buffers.
    fn finish(mut self) -> Result<Bound, RuntimeError> {
        let program = self.binder.program;
        let slices = self.uses.slices(program)?;
        let mut logical = vec![0; program.buffers.len()];
        for (i, buffer) in program.buffers.iter().enumerate() {
            if self.uses.is_used(i) {
                self.bound.bytes[i] = self.most(&buffer.bytes, &|| format!("bytes of buffer {i}"))?;
                logical[i] = self.most(&buffer.logical_bytes, &|| format!("bytes of buffer {i}"))?;
                if self.bound.bytes[i].max(logical[i]) > MOST_BYTES {
                    return Err(OutOfMemory(self.bound.bytes[i]).into());
                }
            }
        }
        for (slice, index) in slices {
            let Place::Slice { of, stride } = &program.buffers[slice].place else { continue };
            let what = || format!("stride of buffer {slice}");
            let (most, stride) = (self.most(stride, &what)?, self.extent(stride, &what)?);
            let length = match &self.bound.loops[index].length {
                Some(Extent::Known(length)) => *length,
                Some(Extent::Late(dim)) => self.most(dim, &what)?,
                None => return Err(RuntimeError::malformed(format!("buffer {slice} is a slice in an endless loop"))),
            };
            let reach = most.checked_mul(length.saturating_sub(1));
            let reach = reach.and_then(|r| r.checked_add(self.bound.bytes[slice]));
            if length > 0 && reach.is_none_or(|r| r > self.bound.bytes[of.0 as usize]) {
                return Err(RuntimeError::malformed(format!("slices of buffer {} reach beyond it", of.0)));
            }
            let repeat = &mut self.bound.loops[index];
            repeat.slices.push(Moving { slice: slice as u32, of: of.0, stride });
        }
        self.check_reach()?;
        let parts = self.parts()?;
        let mut bytes = self.bound.bytes.clone();
        chain::cut(&mut self.bound, &self.uses, &mut bytes, self.binder.threads);
        let plan = self.uses.plan(program, &bytes, &logical);
        self.bound.offsets = plan.offsets;
        for (part, root, offset) in parts {
            self.bound.offsets[part] = self.bound.offsets[root].map(|start| start + offset);
        }
        for repeat in &mut self.bound.loops {
            for stage in repeat.carried.iter_mut().filter_map(|c| c.stage.as_mut()) {
                *stage = plan.temporaries[*stage];
            }
        }
        self.bound.arena_bytes = plan.arena_bytes;
        self.bound.live_bytes_bound = plan.live_bytes_bound;
        self.bound.logical_live_bytes = plan.logical_live_bytes;
        Ok(self.bound)
    }

    /// Used parts of other buffers: the part, the buffer that holds its bytes, and where in that it begins.
    fn parts(&self) -> Result<Vec<(usize, usize, usize)>, RuntimeError> {
        let program = self.binder.program;
        let mut parts = Vec::new();
        for part in (0..program.buffers.len()).filter(|i| self.uses.is_used(*i)) {
            let (mut root, mut start) = (part, 0usize);
            while let Place::Part { of, offset } = &program.buffers[root].place {
                let offset = self.number(offset, &|| format!("offset of buffer {root}"))?;
                (root, start) = (of.0 as usize, start.saturating_add(offset));
            }
            if root == part {
                continue;
            }
            if start.checked_add(self.bound.bytes[part]).is_none_or(|end| end > self.bound.bytes[root]) {
                return Err(RuntimeError::malformed(format!("buffer {part} reaches beyond buffer {root}")));
            }
            parts.push((part, root, start));
        }
        Ok(parts)
    }

    fn most_of(&self, extent: &Extent) -> Result<usize, RuntimeError> {
        match extent {
            Extent::Known(value) => Ok(*value),
            Extent::Late(dim) => self.most(dim, &|| "bytes of a copy".into()),
        }
    }

    fn check_reach(&self) -> Result<(), RuntimeError> {
        let bytes = &self.bound.bytes;
        let reaches = |address: &Address, count: usize| {
            let end = address.offset.checked_add(count);
            if end.is_none_or(|end| end > bytes[address.buffer as usize]) {
                let text = format!("{count} bytes at {} of buffer {}", address.offset, address.buffer);
                return Err(RuntimeError::malformed(format!("{text}, which has {}", bytes[address.buffer as usize])));
            }
            Ok(())
        };
        for address in &self.bound.args {
            reaches(address, 0)?;
        }
        for item in &self.bound.ops {
            match &item.op {
                Op::Clear { border, tensor } => reaches(tensor, border.bytes().unwrap_or(usize::MAX))?,
                Op::Copy { source, destination, bytes } => {
                    let most = self.most_of(bytes)?;
                    reaches(source, most)?;
                    reaches(destination, most)?;
                }
                Op::Begin(index) => {
                    let repeat = &self.bound.loops[*index];
                    for carry in &repeat.carried {
                        let most = self.most_of(&carry.bytes)?;
                        reaches(&carry.first, most)?;
                        reaches(&carry.next, most)?;
                        reaches(&Address { buffer: carry.current, offset: 0 }, most)?;
                    }
                    repeat.trips.iter().try_for_each(|trips| reaches(trips, 8))?;
                }
                Op::Size(index) => self.bound.sizes[*index].read.iter().try_for_each(|read| reaches(read, 8))?,
                Op::Unless { test, .. } | Op::Test { test, .. } => reaches(test, 1)?,
                Op::Code { .. }
                | Op::Device { .. }
                | Op::Driver { .. }
                | Op::End(_)
                | Op::Late(_)
                | Op::Check(_)
                | Op::Jump(_) => {}
            }
        }
        Ok(())
    }
}

/// The step of that number in preorder, as [`bind`] counts.
pub(crate) fn step_at(steps: &[Step], number: usize) -> Option<&Step> {
    every_step(steps).nth(number)
}

/// All steps in preorder.
pub(crate) fn every_step(steps: &[Step]) -> impl Iterator<Item = &Step> {
    let mut todo: Vec<&Step> = steps.iter().rev().collect();
    std::iter::from_fn(move || {
        let step = todo.pop()?;
        todo.extend(step.inner().into_iter().rev().flat_map(|steps| steps.iter().rev()));
        Some(step)
    })
}
