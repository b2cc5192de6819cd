//! Rules as data, in files by topic.

mod algebra;
mod movement;
mod raise;
mod region;

use std::sync::{Arc, OnceLock};

use egret_ir::Op;
use egret_ir::ops::{Conv, DotGeneral, Fused};

use super::pattern::{Class, Rule};

/// Which passes use a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Values that are known, and functions of their identity element; applied directly.
    Fold,
    /// Data movement, applied directly and in the e-graph.
    Movement,
    /// Spellings of composites, applied directly before differentiation.
    Raise,
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
pub const CODE: &[CodeRule] = &[
    code("fold", Topic::Fold, Class::Exact, "a small operator of constants is its value, by the reference evaluator"),
    code(
        "identity",
        Topic::Fold,
        Class::Exact,
        "x·1 = x, x/1 = x, x − 0 = x, and of integers x + 0 = x; a choice by a known condition",
    ),
    code(
        "implicit-broadcast",
        Topic::Fold,
        Class::Exact,
        "a function that broadcasts by itself reads its operand as it was",
    ),
    code(
        "activation",
        Topic::Raise,
        Class::Real,
        "a scalar program of one value that spells an activation, in any association",
    ),
    code("attention", Topic::Raise, Class::Real, "a product of a softmax of any elementwise program of a product"),
    code(
        "attention-labels",
        Topic::Raise,
        Class::Exact,
        "movement of what attention reads, merged batch and heads, and repeated keys and values are labels",
    ),
    code("attention-transpose", Topic::Raise, Class::Exact, "a transposed attention permutes the result's labels"),
    code(
        "attention-empty-rows",
        Topic::Raise,
        Class::Real,
        "where no key is left 0, else attention: attention whose rows without keys are 0",
    ),
    code(
        "loop-motion",
        Topic::Algebra,
        Class::Real,
        "a contraction of slices leaves `scan` before it; of stacked results, or in a carried sum, after it",
    ),
    code("epilogue-unary", Topic::Epilogue, Class::Exact, "f(anchor): the function joins the anchor's program"),
    code("epilogue-binary", Topic::Epilogue, Class::Exact, "f(anchor, y): so does one with a foreign operand"),
    code(
        "epilogue-both",
        Topic::Epilogue,
        Class::Exact,
        "f(g(anchor), h(anchor)): so does one of two epilogues of the same anchor",
    ),
    code(
        "prologue",
        Topic::Prologue,
        Class::Exact,
        "conv(f(x)): functions of an image and of its channels join the convolution that reads them, before padding",
    ),
    code(
        "tap-maps",
        Topic::Region,
        Class::Exact,
        "maps of a product that several kernels read are further results of its kernel",
    ),
    code(
        "tap-rows",
        Topic::Region,
        Class::Real,
        "the softmax or norm of a product's rows joins it where the product itself is needed too",
    ),
    code("merge-dots", Topic::Merge, Class::Exact, "x·A and x·B with equal epilogues are slices of x·[A B]"),
    code(
        "merge-convolutions",
        Topic::Merge,
        Class::Exact,
        "convolutions of one image with equal windows and epilogues are slices of the channels of one",
    ),
];

const fn code(name: &'static str, topic: Topic, class: Class, doc: &'static str) -> CodeRule {
    CodeRule { name, topic, class, doc }
}

/// Every rule that is text with its topic, in the order in which they are tried.
pub fn all() -> &'static Arc<Vec<(Topic, Arc<Rule>)>> {
    static RULES: OnceLock<Arc<Vec<(Topic, Arc<Rule>)>>> = OnceLock::new();
    RULES.get_or_init(|| {
        let topics = [
            (Topic::Movement, movement::rules()),
            (Topic::Raise, raise::rules()),
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
