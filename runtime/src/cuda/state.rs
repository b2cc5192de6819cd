//! Values that live on a GPU from run to run.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::result;
use egret_ir::Tensor;

use super::device::Device;
use super::driver::check;
use super::executable::Executable;
use super::memory::DeviceBuffer;
use crate::RuntimeError;
use crate::state::{Entry, Table};

/// A named set of tensors on a GPU that sessions of one or several executables share, as [`crate::State`] is on the CPU.
#[derive(Debug)]
pub struct State {
    device: Arc<Device>,
    held: Mutex<Held>,
}

/// The tensors of a [`State`].
#[derive(Debug, Default)]
pub(super) struct Held {
    pub table: Table,
    blocks: Vec<DeviceBuffer>,
}

impl Held {
    /// Where a state is.
    pub(super) fn address(&self, entry: usize) -> u64 {
        let entry = &self.table.entries[entry];
        self.blocks[entry.block].address() + entry.offset as u64
    }

    fn place(&mut self, device: &Arc<Device>, tensors: &[(String, Tensor)]) -> Result<Vec<Entry>, RuntimeError> {
        let (entries, block, total) = self.table.lay_out(tensors, self.blocks.len())?;
        let memory = DeviceBuffer::new(device, total)?;
        for (entry, (_, tensor)) in entries.iter().zip(tensors) {
            upload(device, memory.address() + entry.offset as u64, tensor)?;
        }
        if block < self.blocks.len() {
            self.blocks[block] = memory
        } else {
            self.blocks.push(memory)
        }
        Ok(entries)
    }
}

/// Copies a tensor to a place that has room for it.
fn upload(device: &Device, to: u64, tensor: &Tensor) -> Result<(), RuntimeError> {
    if tensor.bytes().is_empty() {
        return Ok(());
    }
    device.bind()?;
    // SAFETY: the callers' places have room.
    check("cuMemcpyHtoD", unsafe { result::memcpy_htod_sync(to, tensor.bytes()) })?;
    Ok(())
}

impl State {
    /// An empty set on a GPU.
    pub fn empty(device: &Arc<Device>) -> Arc<State> {
        Arc::new(State { device: device.clone(), held: Mutex::default() })
    }

    /// Adds the states of a program; those that exist keep their values.
    ///
    /// # Errors
    /// A value of another type than the declared one, no value where extents are not constant, no memory.
    pub fn add(&self, exe: &Executable, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<(), RuntimeError> {
        let mut held = self.lock();
        let new = held.table.new_of(&exe.program().states, weights)?;
        if !new.is_empty() {
            let entries = held.place(&self.device, &new)?;
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
    /// If there is none of that name, or the GPU is lost.
    pub fn get(&self, name: &str) -> Result<Tensor, RuntimeError> {
        let held = self.lock();
        let index = held.table.known(name)?;
        let entry = &held.table.entries[index];
        let mut tensor = Tensor::zeros(entry.dtype, &entry.shape);
        if entry.bytes > 0 {
            self.device.bind()?;
            // SAFETY: the block holds these bytes, and nobody writes them while we hold the lock.
            check("cuMemcpyDtoH", unsafe { result::memcpy_dtoh_sync(tensor.bytes_mut(), held.address(index)) })?;
        }
        Ok(tensor)
    }

    /// Sets a state. Its extents may change; sessions then bind anew.
    ///
    /// # Errors
    /// If there is none of that name, its element type is another, there is no memory, or the GPU is lost.
    pub fn set(&self, name: &str, value: &Tensor) -> Result<(), RuntimeError> {
        let mut held = self.lock();
        let index = held.table.settable(name, value)?;
        if held.table.entries[index].shape == value.shape() {
            return upload(&self.device, held.address(index), value);
        }
        for entry in held.place(&self.device, &[(name.to_string(), value.clone())])? {
            held.table.entries[index] = entry;
        }
        Ok(())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Held> {
        // A run that panicked has left numbers, not broken invariants.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }
}
