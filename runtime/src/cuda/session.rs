//! Runs of an executable on a GPU.

use std::sync::{Arc, MutexGuard};

use egret_ir::{Bindings, Tensor};
use egret_program::Place;

use super::driver::{Graph, Stream};
use super::executable::Executable;
use super::launch::{Addresses, Queue, Times, fault, is_recordable, largest, reported, step_count};
use super::memory::{ALIGNMENT, DeviceBuffer, Pinned};
use super::state::{Held, State};
use crate::binding::{Binding, Loaded, OutputPlace};
use crate::error::listed;
use crate::outputs::{Copied, Places};
use crate::{MemoryReport, Outputs, RuntimeError, Span, StepTime, ports};

/// Bindings that a session keeps, so that dims may alternate.
const KEPT_BINDINGS: usize = 16;

/// Memory and a stream for runs of an executable, one run at a time.
///
/// What depends on dims is bound by the first run that has them, and kept. The second run of a binding records a graph of
/// all that is queued, from the copies of inputs to those of outputs; further runs launch that, unless what comes next
/// depends on what is in memory.
#[derive(Debug)]
pub struct Session {
    exe: Arc<Executable>,
    state: Option<Arc<State>>,
    /// By state of the program: its number in the shared state.
    state_entries: Vec<usize>,
    stream: Arc<Stream>,
    arena: DeviceBuffer,
    /// Memory for results on the device: by output its offset.
    results: DeviceBuffer,
    result_offsets: Vec<usize>,
    /// Inputs on their way to the device: by input its offset.
    staging: Pinned,
    staging_offsets: Vec<usize>,
    outputs: Vec<Pinned>,
    /// Status words, one a step, on the device and here.
    status: DeviceBuffer,
    told: Pinned,
    steps: usize,
    word: Pinned,
    addresses: Addresses,
    bindings: Vec<Kept>,
    current: usize,
    /// Whether `addresses` are those of the current binding.
    placed: bool,
    clock: u64,
    /// By input: its place in what was given.
    given: Vec<usize>,
    timings: Vec<StepTime>,
    spans: Vec<Span>,
    profile: bool,
    record: bool,
}

/// A binding, and its runs as a graph.
#[derive(Debug)]
struct Kept {
    binding: Binding,
    recordable: bool,
    /// Runs since memory last moved.
    runs: u64,
    graph: Option<Graph>,
    /// What a run copies.
    copied: Copied,
}

impl Session {
    /// A session.
    ///
    /// # Errors
    /// If the program has state and none is given, the given one lacks some or is on another GPU, or there is no memory.
    pub fn new(exe: &Arc<Executable>, state: Option<&Arc<State>>) -> Result<Session, RuntimeError> {
        let (program, device) = (exe.program(), exe.device());
        let state_entries = match state {
            Some(state) if !program.states.is_empty() && !Arc::ptr_eq(state.device(), device) => {
                let why = "the state is on another GPU".to_string();
                return Err(RuntimeError::Device { device: program.device.clone(), why });
            }
            Some(state) => state.lock().table.entries_of(&program.states)?,
            None if program.states.is_empty() => Vec::new(),
            None => return Err(RuntimeError::StateNeeded { names: listed(&program.states) }),
        };
        let steps = step_count(&program.steps);
        Ok(Session {
            exe: exe.clone(),
            state: state.filter(|_| !program.states.is_empty()).cloned(),
            state_entries,
            stream: Arc::new(Stream::new(device)?),
            arena: DeviceBuffer::new(device, 0)?,
            results: DeviceBuffer::new(device, 0)?,
            result_offsets: vec![0; program.outputs.len()],
            staging: Pinned::new(device, 0)?,
            staging_offsets: vec![0; program.inputs.len()],
            outputs: program.outputs.iter().map(|_| Pinned::new(device, 0)).collect::<Result<_, _>>()?,
            status: DeviceBuffer::new(device, 4 * steps)?,
            told: Pinned::new(device, 4 * steps)?,
            steps,
            word: Pinned::new(device, 8)?,
            addresses: Addresses::default(),
            bindings: Vec::with_capacity(KEPT_BINDINGS),
            current: 0,
            placed: false,
            clock: 0,
            given: vec![0; program.inputs.len()],
            timings: Vec::new(),
            spans: Vec::new(),
            profile: false,
            record: true,
        })
    }

    /// The executable.
    pub fn executable(&self) -> &Arc<Executable> {
        &self.exe
    }

    /// Its state, if the program has any.
    pub fn state(&self) -> Option<&Arc<State>> {
        self.state.as_ref()
    }

    /// Whether runs may be recorded as a graph; they are, unless told otherwise.
    pub fn record(&mut self, on: bool) {
        self.record = on;
    }

    /// Whether the last run was the launch of a recorded graph.
    pub fn is_recorded(&self) -> bool {
        self.bindings.get(self.current).is_some_and(|kept| kept.graph.is_some())
    }

    /// Runs. The outputs are valid until the next run.
    ///
    /// # Errors
    /// Inputs that are missing, unknown, or of another type or shape; dims that contradict what the program needs; what a
    /// kernel reports; no memory; a lost GPU.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Outputs<'_>, RuntimeError> {
        self.execute(inputs, &mut [])?;
        let binding = &self.bindings[self.current].binding;
        Ok(Outputs { program: self.exe.program(), binding, places: Places::Pinned(&self.outputs) })
    }

    /// Runs, and puts outputs into tensors of their type and shape. Outputs that are not named are computed, but dropped.
    ///
    /// # Errors
    /// As [`run`](Session::run), and a tensor of another type or shape.
    pub fn run_into(
        &mut self,
        inputs: &[(&str, &Tensor)],
        outputs: &mut [(&str, &mut Tensor)],
    ) -> Result<(), RuntimeError> {
        self.execute(inputs, outputs)
    }

    /// Measures each step of the runs that follow, or no longer. Such runs are queued step by step.
    pub fn profile(&mut self, on: bool) {
        self.profile = on;
        if on && self.timings.is_empty() {
            self.timings = StepTime::of(self.exe.program());
        }
    }

    /// What [`profile`](Session::profile) measured in the last run, by the GPU's own clock: an entry for each step, in
    /// program order, loops before their bodies.
    pub fn timings(&self) -> &[StepTime] {
        &self.timings
    }

    /// When each step of the last profiled run was executed, in order, by the GPU's clock.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// What the last run copied.
    pub fn copied(&self) -> Copied {
        self.bindings.get(self.current).map_or(Copied::default(), |kept| kept.copied)
    }

    /// What memory the last run needed.
    pub fn memory(&self) -> MemoryReport {
        let (prepared_bytes, constant_bytes, param_bytes) = self.exe.held_bytes();
        let mut report = MemoryReport { prepared_bytes, constant_bytes, param_bytes, ..MemoryReport::default() };
        report.reserved_bytes = self.arena.len();
        report.output_bytes = self.results.len();
        report.state_bytes = self.state.as_ref().map_or(0, |state| state.bytes());
        if let Some(Kept { binding, .. }) = self.bindings.get(self.current) {
            report.arena_bytes = binding.bound.arena_bytes;
            report.live_bytes_bound = binding.bound.live_bytes_bound;
            report.logical_live_bytes = binding.bound.logical_live_bytes;
        }
        report
    }

    fn execute(&mut self, inputs: &[(&str, &Tensor)], outputs: &mut [(&str, &mut Tensor)]) -> Result<(), RuntimeError> {
        let exe = self.exe.clone();
        exe.device().bind()?;
        ports::match_inputs(&exe.program().inputs, inputs, &mut self.given)?;
        let state = self.state.clone();
        let held = state.as_ref().map(|state| state.lock());
        self.choose_binding(inputs, held.as_ref())?;
        self.reserve()?;
        let into = self.match_outputs(outputs)?;
        if !self.placed {
            self.place(held.as_ref());
        }
        for (k, at) in self.given.iter().enumerate() {
            let bytes = inputs[*at].1.bytes();
            // SAFETY: staging has room for each input at its offset, and the last run's copies are done.
            unsafe {
                let to = self.staging.as_ptr().add(self.staging_offsets[k]);
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
            }
        }
        let sizes = self.launch()?;
        // SAFETY: page-aligned and written; steps are as many.
        let told = unsafe { std::slice::from_raw_parts(self.told.as_ptr().cast::<u32>(), self.steps) };
        if let Some((step, code)) = reported(told) {
            return Err(fault(&exe.program().steps, step, code));
        }
        let binding = &mut self.bindings[self.current].binding;
        if let Some(sizes) = sizes {
            binding.shape_outputs(exe.program(), &sizes)?;
        }
        for ((_, tensor), k) in outputs.iter_mut().zip(into) {
            let bytes = tensor.bytes_mut();
            // SAFETY: the output has the tensor's size, which `match_outputs` compared.
            unsafe { std::ptr::copy_nonoverlapping(self.outputs[k].as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        }
        Ok(())
    }

    /// Does all of a run, and waits for it; the data-dependent sizes, if there are any.
    fn launch(&mut self) -> Result<Option<Bindings>, RuntimeError> {
        let bound = &self.bindings[self.current].binding.bound;
        let told_by_data = !bound.sizes.is_empty() || !bound.checks.is_empty();
        let replay = self.record && !self.profile && self.bindings[self.current].recordable;
        if !replay {
            self.bindings[self.current].graph = None;
        } else if self.bindings[self.current].graph.is_none() && self.bindings[self.current].runs > 0 {
            let stream = self.stream.clone();
            let graph = stream.capture(|| self.queue(&stream, None).map(|_| ()))?;
            self.bindings[self.current].graph = Some(graph);
        }
        self.bindings[self.current].runs += 1;
        self.stream.take_copied();
        let sizes = match &self.bindings[self.current].graph {
            Some(graph) => {
                graph.launch(&self.stream)?;
                None
            }
            None => {
                let stream = self.stream.clone();
                let sizes = self.measured(&stream)?;
                self.bindings[self.current].copied = stream.take_copied();
                Some(sizes)
            }
        };
        self.stream.wait()?;
        Ok(sizes.filter(|_| told_by_data))
    }

    /// Queues a run step by step, and measures it if that is wanted.
    fn measured(&mut self, stream: &Stream) -> Result<Bindings, RuntimeError> {
        if !self.profile {
            return self.queue(stream, None);
        }
        let mut times = Times::default();
        let sizes = self.queue(stream, Some(&mut times))?;
        stream.wait()?;
        let mut by_step = vec![(0, 0); self.timings.len()];
        self.spans = times.read(&mut by_step)?;
        let work = &self.bindings[self.current].binding.bound.work;
        for ((timing, (ns, calls)), work) in self.timings.iter_mut().zip(by_step).zip(work) {
            (timing.ns, timing.calls, timing.flops, timing.bytes) = (ns, calls, work.0, work.1);
        }
        Ok(sizes)
    }

    /// Queues the copies of inputs, the steps, and the copies of outputs and status words.
    fn queue(&mut self, stream: &Stream, mut times: Option<&mut Times>) -> Result<Bindings, RuntimeError> {
        let exe = self.exe.clone();
        let program = exe.program();
        let Kept { binding, .. } = &self.bindings[self.current];
        let told_by_data = !binding.bound.sizes.is_empty() || !binding.bound.checks.is_empty();
        let mut sizes = if told_by_data { binding.symbols.clone() } else { Bindings::new() };
        // SAFETY: `reserve` and `place` gave every buffer memory of its size: the arena's by the plan, the session's
        // results, the executable's, which runs only read, and the state's, which is locked until the stream was waited for.
        unsafe {
            stream.clear(self.status.address(), 4 * self.steps)?;
            for (i, buffer) in program.buffers.iter().enumerate() {
                if let Place::Input(k) = buffer.place
                    && binding.bound.offsets[i].is_some()
                {
                    let from = self.staging.as_ptr().add(self.staging_offsets[k as usize]);
                    stream.upload(self.addresses.buffers[i], from, binding.bound.bytes[i])?;
                }
            }
            let download = |when: OutputPlace, addresses: &Addresses| {
                for (k, (port, output)) in program.outputs.iter().zip(&binding.outputs).enumerate() {
                    if output.place == when {
                        let from = addresses.buffers[port.buffer.0 as usize];
                        stream.download(self.outputs[k].as_ptr(), from, output.room)?;
                    }
                }
                Ok::<(), RuntimeError>(())
            };
            download(OutputPlace::Before, &self.addresses)?;
            let mut queue = Queue {
                bound: &binding.bound,
                functions: exe.functions(),
                addresses: &mut self.addresses,
                stream,
                arena: self.arena.address(),
                status: self.status.address(),
                word: &self.word,
                sizes: &mut sizes,
                times: times.as_deref_mut(),
            };
            queue.run(0, binding.bound.ops.len())?;
            if let Some(times) = times {
                times.finish(exe.device(), stream)?;
            }
            download(OutputPlace::After, &self.addresses)?;
            stream.download(self.told.as_ptr(), self.status.address(), 4 * self.steps)?;
        }
        Ok(sizes)
    }

    /// Makes the binding of these dims the current one.
    fn choose_binding(
        &mut self,
        inputs: &[(&str, &Tensor)],
        state: Option<&MutexGuard<'_, Held>>,
    ) -> Result<(), RuntimeError> {
        self.clock += 1;
        let exe = self.exe.clone();
        let state = state.map(|held| &held.table);
        let fits = |kept: &Kept| kept.binding.fits(exe.program(), inputs, &self.given, state);
        // Usually the last one.
        let found = match self.bindings.get(self.current) {
            Some(kept) if fits(kept) => Some(self.current),
            _ => self.bindings.iter().position(fits),
        };
        let index = match found {
            Some(index) => index,
            None => {
                let loaded = Loaded {
                    program: exe.program(),
                    bind: &|bindings, staged, kept| exe.bind(&exe.program().steps, bindings, staged, kept),
                    needs_slack: &|_| false,
                    stages_inputs: true,
                };
                let binding = Binding::new(&loaded, inputs, &self.given, state, &self.state_entries)?;
                self.addresses.reserve(exe.program().buffers.len(), &binding.bound);
                let recordable = is_recordable(&binding.bound);
                let kept = Kept { binding, recordable, runs: 0, graph: None, copied: Copied::default() };
                if self.bindings.len() < KEPT_BINDINGS {
                    self.bindings.push(kept);
                    self.bindings.len() - 1
                } else {
                    let oldest = (0..KEPT_BINDINGS).min_by_key(|i| self.bindings[*i].binding.used).unwrap_or(0);
                    self.bindings[oldest] = kept;
                    self.placed = false;
                    oldest
                }
            }
        };
        self.bindings[index].binding.used = self.clock;
        if index != self.current {
            self.current = index;
            self.placed = false;
        }
        Ok(())
    }

    /// Makes memory large enough; what was recorded names memory that moved.
    fn reserve(&mut self) -> Result<(), RuntimeError> {
        let exe = self.exe.clone();
        let (program, device) = (exe.program(), exe.device());
        let binding = &self.bindings[self.current].binding;
        let bound = &binding.bound;
        let mut moved = false;
        if bound.arena_bytes > self.arena.len() {
            // The old one goes first: both at once might not fit.
            self.arena = DeviceBuffer::new(device, 0)?;
            let named = || largest(program, &program.steps, &bound.bytes);
            self.arena = DeviceBuffer::new(device, bound.arena_bytes).map_err(|e| e.naming(named))?;
            moved = true;
        }
        let (offsets, room) = laid_out(binding.outputs.iter().map(|output| output.room));
        if offsets != self.result_offsets || room > self.results.len() {
            self.results = DeviceBuffer::new(device, 0)?;
            let named = || largest(program, &program.steps, &bound.bytes);
            self.results = DeviceBuffer::new(device, room).map_err(|e| e.naming(named))?;
            self.result_offsets = offsets;
            moved = true;
        }
        let inputs = program.inputs.iter().map(|port| bound.bytes[port.buffer.0 as usize]);
        let given = binding.input_bytes();
        let (offsets, room) = laid_out(inputs.zip(given).map(|(bytes, given)| bytes.max(given)));
        if offsets != self.staging_offsets || room > self.staging.len() {
            self.staging = Pinned::new(device, room)?;
            self.staging_offsets = offsets;
            moved = true;
        }
        for (buffer, output) in self.outputs.iter_mut().zip(&binding.outputs) {
            if output.room > buffer.len() {
                *buffer = Pinned::new(device, output.room)?;
                moved = true;
            }
        }
        if moved {
            self.placed = false;
            for kept in &mut self.bindings {
                (kept.graph, kept.runs) = (None, 0);
            }
        }
        Ok(())
    }

    /// The output that each tensor of the caller's is for.
    fn match_outputs(&self, outputs: &[(&str, &mut Tensor)]) -> Result<Vec<usize>, RuntimeError> {
        let mut into = Vec::with_capacity(outputs.len());
        for (name, tensor) in outputs {
            let binding = &self.bindings[self.current].binding;
            let k = ports::match_output(&self.exe.program().outputs, binding, name, tensor)?;
            if into.contains(&k) {
                return Err(RuntimeError::Duplicate { name: name.to_string() });
            }
            into.push(k);
        }
        Ok(into)
    }

    /// Addresses that stay the same from run to run of a binding.
    fn place(&mut self, state: Option<&MutexGuard<'_, Held>>) {
        let binding = &self.bindings[self.current].binding;
        for (i, buffer) in self.exe.program().buffers.iter().enumerate() {
            let arena = self.arena.address();
            self.addresses.buffers[i] = match (&buffer.place, binding.bound.offsets[i]) {
                (_, Some(offset)) => arena + offset as u64,
                (Place::State(k), _) => state.map_or(arena, |held| held.address(self.state_entries[*k as usize])),
                (Place::Output(k), _) => self.results.address() + self.result_offsets[*k as usize] as u64,
                _ => self.exe.address(i).unwrap_or(arena),
            };
        }
        self.placed = true;
    }
}

/// Offsets of parts in one block, and its bytes.
fn laid_out(parts: impl Iterator<Item = usize>) -> (Vec<usize>, usize) {
    let mut total = 0usize;
    let offsets = parts.map(|bytes| {
        let offset = total;
        total = offset.saturating_add(bytes.max(1)).saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        offset
    });
    (offsets.collect(), total)
}
