//! Kernels of a program: what they need, and the functions that are loaded and ready to be launched.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute};
use egret_program::{KernelBody, Program};

use super::device::Device;
use super::driver::check;
use super::error::CudaError;
use super::images::{Images, for_each};
use super::nvrtc::Nvrtc;

/// Shared memory that needs no leave.
const FREE_SHARED_BYTES: u32 = 48 * 1024;

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
    pub(super) fn load(device: &Arc<Device>, program: &Program, images: &Images) -> Result<Functions, CudaError> {
        device.bind()?;
        let mut all = Functions { device: device.clone(), modules: Vec::new(), functions: Vec::new() };
        // by image
        let mut loaded: Vec<Option<sys::CUmodule>> = vec![None; images.all().len()];
        for (at, kernel) in program.kernels.iter().enumerate() {
            let (KernelBody::Cuda(code), Some(image)) = (&kernel.body, images.of(at)) else {
                all.functions.push(None);
                continue;
            };
            let module = match loaded[image] {
                Some(module) => module,
                None => {
                    let names = || images.kernels(image).map(|kernel| program.kernels[kernel].name.as_str());
                    let module = load_module(&images.all()[image], || names().collect::<Vec<_>>().join(", "))?;
                    all.modules.push(module);
                    loaded[image] = Some(module);
                    module
                }
            };
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

/// Loads an image of kernels that have these names.
fn load_module(image: &[u8], names: impl FnOnce() -> String) -> Result<sys::CUmodule, CudaError> {
    // text ends with NUL; to a CUBIN one more byte means nothing
    let image = [image, &[0]].concat();
    // SAFETY: an image that NVRTC made, alive during the call.
    match unsafe { result::module::load_data(image.as_ptr().cast()) } {
        Err(DriverError(
            sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | sys::CUresult::CUDA_ERROR_INVALID_IMAGE
            | sys::CUresult::CUDA_ERROR_INVALID_PTX
            | sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
        )) => {
            let detail = super::stand_in::last_fault();
            let why = format!("the driver does not take its code{detail}; a newer driver may");
            Err(CudaError::Launch { kernel: names(), why })
        }
        other => check("cuModuleLoadData", other),
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
