//! What can go wrong between a program and its results.

use egret_ir::{DType, Diagnostic, DimError};

use crate::cpu::code::CodeError;
use crate::cpu::drivers::DriverError;
use crate::cpu::memory::OutOfMemory;

/// Why a program cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The program was made by another version of Egret.
    #[error("the program has format {found}, this runtime reads format {expected}: compile it again")]
    Version {
        /// Of the program.
        found: u32,
        /// Of the runtime.
        expected: u32,
    },
    /// The program was compiled for something else than the host.
    #[error("the program was compiled for `{device}`: {why}")]
    Device {
        /// Name of the description.
        device: String,
        /// What does not fit.
        why: String,
    },
    /// The program contradicts itself.
    #[error("the program is damaged: {0}")]
    Malformed(String),
    /// Its code cannot be mapped.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// No value was given for a param.
    #[error("no value was given for the param `{name}`: {ty}")]
    MissingParam {
        /// The param.
        name: String,
        /// Its type.
        ty: String,
    },
    /// An input was not given.
    #[error("the input `{name}`: {ty} is missing; the program has {known}")]
    MissingInput {
        /// The input.
        name: String,
        /// Its type.
        ty: String,
        /// All inputs.
        known: String,
    },
    /// A name that is no input.
    #[error("the program has no input `{name}`; it has {known}")]
    UnknownInput {
        /// The name.
        name: String,
        /// All inputs.
        known: String,
    },
    /// An input or output was given more than once.
    #[error("`{name}` was given twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A name that is no output.
    #[error("the program has no output `{name}`; it has {known}")]
    UnknownOutput {
        /// The name.
        name: String,
        /// All outputs.
        known: String,
    },
    /// A tensor for an output has another type or shape.
    #[error("the output `{name}` is {dtype}{shape:?}, but a tensor of {given_dtype}{given_shape:?} was given for it")]
    OutputShape {
        /// The output.
        name: String,
        /// Its element type.
        dtype: DType,
        /// Its extents.
        shape: Vec<usize>,
        /// Element type of the tensor.
        given_dtype: DType,
        /// Extents of the tensor.
        given_shape: Vec<usize>,
    },
    /// Types or shapes do not fit the declared ones.
    #[error(transparent)]
    Binding(Diagnostic),
    /// Two extents that have to be equal are not.
    #[error("{what} must be equal: `{left}` is {left_value}, `{right}` is {right_value} (at {origin})")]
    Check {
        /// What needs it.
        what: String,
        /// One side.
        left: String,
        /// Its value.
        left_value: i64,
        /// The other side.
        right: String,
        /// Its value.
        right_value: i64,
        /// Where.
        origin: String,
    },
    /// A size has no value, or no possible one.
    #[error("{what}: {why}")]
    Size {
        /// Whose size.
        what: String,
        /// Why.
        why: String,
    },
    /// A driver refuses its problem.
    #[error("{kernel} at {origin}: {source}")]
    Driver {
        /// The kernel.
        kernel: String,
        /// The graph's nodes.
        origin: String,
        /// Why.
        source: DriverError,
    },
    /// A kernel found something wrong with the data.
    #[error("{message} (status {code} of {origin})")]
    Fault {
        /// The graph's nodes.
        origin: String,
        /// Status code.
        code: u32,
        /// What it means.
        message: String,
    },
    /// The program has states, but the session was made without.
    #[error("the program has state ({names}): make a `State` and use `session_with`")]
    StateNeeded {
        /// Their names.
        names: String,
    },
    /// A state that does not exist.
    #[error("there is no state `{name}`; there are {known}")]
    UnknownState {
        /// The name.
        name: String,
        /// All states.
        known: String,
    },
    /// A state without an initial value whose extents are not constant.
    #[error("the state `{name}`: {ty} needs an initial value")]
    StateValue {
        /// The state.
        name: String,
        /// Its type.
        ty: String,
    },
    /// A GPU cannot be used, or no longer.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
    /// A file of a program cannot be read or written.
    #[error("{path}: {why}")]
    Artefact {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
}

impl RuntimeError {
    pub(crate) fn malformed(what: impl Into<String>) -> RuntimeError {
        RuntimeError::Malformed(what.into())
    }

    pub(crate) fn size(what: impl Into<String>, why: &DimError) -> RuntimeError {
        RuntimeError::Size { what: what.into(), why: why.to_string() }
    }

    /// Its stable code.
    pub fn code(&self) -> &'static str {
        match self {
            RuntimeError::Version { .. } => "E0501",
            RuntimeError::Device { .. } => "E0502",
            RuntimeError::Malformed(_) => "E0503",
            RuntimeError::Code(_) => "E0504",
            RuntimeError::Memory(_) => "E0505",
            RuntimeError::MissingParam { .. } => "E0506",
            RuntimeError::MissingInput { .. } => "E0201",
            RuntimeError::UnknownInput { .. } => "E0202",
            RuntimeError::Duplicate { .. } => "E0507",
            RuntimeError::UnknownOutput { .. } => "E0508",
            RuntimeError::OutputShape { .. } => "E0509",
            RuntimeError::Binding(diagnostic) => diagnostic.code,
            RuntimeError::Check { .. } => "E0207",
            RuntimeError::Size { .. } => "E0206",
            RuntimeError::Driver { .. } => "E0510",
            RuntimeError::Fault { .. } => "E0511",
            RuntimeError::StateNeeded { .. } => "E0512",
            RuntimeError::UnknownState { .. } => "E0513",
            RuntimeError::StateValue { .. } => "E0514",
            #[cfg(feature = "cuda")]
            RuntimeError::Cuda(error) => error.code(),
            RuntimeError::Artefact { .. } => "E0515",
        }
    }

    /// As a diagnostic.
    pub fn diagnostic(&self) -> Diagnostic {
        match self {
            RuntimeError::Binding(diagnostic) => diagnostic.clone(),
            other => Diagnostic::new(other.code(), other.to_string()),
        }
    }
}

/// `` `a`: f32[n], `b`: f32[m] ``, or `none`.
pub(crate) fn listed(ports: &[egret_program::Port]) -> String {
    if ports.is_empty() {
        return "none".into();
    }
    ports.iter().map(|p| format!("`{}`: {}", p.name, p.ty)).collect::<Vec<_>>().join(", ")
}
