//! The compiled program.
//!
//! A program is plain data: kernels, the steps that launch them, and the buffers that they read and write. Extents are
//! [`Dim`]s, evaluated when a session knows its symbols.

use egret_ir::{DType, Dim, TensorType};
use serde::{Deserialize, Serialize};

use crate::driver::Driver;

/// Version of the serialised form; another version is refused.
pub const VERSION: u32 = 8;

/// A compiled program for one kind of device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the device description it was compiled for.
    pub device: String,
    /// f32 lanes of the blocked layout, and L of every driver.
    pub lanes: usize,
    /// What each run is given.
    pub inputs: Vec<Port>,
    /// What each run returns.
    pub outputs: Vec<Port>,
    /// Values given once, when the program is loaded.
    pub params: Vec<Port>,
    /// Values that live from run to run.
    pub states: Vec<Port>,
    /// Equalities that the symbols must satisfy.
    pub checks: Vec<Check>,
    /// Kernels, hooks included; each is there once.
    pub kernels: Vec<Kernel>,
    /// Buffers.
    pub buffers: Vec<Buffer>,
    /// Contents of [`Place::Constant`] buffers.
    pub constants: Vec<Vec<u8>>,
    /// Steps that `load` runs once: they read params and constants and write [`Place::Prepared`] buffers.
    pub prepare: Vec<Step>,
    /// Steps of a run.
    pub steps: Vec<Step>,
}

/// A named value at the border of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its type; row-major without gaps.
    pub ty: TensorType,
    /// Its buffer.
    pub buffer: BufferId,
}

/// An equality that symbols must satisfy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// One side.
    pub left: Dim,
    /// The other.
    pub right: Dim,
    /// What needs it.
    pub what: String,
    /// Where: nodes or lines.
    pub origin: String,
}

/// A buffer by its place in [`Program::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BufferId(pub u32);

/// A kernel by its place in [`Program::kernels`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KernelId(pub u32);

/// Where a buffer lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Given with each run: input by number.
    Input(u32),
    /// Returned by each run: output by number.
    Output(u32),
    /// Given at load: param by number.
    Param(u32),
    /// [`Program::constants`] by number.
    Constant(u32),
    /// Lives in the session's state: state by number.
    State(u32),
    /// Written by `prepare`, then read only.
    Prepared,
    /// Temporary of a run (or of `prepare`); shares memory with others that are not live at the same time.
    Arena,
    /// Slice `i` of another buffer in iteration `i` of the loop around the steps that use it.
    Slice {
        /// The buffer.
        of: BufferId,
        /// Bytes from a slice to the next.
        stride: Dim,
    },
    /// Part of an arena buffer: an operand of a concatenation, written where it belongs.
    Part {
        /// The buffer.
        of: BufferId,
        /// Bytes from its start.
        offset: Dim,
    },
}

/// A buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    /// Where it lives.
    pub place: Place,
    /// Element type.
    pub dtype: DType,
    /// Bytes as laid out, halo and channel padding included.
    pub bytes: Dim,
    /// Bytes of the elements alone.
    pub logical_bytes: Dim,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// A name made from the text: equal kernels have equal names.
    pub name: String,
    /// Family: `map`, `reduce`, `window`, `conv`, `gemm`, …
    pub family: String,
    /// Kernel IR, or driver and hooks, as text.
    pub text: String,
    /// What is launched.
    pub body: KernelBody,
}

/// What is launched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "a program has few hundred of them")]
pub enum KernelBody {
    /// Machine code of a kernel: `fn(buffers, dims, begin, end, scratch, status)`.
    Code(Code),
    /// Machine code of a hook; drivers call it.
    Hook(Code),
    /// CUDA C: a function of the kernel's name that takes the buffers' pointers, the dims as `long long`, and a pointer to
    /// the status word, by value. A grid has one dimension.
    Cuda(CudaCode),
    /// A Rust loop nest of the runtime. Arguments in the order that [`DriverArgs`] lists.
    Driver {
        /// Which one, with its problem and schedule.
        driver: Driver<Dim>,
        /// The hook of the epilogue, or of the score.
        hook: Option<KernelId>,
        /// The hook of the finisher.
        finisher: Option<KernelId>,
    },
}

/// The order of a driver's arguments in [`Launch::args`]; documentation, no data.
///
/// - conv: input, weights, output, then the epilogue's extras (bias and residual, or those of the hook), then the
///   hook's outputs if there is a hook. The weight gradient: x, gradient of y, gradient of w.
/// - pool: x, y, then the hook's extras and outputs if there is a hook.
/// - gemm: A, B, C, then the epilogue's extras, the hook's outputs, the finisher's extras, the finisher's outputs. With
///   hooks or a finisher C is the first output again.
/// - attention: q, k, v, o, the log-sum-exp if the problem has one, then the mask or the hook's extras.
/// - gradient of attention: q, k, v, o, log-sum-exp, gradient of o, gradients of q, k, v, then the mask or extras.
/// - relayout, pack: source, destination. channels: sources, destination.
/// - top_k: operand, values, places.
/// - non_zero: operand, places, their number. unique: operand, values, first places, inverse, counts, their number.
/// - suppression: boxes, scores, most, overlap, score, rows, their number.
pub struct DriverArgs;

/// Machine code of a function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Code {
    /// Code and its constants; to be aligned to 64.
    pub bytes: Vec<u8>,
    /// 8-byte absolute addresses to fill in.
    pub relocations: Vec<Relocation>,
    /// Offset of the entry.
    pub entry: u32,
    /// Bytes of scratch for each worker.
    pub scratch_bytes: usize,
}

/// CUDA C of a function, and how it is launched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CudaCode {
    /// The source: it includes no header, and begins with the parts of the prelude that the function uses.
    pub source: String,
    /// Bytes of each of these parts, in their order: functions that use the same are compiled together with one of it.
    pub prelude: Vec<u32>,
    /// The architecture that its schedule was made for: what runs it has at least as much.
    pub arch: String,
    /// Threads of a block.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

impl CudaCode {
    /// The parts of the prelude, and the function.
    ///
    /// `None` where the source does not begin with parts of these lengths.
    pub fn parts(&self) -> Option<(Vec<&str>, &str)> {
        let (mut parts, mut rest) = (Vec::with_capacity(self.prelude.len()), self.source.as_str());
        for len in &self.prelude {
            let (part, after) = rest.split_at_checked(usize::try_from(*len).ok()?)?;
            parts.push(part);
            rest = after;
        }
        Some((parts, rest))
    }

    /// One source of several functions, whose names differ: the parts of the prelude that any of them uses, each once and in
    /// order, and the functions.
    ///
    /// `None` as of [`CudaCode::parts`].
    pub fn together(codes: &[&CudaCode]) -> Option<String> {
        let (mut prelude, mut functions): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for code in codes {
            let (parts, function) = code.parts()?;
            let mut after = 0;
            for part in parts {
                match prelude.iter().position(|known| *known == part) {
                    Some(at) => after = at + 1,
                    None => {
                        prelude.insert(after, part);
                        after += 1;
                    }
                }
            }
            functions.push(function);
        }
        prelude.extend(functions);
        Some(prelude.join("\n"))
    }
}

/// A place in code that holds the address of a symbol plus an addend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relocation {
    /// Offset in the code.
    pub offset: u32,
    /// The symbol.
    pub symbol: Symbol,
    /// Added to its address.
    pub addend: i64,
}

/// A function that code calls.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Symbol {
    /// A wide function over a strip: `exp`, `tanh`, …
    Vector(String),
    /// A scalar function by its C name: `expf`, `pow`, …
    Scalar(String),
}

/// A place in a buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arg {
    /// The buffer.
    pub buffer: BufferId,
    /// Bytes from its start.
    pub offset: Dim,
    /// The step writes it.
    pub writes: bool,
}

impl Arg {
    /// A buffer from its start, read.
    pub fn read(buffer: BufferId) -> Arg {
        Arg { buffer, offset: Dim::ZERO, writes: false }
    }

    /// A buffer from its start, written.
    pub fn write(buffer: BufferId) -> Arg {
        Arg { buffer, offset: Dim::ZERO, writes: true }
    }
}

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Launches a kernel.
    Launch(Launch),
    /// Copies bytes.
    Copy {
        /// From.
        source: Arg,
        /// To.
        destination: Arg,
        /// How many.
        bytes: Dim,
    },
    /// Repeats steps.
    Loop(Loop),
    /// Tells a data-dependent size, which the steps behind it may use.
    Size(Size),
    /// Checks an equality of sizes that only the data tell.
    Check(Check),
    /// Runs one of two lists of steps.
    Branch(Branch),
    /// Repeats steps as long as others say so.
    While(While),
}

impl Step {
    /// The lists of steps that it holds, in order.
    pub fn inner(&self) -> [&[Step]; 2] {
        match self {
            Step::Loop(inner) => [&inner.body, &[]],
            Step::Branch(branch) => [&branch.then, &branch.otherwise],
            Step::While(inner) => [&inner.condition, &inner.body],
            Step::Launch(_) | Step::Copy { .. } | Step::Size(_) | Step::Check(_) => [&[], &[]],
        }
    }
}

/// A data-dependent size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// Its [`fresh_name`](Dim::fresh_name).
    pub name: String,
    /// What it may not exceed.
    pub bound: Dim,
    /// What tells it.
    pub value: SizeValue,
    /// The graph's nodes that make it.
    pub origin: String,
}

/// What tells a data-dependent size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SizeValue {
    /// An `i64` in memory.
    Read(Arg),
    /// Sizes that are known.
    Known(Dim),
}

/// One of two lists of steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    /// A `bool` in memory.
    pub condition: Arg,
    /// Run where it is true.
    pub then: Vec<Step>,
    /// Run where it is false.
    pub otherwise: Vec<Step>,
}

/// Repeats steps: `condition`, and as long as it leaves true in `test`, `body`. Carried values are those of [`Loop`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct While {
    /// Run before each trip, and once more at the end.
    pub condition: Vec<Step>,
    /// The `bool` that these steps write.
    pub test: Arg,
    /// The greatest number of trips.
    pub bound: Option<Dim>,
    /// Carried values.
    pub carried: Vec<Carried>,
    /// One trip.
    pub body: Vec<Step>,
    /// Where the number of trips goes, an `i64`.
    pub trips: Arg,
}

/// A launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// The kernel.
    pub kernel: KernelId,
    /// Its buffers, in the kernel's order.
    pub args: Vec<Arg>,
    /// Its dim parameters (generated kernels only).
    pub dims: Vec<Dim>,
    /// Points of its grid, on CUDA blocks (generated kernels only).
    pub grid: Dim,
    /// Points of the grid below which one thread is enough (code only).
    pub grain: i64,
    /// Borders that are zeroed before the launch, because what is written is read with a halo.
    pub clear: Vec<Halo>,
    /// What status codes mean here.
    pub faults: Vec<Fault>,
    /// The graph's nodes that it computes.
    pub origin: String,
    /// Floating-point operations.
    pub flops: Dim,
    /// Bytes read and written.
    pub bytes: Dim,
}

/// The border of a tensor in blocked channels `[outer][spatial + 2 halo][lanes]` of f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Halo {
    /// Where it starts.
    pub arg: Arg,
    /// Batch items times channel blocks.
    pub outer: Dim,
    /// Spatial extents without halo.
    pub spatial: Vec<Dim>,
    /// Halo of each spatial axis.
    pub halo: Vec<Dim>,
}

/// What a status code of a launch means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// The code.
    pub code: u32,
    /// One sentence.
    pub message: String,
}

/// Repeats steps. Before the first iteration each carried buffer gets its first value; after each iteration, its next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loop {
    /// Iterations.
    pub length: Dim,
    /// [`Place::Slice`] buffers run from the last slice to the first.
    pub reverse: bool,
    /// Carried values.
    pub carried: Vec<Carried>,
    /// One iteration.
    pub body: Vec<Step>,
}

/// A value carried from iteration to iteration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    /// First value.
    pub first: Arg,
    /// What the body reads.
    pub current: BufferId,
    /// What the body writes; after the last iteration `current` holds it too.
    pub next: Arg,
    /// Bytes.
    pub bytes: Dim,
}

impl Program {
    /// A program that does nothing, for a device of that name whose blocks of channels have so many.
    pub fn empty(device: &str, lanes: usize) -> Program {
        Program {
            version: VERSION,
            device: device.to_string(),
            lanes,
            inputs: Vec::new(),
            outputs: Vec::new(),
            params: Vec::new(),
            states: Vec::new(),
            checks: Vec::new(),
            kernels: Vec::new(),
            buffers: Vec::new(),
            constants: Vec::new(),
            prepare: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// A buffer.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }

    /// A kernel.
    pub fn kernel(&self, id: KernelId) -> &Kernel {
        &self.kernels[id.0 as usize]
    }

    /// Steps of a run that launch code, those inside loops and branches counted once.
    pub fn launches(&self) -> Vec<&Launch> {
        let mut launches = Vec::new();
        let mut todo: Vec<&Step> = self.steps.iter().rev().collect();
        while let Some(step) = todo.pop() {
            match step {
                Step::Launch(launch) => launches.push(launch),
                other => todo.extend(other.inner().into_iter().rev().flat_map(|steps| steps.iter().rev())),
            }
        }
        launches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(parts: &[&str], function: &str) -> CudaCode {
        let prelude = parts.iter().map(|part| part.len() as u32).collect();
        let source = parts.concat() + function;
        CudaCode { source, prelude, arch: "sm_80".into(), threads: [32, 1, 1], shared_bytes: 0 }
    }

    #[test]
    fn a_source_of_several_functions_has_each_part_of_the_prelude_once() {
        let all = [code(&["t;", "m;"], "a"), code(&["t;", "v;"], "b"), code(&["t;", "c;", "m;"], "c")];
        let codes: Vec<&CudaCode> = all.iter().collect();
        assert_eq!(CudaCode::together(&codes).unwrap(), "t;\nc;\nv;\nm;\na\nb\nc");
        // lengths that the source does not have
        let wrong = CudaCode { prelude: vec![100], ..code(&[], "a") };
        assert_eq!(CudaCode::together(&[&all[0], &wrong]), None);
    }
}
