//! A graph of `f32` as one of another float type, and of more images.

use std::sync::Arc;

use egret_ir::ops::{Cast, Const, Input, Param, Reshape};
use egret_ir::{DType, Graph, Literal, NodeId, Op, ScalarValue, Tensor, TensorType, Weight};

fn converted(tensor: &Tensor, dtype: DType) -> Tensor {
    if tensor.dtype() != DType::F32 {
        return tensor.clone();
    }
    let mut out = Tensor::zeros(dtype, tensor.shape());
    tensor.values().enumerate().for_each(|(i, value)| out.set(i, ScalarValue::Float(value.as_f64())));
    out
}

/// The graph, of images one by one, with every `f32` leaf, constant and cast of that type instead, for so many images at once.
pub fn of_type(graph: &Graph, dtype: DType, batch: i64) -> Graph {
    let weight = |weight: &Weight| match weight {
        Weight::Tensor(tensor) => Weight::Tensor(converted(tensor, dtype)),
        Weight::Fill { value, shape } if value.dtype == DType::F32 => {
            Weight::Fill { value: Literal::float(value.as_f64(), dtype), shape: shape.clone() }
        }
        other => other.clone(),
    };
    let mut out = Graph::new();
    out.weights = Arc::new(graph.weights.iter().map(|(name, value)| (name.clone(), weight(value))).collect());
    let mut places: Vec<NodeId> = Vec::new();
    for (_, node) in graph.iter() {
        let ty = |ty: &TensorType| TensorType { dtype, ..ty.clone() };
        let op: Op = match &node.op {
            Op::Input(leaf) if leaf.ty.dtype == DType::F32 => {
                let mut ty = ty(&leaf.ty);
                ty.shape.dims_mut()[0] = batch.into();
                Input { name: leaf.name.clone(), ty }.into()
            }
            // of an image, not of a weight
            Op::Reshape(reshape)
                if out.tensor_type(places[node.operands[0].index()]).shape.elements() != reshape.shape.elements() =>
            {
                let mut shape = reshape.shape.clone();
                shape.dims_mut()[0] = batch.into();
                Reshape { shape }.into()
            }
            Op::Param(leaf) if leaf.ty.dtype == DType::F32 => {
                Param { name: leaf.name.clone(), ty: ty(&leaf.ty) }.into()
            }
            Op::Const(constant) => Const { value: converted(&constant.value, dtype) }.into(),
            Op::Cast(cast) if cast.dtype == DType::F32 => Cast { dtype }.into(),
            other => other.clone(),
        };
        let operands: Vec<NodeId> = node.operands.iter().map(|id| places[id.index()]).collect();
        places.push(out.add(op, &operands).unwrap_or_else(|e| panic!("{e}")));
    }
    out.take_roots_of(graph, |id| Some(places[id.index()]));
    out
}
