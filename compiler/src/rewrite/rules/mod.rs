//! Rules as data, in files by topic.

mod algebra;
mod movement;
mod raise;
mod region;

use std::sync::OnceLock;

use egret_ir::Op;
use egret_ir::ops::{Conv, DotGeneral, Fused};

use super::pattern::{Class, Rule};

/// Which passes use a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Spellings of composites, applied directly before differentiation.
    Raise,
    /// Data movement, applied directly and in the e-graph.
    Movement,
    /// Scales and biases into weights.
    Algebra,
    /// Operators that join into one kernel.
    Region,
}

/// Every rule with its topic, in the order in which they are tried.
pub fn all() -> &'static [(Topic, Rule)] {
    static RULES: OnceLock<Vec<(Topic, Rule)>> = OnceLock::new();
    RULES.get_or_init(|| {
        let topics = [
            (Topic::Movement, movement::rules()),
            (Topic::Raise, raise::rules()),
            (Topic::Algebra, algebra::rules()),
            (Topic::Region, region::rules()),
        ];
        topics.into_iter().flat_map(|(topic, rules)| rules.into_iter().map(move |rule| (topic, rule))).collect()
    })
}

/// The rules of some topics, exact ones alone if asked.
pub fn of(topics: &[Topic], exact: bool) -> Vec<&'static Rule> {
    let legal = |rule: &Rule, topic: Topic| !exact || rule.class == Class::Exact || topic == Topic::Raise;
    all().iter().filter(|(topic, rule)| topics.contains(topic) && legal(rule, *topic)).map(|(_, rule)| rule).collect()
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
        Op::Fused(fused) => Op::Fused(Fused { anchor: Box::new(dot.into()), ..fused.clone() }),
        _ => dot.into(),
    }
}
