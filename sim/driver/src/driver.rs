//! What the driver knows: GPUs, and what programs made on them, by handle.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use egret_sim::{Memory, Module};

use crate::queue::Work;
use crate::status::*;

/// A simulated GPU.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Compute capability: major and minor.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub cores: i32,
    /// Bytes of shared memory that a block may have.
    pub shared_bytes: i32,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Bytes in use.
    pub(crate) used: u64,
    /// Nanoseconds that its work took, as they are modelled.
    pub(crate) clock: u64,
    /// What every call gives since something went wrong on it.
    pub(crate) lost: Option<Status>,
}

/// A queue of work.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub gpu: usize,
    pub queue: Vec<Work>,
    /// What is recorded instead of done.
    pub capture: Option<Capture>,
}

/// What a stream records.
#[derive(Debug)]
pub(crate) struct Capture {
    pub recorded: Vec<Work>,
    /// Whether nothing has ended the recording.
    pub valid: bool,
    /// `CUstreamCaptureMode`: whose calls may end it; 0 any thread's, 1 those of the thread that began, 2 none.
    mode: c_int,
    thread: ThreadId,
}

impl Capture {
    pub fn new(mode: c_int) -> Capture {
        Capture { recorded: Vec::new(), valid: true, mode, thread: std::thread::current().id() }
    }

    /// Whether the thread that calls may do nothing that waits for the GPU.
    fn forbids_here(&self) -> bool {
        self.mode == 0 || self.mode == 1 && self.thread == std::thread::current().id()
    }
}

/// A kernel of a module.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub module: u64,
    pub name: String,
    /// Bytes of dynamic shared memory that it may have.
    pub dynamic_bytes: i32,
}

/// Everything. Device memory is one space, as unified addressing makes it.
#[derive(Debug, Default)]
pub(crate) struct Driver {
    pub gpus: Vec<Gpu>,
    pub memory: Memory,
    /// By address: the GPU and the bytes.
    pub allocations: HashMap<u64, (usize, u64)>,
    /// Host memory that was allocated here: start and bytes.
    pub pinned: Vec<(usize, usize)>,
    pub streams: HashMap<u64, Stream>,
    /// When it happened, by the GPU's clock.
    pub events: HashMap<u64, Option<u64>>,
    pub modules: HashMap<u64, (usize, Module)>,
    pub functions: HashMap<u64, Function>,
    /// Recorded work, executable or not.
    pub graphs: HashMap<u64, Vec<Work>>,
    pub fault: String,
    /// Kernels that ran.
    pub launches: u64,
    handles: u64,
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

thread_local! {
    /// The GPU of this thread's current context, counted from one.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The driver, while no other thread uses it.
pub(crate) struct Held(MutexGuard<'static, Option<Driver>>);

impl std::ops::Deref for Held {
    type Target = Driver;
    fn deref(&self) -> &Driver {
        // `driver` made it
        self.0.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl std::ops::DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Driver {
        self.0.as_mut().unwrap_or_else(|| unreachable!())
    }
}

pub(crate) fn driver() -> Held {
    let mut held = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    held.get_or_insert_default();
    Held(held)
}

/// How many kernels have run.
pub fn launches() -> u64 {
    driver().launches
}

pub(crate) fn current() -> usize {
    CURRENT.get()
}

pub(crate) fn set_current(context: usize) {
    CURRENT.set(context);
}

impl Driver {
    /// A handle that nothing has yet.
    pub fn handle(&mut self) -> u64 {
        self.handles += 16;
        0x5000_0000 + self.handles
    }

    /// The GPU of the current context, unless it is lost.
    pub fn gpu(&self) -> Outcome<usize> {
        let gpu = current().checked_sub(1).filter(|gpu| *gpu < self.gpus.len()).ok_or(INVALID_CONTEXT)?;
        match self.gpus[gpu].lost {
            Some(status) => Err(status),
            None => Ok(gpu),
        }
    }

    /// The stream of a handle, unless its GPU is lost.
    pub fn stream(&mut self, handle: u64) -> Outcome<&mut Stream> {
        let stream = self.streams.get_mut(&handle).ok_or(INVALID_HANDLE)?;
        match self.gpus[stream.gpu].lost {
            Some(status) => Err(status),
            None => Ok(stream),
        }
    }

    /// Something went wrong on a GPU: it is lost to the process.
    pub fn lose(&mut self, gpu: usize, status: Status, fault: String) -> Status {
        self.gpus[gpu].lost = Some(status);
        self.fault = fault;
        status
    }

    /// What a call may not do while a stream of the GPU records, as far as the recording's mode counts this thread, ends
    /// the recording.
    pub fn forbid_while_recording(&mut self, gpu: usize) -> Outcome {
        let mut recording = false;
        for stream in self.streams.values_mut().filter(|stream| stream.gpu == gpu) {
            if let Some(capture) = stream.capture.as_mut().filter(|capture| capture.forbids_here()) {
                (capture.valid, recording) = (false, true);
            }
        }
        if recording { Err(CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }
}
