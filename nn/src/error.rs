//! What can be wrong with data sets.

use std::path::PathBuf;

use egret_ir::Diagnostic;

/// Why a data set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not of its format, or not the one that is needed.
    #[error("{}: {why}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// No file of that name is in the folder, neither plain nor compressed.
    #[error("{} has neither `{name}` nor `{name}.gz`", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The file.
        name: String,
    },
    /// There is nothing to train or evaluate on.
    #[error("the data set for {what} is empty")]
    Empty {
        /// What it is for.
        what: &'static str,
    },
    /// Tensors that are no examples together.
    #[error("{why}")]
    Rows {
        /// Why.
        why: String,
    },
    /// An example that is not there.
    #[error("there is no example {row}: the data set has {len}")]
    Row {
        /// Its number.
        row: usize,
        /// Number of examples.
        len: usize,
    },
    /// A label that is no class.
    #[error("the label {label} is no class: there are {classes}, counted from 0")]
    Label {
        /// The label.
        label: i128,
        /// Number of classes.
        classes: usize,
    },
}

impl From<DataError> for Diagnostic {
    fn from(error: DataError) -> Diagnostic {
        let code = match &error {
            DataError::Read { .. } => "E0602",
            DataError::Format { .. } => "E0603",
            DataError::Missing { .. } => "E0604",
            DataError::Empty { .. } => "E0605",
            DataError::Rows { .. } => "E0606",
            DataError::Row { .. } => "E0607",
            DataError::Label { .. } => "E0608",
        };
        Diagnostic::new(code, error.to_string())
    }
}
