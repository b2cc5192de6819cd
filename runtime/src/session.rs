//! Runs of an executable.

use std::cell::Cell;
use std::sync::{Arc, MutexGuard};

use egret_ir::{Bindings, Tensor};
use egret_program::Place;

use crate::binding::{Binding, Loaded, OutputPlace};
use crate::cpu::drivers::{ScratchNeed, ScratchPool};
use crate::cpu::launch::{Pointers, Runner};
use crate::cpu::memory::Buffer;
use crate::cpu::team::Team;
use crate::error::listed;
use crate::executable::thread_count;
use crate::outputs::Times;
use crate::outputs::{Copied, Places};
use crate::state::Held;
use crate::{Executable, MemoryReport, Outputs, RuntimeError, Span, State, StepTime, ports};

/// Bindings that a session keeps, so that dims may alternate.
const KEPT_BINDINGS: usize = 16;

/// Memory and threads for runs of an executable, one run at a time.
///
/// What depends on dims is bound by the first run that has them, and kept. A further run whose dims are those of one of
/// the last sixteen bindings allocates nothing.
pub struct Session {
    exe: Arc<Executable>,
    state: Option<Arc<State>>,
    /// By state of the program: its number in the shared state.
    state_entries: Vec<usize>,
    team: Team,
    need: ScratchNeed,
    scratch: ScratchPool,
    arena: Buffer,
    outputs: Vec<Buffer>,
    pointers: Pointers,
    bindings: Vec<Binding>,
    current: usize,
    /// Whether `pointers` are those of the current binding.
    placed: bool,
    clock: u64,
    /// By input: its place in what was given.
    given: Vec<usize>,
    /// By output: a tensor of the caller's that it goes to, or null.
    into: Vec<*mut u8>,
    times: Times,
    timings: Vec<StepTime>,
    profile: bool,
    copied: Copied,
}

// SAFETY: `into` is only meaningful within a run; all else is `Send`.
unsafe impl Send for Session {}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("threads", &self.team.size()).finish_non_exhaustive()
    }
}

impl Session {
    /// A session with a number of threads of its own (0: as many as the process may use).
    ///
    /// # Errors
    /// If the program has state and none is given, the given one lacks some, or there is no memory.
    pub fn new(exe: &Arc<Executable>, state: Option<&Arc<State>>, threads: usize) -> Result<Session, RuntimeError> {
        let program = exe.program();
        let state_entries = match state {
            Some(state) => state.lock().table.entries_of(&program.states)?,
            None if program.states.is_empty() => Vec::new(),
            None => return Err(RuntimeError::StateNeeded { names: listed(&program.states) }),
        };
        let team = Team::new(thread_count(threads));
        let need = ScratchNeed::default();
        Ok(Session {
            exe: exe.clone(),
            state: state.filter(|_| !program.states.is_empty()).cloned(),
            state_entries,
            scratch: ScratchPool::new(team.size(), need)?,
            team,
            need,
            arena: Buffer::new(0)?,
            outputs: program.outputs.iter().map(|_| Buffer::new(0)).collect::<Result<_, _>>()?,
            pointers: Pointers::default(),
            bindings: Vec::with_capacity(KEPT_BINDINGS),
            current: 0,
            placed: false,
            clock: 0,
            given: vec![0; program.inputs.len()],
            into: vec![std::ptr::null_mut(); program.outputs.len()],
            times: Times::new(0),
            timings: Vec::new(),
            profile: false,
            copied: Copied::default(),
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

    /// Runs. The outputs are valid until the next run.
    ///
    /// # Errors
    /// Inputs that are missing, unknown, or of another type or shape; dims that contradict what the program needs; what a
    /// kernel reports; no memory.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Outputs<'_>, RuntimeError> {
        self.into.fill(std::ptr::null_mut());
        self.execute(inputs, &mut [])?;
        Ok(Outputs {
            program: self.exe.program(),
            binding: &self.bindings[self.current],
            places: Places::Host(&self.outputs),
        })
    }

    /// Runs, and puts outputs into tensors of their type and shape. Outputs that are not named are computed, but dropped.
    ///
    /// # Errors
    /// As [`run`](Session::run), and a tensor of another type or shape. If a kernel reports an error, the tensors hold
    /// anything.
    pub fn run_into(
        &mut self,
        inputs: &[(&str, &Tensor)],
        outputs: &mut [(&str, &mut Tensor)],
    ) -> Result<(), RuntimeError> {
        self.execute(inputs, outputs)
    }

    /// Measures each step of the runs that follow, or no longer.
    pub fn profile(&mut self, on: bool) {
        self.profile = on;
        if !on || !self.timings.is_empty() {
            return;
        }
        self.timings = StepTime::of(self.exe.program());
        self.times = Times::new(self.timings.len());
    }

    /// What [`profile`](Session::profile) measured in the last run: an entry for each step, in program order, loops before
    /// their bodies. A loop's own time is that of its copies.
    pub fn timings(&self) -> &[StepTime] {
        &self.timings
    }

    /// When each step of the last profiled run was executed, in order; at most a million executions.
    pub fn spans(&self) -> &[Span] {
        &self.times.spans
    }

    /// What the last run copied.
    pub fn copied(&self) -> Copied {
        self.copied
    }

    /// What memory the last run needed.
    pub fn memory(&self) -> MemoryReport {
        let (prepared_bytes, constant_bytes, param_bytes) = self.exe.held_bytes();
        let mut report = MemoryReport { prepared_bytes, constant_bytes, param_bytes, ..MemoryReport::default() };
        report.reserved_bytes = self.arena.len();
        report.output_bytes = self.outputs.iter().map(Buffer::len).sum();
        report.scratch_bytes = self.need.per_worker * self.team.size() + self.need.shared;
        report.state_bytes = self.state.as_ref().map_or(0, |state| state.bytes());
        if let Some(binding) = self.bindings.get(self.current) {
            report.arena_bytes = binding.bound.arena_bytes;
            report.live_bytes_bound = binding.bound.live_bytes_bound;
            report.logical_live_bytes = binding.bound.logical_live_bytes;
        }
        report
    }

    fn execute(&mut self, inputs: &[(&str, &Tensor)], outputs: &mut [(&str, &mut Tensor)]) -> Result<(), RuntimeError> {
        let exe = self.exe.clone();
        ports::match_inputs(&exe.program().inputs, inputs, &mut self.given)?;
        let state = self.state.clone();
        let held = state.as_ref().map(|state| state.lock());
        self.choose_binding(inputs, held.as_ref())?;
        self.reserve()?;
        self.match_outputs(outputs)?;
        if !self.placed {
            self.place(held.as_ref());
        }
        let program = exe.program();
        let binding = &self.bindings[self.current];
        let destinations = |output: usize| match (binding.outputs[output].direct, self.into[output]) {
            (true, into) if !into.is_null() => into,
            _ => self.outputs[output].as_ptr(),
        };
        let mut copied = Copied::default();
        for (buffer, place) in &binding.moving {
            let pointer = &mut self.pointers.buffers[*buffer];
            match place {
                Place::Input(k) => {
                    let bytes = inputs[self.given[*k as usize]].1.bytes();
                    match binding.bound.offsets[*buffer] {
                        // SAFETY: the arena has the input's size there.
                        Some(offset) => unsafe {
                            *pointer = self.arena.as_ptr::<u8>().wrapping_add(offset);
                            std::ptr::copy_nonoverlapping(bytes.as_ptr(), *pointer, bytes.len());
                            copied.inputs += bytes.len();
                        },
                        // An empty tensor may lie nowhere, but kernels may look at its first element.
                        None if bytes.is_empty() => *pointer = self.arena.as_ptr(),
                        None => *pointer = bytes.as_ptr().cast_mut(),
                    }
                }
                Place::Output(k) => *pointer = destinations(*k as usize),
                _ => {}
            }
        }
        copied.outputs += self.copy_outputs(OutputPlace::Before);
        let within = Cell::new(0);
        self.times.begin();
        let told_by_data = !binding.bound.sizes.is_empty() || !binding.bound.checks.is_empty();
        let mut sizes = if told_by_data { binding.symbols.clone() } else { Bindings::new() };
        let mut runner = Runner {
            bound: &binding.bound,
            pointers: &mut self.pointers,
            arena: self.arena.as_ptr(),
            team: &self.team,
            scratch: &self.scratch,
            sizes: &mut sizes,
            times: self.profile.then_some(&mut self.times),
            copied: &within,
        };
        let ran = {
            let _awake = self.team.awake();
            // SAFETY: `place` and the loop above gave every buffer memory of its size: the arena's by the plan, the
            // session's outputs and the caller's, which are borrowed until we return, the executable's, which runs only
            // read, and the state's, which is locked. Scratch was made for this team and need.
            unsafe { runner.run(0, binding.bound.ops.len()) }
        };
        if self.profile {
            for ((timing, (ns, calls)), work) in
                self.timings.iter_mut().zip(&self.times.by_step).zip(&binding.bound.work)
            {
                (timing.ns, timing.calls, timing.flops, timing.bytes) = (*ns, *calls, work.0, work.1);
            }
        }
        ran.map_err(|stop| exe.stopped(&program.steps, stop))?;
        if told_by_data {
            self.bindings[self.current].shape_outputs(program, &sizes)?;
        }
        copied.outputs += self.copy_outputs(OutputPlace::After);
        self.copied = Copied { within: within.get(), ..copied };
        Ok(())
    }

    /// Copies outputs that lie elsewhere to where the caller finds them; how many bytes.
    fn copy_outputs(&self, when: OutputPlace) -> usize {
        let mut copied = 0;
        let binding = &self.bindings[self.current];
        for (k, port) in self.exe.program().outputs.iter().enumerate() {
            let (output, into) = (&binding.outputs[k], self.into[k]);
            let to = if into.is_null() { self.outputs[k].as_ptr() } else { into };
            let from = self.pointers.buffers[port.buffer.0 as usize];
            if output.place == when && from != to {
                // SAFETY: both have the output's size; neither lies in the other.
                unsafe { std::ptr::copy_nonoverlapping(from, to, output.bytes) };
                copied += output.bytes;
            }
        }
        copied
    }

    /// Makes the binding of these dims the current one.
    fn choose_binding(
        &mut self,
        inputs: &[(&str, &Tensor)],
        state: Option<&MutexGuard<'_, Held>>,
    ) -> Result<(), RuntimeError> {
        self.clock += 1;
        let state = state.map(|held| &held.table);
        let fits = |binding: &Binding| binding.fits(self.exe.program(), inputs, &self.given, state);
        // Usually the last one.
        let found = match self.bindings.get(self.current) {
            Some(binding) if fits(binding) => Some(self.current),
            _ => self.bindings.iter().position(fits),
        };
        let index = match found {
            Some(index) => index,
            None => {
                let threads = self.team.size();
                let exe = &self.exe;
                let loaded = Loaded {
                    program: exe.program(),
                    bind: &|bindings, staged, kept| exe.bind(bindings, threads, staged, kept),
                    needs_slack: &|buffer| exe.needs_slack(buffer),
                    stages_inputs: false,
                };
                let binding = Binding::new(&loaded, inputs, &self.given, state, &self.state_entries)?;
                self.pointers.reserve(self.exe.program().buffers.len(), &binding.bound);
                if self.bindings.len() < KEPT_BINDINGS {
                    self.bindings.push(binding);
                    self.bindings.len() - 1
                } else {
                    let oldest = (0..KEPT_BINDINGS).min_by_key(|i| self.bindings[*i].used).unwrap_or(0);
                    self.bindings[oldest] = binding;
                    self.placed = false;
                    oldest
                }
            }
        };
        self.bindings[index].used = self.clock;
        if index != self.current {
            self.current = index;
            self.placed = false;
        }
        Ok(())
    }

    /// Makes memory large enough.
    fn reserve(&mut self) -> Result<(), RuntimeError> {
        let binding = &self.bindings[self.current];
        if binding.bound.arena_bytes > self.arena.len() {
            // The old one goes first: both at once might not fit.
            self.arena = Buffer::new(0)?;
            self.placed = false;
            self.arena = Buffer::new(binding.bound.arena_bytes)?;
        }
        let need = self.need.max(binding.bound.scratch);
        if need != self.need {
            self.scratch = ScratchPool::new(self.team.size(), need)?;
            self.need = need;
        }
        for (buffer, output) in self.outputs.iter_mut().zip(&binding.outputs) {
            if output.room > buffer.len() {
                *buffer = Buffer::new(output.room)?;
            }
        }
        Ok(())
    }

    /// Finds the outputs that the caller has tensors for.
    fn match_outputs(&mut self, outputs: &mut [(&str, &mut Tensor)]) -> Result<(), RuntimeError> {
        self.into.fill(std::ptr::null_mut());
        let program = self.exe.program().clone();
        for (name, tensor) in outputs {
            let k = ports::match_output(&program.outputs, &self.bindings[self.current], name, tensor)?;
            if !self.into[k].is_null() {
                return Err(RuntimeError::Duplicate { name: name.to_string() });
            }
            let bytes = tensor.bytes_mut();
            self.into[k] = if bytes.is_empty() { self.outputs[k].as_ptr() } else { bytes.as_mut_ptr() };
        }
        Ok(())
    }

    /// Addresses that stay the same from run to run of a binding.
    fn place(&mut self, state: Option<&MutexGuard<'_, Held>>) {
        let binding = &self.bindings[self.current];
        for (i, buffer) in self.exe.program().buffers.iter().enumerate() {
            let arena = || self.arena.as_ptr::<u8>();
            self.pointers.buffers[i] = match (&buffer.place, binding.bound.offsets[i]) {
                (_, Some(offset)) => arena().wrapping_add(offset),
                (Place::State(k), _) => state.map_or_else(arena, |held| held.pointer(self.state_entries[*k as usize])),
                _ => self.exe.pointer(i).unwrap_or_else(arena),
            };
        }
        self.placed = true;
    }
}
