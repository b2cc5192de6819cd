//! `egret ops`: what models may consist of.

use egret::{DType, ScalarFn};
use serde_json::{Value, json};

/// Lists the operators of ONNX that are imported, the element types, and for each elementwise function those that it takes.
pub fn ops(as_json: bool) {
    let operators = egret::onnx::supported();
    let dtypes: Vec<&str> = DType::ALL.iter().map(|dtype| dtype.name()).collect();
    let functions: Vec<(&str, Vec<&str>)> = ScalarFn::ALL.iter().map(|f| (f.name(), legal(*f))).collect();
    if as_json {
        let functions: Vec<Value> = functions.iter().map(|(n, d)| json!({ "name": n, "dtypes": d })).collect();
        println!("{:#}", json!({ "onnx": operators, "dtypes": dtypes, "functions": functions }));
        return;
    }
    println!("{} operators of ONNX: {}\n", operators.len(), operators.join(", "));
    println!("element types: {}\n", dtypes.join(", "));
    println!("elementwise functions, and the element types that they take:");
    for (name, dtypes) in functions {
        println!("  {name:<12} {}", dtypes.join(" "));
    }
}

/// The element types of the operands that a function takes.
fn legal(f: ScalarFn) -> Vec<&'static str> {
    let takes = |dtype: &DType| {
        let mut operands = vec![*dtype; f.arity()];
        if f == ScalarFn::Select {
            operands[0] = DType::Bool;
        }
        f.result_dtype(&operands).is_ok()
    };
    DType::ALL.iter().filter(|dtype| takes(dtype)).map(|dtype| dtype.name()).collect()
}
