//! Functions of memory: `cuMem…`, `cuMemcpy…`, `cuMemset…`.

use std::ffi::{c_int, c_uchar, c_uint, c_void};

use crate::api::run;
use crate::driver::{Driver, driver};
use crate::queue::{Source, Work};
use crate::status::*;

/// What memory holds that nothing wrote: NaN in every float type.
const UNWRITTEN: u8 = 0xff;

/// Bytes that an allocation takes: the driver hands out pages.
fn granules(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(512)
}

impl Driver {
    fn allocate(&mut self, bytes: usize) -> Outcome<u64> {
        let gpu = self.gpu()?;
        self.forbid_while_recording(gpu)?;
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let taken = granules(bytes);
        let free = self.gpus[gpu].memory_bytes.saturating_sub(self.gpus[gpu].used);
        if taken > free {
            return Err(OUT_OF_MEMORY);
        }
        // the host has to have it too
        let mut data: Vec<u8> = Vec::new();
        data.try_reserve_exact(bytes).map_err(|_| OUT_OF_MEMORY)?;
        data.resize(bytes, UNWRITTEN);
        self.gpus[gpu].used += taken;
        let name = self.handle();
        let address = self.memory.allocate(&format!("allocation {name:x}"), data);
        self.allocations.insert(address, (gpu, taken));
        Ok(address)
    }

    fn source(&self, stream: u64, from: usize, bytes: usize) -> Source {
        let pinned = self.pinned.iter().any(|(start, len)| from >= *start && from + bytes <= start + len);
        let recording = self.streams.get(&stream).is_some_and(|stream| stream.capture.is_some());
        if pinned || recording {
            return Source::Late(from, bytes);
        }
        // SAFETY: the caller's: the memory is valid during the call.
        Source::Bytes(unsafe { std::slice::from_raw_parts(from as *const u8, bytes) }.to_vec())
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Status {
    run(|| {
        let allocated = driver().allocate(bytes)?;
        // SAFETY: the caller's: room for an address.
        unsafe { *address = allocated };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> Status {
    run(|| {
        let mut driver = driver();
        let gpu = driver.gpu()?;
        driver.forbid_while_recording(gpu)?;
        let (gpu, taken) = *driver.allocations.get(&address).ok_or(INVALID_VALUE)?;
        driver.finish_all(gpu)?;
        driver.allocations.remove(&address);
        driver.memory.free(address);
        driver.gpus[gpu].used -= taken;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    run(|| {
        let driver = driver();
        let gpu = &driver.gpus[driver.gpu()?];
        // SAFETY: the caller's: room for both.
        unsafe {
            *free = gpu.memory_bytes.saturating_sub(gpu.used) as usize;
            *total = gpu.memory_bytes as usize;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(start: *mut *mut c_void, bytes: usize, _flags: c_uint) -> Status {
    run(|| {
        let mut driver = driver();
        driver.gpu()?;
        let layout = std::alloc::Layout::from_size_align(bytes.max(1), 4096).map_err(|_| INVALID_VALUE)?;
        // SAFETY: the size is not zero.
        let memory = unsafe { std::alloc::alloc(layout) };
        if memory.is_null() {
            return Err(OUT_OF_MEMORY);
        }
        driver.pinned.push((memory as usize, bytes.max(1)));
        // SAFETY: the caller's: room for a pointer.
        unsafe { *start = memory.cast() };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeHost(start: *mut c_void) -> Status {
    run(|| {
        let mut driver = driver();
        let at = driver.pinned.iter().position(|(have, _)| *have == start as usize).ok_or(INVALID_VALUE)?;
        for gpu in 0..driver.gpus.len() {
            // what is lost uses no memory any more
            if driver.gpus[gpu].lost.is_none() {
                driver.finish_all(gpu)?;
            }
        }
        let (_, bytes) = driver.pinned.swap_remove(at);
        let layout = std::alloc::Layout::from_size_align(bytes, 4096).map_err(|_| INVALID_VALUE)?;
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(start.cast(), layout) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: u64) -> Status {
    run(|| {
        let mut driver = driver();
        let from = driver.source(stream, from as usize, bytes);
        driver.submit(stream, Work::Upload { to, from })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: u64) -> Status {
    run(|| driver().submit(stream, Work::Download { to: to as usize, from, bytes }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> Status {
    run(|| driver().submit(stream, Work::Copy { to, from, bytes }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: c_uchar, bytes: usize, stream: u64) -> Status {
    run(|| driver().submit(stream, Work::Fill { to, value, bytes }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> Status {
    run(|| {
        let mut driver = driver();
        let gpu = driver.gpu()?;
        driver.forbid_while_recording(gpu)?;
        // SAFETY: the caller's: the memory is valid during the call.
        let from = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) };
        driver.memory.write(to, bytes).map_err(|_| INVALID_VALUE)?.copy_from_slice(from);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> Status {
    run(|| {
        let mut driver = driver();
        let gpu = driver.gpu()?;
        driver.forbid_while_recording(gpu)?;
        let from = driver.memory.read(from, bytes).map_err(|_| INVALID_VALUE)?;
        // SAFETY: the caller's: the memory is valid during the call.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.cast(), bytes) };
        Ok(())
    })
}

/// `cuFuncGetAttribute`: what is asked for most, as of a plain kernel.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, _attribute: c_int, function: u64) -> Status {
    run(|| {
        let driver = driver();
        let function = driver.functions.get(&function).ok_or(INVALID_HANDLE)?;
        // SAFETY: the caller's: room for an integer.
        unsafe { *value = function.dynamic_bytes };
        Ok(())
    })
}
