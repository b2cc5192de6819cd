//! Depth: a residual net of 1,001 layers is imported, differentiated and compiled on a small stack, each distinct layer
//! once.

use std::time::Instant;

use egret_compiler::{CompileOptions, Compiled, compile};
use egret_ir::tracer::extend;
use egret_ir::{Graph, NodeId, Op};
use egret_onnx::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ShapeProto, TensorProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use egret_program::DeviceDescription;
use prost::Message;

/// 1 MB: what a thread has on some platforms.
const STACK: usize = 1 << 20;

const F32: i32 = 1;

fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| DimensionProto { dim_value: Some(*d), dim_param: None };
    let shape = Some(ShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type: F32, shape });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

/// Pairs of convolutions with a residual, as an ONNX file.
fn residual_net(layers: usize) -> Vec<u8> {
    let mut graph = GraphProto { input: vec![value("x", &[1, 8, 6, 6])], ..GraphProto::default() };
    let mut x = "x".to_string();
    let add = |graph: &mut GraphProto, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>| {
        let output = format!("v{}", graph.node.len());
        graph.node.push(NodeProto {
            op_type: op.into(),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.clone()],
            attribute,
            ..NodeProto::default()
        });
        output
    };
    let conv = |graph: &mut GraphProto, layer: usize, x: &str| {
        let values = (0..8 * 8 * 9).flat_map(|i| (((i * 31 + layer) % 17) as f32 / 200.0 - 0.04).to_le_bytes());
        let name = format!("layer{layer}");
        let filters = TensorProto { name: name.clone(), dims: vec![8, 8, 3, 3], data_type: F32, ..Default::default() };
        graph.initializer.push(TensorProto { raw_data: values.collect(), ..filters });
        let pads = AttributeProto { name: "pads".into(), ints: vec![1; 4], ..AttributeProto::default() };
        add(graph, "Conv", &[x, &name], vec![pads])
    };
    for pair in 0..layers / 2 {
        let first = conv(&mut graph, 2 * pair, &x);
        let first = add(&mut graph, "Relu", &[&first], Vec::new());
        let second = conv(&mut graph, 2 * pair + 1, &first);
        let sum = add(&mut graph, "Add", &[&x, &second], Vec::new());
        x = add(&mut graph, "Relu", &[&sum], Vec::new());
    }
    let last = conv(&mut graph, layers - 1, &x);
    graph.output.push(value(&last, &[1, 8, 6, 6]));
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 21 }];
    ModelProto { ir_version: 10, graph: Some(graph), opset_import, ..ModelProto::default() }.encode_to_vec()
}

/// The gradients of all filters.
fn differentiated(graph: Graph) -> Graph {
    let params: Vec<NodeId> =
        graph.iter().filter(|(_, node)| matches!(node.op, Op::Param(_))).map(|(id, _)| id).collect();
    let output = graph.outputs()[0].1;
    let (graph, ()) = extend(graph, |t| {
        let params: Vec<_> = params.iter().map(|id| t.var(*id)).collect();
        for (i, gradient) in t.grad(t.var(output).mean(), &params).into_iter().enumerate() {
            t.output(&format!("grad{i}"), gradient);
        }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    graph
}

/// A net of so many layers from bytes to a program, and the seconds that it took.
fn compiled(layers: usize) -> (Compiled, f64) {
    let device = DeviceDescription::named("x86-64-avx512").expect("a shipped description");
    let options = CompileOptions::default();
    let bytes = residual_net(layers);
    let start = Instant::now();
    let graph = differentiated(egret_onnx::from_bytes(&bytes).unwrap_or_else(|e| panic!("{e}")));
    let imported = start.elapsed().as_secs_f64();
    let compiled = compile(&graph, &device, &options).unwrap_or_else(|e| panic!("{e}"));
    let seconds = start.elapsed().as_secs_f64();
    println!("{layers} layers: imported in {imported:.3} s, compiled in {:.3} s", seconds - imported);
    for (phase, time) in &compiled.phases {
        println!("    {phase} {:.1} ms", time.as_secs_f64() * 1e3);
    }
    (compiled, seconds)
}

#[test]
fn a_thousand_layers_on_a_small_stack() {
    let run = || {
        let ((shallow, few), (deep, many)) = (compiled(101), compiled(1001));
        println!("a layer of 1,001 takes {:.2} of the time of one of 101", many / few * 101.0 / 1001.0);
        // layers repeat: depth adds steps, but neither parts to search nor kernels to compile
        let (few, many) = (shallow.rewritten.report(), deep.rewritten.report());
        assert_eq!(few.distinct, many.distinct, "distinct parts grow with depth");
        assert_eq!(few.nodes, many.nodes, "the e-graphs grow with depth");
        assert_eq!(shallow.program.kernels.len(), deep.program.kernels.len(), "distinct kernels grow with depth");
        let launches = |c: &Compiled| c.program.launches().len();
        let (few, many) = (launches(&shallow), launches(&deep));
        assert!(many - few <= 900 * few.div_ceil(101), "{few} launches become {many}");
    };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(run).expect("a thread");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
