//! Spellings of composites.

use egret_ir::Op;
use egret_ir::ops::{Norm, NormKind, Real as RealAttr, Reduce, ReduceKind, Softmax};

use super::super::pattern::{Class::Exact, Class::Real, Match, Rule, when};

fn reduction<'m>(m: &'m Match, name: &str) -> Option<&'m Reduce> {
    match m.op(name)? {
        Op::Reduce(reduce) => Some(reduce),
        _ => None,
    }
}

fn softmax(m: &mut Match, log: bool) -> Option<()> {
    let sum = reduction(m, "s")?;
    when(sum.kind == ReduceKind::Sum && sum.keep && sum.axes.len() == 1)?;
    let axis = sum.axes[0];
    if let Some(max) = reduction(m, "m") {
        when(max.keep && max.axes == sum.axes)?;
    }
    m.set("o", Softmax { axis, log })
}

/// Whether a reduction runs over trailing axes and keeps them; the first of them.
fn trailing(reduce: &Reduce, rank: usize) -> Option<usize> {
    let first = *reduce.axes.first()?;
    when(reduce.keep && reduce.axes.iter().copied().eq(first..rank))?;
    Some(first)
}

fn norm(m: &mut Match, kind: NormKind) -> Option<()> {
    let mean = reduction(m, "a")?;
    let axis = trailing(mean, m.ty("x")?.shape.rank())?;
    let eps = m.splat("e")?.as_f64();
    when(eps > 0.0)?;
    m.set("o", Norm { kind, axis, eps: RealAttr::new(eps) })
}

pub(super) fn rules() -> Vec<Rule> {
    let no: fn(&mut Match) -> Option<()> = |_| Some(());
    vec![
        Rule::new("square", Exact, "(pow ?x 2)", "(mul ?x ?x)", "x² = x·x", no),
        Rule::new("square-root", Real, "(pow ?x 0.5)", "(sqrt ?x)", "x^½ = √x; of −0 the root is −0, the power 0", no),
        Rule::new("reciprocal-square-root", Real, "(recip (sqrt ?x))", "(rsqrt ?x)", "1/√x", no),
        Rule::new("one-over-square-root", Real, "(div 1 (sqrt ?x))", "(rsqrt ?x)", "1/√x", no),
        Rule::new(
            "divide-by-square-root",
            Real,
            "(div ?y (sqrt ?x))",
            "(mul ?y (rsqrt ?x))",
            "y/√x = y·(1/√x)",
            |m| when(m.splat("x").is_none()),
        ),
        Rule::new(
            "softmax-shifted",
            Real,
            "(div (exp (sub ?x (reduce_max $m ?x))) (reduce_sum $s (exp (sub ?x (reduce_max $m ?x)))))",
            "(softmax $o ?x)",
            "softmax with the maximum subtracted",
            |m| softmax(m, false),
        ),
        Rule::new(
            "softmax-plain",
            Real,
            "(div (exp ?x) (reduce_sum $s (exp ?x)))",
            "(softmax $o ?x)",
            "softmax as its definition",
            |m| softmax(m, false),
        ),
        Rule::new(
            "log-softmax",
            Real,
            "(log (softmax $o ?x))",
            "(log_softmax $n ?x)",
            "the logarithm of a softmax",
            |m| {
                let Op::Softmax(softmax) = m.op("o")? else { return None };
                let axis = softmax.axis;
                m.set("n", Softmax { axis, log: true })
            },
        ),
        Rule::new(
            "log-softmax-shifted",
            Real,
            "(sub (sub ?x (reduce_max $m ?x)) (log (reduce_sum $s (exp (sub ?x (reduce_max $m ?x))))))",
            "(log_softmax $o ?x)",
            "log-softmax with the maximum subtracted",
            |m| softmax(m, true),
        ),
        Rule::new(
            "layer-norm",
            Real,
            "(mul (sub ?x (reduce_mean $a ?x)) (rsqrt (add (reduce_mean $a (mul (sub ?x (reduce_mean $a ?x)) (sub ?x (reduce_mean $a ?x)))) ?e)))",
            "(layer_norm $o ?x)",
            "the deviation from the mean over the standard deviation",
            |m| norm(m, NormKind::Layer),
        ),
        Rule::new(
            "rms-norm",
            Real,
            "(mul ?x (rsqrt (add (reduce_mean $a (mul ?x ?x)) ?e)))",
            "(rms_norm $o ?x)",
            "a value over its root mean square",
            |m| norm(m, NormKind::Rms),
        ),
    ]
}
