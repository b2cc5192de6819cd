//! Simplifications that look at values: folding small constants, and functions of their identity element.

use egret_ir::eval::EvalCx;
use egret_ir::ops::Const;
use egret_ir::{Bindings, NodeId, Op, ScalarFn, Tensor};

use crate::rewrite::RewriteSet;
use crate::rewrite::direct::Builder;

/// Bytes up to which a value is folded while compiling.
const FOLD_BYTES: usize = 4096;

/// Which rules of this file are used.
#[derive(Clone, Copy)]
pub struct Used {
    fold: bool,
    identity: bool,
    implicit_broadcast: bool,
}

impl Used {
    /// Those that a set has.
    pub fn of(set: &RewriteSet) -> Used {
        let has = |name| set.has(name);
        Used { fold: has("fold"), identity: has("identity"), implicit_broadcast: has("implicit-broadcast") }
    }
}

/// A simpler equal of a node.
pub fn simplify(builder: &mut Builder, id: NodeId, used: Used) -> Option<(NodeId, &'static str)> {
    let fold = |builder: &mut Builder| if used.fold { fold(builder, id) } else { None };
    let graph = builder.graph();
    let node = graph.node(id).clone();
    match &node.op {
        Op::Pointwise(pointwise) => {
            let ty = graph.ty(id).clone();
            let same_type = |operand: NodeId| *graph.ty(operand) == ty;
            let is = |operand: usize, value: f64| {
                builder.splat_of_node(node.operands[operand]).is_some_and(|l| l.as_f64() == value)
            };
            let float = graph.tensor_type(id).dtype.is_float();
            let other = |i: usize| same_type(node.operands[i]).then_some(node.operands[i]);
            let simpler = match pointwise.f {
                ScalarFn::Mul if is(1, 1.0) => other(0),
                ScalarFn::Mul if is(0, 1.0) => other(1),
                ScalarFn::Div if is(1, 1.0) => other(0),
                // x + 0 keeps −0 only of integers
                ScalarFn::Add if !float && is(1, 0.0) => other(0),
                ScalarFn::Add if !float && is(0, 0.0) => other(1),
                ScalarFn::Sub if is(1, 0.0) => other(0),
                ScalarFn::Select if builder.splat_of_node(node.operands[0]).is_some() => {
                    let yes = builder.splat_of_node(node.operands[0]).is_some_and(|l| l.value().truthy());
                    other(if yes { 1 } else { 2 })
                }
                _ => None,
            };
            if let Some(simpler) = simpler.filter(|_| used.identity) {
                return Some((simpler, "identity"));
            }
            let plain = if used.implicit_broadcast { unbroadcast(builder, id) } else { None };
            plain.or_else(|| fold(builder))
        }
        Op::Cast(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Gather(_) => fold(builder),
        _ => None,
    }
}

/// Functions broadcast by themselves: an operand that was broadcast is read as it was.
fn unbroadcast(builder: &mut Builder, id: NodeId) -> Option<(NodeId, &'static str)> {
    let graph = builder.graph();
    let node = graph.node(id).clone();
    for (i, operand) in node.operands.iter().enumerate() {
        let source = graph.node(*operand);
        if matches!(source.op, Op::Broadcast(_)) {
            let mut operands = node.operands.clone();
            operands[i] = source.operands[0];
            let ty = graph.ty(id).clone();
            let new = builder.add(&node.op, &operands).ok()?;
            if *builder.graph().ty(new) == ty {
                return Some((new, "implicit-broadcast"));
            }
            return None;
        }
    }
    None
}

/// The value of a small node of constants, by the reference evaluator.
fn fold(builder: &mut Builder, id: NodeId) -> Option<(NodeId, &'static str)> {
    let graph = builder.graph();
    let node = graph.node(id);
    let constant = |o: &NodeId| match &graph.node(*o).op {
        Op::Const(constant) => Some(&constant.value),
        _ => None,
    };
    if node.operands.is_empty() || !node.operands.iter().all(|o| constant(o).is_some()) {
        return None;
    }
    let ty = graph.tensor_type(id);
    let count = ty.shape.constant()?.iter().try_fold(1i64, |n, extent| n.checked_mul(*extent))?;
    if usize::try_from(count).ok()?.checked_mul(ty.dtype.size())? > FOLD_BYTES {
        return None;
    }
    let operands: Vec<Tensor> = node.operands.iter().filter_map(constant).cloned().collect();
    let mut results = node.op.home().eval(&operands, &EvalCx::new(&Bindings::new())).ok()?;
    let value = results.pop()?;
    let new = builder.add(&Const { value }.into(), &[]).ok()?;
    Some((new, "fold"))
}
