//! Products whose kernels leave further results: one launch instead of several, each engine on the simulator against the
//! interpreter.

#[path = "support/drawn.rs"]
mod drawn;
#[path = "support/nvrtc.rs"]
mod nvrtc;
#[path = "support/orders.rs"]
mod orders;
#[path = "support/simulate.rs"]
mod simulate;

use egret_compiler::{CompileOptions, F32Products, compile};
use egret_ir::{DType, Graph, trace};
use egret_program::{DeviceDescription, Program};
use orders::{compare, of};

/// A product with a bias, its activation, and its sum with a residual: three results of the same elements.
fn several(dtype: DType, [m, n, k]: [i64; 3]) -> Graph {
    let graph = trace(|t| {
        let (w, bias) = (t.input("w", of(dtype, [k, n])), t.input("bias", of(dtype, [n])));
        let y = t.input("x", of(dtype, [m, k])).matmul(w) + bias;
        (y, y.tanh(), y + t.input("residual", of(dtype, [m, n])))
    });
    graph.unwrap()
}

fn program(graph: &Graph, device: &DeviceDescription, products: F32Products) -> Program {
    let options = CompileOptions { products, ..CompileOptions::default() };
    compile(graph, device, &options).unwrap_or_else(|e| panic!("{e}")).program
}

/// So many launches give every result.
fn check(name: &str, graph: &Graph, device: &DeviceDescription, products: F32Products, launches: usize) {
    let program = program(graph, device, products);
    let families: Vec<&str> =
        program.launches().iter().map(|launch| program.kernel(launch.kernel).family.as_str()).collect();
    assert_eq!(families.len(), launches, "{name}: {families:?}");
    compare(name, graph, &program, false);
}

#[test]
fn every_engine_leaves_several_results() {
    use F32Products::{Fma, Tf32x3};
    let device = DeviceDescription::named("sm_80").unwrap();
    let one_core = DeviceDescription { cores: 1, ..device.clone() };
    check("small tiles", &several(DType::F32, [70, 45, 37]), &device, Fma, 1);
    check("large tiles", &several(DType::F32, [128, 256, 40]), &one_core, Fma, 1);
    check("tensor cores", &several(DType::BF16, [128, 96, 64]), &device, Fma, 1);
    check("odd", &several(DType::BF16, [70, 45, 38]), &device, Fma, 1);
    check("three products", &several(DType::F32, [72, 64, 48]), &device, Tf32x3, 1);
    // parts of sums, and what adds them up
    check("split", &several(DType::BF16, [24, 40, 2048]), &device, Fma, 2);
}

/// The norm of rows that are needed besides stays a kernel of its own.
#[test]
fn rows_are_not_joined() {
    let device = DeviceDescription::named("sm_80").unwrap();
    let graph = trace(|t| {
        let x = t.input("x", of(DType::F32, [64, 48]));
        let y = x + x.matmul(t.input("w", of(DType::F32, [48, 48])));
        (y, y.layer_norm(-1, 1e-5))
    });
    check("norm", &graph.unwrap(), &device, F32Products::Fma, 2);
}
