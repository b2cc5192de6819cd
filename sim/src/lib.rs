//! A PTX interpreter with checks: runs CUDA kernels where there is no GPU.
//!
//! ```
//! use egret_sim::{Arg, LaunchOptions, Memory, Module};
//!
//! let module = Module::parse(
//!     ".visible .entry fill(.param .u64 out) {
//!         .reg .b32 %r<2>; .reg .b64 %rd<3>;
//!         ld.param.u64 %rd0, [out];
//!         mov.u32 %r0, %tid.x;
//!         mul.wide.u32 %rd1, %r0, 4;
//!         add.s64 %rd2, %rd0, %rd1;
//!         st.global.u32 [%rd2], %r0;
//!         ret;
//!     }",
//! )?;
//! let mut memory = Memory::new();
//! let out = memory.allocate("out", vec![0; 128]);
//! let report = module.launch("fill", [1; 3], [32, 1, 1], &[Arg::Pointer(out)], &mut memory, &LaunchOptions::default())?;
//! assert_eq!(memory.bytes("out").unwrap()[4], 1);
//! assert_eq!(report.sectors, 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![allow(clippy::result_large_err, reason = "a fault ends its launch, so its size costs nothing")]

mod arith;
mod block;
mod count;
mod decode;
mod error;
mod inst;
mod launch;
mod lex;
mod memory;
mod module;
mod parse;
mod race;
mod shadow;
mod types;
mod warp;

pub use count::LineStats;
pub use error::{Fault, FaultKind, ParseError};
pub use launch::{Arg, Checks, LaunchOptions, Report, WarpOrder};
pub use memory::Memory;
pub use module::{Entry, Module, Param};
