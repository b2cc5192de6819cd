//! Rematerialisation: what the backward pass reads of the forward pass is kept until then, or computed again from less.
//!
//! It runs on the rewritten graph, when nothing makes equal nodes one any more. What is computed again is a clone of its
//! node, placed as late as its first reader allows, that reads what was kept through [`Recompute`]; [`opened`] takes these
//! marks away when the graph is planned, so that partition sees plain nodes and a recomputed chain fuses into its reader.
//!
//! What is kept follows a [`Policy`]. `min_cut` is the partitioner of PyTorch's AOTAutograd: the least bytes that separate
//! the forward values that exist anyhow from those that the backward pass reads.

mod choice;
mod clone;
mod cut;

use std::fmt;
use std::str::FromStr;

use egret_ir::ops::Recompute;
use egret_ir::{Diagnostic, Dim, Graph, NodeId, Op, Type};
use egret_program::DeviceDescription;
use smallvec::SmallVec;

use crate::cost;
use choice::Values;

/// What is kept of the forward pass for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// All that it reads.
    #[default]
    SaveEverything,
    /// Inputs and states alone: the forward pass is done again.
    SaveNothing,
    /// Results of contractions, attention and loops.
    SaveContractions,
    /// The least bytes from which the rest follows without a contraction, a loop or a reduction.
    MinCut,
}

impl Policy {
    /// All policies with their names.
    pub const ALL: [(&'static str, Policy); 4] = [
        ("save_everything", Policy::SaveEverything),
        ("save_nothing", Policy::SaveNothing),
        ("save_contractions", Policy::SaveContractions),
        ("min_cut", Policy::MinCut),
    ];
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Policy::ALL.iter().find(|(_, policy)| policy == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Policy, String> {
        let names = || Policy::ALL.map(|(name, _)| name).join(", ");
        let found = Policy::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, policy)| *policy).ok_or_else(|| format!("`{text}` is no policy: {}", names()))
    }
}

/// A forward value that lives until the backward pass reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// The value.
    pub value: NodeId,
    /// Bytes that it holds.
    pub bytes: Dim,
    /// What reads it: nodes of the backward pass, and what is computed again; in order.
    pub readers: SmallVec<[NodeId; 2]>,
}

/// A forward value that is computed again.
#[derive(Clone, Debug, PartialEq)]
pub struct Recomputed {
    /// The node that does.
    pub node: NodeId,
    /// Its operations.
    pub flops: f64,
    /// Bytes that it reads and writes, as a kernel of its own.
    pub bytes: f64,
    /// Modelled time as a kernel of its own, µs.
    pub time: f64,
}

/// A graph whose forward values are kept or computed again.
#[derive(Clone, Debug, Default)]
pub struct Rematerialised {
    /// The graph.
    pub graph: Graph,
    /// What is kept for the backward pass, in order; the nodes are those of `graph`.
    pub saved: Vec<Saved>,
    /// What is computed again, in order; the nodes are those of `graph`.
    pub recomputed: Vec<Recomputed>,
}

/// Keeps and computes again what `policy` says. `forward` tells the nodes of the forward pass: those that losses depend
/// on. Without one the graph stays as it is.
///
/// # Errors
/// Never: clones have the operands of what they are clones of.
pub fn rematerialise(
    graph: &Graph,
    forward: &[bool],
    policy: Policy,
    device: &DeviceDescription,
) -> Result<Rematerialised, Diagnostic> {
    if !forward.contains(&true) {
        return Ok(Rematerialised { graph: graph.clone(), ..Rematerialised::default() });
    }
    let mut forward = forward.to_vec();
    for (id, node) in graph.iter().filter(|(_, node)| matches!(node.op, Op::Proj(_))) {
        // what only the backward pass reads of a tuple is made with the rest of it
        forward[id.index()] = forward[node.operands[0].index()];
    }
    let values = Values::new(graph, &forward);
    let again = values.computed_again(policy);
    let cloned = clone::cloned(&values, &again)?;
    let (graph, clones) = (cloned.graph, cloned.clones);
    let values = Values::new(&graph, &cloned.forward);
    let saved = values.saved();
    let recomputed = clones.into_iter().filter(|id| !cost::is_view(&graph.node(*id).op));
    let recomputed = recomputed.map(|id| recomputed_at(&graph, id, device)).collect();
    Ok(Rematerialised { saved, recomputed, graph })
}

fn recomputed_at(graph: &Graph, id: NodeId, device: &DeviceDescription) -> Recomputed {
    let node = graph.node(id);
    let operands: SmallVec<[&Type; 4]> = node.operands.iter().map(|o| graph.ty(*o)).collect();
    let known = |i: usize| matches!(&graph.node(node.operands[i]).op, Op::Const(c) if c.value.elements() == 1);
    let sketch = cost::sketch(&node.op, &operands, &node.ty, &known);
    Recomputed { node: id, flops: sketch.flops, bytes: sketch.bytes, time: cost::kernel(&sketch, device) }
}

/// The graph without [`Recompute`], for what follows when no pass makes equal nodes one any more.
pub fn opened(graph: &Graph) -> Graph {
    graph.bypassing(&|op| matches!(op, Op::Recompute(Recompute { .. })))
}
