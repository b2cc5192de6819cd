//! Kernels of a program: compiled in parallel or from the cache, loaded, and ready to be launched.

use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute};
use egret_program::{CudaCode, Image, Kernel, KernelBody, Program, Step};

use super::cache::Cache;
use super::device::Device;
use super::driver::check;
use super::error::CudaError;
use super::nvrtc::{Nvrtc, NvrtcError};
use crate::cpu::bind::every_step;

/// Shared memory that needs no leave.
const FREE_SHARED_BYTES: u32 = 48 * 1024;

/// What compiling the kernels of a program took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompileReport {
    /// Kernels that NVRTC compiled.
    pub compiled: usize,
    /// Kernels from the cache.
    pub cached: usize,
    /// Whether the cache had the program as a whole.
    pub whole: bool,
    /// Time from the first to the last.
    pub time: Duration,
}

/// Where a kernel's image is in the cache.
///
/// # Errors
/// No NVRTC: its version is part of what an image depends on.
pub fn cache_key(code: &CudaCode, arch: &str, image: Image) -> Result<u128, NvrtcError> {
    let (major, minor) = Nvrtc::get()?.version();
    let kind: &[u8] = match image {
        Image::Cubin => b"cubin",
        Image::Ptx => b"ptx",
    };
    let version = [major.to_le_bytes(), minor.to_le_bytes()].concat();
    Ok(Cache::key(&[code.source.as_bytes(), kind, arch.as_bytes(), &version]))
}

/// The image of each kernel of a program, by number; what no CUDA code is has none.
///
/// # Errors
/// [`CudaError::Compile`] where there is no NVRTC, or it refuses a kernel.
pub fn compile(
    program: &Program,
    arch: &str,
    image: Image,
    cache: &Cache,
) -> Result<(Vec<Option<Vec<u8>>>, CompileReport), CudaError> {
    let start = Instant::now();
    let keys = for_each(program, |_, code| cache_key(code, arch, image))?;
    let count = keys.iter().flatten().count();
    let listed: Vec<[u8; 16]> = keys.iter().flatten().map(|key| key.to_le_bytes()).collect();
    let key = Cache::key(&listed.iter().map(<[u8; 16]>::as_slice).collect::<Vec<_>>());
    // one kernel is an entry already
    let together = count > 1;
    if together && let Some(images) = cache.get(key).and_then(|bytes| unpack(&bytes, &keys)) {
        let report = CompileReport { compiled: 0, cached: count, whole: true, time: start.elapsed() };
        return Ok((images, report));
    }
    let made = for_each(program, |kernel, code| one(kernel, code, arch, image, cache))?;
    let hits = made.iter().flatten().filter(|(_, hit)| *hit).count();
    let images: Vec<Option<Vec<u8>>> = made.into_iter().map(|made| made.map(|(bytes, _)| bytes)).collect();
    if together {
        let (major, minor) = nvrtc_version()?;
        let about = format!("a program of {count} kernels for {arch} by NVRTC {major}.{minor}");
        cache.put(key, &about, &pack(&images));
    }
    let report = CompileReport { compiled: count - hits, cached: hits, whole: false, time: start.elapsed() };
    Ok((images, report))
}

fn nvrtc_version() -> Result<(i32, i32), CudaError> {
    let failed = |source: NvrtcError| CudaError::Compile {
        kernel: String::new(),
        origin: String::new(),
        source: Box::new(source),
    };
    Ok(Nvrtc::get().map_err(failed)?.version())
}

/// The images of a program, one after the other, each after its length.
fn pack(images: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(images.iter().flatten().map(|image| image.len() + 8).sum());
    for image in images.iter().flatten() {
        bytes.extend((image.len() as u64).to_le_bytes());
        bytes.extend(image);
    }
    bytes
}

/// What [`pack`] packed, for the kernels that have code; `None` of anything else.
fn unpack(bytes: &[u8], kernels: &[Option<u128>]) -> Option<Vec<Option<Vec<u8>>>> {
    let mut rest = bytes;
    let mut images = Vec::with_capacity(kernels.len());
    for kernel in kernels {
        if kernel.is_none() {
            images.push(None);
            continue;
        }
        let (len, after) = rest.split_first_chunk::<8>()?;
        let (image, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        images.push(Some(image.to_vec()));
        rest = after;
    }
    rest.is_empty().then_some(images)
}

/// Does something with the code of every CUDA kernel of a program, on all processors; the results by kernel, or what went
/// wrong with the first that failed.
fn for_each<T: Send>(
    program: &Program,
    work: impl Fn(&Kernel, &CudaCode) -> Result<T, NvrtcError> + Sync,
) -> Result<Vec<Option<T>>, CudaError> {
    let count = program.kernels.len();
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<T, NvrtcError>)>> = Mutex::new(Vec::with_capacity(count));
    let some = || {
        loop {
            let at = next.fetch_add(1, Relaxed);
            let Some(kernel) = program.kernels.get(at) else { return };
            let KernelBody::Cuda(code) = &kernel.body else { continue };
            let result = work(kernel, code);
            if result.is_err() {
                // the rest need not be tried
                next.store(count, Relaxed);
            }
            done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(some);
        }
        some();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    for (at, result) in done {
        results[at] = Some(result.map_err(|source| CudaError::Compile {
            kernel: program.kernels[at].name.clone(),
            origin: origin(program, at),
            source: Box::new(source),
        })?);
    }
    Ok(results)
}

/// What NVRTC says of a kernel, and what follows from that.
#[derive(Clone, Debug)]
pub struct KernelStats {
    /// Its number in the program.
    pub kernel: usize,
    /// Threads of a block.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
    /// Bytes of stack of a thread.
    pub stack_bytes: u32,
    /// Bytes that are stored and loaded because registers ran out.
    pub spill_bytes: u32,
    /// Blocks that a multiprocessor holds at once.
    pub blocks: u32,
    /// Its PTX.
    pub ptx: String,
}

/// Registers of a multiprocessor, from 8.0 on, and of a warp those in units of which they are given.
const REGISTERS: u32 = 65_536;
const REGISTER_UNIT: u32 = 256;
/// Bytes of shared memory that the system takes of each block.
const SYSTEM_SHARED_BYTES: u32 = 1024;

/// Compiles the kernels of a program for an architecture, and tells what they need; `shared_bytes` is what a block may have
/// of shared memory. No GPU is needed, and no cache is used.
///
/// # Errors
/// [`CudaError::Compile`] where there is no NVRTC, or it refuses a kernel.
pub fn stats(program: &Program, arch: &str, shared_bytes: u32) -> Result<Vec<KernelStats>, CudaError> {
    // of a multiprocessor; 8.6 and 8.9 hold less
    let most_threads = if matches!(arch, "sm_86" | "sm_89" | "sm_120") { 1536 } else { 2048 };
    let made = for_each(program, |kernel, code| {
        let made = Nvrtc::get()?.compile(&code.source, &kernel.name, arch, &[])?;
        let found = made.kernels.into_iter().next().unwrap_or_default();
        let threads = code.threads.iter().product::<u32>().max(1);
        let shared = found.shared_bytes.saturating_add(code.shared_bytes);
        let warp_registers = (32 * found.registers.max(1)).next_multiple_of(REGISTER_UNIT);
        let by_registers = REGISTERS / warp_registers / threads.div_ceil(32);
        let by_shared = (shared_bytes + SYSTEM_SHARED_BYTES) / (shared + SYSTEM_SHARED_BYTES);
        let blocks = by_registers.min(by_shared).min(most_threads / threads).min(32);
        Ok(KernelStats {
            kernel: 0,
            threads,
            registers: found.registers,
            shared_bytes: shared,
            stack_bytes: found.stack_bytes,
            spill_bytes: found.spill_bytes,
            blocks,
            ptx: made.ptx,
        })
    })?;
    let numbered = made.into_iter().enumerate().filter_map(|(i, stats)| Some(KernelStats { kernel: i, ..stats? }));
    Ok(numbered.collect())
}

/// A kernel's image, and whether the cache had it.
fn one(
    kernel: &Kernel,
    code: &CudaCode,
    arch: &str,
    image: Image,
    cache: &Cache,
) -> Result<(Vec<u8>, bool), NvrtcError> {
    let nvrtc = Nvrtc::get()?;
    let key = cache_key(code, arch, image)?;
    if let Some(bytes) = cache.get(key) {
        return Ok((bytes, true));
    }
    let made = nvrtc.compile(&code.source, &kernel.name, arch, &[])?;
    let bytes = match image {
        Image::Cubin => made.image,
        Image::Ptx => made.ptx.into_bytes(),
    };
    let (major, minor) = nvrtc.version();
    cache.put(key, &format!("{} ({}) for {arch} by NVRTC {major}.{minor}", kernel.name, kernel.family), &bytes);
    Ok((bytes, false))
}

/// The nodes that a kernel computes where it is first launched.
fn origin(program: &Program, kernel: usize) -> String {
    every_step(&program.prepare)
        .chain(every_step(&program.steps))
        .find_map(|step| match step {
            Step::Launch(launch) if launch.kernel.0 as usize == kernel => Some(launch.origin.clone()),
            _ => None,
        })
        .unwrap_or_default()
}

/// A function that is loaded.
#[derive(Debug)]
pub(super) struct Function {
    pub name: String,
    raw: sys::CUfunction,
    threads: [u32; 3],
    shared_bytes: u32,
}

/// The functions of a program on a GPU.
#[derive(Debug)]
pub(super) struct Functions {
    device: Arc<Device>,
    modules: Vec<sys::CUmodule>,
    /// By kernel.
    functions: Vec<Option<Function>>,
}

// SAFETY: modules and functions may be used by any thread whose context is the device's.
unsafe impl Send for Functions {}
// SAFETY: as above; they never change.
unsafe impl Sync for Functions {}

impl Functions {
    /// Loads the images of a program.
    pub(super) fn load(
        device: &Arc<Device>,
        program: &Program,
        images: &[Option<Vec<u8>>],
    ) -> Result<Functions, CudaError> {
        device.bind()?;
        let mut all = Functions { device: device.clone(), modules: Vec::new(), functions: Vec::new() };
        for (kernel, image) in program.kernels.iter().zip(images) {
            let (KernelBody::Cuda(code), Some(image)) = (&kernel.body, image) else {
                all.functions.push(None);
                continue;
            };
            // text ends with NUL; to a CUBIN one more byte means nothing
            let mut image = image.clone();
            image.push(0);
            // SAFETY: an image that NVRTC made, alive during the call.
            let module = match unsafe { result::module::load_data(image.as_ptr().cast()) } {
                Err(DriverError(
                    sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
                    | sys::CUresult::CUDA_ERROR_INVALID_IMAGE
                    | sys::CUresult::CUDA_ERROR_INVALID_PTX
                    | sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
                )) => {
                    let detail = super::stand_in::last_fault();
                    let why = format!("the driver does not take its code{detail}; a newer driver may");
                    return Err(CudaError::Launch { kernel: kernel.name.clone(), why });
                }
                other => check("cuModuleLoadData", other)?,
            };
            all.modules.push(module);
            let name = CString::new(kernel.name.as_str()).unwrap_or_default();
            // SAFETY: the module was just loaded.
            let raw = check("cuModuleGetFunction", unsafe { result::module::get_function(module, name) })?;
            if code.shared_bytes > FREE_SHARED_BYTES {
                let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                let bytes = i32::try_from(code.shared_bytes).unwrap_or(i32::MAX);
                // SAFETY: the function was just found.
                let set = unsafe { result::function::set_function_attribute(raw, attribute, bytes) };
                check("cuFuncSetAttribute", set)?;
            }
            let (threads, shared_bytes) = (code.threads, code.shared_bytes);
            all.functions.push(Some(Function { name: kernel.name.clone(), raw, threads, shared_bytes }));
        }
        Ok(all)
    }

    /// The function of a kernel.
    pub(super) fn get(&self, kernel: usize) -> Option<&Function> {
        self.functions.get(kernel)?.as_ref()
    }
}

impl Drop for Functions {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            for module in &self.modules {
                // SAFETY: loaded once, and nothing of it runs any more: sessions wait for what they queue.
                let _ = unsafe { result::module::unload(*module) };
            }
        }
    }
}

impl Function {
    /// Queues a launch.
    ///
    /// # Safety
    /// The values are the function's parameters: pointers to memory that is valid for what it touches, dims, the status
    /// word's address.
    pub(super) unsafe fn launch(
        &self,
        stream: sys::CUstream,
        blocks: usize,
        values: &mut [u64],
        pointers: &mut Vec<*mut c_void>,
    ) -> Result<(), CudaError> {
        let Some(blocks) = u32::try_from(blocks).ok().filter(|n| *n <= i32::MAX as u32) else {
            let why = format!("{blocks} blocks, of at most {}", i32::MAX);
            return Err(CudaError::Launch { kernel: self.name.clone(), why });
        };
        if blocks == 0 {
            return Ok(());
        }
        pointers.clear();
        pointers.extend(values.iter_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>()));
        let [x, y, z] = self.threads;
        let (grid, threads) = ((blocks, 1, 1), (x, y, z));
        // SAFETY: the caller's; the driver copies the parameters before it returns.
        let queued = unsafe { result::launch_kernel(self.raw, grid, threads, self.shared_bytes, stream, pointers) };
        match queued {
            Err(DriverError(
                code @ (sys::CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES | sys::CUresult::CUDA_ERROR_INVALID_VALUE),
            )) => {
                let why = format!("{code:?}: {} bytes of shared memory, {x} × {y} × {z} threads", self.shared_bytes);
                Err(CudaError::Launch { kernel: self.name.clone(), why })
            }
            other => check("cuLaunchKernel", other),
        }
    }
}
