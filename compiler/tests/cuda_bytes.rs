//! Products and convolutions of 8-bit integers by tensor cores: every kernel on the simulator, warps in three orders, copies
//! at once and as late as waits allow, the very integers of the interpreter.

#[path = "support/drawn.rs"]
mod drawn;
#[path = "support/nvrtc.rs"]
mod nvrtc;
#[path = "support/simulate.rs"]
mod simulate;

use std::sync::Arc;

use drawn::drawn;
use egret_compiler::{CompileOptions, compile};
use egret_ir::ops::{Conv, DotGeneral};
use egret_ir::{Bindings, DType, Graph, Op, Tensor, TensorType, Tensors, Tracer, Var, interpret, text, trace};
use egret_program::{DeviceDescription, Program};
use egret_runtime::cuda::{Cache, Device, Executable, LoadOptions};
use simulate::{Simulated, everywhere};

use DType::{I8, I32, U8};

fn of<const N: usize>(dtype: DType, shape: [i64; N]) -> TensorType {
    TensorType::new(dtype, shape)
}

fn program(graph: &Graph) -> Program {
    let device = DeviceDescription::named("sm_80").unwrap();
    compile(graph, &device, &CompileOptions::default())
        .unwrap_or_else(|e| panic!("{e}\n{}", text::print(graph)))
        .program
}

/// Bytes of every value.
fn inputs(graph: &Graph) -> Vec<(String, Tensor)> {
    let input = |(seed, id): (u64, &egret_ir::NodeId)| {
        let Op::Input(input) = &graph.node(*id).op else { panic!("no input") };
        let shape: Vec<usize> =
            input.ty.shape.eval(&Bindings::default()).unwrap().iter().map(|n| *n as usize).collect();
        (input.name.clone(), drawn(input.ty.dtype, &shape, seed, 1.0, 256))
    };
    (0..).zip(graph.inputs()).map(input).collect()
}

/// Every order gives the interpreter's integers by so many products of tensor cores, and touches the least sectors and banks
/// where `least`.
fn exact(name: &str, graph: &Graph, products: usize, least: bool) {
    let program = program(graph);
    let found = program.kernels.iter().filter(|kernel| kernel.text.contains("multiply ")).count();
    assert_eq!(found, products, "{name}: kernels of tensor cores");
    let Some(nvrtc) = nvrtc::nvrtc() else { return };
    let simulated = Simulated::new(nvrtc, &program, &|text| text.to_string());
    let inputs = inputs(graph);
    let tensors: Tensors = inputs.iter().cloned().collect();
    let want = interpret(graph, &tensors, &Tensors::new()).unwrap_or_else(|e| panic!("{name}: {e}")).outputs;
    let given: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
    for order in everywhere() {
        let ran = simulated.run(&given, &Bindings::default(), order, None);
        let (have, reports) = ran.unwrap_or_else(|e| panic!("{name} {order:?}: {e}"));
        for (bytes, (output, want)) in have.iter().zip(&want) {
            let have = Tensor::from_bytes(want.dtype(), want.shape(), bytes).unwrap();
            let differs = (0..want.elements()).find(|i| have.get(*i) != want.get(*i));
            if let Some(i) = differs {
                panic!("{name} {output}[{i}] is {:?}, not {:?}", have.get(i), want.get(i));
            }
        }
        if least {
            simulated.assert_least(name, &reports);
        }
    }
}

/// `x · w` in `i32`, sides transposed on demand.
fn product(dtypes: [DType; 2], [m, n, k]: [i64; 3], left: bool, right: bool) -> Graph {
    let graph = trace(|t| {
        let x = t.input("x", of(dtypes[0], if left { [k, m] } else { [m, k] }));
        let w = t.input("w", of(dtypes[1], if right { [n, k] } else { [k, n] }));
        let labels = format!("{},{}->ab", if left { "ca" } else { "ac" }, if right { "bc" } else { "cb" });
        x.then(DotGeneral::parse(&labels).expect("a contraction").wide(), &[w])
    });
    graph.unwrap()
}

#[test]
fn operands_lie_either_way_round_and_have_either_sign() {
    for (left, right) in [(false, false), (false, true), (true, false), (true, true)] {
        exact(&format!("whole {left} {right}"), &product([U8, I8], [128, 64, 128], left, right), 1, true);
    }
    for dtypes in [[I8, I8], [U8, U8], [I8, U8]] {
        exact(&format!("{dtypes:?}"), &product(dtypes, [64, 64, 64], false, true), 1, true);
    }
}

#[test]
fn extents_are_any() {
    for (left, right) in [(false, false), (true, true)] {
        exact("odd", &product([U8, U8], [70, 45, 37], left, right), 1, false);
        exact("by four", &product([I8, U8], [68, 76, 44], left, right), 1, false);
    }
    // of a matrix of 16 × 8 most would be padding
    exact("narrow", &product([I8, I8], [70, 3, 40], false, false), 0, false);
    exact("deep", &product([U8, I8], [24, 40, 2048], false, true), 1, false);
}

/// An operand less its zero point, in `i32`.
fn centred<'t>(x: Var<'t>, zero: Var<'t>) -> Var<'t> {
    x.cast(I32) - zero.cast(I32)
}

/// A result of 8 bits of sums.
fn requantised<'t>(sums: Var<'t>, scale: f64) -> Var<'t> {
    (sums.cast(DType::F32) * scale).round().cast(I32).maximum(-128.0).minimum(127.0).cast(I8)
}

#[test]
fn zero_points_are_taken_from_the_sums() {
    let graph = |rows: bool, batched: bool| {
        trace(|t| {
            let x = match batched {
                true => t.input("x", TensorType::new(U8, [2, 72, 64])),
                false => t.input("x", TensorType::new(U8, [72, 64])),
            };
            let w = t.input("w", of(I8, [64, 80]));
            // one zero point for each row of x, and for each column of w; or one of each
            let (p, q) = match rows {
                true => (t.input("p", of(U8, [72, 1])), t.input("q", of(I8, [80]))),
                false => (t.input("p", of(U8, [1])), t.input("q", of(I8, [1]))),
            };
            let sums = centred(x, p).matmul(centred(w, q));
            (requantised(sums, 0.001), sums)
        })
        .unwrap()
    };
    exact("one", &graph(false, false), 1, false);
    exact("vectors", &graph(true, false), 1, false);
    exact("batched", &graph(false, true), 1, false);
    // what changes along the sum stays where it is
    let along = trace(|t| {
        let x = centred(t.input("x", of(U8, [72, 64])), t.input("p", of(U8, [64])));
        x.matmul(t.input("w", of(I8, [64, 80])).cast(I32))
    });
    exact("along the sum", &along.unwrap(), 0, false);
}

/// A convolution with its zero points and a bias, to 8 bits.
fn layer<'t>(t: &Tracer<'t>, x: Var<'t>, name: &str, w: [usize; 4], conv: Conv, zeros: [bool; 2]) -> Var<'t> {
    let named = |what: &str| format!("{name}{what}");
    let weights = t.param(&named("w"), drawn(I8, &w, 3, 1.0, 256));
    let image = if zeros[0] { centred(x, t.input(&named("p"), of(x.dtype(), [1]))) } else { x.cast(I32) };
    let weights = match zeros[1] {
        true => centred(weights, t.input(&named("q"), of(I8, [w[0] as i64, 1, 1, 1]))),
        false => weights.cast(I32),
    };
    let sums = image.conv(weights, conv) + t.input(&named("b"), of(I32, [w[0] as i64, 1, 1]));
    requantised(sums, 0.0005)
}

/// By channel, so that nothing wants the image itself row by row.
fn greatest(image: Var<'_>) -> Var<'_> {
    image.cast(I32).reduce_max(&[2, 3], false)
}

/// The whole program, weights relaid and summed when they are loaded, gives the interpreter's integers.
fn loaded(name: &str, graph: &Graph, products: usize) {
    let description = DeviceDescription::named("sm_80").unwrap();
    let program = program(graph);
    let found = program.kernels.iter().filter(|kernel| kernel.text.contains("multiply ")).count();
    assert_eq!(found, products, "{name}: kernels of tensor cores");
    if nvrtc::nvrtc().is_none() {
        return;
    }
    let device = Device::simulated(&description).unwrap_or_else(|e| panic!("{e}"));
    let options = LoadOptions { cache: Cache::at(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")) };
    let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
    let exe =
        Executable::load(Arc::new(program), &device, &weights, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut session = exe.session().unwrap_or_else(|e| panic!("{name}: {e}"));
    let inputs = inputs(graph);
    let want = interpret(graph, &inputs.iter().cloned().collect(), &Tensors::new());
    let want = want.unwrap_or_else(|e| panic!("{name}: {e}")).outputs;
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let have = session.run(&given).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (have, (output, want)) in have.iter().zip(&want) {
        assert!(have.to_tensor() == *want, "{name} {output}");
    }
}

#[test]
fn convolutions_of_bytes() {
    let padded = Conv::forward(&[1, 1], &[1, 1], &[1, 1], &[1, 1], 1);
    let strided = Conv::forward(&[2, 2], &[0, 0], &[0, 0], &[1, 1], 1);
    let one = |conv: &Conv, zeros: [bool; 2]| {
        trace(|t| greatest(layer(t, t.input("x", of(U8, [2, 16, 9, 9])), "a", [24, 16, 3, 3], conv.clone(), zeros)))
            .unwrap()
    };
    loaded("padded", &one(&padded, [true, false]), 1);
    loaded("strided", &one(&strided, [true, false]), 1);
    loaded("weights", &one(&padded, [true, true]), 1);
    let grouped = Conv { groups: 2, ..padded.clone() };
    let grouped = trace(|t| {
        let x = t.input("x", of(I8, [1, 32, 6, 7]));
        greatest(layer(t, x, "a", [32, 16, 3, 3], grouped.clone(), [true, false]))
    });
    loaded("grouped", &grouped.unwrap(), 1);
    // the second one reads bytes with channels last
    let two = trace(|t| {
        let x = t.input("x", of(U8, [2, 16, 10, 10]));
        let y = layer(t, x, "a", [32, 16, 3, 3], padded.clone(), [true, false]);
        greatest(layer(t, y, "b", [24, 32, 3, 3], padded.clone(), [true, false]))
    });
    loaded("two", &two.unwrap(), 2);
}
