//! Runs bound steps. Nothing here allocates but launches whose extents only the run tells.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

use egret_ir::Bindings;
use egret_program::SizeValue;
use smallvec::SmallVec;

use super::bound::{Address, Bound, Item, KernelFn, Op, Repeat, Span};
use super::drivers::{Link, MAX_LINKS, RowCut, ScratchPool, Shared, part, run_chain};
use super::halo::Border;
use super::late::Ready;
use super::team::Team;
use crate::RuntimeError;
use crate::binding::holds;
use crate::outputs::Times;

const NO_CPU: &str = "a kernel of a GPU in a program for a CPU";

/// Where each buffer is, and room for the arguments of a launch; sized when steps are bound.
#[derive(Debug, Default)]
pub(crate) struct Pointers {
    /// By buffer.
    pub(crate) buffers: Vec<*mut u8>,
    args: Vec<*mut u8>,
    /// By loop: iterations done.
    counters: Vec<usize>,
    /// By loop: iterations in all, at most.
    lengths: Vec<usize>,
}

// SAFETY: addresses only; the session that owns them rules who uses what they point at.
unsafe impl Send for Pointers {}

impl Pointers {
    /// Makes room for these steps.
    pub(crate) fn reserve(&mut self, buffers: usize, bound: &Bound) {
        let grow = |list: &mut Vec<*mut u8>, len: usize| list.resize(list.len().max(len), std::ptr::null_mut());
        grow(&mut self.buffers, buffers);
        grow(&mut self.args, bound.most_args);
        let loops = self.counters.len().max(bound.loops.len());
        self.counters.resize(loops, 0);
        self.lengths.resize(loops, 0);
    }

    fn at(&self, address: Address) -> *mut u8 {
        self.buffers[address.buffer as usize].wrapping_add(address.offset)
    }
}

/// A launch whose kernel reported something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reported {
    /// The step, in preorder.
    pub(crate) step: usize,
    /// The greatest status code that was reported.
    pub(crate) code: u32,
}

/// Why a run ends early.
pub(crate) enum Stop {
    /// A kernel reported something.
    Reported(Reported),
    /// A data-dependent size does not fit.
    Error(Box<RuntimeError>),
}

impl From<RuntimeError> for Stop {
    fn from(error: RuntimeError) -> Stop {
        Stop::Error(Box::new(error))
    }
}

/// What steps run with.
pub(crate) struct Runner<'a> {
    pub(crate) bound: &'a Bound,
    pub(crate) pointers: &'a mut Pointers,
    pub(crate) arena: *mut u8,
    pub(crate) team: &'a Team,
    pub(crate) scratch: &'a ScratchPool,
    /// Values of symbols, and of data-dependent sizes once they are known; empty where there are none of those.
    pub(crate) sizes: &'a mut Bindings,
    /// Times, if they are wanted.
    pub(crate) times: Option<&'a mut Times>,
    /// Bytes that operations copied.
    pub(crate) copied: &'a Cell<usize>,
}

/// A launch of generated code, shared by the team.
struct Call<'a> {
    entry: KernelFn,
    buffers: *const *mut u8,
    dims: *const i64,
    grid: usize,
    chunks: usize,
    scratch: &'a ScratchPool,
    status: &'a AtomicU32,
}

// SAFETY: the lists are only read; kernels divide what they write by grid point.
unsafe impl Sync for Call<'_> {}

impl Call<'_> {
    /// # Safety
    /// That of the kernel.
    unsafe fn chunk(&self, chunk: usize, worker: usize) {
        let (begin, end) = part(self.grid, chunk, self.chunks);
        let scratch = self.scratch.worker(worker).cast();
        // SAFETY: the caller's.
        unsafe { (self.entry)(self.buffers, self.dims, begin as i64, end as i64, scratch, self.status.as_ptr()) }
    }
}

impl Runner<'_> {
    /// Runs the operations `first..end`; stops at the first launch that reports something.
    ///
    /// # Safety
    /// Every buffer that these use is valid for its bytes, nobody else writes them, and code, plans and scratch belong to
    /// this program, host and team.
    pub(crate) unsafe fn run(&mut self, first: usize, end: usize) -> Result<(), Stop> {
        let bound = self.bound;
        let mut at = first;
        while at < end {
            let item = &bound.ops[at];
            let since = self.times.is_some().then(Instant::now);
            at += 1;
            // SAFETY: the caller's.
            match &item.op {
                Op::Clear { border, tensor } => unsafe { self.clear(border, *tensor) },
                Op::Copy { source, destination, bytes } => {
                    let bytes = bytes.value(self.sizes)?;
                    unsafe { self.copy(*source, *destination, bytes) };
                }
                Op::Device { .. } => return Err(RuntimeError::malformed(NO_CPU).into()),
                Op::Driver { plan, args } => match item.cut {
                    None => {
                        self.arguments(args.first, args.len);
                        unsafe { plan.run(&self.pointers.args[..args.len], self.team, self.scratch) };
                    }
                    Some((cut, _)) => {
                        // steps that are measured are measured one by one
                        let links = if self.times.is_none() && at + item.links <= end { item.links } else { 0 };
                        unsafe { self.chain(&bound.ops[at - 1..at + links], cut, *args) };
                        at += links;
                    }
                },
                Op::Code { entry, args, dims, grid, chunks } => {
                    self.arguments(args.first, args.len);
                    let dims = &bound.dims[dims.first..dims.first + dims.len];
                    unsafe { self.call(*entry, dims, *grid, *chunks, item.step)? };
                }
                Op::Late(index) => {
                    let late = &bound.late[*index];
                    for (border, buffer, offset) in late.borders(self.sizes)? {
                        unsafe { self.clear(&border, Address { buffer, offset }) };
                    }
                    let places = late.offsets(self.sizes, &bound.bytes)?;
                    for (i, (buffer, offset)) in places.iter().enumerate() {
                        self.pointers.args[i] = self.pointers.at(Address { buffer: *buffer, offset: *offset });
                    }
                    match late.ready(self.sizes)? {
                        Ready::Device { .. } => return Err(RuntimeError::malformed(NO_CPU).into()),
                        Ready::Code { entry, dims, grid, chunks } => unsafe {
                            self.call(entry, &dims, grid, chunks, item.step)?;
                        },
                        Ready::Driver(plan) => unsafe {
                            plan.run(&self.pointers.args[..places.len()], self.team, self.scratch);
                        },
                    }
                }
                Op::Size(index) => {
                    let bound_size = &bound.sizes[*index];
                    let size = &bound_size.size;
                    let value = match (&size.value, &bound_size.read) {
                        // SAFETY: the step before wrote it.
                        (_, Some(read)) => unsafe { self.pointers.at(*read).cast::<i64>().read() },
                        (SizeValue::Known(dim), None) => self.eval(dim, &size.origin)?,
                        (SizeValue::Read(_), None) => return Err(RuntimeError::malformed("a size is not read").into()),
                    };
                    let most = self.eval(&size.bound, &size.origin)?;
                    if value < 0 || value > most {
                        let why = format!("the data-dependent size {value} is above its bound {most}");
                        return Err(RuntimeError::Size { what: size.origin.clone(), why }.into());
                    }
                    self.sizes.insert(bound_size.name.clone(), value);
                }
                Op::Check(index) => holds(&bound.checks[*index], self.sizes)?,
                // SAFETY: a step before wrote the truth value.
                Op::Unless { test, to } => unsafe {
                    if self.pointers.at(*test).read() == 0 {
                        at = *to;
                    }
                },
                Op::Jump(to) => at = *to,
                Op::Test { index, test } => {
                    let repeat = &bound.loops[*index];
                    // SAFETY: the steps before wrote the truth value.
                    let go_on = unsafe { self.pointers.at(*test).read() } != 0;
                    let done = self.pointers.counters[*index];
                    if !go_on || done >= self.pointers.lengths[*index] {
                        if let Some(trips) = repeat.trips {
                            // SAFETY: an i64 of this program's, checked when it was bound.
                            unsafe { self.pointers.at(trips).cast::<i64>().write(done as i64) };
                        }
                        at = repeat.end + 1;
                    }
                }
                Op::Begin(index) => {
                    let repeat = &bound.loops[*index];
                    for carry in &repeat.carried {
                        let current = Address { buffer: carry.current, offset: 0 };
                        let bytes = carry.bytes.value(self.sizes)?;
                        unsafe { self.copy(carry.first, current, bytes) };
                    }
                    let length = match &repeat.length {
                        Some(length) => length.value(self.sizes)?,
                        None => usize::MAX,
                    };
                    (self.pointers.counters[*index], self.pointers.lengths[*index]) = (0, length);
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
                    let done = self.pointers.counters[*index] + 1;
                    self.pointers.counters[*index] = done;
                    let length = self.pointers.lengths[*index];
                    if done < length || repeat.trips.is_some() {
                        self.slide(repeat, done, length)?;
                        at = repeat.begin + 1;
                    }
                }
            }
            if let (Some(times), Some(since)) = (self.times.as_deref_mut(), since) {
                times.count(item.step, since, !matches!(item.op, Op::Clear { .. } | Op::End(_)));
            }
        }
        Ok(())
    }

    fn eval(&self, dim: &egret_ir::Dim, what: &str) -> Result<i64, RuntimeError> {
        dim.eval(self.sizes).map_err(|why| RuntimeError::size(what.to_string(), &why))
    }

    /// Runs generated code on the arguments in place.
    ///
    /// # Safety
    /// That of the kernel.
    unsafe fn call(&self, entry: KernelFn, dims: &[i64], grid: usize, chunks: usize, step: usize) -> Result<(), Stop> {
        let status = AtomicU32::new(0);
        let (buffers, dims) = (self.pointers.args.as_ptr(), dims.as_ptr());
        let call = Call { entry, buffers, dims, grid, chunks, scratch: self.scratch, status: &status };
        if grid > 0 {
            // SAFETY: the caller's.
            self.team.parallel(chunks, &|chunk, worker| unsafe { call.chunk(chunk, worker) });
        }
        match status.load(Relaxed) {
            0 => Ok(()),
            code => Err(Stop::Reported(Reported { step, code })),
        }
    }

    /// Runs drivers that were linked when they were bound, the first of them with `args`.
    ///
    /// # Safety
    /// That of the drivers.
    unsafe fn chain(&mut self, ops: &[Item], cut: RowCut, args: Span) {
        let drivers = || {
            ops.iter().filter_map(|item| match (&item.op, item.cut) {
                (Op::Driver { plan, args }, Some((_, copies))) => Some((plan, *args, copies)),
                _ => None,
            })
        };
        // their arguments lie one behind the other
        self.arguments(args.first, drivers().map(|(_, args, _)| args.len).sum());
        let given = |of: Span| &self.pointers.args[of.first - args.first..of.first - args.first + of.len];
        let links: SmallVec<[Link<'_>; MAX_LINKS]> =
            drivers().filter_map(|(plan, args, copies)| plan.link(given(args), copies)).collect();
        // SAFETY: the caller's.
        unsafe { run_chain(&links, cut, self.team, self.scratch) };
    }

    fn arguments(&mut self, first: usize, len: usize) {
        for (i, address) in self.bound.args[first..first + len].iter().enumerate() {
            self.pointers.args[i] = self.pointers.at(*address);
        }
    }

    /// Zeroes a border, each thread the rows that it is about to write.
    unsafe fn clear(&self, border: &Border, tensor: Address) {
        /// Bytes of a tensor whose border is worth more than one thread.
        const SMALL: usize = 64 << 10;
        let (at, lines) = (Shared(self.pointers.at(tensor).cast()), border.lines());
        let small = border.bytes().is_some_and(|bytes| bytes < SMALL);
        let chunks = if small { 1 } else { lines.min(self.team.size()) };
        self.team.parallel(chunks, &|chunk, _| {
            let (at, (first, end)) = (&at, part(lines, chunk, chunks));
            // SAFETY: the caller's; chunks write different rows.
            unsafe { border.clear(at.0, first, end) };
        });
    }

    unsafe fn copy(&self, source: Address, destination: Address, bytes: usize) {
        let (source, destination) = (self.pointers.at(source), self.pointers.at(destination));
        if source != destination {
            self.copied.set(self.copied.get() + bytes);
            // SAFETY: the caller's; both lie within their buffers, which was checked when bytes were bound.
            unsafe { std::ptr::copy(source, destination, bytes) };
        }
    }

    unsafe fn carry(&self, repeat: &Repeat) -> Result<(), RuntimeError> {
        for carry in &repeat.carried {
            if let Some(stage) = carry.stage {
                let bytes = carry.bytes.value(self.sizes)?;
                self.copied.set(self.copied.get() + bytes);
                // SAFETY: the arena has room for it.
                unsafe {
                    let from = self.pointers.at(carry.next);
                    std::ptr::copy_nonoverlapping(from, self.arena.wrapping_add(stage), bytes);
                }
            }
        }
        for carry in &repeat.carried {
            let current = Address { buffer: carry.current, offset: 0 };
            let bytes = carry.bytes.value(self.sizes)?;
            match carry.stage {
                // SAFETY: as above.
                Some(stage) => unsafe {
                    let (from, to) = (self.arena.wrapping_add(stage), self.pointers.at(current));
                    self.copied.set(self.copied.get() + bytes);
                    std::ptr::copy_nonoverlapping(from, to, bytes);
                },
                // SAFETY: the caller's.
                None => unsafe { self.copy(carry.next, current, bytes) },
            }
        }
        Ok(())
    }

    fn slide(&mut self, repeat: &Repeat, iteration: usize, length: usize) -> Result<(), RuntimeError> {
        let i = if repeat.reverse { length - 1 - iteration } else { iteration };
        for moving in &repeat.slices {
            let base = self.pointers.buffers[moving.of as usize];
            let stride = moving.stride.value(self.sizes)?;
            self.pointers.buffers[moving.slice as usize] = base.wrapping_add(i.wrapping_mul(stride));
        }
        Ok(())
    }
}
