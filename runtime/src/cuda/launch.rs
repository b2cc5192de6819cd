//! Queues bound steps on a stream. Nothing here allocates but launches whose extents only the run tells, and the events of
//! a profiled run.

use std::ffi::c_void;
use std::sync::Arc;

use egret_ir::Bindings;
use egret_program::{Program, SizeValue, Step};

use super::device::Device;
use super::driver::{Event, Stream};
use super::kernels::Functions;
use super::memory::Pinned;
use crate::binding::holds;
use crate::cpu::bind::{every_step, step_at};
use crate::cpu::bound::{Address, Bound, Op, Repeat};
use crate::cpu::late::{Extent, Ready};
use crate::{RuntimeError, Span};

/// Operations of one graph: more are queued one by one.
const MOST_RECORDED: usize = 20_000;

/// Where each buffer is, and room for the parameters of a launch; sized when steps are bound.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// By buffer.
    pub buffers: Vec<u64>,
    values: Vec<u64>,
    pointers: Vec<*mut c_void>,
    /// By loop: iterations done.
    counters: Vec<usize>,
    /// By loop: iterations in all, at most.
    lengths: Vec<usize>,
}

// SAFETY: addresses only; the session that owns them rules who uses what they point at.
unsafe impl Send for Addresses {}

impl Addresses {
    /// Makes room for these steps.
    pub(super) fn reserve(&mut self, buffers: usize, bound: &Bound) {
        self.buffers.resize(self.buffers.len().max(buffers), 0);
        let most = bound.most_args + bound.dims.len() + 1;
        self.values.reserve(most);
        self.pointers.reserve(most);
        let loops = self.counters.len().max(bound.loops.len());
        self.counters.resize(loops, 0);
        self.lengths.resize(loops, 0);
    }

    fn at(&self, address: Address) -> u64 {
        self.buffers[address.buffer as usize] + address.offset as u64
    }
}

/// Times that are being taken: by executed operation its step and when it began, and the end of all.
#[derive(Debug, Default)]
pub(super) struct Times {
    begun: Vec<(usize, Event)>,
    end: Option<Event>,
}

impl Times {
    /// Nothing that is measured comes any more.
    pub(super) fn finish(&mut self, device: &Arc<Device>, stream: &Stream) -> Result<(), RuntimeError> {
        let end = Event::new(device)?;
        end.record(stream)?;
        self.end = Some(end);
        Ok(())
    }

    /// Nanoseconds and executions by step, and each execution.
    pub(super) fn read(&self, by_step: &mut [(u64, u64)]) -> Result<Vec<Span>, RuntimeError> {
        let ends = self.begun.iter().skip(1).map(|(_, event)| event).chain(&self.end);
        let (mut spans, mut begin) = (Vec::with_capacity(self.begun.len()), 0);
        for ((step, begun), ended) in self.begun.iter().zip(ends) {
            let ns = ended.since(begun)?;
            if let Some(time) = by_step.get_mut(*step) {
                time.0 += ns;
                time.1 += 1;
            }
            spans.push(Span { step: *step, begin, ns });
            begin += ns;
        }
        Ok(spans)
    }
}

/// What steps are queued with.
pub(super) struct Queue<'a> {
    pub bound: &'a Bound,
    pub functions: &'a Functions,
    pub addresses: &'a mut Addresses,
    pub stream: &'a Stream,
    /// The arena's address.
    pub arena: u64,
    /// The address of the status words, one a step.
    pub status: u64,
    /// Host memory for what decides what comes next.
    pub word: &'a Pinned,
    /// Values of symbols, and of data-dependent sizes once they are known; empty where there are none of those.
    pub sizes: &'a mut Bindings,
    /// Times, if they are wanted.
    pub times: Option<&'a mut Times>,
}

/// Whether the host needs to know nothing of a run before it is over, so that it can be recorded.
pub(super) fn is_recordable(bound: &Bound) -> bool {
    let known = |extent: &Extent| matches!(extent, Extent::Known(_));
    let fixed = |op: &Op| match op {
        Op::Device { .. } | Op::End(_) => true,
        Op::Copy { bytes, .. } => known(bytes),
        Op::Begin(index) => {
            bound.loops[*index].trips.is_none() && bound.loops[*index].length.as_ref().is_some_and(known)
        }
        _ => false,
    };
    if !bound.ops.iter().all(|item| fixed(&item.op)) {
        return false;
    }
    // loops are recorded iteration by iteration
    let (mut total, mut times) = (0usize, vec![1usize]);
    for item in &bound.ops {
        let each = times.last().copied().unwrap_or(1);
        total = total.saturating_add(each);
        match &item.op {
            Op::Begin(index) => {
                let length = match bound.loops[*index].length {
                    Some(Extent::Known(length)) => length,
                    _ => return false,
                };
                times.push(each.saturating_mul(length));
            }
            Op::End(_) => {
                times.pop();
            }
            _ => {}
        }
    }
    total <= MOST_RECORDED
}

/// The first step, in preorder, that reported something, and its code.
pub(super) fn reported(status: &[u32]) -> Option<(usize, u32)> {
    status.iter().enumerate().find(|(_, code)| **code != 0).map(|(step, code)| (step, *code))
}

/// What a kernel reported, as an error.
pub(super) fn fault(steps: &[Step], step: usize, code: u32) -> RuntimeError {
    let Some(Step::Launch(launch)) = step_at(steps, step) else {
        return RuntimeError::malformed(format!("a step that is no launch reported {code}"));
    };
    let message = launch.faults.iter().find(|fault| fault.code == code);
    let message = message.map_or_else(|| "a kernel reported an error".to_string(), |fault| fault.message.clone());
    RuntimeError::Fault { origin: launch.origin.clone(), code, message }
}

/// How many steps there are, those inside others counted.
pub(super) fn step_count(steps: &[Step]) -> usize {
    every_step(steps).count()
}

/// The ten largest buffers that steps use: what each is, and its bytes.
pub(super) fn largest(program: &Program, steps: &[Step], bytes: &[usize]) -> Vec<(String, usize)> {
    use egret_program::Place;
    let mut order: Vec<usize> = (0..bytes.len().min(program.buffers.len())).filter(|i| bytes[*i] > 0).collect();
    order.retain(|i| !matches!(program.buffers[*i].place, Place::Slice { .. } | Place::Part { .. }));
    order.sort_by_key(|i| (std::cmp::Reverse(bytes[*i]), *i));
    order.truncate(10);
    let writer = |buffer: usize| {
        every_step(steps).find_map(|step| match step {
            Step::Launch(launch) => {
                let writes = launch.args.iter().any(|arg| arg.writes && arg.buffer.0 as usize == buffer);
                writes.then(|| launch.origin.clone())
            }
            _ => None,
        })
    };
    let what = |buffer: usize| match &program.buffers[buffer].place {
        Place::Input(k) => format!("input `{}`", program.inputs[*k as usize].name),
        Place::Output(k) => format!("output `{}`", program.outputs[*k as usize].name),
        Place::Param(k) => format!("param `{}`", program.params[*k as usize].name),
        Place::State(k) => format!("state `{}`", program.states[*k as usize].name),
        _ => writer(buffer).filter(|o| !o.is_empty()).unwrap_or_else(|| format!("buffer {buffer}")),
    };
    order.into_iter().map(|i| (what(i), bytes[i])).collect()
}

impl Queue<'_> {
    /// Queues the operations `first..end`, and waits only where what comes next depends on what is in memory.
    ///
    /// # Safety
    /// Every buffer that these use is valid on the device for its bytes, and nobody else writes them until the stream has
    /// been waited for.
    pub(super) unsafe fn run(&mut self, first: usize, end: usize) -> Result<(), RuntimeError> {
        let bound = self.bound;
        let mut at = first;
        while at < end {
            let item = &bound.ops[at];
            if let Some(times) = self.times.as_deref_mut() {
                let event = Event::new(self.stream.device())?;
                event.record(self.stream)?;
                times.begun.push((item.step, event));
            }
            at += 1;
            // SAFETY: the caller's, throughout.
            match &item.op {
                Op::Device { kernel, args, dims, grid } => {
                    self.addresses.values.clear();
                    for address in &bound.args[args.first..args.first + args.len] {
                        let value = self.addresses.at(*address);
                        self.addresses.values.push(value);
                    }
                    let dims = &bound.dims[dims.first..dims.first + dims.len];
                    unsafe { self.launch(*kernel, dims, *grid, item.step)? };
                }
                Op::Late(index) => {
                    let late = &bound.late[*index];
                    let places = late.offsets(self.sizes, &bound.bytes)?;
                    let Ready::Device { kernel, dims, grid } = late.ready(self.sizes)? else {
                        return Err(RuntimeError::malformed(NO_GPU));
                    };
                    self.addresses.values.clear();
                    for (buffer, offset) in places {
                        let value = self.addresses.at(Address { buffer, offset });
                        self.addresses.values.push(value);
                    }
                    unsafe { self.launch(kernel, &dims, grid, item.step)? };
                }
                Op::Copy { source, destination, bytes } => {
                    let bytes = bytes.value(self.sizes)?;
                    let (from, to) = (self.addresses.at(*source), self.addresses.at(*destination));
                    unsafe { self.stream.copy(to, from, bytes)? };
                }
                Op::Size(index) => {
                    let bound_size = &bound.sizes[*index];
                    let size = &bound_size.size;
                    let value = match (&size.value, &bound_size.read) {
                        (_, Some(read)) => i64::from_le_bytes(unsafe { self.read::<8>(*read)? }),
                        (SizeValue::Known(dim), None) => self.eval(dim, &size.origin)?,
                        (SizeValue::Read(_), None) => return Err(RuntimeError::malformed("a size is not read")),
                    };
                    let most = self.eval(&size.bound, &size.origin)?;
                    if value < 0 || value > most {
                        let why = format!("the data-dependent size {value} is above its bound {most}");
                        return Err(RuntimeError::Size { what: size.origin.clone(), why });
                    }
                    self.sizes.insert(bound_size.name.clone(), value);
                }
                Op::Check(index) => holds(&bound.checks[*index], self.sizes)?,
                Op::Unless { test, to } => {
                    if unsafe { self.read::<1>(*test)? } == [0] {
                        at = *to;
                    }
                }
                Op::Jump(to) => at = *to,
                Op::Test { index, test } => {
                    let repeat = &bound.loops[*index];
                    let go_on = unsafe { self.read::<1>(*test)? } != [0];
                    let done = self.addresses.counters[*index];
                    if !go_on || done >= self.addresses.lengths[*index] {
                        if let Some(trips) = repeat.trips {
                            unsafe { self.write(trips, (done as i64).to_le_bytes())? };
                        }
                        at = repeat.end + 1;
                    }
                }
                Op::Begin(index) => {
                    let repeat = &bound.loops[*index];
                    for carry in &repeat.carried {
                        let current = Address { buffer: carry.current, offset: 0 };
                        let bytes = carry.bytes.value(self.sizes)?;
                        let (from, to) = (self.addresses.at(carry.first), self.addresses.at(current));
                        unsafe { self.stream.copy(to, from, bytes)? };
                    }
                    let length = match &repeat.length {
                        Some(length) => length.value(self.sizes)?,
                        None => usize::MAX,
                    };
                    (self.addresses.counters[*index], self.addresses.lengths[*index]) = (0, length);
                    // a loop that a condition ends asks it first
                    if length == 0 && repeat.trips.is_none() {
                        at = repeat.end + 1;
                    } else {
                        self.slide(repeat, 0, length)?;
                    }
                }
                Op::End(index) => {
                    let repeat = &bound.loops[*index];
                    unsafe { self.carry(repeat)? };
                    let done = self.addresses.counters[*index] + 1;
                    self.addresses.counters[*index] = done;
                    let length = self.addresses.lengths[*index];
                    if done < length || repeat.trips.is_some() {
                        self.slide(repeat, done, length)?;
                        at = repeat.begin + 1;
                    }
                }
                Op::Clear { .. } | Op::Code { .. } | Op::Driver { .. } => {
                    return Err(RuntimeError::malformed(NO_GPU));
                }
            }
        }
        Ok(())
    }

    fn eval(&self, dim: &egret_ir::Dim, what: &str) -> Result<i64, RuntimeError> {
        dim.eval(self.sizes).map_err(|why| RuntimeError::size(what.to_string(), &why))
    }

    /// Queues a launch whose buffers are in `values`.
    ///
    /// # Safety
    /// That of [`run`](Queue::run).
    unsafe fn launch(&mut self, kernel: usize, dims: &[i64], grid: usize, step: usize) -> Result<(), RuntimeError> {
        let function = self.functions.get(kernel).ok_or_else(|| RuntimeError::malformed(NO_GPU))?;
        let Addresses { values, pointers, .. } = &mut *self.addresses;
        values.extend(dims.iter().map(|dim| *dim as u64));
        values.push(self.status + 4 * step as u64);
        // SAFETY: the caller's.
        unsafe { function.launch(self.stream.raw(), grid, values, pointers)? };
        Ok(())
    }

    /// Reads memory once all before is done.
    ///
    /// # Safety
    /// That of [`run`](Queue::run).
    unsafe fn read<const N: usize>(&self, from: Address) -> Result<[u8; N], RuntimeError> {
        // SAFETY: the caller's; the word has eight bytes, and nothing else is queued that uses it.
        unsafe { self.stream.download(self.word.as_ptr(), self.addresses.at(from), N)? };
        self.stream.wait()?;
        // SAFETY: the copy is done.
        Ok(unsafe { self.word.as_ptr().cast::<[u8; N]>().read_unaligned() })
    }

    /// Writes memory.
    ///
    /// # Safety
    /// That of [`run`](Queue::run).
    unsafe fn write(&self, to: Address, bytes: [u8; 8]) -> Result<(), RuntimeError> {
        // SAFETY: the caller's; as above.
        unsafe {
            self.word.as_ptr().cast::<[u8; 8]>().write_unaligned(bytes);
            self.stream.upload(self.addresses.at(to), self.word.as_ptr(), bytes.len())?;
        }
        // the word is free again
        Ok(self.stream.wait()?)
    }

    /// Moves carried values on.
    ///
    /// # Safety
    /// That of [`run`](Queue::run).
    unsafe fn carry(&self, repeat: &Repeat) -> Result<(), RuntimeError> {
        for carry in &repeat.carried {
            if let Some(stage) = carry.stage {
                let bytes = carry.bytes.value(self.sizes)?;
                // SAFETY: the arena has room for it.
                unsafe { self.stream.copy(self.arena + stage as u64, self.addresses.at(carry.next), bytes)? };
            }
        }
        for carry in &repeat.carried {
            let current = self.addresses.at(Address { buffer: carry.current, offset: 0 });
            let bytes = carry.bytes.value(self.sizes)?;
            let from = match carry.stage {
                Some(stage) => self.arena + stage as u64,
                None => self.addresses.at(carry.next),
            };
            // SAFETY: the caller's.
            unsafe { self.stream.copy(current, from, bytes)? };
        }
        Ok(())
    }

    fn slide(&mut self, repeat: &Repeat, iteration: usize, length: usize) -> Result<(), RuntimeError> {
        let i = if repeat.reverse { length - 1 - iteration } else { iteration };
        for moving in &repeat.slices {
            let base = self.addresses.buffers[moving.of as usize];
            let stride = moving.stride.value(self.sizes)?;
            self.addresses.buffers[moving.slice as usize] = base.wrapping_add(i.wrapping_mul(stride) as u64);
        }
        Ok(())
    }
}

const NO_GPU: &str = "a step of a CPU in a program for a GPU";
