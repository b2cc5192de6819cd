//! Regions of loops and branches: rewritten as graphs of their own, before what they are in.

use egret_ir::{Diagnostic, Graph, Node, NodeId, Op};
use egret_program::DeviceDescription;

use super::facts::GraphFacts;
use super::term::BindingTime;
use super::{Options, Rewritten, rewrite_given};

/// A graph whose regions were rewritten, and what explains these, in order.
pub(super) struct Inside {
    pub(super) graph: Graph,
    pub(super) regions: Vec<Rewritten>,
}

/// Rewrites the regions of a graph, of which some inputs are known at load; `None` where there are none.
///
/// # Errors
/// As [`super::rewrite`].
pub(super) fn rewrite(
    graph: &Graph,
    device: &DeviceDescription,
    options: &Options,
    loaded: &dyn Fn(NodeId) -> bool,
) -> Result<Option<Inside>, Diagnostic> {
    let mut facts: Option<GraphFacts> = None;
    let mut regions = Vec::new();
    let graph = graph.with_regions(&mut |node, place, region| {
        let facts = facts.get_or_insert_with(|| GraphFacts::given(graph, loaded));
        let at_load = |input: NodeId| {
            let position = region.inputs().iter().position(|id| *id == input);
            let operand = position.and_then(|position| captured(node, place, position));
            operand.is_some_and(|operand| facts.times[operand.index()] < BindingTime::Run)
        };
        let rewritten = rewrite_given(region, device, options, &at_load)?;
        let graph = rewritten.graph.clone();
        regions.push(rewritten);
        Ok(graph)
    })?;
    Ok(graph.map(|graph| Inside { graph, regions }))
}

/// The operand that an input of a region is, if it is the same whenever the region runs.
fn captured(node: &Node, region: usize, input: usize) -> Option<NodeId> {
    let (own, first) = match &node.op {
        Op::If(branch) => (0, if region == 0 { 1 } else { 1 + branch.then.inputs().len() }),
        Op::While(looped) => {
            let tested = looped.condition.inputs().len() - looped.carried;
            (looped.carried, looped.carried + if region == 0 { 0 } else { tested })
        }
        Op::Scan(scan) => (scan.carried + scan.scanned, scan.carried + scan.scanned),
        _ => return None,
    };
    input.checked_sub(own).and_then(|place| node.operands.get(first + place).copied())
}
