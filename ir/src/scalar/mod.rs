//! Scalar functions and programs of them.
//!
//! One table row defines a scalar function ([`ScalarFn`]): text name, ONNX name, arity, meaning over the primitives and
//! derivative. A [`ScalarExpr`] is a program of scalar functions over numbered arguments: the epilogue of a fused
//! anchor, the score of an attention, the body of a fused map.

mod expr;
mod program;
mod table;
mod value;

pub use expr::{ExprKind, ScalarExpr};
pub use program::ScalarProgram;
pub use table::{Meaning, ScalarFn};
pub use value::{Literal, ScalarValue};
