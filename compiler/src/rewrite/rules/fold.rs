//! Values that are known, and functions of their identity element; applied directly.

use super::super::pattern::{Class::Exact, Rule, when};
use super::{CodeRule, Topic, code};

pub(super) const CODE: [CodeRule; 2] = [
    code("fold", Topic::Fold, Exact, "a small operator of constants is its value, by the reference evaluator"),
    code("implicit-broadcast", Topic::Fold, Exact, "a function that broadcasts by itself reads its operand as it was"),
];

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::new("multiply-by-one", Exact, "(mul ?x 1)", "?x", "x·1 = x", |_| Some(())),
        Rule::new("divide-by-one", Exact, "(div ?x 1)", "?x", "x/1 = x", |_| Some(())),
        Rule::new("subtract-zero", Exact, "(sub ?x 0)", "?x", "x − 0 = x", |_| Some(())),
        // of floats −0 + 0 is 0
        Rule::new("add-zero", Exact, "(add ?x 0)", "?x", "x + 0 = x of integers", |m| when(m.ty("x")?.dtype.is_int())),
        Rule::new(
            "select-by-true",
            Exact,
            "(select 1 ?a ?b)",
            "?a",
            "a choice by a condition that holds",
            |_| Some(()),
        ),
        Rule::new("select-by-false", Exact, "(select 0 ?a ?b)", "?b", "a choice by a condition that does not", |_| {
            Some(())
        }),
    ]
}
