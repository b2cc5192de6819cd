//! What a graph would cost on a device that need not be there.

use egret_ir::{Bindings, Diagnostic, Graph};
use egret_program::DeviceDescription;

use crate::cost::{Memory, Work, memory, work};
use crate::{CompileOptions, optimise};

/// Modelled figures of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Name of the description.
    pub device: String,
    /// Work and time of the rewritten graph.
    pub work: Work,
    /// Weights, and values that are alive at once.
    pub memory: Memory,
    /// Whether that fits the device's memory; `None` where the description does not say how much it has.
    pub fits: Option<bool>,
}

/// Rewrites a graph for a device, and prices it under the sizes in `bindings`; symbols without a size have the model's
/// usual one. Roofline model: `cost`.
///
/// # Errors
/// What a phase finds wrong, with the nodes at fault.
pub fn estimate(
    graph: &Graph,
    device: &DeviceDescription,
    options: &CompileOptions,
    bindings: &Bindings,
) -> Result<Estimate, Diagnostic> {
    let graph = optimise(graph, device, options)?.rematerialised.graph;
    let (work, memory) = (work(&graph, bindings, Some(device)), memory(&graph, bindings));
    let fits = (device.memory_bytes > 0).then_some(memory.weights + memory.live <= device.memory_bytes as f64);
    Ok(Estimate { device: device.name.clone(), work, memory, fits })
}
