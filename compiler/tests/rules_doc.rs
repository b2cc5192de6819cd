//! `docs/rules.md` says what the rules are. `EGRET_BLESS=1` writes it anew.

use std::fmt::Write;

use egret_compiler::rewrite::pattern::Class;
use egret_compiler::rewrite::rules::{self, Topic};

/// What the search decides, because each side may be cheaper: the choice, its sides, and what tells.
const CHOICES: &[(&str, &str, &str)] = &[
    (
        "fold or epilogue",
        "a scale or bias behind a product or convolution goes into the weights (`conv-scale`, `dot-scale-weight`, \
         `scale-bias`), or into the program over its result (`epilogue-binary`)",
        "what is known at load is free, so that the fold wins where weights and scale are both known then",
    ),
    (
        "which producer takes a residual",
        "the sum of two anchors' results joins the one or the other (`epilogue-binary` at either operand)",
        "the anchor that waits for arithmetic reads the other's result for nothing; one that waits for memory does not",
    ),
    (
        "prologue or epilogue",
        "a map between two kernels, of which the first is read besides, joins the convolution behind it (`prologue`), or \
         ends the kernel before it (`epilogue-unary`, `epilogue-binary`), or is a kernel",
        "bytes of the copy saved, against work repeated by each reader, at each overlap of blocks of rows, and on a GPU in \
         each tile",
    ),
    (
        "concatenation of functions",
        "a function of a concatenation is a kernel, or the kernels that make the parts end with it \
         (`concat-elementwise`)",
        "a pass over the whole saved, against a kernel for each part whose own cannot take it",
    ),
    (
        "merge or not",
        "products of one operand, or convolutions of one image with equal windows, are one, read through slices, or stay \
         apart (`merge-dots`, `merge-convolutions`)",
        "launches and reads of the operand saved, against traffic that no longer fits into the last cache",
    ),
    (
        "transpose into which operand",
        "a transpose goes into the labels of the product that makes the value (`transpose-dot`) or of the one that reads \
         it (`dot-transpose-a`, `dot-transpose-b`), or stays a copy that several read",
        "the number of readers, and whether the maker's result is read in both orders",
    ),
    (
        "row operator in the product or alone",
        "softmax or a norm joins the product before it (`dot-softmax`, `dot-layer-norm`, `dot-rms-norm`), or is a kernel",
        "a launch and a pass over the result saved, unless another kernel reads the product's own result",
    ),
];

fn class(class: Class) -> &'static str {
    match class {
        Class::Exact => "exact",
        Class::Real => "real",
        Class::Approximate => "approximate",
    }
}

fn page() -> String {
    let mut page = String::from(
        "# Rules\n\nMade from the rules themselves by `EGRET_BLESS=1 cargo test -p egret-compiler --test rules_doc`; `egret rules` \
         shows them too.\n\n\
         *exact* keeps every bit in the interpreter, ±0, ∞ and NaN included; *real* is equal over the real numbers; *approximate*\n\
         is only near, and off unless asked for. Each rule is tried on 32 generated instances of its left side with distinct\n\
         extents (`compiler/tests/rules.rs`). Rules without sides are code, because text of fixed shape cannot say them.\n\n\
         ## Choices\n\nWhat the e-graph keeps side by side, and extraction decides by the modelled time on the description:\n\n\
         | choice | sides | what tells |\n|---|---|---|\n",
    );
    for (choice, sides, tells) in CHOICES {
        let _ = writeln!(page, "| {choice} | {sides} | {tells} |");
    }
    let topics = [
        Topic::Fold,
        Topic::Movement,
        Topic::Raise,
        Topic::Gradient,
        Topic::Algebra,
        Topic::Epilogue,
        Topic::Prologue,
        Topic::Region,
        Topic::Merge,
    ];
    for topic in topics {
        let _ = write!(page, "\n## {topic:?}\n\n| rule | class | identity | left | right |\n|---|---|---|---|---|\n");
        for rule in rules::code_rules().iter().filter(|rule| rule.topic == topic) {
            let _ = writeln!(page, "| {} | {} | {} | | |", rule.name, class(rule.class), rule.doc);
        }
        for (_, rule) in rules::all().iter().filter(|(of, _)| *of == topic) {
            let (name, class, doc) = (rule.name, class(rule.class), rule.doc);
            let _ = writeln!(page, "| {name} | {class} | {doc} | `{}` | `{}` |", rule.left, rule.right);
        }
    }
    page
}

#[test]
fn the_page_of_rules_is_true() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/rules.md");
    let page = page();
    if std::env::var_os("EGRET_BLESS").is_some() {
        std::fs::write(path, &page).expect("docs/rules.md can be written");
    }
    let have = std::fs::read_to_string(path).unwrap_or_default();
    assert!(have == page, "docs/rules.md is not what the rules are: write it with EGRET_BLESS=1");
}

/// A choice that names a rule that is not there would be a promise.
#[test]
fn choices_name_rules() {
    let known = |name: &str| {
        rules::all().iter().any(|(_, rule)| rule.name == name)
            || rules::code_rules().iter().any(|rule| rule.name == name)
    };
    for (choice, sides, _) in CHOICES {
        let names: Vec<&str> = sides.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty() && names.iter().all(|name| known(name)), "{choice}: {names:?}");
    }
}

#[test]
fn every_rule_is_on_the_page() {
    let page = page();
    for name in rules::all().iter().map(|(_, rule)| rule.name).chain(rules::code_rules().iter().map(|rule| rule.name)) {
        assert!(page.contains(&format!("| {name} |")), "{name}");
    }
}
