//! Spellings of composites.

use egret_ir::ops::{
    CrossEntropy, Norm, NormKind, Places, Real as RealAttr, Reduce, ReduceKind, Reshape, Slice, Softmax,
};
use egret_ir::{Dim, Op, Shape};

use super::super::pattern::{Class::Exact, Class::Real, Match, Rule, when};
use super::super::term::BindingTime;
use super::{CodeRule, Topic, code};

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

/// Rotary positions of halves that are put together before they are scaled: what reads the first half, and the second, of
/// `?x`, `?c` and `?s` as slices of the last axis.
fn rotated(m: &mut Match) -> Option<()> {
    let Op::Concat(concat) = m.op("k")? else { return None };
    let rank = m.ty("x")?.shape.rank();
    let last = |m: &Match, name: &str| m.ty(name)?.shape.last().cloned();
    let (width, half, rest) = (last(m, "x")?, last(m, "a")?, last(m, "b")?);
    when(concat.axis + 1 == rank && m.ty("a")?.shape.rank() == rank && half.clone() + rest == width)?;
    when(m.time("x")? == BindingTime::Run)?;
    for name in ["x", "c", "s"] {
        let shape = m.ty(name)?.shape.clone();
        when(*shape.last()? == width && shape.rank() <= rank)?;
        let slice = |from: Dim, to: Dim| {
            let mut slice = Slice {
                start: smallvec::smallvec![Dim::ZERO; shape.rank()],
                limit: shape.iter().cloned().collect(),
                step: smallvec::smallvec![1; shape.rank()],
            };
            (slice.start[shape.rank() - 1], slice.limit[shape.rank() - 1]) = (from, to);
            slice
        };
        let (first, second) = (slice(Dim::ZERO, half.clone()), slice(half.clone(), width.clone()));
        m.set(&format!("{name}1"), first)?;
        m.set(&format!("{name}2"), second)?;
    }
    Some(())
}

/// The reduction with its axes kept, if a reshape only puts them back.
fn kept(m: &mut Match) -> Option<()> {
    let reduce = reduction(m, "s")?.clone();
    let shape = &m.ty("x")?.shape;
    let extent = |(axis, dim): (usize, &Dim)| if reduce.axes.contains(&axis) { Dim::ONE } else { dim.clone() };
    let own: Shape = shape.iter().enumerate().map(extent).collect();
    let Op::Reshape(reshape) = m.op("r")? else { return None };
    when(!reduce.keep && reshape.shape == own)?;
    m.set("k", Reduce { keep: true, ..reduce })
}

/// The mean for a sum, if `count(number)` elements are summed.
fn mean(m: &mut Match, count: fn(f64) -> f64) -> Option<()> {
    let sum = reduction(m, "s")?.clone();
    let shape = &m.ty("x")?.shape;
    let elements = sum.axes.iter().try_fold(1i64, |n, axis| n.checked_mul(shape[*axis].as_const()?))? as f64;
    let number = m.splat("n")?;
    // a reciprocal was rounded
    let near = (count(number.as_f64()) - elements).abs() <= 1e-6 * elements;
    when(number.dtype.is_float() && near && elements > 0.0)?;
    m.set("o", Reduce { kind: ReduceKind::Mean, ..sum })
}

const KEPT: &str = "a reduction whose axes a reshape puts back keeps them";
const MEAN: &str = "a sum over the number of its terms is the mean";

/// Losses by class for log-softmax read at the labels.
fn losses(m: &mut Match) -> Option<()> {
    let (x, y) = (&m.ty("x")?.shape, m.ty("y")?);
    let (Op::Softmax(softmax), Op::Gather(gather), Op::Reshape(back)) = (m.op("s")?, m.op("g")?, m.op("r")?) else {
        return None;
    };
    let shape = back.shape.clone();
    let last = x.rank().checked_sub(1)?;
    let Places::Elements { axis } = gather.places else { return None };
    let column: Shape = shape.iter().cloned().chain([Dim::ONE]).collect();
    let fits = softmax.axis == last && axis == last && y.shape == column && x[..last] == shape[..];
    when(fits && y.dtype.is_int())?;
    m.set("u", Reshape { shape })?;
    m.set("o", CrossEntropy)
}

pub(super) const CODE: [CodeRule; 5] = [
    code(
        "activation",
        Topic::Raise,
        Real,
        "a scalar program of one value that spells an activation, in any association",
    ),
    code("attention", Topic::Raise, Real, "a product of a softmax of any elementwise program of a product"),
    code(
        "attention-labels",
        Topic::Raise,
        Exact,
        "movement of what attention reads, merged batch and heads, and repeated keys and values are labels",
    ),
    code("attention-transpose", Topic::Raise, Exact, "a transposed attention permutes the result's labels"),
    code(
        "attention-empty-rows",
        Topic::Raise,
        Real,
        "where no key is left 0, else attention: attention whose rows without keys are 0",
    ),
];

pub(super) fn rules() -> Vec<Rule> {
    let no: fn(&mut Match) -> Option<()> = |_| Some(());
    vec![
        Rule::new("square", Exact, "(pow ?x 2)", "(mul ?x ?x)", "x² = x·x", no),
        Rule::new("cube", Real, "(pow ?x 3)", "(mul (mul ?x ?x) ?x)", "x³ = x·x·x", no),
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
        Rule::new("one-over", Exact, "(div 1 ?x)", "(recip ?x)", "1/x", no),
        Rule::new("power-of-minus-half", Real, "(pow ?x -0.5)", "(rsqrt ?x)", "x^−½ = 1/√x", no),
        Rule::new("neg-neg", Exact, "(neg (neg ?x))", "?x", "−(−x) = x", no),
        Rule::new("add-neg", Exact, "(add ?x (neg ?y))", "(sub ?x ?y)", "x + (−y) = x − y", no),
        Rule::new("kept-sum", Exact, "(reshape $r (reduce_sum $s ?x))", "(reduce_sum $k ?x)", KEPT, kept),
        Rule::new("kept-max", Exact, "(reshape $r (reduce_max $s ?x))", "(reduce_max $k ?x)", KEPT, kept),
        Rule::new("kept-min", Exact, "(reshape $r (reduce_min $s ?x))", "(reduce_min $k ?x)", KEPT, kept),
        Rule::new("sum-over-count", Real, "(div (reduce_sum $s ?x) ?n)", "(reduce_mean $o ?x)", MEAN, |m| {
            mean(m, |n| n)
        }),
        Rule::new("sum-by-count", Real, "(mul (reduce_sum $s ?x) ?n)", "(reduce_mean $o ?x)", MEAN, |m| {
            mean(m, |n| 1.0 / n)
        }),
        Rule::new(
            "softmax-shifted-by-reciprocal",
            Real,
            "(mul (exp (sub ?x (reduce_max $m ?x))) (recip (reduce_sum $s (exp (sub ?x (reduce_max $m ?x))))))",
            "(softmax $o ?x)",
            "softmax with the maximum subtracted, times the reciprocal of the sum",
            |m| softmax(m, false),
        ),
        Rule::new(
            "softmax-by-reciprocal",
            Real,
            "(mul (exp ?x) (recip (reduce_sum $s (exp ?x))))",
            "(softmax $o ?x)",
            "softmax as its definition, times the reciprocal of the sum",
            |m| softmax(m, false),
        ),
        Rule::new(
            "exp-log-softmax",
            Real,
            "(exp (log_softmax $o ?x))",
            "(softmax $n ?x)",
            "the exponential of a log-softmax",
            |m| {
                let Op::Softmax(softmax) = m.op("o")? else { return None };
                let axis = softmax.axis;
                m.set("n", Softmax { axis, log: false })
            },
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
            "log-softmax-by-log-sum-exp",
            Real,
            "(sub ?x (add (log (reduce_sum $s (exp (sub ?x (reduce_max $m ?x))))) (reduce_max $m ?x)))",
            "(log_softmax $o ?x)",
            "x less the log-sum-exp, in which the maximum was subtracted",
            |m| softmax(m, true),
        ),
        Rule::new(
            "log-softmax-plain",
            Real,
            "(sub ?x (log (reduce_sum $s (exp ?x))))",
            "(log_softmax $o ?x)",
            "log-softmax as its definition",
            |m| softmax(m, true),
        ),
        Rule::new(
            "cross-entropy",
            Real,
            "(neg (reshape $r (gather_elements $g (log_softmax $s ?x) ?y)))",
            "(cross_entropy $o ?x (reshape $u ?y))",
            "the negated log-softmax at the labels",
            losses,
        ),
        Rule::new(
            "cross-entropy-of-column",
            Real,
            "(reshape $r (neg (gather_elements $g (log_softmax $s ?x) ?y)))",
            "(cross_entropy $o ?x (reshape $u ?y))",
            "the negated log-softmax at the labels",
            losses,
        ),
        Rule::new(
            "layer-norm-of-squares",
            Real,
            "(mul (sub ?x (reduce_mean $a ?x)) (rsqrt (add (sub (reduce_mean $a (mul ?x ?x)) (mul (reduce_mean $a ?x) (reduce_mean $a ?x))) ?e)))",
            "(layer_norm $o ?x)",
            "layer norm whose variance is the mean of squares less the square of the mean",
            |m| norm(m, NormKind::Layer),
        ),
        Rule::new(
            "deviation-distributed",
            Real,
            "(sub (mul ?x ?r) (mul (reduce_mean $a ?x) ?r))",
            "(mul (sub ?x (reduce_mean $a ?x)) ?r)",
            "x·r − mean·r = (x − mean)·r",
            |m| when(reduction(m, "a")?.keep),
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
            "layer-norm-scaled",
            Real,
            "(mul (sub ?x (reduce_mean $a ?x)) (mul (rsqrt (add (reduce_mean $a (mul (sub ?x (reduce_mean $a ?x)) (sub ?x (reduce_mean $a ?x)))) ?e)) ?g))",
            "(mul (layer_norm $o ?x) ?g)",
            "layer norm whose scale was multiplied into the reciprocal deviation",
            |m| norm(m, NormKind::Layer),
        ),
        Rule::new(
            "rms-norm-scaled",
            Real,
            "(mul ?x (mul (rsqrt (add (reduce_mean $a (mul ?x ?x)) ?e)) ?g))",
            "(mul (rms_norm $o ?x) ?g)",
            "RMS norm whose scale was multiplied into the reciprocal root",
            |m| norm(m, NormKind::Rms),
        ),
        Rule::new(
            "rms-norm",
            Real,
            "(mul ?x (rsqrt (add (reduce_mean $a (mul ?x ?x)) ?e)))",
            "(rms_norm $o ?x)",
            "a value over its root mean square",
            |m| norm(m, NormKind::Rms),
        ),
        Rule::new(
            "rotary-halves",
            Exact,
            "(add (mul ?x ?c) (mul (concat $k ?a ?b) ?s))",
            "(concat $k (add (mul (slice $x1 ?x) (slice $c1 ?c)) (mul ?a (slice $s1 ?s))) (add (mul (slice $x2 ?x) (slice $c2 ?c)) (mul ?b (slice $s2 ?s))))",
            "rotary positions: halves are put together once, after they are scaled",
            rotated,
        ),
    ]
}
