//! What a run gives.

use std::time::Instant;

use egret_ir::{DType, Element, Tensor};
use egret_program::{Program, Step};

use crate::binding::Binding;
use crate::cpu::bind::every_step;
use crate::cpu::memory::Buffer;

/// The outputs of a run, valid until the next.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'s> {
    pub(crate) program: &'s Program,
    pub(crate) binding: &'s Binding,
    pub(crate) places: Places<'s>,
}

/// Where outputs are, by number.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Places<'s> {
    Host(&'s [Buffer]),
    /// Page-locked memory that a GPU wrote.
    #[cfg(feature = "cuda")]
    Pinned(&'s [crate::cuda::memory::Pinned]),
}

/// An output of a run.
#[derive(Clone, Copy, Debug)]
pub struct Output<'s> {
    name: &'s str,
    dtype: DType,
    shape: &'s [usize],
    bytes: &'s [u8],
}

impl<'s> Outputs<'s> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.program.outputs.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.program.outputs.is_empty()
    }

    /// Output `index`.
    pub fn at(&self, index: usize) -> Option<Output<'s>> {
        let port = self.program.outputs.get(index)?;
        let bound = &self.binding.outputs[index];
        let start: *const u8 = match self.places {
            Places::Host(buffers) => buffers[index].as_ptr(),
            #[cfg(feature = "cuda")]
            Places::Pinned(buffers) => buffers[index].as_ptr(),
        };
        // SAFETY: the session reserved at least as many bytes, page-aligned and initialised, and is borrowed.
        let bytes = unsafe { std::slice::from_raw_parts(start, bound.bytes) };
        Some(Output { name: &port.name, dtype: port.ty.dtype, shape: &bound.shape, bytes })
    }

    /// The output of that name.
    pub fn get(&self, name: &str) -> Option<Output<'s>> {
        self.at(self.program.outputs.iter().position(|port| port.name == name)?)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Output<'s>> + use<'s> {
        let this = *self;
        (0..this.len()).filter_map(move |i| this.at(i))
    }
}

impl<'s> Output<'s> {
    /// Its name.
    pub fn name(&self) -> &'s str {
        self.name
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents.
    pub fn shape(&self) -> &'s [usize] {
        self.shape
    }

    /// The elements as bytes, row-major.
    pub fn bytes(&self) -> &'s [u8] {
        self.bytes
    }

    /// The elements, or `None` when they are of another type.
    pub fn as_slice<T: Element>(&self) -> Option<&'s [T]> {
        if T::DTYPE != self.dtype {
            return None;
        }
        // SAFETY: the type is right, the start is aligned to a page, every bit pattern is valid.
        Some(unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() / self.dtype.size()) })
    }

    /// A copy that outlives the session.
    pub fn to_tensor(&self) -> Tensor {
        let mut tensor = Tensor::zeros(self.dtype, self.shape);
        tensor.bytes_mut().copy_from_slice(self.bytes);
        tensor
    }
}

/// A measured step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTime {
    /// The kernel.
    pub name: String,
    /// Its family; `copy` and `loop` for steps that launch nothing.
    pub family: String,
    /// The graph's nodes that it computes.
    pub origin: String,
    /// Nanoseconds of the last run, over all iterations.
    pub ns: u64,
    /// How often the last run executed it.
    pub calls: u64,
    /// Floating-point operations of one execution.
    pub flops: f64,
    /// Bytes read and written by one execution.
    pub bytes: f64,
}

impl StepTime {
    /// An entry for each step of a program, in preorder, nothing measured yet.
    pub(crate) fn of(program: &Program) -> Vec<StepTime> {
        every_step(&program.steps)
            .map(|step| {
                let mut time = StepTime::default();
                match step {
                    Step::Launch(launch) => {
                        let kernel = program.kernel(launch.kernel);
                        time.name.clone_from(&kernel.name);
                        time.family.clone_from(&kernel.family);
                        time.origin.clone_from(&launch.origin);
                    }
                    Step::Copy { .. } => time.family = "copy".into(),
                    Step::Loop(_) | Step::While(_) => time.family = "loop".into(),
                    Step::Branch(_) => time.family = "branch".into(),
                    Step::Size(_) | Step::Check(_) => time.family = "size".into(),
                }
                time
            })
            .collect()
    }
}

/// When a step was executed in a profiled run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The step, by its place in the timings.
    pub step: usize,
    /// Nanoseconds from the beginning of the run.
    pub begin: u64,
    /// Nanoseconds that it took; of a loop's step, what the loop itself took.
    pub ns: u64,
}

/// Times that are being taken.
#[derive(Debug)]
pub(crate) struct Times {
    /// Nanoseconds and executions by step.
    pub by_step: Vec<(u64, u64)>,
    /// Every execution, in order, up to [`Times::MOST`].
    pub spans: Vec<Span>,
    /// When the run began.
    pub start: Instant,
}

impl Times {
    /// Executions that are told apart.
    pub const MOST: usize = 1 << 20;

    pub fn new(steps: usize) -> Times {
        Times { by_step: vec![(0, 0); steps], spans: Vec::new(), start: Instant::now() }
    }

    /// Forgets the last run.
    pub fn begin(&mut self) {
        self.by_step.fill((0, 0));
        self.spans.clear();
        self.start = Instant::now();
    }

    /// Counts an execution that began then and ends now.
    pub fn count(&mut self, step: usize, since: Instant, executed: bool) {
        let ns = since.elapsed().as_nanos() as u64;
        if let Some(time) = self.by_step.get_mut(step) {
            *time = (time.0 + ns, time.1 + u64::from(executed));
        }
        if self.spans.len() < Times::MOST {
            self.spans.push(Span { step, begin: since.duration_since(self.start).as_nanos() as u64, ns });
        }
    }
}

/// What a run copied, in bytes; what kernels write is not copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Of inputs, to where kernels read them: into the arena where they need room around them, or onto a GPU.
    pub inputs: usize,
    /// Of results, to where the caller finds them; from a GPU, with a status word of four bytes for each step.
    pub outputs: usize,
    /// Within the program: by its steps, and of what loops carry.
    pub within: usize,
}

/// Memory of a session, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Temporaries of the last run, as planned.
    pub arena_bytes: usize,
    /// Most bytes of temporaries that live at once: no plan needs less.
    pub live_bytes_bound: usize,
    /// The same, counting elements alone, without halo and padding.
    pub logical_live_bytes: usize,
    /// The arena as it is: the largest so far.
    pub reserved_bytes: usize,
    /// Prepared weights, shared by all sessions.
    pub prepared_bytes: usize,
    /// Constants, shared by all sessions.
    pub constant_bytes: usize,
    /// Params that runs read, shared by all sessions.
    pub param_bytes: usize,
    /// The session's outputs.
    pub output_bytes: usize,
    /// Scratch of all threads.
    pub scratch_bytes: usize,
    /// State, shared by all sessions that use it.
    pub state_bytes: usize,
}
