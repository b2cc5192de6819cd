//! Why a node of the rewritten graph is what it is, and why two nodes are one kernel or not.

use egret_ir::{NodeId, Op};

use super::{Rewrite, Rewritten};

/// A step of a chain: the rule, and what it made.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// The rule.
    pub rule: &'static str,
    /// The operators that it added, operands first; none when what it made was there.
    pub made: Vec<Op>,
}

/// Why a node of the rewritten graph is what it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explanation {
    /// Nodes of the graph before rewriting that it covers.
    pub covers: Vec<NodeId>,
    /// From these nodes to the chosen one, step by step.
    pub chain: Vec<Link>,
    /// Refusals at the covered nodes: the guard that refused, with the node.
    pub refusals: Vec<(NodeId, &'static str)>,
    /// Modelled time of the node as a kernel, µs.
    pub cost: f64,
    /// Modelled time of the covered nodes, each by itself, µs.
    pub alone: f64,
}

impl Explanation {
    /// The rules of the chain, in order.
    pub fn rules(&self) -> Vec<&'static str> {
        self.chain.iter().map(|link| link.rule).collect()
    }
}

/// How two nodes of the graph before rewriting relate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pair {
    /// Nodes of the rewritten graph that cover both.
    pub together: Vec<NodeId>,
    /// They lie in different neighbourhoods, which are rewritten apart.
    pub apart: bool,
    /// Rules that made an e-node of both, which was not chosen.
    pub found: Vec<&'static str>,
    /// Guards that refused at either.
    pub refusals: Vec<(NodeId, &'static str)>,
}

impl Rewritten {
    /// Why a node of [`Rewritten::graph`] is what it is; `None` of a node that was there before.
    pub fn explain(&self, id: NodeId) -> Option<Explanation> {
        let (place, node) = (*self.made.get(id.index())?)?;
        let (which, place) = &self.places[place];
        let rewrite = &self.rewrites[*which];
        let node = &rewrite.template.nodes[node];
        let covered = |n: &u32| place.nodes[*n as usize];
        Some(Explanation {
            covers: node.origins.iter().map(covered).collect(),
            chain: self.chain(rewrite, node.term.clone()).into_iter().chain(self.tap(id)).collect(),
            refusals: refusals(rewrite, &|n| node.origins.contains(&n))
                .map(|(n, guard)| (covered(&n), guard))
                .collect(),
            cost: node.cost,
            alone: node.origins.iter().map(|n| rewrite.alone[*n as usize]).sum(),
        })
    }

    /// The rule that gave a product further results.
    fn tap(&self, id: NodeId) -> Option<Link> {
        let (_, rule) = self.tapped.as_ref()?.made.iter().find(|(product, _)| *product == id)?;
        Some(Link { rule, made: vec![self.graph.node(id).op.clone()] })
    }

    fn chain(&self, rewrite: &Rewrite, term: super::term::Term) -> Vec<Link> {
        let journal = &rewrite.loaded.journal;
        let universe = &rewrite.loaded.egraph.analysis;
        let link = |step: usize| {
            let step = &journal.steps[step];
            let made = step.added.iter().map(|(term, _)| universe.op(term.op).clone());
            Link { rule: step.rule, made: made.collect() }
        };
        journal.closure([term], false).into_iter().map(link).collect()
    }

    /// How two nodes of [`Rewritten::original`] relate; `None` when rewriting did not look at one of them: a leaf, or
    /// what is known before a run.
    pub fn pair(&self, a: NodeId, b: NodeId) -> Option<Pair> {
        let find = |id: NodeId| {
            let at = |(_, place): &(usize, super::part::Place)| place.nodes.iter().position(|n| *n == id);
            self.places.iter().enumerate().find_map(|(i, place)| Some((i, at(place)? as u32)))
        };
        let ((place_a, a_index), (place_b, b_index)) = (find(a)?, find(b)?);
        let mut pair = Pair { apart: place_a != place_b, ..Pair::default() };
        for (place, own) in [(place_a, a_index), (place_b, b_index)] {
            let (which, at) = &self.places[place];
            for (n, guard) in refusals(&self.rewrites[*which], &|n| n == own) {
                let refusal = (at.nodes[n as usize], guard);
                if !pair.refusals.contains(&refusal) {
                    pair.refusals.push(refusal);
                }
            }
        }
        if pair.apart {
            return Some(pair);
        }
        let rewrite = &self.rewrites[self.places[place_a].0];
        let both = |origins: &[u32]| origins.contains(&a_index) && origins.contains(&b_index);
        for (i, made) in self.made.iter().enumerate() {
            if let Some((place, node)) = made
                && *place == place_a
                && both(&rewrite.template.nodes[*node].origins)
            {
                pair.together.push(NodeId::new(i));
            }
        }
        for step in rewrite.loaded.journal.steps.iter().filter(|step| both(&step.origins)) {
            if !pair.found.contains(&step.rule) {
                pair.found.push(step.rule);
            }
        }
        Some(pair)
    }
}

fn refusals<'r>(rewrite: &'r Rewrite, at: &'r dyn Fn(u32) -> bool) -> impl Iterator<Item = (u32, &'static str)> + 'r {
    let all = rewrite.loaded.journal.refusals.iter();
    all.flat_map(|refusal| refusal.node.iter().map(|n| (*n, refusal.guard))).filter(move |(n, _)| at(*n))
}
