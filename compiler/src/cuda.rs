//! CUDA kernels of a graph: partition, schedules, CUDA C.

use egret_ir::{Diagnostic, Dim, Graph, NodeId, Op};
use egret_program::{BufferId, DeviceDescription};
use rustc_hash::FxHashMap;

use crate::emit::cuda::{self, CudaSource};
use crate::kernel::Kernel;
use crate::layout::Layout;
use crate::partition::{self, Family, is_inline};
use crate::plan::frame::Frame;
use crate::rewrite::term::BindingTime;
use crate::schedule;
use crate::schedule::scope::{FaultText, Value, value_of};

/// A kernel of a graph.
#[derive(Clone, Debug)]
pub struct CudaKernel {
    /// Its CUDA C.
    pub source: CudaSource,
    /// Its family.
    pub family: Family,
    /// Where the nodes came from that it computes, first seen first.
    pub origin: Vec<String>,
    /// Its kernel IR.
    pub kernel: Kernel,
}

/// One launch.
#[derive(Clone, Debug)]
pub struct CudaLaunch {
    /// Index of the kernel.
    pub kernel: usize,
    /// Buffers by argument, with whether the kernel writes them.
    pub args: Vec<(BufferId, bool)>,
    /// What each dim parameter is.
    pub dims: Vec<Dim>,
    /// What status codes mean.
    pub faults: Vec<FaultText>,
}

/// A graph as kernels and launches.
#[derive(Clone, Debug, Default)]
pub struct Lowered {
    /// Each distinct kernel once, in order of execution.
    pub kernels: Vec<CudaKernel>,
    /// The launches, in order.
    pub launches: Vec<CudaLaunch>,
    /// Every stored value with its buffer; a reshape has the buffer of what it reshapes.
    pub buffers: Vec<(Value, BufferId)>,
}

/// The kernels of a rewritten graph in order of execution, each distinct text once. Values that are known when params are
/// loaded count as stored.
///
/// # Errors
/// `E0461` for a kernel beyond the bounds of the kernel IR, `E0462` when its text cannot be made or the device is no
/// GPU, `E0465` for a form that has no CUDA kernel yet; the diagnostic names the nodes.
pub fn kernels(graph: &Graph, device: &DeviceDescription) -> Result<Vec<CudaKernel>, Diagnostic> {
    Ok(lower(graph, device)?.kernels)
}

/// [`kernels`], and how they are launched.
///
/// # Errors
/// As [`kernels`].
pub fn lower(graph: &Graph, device: &DeviceDescription) -> Result<Lowered, Diagnostic> {
    if device.is_cpu() {
        return Err(Diagnostic::new("E0462", format!("`{}` is no GPU", device.name)));
    }
    let mut frame = Frame::new(graph.clone(), device.lanes(), &|_| false);
    let n = graph.nodes().len();
    let live = graph.live();
    let runs = |frame: &Frame, id: NodeId| frame.time(id) == BindingTime::Run;
    // leaves, and what is known at load where a run reads it
    let mut stored = vec![false; n];
    for (id, node) in graph.iter() {
        let leaf = matches!(node.op, Op::Input(_) | Op::Param(_) | Op::State(_) | Op::Const(_));
        stored[id.index()] |= leaf && !is_inline(&node.op);
        if live[id.index()] && runs(&frame, id) {
            for operand in &node.operands {
                let at_load = !runs(&frame, *operand) && !is_inline(&graph.node(*operand).op);
                stored[operand.index()] |= at_load;
            }
        }
    }
    for i in (0..n).filter(|i| stored[*i]) {
        store(&mut frame, NodeId::new(i));
    }
    let live_run: Vec<bool> = (0..n).map(|i| live[i] && runs(&frame, NodeId::new(i))).collect();
    let mut leaves = vec![false; n];
    graph.roots().filter(|id| live_run[id.index()]).for_each(|id| leaves[id.index()] = true);
    let partition = partition::partition(graph, &live_run, &leaves, &|id| frame.is_stored(id));

    let mut lowered = Lowered::default();
    let kernels = &mut lowered.kernels;
    let mut known: FxHashMap<String, usize> = FxHashMap::default();
    for group in &partition.groups {
        let id = group.root;
        let alias = matches!(graph.node(id).op, Op::Reshape(_) | Op::StopGradient(_));
        let source = value_of(graph, graph.node(id).operands.first().copied().unwrap_or(id));
        let alias = frame.buffers.get(&source).copied().filter(|_| alias);
        if let Some(buffer) = alias {
            frame.store((id, 0), buffer, Layout::RowMajor);
            continue;
        }
        store(&mut frame, id);
        group.siblings.iter().for_each(|id| store(&mut frame, *id));
        let made = schedule::cuda::generate(graph, &frame, group, false)?;
        let source = cuda::emit(&made.kernel, &[]).map_err(|error| {
            let name = graph.node(id).op.home().name();
            let message = format!("no CUDA C can be made for `{name}` (node {}): {error}", id.index());
            let mut error = Diagnostic::new("E0462", message);
            error.origin = graph.origins(id).iter().map(|o| (**o).clone()).collect();
            error
        })?;
        let at = *known.entry(source.name.clone()).or_insert_with(|| {
            kernels.push(CudaKernel { source, family: group.family, origin: Vec::new(), kernel: made.kernel });
            kernels.len() - 1
        });
        lowered.launches.push(CudaLaunch {
            kernel: at,
            args: made.args.iter().map(|(value, writes)| (frame.buffers[value], *writes)).collect(),
            dims: made.dims,
            faults: made.faults,
        });
        for origin in graph.origins(id).iter().map(ToString::to_string) {
            if !kernels[at].origin.contains(&origin) {
                kernels[at].origin.push(origin);
            }
        }
    }
    lowered.buffers = frame.buffers.iter().map(|(value, buffer)| (*value, *buffer)).collect();
    lowered.buffers.sort_by_key(|(value, _)| *value);
    Ok(lowered)
}

/// Notes that a node's values are in memory, row-major.
fn store(frame: &mut Frame, id: NodeId) {
    for part in 0..frame.graph.ty(id).parts().len() {
        let buffer = BufferId(frame.buffers.len() as u32);
        frame.store((id, part), buffer, Layout::RowMajor);
    }
}
