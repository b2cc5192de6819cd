//! Rules as text, and the matcher.
//!
//! A pattern is `(kind $attributes ?operand … ..rest)`: `kind` is an operator's name, `$a` binds its attributes, `?x` a
//! class, `..e` the remaining operands, and a number stands for a class that is that number everywhere. Operands of
//! commutative functions match in both orders. egg's own patterns have fixed arity, which fused anchors have not.

use egg::Id;
use egret_ir::ops::Pointwise;
use egret_ir::{Diagnostic, Literal, Op, ScalarFn, TensorType, Type};
use smallvec::SmallVec;

use super::term::{BindingTime, Kind};

/// How faithful a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The same bits in the interpreter, ±0 and NaN included.
    Exact,
    /// Equal over the real numbers.
    Real,
    /// Only near; off unless asked for.
    Approximate,
}

/// What rules are matched against: a graph, or an e-graph.
pub trait View {
    /// Calls `f` with every node of that kind that computes `class`, until it says true; whether it did.
    fn nodes(&self, class: Id, kind: Kind, f: &mut dyn FnMut(&Op, &[Id]) -> bool) -> bool;
    /// The type of a class.
    fn ty(&self, class: Id) -> &Type;
    /// The element of a class, if all are one known value.
    fn splat(&self, class: Id) -> Option<Literal>;
    /// When a class is known.
    fn time(&self, class: Id) -> BindingTime;
    /// The canonical id of a class.
    fn find(&self, class: Id) -> Id;
}

/// A rule.
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// How faithful it is.
    pub class: Class,
    /// The identity in one line.
    pub doc: &'static str,
    /// Text of the left side.
    pub left: &'static str,
    /// Text of the right side.
    pub right: &'static str,
    /// Refuses a match, or computes attributes that the right side names.
    pub guard: Guard,
    pub(super) pattern: Pattern,
    pub(super) template: Pattern,
    pub(super) names: Names,
}

/// Most parentheses of a pattern that are open at once.
const MAX_DEPTH: usize = 64;

/// A rule's condition.
pub type Guard = fn(&mut Match) -> Option<()>;

#[derive(Default)]
pub(super) struct Names {
    pub(super) vars: Vec<&'static str>,
    pub(super) attrs: Vec<&'static str>,
    pub(super) rests: Vec<&'static str>,
}

#[derive(PartialEq)]
pub(super) enum Pattern {
    Var(usize),
    Number(f64),
    Node {
        kind: Kind,
        /// The kind's function of numbers, if it is one.
        function: Option<ScalarFn>,
        attr: Option<usize>,
        operands: Vec<Pattern>,
        rest: Option<usize>,
    },
}

/// What a match has bound.
#[derive(Clone, Default, Debug, PartialEq, Eq, Hash)]
pub struct Bindings {
    pub(super) vars: SmallVec<[Option<Id>; 8]>,
    pub(super) attrs: SmallVec<[Option<Op>; 4]>,
    pub(super) rests: SmallVec<[SmallVec<[Id; 4]>; 1]>,
    /// The nodes that the left side took, outermost first.
    pub(super) matched: Vec<Matched>,
}

/// A node that a left side took.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Matched {
    pub(super) class: Id,
    pub(super) op: Op,
    pub(super) operands: SmallVec<[Id; 4]>,
}

impl Rule {
    /// A rule that is part of the compiler.
    ///
    /// # Panics
    /// When the text is not a rule; every rule set is built in tests. [`Rule::parse`] is for all others.
    pub(super) fn new(
        name: &'static str,
        class: Class,
        left: &'static str,
        right: &'static str,
        doc: &'static str,
        guard: Guard,
    ) -> Rule {
        Rule::parse(name, class, left, right, doc, guard).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Parses a rule. [`rule!`](crate::rule) is the same with fewer commas.
    ///
    /// # Errors
    /// `E0453`: a side is not a pattern; the right side names what the left does not bind; the left side is a bare
    /// variable, which would match everything.
    pub fn parse(
        name: &'static str,
        class: Class,
        left: &'static str,
        right: &'static str,
        doc: &'static str,
        guard: Guard,
    ) -> Result<Rule, Diagnostic> {
        let wrong = |why: String| Diagnostic::new("E0453", format!("rule `{name}`: {why}"));
        let mut names = Names::default();
        let pattern = Parser { text: left, names: &mut names }.whole().map_err(&wrong)?;
        if !matches!(pattern, Pattern::Node { .. }) {
            return Err(wrong(format!("the left side `{left}` matches every value")));
        }
        let bound = (names.vars.len(), names.rests.len());
        let template = Parser { text: right, names: &mut names }.whole().map_err(&wrong)?;
        if let Some(var) = names.vars.get(bound.0) {
            return Err(wrong(format!("`?{var}` is on the right side alone")));
        }
        if let Some(rest) = names.rests.get(bound.1) {
            return Err(wrong(format!("`..{rest}` is on the right side alone")));
        }
        Ok(Rule { name, class, doc, left, right, guard, pattern, template, names })
    }

    /// The kind of the outermost node of the left side.
    pub fn root(&self) -> Option<Kind> {
        match self.pattern {
            Pattern::Node { kind, .. } => Some(kind),
            _ => None,
        }
    }

    /// Whether the left side is a proper part of the right one: `x ⇒ f(x)`.
    pub(super) fn nests(&self) -> bool {
        let mut todo = vec![&self.template];
        while let Some(part) = todo.pop() {
            if let Pattern::Node { operands, .. } = part {
                if operands.contains(&self.pattern) {
                    return true;
                }
                todo.extend(operands);
            }
        }
        false
    }

    /// Whether nodes of the left side's kinds are there as far as `levels` of it tell, whatever they bind.
    pub(super) fn may_match_within(&self, view: &dyn View, class: Id, levels: usize) -> bool {
        may_match(view, &self.pattern, class, levels)
    }

    /// Every way in which the left side matches `class`, guard passed.
    pub fn search(&self, view: &dyn View, class: Id) -> Vec<Bindings> {
        let mut found = Vec::new();
        self.each(view, class, &mut |b| {
            found.push(b);
            false
        });
        found
    }

    /// The first of [`Rule::search`].
    pub(super) fn first(&self, view: &dyn View, class: Id) -> Option<Bindings> {
        let mut found = None;
        self.each(view, class, &mut |b| {
            found = Some(b);
            true
        });
        found
    }

    /// Calls `f` with every way in which the left side matches `class`, guard passed, until it says true.
    fn each(&self, view: &dyn View, class: Id, f: &mut dyn FnMut(Bindings) -> bool) {
        if !may_match(view, &self.pattern, class, MAX_DEPTH) {
            return;
        }
        let mut bindings = Bindings {
            vars: smallvec::smallvec![None; self.names.vars.len()],
            attrs: smallvec::smallvec![None; self.names.attrs.len()],
            rests: smallvec::smallvec![SmallVec::new(); self.names.rests.len()],
            matched: Vec::new(),
        };
        match_class(view, &self.pattern, class, &mut bindings, &mut |b| {
            let mut b = b.clone();
            let holds = (self.guard)(&mut Match { view, bindings: &mut b, names: &self.names }).is_some();
            holds && f(b)
        });
    }

    /// The nodes of the right side, operands first: the last one is equal to the matched class. `None` when it is a
    /// bare variable.
    pub(super) fn build(
        &self,
        bindings: &Bindings,
        add: &mut dyn FnMut(&Op, &[Id]) -> Option<Id>,
        splat: &mut dyn FnMut(f64) -> Option<Id>,
    ) -> Option<Id> {
        build(&self.template, bindings, add, splat)
    }
}

fn build(
    pattern: &Pattern,
    b: &Bindings,
    add: &mut dyn FnMut(&Op, &[Id]) -> Option<Id>,
    splat: &mut dyn FnMut(f64) -> Option<Id>,
) -> Option<Id> {
    match pattern {
        Pattern::Var(i) => b.vars[*i],
        Pattern::Number(value) => splat(*value),
        Pattern::Node { function, attr, operands, rest, .. } => {
            let mut ids: SmallVec<[Id; 4]> = SmallVec::new();
            for operand in operands {
                ids.push(build(operand, b, add, splat)?);
            }
            if let Some(rest) = rest {
                ids.extend_from_slice(&b.rests[*rest]);
            }
            match attr {
                Some(attr) => add(b.attrs[*attr].as_ref()?, &ids),
                None => add(&Pointwise { f: (*function)? }.into(), &ids),
            }
        }
    }
}

/// Whether nodes of the pattern's kinds are there, whatever they bind: most rules are refused by this alone. Below so many
/// `levels` of nodes anything may be.
fn may_match(view: &dyn View, p: &Pattern, class: Id, levels: usize) -> bool {
    let (kind, function, operands) = match p {
        Pattern::Var(_) => return true,
        Pattern::Number(value) => return is_number(view, class, *value),
        Pattern::Node { kind, function, operands, .. } => (kind, function, operands),
    };
    let commutes = function.is_some_and(ScalarFn::commutes);
    view.nodes(view.find(class), *kind, &mut |_, ids| {
        if levels == 0 {
            return true;
        }
        let each = |reversed: bool| {
            let n = ids.len();
            let at = |i: usize| if reversed { ids[n - 1 - i] } else { ids[i] };
            operands.iter().enumerate().all(|(i, p)| may_match(view, p, at(i), levels - 1))
        };
        ids.len() >= operands.len() && (each(false) || commutes && ids.len() == 2 && each(true))
    })
}

/// Whether a class is a number everywhere: bit for bit, or rounded as models round their constants where f32 has not that
/// number.
fn is_number(view: &dyn View, class: Id, number: f64) -> bool {
    let Some(element) = view.splat(view.find(class)).map(Literal::as_f64) else { return false };
    let rounds = f64::from(number as f32) != number;
    element.to_bits() == number.to_bits() || rounds && (element - number).abs() <= 1e-6 * number.abs()
}

/// Calls `found` with every way in which a pattern matches a class, until it says true; whether it did. The bindings are
/// then what they were.
fn match_class(
    view: &dyn View,
    p: &Pattern,
    class: Id,
    b: &mut Bindings,
    found: &mut dyn FnMut(&mut Bindings) -> bool,
) -> bool {
    let class = view.find(class);
    match p {
        Pattern::Var(i) => match b.vars[*i] {
            None => {
                b.vars[*i] = Some(class);
                let done = found(b);
                b.vars[*i] = None;
                done
            }
            Some(bound) => bound == class && found(b),
        },
        Pattern::Number(value) => is_number(view, class, *value) && found(b),
        Pattern::Node { kind, function, attr, operands, rest } => view.nodes(class, *kind, &mut |op, ids| {
            let fits = if rest.is_some() { ids.len() >= operands.len() } else { ids.len() == operands.len() };
            let bound = attr.and_then(|a| b.attrs[a].as_ref());
            if !fits || bound.is_some_and(|bound| bound != op) {
                return false;
            }
            let binds = attr.filter(|_| bound.is_none());
            if let Some(a) = binds {
                b.attrs[a] = Some(op.clone());
            }
            if let Some(rest) = rest {
                b.rests[*rest] = SmallVec::from_slice(&ids[operands.len()..]);
            }
            b.matched.push(Matched { class, op: op.clone(), operands: SmallVec::from_slice(ids) });
            let commutes = function.is_some_and(ScalarFn::commutes) && ids.len() == 2 && ids[0] != ids[1];
            let done = match_operands(view, operands, &ids[..operands.len()], b, found)
                || commutes && match_operands(view, operands, &[ids[1], ids[0]], b, found);
            b.matched.pop();
            if let Some(a) = binds {
                b.attrs[a] = None;
            }
            done
        }),
    }
}

fn match_operands(
    view: &dyn View,
    patterns: &[Pattern],
    ids: &[Id],
    b: &mut Bindings,
    found: &mut dyn FnMut(&mut Bindings) -> bool,
) -> bool {
    let (Some((p, patterns)), Some((id, ids))) = (patterns.split_first(), ids.split_first()) else {
        return found(b);
    };
    match_class(view, p, *id, b, &mut |b| match_operands(view, patterns, ids, b, found))
}

/// A match that a guard looks at.
pub struct Match<'a> {
    view: &'a dyn View,
    bindings: &'a mut Bindings,
    names: &'a Names,
}

impl Match<'_> {
    fn var(&self, name: &str) -> Option<Id> {
        let i = self.names.vars.iter().position(|v| *v == name)?;
        self.bindings.vars[i]
    }

    /// The operator bound to `$name`.
    pub fn op(&self, name: &str) -> Option<&Op> {
        let i = self.names.attrs.iter().position(|v| *v == name)?;
        self.bindings.attrs[i].as_ref()
    }

    /// Binds `$name`, for the right side.
    pub fn set(&mut self, name: &str, op: impl Into<Op>) -> Option<()> {
        let i = self.names.attrs.iter().position(|v| *v == name)?;
        self.bindings.attrs[i] = Some(op.into());
        Some(())
    }

    /// The type of `?name`.
    pub fn ty(&self, name: &str) -> Option<&TensorType> {
        self.view.ty(self.var(name)?).tensor()
    }

    /// Type of the operand `i` of the rest named `..name`.
    pub fn rest_types(&self, name: &str) -> Option<Vec<TensorType>> {
        let i = self.names.rests.iter().position(|v| *v == name)?;
        self.bindings.rests[i].iter().map(|id| self.view.ty(*id).tensor().cloned()).collect()
    }

    /// The known element of `?name`.
    pub fn splat(&self, name: &str) -> Option<Literal> {
        self.view.splat(self.var(name)?)
    }

    /// When `?name` is known.
    pub fn time(&self, name: &str) -> Option<BindingTime> {
        Some(self.view.time(self.var(name)?))
    }

    /// Whether `?name` is known before a run.
    pub fn known_at_load(&self, name: &str) -> bool {
        self.time(name).is_some_and(|time| time < BindingTime::Run)
    }
}

/// `Some(())` if the condition holds.
pub fn when(condition: bool) -> Option<()> {
    condition.then_some(())
}

struct Parser<'n> {
    text: &'static str,
    names: &'n mut Names,
}

impl Parser<'_> {
    fn whole(mut self) -> Result<Pattern, String> {
        let pattern = self.pattern(0)?;
        self.skip();
        if self.text.is_empty() { Ok(pattern) } else { Err(format!("`{}` is behind the pattern", self.text)) }
    }

    fn skip(&mut self) {
        self.text = self.text.trim_start();
    }

    fn word(&mut self) -> &'static str {
        self.skip();
        let end = self.text.find(|c: char| c.is_whitespace() || c == '(' || c == ')').unwrap_or(self.text.len());
        let (word, rest) = self.text.split_at(end);
        self.text = rest;
        word
    }

    fn slot(list: &mut Vec<&'static str>, name: &'static str) -> usize {
        list.iter().position(|have| *have == name).unwrap_or_else(|| {
            list.push(name);
            list.len() - 1
        })
    }

    fn pattern(&mut self, depth: usize) -> Result<Pattern, String> {
        if depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} parentheses are open"));
        }
        self.skip();
        if let Some(rest) = self.text.strip_prefix('(') {
            self.text = rest;
            let kind = Kind::named(self.word());
            let (mut attr, mut operands, mut rest) = (None, Vec::new(), None);
            loop {
                self.skip();
                if let Some(after) = self.text.strip_prefix(')') {
                    self.text = after;
                    let function = ScalarFn::from_name(kind.name());
                    if attr.is_none() && function.is_none() {
                        return Err(format!(
                            "`{}` is no function of numbers: its attributes need a name `$…`",
                            kind.name()
                        ));
                    }
                    return Ok(Pattern::Node { kind, function, attr, operands, rest });
                }
                if self.text.is_empty() {
                    return Err("`)` is missing".into());
                }
                if let Some(after) = self.text.strip_prefix('$') {
                    self.text = after;
                    let name = self.word();
                    attr = Some(Self::slot(&mut self.names.attrs, name));
                } else if let Some(after) = self.text.strip_prefix("..") {
                    self.text = after;
                    let name = self.word();
                    rest = Some(Self::slot(&mut self.names.rests, name));
                } else {
                    operands.push(self.pattern(depth + 1)?);
                }
            }
        }
        let word = self.word();
        match word.strip_prefix('?') {
            Some(name) => Ok(Pattern::Var(Self::slot(&mut self.names.vars, name))),
            None => match word.parse() {
                Ok(value) => Ok(Pattern::Number(value)),
                Err(_) => Err(format!("`{word}` is neither a variable nor a number")),
            },
        }
    }
}

/// A rule from its parts: name, class, `left => right`, the identity in one line, and a guard if it needs one.
///
/// ```
/// use egret_compiler::rewrite::pattern::Class;
/// use egret_compiler::{rule, rewrite::RewriteSet};
///
/// let rule = rule!("square-of-root", Class::Real, "(mul (sqrt ?x) (sqrt ?x))" => "?x", "√x·√x = x for x ≥ 0");
/// let rules = RewriteSet::standard().with(rule?)?;
/// # Ok::<(), egret_ir::Diagnostic>(())
/// ```
#[macro_export]
macro_rules! rule {
    ($name:expr, $class:expr, $left:expr => $right:expr, $doc:expr $(,)?) => {
        $crate::rule!($name, $class, $left => $right, $doc, |_| Some(()))
    };
    ($name:expr, $class:expr, $left:expr => $right:expr, $doc:expr, $guard:expr $(,)?) => {
        $crate::rewrite::pattern::Rule::parse($name, $class, $left, $right, $doc, $guard)
    };
}
