//! `scatter`: elements put at places that indices name.

use super::{Gather, InferCx, InferError, Op, Operator, Places, arity, operand, same_dtype};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError, Num, by_kind};
use crate::scalar::Literal;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::tracer::Var;
use crate::types::{Shape, TensorType, Type};

/// How an update meets what is at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScatterKind {
    /// It replaces it; of several at one place the last stays.
    Set,
    /// Their sum.
    Add,
    /// Their product.
    Mul,
    /// The lesser; NaN if one is NaN.
    Min,
    /// The greater; NaN if one is NaN.
    Max,
}

impl ScatterKind {
    /// Every kind.
    pub const ALL: [ScatterKind; 5] =
        [ScatterKind::Set, ScatterKind::Add, ScatterKind::Mul, ScatterKind::Min, ScatterKind::Max];

    /// The name in text forms.
    pub fn name(self) -> &'static str {
        match self {
            ScatterKind::Set => "set",
            ScatterKind::Add => "add",
            ScatterKind::Mul => "mul",
            ScatterKind::Min => "min",
            ScatterKind::Max => "max",
        }
    }
}

/// `(x, indices, updates) → x` with updates joined to what is at the places that [`Gather`] of the same indices reads.
/// Several updates of one place are taken in row-major order of the updates; floats are joined in f64 and rounded once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scatter {
    /// How indices name places.
    pub places: Places,
    /// How updates are joined.
    pub kind: ScatterKind,
}

impl Operator for Scatter {
    fn name(&self) -> &'static str {
        ["scatter", "scatter_elements", "scatter_nd"][self.places.suffix()]
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 3)?;
        let (x, indices, updates) = (operand(operands, 0)?, operand(operands, 1)?, operand(operands, 2)?);
        same_dtype(&[x, updates])?;
        if x.dtype == DType::Bool && self.kind != ScatterKind::Set {
            return Err(format!("{} is not defined on bool", self.kind.name()));
        }
        let shape = self.places.shape(x, indices, cx)?;
        if shape.rank() != updates.shape.rank() {
            return Err(format!("updates {updates} are not of shape {shape}"));
        }
        for (a, b) in shape.iter().zip(updates.shape.iter()) {
            cx.require_equal(a, b, "extents of scattered updates")?;
        }
        Ok(x.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        fn go<N: Num>(kind: ScatterKind, operands: &[Tensor], starts: &[usize], run: usize) -> Tensor {
            let (mut x, updates) = (N::load(&operands[0]), N::load(&operands[2]));
            for (slice, start) in updates.chunks_exact(run.max(1)).zip(starts) {
                for (old, new) in x[*start..].iter_mut().zip(slice) {
                    *old = match kind {
                        ScatterKind::Set => *new,
                        ScatterKind::Add => old.plus(*new),
                        ScatterKind::Mul => old.times(*new),
                        ScatterKind::Min => old.lesser(*new),
                        ScatterKind::Max => old.greater(*new),
                    };
                }
            }
            N::store(operands[0].dtype(), operands[0].shape(), &x)
        }
        let (dtype, _) = cx.result(self, operands)?;
        let slices = self.places.slices(operands[0].shape(), &operands[1])?;
        Ok(vec![by_kind!(dtype, go(self.kind, operands, &slices.starts, slices.run))])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let (x, indices, updates, dy) = (cx.operands[0], cx.operands[1], cx.operands[2], cx.dy());
        let y = cx.results[0];
        let gather = |v: Var<'t>| v.then(Gather { places: self.places }, &[indices]);
        let scatter = |v: Var<'t>, kind, u: Var<'t>| v.then(Scatter { places: self.places, kind }, &[indices, u]);
        let zeros = |like: Var<'t>| cx.zeros(like.ty());
        let one = cx.t.scalar(Literal::float(1.0, x.dtype()));
        let (dx, du) = match self.kind {
            ScatterKind::Add => (dy, gather(dy)),
            ScatterKind::Set => {
                // an update counts where it is the one that stayed
                let count = updates.shape().elements();
                let numbers = TensorType { dtype: DType::I64, shape: Shape::from([count]) };
                let number = cx.t.iota(numbers, 0).reshape(updates.shape());
                let none = cx.zeros(TensorType { dtype: DType::I64, shape: x.shape() });
                let stayed = gather(scatter(none, ScatterKind::Set, number)).equal(number);
                (scatter(dy, ScatterKind::Set, zeros(updates)), stayed.select(gather(dy), zeros(updates)))
            }
            ScatterKind::Mul => {
                let product = scatter(one.broadcast(x.shape()), ScatterKind::Mul, updates);
                // the product of the other updates: without zeros over its own, or 0 where another is 0
                let is_zero = updates.equal(0.0);
                let safe = is_zero.select(one.broadcast(updates.shape()), updates);
                let others = gather(scatter(one.broadcast(x.shape()), ScatterKind::Mul, safe)) / safe;
                let zero = is_zero.cast(x.dtype());
                let other_zeros = gather(scatter(zeros(x), ScatterKind::Add, zero)) - zero;
                let share = other_zeros.equal(0.0).select(gather(dy * x) * others, zeros(updates));
                (dy * product, share)
            }
            // all that reach the extremum share the gradient
            ScatterKind::Min | ScatterKind::Max => {
                let (stays, wins) = (x.equal(y), updates.equal(gather(y)));
                let count = scatter(stays.cast(x.dtype()), ScatterKind::Add, wins.cast(x.dtype()));
                let share = dy / count;
                (stays.select(share, zeros(x)), wins.select(gather(share), zeros(updates)))
            }
        };
        Ok(vec![Some(dx), None, Some(du)])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![self.places.attribute(), ("kind", Attr::Word(self.kind.name().into()))]
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        if self.kind == ScatterKind::Set { Dim::ZERO } else { super::operand_elements(operands, 2) }
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    let Some(suffix) = name.strip_prefix("scatter") else { return Ok(None) };
    let Some(places) = Places::read(suffix, a)? else { return Ok(None) };
    let word = a.word("kind")?;
    let kind = ScatterKind::ALL.into_iter().find(|kind| kind.name() == word);
    let kind = kind.ok_or_else(|| a.error(&format!("`{word}` is no kind of scatter")))?;
    Ok(Some(Scatter { places, kind }.into()))
}
