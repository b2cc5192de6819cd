//! ONNX models and tensors.
//!
//! [`load`] makes a graph of a model: one operator becomes one operator or a plain expression of them, nothing is
//! recognised or fused. Named extents become symbols, and arithmetic on shapes is done while importing. Functions, and
//! branches whose condition is known, are written out in place. [`export`] goes the other way.

mod contrib;
mod cx;
mod dims;
pub mod export;
mod graph;
#[cfg(test)]
mod hostile;
mod load;
mod model;
mod ops;
pub mod proto;
mod tensor;

pub use load::{Specialised, from_bytes, from_bytes_for, inputs, load, load_for};
pub use ops::supported;
pub use tensor::{dtype, read_tensor, tensor_from_bytes, tensor_to_bytes, write_tensor};
