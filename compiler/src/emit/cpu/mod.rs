//! The CPU emitter: kernel IR to machine code, through Cranelift, for any target on any host.

mod accumulate;
mod function;
mod half;
mod lanes;
mod memory;
mod narrow;
mod scalar;
mod vector;

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{ExternalName, Function};
use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, FinalizedRelocTarget, binemit::Reloc};
use cranelift_frontend::FunctionBuilderContext;

use super::EmitError;
use crate::kernel::Kernel;

/// What CPU code is made for: plain data of a device description.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CpuTarget {
    /// A target triple, e.g. `x86_64-unknown-linux-gnu`.
    pub triple: String,
    /// Features by Rust's names: `sse4.2`, `avx2`, `fma`, …; unknown ones are ignored. Every x86-64 target must have
    /// SSE4.2.
    pub features: Vec<String>,
}

impl CpuTarget {
    /// The machine that this process runs on.
    pub fn host() -> CpuTarget {
        #[allow(unused_mut)]
        let mut features = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            macro_rules! detect {
                ($($name:tt),*) => { $(if std::arch::is_x86_feature_detected!($name) {
                    features.push($name.to_string());
                })* };
            }
            detect!(
                "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "bmi1", "bmi2", "lzcnt",
                "avx512f", "avx512dq", "avx512vl"
            );
        }
        let os = if cfg!(target_os = "macos") { "apple-darwin" } else { "unknown-linux-gnu" };
        CpuTarget { triple: [std::env::consts::ARCH, os].join("-"), features }
    }
}

/// Rust's name of a feature and Cranelift's.
const X86_FEATURES: &[(&str, &str)] = &[
    ("sse3", "has_sse3"),
    ("ssse3", "has_ssse3"),
    ("sse4.1", "has_sse41"),
    ("sse4.2", "has_sse42"),
    ("popcnt", "has_popcnt"),
    ("avx", "has_avx"),
    ("avx2", "has_avx2"),
    ("fma", "has_fma"),
    ("bmi1", "has_bmi1"),
    ("bmi2", "has_bmi2"),
    ("lzcnt", "has_lzcnt"),
    ("avx512f", "has_avx512f"),
    ("avx512dq", "has_avx512dq"),
    ("avx512vl", "has_avx512vl"),
];

/// A function that code calls.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Symbol {
    /// A wide function over a strip, `fn(dst: *mut f32, src: *const f32, n: usize)`: `exp`, `tanh`, …
    Vector(String),
    /// A scalar function by its C name: `expf`, `pow`, `fmodf`, …
    Scalar(String),
}

/// How a relocation is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RelocationKind {
    /// Eight bytes: symbol + addend.
    Absolute64,
}

/// A place in code that holds the address of a symbol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relocation {
    /// Offset in the code.
    pub offset: u32,
    /// How it is applied.
    pub kind: RelocationKind,
    /// The symbol.
    pub symbol: Symbol,
    /// Added to the symbol's address.
    pub addend: i64,
}

/// Machine code of one kernel: plain data.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CpuCode {
    /// Code and its constants, position-independent but for the relocations; to be aligned to 64.
    pub bytes: Vec<u8>,
    /// Addresses to fill in.
    pub relocations: Vec<Relocation>,
    /// Offset of the function.
    pub entry: u32,
}

/// Emits kernels for one target; keeps its buffers from kernel to kernel.
pub struct CpuEmitter {
    isa: OwnedTargetIsa,
    fma: bool,
    context: Context,
    builder: FunctionBuilderContext,
}

impl Clone for CpuEmitter {
    /// An emitter for the same target, for another thread.
    fn clone(&self) -> Self {
        CpuEmitter {
            isa: self.isa.clone(),
            fma: self.fma,
            context: Context::new(),
            builder: FunctionBuilderContext::new(),
        }
    }
}

impl std::fmt::Debug for CpuEmitter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuEmitter").field("isa", &self.isa.name()).finish_non_exhaustive()
    }
}

impl CpuEmitter {
    /// An emitter for a target.
    pub fn new(target: &CpuTarget) -> Result<CpuEmitter, EmitError> {
        let refuse = |reason: String| EmitError::Target { triple: target.triple.clone(), reason };
        let has = |name: &str| target.features.iter().any(|f| f == name);
        let triple = target.triple.parse().map_err(|e| refuse(format!("{e}")))?;
        let mut isa = isa::lookup(triple).map_err(|e| refuse(e.to_string()))?;
        let x86 = target.triple.starts_with("x86_64");
        if x86 {
            if !has("sse4.2") {
                return Err(refuse("SSE4.2 is required".into()));
            }
            for (rust, cranelift) in X86_FEATURES {
                let value = if has(rust) || rust.contains("sse") { "true" } else { "false" };
                isa.set(cranelift, value).map_err(|e| refuse(e.to_string()))?;
            }
        }
        let mut shared = settings::builder();
        let verifier = if cfg!(debug_assertions) { "true" } else { "false" };
        for (name, value) in [
            ("opt_level", OPT_LEVEL),
            ("enable_verifier", verifier),
            ("is_pic", "false"),
            ("unwind_info", "false"),
            ("enable_probestack", "false"),
        ] {
            shared.set(name, value).map_err(|e| refuse(e.to_string()))?;
        }
        let isa = isa.finish(settings::Flags::new(shared)).map_err(|e| refuse(e.to_string()))?;
        Ok(CpuEmitter { isa, fma: !x86 || has("fma"), context: Context::new(), builder: FunctionBuilderContext::new() })
    }

    /// The kernel's Cranelift function; the symbols that it calls are its external names, in order.
    fn build(&mut self, kernel: &Kernel) -> Result<(Function, Vec<Symbol>), EmitError> {
        function::build(kernel, &*self.isa, self.fma, &mut self.builder)
    }

    /// The Cranelift text of a kernel, for dumps.
    pub fn clif_text(&mut self, kernel: &Kernel) -> Result<String, EmitError> {
        let (function, _) = self.build(kernel)?;
        Ok(function.display().to_string())
    }

    /// The instructions of a kernel, for dumps.
    pub fn asm_text(&mut self, kernel: &Kernel) -> Result<String, EmitError> {
        let (function, _) = self.build(kernel)?;
        self.compile(function, true)?;
        let text = self.context.compiled_code().and_then(|code| code.vcode.clone());
        text.ok_or_else(|| EmitError::Backend("no listing was made".into()))
    }

    /// Compiles a function; the code is in the context.
    fn compile(&mut self, function: Function, listing: bool) -> Result<(), EmitError> {
        self.context.clear();
        self.context.func = function;
        self.context.set_disasm(listing);
        let compiled = self.context.compile(&*self.isa, &mut ControlPlane::default());
        compiled.map(|_| ()).map_err(|e| EmitError::Backend(format!("{:?}", e.inner)))
    }

    /// The machine code of a kernel.
    pub fn emit(&mut self, kernel: &Kernel) -> Result<CpuCode, EmitError> {
        let (function, symbols) = self.build(kernel)?;
        self.compile(function, false)?;
        let missing = || EmitError::Backend("no code was made".into());
        let compiled = self.context.compiled_code().ok_or_else(missing)?;
        let bytes = compiled.code_buffer().to_vec();
        let relocations: Vec<_> = compiled.buffer.relocs().to_vec();
        let names = self.context.func.params.user_named_funcs();
        let mut code = CpuCode { bytes, relocations: Vec::new(), entry: 0 };
        for r in relocations {
            let FinalizedRelocTarget::ExternalName(ExternalName::User(name)) = r.target else {
                return Err(EmitError::Backend(format!("relocation to {:?}", r.target)));
            };
            let symbol = names.get(name).and_then(|n| symbols.get(n.index as usize)).cloned();
            match (r.kind, symbol) {
                (Reloc::Abs8, Some(symbol)) => code.relocations.push(Relocation {
                    offset: r.offset,
                    kind: RelocationKind::Absolute64,
                    symbol,
                    addend: r.addend,
                }),
                (kind, _) => return Err(EmitError::Backend(format!("relocation {kind:?}"))),
            }
        }
        Ok(code)
    }
}

/// Cranelift's own passes cost a tenth to a third more time and make loops about a seventh shorter.
const OPT_LEVEL: &str = "speed";
