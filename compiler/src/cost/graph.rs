//! What a run of a graph costs, from its types and a description alone.

use egret_ir::{Bindings, Graph, NodeId, Op, TensorType, Type};
use egret_program::DeviceDescription;

use super::{Sketch, bytes, is_view, kernel, sketch};

/// Work of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes that kernels read and write.
    pub bytes: f64,
    /// Kernels, where what partition most often puts into a neighbour counts as a share of one.
    pub launches: f64,
    /// Modelled time: µs; 0 without a device.
    pub time: f64,
}

/// The work of one run under the sizes in `bindings`: of nodes that depend on inputs or state, since the rest is done at
/// load. Each step of a `scan` counts; what happens inside a branch or a loop that data end does not.
pub fn work(graph: &Graph, bindings: &Bindings, device: Option<&DeviceDescription>) -> Work {
    work_of(graph, bindings, device, true)
}

fn work_of(graph: &Graph, bindings: &Bindings, device: Option<&DeviceDescription>, whole: bool) -> Work {
    let mut total = Work::default();
    let mut runs = vec![false; graph.nodes().len()];
    let types: Vec<Type> = graph.nodes().iter().map(|node| bound(&node.ty, bindings)).collect();
    for (id, node) in graph.iter() {
        runs[id.index()] =
            matches!(node.op, Op::Input(_) | Op::State(_)) || !whole || node.operands.iter().any(|o| runs[o.index()]);
        if !runs[id.index()] || node.operands.is_empty() {
            continue;
        }
        let (times, one) = match &node.op {
            Op::Scan(scan) => {
                (scan.length.eval(bindings).unwrap_or(0) as f64, work_of(&scan.body, bindings, device, false))
            }
            op => {
                let operands: Vec<&Type> = node.operands.iter().map(|o| &types[o.index()]).collect();
                let known = |i: usize| one_number(graph, node.operands[i]);
                (1.0, Work::of(&sketch(op, &operands, &types[id.index()], &known), device))
            }
        };
        total.flops += times * one.flops;
        total.bytes += times * one.bytes;
        total.launches += times * one.launches;
        total.time += times * one.time;
    }
    total
}

impl Work {
    fn of(sketch: &Sketch, device: Option<&DeviceDescription>) -> Work {
        let time = device.map_or(0.0, |device| kernel(sketch, device));
        Work { flops: sketch.flops, bytes: sketch.bytes, launches: sketch.launches, time }
    }
}

fn one_number(graph: &Graph, id: NodeId) -> bool {
    matches!(&graph.node(id).op, Op::Const(constant) if constant.value.elements() == 1)
}

fn bound(ty: &Type, bindings: &Bindings) -> Type {
    let part = |part: &TensorType| TensorType { dtype: part.dtype, shape: part.shape.bind(bindings) };
    match ty {
        Type::Tensor(ty) => Type::Tensor(part(ty)),
        Type::Tuple(parts) => Type::Tuple(parts.iter().map(part).collect()),
    }
}

/// Memory of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// Bytes of params, states and constants.
    pub weights: f64,
    /// Most bytes of other values that are alive at once, in the order of the nodes; a view keeps what it shows alive.
    pub live: f64,
}

/// The memory of one run under the sizes in `bindings`.
pub fn memory(graph: &Graph, bindings: &Bindings) -> Memory {
    let nodes = graph.nodes();
    // what a view shows, and the last node that reads each value
    let mut shown: Vec<usize> = (0..nodes.len()).collect();
    let mut last: Vec<usize> = (0..nodes.len()).collect();
    for (id, node) in graph.iter() {
        for operand in &node.operands {
            last[shown[operand.index()]] = id.index();
        }
        if let (true, Some(source)) = (is_view(&node.op), node.operands.first()) {
            shown[id.index()] = shown[source.index()];
        }
    }
    for (_, id) in graph.outputs().iter().chain(graph.updates()) {
        last[shown[id.index()]] = nodes.len();
    }
    let mut ends: Vec<Vec<usize>> = vec![Vec::new(); nodes.len() + 1];
    let mut sizes = vec![0.0; nodes.len()];
    let (mut memory, mut live) = (Memory::default(), 0.0);
    for (id, node) in graph.iter() {
        let i = id.index();
        let size: f64 = bound(&node.ty, bindings).parts().iter().map(bytes).sum();
        match &node.op {
            Op::Param(_) | Op::State(_) | Op::Const(_) => memory.weights += size,
            op if is_view(op) => {}
            _ => {
                sizes[i] = size;
                ends[last[i]].push(i);
                live += size;
                memory.live = memory.live.max(live);
            }
        }
        for done in std::mem::take(&mut ends[i]) {
            live -= sizes[done];
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use egret_ir::{f32, trace};

    use super::*;

    #[test]
    fn a_chain_keeps_two_values() {
        let graph = trace(|t| {
            let x = t.input("x", f32(["n", "m"]));
            (0..4).fold(x, |x, _| x.transpose(&[1, 0])).transpose(&[1, 0])
        })
        .unwrap();
        let bindings = Bindings::from([("n".into(), 4), ("m".into(), 8)]);
        assert_eq!(memory(&graph, &bindings), Memory { weights: 0.0, live: 2.0 * 4.0 * 32.0 });
        let device = DeviceDescription::named("sm_80").unwrap();
        let work = work(&graph, &bindings, Some(&device));
        assert_eq!((work.launches, work.bytes), (5.0, 5.0 * 2.0 * 4.0 * 32.0));
        assert!(work.time >= 5.0 * device.launch_us);
    }
}
