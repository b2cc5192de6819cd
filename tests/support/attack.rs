//! What any bytes must survive: shared by the test of damaged models and the fuzz target.

use egret::ir::{Op, verify};
use egret::{CompileOptions, Device, Graph, Level, Tensor, Tensors, Type, interpret};

/// Graphs of more nodes, or with larger values, are imported but not run.
const NODES: usize = 2_000;
const BYTES: i64 = 1 << 16;

/// What became of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// They are no legal model.
    Refused,
    /// They are, and too large to run.
    Imported,
    /// The interpreter ran it, or said why not.
    Interpreted,
    /// The compiled program ran too, or said why not.
    Compiled,
}

/// Imports bytes as a model for these inputs, as far as it has them; a model that is legal must be well formed, and must
/// run, or say why not, on zeros. With a level, it must also compile and run, or say why not: where both the interpreter
/// and the compiled program give outputs, of the same types.
pub fn attack(bytes: &[u8], given: &Tensors, level: Option<Level>) -> Outcome {
    let graph = match egret::onnx::from_bytes_for(bytes, given) {
        Ok(loaded) => loaded.graph,
        Err(error) => {
            assert!(error.code.starts_with('E') && !error.message.is_empty(), "{error:?}");
            return Outcome::Refused;
        }
    };
    verify(&graph).unwrap_or_else(|e| panic!("the importer made a graph that is not well formed: {e}"));
    let Some(inputs) = zeros(&graph).filter(|_| is_small(&graph)) else { return Outcome::Imported };
    let want = interpret(&graph, &inputs, &Tensors::new()).map_err(egret::Diagnostic::from);
    if let Err(error) = &want {
        assert!(!error.message.is_empty(), "{error:?}");
    }
    let Some(level) = level else { return Outcome::Interpreted };
    let have = match compiled(&graph, &inputs, level) {
        Ok(outputs) => outputs,
        Err(error) => {
            let error = error.diagnostic();
            assert!(error.code.starts_with('E') && !error.message.is_empty(), "{error:?}");
            // a defect of Egret, never of a model
            assert!(!matches!(error.code, "E0451" | "E0452" | "E0503" | "E0701"), "{error:?}");
            return Outcome::Compiled;
        }
    };
    if let Ok(want) = want {
        let ty = |(name, tensor): &(String, Tensor)| (name.clone(), tensor.dtype(), tensor.shape().to_vec());
        let want: Vec<_> = want.outputs.iter().map(ty).collect();
        assert_eq!(have.iter().map(ty).collect::<Vec<_>>(), want);
    }
    Outcome::Compiled
}

fn compiled(graph: &Graph, inputs: &Tensors, level: Level) -> egret::Result<Vec<(String, Tensor)>> {
    let options = CompileOptions { level, ..CompileOptions::default() };
    let mut session = egret::compile_with(graph, &Device::cpu().with_threads(1), &options)?.session()?;
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let outputs = session.run(&inputs)?;
    Ok(outputs.iter().map(|output| (output.name().to_string(), output.to_tensor())).collect())
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
