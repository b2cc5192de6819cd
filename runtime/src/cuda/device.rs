//! GPUs.

use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use egret_program::{DeviceDescription, Image, Target};

use super::driver::{check, driver_version, load};
use super::error::CudaError;
use super::nvrtc::{Nvrtc, NvrtcError};

/// A GPU that is ready for use; it may be shared by threads and sessions.
#[derive(Debug)]
pub struct Device {
    ordinal: usize,
    raw: sys::CUdevice,
    context: sys::CUcontext,
    name: String,
    capability: (i32, i32),
    cores: u32,
    memory_bytes: usize,
    image: Image,
}

// SAFETY: a context may be made current in any thread.
unsafe impl Send for Device {}
// SAFETY: as above; the driver locks what threads share.
unsafe impl Sync for Device {}

impl Device {
    /// GPU number `ordinal`.
    ///
    /// # Errors
    /// No driver, one that is too old, no such GPU.
    pub fn open(ordinal: usize) -> Result<Arc<Device>, CudaError> {
        load()?;
        Device::with_image(ordinal, Image::Cubin)
    }

    /// A GPU that is simulated: a driver of ours stands in for NVIDIA's. It has what the description says.
    ///
    /// # Errors
    /// [`CudaError::NoStandIn`] where that driver is not built, or the process uses another one already.
    #[cfg(feature = "sim")]
    pub fn simulated(description: &DeviceDescription) -> Result<Arc<Device>, CudaError> {
        let ordinal = super::stand_in::add(description)?;
        Device::with_image(ordinal, Image::Ptx)
    }

    /// Takes a simulated GPU away from the process, to see what becomes of the rest; a real one stays.
    #[cfg(feature = "sim")]
    pub fn unplug(&self) {
        if self.image == Image::Ptx {
            super::stand_in::lose(self.ordinal);
        }
    }

    fn with_image(ordinal: usize, image: Image) -> Result<Arc<Device>, CudaError> {
        let count = check("cuDeviceGetCount", result::device::get_count())?.max(0) as usize;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let raw = check("cuDeviceGet", result::device::get(ordinal as i32))?;
        // SAFETY: the driver just gave this device.
        let attribute = |which| check("cuDeviceGetAttribute", unsafe { result::device::get_attribute(raw, which) });
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let cores = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let name = check("cuDeviceGetName", result::device::get_name(raw))?;
        // SAFETY: as above.
        let memory_bytes = check("cuDeviceTotalMem", unsafe { result::device::total_mem(raw) })?;
        // SAFETY: as above; released when this value goes.
        let context = check("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(raw) })?;
        let (capability, cores) = ((major, minor), cores.max(1) as u32);
        Ok(Arc::new(Device { ordinal, raw, context, name, capability, cores, memory_bytes, image }))
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Its name, as the driver gives it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its kernels are compiled and launched by: NVRTC and the driver with their versions, and the GPU.
    ///
    /// # Errors
    /// No NVRTC, or a driver that does not tell.
    pub fn versions(&self) -> Result<String, CudaError> {
        let failed = |source: NvrtcError| CudaError::Compile {
            kernel: String::new(),
            origin: String::new(),
            source: Box::new(source),
        };
        let (major, minor) = Nvrtc::get().map_err(failed)?.version();
        let driver = driver_version()?;
        Ok(format!("NVRTC {major}.{minor}, driver {}.{}, {}", driver / 1000, driver % 1000 / 10, self.name))
    }

    /// Bytes of its memory.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// What its driver is given of a kernel.
    pub fn image(&self) -> Image {
        self.image
    }

    /// The architecture that kernels are compiled for: from 9.0 on with what that generation alone has.
    pub fn arch(&self) -> String {
        let (major, minor) = self.capability;
        let own = if major >= 9 { "a" } else { "" };
        format!("sm_{major}{minor}{own}")
    }

    /// What the compiler knows of it: the shipped description that is closest, with what this GPU tells of itself.
    pub fn description(&self) -> DeviceDescription {
        let shipped: Vec<_> =
            DeviceDescription::names().filter_map(|name| DeviceDescription::named(name).ok()).collect();
        let rank = |d: &DeviceDescription| {
            let arch = d.arch().and_then(number)?;
            let own = self.capability.0 * 10 + self.capability.1;
            // a later generation is described by what its code may use
            (arch <= own).then_some((arch, std::cmp::Reverse(d.cores.abs_diff(self.cores))))
        };
        let best = shipped.into_iter().filter_map(|d| Some((rank(&d)?, d))).max_by_key(|(rank, _)| *rank);
        let mut description = best.map_or_else(oldest, |(_, d)| d);
        description.cores = self.cores;
        description.memory_bytes = self.memory_bytes as u64;
        if let Target::Cuda { image, .. } = &mut description.target {
            *image = self.image;
        }
        description
    }

    /// Whether it runs what was compiled for an architecture.
    pub(super) fn runs(&self, arch: &str) -> bool {
        let own = self.capability.0 * 10 + self.capability.1;
        // what is one generation's own runs on that alone
        number(arch).is_some_and(|needed| if arch.ends_with('a') { needed == own } else { needed <= own })
    }

    /// Makes it the current one of this thread.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: retained until this value goes.
        check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained once, by `with_image`.
        let _ = unsafe { result::primary_ctx::release(self.raw) };
    }
}

/// 90 of `sm_90a`.
fn number(arch: &str) -> Option<i32> {
    arch.strip_prefix("sm_")?.trim_end_matches('a').parse().ok()
}

/// Of a GPU older than any that is described: its kernels will be refused by name when they are compiled.
fn oldest() -> DeviceDescription {
    let target = Target::Cuda {
        arch: "sm_80".into(),
        shared_bytes: 49_152,
        registers: 65_536,
        matrix_gflops: 0.0,
        image: Image::Cubin,
    };
    DeviceDescription {
        name: "cuda".into(),
        target,
        cores: 1,
        core_gflops: 100.0,
        memory_gbps: 300.0,
        cache_gbps: 1000.0,
        l1_bytes: 49_152,
        l2_bytes: 4 << 20,
        l3_bytes: 0,
        memory_bytes: 0,
        launch_us: 3.0,
    }
}
