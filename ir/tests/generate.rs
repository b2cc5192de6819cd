//! `generate`, `gather` and `scatter`: values, faults and text.

use egret_ir::ops::{InnerKind, Outside, Places, ScatterKind};
use egret_ir::{DType, Diagnostic, Dim, Graph, Literal, Tensor, TensorType, Tensors, f32, i64, interpret, text, trace};

fn run(graph: &Graph, inputs: &[(&str, Tensor)]) -> Result<Tensor, Diagnostic> {
    let printed = text::print(graph);
    let parsed = text::parse(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(&parsed, graph, "{printed}");
    egret_ir::verify(&parsed)?;
    let inputs: Tensors = inputs.iter().map(|(name, v)| (name.to_string(), v.clone())).collect();
    interpret(graph, &inputs, &Tensors::new()).map(|o| o.outputs[0].1.clone()).map_err(Diagnostic::from)
}

fn floats(values: &[f32]) -> Tensor {
    Tensor::new(&[values.len()], values).unwrap()
}

fn ints(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::new(shape, values).unwrap()
}

#[test]
fn loads_fill_clamp_or_fault() {
    let neighbour = |outside: Outside| {
        trace(|t| {
            let x = t.input("x", f32(["n"]));
            t.generate(x.ty(), &[x], |g, i| g.load(0, &[&i[0] - 1], outside))
        })
        .unwrap()
    };
    let x = [("x", floats(&[1.0, 2.0, 3.0]))];
    let fill = Outside::Fill(Literal::float(-1.0, DType::F32));
    assert_eq!(run(&neighbour(fill), &x).unwrap(), floats(&[-1.0, 1.0, 2.0]));
    assert_eq!(run(&neighbour(Outside::Clamp), &x).unwrap(), floats(&[1.0, 1.0, 2.0]));
    let error = run(&neighbour(Outside::Fault), &x).unwrap_err();
    assert!(error.code == "E0210" && error.message.contains("-1") && error.message.contains("axis 0"), "{error}");
}

/// A sum of as many elements as another operand says, and nested loops that read values of the outer ones.
#[test]
fn inner_loops_have_counts_and_bounds() {
    let graph = trace(|t| {
        let (x, n) = (t.input("x", f32(["m"])), t.input("n", i64(["k"])));
        t.generate(f32(["k"]), &[x, n], |g, i| {
            let count = g.load(1, &[i[0].clone()], Outside::Fault);
            g.reduce(InnerKind::Sum, "m", Some(count), |g, r| g.load(0, &[r], Outside::Fault))
        })
    })
    .unwrap();
    let x = floats(&[1.0, 2.0, 4.0]);
    let counts = |c: &[i64]| [("x", x.clone()), ("n", ints(&[c.len()], c))];
    assert_eq!(run(&graph, &counts(&[3, 0, 2, -5])).unwrap(), floats(&[7.0, 0.0, 3.0, 0.0]));
    assert_eq!(run(&graph, &counts(&[4])).unwrap_err().code, "E0216");

    let product = trace(|t| {
        let (a, b) = (t.input("a", i64(["m", "k"])), t.input("b", i64(["k", "n"])));
        let ty = TensorType::new(DType::I64, ["m", "n"]);
        t.generate(ty, &[a, b], |g, i| {
            let worst = g.reduce(InnerKind::Max, "k", None, |g, r| g.load(0, &[i[0].clone(), r], Outside::Fault));
            let extent = g.dim(&Dim::from("k"));
            g.sum("k", |g, r| {
                let a = g.load(0, &[i[0].clone(), r.clone()], Outside::Fault);
                let b = g.load(1, &[r, i[1].clone()], Outside::Fault);
                a * b
            }) + worst * extent
        })
    })
    .unwrap();
    let (a, b) = (ints(&[2, 3], &[1, 2, 3, 4, 5, 6]), ints(&[3, 1], &[1, 10, 100]));
    assert_eq!(run(&product, &[("a", a), ("b", b)]).unwrap(), ints(&[2, 1], &[321 + 9, 654 + 18]));
}

#[test]
fn programs_that_make_no_sense_are_refused() {
    let refused = |program: &str, ty: &str| {
        let source = format!("graph {{ %0 = input \"x\" : f32[4] %1 = generate(%0) {{body={program}}} : {ty} }}");
        let error = text::parse(&source).unwrap_err();
        assert_eq!(error.code, "E0601", "{error}");
        error.message
    };
    assert!(refused("{ p1 = load 0 [p0, p0] clamp; p1 }", "f32[4]").contains("2 indices"));
    assert!(refused("{ p1 = load 1 [p0] clamp; p1 }", "f32[4]").contains("no operand 1"));
    assert!(refused("{ p1 = load 0 [p0] fill 0:i64; p1 }", "f32[4]").contains("stand for"));
    assert!(refused("{ p1 = load 0 [p0] clamp; p2 = load 0 [p1] clamp; p2 }", "f32[4]").contains("must be i64"));
    assert!(
        refused("{ p3 = reduce_sum p1 < 2 { p2 = load 0 [p1] clamp; p2 }; p2 }", "f32[4]").contains("no value here")
    );
    assert!(refused("{ add(p0, 1.0:f32) }", "f32[4]").contains("differ"));
    assert!(refused("{ p0 }", "f32[4]").contains("gives i64"));
    assert!(refused("{ p2 = dim 4; p2 }", "i64[4]").contains("number 1"));
    let deep = format!("{}p0{}", "{ p9 = reduce_sum p1 < 2 ".repeat(400), " }".repeat(400));
    refused(&deep, "i64[4]");
}

#[test]
fn gathers_and_scatters_of_three_kinds() {
    let x = Tensor::new(&[2, 3], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let gather = |places: Places, shape: [i64; 2]| {
        trace(|t| t.input("x", f32([2, 3])).gather_at(places, t.input("i", TensorType::new(DType::I64, shape))))
            .unwrap()
    };
    let pick = |places, shape: [i64; 2], index: &[i64]| {
        let index = ints(&[shape[0] as usize, shape[1] as usize], index);
        run(&gather(places, shape), &[("x", x.clone()), ("i", index)])
    };
    let f = |shape: &[usize], v: &[f32]| Tensor::new(shape, v).unwrap();
    assert_eq!(pick(Places::Elements { axis: 1 }, [2, 2], &[2, 0, 1, 1]).unwrap(), f(&[2, 2], &[3.0, 1.0, 5.0, 5.0]));
    assert_eq!(pick(Places::Elements { axis: 0 }, [1, 2], &[1, 0]).unwrap(), f(&[1, 2], &[4.0, 2.0]));
    assert_eq!(pick(Places::Tuples { batch: 0 }, [3, 2], &[1, 2, 0, 0, 1, 0]).unwrap(), f(&[3], &[6.0, 1.0, 4.0]));
    assert_eq!(pick(Places::Tuples { batch: 0 }, [1, 1], &[1]).unwrap(), f(&[1, 3], &[4.0, 5.0, 6.0]));
    assert_eq!(pick(Places::Tuples { batch: 1 }, [2, 1], &[2, 1]).unwrap(), f(&[2], &[3.0, 5.0]));
    for (places, index, axis) in [
        (Places::Elements { axis: 1 }, [0, 3], "axis 1"),
        (Places::Tuples { batch: 0 }, [2, 0], "axis 0"),
        (Places::Tuples { batch: 0 }, [0, -1], "axis 1"),
        (Places::Rows { axis: 0 }, [0, 2], "axis 0"),
    ] {
        let error = pick(places, [1, 2], &index).unwrap_err();
        assert!(error.code == "E0210" && error.message.contains(axis), "{error}");
    }

    let scatter = |kind: ScatterKind| {
        let graph = trace(|t| {
            let (x, i, u) = (t.input("x", f32([4])), t.input("i", i64([3, 1])), t.input("u", f32([3])));
            x.scatter(Places::Tuples { batch: 0 }, kind, i, u)
        });
        let given =
            [("x", floats(&[1.0, 2.0, 3.0, 4.0])), ("i", ints(&[3, 1], &[2, 0, 2])), ("u", floats(&[5.0, -1.0, 0.5]))];
        run(&graph.unwrap(), &given).unwrap()
    };
    assert_eq!(scatter(ScatterKind::Set), floats(&[-1.0, 2.0, 0.5, 4.0]));
    assert_eq!(scatter(ScatterKind::Add), floats(&[0.0, 2.0, 8.5, 4.0]));
    assert_eq!(scatter(ScatterKind::Mul), floats(&[-1.0, 2.0, 7.5, 4.0]));
    assert_eq!(scatter(ScatterKind::Min), floats(&[-1.0, 2.0, 0.5, 4.0]));
    assert_eq!(scatter(ScatterKind::Max), floats(&[1.0, 2.0, 5.0, 4.0]));
}
