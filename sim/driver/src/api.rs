//! Functions of devices, contexts, modules, streams, events and launches, and those that NVIDIA's driver does not have.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use egret_sim::Module;

use crate::driver::{Driver, Function, Gpu, Stream, current, driver, set_current};
use crate::queue::Work;
use crate::status::*;

/// The version of the driver's API: 13.0, unless `EGRET_SIM_VERSION` says otherwise.
const VERSION: c_int = 13_000;
/// Bytes of dynamic shared memory that need no leave.
const FREE_SHARED_BYTES: i32 = 48 * 1024;
/// Bytes of parameters.
const MOST_PARAM_BYTES: usize = 4096;

/// Runs a function's body, and gives its result as the driver does.
pub(crate) fn run(body: impl FnOnce() -> Outcome) -> Status {
    body().err().unwrap_or(SUCCESS)
}

/// Adds a GPU; its number, or −1 where it cannot be.
#[unsafe(no_mangle)]
unsafe extern "C" fn egret_sim_add_device(
    name: *const c_char,
    major: c_int,
    minor: c_int,
    cores: c_int,
    shared_bytes: c_int,
    memory_bytes: u64,
) -> c_int {
    if name.is_null() || major < 8 || minor < 0 || cores < 1 || shared_bytes < FREE_SHARED_BYTES {
        return -1;
    }
    // SAFETY: the caller's: it ends with NUL.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    let gpu =
        Gpu { name, capability: (major, minor), cores, shared_bytes, memory_bytes, used: 0, clock: 0, lost: None };
    let mut driver = driver();
    driver.gpus.push(gpu);
    driver.gpus.len() as c_int - 1
}

/// Loses a GPU, as a cable that falls out would.
#[unsafe(no_mangle)]
extern "C" fn egret_sim_lose_device(ordinal: c_int) -> Status {
    run(|| {
        let mut driver = driver();
        let gpu = usize::try_from(ordinal).ok().filter(|n| *n < driver.gpus.len()).ok_or(INVALID_DEVICE)?;
        driver.lose(gpu, LAUNCH_FAILED, "the GPU was taken away".into());
        Ok(())
    })
}

/// What the last fault was, as at most `room` bytes of text; how many there are.
#[unsafe(no_mangle)]
unsafe extern "C" fn egret_sim_last_fault(text: *mut c_char, room: usize) -> usize {
    let driver = driver();
    let len = driver.fault.len().min(room);
    // SAFETY: the caller's: room for as many.
    unsafe { std::ptr::copy_nonoverlapping(driver.fault.as_ptr(), text.cast(), len) };
    len
}

/// How many kernels have run.
#[unsafe(no_mangle)]
extern "C" fn egret_sim_launches() -> u64 {
    crate::driver::launches()
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> Status {
    run(|| if driver().gpus.is_empty() { Err(NO_DEVICE) } else { Ok(()) })
}

/// NVRTC asks for tables of the driver's own when it finds one: there are none.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetExportTable(table: *mut *const c_void, _id: *const c_void) -> Status {
    if !table.is_null() {
        // SAFETY: the caller's: room for a pointer.
        unsafe { *table = std::ptr::null() };
    }
    NOT_FOUND
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Status {
    let named = std::env::var("EGRET_SIM_VERSION").ok().and_then(|v| v.parse().ok());
    // SAFETY: the caller's: room for an integer.
    unsafe { *version = named.unwrap_or(VERSION) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(status: Status, text: *mut *const c_char) -> Status {
    // SAFETY: the caller's: room for a pointer.
    unsafe { *text = name(status).as_ptr() };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(status: Status, text: *mut *const c_char) -> Status {
    // SAFETY: the caller's.
    unsafe { cuGetErrorName(status, text) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    // SAFETY: the caller's: room for an integer.
    unsafe { *count = driver().gpus.len() as c_int };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Status {
    run(|| {
        known(&driver(), ordinal)?;
        // SAFETY: the caller's: room for an integer.
        unsafe { *device = ordinal };
        Ok(())
    })
}

fn known(driver: &Driver, device: c_int) -> Outcome<usize> {
    usize::try_from(device).ok().filter(|n| *n < driver.gpus.len()).ok_or(INVALID_DEVICE)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(text: *mut c_char, room: c_int, device: c_int) -> Status {
    run(|| {
        let driver = driver();
        let name = format!("simulated {}", driver.gpus[known(&driver, device)?].name);
        let len = name.len().min(usize::try_from(room).unwrap_or(0).saturating_sub(1));
        // SAFETY: the caller's: `room` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(name.as_ptr(), text.cast(), len);
            *text.add(len) = 0;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> Status {
    run(|| {
        let driver = driver();
        // SAFETY: the caller's: room for a size.
        unsafe { *bytes = driver.gpus[known(&driver, device)?].memory_bytes as usize };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> Status {
    run(|| {
        let driver = driver();
        let gpu = &driver.gpus[known(&driver, device)?];
        // numbers of `CUdevice_attribute`
        let found = match attribute {
            1 => 1024,              // threads of a block
            2 | 3 => 1024,          // along x, y
            4 => 64,                // along z
            5 => i32::MAX,          // blocks along x
            6 | 7 => 65_535,        // along y, z
            8 => FREE_SHARED_BYTES, // shared memory of a block
            10 => 32,               // threads of a warp
            12 | 82 => 65_536,      // registers of a block, of a multiprocessor
            16 => gpu.cores,
            39 => 2048, // threads of a multiprocessor
            75 => gpu.capability.0,
            76 => gpu.capability.1,
            97 => gpu.shared_bytes, // shared memory of a block, when asked for
            _ => 0,
        };
        // SAFETY: the caller's: room for an integer.
        unsafe { *value = found };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> Status {
    run(|| {
        let gpu = known(&driver(), device)?;
        // SAFETY: the caller's: room for a handle.
        unsafe { *context = gpu + 1 };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Status {
    run(|| known(&driver(), device).map(|_| ()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: usize) -> Status {
    if context > driver().gpus.len() {
        return INVALID_CONTEXT;
    }
    set_current(context);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut usize) -> Status {
    // SAFETY: the caller's: room for a handle.
    unsafe { *context = current() };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Status {
    run(|| {
        let mut driver = driver();
        let gpu = driver.gpu()?;
        driver.forbid_while_recording(gpu)?;
        driver.finish_all(gpu)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut u64, image: *const c_void) -> Status {
    run(|| {
        let mut driver = driver();
        let gpu = driver.gpu()?;
        // SAFETY: the caller's: a CUBIN, which is longer than four bytes, or text that ends with NUL.
        let text = unsafe {
            if std::slice::from_raw_parts(image.cast::<u8>(), 4) == b"\x7fELF" {
                driver.fault = "a CUBIN: simulated GPUs run PTX".into();
                return Err(NO_BINARY_FOR_GPU);
            }
            CStr::from_ptr(image.cast())
        };
        let text = text.to_str().map_err(|_| INVALID_IMAGE)?;
        let target = text.lines().find_map(|line| line.trim().strip_prefix(".target sm_"));
        let target = target.map(|t| t.split(',').next().unwrap_or(t).trim()).ok_or(INVALID_IMAGE)?;
        let (major, minor) = driver.gpus[gpu].capability;
        let (number, own) = (target.trim_end_matches('a').parse::<i32>().map_err(|_| INVALID_PTX)?, 10 * major + minor);
        // what is one generation's own runs on that alone
        if number > own || target.ends_with('a') && number != own {
            return Err(NO_BINARY_FOR_GPU);
        }
        let parsed = match Module::parse(text) {
            Ok(parsed) => parsed,
            Err(error) => {
                driver.fault = error.to_string();
                return Err(INVALID_PTX);
            }
        };
        let handle = driver.handle();
        driver.modules.insert(handle, (gpu, parsed));
        // SAFETY: the caller's: room for a handle.
        unsafe { *module = handle };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: u64) -> Status {
    run(|| {
        let mut driver = driver();
        let gpu = driver.modules.get(&module).ok_or(INVALID_HANDLE)?.0;
        if driver.gpus[gpu].lost.is_none() {
            driver.finish_all(gpu)?;
        }
        driver.modules.remove(&module);
        driver.functions.retain(|_, function| function.module != module);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char) -> Status {
    run(|| {
        let mut driver = driver();
        // SAFETY: the caller's: it ends with NUL.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| NOT_FOUND)?.to_string();
        let (_, loaded) = driver.modules.get(&module).ok_or(INVALID_HANDLE)?;
        loaded.entry(&name).ok_or(NOT_FOUND)?;
        let handle = driver.handle();
        driver.functions.insert(handle, Function { module, name, dynamic_bytes: FREE_SHARED_BYTES });
        // SAFETY: the caller's: room for a handle.
        unsafe { *function = handle };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: u64, attribute: c_int, value: c_int) -> Status {
    run(|| {
        let mut driver = driver();
        let most = driver.gpus[driver.gpu()?].shared_bytes;
        let function = driver.functions.get_mut(&function).ok_or(INVALID_HANDLE)?;
        // 8 of `CUfunction_attribute`: the most bytes of dynamic shared memory
        if attribute == 8 {
            if value < 0 || value > most {
                return Err(INVALID_VALUE);
            }
            function.dynamic_bytes = value;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: u64,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: u64,
    params: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> Status {
    run(|| {
        let mut driver = driver();
        let function = driver.functions.get(&function).ok_or(INVALID_HANDLE)?.clone();
        let (_, module) = driver.modules.get(&function.module).ok_or(INVALID_HANDLE)?;
        let entry = module.entry(&function.name).ok_or(NOT_FOUND)?;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let threads = block.iter().map(|n| u64::from(*n)).product::<u64>();
        let most = u64::from(entry.max_threads().unwrap_or(1024).min(1024));
        let fits = (1..=most).contains(&threads)
            && block[2] <= 64
            && grid.iter().all(|n| *n > 0)
            && grid[0] <= i32::MAX as u32
            && grid[1].max(grid[2]) <= 65_535
            && i64::from(shared) + entry.shared_bytes() as i64
                <= i64::from(function.dynamic_bytes.max(FREE_SHARED_BYTES))
            && entry.params().iter().map(|param| param.bytes).sum::<usize>() <= MOST_PARAM_BYTES;
        if !fits {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller's: a pointer to each parameter, of its size.
        let value = |(i, param): (usize, &egret_sim::Param)| unsafe {
            std::slice::from_raw_parts((*params.add(i)).cast::<u8>(), param.bytes).to_vec()
        };
        let args = entry.params().iter().enumerate().map(value).collect();
        driver.submit(stream, Work::Launch { function, grid, block, shared, args })
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut u64, _flags: c_uint) -> Status {
    run(|| {
        let mut driver = driver();
        let gpu = driver.gpu()?;
        let handle = driver.handle();
        driver.streams.insert(handle, Stream { gpu, ..Stream::default() });
        // SAFETY: the caller's: room for a handle.
        unsafe { *stream = handle };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: u64) -> Status {
    run(|| {
        let mut driver = driver();
        // what was queued is still done
        let done = driver.finish(stream);
        driver.streams.remove(&stream);
        done
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: u64) -> Status {
    run(|| driver().finish(stream))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut u64, _flags: c_uint) -> Status {
    run(|| {
        let mut driver = driver();
        driver.gpu()?;
        let handle = driver.handle();
        driver.events.insert(handle, None);
        // SAFETY: the caller's: room for a handle.
        unsafe { *event = handle };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: u64) -> Status {
    run(|| driver().events.remove(&event).map(|_| ()).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: u64, stream: u64) -> Status {
    run(|| driver().submit(stream, Work::Record(event)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(ms: *mut f32, start: u64, end: u64) -> Status {
    run(|| {
        let driver = driver();
        let at = |event| driver.events.get(&event).ok_or(INVALID_HANDLE)?.ok_or(NOT_READY);
        let (start, end) = (at(start)?, at(end)?);
        // SAFETY: the caller's: room for a number.
        unsafe { *ms = end.saturating_sub(start) as f32 / 1e6 };
        Ok(())
    })
}
