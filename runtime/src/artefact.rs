//! Compiled programs as files, which are loaded without a compiler.
//!
//! A file is a safetensors container: the program as one tensor of bytes (its [`Program`] in postcard's encoding, and
//! the CRC-32 of that), and beside it the params and first values of states that it asks for. Those are mapped, not read.
//!
//! A program holds machine code: open only files from where you would also take an executable from.

use std::path::Path;
use std::sync::Arc;

use egret_ir::files::{read_safetensors, write_safetensors};
use egret_ir::{Tensor, Tensors};
use egret_program::Program;
use egret_program::program::VERSION;

use crate::{Executable, LoadOptions, RuntimeError, State};

/// The tensor that holds the program.
const PROGRAM: &str = "egret.program";
/// Before the names of weights, so that none is that of the program.
const WEIGHT: &str = "weight.";

/// Writes a program, and what it asks for by name, to a file; the file is there whole or not at all.
///
/// # Errors
/// `E0506` where `weights` lacks a param, `E0515` when the file cannot be written.
pub fn write(path: &Path, program: &Program, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<(), RuntimeError> {
    let failed = |why: String| RuntimeError::Artefact { path: path.display().to_string(), why };
    let mut bytes = postcard::to_stdvec(program).map_err(|e| failed(e.to_string()))?;
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    let mut tensors = Tensors::new();
    let program_bytes = Tensor::new(&[bytes.len()], &bytes).ok_or_else(|| failed("too large".into()))?;
    tensors.insert(PROGRAM.to_string(), program_bytes);
    for port in &program.params {
        let tensor = weights(&port.name)
            .ok_or_else(|| RuntimeError::MissingParam { name: port.name.clone(), ty: port.ty.to_string() })?;
        tensors.insert(format!("{WEIGHT}{}", port.name), tensor);
    }
    for port in &program.states {
        if let Some(tensor) = weights(&port.name) {
            tensors.insert(format!("{WEIGHT}{}", port.name), tensor);
        }
    }
    write_safetensors(path, &tensors).map_err(|e| failed(e.message))
}

/// A program and its weights from a file.
///
/// # Errors
/// `E0515` a file that cannot be read or is none of these, `E0503` a damaged one, `E0501` one of another version.
pub fn read(path: &Path) -> Result<(Program, Tensors), RuntimeError> {
    let failed = |why: String| RuntimeError::Artefact { path: path.display().to_string(), why };
    let mut tensors = read_safetensors(path).map_err(|e| failed(e.message))?;
    let held = tensors.remove(PROGRAM).ok_or_else(|| failed("it holds no program".into()))?;
    let damaged = || RuntimeError::malformed(format!("{} has other bytes than were written", path.display()));
    let (bytes, sum) = held.bytes().split_last_chunk::<4>().ok_or_else(damaged)?;
    if crc32fast::hash(bytes) != u32::from_le_bytes(*sum) {
        return Err(damaged());
    }
    // the version comes first, and the rest means something in that version alone
    let (version, _) = postcard::take_from_bytes::<u32>(bytes).map_err(|_| damaged())?;
    if version != VERSION {
        return Err(RuntimeError::Version { found: version, expected: VERSION });
    }
    let program = postcard::from_bytes(bytes).map_err(|e| RuntimeError::malformed(e.to_string()))?;
    let named = |(name, tensor): (String, Tensor)| Some((name.strip_prefix(WEIGHT)?.to_string(), tensor));
    Ok((program, tensors.into_iter().filter_map(named).collect()))
}

impl Executable {
    /// Loads a program from a file that [`write`] made, and a state with its first values.
    ///
    /// # Errors
    /// As [`read`] and [`Executable::load`].
    pub fn open(path: &Path, options: LoadOptions) -> Result<(Arc<Executable>, Arc<State>), RuntimeError> {
        let (program, weights) = read(path)?;
        let weight = |name: &str| weights.get(name).cloned();
        let exe = Executable::load(Arc::new(program), &weight, options)?;
        let state = State::empty();
        state.add(&exe, &weight)?;
        Ok((exe, state))
    }
}
