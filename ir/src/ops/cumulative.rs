//! `cumulative`: sums, products and extrema of all elements so far along an axis.

use super::reduce::of_nothing;
use super::{InferCx, InferError, Op, Operator, Places, Scatter, ScatterKind, arity, check_axes, operand};
use crate::autodiff::{Gradients, VjpCx};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError, Num, by_kind};
use crate::scalar::Literal;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::tracer::Var;
use crate::types::{TensorType, Type};

/// What is accumulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CumulativeKind {
    /// Σ x.
    Sum,
    /// Π x.
    Prod,
    /// max x; NaN from the first NaN on.
    Max,
    /// min x; NaN from the first NaN on.
    Min,
}

impl CumulativeKind {
    /// Every kind.
    pub const ALL: [CumulativeKind; 4] =
        [CumulativeKind::Sum, CumulativeKind::Prod, CumulativeKind::Max, CumulativeKind::Min];
}

/// Each element joined with all before it along an axis. Floats are accumulated in f64 and rounded once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cumulative {
    /// How elements are joined.
    pub kind: CumulativeKind,
    /// The axis.
    pub axis: usize,
    /// Whether an element itself is left out; the first result is then that of no elements: 0, 1 or, of extrema, the
    /// type's own opposite extremum.
    pub exclusive: bool,
    /// Whether it runs from the last element to the first.
    pub reverse: bool,
}

impl Cumulative {
    /// The value of no elements.
    fn of_none(&self, dtype: DType) -> Literal {
        match self.kind {
            CumulativeKind::Sum => Literal::int(0, dtype),
            CumulativeKind::Prod => Literal::int(1, dtype),
            CumulativeKind::Max => of_nothing(true, dtype),
            CumulativeKind::Min => of_nothing(false, dtype),
        }
    }

    fn forward(kind: CumulativeKind, axis: usize) -> Cumulative {
        Cumulative { kind, axis, exclusive: false, reverse: false }
    }

    /// The gradient of an inclusive accumulation from the first element on.
    fn pull<'t>(&self, cx: &VjpCx<'_, 't>, x: Var<'t>, dy: Var<'t>) -> Var<'t> {
        let axis = self.axis;
        let run = |kind, v: Var<'t>| v.then(Cumulative::forward(kind, axis), &[]);
        match self.kind {
            CumulativeKind::Sum => dy.then(Cumulative { reverse: true, ..self.inclusive() }, &[]),
            // dxⱼ = Πₖ﹤ⱼ xₖ · rⱼ with rⱼ = dyⱼ + xⱼ₊₁·rⱼ₊₁: no division, so zeros do no harm
            CumulativeKind::Prod => {
                let before = Cumulative { exclusive: true, ..Cumulative::forward(CumulativeKind::Prod, axis) };
                let rank = x.rank();
                let mut order: Vec<usize> = (0..rank).collect();
                order.remove(axis);
                order.insert(0, axis);
                let mut back = vec![0; rank];
                order.iter().enumerate().for_each(|(i, from)| back[*from] = i);
                let (rows, dys) = (x.transpose(&order), dy.transpose(&order));
                let slice = TensorType { dtype: x.dtype(), shape: rows.shape()[1..].into() };
                let none = cx.zeros(slice);
                let length = rows.shape()[0].clone();
                let (_, r) = cx.t.scan_of(length, true, &[none], &[rows, dys], |_, carry, slices| {
                    let r = slices[1] + carry[0];
                    (vec![slices[0] * r], vec![r])
                });
                x.then(before, &[]) * r[0].transpose(&back)
            }
            // the gradient goes to the first element that reached the extremum
            CumulativeKind::Max | CumulativeKind::Min => {
                let y = run(self.kind, x);
                let shape = x.shape();
                let before = cx.t.scalar(self.of_none(x.dtype()));
                let before = shifted(y, axis, 1, before);
                let first = cx.t.iota(TensorType { dtype: DType::I64, shape: shape.clone() }, axis);
                let rises = match self.kind {
                    CumulativeKind::Max => x.greater(before),
                    _ => x.less(before),
                };
                let zero = cx.zeros(TensorType { dtype: DType::I64, shape });
                let place = run(CumulativeKind::Max, rises.select(first, zero));
                let scatter = Scatter { places: Places::Elements { axis }, kind: ScatterKind::Add };
                cx.zeros(x.ty()).then(scatter, &[place, dy])
            }
        }
    }

    fn inclusive(&self) -> Cumulative {
        Cumulative { exclusive: false, ..self.clone() }
    }
}

/// The elements moved by one place along an axis, up (1) or down (−1), with a scalar put in.
fn shifted<'t>(v: Var<'t>, axis: usize, by: i64, fill: Var<'t>) -> Var<'t> {
    let extent = v.shape()[axis].clone();
    let mut one = v.shape();
    one.dims_mut()[axis] = Dim::ONE;
    let fill = fill.broadcast(one);
    let parts = if by > 0 { [fill, v] } else { [v, fill] };
    let start = Dim::from(if by > 0 { 0 } else { 1 });
    v.tracer().concat(&parts, axis as isize).narrow(axis as isize, start, extent)
}

impl Operator for Cumulative {
    fn name(&self) -> &'static str {
        match self.kind {
            CumulativeKind::Sum => "cumulative_sum",
            CumulativeKind::Prod => "cumulative_prod",
            CumulativeKind::Max => "cumulative_max",
            CumulativeKind::Min => "cumulative_min",
        }
    }

    fn infer(&self, operands: &[Type], _: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 1)?;
        let x = operand(operands, 0)?;
        check_axes(&[self.axis], x.shape.rank())?;
        if x.dtype == DType::Bool {
            return Err("is not defined on bool".into());
        }
        Ok(x.clone().into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        fn go<N: Num>(op: &Cumulative, x: &Tensor) -> Tensor {
            let shape = x.shape();
            let extent = shape[op.axis];
            let inner: usize = shape[op.axis + 1..].iter().product();
            let lines = shape[..op.axis].iter().product::<usize>() * inner;
            let none = N::load(&Tensor::scalar(op.of_none(x.dtype())));
            let mut values = N::load(x);
            for line in 0..lines {
                let mut total = none[0];
                for step in 0..extent {
                    let place = if op.reverse { extent - 1 - step } else { step };
                    let at = (line / inner * extent + place) * inner + line % inner;
                    let next = match op.kind {
                        CumulativeKind::Sum => total.plus(values[at]),
                        CumulativeKind::Prod => total.times(values[at]),
                        CumulativeKind::Max => total.greater(values[at]),
                        CumulativeKind::Min => total.lesser(values[at]),
                    };
                    values[at] = if op.exclusive { total } else { next };
                    total = next;
                }
            }
            N::store(x.dtype(), shape, &values)
        }
        let (dtype, _) = cx.result(self, operands)?;
        Ok(vec![by_kind!(dtype, go(self, &operands[0]))])
    }

    fn vjp<'t>(&self, cx: &VjpCx<'_, 't>) -> Gradients<'t> {
        let (mut x, mut dy) = (cx.operands[0], cx.dy());
        let axis = self.axis as isize;
        if self.reverse {
            (x, dy) = (x.reverse(&[axis]), dy.reverse(&[axis]));
        }
        if self.exclusive {
            dy = shifted(dy, self.axis, -1, cx.t.scalar(Literal::float(0.0, x.dtype())));
        }
        let dx = Cumulative::forward(self.kind, self.axis).pull(cx, x, dy);
        Ok(vec![Some(if self.reverse { dx.reverse(&[axis]) } else { dx })])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![
            ("axis", Attr::Int(self.axis as i64)),
            ("exclusive", Attr::Bool(self.exclusive)),
            ("reverse", Attr::Bool(self.reverse)),
        ]
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        super::operand_elements(operands, 0)
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    let kind = match name {
        "cumulative_sum" => CumulativeKind::Sum,
        "cumulative_prod" => CumulativeKind::Prod,
        "cumulative_max" => CumulativeKind::Max,
        "cumulative_min" => CumulativeKind::Min,
        _ => return Ok(None),
    };
    let (exclusive, reverse) = (a.truth("exclusive")?, a.truth("reverse")?);
    Ok(Some(Cumulative { kind, axis: a.place("axis")?, exclusive, reverse }.into()))
}
