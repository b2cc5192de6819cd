//! Each rule alone, from its own data: generated instances against the interpreter, and rules that are wrong on purpose.

use egret_compiler::rewrite::check::{self, Case, Compared, Equal, Fault};
use egret_compiler::rewrite::pattern::{Class, Match, Rule, when};
use egret_compiler::rewrite::rules::{self, Topic};
use egret_compiler::rewrite::{Options, RewriteSet};
use egret_compiler::rule;
use egret_ir::Op;
use egret_ir::ops::{Norm, NormKind, Real, Reduce, ReduceKind, Reshape, Softmax};

const CASES: usize = 32;

/// At most one element in twenty may have no bound.
fn assert_covered(what: &str, compared: Compared) {
    assert!(compared.elements > 0, "{what}: nothing was compared");
    assert!(20 * compared.skipped <= compared.elements, "{what}: {compared:?} have no bound");
}

#[test]
fn every_rule_keeps_its_promise() {
    let mut faults = Vec::new();
    for (_, rule) in RewriteSet::standard().rules() {
        let before = std::time::Instant::now();
        match check::check(rule, CASES) {
            Ok(compared) => {
                println!("{:<24} {:?} {compared:?} {:.2} s", rule.name, rule.class, before.elapsed().as_secs_f64());
                if compared.elements == 0 || 20 * compared.skipped > compared.elements {
                    faults.push(format!("{}: {compared:?}: too few have a bound", rule.name));
                }
            }
            Err(fault) => faults.push(format!("{}: {fault}", rule.name)),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

/// Every e-node of every class, with only the rules of some topics.
fn check_code(rules: &[&str], case: impl Fn(u64) -> Case, exact: bool, cases: u64) {
    let mut set = RewriteSet::standard();
    for topic in [Topic::Movement, Topic::Algebra, Topic::Region] {
        set = set.without_topic(topic);
    }
    let options = Options { exact, rules: set, ..Options::default() };
    let equal = if exact { Equal::Bits } else { Equal::Bounds };
    let (mut total, mut met) = (Compared::default(), std::collections::BTreeMap::new());
    for seed in 0..cases {
        let (compared, used) = check::check_classes(&case(seed), &options, equal)
            .unwrap_or_else(|e| panic!("seed {seed}, exact {exact}: {e}"));
        total += compared;
        used.into_iter().for_each(|(rule, n)| *met.entry(rule).or_insert(0usize) += n);
    }
    println!("{met:?} {total:?}");
    for rule in rules {
        assert!(met.get(rule).is_some_and(|n| *n >= CASES), "{rule} applied too seldom: {met:?}");
    }
    assert_covered("e-nodes", total);
}

const EPILOGUES: [&str; 3] = ["epilogue-unary", "epilogue-binary", "epilogue-both"];

#[test]
fn epilogues_keep_every_bit() {
    check_code(&EPILOGUES, check::anchors, true, 192);
}

#[test]
fn epilogues_that_name_activations_stay_within_the_bound() {
    check_code(&EPILOGUES, check::anchors, false, 96);
    check_code(&["epilogue-unary"], check::activations, false, 96);
}

#[test]
fn prologues_keep_every_bit() {
    check_code(&["prologue"], check::mapped_images, true, 64);
}

#[test]
fn functions_of_concatenations_keep_every_bit() {
    check_code(&["concat-elementwise"], check::concatenations, true, 128);
}

#[test]
fn merged_products_keep_every_bit() {
    check_code(&["merge-dots"], check::products, true, 64);
}

#[test]
fn merged_convolutions_keep_every_bit() {
    check_code(&["merge-convolutions"], check::convolutions, true, 64);
}

fn reduction(m: &Match, name: &str) -> Option<Reduce> {
    match m.op(name)? {
        Op::Reduce(reduce) => Some((**reduce).clone()),
        _ => None,
    }
}

/// Ten rules, each wrong in its guard or its class, one of each kind.
fn wrong() -> Vec<(&'static str, Result<Rule, egret_ir::Diagnostic>)> {
    vec![
        (
            "another reduction of the same type",
            rule!("mean-as-sum", Class::Real, "(reduce_mean $m ?x)" => "(reduce_sum $s ?x)", "", |m| {
                let mean = reduction(m, "m")?;
                m.set("s", Reduce { kind: ReduceKind::Sum, ..mean })
            }),
        ),
        (
            "no guard on the element type",
            rule!("half-of-double", Class::Exact, "(div (mul ?x 2) 2)" => "?x", "holds of floats in range alone", |m| {
                when(m.ty("x")?.shape.rank() > 0)
            }),
        ),
        (
            "no guard on the axis",
            rule!("softmax-of-any-axis", Class::Real,
                "(div (exp ?x) (reduce_sum $s (exp ?x)))" => "(softmax $o ?x)", "", |m| {
                    let sum = reduction(m, "s")?;
                    when(sum.kind == ReduceKind::Sum && sum.keep && sum.axes.len() == 1)?;
                    let axis = m.ty("x")?.shape.rank() - 1;
                    m.set("o", Softmax { axis, log: false })
                }
            ),
        ),
        (
            "a permutation the wrong way round",
            rule!("transposes-exchanged", Class::Exact,
                "(transpose $p (transpose $q ?x))" => "(transpose $r ?x)", "", |m| {
                    let (Op::Transpose(p), Op::Transpose(q)) = (m.op("p")?.clone(), m.op("q")?.clone()) else {
                        return None;
                    };
                    let permutation = q.permutation.iter().map(|axis| p.permutation[*axis]).collect();
                    m.set("r", egret_ir::ops::Transpose { permutation })
                }
            ),
        ),
        (
            "no guard on what is broadcast",
            rule!("sum-of-product", Class::Real,
                "(reduce_sum $s (mul ?x ?y))" => "(mul (reduce_sum $s ?x) ?y)", "holds where y does not vary", |m| {
                    let sum = reduction(m, "s")?;
                    when(sum.keep && m.ty("x")?.shape.rank() >= m.ty("y")?.shape.rank())
                }
            ),
        ),
        (
            "no guard on the binding time or value",
            rule!("sub-is-commutative", Class::Exact, "(sub ?x ?y)" => "(sub ?y ?x)", ""),
        ),
        (
            "a class that promises too much",
            rule!("sum-first", Class::Exact,
                "(add (add ?x ?y) ?z)" => "(add ?x (add ?y ?z))", "real, not exact: each sum rounds"),
        ),
        (
            "±0 and NaN forgotten",
            rule!("times-zero", Class::Exact, "(sub ?x ?x)" => "(mul 0 ?x)", "NaN of ±∞ is the same, −0 is not"),
        ),
        (
            "a number of attributes forgotten",
            rule!("norm-of-any-eps", Class::Real,
                "(mul ?x (rsqrt (add (reduce_mean $a (mul ?x ?x)) ?e)))" => "(rms_norm $o ?x)", "", |m| {
                    let mean = reduction(m, "a")?;
                    let axis = *mean.axes.first()?;
                    let rank = m.ty("x")?.shape.rank();
                    when(mean.keep && mean.axes.iter().copied().eq(axis..rank) && m.splat("e")?.as_f64() > 0.0)?;
                    m.set("o", Norm { kind: NormKind::Rms, axis, eps: Real::new(1e-5) })
                }
            ),
        ),
        (
            "elements in another order",
            rule!("reshape-for-transpose", Class::Exact, "(transpose $p ?x)" => "(reshape $r ?x)", "", |m| {
                let Op::Transpose(p) = m.op("p")? else { return None };
                let shape = m.ty("x")?.shape.clone();
                let shape = p.permutation.iter().map(|axis| shape[*axis].clone()).collect();
                m.set("r", Reshape { shape })
            }),
        ),
    ]
}

#[test]
fn ten_wrong_rules_are_caught() {
    let wrong = wrong();
    assert_eq!(wrong.len(), 10);
    for (what, rule) in wrong {
        let rule = rule.unwrap_or_else(|e| panic!("{what}: {e}"));
        match check::check(&rule, CASES) {
            Err(Fault::Differs { what: difference, .. }) => println!("{what}: {difference}"),
            Err(Fault::Type { left, right, .. }) => println!("{what}: {left} against {right}"),
            Err(fault) => panic!("{what} was not caught by its values: {fault}"),
            Ok(compared) => panic!("{what} was not caught: {compared:?}"),
        }
    }
}

#[test]
fn rules_that_cannot_be_used_are_refused_by_name() {
    let refused = |rule: Result<Rule, egret_ir::Diagnostic>, why: &str| {
        let error = rule.and_then(|rule| RewriteSet::standard().with(rule)).map(|_| ()).unwrap_err();
        assert_eq!(error.code, "E0453");
        let text = error.to_string();
        assert!(text.contains("`planted`") && text.contains(why), "{text}");
    };
    let exact = Class::Exact;
    refused(rule!("planted", exact, "(transpose $p ?x)" => "?x", ""), "sides differ in type");
    refused(rule!("planted", exact, "(reduce_sum $s ?x)" => "?x", ""), "sides differ in type");
    refused(rule!("planted", exact, "(neg ?x)" => "(neg (neg (neg ?x)))", ""), "grows");
    refused(rule!("planted", exact, "(add ?x ?b)" => "(add ?x (neg (neg ?b)))", ""), "grows");
    refused(rule!("planted", exact, "?x" => "(neg (neg ?x))", ""), "matches every value");
    refused(rule!("planted", exact, "(neg ?x)" => "(add ?x ?y)", ""), "?y");
    refused(rule!("planted", exact, "(neg ?x" => "?x", ""), "is missing");
    refused(rule!("planted", exact, "(transpose ?x)" => "?x", ""), "attributes need a name");
    refused(rule!("planted", exact, "(neg ?x)" => "twice", ""), "neither a variable nor a number");
    let taken = rule!("dot-softmax", exact, "(neg (neg ?x))" => "?x", "").unwrap();
    assert!(RewriteSet::standard().with(taken).unwrap_err().to_string().contains("rule of that name"));
    assert_eq!(RewriteSet::standard().without("no-such-rule").unwrap_err().code, "E0454");
}

#[test]
fn names_of_all_rules_are_unique() {
    let text = rules::all().iter().map(|(_, rule)| rule.name);
    let mut names: Vec<&str> = text.chain(rules::code_rules().iter().map(|rule| rule.name)).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
