//! Runs bound steps. Nothing here allocates.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

use super::bind::{Address, Bound, KernelFn, Op, Repeat};
use super::drivers::{ScratchPool, part};
use super::team::Team;

/// Where each buffer is, and room for the arguments of a launch; sized when steps are bound.
#[derive(Debug, Default)]
pub(crate) struct Pointers {
    /// By buffer.
    pub(crate) buffers: Vec<*mut u8>,
    args: Vec<*mut u8>,
    /// By loop: iterations done.
    counters: Vec<usize>,
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

/// What steps run with.
pub(crate) struct Runner<'a> {
    pub(crate) bound: &'a Bound,
    pub(crate) pointers: &'a mut Pointers,
    pub(crate) arena: *mut u8,
    pub(crate) team: &'a Team,
    pub(crate) scratch: &'a ScratchPool,
    /// Nanoseconds and executions by step, if they are wanted.
    pub(crate) times: Option<&'a mut [(u64, u64)]>,
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
    pub(crate) unsafe fn run(&mut self, first: usize, end: usize) -> Result<(), Reported> {
        let bound = self.bound;
        let mut at = first;
        while at < end {
            let item = &bound.ops[at];
            let since = self.times.is_some().then(Instant::now);
            at += 1;
            // SAFETY: the caller's.
            match &item.op {
                Op::Clear { border, tensor } => unsafe { border.clear(self.pointers.at(*tensor).cast()) },
                Op::Copy { source, destination, bytes } => unsafe { self.copy(*source, *destination, *bytes) },
                Op::Driver { plan, args } => {
                    self.arguments(args.first, args.len);
                    unsafe { plan.run(&self.pointers.args[..args.len], self.team, self.scratch) };
                }
                Op::Code { entry, args, dims, grid, chunks } => {
                    self.arguments(args.first, args.len);
                    let status = AtomicU32::new(0);
                    let call = Call {
                        entry: *entry,
                        buffers: self.pointers.args.as_ptr(),
                        dims: bound.dims[dims.first..dims.first + dims.len].as_ptr(),
                        grid: *grid,
                        chunks: *chunks,
                        scratch: self.scratch,
                        status: &status,
                    };
                    if *grid > 0 {
                        self.team.parallel(*chunks, &|chunk, worker| unsafe { call.chunk(chunk, worker) });
                    }
                    match status.load(Relaxed) {
                        0 => {}
                        code => return Err(Reported { step: item.step, code }),
                    }
                }
                Op::Begin(index) => {
                    let repeat = &bound.loops[*index];
                    for carry in &repeat.carried {
                        let current = Address { buffer: carry.current, offset: 0 };
                        unsafe { self.copy(carry.first, current, carry.bytes) };
                    }
                    self.pointers.counters[*index] = 0;
                    if repeat.length == 0 {
                        at = repeat.end + 1;
                    } else {
                        self.slide(repeat, 0);
                    }
                }
                Op::End(index) => {
                    let repeat = &bound.loops[*index];
                    unsafe { self.carry(repeat) };
                    let done = self.pointers.counters[*index] + 1;
                    self.pointers.counters[*index] = done;
                    if done < repeat.length {
                        self.slide(repeat, done);
                        at = repeat.begin + 1;
                    }
                }
            }
            if let (Some(times), Some(since)) = (self.times.as_deref_mut(), since)
                && let Some(time) = times.get_mut(item.step)
            {
                time.0 += since.elapsed().as_nanos() as u64;
                time.1 += u64::from(!matches!(item.op, Op::Clear { .. } | Op::End(_)));
            }
        }
        Ok(())
    }

    fn arguments(&mut self, first: usize, len: usize) {
        for (i, address) in self.bound.args[first..first + len].iter().enumerate() {
            self.pointers.args[i] = self.pointers.at(*address);
        }
    }

    unsafe fn copy(&self, source: Address, destination: Address, bytes: usize) {
        let (source, destination) = (self.pointers.at(source), self.pointers.at(destination));
        if source != destination {
            // SAFETY: the caller's; both lie within their buffers, which was checked when bytes were bound.
            unsafe { std::ptr::copy(source, destination, bytes) };
        }
    }

    unsafe fn carry(&self, repeat: &Repeat) {
        for carry in &repeat.carried {
            if let Some(stage) = carry.stage {
                // SAFETY: the arena has room for it.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        self.pointers.at(carry.next),
                        self.arena.wrapping_add(stage),
                        carry.bytes,
                    );
                }
            }
        }
        for carry in &repeat.carried {
            let current = Address { buffer: carry.current, offset: 0 };
            match carry.stage {
                // SAFETY: as above.
                Some(stage) => unsafe {
                    let (from, to) = (self.arena.wrapping_add(stage), self.pointers.at(current));
                    std::ptr::copy_nonoverlapping(from, to, carry.bytes);
                },
                // SAFETY: the caller's.
                None => unsafe { self.copy(carry.next, current, carry.bytes) },
            }
        }
    }

    fn slide(&mut self, repeat: &Repeat, iteration: usize) {
        let i = if repeat.reverse { repeat.length - 1 - iteration } else { iteration };
        for moving in &repeat.slices {
            let base = self.pointers.buffers[moving.of as usize];
            self.pointers.buffers[moving.slice as usize] = base.wrapping_add(i * moving.stride);
        }
    }
}
