//! Transposes, reshapes, broadcasts and casts: away, or into contractions.

use egret_ir::Op;
use egret_ir::ops::{Reshape, Transpose};
use smallvec::SmallVec;

use super::super::pattern::{Class::Exact, Match, Rule, when};
use super::{any_dot, plain_dot, with_dot};

fn permutation(op: Option<&Op>) -> Option<SmallVec<[usize; 6]>> {
    match op? {
        Op::Transpose(transpose) => Some(transpose.permutation.clone()),
        _ => None,
    }
}

/// Labels of `x` when `labels` are those of its transpose.
fn before(labels: &egret_ir::ops::Labels, permutation: &[usize]) -> egret_ir::ops::Labels {
    let mut inner = labels.clone();
    for (i, axis) in permutation.iter().enumerate() {
        inner.0[*axis] = labels.0[i];
    }
    inner
}

fn into_dot(m: &mut Match, side: usize) -> Option<()> {
    let p = permutation(m.op("p"))?;
    let op = m.op("d")?.clone();
    let dot = any_dot(Some(&op))?.clone();
    let new = match side {
        0 => dot.relabelled(before(&dot.lhs, &p), dot.rhs.clone(), dot.out.clone()),
        _ => dot.relabelled(dot.lhs.clone(), before(&dot.rhs, &p), dot.out.clone()),
    };
    m.set("n", with_dot(&op, new))
}

/// A transpose that only moves axes of extent 1 is a reshape.
fn is_reshape(m: &Match) -> Option<bool> {
    let p = permutation(m.op("p"))?;
    let shape = &m.ty("x")?.shape;
    let moved: Vec<usize> = p.iter().copied().filter(|axis| !shape[*axis].is(1)).collect();
    Some(moved.is_sorted())
}

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::new(
            "transpose-transpose",
            Exact,
            "(transpose $p (transpose $q ?x))",
            "(transpose $r ?x)",
            "two transposes are one",
            |m| {
                let (p, q) = (permutation(m.op("p"))?, permutation(m.op("q"))?);
                m.set("r", Transpose { permutation: p.iter().map(|axis| q[*axis]).collect() })
            },
        ),
        Rule::new("transpose-identity", Exact, "(transpose $p ?x)", "?x", "a transpose that moves no axis", |m| {
            when(permutation(m.op("p"))?.is_sorted())
        }),
        Rule::new(
            "transpose-reshape",
            Exact,
            "(transpose $p ?x)",
            "(reshape $r ?x)",
            "a transpose that moves only axes of extent 1 is a reshape",
            |m| {
                let p = permutation(m.op("p"))?;
                when(is_reshape(m)? && !p.is_sorted())?;
                let shape = &m.ty("x")?.shape;
                let shape = p.iter().map(|axis| shape[*axis].clone()).collect();
                m.set("r", Reshape { shape })
            },
        ),
        Rule::new(
            "reshape-reshape",
            Exact,
            "(reshape $p (reshape $q ?x))",
            "(reshape $p ?x)",
            "two reshapes are the last one",
            |_| Some(()),
        ),
        Rule::new("reshape-identity", Exact, "(reshape $p ?x)", "?x", "a reshape to the shape it has", |m| {
            match m.op("p")? {
                Op::Reshape(reshape) => when(reshape.shape == m.ty("x")?.shape),
                _ => None,
            }
        }),
        Rule::new(
            "broadcast-identity",
            Exact,
            "(broadcast $p ?x)",
            "?x",
            "a broadcast to the shape it has",
            |m| match m.op("p")? {
                Op::Broadcast(broadcast) => when(broadcast.shape == m.ty("x")?.shape),
                _ => None,
            },
        ),
        Rule::new("cast-identity", Exact, "(cast $c ?x)", "?x", "a cast to the type it has", |m| match m.op("c")? {
            Op::Cast(cast) => when(cast.dtype == m.ty("x")?.dtype),
            _ => None,
        }),
        Rule::new(
            "dot-transpose-a",
            Exact,
            "(dot_general $d (transpose $p ?a) ?b ..e)",
            "(dot_general $n ?a ?b ..e)",
            "a transposed first operand permutes its labels",
            |m| into_dot(m, 0),
        ),
        Rule::new(
            "dot-transpose-b",
            Exact,
            "(dot_general $d ?a (transpose $p ?b) ..e)",
            "(dot_general $n ?a ?b ..e)",
            "a transposed second operand permutes its labels",
            |m| into_dot(m, 1),
        ),
        Rule::new(
            "transpose-dot",
            Exact,
            "(transpose $p (dot_general $d ?a ?b))",
            "(dot_general $n ?a ?b)",
            "a transposed result permutes the result's labels",
            |m| {
                let p = permutation(m.op("p"))?;
                let dot = plain_dot(m.op("d"))?;
                let new = dot.relabelled(dot.lhs.clone(), dot.rhs.clone(), dot.out.permuted(&p));
                m.set("n", new)
            },
        ),
    ]
}
