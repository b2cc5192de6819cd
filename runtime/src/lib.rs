//! Egret's runtime: devices, sessions, CPU drivers, CUDA.
//!
//! A [`Program`](egret_program::Program) is loaded into an [`Executable`], whose [`Session`]s run it; [`State`] is what
//! lives from run to run.

pub mod artefact;
mod binding;
pub mod cache;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod executable;
mod outputs;
mod params;
mod ports;
mod session;
mod state;
mod validate;

pub use cache::Cache;
pub use error::RuntimeError;
pub use executable::{Executable, LoadOptions};
pub use outputs::{Copied, MemoryReport, Output, Outputs, Span, StepTime};
pub use session::Session;
pub use state::State;
