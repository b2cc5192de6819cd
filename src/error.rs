//! What can go wrong.

use egret_ir::{Diagnostic, InterpretError};
use egret_program::DescriptionError;
use egret_runtime::RuntimeError;

/// Any error of Egret. [`Error::diagnostic`] gives its stable code, place and help.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A graph that is wrong, or that cannot be compiled.
    #[error("{0}")]
    Graph(Box<Diagnostic>),
    /// Loading or running a program.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// No description of the device.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// A program compiled for one kind of device meets a state or session of another.
    #[error("{what} belongs to {have}, but the program was compiled for {want}")]
    OtherDevice {
        /// What does not fit.
        what: &'static str,
        /// Its device.
        have: &'static str,
        /// The program's device.
        want: &'static str,
    },
    /// No output of that name.
    #[error("there is no output `{name}`; there are {known}")]
    UnknownOutput {
        /// The name.
        name: String,
        /// All outputs.
        known: String,
    },
    /// No state of that name.
    #[error("there is no state `{name}`; there are {known}")]
    UnknownState {
        /// The name.
        name: String,
        /// All states.
        known: String,
    },
    /// States cannot be saved or restored.
    #[error("the checkpoint {path}: {why}")]
    Checkpoint {
        /// The file.
        path: String,
        /// Why, with the states at fault.
        why: String,
    },
    /// A value of a training run is NaN or infinite.
    #[cfg(feature = "train")]
    #[error("{what} is {value} after step {step}{}", made_by.as_ref().map(|m| format!("; first {} of {}", m.value, m.node)).unwrap_or_default())]
    NotFinite {
        /// What: the loss, or a state.
        what: String,
        /// NaN or an infinity.
        value: f64,
        /// The step, counted from 1.
        step: u64,
        /// The operator that made the first such value, where numbers were checked.
        made_by: Option<crate::trainer::Maker>,
    },
    /// A file that a run writes beside its checkpoints.
    #[error("{path} cannot be written: {why}")]
    File {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// A tensor given for an output or a state has another type or shape.
    #[error("`{name}` is {want}, but a tensor of {have} was given for it")]
    WrongTensor {
        /// The output or state.
        name: String,
        /// Its type.
        want: String,
        /// That of the tensor.
        have: String,
    },
}

/// A result of Egret.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<Diagnostic> for Error {
    fn from(diagnostic: Diagnostic) -> Error {
        Error::Graph(Box::new(diagnostic))
    }
}

impl From<InterpretError> for Error {
    fn from(error: InterpretError) -> Error {
        Diagnostic::from(error).into()
    }
}

#[cfg(feature = "train")]
impl From<egret_nn::DataError> for Error {
    fn from(error: egret_nn::DataError) -> Error {
        Diagnostic::from(error).into()
    }
}

impl Error {
    /// The error with its stable code, place and help.
    pub fn diagnostic(&self) -> Diagnostic {
        let code = match self {
            Error::Graph(diagnostic) => return (**diagnostic).clone(),
            Error::Runtime(error) => return error.diagnostic(),
            Error::Description(_) => "E0801",
            Error::OtherDevice { .. } => "E0802",
            Error::UnknownOutput { .. } => "E0508",
            Error::UnknownState { .. } => "E0513",
            Error::Checkpoint { .. } => "E0805",
            #[cfg(feature = "train")]
            Error::NotFinite { made_by, .. } => {
                let diagnostic = Diagnostic::new("E0806", self.to_string());
                return match made_by {
                    Some(maker) => maker.origin.iter().cloned().fold(diagnostic, Diagnostic::at),
                    None => diagnostic.help("ask for `check_numerics` to learn which operator makes it"),
                };
            }
            Error::File { .. } => "E0807",
            Error::WrongTensor { .. } => "E0509",
        };
        Diagnostic::new(code, self.to_string())
    }

    /// A file or folder that cannot be written.
    #[cfg(feature = "train")]
    pub(crate) fn written(path: &std::path::Path, error: &std::io::Error) -> Error {
        Error::File { path: path.display().to_string(), why: error.to_string() }
    }
}

impl From<Error> for Diagnostic {
    fn from(error: Error) -> Diagnostic {
        error.diagnostic()
    }
}
