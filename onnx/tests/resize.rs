//! Resampling with open extents is that with numbers.

use egret_ir::{Tensor, Tensors, interpret};
use prost::Message;

#[derive(Clone, PartialEq, prost::Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opset: Vec<Opset>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Opset {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Constant>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<Value>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "4")]
    s: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Constant {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(float, repeated, tag = "4")]
    float_data: Vec<f32>,
    #[prost(string, tag = "8")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    ty: Option<Type>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Type {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Dim {
    #[prost(int64, optional, tag = "1")]
    value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
}

fn model(mode: &str, transform: &str, nearest: &str, scales: [f32; 2], extents: Option<[i64; 2]>) -> Vec<u8> {
    let dim = |i: usize| match extents {
        Some(extents) => Dim { value: Some(extents[i]), name: None },
        None => Dim { value: None, name: Some(["h", "w"][i].into()) },
    };
    let tensor = TensorType { elem_type: 1, shape: Some(Shape { dim: vec![dim(0), dim(1)] }) };
    let text = |name: &str, value: &str| Attribute { name: name.into(), s: value.into() };
    let graph = Graph {
        node: vec![Node {
            input: vec!["x".into(), String::new(), "scales".into()],
            output: vec!["y".into()],
            op_type: "Resize".into(),
            attribute: vec![
                text("mode", mode),
                text("coordinate_transformation_mode", transform),
                text("nearest_mode", nearest),
            ],
        }],
        initializer: vec![Constant { dims: vec![2], data_type: 1, float_data: scales.to_vec(), name: "scales".into() }],
        input: vec![Value { name: "x".into(), ty: Some(Type { tensor: Some(tensor) }) }],
        output: vec![Value { name: "y".into(), ty: None }],
    };
    Model { graph: Some(graph), opset: vec![Opset { domain: String::new(), version: 19 }] }.encode_to_vec()
}

#[test]
fn open_extents_are_resampled_as_numbers_are() {
    let (h, w) = (7usize, 5usize);
    let values: Vec<f32> = (0..h * w).map(|i| (i as f32 * 0.7).sin()).collect();
    let inputs: Tensors = [("x".to_string(), Tensor::new(&[h, w], &values).unwrap())].into_iter().collect();
    let run = |bytes: Vec<u8>| {
        let graph = egret_onnx::from_bytes(&bytes).unwrap_or_else(|e| panic!("{e}"));
        interpret(&graph, &inputs, &Tensors::new()).unwrap_or_else(|e| panic!("{e}")).outputs.remove(0).1
    };
    let transforms = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"];
    let mut cases = 0;
    for transform in transforms {
        for (mode, nearest) in [("linear", "floor"), ("nearest", "floor"), ("nearest", "round_prefer_floor")] {
            for scales in [[2.0, 3.0], [0.5, 1.6], [1.5, 0.3]] {
                let known = run(model(mode, transform, nearest, scales, Some([h as i64, w as i64])));
                let open = run(model(mode, transform, nearest, scales, None));
                assert_eq!(open.shape(), known.shape(), "{transform} {mode} {scales:?}");
                for (i, (a, b)) in open.values().zip(known.values()).enumerate() {
                    let off = (a.as_f64() - b.as_f64()).abs();
                    assert!(off <= 1e-6, "{transform} {mode} {nearest} {scales:?} [{i}]: {off}");
                }
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 45);
}
