//! Operators by index, by program, in order and at random, compiled: what the interpreter gives, and what it refuses.

mod support {
    pub mod programs;
}

use egret_ir::ops::{CumulativeKind, InnerKind, Outside, Places, Scatter, ScatterKind};
use egret_ir::{DType, Literal, Tensor, TensorType, f32, i64, trace};
use support::programs::{check, check_fault, few, ints};

macro_rules! graph {
    ($build:expr) => {
        trace($build).unwrap_or_else(|e| panic!("{e}"))
    };
}

#[test]
fn generated_elements() {
    let fill = Outside::Fill(Literal::float(-1.0, DType::F32));
    for outside in [fill, Outside::Clamp] {
        let shifted = graph!(|t| {
            let x = t.input("x", f32(["n", "m"]));
            let y = x * 2.0;
            t.generate(x.ty(), &[y], |g, i| {
                let near = g.load(0, &[i[0].clone(), &i[1] - 3], outside);
                let far = g.load(0, &[&i[0] + 1, &i[1] + 2], outside);
                near + far
            })
        });
        for shape in [[1, 1], [3, 21], [2, 5]] {
            check(&shifted, &[("x", few(DType::F32, &shape, 1))], 0.0);
        }
    }
    let inner = graph!(|t| {
        let (a, b, n) = (t.input("a", i64(["m", "k"])), t.input("b", i64(["k", "w"])), t.input("n", i64(["m"])));
        t.generate(TensorType::new(DType::I64, ["m", "w"]), &[a, b, n], |g, i| {
            let worst = g.reduce(InnerKind::Max, "k", None, |g, r| g.load(0, &[i[0].clone(), r], Outside::Fault));
            let count = g.load(2, &[i[0].clone()], Outside::Fault);
            let some = g.reduce(InnerKind::Sum, "k", Some(count), |g, r| {
                g.sum("k", |g, s| g.load(1, &[s, i[1].clone()], Outside::Fault) * r.clone())
            });
            worst + some
        })
    });
    let given =
        |n: &[i64]| [("a", few(DType::I64, &[3, 4], 2)), ("b", few(DType::I64, &[4, 19], 3)), ("n", ints(&[3], n))];
    check(&inner, &given(&[4, 0, -2]), 0.0);
    check_fault(&inner, &given(&[4, 5, 0]), "trips");
    let faulty = graph!(|t| {
        let x = t.input("x", f32([5]));
        t.generate(f32([5]), &[x], |g, i| g.load(0, &[&i[0] + 1], Outside::Fault))
    });
    check_fault(&faulty, &[("x", few(DType::F32, &[5], 4))], "axis 0");
    // a row of an operand without rows is never asked for
    let empty = graph!(|t| {
        let x = t.input("x", f32(["n", "m"]));
        t.generate(f32(["m"]), &[x], |g, i| g.sum("n", |g, r| g.load(0, &[r, i[0].clone()], Outside::Fault)))
    });
    check(&empty, &[("x", few(DType::F32, &[3, 6], 1))], 0.0);
}

/// Indices, and the shape of what they name.
fn places() -> [(Places, Tensor, Vec<usize>); 4] {
    [
        (Places::Rows { axis: 1 }, ints(&[2, 2], &[3, 0, 3, 1]), vec![2, 2, 2, 9]),
        (Places::Elements { axis: 1 }, ints(&[1, 5, 3], &[0, 3, 1, 1, 1, 1, 3, 3, 3, 0, 0, 0, 2, 1, 0]), vec![1, 5, 3]),
        (Places::Tuples { batch: 0 }, ints(&[3, 2], &[1, 3, 0, 0, 1, 3]), vec![3, 9]),
        (Places::Tuples { batch: 1 }, ints(&[2, 2, 2], &[3, 8, 0, 0, 3, 8, 2, 4]), vec![2, 2]),
    ]
}

#[test]
fn gathers_and_scatters_of_every_form() {
    let dtypes = [DType::F32, DType::F64, DType::F16, DType::BF16, DType::I64, DType::U8, DType::I16];
    for dtype in dtypes {
        for (places, indices, shape) in places() {
            for kind in ScatterKind::ALL {
                let both = graph!(|t| {
                    let like =
                        |shape: &[usize]| TensorType { dtype, shape: shape.iter().map(|n| (*n).into()).collect() };
                    let (x, updates) = (t.input("x", like(&[2, 4, 9])), t.input("updates", like(&shape)));
                    let indices = t.constant(indices.clone());
                    let gathered = x.then(egret_ir::ops::Gather { places }, &[indices]);
                    (x.then(Scatter { places, kind }, &[indices, updates]), gathered)
                });
                let inputs = [("x", few(dtype, &[2, 4, 9], 1)), ("updates", few(dtype, &shape, 2))];
                check(&both, &inputs, 0.0);
            }
        }
    }
    let outside = graph!(|t| {
        let (x, i) = (t.input("x", f32([4, 3])), t.input("i", i64([2, 3])));
        x.then(egret_ir::ops::Gather { places: Places::Elements { axis: 0 } }, &[i]) * 2.0
    });
    check_fault(&outside, &[("x", few(DType::F32, &[4, 3], 1)), ("i", ints(&[2, 3], &[0, 1, 2, 3, 4, 0]))], "axis 0");
}

/// A gather in what is padded is looked at only where it is.
#[test]
fn faults_are_those_of_elements_that_are_wanted() {
    let padded = graph!(|t| {
        let (x, i) = (t.input("x", f32([4])), t.input("i", i64([5])));
        x.gather(i, 0).slice(0, 0, 2, 1).pad(&[1], &[2], 0.5)
    });
    check(&padded, &[("x", few(DType::F32, &[4], 1)), ("i", ints(&[5], &[3, 2, 1, 0, 3]))], 0.0);
}

#[test]
fn accumulations_of_every_kind() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::I32, DType::U8] {
        for kind in CumulativeKind::ALL {
            for (axis, exclusive, reverse) in [(0, false, false), (1, true, false), (2, false, true), (1, true, true)] {
                let runs = graph!(|t| {
                    let x = t.input("x", TensorType::new(dtype, [3i64, 4, 6]));
                    x.cumulative(kind, axis, exclusive, reverse)
                });
                check(&runs, &[("x", few(dtype, &[3, 4, 6], axis as usize))], 0.0);
            }
        }
    }
}

#[test]
fn random_bits_are_those_of_the_interpreter() {
    let bits = graph!(|t| {
        let counter = t.input("counter", i64(egret_ir::Shape::scalar()));
        let bits = t.random_bits(0x1234_5678_9abc_def0, counter, [5i64, 7]);
        (bits, t.uniform(3, counter, f32([4099])))
    });
    for counter in [0, 7, -1] {
        let counter = Tensor::scalar(Literal::int(counter, DType::I64));
        check(&bits, &[("counter", counter)], 1e-6);
    }
}
