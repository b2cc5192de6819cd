//! Rewriting: the e-graph decides what is computed and what each anchor absorbs.
//!
//! [`rewrite`] reads as the list of phases. Before it come canonicalisation and raise ([`crate::raise`]), which apply
//! rules directly.

mod activation;
pub mod check;
pub mod direct;
mod distribute;
mod epilogue;
mod explain;
mod extract;
mod facts;
mod journal;
mod merge;
mod part;
pub mod pattern;
mod prologue;
mod regions;
pub mod rules;
mod saturate;
mod set;
mod taps;
pub mod term;

use egret_ir::{Diagnostic, Graph, Node, NodeId};
use egret_program::DeviceDescription;
use rayon::prelude::*;
use smallvec::SmallVec;

pub(crate) use activation::is_arithmetic;
pub use activation::recognise as recognise_activations;
use direct::{Builder, OpHash};
pub use explain::{Explanation, Link, Pair};
use extract::Search;
pub(crate) use facts::{GraphFacts, time_of};
use part::{Part, Place, Ref};
pub use saturate::Replayed;
use saturate::{Loaded, Template};
pub use set::RewriteSet;

/// How much is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Canonicalisation and raise only.
    None,
    /// The same rules, and the node of each class that is cheapest by itself.
    Greedy,
    /// The same rules, merges, and search.
    Full,
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Level, String> {
        match text {
            "none" => Ok(Level::None),
            "greedy" => Ok(Level::Greedy),
            "full" => Ok(Level::Full),
            other => Err(format!("`{other}` is no rewrite level: none, greedy, full")),
        }
    }
}

/// What rewriting may do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much.
    pub level: Level,
    /// Only rules that keep every bit.
    pub exact: bool,
    /// The rules.
    pub rules: RewriteSet,
    /// Where a part's search stops.
    pub budgets: Budgets,
    /// Whether the graph computes gradients: what these keep is then chosen later, and nothing that could be computed
    /// again becomes a further result of a product.
    pub gradients: bool,
}

/// Bounds on the work on one part; never times, so that a plan does not depend on the machine that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Iterations of a phase.
    pub iterations: usize,
    /// E-nodes.
    pub nodes: usize,
    /// Steps of branch and bound.
    pub steps: usize,
}

impl Default for Budgets {
    fn default() -> Budgets {
        Budgets { iterations: 12, nodes: 8_000, steps: 50_000 }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            level: Level::Full,
            exact: false,
            rules: RewriteSet::standard(),
            budgets: Budgets::default(),
            gradients: false,
        }
    }
}

/// A phase on one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhaseReport {
    /// The phase.
    pub name: &'static str,
    /// Iterations until nothing changed.
    pub iterations: usize,
    /// E-nodes at its end.
    pub nodes: usize,
    /// Classes at its end.
    pub classes: usize,
    /// The budget that stopped it.
    pub stopped: Option<&'static str>,
}

/// A phase on all distinct parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhaseTotal {
    /// The phase.
    pub name: &'static str,
    /// Distinct parts that had it.
    pub parts: usize,
    /// Most iterations of a part.
    pub iterations: usize,
    /// E-nodes at its end, of all these parts.
    pub nodes: usize,
    /// Classes at its end, of all these parts.
    pub classes: usize,
    /// Parts that a budget stopped, by budget.
    pub stopped: Vec<(&'static str, usize)>,
}

/// One distinct part, rewritten.
struct Rewrite {
    part: Part,
    loaded: Loaded,
    template: Template,
    phases: Vec<PhaseReport>,
    /// By node of the part, its modelled time as a kernel of its own, µs.
    alone: Vec<f64>,
}

/// A rewritten graph, and everything that explains it.
pub struct Rewritten {
    /// The graph.
    pub graph: Graph,
    original: Graph,
    options: Options,
    rewrites: Vec<Rewrite>,
    places: Vec<(usize, Place)>,
    /// By node of `graph`, the place and the template's node that it is.
    made: Vec<Option<(usize, usize)>>,
    /// By node of `original`, the node of `graph` that is known to have its value.
    values: Vec<Option<NodeId>>,
    tapped: Option<Taps>,
    /// The regions of `original`, which has them rewritten already.
    regions: Vec<Rewritten>,
}

/// How products got further results.
struct Taps {
    device: DeviceDescription,
    used: taps::Used,
    /// Products of the rewritten graph, with the rule.
    made: Vec<(NodeId, &'static str)>,
}

/// Figures of a rewrite.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Parts, repeats included.
    pub parts: usize,
    /// Distinct parts.
    pub distinct: usize,
    /// E-nodes of the distinct parts.
    pub nodes: usize,
    /// Modelled cost of the choice, µs.
    pub cost: f64,
    /// Modelled cost of the greedy choice, µs.
    pub greedy_cost: f64,
    /// Distinct parts whose choice is proved.
    pub proved: usize,
    /// Budgets hit: phase and budget.
    pub stopped: Vec<(&'static str, &'static str)>,
    /// Figures by phase.
    pub phases: Vec<PhaseTotal>,
}

impl Report {
    /// Adds the figures of a region; its costs are those of one run of it.
    fn include(&mut self, region: Report) {
        self.parts += region.parts;
        self.distinct += region.distinct;
        self.nodes += region.nodes;
        self.cost += region.cost;
        self.greedy_cost += region.greedy_cost;
        self.proved += region.proved;
        self.stopped.extend(region.stopped);
        for phase in region.phases {
            match self.phases.iter_mut().find(|have| have.name == phase.name) {
                Some(have) => {
                    have.parts += phase.parts;
                    have.iterations = have.iterations.max(phase.iterations);
                    have.nodes += phase.nodes;
                    have.classes += phase.classes;
                    have.stopped.extend(phase.stopped);
                }
                None => self.phases.push(phase),
            }
        }
    }

    fn add(&mut self, phase: &PhaseReport) {
        let at = self.phases.iter().position(|have| have.name == phase.name).unwrap_or_else(|| {
            let (name, stopped) = (phase.name, Vec::new());
            self.phases.push(PhaseTotal { name, parts: 0, iterations: 0, nodes: 0, classes: 0, stopped });
            self.phases.len() - 1
        });
        let total = &mut self.phases[at];
        total.parts += 1;
        total.iterations = total.iterations.max(phase.iterations);
        total.nodes += phase.nodes;
        total.classes += phase.classes;
        if let Some(budget) = phase.stopped {
            match total.stopped.iter_mut().find(|(have, _)| *have == budget) {
                Some((_, parts)) => *parts += 1,
                None => total.stopped.push((budget, 1)),
            }
        }
    }
}

/// Rewrites a canonical, raised graph without `grad` nodes, regions first.
///
/// # Errors
/// When a chosen node does not fit its operands: a defect of a rule, never of the user's graph.
pub fn rewrite(graph: &Graph, device: &DeviceDescription, options: &Options) -> Result<Rewritten, Diagnostic> {
    rewrite_given(graph, device, options, &|_| false)
}

/// [`rewrite`] of a graph of which some inputs are known at load.
fn rewrite_given(
    graph: &Graph,
    device: &DeviceDescription,
    options: &Options,
    loaded: &dyn Fn(NodeId) -> bool,
) -> Result<Rewritten, Diagnostic> {
    if options.level == Level::None {
        let made = vec![None; graph.nodes().len()];
        return Ok(Rewritten {
            graph: graph.clone(),
            original: graph.clone(),
            options: options.clone(),
            rewrites: Vec::new(),
            places: Vec::new(),
            made,
            values: (0..graph.nodes().len()).map(|i| Some(NodeId::new(i))).collect(),
            tapped: None,
            regions: Vec::new(),
        });
    }
    let (inside, regions) = match regions::rewrite(graph, device, options, loaded)? {
        Some(inside) => (Some(inside.graph), inside.regions),
        None => (None, Vec::new()),
    };
    let graph = inside.as_ref().unwrap_or(graph);
    let facts = GraphFacts::given(graph, loaded);
    let (parts, places) = part::cut(graph, &facts);
    let search = if options.level == Level::Greedy { Search::Greedy } else { Search::Full };
    let rewritten = |part: Part| {
        let mut phases = Vec::new();
        let loaded = saturate::saturate(&part, options, &mut phases);
        let template = saturate::choose(&part, &loaded, device, search, options.budgets.steps)
            .ok_or_else(|| Diagnostic::new("E0451", "extraction found no acyclic choice for a part of the graph"))?;
        let alone = extract::alone(&part, device);
        Ok(Rewrite { part, loaded, template, phases, alone })
    };
    // none knows of another
    let rewrites: Vec<Rewrite> = parts.into_par_iter().map(rewritten).collect::<Result<_, Diagnostic>>()?;
    let Assembled { graph: graph_out, made, values } = assemble(graph, &rewrites, &places)?;
    let (original, options) = (graph.clone(), options.clone());
    let tapped = None;
    let chosen = Rewritten { graph: graph_out, original, options, rewrites, places, made, values, tapped, regions };
    Ok(chosen.tapped(device))
}

/// The marks, and one on each node that a marked one is computed from.
pub(crate) fn with_operands(graph: &Graph, mut marked: Vec<bool>) -> Vec<bool> {
    for (id, node) in graph.iter().rev() {
        if marked[id.index()] {
            node.operands.iter().for_each(|operand| marked[operand.index()] = true);
        }
    }
    marked
}

/// The fields of [`Rewritten`] of these names.
struct Assembled {
    graph: Graph,
    made: Vec<Option<(usize, usize)>>,
    values: Vec<Option<NodeId>>,
}

/// The graph with every part replaced by its template.
fn assemble(graph: &Graph, rewrites: &[Rewrite], places: &[(usize, Place)]) -> Result<Assembled, Diagnostic> {
    let mut builder = Builder::new(graph);
    let mut made: Vec<Option<(usize, usize)>> = Vec::new();
    let mut new: Vec<Option<NodeId>> = vec![None; graph.nodes().len()];
    let mut in_part = vec![false; graph.nodes().len()];
    places.iter().flat_map(|(_, place)| &place.nodes).for_each(|id| in_part[id.index()] = true);
    // leaves and what is known at load come first: parts read them
    for (id, node) in graph.iter().filter(|(id, _)| !in_part[id.index()]) {
        builder.set_origins(graph.origins(id));
        let operands: SmallVec<[NodeId; 4]> = node.operands.iter().filter_map(|o| new[o.index()]).collect();
        new[id.index()] = Some(builder.add_again(node, graph, &operands)?);
    }
    let hashes = |rewrite: &Rewrite| rewrite.template.nodes.iter().map(|node| OpHash::of(&node.op)).collect();
    let hashes: Vec<Vec<OpHash>> = rewrites.iter().map(hashes).collect();
    let mut ids: Vec<NodeId> = Vec::new();
    for (place_index, (which, place)) in places.iter().enumerate() {
        let rewrite = &rewrites[*which];
        ids.clear();
        let leaf = |l: u32, new: &[Option<NodeId>]| new[place.leaves[l as usize].index()];
        for (i, node) in rewrite.template.nodes.iter().enumerate() {
            let operands: SmallVec<[NodeId; 4]> = node
                .operands
                .iter()
                .filter_map(|r| match r {
                    Ref::Leaf(l) => leaf(*l, &new),
                    Ref::Node(n) => Some(ids[*n as usize]),
                })
                .collect();
            builder.set_origins_once(node.origins.iter().flat_map(|n| graph.origins(place.nodes[*n as usize])));
            let id = builder.add_hashed(&node.op, hashes[*which][i], &operands, &node.ty);
            made.resize(made.len().max(id.index() + 1), None);
            made[id.index()].get_or_insert((place_index, i));
            ids.push(id);
        }
        for (output, value) in rewrite.part.outputs.iter().zip(&rewrite.template.outputs) {
            new[place.nodes[*output as usize].index()] = match value {
                Ref::Leaf(l) => leaf(*l, &new),
                Ref::Node(n) => Some(ids[*n as usize]),
            };
        }
    }
    let mut out = builder.finish();
    out.take_roots_of(graph, |id| new[id.index()]);
    for assumption in graph.assumptions() {
        let node = new[assumption.node.index()].unwrap_or(NodeId::new(0));
        out.assume(egret_ir::Assumption { node, equality: assumption.equality.clone() });
    }
    let live = out.live();
    let (pruned, map) = out.restricted(&live);
    let mut kept = vec![None; pruned.nodes().len()];
    for (i, entry) in made.iter().enumerate() {
        if let Some(id) = map.get(i).copied().flatten() {
            kept[id.index()] = *entry;
        }
    }
    let values = new.into_iter().map(|id| map[id?.index()]).collect();
    Ok(Assembled { graph: pruned, made: kept, values })
}

impl Rewritten {
    /// The graph before rewriting, but for its regions.
    pub fn original(&self) -> &Graph {
        &self.original
    }

    /// The regions of [`Rewritten::original`], each rewritten before what it is in: the node that holds it, its place among
    /// that node's regions, and what was made of it.
    pub fn regions(&self) -> impl Iterator<Item = (NodeId, usize, &Rewritten)> {
        let places = |(id, node): (NodeId, &Node)| (0..node.op.home().regions().len()).map(move |place| (id, place));
        let holders = self.original.iter().flat_map(places);
        holders.zip(&self.regions).map(|((id, place), region)| (id, place, region))
    }

    /// Marks of nodes of the original graph, or none, on those of the rewritten one: on a node that has the value of a marked one, on
    /// one that covers marked nodes alone, and on all that these are computed from.
    pub fn marked(&self, original: &[bool]) -> Vec<bool> {
        let mut marked = vec![false; self.graph.nodes().len()];
        for id in self.values.iter().zip(original).filter(|(_, marked)| **marked).filter_map(|(id, _)| *id) {
            marked[id.index()] = true;
        }
        let is_marked = |id: NodeId| original.get(id.index()).copied().unwrap_or(false);
        for (i, made) in self.made.iter().enumerate() {
            let Some((place, node)) = made else { continue };
            let (which, place) = &self.places[*place];
            let covers = &self.rewrites[*which].template.nodes[*node].origins;
            marked[i] |= !covers.is_empty() && covers.iter().all(|n| is_marked(place.nodes[*n as usize]));
        }
        with_operands(&self.graph, marked)
    }

    /// Lets products write what other kernels compute from them element by element or row by row ([`taps`]).
    fn tapped(mut self, device: &DeviceDescription) -> Rewritten {
        let (rules, exact) = (&self.options.rules, self.options.exact);
        let used = taps::Used { maps: rules.has(taps::MAPS), rows: rules.has(taps::ROWS) && !exact };
        if self.options.level != Level::Full || self.options.gradients {
            return self;
        }
        let Some(taps::Tapped { graph, map, taps }) = taps::join(&self.graph, device, used) else {
            return self;
        };
        let mut made = vec![None; graph.nodes().len()];
        for (old, entry) in self.made.iter().enumerate() {
            if let Some(id) = map.get(old).copied().flatten() {
                made[id.index()] = *entry;
            }
        }
        for (product, was, _) in &taps {
            made[product.index()] = self.made.get(was.index()).copied().flatten();
        }
        self.values.iter_mut().for_each(|value| *value = value.and_then(|id| map[id.index()]));
        let taps = taps.into_iter().map(|(product, _, rule)| (product, rule)).collect();
        self.tapped = Some(Taps { device: device.clone(), used, made: taps });
        (self.graph, self.made) = (graph, made);
        self
    }

    /// Repeats the steps that the chosen graph rests on, each checked to be an instance of its rule, and assembles the
    /// result anew. Equal to [`Rewritten::graph`] unless rewriting is wrong.
    ///
    /// # Errors
    /// The step or node that does not hold.
    pub fn replay(&self) -> Result<Graph, Diagnostic> {
        self.replay_counted().map(|(graph, _)| graph)
    }

    /// [`Rewritten::replay`], and how much was done.
    ///
    /// # Errors
    /// As [`Rewritten::replay`].
    pub fn replay_counted(&self) -> Result<(Graph, Replayed), Diagnostic> {
        let mut all = Replayed::default();
        for region in &self.regions {
            let (graph, done) = region.replay_counted()?;
            if graph != region.graph {
                return Err(Diagnostic::new("E0452", "the journal of a region replays to another graph"));
            }
            all.add(done);
        }
        for rewrite in &self.rewrites {
            let done = saturate::replay(&rewrite.part, &rewrite.loaded, &rewrite.template, self.options.exact)
                .map_err(|why| Diagnostic::new("E0452", format!("the journal does not replay: {why}")))?;
            all.add(done);
        }
        if self.options.level == Level::None {
            return Ok((self.original.clone(), all));
        }
        let graph = assemble(&self.original, &self.rewrites, &self.places)?.graph;
        let again = |taps: &Taps| taps::join(&graph, &taps.device, taps.used);
        let tapped = self.tapped.as_ref().and_then(again);
        Ok((tapped.map_or(graph, |tapped| tapped.graph), all))
    }

    /// Names of the rules that were applied to some e-graph or to what was chosen of it, in regions too, each once, in
    /// alphabetical order.
    pub fn applied(&self) -> Vec<&'static str> {
        let steps = self.rewrites.iter().flat_map(|rewrite| &rewrite.loaded.journal.steps).map(|step| step.rule);
        let taps = self.tapped.iter().flat_map(|taps| &taps.made).map(|(_, rule)| *rule);
        let inside = self.regions.iter().flat_map(Rewritten::applied);
        let names: std::collections::BTreeSet<&'static str> = steps.chain(taps).chain(inside).collect();
        names.into_iter().collect()
    }

    /// Figures, regions included.
    pub fn report(&self) -> Report {
        let mut report = Report { parts: self.places.len(), distinct: self.rewrites.len(), ..Report::default() };
        for rewrite in &self.rewrites {
            report.nodes += rewrite.loaded.egraph.total_number_of_nodes();
            report.proved += usize::from(rewrite.template.proved);
            report.stopped.extend(rewrite.phases.iter().filter_map(|p| Some((p.name, p.stopped?))));
            rewrite.phases.iter().for_each(|phase| report.add(phase));
        }
        for (which, _) in &self.places {
            report.cost += self.rewrites[*which].template.cost;
            report.greedy_cost += self.rewrites[*which].template.greedy_cost;
        }
        self.regions.iter().for_each(|region| report.include(region.report()));
        report
    }
}
