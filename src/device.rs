//! Where programs run.

#[cfg(feature = "cuda")]
use std::sync::{Arc, OnceLock};

use egret_ir::Diagnostic;
use egret_program::{DeviceDescription, Target};
use egret_simd::Isa;
use egret_simd::words::WordUnit;

use crate::error::Result;
use crate::tuner::Tuner;

#[derive(Clone, Debug)]
enum Kind {
    Cpu(Option<DeviceDescription>),
    Interpreter,
    #[cfg(feature = "cuda")]
    Cuda(Arc<Gpu>),
}

/// A GPU that is opened when it is first needed.
#[cfg(feature = "cuda")]
#[derive(Debug)]
struct Gpu {
    which: Which,
    opened: OnceLock<std::result::Result<Arc<egret_runtime::cuda::Device>, egret_runtime::cuda::CudaError>>,
    cache: egret_runtime::cuda::Cache,
}

#[cfg(feature = "cuda")]
#[derive(Debug)]
enum Which {
    Ordinal(usize),
    #[cfg(feature = "sim")]
    Simulated(DeviceDescription),
}

#[cfg(feature = "cuda")]
impl Gpu {
    fn new(which: Which) -> Gpu {
        Gpu { which, opened: OnceLock::new(), cache: egret_runtime::cuda::Cache::standard() }
    }

    fn open(&self) -> Result<Arc<egret_runtime::cuda::Device>> {
        let open = || match &self.which {
            Which::Ordinal(ordinal) => egret_runtime::cuda::Device::open(*ordinal),
            #[cfg(feature = "sim")]
            Which::Simulated(description) => egret_runtime::cuda::Device::simulated(description),
        };
        Ok(self.opened.get_or_init(open).clone().map_err(egret_runtime::RuntimeError::from)?)
    }
}

/// A device, and how many threads sessions on it have.
///
/// ```
/// use egret::Device;
/// assert_eq!(Device::cpu().with_threads(2).name(), "cpu");
/// assert!(Device::interpreter().description().unwrap().is_none());
/// ```
#[derive(Clone, Debug)]
pub struct Device {
    kind: Kind,
    threads: usize,
    tuner: Option<Tuner>,
}

impl Device {
    /// The host's processor, by the instruction set that it has.
    pub fn cpu() -> Device {
        Device { kind: Kind::Cpu(None), threads: 0, tuner: None }
    }

    /// The reference interpreter: slow, and right by definition.
    pub fn interpreter() -> Device {
        Device { kind: Kind::Interpreter, threads: 1, tuner: None }
    }

    /// NVIDIA GPU number `ordinal`.
    ///
    /// # Errors
    /// `E0520` – `E0522` where there is no driver, too old a one, or no such GPU.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize) -> Result<Device> {
        let gpu = Gpu::new(Which::Ordinal(ordinal));
        gpu.open()?;
        Ok(Device { kind: Kind::Cuda(Arc::new(gpu)), threads: 1, tuner: None })
    }

    /// A GPU as described, simulated: slow, but every access to memory is checked. It shares the process with no other kind
    /// of GPU.
    ///
    /// # Errors
    /// `E0528` where the library that stands in for NVIDIA's driver is not beside the program, or the process has loaded
    /// that of NVIDIA.
    #[cfg(feature = "sim")]
    pub fn cuda_sim(description: DeviceDescription) -> Result<Device> {
        let gpu = Gpu::new(Which::Simulated(description));
        gpu.open()?;
        Ok(Device { kind: Kind::Cuda(Arc::new(gpu)), threads: 1, tuner: None })
    }

    /// The same GPU with another cache of compiled kernels; a CPU has none.
    #[cfg(feature = "cuda")]
    pub fn with_cache(self, cache: egret_runtime::cuda::Cache) -> Result<Device> {
        let Kind::Cuda(gpu) = &self.kind else { return Ok(self) };
        let (opened, which) = (gpu.open()?, gpu.which.again());
        let gpu = Gpu { which, opened: OnceLock::from(Ok(opened)), cache };
        Ok(Device { kind: Kind::Cuda(Arc::new(gpu)), ..self })
    }

    /// The GPU and its cache of compiled kernels, if it is one.
    #[cfg(feature = "cuda")]
    pub(crate) fn gpu(&self) -> Result<Option<(Arc<egret_runtime::cuda::Device>, egret_runtime::cuda::Cache)>> {
        match &self.kind {
            Kind::Cuda(gpu) => Ok(Some((gpu.open()?, gpu.cache.clone()))),
            _ => Ok(None),
        }
    }

    /// A processor as described; loading fails where the host is another.
    pub fn described(description: DeviceDescription) -> Device {
        Device { kind: Kind::Cpu(Some(description)), threads: 0, tuner: None }
    }

    /// That many threads; 0: as many as the process may use. Results have the same bits for any number.
    pub fn with_threads(mut self, threads: usize) -> Device {
        self.threads = threads;
        self
    }

    /// Threads; 0: as many as the process may use.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The same device, for which compiling measures schedules. Without a tuner the model chooses all of them, and equal
    /// graphs have equal programs.
    pub fn with_tuner(mut self, tuner: Tuner) -> Device {
        self.tuner = Some(tuner);
        self
    }

    /// Its tuner.
    pub fn tuner(&self) -> Option<&Tuner> {
        self.tuner.as_ref()
    }

    /// Threads of a session.
    pub(crate) fn thread_count(&self) -> usize {
        if self.threads > 0 { self.threads } else { std::thread::available_parallelism().map_or(1, usize::from) }
    }

    /// Whether its times are modelled.
    pub(crate) fn is_simulated(&self) -> bool {
        match &self.kind {
            #[cfg(feature = "sim")]
            Kind::Cuda(gpu) => matches!(gpu.which, Which::Simulated(_)),
            _ => false,
        }
    }

    /// What times on it depend on beside its description.
    ///
    /// # Errors
    /// Those of [`Device::cuda`], and where there is no NVRTC.
    pub(crate) fn environment(&self) -> Result<String> {
        match &self.kind {
            #[cfg(feature = "cuda")]
            Kind::Cuda(gpu) => Ok(gpu.open()?.versions().map_err(egret_runtime::RuntimeError::from)?),
            _ => Ok(format!("{} threads, {}, {}", self.thread_count(), Isa::detect(), egret_simd::processor())),
        }
    }

    /// `cpu`, `cuda` or `interpreter`.
    pub fn name(&self) -> &'static str {
        match self.kind {
            #[cfg(feature = "cuda")]
            Kind::Cuda(_) => "cuda",
            Kind::Cpu(_) => "cpu",
            Kind::Interpreter => "interpreter",
        }
    }

    /// What the compiler knows of it; the interpreter has no compiler.
    ///
    /// # Errors
    /// `E0803` when the host is of an architecture that nothing describes, those of [`Device::cuda`] for a GPU.
    pub fn description(&self) -> Result<Option<DeviceDescription>> {
        match &self.kind {
            Kind::Interpreter => Ok(None),
            #[cfg(feature = "cuda")]
            Kind::Cuda(gpu) => Ok(Some(gpu.open()?.description())),
            Kind::Cpu(Some(description)) => Ok(Some(description.clone())),
            Kind::Cpu(None) if cfg!(target_arch = "x86_64") => {
                let mut host = DeviceDescription::named(&format!("x86-64-{}", Isa::detect()))?;
                if let Target::Cpu { bf16, bytes, .. } = &mut host.target {
                    (*bf16, *bytes) = (WordUnit::bf16().map_or(0.0, WordUnit::rate), WordUnit::bytes().is_some());
                }
                Ok(Some(host))
            }
            Kind::Cpu(None) if cfg!(target_arch = "aarch64") => Ok(Some(DeviceDescription::named("aarch64-neon")?)),
            Kind::Cpu(None) => {
                let message = format!("no description of {} processors is shipped", std::env::consts::ARCH);
                Err(Diagnostic::new("E0803", message).help("use the device `interpreter`").into())
            }
        }
    }
}

#[cfg(feature = "cuda")]
impl Which {
    fn again(&self) -> Which {
        match self {
            Which::Ordinal(ordinal) => Which::Ordinal(*ordinal),
            #[cfg(feature = "sim")]
            Which::Simulated(description) => Which::Simulated(description.clone()),
        }
    }
}

/// What a device may be called.
const DEVICES: &str = if cfg!(feature = "sim") {
    "cpu, cpu:FILE with a description, interpreter, cuda:N, cuda-sim:NAME with a shipped description"
} else if cfg!(feature = "cuda") {
    "cpu, cpu:FILE with a description, interpreter, cuda:N"
} else {
    "cpu, cpu:FILE with a description, interpreter"
};

/// A GPU by its name, `cuda:0` or `cuda-sim:sm_90a`; it is opened when it is needed.
fn other_device(name: &str) -> Option<Device> {
    #[cfg(feature = "sim")]
    if let Some(description) = name.strip_prefix("cuda-sim:") {
        let which = Which::Simulated(DeviceDescription::named(description).ok().filter(|d| !d.is_cpu())?);
        return Some(Device { kind: Kind::Cuda(Arc::new(Gpu::new(which))), threads: 1, tuner: None });
    }
    #[cfg(feature = "cuda")]
    if let Some(ordinal) = name.strip_prefix("cuda:") {
        let which = Which::Ordinal(ordinal.parse().ok()?);
        return Some(Device { kind: Kind::Cuda(Arc::new(Gpu::new(which))), threads: 1, tuner: None });
    }
    let _ = name;
    None
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Device, String> {
        match text {
            "cpu" => Ok(Device::cpu()),
            "interpreter" => Ok(Device::interpreter()),
            other if other.starts_with("cpu:") => {
                let path = std::path::Path::new(&other["cpu:".len()..]);
                let description = DeviceDescription::read(path).map_err(|e| e.to_string())?;
                match description.is_cpu() {
                    true => Ok(Device::described(description)),
                    false => Err(format!("`{}` describes no processor", path.display())),
                }
            }
            other => other_device(other).ok_or_else(|| format!("`{other}` is no device: {DEVICES}")),
        }
    }
}
