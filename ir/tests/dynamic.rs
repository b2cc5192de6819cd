//! Values that only the data tell: sizes, branches, loops, random bits.

use egret_ir::ops::{CumulativeKind, NonMaxSuppression};
use egret_ir::{
    DType, Diagnostic, Dim, Graph, Literal, Shape, Tensor, TensorType, Tensors, f32, i64, interpret, text, trace,
};

/// Runs a graph that survives its text, and gives its results.
fn run(graph: &Graph, inputs: &[(&str, Tensor)]) -> Result<Vec<Tensor>, Diagnostic> {
    let printed = text::print(graph);
    let parsed = text::parse(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(&parsed, graph, "{printed}");
    egret_ir::verify(&parsed)?;
    let inputs: Tensors = inputs.iter().map(|(name, v)| (name.to_string(), v.clone())).collect();
    let outcome = interpret(graph, &inputs, &Tensors::new()).map_err(Diagnostic::from)?;
    Ok(outcome.outputs.into_iter().map(|(_, v)| v).collect())
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape, values).unwrap()
}

fn ints(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::new(shape, values).unwrap()
}

#[test]
fn order_puts_nan_last_and_keeps_ties() {
    let graph = |largest| {
        trace(|t| {
            let x = t.input("x", f32(["n"]));
            let (values, places) = x.top_k(0, 4, largest);
            let (_, all) = x.sort(0, largest);
            (values, places, all)
        })
        .unwrap()
    };
    let x = floats(&[5], &[2.0, f32::NAN, 3.0, 2.0, -1.0]);
    let [values, places, all] = &run(&graph(true), &[("x", x.clone())]).unwrap()[..] else { panic!() };
    assert_eq!(*values, floats(&[4], &[3.0, 2.0, 2.0, -1.0]));
    assert_eq!((places, all), (&ints(&[4], &[2, 0, 3, 4]), &ints(&[5], &[2, 0, 3, 4, 1])));
    let [_, places, all] = &run(&graph(false), &[("x", x)]).unwrap()[..] else { panic!() };
    assert_eq!((places, all), (&ints(&[4], &[4, 0, 3, 2]), &ints(&[5], &[4, 0, 3, 2, 1])));
    let short = run(&graph(true), &[("x", floats(&[2], &[1.0, 2.0]))]).unwrap_err();
    assert!(short.code == "E0207" && short.message.contains("k within"), "{short}");
    assert_eq!(trace(|t| t.input("x", f32([3])).top_k(0, 4, true).0).unwrap_err().code, "E0101");
}

#[test]
fn accumulations_in_four_kinds() {
    let value = |kind, exclusive, reverse| {
        let graph = trace(|t| t.input("x", i64([2, 3])).cumulative(kind, 1, exclusive, reverse)).unwrap();
        run(&graph, &[("x", ints(&[2, 3], &[2, -3, 4, 0, 5, 1]))]).unwrap().remove(0)
    };
    assert_eq!(value(CumulativeKind::Sum, false, false), ints(&[2, 3], &[2, -1, 3, 0, 5, 6]));
    assert_eq!(value(CumulativeKind::Sum, true, true), ints(&[2, 3], &[1, 4, 0, 6, 1, 0]));
    assert_eq!(value(CumulativeKind::Prod, true, false), ints(&[2, 3], &[1, 2, -6, 1, 0, 0]));
    assert_eq!(value(CumulativeKind::Max, false, false), ints(&[2, 3], &[2, 2, 4, 0, 5, 5]));
    assert_eq!(value(CumulativeKind::Min, true, true), ints(&[2, 3], &[-3, 4, i64::MAX, 1, 1, i64::MAX]));
}

#[test]
fn sizes_become_known_and_are_checked() {
    let graph = trace(|t| {
        let (x, y) = (t.input("x", f32(["a", "b"])), t.input("y", f32(["c"])));
        let places = x.non_zero();
        let kept = y.compress(y.greater(0.0), None);
        // the sizes are equal only if the data are so
        let both = places.reshape([2, -1]).slice(0, 0, 1, 1).reshape([-1]).cast(DType::F32) + kept;
        (places, kept, both)
    })
    .unwrap();
    let x = floats(&[2, 3], &[0.0, 1.0, 0.0, f32::NAN, 0.0, -0.0]);
    let found = run(&graph, &[("x", x.clone()), ("y", floats(&[4], &[-1.0, 7.0, 0.0, 8.0]))]).unwrap();
    assert_eq!(found[0], ints(&[2, 2], &[0, 1, 1, 0]));
    assert_eq!((&found[1], &found[2]), (&floats(&[2], &[7.0, 8.0]), &floats(&[2], &[7.0, 9.0])));
    let error = run(&graph, &[("x", x), ("y", floats(&[3], &[1.0, 7.0, 8.0]))]).unwrap_err();
    assert!(error.code == "E0207" && error.message.contains("fresh"), "{error}");
    let none = run(&graph, &[("x", Tensor::zeros(DType::F32, &[2, 2])), ("y", floats(&[1], &[0.0]))]).unwrap();
    assert_eq!((none[0].shape(), none[1].shape()), (&[2, 0][..], &[0][..]));
}

#[test]
fn unique_elements_and_rows() {
    let graph = |axis: Option<isize>, sorted| {
        trace(|t| t.input("x", f32([Dim::from("n"), Dim::from(2)])).unique(axis, sorted)).unwrap()
    };
    let x = floats(&[4, 2], &[2.0, 1.0, 1.0, 1.0, 2.0, 1.0, 0.0, 3.0]);
    let found = run(&graph(None, true), &[("x", x.clone())]).unwrap();
    assert_eq!(found[0], floats(&[4], &[0.0, 1.0, 2.0, 3.0]));
    assert_eq!(found[1], ints(&[4], &[6, 1, 0, 7]));
    assert_eq!(found[2], ints(&[8], &[2, 1, 1, 1, 2, 1, 0, 3]));
    assert_eq!(found[3], ints(&[4], &[1, 4, 2, 1]));
    let rows = run(&graph(Some(0), false), &[("x", x)]).unwrap();
    assert_eq!(rows[0], floats(&[3, 2], &[2.0, 1.0, 1.0, 1.0, 0.0, 3.0]));
    assert_eq!((&rows[1], &rows[3]), (&ints(&[3], &[0, 1, 3]), &ints(&[3], &[2, 1, 1])));
    assert_eq!(rows[2], ints(&[4], &[0, 1, 0, 2]));
}

/// The example of the ONNX operator `NonMaxSuppression`, with corners given either way round, and centres.
#[test]
fn boxes_that_overlap_better_ones_are_left_out() {
    let graph = |center| {
        trace(|t| {
            let (boxes, scores) = (
                t.input("boxes", f32([Dim::from("b"), Dim::from("n"), Dim::from(4)])),
                t.input("scores", f32(["b", "c", "n"])),
            );
            let most = t.input("most", i64(Shape::scalar()));
            let number = |x: f64| t.scalar(Literal::float(x, DType::F32));
            let size = t.new_size();
            t.add(NonMaxSuppression { center, size }, &[boxes, scores, most, number(0.5), number(0.2)])
        })
        .unwrap()
    };
    let corners: Vec<f32> = [
        [1.0, 1.0, 0.0, 0.0],
        [0.0, 0.1, 1.0, 1.1],
        [0.0, 0.9, 1.0, -0.1],
        [0.0, 10.0, 1.0, 11.0],
        [1.0, 10.1, 0.0, 11.1],
        [0.0, 100.0, 1.0, 101.0],
    ]
    .concat();
    let centres: Vec<f32> = [0.5, 0.6, 0.4, 10.5, 10.6, 100.5].iter().flat_map(|x| [*x, 0.5, 1.0, 1.0]).collect();
    let scores = floats(&[1, 2, 6], &[0.9, 0.75, 0.6, 0.95, 0.5, 0.3, 0.0, 0.1, 0.2, 0.3, 0.3, 0.0]);
    for (center, boxes) in [(false, corners), (true, centres)] {
        let given = |most: i64| {
            [("boxes", floats(&[1, 6, 4], &boxes)), ("scores", scores.clone()), ("most", ints(&[], &[most]))]
        };
        let found = run(&graph(center), &given(2)).unwrap();
        assert_eq!(found[0], ints(&[3, 3], &[0, 0, 3, 0, 0, 0, 0, 1, 3]), "centres: {center}");
        assert_eq!(run(&graph(center), &given(0)).unwrap()[0].shape(), [0, 3]);
    }
}

#[test]
fn one_region_runs_and_sizes_may_differ() {
    let graph = trace(|t| {
        let (x, i) = (t.input("x", f32(["n"])), t.input("i", i64([1])));
        let go = t.input("go", TensorType::scalar(DType::Bool));
        // the gather that is not chosen would fail
        t.cond(go, |_| vec![x.gather(i, 0), x.sum()], |_| vec![x.narrow(0, 0, "n") * 2.0, x.mean()])
    })
    .unwrap();
    let given = |go: bool, i: i64| {
        let go = Tensor::splat(Literal::int(go.into(), DType::Bool), &[]);
        [("x", floats(&[2], &[1.0, 3.0])), ("i", ints(&[1], &[i])), ("go", go)]
    };
    let chosen = run(&graph, &given(true, 1)).unwrap();
    assert_eq!((&chosen[0], &chosen[1]), (&floats(&[1], &[3.0]), &floats(&[], &[4.0])));
    let other = run(&graph, &given(false, 7)).unwrap();
    assert_eq!((&other[0], &other[1]), (&floats(&[2], &[2.0, 6.0]), &floats(&[], &[2.0])));
    assert_eq!(run(&graph, &given(true, 7)).unwrap_err().code, "E0210");
    let mixed = trace(|t| {
        let x = t.input("x", f32([2]));
        t.cond(x.sum().greater(0.0), |_| vec![x], |_| vec![x.cast(DType::F64)])
    });
    assert!(mixed.unwrap_err().message.contains("f64"));
}

#[test]
fn loops_end_by_condition_or_bound() {
    let graph = |bound: Option<Dim>| {
        trace(|t| {
            let limit = t.input("limit", i64(Shape::scalar()));
            let one = t.scalar(Literal::int(1, DType::I64));
            let (last, trips, ys) = t.while_loop(
                bound,
                &[one],
                |_, carry| carry[0].less(limit),
                |t, carry| {
                    let next = carry[0] * 3i64;
                    (vec![next], vec![t.concat(&[carry[0].reshape([1]), next.reshape([1])], 0)])
                },
            );
            (last[0], trips, ys[0], ys[0].reduce_sum(&[0], false))
        })
        .unwrap()
    };
    let limit = |n: i64| [("limit", ints(&[], &[n]))];
    let found = run(&graph(None), &limit(20)).unwrap();
    assert_eq!((&found[0], &found[1]), (&ints(&[], &[27]), &ints(&[], &[3])));
    assert_eq!(found[2], ints(&[3, 2], &[1, 3, 3, 9, 9, 27]));
    assert_eq!(found[3], ints(&[2], &[13, 39]));
    let found = run(&graph(Some(2.into())), &limit(20)).unwrap();
    assert_eq!((&found[0], &found[2]), (&ints(&[], &[9]), &ints(&[2, 2], &[1, 3, 3, 9])));
    let none = run(&graph(None), &limit(0)).unwrap();
    assert_eq!((&none[1], none[2].shape()), (&ints(&[], &[0]), &[0, 2][..]));

    let unbounded = trace(|t| {
        let x = t.input("x", f32(Shape::scalar()));
        let (last, ..) = t.while_loop(None, &[x], |_, c| c[0].less(9.0), |_, c| (vec![c[0] * 2.0], vec![]));
        t.grad(last[0], &[x])
    });
    let error = egret_ir::autodiff::expand(&unbounded.unwrap()).unwrap_err();
    assert!(error.code == "E0402" && error.help.is_some(), "{error}");
    let ragged = trace(|t| {
        let x = t.input("x", f32([4]));
        t.while_loop(
            Some(3.into()),
            &[x],
            |_, c| c[0].sum().less(9.0),
            |_, c| (vec![c[0] + 1.0], vec![c[0].compress(c[0].greater(2.0), None)]),
        )
        .2
    });
    assert!(ragged.unwrap_err().message.contains("trip to trip"));
}

#[test]
fn random_numbers_are_of_their_range_and_moments() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let graph = trace(|t| {
            let counter = t.input("counter", i64(Shape::scalar()));
            let ty = TensorType::new(dtype, [4099]);
            (t.uniform(7, counter, ty.clone()), t.normal(8, counter, ty))
        })
        .unwrap();
        let at = |counter: i64| run(&graph, &[("counter", ints(&[], &[counter]))]).unwrap();
        let (first, again, other) = (at(5), at(5), at(6));
        assert!(first == again && first != other);
        let moments = |t: &Tensor| {
            let n = t.elements() as f64;
            let mean = t.values().map(|v| v.as_f64()).sum::<f64>() / n;
            (mean, t.values().map(|v| (v.as_f64() - mean).powi(2)).sum::<f64>() / n)
        };
        assert!(first[0].values().all(|v| (0.0..1.0).contains(&v.as_f64())), "{dtype}");
        assert!(first[1].values().all(|v| v.as_f64().is_finite()));
        // five standard errors of 4099 samples
        let (mean, variance) = moments(&first[0]);
        assert!((mean - 0.5).abs() < 0.023 && (variance - 1.0 / 12.0).abs() < 0.006, "{dtype} {mean} {variance}");
        let (mean, variance) = moments(&first[1]);
        assert!(mean.abs() < 0.079 && (variance - 1.0).abs() < 0.111, "{dtype} {mean} {variance}");
    }
}

#[test]
fn bits_are_read_as_another_type_of_their_size() {
    let graph = trace(|t| t.input("x", f32([3])).bitcast(DType::I32)).unwrap();
    let bits = run(&graph, &[("x", floats(&[3], &[1.0, -0.0, f32::INFINITY]))]).unwrap();
    assert_eq!(bits[0], Tensor::new(&[3], &[0x3f80_0000i32, i32::MIN, 0x7f80_0000]).unwrap());
    assert_eq!(trace(|t| t.input("x", f32([3])).bitcast(DType::I64)).unwrap_err().code, "E0101");
    assert_eq!(
        trace(|t| t.input("x", TensorType::new(DType::U8, [3])).bitcast(DType::Bool)).unwrap_err().code,
        "E0101"
    );
}
