//! Raise: every spelling of a composite becomes the operator, before differentiation.
//!
//! The rules are those of rewriting, applied directly: bottom up, each node until none fits. What rules cannot say,
//! activations of any association and attentions with any score program, is found by reading a node's cone as a scalar
//! program.

mod activation;
mod attention;
mod cone;
mod simplify;
mod spell;

use egret_ir::{Diagnostic, Graph};

pub use spell::spell_out;

use crate::rewrite::direct::{self, Applied, Builder};
use crate::rewrite::rules::{self, Topic};

/// Folds, shares and simplifies; recognises nothing.
///
/// # Errors
/// When a simplified node does not fit its operands: a defect of a rule.
pub fn canonicalise(graph: &Graph) -> Result<Graph, Diagnostic> {
    let rules = rules::of(&[Topic::Movement], false);
    let (graph, _) = direct::apply(graph, &rules, &mut simplify::simplify)?;
    Ok(graph)
}

/// Canonicalises, and names composites. Reports where.
///
/// # Errors
/// As [`canonicalise`].
pub fn raise(graph: &Graph) -> Result<(Graph, Vec<Applied>), Diagnostic> {
    let rules = rules::of(&[Topic::Movement, Topic::Raise], false);
    let mut hook = |builder: &mut Builder, node| {
        simplify::simplify(builder, node)
            .or_else(|| activation::raise(builder, node))
            .or_else(|| attention::raise(builder, node))
    };
    direct::apply(graph, &rules, &mut hook)
}
