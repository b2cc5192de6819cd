//! Contractions and convolutions as plain loops: element types and forms that no driver has.

use egret_ir::ops::{Conv, ConvForm, DotGeneral};
use egret_ir::{DType, NodeId, Op};
use smallvec::SmallVec;

use super::map::row_loops;
use super::row::{anchor, first_operand, results};
use super::scope::Scope;
use crate::kernel::{Expr, LoopKind, Memory, Var};

/// Builds the kernel: one sum an element of the result.
pub fn build(scope: &mut Scope, id: NodeId) {
    let parts = scope.graph.ty(id).parts().len();
    let outs: Vec<Memory> = (0..parts).map(|part| scope.write((id, part))).collect();
    row_loops(scope, id, |scope, index| {
        let graph = scope.graph;
        let node = graph.node(id);
        let (a, b) = (node.operands[0], node.operands[1]);
        let value = match anchor(&node.op) {
            Op::DotGeneral(dot) => contraction(scope, dot, a, b, index),
            Op::Conv(conv) => convolution(scope, conv, id, a, b, index),
            _ => Expr::constant(DType::F32, 0.0),
        };
        for (part, value) in results(scope, id, index, value).into_iter().enumerate() {
            let address = scope.address((id, part), index);
            scope.k.store(outs[part], address, value);
        }
    });
}

/// Element type of the sums of products of an operand.
fn sum_dtype(scope: &Scope, operand: NodeId, wide: bool) -> DType {
    if wide { DType::I32 } else { scope.graph.tensor_type(operand).dtype }
}

/// An element as its sum needs it.
fn widened(element: Expr, wide: bool) -> Expr {
    if wide { element.cast(DType::I32) } else { element }
}

fn accumulate(scope: &mut Scope, total: Var, product: Expr) {
    scope.k.assign(total, Expr::Var(total) + product);
}

fn contraction(scope: &mut Scope, dot: &DotGeneral, a: NodeId, b: NodeId, index: &[Expr]) -> Expr {
    let graph = scope.graph;
    let total = scope.k.variable(Expr::constant(sum_dtype(scope, a, dot.wide), 0.0));
    let mut at: [Option<Expr>; 26] = Default::default();
    for (label, index) in dot.out.0.iter().zip(index) {
        at[usize::from(label - b'a')] = Some(index.clone());
    }
    let mut open: SmallVec<[(u8, egret_ir::Dim); 6]> = SmallVec::new();
    for (labels, id) in [(&dot.lhs, a), (&dot.rhs, b)] {
        for (label, extent) in labels.0.iter().zip(graph.tensor_type(id).shape.iter()) {
            if at[usize::from(label - b'a')].is_none() && open.iter().all(|(have, _)| have != label) {
                open.push((*label, extent.clone()));
            }
        }
    }
    fn level(
        scope: &mut Scope,
        open: &[(u8, egret_ir::Dim)],
        at: [Option<Expr>; 26],
        body: &mut dyn FnMut(&mut Scope, &[Option<Expr>; 26]),
    ) {
        let Some(((label, extent), rest)) = open.split_first() else { return body(scope, &at) };
        let end = scope.dim(extent);
        scope.for_(Expr::int(0), end, LoopKind::Serial, |scope, k| {
            let mut at = at;
            at[usize::from(label - b'a')] = Some(k);
            level(scope, rest, at, body);
        });
    }
    level(scope, &open, at, &mut |scope, at| {
        let index = |labels: &egret_ir::ops::Labels| -> SmallVec<[Expr; 6]> {
            labels.0.iter().map(|l| at[usize::from(l - b'a')].clone().unwrap_or(Expr::int(0))).collect()
        };
        let x = scope.element(a, &index(&dot.lhs));
        let y = scope.element(b, &index(&dot.rhs));
        accumulate(scope, total, widened(x, dot.wide) * widened(y, dot.wide));
    });
    Expr::Var(total)
}

/// Sums over loops with extents; the body gets one index a loop.
fn nest(scope: &mut Scope, extents: &[Expr], at: SmallVec<[Expr; 8]>, body: &mut dyn FnMut(&mut Scope, &[Expr])) {
    let Some(extent) = extents.get(at.len()) else { return body(scope, &at) };
    scope.for_(Expr::int(0), extent.clone(), LoopKind::Serial, |scope, i| {
        let mut at = at;
        at.push(i);
        nest(scope, extents, at, body);
    });
}

fn convolution(scope: &mut Scope, conv: &Conv, id: NodeId, a: NodeId, b: NodeId, index: &[Expr]) -> Expr {
    let graph = scope.graph;
    let dtype = graph.tensor_type(a).dtype;
    let n = conv.spatial();
    let (x, w, y) = match conv.form {
        ConvForm::Forward => (a, b, id),
        ConvForm::InputGrad => (id, b, a),
        ConvForm::WeightGrad => (a, id, b),
    };
    let dims = |scope: &mut Scope, id: NodeId| -> SmallVec<[Expr; 6]> {
        let shape = graph.tensor_type(id).shape.clone();
        shape.iter().map(|d| scope.dim(d)).collect()
    };
    let (xs, ws, ys) = (dims(scope, x), dims(scope, w), dims(scope, y));
    let groups = Expr::int(conv.groups);
    let group_outputs = scope.k.bind(ws[0].clone() / groups);
    let total = scope.k.variable(Expr::constant(sum_dtype(scope, a, conv.wide), 0.0));
    let image_at = |out: &Expr, tap: &Expr, axis: usize| {
        out.clone() * Expr::int(conv.stride[axis]) + tap.clone() * Expr::int(conv.dilation[axis])
            - Expr::int(conv.pad_low[axis])
    };
    match conv.form {
        ConvForm::Forward => {
            let group = scope.k.bind(index[1].clone() / group_outputs);
            let mut extents: SmallVec<[Expr; 6]> = smallvec::smallvec![ws[1].clone()];
            extents.extend(ws[2..].iter().cloned());
            nest(scope, &extents, SmallVec::new(), &mut |scope, at| {
                let channel = group.clone() * ws[1].clone() + at[0].clone();
                let mut image: SmallVec<[Expr; 6]> = smallvec::smallvec![index[0].clone(), channel];
                let mut weight: SmallVec<[Expr; 6]> = smallvec::smallvec![index[1].clone(), at[0].clone()];
                weight.extend(at[1..].iter().cloned());
                let mut inside: Option<Expr> = None;
                for axis in 0..n {
                    let place = scope.k.bind(image_at(&index[2 + axis], &at[1 + axis], axis));
                    let fits = place.greater_equal(Expr::int(0)).and(place.less(xs[2 + axis].clone()));
                    inside = Some(inside.map_or(fits.clone(), |i| i.and(fits)));
                    image.push(place);
                }
                let inside = scope.k.bind(inside.unwrap_or(Expr::constant(DType::Bool, 1.0)));
                let value = scope.masked(inside.clone(), |s| first_operand(s, id, &image));
                let value = inside.select(value, Expr::constant(dtype, 0.0));
                let weight = scope.element(w, &weight);
                accumulate(scope, total, widened(value, conv.wide) * widened(weight, conv.wide));
            });
        }
        ConvForm::InputGrad => {
            let group = scope.k.bind(index[1].clone() / ws[1].clone());
            let inner = scope.k.bind(index[1].clone() % ws[1].clone());
            let mut extents: SmallVec<[Expr; 6]> = smallvec::smallvec![group_outputs.clone()];
            extents.extend(ws[2..].iter().cloned());
            nest(scope, &extents, SmallVec::new(), &mut |scope, at| {
                let output = scope.k.bind(group.clone() * group_outputs.clone() + at[0].clone());
                let mut place: SmallVec<[Expr; 6]> = smallvec::smallvec![index[0].clone(), output.clone()];
                let mut weight: SmallVec<[Expr; 6]> = smallvec::smallvec![output, inner.clone()];
                weight.extend(at[1..].iter().cloned());
                let mut inside: Option<Expr> = None;
                for axis in 0..n {
                    let scaled = index[2 + axis].clone() + Expr::int(conv.pad_low[axis])
                        - at[1 + axis].clone() * Expr::int(conv.dilation[axis]);
                    let scaled = scope.k.bind(scaled);
                    let stride = Expr::int(conv.stride[axis]);
                    let out = scope.k.bind(scaled.clone() / stride.clone());
                    let fits = (scaled.clone() % stride).equal(Expr::int(0));
                    let fits = fits.and(scaled.greater_equal(Expr::int(0))).and(out.less(ys[2 + axis].clone()));
                    inside = Some(inside.map_or(fits.clone(), |i| i.and(fits)));
                    place.push(out);
                }
                let inside = scope.k.bind(inside.unwrap_or(Expr::constant(DType::Bool, 1.0)));
                let value = scope.masked(inside.clone(), |s| s.element(y, &place));
                let value = inside.select(value, Expr::constant(dtype, 0.0));
                let weight = scope.element(w, &weight);
                accumulate(scope, total, widened(value, conv.wide) * widened(weight, conv.wide));
            });
        }
        ConvForm::WeightGrad => {
            let group = scope.k.bind(index[0].clone() / group_outputs);
            let channel = scope.k.bind(group * ws[1].clone() + index[1].clone());
            let mut extents: SmallVec<[Expr; 6]> = smallvec::smallvec![ys[0].clone()];
            extents.extend(ys[2..].iter().cloned());
            nest(scope, &extents, SmallVec::new(), &mut |scope, at| {
                let mut image: SmallVec<[Expr; 6]> = smallvec::smallvec![at[0].clone(), channel.clone()];
                let mut place: SmallVec<[Expr; 6]> = smallvec::smallvec![at[0].clone(), index[0].clone()];
                place.extend(at[1..].iter().cloned());
                let mut inside: Option<Expr> = None;
                for axis in 0..n {
                    let spot = scope.k.bind(image_at(&at[1 + axis], &index[2 + axis], axis));
                    let fits = spot.greater_equal(Expr::int(0)).and(spot.less(xs[2 + axis].clone()));
                    inside = Some(inside.map_or(fits.clone(), |i| i.and(fits)));
                    image.push(spot);
                }
                let inside = scope.k.bind(inside.unwrap_or(Expr::constant(DType::Bool, 1.0)));
                let value = scope.masked(inside.clone(), |s| s.element(x, &image));
                let value = inside.select(value, Expr::constant(dtype, 0.0));
                let gradient = scope.element(y, &place);
                accumulate(scope, total, widened(value, conv.wide) * widened(gradient, conv.wide));
            });
        }
    }
    Expr::Var(total)
}
