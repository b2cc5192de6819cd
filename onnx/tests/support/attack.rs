//! What any bytes must survive: shared by the mutation test and the fuzz target.

use egret_ir::{Graph, Op, Tensor, Tensors, Type, interpret};

/// Graphs of more nodes, or with larger values, are imported but not run.
const NODES: usize = 2_000;
const BYTES: i64 = 1 << 16;

/// Imports bytes as a model for these inputs, as far as it has them; a model that is legal must be well formed, and must
/// run, or say why not, on zeros.
pub fn attack(bytes: &[u8], given: &Tensors) -> bool {
    let graph = match egret_onnx::from_bytes_for(bytes, given) {
        Ok(loaded) => loaded.graph,
        Err(error) => {
            assert!(error.code.starts_with('E') && !error.message.is_empty(), "{error:?}");
            return false;
        }
    };
    egret_ir::verify(&graph).unwrap_or_else(|e| panic!("the importer made a graph that is not well formed: {e}"));
    let Some(inputs) = zeros(&graph).filter(|_| is_small(&graph)) else { return true };
    if let Err(error) = interpret(&graph, &inputs, &Tensors::new()) {
        let error = egret_ir::Diagnostic::from(error);
        assert!(!error.message.is_empty(), "{error:?}");
    }
    true
}

/// Inputs of zeros, whose open extents are 2.
fn zeros(graph: &Graph) -> Option<Tensors> {
    let mut inputs = Tensors::new();
    for id in graph.inputs() {
        let Op::Input(input) = &graph.node(*id).op else { return None };
        let shape: Option<Vec<usize>> =
            input.ty.shape.iter().map(|d| usize::try_from(d.as_const().unwrap_or(2)).ok()).collect();
        let shape = shape?;
        let elements = shape.iter().try_fold(1i64, |n, d| n.checked_mul(*d as i64))?;
        if elements.checked_mul(8)? > BYTES {
            return None;
        }
        inputs.insert(input.name.clone(), Tensor::zeros(input.ty.dtype, &shape));
    }
    Some(inputs)
}

/// Whether no value is large, as far as numbers tell, and no loop is long.
fn is_small(graph: &Graph) -> bool {
    let bytes = |ty: &Type| ty.parts().iter().all(|part| part.bytes().as_const().is_none_or(|n| n <= BYTES));
    graph.nodes().len() <= NODES
        && graph.iter().all(|(_, node)| {
            let short = match &node.op {
                Op::Scan(scan) => scan.length.as_const().is_some_and(|n| n <= 64) && is_small(&scan.body),
                Op::While(looped) => looped.bound.as_ref().and_then(|b| b.as_const()).is_some_and(|n| n <= 64),
                _ => true,
            };
            short && bytes(&node.ty)
        })
}
