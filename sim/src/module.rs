//! A parsed module.

use crate::error::ParseError;
use crate::inst::Inst;
use crate::inst::Space;
use crate::types::Type;

/// A PTX module: its kernels and its variables.
#[derive(Clone, Debug)]
pub struct Module {
    pub(crate) entries: Vec<Entry>,
    pub(crate) globals: Vec<Global>,
    pub(crate) lines: Vec<String>,
}

impl Module {
    /// Reads PTX text.
    ///
    /// ```
    /// let module = egret_sim::Module::parse(".version 8.0\n.target sm_80\n.visible .entry noop() { ret; }").unwrap();
    /// assert_eq!(module.entries()[0].name(), "noop");
    /// ```
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        crate::parse::module(text)
    }

    /// The kernels, as they stand in the text.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The kernel of a name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// A line of the text, from one.
    pub(crate) fn line(&self, line: u32) -> &str {
        self.lines.get((line as usize).wrapping_sub(1)).map_or("", |text| text.trim())
    }
}

/// A kernel.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) insts: Vec<Inst>,
    pub(crate) regs: Vec<Type>,
    pub(crate) symbols: Vec<Symbol>,
    pub(crate) param_bytes: usize,
    pub(crate) shared_bytes: usize,
    pub(crate) local_bytes: usize,
    pub(crate) max_threads: Option<u32>,
}

impl Entry {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Bytes of shared memory that its own variables take.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// The most threads a block may have, where the text says so.
    pub fn max_threads(&self) -> Option<u32> {
        self.max_threads
    }
}

/// A parameter: where it stands in the kernel's parameter space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Its offset.
    pub offset: usize,
    /// Its bytes.
    pub bytes: usize,
}

/// What a name in an entry stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Symbol {
    /// An offset in a space of the entry's own.
    Offset(Space, u64),
    /// The start of dynamic shared memory.
    Dynamic,
    /// A variable of the module.
    Global(usize),
}

/// A variable of the module in global or constant memory.
#[derive(Clone, Debug)]
pub(crate) struct Global {
    pub name: String,
    pub data: Vec<u8>,
    pub constant: bool,
}
