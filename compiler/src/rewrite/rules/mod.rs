//! Rules as data, in files by topic.

mod algebra;
mod epilogue;
mod fold;
mod gradient;
mod merge;
mod movement;
mod raise;
mod region;

use std::sync::{Arc, OnceLock};

use egret_ir::Op;
use egret_ir::ops::{Conv, DotGeneral, Fused};

use super::pattern::{Class, Rule};

pub use algebra::{LOOP_MOTION, SCALED_INTEGERS};

/// Which passes use a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Values that are known, and functions of their identity element; applied directly.
    Fold,
    /// Data movement, applied directly and in the e-graph.
    Movement,
    /// Spellings of composites, applied directly before differentiation.
    Raise,
    /// What differentiation spells; applied directly after it.
    Gradient,
    /// Scales and biases into weights.
    Algebra,
    /// Elementwise nodes into the anchor that makes their operand.
    Epilogue,
    /// Elementwise nodes into the convolution that reads what they make.
    Prologue,
    /// Operators that join into one kernel.
    Region,
    /// Anchors that share an operand into one.
    Merge,
    /// Rules that a user added, tried in every phase of the e-graph.
    User,
}

/// A rule that is code, because text of fixed shape cannot say it.
#[derive(Clone, Copy, Debug)]
pub struct CodeRule {
    /// Its name.
    pub name: &'static str,
    /// Which pass uses it.
    pub topic: Topic,
    /// How faithful it is.
    pub class: Class,
    /// The identity in one line.
    pub doc: &'static str,
}

/// Every rule that is code.
pub fn code_rules() -> &'static [CodeRule] {
    static RULES: OnceLock<Vec<CodeRule>> = OnceLock::new();
    RULES.get_or_init(|| {
        let topics: [&[CodeRule]; 6] =
            [&fold::CODE, &raise::CODE, &algebra::CODE, &epilogue::CODE, &region::CODE, &merge::CODE];
        topics.concat()
    })
}

const fn code(name: &'static str, topic: Topic, class: Class, doc: &'static str) -> CodeRule {
    CodeRule { name, topic, class, doc }
}

/// Every rule that is text with its topic, in the order in which they are tried.
pub fn all() -> &'static Arc<Vec<(Topic, Arc<Rule>)>> {
    static RULES: OnceLock<Arc<Vec<(Topic, Arc<Rule>)>>> = OnceLock::new();
    RULES.get_or_init(|| {
        let topics = [
            (Topic::Fold, fold::rules()),
            (Topic::Movement, movement::rules()),
            (Topic::Raise, raise::rules()),
            (Topic::Gradient, gradient::rules()),
            (Topic::Algebra, algebra::rules()),
            (Topic::Region, region::rules()),
        ];
        let rules = topics.into_iter().flat_map(|(topic, rules)| rules.into_iter().map(move |r| (topic, Arc::new(r))));
        Arc::new(rules.collect())
    })
}

/// The contraction in `op`, if it has absorbed nothing.
fn plain_dot(op: Option<&Op>) -> Option<&DotGeneral> {
    match op? {
        Op::DotGeneral(dot) => Some(dot),
        _ => None,
    }
}

/// The contraction in `op`, fused or not.
fn any_dot(op: Option<&Op>) -> Option<&DotGeneral> {
    match op? {
        Op::DotGeneral(dot) => Some(dot),
        Op::Fused(fused) => match &*fused.anchor {
            Op::DotGeneral(dot) => Some(dot),
            _ => None,
        },
        _ => None,
    }
}

/// The convolution in `op`, if it has absorbed nothing.
fn plain_conv(op: Option<&Op>) -> Option<&Conv> {
    match op? {
        Op::Conv(conv) => Some(conv),
        _ => None,
    }
}

/// `op` with its contraction replaced, whatever it has absorbed.
fn with_dot(op: &Op, dot: DotGeneral) -> Op {
    match op {
        Op::Fused(fused) => Fused { anchor: Box::new(dot.into()), ..(**fused).clone() }.into(),
        _ => dot.into(),
    }
}
