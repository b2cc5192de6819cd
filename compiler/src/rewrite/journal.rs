//! What was done to a part, step by step: the source of every explanation, and its proof by replay.

use std::sync::Arc;

use egg::Id;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::pattern::{Bindings, Rule};
use super::term::{Graph, Term};

/// How a step was found.
#[derive(Clone)]
pub enum How {
    /// A rule matched.
    Rule(Arc<Rule>, Box<Bindings>),
    /// An elementwise node joined the anchor of its operand `at`.
    Epilogue {
        /// The elementwise node.
        node: Term,
        /// The operand.
        at: usize,
        /// The anchor.
        anchor: Term,
    },
    /// Elementwise nodes joined the convolution that reads what they make.
    Prologue {
        /// The convolution.
        conv: Term,
        /// The nodes, the last to be computed first.
        path: Vec<Term>,
    },
    /// An elementwise node went through concatenations to their parts.
    Distribute {
        /// The elementwise node.
        node: Term,
        /// The concatenations, by operand.
        split: super::distribute::Split,
    },
    /// Contractions of one operand became one.
    Merge {
        /// Their classes and nodes.
        members: Vec<(Id, Term)>,
    },
}

/// One union.
#[derive(Clone)]
pub struct Step {
    /// The rule's name.
    pub rule: &'static str,
    /// How it was found.
    pub how: How,
    /// The classes that became equal to what was added: (old, new).
    pub unions: SmallVec<[(Id, Id); 1]>,
    /// Nodes added, with the ids that they got.
    pub added: Vec<(Term, Id)>,
    /// Steps that made nodes which this one matched.
    pub needs: SmallVec<[u32; 4]>,
    /// Nodes of the part that this step's nodes come from.
    pub origins: SmallVec<[u32; 4]>,
    /// Two classes that both existed became one.
    pub joined: bool,
}

/// Where an e-node came from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Nodes of the part.
    pub origins: SmallVec<[u32; 4]>,
    /// The step that added it.
    pub step: Option<u32>,
}

/// A refusal, with the guard that refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The part's nodes whose value was to be absorbed into an anchor.
    pub node: SmallVec<[u32; 2]>,
    /// The guard.
    pub guard: &'static str,
}

/// All steps on one part.
#[derive(Clone, Default)]
pub struct Journal {
    /// Steps in order.
    pub steps: Vec<Step>,
    /// Sources of e-nodes, by canonical node.
    sources: FxHashMap<Term, Source>,
    /// Refusals, each once.
    pub refusals: Vec<Refusal>,
    /// Numbers of steps after which the e-graph was rebuilt.
    pub rebuilds: Vec<usize>,
}

impl Journal {
    /// Notes an e-node of the part itself.
    pub fn original(&mut self, term: Term, node: u32) {
        let source = self.sources.entry(term).or_default();
        if !source.origins.contains(&node) {
            source.origins.push(node);
        }
    }

    /// Where an e-node came from.
    pub fn source(&self, term: &Term) -> Option<&Source> {
        self.sources.get(term)
    }

    /// Records a step. `matched` are the nodes it took.
    pub fn record(&mut self, egraph: &Graph, mut step: Step, matched: &[Term]) {
        let index = self.steps.len() as u32;
        for term in matched {
            let term = term.clone_canonical(egraph);
            if let Some(source) = self.sources.get(&term) {
                for origin in &source.origins {
                    if !step.origins.contains(origin) {
                        step.origins.push(*origin);
                    }
                }
                if let Some(made) = source.step
                    && !step.needs.contains(&made)
                {
                    step.needs.push(made);
                }
            }
        }
        step.origins.sort();
        for (term, _) in &step.added {
            let term = term.clone_canonical(egraph);
            let source = self.sources.entry(term).or_default();
            if source.step.is_none() && source.origins.is_empty() {
                source.step = Some(index);
                source.origins = step.origins.clone();
            }
        }
        self.steps.push(step);
    }

    /// Records a refusal.
    pub fn refuse(&mut self, refusal: Refusal) {
        if !self.refusals.contains(&refusal) {
            self.refusals.push(refusal);
        }
    }

    /// Follows the e-graph after a rebuild. Sources of nodes that became one are joined: the earliest step wins.
    pub fn recanonicalise(&mut self, egraph: &Graph) {
        if self.rebuilds.last() == Some(&self.steps.len()) {
            return;
        }
        self.rebuilds.push(self.steps.len());
        let old = std::mem::take(&mut self.sources);
        let mut entries: Vec<(Term, Source)> = old.into_iter().collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (term, source) in entries {
            let have = self.sources.entry(term.clone_canonical(egraph)).or_default();
            if have.origins.is_empty() || (have.step.is_some() && (source.step.is_none() || source.step < have.step)) {
                *have = source;
            }
        }
    }

    /// The steps that the given e-nodes rest on, ascending: those that made them, those that made what these matched,
    /// and, with `joins`, every step that joined two existing classes.
    pub fn closure(&self, terms: impl IntoIterator<Item = Term>, joins: bool) -> Vec<usize> {
        let mut needed = vec![false; self.steps.len()];
        for term in terms {
            if let Some(step) = self.sources.get(&term).and_then(|source| source.step) {
                needed[step as usize] = true;
            }
        }
        for i in (0..self.steps.len()).rev() {
            if needed[i] || joins && self.steps[i].joined {
                needed[i] = true;
                self.steps[i].needs.iter().for_each(|s| needed[*s as usize] = true);
            }
        }
        (0..self.steps.len()).filter(|i| needed[*i]).collect()
    }
}

impl Term {
    /// The node over canonical classes.
    pub fn clone_canonical(&self, egraph: &Graph) -> Term {
        let operands = self.operands.iter().map(|id| egraph.find(*id)).collect();
        Term { operands, ..self.clone() }
    }
}
