//! NVRTC: finding it, and compiling CUDA C to CUBIN for an exact architecture. Needs neither driver nor GPU.

mod library;
mod log;
mod search;

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::OnceLock;

pub use log::Resources;
pub use search::PATH_VARIABLE;

use library::Library;

/// Why there is no NVRTC, or no CUBIN.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NvrtcError {
    /// No NVRTC on this machine.
    #[error(
        "NVRTC, NVIDIA's runtime compiler, was not found ({} places tried). Install the Python package \
         `nvidia-cuda-nvrtc` (`pip install nvidia-cuda-nvrtc`) or the CUDA toolkit, or name its library or folder in \
         {PATH_VARIABLE}", tried.len()
    )]
    NotFound {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// A library that is there but cannot serve.
    #[error("cannot load NVRTC from {}: {reason}", path.display())]
    Load {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// The source or an option holds a NUL character.
    #[error("a NUL character in {what}")]
    Nul {
        /// In what.
        what: &'static str,
    },
    /// NVRTC refused the source. The message shows the lines around the first error.
    #[error("NVRTC cannot compile `{name}` for {arch} ({code}):\n{log}\n{excerpt}")]
    Compile {
        /// Name of the source.
        name: String,
        /// The architecture.
        arch: String,
        /// NVRTC's own result.
        code: String,
        /// NVRTC's log.
        log: String,
        /// Numbered lines of the source.
        excerpt: String,
    },
    /// The code compiles, but ptxas warns of lost performance: a defect of the source.
    #[error("ptxas warns about `{name}` for {arch}: {line}")]
    Advisory {
        /// Name of the source.
        name: String,
        /// The architecture.
        arch: String,
        /// The warning.
        line: String,
    },
    /// A call that should not fail failed.
    #[error("{call}: {code}")]
    Call {
        /// The function.
        call: &'static str,
        /// NVRTC's result.
        code: String,
    },
}

/// What NVRTC made of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    /// The image, for exactly the architecture asked for.
    pub image: Vec<u8>,
    /// The PTX that it was assembled from.
    pub ptx: String,
    /// NVRTC's log.
    pub log: String,
    /// Registers, shared memory, spills, of each kernel in order of the log.
    pub kernels: Vec<Resources>,
}

/// A loaded NVRTC. There is at most one in a process, and it stays loaded.
#[derive(Debug)]
pub struct Nvrtc {
    library: Library,
}

impl Nvrtc {
    /// This process's NVRTC; the first call looks for it.
    ///
    /// Looked for, in order: the library or folder in [`PATH_VARIABLE`]; `CUDA_HOME` and `CUDA_PATH`; the
    /// site-packages of `VIRTUAL_ENV` and `CONDA_PREFIX`; `/usr/local/cuda*`; the loader's own paths; the site-packages
    /// of `python3`.
    pub fn get() -> Result<&'static Nvrtc, NvrtcError> {
        static NVRTC: OnceLock<Result<Nvrtc, NvrtcError>> = OnceLock::new();
        NVRTC.get_or_init(|| search::find().map(|library| Nvrtc { library })).as_ref().map_err(Clone::clone)
    }

    /// Where it was loaded from.
    pub fn path(&self) -> &std::path::Path {
        &self.library.path
    }

    /// Its version, e.g. (13, 0).
    pub fn version(&self) -> (i32, i32) {
        self.library.version()
    }

    /// Compiles to a CUBIN for an architecture such as `sm_80` or `sm_90a`.
    pub fn compile(&self, source: &str, name: &str, arch: &str, options: &[&str]) -> Result<Cubin, NvrtcError> {
        let text = |s: &str, what| CString::new(s).map_err(|_| NvrtcError::Nul { what });
        let code = text(source, "the source")?;
        let file = text(&[name, ".cu"].concat(), "the name")?;
        let mut flags = vec![
            text(&["--gpu-architecture=", arch].concat(), "the architecture")?,
            text("--std=c++17", "an option")?,
            // One flag an option: NVRTC does not split them.
            text("--ptxas-options=-v", "an option")?,
            text("--ptxas-options=--warn-on-spills", "an option")?,
            text("--ptxas-options=--warn-on-local-memory-usage", "an option")?,
        ];
        for option in options {
            flags.push(text(option, "an option")?);
        }
        let compiled = self.library.compile(&code, &file, &flags)?;
        if let Err(code) = compiled.image {
            return Err(NvrtcError::Compile {
                name: name.into(),
                arch: arch.into(),
                code,
                excerpt: log::excerpt(source, &compiled.log),
                log: compiled.log,
            });
        }
        if let Some(line) = log::advisory(&compiled.log) {
            return Err(NvrtcError::Advisory { name: name.into(), arch: arch.into(), line: line.into() });
        }
        let image = compiled.image.unwrap_or_default();
        let ptx = String::from_utf8_lossy(&compiled.ptx).trim_end_matches('\0').to_string();
        Ok(Cubin { image, ptx, kernels: log::resources(&compiled.log), log: compiled.log })
    }
}
