//! `docs/rules.md` says what the rules are. `EGRET_BLESS=1` writes it anew.

use std::fmt::Write;

use egret_compiler::rewrite::pattern::Class;
use egret_compiler::rewrite::rules;

fn page() -> String {
    let mut page = String::from(
        "# Rules\n\nMade from the rules themselves by `EGRET_BLESS=1 cargo test -p egret-compiler --test rules_doc`.\n\n\
         *exact* keeps every bit in the interpreter; *real* is equal over the real numbers. Beside these rules three searchers\n\
         are code: the generic epilogue, the merge of contractions that share an operand, and the recognition of activations\n\
         in scalar programs (`compiler/src/rewrite/{epilogue,merge,activation}.rs`).\n",
    );
    let mut topic = None;
    for (of, rule) in rules::all() {
        if topic != Some(of) {
            let _ = write!(page, "\n## {of:?}\n\n| rule | class | identity | left | right |\n|---|---|---|---|---|\n");
            topic = Some(of);
        }
        let class = match rule.class {
            Class::Exact => "exact",
            Class::Real => "real",
            Class::Approximate => "approximate",
        };
        let _ = writeln!(page, "| {} | {class} | {} | `{}` | `{}` |", rule.name, rule.doc, rule.left, rule.right);
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

#[test]
fn names_are_unique() {
    let mut names: Vec<&str> = rules::all().iter().map(|(_, rule)| rule.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
