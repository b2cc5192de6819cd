//! Branches and loops are raised and rewritten like what they are in.

mod support {
    pub mod programs;
}

use egret_compiler::{CompileOptions, Compiled, compile};
use egret_ir::{DType, Graph, Literal, Op, Tensor, Tracer, Var, f32, trace};
use egret_program::{DeviceDescription, Step};
use support::programs::{check, descriptions, few};

/// Two layers of at most 12 products each, half a unit of f32 each, and what activations and norms round.
const TOLERANCE: f64 = 2.0 * 12.0 * 6e-8 + 4e-6;

fn compiled(graph: &Graph, device: &DeviceDescription) -> Compiled {
    compile(graph, device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// A product with bias and GELU spelled out, then a norm of its rows.
fn layer<'t>(t: &Tracer<'t>, x: Var<'t>, width: usize, seed: usize) -> Var<'t> {
    let columns = x.shape()[1].as_const().expect("known columns") as usize;
    let w = t.param(&format!("w{seed}"), few(DType::F32, &[columns, width], seed));
    let b = t.param(&format!("b{seed}"), few(DType::F32, &[width], seed + 1));
    let y = x.matmul(w) + b;
    let y = y * ((y * (1.0 / 2f64.sqrt())).erf() + 1.0) * 0.5;
    let centred = y - y.reduce_mean(&[-1], true);
    centred / ((centred * centred).reduce_mean(&[-1], true) + 1e-5).sqrt()
}

fn truth(value: bool) -> Tensor {
    Tensor::scalar(Literal::int(value.into(), DType::Bool))
}

/// Launches of each family inside branches and loops.
fn inside(steps: &[Step], compiled: &Compiled, within: bool, found: &mut Vec<String>) {
    for step in steps {
        match step {
            Step::Launch(launch) if within => found.push(compiled.program.kernel(launch.kernel).family.clone()),
            Step::Branch(branch) => {
                inside(&branch.then, compiled, true, found);
                inside(&branch.otherwise, compiled, true, found);
            }
            Step::Loop(looped) => inside(&looped.body, compiled, true, found),
            _ => {}
        }
    }
}

#[test]
fn a_branch_is_fused_as_a_graph_is() {
    let graph = trace(|t| {
        let (x, test) =
            (t.input("x", f32([5, 12])), t.input("test", egret_ir::TensorType::new(DType::Bool, [0i64; 0])));
        t.cond(test, |t| vec![layer(t, x, 8, 1)], |t| vec![layer(t, x, 8, 3).relu()])[0]
    })
    .unwrap_or_else(|e| panic!("{e}"));
    for device in descriptions() {
        let compiled = compiled(&graph, &device);
        let mut found = Vec::new();
        inside(&compiled.program.steps, &compiled, false, &mut found);
        // product, bias, GELU, norm and what follows it are one kernel in either branch
        assert_eq!(found, ["gemm", "gemm"], "{}", device.name);
        // weights are known at load there too
        assert_eq!(compiled.program.prepare.len(), 2, "{}", device.name);
        assert_eq!(compiled.rewritten.replay().unwrap_or_else(|e| panic!("{e}")), compiled.rewritten.graph);
        let applied = compiled.rewritten.applied();
        assert!(applied.iter().any(|rule| rule.starts_with("epilogue")), "{applied:?}");
    }
    let x = few(DType::F32, &[5, 12], 7);
    for value in [true, false] {
        check(&graph, &[("x", x.clone()), ("test", truth(value))], TOLERANCE);
    }
}

#[test]
fn a_step_of_a_loop_is_fused_as_a_graph_is() {
    let graph = trace(|t| {
        let (xs, h) = (t.input("xs", f32([4, 5, 12])), t.input("h", f32([5, 12])));
        let (last, _) = t.scan(&[h], &[xs], |t, carry, x| (vec![layer(t, carry[0] + x[0], 12, 1).tanh()], vec![]));
        last[0]
    })
    .unwrap_or_else(|e| panic!("{e}"));
    let body = |compiled: &Compiled| -> Vec<&'static str> {
        let scan = compiled.rewritten.graph.nodes().iter().find_map(|node| match &node.op {
            Op::Scan(scan) => Some(scan.clone()),
            _ => None,
        });
        let scan = scan.expect("the loop stays");
        let inner = |op: &Op| !matches!(op, Op::Input(_) | Op::Const(_) | Op::Param(_));
        scan.body.nodes().iter().filter(|node| inner(&node.op)).map(|node| node.op.home().name()).collect()
    };
    for device in descriptions() {
        let compiled = compiled(&graph, &device);
        assert_eq!(body(&compiled), ["add", "fused"], "{}", device.name);
    }
    // four steps, each of which normalises what the one before left
    check(&graph, &[("xs", few(DType::F32, &[4, 5, 12], 3)), ("h", few(DType::F32, &[5, 12], 4))], 4.0 * TOLERANCE);
}
