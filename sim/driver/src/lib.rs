//! A library that stands in for NVIDIA's driver: programs that use CUDA run on it unchanged where there is no GPU.
//!
//! It has the functions that Egret's runtime calls, with the driver's names and signatures. GPUs are added by
//! `egret_sim_add_device`; kernels are given as PTX and run by [`egret_sim`], with all its checks. What a stream is given
//! is done as late as its semantics allow, so that a missing wait shows; device memory begins as NaNs. Events tell modelled
//! time. A fault of a kernel is `CUDA_ERROR_LAUNCH_FAILED` from then on, and `egret_sim_last_fault` tells it.

#![allow(clippy::missing_safety_doc, reason = "the contracts are those of NVIDIA's documentation")]

mod api;
mod clock;
mod driver;
mod graph;
mod memory;
mod queue;
mod status;

pub use driver::{Gpu, launches};
pub use status::Status;
