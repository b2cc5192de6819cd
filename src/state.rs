//! Values that live from run to run.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use egret_ir::{Op, Tensor, Tensors, files};

use crate::compile::{Engine, Executable};
use crate::error::{Error, Result};

#[derive(Clone)]
pub(crate) enum Store {
    Cpu(Arc<egret_runtime::State>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<egret_runtime::cuda::State>),
    Interpreter(Arc<Mutex<Tensors>>),
}

/// A named set of tensors that several executables of one device share: those of training and of evaluation, say.
/// Clones are the same set.
#[derive(Clone)]
pub struct State {
    pub(crate) store: Store,
}

pub(crate) fn lock(tensors: &Mutex<Tensors>) -> MutexGuard<'_, Tensors> {
    // an interrupted run leaves whole tensors
    tensors.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub(crate) fn new(exe: &Executable) -> Result<State> {
        let store = match &exe.engine {
            Engine::Cpu(_) => Store::Cpu(egret_runtime::State::empty()),
            #[cfg(feature = "cuda")]
            Engine::Cuda(loaded) => Store::Cuda(egret_runtime::cuda::State::empty(loaded.device())),
            Engine::Interpreter(_) => Store::Interpreter(Arc::default()),
        };
        let state = State { store };
        state.add(exe)?;
        Ok(state)
    }

    /// Adds the states of another graph; those that exist keep their values.
    ///
    /// # Errors
    /// A graph of another device, a state without a first value, no memory.
    pub fn add(&self, exe: &Executable) -> Result<()> {
        match (&self.store, &exe.engine) {
            (Store::Cpu(state), Engine::Cpu(loaded)) => Ok(state.add(loaded, &|name| exe.first_value(name))?),
            #[cfg(feature = "cuda")]
            (Store::Cuda(state), Engine::Cuda(loaded)) => Ok(state.add(loaded, &|name| exe.first_value(name))?),
            (Store::Interpreter(state), Engine::Interpreter(graph)) => {
                let mut held = lock(state);
                for (_, node) in graph.iter() {
                    if let Op::State(leaf) = &node.op
                        && !held.contains_key(&leaf.name)
                        && let Some(value) = exe.first_value(&leaf.name)
                    {
                        held.insert(leaf.name.clone(), value);
                    }
                }
                Ok(())
            }
            _ => Err(self.other_device(exe)),
        }
    }

    pub(crate) fn other_device(&self, exe: &Executable) -> Error {
        let have = match self.store {
            Store::Cpu(_) => "cpu",
            #[cfg(feature = "cuda")]
            Store::Cuda(_) => "cuda",
            Store::Interpreter(_) => "interpreter",
        };
        Error::OtherDevice { what: "the state", have, want: exe.device_name() }
    }

    /// Names of all states.
    pub fn names(&self) -> Vec<String> {
        match &self.store {
            Store::Cpu(state) => state.names(),
            #[cfg(feature = "cuda")]
            Store::Cuda(state) => state.names(),
            Store::Interpreter(state) => lock(state).keys().cloned().collect(),
        }
    }

    /// A copy of a state.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        match &self.store {
            Store::Cpu(state) => Ok(state.get(name)?),
            #[cfg(feature = "cuda")]
            Store::Cuda(state) => Ok(state.get(name)?),
            Store::Interpreter(state) => {
                let held = lock(state);
                held.get(name).cloned().ok_or_else(|| unknown(name, &held))
            }
        }
    }

    /// Sets a state.
    ///
    /// # Errors
    /// If there is none of that name, or it has another element type.
    pub fn set(&self, name: &str, value: &Tensor) -> Result<()> {
        match &self.store {
            Store::Cpu(state) => Ok(state.set(name, value)?),
            #[cfg(feature = "cuda")]
            Store::Cuda(state) => Ok(state.set(name, value)?),
            Store::Interpreter(state) => {
                let mut held = lock(state);
                match held.get_mut(name) {
                    Some(have) if have.dtype() == value.dtype() => {
                        *have = value.clone();
                        Ok(())
                    }
                    Some(have) => {
                        let (want, have) = (have.dtype().to_string(), value.dtype().to_string());
                        Err(Error::WrongTensor { name: name.into(), want, have })
                    }
                    None => Err(unknown(name, &held)),
                }
            }
        }
    }

    /// Copies of all states by name.
    ///
    /// # Errors
    /// None on the host's devices.
    pub fn tensors(&self) -> Result<Tensors> {
        self.names().into_iter().map(|name| self.get(&name).map(|value| (name, value))).collect()
    }

    /// Writes all states to a safetensors file, which is there whole or not at all: a run that dies, or a full disk, leaves
    /// an older file as it was.
    ///
    /// # Errors
    /// `E0805` when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        files::write_safetensors(path, &self.tensors()?)
            .map_err(|e| Error::Checkpoint { path: path.display().to_string(), why: e.message })
    }

    /// Sets all states from a file that [`State::save`] wrote; nothing changes where one does not fit.
    ///
    /// # Errors
    /// `E0805` a file that cannot be read, that lacks a state or holds one of another element type or shape (all are named).
    pub fn load(&self, path: &Path) -> Result<()> {
        let failed = |why: String| Error::Checkpoint { path: path.display().to_string(), why };
        let tensors = files::read_safetensors(path).map_err(|e| failed(e.message))?;
        self.set_all(&tensors).map_err(failed)
    }

    /// Sets all states, or none where one does not fit; says which those are.
    pub(crate) fn set_all(&self, tensors: &Tensors) -> Result<(), String> {
        self.check(tensors)?;
        let set = |name: String| match tensors.get(&name) {
            Some(value) => self.set(&name, value).map_err(|e| e.to_string()),
            None => Ok(()),
        };
        self.names().into_iter().try_for_each(set)
    }

    /// Whether there is a tensor of its type and shape for each state; says for which there is none.
    pub(crate) fn check(&self, tensors: &Tensors) -> Result<(), String> {
        let ty = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
        let mut wrong = Vec::new();
        for name in self.names() {
            let have = ty(&self.get(&name).map_err(|e| e.to_string())?);
            match tensors.get(&name).map(ty) {
                Some(value) if value == have => {}
                Some(value) => wrong.push(format!("`{name}` is {value}, not {have}")),
                None => wrong.push(format!("`{name}`: {have} is missing")),
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }
}

fn unknown(name: &str, held: &Tensors) -> Error {
    let known = held.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    Error::UnknownState { name: name.into(), known: if known.is_empty() { "none".into() } else { known } }
}
