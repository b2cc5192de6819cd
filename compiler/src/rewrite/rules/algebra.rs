//! Scales and biases: into weights, through contractions.

use egret_ir::ops::{ConvForm, Reshape};
use egret_ir::{Dim, Shape};

use super::super::pattern::{Class::Exact, Class::Real, Match, Rule, when};
use super::{CodeRule, Topic, code, plain_conv, plain_dot};

/// The scale `?s` of axis `axis` of a result of rank `rank`, as a tensor shape that scales axis 0 of a weight of rank
/// `weight_rank`; `None` when it scales anything else.
fn channel_scale(s: &Shape, axis: usize, rank: usize, weight_rank: usize) -> Option<Shape> {
    let channel = s.rank().checked_sub(rank - axis);
    let only_channel = s.iter().enumerate().all(|(i, dim)| dim.is(1) || Some(i) == channel);
    when(only_channel)?;
    let extent = channel.map_or(Dim::ONE, |i| s[i].clone());
    Some((0..weight_rank).map(|i| if i == 0 { extent.clone() } else { Dim::ONE }).collect())
}

fn conv_scale(m: &mut Match) -> Option<()> {
    let conv = plain_conv(m.op("c"))?;
    when(conv.form == ConvForm::Forward && m.known_at_load("w") && m.known_at_load("s"))?;
    let rank = m.ty("w")?.shape.rank();
    let shape = channel_scale(&m.ty("s")?.shape, 1, rank, rank)?;
    m.set("r", Reshape { shape })
}

fn dot_scale(m: &mut Match) -> Option<()> {
    let dot = plain_dot(m.op("d"))?;
    let last = *dot.out.0.last()?;
    when(m.known_at_load("w") && m.known_at_load("s") && !m.known_at_load("x"))?;
    let axis = dot.rhs.axis(last)?;
    when(!dot.lhs.has(last))?;
    let s = &m.ty("s")?.shape;
    when(s.iter().rev().skip(1).all(|dim| dim.is(1)))?;
    let extent = s.last().cloned().unwrap_or(Dim::ONE);
    let rank = dot.rhs.0.len();
    let shape = (0..rank).map(|i| if i == axis { extent.clone() } else { Dim::ONE }).collect();
    m.set("r", Reshape { shape })
}

/// A scalar constant that scales an operand of a contraction.
fn scalar(m: &Match, name: &str) -> Option<()> {
    when(m.splat(name).is_some() && m.ty(name)?.shape.rank() == 0)
}

/// The rule of contractions that leave loops.
pub const LOOP_MOTION: &str = "loop-motion";
/// The rule of scaled integers that are multiplied as integers.
pub const SCALED_INTEGERS: &str = "scaled-integers";

pub(super) const CODE: [CodeRule; 2] = [
    code(
        LOOP_MOTION,
        Topic::Algebra,
        Real,
        "a contraction of slices leaves `scan` before it; of stacked results, or in a carried sum, after it",
    ),
    code(
        SCALED_INTEGERS,
        Topic::Algebra,
        Real,
        "a sum of scaled integers that fit bytes is one of integers, where a CPU multiplies bytes: Σ (s·a)(t·b) = s·t·Σ a·b",
    ),
];

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::new(
            "conv-scale",
            Real,
            "(mul (conv $c ?x ?w) ?s)",
            "(conv $c ?x (mul ?w (reshape $r ?s)))",
            "a scale by output channel goes into the weights: s·(w∗x) = (s·w)∗x",
            conv_scale,
        ),
        Rule::new(
            "dot-scale-weight",
            Real,
            "(mul (dot_general $d ?x ?w) ?s)",
            "(dot_general $d ?x (mul ?w (reshape $r ?s)))",
            "a scale by output column goes into the weights: (x·W)·s = x·(W·s)",
            dot_scale,
        ),
        Rule::new(
            "subtracted-bias",
            Exact,
            "(sub ?x ?b)",
            "(add ?x (neg ?b))",
            "a bias that is subtracted is a bias: x − b = x + (−b)",
            |m| when(m.known_at_load("b") && m.splat("b").is_none() && !m.known_at_load("x")),
        ),
        Rule::new(
            "scale-bias",
            Real,
            "(mul (add ?x ?b) ?s)",
            "(add (mul ?x ?s) (mul ?b ?s))",
            "a scale goes through a bias: (x + b)·s = x·s + b·s",
            |m| when(m.known_at_load("b") && m.known_at_load("s") && !m.known_at_load("x")),
        ),
        Rule::new(
            "bias-bias",
            Real,
            "(add (add ?x ?b) ?c)",
            "(add ?x (add ?b ?c))",
            "two biases are one: (x + b) + c = x + (b + c)",
            |m| when(m.known_at_load("b") && m.known_at_load("c") && !m.known_at_load("x")),
        ),
        Rule::new(
            "scale-scale",
            Real,
            "(mul (mul ?x ?s) ?t)",
            "(mul ?x (mul ?s ?t))",
            "two scales are one: (x·s)·t = x·(s·t)",
            |m| when(m.known_at_load("s") && m.known_at_load("t") && !m.known_at_load("x")),
        ),
        Rule::new(
            "dot-scale-a",
            Real,
            "(dot_general $d (mul ?a ?c) ?b)",
            "(mul (dot_general $d ?a ?b) ?c)",
            "a number that scales the first operand scales the result",
            |m| {
                plain_dot(m.op("d"))?;
                scalar(m, "c")
            },
        ),
        Rule::new(
            "dot-scale-b",
            Real,
            "(dot_general $d ?a (mul ?b ?c))",
            "(mul (dot_general $d ?a ?b) ?c)",
            "a number that scales the second operand scales the result",
            |m| {
                plain_dot(m.op("d"))?;
                when(!m.known_at_load("b"))?;
                scalar(m, "c")
            },
        ),
    ]
}
