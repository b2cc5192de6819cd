//! Sizes that only the data tell, order, branches and loops, compiled.

mod support {
    pub mod programs;
}

use egret_compiler::{CompileOptions, compile};
use egret_ir::ops::NonMaxSuppression;
use egret_ir::{DType, Dim, Literal, Shape, Tensor, TensorType, Tensors, f32, i64, trace};
use egret_runtime::RuntimeError;
use support::programs::{check, check_fault, descriptions, few, ints, run};

macro_rules! graph {
    ($build:expr) => {
        trace($build).unwrap_or_else(|e| panic!("{e}"))
    };
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape, values).expect("as many values as the shape has")
}

fn truth(value: bool) -> Tensor {
    Tensor::scalar(Literal::int(value.into(), DType::Bool))
}

#[test]
fn orders_of_every_type() {
    let numbers = &DType::ALL[1..];
    for dtype in numbers {
        for (axis, k, largest) in [(0isize, 3i64, true), (1, 5, false), (2, 1, true), (2, 9, true)] {
            let top = graph!(|t| {
                let x = t.input("x", TensorType::new(*dtype, [4i64, 5, 9]));
                let (values, places) = x.top_k(axis, k.min([4, 5, 9][axis as usize]), largest);
                (values, places, x.top_k(axis, 0, largest).1)
            });
            check(&top, &[("x", few(*dtype, &[4, 5, 9], k as usize))], 0.0);
        }
    }
    let sorted = graph!(|t| t.input("x", f32(["n"])).sort(0, true));
    let mut values: Vec<f32> = few(DType::F32, &[300], 3).values().map(|v| v.as_f64() as f32).collect();
    (values[7], values[200]) = (f32::NAN, f32::NAN);
    check(&sorted, &[("x", floats(&[300], &values))], 0.0);
}

/// What is found goes on through maps, reductions, products and outputs of its size.
#[test]
fn sizes_that_the_data_tell() {
    let found = graph!(|t| {
        let (x, y) = (t.input("x", f32(["a", "b"])), t.input("y", f32(["c"])));
        let w = t.param("w", few(DType::F32, &[2, 3], 1));
        let places = x.non_zero();
        let kept = y.compress(y.greater(0.0), None);
        let both = places.slice(0, 0, 1, 1).reshape([-1]).cast(DType::F32) + kept;
        let rows = places.transpose(&[1, 0]).cast(DType::F32);
        let product = rows.matmul(w).relu();
        (places, kept * 2.0, both.exp(), product, product.reduce_sum(&[0], false), kept.sort(0, false).0)
    });
    let x = floats(&[2, 3], &[0.0, 1.0, 0.0, f32::NAN, 0.0, -0.0]);
    let y = |values: &[f32]| floats(&[values.len()], values);
    check(&found, &[("x", x.clone()), ("y", y(&[-1.0, 7.0, 0.0, 8.0]))], 1e-6);
    check(&found, &[("x", Tensor::zeros(DType::F32, &[2, 2])), ("y", y(&[0.0]))], 1e-6);
    // the sizes are equal only if the data are so
    let given: Tensors = [("x".to_string(), x), ("y".to_string(), y(&[1.0, 7.0, 8.0]))].into_iter().collect();
    for device in descriptions() {
        let options = CompileOptions::default();
        let program = compile(&found, &device, &options).unwrap_or_else(|e| panic!("{e}")).program;
        let weights = |name: &str| found.weights.get(name).map(|w| w.materialise());
        assert!(matches!(run(&program, &weights, &given, 1), Err(RuntimeError::Check { .. })));
    }
}

#[test]
fn distinct_elements_and_slices() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::I64, DType::U8] {
        for (axis, sorted) in [(None, true), (None, false), (Some(0), true), (Some(1), false)] {
            let unique = graph!(|t| {
                let parts = t.input("x", TensorType::new(dtype, [6i64, 5])).unique(axis, sorted);
                parts.to_vec()
            });
            let x = few(dtype, &[6, 5], 0);
            check(&unique, &[("x", x.clone())], 0.0);
            let mut twice = Tensor::zeros(dtype, &[6, 5]);
            (0..30).for_each(|i| twice.set(i, x.get(i % 10)));
            check(&unique, &[("x", twice)], 0.0);
        }
    }
}

#[test]
fn boxes_that_overlap_better_ones() {
    for center in [false, true] {
        let boxes = graph!(|t| {
            let (boxes, scores) = (
                t.input("boxes", f32([Dim::from("b"), Dim::from("n"), Dim::from(4)])),
                t.input("scores", f32(["b", "c", "n"])),
            );
            let most = t.input("most", i64(Shape::scalar()));
            let number = |x: f64| t.scalar(Literal::float(x, DType::F32));
            let size = t.new_size();
            t.add(NonMaxSuppression { center, size }, &[boxes, scores, most, number(0.3), number(0.5)])
        });
        for most in [0, 1, 20] {
            let inputs = [
                ("boxes", few(DType::F32, &[2, 17, 4], 1)),
                ("scores", few(DType::F32, &[2, 3, 17], 2)),
                ("most", ints(&[], &[most])),
            ];
            check(&boxes, &inputs, 0.0);
        }
    }
}

#[test]
fn one_region_runs() {
    let branch = graph!(|t| {
        let (x, i) = (t.input("x", f32(["n"])), t.input("i", i64([1])));
        let w = t.param("w", few(DType::F32, &[3], 4));
        let go = t.input("go", TensorType::scalar(DType::Bool));
        // the gather that is not chosen would fail
        let chosen =
            t.cond(go, |_| vec![x.gather(i, 0), (x * w.sum()).sum()], |_| vec![x.narrow(0, 0, "n") * 2.0, x.mean()]);
        (chosen[0] + 1.0, chosen[0], chosen[1])
    });
    let given = |go: bool, i: i64| {
        [("x", floats(&[5], &[1.0, 3.0, 0.0, -1.0, 2.0])), ("i", ints(&[1], &[i])), ("go", truth(go))]
    };
    check(&branch, &given(true, 1), 1e-6);
    check(&branch, &given(false, 7), 1e-6);
    // known when loading, and within another
    let nested = graph!(|t| {
        let x = t.input("x", f32([4]));
        let (w, c) = (t.param("w", few(DType::F32, &[4], 4)), t.param("c", truth(true)));
        let scaled = t.cond(c, |_| vec![w * 3.0], |_| vec![w]);
        let positive = x.sum().greater(0.0);
        let inner = t.cond(
            positive,
            |t| t.cond(x.sum().greater(4.0), |_| vec![x.exp()], |_| vec![x + scaled[0]]),
            |_| vec![scaled[0]],
        );
        (scaled[0], inner[0])
    });
    for scale in [1.0, 9.0, -2.0] {
        check(&nested, &[("x", floats(&[4], &[scale, 0.5, 0.25, 0.0]))], 1e-6);
    }
    let faulty = graph!(|t| {
        let (x, i) = (t.input("x", f32([3])), t.input("i", i64([1])));
        t.cond(x.sum().greater(0.0), |_| vec![x.gather(i, 0)], |_| vec![x.narrow(0, 0, 1)])
    });
    check_fault(&faulty, &[("x", floats(&[3], &[1.0, 0.0, 0.0])), ("i", ints(&[1], &[3]))], "axis 0");
}

#[test]
fn loops_that_a_condition_ends() {
    for bound in [8i64, 2] {
        let powers = graph!(|t| {
            let limit = t.input("limit", i64(Shape::scalar()));
            let one = t.scalar(Literal::int(1, DType::I64));
            let (last, trips, ys) = t.while_loop(
                Some(bound.into()),
                &[one, limit],
                |_, carry| carry[0].less(limit),
                |t, carry| {
                    let next = carry[0] * 3i64;
                    // the carried values change places
                    let pair = t.concat(&[carry[0].reshape([1]), next.reshape([1])], 0);
                    (vec![next, carry[1] + carry[0]], vec![pair])
                },
            );
            (last[0], last[1], trips, ys[0], ys[0].reduce_sum(&[0], false))
        });
        for limit in [20, 0, 1, 100_000] {
            check(&powers, &[("limit", ints(&[], &[limit]))], 0.0);
        }
    }
    let newton = graph!(|t| {
        let x = t.input("x", f32(["n"]));
        let (last, trips, _) = t.while_loop(
            None,
            &[x, x],
            |_, c| (c[0] * c[0] - x).abs().reduce_max(&[0], false).greater(1e-3),
            |_, c| (vec![(c[0] + x / c[0]) * 0.5, c[0]], vec![]),
        );
        (last[0], trips)
    });
    check(&newton, &[("x", floats(&[3], &[2.0, 9.0, 0.5]))], 1e-3);
    // a loop over what was found, and one within a branch
    let found = graph!(|t| {
        let x = t.input("x", f32([7]));
        let kept = x.compress(x.greater(0.0), None);
        let zero = t.scalar(Literal::float(0.0, DType::F32));
        let (ends, sums) = t.scan(&[zero], &[kept], |_, c, s| {
            let next = c[0] + s[0];
            (vec![next], vec![next * 2.0])
        });
        let grown = t.cond(
            ends[0].greater(3.0),
            |t| {
                let (last, ..) =
                    t.while_loop(Some(5.into()), &[ends[0]], |_, c| c[0].less(50.0), |_, c| (vec![c[0] * 2.0], vec![]));
                vec![last[0]]
            },
            |_| vec![ends[0]],
        );
        (sums[0], ends[0], grown[0])
    });
    for values in [[1.0, -1.0, 2.0, 0.0, 3.0, -4.0, 0.5], [-1.0; 7], [0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2]] {
        check(&found, &[("x", floats(&[7], &values))], 1e-6);
    }
}

/// A session goes from data to data: sizes, shapes of outputs and memory are those of each run.
#[test]
fn one_session_runs_many_sizes() {
    use egret_runtime::{Executable, LoadOptions};
    let kept = graph!(|t| {
        let x = t.input("x", f32([6]));
        x.compress(x.greater(0.0), None) * 2.0
    });
    let device = descriptions().pop().expect("a description");
    let program = compile(&kept, &device, &CompileOptions::default());
    let program = std::sync::Arc::new(program.unwrap_or_else(|e| panic!("{e}")).program);
    let executable = Executable::load(program, &|_| None, LoadOptions { threads: 1, isa: None });
    let mut session = executable.and_then(|e| e.session()).unwrap_or_else(|e| panic!("{e}"));
    for count in [3usize, 0, 6, 1] {
        let values: Vec<f32> = (0..6).map(|i| if i < count { i as f32 + 1.0 } else { -1.0 }).collect();
        let outputs = session.run(&[("x", &floats(&[6], &values))]).unwrap_or_else(|e| panic!("{e}"));
        let want: Vec<f32> = values[..count].iter().map(|v| v * 2.0).collect();
        let output = outputs.at(0).expect("an output");
        assert_eq!((output.shape(), output.as_slice::<f32>()), (&[count][..], Some(&want[..])));
    }
}
