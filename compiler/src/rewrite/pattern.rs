//! Rules as text, and the matcher.
//!
//! A pattern is `(kind $attributes ?operand … ..rest)`: `kind` is an operator's name, `$a` binds its attributes, `?x` a
//! class, `..e` the remaining operands, and a number stands for a class that is that number everywhere. Operands of
//! commutative functions match in both orders. egg's own patterns have fixed arity, which fused anchors have not.

use egg::Id;
use egret_ir::ops::Pointwise;
use egret_ir::{Literal, Op, ScalarFn, TensorType, Type};
use smallvec::SmallVec;

use super::term::{BindingTime, Kind, commutes};

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
    /// Calls `f` with every node of that kind that computes `class`.
    fn nodes(&self, class: Id, kind: Kind, f: &mut dyn FnMut(&Op, &[Id]));
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

/// A rule's condition.
pub type Guard = fn(&mut Match) -> Option<()>;

#[derive(Default)]
pub(super) struct Names {
    vars: Vec<&'static str>,
    attrs: Vec<&'static str>,
    rests: Vec<&'static str>,
}

pub(super) enum Pattern {
    Var(usize),
    Number(f64),
    Node { kind: Kind, attr: Option<usize>, operands: Vec<Pattern>, rest: Option<usize> },
}

/// What a match has bound.
#[derive(Clone, Default, Debug, PartialEq, Eq, Hash)]
pub struct Bindings {
    pub(super) vars: SmallVec<[Option<Id>; 8]>,
    pub(super) attrs: SmallVec<[Option<Op>; 4]>,
    pub(super) rests: SmallVec<[SmallVec<[Id; 4]>; 1]>,
    /// The nodes that the left side took, with their classes' ids, outermost first.
    pub(super) matched: Vec<(Op, SmallVec<[Id; 4]>)>,
}

impl Rule {
    /// Parses a rule.
    ///
    /// # Panics
    /// When the text is not a rule; every rule set is built in tests.
    pub fn new(
        name: &'static str,
        class: Class,
        left: &'static str,
        right: &'static str,
        doc: &'static str,
        guard: Guard,
    ) -> Rule {
        let mut names = Names::default();
        let pattern = Parser { text: left, names: &mut names }.whole(name);
        let template = Parser { text: right, names: &mut names }.whole(name);
        Rule { name, class, doc, left, right, guard, pattern, template, names }
    }

    /// The kind of the outermost node of the left side.
    pub fn root(&self) -> Option<Kind> {
        match self.pattern {
            Pattern::Node { kind, .. } => Some(kind),
            _ => None,
        }
    }

    /// Every way in which the left side matches `class`, guard passed.
    pub fn search(&self, view: &dyn View, class: Id) -> Vec<Bindings> {
        let mut found = Vec::new();
        let mut bindings = Bindings {
            vars: smallvec::smallvec![None; self.names.vars.len()],
            attrs: smallvec::smallvec![None; self.names.attrs.len()],
            rests: smallvec::smallvec![SmallVec::new(); self.names.rests.len()],
            matched: Vec::new(),
        };
        match_class(view, &self.pattern, class, &mut bindings, &mut |b| found.push(b.clone()));
        found.retain_mut(|b| (self.guard)(&mut Match { view, bindings: b, names: &self.names }).is_some());
        found
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
        Pattern::Node { kind, attr, operands, rest } => {
            let mut ids: SmallVec<[Id; 4]> = SmallVec::new();
            for operand in operands {
                ids.push(build(operand, b, add, splat)?);
            }
            if let Some(rest) = rest {
                ids.extend_from_slice(&b.rests[*rest]);
            }
            match attr {
                Some(attr) => add(b.attrs[*attr].as_ref()?, &ids),
                None => add(&Pointwise { f: ScalarFn::from_name(kind.name())? }.into(), &ids),
            }
        }
    }
}

fn match_class(view: &dyn View, p: &Pattern, class: Id, b: &mut Bindings, found: &mut dyn FnMut(&mut Bindings)) {
    let class = view.find(class);
    match p {
        Pattern::Var(i) => match b.vars[*i] {
            None => {
                b.vars[*i] = Some(class);
                found(b);
                b.vars[*i] = None;
            }
            Some(bound) if bound == class => found(b),
            Some(_) => {}
        },
        Pattern::Number(value) => {
            // constants of models are rounded to f32
            let near = |x: f64| (x - value).abs() <= 1e-6 * value.abs();
            if view.splat(class).is_some_and(|literal| near(literal.as_f64())) {
                found(b);
            }
        }
        Pattern::Node { kind, attr, operands, rest } => {
            let mut candidates: SmallVec<[(Op, SmallVec<[Id; 4]>); 4]> = SmallVec::new();
            view.nodes(class, *kind, &mut |op, ids| candidates.push((op.clone(), ids.into())));
            for (op, ids) in candidates {
                let fits = if rest.is_some() { ids.len() >= operands.len() } else { ids.len() == operands.len() };
                if !fits {
                    continue;
                }
                let saved_attr = match attr {
                    Some(a) => match &b.attrs[*a] {
                        Some(bound) if *bound != op => continue,
                        bound => Some((*a, bound.clone())),
                    },
                    None => None,
                };
                if let Some((a, _)) = &saved_attr {
                    b.attrs[*a] = Some(op.clone());
                }
                if let Some(rest) = rest {
                    b.rests[*rest] = ids[operands.len()..].into();
                }
                b.matched.push((op, ids.clone()));
                match_operands(view, operands, &ids[..operands.len()], b, found);
                if commutes(*kind) && ids.len() == 2 && ids[0] != ids[1] {
                    match_operands(view, operands, &[ids[1], ids[0]], b, found);
                }
                b.matched.pop();
                if let Some((a, bound)) = saved_attr {
                    b.attrs[a] = bound;
                }
            }
        }
    }
}

fn match_operands(
    view: &dyn View,
    patterns: &[Pattern],
    ids: &[Id],
    b: &mut Bindings,
    found: &mut dyn FnMut(&mut Bindings),
) {
    let (Some((p, patterns)), Some((id, ids))) = (patterns.split_first(), ids.split_first()) else {
        return found(b);
    };
    match_class(view, p, *id, b, &mut |b| match_operands(view, patterns, ids, b, found));
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
    fn whole(mut self, rule: &str) -> Pattern {
        let pattern = self.pattern(rule);
        self.skip();
        assert!(self.text.is_empty(), "rule {rule}: text after the pattern: {}", self.text);
        pattern
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

    fn pattern(&mut self, rule: &str) -> Pattern {
        self.skip();
        if let Some(rest) = self.text.strip_prefix('(') {
            self.text = rest;
            let kind = Kind::named(self.word());
            let (mut attr, mut operands, mut rest) = (None, Vec::new(), None);
            loop {
                self.skip();
                if let Some(after) = self.text.strip_prefix(')') {
                    self.text = after;
                    return Pattern::Node { kind, attr, operands, rest };
                }
                assert!(!self.text.is_empty(), "rule {rule}: `)` is missing");
                if let Some(after) = self.text.strip_prefix('$') {
                    self.text = after;
                    let name = self.word();
                    attr = Some(Self::slot(&mut self.names.attrs, name));
                } else if let Some(after) = self.text.strip_prefix("..") {
                    self.text = after;
                    let name = self.word();
                    rest = Some(Self::slot(&mut self.names.rests, name));
                } else {
                    operands.push(self.pattern(rule));
                }
            }
        }
        let word = self.word();
        match word.strip_prefix('?') {
            Some(name) => Pattern::Var(Self::slot(&mut self.names.vars, name)),
            None => match word.parse() {
                Ok(value) => Pattern::Number(value),
                Err(_) => panic!("rule {rule}: `{word}` is neither a variable nor a number"),
            },
        }
    }
}
