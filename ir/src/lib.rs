//! Egret's graph IR: types, operators, tracer, text form, reference interpreter and autodiff.

pub mod dtype;

pub use dtype::DType;
