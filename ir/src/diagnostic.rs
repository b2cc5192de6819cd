//! Errors that people can act on.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where a node came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Origin {
    /// A node of an ONNX model.
    Onnx {
        /// The node's name, or its first output when it has none.
        node: String,
        /// The operator.
        op: String,
    },
    /// A line of the caller's program.
    Source {
        /// File.
        file: String,
        /// Line, from 1.
        line: u32,
    },
    /// A line of a text graph.
    Text {
        /// Line, from 1.
        line: u32,
    },
    /// The gradient of something.
    Gradient(Arc<Origin>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Onnx { node, op } => write!(f, "{op} `{node}`"),
            Origin::Source { file, line } => write!(f, "{file}:{line}"),
            Origin::Text { line } => write!(f, "line {line}"),
            Origin::Gradient(of) => write!(f, "gradient of {of}"),
        }
    }
}

/// What went wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable code, listed in `docs/errors.md`: `E0102`.
    pub code: &'static str,
    /// One sentence with the shapes and values at fault.
    pub message: String,
    /// The nodes or lines at fault.
    pub origin: Vec<Origin>,
    /// Further facts.
    pub notes: Vec<String>,
    /// What to do, when something can be said.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A diagnostic without origin, notes or help.
    pub fn new(code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic { code, message: message.into(), origin: Vec::new(), notes: Vec::new(), help: None }
    }

    /// Adds an origin.
    pub fn at(mut self, origin: Origin) -> Diagnostic {
        if !self.origin.contains(&origin) {
            self.origin.push(origin);
        }
        self
    }

    /// Adds a note.
    pub fn note(mut self, note: impl Into<String>) -> Diagnostic {
        self.notes.push(note.into());
        self
    }

    /// Sets what to do.
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.code, self.message)?;
        for (i, origin) in self.origin.iter().enumerate() {
            write!(f, "{} {origin}", if i == 0 { "\n  at" } else { "," })?;
        }
        for note in &self.notes {
            write!(f, "\n  note: {note}")?;
        }
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostic {}
