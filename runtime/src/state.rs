//! Values that live from run to run.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use egret_ir::{DType, Tensor};
use egret_program::Port;
use egret_program::memory::ALIGNMENT;

use crate::cpu::memory::{Buffer, OutOfMemory};
use crate::{Executable, RuntimeError};

/// A named set of tensors that sessions of one or several executables share: those of training and of evaluation, say. A
/// session holds it locked while it runs.
///
/// When a run fails because of its data, steps before the failing one may have updated the state.
#[derive(Debug)]
pub struct State(Mutex<Held>);

/// The tensors of a [`State`].
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) table: Table,
    blocks: Vec<Buffer>,
}

/// What a state holds, and where: the same on every device.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Changes whenever a tensor moves or changes its extents.
    pub(crate) generation: u64,
    pub(crate) entries: Vec<Entry>,
}

/// A tensor of a state.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: usize,
    /// The block of memory that it lies in, and where there.
    pub(crate) block: usize,
    pub(crate) offset: usize,
}

impl Table {
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.name == name)
    }

    pub(crate) fn known(&self, name: &str) -> Result<usize, RuntimeError> {
        self.find(name).ok_or_else(|| {
            let known: Vec<String> = self.entries.iter().map(|entry| format!("`{}`", entry.name)).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            RuntimeError::UnknownState { name: name.into(), known }
        })
    }

    /// By port of a program, the entry of its name.
    pub(crate) fn entries_of(&self, ports: &[Port]) -> Result<Vec<usize>, RuntimeError> {
        ports.iter().map(|port| self.known(&port.name)).collect()
    }

    /// The states of a program that are not here yet, with their first values.
    pub(crate) fn new_of(
        &self,
        ports: &[Port],
        weights: &dyn Fn(&str) -> Option<Tensor>,
    ) -> Result<Vec<(String, Tensor)>, RuntimeError> {
        let new = ports.iter().filter(|port| self.find(&port.name).is_none());
        new.map(|port| Ok((port.name.clone(), first_value(port, weights)?))).collect()
    }

    /// Lays tensors out in one block, number `count` or one that no tensor is in any more: their entries, the block, and its
    /// bytes.
    pub(crate) fn lay_out(
        &mut self,
        tensors: &[(String, Tensor)],
        count: usize,
    ) -> Result<(Vec<Entry>, usize, usize), RuntimeError> {
        let too_large = OutOfMemory(usize::MAX);
        let mut total = 0usize;
        let mut entries = Vec::new();
        let free = (0..count).find(|i| self.entries.iter().all(|entry| entry.block != *i));
        let block = free.unwrap_or(count);
        for (name, tensor) in tensors {
            let bytes = tensor.bytes().len();
            let (dtype, shape, name) = (tensor.dtype(), tensor.shape().to_vec(), name.clone());
            entries.push(Entry { name, dtype, shape, bytes, block, offset: total });
            let room = bytes.checked_next_multiple_of(ALIGNMENT).ok_or(too_large)?;
            total = total.checked_add(room).ok_or(too_large)?;
        }
        self.generation += 1;
        Ok((entries, block, total))
    }

    /// That a value may be set: a state of that name and element type.
    pub(crate) fn settable(&self, name: &str, value: &Tensor) -> Result<usize, RuntimeError> {
        let index = self.known(name)?;
        let entry = &self.entries[index];
        if entry.dtype != value.dtype() {
            let message = format!("state `{name}` is {}, but {} elements were given", entry.dtype, value.dtype());
            return Err(RuntimeError::Binding(egret_ir::Diagnostic::new("E0203", message)));
        }
        Ok(index)
    }
}

impl Held {
    pub(crate) fn pointer(&self, entry: usize) -> *mut u8 {
        let entry = &self.table.entries[entry];
        self.blocks[entry.block].as_ptr::<u8>().wrapping_add(entry.offset)
    }

    /// Places these tensors in one block.
    fn place(&mut self, tensors: &[(String, Tensor)]) -> Result<Vec<Entry>, RuntimeError> {
        let (entries, block, total) = self.table.lay_out(tensors, self.blocks.len())?;
        let memory = Buffer::new(total)?;
        for (entry, (_, tensor)) in entries.iter().zip(tensors) {
            let to = memory.as_ptr::<u8>().wrapping_add(entry.offset);
            // SAFETY: the block has room there.
            unsafe { std::ptr::copy_nonoverlapping(tensor.bytes().as_ptr(), to, entry.bytes) };
        }
        if block < self.blocks.len() {
            self.blocks[block] = memory
        } else {
            self.blocks.push(memory)
        }
        Ok(entries)
    }
}

impl State {
    /// An empty set.
    pub fn empty() -> Arc<State> {
        Arc::new(State(Mutex::default()))
    }

    /// The states of a program: from `weights` where that has a value, else zeros.
    ///
    /// # Errors
    /// As [`add`](State::add).
    pub fn new(exe: &Executable, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<Arc<State>, RuntimeError> {
        let state = State::empty();
        state.add(exe, weights)?;
        Ok(state)
    }

    /// Adds the states of another program; those that exist keep their values.
    ///
    /// # Errors
    /// A value of another type than the declared one, no value where extents are not constant, no memory.
    pub fn add(&self, exe: &Executable, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<(), RuntimeError> {
        let mut held = self.lock();
        let new = held.table.new_of(&exe.program().states, weights)?;
        if !new.is_empty() {
            let entries = held.place(&new)?;
            held.table.entries.extend(entries);
        }
        Ok(())
    }

    /// Names of all states.
    pub fn names(&self) -> Vec<String> {
        self.lock().table.entries.iter().map(|entry| entry.name.clone()).collect()
    }

    /// Bytes of all states.
    pub fn bytes(&self) -> usize {
        self.lock().table.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// A copy of a state.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn get(&self, name: &str) -> Result<Tensor, RuntimeError> {
        let held = self.lock();
        let index = held.table.known(name)?;
        let entry = &held.table.entries[index];
        // SAFETY: the block holds these bytes, and nobody writes them while we hold the lock.
        let bytes = unsafe { std::slice::from_raw_parts(held.pointer(index), entry.bytes) };
        Tensor::from_bytes(entry.dtype, &entry.shape, bytes)
            .ok_or_else(|| RuntimeError::malformed(format!("state `{name}` has not its size")))
    }

    /// Sets a state. Its extents may change; sessions then bind anew.
    ///
    /// # Errors
    /// If there is none of that name, its element type is another, or there is no memory.
    pub fn set(&self, name: &str, value: &Tensor) -> Result<(), RuntimeError> {
        let mut held = self.lock();
        let index = held.table.settable(name, value)?;
        let entry = &held.table.entries[index];
        if entry.shape == value.shape() {
            let bytes = value.bytes();
            // SAFETY: same type and shape, so as many bytes; the lock is ours.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), held.pointer(index), bytes.len()) };
        } else {
            let placed = held.place(&[(name.to_string(), value.clone())])?;
            for entry in placed {
                held.table.entries[index] = entry;
            }
        }
        Ok(())
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Held> {
        // A run that panicked has left numbers, not broken invariants.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_value(port: &Port, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<Tensor, RuntimeError> {
    if let Some(tensor) = weights(&port.name) {
        let name = format!("state `{}`", port.name);
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        let given = egret_ir::bind::Given { name: &name, declared: &port.ty, dtype, shape };
        egret_ir::bind::solve(&[given]).map_err(RuntimeError::Binding)?;
        return Ok(tensor);
    }
    let extents = port.ty.shape.constant().and_then(|shape| {
        let extents = shape.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<Vec<_>>>()?;
        let bytes = extents.iter().try_fold(port.ty.dtype.size(), |n, d| n.checked_mul(*d))?;
        (bytes < 1 << 46).then_some(extents)
    });
    let extents =
        extents.ok_or_else(|| RuntimeError::StateValue { name: port.name.clone(), ty: port.ty.to_string() })?;
    Ok(Tensor::zeros(port.ty.dtype, &extents))
}
