//! The driver: whether there is one, what its results mean, and its streams, events and graphs as owned values.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::device::Device;
use super::error::CudaError;
use crate::outputs::Copied;

/// The least version of the driver's API: 12.0.
const LEAST_VERSION: i32 = 12_000;

/// Loads and initialises the driver; once it is there, that is all.
pub(super) fn load() -> Result<(), CudaError> {
    static LOADED: Mutex<bool> = Mutex::new(false);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if *loaded {
        return Ok(());
    }
    // SAFETY: opening a driver's library runs only its own initialisation. cudarc panics where there is none.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let found = driver_version()?;
    if found < LEAST_VERSION {
        return Err(CudaError::OldDriver { found });
    }
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            return Err(CudaError::NoDevice { ordinal: 0, count: 0 });
        }
        other => check("cuInit", other)?,
    }
    *loaded = true;
    Ok(())
}

/// The version of the driver's API: 1000 × major + 10 × minor. The driver is there.
pub(super) fn driver_version() -> Result<i32, CudaError> {
    let mut found = 0;
    // SAFETY: writes an integer; every driver has this function.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut found) }.result())?;
    Ok(found)
}

/// A result of the driver's, as ours.
pub(super) fn check<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T, CudaError> {
    use sys::CUresult::*;
    result.map_err(|DriverError(code)| {
        let text = format!("{code:?}");
        match code {
            CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_UNKNOWN => CudaError::Lost { call, code: text, detail: super::stand_in::last_fault() },
            _ => CudaError::Call { call, code: text },
        }
    })
}

/// A queue of work on a GPU.
#[derive(Debug)]
pub(crate) struct Stream {
    device: Arc<Device>,
    raw: sys::CUstream,
    /// Bytes of the copies that were queued since [`Stream::take_copied`]: from the host, to it, within the device.
    copied: [AtomicUsize; 3],
}

// SAFETY: a stream may be used by any thread whose context is the device's, which every method makes sure of.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks what threads share.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(device: &Arc<Device>) -> Result<Stream, CudaError> {
        device.bind()?;
        let raw = check("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(Stream { device: device.clone(), raw, copied: Default::default() })
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Bytes of the copies that were queued since this was last asked for.
    pub(super) fn take_copied(&self) -> Copied {
        let [inputs, outputs, within] = self.copied.each_ref().map(|bytes| bytes.swap(0, Relaxed));
        Copied { inputs, outputs, within }
    }

    /// Waits for all that was queued.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is live.
        check("cuStreamSynchronize", unsafe { result::stream::synchronize(self.raw) })
    }

    /// Copies from host memory.
    ///
    /// # Safety
    /// The bytes are valid there and on the device, and stay so until the copy is done.
    pub(super) unsafe fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        self.copied[0].fetch_add(bytes, Relaxed);
        // SAFETY: the caller's.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.raw) };
        check("cuMemcpyHtoDAsync", code.result())
    }

    /// Copies to host memory.
    ///
    /// # Safety
    /// That of [`upload`](Stream::upload).
    pub(super) unsafe fn download(&self, to: *mut u8, from: u64, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        self.copied[1].fetch_add(bytes, Relaxed);
        // SAFETY: the caller's.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.raw) };
        check("cuMemcpyDtoHAsync", code.result())
    }

    /// Copies within the device.
    ///
    /// # Safety
    /// Both ranges are valid and do not overlap, unless they are the same.
    pub(super) unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 || to == from {
            return Ok(());
        }
        self.copied[2].fetch_add(bytes, Relaxed);
        // SAFETY: the caller's.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.raw) };
        check("cuMemcpyDtoDAsync", code.result())
    }

    /// Zeroes memory.
    ///
    /// # Safety
    /// The range is valid.
    pub(super) unsafe fn clear(&self, to: u64, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(to, 0, bytes, self.raw) }.result())
    }

    /// Records what `queue` queues as a graph, instead of doing it.
    pub(super) fn capture(
        &self,
        queue: impl FnOnce() -> Result<(), crate::RuntimeError>,
    ) -> Result<Graph, crate::RuntimeError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live.
        check("cuStreamBeginCapture", unsafe { result::stream::begin_capture(self.raw, mode) })?;
        let queued = queue();
        // SAFETY: the capture above is ended whatever came of it.
        let graph = check("cuStreamEndCapture", unsafe { result::stream::end_capture(self.raw) });
        queued?;
        let graph = graph?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the graph is live, and no longer needed once there is an executable one.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut raw, graph, 0).result();
            let _ = result::graph::destroy(graph);
            made
        };
        check("cuGraphInstantiate", made)?;
        Ok(Graph { device: self.device.clone(), raw })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: the stream is live and ours.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

/// Recorded work, which is launched as a whole.
#[derive(Debug)]
pub(crate) struct Graph {
    device: Arc<Device>,
    raw: sys::CUgraphExec,
}

// SAFETY: an executable graph may be launched from any thread, one at a time: its session is borrowed exclusively.
unsafe impl Send for Graph {}

impl Graph {
    /// Queues the work.
    pub(super) fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both are live; the session that owns them keeps all memory that the graph names.
        check("cuGraphLaunch", unsafe { result::graph::launch(self.raw, stream.raw) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: the graph is live and ours.
            let _ = unsafe { result::graph::exec_destroy(self.raw) };
        }
    }
}

/// A point in a stream whose time is taken.
#[derive(Debug)]
pub(crate) struct Event {
    device: Arc<Device>,
    raw: sys::CUevent,
}

// SAFETY: as for streams.
unsafe impl Send for Event {}

impl Event {
    pub(super) fn new(device: &Arc<Device>) -> Result<Event, CudaError> {
        let raw = check("cuEventCreate", result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
        Ok(Event { device: device.clone(), raw })
    }

    /// Takes the time when all that was queued is done.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both are live.
        check("cuEventRecord", unsafe { result::event::record(self.raw, stream.raw) })
    }

    /// Nanoseconds from another event to this one; both have happened.
    pub(super) fn since(&self, earlier: &Event) -> Result<u64, CudaError> {
        // SAFETY: both are live.
        let ms = check("cuEventElapsedTime", unsafe { result::event::elapsed(earlier.raw, self.raw) })?;
        Ok((f64::from(ms.max(0.0)) * 1e6) as u64)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: the event is live and ours.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}
