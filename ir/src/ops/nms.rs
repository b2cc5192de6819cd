//! `non_max_suppression`: the best boxes of each class, without those that overlap better ones.

use super::top_k::order;
use super::{InferCx, InferError, Op, Operator, arity, operand};
use crate::diagnostic::Diagnostic;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::eval::{EvalCx, EvalError};
use crate::scalar::ScalarValue;
use crate::tensor::Tensor;
use crate::text::{Attr, Attributes};
use crate::types::{Shape, TensorType, Type};

/// `(boxes [b, n, 4], scores [b, c, n], most, overlap, score) → places`, i64 of shape `[count, 3]`.
///
/// For each batch entry and class, boxes whose score is above the scalar `score` are taken in descending order of their
/// scores (of equal ones the lower place first), at most `most` (an i64 scalar). A box is left out when its intersection
/// with one that was taken, over their union, is above the scalar `overlap`. A row of the result is batch entry, class
/// and box. The number of rows is the data-dependent size `size`, at most `b·c·n`. As ONNX's operator of that name.
///
/// Each choice depends on those before it, and most boxes are never looked at: a loop of whole-tensor operators would
/// compare every pair, so this is an operator of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NonMaxSuppression {
    /// A box is its centre's x and y, its width and its height; else y and x of two opposite corners.
    pub center: bool,
    /// The number of the data-dependent size.
    pub size: u32,
}

/// Least and greatest y and x.
type Corners = [f64; 4];

fn overlap(a: Corners, b: Corners) -> f64 {
    let area = |c: Corners| (c[2] - c[0]) * (c[3] - c[1]);
    let (height, width) = (a[2].min(b[2]) - a[0].max(b[0]), a[3].min(b[3]) - a[1].max(b[1]));
    let common = height.max(0.0) * width.max(0.0);
    let union = area(a) + area(b) - common;
    if common > 0.0 && union > 0.0 { common / union } else { 0.0 }
}

impl NonMaxSuppression {
    fn corners(&self, boxes: &Tensor, at: usize) -> Corners {
        let v = |i: usize| boxes.get(at * 4 + i).as_f64();
        let [a, b, c, d] = [v(0), v(1), v(2), v(3)];
        if self.center {
            return [b - d / 2.0, a - c / 2.0, b + d / 2.0, a + c / 2.0];
        }
        [a.min(c), b.min(d), a.max(c), b.max(d)]
    }
}

impl Operator for NonMaxSuppression {
    fn name(&self) -> &'static str {
        "non_max_suppression"
    }

    fn infer(&self, operands: &[Type], cx: &mut InferCx) -> Result<Type, InferError> {
        arity(operands, 5)?;
        let (boxes, scores) = (operand(operands, 0)?, operand(operands, 1)?);
        let [b, n, four] = &boxes.shape[..] else { return Err(format!("boxes {boxes} are not of rank 3")) };
        let [b2, classes, n2] = &scores.shape[..] else { return Err(format!("scores {scores} are not of rank 3")) };
        cx.require_equal(four, &Dim::from(4), "numbers of a box")?;
        cx.require_equal(b, b2, "batch entries of boxes and scores")?;
        cx.require_equal(n, n2, "boxes and scores")?;
        for (i, float) in [(0, true), (1, true), (2, false), (3, true), (4, true)] {
            let ty = operand(operands, i)?;
            let fits = if float { ty.dtype.is_float() } else { ty.dtype.is_int() };
            if !fits || i > 1 && ty.shape.rank() != 0 {
                return Err(format!("operand {i} cannot be {ty}"));
            }
        }
        let bound = b.clone() * classes.clone() * n.clone();
        let shape = Shape::from([Dim::fresh(self.size, bound), Dim::from(3)]);
        Ok(TensorType { dtype: DType::I64, shape }.into())
    }

    fn eval(&self, operands: &[Tensor], cx: &EvalCx) -> Result<Vec<Tensor>, EvalError> {
        cx.check(self, operands)?;
        let (boxes, scores) = (&operands[0], &operands[1]);
        let [batch, classes, n] = scores.shape() else { return Err(EvalError::Operands("scores are no table".into())) };
        let most = usize::try_from(operands[2].get(0).as_int()).unwrap_or(0);
        let (limit, threshold) = (operands[3].get(0).as_f64(), operands[4].get(0).as_f64());
        let mut rows: Vec<[usize; 3]> = Vec::new();
        for (b, class) in (0..*batch).flat_map(|b| (0..*classes).map(move |c| (b, c))) {
            let score = |i: usize| scores.get((b * classes + class) * n + i);
            let mut places: Vec<usize> = (0..*n).filter(|i| score(*i).as_f64() > threshold).collect();
            places.sort_by(|i, j| order(score(*i), score(*j), true));
            let mut taken: Vec<Corners> = Vec::new();
            for place in places {
                if taken.len() >= most {
                    break;
                }
                let corners = self.corners(boxes, b * n + place);
                if taken.iter().all(|other| overlap(*other, corners) <= limit) {
                    taken.push(corners);
                    rows.push([b, class, place]);
                }
            }
        }
        let mut places = Tensor::zeros(DType::I64, &[rows.len(), 3]);
        rows.iter().flatten().enumerate().for_each(|(i, v)| places.set(i, ScalarValue::Int(*v as i128)));
        Ok(vec![places])
    }

    fn attributes(&self) -> Vec<(&'static str, Attr)> {
        vec![("center", Attr::Bool(self.center)), ("size", Attr::Int(self.size.into()))]
    }

    fn no_gradient(&self) -> Option<&'static str> {
        Some("its result is places, which do not vary smoothly")
    }

    fn flops(&self, operands: &[Type], _: &Type) -> Dim {
        super::operand_elements(operands, 1)
    }
}

/// Reads operators of this home from text.
pub(super) fn read(name: &str, a: &Attributes) -> Result<Option<Op>, Diagnostic> {
    Ok(match name {
        "non_max_suppression" => Some(NonMaxSuppression { center: a.truth("center")?, size: a.fresh("size")? }.into()),
        _ => None,
    })
}
