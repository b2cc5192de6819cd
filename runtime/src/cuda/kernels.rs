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
use super::nvrtc::Nvrtc;
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
    /// Time from the first to the last.
    pub time: Duration,
}

/// Where a kernel's image is in the cache.
///
/// # Errors
/// No NVRTC: its version is part of what an image depends on.
pub fn cache_key(code: &CudaCode, arch: &str, image: Image) -> Result<u128, super::nvrtc::NvrtcError> {
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
    let count = program.kernels.len();
    let images: Mutex<Vec<Option<Vec<u8>>>> = Mutex::new(vec![None; count]);
    let failed: Mutex<Option<(usize, CudaError)>> = Mutex::new(None);
    let (next, compiled, cached) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        loop {
            let at = next.fetch_add(1, Relaxed);
            let Some(kernel) = program.kernels.get(at) else { return };
            let KernelBody::Cuda(code) = &kernel.body else { continue };
            match one(kernel, code, arch, image, cache) {
                Ok((bytes, hit)) => {
                    (if hit { &cached } else { &compiled }).fetch_add(1, Relaxed);
                    images.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(bytes);
                }
                Err(source) => {
                    let origin = origin(program, at);
                    let (kernel, source) = (kernel.name.clone(), Box::new(source));
                    let error = CudaError::Compile { kernel, origin, source };
                    let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|(have, _)| at < *have) {
                        *first = Some((at, error));
                    }
                    // the rest need not be tried
                    next.store(count, Relaxed);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    if let Some((_, error)) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let images = images.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (compiled, cached) = (compiled.into_inner(), cached.into_inner());
    Ok((images, CompileReport { compiled, cached, time: start.elapsed() }))
}

/// A kernel's image, and whether the cache had it.
fn one(
    kernel: &Kernel,
    code: &CudaCode,
    arch: &str,
    image: Image,
    cache: &Cache,
) -> Result<(Vec<u8>, bool), super::nvrtc::NvrtcError> {
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
