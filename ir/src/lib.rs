//! Egret's graph IR: types, operators, tracer, text form, reference interpreter and autodiff.

pub mod autodiff;
pub mod bind;
pub mod bound;
pub mod diagnostic;
pub mod dim;
pub mod dtype;
pub mod eval;
pub mod files;
pub mod graph;
pub mod interpret;
pub mod ops;
pub mod random;
pub mod scalar;
pub mod tensor;
pub mod text;
pub mod tracer;
pub mod types;
pub mod verify;
mod visit;
pub mod weights;

pub use diagnostic::{Diagnostic, Origin};
pub use dim::{Atom, AtomKind, Bindings, Dim, DimError, Truth};
pub use dtype::DType;
pub use eval::{EvalCx, EvalError, Tensors};
pub use graph::{Assumption, Graph, Node, NodeId};
pub use interpret::{InterpretError, Outcome, interpret, interpret_watched};
pub use ops::{InferCx, Op, Operator};
pub use scalar::{ExprKind, Literal, ScalarExpr, ScalarFn, ScalarValue};
pub use tensor::{Element, Tensor};
pub use tracer::{Backward, Generator, Operand, Outputs, Scalar, Tracer, Var, trace};
pub use types::{Shape, TensorType, Type, f32, i64};
pub use verify::verify;
pub use weights::{Weight, Weights};
