//! Between which numbers elements lie, as far as types, clamps and sums tell it: interval arithmetic over a few operators back
//! from a value.

use egret_ir::{DType, ExprKind, Graph, Literal, NodeId, Op, ScalarExpr, ScalarFn};
use smallvec::SmallVec;

/// Operators that are looked at for one value.
const MOST_STEPS: usize = 48;
/// Elements up to which a constant is looked through.
const MOST_ELEMENTS: usize = 4096;

/// A closed interval that holds every element which is a number; NaN may be among elements of floats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least.
    pub low: f64,
    /// The greatest.
    pub high: f64,
}

impl Range {
    /// What elements of a type can be.
    pub fn of_type(dtype: DType) -> Range {
        let bits = 8 * dtype.size() as i32;
        match dtype {
            DType::Bool => Range { low: 0.0, high: 1.0 },
            _ if dtype.is_float() => Range { low: f64::NEG_INFINITY, high: f64::INFINITY },
            _ if dtype.is_unsigned() => Range { low: 0.0, high: 2f64.powi(bits) - 1.0 },
            _ => Range { low: -2f64.powi(bits - 1), high: 2f64.powi(bits - 1) - 1.0 },
        }
    }

    /// The elements of a value.
    pub fn of(graph: &Graph, id: NodeId) -> Range {
        Search { graph, left: MOST_STEPS }.value(id)
    }

    /// Whether it lies within another.
    pub fn is_within(self, other: Range) -> bool {
        self.low >= other.low && self.high <= other.high
    }

    fn one(value: f64) -> Range {
        Range { low: value, high: value }
    }

    /// The smallest interval with both.
    fn and(self, other: Range) -> Range {
        Range { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    /// Elements of a type whose exact values lie here: wrapped anywhere if they do not fit an integer type.
    fn wrapped(self, dtype: DType) -> Range {
        let whole = Range::of_type(dtype);
        if self.is_within(whole) { self } else { whole }
    }

    /// After a conversion from one type to another.
    fn cast(self, from: DType, to: DType) -> Range {
        let whole = Range::of_type(to);
        match (from.is_float(), to.is_float()) {
            // towards zero, then saturated; NaN is 0
            (true, false) => {
                let least = whole.low.max(self.low.trunc().min(0.0));
                Range { low: least, high: whole.high.min(self.high.trunc().max(0.0)) }
            }
            // what is rounded may leave the interval
            (_, true) => {
                if self.is_within(EXACT) {
                    self
                } else {
                    whole
                }
            }
            (false, false) => self.wrapped(to),
        }
    }

    fn apply(f: ScalarFn, args: &[Range], dtype: DType) -> Range {
        let whole = Range::of_type(dtype);
        let exact = match (f, args) {
            (ScalarFn::Max, [a, b]) => Range { low: a.low.max(b.low), high: a.high.max(b.high) },
            (ScalarFn::Min, [a, b]) => Range { low: a.low.min(b.low), high: a.high.min(b.high) },
            (ScalarFn::Relu, [a]) => Range { low: a.low.max(0.0), high: a.high.max(0.0) },
            (ScalarFn::Select, [_, a, b]) => a.and(*b),
            _ if dtype.is_float() => whole,
            (ScalarFn::Add, [a, b]) => Range { low: a.low + b.low, high: a.high + b.high },
            (ScalarFn::Sub, [a, b]) => Range { low: a.low - b.high, high: a.high - b.low },
            (ScalarFn::Neg, [a]) => Range { low: -a.high, high: -a.low },
            _ => whole,
        };
        exact.wrapped(dtype)
    }
}

/// Integers that every float type but the smallest represents.
const EXACT: Range = Range { low: -256.0, high: 256.0 };

struct Search<'g> {
    graph: &'g Graph,
    left: usize,
}

impl Search<'_> {
    fn value(&mut self, id: NodeId) -> Range {
        let node = self.graph.node(id);
        let Some(ty) = node.ty.tensor() else { return Range { low: f64::NEG_INFINITY, high: f64::INFINITY } };
        let whole = Range::of_type(ty.dtype);
        if self.left == 0 {
            return whole;
        }
        self.left -= 1;
        let operand_type = |i: usize| self.graph.tensor_type(node.operands[i]).dtype;
        match &node.op {
            Op::Const(constant) if constant.value.elements() <= MOST_ELEMENTS => {
                let values = constant.value.values().map(|v| Range::one(v.as_f64()));
                values.reduce(Range::and).filter(|r| !r.low.is_nan() && !r.high.is_nan()).unwrap_or(whole)
            }
            Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Slice(_)
            | Op::Reverse(_)
            | Op::StopGradient(_) => self.value(node.operands[0]),
            Op::Pad(pad) => self.value(node.operands[0]).and(literal(pad.value)),
            Op::Concat(_) => {
                let parts: SmallVec<[Range; 4]> = node.operands.iter().map(|o| self.value(*o)).collect();
                parts.into_iter().reduce(Range::and).unwrap_or(whole)
            }
            Op::Cast(cast) => {
                let from = operand_type(0);
                self.value(node.operands[0]).cast(from, cast.dtype)
            }
            Op::Pointwise(pointwise) => {
                let args: SmallVec<[Range; 3]> = node.operands.iter().map(|o| self.value(*o)).collect();
                Range::apply(pointwise.f, &args, ty.dtype)
            }
            Op::Fused(fused) if fused.rows.is_none() => {
                let (_, extras, _) = fused.split(&node.operands);
                let anchor = anchor_type(&fused.anchor, operand_type(0));
                let mut args: SmallVec<[Range; 8]> = SmallVec::from_slice(&[Range::of_type(anchor)]);
                args.extend(extras.iter().map(|o| self.value(*o)));
                let mut dtypes: SmallVec<[DType; 8]> = SmallVec::from_slice(&[anchor]);
                dtypes.extend(extras.iter().map(|o| self.graph.tensor_type(*o).dtype));
                program(&fused.epilogue, &args, &dtypes)
            }
            _ => whole,
        }
    }
}

/// The element type of what an epilogue begins with: contractions keep that of their first operand, unless they widen it.
fn anchor_type(anchor: &Op, first: DType) -> DType {
    match anchor {
        Op::DotGeneral(dot) if dot.wide => DType::I32,
        Op::Conv(conv) if conv.wide => DType::I32,
        Op::DotGeneral(_) | Op::Conv(_) => first,
        // nothing is known of its elements
        _ => DType::F64,
    }
}

fn literal(literal: Literal) -> Range {
    Range::one(literal.as_f64())
}

/// Of a program, whose depth its number of steps bounds.
fn program(e: &ScalarExpr, args: &[Range], dtypes: &[DType]) -> Range {
    let dtype = e.dtype(dtypes);
    match e.kind() {
        ExprKind::Arg(i) => args.get(usize::from(*i)).copied().unwrap_or(Range::of_type(dtype)),
        ExprKind::Const(value) => literal(*value),
        ExprKind::Cast(to, inner) => program(inner, args, dtypes).cast(inner.dtype(dtypes), *to),
        ExprKind::Apply(f, operands) => {
            let operands: SmallVec<[Range; 3]> = operands.iter().map(|e| program(e, args, dtypes)).collect();
            Range::apply(*f, &operands, dtype)
        }
    }
}

/// Whether a value is an `i32` whose elements fit `i16`.
pub fn is_short(graph: &Graph, id: NodeId) -> bool {
    graph.tensor_type(id).dtype == DType::I32 && Range::of(graph, id).is_within(Range::of_type(DType::I16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_ir::{TensorType, trace};

    #[test]
    fn quantised_values_are_short() {
        let ty = |dtype, shape: &[i64]| TensorType { dtype, shape: shape.into() };
        let graph = trace(|t| {
            let (x, w) = (t.input("x", ty(DType::U8, &[4, 8])), t.input("w", ty(DType::I8, &[8, 3])));
            let (zero, wide) = (t.input("zero", ty(DType::U8, &[])), t.input("wide", ty(DType::I32, &[8, 3])));
            let centred = x.cast(DType::I32) - zero.cast(DType::I32);
            let y = t.input("y", ty(DType::F32, &[4, 8]));
            let clamped = (y * 0.5).round().maximum(-7.0).minimum(200.0).cast(DType::I32);
            let twice = w.cast(DType::I32) + w.cast(DType::I32);
            vec![
                ("centred", centred.transpose(&[1, 0])),
                ("clamped", clamped - 3),
                ("twice", twice),
                ("wide", wide),
                ("squares", twice * twice),
                ("unclamped", y.cast(DType::I32)),
            ]
        })
        .unwrap();
        let range = |name: &str| {
            let (_, id) = graph.outputs().iter().find(|(n, _)| n == name).unwrap();
            (is_short(&graph, *id), Range::of(&graph, *id))
        };
        assert_eq!(range("centred"), (true, Range { low: -255.0, high: 255.0 }));
        assert_eq!(range("clamped"), (true, Range { low: -10.0, high: 197.0 }));
        assert_eq!(range("twice"), (true, Range { low: -256.0, high: 254.0 }));
        for name in ["wide", "squares", "unclamped"] {
            assert_eq!(range(name), (false, Range::of_type(DType::I32)), "{name}");
        }
    }

    /// Sums of bytes are in `i32`, whatever an epilogue makes of them.
    #[test]
    fn sums_of_bytes_are_not_bytes() {
        let mut graph = Graph::new();
        let input = |name: &str, shape: &[i64]| egret_ir::ops::Input {
            name: name.into(),
            ty: TensorType { dtype: DType::U8, shape: shape.into() },
        };
        let x = graph.add(input("x", &[4, 8]), &[]).unwrap();
        let w = graph.add(input("w", &[8, 3]), &[]).unwrap();
        let dot = egret_ir::ops::DotGeneral::parse("ab,bc->ac").unwrap().wide();
        let fused = egret_ir::ops::Fused::epilogue(dot.into(), 2, ScalarExpr::arg(0), DType::I32);
        let sum = graph.add(fused, &[x, w]).unwrap();
        assert_eq!(Range::of(&graph, sum), Range::of_type(DType::I32));
        assert!(!is_short(&graph, sum));
    }
}
