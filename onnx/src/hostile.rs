//! Models that lie, each refused with its own error.

use std::path::PathBuf;

use egret_ir::{DType, Diagnostic, Graph, Tensor, Tensors, interpret};
use prost::Message;

use crate::proto::{
    AttributeProto, DimensionProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ShapeProto,
    StringStringEntryProto, TensorProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::tensor::to_proto;
use crate::{from_bytes, load};

fn info(name: &str, elem_type: i32, dims: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| DimensionProto { dim_value: Some(*d), dim_param: None };
    let shape = Some(ShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type, shape });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let names = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    NodeProto { op_type: op.into(), input: names(inputs), output: names(outputs), ..NodeProto::default() }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i, ..AttributeProto::default() }
}

fn body(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto { name: name.into(), g: Some(graph), ..AttributeProto::default() }
}

/// A model that gives `y`.
fn model(inputs: Vec<ValueInfoProto>, constants: Vec<(&str, Tensor)>, nodes: Vec<NodeProto>) -> ModelProto {
    let graph = GraphProto {
        node: nodes,
        input: inputs,
        initializer: constants.iter().map(|(name, tensor)| to_proto(name, tensor)).collect(),
        output: vec![info("y", 1, &[])],
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: 10,
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
        functions: Vec::new(),
        ..ModelProto::default()
    }
}

fn import(model: &ModelProto) -> Result<Graph, Diagnostic> {
    from_bytes(&model.encode_to_vec())
}

fn refused(model: &ModelProto) -> Diagnostic {
    match import(model) {
        Err(error) => error,
        Ok(graph) => panic!("imported:\n{}", egret_ir::text::print(&graph)),
    }
}

fn ints(values: &[i64]) -> Tensor {
    Tensor::new(&[values.len()], values).unwrap()
}

const F32: i32 = 1;
const I64: i32 = 7;

#[test]
fn files_that_are_no_models() {
    assert_eq!(from_bytes(&[]).unwrap_err().code, "E0301");
    assert_eq!(from_bytes(b"ONNX").unwrap_err().code, "E0301");
    let whole = model(vec![info("x", F32, &[2])], vec![], vec![node("Relu", &["x"], &["y"])]).encode_to_vec();
    assert!(from_bytes(&whole).is_ok());
    for cut in 0..whole.len() {
        // fields may end where the file does
        let _ = from_bytes(&whole[..cut]);
    }
    assert_eq!(load("there/is/no/model.onnx".as_ref()).unwrap_err().code, "E0308");
}

#[test]
fn inputs_that_cannot_be() {
    let with = |info| refused(&model(vec![info], vec![], vec![node("Relu", &["x"], &["y"])]));
    assert_eq!(with(info("x", F32, &[1 << 62])).code, "E0309");
    assert_eq!(with(info("x", 99, &[1])).code, "E0311");
    assert_eq!(with(info("x", 8, &[1])).code, "E0311");
    assert_eq!(with(ValueInfoProto { name: "x".into(), r#type: None }).code, "E0309");
    let twice = model(vec![info("x", F32, &[1]), info("x", I64, &[2])], vec![], vec![node("Relu", &["x"], &["y"])]);
    assert_eq!(refused(&twice).code, "E0309");
    // an extent below 0 is unknown
    let graph = import(&model(vec![info("x", F32, &[-7])], vec![], vec![node("Relu", &["x"], &["y"])])).unwrap();
    assert!(graph.tensor_type(graph.outputs()[0].1).shape[0].as_const().is_none());
}

#[test]
fn values_that_nothing_makes() {
    let x = || vec![info("x", F32, &[2])];
    let error = refused(&model(x(), vec![], vec![node("Add", &["x", "z"], &["y"])]));
    assert!(error.code == "E0307" && error.message.contains("`z`"), "{error}");
    let cycle = vec![node("Add", &["x", "b"], &["a"]), node("Relu", &["a"], &["b"]), node("Relu", &["b"], &["y"])];
    assert_eq!(refused(&model(x(), vec![], cycle)).code, "E0307");
    assert_eq!(refused(&model(x(), vec![], vec![node("Relu", &["x"], &["z"])])).code, "E0307");
    assert_eq!(refused(&model(x(), vec![], vec![node("Add", &["x"], &["y"])])).code, "E0305");
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let inputs = || vec![info("x", F32, &[2, 3]), info("i", I64, &[2, 3]), info("z", F32, &[4])];
    for (nodes, wanted) in [
        (node("Add", &["x", "i"], &["y"]), "i64"),
        (node("Add", &["x", "z"], &["y"]), "4"),
        (node("MatMul", &["x", "z"], &["y"]), "4"),
        (node("Conv", &["x", "z"], &["y"]), "[4]"),
        (node("And", &["x", "x"], &["y"]), "f32"),
    ] {
        let error = refused(&model(inputs(), vec![], vec![nodes.clone()]));
        let text = error.to_string();
        assert!(matches!(error.code, "E0101" | "E0305"), "{text}");
        assert!(text.contains(wanted) && text.contains(&nodes.op_type), "{text}");
    }
    let mut transposed = node("Transpose", &["x"], &["y"]);
    transposed.attribute.push(AttributeProto { name: "perm".into(), ints: vec![0, 9], ..AttributeProto::default() });
    assert_eq!(refused(&model(inputs(), vec![], vec![transposed])).code, "E0305");
    let mut softmax = node("Softmax", &["x"], &["y"]);
    softmax.attribute.push(int("axis", i64::MIN));
    assert_eq!(refused(&model(inputs(), vec![], vec![softmax])).code, "E0305");
}

/// Sizes that no memory holds are types, or errors; nothing is allocated for them.
#[test]
fn sizes_that_no_memory_holds() {
    let huge = || ints(&[1 << 40, 1 << 40]);
    let x = || vec![info("x", F32, &[1])];
    let reshape = vec![node("Reshape", &["x", "s"], &["y"])];
    assert_eq!(refused(&model(x(), vec![("s", huge())], reshape)).code, "E0101");
    for op in ["Expand", "Tile"] {
        let shape = if op == "Tile" { ints(&[1 << 62]) } else { huge() };
        let _ = import(&model(x(), vec![("s", shape)], vec![node(op, &["x", "s"], &["y"])]));
    }
    assert_eq!(
        refused(&model(vec![], vec![("s", huge())], vec![node("ConstantOfShape", &["s"], &["y"])])).code,
        "E0305"
    );
    let range = vec![("a", ints(&[0])), ("b", ints(&[i64::MAX])), ("c", ints(&[1]))];
    assert_eq!(refused(&model(vec![], range, vec![node("Range", &["a", "b", "c"], &["y"])])).code, "E0305");
    let mut liar = to_proto("w", &Tensor::zeros(DType::F32, &[2]));
    liar.dims = vec![1 << 40];
    let mut lies = model(x(), vec![], vec![node("Add", &["x", "w"], &["y"])]);
    lies.graph.as_mut().unwrap().initializer.push(liar);
    assert_eq!(refused(&lies).code, "E0306");
}

#[test]
fn functions_that_call_themselves_or_double() {
    let call =
        |name: &str, inputs: &[&str], outputs: &[&str]| NodeProto { domain: "f".into(), ..node(name, inputs, outputs) };
    let function = |name: &str, nodes| FunctionProto {
        name: name.into(),
        domain: "f".into(),
        input: vec!["x".into()],
        output: vec!["y".into()],
        node: nodes,
        ..FunctionProto::default()
    };
    let mut recursive = model(vec![info("x", F32, &[2])], vec![], vec![call("g", &["x"], &["y"])]);
    recursive.functions = vec![function("g", vec![call("g", &["x"], &["y"])])];
    assert_eq!(refused(&recursive).code, "E0312");
    let mut doubling = model(vec![info("x", F32, &[2])], vec![], vec![call("f30", &["x"], &["y"])]);
    doubling.functions = (1..=30)
        .map(|i| {
            let inner = format!("f{}", i - 1);
            function(&format!("f{i}"), vec![call(&inner, &["x"], &["a"]), call(&inner, &["a"], &["y"])])
        })
        .chain([function("f0", vec![node("Identity", &["x"], &["y"])])])
        .collect();
    assert_eq!(refused(&doubling).code, "E0312");
}

#[test]
fn bodies_nested_too_deep() {
    let mut graph = GraphProto {
        node: vec![node("Identity", &["x"], &["r"])],
        output: vec![info("r", F32, &[2])],
        ..GraphProto::default()
    };
    for _ in 0..20 {
        let mut branch = node("If", &["c"], &["r"]);
        branch.attribute = vec![body("then_branch", graph.clone()), body("else_branch", GraphProto::default())];
        graph = GraphProto { node: vec![branch], output: vec![info("r", F32, &[2])], ..GraphProto::default() };
    }
    let yes = Tensor::splat(egret_ir::Literal::int(1, DType::Bool), &[]);
    let mut deep = model(vec![info("x", F32, &[2])], vec![("c", yes)], graph.node);
    deep.graph.as_mut().unwrap().output = vec![info("r", F32, &[2])];
    assert!(import(&deep).is_ok(), "{:?}", import(&deep).err());
    let mut nested = deep.graph.clone().unwrap();
    for _ in 0..20 {
        let mut branch = node("If", &["c"], &["r"]);
        let inner = GraphProto { input: Vec::new(), initializer: Vec::new(), ..nested.clone() };
        branch.attribute = vec![body("then_branch", inner), body("else_branch", GraphProto::default())];
        nested.node = vec![branch];
    }
    deep.graph = Some(nested);
    // the reader of messages has a limit of its own
    assert!(matches!(refused(&deep).code, "E0301" | "E0312"));
}

#[test]
fn external_data_outside_the_folder_or_past_its_end() {
    let folder = std::env::temp_dir().join(format!("egret-hostile-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("w.bin"), [0u8; 8]).unwrap();
    let outcome = |location: &str, offset: &str, dims: Vec<i64>| {
        let entry = |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into() };
        let weight = TensorProto {
            name: "w".into(),
            dims,
            data_type: F32,
            data_location: 1,
            external_data: vec![entry("location", location), entry("offset", offset)],
            ..TensorProto::default()
        };
        let mut lies = model(vec![info("x", F32, &[2])], vec![], vec![node("Add", &["x", "w"], &["y"])]);
        lies.graph.as_mut().unwrap().initializer.push(weight);
        let path: PathBuf = folder.join("model.onnx");
        std::fs::write(&path, lies.encode_to_vec()).unwrap();
        load(&path).map_err(|e| e.code)
    };
    assert!(outcome("w.bin", "0", vec![2]).is_ok());
    assert_eq!(outcome("w.bin", "4", vec![2]).unwrap_err(), "E0306");
    assert_eq!(outcome("w.bin", "18446744073709551615", vec![2]).unwrap_err(), "E0306");
    assert_eq!(outcome("w.bin", "-1", vec![2]).unwrap_err(), "E0306");
    assert_eq!(outcome("../w.bin", "0", vec![2]).unwrap_err(), "E0302");
    assert_eq!(outcome("/etc/passwd", "0", vec![2]).unwrap_err(), "E0302");
    assert_eq!(outcome("missing.bin", "0", vec![2]).unwrap_err(), "E0302");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// What only a run can see is an error of the run that names the node.
#[test]
fn faults_of_a_run() {
    let run = |model: &ModelProto, inputs: &[(&str, Tensor)]| {
        let graph = import(model).unwrap();
        let inputs: Tensors = inputs.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
        interpret(&graph, &inputs, &Tensors::new()).map_err(Diagnostic::from)
    };
    let gather = model(
        vec![info("x", F32, &[3]), info("i", I64, &[1])],
        vec![],
        vec![NodeProto { name: "pick".into(), ..node("Gather", &["x", "i"], &["y"]) }],
    );
    let x = Tensor::new(&[3], &[1f32, 2.0, 3.0]).unwrap();
    let at = |i: i64| run(&gather, &[("x", x.clone()), ("i", ints(&[i]))]);
    assert_eq!(at(-1).unwrap().outputs[0].1.as_slice::<f32>(), Some(&[3f32][..]));
    for i in [3, -4, i64::MIN] {
        let error = at(i).unwrap_err();
        assert!(error.code == "E0210" && error.to_string().contains("pick"), "{error}");
    }
    let divide = model(
        vec![info("a", I64, &[2]), info("b", I64, &[2])],
        vec![],
        vec![NodeProto { name: "quotient".into(), ..node("Div", &["a", "b"], &["y"]) }],
    );
    let error = run(&divide, &[("a", ints(&[1, 2])), ("b", ints(&[1, 0]))]).unwrap_err();
    assert!(error.code == "E0211" && error.to_string().contains("quotient"), "{error}");
    // no elements, no axes
    let empty = model(vec![info("x", F32, &[0, 3])], vec![], vec![node("Relu", &["x"], &["y"])]);
    assert_eq!(run(&empty, &[("x", Tensor::zeros(DType::F32, &[0, 3]))]).unwrap().outputs[0].1.shape(), [0, 3]);
    let scalar = model(vec![info("x", F32, &[])], vec![], vec![node("Relu", &["x"], &["y"])]);
    assert_eq!(run(&scalar, &[("x", Tensor::zeros(DType::F32, &[]))]).unwrap().outputs[0].1.shape(), [0usize; 0]);
    // inputs that are not those declared
    let wrong = [
        vec![("x", Tensor::zeros(DType::F32, &[2, 3]))],
        vec![("z", Tensor::zeros(DType::F32, &[0, 3]))],
        vec![("x", Tensor::zeros(DType::I64, &[0, 3]))],
    ];
    for given in wrong {
        let error = run(&empty, &given).unwrap_err();
        assert!(error.code.starts_with("E020"), "{error}");
    }
}
