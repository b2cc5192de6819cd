//! CPU micro-kernels, packing and vector mathematics of Egret.
//!
//! A leaf crate: it knows nothing of graphs or programs. What it offers comes in two forms:
//!
//! - **plain data about every instruction set on every host** ([`Isa`], [`MICRO_KERNELS`], [`VectorFunction`]), so that
//!   a compiler can plan for a machine other than its own;
//! - **code for the host**: [`tile_kernel`], [`vector_function`] and their relatives return a function pointer, and only
//!   after checking that the processor has the instruction set.
//!
//! # Layouts
//!
//! `L` is [`Isa::lanes_f32`]. *Blocked channels* are `[N][C/L][spatial...][L]`, where each spatial extent includes a zero
//! halo. Weights and matrices are packed into panels of `2 L` columns; see [`pack`].

pub mod affine;
mod bandwidth;
pub mod channels;
mod element;
mod isa;
pub mod pack;
mod peak;
pub mod pool;
pub mod pool_gradient;
mod processor;
mod rows;
mod share;
mod strips;
mod tile;
mod transpose;
mod vector;
pub mod winograd;
pub mod words;

pub mod math;

pub use bandwidth::{copy_bandwidth, read_bandwidth};
pub use element::Element;
pub use isa::Isa;
pub use math::{VectorFn, VectorFunction, vector_function};
pub use peak::peak;
pub use processor::processor;
pub use rows::{RowsFn, copy_rows};
pub use share::{kernel_rate, word_rate};
pub use strips::{Strips, strips};
pub use tile::{
    MAX_ROWS, MICRO_KERNELS, MicroKernel, Tile, TileFn, TileKind, half_kernel, max_rows, short_kernel,
    strided_half_kernel, strided_kernel, tile_kernel,
};
pub use transpose::{TransposeFn, transpose};
