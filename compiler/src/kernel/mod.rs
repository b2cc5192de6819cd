//! Kernel IR: what schedulers build and emitters print.
//!
//! A [`Kernel`] is plain data: typed expressions ([`Expr`]) in structured statements ([`Stmt`]) over buffers, scratch
//! memory and `i64` dim parameters. It names no model and no device; equal kernels have equal text.
//!
//! ```
//! use egret_compiler::kernel::{Access, KernelBuilder, LoopKind};
//! use egret_ir::DType;
//!
//! let mut k = KernelBuilder::new();
//! let x = k.buffer(DType::F32, Access::Read);
//! let y = k.buffer(DType::F32, Access::Write);
//! let n = k.dim();
//! let block = k.grid(n.ceil_div(1024));
//! let first = k.bind(block * 1024);
//! let last = k.bind((&first + 1024).min(n));
//! k.for_(first, last, LoopKind::Vector, |k, i| {
//!     let v = k.bind(x.load(&i) * 2.0f32);
//!     k.store(y, i, v.max(0.0f32));
//! });
//! let kernel = k.finish().unwrap();
//! assert!(kernel.text().contains("b1[v3] = max(v4, 0.0)"));
//! ```

mod affine;
mod build;
mod expr;
mod ir;
mod strip;
mod text;
mod tile;
mod verify;
mod verify_tile;
mod walk;
mod widen;

pub use affine::Affine;
pub use build::{Hook, KernelBuilder, Tile};
pub use expr::{BinaryOp, CompareOp, Expr, Literal, Memory, UnaryOp, VectorFunction};
pub use ir::{Abi, Access, BufferParam, Kernel, LoopKind, ReduceOp, Scratch, Space, Stmt, Strip, Var};
pub use strip::STRIP;
pub use tile::{MatrixKind, TileStmt, Turn};
pub use verify::{Finding, MAX_SHARED_BYTES, MAX_STACK_BYTES, MAX_STEPS};
