//! How a command ends when it does not succeed.

use std::process::ExitCode;

use egret::{Diagnostic, Error};
use serde_json::json;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// Exit status 1.
    Failed(Diagnostic),
    /// Results are not those expected; it was said where. Exit status 1.
    Mismatch,
    /// Exit status 2.
    Usage(Diagnostic),
    /// Exit status 3.
    Unsupported(Diagnostic),
}

/// Codes of what Egret does not support: operators and forms of them, shapes that data decide, element types, kernels,
/// architectures, stages; what ONNX cannot say.
const UNSUPPORTED: [&str; 11] =
    ["E0303", "E0304", "E0310", "E0311", "E0313", "E0314", "E0461", "E0462", "E0465", "E0803", "E0953"];

impl From<Diagnostic> for Failure {
    fn from(diagnostic: Diagnostic) -> Failure {
        if UNSUPPORTED.contains(&diagnostic.code) {
            Failure::Unsupported(diagnostic)
        } else {
            Failure::Failed(diagnostic)
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        error.diagnostic().into()
    }
}

impl Failure {
    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::Usage(Diagnostic::new("E0951", message))
    }

    /// A file that cannot be written or read.
    pub fn file(path: &std::path::Path, error: &std::io::Error) -> Failure {
        Failure::Failed(Diagnostic::new("E0952", format!("{}: {error}", path.display())))
    }

    /// Says it, and gives the exit status.
    pub fn report(&self, as_json: bool) -> ExitCode {
        let (status, diagnostic) = match self {
            Failure::Mismatch => return ExitCode::from(1),
            Failure::Failed(diagnostic) => (1, diagnostic),
            Failure::Usage(diagnostic) => (2, diagnostic),
            Failure::Unsupported(diagnostic) => (3, diagnostic),
        };
        if as_json {
            let origin: Vec<String> = diagnostic.origin.iter().map(ToString::to_string).collect();
            let error = json!({
                "code": diagnostic.code, "message": diagnostic.message, "origin": origin,
                "notes": diagnostic.notes, "help": diagnostic.help,
            });
            println!("{}", json!({ "error": error }));
        } else {
            eprintln!("error: {diagnostic}");
        }
        ExitCode::from(status)
    }
}
