//! Raise: every spelling of a composite becomes the operator, before differentiation.
//!
//! The rules are those of rewriting, applied directly: bottom up, each node until none fits. What rules cannot say,
//! activations of any association and attentions with any score program, is found by reading a node's cone as a scalar
//! program.

mod activation;
mod attention;
mod cone;
mod frontier;
mod labels;
mod loops;
mod score;
mod simplify;
pub(crate) mod spell;
mod trim;
mod view;

use std::sync::Arc;

use egret_ir::{Diagnostic, Graph};

pub use loops::move_contractions;
pub use spell::scaled::multiply_integers;
pub use spell::spell_out;
pub use trim::trim_loops;

use crate::rewrite::RewriteSet;
use crate::rewrite::direct::{self, Applied, Builder, Direct};
use crate::rewrite::pattern::Rule;
use crate::rewrite::rules::Topic;

/// Folds, shares and simplifies, in regions first; recognises nothing.
///
/// # Errors
/// When a simplified node does not fit its operands: a defect of a rule.
pub fn canonicalise(graph: &Graph) -> Result<Graph, Diagnostic> {
    Ok(canonicalise_with(graph, &RewriteSet::standard(), Vec::new())?.graph)
}

/// [`canonicalise`] by the rules of a set, with where they applied and where each node went. Nodes that are `settled` are
/// canonical as far as their operands are settled as well.
///
/// # Errors
/// As [`canonicalise`].
pub fn canonicalise_with(graph: &Graph, set: &RewriteSet, settled: Vec<bool>) -> Result<Direct, Diagnostic> {
    canonicalise_by(graph, set, &set.of(&[Topic::Fold, Topic::Movement], false), settled)
}

/// [`canonicalise_with`] of what differentiation wrote, by rules for gradients too; with `exact` those that keep every bit.
///
/// # Errors
/// As [`canonicalise`].
pub fn canonicalise_gradients(
    graph: &Graph,
    set: &RewriteSet,
    exact: bool,
    settled: Vec<bool>,
) -> Result<Direct, Diagnostic> {
    canonicalise_by(graph, set, &set.of(&[Topic::Fold, Topic::Movement, Topic::Gradient], exact), settled)
}

fn canonicalise_by(
    graph: &Graph,
    set: &RewriteSet,
    rules: &[Arc<Rule>],
    settled: Vec<bool>,
) -> Result<Direct, Diagnostic> {
    let inside = graph.with_regions(&mut |_, _, region| Ok(canonicalise_by(region, set, rules, Vec::new())?.graph))?;
    let graph = inside.as_ref().unwrap_or(graph);
    let used = simplify::Used::of(set);
    let mut hook = |builder: &mut Builder, node| simplify::simplify(builder, node, used);
    direct::apply(graph, rules, settled, &mut hook)
}

/// Canonicalises, and names composites, in regions first. Reports where, outside of them.
///
/// # Errors
/// As [`canonicalise`].
pub fn raise(graph: &Graph) -> Result<(Graph, Vec<Applied>), Diagnostic> {
    let raised = raise_with(graph, &RewriteSet::standard())?;
    Ok((raised.graph, raised.applied))
}

/// [`raise`] by the rules of a set, with where each node went.
///
/// # Errors
/// As [`canonicalise`].
pub fn raise_with(graph: &Graph, set: &RewriteSet) -> Result<Direct, Diagnostic> {
    let inside = graph.with_regions(&mut |_, _, region| Ok(raise_with(region, set)?.graph))?;
    let graph = inside.as_ref().unwrap_or(graph);
    let (activations, attentions) = (set.has("activation"), set.has("attention"));
    let used = simplify::Used::of(set);
    let mut found = attention::Found::default();
    let mut hook = |builder: &mut Builder, node| {
        simplify::simplify(builder, node, used)
            .or_else(|| if activations { activation::raise(builder, node) } else { None })
            .or_else(|| if attentions { found.raise(builder, node) } else { None })
    };
    direct::apply(graph, &set.of(&[Topic::Fold, Topic::Movement, Topic::Raise], false), Vec::new(), &mut hook)
}
