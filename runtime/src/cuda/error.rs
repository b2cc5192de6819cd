//! What can go wrong between a program and a GPU.

use super::nvrtc::NvrtcError;

/// Why a GPU cannot be used, or no longer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CudaError {
    /// No driver on this machine.
    #[error(
        "there is no NVIDIA driver: the library libcuda.so.1 was not found. Install the driver for the GPU, or choose the \
         device `cpu`"
    )]
    NoDriver,
    /// The driver lacks functions that are needed.
    #[error("the NVIDIA driver is for CUDA {}.{}, but CUDA 12.0 or later is needed: install driver 525 or later",
        .found / 1000, .found % 1000 / 10)]
    OldDriver {
        /// Its version: 1000 × major + 10 × minor.
        found: i32,
    },
    /// No GPU of that number.
    #[error("there is no GPU {ordinal}: the driver knows {count}")]
    NoDevice {
        /// The number.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The program needs more than the GPU has.
    #[error("the program was compiled for {needed}, but `{name}` is {found}: compile it for that")]
    Architecture {
        /// The program's architecture.
        needed: String,
        /// The GPU.
        name: String,
        /// The GPU's architecture.
        found: String,
    },
    /// A kernel has no code.
    #[error("the kernel `{kernel}` of {origin} cannot be compiled: {source}")]
    Compile {
        /// The kernel.
        kernel: String,
        /// The graph's nodes that it computes.
        origin: String,
        /// Why.
        source: Box<NvrtcError>,
    },
    /// Too little memory on the GPU.
    #[error("{asked} bytes of GPU memory cannot be had, {free} of {total} are free{}", listed(.largest))]
    Memory {
        /// Bytes asked for.
        asked: usize,
        /// Bytes that are free.
        free: usize,
        /// Bytes of the GPU.
        total: usize,
        /// The largest buffers of the program, at most ten: what each is, and its bytes.
        largest: Vec<(String, usize)>,
    },
    /// The GPU gave up: nothing on it can be used any more by this process.
    #[error("the GPU was lost in {call}: {code}{detail}")]
    Lost {
        /// The driver's function.
        call: &'static str,
        /// Its result.
        code: String,
        /// What a driver that stands in for a GPU says of it.
        detail: String,
    },
    /// A call that should not fail failed.
    #[error("{call}: {code}")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// Its result.
        code: String,
    },
    /// A launch that no GPU can do.
    #[error("{kernel} cannot be launched: {why}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// Why.
        why: String,
    },
    /// The driver that stands in for a GPU cannot be used.
    #[error("GPUs cannot be simulated: {why}")]
    NoStandIn {
        /// Why.
        why: String,
    },
}

impl CudaError {
    /// Its stable code.
    pub fn code(&self) -> &'static str {
        match self {
            CudaError::NoDriver => "E0520",
            CudaError::OldDriver { .. } => "E0521",
            CudaError::NoDevice { .. } => "E0522",
            CudaError::Architecture { .. } => "E0502",
            CudaError::Compile { .. } => "E0523",
            CudaError::Memory { .. } => "E0524",
            CudaError::Lost { .. } => "E0525",
            CudaError::Call { .. } => "E0526",
            CudaError::Launch { .. } => "E0527",
            CudaError::NoStandIn { .. } => "E0528",
        }
    }

    /// Adds what a program's largest buffers are, where memory is short.
    pub(crate) fn naming(self, buffers: impl FnOnce() -> Vec<(String, usize)>) -> CudaError {
        match self {
            CudaError::Memory { asked, free, total, largest } if largest.is_empty() => {
                CudaError::Memory { asked, free, total, largest: buffers() }
            }
            other => other,
        }
    }
}

fn listed(largest: &[(String, usize)]) -> String {
    if largest.is_empty() {
        return String::new();
    }
    let each = largest.iter().map(|(what, bytes)| format!("{what}: {bytes}"));
    format!("; the largest buffers are {}", each.collect::<Vec<_>>().join(", "))
}
