//! The CUDA device: finding and compiling with NVRTC, a cache of compiled kernels, GPUs, and programs on them.

mod device;
mod driver;
mod error;
mod executable;
mod images;
mod kernels;
mod launch;
pub(crate) mod memory;
pub mod nvrtc;
mod session;
mod stand_in;
mod state;

pub use crate::cache::{self, Cache};
pub use device::Device;
pub use error::CudaError;
pub use executable::{Executable, LoadOptions};
pub use images::{CompileReport, Images, cache_key, compile};
pub use kernels::{KernelStats, stats};
pub use session::Session;
pub use state::State;
