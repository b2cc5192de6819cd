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
    /// The file is no IDX file, or not the one that is needed.
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
}

impl From<DataError> for Diagnostic {
    fn from(error: DataError) -> Diagnostic {
        let code = match &error {
            DataError::Read { .. } => "E0602",
            DataError::Format { .. } => "E0603",
            DataError::Missing { .. } => "E0604",
        };
        Diagnostic::new(code, error.to_string())
    }
}
