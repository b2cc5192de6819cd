//! A loaded program: its code mapped, its weights prepared.

use std::sync::Arc;

use egret_ir::{Bindings, Tensor};
use egret_program::driver::hook::EpilogueFn;
use egret_program::{BufferId, Carried, KernelBody, Place, Program, SizeValue, Step, Symbol, memory::ALIGNMENT};
use egret_simd::{Isa, VectorFunction, vector_function};

use crate::cpu::bind::{Binder, bind, step_at};
use crate::cpu::bound::{Bound, Entry, KernelFn};
use crate::cpu::code::{Code, Function, Relocation, scalar_function};
use crate::cpu::drivers::ScratchPool;
use crate::cpu::launch::{Pointers, Reported, Runner, Stop};
use crate::cpu::memory::{Buffer, OutOfMemory};
use crate::cpu::team::Team;
use crate::params::ParamReads;
use crate::{RuntimeError, Session, State, validate};

/// How a program is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Threads of preparation and of sessions; 0: as many as the process may use.
    pub threads: usize,
    /// Instruction set of the drivers; otherwise that of the program's device.
    pub isa: Option<Isa>,
}

/// Where the bytes of a buffer that outlives runs are.
#[derive(Debug)]
enum Held {
    /// At this offset of the block.
    Block(usize),
    /// A param as it was given.
    Tensor(Tensor),
    /// A param with slack behind it.
    Own(Buffer),
}

/// A program that is ready to run: several sessions may run it at once.
#[derive(Debug)]
pub struct Executable {
    program: Arc<Program>,
    isa: Isa,
    threads: usize,
    entries: Vec<Entry>,
    /// Keeps the functions of `entries` mapped.
    _code: Code,
    /// By buffer.
    held: Vec<Option<Held>>,
    /// Constants and prepared buffers.
    block: Buffer,
    slack: Vec<bool>,
    prepared_bytes: usize,
    constant_bytes: usize,
    param_bytes: usize,
}

/// As many threads as the process may use.
pub(crate) fn thread_count(asked: usize) -> usize {
    if asked > 0 { asked } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

impl Executable {
    /// Loads a program: maps its code, takes its params from `weights`, and runs its preparation. Params that no run
    /// reads are asked for when preparation first needs them and dropped when it last did.
    ///
    /// ```
    /// use egret_program::{Program, program::VERSION};
    /// use egret_runtime::{Executable, LoadOptions};
    /// # use std::sync::Arc;
    /// let program = Program {
    ///     version: VERSION, device: "x86-64-portable".into(), lanes: 8, inputs: vec![], outputs: vec![], params: vec![],
    ///     states: vec![], checks: vec![], kernels: vec![], buffers: vec![], constants: vec![], prepare: vec![],
    ///     steps: vec![],
    /// };
    /// let exe = Executable::load(Arc::new(program), &|_| None, LoadOptions::default())?;
    /// assert!(exe.session()?.run(&[])?.is_empty());
    /// # Ok::<(), egret_runtime::RuntimeError>(())
    /// ```
    ///
    /// # Errors
    /// A program for another version or machine, or a damaged one; a param without a value or of another type; no
    /// memory; what a kernel of the preparation reports.
    pub fn load(
        program: Arc<Program>,
        weights: &dyn Fn(&str) -> Option<Tensor>,
        options: LoadOptions,
    ) -> Result<Arc<Executable>, RuntimeError> {
        let isa = validate::isa(&program, options.isa)?;
        validate::program(&program)?;
        let (code, entries) = map_code(&program, isa)?;
        let threads = thread_count(options.threads);
        let slack = validate::needs_slack(&program);
        let held = program.buffers.iter().map(|_| None).collect();
        let block = Buffer::new(0)?;
        let mut exe = Executable {
            program,
            isa,
            threads,
            entries,
            _code: code,
            held,
            block,
            slack,
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

    /// Instruction set of the drivers.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads of a session, unless it asks for another number.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// A session.
    ///
    /// # Errors
    /// If the program has state (use [`session_with`](Executable::session_with)), or there is no memory.
    pub fn session(self: &Arc<Executable>) -> Result<Session, RuntimeError> {
        Session::new(self, None, self.threads)
    }

    /// A session that reads and updates `state`.
    ///
    /// # Errors
    /// If the state lacks one that the program has, or there is no memory.
    pub fn session_with(self: &Arc<Executable>, state: &Arc<State>) -> Result<Session, RuntimeError> {
        Session::new(self, Some(state), self.threads)
    }

    /// Bytes of prepared buffers, of constants, and of params that runs read.
    pub fn held_bytes(&self) -> (usize, usize, usize) {
        (self.prepared_bytes, self.constant_bytes, self.param_bytes)
    }

    /// Address of a buffer that outlives runs.
    pub(crate) fn pointer(&self, buffer: usize) -> Option<*mut u8> {
        match self.held[buffer].as_ref()? {
            Held::Block(offset) => Some(self.block.as_ptr::<u8>().wrapping_add(*offset)),
            Held::Tensor(tensor) => Some(tensor.bytes().as_ptr().cast_mut()),
            Held::Own(own) => Some(own.as_ptr()),
        }
    }

    /// Whether a driver reads this buffer beyond its end.
    pub(crate) fn needs_slack(&self, buffer: usize) -> bool {
        self.slack[buffer]
    }

    /// Binds the steps of a run.
    pub(crate) fn bind(
        &self,
        bindings: &Bindings,
        threads: usize,
        staged: &[bool],
        kept: &[BufferId],
    ) -> Result<Bound, RuntimeError> {
        let binder =
            Binder { program: &self.program, entries: &self.entries, isa: self.isa, threads, bindings, staged, kept };
        bind(&binder, &self.program.steps)
    }

    /// Why a run ended early, as an error.
    pub(crate) fn stopped(&self, steps: &[Step], stop: Stop) -> RuntimeError {
        match stop {
            Stop::Reported(reported) => self.fault(steps, reported),
            Stop::Error(error) => *error,
        }
    }

    /// What a kernel reported, as an error.
    fn fault(&self, steps: &[Step], reported: Reported) -> RuntimeError {
        let code = reported.code;
        let Some(Step::Launch(launch)) = step_at(steps, reported.step) else {
            return RuntimeError::malformed(format!("a step that is no launch reported {code}"));
        };
        let message = launch.faults.iter().find(|fault| fault.code == code);
        let message = message.map_or_else(|| "a kernel reported an error".to_string(), |fault| fault.message.clone());
        RuntimeError::Fault { origin: launch.origin.clone(), code, message }
    }

    /// Gives constants and prepared buffers their places.
    fn lay_out(&mut self) -> Result<(), RuntimeError> {
        let program = self.program.clone();
        let too_large = OutOfMemory(usize::MAX);
        let mut total = 0usize;
        for (i, buffer) in program.buffers.iter().enumerate() {
            let counter = match buffer.place {
                Place::Prepared => &mut self.prepared_bytes,
                Place::Constant(_) => &mut self.constant_bytes,
                _ => continue,
            };
            let bytes = constant_bytes(&program, i)?;
            *counter = counter.checked_add(bytes).ok_or(too_large)?;
            self.held[i] = Some(Held::Block(total));
            let room = bytes.checked_next_multiple_of(ALIGNMENT).ok_or(too_large)?;
            total = total.checked_add(room).ok_or(too_large)?;
        }
        self.block = Buffer::new(total)?;
        for (i, buffer) in program.buffers.iter().enumerate() {
            let Place::Constant(k) = buffer.place else { continue };
            let bytes = &program.constants[k as usize];
            if bytes.len() != constant_bytes(&program, i)? {
                return Err(RuntimeError::malformed(format!("constant {k} has {} bytes", bytes.len())));
            }
            if let Some(to) = self.pointer(i) {
                // SAFETY: the block has room for the bytes there, and nobody else knows it yet.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
            }
        }
        Ok(())
    }

    /// Takes a param.
    fn param(
        &mut self,
        buffer: usize,
        number: u32,
        weights: &dyn Fn(&str) -> Option<Tensor>,
    ) -> Result<usize, RuntimeError> {
        let tensor = param_value(&self.program, buffer, number, weights)?;
        let bytes = tensor.bytes();
        let count = bytes.len();
        self.held[buffer] = Some(if self.slack[buffer] || count == 0 {
            let own = Buffer::new(count)?;
            // SAFETY: just allocated with this length.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), own.as_ptr(), count) };
            Held::Own(own)
        } else {
            Held::Tensor(tensor)
        });
        Ok(count)
    }

    /// Runs the preparation.
    fn prepare(&mut self, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<(), RuntimeError> {
        let program = self.program.clone();
        let params = ParamReads::of(&program);
        for (buffer, number) in params.of_runs() {
            self.param_bytes += self.param(*buffer, *number, weights)?;
        }
        if program.prepare.is_empty() {
            return Ok(());
        }
        let bindings = Bindings::new();
        let binder = Binder {
            program: &program,
            entries: &self.entries,
            isa: self.isa,
            threads: self.threads,
            bindings: &bindings,
            staged: &[],
            kept: &[],
        };
        let bound = bind(&binder, &program.prepare)?;
        let team = Team::new(self.threads);
        let arena = Buffer::new(bound.arena_bytes)?;
        let scratch = ScratchPool::new(team.size(), bound.scratch)?;
        let mut pointers = Pointers::default();
        pointers.reserve(program.buffers.len(), &bound);
        let _awake = team.awake();
        for at in 0..program.prepare.len() {
            for (buffer, number) in params.of_step(at) {
                if self.held[*buffer].is_none() {
                    self.param(*buffer, *number, weights)?;
                }
            }
            for i in 0..program.buffers.len() {
                let in_arena = bound.offsets[i].map(|offset| arena.as_ptr::<u8>().wrapping_add(offset));
                pointers.buffers[i] = in_arena.or(self.pointer(i)).unwrap_or(arena.as_ptr());
            }
            let (team, scratch, base) = (&team, &scratch, arena.as_ptr());
            let sizes = &mut Bindings::new();
            let copied = &std::cell::Cell::new(0);
            let mut runner = Runner {
                bound: &bound,
                pointers: &mut pointers,
                arena: base,
                team,
                scratch,
                sizes,
                times: None,
                copied,
            };
            // SAFETY: `bind` placed what lies in the arena, `lay_out` and `param` the rest; nothing else knows them.
            let ran = unsafe { runner.run(bound.tops[at], bound.tops[at + 1]) };
            ran.map_err(|stop| self.stopped(&program.prepare, stop))?;
            for buffer in params.done_after(at) {
                self.held[*buffer] = None;
            }
        }
        Ok(())
    }
}

/// The value of a param, which has the declared type and the size of its buffer.
pub(crate) fn param_value(
    program: &Program,
    buffer: usize,
    number: u32,
    weights: &dyn Fn(&str) -> Option<Tensor>,
) -> Result<Tensor, RuntimeError> {
    let port = &program.params[number as usize];
    let missing = || RuntimeError::MissingParam { name: port.name.clone(), ty: port.ty.to_string() };
    let tensor = weights(&port.name).ok_or_else(missing)?;
    let name = format!("param `{}`", port.name);
    let given = egret_ir::bind::Given { name: &name, declared: &port.ty, dtype: tensor.dtype(), shape: tensor.shape() };
    egret_ir::bind::solve(&[given]).map_err(RuntimeError::Binding)?;
    if constant_bytes(program, buffer)? != tensor.bytes().len() {
        return Err(RuntimeError::malformed(format!("the buffer of {name} has not its size")));
    }
    Ok(tensor)
}

/// Every buffer that a step itself uses, without the body of a loop.
pub(crate) fn each_buffer(step: &Step, visit: &mut dyn FnMut(BufferId)) {
    match step {
        Step::Launch(launch) => {
            launch.args.iter().for_each(|arg| visit(arg.buffer));
            launch.clear.iter().for_each(|halo| visit(halo.arg.buffer));
        }
        Step::Copy { source, destination, .. } => {
            visit(source.buffer);
            visit(destination.buffer);
        }
        Step::Loop(inner) => carried(&inner.carried, visit),
        Step::While(inner) => {
            carried(&inner.carried, visit);
            visit(inner.test.buffer);
            visit(inner.trips.buffer);
        }
        Step::Branch(branch) => visit(branch.condition.buffer),
        Step::Size(size) => {
            if let SizeValue::Read(arg) = &size.value {
                visit(arg.buffer);
            }
        }
        Step::Check(_) => {}
    }
}

fn carried(values: &[Carried], visit: &mut dyn FnMut(BufferId)) {
    for carry in values {
        visit(carry.first.buffer);
        visit(carry.current);
        visit(carry.next.buffer);
    }
}

/// Bytes of a buffer that depends on no symbol.
pub(crate) fn constant_bytes(program: &Program, buffer: usize) -> Result<usize, RuntimeError> {
    let dim = &program.buffers[buffer].bytes;
    let what = || format!("bytes of buffer {buffer}");
    let value = dim.eval(&Bindings::new()).map_err(|why| RuntimeError::size(what(), &why))?;
    usize::try_from(value).map_err(|_| RuntimeError::Size { what: what(), why: format!("{value}, below zero") })
}

/// Maps the code of all kernels.
fn map_code(program: &Program, isa: Isa) -> Result<(Code, Vec<Entry>), RuntimeError> {
    let mut functions = Vec::new();
    for kernel in &program.kernels {
        if let KernelBody::Code(code) | KernelBody::Hook(code) = &kernel.body {
            let relocations = code.relocations.iter().map(|r| Relocation {
                offset: r.offset as usize,
                symbol: &r.symbol,
                addend: r.addend,
            });
            let entry = code.entry as usize;
            functions.push(Function { bytes: &code.bytes, entry, relocations: relocations.collect() });
        }
    }
    let code = Code::map(&functions, |symbol| match symbol {
        Symbol::Scalar(name) => scalar_function(name),
        Symbol::Vector(name) => {
            VectorFunction::from_name(name).and_then(|f| vector_function(isa, f)).map(|f| f as *const u8)
        }
    })?;
    let mut next = 0;
    let mut entries = Vec::with_capacity(program.kernels.len());
    for kernel in &program.kernels {
        let hook = match &kernel.body {
            KernelBody::Cuda(_) => return Err(RuntimeError::malformed("a kernel of a GPU in a program for a CPU")),
            KernelBody::Driver { .. } => {
                entries.push(Entry::Driver);
                continue;
            }
            body => matches!(body, KernelBody::Hook(_)),
        };
        let at = code.entry(next).ok_or_else(|| RuntimeError::malformed("a kernel without code"))?;
        next += 1;
        // SAFETY: the compiler gave the function this ABI; that is the contract of `KernelBody`.
        entries.push(unsafe {
            if hook {
                Entry::Hook(std::mem::transmute::<*const u8, EpilogueFn>(at))
            } else {
                Entry::Kernel(std::mem::transmute::<*const u8, KernelFn>(at))
            }
        });
    }
    Ok((code, entries))
}
