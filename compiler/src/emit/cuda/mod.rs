//! The CUDA emitter: kernel IR printed as header-free CUDA C that a person can follow.

mod expr;
mod stmt;
mod tile;

use std::fmt::Write;

use egret_ir::DType;

use super::EmitError;
use crate::kernel::{Access, Kernel, Space, Stmt, TileStmt};

const TYPES: &str = include_str!("prelude/types.cuh");
const SCALAR: &str = include_str!("prelude/scalar.cuh");
const REDUCE: &str = include_str!("prelude/reduce.cuh");
const VECTOR: &str = include_str!("prelude/vector.cuh");
const COPY: &str = include_str!("prelude/copy.cuh");
const MATRIX: &str = include_str!("prelude/matrix.cuh");

/// Static shared memory that a kernel may have; more is dynamic.
const STATIC_SHARED_BYTES: usize = 48 * 1024;

/// CUDA C of one kernel: plain data.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CudaSource {
    /// The function's name.
    pub name: String,
    /// The prelude's parts that the kernel uses, and the kernel.
    pub text: String,
    /// Bytes of each of these parts.
    pub prelude: Vec<u32>,
    /// Threads of a block.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory to launch with.
    pub dynamic_shared_bytes: usize,
}

/// Emits a kernel. The lines of provenance are printed as comments above the function; the name, a hash of the kernel's
/// text, does not depend on them.
///
/// The function takes the buffers' pointers, the dims as `long long`, and the status word's pointer; it is launched with
/// as many blocks, in one dimension, as the product of the grid's extents.
pub fn emit(kernel: &Kernel, provenance: &[String]) -> Result<CudaSource, EmitError> {
    kernel
        .verify()
        .map_err(|findings| EmitError::Malformed(findings.first().map(ToString::to_string).unwrap_or_default()))?;
    if kernel.abi != crate::kernel::Abi::Kernel {
        return Err(EmitError::UnsupportedForm { backend: "CUDA", what: "hooks" });
    }
    let has = |f: &dyn Fn(&Stmt) -> bool| kernel.body.iter().any(|s| s.any(&mut |s| f(s)));
    let has_tile = |f: &dyn Fn(&TileStmt) -> bool| has(&|s| matches!(s, Stmt::Tile(tile) if f(tile)));
    let reduces = has(&|s| matches!(s, Stmt::WarpReduce { .. } | Stmt::BlockReduce { .. }));
    let vectors = has_tile(&|s| matches!(s, TileStmt::LoadVector { .. } | TileStmt::StoreVector { .. }));
    let matrices =
        has_tile(&|s| matches!(s, TileStmt::LoadMatrices { .. } | TileStmt::Multiply { .. } | TileStmt::Pack { .. }));
    let copies =
        has_tile(&|s| matches!(s, TileStmt::CopyAsync { .. } | TileStmt::CommitCopies | TileStmt::WaitCopies { .. }));
    if reduces && !kernel.block_threads().is_multiple_of(32) {
        return Err(EmitError::UnsupportedForm { backend: "CUDA", what: "reductions in blocks of partial warps" });
    }
    let name = kernel.name();
    let mut printer = Printer { kernel, out: String::new(), depth: 1 };
    printer.function(&name, provenance)?;
    let shared: usize = shared_bytes(kernel);
    let (mut text, mut prelude) = (String::new(), Vec::new());
    let parts = [(true, TYPES), (true, SCALAR), (reduces, REDUCE), (vectors, VECTOR)];
    for (_, part) in parts.into_iter().chain([(copies, COPY), (matrices, MATRIX)]).filter(|(used, _)| *used) {
        text.push_str(part);
        text.push('\n');
        prelude.push(part.len() as u32 + 1);
    }
    text.push_str(&printer.out);
    Ok(CudaSource {
        name,
        text,
        prelude,
        threads: kernel.threads,
        dynamic_shared_bytes: if shared > STATIC_SHARED_BYTES { shared } else { 0 },
    })
}

/// Bytes of shared scratch, each memory aligned to 16.
fn shared_bytes(kernel: &Kernel) -> usize {
    let shared = kernel.scratch.iter().filter(|s| s.space == Space::Shared && s.over.is_none());
    shared.map(|s| s.bytes().next_multiple_of(16)).sum()
}

/// Prints one function.
struct Printer<'a> {
    kernel: &'a Kernel,
    out: String,
    depth: usize,
}

/// The name of an element type in the prelude.
fn type_name(dtype: DType) -> &'static str {
    dtype.name()
}

impl Printer<'_> {
    /// A line of code.
    fn line(&mut self, text: &str) {
        // Writing to a `String` does not fail.
        let _ = writeln!(self.out, "{:1$}{text}", "", self.depth * 4);
    }

    fn function(&mut self, name: &str, provenance: &[String]) -> Result<(), EmitError> {
        let k = self.kernel;
        for origin in provenance {
            // A line must not continue into the code, whatever a model's names hold.
            let origin: String = origin.chars().map(|c| if c.is_control() || c == '\\' { '?' } else { c }).collect();
            let _ = writeln!(self.out, "// {origin}");
        }
        let mut parameters = Vec::new();
        let in_place = k.buffers.iter().any(|b| b.access == Access::ReadInPlace);
        for (i, b) in k.buffers.iter().enumerate() {
            let constant = if b.access.writes() { "" } else { "const " };
            // what may be the same memory must be read and written in the order of the text
            let shared = b.access == Access::ReadInPlace || in_place && b.access.writes();
            let restrict = if shared { "" } else { " __restrict__" };
            parameters.push(format!("{constant}{}*{restrict} b{i}", type_name(b.dtype)));
        }
        parameters.extend((0..k.dims).map(|d| format!("i64 d{d}")));
        parameters.push("u32* __restrict__ status".into());
        let parameters = parameters.join(", ");
        let threads = k.block_threads();
        let _ =
            writeln!(self.out, "extern \"C\" __global__ void __launch_bounds__({threads}, 1)\n{name}({parameters}) {{");
        for (i, b) in k.buffers.iter().enumerate().filter(|(_, b)| b.align > 0) {
            self.line(&format!("b{i} = aligned<{}>(b{i});", b.align));
        }
        self.scratch();
        self.grid()?;
        self.block(&k.body)?;
        self.out.push_str("}\n");
        Ok(())
    }

    fn scratch(&mut self) {
        let k = self.kernel;
        let dynamic = shared_bytes(k) > STATIC_SHARED_BYTES;
        if dynamic {
            self.line("extern __shared__ __align__(16) u8 shared[];");
        }
        let mut offset = 0;
        for (i, s) in k.scratch.iter().enumerate() {
            let (ty, len) = (type_name(s.dtype), s.len);
            if let Some(over) = s.over {
                self.line(&format!("{ty}* s{i} = ({ty}*)s{over};"));
            } else if s.space != Space::Shared {
                self.line(&format!("{ty} s{i}[{len}];"));
            } else if dynamic {
                self.line(&format!("{ty}* s{i} = ({ty}*)(shared + {offset});"));
                offset += s.bytes().next_multiple_of(16);
            } else {
                self.line(&format!("__shared__ __align__(16) {ty} s{i}[{len}];"));
            }
        }
        let mut partials = Vec::new();
        for s in &k.body {
            s.any(&mut |s| {
                if let Stmt::BlockReduce { var, .. } = s {
                    partials.extend(k.var(*var).filter(|t| !partials.contains(t)));
                }
                false
            });
        }
        for dtype in partials {
            let ty = type_name(dtype);
            self.line(&format!("__shared__ {ty} partial_{ty}[32];"));
        }
    }

    fn grid(&mut self) -> Result<(), EmitError> {
        let axes = self.kernel.grid.len();
        if axes > 1 {
            self.line("u32 block = blockIdx.x;");
        }
        for axis in (0..axes).rev() {
            if axes == 1 {
                self.line("const i64 v0 = blockIdx.x;");
            } else if axis == 0 {
                self.line("const i64 v0 = block;");
            } else {
                let extent = self.expr(&self.kernel.grid[axis])?;
                self.line(&format!("const u32 extent{axis} = (u32)({extent});"));
                self.line(&format!("const i64 v{axis} = block % extent{axis};"));
                self.line(&format!("block /= extent{axis};"));
            }
        }
        Ok(())
    }
}
