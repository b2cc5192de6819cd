//! A flat copy of what the roots of an e-graph reach, with costs.

use egg::{Id, Language};
use egret_ir::Type;
use egret_program::DeviceDescription;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::super::part::{Part, Ref};
use super::super::term::{BindingTime, Graph};
use crate::cost;

/// Price of a view, so that fewer of them win a tie.
const VIEW_US: f64 = 0.001;

/// Chosen node by class; `u32::MAX` where none is.
pub type Choice = Vec<u32>;

/// A node of a class.
pub struct FlatNode {
    /// Cost of its kernel, µs.
    pub cost: f64,
    /// Operands' classes, ascending, once each.
    pub operands: SmallVec<[u32; 4]>,
    /// Its place in the class.
    pub index: u32,
}

/// Classes numbered densely, in order of their ids.
pub struct Flat {
    /// E-graph ids by class.
    pub ids: Vec<Id>,
    /// Nodes by class.
    pub nodes: Vec<Vec<FlatNode>>,
    /// Classes that must be computed.
    pub roots: Vec<u32>,
    /// By class, its strongly connected component over all nodes of all classes: a choice is cyclic only inside one. Those of
    /// operands have lower numbers.
    pub component: Vec<u32>,
    /// Classes by component.
    pub component_size: Vec<u32>,
}

impl Flat {
    /// What `roots` reach.
    pub fn new(egraph: &Graph, roots: &[Id], device: &DeviceDescription) -> Flat {
        let mut number: FxHashMap<Id, u32> = FxHashMap::default();
        let mut ids = Vec::new();
        let mut todo: Vec<Id> = roots.iter().map(|id| egraph.find(*id)).collect();
        while let Some(id) = todo.pop() {
            if number.insert(id, 0).is_none() {
                ids.push(id);
                for node in &egraph[id].nodes {
                    todo.extend(node.children().iter().map(|child| egraph.find(*child)));
                }
            }
        }
        ids.sort();
        for (i, id) in ids.iter().enumerate() {
            number.insert(*id, i as u32);
        }
        let nodes: Vec<Vec<FlatNode>> = ids.iter().map(|id| class_nodes(egraph, *id, &number, device)).collect();
        let roots = roots.iter().map(|id| number[&egraph.find(*id)]).collect();
        let (component, component_size) = components(&nodes);
        Flat { ids, nodes, roots, component, component_size }
    }

    /// The chosen node of a class.
    pub fn chosen(&self, choice: &Choice, class: u32) -> Option<&FlatNode> {
        self.nodes[class as usize].get(choice[class as usize] as usize)
    }

    /// Whether a class can read itself, by whatever nodes are chosen.
    pub fn on_cycle(&self, class: u32) -> bool {
        self.component_size[self.component[class as usize] as usize] > 1
    }

    /// Whether the chosen nodes of these classes close no cycle.
    pub fn acyclic(&self, choice: &Choice, classes: &[u32]) -> bool {
        let on_cycle = |class: &&u32| self.on_cycle(**class);
        let reads = |class: &u32| self.chosen(choice, *class).map(|node| (*class, &node.operands));
        let edges = classes.iter().filter(on_cycle).filter_map(reads);
        let edges = edges.flat_map(|(class, operands)| operands.iter().map(move |operand| (class, *operand)));
        !petgraph::algo::is_cyclic_directed(&petgraph::graph::DiGraph::<(), (), u32>::from_edges(edges))
    }

    /// The cost of what a choice reaches; `None` when it is cyclic or incomplete.
    pub fn total(&self, choice: &Choice) -> Option<f64> {
        let mut order = Vec::new();
        self.walk(choice, &mut order)
    }

    /// Classes that a choice reaches, operands first.
    pub fn order(&self, choice: &Choice) -> Option<Vec<u32>> {
        let mut order = Vec::new();
        self.walk(choice, &mut order).map(|_| order)
    }

    fn walk(&self, choice: &Choice, order: &mut Vec<u32>) -> Option<f64> {
        const OPEN: u8 = 1;
        const DONE: u8 = 2;
        let mut state = vec![0u8; self.ids.len()];
        let mut total = 0.0;
        let mut stack: Vec<(u32, bool)> = self.roots.iter().rev().map(|root| (*root, true)).collect();
        while let Some((class, enter)) = stack.pop() {
            let i = class as usize;
            if !enter {
                state[i] = DONE;
                order.push(class);
                continue;
            }
            if state[i] != 0 {
                continue;
            }
            state[i] = OPEN;
            stack.push((class, false));
            let node = self.chosen(choice, class)?;
            total += node.cost;
            for operand in node.operands.iter().rev() {
                match state[*operand as usize] {
                    0 => stack.push((*operand, true)),
                    // open classes are those on the way from a root to here
                    OPEN => return None,
                    _ => {}
                }
            }
        }
        Some(total)
    }
}

/// By class its component, operands' first, and by component its size.
fn components(nodes: &[Vec<FlatNode>]) -> (Vec<u32>, Vec<u32>) {
    let mut graph: petgraph::graph::DiGraph<(), (), u32> = petgraph::graph::DiGraph::with_capacity(nodes.len(), 0);
    nodes.iter().for_each(|_| {
        graph.add_node(());
    });
    for (class, nodes) in nodes.iter().enumerate() {
        for operand in nodes.iter().flat_map(|node| &node.operands) {
            graph.add_edge((class as u32).into(), (*operand).into(), ());
        }
    }
    let mut component = vec![0; nodes.len()];
    let mut sizes = Vec::new();
    for (i, members) in petgraph::algo::kosaraju_scc(&graph).iter().enumerate() {
        members.iter().for_each(|class| component[class.index()] = i as u32);
        sizes.push(members.len() as u32);
    }
    (component, sizes)
}

fn class_nodes(egraph: &Graph, id: Id, number: &FxHashMap<Id, u32>, device: &DeviceDescription) -> Vec<FlatNode> {
    let class = &egraph[id];
    let result = egraph.analysis.ty(class.data.ty);
    let nodes = class.nodes.iter().enumerate().map(|(index, node)| {
        let mut operands: SmallVec<[u32; 4]> = node.children().iter().map(|c| number[&egraph.find(*c)]).collect();
        let types: SmallVec<[&Type; 4]> =
            node.children().iter().map(|c| egraph.analysis.ty(egraph[*c].data.ty)).collect();
        let op = egraph.analysis.op(node.op);
        let cost = if node.is_leaf() {
            0.0
        } else if class.data.time < BindingTime::Run {
            VIEW_US
        } else {
            let known = |i: usize| egraph[node.children()[i]].data.splat.is_some();
            cost::kernel(&cost::sketch(op, &types, result, &known), device).max(VIEW_US)
        };
        operands.sort();
        operands.dedup();
        FlatNode { cost, operands, index: index as u32 }
    });
    nodes.collect()
}

/// By node of a part, its modelled time as a kernel of its own, µs.
pub fn alone(part: &Part, device: &DeviceDescription) -> Vec<f64> {
    let ty = |r: &Ref| match r {
        Ref::Leaf(l) => &part.leaves[*l as usize].ty,
        Ref::Node(n) => &part.nodes[*n as usize].ty,
    };
    let price = |node: &super::super::part::PartNode| {
        let types: SmallVec<[&Type; 4]> = node.operands.iter().map(ty).collect();
        let known = |i: usize| match node.operands[i] {
            Ref::Leaf(l) => part.leaves[l as usize].facts.splat.is_some(),
            Ref::Node(_) => false,
        };
        cost::kernel(&cost::sketch(&node.op, &types, &node.ty, &known), device)
    };
    part.nodes.iter().map(price).collect()
}
