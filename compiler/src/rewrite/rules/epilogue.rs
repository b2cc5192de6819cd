//! Elementwise nodes into the anchor that makes their operand, and into the one that reads what they make: code, because an
//! anchor has any number of operands and its program any shape.

use super::super::pattern::Class::Exact;
use super::{CodeRule, Topic, code};

pub(super) const CODE: [CodeRule; 5] = [
    code("epilogue-unary", Topic::Epilogue, Exact, "f(anchor): the function joins the anchor's program"),
    code(
        "epilogue-binary",
        Topic::Epilogue,
        Exact,
        "f(anchor, y): so does one with a foreign operand; comparisons of a stored y with a number are made there too",
    ),
    code(
        "epilogue-both",
        Topic::Epilogue,
        Exact,
        "f(g(anchor), h(anchor)): so does one of two epilogues of the same anchor",
    ),
    code(
        "concat-elementwise",
        Topic::Epilogue,
        Exact,
        "f(concat(a, b, …)) = concat(f(a), f(b), …) where a kernel makes one of these: its program takes the function",
    ),
    code(
        "prologue",
        Topic::Prologue,
        Exact,
        "conv(f(x)): functions of an image and of its channels join the convolution that reads them, before padding",
    ),
];
