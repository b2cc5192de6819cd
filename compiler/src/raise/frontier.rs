//! Causal masks: which keys a query sees, when it sees those up to some place after itself.

use egret_ir::eval::EvalCx;
use egret_ir::ops::ReduceKind;
use egret_ir::{Bindings, Dim, Literal, NodeId, Op, ScalarFn, ScalarValue, Tensor};
use smallvec::SmallVec;

use crate::rewrite::direct::Builder;

/// Steps of an index computation that are looked through, nested.
const DEPTH: usize = 16;

/// Elements of the largest constant mask that is looked at.
const MAX_ELEMENTS: i64 = 1 << 24;

/// A condition over queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Frontier {
    /// `key ≤ query + offset`…
    pub offset: Dim,
    /// …or the contrary.
    pub negated: bool,
}

/// A truth value over `[…, queries, keys]` as a frontier, if it is one that leaves each query a key.
pub fn frontier(builder: &Builder, condition: NodeId) -> Option<Frontier> {
    compared(builder, condition, DEPTH).or_else(|| {
        let mask = constant(builder, condition, DEPTH)?;
        let of = |seen: bool| triangle(&mask, &|value| value.truthy() == seen);
        of(true)
            .map(|offset| Frontier { offset, negated: false })
            .or_else(|| Some(Frontier { offset: of(false)?, negated: true }))
    })
}

/// An additive mask of 0 up to a place after the query and −∞ beyond: how far after it.
pub fn additive(builder: &Builder, mask: NodeId) -> Option<Dim> {
    let mask = constant(builder, mask, DEPTH)?;
    mask.dtype().is_float().then_some(())?;
    // anything but 0 and −∞ is no mask of this kind
    let known = |value: ScalarValue| value.as_f64() == 0.0 || never(value.as_f64());
    mask.values().all(known).then_some(())?;
    triangle(&mask, &|value| value.as_f64() == 0.0)
}

/// Whether a logit of that size has no share beside any other: exp underflows to 0 for every finite score above it.
pub fn never(logit: f64) -> bool {
    logit <= -1e30
}

/// An affine function of the indices of a value.
struct Affine {
    by_axis: SmallVec<[i64; 4]>,
    constant: Dim,
}

impl Affine {
    fn number(rank: usize, constant: Dim) -> Affine {
        Affine { by_axis: smallvec::smallvec![0; rank], constant }
    }

    fn scaled(mut self, by: i64) -> Affine {
        self.by_axis.iter_mut().for_each(|c| *c *= by);
        self.constant = self.constant * Dim::from(by);
        self
    }

    /// The sum, with axes aligned at the last.
    fn plus(mut self, mut other: Affine) -> Affine {
        if self.by_axis.len() < other.by_axis.len() {
            std::mem::swap(&mut self, &mut other);
        }
        let lead = self.by_axis.len() - other.by_axis.len();
        self.by_axis[lead..].iter_mut().zip(&other.by_axis).for_each(|(a, b)| *a += b);
        self.constant = self.constant + other.constant;
        self
    }
}

/// A comparison of affine functions of query and key.
fn compared(builder: &Builder, condition: NodeId, depth: usize) -> Option<Frontier> {
    let node = builder.graph().node(condition);
    let depth = depth.checked_sub(1)?;
    match &node.op {
        Op::Reshape(_) | Op::Broadcast(_) => {
            // only leading axes of extent 1 may come or go
            let (inner, outer) =
                (&builder.graph().tensor_type(node.operands[0]).shape, &builder.graph().tensor_type(condition).shape);
            let tail = |shape: &egret_ir::Shape| (shape.rank() >= 2).then(|| shape[shape.rank() - 2..].to_vec());
            let same = tail(inner).is_some() && tail(inner) == tail(outer);
            same.then(|| compared(builder, node.operands[0], depth))?
        }
        Op::Pointwise(pointwise) if pointwise.f == ScalarFn::Not => {
            let inner = compared(builder, node.operands[0], depth)?;
            Some(Frontier { negated: !inner.negated, ..inner })
        }
        Op::Cast(_) if builder.graph().tensor_type(node.operands[0]).dtype == egret_ir::DType::Bool => {
            compared(builder, node.operands[0], depth)
        }
        Op::Pointwise(pointwise) => {
            // as `lhs − rhs ≤ 0` or the contrary
            let (swap, strict) = match pointwise.f {
                ScalarFn::Le => (false, false),
                ScalarFn::Lt => (false, true),
                ScalarFn::Ge => (true, false),
                ScalarFn::Gt => (true, true),
                _ => return None,
            };
            let (a, b) = (affine(builder, node.operands[0], depth)?, affine(builder, node.operands[1], depth)?);
            let mut difference = a.plus(b.scaled(-1)).scaled(if swap { -1 } else { 1 });
            if strict {
                difference.constant = difference.constant + Dim::ONE;
            }
            // all that is left is difference ≤ 0
            let (keys, rest) = difference.by_axis.split_last()?;
            let (queries, rest) = rest.split_last()?;
            rest.iter().all(|c| *c == 0).then_some(())?;
            let found = match (queries, keys) {
                (-1, 1) => Frontier { offset: Dim::ZERO - difference.constant, negated: false },
                // key ≥ query + c is the contrary of key ≤ query + c − 1
                (1, -1) => Frontier { offset: difference.constant - Dim::ONE, negated: true },
                _ => return None,
            };
            (found.offset.range().0 >= 0).then_some(found)
        }
        _ => None,
    }
}

fn affine(builder: &Builder, id: NodeId, depth: usize) -> Option<Affine> {
    let depth = depth.checked_sub(1)?;
    let graph = builder.graph();
    let node = graph.node(id);
    let shape = &graph.tensor_type(id).shape;
    if let Some(number) = builder.splat_of_node(id) {
        return Some(Affine::number(shape.rank(), Dim::from(whole(number)?)));
    }
    let operand = |i: usize| affine(builder, node.operands[i], depth);
    match &node.op {
        Op::Iota(iota) => {
            let mut made = Affine::number(shape.rank(), Dim::ZERO);
            made.by_axis[iota.axis] = 1;
            Some(made)
        }
        Op::Const(constant) => progression(&constant.value),
        Op::Cast(cast) if cast.dtype != egret_ir::DType::Bool => operand(0),
        Op::StopGradient(_) => operand(0),
        Op::Concat(_) if node.operands.len() == 1 => operand(0),
        Op::Transpose(transpose) => {
            let inner = operand(0)?;
            let by_axis = transpose.permutation.iter().map(|axis| inner.by_axis[*axis]).collect();
            Some(Affine { by_axis, ..inner })
        }
        Op::Broadcast(_) => {
            let (inner, mut made) = (operand(0)?, Affine::number(shape.rank(), Dim::ZERO));
            let lead = shape.rank() - inner.by_axis.len();
            made.by_axis[lead..].copy_from_slice(&inner.by_axis);
            Some(Affine { constant: inner.constant, ..made })
        }
        Op::Reshape(_) => {
            // axes of extent 1 come and go
            let (inner, own) = (operand(0)?, &graph.tensor_type(node.operands[0]).shape);
            let wide = |shape: &egret_ir::Shape| (0..shape.rank()).filter(|i| !shape[*i].is(1)).collect::<Vec<_>>();
            let (from, to) = (wide(own), wide(shape));
            (from.len() == to.len() && from.iter().zip(&to).all(|(a, b)| own[*a] == shape[*b])).then_some(())?;
            let mut made = Affine::number(shape.rank(), inner.constant);
            from.iter().zip(&to).for_each(|(a, b)| made.by_axis[*b] = inner.by_axis[*a]);
            Some(made)
        }
        Op::Slice(slice) => {
            let mut inner = operand(0)?;
            for axis in 0..shape.rank() {
                let c = inner.by_axis[axis];
                inner.constant = inner.constant + slice.start[axis].clone() * Dim::from(c);
                inner.by_axis[axis] = c * slice.step[axis];
            }
            Some(inner)
        }
        // a size spelled as the sum of so many ones
        Op::Reduce(reduce) if reduce.kind == ReduceKind::Sum => {
            let ones = builder.splat_of_node(node.operands[0]).and_then(whole)? == 1;
            let summed = graph.tensor_type(node.operands[0]).shape.elements();
            (ones && shape.iter().all(|dim| dim.is(1))).then(|| Affine::number(shape.rank(), summed))
        }
        Op::Pointwise(pointwise) => match pointwise.f {
            ScalarFn::Add => Some(operand(0)?.plus(operand(1)?)),
            ScalarFn::Sub => Some(operand(0)?.plus(operand(1)?.scaled(-1))),
            ScalarFn::Neg => Some(operand(0)?.scaled(-1)),
            ScalarFn::Mul => {
                let by = |i: usize| builder.splat_of_node(node.operands[i]).and_then(whole);
                match (by(0), by(1)) {
                    (Some(c), _) => Some(operand(1)?.scaled(c)),
                    (_, Some(c)) => Some(operand(0)?.scaled(c)),
                    _ => None,
                }
            }
            _ => None,
        },
        _ => None,
    }
}

fn whole(number: Literal) -> Option<i64> {
    let value = number.as_f64();
    (value.fract() == 0.0 && value.abs() < 1e15).then_some(value as i64)
}

/// `a·i + b` along the one axis of a constant that is longer than 1.
fn progression(value: &Tensor) -> Option<Affine> {
    let mut wide = (0..value.shape().len()).filter(|axis| value.shape()[*axis] != 1);
    let axis = wide.next()?;
    wide.next().is_none().then_some(())?;
    (value.elements() >= 2).then_some(())?;
    let at = |i: usize| whole(Literal::new(value.get(i), value.dtype()));
    let (first, step) = (at(0)?, at(1)?.checked_sub(at(0)?)?);
    (0..value.elements()).all(|i| at(i) == Some(first + step * i as i64)).then_some(())?;
    let mut made = Affine::number(value.shape().len(), Dim::from(first));
    made.by_axis[axis] = step;
    Some(made)
}

/// The value of a small computation from constants.
fn constant(builder: &Builder, id: NodeId, depth: usize) -> Option<Tensor> {
    let depth = depth.checked_sub(1)?;
    let graph = builder.graph();
    let node = graph.node(id);
    if let Op::Const(constant) = &node.op {
        return Some(constant.value.clone());
    }
    let dims = graph.tensor_type(id).shape.constant()?;
    let elements = dims.iter().try_fold(1i64, |n, d| n.checked_mul(*d)).filter(|n| *n <= MAX_ELEMENTS)?;
    let moves = matches!(
        node.op,
        Op::Pointwise(_)
            | Op::Cast(_)
            | Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Slice(_)
            | Op::Iota(_)
    );
    (moves && elements > 0).then_some(())?;
    let operands: Option<Vec<Tensor>> = node.operands.iter().map(|o| constant(builder, *o, depth)).collect();
    node.op.home().eval(&operands?, &EvalCx::new(&Bindings::new())).ok()?.pop()
}

/// How far after its query the last key is that `seen` tells, of a mask `[1…, queries, keys]` in which each row is seen up
/// to there and not beyond.
fn triangle(mask: &Tensor, seen: &dyn Fn(ScalarValue) -> bool) -> Option<Dim> {
    let shape = mask.shape();
    let (keys, lead) = shape.split_last()?;
    let (queries, lead) = lead.split_last()?;
    (lead.iter().all(|d| *d == 1) && *keys > 0 && *queries > 1).then_some(())?;
    let values: Vec<bool> = mask.values().map(seen).collect();
    let row = |i: usize| &values[i * keys..(i + 1) * keys];
    let first = row(0).iter().take_while(|s| **s).count();
    let offset = first.checked_sub(1)?;
    let expected = |i: usize, j: usize| j <= i + offset;
    let fits = (0..*queries).all(|i| row(i).iter().enumerate().all(|(j, s)| *s == expected(i, j)));
    // a mask that hides nothing tells no frontier
    (fits && first < *keys).then(|| Dim::from(offset as i64))
}
