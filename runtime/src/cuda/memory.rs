//! Memory of a GPU, and host memory that it copies to and from by itself.

use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::device::Device;
use super::driver::check;
use super::error::CudaError;

/// Alignment of buffers within one block: that of the driver's own allocations.
pub(super) const ALIGNMENT: usize = 256;

/// Memory of a GPU.
#[derive(Debug)]
pub(crate) struct DeviceBuffer {
    device: Arc<Device>,
    address: u64,
    len: usize,
}

impl DeviceBuffer {
    /// `len` bytes that hold anything.
    pub(super) fn new(device: &Arc<Device>, len: usize) -> Result<DeviceBuffer, CudaError> {
        device.bind()?;
        // kernels may be given the address of an empty tensor
        let asked = len.max(ALIGNMENT);
        // SAFETY: freed when this value goes.
        let address = match unsafe { result::malloc_sync(asked) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = result::mem_get_info().unwrap_or((0, device.memory_bytes()));
                return Err(CudaError::Memory { asked, free, total, largest: Vec::new() });
            }
            other => check("cuMemAlloc", other)?,
        };
        Ok(DeviceBuffer { device: device.clone(), address, len })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated by `new`; the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Page-locked host memory.
#[derive(Debug)]
pub(crate) struct Pinned {
    device: Arc<Device>,
    start: *mut u8,
    len: usize,
}

// SAFETY: it owns its memory; its session rules who uses it.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `len` zeros.
    pub(super) fn new(device: &Arc<Device>, len: usize) -> Result<Pinned, CudaError> {
        device.bind()?;
        // Without flags: write-combined memory, cudarc's default, is slow to read.
        // SAFETY: freed when this value goes.
        let start = check("cuMemHostAlloc", unsafe { result::malloc_host(len.max(1), 0) })?.cast::<u8>();
        // SAFETY: just allocated with at least this length.
        unsafe { start.write_bytes(0, len) };
        Ok(Pinned { device: device.clone(), start, len })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated by `new`.
            let _ = unsafe { result::free_host(self.start.cast()) };
        }
    }
}
