//! A program on a GPU: its kernels loaded, its weights prepared.

use std::sync::Arc;

use egret_ir::{Bindings, Tensor};
use egret_program::program::VERSION;
use egret_program::{BufferId, KernelBody, Place, Program, Step};
use egret_simd::Isa;

use super::device::Device;
use super::driver::Stream;
use super::error::CudaError;
use super::images::{CompileReport, compile};
use super::kernels::Functions;
use super::launch::{Addresses, Queue, fault, largest, reported, step_count};
use super::memory::{ALIGNMENT, DeviceBuffer, Pinned};
use super::{Session, State};
use crate::cache::Cache;
use crate::cpu::bind::{Binder, bind};
use crate::cpu::bound::{Bound, Entry};
use crate::cpu::memory::OutOfMemory;
use crate::executable::constant_bytes;
use crate::params::ParamReads;
use crate::{RuntimeError, validate};

/// How a program is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where compiled kernels are kept.
    pub cache: Cache,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions { cache: Cache::standard() }
    }
}

/// Where the bytes of a buffer that outlives runs are.
#[derive(Debug)]
enum Held {
    /// At this offset of the block.
    Block(usize),
    /// A param.
    Own(DeviceBuffer),
}

/// A program that is ready to run on a GPU: several sessions may run it at once.
#[derive(Debug)]
pub struct Executable {
    program: Arc<Program>,
    device: Arc<Device>,
    functions: Functions,
    report: CompileReport,
    /// By buffer.
    held: Vec<Option<Held>>,
    /// Constants and prepared buffers.
    block: DeviceBuffer,
    prepared_bytes: usize,
    constant_bytes: usize,
    param_bytes: usize,
}

impl Executable {
    /// Loads a program: compiles its kernels or finds them in the cache, takes its params from `weights`, and runs its
    /// preparation. Params that no run reads are asked for when preparation first needs them and dropped when it last did.
    ///
    /// # Errors
    /// A program for another version or kind of device, or a damaged one; a kernel that does not compile; a param without a
    /// value or of another type; no memory; what a kernel of the preparation reports.
    pub fn load(
        program: Arc<Program>,
        device: &Arc<Device>,
        weights: &dyn Fn(&str) -> Option<Tensor>,
        options: &LoadOptions,
    ) -> Result<Arc<Executable>, RuntimeError> {
        if program.version != VERSION {
            return Err(RuntimeError::Version { found: program.version, expected: VERSION });
        }
        validate::program(&program)?;
        for kernel in &program.kernels {
            let KernelBody::Cuda(code) = &kernel.body else {
                let why = "it is for a CPU".to_string();
                return Err(RuntimeError::Device { device: program.device.clone(), why });
            };
            if !device.runs(&code.arch) {
                let (needed, name, found) = (code.arch.clone(), device.name().to_string(), device.arch());
                return Err(CudaError::Architecture { needed, name, found }.into());
            }
        }
        let (images, report) = compile(&program, &device.arch(), device.image(), &options.cache)?;
        let functions = Functions::load(device, &program, &images)?;
        let held = program.buffers.iter().map(|_| None).collect();
        let block = DeviceBuffer::new(device, 0)?;
        let mut exe = Executable {
            program,
            device: device.clone(),
            functions,
            report,
            held,
            block,
            prepared_bytes: 0,
            constant_bytes: 0,
            param_bytes: 0,
        };
        exe.lay_out()?;
        exe.prepare(weights)?;
        Ok(Arc::new(exe))
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What compiling its kernels took.
    pub fn compile_report(&self) -> CompileReport {
        self.report
    }

    /// A session.
    ///
    /// # Errors
    /// If the program has state (use [`session_with`](Executable::session_with)), or there is no memory.
    pub fn session(self: &Arc<Executable>) -> Result<Session, RuntimeError> {
        Session::new(self, None)
    }

    /// A session that reads and updates `state`, which is on the same GPU.
    ///
    /// # Errors
    /// If the state lacks one that the program has or is on another GPU, or there is no memory.
    pub fn session_with(self: &Arc<Executable>, state: &Arc<State>) -> Result<Session, RuntimeError> {
        Session::new(self, Some(state))
    }

    pub(super) fn functions(&self) -> &Functions {
        &self.functions
    }

    /// Bytes of prepared buffers, of constants, and of params that runs read.
    pub(super) fn held_bytes(&self) -> (usize, usize, usize) {
        (self.prepared_bytes, self.constant_bytes, self.param_bytes)
    }

    /// Address of a buffer that outlives runs.
    pub(super) fn address(&self, buffer: usize) -> Option<u64> {
        Some(match self.held[buffer].as_ref()? {
            Held::Block(offset) => self.block.address() + *offset as u64,
            Held::Own(own) => own.address(),
        })
    }

    /// Binds steps.
    pub(super) fn bind(
        &self,
        steps: &[Step],
        bindings: &Bindings,
        staged: &[bool],
        kept: &[BufferId],
    ) -> Result<Bound, RuntimeError> {
        let entries = vec![Entry::Device; self.program.kernels.len()];
        // what instruction set drivers use means nothing here: there are none
        let isa = Isa::Portable;
        let binder = Binder { program: &self.program, entries: &entries, isa, threads: 1, bindings, staged, kept };
        bind(&binder, steps)
    }

    /// Gives constants and prepared buffers their places.
    fn lay_out(&mut self) -> Result<(), RuntimeError> {
        let program = self.program.clone();
        let too_large = OutOfMemory(usize::MAX);
        let (mut total, mut sizes) = (0usize, vec![0; program.buffers.len()]);
        for (i, buffer) in program.buffers.iter().enumerate() {
            let counter = match buffer.place {
                Place::Prepared => &mut self.prepared_bytes,
                Place::Constant(_) => &mut self.constant_bytes,
                _ => continue,
            };
            sizes[i] = constant_bytes(&program, i)?;
            *counter = counter.checked_add(sizes[i]).ok_or(too_large)?;
            self.held[i] = Some(Held::Block(total));
            let room = sizes[i].max(1).checked_next_multiple_of(ALIGNMENT).ok_or(too_large)?;
            total = total.checked_add(room).ok_or(too_large)?;
        }
        let named = || largest(&program, &program.prepare, &sizes);
        self.block = DeviceBuffer::new(&self.device, total).map_err(|e| e.naming(named))?;
        let stream = Stream::new(&self.device)?;
        for (i, buffer) in program.buffers.iter().enumerate() {
            let Place::Constant(k) = buffer.place else { continue };
            let bytes = &program.constants[k as usize];
            if bytes.len() != sizes[i] {
                return Err(RuntimeError::malformed(format!("constant {k} has {} bytes", bytes.len())));
            }
            if let Some(to) = self.address(i) {
                // SAFETY: the block has room for the bytes there; both live until the copies are done.
                unsafe { stream.upload(to, bytes.as_ptr(), bytes.len())? };
            }
        }
        Ok(stream.wait()?)
    }

    /// Takes a param.
    fn param(
        &mut self,
        buffer: usize,
        number: u32,
        weights: &dyn Fn(&str) -> Option<Tensor>,
        stream: &Stream,
    ) -> Result<usize, RuntimeError> {
        let program = self.program.clone();
        let tensor = crate::executable::param_value(&program, buffer, number, weights)?;
        let bytes = tensor.bytes();
        let name = || vec![(format!("param `{}`", program.params[number as usize].name), bytes.len())];
        let own = DeviceBuffer::new(&self.device, bytes.len()).map_err(|e| e.naming(name))?;
        // SAFETY: just allocated with this length; the tensor lives until the copy is done.
        unsafe { stream.upload(own.address(), bytes.as_ptr(), bytes.len())? };
        stream.wait()?;
        self.held[buffer] = Some(Held::Own(own));
        Ok(bytes.len())
    }

    /// Runs the preparation.
    fn prepare(&mut self, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<(), RuntimeError> {
        let program = self.program.clone();
        let stream = Stream::new(&self.device)?;
        let params = ParamReads::of(&program);
        for (buffer, number) in params.of_runs() {
            self.param_bytes += self.param(*buffer, *number, weights, &stream)?;
        }
        if program.prepare.is_empty() {
            return Ok(());
        }
        let bound = self.bind(&program.prepare, &Bindings::new(), &[], &[])?;
        let named = || largest(&program, &program.prepare, &bound.bytes);
        let arena = DeviceBuffer::new(&self.device, bound.arena_bytes).map_err(|e| e.naming(named))?;
        let steps = step_count(&program.prepare);
        let status = DeviceBuffer::new(&self.device, 4 * steps)?;
        let (word, told) = (Pinned::new(&self.device, 8)?, Pinned::new(&self.device, 4 * steps)?);
        // SAFETY: the buffer has these bytes.
        unsafe { stream.clear(status.address(), 4 * steps)? };
        let mut addresses = Addresses::default();
        addresses.reserve(program.buffers.len(), &bound);
        for at in 0..program.prepare.len() {
            for (buffer, number) in params.of_step(at) {
                if self.held[*buffer].is_none() {
                    self.param(*buffer, *number, weights, &stream)?;
                }
            }
            for i in 0..program.buffers.len() {
                let in_arena = bound.offsets[i].map(|offset| arena.address() + offset as u64);
                addresses.buffers[i] = in_arena.or(self.address(i)).unwrap_or(arena.address());
            }
            let mut queue = Queue {
                bound: &bound,
                functions: &self.functions,
                addresses: &mut addresses,
                stream: &stream,
                arena: arena.address(),
                status: status.address(),
                word: &word,
                sizes: &mut Bindings::new(),
                times: None,
            };
            // SAFETY: `bind` placed what lies in the arena, `lay_out` and `param` the rest; nothing else knows them.
            unsafe { queue.run(bound.tops[at], bound.tops[at + 1])? };
            for buffer in params.done_after(at) {
                stream.wait()?;
                self.held[*buffer] = None;
            }
        }
        // SAFETY: both have these bytes, and live until the copy is done.
        unsafe { stream.download(told.as_ptr(), status.address(), 4 * steps)? };
        stream.wait()?;
        // SAFETY: page-aligned and written; steps are as many.
        let told = unsafe { std::slice::from_raw_parts(told.as_ptr().cast::<u32>(), steps) };
        match reported(told) {
            Some((step, code)) => Err(fault(&program.prepare, step, code)),
            None => Ok(()),
        }
    }
}
