//! Anchors that share an operand into one: code, because any number of them join.

use super::super::pattern::Class::Exact;
use super::{CodeRule, Topic, code};

pub(super) const CODE: [CodeRule; 2] = [
    code("merge-dots", Topic::Merge, Exact, "x·A and x·B with equal epilogues are slices of x·[A B]"),
    code(
        "merge-convolutions",
        Topic::Merge,
        Exact,
        "convolutions of one image with equal windows and epilogues are slices of the channels of one",
    ),
];
