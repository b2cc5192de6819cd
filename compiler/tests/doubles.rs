//! Products of `f64`: they run on the driver, whatever their form, and give what the interpreter gives.

mod support {
    pub mod programs;
}

use egret_compiler::{CompileOptions, compile};
use egret_ir::tracer::{Tracer, Var, trace};
use egret_ir::{DType, Graph, Op, ScalarValue, Tensor, TensorType, Tensors, interpret};
use egret_program::{DeviceDescription, Program};
use support::programs::{check, descriptions, few, run};

fn f64(shape: &[i64]) -> TensorType {
    TensorType::new(DType::F64, shape)
}

/// Numbers of 53 bits in −1..1.
fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut tensor = Tensor::zeros(DType::F64, shape);
    for i in 0..tensor.elements() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        tensor.set(i, ScalarValue::Float((state >> 11) as f64 / (1u64 << 52) as f64 - 1.0));
    }
    tensor
}

fn compiled(graph: &Graph, device: &DeviceDescription, exact: bool) -> Program {
    let options = CompileOptions { exact, ..CompileOptions::default() };
    compile(graph, device, &options).unwrap_or_else(|e| panic!("{e}")).program
}

/// Launches of the driver on tiles of `f64`, and all others.
fn launches(program: &Program) -> (usize, usize) {
    let text = |kernel| &program.kernel(kernel).text;
    let count = program.launches().iter().filter(|l| text(l.kernel).contains("products f64")).count();
    (count, program.launches().len() - count)
}

type Build = for<'t> fn(&Tracer<'t>, Var<'t>) -> Vec<Var<'t>>;

struct Case {
    what: &'static str,
    /// Shape of the input, its extents known or, where 0, a symbol's.
    x: &'static [i64],
    build: Build,
    /// Products, and other kernels of a run.
    launches: (usize, usize),
    /// Part of a value by which it may be off: 0 where every number is exact.
    tolerance: f64,
}

fn weights<'t>(t: &Tracer<'t>, name: &str, shape: &[usize]) -> Var<'t> {
    t.param(name, few(DType::F64, shape, name.len() + shape[0]))
}

const CASES: [Case; 14] = [
    Case {
        what: "weights, packed at load",
        x: &[33, 70],
        build: |t, x| vec![x.matmul(weights(t, "w", &[70, 53]))],
        launches: (1, 0),
        tolerance: 0.0,
    },
    Case {
        what: "operands of a run, the second transposed",
        x: &[29, 37],
        build: |t, x| vec![x.matmul(t.input("y", f64(&[41, 37])).transpose(&[1, 0]))],
        launches: (1, 0),
        tolerance: 0.0,
    },
    Case {
        what: "the first transposed, one row",
        x: &[37, 1],
        build: |t, x| vec![x.transpose(&[1, 0]).matmul(weights(t, "w", &[37, 100]))],
        launches: (1, 0),
        tolerance: 0.0,
    },
    Case {
        what: "a vector",
        x: &[5, 64],
        build: |t, x| vec![x.matmul(weights(t, "w", &[64]))],
        launches: (1, 0),
        tolerance: 0.0,
    },
    Case {
        what: "batches of both operands",
        x: &[2, 3, 9, 17],
        build: |t, x| vec![x.dot_general(t.input("y", f64(&[3, 17, 21])), "abcd,bde->abce")],
        launches: (1, 0),
        tolerance: 0.0,
    },
    Case {
        what: "batches of packed weights",
        x: &[3, 9, 17],
        build: |t, x| vec![x.dot_general(weights(t, "w", &[3, 17, 21]), "bcd,bde->bce")],
        launches: (1, 0),
        tolerance: 0.0,
    },
    Case {
        what: "rows that a run tells",
        x: &[0, 24],
        build: |t, x| vec![x.matmul(weights(t, "w", &[24, 40])) + weights(t, "b", &[40])],
        launches: (1, 0),
        tolerance: 0.0,
    },
    Case {
        what: "bias, residual and ReLU in registers",
        x: &[33, 48],
        build: |t, x| {
            let sum = x.matmul(weights(t, "w", &[48, 48])) + weights(t, "b", &[48]) + x;
            vec![sum.relu()]
        },
        launches: (1, 0),
        tolerance: 0.0,
    },
    Case {
        what: "bounds that are floats",
        x: &[33, 48],
        build: |t, x| vec![x.matmul(weights(t, "w", &[48, 31])).maximum(-0.5).minimum(6.0)],
        launches: (1, 0),
        tolerance: 0.0,
    },
    Case {
        what: "bounds that are no floats",
        x: &[33, 48],
        build: |t, x| vec![x.matmul(weights(t, "w", &[48, 31])).maximum(0.1).minimum(0.7)],
        launches: (1, 0),
        tolerance: 0.0,
    },
    Case {
        what: "a function, and a narrower result",
        x: &[33, 48],
        build: |t, x| {
            let y = x.matmul(weights(t, "w", &[48, 31]));
            vec![(y * 0.125).tanh(), x.matmul(weights(t, "v", &[48, 20])).cast(DType::F32)]
        },
        launches: (2, 0),
        tolerance: 1e-12,
    },
    Case {
        what: "softmax of rows, a kernel of its own",
        x: &[13, 48],
        build: |t, x| vec![(x.matmul(weights(t, "w", &[48, 31])) * 0.125).softmax(-1)],
        launches: (1, 1),
        tolerance: 1e-12,
    },
    Case {
        what: "a norm of rows, a kernel of its own",
        x: &[13, 48],
        build: |t, x| vec![x.matmul(weights(t, "w", &[48, 31])).layer_norm(1, 1e-5)],
        launches: (1, 1),
        tolerance: 1e-12,
    },
    Case {
        what: "softmax of a narrower result",
        x: &[13, 48],
        build: |t, x| vec![(x.matmul(weights(t, "w", &[48, 31])) * 0.125).cast(DType::F32).softmax(-1)],
        launches: (1, 1),
        tolerance: 1e-6,
    },
];

#[test]
fn every_form_on_every_instruction_set() {
    for Case { what, x, build, launches: expected, tolerance } in CASES {
        let symbolic = x.contains(&0);
        let graph = trace(|t| {
            let shape: egret_ir::Shape =
                x.iter().map(|n| if *n == 0 { egret_ir::Dim::symbol("n") } else { (*n).into() }).collect();
            let made = build(t, t.input("x", TensorType::new(DType::F64, shape)));
            made.iter().enumerate().for_each(|(i, v)| t.output(&format!("y{i}"), *v));
        })
        .unwrap_or_else(|e| panic!("{what}: {e}"));
        for device in descriptions() {
            assert_eq!(launches(&compiled(&graph, &device, false)), expected, "{what} on {}", device.name);
        }
        for rows in if symbolic { vec![1, 7, 50] } else { vec![0] } {
            let mut inputs: Vec<(&str, Tensor)> = Vec::new();
            for id in graph.inputs() {
                let Op::Input(input) = &graph.node(*id).op else { continue };
                let shape = graph.tensor_type(*id).shape.iter().map(|d| d.as_const().unwrap_or(rows) as usize);
                let value = few(DType::F64, &shape.collect::<Vec<usize>>(), 3 + inputs.len());
                inputs.push((&input.name, value));
            }
            check(&graph, &inputs, tolerance);
        }
    }
}

/// Sums of rounded products: within the bound of a sum of so many, with equal bits for any number of threads.
#[test]
fn sums_are_within_their_rounding() {
    for (m, n, k) in [(1, 300, 600), (64, 64, 64), (130, 90, 257), (31, 200, 5000)] {
        let graph = trace(|t| {
            let x = t.input("x", f64(&[m, k]));
            let packed = x.matmul(t.param("w", random(&[k as usize, n as usize], 2)));
            t.output("packed", packed);
            t.output("strided", x.matmul(t.input("y", f64(&[k, n]))));
        })
        .unwrap_or_else(|e| panic!("{e}"));
        let given: Tensors = [
            ("x".to_string(), random(&[m as usize, k as usize], 1)),
            ("y".to_string(), random(&[k as usize, n as usize], 3)),
        ]
        .into();
        let want = interpret(&graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{e}")).outputs;
        // factors are at most 1; the interpreter rounds too
        let bound = (k * k) as f64 * f64::EPSILON;
        for device in descriptions() {
            let program = compiled(&graph, &device, false);
            assert_eq!(launches(&program), (2, 0));
            let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
            let mut all = Vec::new();
            for threads in 1..=3 {
                all.push(run(&program, &weights, &given, threads).unwrap_or_else(|e| panic!("{e}")));
            }
            assert!(all.iter().all(|other| *other == all[0]), "{}: equal bits", device.name);
            for ((name, have), (_, want)) in all[0].iter().zip(&want) {
                for (a, b) in have.values().zip(want.values()) {
                    let difference = (a.as_f64() - b.as_f64()).abs();
                    assert!(difference <= bound, "{name}: {difference:e} beyond {bound:e} on {}", device.name);
                }
            }
        }
    }
}

/// Where exact results are asked for, each product and each sum is rounded, as in the interpreter: to the bit.
#[test]
fn exact_sums_are_those_of_the_interpreter() {
    let graph = trace(|t| {
        let x = t.input("x", f64(&[9, 70]));
        (x.matmul(t.param("w", random(&[70, 33], 2))) + t.param("b", random(&[33], 3))).relu()
    })
    .unwrap_or_else(|e| panic!("{e}"));
    let given: Tensors = [("x".to_string(), random(&[9, 70], 1))].into();
    let want = interpret(&graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{e}")).outputs;
    for device in descriptions() {
        let program = compiled(&graph, &device, true);
        assert_eq!(launches(&program), (0, 1));
        let weights = |name: &str| graph.weights.get(name).map(|w| w.materialise());
        let have = run(&program, &weights, &given, 2).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(have[0].1, want[0].1, "{}", device.name);
    }
}

/// A number that is known when compiling is a factor like any other, though no weight holds it.
#[test]
fn numbers_are_factors() {
    for dtype in [DType::F32, DType::F64] {
        let network = trace(|t| {
            let x = t.input("x", TensorType::scalar(dtype));
            let three = t.constant(few(dtype, &[], 3));
            t.output("y", x.dot_general(three, ",->"));
            t.output("three", three);
        });
        check(&network.unwrap_or_else(|e| panic!("{e}")), &[("x", few(dtype, &[], 1))], 0.0);
    }
}
