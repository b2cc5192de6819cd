//! ONNX models and tensors.
//!
//! [`load`] makes a graph of a model: one operator becomes one operator or a plain expression of them, nothing is
//! recognised or fused. Named extents become symbols, and arithmetic on shapes is done while importing.

mod cx;
mod dims;
mod import;
mod ops;
mod proto;
mod tensor;

pub use import::{from_bytes, load};
pub use tensor::{dtype, read_tensor, tensor_from_bytes, tensor_to_bytes, write_tensor};
