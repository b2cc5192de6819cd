//! Runs a program that `egret compile` wrote, on inputs of ones: `run_program FILE [NAME=N]…`. Neither compiler nor
//! importer is in this binary.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use egret_ir::{Bindings, ScalarValue, Tensor};
use egret_runtime::{Executable, LoadOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let file = args.next().ok_or("usage: run_program FILE [NAME=N]…")?;
    let (exe, state) = Executable::open(Path::new(&file), LoadOptions::default())?;
    let mut sizes = Bindings::new();
    for port in &exe.program().inputs {
        for dim in port.ty.shape.iter() {
            dim.symbols(&mut |name, least, _| {
                sizes.insert(name.clone(), least.max(1));
            });
        }
    }
    for arg in args {
        let (name, size) = arg.split_once('=').ok_or("a size is given as NAME=N")?;
        sizes.insert(name.into(), size.parse()?);
    }
    let mut inputs = Vec::new();
    for port in &exe.program().inputs {
        let shape: Vec<usize> = port.ty.shape.eval(&sizes)?.into_iter().map(|n| n as usize).collect();
        let mut ones = Tensor::zeros(port.ty.dtype, &shape);
        (0..ones.elements()).for_each(|i| ones.set(i, ScalarValue::Int(1)));
        inputs.push((port.name.clone(), ones));
    }
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut session = exe.session_with(&state)?;
    let start = Instant::now();
    let outputs = session.run(&given)?;
    let took = start.elapsed();
    for output in outputs.iter() {
        let values = output.to_tensor();
        let finite = values.values().map(|v| v.as_f64()).filter(|v| v.is_finite());
        let (sum, count) = finite.fold((0.0, 0usize), |(sum, n), v| (sum + v, n + 1));
        println!("{}: {}{:?}, mean {:.6}", output.name(), values.dtype(), values.shape(), sum / count.max(1) as f64);
    }
    println!("{:.3} ms", took.as_secs_f64() * 1e3);
    Ok(())
}
