//! Emitters: kernel IR printed as machine code (CPU) or CUDA C.

pub mod cpu;
pub mod cuda;

use egret_ir::DType;

/// Why a kernel cannot be emitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// An element type that this backend does not compute with yet.
    #[error("the {backend} backend does not support {dtype} yet")]
    UnsupportedType {
        /// `CPU` or `CUDA`.
        backend: &'static str,
        /// The type.
        dtype: DType,
    },
    /// A part of kernel IR that this backend does not have.
    #[error("the {backend} backend does not support {what}")]
    UnsupportedForm {
        /// `CPU` or `CUDA`.
        backend: &'static str,
        /// The part.
        what: &'static str,
    },
    /// A target that the emitter cannot serve.
    #[error("target `{triple}`: {reason}")]
    Target {
        /// The target triple.
        triple: String,
        /// What is missing.
        reason: String,
    },
    /// The kernel does not pass the verifier.
    #[error("malformed kernel: {0}")]
    Malformed(String),
    /// The code generator refused the function: a defect of the emitter.
    #[error("code generator: {0}")]
    Backend(String),
}
