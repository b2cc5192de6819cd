//! Which rules a compilation uses: the standard ones, more of the user's, or fewer.

use std::fmt;
use std::sync::Arc;

use egret_ir::Diagnostic;

use super::check;
use super::pattern::{Class, Rule};
use super::rules::{self, Topic};

/// The rules of a compilation. Cheap to clone.
///
/// ```
/// use egret_compiler::rewrite::{RewriteSet, pattern::Class, rules::Topic};
/// use egret_compiler::rule;
///
/// let relu = rule!(
///     "relu-of-relu", Class::Exact, "(relu (relu ?x))" => "(relu ?x)",
///     "what is at least zero stays so: max(max(x, 0), 0) = max(x, 0)",
/// )?;
/// let set = RewriteSet::standard().with(relu)?.without("merge-dots")?.without_topic(Topic::Region);
/// assert!(set.rule("relu-of-relu").is_some() && !set.has("merge-dots") && !set.has("dot-softmax"));
///
/// let wrong = rule!("transposed", Class::Exact, "(transpose $p ?x)" => "?x", "a transpose is not its operand")?;
/// let error = RewriteSet::standard().with(wrong).unwrap_err();
/// assert_eq!(error.code, "E0453");
/// # Ok::<(), egret_ir::Diagnostic>(())
/// ```
#[derive(Clone)]
pub struct RewriteSet {
    rules: Arc<Vec<(Topic, Arc<Rule>)>>,
    code: Arc<Vec<&'static str>>,
    approximate: bool,
}

impl Default for RewriteSet {
    fn default() -> RewriteSet {
        RewriteSet::standard()
    }
}

impl fmt::Debug for RewriteSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.rules.iter().map(|(_, rule)| rule.name).chain(self.code.iter().copied());
        f.debug_list().entries(names).finish()
    }
}

impl RewriteSet {
    /// All rules of this crate.
    pub fn standard() -> RewriteSet {
        let code = rules::code_rules().iter().map(|rule| rule.name).collect();
        RewriteSet { rules: rules::all().clone(), code: Arc::new(code), approximate: false }
    }

    /// Adds a rule, which is tried in every phase of the e-graph after the standard ones.
    ///
    /// # Errors
    /// `E0453`, naming the rule: the name is taken; on an instance of the left side the right side has another type; or
    /// the rule only grows terms: applied to its own results it never ends.
    pub fn with(mut self, rule: Rule) -> Result<RewriteSet, Diagnostic> {
        if self.has(rule.name) {
            return Err(Diagnostic::new("E0453", format!("rule `{}`: there is a rule of that name", rule.name)));
        }
        check::shape_of(&rule).map_err(|fault| Diagnostic::new("E0453", format!("rule `{}`: {fault}", rule.name)))?;
        Arc::make_mut(&mut self.rules).push((Topic::User, Arc::new(rule)));
        Ok(self)
    }

    /// Leaves a rule out.
    ///
    /// # Errors
    /// `E0454` when there is no rule of that name.
    pub fn without(mut self, name: &str) -> Result<RewriteSet, Diagnostic> {
        if !self.has(name) {
            return Err(Diagnostic::new("E0454", format!("there is no rule `{name}`")));
        }
        Arc::make_mut(&mut self.rules).retain(|(_, rule)| rule.name != name);
        Arc::make_mut(&mut self.code).retain(|have| *have != name);
        Ok(self)
    }

    /// Leaves all rules of a topic out.
    pub fn without_topic(mut self, topic: Topic) -> RewriteSet {
        Arc::make_mut(&mut self.rules).retain(|(of, _)| *of != topic);
        let of = |name: &str| rules::code_rules().iter().find(|rule| rule.name == name).map(|rule| rule.topic);
        Arc::make_mut(&mut self.code).retain(|name| of(name) != Some(topic));
        self
    }

    /// Whether rules of class *approximate* are used; they are not unless asked for.
    pub fn approximate(mut self, used: bool) -> RewriteSet {
        self.approximate = used;
        self
    }

    /// The rule of that name; `None` of those that are code.
    pub fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|(_, rule)| rule.name == name).map(|(_, rule)| &**rule)
    }

    /// Whether a rule of that name is in the set, those that are code among them.
    pub fn has(&self, name: &str) -> bool {
        self.rule(name).is_some() || self.code.contains(&name)
    }

    /// Every rule that is text, with its topic, in the order in which they are tried.
    pub fn rules(&self) -> impl Iterator<Item = (Topic, &Rule)> {
        self.rules.iter().map(|(topic, rule)| (*topic, &**rule))
    }

    /// The rules of some topics that may be used; with `exact` those that keep every bit, and those of raise.
    pub(crate) fn of(&self, topics: &[Topic], exact: bool) -> Vec<Arc<Rule>> {
        let legal = |rule: &Rule, topic: Topic| match rule.class {
            Class::Exact => true,
            Class::Real => !exact || topic == Topic::Raise,
            Class::Approximate => self.approximate && !exact,
        };
        let wanted = self.rules.iter().filter(|(topic, rule)| topics.contains(topic) && legal(rule, *topic));
        wanted.map(|(_, rule)| rule.clone()).collect()
    }
}
