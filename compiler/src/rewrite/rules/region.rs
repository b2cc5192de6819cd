//! Operators that join into one kernel beside the generic epilogue.

use std::sync::Arc;

use egret_ir::Op;
use egret_ir::ops::Fused;
use egret_ir::{DType, ScalarExpr};

use super::super::pattern::{Class::Exact, Class::Real, Match, Rule, when};
use super::{CodeRule, Topic, any_dot, code};

/// A row operator over the last axis of a contraction, whose columns come from the second operand.
fn rows(m: &mut Match, axis: usize, row: Op) -> Option<()> {
    let op = m.op("d")?.clone();
    let dot = any_dot(Some(&op))?;
    let last = *dot.out.0.last()?;
    when(axis + 1 == dot.out.0.len() && dot.rhs.has(last) && !dot.lhs.has(last))?;
    let fused = match op {
        Op::Fused(fused) => Arc::unwrap_or_clone(fused),
        plain => Fused::epilogue(plain, 2, ScalarExpr::arg(0), DType::F32),
    };
    when(fused.rows.is_none() && fused.taps.is_empty() && fused.dtype == DType::F32)?;
    when(m.ty("b")?.dtype == DType::F32)?;
    m.set("n", Fused { rows: Some((Box::new(row), ScalarExpr::arg(0))), ..fused })
}

pub(super) const CODE: [CodeRule; 2] = [
    code(
        "tap-maps",
        Topic::Region,
        Exact,
        "maps of a product that several kernels read are further results of its kernel",
    ),
    code(
        "tap-rows",
        Topic::Region,
        Real,
        "the softmax or norm of a product's rows joins it where the product itself is needed too",
    ),
];

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::new(
            "dot-softmax",
            Real,
            "(softmax $s (dot_general $d ?a ?b ..e))",
            "(dot_general $n ?a ?b ..e)",
            "softmax over the columns of a product joins it",
            |m| {
                let row = m.op("s")?.clone();
                let Op::Softmax(softmax) = &row else { return None };
                rows(m, softmax.axis, row.clone())
            },
        ),
        Rule::new(
            "dot-layer-norm",
            Real,
            "(layer_norm $s (dot_general $d ?a ?b ..e))",
            "(dot_general $n ?a ?b ..e)",
            "layer norm over the columns of a product joins it",
            |m| {
                let row = m.op("s")?.clone();
                let Op::Norm(norm) = &row else { return None };
                rows(m, norm.axis, row.clone())
            },
        ),
        Rule::new(
            "dot-rms-norm",
            Real,
            "(rms_norm $s (dot_general $d ?a ?b ..e))",
            "(dot_general $n ?a ?b ..e)",
            "RMS norm over the columns of a product joins it",
            |m| {
                let row = m.op("s")?.clone();
                let Op::Norm(norm) = &row else { return None };
                rows(m, norm.axis, row.clone())
            },
        ),
    ]
}
