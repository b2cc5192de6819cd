//! Random bits: Philox4x32-10 in integer operators, as functions of the model.
//!
//! A word of 32 bits is an element of u64, where products of two words, shifts and exclusive ors are exact.

use egret_ir::ops::{PHILOX_MULTIPLIERS, PHILOX_ROUNDS, PHILOX_STEPS, Rng};
use egret_ir::{DType, Diagnostic, Dim, Literal, ScalarValue, Tensor, TensorType};

use super::{Arg, Export, OPSET};
use crate::export::writer::{DOMAIN, Writer, int, tensor, text};
use crate::proto::{FunctionProto, OperatorSetIdProto};

/// `(block, counter, key) → words`: the words of these blocks, one after the other.
const PHILOX: &str = "Philox4x32";
/// One round: four words and the key's two, those of the next round.
const ROUND: &str = "Philox4x32Round";

impl Export<'_> {
    pub(super) fn rng(&mut self, rng: &Rng, counter: &Arg, y: &TensorType) -> Result<String, Diagnostic> {
        let elements = y.shape.elements();
        let blocks = self.counter(&(elements.clone() + Dim::from(3)).floor_div(&Dim::from(4)), 0)?;
        let blocks = self.w.cast(&blocks, DType::U64);
        let counter = match counter.ty.dtype {
            DType::U64 => counter.name.to_string(),
            _ => self.w.cast(counter.name, DType::U64),
        };
        let key = self.w.literal(word(rng.stream));
        if self.functions.is_empty() {
            self.functions = vec![round(), philox()];
        }
        let mut words = self.w.call(PHILOX, &[&blocks, &counter, &key], 1).swap_remove(0);
        if elements.as_const().is_none_or(|n| n % 4 != 0) {
            let (start, end) = (self.w.ints(&[0]), self.size(&elements)?);
            words = self.w.op("Slice", &[&words, &start, &end]);
        }
        if y.shape.rank() == 1 { Ok(words) } else { self.reshape(&words, &y.shape) }
    }
}

fn word(value: u64) -> Literal {
    Literal::new(ScalarValue::Int(value.into()), DType::U64)
}

/// The body of a function while it is written: one that has no initializers.
struct Body {
    w: Writer,
    inputs: Vec<String>,
}

impl Body {
    fn new(inputs: &[&str], outputs: &[&str]) -> Body {
        let inputs: Vec<String> = inputs.iter().map(|name| name.to_string()).collect();
        let reserved = inputs.iter().cloned().chain(outputs.iter().map(|name| name.to_string()));
        Body { w: Writer::new(reserved.collect()), inputs }
    }

    fn number(&mut self, value: u64) -> String {
        self.w.op_with("Constant", &[], vec![tensor("value", &Tensor::scalar(word(value)))])
    }

    fn op(&mut self, op: &str, a: &str, b: &str) -> String {
        self.w.op(op, &[a, b])
    }

    /// The lower and the upper word of 64 bits.
    fn words(&mut self, x: &str) -> (String, String) {
        let (mask, by) = (self.number(u32::MAX.into()), self.number(32));
        let low = self.op("BitwiseAnd", x, &mask);
        (low, self.w.op_with("BitShift", &[x, &by], vec![text("direction", "RIGHT")]))
    }

    fn function(mut self, name: &str, results: &[String], outputs: &[&str]) -> FunctionProto {
        self.w.name_outputs(results, outputs.iter().copied());
        let import = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
        FunctionProto {
            name: name.into(),
            domain: DOMAIN.into(),
            input: self.inputs,
            output: outputs.iter().map(|name| name.to_string()).collect(),
            attribute_proto: Vec::new(),
            node: self.w.finish().0,
            opset_import: vec![import("", OPSET), import(DOMAIN, 1)],
        }
    }
}

/// As [`egret_ir::ops::philox`] has it.
fn round() -> FunctionProto {
    let outputs = ["y0", "y1", "y2", "y3", "next0", "next1"];
    let mut body = Body::new(&["x0", "x1", "x2", "x3", "k0", "k1"], &outputs);
    let mut halves = |x: &str, by: u32| {
        let by = body.number(by.into());
        let product = body.op("Mul", x, &by);
        body.words(&product)
    };
    let (low_a, high_a) = halves("x0", PHILOX_MULTIPLIERS[0]);
    let (low_b, high_b) = halves("x2", PHILOX_MULTIPLIERS[1]);
    let mut mixed = |high: &str, x: &str, key: &str| {
        let mixed = body.op("BitwiseXor", high, x);
        body.op("BitwiseXor", &mixed, key)
    };
    let (first, third) = (mixed(&high_b, "x1", "k0"), mixed(&high_a, "x3", "k1"));
    let mut next = |key: &str, step: u32| {
        let step = body.number(step.into());
        let sum = body.op("Add", key, &step);
        body.words(&sum).0
    };
    let next = [next("k0", PHILOX_STEPS[0]), next("k1", PHILOX_STEPS[1])];
    let [next0, next1] = next;
    body.function(ROUND, &[first, low_b, third, low_a, next0, next1], &outputs)
}

fn philox() -> FunctionProto {
    let mut body = Body::new(&["block", "counter", "key"], &["words"]);
    let mut words: Vec<String> = Vec::new();
    for pair in ["block", "counter", "key"] {
        let (low, high) = body.words(pair);
        words.extend([low, high]);
    }
    for _ in 0..PHILOX_ROUNDS {
        let given: Vec<&str> = words.iter().map(String::as_str).collect();
        words = body.w.call(ROUND, &given, words.len());
    }
    let axis = body.w.op_with("Constant", &[], vec![tensor("value", &line(1))]);
    let columns: Vec<String> = words[..4].iter().map(|x| body.op("Unsqueeze", x, &axis)).collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let table = body.w.op_with("Concat", &columns, vec![int("axis", 1)]);
    let flat = body.w.op_with("Constant", &[], vec![tensor("value", &line(-1))]);
    let table = body.op("Reshape", &table, &flat);
    let result = body.w.cast(&table, DType::U32);
    body.function(PHILOX, &[result], &["words"])
}

/// A vector of one i64.
fn line(value: i64) -> Tensor {
    Tensor::splat(Literal::int(value, DType::I64), &[1])
}
