//! From a graph to text.

use std::fmt::Write;

use super::{Attr, constant_name, is_large};
use crate::dtype::DType;
use crate::graph::Graph;
use crate::ops::Op;
use crate::scalar::ScalarValue;
use crate::tensor::Tensor;
use crate::weights::Weight;

/// The text of a graph.
pub fn print(graph: &Graph) -> String {
    let mut text = String::from("graph ");
    region(&mut text, graph, 0);
    text.push('\n');
    text
}

fn indent(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("  ", depth));
}

fn region(text: &mut String, graph: &Graph, depth: usize) {
    text.push('{');
    for (name, weight) in graph.weights.iter() {
        if let Weight::Fill { value, shape } = weight {
            indent(text, depth + 1);
            // writing to a string cannot fail
            let _ = write!(text, "weight {} = fill {value} {shape:?}", quoted(name));
        }
    }
    for (id, node) in graph.iter() {
        indent(text, depth + 1);
        let _ = write!(text, "%{} = {}", id.index(), node.op.home().name());
        match &node.op {
            Op::Input(leaf) => text.extend([" ", &quoted(&leaf.name)]),
            Op::Param(leaf) => text.extend([" ", &quoted(&leaf.name)]),
            Op::State(leaf) => text.extend([" ", &quoted(&leaf.name)]),
            Op::Const(leaf) if is_large(&leaf.value) => text.extend([" @", &constant_name(&leaf.value)]),
            Op::Const(leaf) => text.extend([" ", &elements(&leaf.value)]),
            _ => {}
        }
        if !node.operands.is_empty() {
            let operands: Vec<String> = node.operands.iter().map(|o| format!("%{}", o.index())).collect();
            let _ = write!(text, "({})", operands.join(", "));
        }
        attributes(text, &node.op, depth + 1);
        let _ = write!(text, " : {}", node.ty);
    }
    for (kind, list) in [("output", graph.outputs()), ("update", graph.updates())] {
        for (name, id) in list {
            indent(text, depth + 1);
            let _ = write!(text, "{kind} {} = %{}", quoted(name), id.index());
        }
    }
    indent(text, depth);
    text.push('}');
}

fn attributes(text: &mut String, op: &Op, depth: usize) {
    let list = op.home().attributes();
    if list.is_empty() {
        return;
    }
    for (i, (name, value)) in list.iter().enumerate() {
        let _ = write!(text, "{}{name}=", if i == 0 { " {" } else { ", " });
        attribute(text, value, depth);
    }
    text.push('}');
}

fn attribute(text: &mut String, value: &Attr, depth: usize) {
    fn list<T: std::fmt::Display>(items: &[T]) -> String {
        let items: Vec<String> = items.iter().map(T::to_string).collect();
        format!("[{}]", items.join(", "))
    }
    let _ = match value {
        Attr::Int(i) => write!(text, "{i}"),
        Attr::Bool(b) => write!(text, "{b}"),
        Attr::Real(x) => write!(text, "{}", real(*x, DType::F64)),
        Attr::Ints(items) => write!(text, "{}", list(items)),
        Attr::Dim(dim) => write!(text, "{dim}"),
        Attr::Dims(items) => write!(text, "{}", list(items)),
        Attr::Word(word) => write!(text, "{word}"),
        Attr::Literal(literal) => write!(text, "{literal}"),
        Attr::Expr(expr) => write!(text, "{expr}"),
        Attr::Exprs(items) => write!(text, "{}", list(items)),
        Attr::Program(block, first) => super::program::print(text, block, &mut first.clone()),
        Attr::Region(graph) => {
            region(text, graph, depth);
            Ok(())
        }
        Attr::Op(op) => {
            text.push_str(op.home().name());
            attributes(text, op, depth);
            Ok(())
        }
    };
}

/// The shortest text that reads back to the same bits: decimal, or the bits of a NaN.
fn real(x: f64, dtype: DType) -> String {
    match (x.is_nan(), dtype) {
        (true, _) if x.to_bits() == f64::NAN.to_bits() => "nan".into(),
        (true, _) => format!("0x{:x}", x.to_bits()),
        (_, DType::F64) => format!("{x:?}"),
        _ => format!("{:?}", x as f32),
    }
}

/// Elements in row-major order; one value stands for all when they are equal.
fn elements(tensor: &Tensor) -> String {
    let one = |value: ScalarValue| match value {
        ScalarValue::Bool(b) => b.to_string(),
        ScalarValue::Int(i) => i.to_string(),
        ScalarValue::Float(x) => real(x, tensor.dtype()),
    };
    let items: Vec<String> = tensor.values().map(one).collect();
    format!("[{}]", items.join(", "))
}

/// A name in quotes; quotes, backslashes and control characters are escaped.
fn quoted(name: &str) -> String {
    let mut text = String::from("\"");
    for c in name.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(text, "\\u{{{:x}}}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}
