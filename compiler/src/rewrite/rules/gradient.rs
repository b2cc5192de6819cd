//! What differentiation spells, by rule of each operator, and is less work in another place.

use egret_ir::Op;
use egret_ir::ops::{ReduceKind, ReduceWindow, ReduceWindowGrad, Window};

use super::super::pattern::{Class::Exact, Class::Real, Match, Rule, when};

fn windows<'m>(m: &'m Match) -> Option<&'m ReduceWindowGrad> {
    match m.op("g")? {
        Op::ReduceWindowGrad(grad) => Some(grad),
        _ => None,
    }
}

/// A comparison of what windows read with a number: all elements that are a window's maximum have its answer.
fn of_maximum(m: &mut Match) -> Option<()> {
    let grad = windows(m)?;
    let forward = ReduceWindow { kind: grad.kind, window: grad.window.clone() };
    let number = m.ty("c")?;
    when(m.splat("c").is_some() && number.shape.iter().all(|dim| dim.is(1)))?;
    when(number.shape.rank() <= m.ty("x")?.shape.rank())?;
    m.set("w", forward)
}

/// Whether each window has an element, and so a maximum to which its gradient goes.
fn none_is_empty(window: &Window) -> bool {
    let axes = window.size.iter().zip(&window.pad_low).zip(window.pad_high.iter().zip(&window.dilation));
    axes.into_iter().all(|((size, low), (high, dilation))| *dilation == 1 && low < size && high < size)
}

/// The axes of `?x` over which the sums named `sums`, the first of them innermost, add up.
fn summed(m: &Match, sums: &[&str]) -> Option<Vec<usize>> {
    let mut left: Vec<usize> = (0..m.ty("x")?.shape.rank()).collect();
    let mut summed = Vec::new();
    for name in sums {
        let Op::Reduce(reduce) = m.op(name)? else { return None };
        when(reduce.kind == ReduceKind::Sum)?;
        summed.extend(reduce.axes.iter().map(|axis| left[*axis]));
        if !reduce.keep {
            let mut axis = 0;
            left.retain(|_| (!reduce.axes.contains(&axis), axis += 1).0);
        }
    }
    Some(summed)
}

fn sum_of_all_windows(m: &Match, sums: &[&str]) -> Option<()> {
    let window = &windows(m)?.window;
    let rank = m.ty("x")?.shape.rank();
    let summed = summed(m, sums)?;
    when(none_is_empty(window) && (rank - window.size.len()..rank).all(|axis| summed.contains(&axis)))
}

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::new(
            "choice-before-max-gradient",
            Exact,
            "(select (gt ?x ?c) (window_max_grad $g ?x ?dy) 0)",
            "(window_max_grad $g ?x (select (gt (window_max $w ?x) ?c) ?dy 0))",
            "elements that are a window's maximum compare as it does: one choice a window instead of one an element",
            of_maximum,
        ),
        Rule::new(
            "sum-of-max-gradient",
            Real,
            "(reduce_sum $s (window_max_grad $g ?x ?dy))",
            "(reduce_sum $s ?dy)",
            "windows give all of their gradients to elements: the sum of these is the sum of those",
            |m| sum_of_all_windows(m, &["s"]),
        ),
        Rule::new(
            "sums-of-max-gradient",
            Real,
            "(reduce_sum $t (reduce_sum $s (window_max_grad $g ?x ?dy)))",
            "(reduce_sum $t (reduce_sum $s ?dy))",
            "so is the sum of sums",
            |m| sum_of_all_windows(m, &["s", "t"]),
        ),
    ]
}
