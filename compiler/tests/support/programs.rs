//! Compiled programs, run on whatever instruction sets this machine has.
#![allow(dead_code)]

use std::sync::Arc;

use egret_compiler::{CompileOptions, Level, compile};
use egret_ir::{DType, Graph, ScalarValue, Tensor, Tensors, interpret};
use egret_program::{DeviceDescription, Program};
use egret_runtime::{Executable, LoadOptions, RuntimeError};
use egret_simd::Isa;

/// A CPU description for every instruction set that this machine has.
pub fn descriptions() -> Vec<DeviceDescription> {
    let all = [(Isa::Portable, "x86-64-portable"), (Isa::Avx2, "x86-64-avx2"), (Isa::Avx512, "x86-64-avx512")];
    let here = all.into_iter().filter(|(isa, _)| isa.is_supported());
    here.map(|(_, name)| DeviceDescription::named(name).expect("a shipped description")).collect()
}

/// The outputs of a program, by name and in order.
pub fn run(
    program: &Program,
    weights: &dyn Fn(&str) -> Option<Tensor>,
    given: &Tensors,
    threads: usize,
) -> Result<Vec<(String, Tensor)>, RuntimeError> {
    let executable = Executable::load(Arc::new(program.clone()), weights, LoadOptions { threads, isa: None })?;
    let mut session = executable.session()?;
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let outputs = session.run(&given)?;
    Ok(outputs.iter().map(|output| (output.name().to_string(), output.to_tensor())).collect())
}

/// Numbers of a few values: integers of −6 to 6 halved for floats, 0 to 6 for unsigned ones.
pub fn few(dtype: DType, shape: &[usize], seed: usize) -> Tensor {
    let mut tensor = Tensor::zeros(dtype, shape);
    for i in 0..tensor.elements() {
        let n = ((i * 7 + seed * 5) * 31 % 13) as i128 - 6;
        tensor.set(
            i,
            match dtype {
                d if d.is_float() => ScalarValue::Float(n as f64 / 2.0),
                d if d.is_unsigned() => ScalarValue::Int(n.abs()),
                _ => ScalarValue::Int(n),
            },
        );
    }
    tensor
}

/// Numbers that are not negative: a sum of `n` products of them is right to `n` units in the last place, and so are sums of
/// sums.
pub fn positive(shape: &[usize], seed: usize) -> Tensor {
    let mut tensor = few(DType::F32, shape, seed);
    for i in 0..tensor.elements() {
        tensor.set(i, ScalarValue::Float(tensor.get(i).as_f64().abs()));
    }
    tensor
}

/// A tensor of integers.
pub fn ints(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::new(shape, values).expect("as many values as the shape has")
}

/// Every level and instruction set gives what the interpreter gives, to the bit but for the sign of zeros and, where
/// `tolerance` is not 0, to that part of the value.
pub fn check(graph: &Graph, inputs: &[(&str, Tensor)], tolerance: f64) {
    check_on(&descriptions(), graph, inputs, tolerance);
}

/// [`check`] on these devices.
pub fn check_on(devices: &[DeviceDescription], graph: &Graph, inputs: &[(&str, Tensor)], tolerance: f64) {
    let given: Tensors = inputs.iter().map(|(name, v)| (name.to_string(), v.clone())).collect();
    let want = interpret(graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{e}"));
    for level in [Level::None, Level::Greedy, Level::Full] {
        for device in devices {
            let options = CompileOptions { level, ..CompileOptions::default() };
            let compiled = compile(graph, device, &options).unwrap_or_else(|e| panic!("{e}"));
            let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
            let have = run(&compiled.program, &weights, &given, 2).unwrap_or_else(|e| panic!("{e}"));
            for ((name, have), (_, want)) in have.iter().zip(&want.outputs) {
                assert_eq!((have.dtype(), have.shape()), (want.dtype(), want.shape()), "{name}");
                for (i, (a, b)) in have.values().zip(want.values()).enumerate() {
                    let (x, y) = (a.as_f64(), b.as_f64());
                    let same = a == b || x.is_nan() && y.is_nan() || (x - y).abs() <= tolerance * y.abs().max(1.0);
                    assert!(same, "{name}[{i}] is {a:?}, the interpreter has {b:?} ({level:?}, {})", device.name);
                }
            }
        }
    }
}

/// The interpreter refuses to run, and so does every compiled program, with a fault whose message holds `word`.
pub fn check_fault(graph: &Graph, inputs: &[(&str, Tensor)], word: &str) {
    let given: Tensors = inputs.iter().map(|(name, v)| (name.to_string(), v.clone())).collect();
    assert!(interpret(graph, &given, &Tensors::new()).is_err());
    for device in descriptions() {
        let options = CompileOptions::default();
        let compiled = compile(graph, &device, &options).unwrap_or_else(|e| panic!("{e}"));
        match run(&compiled.program, &|_| None, &given, 2) {
            Err(RuntimeError::Fault { message, .. }) => assert!(message.contains(word), "{message}"),
            other => panic!("{other:?}"),
        }
    }
}
